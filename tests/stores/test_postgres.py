"""The store in PostgreSQL: what its batches, connections and reads cost, and a pooler before it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

import stores.migrations.postgres
import stores.postgres_database
import stores.postgres_pool
from core.errors import ServerError
from stores import postgres_sql
from stores.postgres import statements_of
from tests.engines.pooler import Pooler
from tests.engines.postgres import PostgresServer
from tests.stores.postgres import Opened, let_die, sql_of
from tests.stores.rows import item, row, said
from tests.turns import eventually, soon

# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_turns_of_a_batch_are_a_handful_of_statements(opened: Opened) -> None:
    store = await opened()
    writes = []
    for number in range(100):
        values = said(f"text {number}") | {"input_messages": [{"id": f"i{number}", **item("hi")}]}
        writes += store.store_response(f"r{number}", **values).writes
    assert len(writes) == 200
    assert len(list(statements_of(writes))) == 2


async def test_no_more_connections_are_made_than_may_be(opened: Opened) -> None:
    store = await opened(max_connections=3)
    await store.store_response("r", **row())
    async with soon():
        await asyncio.gather(*(store.get_response("r") for _ in range(100)), store.store_response("s", **row()))
    name = opened.url.rpartition("/")[2]
    ((number,),) = sql_of(
        opened.url, f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )
    assert number <= 3


async def test_whoever_reads_keeps_nobody_from_being_seen(opened: Opened) -> None:
    store = await opened("one", max_connections=4)
    reading = [asyncio.create_task(store._read("SELECT pg_sleep(60)")) for _ in range(3)]
    await asyncio.sleep(0)
    let_die(opened.url, "one")
    async with soon():
        await store._database._be_seen()
        await store.store_response("r", **row())
    assert sql_of(opened.url, "SELECT 1 FROM processes WHERE seen_at > now() - interval '1 minute'")
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)


async def test_a_look_that_fails_ends_no_looking(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stores.postgres_database, "LOOK_EVERY_S", 0.02)
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"))
    sql_of(opened.url, "ALTER TABLE responses RENAME TO away; ALTER TABLE counters RENAME TO gone")
    wanted = asyncio.create_task(anext(one.unwanted()))
    await eventually(lambda: caplog.text.count("could not be looked at") > 4, "it fails")
    sql_of(opened.url, "ALTER TABLE away RENAME TO responses; ALTER TABLE gone RENAME TO counters")
    assert await two.ask_to_cancel("r")
    async with soon():
        assert await wanted == ("", "r")


async def test_who_stops_waiting_for_a_read_takes_nothing_from_others(opened: Opened) -> None:
    store = await opened(max_connections=2)
    await store.store_response("r", **row())
    for _ in range(10):
        reading = [asyncio.ensure_future(store.get_response("r")) for _ in range(5)]
        await asyncio.sleep(0)
        for task in reading[:4]:
            task.cancel()
        async with soon():
            assert await reading[4] is not None


INDEXED = {
    "GET": ("", "r1"),
    "EXISTS": ("", "r1"),
    "GET_HISTORY": ("", "r1"),
    "GET_EVENTS": ("", "r1"),
    "GET_OF_ITEMS": (["i1_1"], ""),
    "UPDATE": ([""], ["r1"], ["completed"], ["[]"], [b"[]"], [b"{}"], [None]),
    "STORE_ITEM": ([""], ["r1"], ["i1_1"]),
    "DELETE": ([""], ["r1"]),
    "UNFINISHED_ROWS": (30, "service"),
    "IS_ABANDONED": (30,),
    "CLAIM": ("process", [""], ["r1"], ["dead"]),
    "TAKE_WAITING": ("process", 4),
    "ASK_TO_CANCEL": ("", "r1"),
    "UNWANTED": ("process",),
}


async def test_no_verb_looks_at_all_rows(opened: Opened) -> None:
    store = await opened()
    sql_of(
        opened.url,
        """INSERT INTO responses (owner, id, previous_response_id, model, status, created_at, input_ids, input)
        SELECT '', 'r' || n, 'r' || (n - 1), 'm', 'completed', n, '[]', '[]' FROM generate_series(1, 20000) n""",
    )
    sql_of(
        opened.url,
        """INSERT INTO response_items SELECT owner, 'i' || number || '_' || item, number
        FROM responses, generate_series(1, 20) item""",
    )
    sql_of(opened.url, "INSERT INTO response_events SELECT number, '[]' FROM responses")
    sql_of(opened.url, "ANALYZE")
    for name, values in INDEXED.items():
        plan = await store._read(f"EXPLAIN {getattr(postgres_sql, name)}", *values)
        lines = [line[0].decode() for line in plan]
        assert not [line for line in lines if "Seq Scan on response" in line], "\n".join([name, *lines])


# ── behind a pooler ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_direct", [True, False])
async def test_behind_a_pooler_of_transactions_all_goes_its_way(
    stack: AsyncExitStack, url: str, postgres: PostgresServer, is_direct: bool
) -> None:
    pooler = await stack.enter_async_context(Pooler.before(postgres.port, url.rpartition("/")[2]))
    pooled = Opened(stack, f"postgresql://postgres@127.0.0.1:{pooler.port}/pooled")
    settings = {"direct_url": url} if is_direct else {}
    one, two = [await pooled(service, **settings) for service in ("one", "two")]
    for number in range(20):
        after = f"r{number - 1}" if number else None
        await (one if number % 2 else two).store_response(f"r{number}", **said(f"text {number}", after=after))
    assert len((await one.get_history("r19")).items) == 40
    await asyncio.gather(*(store.store_response(f"s{n}", **row()) for n in range(20) for store in (one, two)))
    assert await one.put_keys([], 0)
    assert not await one.put_keys([], 1)
    assert min(pooler.transactions) > 5, "each session had its turn"
    await one.delete_response("r19")

    async def is_gone() -> bool:
        return (await two.get_history("r19")).missing == "r19"

    await eventually(is_gone, "it is gone")


async def test_behind_a_pooler_a_statement_may_take_no_longer(
    stack: AsyncExitStack, url: str, postgres: PostgresServer
) -> None:
    pooler = await stack.enter_async_context(Pooler.before(postgres.port, url.rpartition("/")[2]))
    pooled = Opened(stack, f"postgresql://postgres@127.0.0.1:{pooler.port}/pooled")
    store = await pooled(direct_url=url, timeout_s=0.2)
    with pytest.raises(ServerError, match="cannot be read") as raised:
        await store._read("SELECT pg_sleep(60)")
    assert "statement timeout" in str(raised.value.__cause__)
    assert (await store._read("SHOW statement_timeout"))[0] == [b"200ms"]
    assert sql_of(url, "SHOW statement_timeout") == [("0",)]
