"""The other front doors of OpenAI's API, on the same pool: requests and answers go through byte by byte.

    POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank

Of a request only what chooses the endpoint is read, of an answer only what it used. Nothing is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http import Primed, cancelled_if_client_leaves, owner_of, read_body
from backends.failover import Attempt, Attempts
from backends.pool import Routing
from errors import APIError, InvalidRequest

routes = APIRouter(prefix="/v1", tags=["passed through"])

# What begins alike is warm where its like was: a system text and the first question mostly lie in here.
LEADING_BYTES = 1024
# The usage is the last thing that an answer says.
TAIL_BYTES = 4096


class Head(msgspec.Struct):
    """What of a request chooses its endpoint."""

    model: str
    prompt_cache_key: str | None = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()

    def affinity(self) -> list[str]:
        leading = bytes(self.messages or self.prompt)[:LEADING_BYTES]
        hashed = f"{self.model}:{hashlib.blake2b(leading, digest_size=8).hexdigest()}" if leading else ""
        return [name for name in (self.prompt_cache_key, hashed) if name]


class Used(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answered(msgspec.Struct):
    usage: Used | None = None


_head = msgspec.json.Decoder(Head)
_answered = msgspec.json.Decoder(Answered)


@routes.post("/chat/completions")
@routes.post("/completions")
@routes.post("/embeddings")
@routes.post("/rerank")
async def pass_through(request: Request) -> Response:
    """Passes a request on to an endpoint that serves its `model`, every parameter kept, and its answer back as it comes, streams
    too. Errors: 400 without a model, 404 `model_not_found`, 429, 502 and 504 for a backend's failures; an endpoint's own refusals
    keep their words."""
    state = request.app.state
    body = await read_body(request)
    head = head_of(body)
    path = request.url.path.removeprefix("/v1")
    routing = Routing(owner=owner_of(request), affinity=head.affinity(), path=path)
    passing = Passing(state.pool, head.model, body, routing)
    answer = Primed(passing.run())
    try:
        async with cancelled_if_client_leaves(request.receive):
            await answer.prime()
    except BaseException:
        await answer.aclose()
        raise
    return PassedOn(answer, passing)


def head_of(body: bytes) -> Head:
    """What a body says of where it wants to go. Raises `InvalidRequest`."""
    try:
        return _head.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid value for 'model': {error}.", param="model", code="invalid_value") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", code="invalid_json") from None


def with_model(body: bytes, model: str) -> bytes:
    """The body of a request, for another model. Raises `InvalidRequest`: half a surrogate pair is found only now."""
    try:
        return orjson.dumps(orjson.loads(body) | {"model": model})
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: {error}.", code="invalid_json") from None


class Passing:
    """One request on its way through. `run()` gives the answer as it comes; `content_type` is known with its first bytes."""

    def __init__(self, pool: Any, model: str, body: bytes, routing: Routing) -> None:
        self._pool = pool
        self._model = model
        self._body = body
        self._routing = routing
        self._tail = b""
        self.content_type = "application/json"

    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.content_type, **self._routing.headers()}

    async def run(self) -> AsyncGenerator[bytes]:
        async for attempt in Attempts(self._pool, self._model, self._routing):
            async with attempt, aclosing(self._answer(attempt)) as pieces:
                async for received in pieces:
                    attempt.begun = True
                    self._tail = (self._tail + received)[-TAIL_BYTES:]
                    yield received
        if used := self._used():
            self._pool.count_tokens(self._model, used.prompt_tokens, used.completion_tokens)

    def told(self, error: APIError) -> bytes | None:
        """An error in the middle of the answer, as its client reads one. None: only a connection that breaks says it."""
        if not self.content_type.startswith("text/event-stream"):
            return None
        return b"data: " + orjson.dumps({"error": error.to_dict()}) + b"\n\n"

    def _answer(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        return self._forwarded(attempt, self._routing.path)

    async def _forwarded(self, attempt: Attempt, path: str, *, below_root: bool = False) -> AsyncGenerator[bytes]:
        client = self._pool.endpoints[attempt.endpoint].client
        answer = await client.forward(path, self._named(attempt.model), below_root=below_root)
        self.content_type = answer.content_type
        async with aclosing(answer.pieces()) as pieces:
            async for received in pieces:
                yield received

    def _named(self, model: str) -> bytes:
        """The body, with the endpoint's own name of the model."""
        return self._body if model == self._model else with_model(self._body, model)

    def _used(self) -> Used | None:
        """What the end of the answer says of its tokens."""
        at = self._tail.rfind(b'"usage"')
        start = self._tail.find(b"{", at) if at >= 0 else -1
        end = self._tail.find(b"}", start)
        if start < 0 or end < 0:
            return None
        try:
            # Up to the first brace: the counts come before the details, or the details are cut and the counts with them.
            return _answered.decode(b'{"usage":' + _balanced(self._tail[start:]) + b"}").usage
        except msgspec.DecodeError:
            return None


def _balanced(data: bytes) -> bytes:
    """The object that `data` begins with."""
    depth = 0
    for at, byte in enumerate(data):
        depth += (byte == 0x7B) - (byte == 0x7D)
        if depth == 0:
            return data[: at + 1]
    return data


class PassedOn(Response):
    """An answer that goes to the client as it comes. It was begun (`primed`) by whoever made it, and is closed here."""

    def __init__(self, answer: Primed[bytes], passing: Passing) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **passing.headers()})
        del self.headers["content-length"]
        self._answer = answer
        self._passing = passing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._answer), cancelled_if_client_leaves(receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for received in self._answer:
                    await send({"type": "http.response.body", "body": received, "more_body": True})
            except APIError as error:
                told = self._passing.told(error)
                if told is None:
                    raise  # The server closes the connection: half a body must not look like a whole one.
                await send({"type": "http.response.body", "body": told, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
