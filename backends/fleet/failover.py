"""Trying elsewhere: a request that failed before its first byte goes to another endpoint.

    async for attempt in Attempts(pool, model, routing):
        async with attempt:                     # a slot is taken, and given back whatever happens
            …attempt.endpoint, attempt.model…
            attempt.begun = True                # from here on there is no second try

The loop ends after the first attempt that ends well. An attempt that failed is swallowed if there is a next one:
another endpoint of the model, else one of its `fallback_models`, else the same endpoint a moment later, if it only was
not ready. What no other endpoint can take gets the error it got first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import NoReturn, Self

from backends.fleet.pool import Pool, choose_endpoint, decrement_usage
from backends.fleet.routing import Routing
from core.errors import (
    APIError,
    BackendError,
    BackendRefused,
    BackendUnreachable,
    LimitReached,
    NotFound,
    TooManyRequests,
    without_frames,
)
from core.turn_record import Try

log = logging.getLogger("nomyo.backends")

# Before the tries at the one endpoint that there is, while it is not ready.
WAITS_S: tuple[float, ...] = (0.2, 0.5)
# A longer Retry-After is the client's to wait for.
LONGEST_WAIT_S = 2.0

Choose = Callable[[Pool, str, Routing], Awaitable[tuple[str, str]]]
Release = Callable[[Pool, str, str], Awaitable[None]]


class Attempts:
    """The attempts at one request. `choose` and `release` take and give back the slot."""

    _waits = WAITS_S
    _wait_s = 0.0
    _first_error: APIError | None = None
    _done = False

    def __init__(
        self,
        pool: Pool,
        model: str,
        routing: Routing,
        *,
        choose: Choose = choose_endpoint,
        release: Release = decrement_usage,
    ) -> None:
        self._pool = pool
        self._models = [model, *pool.fallbacks(model)]
        self._routing = routing
        self._choose = choose
        self._release = release

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        if self._done:
            raise StopAsyncIteration
        if self._wait_s:
            await asyncio.sleep(self._wait_s)
        while True:
            try:
                endpoint, model = await self._choose(self._pool, self._models[0], self._routing)
            except LimitReached:
                raise  # Whoever asks may not: no other model helps.
            except (NotFound, TooManyRequests, BackendUnreachable) as error:
                # Of a name that nobody serves the fallback is the only place there is, and its errors are of more use.
                unknown = isinstance(error, NotFound)
                if not self._next_model(must_be_well=not unknown):
                    self._raise_first(error)
                if not unknown:
                    self._first_error = self._first_error or without_frames(error)
            else:
                self._routing.asked_s = time.monotonic()
                self._pool.asked[self._routing] = None
                return Attempt(self, endpoint, model)

    async def finished(self, attempt: Attempt, error: BaseException | None) -> bool:
        """Gives the slot back. Whether `error` is swallowed, because there is a next attempt."""
        self._done = True
        routing = self._routing
        del self._pool.asked[routing]
        if error is None and attempt.was_asked:
            self._pool.succeeded(attempt.endpoint, attempt.model, routing)
        elif isinstance(error, APIError):
            self._pool.failed(attempt.endpoint, attempt.model, error)
        else:
            self._pool.abandoned(attempt.endpoint, attempt.model)
        await self._release(self._pool, attempt.endpoint, attempt.model)
        routing.slot_s += (ended_s := time.monotonic()) - routing.asked_s
        if error is not None or routing.tries:  # Of most requests the first is the only one.
            routing.tries.append(Try(routing.endpoint, routing.asked_s, ended_s, code_of(error) if error else ""))
        if attempt.begun or not isinstance(error, APIError) or not may_go_elsewhere(error):
            return False
        if self._plan(attempt.endpoint, error):
            self._done = False
            log.info("%s failed (%s), trying again", self._pool.endpoints.name(attempt.endpoint), error.code)
            self._first_error = self._first_error or without_frames(error)
            return True
        if self._first_error is not None:
            self._raise_first(error)
        return False

    def _raise_first(self, error: APIError) -> NoReturn:
        """Raises the first error that there was, or this one. None is kept: its frames will have what keeps it."""
        first, self._first_error = self._first_error or error, None
        try:
            raise first from None
        finally:
            del first, error

    def _plan(self, endpoint: str, error: APIError) -> bool:
        """Whether there is a next attempt, and where."""
        routing = self._routing
        routing.tried.add(endpoint)
        if routing.attempts > self._pool.max_retries:
            return False
        if self._pool.slots.has_other(self._models[0], routing) or self._next_model():
            self._wait_s = 0.0
            return self._pool.take_retry()
        asked_s = error.retry_after_s
        if asked_s is not None and asked_s > LONGEST_WAIT_S:
            return False
        # A server that is busy names the time to come back, or it is the client that knows; no wait brings money.
        is_busy = isinstance(error, TooManyRequests) and asked_s is not None and error.code != "insufficient_quota"
        is_soon = is_busy or isinstance(error, BackendUnreachable)
        if not is_soon or not self._waits:
            return False
        self._wait_s, self._waits = max(self._waits[0], asked_s or 0.0), self._waits[1:]
        routing.tried.clear()
        return self._pool.take_retry()

    def _next_model(self, *, must_be_well: bool = True) -> bool:
        """Goes on to the next fallback that somebody serves."""
        while len(self._models) > 1:
            del self._models[0]
            if self._pool.slots.has_other(self._models[0], self._routing, must_be_well=must_be_well):
                return True
        return False


class Attempt:
    """One attempt: the endpoint's key, and the model's name there. `begun`: the client has seen a part of the answer.
    `was_asked`: its success counts for the endpoint."""

    begun = False
    was_asked = True

    def __init__(self, attempts: Attempts, endpoint: str, model: str) -> None:
        self._attempts = attempts
        self.endpoint = endpoint
        self.model = model

    async def __aenter__(self) -> None:
        pass

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Awaitable[bool]:
        return self._attempts.finished(self, error)


def code_of(error: BaseException) -> str:
    """What an attempt has failed with, in a word."""
    return error.code or error.type if isinstance(error, APIError) else "cancelled"


def may_go_elsewhere(error: APIError) -> bool:
    """Whether another endpoint might answer what this one did not: not if it is the request that is at fault."""
    if isinstance(error, BackendRefused):
        return error.code in ("model_not_found", "not_supported")
    return isinstance(error, BackendError | TooManyRequests)
