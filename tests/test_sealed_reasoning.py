"""Reasoning that a client carries for us, sealed, and who can open it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.seals import Sealer
from tests.carried import FUNCTION, SECRET, TRIGGER, Json, messages, said, summary_in, user
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, reasoning
from tests.sdk import wire_events
from tests.stream_grammar import check_stream
from tests.turns import assert_error, create, turn

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
    another, of_another_kind = (
        Sealer("another key").seal("Hm.", "reasoning"),
        served.app.state.sealer.seal("Hm.", "compaction"),
    )
    for sealed in ("gAAAAABforeign", another, of_another_kind, None):
        thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
        answer = await served.http.post(
            "/v1/responses", json=turn(input=[user("Hi"), thought, said("Yo"), user("Well?")])
        )
        assert answer.status_code == 200, answer.text
        assert thoughts(backend) == [None]
        named = answer.headers.get("x-nomyo-ignored", "")
        assert ("input.reasoning" in named) == (sealed is not None), "there is nothing to open in the last one"
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
        answer = await running.http.post("/v1/responses", json=turn(input=[item, user("Well?")]))
    if opens:
        assert summary_in(backend, 0) == SECRET
    else:
        assert_error(answer, 400, code="invalid_encrypted_content", param="input[0].encrypted_content")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_compaction_of_ours_that_cannot_be_opened_is_a_400(
    stream: bool, served: Running, backend: FakeBackend
) -> None:
    """The conversation would be gone."""
    sealer = served.app.state.sealer
    for sealed in (sealer.seal(SECRET, "reasoning"), sealer.seal(SECRET, "compaction")[:-8], "nomyo_1_"):
        item = {"type": "compaction", "encrypted_content": sealed}
        given = turn(input=[user("Hi"), item, user("Well?")], stream=stream)
        answer = await served.http.post("/v1/responses", json=given)
        assert_error(answer, 400, code="invalid_encrypted_content", param="input[1].encrypted_content")
    assert not backend.turns


async def test_a_native_backend_gets_no_reasoning_of_ours_and_that_of_others_as_it_is(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai"}
    ours = {"type": "reasoning", "summary": [], "encrypted_content": Sealer("another").seal("Hm.", "reasoning")}
    others = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABforeign"}
    compaction = {"type": "compaction", "encrypted_content": Sealer("another").seal(SECRET, "compaction")}
    async with running_router(endpoints=[endpoint]) as running:
        answer = await running.http.post("/v1/responses", json=turn(input=[user("Hi"), ours, others, user("So?")]))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-nomyo-ignored"] == "input.reasoning"
        assert [item for item in backend.turns[-1].json["input"] if item.get("type") == "reasoning"] == [others]
        refused = await running.http.post("/v1/responses", json=turn(input=[user("Hi"), compaction, user("So?")]))
        assert_error(refused, 400, code="invalid_encrypted_content", param="input[1].encrypted_content")
