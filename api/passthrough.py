"""The other front doors of OpenAI's API, on the same pool: requests and answers go through byte by byte.

    POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank

Of a request only what chooses the endpoint is read, of an answer only what it used. Nothing is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.bodies import read_body
from api.http.keys import principal_of
from api.http.leaving import ClientLeft, ClientWatch, Primed
from api.http.replies import Express, Outlet, StreamedReply, outlet_of
from api.http.routes import Routes, takes
from backends.fleet.failover import Attempt, Attempts
from backends.fleet.routing import Routing
from core.errors import APIError, BackendRefused, InvalidRequest, without_frames
from core.schemas import ANYTHING, FLAG, OBJECTS, TEXT, object_of
from core.state import AppState
from core.stopping import Stopping
from requests.bounded_json import BOM, LARGE, TooDeep, check_values
from requests.chat import DecodeError
from requests.members import with_model, without

log = logging.getLogger("nomyo.backends")

routes = Routes(prefix="/v1", tags=["passed through"])

# What begins alike is warm where its like was: a system text and the first question mostly lie in here.
LEADING_BYTES = 1024
# The usage is the last thing in an answer, or among the first: llama.cpp's before its embeddings.
END_BYTES = 4096
USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
# Our errors name the parameters of Responses.
PARAMS = {
    "reasoning.effort": "reasoning_effort",
    "max_output_tokens": "max_tokens",
    "text": "response_format",
    "text.verbosity": "verbosity",
}
# Of a body: what this router reads, and what a server cannot do without.
MODEL = {"model": TEXT}
LIST: dict[str, Any] = {"type": "array"}
INPUTS = {"/chat/completions": "messages", "/completions": "prompt"}


class Head(msgspec.Struct):
    """What of a request chooses its endpoint."""

    model: str
    prompt_cache_key: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    # For this router: no server is given it.
    nomyo: msgspec.Raw = msgspec.Raw()

    def affinity(self) -> list[str]:
        """What of the request may be warm at an endpoint, the surest first."""
        leading = memoryview(self.messages or self.prompt)[:LEADING_BYTES]
        hashed = f"{self.model}:{hashlib.blake2b(leading, digest_size=8).hexdigest()}" if leading else ""
        return [name for name in (self.prompt_cache_key, hashed) if name and isinstance(name, str)]


class Used(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


# What only goes on may hold so much more: the tokens of texts to embed.
PASSED_ON = 4

_head = msgspec.json.Decoder(Head)
_first_json = json.JSONDecoder()


@routes.post("/chat/completions", **takes(object_of(["model", "messages"], **MODEL, messages=OBJECTS, stream=FLAG)))
@routes.post("/completions", **takes(object_of(["model", "prompt"], **MODEL, prompt=ANYTHING, stream=FLAG)))
@routes.post("/embeddings", **takes(object_of(["model", "input"], **MODEL, input=ANYTHING)))
@routes.post("/rerank", **takes(object_of(["model", "query", "documents"], **MODEL, query=TEXT, documents=LIST)))
async def pass_through(request: Request) -> Response:
    """Passes a request on to an endpoint that serves its `model`, every parameter kept, and its answer back as it
    comes, streams too. Errors: 400 without a model, 404 `model_not_found`, 429, 502 and 504 for a backend's failures;
    an endpoint's own refusals keep their words."""
    state: AppState = request.app.state
    body = (await read_body(request)).removeprefix(BOM)
    if len(body) > LARGE:
        check_values(body, max_items=PASSED_ON * state.config.max_items)
    head = head_of(body)
    if head.nomyo:
        body = without(body, "nomyo")
    path = request.scope["path"].removeprefix("/v1")
    principal = principal_of(request)
    routing = Routing(principal=principal.id, affinity=head.affinity(), models=principal.models, path=path)
    passing = Passing(state.pool, head.model, body, routing)
    passing.ignores_nomyo = bool(head.nomyo)
    answer = Primed(passing.run())
    try:
        async with ClientWatch(request.scope, request.receive):
            await answer.prime()
    except BaseException as error:
        await answer.aclose()
        if isinstance(error, BackendRefused):
            error.param = (
                INPUTS.get(path, "input") if error.param == "input" else PARAMS.get(error.param or "", error.param)
            )
        raise
    return PassedOn(answer, passing)


