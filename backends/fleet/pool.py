"""The endpoints: what they serve, how busy they are, and who gets the next request.

    choose_endpoint(pool, model, routing)   takes a slot, waiting for one if it must
    decrement_usage(pool, …)                gives it back, and wakes who waits

Choosing reads memory alone: each endpoint has a task that keeps what is known of it fresh (`backends/endpoint.py`). The rules of
the choice are in `backends/choice.py`, what happens after a failure in `backends/failover.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any

from backends.fleet.choice import Affinity, choose
from backends.fleet.endpoint import Endpoint
from backends.fleet.line import FairQueue
from backends.fleet.retry import RetryBudget
from backends.kinds import KINDS, UNKNOWN
from backends.kinds.kind import Kind
from cluster.protocol import Cluster
from core.config import Config, EndpointConfig
from core.errors import (
    APIError,
    BackendError,
    BackendRefused,
    BackendUnreachable,
    NotFound,
    TooManyRequests,
    Unsupported,
)

log = logging.getLogger("nomyo.backends")

# How often requests for unknown models may make us look again, and how long such a request waits for that.
LOOK_AGAIN_AFTER_S = 2.0
LOOK_FOR_S = 0.5
# At the start: as long as this the first requests wait until somebody has answered.
FIRST_LOOK_S = 1.0
# How long a conversation's last endpoint is worth going back to: servers keep a prompt about as long.
WARM_S = 1800.0


@dataclass(slots=True)
class Routing:
    """What a request's way through the fleet depends on, and what became of it. `principal` is whose place in the queue it takes,
    `affinity` names what may be warm somewhere (a conversation, a prefix), the surest first."""

    principal: str = ""
    affinity: Sequence[str] = ()
    # The front door, as a path below /v1, where it is not every endpoint's.
    path: str = ""
    tried: set[str] = field(default_factory=set)
    attempts: int = 0
    waited_s: float = 0.0
    endpoint: str = ""
    model: str = ""

    def headers(self) -> dict[str, str]:
        """What the client is told of it."""
        if not self.endpoint:
            return {}
        return {
            "x-nomyo-endpoint": printable(self.endpoint),
            "x-nomyo-model": printable(self.model),
            "x-nomyo-wait-ms": f"{self.waited_s * 1000:.0f}",
        }


@lru_cache(maxsize=1024)
def printable(text: str) -> str:
    """The text as a header may hold it."""
    return re.sub(r"[^ -~]", "?", text)


Slot = tuple[Endpoint, str]


@dataclass(eq=False, slots=True)
class Waiting:
    """A request in the queue."""

    model: str
    routing: Routing
    handed: asyncio.Future[Slot]
    since: float


class Pool:
    """All endpoints, of these `kinds`. `open()` inside the running loop, `close()` at its end."""

    kinds = KINDS

    def __init__(self, config: Config, cluster: Cluster) -> None:
        self._config = config
        self._cluster = cluster
        self.endpoints: dict[str, Endpoint] = {}
        self.queue: FairQueue[Waiting] = FairQueue()
        self.affinity = Affinity(max_entries=10_000, max_age_s=WARM_S)
        self.budget = RetryBudget(config.retry.budget)
        self.counts: Counter[str] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.waited_s = 0.0
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._serving_cache: dict[str, list[Slot]] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._looked_at = -math.inf
        self._generation = 0

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        self.endpoints = {}
        for config in self._config.endpoints:
            self._add(config)
        self._cluster.line.listen(self._woken)
        # Whoever comes at once shall find what answers at once.
        looks = [self._look_at(endpoint) for endpoint in self.endpoints.values()]
        await asyncio.wait(looks, timeout=FIRST_LOOK_S)

    async def close(self) -> None:
        self._cluster.line.stop_listening()
        for task in (*self._watches.values(), *self._looks.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for endpoint in self.endpoints.values():
            await endpoint.close()
        await asyncio.gather(*self._closing)

    async def reconfigure(self, config: Config) -> None:
        """Takes new settings without losing a request: endpoints that stay as they are keep all they know, those that go or
        change answer what they have begun."""
        self._config = config
        self.budget = RetryBudget(config.retry.budget)
        wanted = {endpoint.url.rstrip("/"): endpoint for endpoint in config.endpoints}
        before = {endpoint.url: endpoint for endpoint in self.endpoints.values() if not endpoint.leaving}
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
            if endpoint.key not in self.endpoints or self.endpoints[endpoint.key] is not endpoint:
                await endpoint.close()

    def _add(self, config: EndpointConfig, before: Endpoint | None = None) -> Endpoint:
        """Adds an endpoint; it knows at once what `before`, the one that it replaces, knew."""
        # By its address: what another process, or the endpoint that it replaces, sends to the server keeps it busy too.
        running = self._cluster.in_flight(config.url.rstrip("/"))
        endpoint = Endpoint(config, self._config.breaker, self._changed, self._lost, running)
        if before is not None:
            endpoint.take_over(before)
        if endpoint.key in self.endpoints:  # The one that it replaces still answers something.
            self._generation += 1
            endpoint.key += f"#{self._generation}"
        self.endpoints[endpoint.key] = endpoint
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
        del self.endpoints[endpoint.key]
        log.info("endpoint %s is gone", endpoint.name)

    async def _watch(self, endpoint: Endpoint) -> None:
        while True:
            await self._look_at(endpoint)
            await asyncio.sleep(endpoint.look_again_in(self._config.models_refresh_s))

    # ── what is known ────────────────────────────────────────────────────────────────────────────────────────────────

    def kind(self, key: str) -> Kind:
        endpoint = self.endpoints.get(key)
        return endpoint.kind if endpoint else UNKNOWN

    def name(self, key: str) -> str:
        """The name of an endpoint in headers and logs."""
        endpoint = self.endpoints.get(key)
        return endpoint.name if endpoint else key

    def context(self, key: str, model: str) -> int | None:
        """How many tokens an endpoint takes for one of its models, if it says."""
        endpoint = self.endpoints.get(key)
        facts = endpoint.facts.get(model) if endpoint else None
        return facts.context if facts else None

    def models(self) -> dict[str, Endpoint]:
        """Every model that is served, by name, and one endpoint that does."""
        return {
            model: endpoint
            for endpoint in self.endpoints.values()
            if not endpoint.leaving
            for model in sorted(endpoint.models)
        }

    def longest_wait_s(self) -> float:
        """How long the first in the queue has waited."""
        return time.monotonic() - min(entry.payload.since for entry in self.queue) if len(self.queue) else 0.0

    def first_waiting(self, count: int) -> list[dict[str, Any]]:
        """The first who wait for a slot: for which model, how many come before, and for how long already."""
        now = time.monotonic()
        return [
            {
                "model": entry.payload.model,
                "position": self.queue.position(entry),
                "waited_s": round(now - entry.payload.since, 3),
            }
            for entry in islice(self.queue, count)
        ]

    def count_tokens(self, model: str, input: int, output: int) -> None:
        """Tokens that a backend has counted."""
        self.tokens[model, "input"] += input
        self.tokens[model, "output"] += output

    def set_draining(self, endpoint: Endpoint, draining: bool) -> None:
        """Takes an endpoint out of the choice, or back into it with its failures forgiven."""
        log.info("endpoint %s is %s", endpoint.name, "draining" if draining else "enabled")
        endpoint.draining = draining
        if not draining:
            endpoint.forgive()
            self._wake()

    def fallbacks(self, model: str) -> Sequence[str]:
        """The models that may answer in place of this one."""
        return self._config.fallback_models.get(model, ())

    async def look(self, model: str | None = None) -> None:
        """Asks all endpoints what they have, and waits for their answers; if it is for one `model`, no longer than until
        somebody serves it. Callers at the same time share the looks."""
        looks = {self._look_at(endpoint) for endpoint in self.endpoints.values() if not endpoint.leaving}
        while looks and not (model and self._serving(model)):
            _, looks = await asyncio.wait(looks, return_when=asyncio.FIRST_COMPLETED)
        if not looks:
            self._looked_at = time.monotonic()

    def _look_at(self, endpoint: Endpoint) -> asyncio.Task[None]:
        look = self._looks.get(endpoint.key)
        if look is None or look.done():
            look = self._looks[endpoint.key] = asyncio.create_task(endpoint.look(), name=f"look at {endpoint.name}")
        return look

    def _changed(self) -> None:
        """Other models are served than before: somebody who waits may be served now."""
        self._serving_cache.clear()
        self._wake()

    def _lost(self, endpoint: Endpoint) -> None:
        """An endpoint has not answered for a while: who waits for its first byte goes elsewhere, if there is an elsewhere. It may
        only be slow."""
        others = [other for other in self.endpoints.values() if other is not endpoint and other.healthy]
        if any(other.name_of(model) for other in others for model in endpoint.models):
            endpoint.client.give_up()

    def _serving(self, model: str) -> list[Slot]:
        """The endpoints that have a model, and its name there. `openai/` in front is how clients of several providers name the API."""
        serving = self._serving_cache.get(model)
        if serving is None:
            serving = [
                (endpoint, name)
                for endpoint in self.endpoints.values()
                if not endpoint.leaving and (name := endpoint.name_of(model))
            ]
            if not serving and model.startswith("openai/"):
                return self._serving(model.removeprefix("openai/"))
            if serving:  # A name that nobody serves is a client's own text: not to be remembered.
                self._serving_cache[model] = serving
        return serving

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def choose(self, model: str, routing: Routing | None = None) -> Slot:
        """The endpoint for a request to `model`, with a slot taken, and the model's name there. Raises `NotFound` for a model
        that nobody serves, `TooManyRequests` when no slot comes free, `BackendUnreachable` while no endpoint is known."""
        routing = routing or Routing()
        if not self._serving(model):
            await self._search(model)
        if routing.path and all(routing.path in endpoint.kind.lacks for endpoint, _ in self._serving(model)):
            raise Unsupported(f"No server of '{model}' has /v1{routing.path}.", param="model")
        if not routing.attempts:
            self.budget.request()
        routing.attempts += 1
        # Who comes now does not come before those who wait in other processes: they hear of a free slot a moment later.
        may_take = not self._cluster.line.give_way_s or not self._waiting()
        endpoint, name = (self._take(model, routing) if may_take else None) or await self._wait(model, routing)
        routing.endpoint, routing.model = endpoint.name, name
        return endpoint, name

    def release(self, endpoint: Endpoint) -> None:
        with self._cluster.exclusive():
            endpoint.give_back()
        if endpoint.leaving and not endpoint.in_flight:
            self._forget(endpoint)
            closing = asyncio.ensure_future(endpoint.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._slot_may_be_free()
        self._cluster.line.wake()

    def _waiting(self) -> int:
        """How many wait, in all processes."""
        return len(self.queue) + self._cluster.line.elsewhere()

    async def _search(self, model: str) -> None:
        """The model may just have been pulled: a new look, now and then, at those who answer at once. Raises `NotFound`."""
        if time.monotonic() - self._looked_at > LOOK_AGAIN_AFTER_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_FOR_S):
                    await self.look(model)
            self._looked_at = time.monotonic()
        if not self._serving(model):
            raise self._unknown(model)

    def _take(self, model: str, routing: Routing) -> Slot | None:
        """A free slot for the request, if there is one, taken. No other process takes it at the same time."""
        with self._cluster.exclusive():
            return self._take_best(model, routing)

    def _take_best(self, model: str, routing: Routing) -> Slot | None:
        serving = self._serving(model)
        now = time.monotonic()
        if len(serving) == 1:  # There is nothing to choose.
            endpoint, name = serving[0]
            if not _may_take(endpoint, routing) or endpoint.busy >= endpoint.max_concurrent:
                return None
            endpoint.take(name, now)
            return endpoint, name
        slots = [slot for slot in serving if _may_take(slot[0], routing)]
        candidates = [endpoint.candidate(name, now) for endpoint, name in slots]
        here = {candidate.endpoint for candidate in candidates if candidate.is_well}
        warm = next((key for name in routing.affinity if (key := self.affinity.get(name, now)) in here), None)
        chosen = choose(candidates, warm, random)
        if chosen is None:
            return None
        endpoint = self.endpoints[chosen.endpoint]
        endpoint.take(chosen.model, now)
        return endpoint, chosen.model

    async def _wait(self, model: str, routing: Routing) -> Slot:
        """A slot that another request gave back: first come, first served among those of one principal, and the principals in turn."""
        limits = self._config.queue
        if self._waiting() >= limits.max:
            if slot := await self._left_over(model, routing):
                return slot
            self.counts["queue_full"] += 1
            raise TooManyRequests(f"Too many requests wait for '{model}'.", retry_after_s=1)
        self.counts["queued"] += 1
        began = time.monotonic()
        waiting = Waiting(model, routing, asyncio.get_running_loop().create_future(), began)
        entry = self.queue.push(routing.principal, waiting)
        self._announce()
        if self._cluster.line.give_way_s:
            # Another process may have given a slot back before it could know that somebody waits here.
            self._slot_may_be_free()
        try:
            async with asyncio.timeout(limits.timeout_s):
                return await waiting.handed
        except BaseException as error:
            if waiting.handed.done() and not waiting.handed.cancelled():
                # It came in the moment in which we stopped waiting.
                endpoint, name = waiting.handed.result()
                self.abandoned(endpoint.key, name)
                self.release(endpoint)
            if isinstance(error, TimeoutError):
                self.counts["queue_timeout"] += 1
                raise TooManyRequests(
                    f"No slot came free for '{model}' in {limits.timeout_s:g} s.", retry_after_s=1
                ) from None
            raise
        finally:
            self.queue.remove(entry)
            self._announce()
            routing.waited_s += time.monotonic() - began
            self.waited_s += time.monotonic() - began

    async def _left_over(self, model: str, routing: Routing) -> Slot | None:
        """A slot that those who wait in all processes do not want, because they wait for something else: they knew of it before."""
        if not self._cluster.line.give_way_s:
            return None
        await asyncio.sleep(self._cluster.line.give_way_s)
        return self._take(model, routing)

    def _woken(self) -> None:
        """Another process has given slots back."""
        if self._slot_may_be_free():
            self._cluster.line.wake()  # There may be more than one, and whoever is next waits elsewhere.

    def _slot_may_be_free(self) -> bool:
        """Somebody has given a slot back, here or in another process. Who has waited longest goes first, wherever he waits. Gives whether
        somebody here got one."""
        got_one = False
        while self._cluster.line.is_first():
            if not (len(self.queue) and self._wake_one()):
                return got_one
            got_one = True
        if len(self.queue):
            # Whoever is first may wait for something else.
            asyncio.get_running_loop().call_later(self._cluster.line.give_way_s, self._wake)
        return got_one

    def _announce(self) -> None:
        """Lets the other processes know who waits here."""
        first = next(iter(self.queue), None)
        self._cluster.line.announce(len(self.queue), first.payload.since if first else 0.0)

    def _wake(self) -> None:
        """Hands each free slot to the first who can use it. It is taken here, so that no newcomer comes between."""
        while len(self.queue) and self._wake_one():
            pass

    def _wake_one(self) -> bool:
        blocked: set[str] = set()
        for entry in self.queue:
            waiting = entry.payload
            if waiting.model in blocked or waiting.handed.done():
                continue
            if slot := self._take(waiting.model, waiting.routing):
                waiting.handed.set_result(slot)
                self.queue.remove(entry, served=True)
                self._announce()
                return True
            if not waiting.routing.tried:
                blocked.add(waiting.model)
        return False

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

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────

    def succeeded(self, key: str, model: str, routing: Routing) -> None:
        """A request was answered: the endpoint works, and what it was about is warm there."""
        now = time.monotonic()
        if endpoint := self.endpoints.get(key):
            endpoint.succeeded(model, now)
            self.remember(routing.affinity, key)

    def remember(self, affinity: Iterable[str], key: str) -> None:
        """What is warm at an endpoint."""
        now = time.monotonic()
        for name in affinity:
            self.affinity.put(name, key, now)

    def failed(self, key: str, model: str, error: APIError) -> None:
        """A request failed. What a backend refuses, or we did not even send, is no failure of its."""
        endpoint = self.endpoints.get(key)
        if endpoint is None:
            return
        now = time.monotonic()
        if isinstance(error, BackendRefused) and error.code != "model_not_found":
            endpoint.succeeded(model, now)
            return
        if not isinstance(error, BackendError | TooManyRequests):
            endpoint.breaker(model).abandoned()
            return
        self.counts["failures"] += 1
        endpoint.failed(model, error, now)
        if (until := endpoint.breaker(model).until) is not None:
            # Who waits may be served when it is let through again.
            asyncio.get_running_loop().call_later(until - now + 0.001, self._wake)
        if isinstance(error, BackendUnreachable | BackendRefused):
            self._look_at(endpoint)  # It was there, and had the model, when it was last asked.

    def abandoned(self, key: str, model: str) -> None:
        """A request ended for reasons of the client's, which say nothing of the endpoint."""
        if endpoint := self.endpoints.get(key):
            endpoint.breaker(model).abandoned()

    @property
    def max_retries(self) -> int:
        """How often a request may be tried again."""
        return self._config.retry.max

    def take_retry(self) -> bool:
        """Whether the budget has a retry left. It is taken then."""
        if not self.budget.take():
            return False
        self.counts["retries"] += 1
        return True

    def has_other(self, model: str, routing: Routing, *, must_be_well: bool = True) -> bool:
        """Whether an endpoint that was not tried yet serves the model, and, if it must, is not known to be down."""
        now = time.monotonic()
        return any(
            _may_take(endpoint, routing) and (not must_be_well or endpoint.candidate(name, now).is_well)
            for endpoint, name in self._serving(model)
        )


def _may_take(endpoint: Endpoint, routing: Routing) -> bool:
    """Whether a request may be sent to an endpoint at all."""
    return endpoint.key not in routing.tried and not endpoint.draining and routing.path not in endpoint.kind.lacks


async def choose_endpoint(pool: Pool, model: str, routing: Routing | None = None) -> tuple[str, str]:
    """The key of the endpoint for `model` (its URL), with a slot taken, and the model's name there. Errors: as `Pool.choose`."""
    endpoint, name = await pool.choose(model, routing)
    return endpoint.key, name


async def decrement_usage(pool: Pool, key: str, model: str) -> None:
    """Gives back the slot that `choose_endpoint` took."""
    pool.release(pool.endpoints[key])


def is_ext_openai_endpoint(pool: Pool, key: str) -> bool:
    """Whether the endpoint speaks the Responses API itself, so that requests go out as they came."""
    return pool.kind(key).native


def _make_openai_client(pool: Pool, key: str) -> Any:
    """The pooled client of an endpoint: made once, at the start."""
    return pool.endpoints[key].client
