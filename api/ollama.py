"""Ollama's API on the same pool, for Ollama's clients.

    POST /api/chat, /api/generate, /api/embed, /api/embeddings    passed through to an Ollama, or translated

What the fleet has is answered in `api/ollama_models.py`. A translated chat is a turn like any other (`api/door.py`),
encoded as Ollama's lines. Nothing is stored. Errors have Ollama's form, `{"error": "…"}`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from api.door import Door, answer_at
from api.http.bodies import read_body
from api.http.keys import principal_of
from api.http.routes import Routes, takes
from api.passthrough import PASSED_ON, Head, Passing, check_names
from api.turns.tally import routing_of
from backends.fleet.failover import Attempt
from backends.fleet.unloading import unload
from core.errors import APIError, InvalidRequest, NotFound
from core.json import Json, decode_json, encode_json
from core.schemas import TEXT, TEXTS, object_of, schema_of
from core.state import AppState
from requests.bounded_json import check_bounds, check_values
from requests.members import without
from requests.ollama import (
    NDJSON,
    ChatAsked,
    EmbedAsked,
    GenerateAsked,
    OllamaAnswer,
    chat_ollama_to_responses,
    embed_ollama_to_openai,
    embeddings_openai_to_ollama,
    generate_ollama_to_responses,
    is_no_time,
    omitted_options,
    read_ollama,
)
from requests.passing import PassedThrough
from requests.usage import Tokens

T = TypeVar("T")


def ollama_envelope(error: APIError) -> Json:
    """An error as Ollama puts it."""
    return {"error": error.message}


KEEP_ALIVE: dict[str, Json] = {"keep_alive": {"type": ["string", "number", "null"]}}
routes = Routes(prefix="/api", tags=["Ollama"], envelope=ollama_envelope)


class OllamaHead(Head, kw_only=True):
    """What of a request chooses its endpoint. `name` is what old clients call the model."""

    model: str = ""
    name: str = ""
    keep_alive: Any = None
    # Of /api/generate: what only an Ollama can do.
    suffix: Any = None
    template: Any = None
    raw: Any = None
    context: Any = None


# ── answers of a model ───────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("/chat", **takes(schema_of(ChatAsked, required=["model"], more=KEEP_ALIVE)))
async def chat(request: Request) -> Response:
    """The next message of a chat, in lines of JSON; with `stream: false` as one. Errors: 400 for what the server of the
    model cannot be given, 404 without the model, 429, 502 and 504 for a backend's failures."""
    return await _answered(request, ChatAsked, CHAT)


@routes.post("/generate", **takes(schema_of(GenerateAsked, required=["model"], more=KEEP_ALIVE)))
async def generate(request: Request) -> Response:
    """The answer to a prompt, in lines of JSON; with `stream: false` as one. `suffix`, `template`, `raw` and `context`
    need an Ollama, and are a 400 elsewhere."""
    return await _answered(request, GenerateAsked, GENERATE)


@routes.post("/embed", **takes(object_of(["model", "input"], model=TEXT, input=TEXTS, **KEEP_ALIVE)))
async def embed(request: Request) -> Response:
    """The vectors of some texts."""
    return await _embedded(request, lambda vectors, counts: {"embeddings": vectors, **counts})


@routes.post("/embeddings", **takes(object_of(["model", "prompt"], model=TEXT, prompt=TEXT, **KEEP_ALIVE)))
async def embeddings(request: Request) -> Response:
    """The vector of one text: what `/api/embed` was before."""
    return await _embedded(request, lambda vectors, _: {"embedding": vectors[0] if vectors else []})


Chat = TypeVar("Chat", ChatAsked, GenerateAsked)


async def _answered(request: Request, kind: type[Chat], door: Door[Chat]) -> Response:
    """The answer of a model. It is a turn; what only Ollamas can do, or will be asked, goes on to one unread."""
    state: AppState = request.app.state
    head, body = await read_head(request)
    serving = [endpoint for endpoint in state.pool.endpoints.values() if endpoint.name_of(head.model)]
    others = {endpoint.key for endpoint in serving if not endpoint.kind.speaks_ollama}
    is_unload = is_no_time(head.keep_alive)
    passing = OllamaPassing(request, head, body)
    if serving and not others and not is_unload:
        return await passing.passed_on()
    try:
        asked = _translatable(state, body, kind)
        if asked.is_empty:
            encoder = OllamaAnswer(head.model, streams=asked.streams, is_chat=door is CHAT)
            return await _loaded(passing, state, encoder, is_unload=is_unload)
        return await answer_at(door, request, asked, _given(head, asked), body)
    except InvalidRequest:
        if len(others) == len(serving):
            raise
    # What only an Ollama can do.
    passing.routing.unfit |= others
    return await passing.passed_on()


async def read_head(request: Request) -> tuple[OllamaHead, bytes]:
    """What of a request chooses its endpoint, and its body. Raises `InvalidRequest`."""
    body = await read_body(request)
    check_values(body, max_items=PASSED_ON * request.app.state.config.max_items)
    if principal_of(request).models is not None:
        check_names(body, ["model", "name"])
    head = read_ollama(body, OllamaHead)
    if head.nomyo:
        body = without(body, "nomyo")
    head.model = head.model or head.name
    if not head.model:
        raise InvalidRequest("model is required", param="model")
    return head, body


