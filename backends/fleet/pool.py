"""The pool: who gets the next request, who waits for a slot, and what became of the requests.

    choose_endpoint(pool, model, routing)   takes a slot, waiting for one if it must
    decrement_usage(pool, …)                gives it back, and hands it to whoever waits

    Pool ─┬─ Endpoints   which there are, what they serve     endpoints.py, endpoint.py
          ├─ Slots       which one a request gets             slots.py, choice.py, breaker.py
          └─ Line        who waits, and who is next           line.py, fair_queue.py

What happens after a failure is in failover.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from backends.fleet.choice import CLEARLY_BUSIER
from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from backends.fleet.line import Effects, Line, Rejection
from backends.fleet.retry import RetryBudget
from backends.fleet.routing import Routing
from backends.fleet.shared_breakers import SharedBreakers
from backends.fleet.slots import Slot, Slots
from backends.kinds import KINDS
from cluster.protocol import Cluster, Warm
from core.config import Config
from core.errors import APIError, BackendError, BackendRefused, BackendUnreachable, TooManyRequests, Unsupported
from core.hops import RouterLoop
from core.telemetry import Telemetry

log = logging.getLogger("nomyo.backends")

# Timers are not exact: one that comes early is set again, and not at once.
LEAST_WAIT_S = 0.001


@dataclass(eq=False, slots=True)
class Wish:
    """A request that waits for a slot, and what it gets in the end."""

    model: str
    routing: Routing
    outcome: asyncio.Future[Slot | Rejection]


class Wishes(Effects[Wish, Slot]):
    """What the line of a pool does: it takes slots, and ends the waiting of requests."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def waits(self, wish: Wish) -> bool:
        return not wish.outcome.done()

    def take(self, wish: Wish) -> Slot | None:
        return self._slots.take(wish.model, wish.routing)

    def hand(self, wish: Wish, slot: Slot) -> None:
        wish.outcome.set_result(slot)

    def reject(self, wish: Wish, why: Rejection) -> None:
        if not wish.outcome.done():
            wish.outcome.set_result(why)


