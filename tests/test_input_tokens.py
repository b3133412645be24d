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


COUNT = "POST /v1/responses/input_tokens"
# What servers of Responses answer that count nothing, as they were seen to.
CANNOT = {
    "transformers": http_error(404, "Not Found"),
    "vLLM": http_error(405, "Method Not Allowed"),
    "OGX": http_error(400, "Invalid response id"),
    "one that has it to do yet": http_error(501, "not implemented"),
    "a gateway": http_error(502, "bad gateway"),
    "one that answers whatever is asked": json_answer({"object": "response", "output": []}),
    "one that counts in words": json_answer({"input_tokens": "many"}),
}


@pytest.mark.parametrize("server", CANNOT)
async def test_a_native_server_that_cannot_count_gets_an_estimate(
    served_natively: Running, backend: FakeBackend, server: str
) -> None:
    backend.routes[COUNT] = CANNOT[server]
    pixel = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    said = [{"role": "user", "content": [{"type": "input_text", "text": "Hi " * 400}, pixel]}]
    answer = await count(served_natively, input=said, instructions="Be brief.", tools=[TOOL])
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-nomyo-estimated"] == "true"
    assert 1000 < answer.json()["input_tokens"] < 1600, "an image costs the same however large its file is"


async def test_a_llama_cpp_of_before_it_could_count_gets_an_estimate(counting: Running, backend: FakeBackend) -> None:
    backend.routes["POST /v1/chat/completions/input_tokens"] = http_error(404, "File Not Found")
    answer = await count(counting, input="Hi")
    assert (answer.status_code, answer.headers["x-nomyo-estimated"]) == (200, "true")


async def test_what_one_refuses_that_was_seen_to_count_is_about_the_request(
    served_natively: Running, backend: FakeBackend
) -> None:
    backend.routes[COUNT] = json_answer({"object": "response.input_tokens", "input_tokens": 9})
    assert (await count(served_natively, input="Hi")).json()["input_tokens"] == 9
    backend.routes[COUNT] = http_error(400, "No such image.")
    answer = await count(served_natively, input="Hi")
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "No such image.")


async def test_a_native_server_that_is_busy_or_away_is_no_reason_to_estimate(
    served_natively: Running, backend: FakeBackend
) -> None:
    for status, ours in ((429, 429), (401, 502), (503, 503), (500, 500)):
        backend.routes[COUNT] = http_error(status, "no")
        assert (await count(served_natively, input="Hi")).status_code == ours
