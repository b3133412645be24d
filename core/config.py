"""The settings: config.yaml and the environment, checked once, then frozen.

    config.yaml ──${VAR}──▶ plain data ──ROUTER_*──▶ plain data ──msgspec──▶ Config

Wrong settings raise `ConfigError`, one line that names the key. The README lists every key; a test keeps the list true.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
import yaml

from core.errors import ConfigError as ConfigError
from core.extras import need
from core.key_settings import UNSENDABLE, KeyConfig, OwnerConfig, check_keys, wrong_with_secret
from core.usage import PriceConfig
from core.valkey_address import Address
from core.yaml import read_yaml

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CacheBackend = Literal["memory", "sqlite", "valkey", "none"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ReasoningReplay = Literal["reasoning_content", "reasoning", "think_tags", "none"]
StructuredOutputs = Literal["native", "prompt", "refuse"]
ThinkTags = Literal["auto", "opened", "off"]
HostedTools = Literal["omit", "refuse"]


class ModelsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`endpoints[].models`: which of a server's models are used, as patterns (`qwen3*`), and those that it has although
    it does not list them."""

    names: tuple[str, ...] = ()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()


class EndpointConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`endpoints[]`: one model server."""

    url: str
    # One of the files in backends/kinds, by its name.
    kind: str = "auto"
    # Empty: host and port.
    name: str = ""
    api_key: str = ""
    headers: dict[str, str] = {}
    # None: as many as the server reports that it runs at once, else 16.
    max_concurrent: Count | None = None
    weight: Positive = 1.0
    priority: int = 0
    models: ModelsConfig = ModelsConfig()
    aliases: dict[str, str] = {}
    connect_timeout_s: Positive = 5.0
    first_byte_timeout_s: Positive = 600.0
    read_timeout_s: Positive = 600.0
    # None: as is usual for the kind.
    reasoning_efforts: tuple[Effort, ...] | None = None
    reasoning_replay: ReasoningReplay | None = None
    structured_outputs: StructuredOutputs | None = None
    # YAML reads `off` as false.
    think_tags: ThinkTags | bool = "auto"


class DatabaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`database`: where responses are kept, and for how long."""

    url: str = "sqlite:///data/router.db"
    # Of PostgreSQL, past a pooler that `url` leads to: for what takes a session, such as LISTEN.
    direct_url: str = ""
    retention_days: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    # Of PostgreSQL: how many connections a process has, and how long a statement may take.
    max_connections: Count = 8
    timeout_s: Positive = 30.0


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cluster`: what several replicas share, in a Valkey or a Redis. `name` sets apart the services that share one;
    `advertise` is where the other replicas ask this one (`host` or `host:port`), where it is not the address by which
    it reaches the server."""

    url: str = ""
    name: str = "nomyo"
    advertise: str = ""


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cache`: answers for requests that ask for the cache. `url` is where a Valkey is, if not that of the cluster."""

    backend: CacheBackend = "memory"
    path: str = "data/cache.db"
    max_entries: Count = 1000
    max_age_s: Positive = 86400.0
    url: str = ""


class BackgroundConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`background`: turns that run without a client. `rerun`: those that a stop has interrupted run again.
    `events_hours`: how long replicas keep the events of a stream where all can read them."""

    max_concurrent: Count = 4
    max_queued: Count = 1000
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    rerun: bool = False
    events_hours: Positive = 24.0


class QueueConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`queue`: requests that wait for a free slot of an endpoint."""

    max: Annotated[int, msgspec.Meta(ge=0)] = 256
    timeout_s: Positive = 60.0


class RetryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`retry`: requests that failed before their first byte, and go to another endpoint."""

    max: Annotated[int, msgspec.Meta(ge=0)] = 3
    # Of all requests, as many may be retries.
    budget: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2


class BreakerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`breaker`: endpoints that fail, one after the other request, are left alone for a while."""

    failures: Count = 3
    cooldown_s: Positive = 2.0
    max_cooldown_s: Positive = 60.0


class AdaptConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`adapt`: what may be changed in a request so that a backend takes it. Each change is named in
    `x-nomyo-adapted`."""

    truncation: bool = True
    fetch_images: bool = True
    hints: bool = True
    roles: bool = True
    tools: bool = False
    images: bool = False
    parameters: bool = False
    # Not a change: an answer that a strict schema was asked for is checked also where the server holds its model to it.
    verify: bool = False


class ImagesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`images`: those that the router fetches for backends that cannot; `max_count` and `max_total_mb` for one
    request."""

    max_mb: Positive = 20.0
    timeout_s: Positive = 10.0
    allow_private: bool = False
    max_count: Count = 100
    max_total_mb: Positive = 100.0


class FilesConfig(ImagesConfig, frozen=True, forbid_unknown_fields=True):
    """`files`: those that requests name by URL, and the router fetches for chat backends."""


class ToolsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tools`: those that the router runs. `max_rounds`: so often a model is asked again, with what its tools have
    answered; `concurrency`: calls of one turn at once; `timeout_s`: for each."""

    max_rounds: Count = 20
    concurrency: Count = 4
    timeout_s: Positive = 60.0


class McpServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mcp.servers.NAME`: a server of MCP at a URL, or a program that is started for each turn that calls it. `owners`:
    whose turns may use it (None: all); `require_approval`: whether somebody approves of each call; `always`: it is
    offered to every turn."""

    url: str = ""
    transport: Literal["http", "sse"] = "http"
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    headers: dict[str, str] = {}
    owners: tuple[str, ...] | None = None
    require_approval: Literal["always", "never"] = "never"
    always: bool = False


class McpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mcp`: servers of MCP, by their names; whether clients may name others, and whether those may be at addresses
    that are not public (None: where no key is asked for)."""

    servers: dict[str, McpServerConfig] = {}
    client_servers: Literal["allow", "deny"] | None = None
    allow_private: bool | None = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in config.yaml. `workers` is for `serve.py`: as many processes. `websockets: false` answers an upgrade
    with 426."""

    endpoints: Annotated[tuple[EndpointConfig, ...], msgspec.Meta(min_length=1)]
    # The admin key; `keys` are those of a team, `owners` what theirs may use together.
    api_key: str = ""
    keys: tuple[KeyConfig, ...] = ()
    owners: tuple[OwnerConfig, ...] = ()
    # Whether /metrics asks for no key.
    metrics_open: bool = False
    # Without a key, other machines are served too.
    allow_open: bool = False
    secret_key: str = ""
    max_body_mb: Positive = 64.0
    # Of one request, before it is looked at any closer.
    max_items: Count = 10_000
    max_tools: Count = 1_000
    # What an answer of a backend may have, unpacked.
    max_answer_mb: Positive = 256.0
    models_refresh_s: Positive = 30.0
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    websockets: bool = True
    # A streamed answer whose backend has sent nothing begins by itself then.
    stream_start_s: Annotated[float, msgspec.Meta(ge=0)] = 15.0
    hosted_tools: HostedTools = "omit"
    # Of connections of clients: how long a head may take, a body stall, a client not read, and one wait for its next
    # request; and how many there may be in one process.
    head_timeout_s: Positive = 10.0
    body_timeout_s: Positive = 30.0
    client_write_timeout_s: Positive = 60.0
    keep_alive_s: Positive = 75.0
    max_connections: Count = 10_000
    # Pages of these origins may ask too, besides those of this machine and of apps: `https://chat.example`, `*` for any
    # text.
    cors_origins: tuple[str, ...] = ()
    # Names by which clients may call a router that asks for no key, besides addresses and names that are not public.
    allowed_hosts: tuple[str, ...] = ()
    database: DatabaseConfig = DatabaseConfig()
    cluster: ClusterConfig = ClusterConfig()
    cache: CacheConfig = CacheConfig()
    background: BackgroundConfig = BackgroundConfig()
    queue: QueueConfig = QueueConfig()
    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    adapt: AdaptConfig = AdaptConfig()
    images: ImagesConfig = ImagesConfig()
    files: FilesConfig = FilesConfig()
    tools: ToolsConfig = ToolsConfig()
    mcp: McpConfig = McpConfig()
    fallback_models: dict[str, tuple[str, ...]] = {}
    # By model.
    prices: dict[str, PriceConfig] = {}