def in_ollamas_words(error: APIError, model: str) -> APIError:
    """An unknown model, in Ollama's words."""
    return NotFound(f"model '{model}' not found") if error.code == "model_not_found" else error


def _translatable(state: AppState, body: bytes, kind: type[T]) -> T:
    """A request that is to be translated. Raises `InvalidRequest`."""
    check_bounds(body, max_items=state.config.max_items)
    return read_ollama(body, kind)


def _given(head: OllamaHead, asked: ChatAsked | GenerateAsked) -> Json:
    """What a turn gets besides what is read of a request."""
    given: Json = {"model": head.model, "stream": asked.streams}
    return given | ({"nomyo": decode_json(head.nomyo)} if head.nomyo else {})


# ── front doors ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _used(answer: PassedThrough) -> Tokens | None:
    """The tokens that an Ollama counts in an answer."""
    input, output = (COUNTS[key].findall(answer.tail) for key in ("prompt_eval_count", "eval_count"))
    if not input and not output:
        return None
    return Tokens(int(input[-1]) if input else 0, output=int(output[-1]) if output else 0)


COUNTS = {key: re.compile(rb'"%s":\s*(\d{1,12})' % key.encode()) for key in ("prompt_eval_count", "eval_count")}


def _omitted(asked: ChatAsked | GenerateAsked) -> dict[str, str]:
    """The header that names the options which only an Ollama knows."""
    omitted = omitted_options(asked.options)
    return {"x-nomyo-omitted-options": ", ".join(omitted).encode("ascii", "replace").decode()} if omitted else {}


CHAT: Door[ChatAsked] = Door(
    read=chat_ollama_to_responses,
    encode=lambda asked, model: OllamaAnswer(model, streams=asked.streams, is_chat=True),
    error=in_ollamas_words,
    headers=_omitted,
    used=_used,
)
GENERATE: Door[GenerateAsked] = Door(
    read=generate_ollama_to_responses,
    encode=lambda asked, model: OllamaAnswer(model, streams=asked.streams, is_chat=False),
    error=in_ollamas_words,
    headers=_omitted,
    used=_used,
)


class OllamaPassing(Passing):
    """A request on its way through to an Ollama, and its answer."""

    def __init__(self, request: Request, head: OllamaHead, body: bytes) -> None:
        principal = principal_of(request)
        self.routing = routing_of(principal, head.affinity(principal.owner))
        super().__init__(request, head, body, self.routing)
        self.ignores_nomyo = bool(head.nomyo)
        self._path = request.url.path
        # The tokens of an answer of another server.
        self.used_elsewhere: Tokens | None = None

    async def passed_on(self) -> Response:
        """The answer. Raises `APIError` in Ollama's words."""
        try:
            return await self.answer(self.run(self._path, below_root=True))
        except APIError as error:
            raise in_ollamas_words(error, self.model) from error

    def used(self) -> Tokens | None:
        return self.used_elsewhere or _used(self._feed)

    def error_piece(self, error: APIError) -> bytes | None:
        if not self.content_type.startswith(NDJSON):
            return None
        line = encode_json({"error": error.message}) + b"\n"
        # What a server broke off may have been half a line.
        return line if self._feed.tail.endswith(b"\n") else b"\n" + line


async def _loaded(passing: OllamaPassing, state: AppState, encoder: OllamaAnswer, *, is_unload: bool) -> Response:
    """The answer to a request that asks a model nothing: it is loaded, where its server does that, or unloaded."""
    if is_unload:
        try:
            await unload(state.pool.endpoints, passing.model, passing.principal.models)
        except APIError as error:
            raise in_ollamas_words(error, passing.model) from error
        return Response(encoder.loaded(is_unload=True), media_type=encoder.content_type)

    async def otherwise(attempt: Attempt) -> bytes:
        passing.content_type = encoder.content_type
        return encoder.loaded(is_unload=False)

    passing.otherwise = otherwise
    passing.used_elsewhere = Tokens()
    return await passing.passed_on()


Shape = Callable[[list[list[float]], Json], Json]


async def _embedded(request: Request, shape: Shape) -> Response:
    """The vectors of some texts, in the shape of one of the two paths."""
    state: AppState = request.app.state
    head, body = await read_head(request)
    passing = OllamaPassing(request, head, body)

    async def otherwise(attempt: Attempt) -> bytes:
        began_ns = time.monotonic_ns()
        asked = _translatable(state, body, EmbedAsked)
        vectors: list[list[float]] = []
        tokens = 0
        if texts := asked.texts:
            client = state.pool.endpoints[attempt.endpoint].client
            answer = await client.post_json("/embeddings", embed_ollama_to_openai(asked, attempt.model))
            vectors, tokens = embeddings_openai_to_ollama(answer, len(texts))
        passing.used_elsewhere = Tokens(tokens)
        took_ns = time.monotonic_ns() - began_ns
        counts = {"total_duration": took_ns, "load_duration": 0, "prompt_eval_count": tokens}
        return encode_json({"model": head.model, **shape(vectors, counts)})

    passing.otherwise = otherwise
    return await passing.passed_on()