SURROGATES = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def head_of(body: bytes) -> Head:
    """Where a body wants to go. Raises `InvalidRequest`."""
    try:
        # Half a surrogate pair is what is left of a text that was cut in the middle of an emoji. It is not ours to
        # refuse.
        return _head.decode(SURROGATES.sub(rb"\\ufffd", body) if b"\\ud" in body or b"\\uD" in body else body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid value for 'model': {error}.", param="model", code="invalid_value") from None
    except RecursionError:
        raise TooDeep from None
    except DecodeError as error:
        problem = f"is not JSON: {error}" if body.strip() else "is empty"
        raise InvalidRequest(f"The body {problem}.", code="invalid_json") from None


class Passing:
    """One request on its way through. `run()` gives the answer as it comes; `content_type` is known with its first
    bytes."""

    # Whether the request had a parameter that is for us, and that only responses have.
    ignores_nomyo = False

    def __init__(self, pool: Any, model: str, body: bytes, routing: Routing) -> None:
        self._pool = pool
        self._model = model
        self._body = body
        self._routing = routing
        self._start = self._tail = b""
        self.express = Express()
        self.content_type = "application/json"

    def headers(self) -> dict[str, str]:
        """What became of the request, as headers of its answer."""
        headers = {"Content-Type": self.content_type, **self._routing.headers()}
        if self.ignores_nomyo:
            headers["x-nomyo-ignored"] = "nomyo"
        return headers

    async def run(self) -> AsyncGenerator[bytes]:
        """The bytes of the answer, as they come. Raises `APIError` before the first."""
        async for attempt in Attempts(self._pool, self._model, self._routing):
            async with attempt, aclosing(self._answer(attempt)) as pieces:
                async for received in pieces:
                    attempt.begun = True
                    self._note(received)
                    yield received
        if used := self._used():
            model = self._pool.endpoints.counted_name(self._model, self._routing.model)
            self._pool.telemetry.count_tokens(model, used.prompt_tokens, used.completion_tokens)

    def _note(self, received: bytes) -> None:
        if len(self._start) < END_BYTES:
            self._start += received[: END_BYTES - len(self._start)]
        self._tail = (self._tail + received)[-END_BYTES:]

    def _take(self, received: bytes) -> bool:
        """Lets what arrives leave at once, where the client can be written to."""
        if (send := self.express.send) is None:
            return False
        self._note(received)
        if not send(received):
            self.express.close()
        return True

    def error_piece(self, error: APIError) -> bytes | None:
        """An error in the middle of the answer, as its client reads one. None: only a connection that breaks can show
        it."""
        if not self.content_type.startswith("text/event-stream"):
            return None
        # What broke off may be half a frame.
        end = b"" if self._tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        return end + b"data: " + orjson.dumps({"error": error.to_dict()}) + b"\n\n"

    def _answer(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        return self._forwarded(attempt, self._routing.path)

    async def _forwarded(self, attempt: Attempt, path: str, *, below_root: bool = False) -> AsyncGenerator[bytes]:
        client = self._pool.endpoints[attempt.endpoint].client
        answer = await client.forward(path, self._named(attempt.model), below_root=below_root)
        self.content_type = answer.content_type
        answer.shortcut(self._take)
        async with aclosing(answer.pieces()) as pieces:
            async for received in pieces:
                yield received

    def _named(self, model: str) -> bytes:
        """The body, with the endpoint's own name of the model."""
        return self._body if model == self._model else with_model(self._body, model)

    def _used(self) -> Used | None:
        """The tokens that the answer counts."""
        for part in (self._tail, self._start):
            for found in reversed(list(USAGE.finditer(part))):
                with contextlib.suppress(ValueError):  # msgspec's, too
                    used, _ = _first_json.raw_decode(part[found.end() :].decode("utf-8", "replace"))
                    return msgspec.convert(used, Used)
        return None


class PassedOn(StreamedReply):
    """An answer that goes to the client as it comes. It was begun (`primed`) by whoever made it, and is closed here."""

    def __init__(self, answer: Primed[bytes], passing: Passing) -> None:
        super().__init__(passing.headers())
        self._answer = answer
        self._passing = passing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._answer):
            with contextlib.suppress(ClientLeft):
                async with ClientWatch(scope, receive):
                    outlet = outlet_of(scope, send, self._passing.express, bytes)
                    await self._send_all(outlet, scope["app"].state.stopping)

    async def _send_all(self, outlet: Outlet, stopping: Stopping) -> None:
        await outlet.start(self.raw_headers)
        try:
            with stopping:
                async for received in self._answer:
                    await outlet.write(received)
        except APIError as error:
            without_frames(error)
            piece = self._passing.error_piece(error)
            if piece is None:
                log.warning("an answer that was passed on broke off: %s", error.code)
                return  # The server closes the connection: half a body must not look like a whole one.
            await outlet.write(piece)
        await outlet.end()
