"""The service: `uvicorn router:app`.

What has a lifetime is made here, opened in `lifespan`, closed in reverse, and reached through `app.state`: config, db,
cache, pool, tasks. `db` is the store of `app`, for tests and tools (so nothing here may `import db`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, TypeVar

import api.admin.cache
import api.admin.endpoints
import api.admin.keys
import api.admin.metrics
import api.admin.usage
import api.background
import api.compact
import api.conversations
import api.docs
import api.input_tokens
import api.models
import api.ollama
import api.ollama_models
import api.page.feed
import api.page.files
import api.page.kept
import api.page.session
import api.page.snapshots
import api.passthrough
import api.responses
import api.stored
import api.websocket
from api.http.connection import CONNECTIONS, Connections
from api.http.dispatch import Application
from api.http.protocol import Protocol
from backends.fetching import Fetcher
from backends.files import FileFetcher
from backends.fleet.pool import Pool
from backends.image_server import ImageServer
from backends.images import ImageFetcher
from backends.kinds import KINDS
from backends.mcp.servers import McpServers
from backends.web.pages import Pages
from backends.web.searches import Searches
from cache import make_cache
from cluster.alone import Alone
from cluster.protocol import Cluster
from cluster.workers import FOLDER, Workers
from core.broadcast import Broadcast
from core.budgets import Budgets
from core.config import Config, ImagesConfig, other_protocol
from core.config_file import config_file, load_config
from core.errors import ConfigError
from core.extras import need
from core.files import raise_file_limit
from core.flights import Flights
from core.keyring import Keyring
from core.logs import RequestLog, log_to_stderr
from core.reloading import keep_config, keep_keys
from core.seals import Sealer
from core.state import AppState
from core.stopping import Stopping
from core.tasks import TaskRunner
from core.telemetry import Telemetry
from core.usage import DAY_S, UsageLog
from db import INTERRUPTED, UnfinishedResponse, make_store

if TYPE_CHECKING:
    from core.tracing import Tracer

log = logging.getLogger("nomyo")

MB = 1024 * 1024
RETENTION_EVERY_S = 3600.0
# How often a page that is open is given how it stands.
PAGE_EVERY_S = 1.0
ORPHANS_AGAIN_S = 2.0
# So long what was used is known by the hour.
HOURS_OF_USAGE_S = 30 * 86_400
# The front doors: what answers, and what FastAPI describes.
DOORS = (
    api.responses.routes,
    api.websocket.routes,
    api.compact.routes,
    api.input_tokens.routes,
    api.stored.routes,
    api.conversations.routes,
    api.models.routes,
    api.docs.routes,
    api.passthrough.routes,
    api.ollama.routes,
    api.ollama_models.routes,
    api.admin.endpoints.routes,
    api.admin.metrics.routes,
    api.admin.cache.routes,
    api.admin.keys.routes,
    api.admin.usage.routes,
    api.page.files.routes,
    api.page.session.routes,
    api.page.kept.routes,
    api.page.feed.routes,
    api.page.snapshots.routes,
)


def create_app(config: Config, file: Path | None = None, cluster: Cluster | None = None) -> Application:
    """The application for some settings. `file` is where they came from: what changes there is taken while it runs.
    `cluster` is what it shares with the other processes of the service, if there are any. Several can live in one
    process: nothing here is global."""
    state = AppState()
    state.config = config
    state.config_file = file
    state.config_error = None
    state.cluster = _joined(config, cluster or Alone(config.workers))
    state.db = make_store(config.database.url, state.cluster.deletions, state.cluster.service, config.database)
    state.cache = make_cache(config.cache, config.cluster.name)
    state.keys = Keyring(config)
    state.flights = Flights()
    state.telemetry = Telemetry()
    state.tracer = state.request_log = None
    if config.log.requests:
        state.request_log = RequestLog(config.log.format)
        state.telemetry.listen(state.request_log.turns)
    state.db.observe_writes(state.telemetry.writes_s.append)
    state.usage = UsageLog(state.db)
    state.budgets = Budgets(state.db, state.usage)
    state.pool = Pool(config, state.cluster, state.telemetry)
    state.mcp = McpServers(config.mcp)
    state.image_server = ImageServer()
    state.searches = Searches(config.web_search)
    state.pages = Pages(config.web_search)
    state.page_feed = Broadcast(api.page.snapshots.Snapshots(state).make, PAGE_EVERY_S)
    return Application(state, DOORS, lifespan)


@asynccontextmanager
async def lifespan(app: Application) -> AsyncGenerator[dict[str, Any]]:
    """Opens everything, runs, and closes it in reverse: background turns get `background.drain_s` to end."""
    state = app.state
    config = state.config
    cluster = state.cluster
    log_to_stderr(config.log.format, config.log.level)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    if state.config_file is not None and not state.config_file.exists():
        log.info("there is no %s: every setting has its default", state.config_file.absolute())
    async with AsyncExitStack() as stack:
        if (tracer := _tracer(config)) is not None:
            state.tracer = tracer
            stack.push_async_callback(tracer.close)
            state.telemetry.listen(tracer.turns)
        stack.callback(state.telemetry.count)  # What still waits is logged.
        await cluster.open()
        stack.push_async_callback(cluster.close)
        async with cluster.starting() as is_first:  # One after the other makes what the database lacks.
            await state.db.open()
            stack.push_async_callback(state.db.close)
            state.usage.open()
            stack.push_async_callback(state.usage.close)
            # What is unfinished now is nobody's.
            orphans = await state.db.unfinished() if is_first else []
        state.sealer = Sealer(config.secret_key or await state.db.get_setting("secret_key", token_hex(32)))
        state.keys.take_stored(await state.db.list_keys())
        state.keys.check_names(config)
        state.keys.peer_key = state.sealer.key_for_peers()
        state.pool.endpoints.router_id = await state.db.get_setting("router_id", token_hex(8))
        if state.cache is not None:
            await state.cache.open()
            stack.push_async_callback(state.cache.close)
        state.images = _fetcher(ImageFetcher, config.images)
        stack.push_async_callback(state.images.close)
        state.files = _fetcher(FileFetcher, config.files)
        stack.push_async_callback(state.files.close)
        stack.push_async_callback(state.mcp.close)
        stack.push_async_callback(state.image_server.close)
        stack.push_async_callback(state.searches.close)
        stack.push_async_callback(state.pages.close)
        await state.pool.open()
        stack.push_async_callback(state.pool.close)
        # Made here, not in create_app: a runner that has drained takes nothing more.
        state.tasks = TaskRunner(config.background.max_concurrent, config.background.max_queued)
        drain = partial(state.tasks.drain, config.background.drain_s, INTERRUPTED)
        stack.push_async_callback(drain)
        state.stopping = Stopping(config.background.drain_s, drain)
        stack.push_async_callback(state.stopping.close)
        await _take_over(state, orphans)
        orphans.clear()
        await stack.enter_async_context(cluster.answering(app, Protocol))
        orphaned = asyncio.create_task(_inherit(state), name="orphans")
        stack.push_async_callback(_stopped, orphaned)
        abandoned = asyncio.create_task(_inherit_abandoned(state), name="abandoned")
        stack.push_async_callback(_stopped, abandoned)
        unwanted = asyncio.create_task(_cancel_unwanted(state), name="unwanted")
        stack.push_async_callback(_stopped, unwanted)
        taking = asyncio.create_task(_take_waiting(state), name="waiting elsewhere")
        stack.push_async_callback(_stopped, taking)
        if config.database.retention_days:
            retention = asyncio.create_task(_keep_retention(state, config.database.retention_days), name="retention")
            stack.push_async_callback(_stopped, retention)
        keys = asyncio.create_task(keep_keys(state), name="keys")
        stack.push_async_callback(_stopped, keys)
        if state.config_file is not None:  # We are the service, and not a part of a test.
            _collect_rarely()
            raise_file_limit()
            reloading = asyncio.create_task(keep_config(state), name="settings")
            stack.push_async_callback(_stopped, reloading)
        lag = asyncio.create_task(state.telemetry.watch_loop(), name="event loop lag")
        stack.push_async_callback(_stopped, lag)
        rolling_up = asyncio.create_task(_roll_up_usage(state), name="usage by day")
        stack.push_async_callback(_stopped, rolling_up)
        yield {CONNECTIONS: Connections(state)}


async def _inherit(state: AppState) -> None:
    """Takes over what a process has left that died, where that is this one's to do: what is unfinished, and no
    process is working on. If one of them does not answer, it is asked again: better late than one that goes on."""
    async for _ in state.cluster.deaths():
        while True:
            if await _has_inherited(state):
                break
            await asyncio.sleep(ORPHANS_AGAIN_S)


async def _inherit_abandoned(state: AppState) -> None:
    """The same of what other services have left that share the database, and nobody else does."""
    async for _ in state.db.abandoned():
        await _has_inherited(state)


async def _cancel_unwanted(state: AppState) -> None:
    """Cancels what other processes were asked to that runs here."""
    async for owner, response_id in state.db.unwanted():
        if (job := state.tasks.get(response_id)) is not None and job.owner == owner:
            try:
                await state.tasks.cancel(response_id)
            except Exception:
                log.exception("%s could not be cancelled: trying again", response_id)


async def _take_waiting(state: AppState) -> None:
    """Runs what waits in other processes, while there is room here."""
    has_left = False
    async for _ in state.db.room_wanted():
        if has_left:
            # What was taken is this one's now, and nobody else looks for it.
            has_left = not await _has_inherited(state)
        elif room := state.tasks.room():
            try:
                for row in await state.db.take_waiting(room):
                    await api.background.run_here(state, row)
            except Exception:
                has_left = True
                log.exception("what waits in other processes could not be run: trying again")


async def _has_inherited(state: AppState) -> bool:
    """Whether it could be done."""
    try:
        unfinished = await state.db.unfinished()
        alive = await api.admin.metrics.running_elsewhere(state) if unfinished else set()
        if alive is None:
            return False
        mine = set(api.admin.metrics.ids_at_work(state))  # Begun since.
        if orphans := [row for row in unfinished if row["id"] not in alive | mine]:
            await _take_over(state, orphans)
        return True
    except Exception:
        log.exception("what ran in a dead process could not be marked as failed: trying again")
        return False


async def _take_over(state: AppState, orphans: list[UnfinishedResponse]) -> None:
    """Has what only waited run again, and marks the rest as failed."""
    interrupted = await api.background.run_again(state, await state.db.claim(orphans))
    if interrupted and (failed := await state.db.fail_orphans(interrupted)):
        log.warning("%d responses were running when the router stopped: marked as failed", failed)


F = TypeVar("F", bound=Fetcher)


def _fetcher(kind: type[F], settings: ImagesConfig) -> F:
    """A fetcher with the limits of its settings."""
    return kind(
        max_bytes=int(settings.max_mb * MB),
        timeout_s=settings.timeout_s,
        allow_private=settings.allow_private,
        max_count=settings.max_count,
        max_total_bytes=int(settings.max_total_mb * MB),
    )


def _collect_rarely() -> None:
    """What is there now stays, and requests leave hardly any cycles behind. To look for them after every 700 new
    objects, as Python does, is a tenth of the work of a stream."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 50)


