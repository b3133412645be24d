"""A front door as a value: another API's requests as Responses requests, and the events of the answer in its shape.

body ──door.read──▶ Responses request ──begin_turn──▶ run_turn ──events──▶ door.encode(…) ──bytes──▶ the client
                                          └─ by a server that speaks that API itself: bytes, as they come
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from api.http.keys import principal_of
from api.http.replies import StreamedReply
from api.responses import run_turn
from api.turns.turn import Turn, begin_turn
from backends.fleet.failover import Attempt
from backends.wire.relay import Relay
from core.errors import APIError
from core.json import Json
from core.state import AppState
from requests.emission import EMIT_EVENTS, EMIT_NOTHING
from requests.events import ResponseBuilder
from requests.members import with_model
from requests.open_items import Event
from requests.passing import PassedThrough
from requests.usage import Tokens

Asked = TypeVar("Asked")


class Encoder(Protocol):
    """One answer in the shape of a front door."""

    content_type: str

    def encode(self, events: list[Event]) -> bytes:
        """What leaves of some events: nothing, where the answer is one piece. Raises `BackendError` for what the shape
        cannot hold."""
        ...

    def end(self, builder: ResponseBuilder) -> bytes:
        """The last of it, and all where it is one piece."""
        ...

    def error(self, error: Json) -> bytes:
        """An error in the middle of it."""
        ...


class Door(NamedTuple, Generic[Asked]):
    """A front door over `run_turn`.

    `read` makes a Responses request of one that was parsed, or raises `InvalidRequest`. `encode` gives what encodes the
    answer to it, of a model, and `headers` what goes out with that. `error` puts an error about a model into the words
    of the door. `used` finds the tokens in an answer of a server that speaks this API itself."""

    read: Callable[[Asked], Json]
    encode: Callable[[Asked, str], Encoder]
    error: Callable[[APIError, str], APIError]
    headers: Callable[[Asked], dict[str, str]]
    used: Callable[[PassedThrough], Tokens | None]


async def answer_at(door: Door[Asked], request: Request, asked: Asked, given: Json, body: bytes) -> Response:
    """The answer to a request. `given` is what the turn gets besides what is read of it; `body` is what a server gets
    that speaks this API itself. Raises `APIError` in the words of the door."""
    state: AppState = request.app.state
    wanted = {**door.read(asked), **given}
    model = wanted["model"]
    try:
        emission = EMIT_EVENTS if wanted["stream"] else EMIT_NOTHING
        turn = await begin_turn(state, wanted, principal_of(request), emission=emission)
        reply = Encoded(request, turn, door.encode(asked, model), door.headers(asked))
        turn.asks_chats = True
        turn.passes_on = PassesOn(state, turn, reply, body, door.used).answer
        return await reply.answer(run_turn(state, turn, reply))
    except APIError as error:
        raise door.error(error, model) from error


class Encoded(StreamedReply):
    """The answer of a turn, in the shape of a front door; or `passed`, as a server gives it that speaks that itself."""

    sends_bytes = False

    def __init__(self, request: Request, turn: Turn, encoder: Encoder, headers: dict[str, str]) -> None:
        super().__init__(request)
        self._more_headers = headers
        self._turn = turn
        self._encoder = encoder
        self.content_type = self.usual_type = encoder.content_type
        self.path: str = request.scope["path"]
        self.passed: PassedThrough | None = None

    def headers_now(self) -> dict[str, str]:
        if self.passed is not None:
            self._turn.builder.first_s = time.monotonic()
        translated = self._more_headers if self.passed is None else {}
        return {"Content-Type": self.content_type, **self._turn.headers, **translated}

    def write(self, output: Any) -> bool:
        """Sends events in that shape; bytes as they are."""
        body = output if self.passed is not None else self._encoder.encode(output)
        return super().write(body) if body else True

    def end(self, output: Any = b"") -> None:
        """Sends the last of it."""
        error = next((event["error"] for event in output or () if event["type"] == "error"), None)
        if error is not None:
            # What a server broke off may have been half a line.
            is_cut = self.passed is not None and not self.passed.tail.endswith(b"\n")
            last = (b"\n" if is_cut else b"") + self._encoder.error(error)
        elif self.passed is not None:
            last = b""
        else:
            last = self._encoder.encode(output or []) + self._encoder.end(self._turn.builder)
        super().end(last)


class PassesOn(NamedTuple):
    """The answer of a server that speaks the API of the front door."""

    state: AppState
    turn: Turn
    reply: Encoded
    body: bytes
    used: Callable[[PassedThrough], Tokens | None]

    async def answer(self, attempt: Attempt) -> None:
        """Passes it on as it comes, to its end."""
        state, turn, reply = self.state, self.turn, self.reply
        asked = turn.request.model
        body = self.body if attempt.model == asked else with_model(self.body, attempt.model)
        stream = await state.pool.endpoints[attempt.endpoint].client.forward(reply.path, body, below_root=True)
        reply.content_type = stream.content_type
        feed = reply.passed = PassedThrough()
        try:
            await Relay(stream.answer, feed, reply).run()
        finally:
            attempt.begun = feed.begun
            if feed.begun:
                used = self.used(feed)
                turn.passed = used or feed.estimated(self.body, stream.content_type), used is None
            else:  # Somebody else may answer.
                reply.passed, reply.content_type = None, reply.usual_type
        turn.is_passed_on = True
