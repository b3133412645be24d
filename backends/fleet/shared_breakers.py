"""Breakers that other processes know of: a server that hangs or is down is found out once, and not by each of them.

Each process has breakers of its own, and lets the others know when one opens, for how long, and when it closes.
What comes of the first try after the cool-down is what all know then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import blake2b

from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from cluster.protocol import SharedNotes

KIND = "breaker:"
CLOSED = "closed"


class SharedBreakers:
    """Those of `endpoints`. `on_change` is called when a request may be let through that was not before."""

    def __init__(self, notes: SharedNotes, endpoints: Endpoints, on_change: Callable[[], None]) -> None:
        self._notes = notes
        self._endpoints = endpoints
        self._on_change = on_change

    def open(self) -> None:
        """From now on what others find out is taken, and what they have found out before."""
        self._notes.listen(self._hear)

    def opened(self, endpoint: Endpoint, model: str, until: float) -> None:
        """A breaker here has opened, until a time of the monotonic clock."""
        shared = self._notes.now() + until - time.monotonic()
        self._notes.set(_name(endpoint, model), f"{shared:.3f}")

    def closed(self, endpoint: Endpoint, model: str) -> None:
        """A breaker here has closed."""
        self._notes.set(_name(endpoint, model), CLOSED)

    def _hear(self, name: str, text: str) -> None:
        if not name.startswith(KIND):
            return
        for endpoint in self._endpoints.values():
            for model in set(endpoint.models.values()):
                if _name(endpoint, model) == name:
                    self._take(endpoint, model, text)

    def _take(self, endpoint: Endpoint, model: str, text: str) -> None:
        if text == CLOSED:
            if (known := endpoint.breakers.get(model)) is not None:
                known.success()
                self._on_change()
            return
        left_s = float(text) - self._notes.now()
        if left_s > 0:
            endpoint.breaker(model).open_until(time.monotonic() + left_s)
            asyncio.get_running_loop().call_later(left_s, self._on_change)


def _name(endpoint: Endpoint, model: str) -> str:
    """Of the breaker of a model, by the server's own name: not the address, which may have a password in it."""
    return KIND + blake2b(f"{endpoint.url} {model}".encode(), digest_size=9).hexdigest()
