"""Every front door that takes a body, with a request that it answers: for what must hold at each of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, json_answer

Json = dict[str, Any]

MODEL = "test-model"
USER: Json = {"role": "user", "content": "Hi."}
DOORS: dict[str, Json] = {
    "/v1/responses": {"model": MODEL, "input": "Hi."},
    "/v1/responses/compact": {"model": MODEL, "input": "Hi."},
    "/v1/responses/input_tokens": {"model": MODEL, "input": "Hi."},
    "/v1/chat/completions": {"model": MODEL, "messages": [USER]},
    "/v1/completions": {"model": MODEL, "prompt": "Hi."},
    "/v1/embeddings": {"model": MODEL, "input": "Hi."},
    "/v1/rerank": {"model": MODEL, "query": "Hi.", "documents": ["Yo."]},
    "/api/chat": {"model": MODEL, "messages": [USER], "stream": False},
    "/api/generate": {"model": MODEL, "prompt": "Hi.", "stream": False},
    "/api/embed": {"model": MODEL, "input": "Hi."},
    "/api/embeddings": {"model": MODEL, "prompt": "Hi."},
    "/api/show": {"model": MODEL},
    "/api/cache/invalidate": {"model": MODEL},
}
VECTORS = {"data": [{"embedding": [0.5], "index": 0}], "usage": {"prompt_tokens": 1}}


@asynccontextmanager
async def every_door(kind: str = "openai-chat", **settings: Any) -> AsyncIterator[tuple[Running, FakeBackend]]:
    """A router in front of one server of a kind, which answers whatever the front doors ask it."""
    async with FakeBackend() as backend:
        backend.routes |= {
            "POST /v1/responses/input_tokens": json_answer({"input_tokens": 3}),
            "POST /v1/completions": json_answer({"choices": [{"text": "Hello."}]}),
            "POST /v1/embeddings": json_answer(VECTORS),
            "POST /v1/rerank": json_answer({"results": []}),
            "POST /api/chat": json_answer({"message": {"role": "assistant", "content": "Hello."}, "done": True}),
            "POST /api/generate": json_answer({"response": "Hello.", "done": True}),
            "POST /api/embed": json_answer({"embeddings": [[0.5]]}),
            "POST /api/embeddings": json_answer({"embedding": [0.5]}),
            "POST /api/show": json_answer({"details": {}}),
        }
        url = backend.url if kind == "ollama" else f"{backend.url}/v1"
        async with running_router(endpoints=[{"url": url, "kind": kind}], **settings) as running:
            yield running, backend


def doors_of(kind: str) -> dict[str, Json]:
    """The front doors that lead somewhere in front of a server of a kind."""
    return {path: asked for path, asked in DOORS.items() if path != "/v1/rerank" or kind != "ollama"}


def is_ollamas(path: str) -> bool:
    """Whether a front door is Ollama's: it puts its errors in Ollama's words."""
    return path.startswith("/api/") and not path.startswith("/api/cache")


def message_of(answer: Any, path: str) -> str:
    """What an error says, in the envelope of the front door that it came from."""
    error = answer.json()["error"]
    assert isinstance(error, str) == is_ollamas(path), f"not the envelope of {path}: {answer.text}"
    return error if isinstance(error, str) else error["message"]