CHOICES = {
    "backend": get_args(CacheBackend),
    "reasoning_efforts": get_args(Effort),
    "reasoning_replay": get_args(ReasoningReplay),
    "structured_outputs": get_args(StructuredOutputs),
    "think_tags": get_args(ThinkTags),
    "hosted_tools": get_args(HostedTools),
    "client_servers": ("allow", "deny"),
    "require_approval": ("always", "never"),
    "transport": ("http", "sse"),
}
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "": Config,
    "endpoints[]": EndpointConfig,
    "endpoints[].models": ModelsConfig,
    "keys[]": KeyConfig,
    "owners[]": OwnerConfig,
    "prices[]": PriceConfig,
    "database": DatabaseConfig,
    "cluster": ClusterConfig,
    "cache": CacheConfig,
    "background": BackgroundConfig,
    "queue": QueueConfig,
    "retry": RetryConfig,
    "breaker": BreakerConfig,
    "adapt": AdaptConfig,
    "images": ImagesConfig,
    "files": FilesConfig,
    "tools": ToolsConfig,
    "mcp": McpConfig,
    "mcp.servers[]": McpServerConfig,
}


# What is no setting: what to do instead.
AT_THE_START = {
    "port": "the port is given at the start: serve.py --port N, or make serve PORT=N",
    "host": "the address is given at the start: serve.py --host H, or make serve HOST=H",
}
# msgspec's words for types, as who writes YAML calls them.
TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "keys and values",
    "null": "nothing",
}
# What the nomyo-router reads that people come from.
LEGACY_CONFIG, LEGACY_KEY, LEGACY_DATABASE = "NOMYO_ROUTER_CONFIG_PATH", "NOMYO_ROUTER_API_KEY", "NOMYO_ROUTER_DB_PATH"
# Ours, but not for whoever sets the router up: the folder of its workers.
NOT_SETTINGS = frozenset({"ROUTER_CONFIG", LEGACY_CONFIG, "NOMYO_WORKERS_DIR"})


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file that ROUTER_CONFIG or NOMYO_ROUTER_CONFIG_PATH names, else ./config.yaml."""
    if legacy := environ.get(LEGACY_CONFIG):
        legacy = str(Path(legacy).expanduser())
    return Path(environ.get("ROUTER_CONFIG") or legacy or "config.yaml")


def load_config(
    path: str | Path | None = None, environ: Mapping[str, str] = os.environ, kinds: Collection[str] = ()
) -> Config:
    """The settings from `path`, else from the file that ROUTER_CONFIG names, else from ./config.yaml. `kinds` are the
    kinds of server that there are; without them an endpoint's is not checked. Raises `ConfigError`."""
    file = Path(path) if path else config_file(environ)
    try:
        with file.open(encoding="utf-8") as stream:  # Not its text: PyYAML's errors name the file that they are in.
            data = read_yaml(stream)
    except FileNotFoundError as error:
        where = "start the router in its folder, or name your file in ROUTER_CONFIG"
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; {where}") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not YAML: not UTF-8 text, at byte {error.start}; save it as UTF-8") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML's for a number that is none, Python's for text that is none
        raise ConfigError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: must hold keys and values")
    try:
        data = _expanded(data, environ, "")
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    overridden = _override(data, environ)
    try:
        return parse_config(data, kinds)
    except ConfigError as error:
        raise ConfigError(f"{_origin(str(error), overridden) or file}: {error}") from None


