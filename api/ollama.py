"""Ollama's API on the same pool, for Ollama's clients.

    POST /api/chat, /api/generate, /api/embed, /api/embeddings    passed through to an Ollama, or translated

What the fleet has is answered in `api/ollama_models.py`. A translated chat is a turn like any other (`api/turns/`),
encoded as Ollama's lines. Nothing is stored. Errors have Ollama's form, `{"error": "…"}`.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_body
from api.http.keys import principal_of
from api.http.leaving import ClientWatch, Primed
from api.http.routes import Routes, takes
from api.passthrough import PASSED_ON, Head, PassedOn, Passing, Used
from api.turns.adapting import Adapting
from api.turns.backend import Backend
from api.turns.chat_answer import chat_answer
from api.turns.turn import begin_turn
from backends.fleet.failover import Attempt
from backends.fleet.routing import Routing
from backends.fleet.unloading import unload
from backends.wire.client import create_chat_with_retries
from core.errors import APIError, InvalidRequest, NotFound
from core.json import Json, encode_json
from core.keys import Principal
from core.schemas import TEXT, TEXTS, object_of, schema_of
from core.state import AppState
from requests.bounded_json import check_bounds, check_values
from requests.members import without
from requests.ollama import (
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

NDJSON = "application/x-ndjson"

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
    return await _answered(request, Chatting)


@routes.post("/generate", **takes(schema_of(GenerateAsked, required=["model"], more=KEEP_ALIVE)))
async def generate(request: Request) -> Response:
    """The answer to a prompt, in lines of JSON; with `stream: false` as one. `suffix`, `template`, `raw` and `context`
    need an Ollama, and are a 400 elsewhere."""
    return await _answered(request, Generating)


@routes.post("/embed", **takes(object_of(["model", "input"], model=TEXT, input=TEXTS, **KEEP_ALIVE)))
async def embed(request: Request) -> Response:
    """The vectors of some texts."""
    return await _answered(request, Embedding)


@routes.post("/embeddings", **takes(object_of(["model", "prompt"], model=TEXT, prompt=TEXT, **KEEP_ALIVE)))
async def embeddings(request: Request) -> Response:
    """The vector of one text: what `/api/embed` was before."""
    return await _answered(request, EmbeddingOne)


async def _answered(request: Request, kind: type[Asking]) -> Response:
    head, body = await read_head(request)
    asking = kind(request.app.state, principal_of(request), request.url.path, head, body)
    asking.ignores_nomyo = bool(head.nomyo)
    if isinstance(asking, Chatting) and is_no_time(head.keep_alive) and (unloaded := await asking.unload()):
        return unloaded
    answer = Primed(asking.run())
    try:
        async with ClientWatch(request.scope, request.receive):
            await answer.prime()
    except APIError as error:
        await answer.aclose()
        raise in_ollamas_words(error, head.model) from error
    except BaseException:
        await answer.aclose()
        raise
    return PassedOn(answer, asking)


async def read_head(request: Request) -> tuple[OllamaHead, bytes]:
    """What of a request chooses its endpoint, and its body. Raises `InvalidRequest`."""
    body = await read_body(request)
    check_values(body, max_items=PASSED_ON * request.app.state.config.max_items)
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


class Asking(Passing, ABC):
    """A request for an answer of a model: it goes through to an Ollama, and is `_translated` for others."""

    def __init__(self, state: AppState, principal: Principal, path: str, head: OllamaHead, body: bytes) -> None:
        routing = Routing(principal=principal.id, affinity=head.affinity(), models=principal.models)
        super().__init__(state.pool, head.model, body, routing)
        self._state = state
        self._principal = principal
        self._path = path
        self._used_elsewhere: Used | None = None
        self._headers: dict[str, str] = {}

    def headers(self) -> dict[str, str]:
        """Those of the attempt, and what the turn adds."""
        return {**super().headers(), **self._headers}

    def error_piece(self, error: APIError) -> bytes | None:
        """The line of an error in the middle of an answer; None where that is no stream of lines."""
        if not self.content_type.startswith(NDJSON):
            return None
        line = _line({"error": error.message})
        # What a server broke off may have been half a line.
        return line if self._tail.endswith(b"\n") else b"\n" + line

    def _answer(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        self._headers, self._used_elsewhere = {}, None
        if self._pool.endpoints.kind(attempt.endpoint).speaks_ollama:
            return self._forwarded(attempt, self._path, below_root=True)
        return self._translated(attempt)

    def _read(self, kind: type[T]) -> T:
        """The request, to be translated. Raises `InvalidRequest`."""
        check_bounds(self._body, max_items=self._state.config.max_items)
        return read_ollama(self._body, kind)

    @abstractmethod
    def _translated(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        """The answer of a server that is no Ollama, as an Ollama's."""

    def _used(self) -> Used | None:
        if self._used_elsewhere:
            return self._used_elsewhere
        input, output = (COUNTS[key].findall(self._tail) for key in ("prompt_eval_count", "eval_count"))
        return Used(int(input[-1]) if input else 0, int(output[-1]) if output else 0)


