"""A turn on a WebSocket: what of it leaves, in the order in which it was made, and what may happen to it on the way.

run_turn ──batches──▶ answered ──▶ send ─┐
silence, cancel, steer ──▶ emit ─────────┴─▶ one queue ──▶ the socket
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

from starlette.websockets import WebSocketDisconnect

from api.http.event_stream import LAST_EVENTS
from api.http.silence import Watched
from api.responses import begin_early
from api.steering import Steer
from api.turns.turn import Turn
from core.errors import ServerError
from core.state import AppState
from requests.open_items import Event

log = logging.getLogger("nomyo.websocket")

Message = dict[str, Any]


class SocketTurn(Watched):
    """What a message asks for, from its arrival on. `turn` is there as soon as it has begun; `steers` are what its
    client has added meanwhile, `takes_up` those of the turn before that it begins with."""

    def __init__(
        self,
        message: Message,
        stream_id: str | None,
        send: Callable[[Event], Awaitable[None]],
        takes_up: Iterable[Steer] = (),
    ) -> None:
        self.message = message
        # Of the message as it came, while it waits.
        self.size = 0
        self.stream_id = stream_id
        self.turn: Turn | None = None
        self.is_cancelled = False
        self.steers: list[Steer] = []
        self.takes_up = list(takes_up)
        self.is_successor = bool(self.takes_up)
        self._state: AppState | None = None
        self._send = send
        self._leaving: deque[Event] = deque()
        self._lock = asyncio.Lock()
        self._behind: list[Callable[[], Event]] = []
        self._asides: set[asyncio.Task[None]] = set()
        # The task, while it waits for the backend: not while it sends, so that no event is lost.
        self._waiting: asyncio.Task[Any] | None = None
        self._was_interrupted = False
        self._silent = False

    async def answered(
        self, state: AppState, turn: Turn, batches: AsyncGenerator[list[Event]]
    ) -> AsyncGenerator[list[Event]]:
        """The batches of a turn, and its end where it is cancelled. A silent one begins by itself, and is kept
        alive."""
        self._state, self.turn = state, turn
        turn.describes_itself = True
        self.watch(state.config.stream_start_s)
        is_whole = False
        try:
            async with aclosing(batches):
                while not self.is_cancelled and (events := await self._next(batches)):
                    self.has_begun = True
                    is_whole = events[-1]["type"] in LAST_EVENTS
                    yield events
            if self.is_cancelled and not is_whole:
                self.speak_first()
                yield [await self._cancelled(state, turn)]
        finally:
            self.stop()

    async def _next(self, batches: AsyncGenerator[list[Event]]) -> list[Event] | None:
        """The next batch; None where there is none any more, or somebody cancels the turn."""
        task = self._waiting = asyncio.current_task()
        assert task is not None
        try:
            return await anext(batches, None)
        except asyncio.CancelledError:
            if not self._was_interrupted or task.cancelling() > 1:
                raise
            return None
        finally:
            self._waiting = None
            if self._was_interrupted:  # Also where it came too late to hit anything.
                self._was_interrupted = False
                task.uncancel()

    def cancel(self) -> None:
        """Ends the turn where it is. Does nothing to one whose last event is on its way."""
        self.is_cancelled = True
        if self._waiting is not None:
            self._was_interrupted = True
            self._waiting.cancel()

    async def _cancelled(self, state: AppState, turn: Turn) -> Event:
        builder = turn.builder
        if not builder.ended:
            builder.cancel()
            turn.describe()
        if turn.row_begun:
            try:
                await state.db.update_response(turn.id, builder.response, owner=turn.owner)
            except ServerError:
                log.error("%s: its end could not be stored", turn.id)
        return builder.end()

    # ── what leaves ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def send(self, events: Iterable[Event]) -> None:
        """Sends events that were made just now, behind all that were made before."""
        self._leaving.extend(events)
        await self._leave()

    def emit(self, make: Callable[[], Event]) -> None:
        """Sends one more event. Where the last ones have their numbers already, and wait for the store, behind them."""
        if self.turn is not None and self.turn.builder.ended:
            self._behind.append(make)
        else:
            self._send_aside([make()])

    async def close(self) -> None:
        """Sends what had to wait for the end."""
        while self._behind:
            behind, self._behind = self._behind, []
            await self.send([make() for make in behind])
        self.stop()

    def _send_aside(self, events: Iterable[Event]) -> None:
        self._leaving.extend(events)
        if not self._lock.locked():
            task = asyncio.create_task(self._leave_aside(), name="websocket event")
            self._asides.add(task)
            task.add_done_callback(self._asides.discard)

    async def _leave_aside(self) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await self._leave()

    async def _leave(self) -> None:
        async with self._lock:
            while self._leaving:
                self._silent = False
                await self._send(self._leaving.popleft())

    # ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def was_silent(self) -> bool:
        was_silent, self._silent = self._silent, True
        return was_silent

    def speak_first(self) -> None:
        assert self._state is not None
        assert self.turn is not None
        if events := begin_early(self._state, self.turn):
            self.has_begun = True
            self._send_aside(events)

    def keep_alive(self) -> None:
        if self.turn is not None:
            self._send_aside(self.turn.builder.keep_alive())
