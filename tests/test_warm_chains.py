"""Conversations that the store has in memory: the same as in the database at every moment, and no turn changes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

import db
from core.deletions import OwnDeletions
from core.errors import ServerError
from db import History, Store
from requests.params import input_items
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, json_answer
from tests.test_tool_kinds import KINDS
from tests.turns import URL, assert_error, create, stream, text_of, turn

Json = dict[str, Any]
ENDS = ("completed", "incomplete", "failed", "cancelled")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/router.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other(store: Store, tmp_path: Path) -> AsyncIterator[Store]:
    """The store of another worker."""
    other = Store(f"sqlite:///{tmp_path}/router.db")
    other.deletions = store.deletions
    await other.open()
    yield other
    await other.close()


def item(text: str) -> Json:
    return {"type": "message", "id": f"msg_{text}", "role": "user", "content": text}


def response(response_id: str, status: str = "completed") -> Json:
    return {"id": response_id, "status": status, "output": [item(f"answer {response_id}")]}


def row(response_id: str, after: str | None = None, status: str = "completed", at: int = 1000) -> Json:
    """What `store_response` is given for a turn that has ended, or has begun."""
    return {
        "previous_response_id": after,
        "model": "m",
        "status": status,
        "created_at": at,
        "input_messages": [item(f"question {response_id}")],
        "response": response(response_id, status),
    }


async def queries(store: Store) -> list[str]:
    """The SQL that is read from now on."""
    statements: list[str] = []
    await store._connector._reader.run(lambda sqlite: sqlite.set_trace_callback(statements.append))
    return statements


async def read(store: Store, response_id: str) -> History:
    """The history as the database has it."""
    deletions, store.deletions, warm = store.deletions, OwnDeletions(), store._warm
    store._warm = db.WarmChains(0)
    try:
        return await store.get_history(response_id)
    finally:
        store.deletions, store._warm = deletions, warm


def told(history: History) -> Any:
    """What a history says. Items that are missing or come too early are of no interest."""
    return (history.missing, history.unfinished) if history.missing or history.unfinished else history.items


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_conversation_that_goes_on_is_not_read(store: Store) -> None:
    statements = await queries(store)
    for n in range(20):
        await store.store_response(f"r{n}", **row(f"r{n}", after=f"r{n - 1}" if n else None))
        history = await store.get_history(f"r{n}")
        assert len(history.items) == 2 * (n + 1)
    assert statements == []
    assert history == await read(store, "r19"), "items, and that nothing is missing"


@pytest.mark.parametrize("status", ENDS)
async def test_neither_is_one_whose_turns_were_begun_first(store: Store, status: str) -> None:
    statements = await queries(store)
    for n in range(3):
        await store.store_response(f"r{n}", **row(f"r{n}", f"r{n - 1}" if n else None, "in_progress"))
        await store.update_response(f"r{n}", response(f"r{n}", "in_progress"))
        await store.update_response(f"r{n}", response(f"r{n}", status))
    history = await store.get_history("r2")
    assert statements == []
    assert history == await read(store, "r2")


async def test_it_takes_the_place_of_what_it_goes_on_from(store: Store) -> None:
    await store.store_response("root", **row("root"))
    await store.store_response("left", **row("left", "root"))
    statements = await queries(store)
    assert len((await store.get_history("root")).items) == 2
    assert len(statements) == 1, "a branch off it reads it"
    await store.store_response("right", **row("right", "root"))
    for leaf in ("left", "right", "left"):
        assert [item["id"] for item in (await store.get_history(leaf)).items][2] == f"msg_question {leaf}"
    assert len(statements) == 1


async def test_what_was_read_is_warm_too(store: Store) -> None:
    await store.store_response("r0", **row("r0"))
    store.deletions.add(1)
    statements = await queries(store)
    assert await store.get_history("r0") == await store.get_history("r0")
    assert len(statements) == 1


async def test_the_oldest_go_when_there_are_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.store_response("r0", **row("r0"))
    monkeypatch.setattr(db, "WARM_MB", 3.5 * store._warm._size / 1024 / 1024)
    for n in (1, 2):
        await store.store_response(f"r{n}", **row(f"r{n}"))
    await store.get_history("r0")
    await store.store_response("r3", **row("r3"))
    statements = await queries(store)
    for kept in ("r0", "r2", "r3"):
        await store.get_history(kept)
    assert statements == []
    await store.get_history("r1")
    assert len(statements) == 1, "the one that was used longest ago is gone"


async def test_one_that_is_larger_than_all_that_may_be_kept_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "WARM_MB", 100 / 1024 / 1024)
    await store.store_response("r0", **row("r0"))
    statements = await queries(store)
    assert await store.get_history("r0") == await store.get_history("r0")
    assert len(statements) == 2
    assert store._warm._size == 0


# ── never wrong ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("deleted", ["r0", "r1", "r2"])
@pytest.mark.parametrize("by", ["itself", "another", "age"])
async def test_a_deleted_response_is_missed_at_once(store: Store, other: Store, deleted: str, by: str) -> None:
    for n in range(3):
        await store.store_response(f"r{n}", **row(f"r{n}", f"r{n - 1}" if n else None, at=n))
    assert not (await store.get_history("r2")).missing
    if by == "age":
        assert await store.delete_older_than(100) == 3
        deleted = "r2"
    else:
        await (store if by == "itself" else other).delete_response(deleted)
    assert (await store.get_history("r2")).missing == deleted


@pytest.mark.parametrize("by", ["itself", "another"])
async def test_a_response_that_is_deleted_while_it_runs_does_not_come_back(store: Store, other: Store, by: str) -> None:
    await store.store_response("r0", **row("r0", status="in_progress"))
    await (store if by == "itself" else other).delete_response("r0")
    await store.update_response("r0", response("r0"))
    assert (await store.get_history("r0")).missing == "r0"
    assert await store._connector.read("SELECT * FROM response_items") == [], "items of no response are left"


async def test_nor_does_one_whose_beginning_is_deleted_while_it_runs(store: Store) -> None:
    await store.store_response("r0", **row("r0"))
    await store.get_history("r0")
    await store.delete_response("r0")
    await store.store_response("r1", **row("r1", "r0"))
    assert (await store.get_history("r1")).missing == "r0"


async def test_one_that_goes_on_from_what_was_never_stored_is_not_taken_for_whole(store: Store) -> None:
    await store.store_response("r1", **row("r1", "resp_of_a_socket"))
    assert (await store.get_history("r1")).missing == "resp_of_a_socket"


async def test_what_could_not_be_stored_is_not_there(store: Store) -> None:
    with pytest.raises(ServerError):
        await store.store_response("r0", **row("r0") | {"model": object()})
    assert (await store.get_history("r0")).missing == "r0"
    begun = store.store_response("r1", **row("r1", status="in_progress") | {"model": object()})
    await store.update_response("r1", response("r1"))
    assert begun.done()
    assert (await store.get_history("r1")).missing == "r1"


async def test_a_history_that_was_read_before_a_deletion_is_not_kept_behind_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.store_response("r0", **row("r0"))
    await store.store_response("r1", **row("r1", "r0"))
    store.deletions.add(1)
    reads = store._connector.read

    async def overtaken(*args: Any, **more: Any) -> Any:
        rows = await reads(*args, **more)
        monkeypatch.undo()
        await store.delete_response("r0")
        return rows

    monkeypatch.setattr(store._connector, "read", overtaken)
    assert not (await store.get_history("r1")).missing
    assert (await store.get_history("r1")).missing == "r0"


async def test_the_last_word_on_a_response_counts(store: Store) -> None:
    store.store_response("r0", **row("r0"))
    await store.update_response("r0", response("r0", "failed") | {"output": []})
    assert (await store.get_history("r0")).items == [item("question r0")]


@pytest.mark.parametrize("seed", range(12))
async def test_memory_and_database_say_the_same_whatever_happens(store: Store, other: Store, seed: int) -> None:
    """Turns of many conversations that begin, end, branch, fail to be stored and are deleted, some of them at the same time."""
    chance = random.Random(seed)
    names, known, running = count(), list[str](), list[str]()
    statements = await queries(store)
    asked = 0

    def begin(status: str) -> Any:
        name = f"r{next(names)}"
        after = chance.choice([None] * 10 + ["never stored"] + known[-6:] * 3)
        values = row(name, after, status)
        if chance.random() < 0.05:
            values["model"] = object()
        (known if status in ENDS else running).append(name)
        return store.store_response(name, **values)

    def end() -> Any:
        known.append(running.pop(chance.randrange(len(running))))
        return store.update_response(known[-1], response(known[-1], chance.choice(ENDS)))

    for _ in range(40):
        doing: list[Any] = []
        for _ in range(chance.randint(1, 4)):
            what = chance.random()
            if what < 0.35:
                doing.append(begin(chance.choice(ENDS)))
            elif what < 0.55:
                doing.append(begin(chance.choice(("queued", "in_progress"))))
            elif what < 0.75 and running:
                doing.append(end())
            elif what < 0.8 and known + running:
                deletes = chance.choice((store, other)).delete_response
                doing.append(deletes(chance.choice([*known, *running])))
            elif known:
                doing.append(store.get_history(chance.choice(known[-6:])))
                asked += 1
        failures = await asyncio.gather(*doing, return_exceptions=True)
        assert all(isinstance(failure, ServerError) for failure in failures if isinstance(failure, Exception))
        for name in chance.sample([*known, *running], min(3, len(known) + len(running))):
            asked += 1
            assert told(await store.get_history(name)) == told(await read(other, name)), f"{name}, seed {seed}"
    for name in [*known, *running]:
        asked += 1
        assert told(await store.get_history(name)) == told(await read(other, name)), f"{name}, seed {seed}"
    histories = [sql for sql in statements if "RECURSIVE" in sql]
    assert 0 < len(histories) < asked, f"{len(histories)} of {asked} were read: nothing is warm, or nothing is cold"


# ── through the router ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_that_goes_on_asks_the_database_nothing(served: Running, backend: FakeBackend) -> None:
    statements = await queries(served.app.state.db)
    backend.script(chat("One."), chat("Two."), chat("Three."))
    first = await create(served.http, input="1")
    second = (await stream(served.http, input="2", previous_response_id=first["id"]))[-1]["response"]
    await create(served.http, input="3", previous_response_id=second["id"])
    assert [sql for sql in statements if "SELECT" in sql and "INSERT" not in sql] == []
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


PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


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
    "with its format told": {"text": {"format": {"type": "json_object"}}},
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
        await store.store_response("resp_1", **row("resp_1") | {"input_messages": input_items(items_of_every_kind())})
        shared = await store.get_history("resp_1")
        before = orjson.dumps(shared.items)
        asked = list[str]()

        async def the_same(response_id: str) -> History:
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
        assert again == await read(store, second["id"])
