"""Settings that are checked: plain data becomes a `Config`, or a `ConfigError` of one line that names the key."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from core.config import (
    SEARCH_PROVIDERS,
    ClusterConfig,
    Config,
    DatabaseConfig,
    ImageServerConfig,
    McpConfig,
    ToolsConfig,
    WebSearchConfig,
    name_of,
)
from core.config_words import explained, nearest
from core.errors import ConfigError
from core.extras import need
from core.key_settings import UNSENDABLE, check_keys, wrong_with_secret
from core.valkey_address import Address

_POSTGRES = re.compile(r"postgres(ql)?://")


def parse_config(data: dict[str, Any], kinds: Collection[str] = ()) -> Config:
    """A `Config` from plain data. `kinds`: as in `load_config`. Raises `ConfigError`."""
    try:
        # strict=False: what comes from the environment is text.
        config = msgspec.convert(data, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(explained(str(error))) from None
    if endless := _endless(msgspec.to_builtins(config)):
        raise ConfigError(f"{endless}: must be a finite number")
    if wrong := wrong_with_secret(config.api_key):
        raise ConfigError(f"api_key: {wrong}")
    check_keys(config.keys, config.owners, config.api_key)
    if config.traces.endpoint:
        if urlsplit(config.traces.endpoint).scheme not in ("http", "https"):
            raise ConfigError("traces.endpoint: must be a URL, as http://collector:4317 is")
        need("otel", setting="traces.endpoint")
    if wrong := _wrong_with_headers(config.traces.headers):
        raise ConfigError(f"traces.headers: {wrong}")
    for index, endpoint in enumerate(config.endpoints):
        if wrong := _wrong_with_value(endpoint.api_key):
            raise ConfigError(f"endpoints[{index}].api_key: {wrong}")
        if wrong := _wrong_with_headers(endpoint.headers):
            raise ConfigError(f"endpoints[{index}].headers: {wrong}")
        if kinds and endpoint.kind not in kinds:
            raise ConfigError(f"endpoints[{index}].kind: '{endpoint.kind}' is not known{nearest(endpoint.kind, kinds)}")
    urls = [endpoint.url.rstrip("/") for endpoint in config.endpoints]
    for index, url in enumerate(urls):
        shown = re.sub(r"//[^/]*@", "//…@", " ".join(url.split()))  # On one line, and no password in it.
        if wrong := _wrong_with_url(url):
            raise ConfigError(f"endpoints[{index}].url: '{shown}' {wrong}")
        if url in urls[:index]:
            raise ConfigError(f"endpoints[{index}].url: '{shown}' is there twice")
    for index, origin in enumerate(config.cors_origins):
        if origin not in ("*", "null") and not re.fullmatch(r"[a-z*][a-z0-9+.*-]*://[^/\s]+/?", origin, re.IGNORECASE):
            raise ConfigError(f"cors_origins[{index}]: '{origin}' is no origin, as https://chat.example is")
    for index, host in enumerate(config.allowed_hosts):
        if not re.fullmatch(r"[^\s:/?#@\[\]]+", host):
            raise ConfigError(
                f"allowed_hosts[{index}]: '{host}' is no name of a host, as router.example is (without a port)"
            )
    if config.public_url:
        if wrong := _wrong_with_url(config.public_url):
            raise ConfigError(f"public_url: {wrong}")
        # Whoever is sent there by name, and its page, are at home.
        public = urlsplit(config.public_url)
        config = msgspec.structs.replace(
            config,
            allowed_hosts=(*config.allowed_hosts, public.hostname or ""),
            cors_origins=(*config.cors_origins, f"{public.scheme}://{public.netloc}"),
        )
    names = [name_of(endpoint) for endpoint in config.endpoints]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"endpoints[{index}].name: '{name}' is there twice")
    _check_mcp(config.mcp)
    _check_web_search(config.web_search, config.mcp)
    _check_hosted(config.tools, config.mcp)
    _check_database(config.database)
    _check_cluster(config.cluster)
    if config.cache.backend == "valkey" and not config.cache.url:
        if not config.cluster.url:
            raise ConfigError("cache.backend: valkey needs cache.url, or the cluster.url of the replicas")
        config = msgspec.structs.replace(config, cache=msgspec.structs.replace(config.cache, url=config.cluster.url))
    if config.cache.url:
        Address.of(config.cache.url, "cache.url")
    paths = {"database.url": config.database.url.removeprefix("sqlite:///"), "cache.path": config.cache.path}
    for key, path in paths.items():
        if path.startswith("~"):  # It would be a folder of that name, where the router was started.
            raise ConfigError(f"{key}: ~ stands for no folder here; write ${{HOME}}, or the whole path")
    return config


def _check_mcp(mcp: McpConfig) -> None:
    """Raises `ConfigError`."""
    for name, server in mcp.servers.items():
        need("tools", setting="mcp.servers")
        if bool(server.url) == bool(server.command):
            raise ConfigError(f"mcp.servers.{name}: has a url or a command, one of them")
        if server.url and (wrong := _wrong_with_url(server.url)):
            raise ConfigError(f"mcp.servers.{name}.url: {wrong}")
        if wrong := _wrong_with_headers(server.headers):
            raise ConfigError(f"mcp.servers.{name}.headers: {wrong}")
    if mcp.client_servers == "allow":
        need("tools", setting="mcp.client_servers")


def _check_web_search(search: WebSearchConfig, mcp: McpConfig) -> None:
    """Raises `ConfigError`."""
    if not search.provider:
        if search.url or search.api_key:
            raise ConfigError(f"web_search.provider: is missing; known: {', '.join(SEARCH_PROVIDERS)}, mcp:NAME")
        return
    need("search", setting="web_search.provider")
    kind, separator, name = search.provider.partition(":")
    if kind == "mcp" and separator:
        _check_server(name, mcp, "web_search.provider")
    elif search.provider not in SEARCH_PROVIDERS:
        known = [*SEARCH_PROVIDERS, "mcp:NAME"]
        raise ConfigError(f"web_search.provider: '{search.provider}' is not known{nearest(search.provider, known)}")
    elif SEARCH_PROVIDERS[search.provider] and not search.api_key:
        raise ConfigError(f"web_search.api_key: {search.provider} needs one")
    elif search.provider == "searxng" and not search.url:
        raise ConfigError("web_search.url: is missing; it is that of your SearXNG")
    if search.url and (wrong := _wrong_with_url(search.url)):
        raise ConfigError(f"web_search.url: {wrong}")
    if wrong := _wrong_with_value(search.api_key):
        raise ConfigError(f"web_search.api_key: {wrong}")


def _check_hosted(tools: ToolsConfig, mcp: McpConfig) -> None:
    """Raises `ConfigError`."""
    for kind in ("code_interpreter", "file_search", "image_generation"):
        setting: str | ImageServerConfig = getattr(tools, kind)
        if isinstance(setting, ImageServerConfig):
            if wrong := _wrong_with_url(setting.url):
                raise ConfigError(f"tools.{kind}.url: {wrong}")
            if wrong := _wrong_with_value(setting.api_key):
                raise ConfigError(f"tools.{kind}.api_key: {wrong}")
        elif setting:
            prefix, _, named = setting.partition(":")
            name = named.partition("/")[0]
            if prefix != "mcp":
                raise ConfigError(f"tools.{kind}: is mcp:NAME or mcp:NAME/TOOL, with a NAME of mcp.servers")
            _check_server(name, mcp, f"tools.{kind}")


def _check_server(name: str, mcp: McpConfig, key: str) -> None:
    """Raises `ConfigError` where a server of MCP can't stand for a hosted tool."""
    if name not in mcp.servers:
        hint = nearest(name, mcp.servers) if mcp.servers else ""
        raise ConfigError(f"{key}: '{name}' is not among mcp.servers{hint}")
    if mcp.servers[name].require_approval == "always":
        raise ConfigError(f"{key}: mcp.servers.{name} asks for approval, which nobody could give here")


