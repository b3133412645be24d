"""The other front doors of OpenAI's API, on the same pool: requests and answers go through byte by byte.

    POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank

Of a request only what chooses the endpoint is read, of an answer only what it used. Nothing is stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_body
from api.http.keys import principal_of
from api.http.replies import StreamedReply
from api.http.routes import Routes, takes
from api.turns.tally import admit, routing_of, settle
from api.turns.turn import LONGEST_KEY
from backends.fleet.failover import Attempt, Attempts
from backends.fleet.routing import Routing
from backends.wire.relay import Relay
from core.errors import APIError, BackendRefused, InvalidRequest
from core.json import decode_json
from core.keys import UNLIMITED
from core.request_context import RequestContext, current_request
from core.schemas import ANYTHING, FLAG, OBJECTS, TEXT, object_of
from core.state import AppState
from core.turn_record import TurnRecord
from requests.bounded_json import BOM, LARGE, TooDeep, check_values
from requests.chat import DecodeError
from requests.members import with_model, without
from requests.passing import PassedThrough
from requests.tokens import body_tokens
from requests.usage import Tokens

log = logging.getLogger("nomyo.backends")

routes = Routes(prefix="/v1", tags=["passed through"])

# What begins alike is warm where its like was: a system text and the first question mostly lie in here.
LEADING_BYTES = 1024
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
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    # For this router: no server is given it.
    nomyo: msgspec.Raw = msgspec.Raw()

    def answers(self) -> int:
        """How many are asked for: `n` to each prompt; none where vectors or scores are."""
        if not (self.messages or self.prompt):
            return 0
        prompts = 1
        if self.prompt:
            given = decode_json(self.prompt)
            # A list of numbers is one prompt, as tokens.
            if isinstance(given, list) and not all(isinstance(one, int) for one in given):
                prompts = len(given)
        is_count = isinstance(self.n, int) and not isinstance(self.n, bool) and self.n > 0
        return prompts * (self.n if is_count else 1)

    def affinity(self, owner: str) -> list[str]:
        """What of the request may be warm at an endpoint, the surest first; the words of its client are the owner's."""
        leading = memoryview(self.messages or self.prompt)[:LEADING_BYTES]
        hashed = f"{self.model}:{hashlib.blake2b(leading, digest_size=8).hexdigest()}" if leading else ""
        key = self.prompt_cache_key
        given = f"{owner} {key[:LONGEST_KEY]}" if key and isinstance(key, str) else ""
        return [name for name in (given, hashed) if name]


# The answers that come piece by piece.
STREAMS = ("text/event-stream", "application/x-ndjson")
# What only goes on may hold so much more: the tokens of texts to embed.
PASSED_ON = 4

_head = msgspec.json.Decoder(Head)


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
    principal = principal_of(request)
    if principal.models is not None:
        check_names(body, ["model"])
    head = head_of(body)
    if head.nomyo:
        body = without(body, "nomyo")
    path = request.scope["path"].removeprefix("/v1")
    routing = routing_of(principal, head.affinity(principal.owner), path)
    passing = Passing(request, head, body, routing)
    passing.ignores_nomyo = bool(head.nomyo)
    try:
        return await passing.answer(passing.run(path))
    except BackendRefused as error:
        error.param = (
            INPUTS.get(path, "input") if error.param == "input" else PARAMS.get(error.param or "", error.param)
        )
        raise


# A letter of a name that is spelled as a number.
SPELLED = re.compile(rb"\\u00[4-7]", re.IGNORECASE)


def check_names(body: bytes, names: Collection[str]) -> None:
    """Raises `InvalidRequest` for a body with another member of one of the names, in any case: some servers take that
    one, and whose model it is was not looked at."""
    lowered = body.lower()
    if all(lowered.count(b'"%b"' % name.encode()) < 2 for name in names) and not SPELLED.search(body):
        return
    members: list[tuple[str, Any]] = []

    def outermost(pairs: list[tuple[str, Any]]) -> None:
        members[:] = pairs  # It is the last to be read.

    try:
        json.loads(body, object_pairs_hook=outermost)
    except (ValueError, RecursionError):
        return  # Whoever reads it finds what is wrong.
    for name in names:
        found = [key for key, _ in members if key.lower() == name]
        if len(found) > 1 or (found and found[0] != name):
            raise InvalidRequest(f"'{name}' must be given once, and in lower case.", param=name, code="invalid_value")


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


