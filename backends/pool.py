"""The endpoints: what they serve, how busy they are, and who gets the next request.

    choose_endpoint(pool, model)   takes a slot, waiting for one if it must
    decrement_usage(pool, …)       gives it back, and wakes who waits

Choosing reads memory alone. A task keeps the model lists fresh; only a model that nobody is known to serve makes a request
wait for a new look, because it may just have been pulled.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import math
import random
import time
from collections import deque
from typing import Any

from backends.client import BackendClient
from backends.kinds import KINDS, Kind, kind_of, models_of
from config import Config, EndpointConfig
from errors import APIError, BackendUnreachable, NotFound, TooManyRequests

log = logging.getLogger("nomyo.backends")

LISTING_TIMEOUT_S = 5.0
# How often requests for unknown models may make us look again.
LOOK_AGAIN_AFTER_S = 2.0


class Endpoint:
    """A model server, and what we know of it."""

    def __init__(self, config: EndpointConfig) -> None:
        self.url = config.url.rstrip("/")
        self.kind = kind_of(config)
        self.max_concurrent = config.max_concurrent
        self.in_flight = 0
        self.models: frozenset[str] = frozenset()
        self.error: str | None = "not asked yet"
        root = self.url.removesuffix("/v1") if self.kind.adds_v1 else self.url
        self.client = BackendClient(
            root,
            f"{root}/v1" if self.kind.adds_v1 else root,
            api_key=config.api_key,
            connect_timeout_s=config.connect_timeout_s,
            read_timeout_s=config.read_timeout_s,
        )

    def name_of(self, model: str) -> str | None:
        """What this endpoint calls `model`, or None if it does not serve it."""
        if model in self.models:
            return model
        if self.kind.latest and f"{model}:latest" in self.models:
            return f"{model}:latest"
        return None

    async def look(self) -> None:
        """Asks which models there are. An endpoint that does not answer keeps the last list, and waits behind the others."""
        try:
            listing = await self.client.get_json(self.kind.models_path, LISTING_TIMEOUT_S)
        except Exception as error:
            problem = error.message if isinstance(error, APIError) else repr(error)
            if self.error != problem:
                log.warning("endpoint %s: %s", self.url, problem)
            self.error = problem
            return
        self.models = frozenset(models_of(self.kind, listing))
        if self.error:
            log.info("endpoint %s serves %d models", self.url, len(self.models))
        self.error = None


Slot = tuple[Endpoint, str]


class Pool:
    """All endpoints. `open()` inside the running loop, `close()` at its end."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.endpoints: dict[str, Endpoint] = {}
        self._waiting: deque[tuple[asyncio.Future[Slot], str]] = deque()
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._looked_at = -math.inf

    async def open(self) -> None:
        self.endpoints = {}
        for config in self._config.endpoints:
            endpoint = Endpoint(config)
            self.endpoints[endpoint.url] = endpoint
        self._refreshing = asyncio.create_task(self._refresh(), name="models refresh")

    async def close(self) -> None:
        for task in filter(None, (self._refreshing, *self._looks.values())):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for endpoint in self.endpoints.values():
            await endpoint.client.close()

    def kind(self, url: str) -> Kind:
        endpoint = self.endpoints.get(url)
        return endpoint.kind if endpoint else KINDS["openai-chat"]

    async def choose(self, model: str) -> Slot:
        """The endpoint for a request to `model`, with a slot taken, and the model's name there. Raises `NotFound` for a model
        that nobody serves, `TooManyRequests` when no slot comes free, `BackendUnreachable` while no endpoint is known."""
        if not self._serving(model) and time.monotonic() - self._looked_at > LOOK_AGAIN_AFTER_S:
            await self.look(model)
        if not self._serving(model):
            raise self._unknown(model)
        return self._take(model) or await self._wait(model)

    def release(self, endpoint: Endpoint) -> None:
        endpoint.in_flight -= 1
        self._wake()

    def models(self) -> dict[str, Endpoint]:
        """Every model that is served, by name, and one endpoint that does."""
        return {model: endpoint for endpoint in self.endpoints.values() for model in sorted(endpoint.models)}

    async def look(self, model: str | None = None) -> None:
        """Asks all endpoints which models they have, and waits for their answers; if it is for one `model`, no longer than
        until somebody serves it. Callers at the same time share the looks."""
        looks = {self._look_at(endpoint) for endpoint in self.endpoints.values()}
        while looks and not (model and self._serving(model)):
            _, looks = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
        if not looks:
            self._looked_at = time.monotonic()

    def _look_at(self, endpoint: Endpoint) -> asyncio.Task[None]:
        look = self._looks.get(endpoint.url)
        if look is None or look.done():
            look = self._looks[endpoint.url] = asyncio.create_task(endpoint.look(), name=f"look at {endpoint.url}")
        return look

    async def _refresh(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._config.models_refresh_s)

    def _serving(self, model: str) -> list[Slot]:
        return [(endpoint, name) for endpoint in self.endpoints.values() if (name := endpoint.name_of(model))]

    def _take(self, model: str) -> Slot | None:
        """A slot of the endpoint that is least busy for its size: healthy before not, random among equals."""
        free = [
            (endpoint, name) for endpoint, name in self._serving(model) if endpoint.in_flight < endpoint.max_concurrent
        ]
        if not free:
            return None
        slot = min(
            free,
            key=lambda it: (it[0].error is not None, it[0].in_flight / it[0].max_concurrent, random.random()),
        )
        slot[0].in_flight += 1
        return slot

    async def _wait(self, model: str) -> Slot:
        """A slot that another request gave back: first come, first served."""
        queue = self._config.queue
        if len(self._waiting) >= queue.max:
            raise TooManyRequests(f"Too many requests wait for '{model}'.", retry_after_s=1)
        handed: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        entry = (handed, model)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(queue.timeout_s):
                return await handed
        except BaseException as error:
            if handed.done() and not handed.cancelled():
                self.release(handed.result()[0])  # It came in the moment in which we stopped waiting.
            if isinstance(error, TimeoutError):
                raise TooManyRequests(
                    f"No slot came free for '{model}' in {queue.timeout_s:g} s.", retry_after_s=1
                ) from None
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(entry)

    def _wake(self) -> None:
        """Hands a free slot to the first who can use it. It is taken here, so that no newcomer comes between."""
        for entry in self._waiting:
            handed, model = entry
            if not handed.done() and (slot := self._take(model)):
                handed.set_result(slot)
                self._waiting.remove(entry)
                return

    def _unknown(self, model: str) -> APIError:
        models = self.models()
        if not models:
            return BackendUnreachable("No backend could be asked for its models yet.", retry_after_s=1)
        near = difflib.get_close_matches(model, models, n=3, cutoff=0.4) or sorted(models)[:3]
        return NotFound(
            f"The model '{model}' does not exist. The nearest are: {', '.join(near)}.",
            param="model",
            code="model_not_found",
        )


async def choose_endpoint(pool: Pool, model: str) -> tuple[str, str]:
    """The URL of the endpoint for `model`, with a slot taken, and the model's name there. Errors: as `Pool.choose`."""
    endpoint, name = await pool.choose(model)
    return endpoint.url, name


async def decrement_usage(pool: Pool, url: str, model: str) -> None:
    """Gives back the slot that `choose_endpoint` took."""
    pool.release(pool.endpoints[url])


def is_ext_openai_endpoint(pool: Pool, url: str) -> bool:
    """Whether the endpoint speaks the Responses API itself, so that requests go out as they came."""
    return pool.kind(url).native


def _make_openai_client(pool: Pool, url: str) -> Any:
    """The pooled client of an endpoint: made once, at the start."""
    return pool.endpoints[url].client