async def _keep_retention(state: AppState, days: float) -> None:
    while True:
        try:
            if state.cluster.leads and (deleted := await state.db.delete_older_than(int(time.time() - days * 86400))):
                log.info("%d responses were older than %g days: deleted", deleted, days)
        except Exception:
            log.exception("deleting old responses failed; trying again in an hour")
        await asyncio.sleep(RETENTION_EVERY_S)


async def _roll_up_usage(state: AppState) -> None:
    while True:
        await asyncio.sleep(RETENTION_EVERY_S)
        try:
            if state.cluster.leads:
                await state.db.roll_up_usage((int(time.time()) - HOURS_OF_USAGE_S) // DAY_S * DAY_S)
        except Exception:
            log.exception("usage could not be added up by day; trying again in an hour")


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _is_news(record: logging.LogRecord) -> bool:
    """uvicorn calls it an error when we refuse a WebSocket, although the refusal was sent whole, and when we break off
    an answer."""
    return not str(record.msg).startswith("ASGI callable returned without completing")


def _tracer(config: Config) -> Tracer | None:
    """What sends spans, where that is wanted. A variable of OpenTelemetry's may be there for another program: it stops
    no start."""
    traces = config.traces
    if not traces.are_wanted():
        return None
    if not traces.endpoint and (other := other_protocol()):
        log.warning("no traces are sent: %s asks for another protocol than grpc; traces.endpoint names a place", other)
        return None
    try:
        need("otel", setting="OTEL_EXPORTER_OTLP_ENDPOINT")  # Of a setting it was looked at with the others.
    except ConfigError as error:
        log.warning("no traces are sent: %s", error)
        return None
    from core.tracing import Tracer

    return Tracer.of(traces)


def _joined(config: Config, inner: Cluster) -> Cluster:
    """With what these processes share, what they share with those of other machines, where the settings ask for it."""
    if not config.cluster.url:
        return inner
    need("valkey", setting="cluster.url")
    from cluster.valkey import Replicas

    return Replicas(config.cluster, inner, config.background.events_hours)


def _cluster_of_environment() -> Cluster | None:
    """The other workers, where serve.py has started this process as one of several."""
    folder = os.environ.get(FOLDER)
    return Workers(Path(folder)) if folder else None


def _load() -> Application:
    try:
        return create_app(load_config(kinds=KINDS), config_file(), _cluster_of_environment())
    except ConfigError as error:
        raise SystemExit(f"nomyo-router cannot start: {error}") from None


if __name__ == "__main__":
    raise SystemExit("router.py is the application; serve.py starts it: python serve.py (--help lists its options)")
app = _load()
db = app.state.db
