"""`./nomyo check`: what is wrong with the settings, the servers and what is kept, a line each, with what to do.

settings ──▶ database, cache, Valkey ──▶ every endpoint ──▶ names that lead nowhere ──▶ servers of MCP, web search
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

from backends.fleet.advice import sentences
from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from backends.fleet.local import LocalServers
from backends.kinds import KINDS
from backends.mcp.server import ServerFailed, server_of_settings
from backends.mcp.servers import McpServers
from backends.web.query import Query, SearchFailed
from backends.web.searches import Searches
from cluster.alone import Alone
from commands import FAILED, UNAVAILABLE, json_option, print_json, print_line
from commands.env import WHO
from commands.keys import with_store
from core.config import Config
from core.config_file import config_file, load_config, mistakes_in_config
from core.errors import ConfigError, StartError
from core.valkey import Valkey
from core.valkey_address import Address

MCP_TIMEOUT_S = 10.0
MOST_TOOLS = 1000


class Finding(NamedTuple):
    """One thing that was looked at: whether it is as it should be, and a line about it."""

    is_right: bool
    what: str
    line: str


@click.command(short_help="Ask every server, and show what is wrong and what to do about it.")
@json_option
def check(as_json: bool) -> int:
    """Looks at the settings, at what is kept, and at every model server, and prints a line about each; where something
    is wrong, with what to do. Beside a router that runs, or before there is one.

    \b
    Example:
      ./nomyo check
      ROUTER_CONFIG=new.yaml ./nomyo check --json
    """
    logging.getLogger("nomyo").addHandler(logging.NullHandler())  # What is logged meanwhile is in the lines.
    mistakes = mistakes_in_config(kinds=KINDS)
    found = [Finding(False, "settings", line) for line in mistakes]
    if not mistakes:
        config = load_config(kinds=KINDS)
        file = config_file()
        named = str(file) if file.exists() else f"there is no {file}: every setting has its default"
        found += [
            Finding(True, "settings", named),
            _access(config),
            *_owners(config),
            *_kept(config),
            *asyncio.run(_asked(config)),
        ]
    if as_json:
        print_json({"ok": all(one.is_right for one in found), "found": [one._asdict() for one in found]})
    else:
        for one in found:
            mark, colour = ("ok   ", "green") if one.is_right else ("WRONG", "red")
            print_line(f"{mark}  {one.what}: {one.line}", fg=colour)
    if mistakes:
        return UNAVAILABLE
    return 0 if all(one.is_right for one in found) else FAILED


COMMAND = check


def _access(config: Config) -> Finding:
    """Who may use it, as far as the settings have that."""
    keys = len(config.keys) + bool(config.api_key)
    if keys:
        line = f"{keys} key{'s' if keys > 1 else ''} in the settings (./nomyo keys has those of the database)"
    elif config.allow_open:
        line = "no key in the settings: whoever reaches it may use it (allow_open)"
    else:
        line = "no key in the settings: this machine alone is served"
    return Finding(True, "access", line)


def _owners(config: Config) -> Iterator[Finding]:
    """Whose keys no limits of `owners` are for. It may be meant so, or a typo that leaves somebody without limits."""
    limited = [owner.name for owner in config.owners]
    for key in config.keys:
        if limited and key.owner and key.owner not in limited:
            line = f"'{key.owner}' of the key '{key.name}' is not one of them: {', '.join(limited)}"
            yield Finding(True, "owners", line)


def _kept(config: Config) -> Iterator[Finding]:
    """Whether what is kept has a place."""
    url = config.database.url
    if url.startswith("postgres"):
        try:
            with_store(config, lambda store: store.list_keys())
        except (StartError, ConfigError) as error:
            yield Finding(False, "database", str(error))
        else:
            yield Finding(True, "database", "PostgreSQL answers")
    else:
        yield _file("database", url.removeprefix("sqlite://").removeprefix("/"), "database.url")
    if config.cache.backend == "sqlite":
        yield _file("cache", config.cache.path, "cache.path")


def _file(what: str, path: str, key: str) -> Finding:
    """Whether a file is there and can be written, or can be made."""
    if not path:
        return Finding(True, what, "in memory: gone when the router stops")
    file = Path(path).absolute()
    nearest = file
    while not nearest.exists():
        nearest = nearest.parent
    try:
        if nearest == file:
            file.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=nearest).close()
    except NotADirectoryError:
        return Finding(False, what, f"{nearest} is no folder: correct {key}")
    except OSError as error:
        return Finding(
            False,
            what,
            f"{nearest}: cannot be written: {error.strerror}; give it to {_user()} (chown), or change {key}",
        )
    return Finding(True, what, str(file))


def _user() -> str:
    """Who runs this; in a container that may be somebody without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