def parse_config(data: dict[str, Any], kinds: Collection[str] = ()) -> Config:
    """A `Config` from plain data. `kinds`: as in `load_config`. Raises `ConfigError`."""
    try:
        # strict=False: what comes from the environment is text.
        config = msgspec.convert(data, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explained(str(error))) from None
    if endless := _endless(msgspec.to_builtins(config)):
        raise ConfigError(f"{endless}: must be a finite number")
    if wrong := wrong_with_secret(config.api_key):
        raise ConfigError(f"api_key: {wrong}")
    check_keys(config.keys, config.owners, config.api_key)
    for index, endpoint in enumerate(config.endpoints):
        if wrong := _wrong_with_value(endpoint.api_key):
            raise ConfigError(f"endpoints[{index}].api_key: {wrong}")
        if wrong := _wrong_with_headers(endpoint.headers):
            raise ConfigError(f"endpoints[{index}].headers: {wrong}")
        if kinds and endpoint.kind not in kinds:
            raise ConfigError(
                f"endpoints[{index}].kind: '{endpoint.kind}' is not known{_nearest(endpoint.kind, kinds)}"
            )
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
    names = [name_of(endpoint) for endpoint in config.endpoints]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"endpoints[{index}].name: '{name}' is there twice")
    _check_mcp(config.mcp)
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


_POSTGRES = re.compile(r"postgres(ql)?://")


def name_of(endpoint: EndpointConfig) -> str:
    """The name of an endpoint in addresses and logs: the one it was given, else its host and port."""
    if endpoint.name:
        return endpoint.name
    parts = urlsplit(endpoint.url)
    path = parts.path.strip("/").removesuffix("v1").strip("/").replace("/", "-")
    return f"{parts.netloc.rpartition('@')[2]}{f'-{path}' if path else ''}"


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


def _expanded(value: Any, environ: Mapping[str, str], key: str) -> Any:
    """`value` with each `${VAR}` and `${VAR:-default}` in its texts replaced."""

    def variable(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if default is not None:
            return environ.get(name) or default
        if name not in environ:
            raise ConfigError(f"{key}: the environment variable {name} is not set (${{{name}:-…}} gives a default)")
        return environ[name]

    if isinstance(value, str):
        return re.sub(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*))?\}", variable, value)
    if isinstance(value, dict):
        return {name: _expanded(item, environ, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, environ, f"{key}[{index}]") for index, item in enumerate(value)]
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
            which = f"did you mean '{near[0]}'?" if near else "the README has all of them, in its settings"
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
        if section and "[]" not in section:
            variables |= {f"ROUTER_{section}__{key}".upper(): (section, key) for key in fields.__struct_fields__}
    return variables


def _explained(problem: str) -> str:
    """msgspec's words as ours: the key first, and the nearest known one."""
    what, _, path = problem.partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", what):
        section = SECTIONS.get(re.sub(r"\[\d+\]", "[]", re.sub(r"\[\.\.\.\]", "[]", where)), Config)
        key = f"{where}.{unknown[1]}".lstrip(".")
        if not where and unknown[1] in AT_THE_START:
            return f"unknown key '{key}'; {AT_THE_START[unknown[1]]}"
        return f"unknown key '{key}'{_nearest(unknown[1], section.__struct_fields__)}"
    if missing := re.search(r"missing required field `(.*)`", what):
        return f"missing key '{f'{where}.{missing[1]}'.lstrip('.')}'"
    if invalid := re.search(r"Invalid enum value '(.*)'", what):
        key = re.sub(r"\[.*\]$", "", where).rpartition(".")[2]
        return f"{where}: '{invalid[1]}' is not known{_nearest(invalid[1], CHOICES[key])}"
    if key_of := re.search(r" - at `key` in `\$\.?(.*)`", problem):
        return f"{key_of[1] or 'settings'}: each key must be text: put it in quotes"
    expected = re.match(r"Expected `([^`]*)`(.*?)(?:, got `(\w+)`)?$", what)
    if not expected:
        return f"{where or 'settings'}: {what[0].lower()}{what[1:]}"
    wanted = " or ".join(TYPES.get(name, name) for name in expected[1].split(" | ") if name != "null")
    line = f"{where or 'settings'}: expected {wanted}{expected[2]}"
    if given := expected[3]:
        line += f", got {TYPES.get(given, given)}"
        if wanted == "text" and given in ("int", "float", "bool"):
            line += ": put it in quotes"
        if re.fullmatch(r"endpoints\[\d+\]", where) and given == "str":
            line += ", as in `- url: http://…`"
    return line


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}" if known else ""
