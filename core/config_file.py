"""The settings' file and the environment, read and laid over each other.

config.yaml ──${VAR}──▶ plain data ──ROUTER_*──▶ plain data ──core/config_checks.py──▶ Config
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from core.config import SECTIONS, Config
from core.config_checks import parse_config
from core.config_mistakes import mistakes_in
from core.config_words import AT_THE_START
from core.errors import ConfigError
from core.yaml import read_yaml

UNNAMED_FILE = Path("config.yaml")
# What the nomyo-router reads that people come from.
LEGACY_CONFIG, LEGACY_KEY, LEGACY_DATABASE = "NOMYO_ROUTER_CONFIG_PATH", "NOMYO_ROUTER_API_KEY", "NOMYO_ROUTER_DB_PATH"
# Where an Ollama is, for settings that name no endpoints.
OLLAMA = "OLLAMA_URL"
# Ours, but not for whoever sets the router up: the folder of its workers.
NOT_SETTINGS = frozenset({"ROUTER_CONFIG", LEGACY_CONFIG, "NOMYO_WORKERS_DIR"})


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file that ROUTER_CONFIG or NOMYO_ROUTER_CONFIG_PATH names, else ./config.yaml."""
    if legacy := environ.get(LEGACY_CONFIG):
        legacy = str(Path(legacy).expanduser())
    return Path(environ.get("ROUTER_CONFIG") or legacy or UNNAMED_FILE)


def load_config(
    path: str | Path | None = None, environ: Mapping[str, str] = os.environ, kinds: Collection[str] = ()
) -> Config:
    """The settings from `path`, else from the file that ROUTER_CONFIG names, else from ./config.yaml, which need not be
    there. `kinds` are the kinds of server that there are; without them an endpoint's is not checked. Raises
    `ConfigError`."""
    file, data, overridden = _read(path, environ)
    try:
        return parse_config(data, kinds)
    except ConfigError as error:
        raise ConfigError(_placed(str(error), file, overridden)) from None


def mistakes_in_config(
    path: str | Path | None = None, environ: Mapping[str, str] = os.environ, kinds: Collection[str] = ()
) -> list[str]:
    """Every mistake in the settings that `load_config` would read, a line each."""
    try:
        file, data, overridden = _read(path, environ)
    except ConfigError as error:
        return [str(error)]
    return [_placed(mistake, file, overridden) for mistake in mistakes_in(data, kinds)]


def _placed(mistake: str, file: Path, overridden: Mapping[str, str]) -> str:
    return f"{_origin(mistake, overridden) or file}: {mistake}"


def _read(path: str | Path | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """The settings as plain data, with the file and the variables that they are from. Raises `ConfigError`."""
    file = Path(path) if path else config_file(environ)
    try:
        with file.open(encoding="utf-8") as stream:  # Not its text: PyYAML's errors name the file that they are in.
            data = read_yaml(stream)
    except FileNotFoundError as error:
        if path or file != UNNAMED_FILE:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}; ROUTER_CONFIG names the file") from None
        data = {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not YAML: not UTF-8 text, at byte {error.start}; save it as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML's for a number that is none, Python's for text that is none
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: must hold keys and values")
    unset: list[tuple[str, str]] = []
    data = _expanded(data, environ, "", unset)
    if unset:
        raise ConfigError(f"{file}: {_about(unset)}")
    overridden = _override(data, environ)
    if data.setdefault("endpoints", []) == [] and (url := environ.get(OLLAMA)):
        data["endpoints"] = [{"url": url, "kind": "ollama"}]
        overridden["endpoints"] = OLLAMA
    return file, data, overridden


def _about(unset: list[tuple[str, str]]) -> str:
    """A line with all variables that are not set, each with the first key that is in want of it."""
    first: dict[str, str] = {}
    for key, name in unset:
        first.setdefault(name, key)
    default = f"(${{{unset[0][1]}:-…}} gives a default)"
    named = [f"{key}: the environment variable {name} is not set" for name, key in first.items()]
    return f"{'; '.join(named)} {default}"


def _expanded(value: Any, environ: Mapping[str, str], key: str, unset: list[tuple[str, str]]) -> Any:
    """`value` with each `${VAR}` and `${VAR:-default}` in its texts replaced. `unset` gets the key and the variable of
    each that is not set and has no default."""

    def variable(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            unset.append((key, name))
        return environ.get(name, "")

    if isinstance(value, str):
        return re.sub(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*))?\}", variable, value)
    if isinstance(value, dict):
        return {name: _expanded(item, environ, f"{key}.{name}".lstrip("."), unset) for name, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, environ, f"{key}[{index}]", unset) for index, item in enumerate(value)]
    return value


