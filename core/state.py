"""What the application has: everything with a lifetime, made and closed by `router.lifespan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import State

from backends.files import FileFetcher
from backends.fleet.pool import Pool
from backends.image_server import ImageServer
from backends.images import ImageFetcher
from backends.mcp.servers import McpServers
from backends.web.pages import Pages
from backends.web.searches import Searches
from cache import Cache
from cluster.protocol import Cluster
from core.broadcast import Broadcast
from core.budgets import Budgets
from core.config import Config
from core.flights import Flights
from core.keyring import Keyring
from core.logs import RequestLog
from core.seals import Sealer
from core.stopping import Stopping
from core.tasks import TaskRunner
from core.telemetry import Telemetry
from core.usage import UsageLog
from db import Store

if TYPE_CHECKING:
    from core.tracing import Tracer


class AppState(State):
    """`app.state`. `config_file` is where the settings came from, `config_error` why its last change was not taken,
    `cluster` what it shares with the other processes of the service."""

    config: Config
    config_file: Path | None
    config_error: str | None
    db: Store
    cache: Cache | None
    cluster: Cluster
    keys: Keyring
    # Answers on their way that several requests share.
    flights: Flights[Any, Any]
    telemetry: Telemetry
    # Where traces are on.
    tracer: Tracer | None
    # Where each request has a line of the log.
    request_log: RequestLog | None
    usage: UsageLog
    budgets: Budgets
    pool: Pool
    mcp: McpServers
    image_server: ImageServer
    searches: Searches
    pages: Pages
    # What the live page is given, while somebody looks.
    page_feed: Broadcast[Any]
    # Only while the application runs:
    sealer: Sealer
    images: ImageFetcher
    files: FileFetcher
    tasks: TaskRunner[Any]
    stopping: Stopping

    def __init__(self) -> None:
        # Starlette looks each name up in a dict of its own, by a function that is called when all else has failed: a
        # twentieth of a plain request. With this one it is an attribute like any other.
        super().__init__(vars(self))
