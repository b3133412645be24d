"""The slots of all endpoints: which one a request gets, if there is one for it. Choosing reads memory alone; the rules
are in choice.py."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

from backends.fleet.choice import Affinity, choose
from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from backends.fleet.routing import Routing
from cluster.protocol import Cluster

# How long a conversation's last endpoint is worth going back to: servers keep a prompt about as long.
WARM_S = 1800.0

# An endpoint of which a slot is taken, and the name of the model there.
Slot = tuple[Endpoint, str]


class Slots:
    """The slots of `endpoints`, in all processes of a `cluster`."""

    def __init__(self, endpoints: Endpoints, cluster: Cluster) -> None:
        self._endpoints = endpoints
        self._cluster = cluster
        self.affinity = Affinity(max_entries=10_000, max_age_s=WARM_S)

    def take(self, model: str, routing: Routing) -> Slot | None:
        """The best free slot for a request, taken; None if there is none. No other process takes it at the same time,
        or `InFlight.confirm` finds out that one did."""
        with self._cluster.exclusive():
            return self._take(model, routing)

    def _take(self, model: str, routing: Routing) -> Slot | None:
        serving = self._endpoints.serving(model, routing.models)
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
        endpoint = self._endpoints[chosen.endpoint]
        endpoint.take(chosen.model, now)
        return endpoint, chosen.model

    def look_up(self, model: str, routing: Routing) -> Slot | None:
        """Where a request may go that takes no slot, the best first; None if it may go nowhere."""
        now = time.monotonic()
        fit = [slot for slot in self._endpoints.serving(model, routing.models) if _may_take(slot[0], routing)]
        return min(fit, key=lambda slot: (not slot[0].candidate(slot[1], now).is_well, slot[0].busy), default=None)

    def give_back(self, endpoint: Endpoint, model: str) -> None:
        """A request to a model, by its name there, has ended."""
        endpoint.give_back(model)
        if endpoint.leaving:
            self._endpoints.forget_if_done(endpoint)

    def withdraw(self, slot: Slot) -> None:
        """No request is sent for a slot that was taken."""
        endpoint, name = slot
        endpoint.not_sent(name)
        if endpoint.leaving:
            self._endpoints.forget_if_done(endpoint)

    def warm_elsewhere(self, slot: Slot, model: str, routing: Routing) -> list[Slot]:
        """Where else a request might go, where another process may know that what it is about is warm there."""
        if not routing.affinity or len(self._endpoints) < 2:
            return []
        now = time.monotonic()
        if self.affinity.get(routing.affinity[0], now) is not None:
            return []
        chosen, _ = slot
        return [
            (endpoint, name)
            for endpoint, name in self._endpoints.serving(model, routing.models)
            if endpoint is not chosen
            and endpoint.config.priority == chosen.config.priority
            and _may_take(endpoint, routing)
            and endpoint.candidate(name, now).is_well
        ]

    def move(self, slot: Slot, to: Slot) -> None:
        """What was to be sent to one endpoint goes to another, where the cluster has counted it."""
        (endpoint, name), (other, other_name) = slot, to
        endpoint.moved_away(name)
        other.moved_here(other_name, time.monotonic())
        if endpoint.leaving:
            self._endpoints.forget_if_done(endpoint)

    def remember(self, affinity: Iterable[str], key: str) -> None:
        """What is warm at an endpoint."""
        self.affinity.put_all(affinity, key, time.monotonic())
        if not self._cluster.is_exact and len(self._endpoints) > 1 and (endpoint := self._endpoints.get(key)):
            self._cluster.remember(affinity, endpoint.running)

    def has_other(self, model: str, routing: Routing, *, must_be_well: bool = True) -> bool:
        """Whether an endpoint that was not tried yet serves the model, and, if it must, is not known to be down."""
        now = time.monotonic()
        return any(
            _may_take(endpoint, routing) and (not must_be_well or endpoint.candidate(name, now).is_well)
            for endpoint, name in self._endpoints.serving(model, routing.models)
        )


def _may_take(endpoint: Endpoint, routing: Routing) -> bool:
    """Whether a request may be sent to an endpoint at all."""
    if endpoint.draining or (routing.path and routing.path in endpoint.kind.lacks):
        return False
    return endpoint.key not in routing.tried and endpoint.key not in routing.unfit
