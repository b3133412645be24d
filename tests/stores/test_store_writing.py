"""Every store queues what is written, commits it together, and loses nothing of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.errors import ServerError
from tests.stores.rows import row
from tests.turns import eventually, soon


async def test_many_turns_that_finish_together_are_committed_together(store, database):
    commits = await database.commits(store)
    await asyncio.gather(*(store.store_response(f"resp_{n}", **row()) for n in range(300)))
    assert 1 <= len(commits) <= 3, f"{len(commits)} commits for 300 responses"
    for n in (0, 150, 299):
        assert await store.get_response(f"resp_{n}") is not None


async def test_writes_of_one_batch_keep_their_order(store):
    done: list[str] = []

    async def note(name: str, write: Any) -> None:
        await write
        done.append(name)

    async with asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(note(f"store {n}", store.store_response(f"resp_{n}", **row("in_progress"))))
            group.create_task(note(f"update {n}", store.update_response(f"resp_{n}", {"status": "completed"})))
    assert [(await store.get_response(f"resp_{n}"))["status"] for n in range(20)] == ["completed"] * 20
    assert done == [f"{verb} {n}" for n in range(20) for verb in ("store", "update")]


async def test_a_write_is_queued_when_it_is_called_and_needs_nobody_to_wait(store):
    store.store_response("resp_1", **row())
    await store.store_response("resp_2", **row())
    assert await store.get_response("resp_1") is not None


async def test_who_stops_waiting_does_not_stop_the_write(store):
    waiting = asyncio.ensure_future(store.store_response("resp_1", **row()))
    waiting.cancel()
    await store.store_response("resp_2", **row())
    assert await store.get_response("resp_1") is not None


async def test_a_failed_write_raises_a_server_error_and_the_next_one_works(store):
    with pytest.raises(ServerError) as raised:
        await store.store_response("resp_1", **row() | {"model": object()})
    assert raised.value.code == "storage_error"
    await store.store_response("resp_2", **row())
    assert await store.get_response("resp_1") is None
    assert await store.get_response("resp_2") is not None


async def test_a_failed_write_does_not_take_others_down_with_it(store):
    good = [store.store_response(f"resp_{n}", **row()) for n in range(3)]
    bad = store.store_response("resp_bad", **row() | {"model": object()})
    good += [store.store_response(f"resp_{n}", **row()) for n in range(3, 6)]
    outcomes = await asyncio.gather(*good, bad, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["NoneType"] * 6 + ["ServerError"]
    assert [bool(await store.get_response(f"resp_{n}")) for n in range(6)] == [True] * 6


async def test_a_failed_write_that_nobody_waits_for_is_logged(store, caplog):
    store.store_response("resp_1", **row() | {"model": object()})
    await eventually(lambda: bool(caplog.records), "something is logged")
    assert [(record.name, record.levelname) for record in caplog.records] == [("nomyo.db", "ERROR")]


async def test_a_write_after_the_end_is_an_error_and_not_a_wait_for_ever(store):
    await store.close()
    with pytest.raises(ServerError):
        async with soon():
            await store.store_response("resp_1", **row())