COUNTS = {key: re.compile(rb'"%s":\s*(\d{1,12})' % key.encode()) for key in ("prompt_eval_count", "eval_count")}


class Chatting(Asking):
    is_chat = True

    async def unload(self) -> Response | None:
        """Unloads the model, if nothing else is asked for."""
        asked = self._asked()
        if not asked.is_empty:
            return None
        try:
            await unload(self._pool.endpoints, self._model, self._principal.models)
        except APIError as error:
            raise in_ollamas_words(error, self._model) from error
        line = _line(OllamaAnswer(self._model, is_chat=self.is_chat).loaded(is_unload=True))
        return Response(line, media_type=NDJSON if asked.streams else "application/json; charset=utf-8")

    async def _translated(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        state, kind = self._state, self._pool.endpoints.kind(attempt.endpoint)
        asked = self._asked()
        self.content_type = NDJSON if asked.streams else "application/json; charset=utf-8"
        answer = OllamaAnswer(self._model, is_chat=self.is_chat)
        if asked.is_empty:
            yield _line(answer.loaded(is_unload=False))
            return
        request = {**self._request(asked, kind.option_names), "model": self._model}
        turn = await begin_turn(state, request, self._principal)
        if omitted := omitted_options(asked.options):
            turn.headers["x-nomyo-omitted-options"] = ", ".join(omitted).encode("ascii", "replace").decode()
        self._headers = turn.headers
        client = self._pool.endpoints[attempt.endpoint].client
        create = partial(create_chat_with_retries, client)
        sealer = state.sealer.of(turn.owner)
        backend = Backend(attempt.model, kind, sealer, create, adapting=Adapting(turn, state, attempt))
        async with aclosing(chat_answer(backend, turn)) as batches:
            async for events in batches:
                answer.feed(events)
                if turn.request.stream and (line := answer.line()):
                    yield _line(line)
        if not turn.builder.ended:
            answer.feed(turn.builder.finish())
        rest = answer.line() if turn.request.stream else None
        last = answer.last(turn.builder.response, turn.builder.timings)
        self._used_elsewhere = Used(last["prompt_eval_count"], last["eval_count"])
        yield (_line(rest) if rest else b"") + _line(last)

    def _asked(self) -> ChatAsked | GenerateAsked:
        return self._read(ChatAsked)

    def _request(self, asked: Any, names: Any) -> Json:
        return chat_ollama_to_responses(asked, names)


class Generating(Chatting):
    is_chat = False

    def __init__(self, state: AppState, principal: Principal, path: str, head: OllamaHead, body: bytes) -> None:
        super().__init__(state, principal, path, head, body)
        if head.suffix or head.template or head.raw or head.context:
            self._only_ollamas()

    def _only_ollamas(self) -> None:
        """Goes to an Ollama, if one has the model; else the refusal of whoever is chosen."""
        serving = [endpoint for endpoint in self._pool.endpoints.values() if endpoint.name_of(self._model)]
        others = {endpoint.key for endpoint in serving if not endpoint.kind.speaks_ollama}
        if len(others) < len(serving):
            self._routing.unfit |= others

    def _asked(self) -> ChatAsked | GenerateAsked:
        return self._read(GenerateAsked)

    def _request(self, asked: Any, names: Any) -> Json:
        return generate_ollama_to_responses(asked, names)


class Embedding(Asking):
    async def _translated(self, attempt: Attempt) -> AsyncGenerator[bytes]:
        began_ns = time.monotonic_ns()
        asked = self._read(EmbedAsked)
        vectors: list[list[float]] = []
        tokens = 0
        if texts := asked.texts:
            client = self._pool.endpoints[attempt.endpoint].client
            answer = await client.post_json("/embeddings", embed_ollama_to_openai(asked, attempt.model))
            vectors, tokens = embeddings_openai_to_ollama(answer, len(texts))
        self._used_elsewhere = Used(tokens)
        yield encode_json(self._as_ollama(vectors, tokens, time.monotonic_ns() - began_ns))

    def _as_ollama(self, vectors: list[list[float]], tokens: int, took_ns: int) -> Json:
        counts = {"total_duration": took_ns, "load_duration": 0, "prompt_eval_count": tokens}
        return {"model": self._model, "embeddings": vectors, **counts}


class EmbeddingOne(Embedding):
    def _as_ollama(self, vectors: list[list[float]], tokens: int, took_ns: int) -> Json:
        return {"embedding": vectors[0] if vectors else []}


def _line(line: Json) -> bytes:
    return encode_json(line) + b"\n"
