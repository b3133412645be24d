"""Conversations that the store has in memory, through the router: they are not read, and no turn changes them. That
they are right is proven in tests/stores/test_store_warm.py."""

from __future__ import annotations

import orjson
import pytest

from db import History
from requests.items import input_items
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, json_answer
from tests.stores.databases import sqlite_reads
from tests.stores.rows import Json, row, with_id
from tests.test_tool_kinds import KINDS
from tests.turns import URL, assert_error, create, stream, text_of, turn


async def test_a_turn_that_goes_on_asks_the_database_nothing(served: Running, backend: FakeBackend) -> None:
    statements = await sqlite_reads(served.app.state.db)
    backend.script(chat("One."), chat("Two."), chat("Three."))
    first = await create(served.http, input="1")
    second = (await stream(served.http, input="2", previous_response_id=first["id"]))[-1]["response"]
    await create(served.http, input="3", previous_response_id=second["id"])
    assert statements == []
    assert [message["content"] for message in backend.turns[-1].json["messages"]] == ["1", "One.", "2", "Two.", "3"]


async def test_a_warm_conversation_is_refused_when_its_beginning_is_deleted(served: Running) -> None:
    first = await create(served.http)
    second = await create(served.http, previous_response_id=first["id"])
    await create(served.http, previous_response_id=second["id"], store=False)
    assert (await served.http.delete(f"{URL}/{first['id']}")).status_code == 200
    answer = await served.http.post(URL, json=turn(previous_response_id=second["id"]))
    assert_error(answer, 400, param="previous_response_id", code="previous_response_not_found")
    assert first["id"] in answer.json()["error"]["message"]


async def test_calls_that_were_cut_off_are_left_out_warm_and_read(served: Running, backend: FakeBackend) -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    backend.script(chat("Yo.", call("f", {"x": 1}), finish_reason="length"))
    first = await create(served.http, input="1", tools=tools)
    assert [item["status"] for item in first["output"]] == ["completed", "incomplete"]
    seen = []
    for _ in range(2):
        backend.script(chat("Then."))
        await create(served.http, input="2", tools=tools, previous_response_id=first["id"], store=False)
        seen.append(backend.turns[-1].json["messages"])
        served.app.state.db.deletions.add(1)
    assert seen[0] == seen[1]
    assert [message["content"] for message in seen[0]] == ["1", "Yo.", "2"]


PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def items_of_every_kind() -> list[Json]:
    calls = [
        {**part, "call_id": f"call_{number}"}
        for number, kind in enumerate(KINDS.values())
        for part in (kind.item, kind.output)
    ]
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Look."},
                {"type": "input_image", "image_url": PIXEL, "detail": "original"},
                {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,aGk="},
            ],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "So."}],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "assistant", "content": "Well."},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "additional_tools", "role": "developer", "tools": [{"type": "function", "name": "g"}]},
        *calls,
        {"role": "user", "content": "And now?"},
    ]


NATIVE = {
    "id": "resp_up",
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "message", "id": "msg_up", "role": "assistant", "content": [{"type": "output_text", "text": "Up."}]}
    ],
}
LATER: dict[str, Json] = {
    "plain": {},
    "streamed": {"stream": True},
    "with its format described": {"text": {"format": {"type": "json_object"}}},
    "cut to its context": {"truncation": "auto"},
    "compacted": {"input": [{"type": "compaction_trigger"}]},
    "compacted before": {"context_management": [{"type": "compaction", "compact_threshold": 1000}]},
    "with tools": {"tools": [kind.tool for kind in KINDS.values()][:6], "tool_choice": "required"},
    "cached": {"nomyo": {"cache": True}},
}


@pytest.mark.parametrize("kind", ["openai-chat", "ollama", "openai"])
async def test_nobody_changes_the_items_of_a_history(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Those of a WebSocket are shared by its turns."""
    endpoint = {"url": f"{backend.url}/v1", "kind": kind}
    async with running_router(endpoints=[endpoint], cache={"backend": "memory"}) as running:
        store = running.app.state.db
        if kind == "openai":
            backend.default = json_answer(NATIVE)
        # Not by a turn: what it changed would be changed already.
        await store.store_response(
            "resp_1", **row(output=[with_id("answer")]) | {"input_messages": input_items(items_of_every_kind())}
        )
        shared = await store.get_history("resp_1")
        before = orjson.dumps(shared.items)
        asked = list[str]()

        async def the_same(response_id: str, *, owner: str) -> History:
            asked.append(response_id)
            return shared

        monkeypatch.setattr(store, "get_history", the_same)
        for name, more in LATER.items():
            if kind == "openai" and "stream" in more:
                continue  # the scripted answer is a whole one
            body = turn(previous_response_id="resp_1", store=False, **more)
            answer = await running.http.post(URL, json=body)
            assert answer.status_code in (200, 502), f"{name}: {answer.text}"
            assert asked.pop() == "resp_1", f"{name} has asked for no history, so this test proves nothing"
            assert orjson.dumps(shared.items) == before, f"{name} has changed them"
        second = await create(running.http, previous_response_id="resp_1")
        assert text_of(second)
        assert orjson.dumps(shared.items) == before
        monkeypatch.undo()
        again = await store.get_history(second["id"])
        assert orjson.dumps(again.items).startswith(before[:-1]), "the next turn's history begins with this one"
        store.deletions.add(1)
        assert again == await store.get_history(second["id"]), "memory and database say the same"