async def _asked(config: Config) -> list[Finding]:
    """What answers that a router with these settings talks to."""
    return [
        *await _valkeys(config),
        *await _servers(config),
        *await _mcp_servers(config),
        *await _web_search(config),
    ]


async def _valkeys(config: Config) -> list[Finding]:
    """Whether what replicas share answers."""
    urls = {"cluster.url": config.cluster.url}
    if config.cache.backend == "valkey" and config.cache.url != config.cluster.url:
        urls["cache.url"] = config.cache.url
    found = []
    for setting, url in urls.items():
        if not url:
            continue
        valkey = Valkey(Address.of(url, setting), setting)
        what = f"Valkey ({valkey.address})"
        try:
            await valkey.open()
        except StartError as error:
            found.append(Finding(False, what, str(error)))
        else:
            line = "answers" if valkey.is_there else f"{valkey.problem}: start it, or correct {setting}"
            found.append(Finding(valkey.is_there, what, line))
        finally:
            await valkey.close()
    return found


async def _servers(config: Config) -> list[Finding]:
    """What every endpoint answers, and the names in the settings that lead to no model."""
    endpoints = Endpoints(config, Alone(), lambda: None)
    endpoints.router_id = WHO
    await endpoints.open()
    try:
        await endpoints.look()
        found = [_server(endpoint) for endpoint in endpoints.values()]
        if endpoints.local is not None and not endpoints:
            found.append(Finding(False, "servers", endpoints.local.reason()))
        if config.endpoints and not all(endpoint.healthy for endpoint in endpoints.values()):
            found += await _others_here(endpoints)
        if any(endpoint.models for endpoint in endpoints.values()):
            found += _names(config, endpoints)
    finally:
        await endpoints.close()
    return found


def _server(endpoint: Endpoint) -> Finding:
    what = f"{endpoint.name} ({endpoint.describe()['url']})"
    if endpoint.error or not endpoint.models:
        return Finding(False, what, sentences(endpoint.error or "it has no models", endpoint.advice))
    kind = " ".join(filter(None, (endpoint.kind.name, endpoint.version)))
    count = len(endpoint.facts)
    line = f"{kind}, {count} model{'s' if count != 1 else ''}"
    return Finding(not endpoint.advice, what, sentences(line, endpoint.advice) if endpoint.advice else line)


async def _others_here(endpoints: Endpoints) -> list[Finding]:
    """Servers of this machine that the settings do not name, where one that they name does not answer."""
    local = LocalServers(WHO)
    await local.look()
    named = {urlsplit(endpoint.url).port for endpoint in endpoints.values()}
    return [
        Finding(True, "this machine", f"a server of the kind {one.kind} is at port {one.port}: `- url: {one.url}`")
        for one in local.tried
        if one.kind and one.port not in named
    ]


async def _mcp_servers(config: Config) -> list[Finding]:
    """What each server of MCP has."""
    servers = McpServers(config.mcp)
    found = []
    try:
        for name, settings in config.mcp.servers.items():
            what = f"mcp.servers.{name}"
            try:
                async with asyncio.timeout(MCP_TIMEOUT_S):
                    session = await servers.session(server_of_settings(name, settings), allow_private=True)
                    tools = await session.list_tools(MOST_TOOLS)
            except TimeoutError:
                found.append(
                    Finding(False, what, f"no answer in {MCP_TIMEOUT_S:g} s: start it, or correct its settings")
                )
            except ServerFailed as error:
                found.append(Finding(False, what, f"{str(error).rstrip('.')}: start it, or correct its settings"))
            else:
                found.append(Finding(True, what, f"{len(tools)} tools"))
    finally:
        await servers.close()
    return found


async def _web_search(config: Config) -> list[Finding]:
    """What the provider of searches finds; one that is a server of MCP has been asked before."""
    provider = config.web_search.provider
    if not provider or provider.startswith("mcp:"):
        return []
    what = f"web_search ({provider})"
    searches = Searches(config.web_search)
    try:
        results = await searches.find(Query("test", 3))
    except SearchFailed as error:
        return [Finding(False, what, f"{str(error).rstrip('.')}: start it, or correct web_search")]
    finally:
        await searches.close()
    line = f"{len(results)} results for one word" if results else "finds nothing for 'test': look at its engines"
    return [Finding(bool(results), what, line)]


def _names(config: Config, endpoints: Endpoints) -> Iterator[Finding]:
    """Names of models that lead nowhere."""
    for model, others in config.fallback_models.items():
        for other in others:
            if not endpoints.serving(other):
                yield Finding(
                    False, "fallback_models", f"{model}: no server has '{other}': correct it, or pull it there"
                )
    for key in config.keys:
        for pattern in key.models:
            if not endpoints.models(allowed=(pattern,)):
                line = f"'{key.name}': no model is called '{pattern}', which its `models` name"
                yield Finding(False, "keys", f"{line}: correct it")