def _check_cluster(cluster: ClusterConfig) -> None:
    """Raises `ConfigError`."""
    if cluster.url:
        Address.of(cluster.url, "cluster.url")
    if not re.fullmatch(r"[\w.:-]{1,100}", cluster.name):
        raise ConfigError("cluster.name: must be letters, digits, '_', '.', ':' and '-', at most 100 of them")
    place = re.fullmatch(r"[\w.-]+(?::(\d+))?", cluster.advertise) if cluster.advertise else None
    if cluster.advertise and (place is None or not 0 < int(place[1] or 1) < 65536):
        raise ConfigError(f"cluster.advertise: '{cluster.advertise}' is no host or host:port, as 10.0.0.7:7000 is")


def _check_database(database: DatabaseConfig) -> None:
    """Raises `ConfigError`. The URLs themselves are in no error: a password may be in them."""
    for key, url in (("database.url", database.url), ("database.direct_url", database.direct_url)):
        if driver := re.match(r"postgres(?:ql)?(\+\w+)://", url):
            raise ConfigError(f"{key}: must begin with postgresql://, without '{driver[1]}'")
    is_postgres = bool(_POSTGRES.match(database.url))
    if is_postgres:
        need("postgres", setting="database.url")
    elif not re.match(r"sqlite://(/|$)", database.url):
        raise ConfigError("database.url: must begin with sqlite:/// or postgresql://")
    if database.direct_url and not (is_postgres and _POSTGRES.match(database.direct_url)):
        raise ConfigError(
            "database.direct_url: is for PostgreSQL behind a pooler: it and database.url must begin with postgresql://"
        )


def _wrong_with_url(url: str) -> str:
    """What keeps a URL from being that of a model server; empty where nothing does."""
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_web = False
    if not is_web:
        return "is not an http:// or https:// URL"
    try:
        has_port = parts.port != 0
    except ValueError:
        has_port = False
    if not has_port:
        return "has a port that is none: they are 1 to 65535"
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return "has a space in it"
    if "?" in url or "#" in url:
        return "has a '?' or '#': it must end with the path of the server's API"
    if call := re.search(r"/(chat/completions|api/(chat|generate|tags))$", parts.path):
        return f"is that of one call: leave out '{call[0]}'"
    return ""


def _wrong_with_value(value: str) -> str:
    """The same of what the router itself sends: clients may have an encoding of their own for their key."""
    return wrong_with_secret(value) or (UNSENDABLE if re.search(r"[^\x00-\xff]", value) else "")


def _wrong_with_headers(headers: Mapping[str, str]) -> str:
    """What keeps headers from being sent as they are; empty where nothing does."""
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            return f"'{' '.join(name.split())}' is no name of a header"
        if wrong := _wrong_with_value(value):
            return f"'{name}' {wrong}"
    return ""


def _endless(value: Any, key: str = "") -> str:
    """The key of a number that is infinite, if there is one."""
    if isinstance(value, float) and not math.isfinite(value):
        return key
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, row in rows:
        if found := _endless(row, f"{key}[{name}]" if isinstance(name, int) else f"{key}.{name}".lstrip(".")):
            return found
    return ""
