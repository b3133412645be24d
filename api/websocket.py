"""GET /v1/responses as a WebSocket: each `response.create` message is a turn, and each event of it one message.
`response.cancel` ends a turn that runs, `response.steer` adds to one (`api/steering.py`).

    lane "a"   turn ── turn ── turn     one after another
    lane "b"   turn ── turn             beside lane "a"

A lane is a `stream_id`, which its events echo; messages without one share a lane. What the store does not know, such as
the turns with `store: false`, the socket remembers, so that they can be continued on it. Specification: OpenAI's
WebSocket mode (openai-beta: responses_websockets=2026-02-06), Open Responses 2026-04-24.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from api.http.keys import check_key, principal_of
from api.http.routes import Routes
from api.responses import record, run_turn
from api.socket_messages import decoded, error_message, input_behind, read_create, stream_id_of
from api.socket_turn import SocketTurn
from api.steering import MAX_PENDING, Steer, can_be_steered, refused, required_input, steering_items
from api.turns.turn import Turn, TurnOut, begin_turn
from core.errors import (
    APIError,
    Interrupted,
    InvalidRequest,
    ServerError,
    TooManyRequests,
    UpgradeRefused,
    without_frames,
)
from core.json import encode_json
from core.request_context import HEADER, current_request, set_request, within
from core.state import AppState
from core.stopping import Stopping
from requests.emission import EMIT_EVENTS
from requests.hidden import reveal
from requests.open_items import Event
from requests.responses import new_id
from requests.tools import Item

log = logging.getLogger("nomyo.websocket")

routes = Routes(prefix="/v1/responses", tags=["responses"])

CONNECTION_LIMIT_S = 3600.0
# Of a close: the service restarts.
GOING_AWAY = 1012
# Turns of one socket: those that it can be continued from, and those that run or wait.
MAX_REMEMBERED = 32
MAX_UNANSWERED = 64
MAX_WAITING_SIZE = 16 * 1024 * 1024


@routes.websocket("")
async def respond_over_websocket(websocket: WebSocket) -> None:
    """Takes `response.create` messages: the body of POST /v1/responses, and `stream_id`, `generate`. Answers each with
    the events of a stream, or with `{"type": "error", "status", "error"}`, after which the socket stays open."""
    if not websocket.app.state.config.websockets:
        raise UpgradeRefused
    context = current_request()
    await websocket.accept(headers=[(HEADER, context.id)] if context is not None else None)
    socket = Socket(websocket)
    stopping: Stopping = websocket.app.state.stopping
    with contextlib.suppress(WebSocketDisconnect):
        try:
            async with asyncio.timeout(CONNECTION_LIMIT_S):
                await socket.serve()
        except asyncio.CancelledError:
            if not (stopping.has_begun and socket.is_stopped):
                raise
            await websocket.close(GOING_AWAY)
        except TimeoutError:
            await socket.send(error_message(ConnectionLimitReached()))
            await websocket.close()


class ConnectionLimitReached(InvalidRequest):
    code = "websocket_connection_limit_reached"

    def __init__(self) -> None:
        super().__init__(f"A connection may last {CONNECTION_LIMIT_S / 60:g} minutes: open a new one to go on.")


class Socket:
    """One connection: its lanes, and the turns that nobody else knows."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._state = websocket.app.state
        self._principal = principal_of(websocket)
        self._context = current_request()
        # A lane is here as long as it has a task, which answers what waits in it.
        # An error waits as its message: as an exception it would hold what it is about.
        self._lanes: dict[str | None, deque[SocketTurn | Event]] = {}
        # Those that run, and the words that wait for what their clients' tools give, by the id of the response.
        self._running: dict[str | None, SocketTurn] = {}
        self._waiting: dict[str, list[Steer]] = {}
        self._ended: deque[str] = deque(maxlen=MAX_REMEMBERED)
        self._tasks: set[asyncio.Task[None]] = set()
        # Its own task, which the stop of the service has ended where it `is_stopped`.
        self._server: asyncio.Task[None] | None = None
        self.is_stopped = False
        self._remembered: dict[str, list[Item]] = {}

    async def serve(self) -> None:
        """Takes messages until the client leaves, or the service stops. Its turns end with it."""
        task = self._server = asyncio.current_task()
        assert task is not None
        listeners = self._state.stopping.listeners
        listeners.add(self._stop_if_idle)
        self._state.telemetry.sockets += 1
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                self._take(message.get("text") or message.get("bytes") or b"")
                if sum(map(len, self._lanes.values())) >= 2 * MAX_UNANSWERED:
                    await self._websocket.close(1008, f"More than {MAX_UNANSWERED} messages wait, and more come.")
                    return
        except asyncio.CancelledError:
            if self.is_stopped or self._state.stopping.is_over:
                self.is_stopped = True
                task.uncancel()
            raise
        finally:
            self._state.telemetry.sockets -= 1
            listeners.discard(self._stop_if_idle)
            # First: a turn that is being recorded takes no cancellation, and its lane would go on with the next one.
            for waiting in self._lanes.values():
                waiting.clear()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send(self, event: Event, stream_id: str | None = None) -> None:
        """Sends an event as one message. Raises `WebSocketDisconnect` if the client is gone."""
        if self._websocket.application_state is WebSocketState.DISCONNECTED:
            raise WebSocketDisconnect
        if stream_id is not None:
            event = {**event, "stream_id": stream_id}
        await self._websocket.send_text(encode_json(event).decode())

    def _take(self, data: str | bytes) -> None:
        """Puts a message into its lane. So is an error, which must not come between the events of a turn before it."""
        stream_id: str | None = None
        given: SocketTurn | Event
        try:
            config = self._state.config
            message = decoded(data, config.max_body_mb, config.max_items)
            stream_id = stream_id_of(message)
            # A key may end while its socket is open, and what it may use may change.
            check_key(self._state, self._websocket.scope)
            self._principal = principal_of(self._websocket)
            kind = message.get("type")
            if isinstance(kind, str) and (act := MESSAGES.get(kind)):
                act(self, message)
                return
            given = turn = SocketTurn(message, stream_id, partial(self.send, stream_id=stream_id))
            turn.size = len(data) if stream_id in self._lanes else 0  # Else it begins at once.
            if self._state.stopping.has_begun:
                raise Interrupted
            if self._unanswered() >= MAX_UNANSWERED:
                raise TooManyRequests(f"This connection has {MAX_UNANSWERED} turns that are not answered yet.")
            if stream_id in self._lanes and self._waiting_size() + turn.size > MAX_WAITING_SIZE:
                raise TooManyRequests(
                    f"Messages of {MAX_WAITING_SIZE // 1024 // 1024} MB are not answered yet on this connection."
                )
        except APIError as error:
            given = error_message(error)
        if stream_id in self._lanes:
            self._lanes[stream_id].append(given)
            return
        self._lanes[stream_id] = deque([given])
        task = asyncio.create_task(self._run_lane(stream_id), name="websocket lane")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _unanswered(self) -> int:
        return sum(1 + len(waiting) for waiting in self._lanes.values())

    def _waiting_size(self) -> int:
        return sum(one.size for waiting in self._lanes.values() for one in waiting if isinstance(one, SocketTurn))

    async def _run_lane(self, stream_id: str | None) -> None:
        waiting = self._lanes[stream_id]
        with contextlib.suppress(WebSocketDisconnect):  # `serve` hears of it as well
            while waiting:
                await self._answer(waiting.popleft(), stream_id)
        del self._lanes[stream_id]
        if self._state.stopping.has_begun:
            self._stop_if_idle()

    def _stop_if_idle(self) -> None:
        """The service stops: a turn that runs gets time to end, and no other one begins."""
        if not self._lanes and self._server is not None and not self.is_stopped:
            self.is_stopped = True
            self._server.cancel()

    async def _answer(self, given: SocketTurn | Event, stream_id: str | None) -> None:
        if not isinstance(given, SocketTurn):
            await self.send(given, stream_id)
            return
        try:
            self._running[stream_id] = given
            try:
                await self._run_turn(given)
            finally:
                del self._running[stream_id]
            return
        except APIError as error:
            described = without_frames(error)
        except WebSocketDisconnect:
            raise
        except Exception:
            log.exception("a message could not be answered")
            described = ServerError("The router failed to answer this request.")
        self._forget(given.message.get("previous_response_id"))
        for steer in given.takes_up:
            failed = steer.failed("successor_creation_failed", described.message)
            await self.send(failed, stream_id)
        if not given.is_successor:
            await self.send(error_message(described), stream_id)

    async def _run_turn(self, running: SocketTurn) -> None:
        body, generate = read_create(running.message)
        parent = body.get("previous_response_id")
        if isinstance(parent, str) and (steers := self._waiting.pop(parent, None)):
            running.takes_up += steers
            body["input"] = input_behind([item for steer in steers for item in steer.items], body.get("input"))
        context = within(self._context, "websocket")
        if self._state.tracer is not None:
            self._state.tracer.begin(context)
        set_request(context)
        turn = await begin_turn(self._state, body, self._principal, self._remembered, EMIT_EVENTS)
        # The store knows a chain only if it knows all of it.
        is_ours = not turn.request.stored or parent in self._remembered
        running.on_end = partial(self._note_end, turn, parent, is_ours)
        await running.answer(self._state, turn, partial(run_turn if generate else _warm_up, self._state, turn))
        self._ended.append(turn.id)
        await running.close()
        await self._take_up(running, turn)

    def _note_end(self, turn: Turn, parent: Any, is_ours: bool, last: Event) -> None:
        """What is known of a conversation when its last turn has ended."""
        if last["type"] == "response.failed":
            self._forget(parent)
        elif is_ours:
            self._remember(turn)

    def _cancel(self, message: dict[str, Any]) -> None:
        """Ends the turn that a message means: by its response, by its lane, or the only one that runs."""
        response_id, stream_id = message.get("response_id"), message.get("stream_id")
        meant = [
            running
            for running in self._next_turns()
            if (stream_id is None or running.stream_id == stream_id)
            and (response_id is None or (running.turn is not None and running.turn.id == response_id))
        ]
        if not meant:
            raise InvalidRequest("No such response runs on this connection.", param="response_id", code="not_active")
        if len(meant) > 1:
            raise InvalidRequest("Several responses run: name one.", param="response_id", code="invalid_value")
        meant[0].cancel()

    def _next_turns(self) -> Iterator[SocketTurn]:
        """Of each lane the turn that runs, or is about to."""
        for stream_id, waiting in self._lanes.items():
            running = self._running.get(stream_id) or (waiting[0] if waiting else None)
            if isinstance(running, SocketTurn):
                yield running

    # ── steering ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _steer(self, message: dict[str, Any]) -> None:
        """Takes words for a response that runs, or replies why not."""
        response_id = message.get("previous_response_id")
        for running in self._running.values():
            if running.turn is not None and running.turn.id == response_id:
                break
        else:
            known = isinstance(response_id, str) and (response_id in self._ended or response_id in self._remembered)
            code = "response_already_completed" if known else "response_not_found"
            self._send_later(refused(message, code, "No such response runs on this connection."))
            return
        builder = running.turn.builder
        code = why = ""
        items: list[Item] = []
        try:
            items = steering_items(message)
        except APIError as error:
            code, why = "invalid_input", error.message
        if not can_be_steered(running.turn.request):
            code, why = "steering_not_supported", "A turn that shortens its conversation cannot be steered."
        elif builder.ended:
            code, why = "response_already_completed", "The response has ended."
        elif running.is_cancelled:
            code, why = "response_not_active", "The response was cancelled."
        elif len(running.steers) >= MAX_PENDING:
            code, why = "too_many_pending_steers", f"No more than {MAX_PENDING} wait for a response."
        if code:
            running.emit(partial(refused, message, code, why, builder))
            return
        steer = Steer(new_id("steer"), running.turn.id, message["input"], items, builder)
        running.steers.append(steer)
        running.emit(steer.accepted)

    def _send_later(self, event: Event) -> None:
        task = asyncio.create_task(self._send_unless_left(event), name="websocket event")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_unless_left(self, event: Event) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await self.send(event)

    async def _take_up(self, running: SocketTurn, turn: Turn) -> None:
        """What becomes of the words for a response, now that it has ended."""
        if not (steers := running.steers):
            return
        response = turn.builder.response
        if response["status"] in ("failed", "cancelled"):
            await running.send([steer.failed("response_not_active", "The response has failed.") for steer in steers])
        elif required := required_input(response["output"]):
            await running.send([steer.pending(required) for steer in steers])
            self._waiting[turn.id] = steers
            if len(self._waiting) > MAX_REMEMBERED:
                forgotten = self._waiting.pop(next(iter(self._waiting)))
                why = "Too many responses wait for their tools."
                await running.send([steer.failed("successor_creation_failed", why) for steer in forgotten])
        else:
            items = [item for steer in steers for item in steer.items]
            message = {**running.message, "previous_response_id": turn.id, "input": items, "generate": True}
            send = partial(self.send, stream_id=running.stream_id)
            successor = SocketTurn(message, running.stream_id, send, steers)
            self._lanes[running.stream_id].appendleft(successor)

    def _remember(self, turn: Turn) -> None:
        self._remembered[turn.id] = [*turn.request.items, *reveal(turn.builder.response["output"])]
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _forget(self, response_id: Any) -> None:
        """After a failed continuation the client begins again, with the whole conversation."""
        if isinstance(response_id, str):
            self._remembered.pop(response_id, None)


# What a message asks for that is no new turn, by its type.
MESSAGES: dict[str, Callable[[Socket, dict[str, Any]], None]] = {
    "response.cancel": Socket._cancel,
    "response.steer": Socket._steer,
}


async def _warm_up(state: AppState, turn: Turn, out: TurnOut) -> None:
    """Runs a turn that asks no backend: it is there to be continued."""
    events = turn.builder.begin() + turn.builder.finish()
    await record(state, turn)
    out.end([*events, turn.builder.end()])
