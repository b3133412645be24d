"""What a server lists is bounded: one that answers the question for its models with far more than any has is down, and
holds nobody up."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc

import orjson
import pytest

from backends.kinds.server import MOST_MODELS
from backends.wire.client import MOST_VALUES
from backends.wire.http1 import MOST_LISTED
from requests.bounded_json import MOST_ANSWERED
from tests.conftest import Running, running_router
from tests.fake_backend import JSON_HEADERS, FakeBackend, Reply, json_answer, stream
from tests.fake_backend.reply import Step
from tests.turns import create

KINDS = ["openai-chat", "auto", "ollama", "vllm", "lmstudio", "llama.cpp", "llama-swap", "openai"]


def listing(models: int) -> bytes:
    rows = [{"id": f"m{number}", "name": f"m{number}", "model": f"m{number}"} for number in range(models)]
    return orjson.dumps({"object": "list", "data": rows, "models": rows})


def whole(body: bytes, **headers: str) -> Step:
    return stream(body, headers={**JSON_HEADERS, **headers})


async def on_and_on(reply: Reply) -> None:
    """Ten times as much as is taken; nobody waits for its end."""
    for _ in range(10 * MOST_LISTED // 1_000_000):
        await reply.write(b" " * 1_000_000)
        await asyncio.sleep(0)


LARGE: dict[str, tuple[Step, str]] = {
    "a body without end": (stream(b"[", on_and_on, headers=JSON_HEADERS), "larger than 16 MB"),
    "a bomb": (whole(gzip.compress(b" " * 20 * MOST_LISTED), **{"Content-Encoding": "gzip"}), "larger than 16 MB"),
    "values": (whole(b'{"data": [%b1]}' % (b"[]," * MOST_VALUES)), f"more than {MOST_VALUES} values"),
    "models": (whole(listing(MOST_MODELS + 1)), f"more than {MOST_MODELS} models"),
}


def beside(backend: FakeBackend, kind: str) -> list[dict[str, str]]:
    return [{"url": f"{backend.url}/v1", "kind": kind, "name": "large"}]


async def error_of(running: Running) -> str:
    shown = (await running.http.get("/api/endpoints")).json()["endpoints"]
    return str(next(endpoint for endpoint in shown if endpoint["name"] == "large")["error"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("answer", "words"), LARGE.values(), ids=LARGE)
async def test_a_server_that_lists_far_more_than_any_is_down_and_its_neighbour_is_not(
    answer: Step, words: str, kind: str, backend: FakeBackend
) -> None:
    async with FakeBackend() as large:
        large.routes = {
            f"GET {path}": answer for path in ("/v1/models", "/api/tags", "/api/v0/models", "/api/v1/models")
        }
        good = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "good"}
        tracemalloc.start(1)
        try:
            async with running_router(endpoints=[*beside(large, kind), good]) as running:
                assert words in await error_of(running)
                assert (await create(running.http))["status"] == "completed"
                assert tracemalloc.get_traced_memory()[1] < 6 * MOST_LISTED
        finally:
            tracemalloc.stop()


async def test_as_many_models_as_there_may_be_are_served(backend: FakeBackend) -> None:
    backend.routes["GET /v1/models"] = json_answer(orjson.loads(listing(MOST_MODELS)))
    async with running_router(endpoints=beside(backend, "openai-chat")) as running:
        assert len((await running.http.get("/v1/models")).json()["data"]) == MOST_MODELS


@pytest.mark.parametrize("path", ["/v1/responses", "/api/chat"])
@pytest.mark.parametrize("kind", ["openai-chat", "openai"])
@pytest.mark.parametrize("form", [b'{"choices": [%b1]}', b'{"output": [%b1]}', b'data: {"type": "x", "y": [%b1]}\n\n'])
async def test_an_answer_of_far_too_many_values_is_a_502_and_nothing_is_made_of_it(
    form: bytes, kind: str, path: str, backend: FakeBackend
) -> None:
    backend.default = stream(form % (b"[]," * MOST_ANSWERED), headers=JSON_HEADERS)
    body = {"model": "test-model", "input": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
    async with running_router(endpoints=beside(backend, kind), retry={"max": 0}) as running:
        tracemalloc.start(1)
        try:
            assert (await running.http.post(path, json=body)).status_code == 502
            assert tracemalloc.get_traced_memory()[1] < 100_000_000
        finally:
            tracemalloc.stop()
