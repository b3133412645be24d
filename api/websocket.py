"""GET /v1/responses as a WebSocket: each `response.create` message is a turn, and each event of it one message.

    lane "a"   turn ── turn ── turn     one after another
    lane "b"   turn ── turn             beside lane "a"

A lane is a `stream_id`, which its events echo; messages without one share a lane. What the store does not know, such as the
turns with `store: false`, the socket remembers, so that they can be continued on it. Specification: OpenAI's WebSocket mode
(openai-beta: responses_websockets=2026-02-06), Open Responses 2026-04-24.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from api.http.keys import principal_of
from api.http.routes import Routes
from api.responses import record, run_turn
from api.turns.turn import Turn, begin_turn
from core.errors import APIError, InvalidRequest, ServerError, TooLarge, TooManyRequests, UpgradeRefused
from core.json import encode_json
from core.state import AppState
from requests.bounded_json import decode_bounded
from requests.open_items import Event
from requests.tools import Item

log = logging.getLogger("nomyo.websocket")

routes = Routes(prefix="/v1/responses", tags=["responses"])

CONNECTION_LIMIT_S = 3600.0
# Turns of one socket: those that it can be continued from, and those that run or wait.
MAX_REMEMBERED = 32
MAX_UNANSWERED = 64
# These say how a message travels; `_read` has looked at those that it must not ignore.
ENVELOPE = frozenset({"type", "stream_id", "generate", "stream", "stream_options", "background"})


@routes.websocket("")
async def respond_over_websocket(websocket: WebSocket) -> None:
    """Takes `response.create` messages: the body of POST /v1/responses, and `stream_id`, `generate`. Answers each with the events
    of a stream, or with `{"type": "error", "status", "error"}`, after which the socket stays open."""
    if not websocket.app.state.config.websockets:
        raise UpgradeRefused
    if _is_foreign_page(websocket):
        raise ForeignPage
    await websocket.accept()
    socket = Socket(websocket)
    with contextlib.suppress(WebSocketDisconnect):
        try:
            async with asyncio.timeout(CONNECTION_LIMIT_S):
                await socket.serve()
        except TimeoutError:
            await socket.send(_error_message(ConnectionLimitReached()))
            await websocket.close()


def _is_foreign_page(websocket: WebSocket) -> bool:
    """Whether a page of another site asks. A browser lets any page open a WebSocket to this machine and read it; where no key
    is asked for, only the origin tells it from the user's own clients."""
    origin = websocket.headers.get("origin")
    if not origin or websocket.app.state.config.api_key:
        return False
    return urlsplit(origin).netloc != websocket.headers.get("host")


