"""What is counted before it is looked at: items, tools, names that clients make up, and what takes a slot."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest
from requests.params import check_counts
from tests.conftest import running_router
from tests.fake_backend import FakeBackend, cut, stall
from tests.turns import URL, assert_error, create, eventually, turn

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["tools", "type", "input", "x"]), inner),
)


@given(JSON, JSON)
def test_whatever_there_is_can_be_counted(input: Any, tools: Any) -> None:
    for body in ({"input": input, "tools": tools}, input, {"input": [input, tools]}):
        with suppress(InvalidRequest):
            check_counts(body, max_items=2, max_tools=2)


TOOL = {"type": "function", "name": "f"}
TOO_MANY = {
    "items": ({"input": [{}] * 11}, "input", "too_many_items"),
    "tools": ({"tools": [TOOL] * 6}, "tools", "too_many_tools"),
    "in a namespace": ({"tools": [{"type": "namespace", "tools": [TOOL] * 5}]}, "tools", "too_many_tools"),
    "in an item": (
        {"tools": [TOOL] * 3, "input": [{}, {"type": "additional_tools", "tools": [TOOL] * 3}]},
        "input[1].tools",
        "too_many_tools",
    ),
}


@pytest.mark.parametrize(("body", "param", "code"), TOO_MANY.values(), ids=TOO_MANY)
async def test_what_is_too_many_is_a_400_before_it_is_checked(
    backend: FakeBackend, body: dict[str, Any], param: str, code: str
) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint], max_items=10, max_tools=5) as running:
        answer = await running.http.post(URL, json=turn(**body))
        assert_error(answer, 400, param=param, code=code)
    assert not backend.turns


def test_as_many_as_are_allowed_are_allowed() -> None:
    check_counts({"input": [{}] * 10, "tools": [TOOL] * 5}, max_items=10, max_tools=5)
    with pytest.raises(InvalidRequest):
        check_counts({"input": [{}] * 11}, max_items=10, max_tools=5)


async def test_a_history_is_not_counted(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint], max_items=2) as running:
        said = [{"role": "user", "content": "Hi."}] * 2
        first = await create(running.http, input=said)
        await create(running.http, input=said, previous_response_id=first["id"])
    assert len(backend.turns[-1].json["messages"]) == 5


async def test_names_that_clients_make_up_are_counted_by_what_was_served(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint]) as running:
        for _ in range(2):
            for name in ("test-model", "openai/test-model", "openai/openai/test-model"):
                await create(running.http, model=name, store=False)
        counted = {model for model, _ in running.app.state.telemetry.tokens}
        assert counted == {"test-model"}


async def test_counting_tokens_takes_no_slot(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
    async with running_router(endpoints=[endpoint]) as running:
        backend.script(stall())
        waiting = asyncio.create_task(running.http.post(URL, json=turn()))
        await eventually(lambda: backend.in_flight == 1, "the only slot is taken")
        answer = await running.http.post(f"{URL}/input_tokens", json=turn())
        assert answer.json()["input_tokens"] > 0
        assert running.in_flight() == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: running.in_flight() == 0, "it is free")


@pytest.mark.usefixtures("short_waits")
async def test_a_raw_prompt_whose_ollama_dies_is_a_502_and_goes_to_no_other_kind(
    stack: AsyncExitStack,
) -> None:
    ollama, other = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
    endpoints = [
        {"url": ollama.url, "kind": "ollama", "models": {"names": ["test-model"]}},
        {"url": f"{other.url}/v1", "kind": "openai-chat"},
    ]
    ollama.routes["POST /api/generate"] = cut()
    async with running_router(endpoints=endpoints, retry={"budget": 1.0}) as running:
        answer = await running.http.post("/api/generate", json={"model": "test-model", "prompt": "Hi.", "raw": True})
        assert answer.status_code == 502, answer.text
    assert not other.turns
