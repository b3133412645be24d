"""All endpoints: which there are, and what they serve. Each has a task that asks it what it has now and then, so that
whoever wants to know reads memory alone."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import math
import time
from collections.abc import Callable, Collection

from backends.fleet.endpoint import Endpoint
from backends.fleet.local import LOOK_AGAIN_S, LocalServers
from backends.kinds import UNKNOWN
from backends.kinds.kind import Kind
from cluster.protocol import Cluster
from core.config import Config, EndpointConfig
from core.errors import APIError, BackendUnreachable, NotFound

log = logging.getLogger("nomyo.backends")

# How often requests for unknown models may make us look again, and how long such a request waits for that.
LOOK_AGAIN_AFTER_S = 2.0
LOOK_FOR_S = 0.5
# Those of the models that whoever asks may use; None: all.
Patterns = tuple[str, ...] | None
# At the start: as long as this the first requests wait until somebody has answered.
FIRST_LOOK_S = 1.0
# Clients may write a model's name in many ways: so many are remembered.
MOST_NAMES = 1000
LONGEST_NAME = 256


class Endpoints(dict[str, Endpoint]):
    """The endpoints by key, which is the address, or is made of it. `open()` inside the running loop, `close()` at its
    end. `on_change` is called when other models are served than before."""

    def __init__(self, config: Config, cluster: Cluster, on_change: Callable[[], None]) -> None:
        super().__init__()
        self._config = config
        # This router's own, for other routers; known before `open`.
        self.router_id = ""
        # Those of this machine, while the settings name none.
        self.local: LocalServers | None = None
        self._local_watch: asyncio.Task[None] | None = None
        self._local_look: asyncio.Task[None] | None = None
        self._cluster = cluster
        self._on_change = on_change
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._serving: dict[str | tuple[str, Patterns], list[tuple[Endpoint, str]]] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._looked_at = -math.inf
        self._generation = 0

    # ── which there are ──────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Makes the endpoints of the settings, and looks at all of them for as long as a start may take."""
        self.clear()
        for config in self._config.endpoints:
            self._add(config)
        if not self._config.endpoints:
            self._watch_local()
        # Whoever comes at once shall find what answers at once.
        looks = [self.look_at(endpoint) for endpoint in self.values()] or [self._look_around()]
        await asyncio.wait(looks, timeout=FIRST_LOOK_S)

    async def close(self) -> None:
        """Ends all looking, and all connections."""
        await self._forget_local()
        for task in (*self._watches.values(), *self._looks.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for endpoint in self.values():
            await endpoint.close()
        await asyncio.gather(*self._closing)

    async def reconfigure(self, config: Config) -> None:
        """Takes new settings: endpoints that stay as they are keep all they know, those that go or change answer what
        they have begun."""
        self._config = config
        if config.endpoints:
            await self._forget_local()
        elif self.local is None:
            self._watch_local()
        known = config.endpoints or (self.local.found if self.local else ())
        wanted = {endpoint.url.rstrip("/"): endpoint for endpoint in known}
        before = {endpoint.url: endpoint for endpoint in self.values() if not endpoint.leaving}
        gone: list[Endpoint] = []
        for url, endpoint in before.items():
            if wanted.get(url) == endpoint.config:
                endpoint.set_breaker(config.breaker)
                del wanted[url]
            else:
                self._remove(endpoint)
                gone.append(endpoint)
        for url, settings in wanted.items():
            added = self._add(settings, before.get(url))
            if url not in before:
                added.draining = False  # The cluster may remember it from an earlier time.
        # Nothing is awaited up to here: no request comes while an endpoint is missing.
        self._changed()
        for endpoint in gone:
            if self.get(endpoint.key) is not endpoint:
                await endpoint.close()

    def forget_if_done(self, endpoint: Endpoint) -> None:
        """One that is leaving is gone when all that it had begun is answered."""
        if not endpoint.in_flight:
            self._forget(endpoint)
            closing = asyncio.ensure_future(endpoint.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _add(self, config: EndpointConfig, before: Endpoint | None = None) -> Endpoint:
        """Adds an endpoint; it knows at once what `before`, the one that it replaces, knew."""
        # By its address: what another process, or the endpoint that it replaces, sends to the server keeps it busy too.
        running = self._cluster.in_flight(config.url.rstrip("/"))
        endpoint = Endpoint(
            config,
            self._config.breaker,
            self._changed,
            self._lost,
            running,
            self._config.max_answer_mb,
            self.router_id,
        )
        if before is not None:
            endpoint.take_over(before)
        if endpoint.key in self:  # The one that it replaces still answers something.
            self._generation += 1
            endpoint.key += f"#{self._generation}"
        self[endpoint.key] = endpoint
        self._watches[endpoint.key] = asyncio.create_task(self._watch(endpoint), name=f"watch {endpoint.name}")
        return endpoint

    def _remove(self, endpoint: Endpoint) -> None:
        """Sends it no more requests. It is gone when those that it has are answered."""
        endpoint.leaving = True
        if watch := self._watches.pop(endpoint.key, None):
            watch.cancel()
        if look := self._looks.pop(endpoint.key, None):
            look.cancel()
        if not endpoint.in_flight:
            self._forget(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        """Closing it is left to the caller."""
        del self[endpoint.key]
        log.info("endpoint %s is gone", endpoint.name)

    # ── what they serve ──────────────────────────────────────────────────────────────────────────────────────────────

    def kind(self, key: str) -> Kind:
        """The kind of an endpoint; of one that is not there, one that knows nothing."""
        endpoint = self.get(key)
        return endpoint.kind if endpoint else UNKNOWN

    def name(self, key: str) -> str:
        """The name of an endpoint in headers and logs."""
        endpoint = self.get(key)
        return endpoint.name if endpoint else key

    def context(self, key: str, model: str) -> int | None:
        """How many tokens an endpoint takes for one of its models, by its own name, if that is known."""
        endpoint = self.get(key)
        facts = endpoint.facts.get(model) if endpoint else None
        return facts.context if facts else None

    def models(self, but_of: Collection[str] = (), allowed: Patterns = None) -> dict[str, Endpoint]:
        """Every model that is served and `allowed`, by name, and one endpoint that does; `but_of`: routers that are not
        counted."""
        return {
            model: endpoint
            for endpoint in self.values()
            if not endpoint.leaving and endpoint.router not in but_of
            for model in sorted(endpoint.models_of(allowed))
        }

    def counted_name(self, model: str, there: str) -> str:
        """The name by which what a model used is counted: the client's, where a server lists it, else the one that the
        server has for it. Clients can make up names without end."""
        if model == there:
            return model
        return model if any(model in endpoint.models for endpoint in self.values()) else there

    def serving(self, model: str, allowed: Patterns = None) -> list[tuple[Endpoint, str]]:
        """The endpoints that have a model which is `allowed`, and its name there. `openai/` in front is how clients of
        several providers name the API."""
        asked = model if allowed is None else (model, allowed)
        serving = self._serving.get(asked)
        if serving is None:
            serving = [
                (endpoint, name)
                for endpoint in self.values()
                if not endpoint.leaving and (name := endpoint.name_of(model))
            ]
            if not serving and model.startswith("openai/"):
                return self.serving(model.removeprefix("openai/"), allowed)
            if allowed is not None:
                serving = [slot for slot in serving if slot[1] in slot[0].allowed(allowed)]
            if (
                serving and len(model) <= LONGEST_NAME
            ):  # A name that nobody serves is a client's own text: not to be remembered.
                if len(self._serving) >= MOST_NAMES:
                    self._serving.clear()
                self._serving[asked] = serving
        return serving

    async def search(self, model: str, allowed: Patterns = None) -> None:
        """The model may just have been pulled: a new look, now and then, at those who answer at once. Raises `NotFound`
        if it is not to be found or not `allowed`, `BackendUnreachable` while nobody could be asked."""
        if time.monotonic() - self._looked_at > LOOK_AGAIN_AFTER_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_FOR_S):
                    await self.look(model, allowed)
            self._looked_at = time.monotonic()
        if not self.serving(model, allowed):
            raise self._unknown(model, allowed)

    def _unknown(self, model: str, allowed: Patterns) -> APIError:
        models = self.models(allowed=allowed)
        if not models:
            if allowed is not None and self.models():
                return NotFound(f"The model '{model}' does not exist.", param="model", code="model_not_found")
            return self._nothing_served(model)
        near = difflib.get_close_matches(model, models, n=3, cutoff=0.4) or sorted(models)[:3]
        return NotFound(
            f"The model '{model}' does not exist. The nearest are: {', '.join(near)}.",
            param="model",
            code="model_not_found",
        )

    def _nothing_served(self, model: str) -> APIError:
        """The error while there are no models at all, with what every endpoint lacks."""
        asked = [endpoint for endpoint in self.values() if not endpoint.leaving]
        if self.local and not asked:
            return BackendUnreachable(f"{self.local.reason()}.", retry_after_s=LOOK_AGAIN_S)
        reasons = " ".join(endpoint.reason() for endpoint in asked)
        if all(endpoint.healthy for endpoint in asked):
            message = f"The model '{model}' does not exist, and no other: {reasons}"
            return NotFound(message, param="model", code="model_not_found")
        return BackendUnreachable(f"No backend has a model. {reasons}", retry_after_s=1)

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def look(self, model: str | None = None, allowed: Patterns = None) -> None:
        """Asks all endpoints what they have, and waits for their answers; if it is for one `model`, no longer than
        until somebody serves it. Callers at the same time share the looks."""
        looks = {self.look_at(endpoint) for endpoint in self.values() if not endpoint.leaving}
        if self.local and not self._is_any_up():
            looks.add(self._look_around())
        while looks and not (model and self.serving(model, allowed)):
            _, looks = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
        if not looks:
            self._looked_at = time.monotonic()

    def look_at(self, endpoint: Endpoint) -> asyncio.Task[None]:
        """Asks an endpoint what it has, unless it is being asked."""
        look = self._looks.get(endpoint.key)
        if look is None or look.done():
            look = self._looks[endpoint.key] = asyncio.create_task(endpoint.look(), name=f"look at {endpoint.name}")
        return look

    def _is_any_up(self) -> bool:
        return any(endpoint.healthy for endpoint in self.values() if not endpoint.leaving)

    def _watch_local(self) -> None:
        """Looks for servers of this machine, while none is known that answers."""
        self.local = LocalServers(self.router_id)
        self._local_watch = asyncio.create_task(self._search_here(), name="watch this machine")

    async def _search_here(self) -> None:
        while True:
            if not self._is_any_up():
                await self._look_around()
            await asyncio.sleep(LOOK_AGAIN_S)

    def _look_around(self) -> asyncio.Task[None]:
        """Looks for servers of this machine, and uses them, unless that is being done."""
        if self._local_look is None or self._local_look.done():
            self._local_look = asyncio.create_task(self._take_local(), name="look around")
        return self._local_look

    async def _take_local(self) -> None:
        if self.local is None:
            return
        for config in await self.local.look():
            self._add(config)
        if looks := [self.look_at(endpoint) for endpoint in self.values()]:
            await asyncio.wait(looks)

    async def _forget_local(self) -> None:
        """The settings name the servers now, or all ends."""
        for task in (self._local_watch, self._local_look):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.local = self._local_watch = self._local_look = None

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await self.look_at(endpoint)
            await asyncio.sleep(endpoint.look_again_in(self._config.models_refresh_s))

    def _changed(self) -> None:
        self._serving.clear()
        self._on_change()

    def _lost(self, endpoint: Endpoint) -> None:
        """An endpoint has not answered for a while: who waits for its first byte goes elsewhere, if there is an
        elsewhere. It may only be slow."""
        others = [other for other in self.values() if other is not endpoint and other.healthy]
        if any(other.name_of(model) for other in others for model in endpoint.models):
            endpoint.client.give_up()
