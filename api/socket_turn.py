"""A turn on a WebSocket: what of it leaves, in the order in which it was made, and what may happen to it on the way.

run_turn ──▶ write ──────────────┐
silence, cancel, steer ──▶ emit ─┴─▶ one queue ──▶ the socket
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.websockets import WebSocketDisconnect

from api.http.silence import Watched
from api.responses import begin_early
from api.steering import Steer
from api.turns.turn import Turn, TurnOut
from core.errors import ServerError
from core.state import AppState
from requests.open_items import Event

log = logging.getLogger("nomyo.websocket")

Message = dict[str, Any]

# So many events wait for a client that reads slowly, then its backend is not read from.
MOST_LEAVING = 256


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
        # Called with its last event, before that leaves.
        self.on_end: Callable[[Event], None] = lambda last: None
        self.on_begin: Callable[[], object] | None = None
        self._on_drained: Callable[[], None] | None = None
        self.message = message
        # Of the message as it came, while it waits.
        self.size = 0
        self.stream_id = stream_id
        self.turn: Turn | None = None
        self.is_cancelled = False
        self.steers: list[Steer] = []
        self.takes_up = list(takes_up)
        self.is_successor = bool(self.takes_up)
        self._send = send
        self._leaving: deque[Event] = deque()
        self._lock = asyncio.Lock()
        self._behind: list[Callable[[], Event]] = []
        self._asides: set[asyncio.Task[None]] = set()
        # The task that runs it: what it has written is sent by others.
        self._running: asyncio.Task[Any] | None = None
        self._is_whole = False
        self._was_interrupted = False
        self._silent = False

    async def answer(self, state: AppState, turn: Turn, run: Callable[[TurnOut], Awaitable[None]]) -> None:
        """Sends the events of a turn, which `run` writes here, and its end where it is cancelled. A silent one begins
        by itself, and is kept alive."""
        self.turn = turn
        turn.describes_itself = True
        self.watch(state.config.stream_start_s)
        try:
            await self._run(run)
            if self.is_cancelled and not self._is_whole:
                self.speak_first()
                self._leaving.append(await self._cancelled(state, turn))
            await self._leave()
        finally:
            self.stop()

    async def _run(self, run: Callable[[TurnOut], Awaitable[None]]) -> None:
        """Runs the turn, until it has ended or somebody cancels it."""
        task = self._running = asyncio.current_task()
        assert task is not None
        if self.is_cancelled:
            self.cancel()
        try:
            await run(self)
        except asyncio.CancelledError:
            if not self._was_interrupted or task.cancelling() > 1:
                raise
        finally:
            self._running = None
            if self._was_interrupted:  # Also where it came too late to hit anything.
                self._was_interrupted = False
                task.uncancel()

    def cancel(self) -> None:
        """Ends the turn where it is. Does nothing to one whose last event is on its way."""
        self.is_cancelled = True
        if self._running is not None and not self._was_interrupted:
            self._was_interrupted = True
            self._running.cancel()

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

    # ── what its turn writes ─────────────────────────────────────────────────────────────────────────────────────────

    def write(self, events: list[Event]) -> bool:
        """Sends events that were made just now, behind all that were made before."""
        if not self.has_begun:
            self.has_begun = True
            self.takes_up.clear()  # The successor has begun.
            if self.on_begin is not None:
                self.on_begin()
        self._send_aside(events)
        return len(self._leaving) < MOST_LEAVING

    def end(self, events: list[Event]) -> None:
        """Sends the last of them. Before it leaves: a client may continue at once, on another lane too."""
        self._is_whole = True
        self.on_end(events[-1])
        self.write(events)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Has `call` called once, as soon as the socket has taken what waits."""
        self._on_drained = call

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
            if (call := self._on_drained) is not None:
                self._on_drained = None
                call()

    # ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def was_silent(self) -> bool:
        was_silent, self._silent = self._silent, True
        return was_silent

    def speak_first(self) -> None:
        assert self.turn is not None
        if events := begin_early(self.turn):
            self.write(events)

    def keep_alive(self) -> None:
        if self.turn is not None:
            self._send_aside(self.turn.builder.keep_alive())
