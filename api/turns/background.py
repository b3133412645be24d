"""A turn that runs without a client, and everybody who follows it.

begin ──▶ queued ──▶ run ──▶ completed | incomplete | failed
             └─ stop ─┴─▶ cancelled | failed | as it was, to run again after the next start
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING

from api.http.silence import KEEPALIVE_S
from api.turns.turn import Turn, settle_turn
from core.errors import APIError, Interrupted, ServerError, TakenOver
from core.request_context import set_request, within

if TYPE_CHECKING:
    from api.turns.turn import TurnOut
    from cluster.protocol import EventWriter
    from core.state import AppState
    from requests.open_items import Event

log = logging.getLogger("nomyo.background")

# Events that a queue of some hours gives.
MOST_WAITED = 4096


class Background:
    """A background turn as a job of the task runner (`tasks.Job`). Its events are kept while it runs, so that a client
    can join at any moment and from any event on; those of a stream are stored at the end, to be the same for ever."""

    def __init__(
        self, turn: Turn, state: AppState, run: Callable[[TurnOut], Awaitable[None]], *, is_again: bool = False
    ) -> None:
        """`run` writes its events here. `is_again`: another process has begun it, so that the store knows more than
        this one."""
        turn.describes_itself = True  # Whoever reads its response has seen no headers of it.
        turn.context = within(turn.context, "background")
        self._turn = turn
        self._state = state
        self._db = state.db
        self._run = run
        self._is_again = is_again
        # Whoever reads a stream here has it from here.
        self._may_move = state.db.moves_turns and not turn.request.stream
        self._reruns = state.config.background.rerun
        self._events: list[Event] = []
        self._shared = state.cluster.events
        # For readers in other processes, where there can be any.
        self._writer: EventWriter | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._heard = 0
        self._ended = False
        # Whether another process goes on with it.
        self.is_taken_over = False
        self._more = asyncio.Event()

    # Its first event is there before it runs.
    has_begun = True
    on_begin: Callable[[], object] | None = None

    @property
    def id(self) -> str:
        """That of its response."""
        return self._turn.id

    @property
    def priority(self) -> int:
        """That of the key that asked for it: a lower one goes first."""
        return self._turn.request.principal.priority

    @property
    def owner(self) -> str:
        """Whose it is."""
        return self._turn.owner

    def begin(self) -> None:
        """Makes the first event, of a response that is queued."""
        builder = self._turn.builder
        first = builder.start()
        if self._events:
            # Another process has made it. What comes now has higher numbers than all that anybody has seen.
            while builder.sequence_number <= self._events[-1]["sequence_number"]:
                builder.keep_alive()
            first = []
        self._add(first)

    def share(self) -> None:
        """From now on readers in other processes have its events too. For one that was accepted, and so comes to an
        end."""
        if self._turn.request.stream and (writer := self._shared.writer(self.id, self._events)):
            self._writer = writer
            writer.added()
            self._heard = -1
            self._break_silence()

    async def recall(self) -> None:
        """Begins with the events that another process has made of it, where they are kept."""
        after = -1
        while self._turn.request.stream and (events := await self._shared.read(self.id, after)):
            self._events += events
            after = events[-1]["sequence_number"]

    async def run(self) -> None:
        """Runs the turn to its end, and keeps its events."""
        set_request(self._turn.context)  # It is run by whoever has room.
        if self._is_again and not await self._is_wanted():
            self._turn.builder.cancel()
            self._settle()
            self._add([self._turn.builder.end()])
            self._leave()
            return
        progress = self._turn.builder.progress()
        begun = self._db.update_response(self.id, self._turn.builder.response, owner=self.owner)
        if self._may_move:
            try:
                await begun
            except TakenOver:
                self._settle()
                self._hand_over()
                return
            except ServerError:
                pass  # It is refused when it ends, if it is not mended until then.
        self._add(progress)
        try:
            await self._run(self)
        except TakenOver:
            self._hand_over()
            return
        await self._end()

    def write(self, events: list[Event]) -> bool:
        """Keeps events, for whoever follows."""
        self._add(events)
        return True

    def end(self, events: list[Event]) -> None:
        """Keeps the last of them."""
        self._add(events)

    def when_drained(self, call: Callable[[], None]) -> None:
        """It is never full."""

    async def stop(self, reason: APIError | None) -> None:
        """Ends the turn: as failed with `reason`, or as cancelled. Does nothing to one that has ended."""
        builder = self._turn.builder
        if self._ended:
            return
        if isinstance(reason, Interrupted) and not builder.ended and self._runs_again():
            self._settle()
            self._leave()
            return
        if not builder.ended:
            if reason is None:
                builder.cancel()
            else:
                self._add(builder.fail(reason))
            self._turn.describe()
            self._settle()
            try:
                await self._db.update_response(self.id, builder.response, owner=self.owner)
            except TakenOver:
                self._hand_over()
                return
            except ServerError:
                log.error("%s: its end could not be stored", self.id)
        self._add([builder.end()])
        await self._end()

    async def follow(self, after: int = -1) -> AsyncGenerator[list[Event]]:
        """The events with a `sequence_number` above `after`, to the last: those there are at once, the others as they
        come."""
        position = 0
        self._number_behind(after)
        while True:
            more, ended = self._more, self._ended
            events = [event for event in self._events[position:] if event["sequence_number"] > after]
            position = len(self._events)
            if events:
                yield events
            if ended:
                return
            if position == len(self._events):
                await more.wait()

    def still_here(self) -> list[Event]:
        """For who follows and hears nothing: a `keepalive` event, which all who follow get as they get the others.
        Gives none itself."""
        if not (self._ended or self._turn.builder.ended):
            self._add(self._turn.builder.keep_alive())
        return []

    def _settle(self) -> None:
        """Counts what it has used, where it does not come to its end by itself."""
        settle_turn(self._state, self._turn)
        self._state.usage.flush()

    async def _is_wanted(self) -> bool:
        """Whether nobody has cancelled or deleted it, while no process knew that it waits."""
        row = await self._db.get_response(self.id, owner=self.owner)
        return row is not None and row["status"] in ("queued", "in_progress")

    def _number_behind(self, after: int) -> None:
        """Whoever followed it in another process has events of its waiting that are unknown here: what comes must have
        higher numbers."""
        builder = self._turn.builder
        if self._is_again and builder.response["status"] == "queued" and after - builder.sequence_number < MOST_WAITED:
            while builder.sequence_number <= after:
                self._add(builder.keep_alive())

    def _runs_again(self) -> bool:
        """Whether the next start runs it, so that its row stays as it is."""
        return self._reruns or self._turn.builder.response["status"] == "queued"

    def _hand_over(self) -> None:
        """Another process has it, and whoever follows it here finds the rest there."""
        self.is_taken_over = True
        self._leave()

    def _leave(self, *, is_stored: bool = False) -> None:
        """Whoever follows it here has heard all there is."""
        self._ended = True
        if self._silence is not None:
            self._silence.cancel()
        if self._writer is not None:
            self._writer.close(is_stored=is_stored)
        self._wake()

    def _add(self, events: list[Event]) -> None:
        self._events += events
        if self._writer is not None:
            self._writer.added()
        self._wake()

    async def _end(self) -> None:
        is_stored = False
        try:
            if self._turn.request.stream:
                await self._db.store_events(self.id, self._events, owner=self.owner)
                is_stored = True
        finally:
            self._leave(is_stored=is_stored)

    def _break_silence(self) -> None:
        """Who follows it in another process cannot ask for a `keepalive`: there is one now and then."""
        if self._heard == len(self._events):
            self.still_here()
        self._heard = len(self._events)
        self._silence = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._break_silence)

    def _wake(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()
