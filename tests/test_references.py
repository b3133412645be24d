"""References to items that we keep: `item_reference`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.carried import FUNCTION, SECRET, Json, compacted, messages, summary_in, user
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, reasoning
from tests.sdk import MODEL, wire_events
from tests.turns import URL, assert_error, create, text_of

pytestmark = pytest.mark.usefixtures("strict_backend")


def reference(item_id: str) -> Json:
    return {"type": "item_reference", "id": item_id}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_each_item_that_we_gave_can_be_referred_to(stream: bool, served: Running, backend: FakeBackend) -> None:
    custom = {"type": "custom", "name": "p"}
    tools = [FUNCTION, custom, {"type": "shell"}]
    calls = [call("f", {"x": 1}), call("p", {"input": "ls"}), call("shell", {"commands": ["ls"]})]
    backend.script(chat(reasoning("Hm."), "Yo", *calls), chat("Done."), chat("Done."))
    if stream:
        first = (await wire_events(served, input=[user("Hi")], tools=tools))[-1]["response"]
    else:
        first = await create(served.http, input=[user("Hi")], tools=tools)
    outputs = [
        {"type": kind, "call_id": item["call_id"], "output": [] if kind == "shell_call_output" else "1"}
        for item in first["output"][2:]
        for kind in [f"{item['type']}_output"]
    ]
    await create(served.http, input=[user("Hi"), *first["output"], *outputs], tools=tools)
    whole = messages(backend)
    references = [reference(item["id"]) for item in first["output"]]
    second = await create(served.http, input=[user("Hi"), *references, *outputs], tools=tools)
    assert messages(backend) == whole
    listed = (await served.http.get(f"{URL}/{second['id']}/input_items", params={"order": "asc"})).json()["data"]
    assert listed[1:6] == first["output"], "what was meant is kept, not the reference"


async def test_a_reference_needs_no_type_and_may_stand_anywhere(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Yo"))
    (item,) = (await create(served.http, input="Hi"))["output"]
    for form in ({"id": item["id"]}, {"type": None, "id": item["id"]}, reference(item["id"])):
        await create(served.http, input=[user("Hi"), form, user("Well?")])
        assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", "Well?"]
        await create(served.http, input=[form])
        assert [message["content"] for message in messages(backend)] == ["Yo"]


async def test_what_a_client_gave_can_be_referred_to_by_its_id(served: Running, backend: FakeBackend) -> None:
    first = await create(served.http, input=[{**user("Hi"), "id": "msg_mine"}, user("There")])
    await create(served.http, input=[reference("msg_mine"), user("Well?")])
    assert [message["content"] for message in messages(backend)] == ["Hi", "Well?"]
    for item in (await served.http.get(f"{URL}/{first['id']}/input_items")).json()["data"]:
        await create(served.http, input=[reference(item["id"])])
        assert messages(backend)[0]["content"] == item["content"][0]["text"]


async def test_a_compaction_can_be_referred_to(served: Running, backend: FakeBackend) -> None:
    item = await compacted(served, backend)
    await create(served.http, input=[reference(item["id"]), user("Its name?")])
    assert summary_in(backend, 0) == SECRET


async def test_a_conversation_goes_on_behind_a_turn_with_references(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Yo"), chat("Well."), chat("Bye."))
    (item,) = (await create(served.http, input="Hi"))["output"]
    second = await create(served.http, input=[user("Hi"), reference(item["id"]), user("Well?")])
    third = await create(served.http, input="Bye", previous_response_id=second["id"])
    assert text_of(third) == "Bye."
    assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", "Well?", "Well.", "Bye"]


async def test_what_we_do_not_keep_cannot_be_referred_to(served: Running, backend: FakeBackend) -> None:
    (unkept,) = (await create(served.http, store=False))["output"]
    kept = await create(served.http)
    (item,) = kept["output"]
    assert (await served.http.delete(f"{URL}/{kept['id']}")).status_code == 200
    turns = len(backend.turns)
    for item_id in ("msg_unknown", unkept["id"], item["id"]):
        for stream in (False, True):
            body = {"model": MODEL, "input": [user("Hi"), reference(item_id)], "stream": stream}
            error = assert_error(
                await served.http.post(URL, json=body), 400, type="invalid_request_error", says=item_id
            )
            assert error["param"].startswith("input[1]")
    assert len(backend.turns) == turns


@pytest.mark.parametrize("form", [{"type": "item_reference"}, {"type": "item_reference", "id": ""}, {}, {"id": 5}])
async def test_a_reference_to_nothing_is_named(form: Json, served: Running, backend: FakeBackend) -> None:
    answer = await served.http.post(URL, json={"model": MODEL, "input": [form]})
    assert_error(answer, 400, type="invalid_request_error", param="input[0].id")


async def test_references_survive_a_restart(backend: FakeBackend, tmp_path: Path) -> None:
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    backend.script(chat("Yo"))
    async with running_router(**settings) as running:
        (item,) = (await create(running.http, input="Hi"))["output"]
    async with running_router(**settings) as running:
        await create(running.http, input=[user("Hi"), reference(item["id"]), user("Well?")])
    assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", "Well?"]
