"""Conversations that a store has in memory: the same as in the database at every moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

import stores.warm_chains
from core.errors import ServerError
from db import History, Store, make_store
from tests.stores.databases import Database, shared
from tests.stores.rows import ENDS, Json, with_id

pytestmark = shared


def response(response_id: str, status: str = "completed") -> Json:
    return {"id": response_id, "status": status, "output": [with_id(f"answer {response_id}")]}


def row(response_id: str, after: str | None = None, status: str = "completed", at: int = 1000) -> Json:
    """What `store_response` is given for a turn that has ended, or has begun."""
    return {
        "previous_response_id": after,
        "model": "m",
        "status": status,
        "created_at": at,
        "input_messages": [with_id(f"question {response_id}")],
        "response": response(response_id, status),
    }


@pytest.fixture
async def cold(store: Store, database: Database) -> AsyncIterator[Store]:
    """A store that has nothing in memory when it is read by `read`."""
    cold = make_store(database.url)
    await cold.open()
    yield cold
    await cold.close()


async def read(cold: Store, response_id: str) -> History:
    """The history as the database has it."""
    cold.deletions.add(1)
    return await cold.get_history(response_id)


def outcome(history: History) -> Any:
    """What a history gives. Items that are missing or come too early are of no interest."""
    return (history.missing, history.unfinished) if history.missing or history.unfinished else history.items


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_conversation_that_goes_on_is_not_read(store: Store, database: Database, cold: Store) -> None:
    statements = await database.reads(store)
    for n in range(20):
        await store.store_response(f"r{n}", **row(f"r{n}", after=f"r{n - 1}" if n else None))
        history = await store.get_history(f"r{n}")
        assert len(history.items) == 2 * (n + 1)
    assert statements == []
    assert history == await read(cold, "r19"), "items, and that nothing is missing"


@pytest.mark.parametrize("status", ENDS)
async def test_neither_is_one_whose_turns_were_begun_first(
    store: Store, database: Database, cold: Store, status: str
) -> None:
    statements = await database.reads(store)
    for n in range(3):
        await store.store_response(f"r{n}", **row(f"r{n}", f"r{n - 1}" if n else None, "in_progress"))
        await store.update_response(f"r{n}", response(f"r{n}", "in_progress"))
        await store.update_response(f"r{n}", response(f"r{n}", status))
    history = await store.get_history("r2")
    assert statements == []
    assert history == await read(cold, "r2")


async def test_it_takes_the_place_of_what_it_goes_on_from(store: Store, database: Database) -> None:
    await store.store_response("root", **row("root"))
    await store.store_response("left", **row("left", "root"))
    statements = await database.reads(store)
    assert len((await store.get_history("root")).items) == 2
    assert len(statements) == 1, "a branch off it reads it"
    await store.store_response("right", **row("right", "root"))
    for leaf in ("left", "right", "left"):
        assert [item["id"] for item in (await store.get_history(leaf)).items][2] == f"question {leaf}"
    assert len(statements) == 1


async def test_what_was_read_is_warm_too(store: Store, database: Database) -> None:
    await store.store_response("r0", **row("r0"))
    store.deletions.add(1)
    statements = await database.reads(store)
    assert await store.get_history("r0") == await store.get_history("r0")
    assert len(statements) == 1


async def test_the_oldest_go_when_there_are_too_many(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.store_response("r0", **row("r0"))
    monkeypatch.setattr(stores.warm_chains, "WARM_MB", 3.5 * store._warm._size / 1024 / 1024)
    for n in (1, 2):
        await store.store_response(f"r{n}", **row(f"r{n}"))
    await store.get_history("r0")
    await store.store_response("r3", **row("r3"))
    statements = await database.reads(store)
    for kept in ("r0", "r2", "r3"):
        await store.get_history(kept)
    assert statements == []
    await store.get_history("r1")
    assert len(statements) == 1, "the one that was used longest ago is gone"


async def test_one_that_is_larger_than_all_that_may_be_kept_is_read(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.warm_chains, "WARM_MB", 100 / 1024 / 1024)
    await store.store_response("r0", **row("r0"))
    statements = await database.reads(store)
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
async def test_a_response_that_is_deleted_while_it_runs_does_not_come_back(
    store: Store, other: Store, database: Database, by: str
) -> None:
    await store.store_response("r0", **row("r0", status="in_progress"))
    await (store if by == "itself" else other).delete_response("r0")
    await store.update_response("r0", response("r0"))
    assert (await store.get_history("r0")).missing == "r0"
    assert await database.indexed_items(store) == set(), "items of no response are left"


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
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.store_response("r0", **row("r0"))
    await store.store_response("r1", **row("r1", "r0"))
    store.deletions.add(1)
    database.overtake(store, monkeypatch, lambda: store.delete_response("r0"))
    assert not (await store.get_history("r1")).missing
    assert (await store.get_history("r1")).missing == "r0"


async def test_the_last_word_on_a_response_counts(store: Store) -> None:
    store.store_response("r0", **row("r0"))
    await store.update_response("r0", response("r0", "failed") | {"output": []})
    assert (await store.get_history("r0")).items == [with_id("question r0")]


@pytest.mark.parametrize("seed", range(12))
async def test_memory_and_database_say_the_same_whatever_happens(
    store: Store, other: Store, database: Database, cold: Store, seed: int
) -> None:
    """Turns of many conversations that begin, end, branch, fail to be stored and are deleted, some of them at the same
    time."""
    chance = random.Random(seed)
    names, known, running = count(), list[str](), list[str]()
    statements = await database.reads(store)
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
            assert outcome(await store.get_history(name)) == outcome(await read(cold, name)), f"{name}, seed {seed}"
    for name in [*known, *running]:
        asked += 1
        assert outcome(await store.get_history(name)) == outcome(await read(cold, name)), f"{name}, seed {seed}"
    histories = [sql for sql in statements if "RECURSIVE" in sql]
    assert 0 < len(histories) < asked, f"{len(histories)} of {asked} were read: nothing is warm, or nothing is cold"