def _override(data: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """ROUTER_API_KEY sets `api_key`, ROUTER_DATABASE__URL `database.url`; lists are given as YAML. Gives the keys that
    were set so, each with the variable. A name that is not known is an error: who mistypes the key's would run an open
    router."""
    variables = _variables()
    overridden: dict[str, str] = {}
    for name, (text, given) in _ours(environ).items():
        if name not in variables:
            names = [*variables, "ROUTER_CONFIG", LEGACY_KEY, LEGACY_CONFIG, LEGACY_DATABASE]
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
            which = f"did you mean '{near[0]}'?" if near else "docs/settings.md has all of them"
            if bare := re.fullmatch(r"(?:ROUTER|NOMYO|NOMYO_ROUTER)_(PORT|HOST)", name):
                which = AT_THE_START[bare[1].lower()]
            raise ConfigError(f"{name}: there is no such variable; {which}")
        section, key = variables[name]
        try:
            value = read_yaml(text) if text[:1] in ("[", "{") else text
        except yaml.YAMLError:
            raise ConfigError(f"{given}: is not YAML") from None
        if section:
            known = data.get(section) or {}
            if not isinstance(known, dict):
                continue  # Which is the error.
            data[section] = {**known, key: value}
        else:
            data[key] = value
        overridden[f"{section}.{key}".lstrip(".")] = given
    return overridden


def _origin(problem: str, overridden: Mapping[str, str]) -> str | None:
    """The variable that set the key which an error names, if one did."""
    for key, variable in overridden.items():
        if re.search(rf"(^|'){re.escape(key)}\b", problem):
            return variable
    return None


def _ours(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What of the environment sets a key, the names of old as those of today: for each the text, and its name there."""
    # A Kubernetes service that is called "router" sets ROUTER_PORT… and ROUTER_SERVICE… in every pod beside it.
    foreign = re.compile(r"(NOMYO|NOMYO_ROUTER|ROUTER)_(PORT|SERVICE)(_|$)")
    ours = {
        name: (text, name)
        for name, text in environ.items()
        if name.startswith(("ROUTER_", "NOMYO_"))
        and name not in NOT_SETTINGS
        # Theirs are addresses (tcp://…): a bare number is somebody's who means ours.
        and (not foreign.match(name) or (name.endswith("_PORT") and text.isdecimal() and "SERVICE" not in name))
    }
    for legacy, name in ((LEGACY_KEY, "ROUTER_API_KEY"), (LEGACY_DATABASE, "ROUTER_DATABASE__URL")):
        text, _ = ours.pop(legacy, ("", ""))
        if text:
            text = f"sqlite:///{Path(text).expanduser()}" if legacy == LEGACY_DATABASE else text
            there, _ = ours.get(name, ("", ""))
            if there not in ("", text):  # An empty one is what a compose file passes on.
                raise ConfigError(f"{legacy} and {name} differ: set one of them")
            ours[name] = text, legacy
    return ours


def _variables() -> dict[str, tuple[str, str]]:
    """Each ROUTER_ variable, and the section and key that it sets."""
    variables = {f"ROUTER_{key.upper()}": ("", key) for key in Config.__struct_fields__}
    for section, fields in SECTIONS.items():
        if section and "[]" not in section and "." not in section:
            variables |= {f"ROUTER_{section}__{key}".upper(): (section, key) for key in fields.__struct_fields__}
    return variables