class Passing(StreamedReply):
    """One request on its way through, and its answer, which leaves as it comes. Nothing of it is read but how many
    tokens it counts."""

    # Whether the request had a parameter that is for us, and that only responses have.
    ignores_nomyo = False
    # When the first of the answer left.
    _first_s = 0.0
    content_type = "application/json"

    def __init__(self, request: Request, head: Head, body: bytes, routing: Routing) -> None:
        super().__init__(request)
        self._state: AppState = request.app.state
        self.principal = principal_of(request)
        self.model = head.model
        self._head = head
        self._body = body
        self._routing = routing
        self._feed = PassedThrough()
        # Answers an attempt at a server that does not speak this API; None: all do.
        self.otherwise: Callable[[Attempt], Awaitable[bytes]] | None = None

    def headers_now(self) -> dict[str, str]:
        """What became of the request, as headers of its answer."""
        self._first_s = time.monotonic()
        headers = {"Content-Type": self.content_type, **self._routing.headers()}
        if self.ignores_nomyo:
            headers["x-nomyo-ignored"] = "nomyo"
        return headers

    async def run(self, path: str, *, below_root: bool = False) -> None:
        """Passes the answer on, to its end. Raises `APIError` before its first byte; what goes wrong behind that is its
        end."""
        try:
            with self._state.stopping:
                await self._pass_on(path, below_root=below_root)
        except APIError as error:
            if not self.has_begun:
                raise
            piece = self.error_piece(error)
            if piece is None:
                raise
            self.write(piece)
        self.end()

    async def _pass_on(self, path: str, *, below_root: bool) -> None:
        state, principal, routing = self._state, self.principal, self._routing
        tally = None
        if principal.limits is not UNLIMITED or principal.owner_limits is not UNLIMITED:
            head = self._head
            allowed = head.max_completion_tokens or head.max_tokens
            given = partial(body_tokens, self._body)
            tally = await admit(state, principal, routing, given, allowed, answers=head.answers(), with_slot=True)
        status, failure = "cancelled", ""
        try:
            await self._ask(path, below_root=below_root)
            status = "completed"
        except APIError as error:
            status, failure = "failed", error.code or error.type
            raise
        finally:
            used = self.used()
            tokens = used or self._feed.estimated(self._body, self.content_type, is_text=routing.path in INPUTS)
            first_s = self._first_s if self.content_type.startswith(STREAMS) else 0.0
            request = current_request() or RequestContext(b"", path, began_s=routing.began_s)
            record = TurnRecord(
                *("", request, principal, routing, self.model, status, failure, tokens, first_s),
                is_estimated=used is None,
            )
            settle(state, record, routing, tokens, tally)

    async def _ask(self, path: str, *, below_root: bool) -> None:
        pool = self._state.pool
        async for attempt in Attempts(pool, self.model, self._routing):
            async with attempt:
                feed = self._feed = PassedThrough()
                if self.otherwise is not None and not pool.endpoints.kind(attempt.endpoint).speaks_ollama:
                    self.write(await self.otherwise(attempt))
                    continue
                client = pool.endpoints[attempt.endpoint].client
                body = self._body if attempt.model == self.model else with_model(self._body, attempt.model)
                stream = await client.forward(path, body, below_root=below_root)
                self.content_type = stream.content_type
                try:
                    await Relay(stream.answer, feed, self).run()
                finally:
                    attempt.begun = feed.begun

    def used(self) -> Tokens | None:
        """The tokens that the answer counts."""
        return self._feed.used()

    def error_piece(self, error: APIError) -> bytes | None:
        """An error in the middle of the answer, as its client reads one. None: only a connection that breaks can show
        it."""
        if not self.content_type.startswith("text/event-stream"):
            return None
        # What broke off may be half a frame.
        end = b"" if self._feed.tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        return end + b"data: " + orjson.dumps({"error": error.to_dict()}) + b"\n\n"
