"""`./nomyo env`: the variables by which OpenAI's SDKs find the router.

ask_router ──GET /v1/models──▶ Served: its models, their context and what they can do, and whether it asks for a key
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

import click
import httpx2

from commands import Failed, json_option, print_json, print_line
from core.config import Config
from core.config_file import load_config
from core.errors import ConfigError
from core.hops import HEADER

URL = "http://127.0.0.1:12434"
KEY_VARIABLE = "ROUTER_API_KEY"
TIMEOUT_S = 10.0
# Who asks so gets what the router knows of its models, too (core/hops.py).
WHO = "nomyo-command"


class Model(NamedTuple):
    """A model that the router serves. None: nobody knows."""

    name: str
    context: int | None
    capabilities: tuple[str, ...] | None

    @property
    def answers(self) -> bool:
        """Whether it answers in text, and does not only embed."""
        return self.capabilities is None or "completion" in self.capabilities

    def can(self, what: str) -> bool:
        """Whether it is known to have a capability, in Ollama's words."""
        return what in (self.capabilities or ())


class Served(NamedTuple):
    """A router that runs, as a client sees it. `url` is without `/v1`."""

    url: str
    models: list[Model]
    asks_for_key: bool


def router_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--url` and `--key`, for a command that asks the router that runs."""
    url = click.option(
        "--url", metavar="URL", help=f"Where the router is. Default: public_url of the settings, else {URL}."
    )
    key = click.option(
        "--key",
        metavar="KEY",
        envvar=KEY_VARIABLE,
        help=f"A key of the router. Default: {KEY_VARIABLE}, or api_key of the settings.",
    )
    decorated: Callable[..., Any] = url(key(command))
    return decorated


def ask_router(url: str | None, key: str | None) -> Served:
    """What the router at `url` serves whoever has `key`; without them those of the settings are taken. Raises `Failed`,
    with what to do."""
    url = (url or _settings().public_url or URL).rstrip("/").removesuffix("/v1")
    if "://" not in url:
        raise Failed(f"{url} is no address of a router: it begins with http:// or https:// (--url http://{url})")
    given = key or _settings().api_key
    try:
        with httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            bare = client.get(f"{url}/v1/models", headers={HEADER.decode(): WHO})
            asks_for_key = bare.status_code == 401
            answer = bare if not asks_for_key else _with_key(client, url, given)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        why = _reason(error)
        raise Failed(
            f"nothing answers at {url} ({why}): start the router (./nomyo serve), or give its address (--url)"
        ) from None
    if answer.status_code in (401, 403):
        raise Failed(f"the router does not take this key: give one of its keys (--key, or {KEY_VARIABLE})")
    try:
        listed = answer.json()
        rows, known = listed["data"], listed["nomyo"]["models"]
    except (ValueError, KeyError, TypeError):
        raise Failed(f"what answers at {url} is no nomyo-router: give its address (--url)") from None
    models = [_model(row["id"], known.get(row["id"], {})) for row in rows]
    return Served(url, sorted(models), asks_for_key)


def _with_key(client: httpx2.Client, url: str, key: str) -> httpx2.Response:
    if not key:
        raise Failed(f"the router asks for a key: give one (--key, or {KEY_VARIABLE}); ./nomyo keys add NAME makes one")
    return client.get(f"{url}/v1/models", headers={HEADER.decode(): WHO, "Authorization": f"Bearer {key}"})


def _settings() -> Config:
    """Those of this folder, if they can be read: a router elsewhere needs none here."""
    try:
        return load_config()
    except ConfigError:
        return Config()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _model(name: str, facts: dict[str, Any]) -> Model:
    can = facts.get("capabilities")
    return Model(name, facts.get("context"), None if can is None else tuple(can))


@click.command(short_help="Print the variables by which OpenAI's SDKs find the router.")
@router_options
@json_option
def env(url: str | None, key: str | None, as_json: bool) -> None:
    """Prints the variables by which OpenAI's SDKs, and all that is built on them, find the router.

    \b
    Example:
      ./nomyo env --json
      eval "$(./nomyo env)"
      ./nomyo env --url http://router.example:12434 --key "$MY_KEY"
    """
    served = ask_router(url, key)
    # SDKs want some key.
    key = (key or _settings().api_key) if served.asks_for_key else "none"
    variables = {"OPENAI_BASE_URL": f"{served.url}/v1", "OPENAI_API_KEY": key}
    if as_json:
        print_json(variables)
        return
    names = [model.name for model in served.models if model.answers]
    print_line(
        f"# models: {', '.join(names)}" if names else "# the router has no models yet: ./nomyo check has the reason"
    )
    for name, value in variables.items():
        print_line(f"export {name}={shlex.quote(value)}")


COMMAND = env
