"""The settings: every section of config.yaml and its keys, with their defaults.

    core/config_file.py ──plain data──▶ core/config_checks.py ──▶ Config, frozen

core/config_help.py has a line for each key; docs/settings.md and docs/settings.schema.json are made of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

import msgspec

from core.key_settings import KeyConfig, OwnerConfig
from core.usage import PriceConfig

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CacheBackend = Literal["memory", "sqlite", "valkey", "none"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ReasoningReplay = Literal["reasoning_content", "reasoning", "think_tags", "none"]
StructuredOutputs = Literal["native", "prompt", "refuse"]
ThinkTags = Literal["auto", "opened", "off"]
HostedTools = Literal["omit", "refuse"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


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


class ImageServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tools.image_generation`, where it is a server of images that speaks OpenAI's API: its `url` ends with `/v1`."""

    url: str
    api_key: str = ""
    model: str = ""


class ToolsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tools`: those that the router runs. `max_rounds`: so often a model is asked again, with what its tools have
    answered; `concurrency`: calls of one turn at once; `timeout_s`: for each, whatever progress it reports. The others
    are what runs OpenAI's own tools: `mcp:NAME`, or `mcp:NAME/TOOL`, is a server of `mcp.servers`."""

    max_rounds: Count = 20
    concurrency: Count = 4
    timeout_s: Positive = 60.0
    code_interpreter: str = ""
    file_search: str = ""
    image_generation: str | ImageServerConfig = ""


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


# Providers of searches that are asked by HTTP, and whether each needs a key.
SEARCH_PROVIDERS = {"searxng": False, "brave": True, "tavily": True, "exa": True}


class WebSearchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`web_search`: who searches for models (`searxng`, `brave`, `tavily`, `exa`, or `mcp:NAME`, a server of
    `mcp.servers`; empty: nobody), and where, if not where that provider always is. `timeout_s`: for a search or a page;
    `allow_private`: pages may lie at addresses that are not public."""

    provider: str = ""
    url: str = ""
    api_key: str = ""
    timeout_s: Positive = 15.0
    allow_private: bool = False


class PageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`page`: the live page at `/`. `content`: it shows whoever runs the router what all owners have asked and were
    answered, and not only their own."""

    content: bool = False


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`log`: lines as `text` or as `json`, from a level on; `requests`: one for each request, too."""

    format: LogFormat = "text"
    level: LogLevel = "info"
    requests: bool = True


class TracesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`traces`: where spans are sent by OTLP over gRPC (`http://collector:4317`), with these headers; empty: nowhere,
    unless OTEL_EXPORTER_OTLP_ENDPOINT names a place. `content`: what was asked and answered goes with them."""

    endpoint: str = ""
    headers: dict[str, str] = {}
    content: bool = False

    def are_wanted(self, environ: Mapping[str, str] = os.environ) -> bool:
        """Whether spans are to be sent: the settings, or OpenTelemetry's own variables, name a place."""
        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
            return False
        places = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        return bool(self.endpoint) or any(environ.get(name) for name in places)


def other_protocol(environ: Mapping[str, str] = os.environ) -> str:
    """The variable of OpenTelemetry's that asks for another protocol than gRPC; empty where none does."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((name for name in names if environ.get(name, "grpc") != "grpc"), "")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything in config.yaml. `workers` is for `serve.py`: as many processes. `websockets: false` answers an upgrade
    with 426."""

    # None: those of this machine that answer at the usual ports.
    endpoints: tuple[EndpointConfig, ...] = ()
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
    # Where clients reach the router, where that is not where it listens: behind a proxy.
    public_url: str = ""
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
    web_search: WebSearchConfig = WebSearchConfig()
    page: PageConfig = PageConfig()
    log: LogConfig = LogConfig()
    traces: TracesConfig = TracesConfig()
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
    "format": get_args(LogFormat),
    "level": get_args(LogLevel),
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
    "tools.image_generation": ImageServerConfig,
    "log": LogConfig,
    "traces": TracesConfig,
    "mcp": McpConfig,
    "mcp.servers[]": McpServerConfig,
    "web_search": WebSearchConfig,
    "page": PageConfig,
}


def name_of(endpoint: EndpointConfig) -> str:
    """The name of an endpoint in addresses and logs: the one it was given, else its host and port."""
    if endpoint.name:
        return endpoint.name
    parts = urlsplit(endpoint.url)
    path = parts.path.strip("/").removesuffix("v1").strip("/").replace("/", "-")
    return f"{parts.netloc.rpartition('@')[2]}{f'-{path}' if path else ''}"