class Pool:
    """All endpoints, of these `kinds`, and their slots. `open()` inside the running loop, `close()` at its end."""

    kinds = KINDS

    def __init__(self, config: Config, cluster: Cluster, telemetry: Telemetry | None = None) -> None:
        self._config = config
        self._cluster = cluster
        self.telemetry = telemetry or Telemetry()
        self.endpoints = Endpoints(config, cluster, self._changed)
        self.slots = Slots(self.endpoints, cluster)
        self._breakers = SharedBreakers(cluster.notes, self.endpoints, self._changed)
        limits = config.queue
        self.line = Line(Wishes(self.slots), cluster.line, most=limits.max, timeout_s=limits.timeout_s)
        self.budget = RetryBudget(config.retry.budget)
        # The ways of the requests that endpoints are asked now: a set, which takes fewer steps as a dict.
        self.asked: dict[Routing, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    async def open(self) -> None:
        self._cluster.line.listen(self._woken)
        await self.endpoints.open()
        self._breakers.open()

    async def close(self) -> None:
        self._cluster.line.stop_listening()
        if self._timer is not None:
            self._timer.cancel()
        await self.endpoints.close()

    async def reconfigure(self, config: Config) -> None:
        """Takes new settings without losing a request."""
        self._config = config
        self.budget = RetryBudget(config.retry.budget)
        self.line.most, self.line.timeout_s = config.queue.max, config.queue.timeout_s
        await self.endpoints.reconfigure(config)

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def choose(self, model: str, routing: Routing | None = None) -> Slot:
        """The endpoint for a request to `model`, with a slot taken, and the model's name there. Raises `NotFound` for a
        model that nobody serves, `TooManyRequests` when no slot comes free, `BackendUnreachable` while no endpoint is
        known."""
        routing = routing or Routing()
        serving = self.endpoints.serving(model, routing.models)
        if not serving:
            await self.endpoints.search(model, routing.models)
            serving = self.endpoints.serving(model, routing.models)
        if routing.path and all(routing.path in endpoint.kind.lacks for endpoint, _ in serving):
            raise Unsupported(f"No server of '{model}' has /v1{routing.path}.", param="model")
        if not routing.attempts:
            self.budget.request()
        routing.attempts += 1
        slot = None if self.line.must_be_joined else self.slots.take(model, routing)
        if slot is not None and not self._cluster.is_exact:
            slot = await self._confirmed(slot, model, routing)
        if slot is None:
            await _admitted(routing)  # Who waits counts.
            slot = await self._wait(model, routing)
        endpoint, name = slot
        routing.endpoint, routing.model = endpoint.name, name
        return slot

    async def look_up(self, model: str, routing: Routing) -> Slot:
        """The endpoint for a request that takes no slot, as counting does, and the model's name there. Errors: as
        `choose`, but for what comes of waiting."""
        if not self.endpoints.serving(model, routing.models):
            await self.endpoints.search(model, routing.models)
        slot = self.slots.look_up(model, routing)
        if slot is None:
            raise BackendUnreachable(f"No server of '{model}' can be asked now.")
        routing.attempts += 1
        routing.endpoint, routing.model = slot[0].name, slot[1]
        return slot

    def release(self, endpoint: Endpoint, model: str = "") -> None:
        """Gives back a slot that `choose` took for a model, by its name there."""
        self.slots.give_back(endpoint, model)
        self._freed()

    async def _wait(self, model: str, routing: Routing) -> Slot:
        """A slot that another request gave back. Raises `TooManyRequests`."""
        began = time.monotonic()
        new_outcome = asyncio.get_running_loop().create_future
        wish = Wish(model, routing, new_outcome())
        # One that was tried elsewhere is served by fewer endpoints than others of its model, and so may one that a key
        # asks for which may not use all models.
        alike = None if routing.tried or routing.unfit else (model, routing.models, routing.path)
        place = self.line.arrive(routing.principal, wish, alike, began, routing.priority)
        if self.line.waits(place):
            self.telemetry.counts["queued"] += 1
        try:
            while True:
                self._set_timer()
                slot = await self._outcome(wish)
                if self._cluster.is_exact:
                    return slot
                if (confirmed := await self._confirmed(slot, model, routing)) is not None:
                    return confirmed
                wish.outcome = new_outcome()
                self.line.come_back(place, time.monotonic())
        finally:
            self.line.leave(place)
            waited_s = time.monotonic() - began
            routing.waited_s += waited_s
            self.telemetry.waited_s += waited_s

    async def _confirmed(self, slot: Slot, model: str, routing: Routing) -> Slot | None:
        """A slot that was taken, if it is one of those that there are over all processes; None, and it is taken no
        more, if not. It may be one of another endpoint, where other processes know that the request finds it warm. What
        it is still to take of limits is taken with it. Raises `LimitReached`."""
        endpoint, name = slot
        others = self.slots.warm_elsewhere(slot, model, routing)
        warm = None
        if others:
            places = [(other.running, called, other.max_concurrent) for other, called in others]
            warm = Warm(routing.affinity, places, CLEARLY_BUSIER)
        admission, routing.admission = routing.admission, None
        drawing = admission.drawing if admission is not None else None
        try:
            taken = await endpoint.running.confirm(endpoint.max_concurrent, name, warm, drawing)
        except BaseException:
            if drawing is not None:
                drawing.give_up()
            self._drop(slot)
            raise
        if admission is not None:
            if admission.is_refused:
                self._drop(slot)
            admission.check(routing)
        if taken is None:
            self.slots.withdraw(slot)
            return None
        if taken is endpoint.running:
            return slot
        moved = next(other for other in others if other[0].running is taken)
        self.slots.move(slot, moved)
        return moved

    def _drop(self, slot: Slot) -> None:
        """Whoever was to have this slot has gone: it is the next one's."""
        self.slots.withdraw(slot)
        self._freed()

    def _freed(self) -> None:
        if self.line:
            self.line.given_back(time.monotonic())
            self._set_timer()
        else:
            self._cluster.line.wake()

    async def _outcome(self, wish: Wish) -> Slot:
        try:
            outcome = await wish.outcome
        except BaseException:
            if wish.outcome.done() and not wish.outcome.cancelled():
                # It came in the moment in which we stopped waiting.
                outcome = wish.outcome.result()
                if not isinstance(outcome, Rejection):
                    self._drop(outcome)
            raise
        if outcome is Rejection.FULL:
            self.telemetry.counts["queue_full"] += 1
            raise TooManyRequests(f"Too many requests wait for '{wish.model}'.", retry_after_s=1)
        if outcome is Rejection.TIMEOUT:
            self.telemetry.counts["queue_timeout"] += 1
            limit_s = self.line.timeout_s
            serving = [endpoint for endpoint, _ in self.endpoints.serving(wish.model, wish.routing.models)]
            drained = ", ".join(endpoint.name for endpoint in serving if endpoint.draining)
            why = f" Taken out (drained): {drained}." if drained else ""
            raise TooManyRequests(f"No slot came free for '{wish.model}' in {limit_s:g} s.{why}", retry_after_s=1)
        return outcome

    # ── what may serve somebody who waits ────────────────────────────────────────────────────────────────────────────

    def _changed(self) -> None:
        """Other models are served than before, or an endpoint may be tried again."""
        self.line.changed()

    def _woken(self) -> None:
        """Another process has given a slot back."""
        self.line.woken(time.monotonic())
        self._set_timer()

    def _time_passes(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.line.time_passes(time.monotonic())
        self._set_timer()

    def _set_timer(self) -> None:
        """For when the line is due. A timer that is set for earlier stays: it finds nothing to do, and is set again."""
        due = self.line.due
        if due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            delay_s = max(due - time.monotonic(), LEAST_WAIT_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._time_passes)

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────────────────────

    def succeeded(self, key: str, model: str, routing: Routing) -> None:
        """A request was answered: the endpoint works, and what it was about is warm there."""
        if endpoint := self.endpoints.get(key):
            if endpoint.succeeded(model, time.monotonic()):
                self._breakers.closed(endpoint, model)
            self.slots.remember(routing.affinity, key)

    def failed(self, key: str, model: str, error: APIError) -> None:
        """A request failed. What a backend refuses, or we did not even send, is no failure of its."""
        endpoint = self.endpoints.get(key)
        if endpoint is None:
            return
        now = time.monotonic()
        if isinstance(error, BackendRefused) and error.code != "model_not_found":
            endpoint.succeeded(model, now)
            return
        # A model that embeds has no path for a conversation, and embeds all the same.
        is_misused = error.code == "backend_path_not_found" and endpoint.outcomes["answered"] > 0
        # And a request that has come round in a loop would not have been sent there but for that.
        is_misused = is_misused or error.code == RouterLoop.code
        if is_misused or not isinstance(error, BackendError | TooManyRequests):
            endpoint.abandoned(model)
            return
        self.telemetry.counts["failures"] += 1
        endpoint.failed(model, error, now)
        if (until := endpoint.breaker(model).until) is not None:
            # Who waits may be served when it is let through again.
            asyncio.get_running_loop().call_later(until - now + LEAST_WAIT_S, self._changed)
            if until > now:
                self._breakers.opened(endpoint, model, until)
        if isinstance(error, BackendUnreachable | BackendRefused):
            self.endpoints.look_at(endpoint)  # It was there, and had the model, when it was last asked.

    def abandoned(self, key: str, model: str) -> None:
        """A request ended for reasons of the client's: nothing is learnt of the endpoint."""
        if endpoint := self.endpoints.get(key):
            endpoint.abandoned(model)

    def set_draining(self, endpoint: Endpoint, draining: bool) -> None:
        """Takes an endpoint out of the choice, or back into it with its failures forgiven."""
        log.info("endpoint %s is %s", endpoint.name, "draining" if draining else "enabled")
        endpoint.draining = draining
        if not draining:
            endpoint.forgive()
            self._changed()

    # ── trying again ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def max_retries(self) -> int:
        """How often a request may be tried again."""
        return self._config.retry.max

    def take_retry(self) -> bool:
        """Whether the budget has a retry left. It is taken then."""
        if not self.budget.take():
            return False
        self.telemetry.counts["retries"] += 1
        return True

    def fallbacks(self, model: str) -> Sequence[str]:
        """The models that may answer in place of this one."""
        return self._config.fallback_models.get(model, ())

    # ── who waits ────────────────────────────────────────────────────────────────────────────────────────────────────

    def longest_wait_s(self) -> float:
        """How long the first in the line has waited."""
        return time.monotonic() - min(place.since for place in self.line) if self.line else 0.0

    def first_waiting(self, count: int) -> list[dict[str, Any]]:
        """The first who wait for a slot: for which model, how many come before, and for how long already."""
        now = time.monotonic()
        return [
            {
                "model": place.wish.model,
                "position": self.line.position(place),
                "waited_s": round(now - place.since, 3),
            }
            for place in islice(self.line, count)
        ]


async def _admitted(routing: Routing) -> None:
    """Takes what a request is still to take of limits, without a slot. Raises `LimitReached`."""
    if (admission := routing.admission) is not None:
        routing.admission = None
        await admission.drawing.settled()
        admission.check(routing)


async def choose_endpoint(pool: Pool, model: str, routing: Routing | None = None) -> tuple[str, str]:
    """The key of the endpoint for `model` (its URL), with a slot taken, and the model's name there. Errors: as
    `Pool.choose`."""
    endpoint, name = await pool.choose(model, routing)
    return endpoint.key, name


async def look_up_endpoint(pool: Pool, model: str, routing: Routing) -> tuple[str, str]:
    """`choose_endpoint` for what takes no slot."""
    endpoint, name = await pool.look_up(model, routing)
    return endpoint.key, name


async def keep_usage(pool: Pool, key: str, model: str) -> None:
    """Where no slot was taken, none is given back."""


async def decrement_usage(pool: Pool, key: str, model: str) -> None:
    """Gives back the slot that `choose_endpoint` took."""
    pool.release(pool.endpoints[key], model)


def is_ext_openai_endpoint(pool: Pool, key: str) -> bool:
    """Whether the endpoint speaks the Responses API itself, so that requests go out as they came."""
    return pool.endpoints.kind(key).native


def _make_openai_client(pool: Pool, key: str) -> Any:
    """The pooled client of an endpoint: made once, at the start."""
    return pool.endpoints[key].client
