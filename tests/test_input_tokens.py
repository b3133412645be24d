"""Counting input tokens: by the backend where it can, else by an estimate that says so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, http_error, json_answer

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


async def count(running: Running, **body: Any) -> Any:
    return await running.http.post("/v1/responses/input_tokens", json={"model": "test-model", **body})


@pytest.fixture
async def counting(backend: FakeBackend) -> Any:
    """A router in front of a llama.cpp, which can count."""
    backend.routes["POST /v1/chat/completions/input_tokens"] = json_answer({"input_tokens": 27})
    async with running_router(endpoints=[{"url": backend.url, "kind": "llama.cpp"}]) as running:
        yield running


async def test_the_backend_counts_what_it_would_be_sent(counting: Running, backend: FakeBackend) -> None:
    first = await counting.openai.responses.create(model="test-model", input="Hi")
    counted = await counting.openai.responses.input_tokens.count(
        model="test-model", input="And?", instructions="Be brief.", previous_response_id=first.id, tools=[TOOL]
    )
    assert (counted.input_tokens, counted.object) == (27, "response.input_tokens")
    sent = backend.requests[-1].json
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "assistant", "user"]
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["f"]
    assert "stream" not in sent, "a count is no stream"


async def test_an_estimate_says_that_it_is_one(served: Running, backend: FakeBackend) -> None:
    short, long = await count(served, input="Hi"), await count(served, input="Hi " * 400)
    assert short.headers["x-nomyo-estimated"] == long.headers["x-nomyo-estimated"] == "true"
    assert 0 < short.json()["input_tokens"] < 40
    assert 200 < long.json()["input_tokens"] < 600, "1,200 letters are a few hundred tokens"
    assert not backend.turns, "an estimate asks no model"


async def test_a_count_of_the_backend_does_not_say_so(counting: Running) -> None:
    assert "x-nomyo-estimated" not in (await count(counting, input="Hi")).headers


async def test_openai_counts_a_request_as_it_came(served_natively: Running, backend: FakeBackend) -> None:
    backend.routes["POST /v1/responses/input_tokens"] = json_answer(
        {"object": "response.input_tokens", "input_tokens": 9}
    )
    answer = await count(served_natively, input="Hi", tools=[{"type": "web_search"}], temperature=0.5)
    assert answer.json() == {"object": "response.input_tokens", "input_tokens": 9}
    assert backend.requests[-1].json == {"model": "test-model", "input": "Hi", "tools": [{"type": "web_search"}]}


@pytest.mark.parametrize("wrong", [{"input": 5}, {"model": None, "input": "Hi"}, {"input": "Hi", "tools": [{}]}])
async def test_a_wrong_request_is_refused_as_it_would_be_by_create(served: Running, wrong: dict[str, Any]) -> None:
    answer = await count(served, **wrong)
    created = await served.http.post("/v1/responses", json={"model": "test-model", **wrong})
    assert (answer.status_code, answer.json()) == (created.status_code, created.json())
    assert answer.status_code == 400


async def test_a_backend_that_cannot_count_is_an_honest_error_and_the_slot_is_free(
    counting: Running, backend: FakeBackend
) -> None:
    for failure, status in ((http_error(500, "no"), 502), (json_answer({"tokens": []}), 502), (http_error(429), 429)):
        backend.routes["POST /v1/chat/completions/input_tokens"] = failure
        assert (await count(counting, input="Hi")).status_code == status
    assert counting.in_flight() == 0
