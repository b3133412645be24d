"""Reasoning that a client carries for us, sealed, and who can open it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.seals import Sealer
from requests.messages import UNREADABLE
from tests.carried import FUNCTION, SECRET, TRIGGER, Json, messages, said, summary_in, user
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, reasoning
from tests.sdk import wire_events
from tests.stream_grammar import check_stream
from tests.turns import create

pytestmark = pytest.mark.usefixtures("strict_backend")

SEALED = ["reasoning.encrypted_content"]


def carried(output: list[Json]) -> list[Json]:
    """The items as a client keeps them that stores nothing here: what is sealed instead of what was thought."""
    return [
        {"type": "reasoning", "id": item["id"], "summary": [], "encrypted_content": item["encrypted_content"]}
        if item["type"] == "reasoning"
        else item
        for item in output
    ]


def thoughts(backend: FakeBackend) -> list[str | None]:
    return [message.get("reasoning_content") for message in messages(backend) if message["role"] == "assistant"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_sealed_reasoning_comes_back_to_the_backend(stream: bool, served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("It rhymes."), call("f", id="c")), chat("Done."))
    asked: Json = {"input": [user("Hi")], "tools": [FUNCTION], "store": False, "include": SEALED}
    if stream:
        events = await wire_events(served, **asked)
        check_stream(events)
        first = events[-1]["response"]
        (added,) = [e["item"] for e in events if e["type"] == "response.output_item.added" and e["output_index"] == 0]
        assert "encrypted_content" not in added
    else:
        first = await create(served.http, **asked)
    thought = first["output"][0]
    assert "rhymes" not in thought["encrypted_content"]
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    await create(served.http, input=[user("Hi"), *carried(first["output"]), output], tools=[FUNCTION], store=False)
    assert thoughts(backend) == ["It rhymes."]


async def test_nothing_is_sealed_unless_the_client_asks(served: Running, backend: FakeBackend) -> None:
    backend.script(*[chat(reasoning("Hm."), "Hi")] * 3)
    for more in ({}, {"include": []}, {"include": None}):
        response = await create(served.http, **more)
        assert "encrypted_content" not in response["output"][0]
    response = await create(served.http, include=SEALED)
    assert [item["type"] for item in response["output"]] == ["message"], "and without a thought there is none"


async def test_reasoning_that_we_cannot_open_is_left_out(served: Running, backend: FakeBackend) -> None:
    for sealed in ("gAAAAABforeign", Sealer("another key").seal("Hm."), None):
        thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
        await create(served.http, input=[user("Hi"), thought, said("Yo"), user("Well?")])
        assert thoughts(backend) == [None]
    open_thought = {**thought, "encrypted_content": "gAAA", "content": [{"type": "reasoning_text", "text": "So."}]}
    await create(served.http, input=[user("Hi"), open_thought, said("Yo"), user("Well?")])
    assert thoughts(backend) == ["So."]


async def test_what_was_sealed_is_opened_after_a_restart(backend: FakeBackend, tmp_path: Path) -> None:
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    backend.script(chat(reasoning("It rhymes."), "Yo"), chat(SECRET))
    async with running_router(**settings) as running:
        first = await create(running.http, input=[user("Hi")], store=False, include=SEALED)
        (item,) = (await create(running.http, input=[user("Hi"), TRIGGER], store=False))["output"]
    async with running_router(**settings) as running:
        await create(running.http, input=[item, *carried(first["output"]), user("Well?")])
        assert summary_in(backend, 0) == SECRET
        assert thoughts(backend) == ["It rhymes."]


@pytest.mark.parametrize(("keys", "opens"), [(("one", "one"), True), (("one", "two"), False), (("", ""), False)])
async def test_routers_share_what_is_sealed_if_they_share_the_key(
    keys: tuple[str, str], opens: bool, backend: FakeBackend
) -> None:
    backend.script(chat(SECRET))
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, secret_key=keys[0]) as running:
        (item,) = (await create(running.http, input=[user("Hi"), TRIGGER]))["output"]
    async with running_router(endpoints=endpoints, secret_key=keys[1]) as running:
        await create(running.http, input=[item, user("Well?")])
    assert summary_in(backend, 0) == (SECRET if opens else UNREADABLE)