class ForeignPage(InvalidRequest):
    status = 403
    code = "foreign_origin"

    def __init__(self) -> None:
        super().__init__("A page of another site may use this router only with a key.")


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
        # A lane is here as long as it has a task, which answers what waits in it.
        self._lanes: dict[str | None, deque[dict[str, Any] | APIError]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._remembered: dict[str, list[Item]] = {}

    async def serve(self) -> None:
        """Takes messages until the client leaves. Its turns end with it."""
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                self._take(message.get("text") or message.get("bytes") or b"")
        finally:
            # First: a turn that is being recorded takes no cancellation, and its lane would go on with the next one.
            for waiting in self._lanes.values():
                waiting.clear()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send(self, event: Event, stream_id: str | None = None) -> None:
        if self._websocket.application_state is WebSocketState.DISCONNECTED:
            raise WebSocketDisconnect
        if stream_id is not None:
            event = {**event, "stream_id": stream_id}
        await self._websocket.send_text(encode_json(event).decode())

    def _take(self, data: str | bytes) -> None:
        """Puts a message into its lane. So is an error, which must not come between the events of a turn before it."""
        stream_id: str | None = None
        given: dict[str, Any] | APIError
        try:
            given = _decoded(data, self._state.config.max_body_mb)
            stream_id = _stream_id(given)
            if sum(1 + len(waiting) for waiting in self._lanes.values()) >= MAX_UNANSWERED:
                raise TooManyRequests(f"This connection has {MAX_UNANSWERED} turns that are not answered yet.")
        except APIError as error:
            given = error
        if stream_id in self._lanes:
            self._lanes[stream_id].append(given)
            return
        self._lanes[stream_id] = deque([given])
        task = asyncio.create_task(self._run_lane(stream_id), name="websocket lane")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_lane(self, stream_id: str | None) -> None:
        waiting = self._lanes[stream_id]
        with contextlib.suppress(WebSocketDisconnect):  # `serve` hears of it as well
            while waiting:
                await self._answer(waiting.popleft(), stream_id)
        del self._lanes[stream_id]

    async def _answer(self, given: dict[str, Any] | APIError, stream_id: str | None) -> None:
        try:
            if isinstance(given, APIError):
                raise given
            await self._run_turn(given, stream_id)
            return
        except APIError as error:
            described = error
        except WebSocketDisconnect:
            raise
        except Exception:
            log.exception("a message could not be answered")
            described = ServerError("The router failed to answer this request.")
        if isinstance(given, dict):
            self._forget(given.get("previous_response_id"))
        await self.send(_error_message(described), stream_id)

    async def _run_turn(self, message: dict[str, Any], stream_id: str | None) -> None:
        body, generate = _read(message)
        turn = await begin_turn(self._state, body, self._principal, self._remembered)
        parent = turn.request.params.previous_response_id
        # The store knows a chain only if it knows all of it.
        is_ours = not turn.request.stored or parent in self._remembered
        async with aclosing(run_turn(self._state, turn) if generate else _warmed_up(self._state, turn)) as batches:
            async for events in batches:
                # Before the last event leaves: a client may continue at once, on another lane too.
                if events[-1]["type"] == "response.failed":
                    self._forget(parent)
                elif is_ours and events[-1]["type"] in ("response.completed", "response.incomplete"):
                    self._remember(turn)
                for event in events:
                    await self.send(event, stream_id)

    def _remember(self, turn: Turn) -> None:
        self._remembered[turn.id] = [*turn.request.items, *turn.builder.response["output"]]
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _forget(self, response_id: Any) -> None:
        """After a failed continuation the client begins again, with the whole conversation."""
        if isinstance(response_id, str):
            self._remembered.pop(response_id, None)


async def _warmed_up(state: AppState, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The events of a turn that asks no backend: it is there to be continued."""
    events = turn.builder.begin() + turn.builder.finish()
    await record(state, turn)
    yield [*events, turn.builder.end()]


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _decoded(data: str | bytes, max_mb: float) -> dict[str, Any]:
    if len(data) > max_mb * 1024 * 1024:
        raise TooLarge(f"The message is larger than {max_mb:g} MB.")
    message = decode_bounded(data.encode() if isinstance(data, str) else data, "message")
    if not isinstance(message, dict):
        raise InvalidRequest("A message must be a JSON object.")
    return message


def _stream_id(message: dict[str, Any]) -> str | None:
    stream_id = message.get("stream_id")
    if stream_id is None:
        return None
    if not (isinstance(stream_id, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,256}", stream_id)):
        raise InvalidRequest(
            "A stream_id has 1 to 256 letters, digits, '_', '.' and '-'.", param="stream_id", code="invalid_value"
        )
    return stream_id


def _read(message: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The body of the turn that a message asks for, and whether the model shall answer."""
    if message.get("type") != "response.create":
        raise InvalidRequest("The type of a message is 'response.create'.", param="type", code="invalid_value")
    if message.get("background"):
        raise InvalidRequest("There are no background responses over a WebSocket.", param="background")
    generate = message.get("generate")
    if not isinstance(generate, bool | None):
        raise InvalidRequest("'generate' is true or false.", param="generate", code="invalid_value")
    body = {key: value for key, value in message.items() if key not in ENVELOPE}
    return {**body, "stream": True}, generate is not False


def _error_message(error: APIError) -> Event:
    return {"type": "error", "status": error.status, "error": error.to_dict()}
