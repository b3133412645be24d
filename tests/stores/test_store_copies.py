"""What a store gives for a copy of it, and takes from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

import stores.copies
from core.keys import StoredKey
from core.usage import Use
from db import TABLES, CopiedRow, CopyError, Store, Table, make_store
from tests.stores.databases import DATABASES, Database
from tests.stores.rows import row, said, said_in, with_id

BY_NAME = {table.name: table for table in TABLES}
# Texts whose order depends on who compares them.
ODD_IDS = ["a", "B", "b", "é", "z", "Z", "_", "-", "10", "9", "\U0001f600", "\uffef", "a b", "ａ"]


async def all_rows(store: Store, table: Table) -> list[CopiedRow]:
    found: list[CopiedRow] = []
    while rows := await store.read_rows(table, table.key_of(found[-1]) if found else None):
        found += rows
    return found


async def fill(store: Store) -> None:
    """A row of every kind."""
    for number, name in enumerate(ODD_IDS):
        turn = said(f"text {name} \0 end", after=f"r{number - 1}" if number else None)
        turn["input_messages"] = [with_id(name)]
        await store.store_response(f"r{number}", owner=name if number % 2 else "", **turn)
    await store.store_response("waiting", **row("queued"), request=b"\x00\xff\xfe sealed", conversation="conv_1")
    await store.store_response("bare", **{**row(), "response": None, "previous_response_id": None})
    for number, name in enumerate(ODD_IDS):
        items = [with_id(name), with_id("other \0 id")]
        store.store_conversation(f"conv_{number}", created_at=5, metadata={"a": "\0"}, items=items, owner=name)
    await store.store_events("r0", [{"type": "response.completed", "sequence_number": 0}])
    await store.get_setting("seal_key", "a secret")
    used = Use(1, input_tokens=2, slot_s=0.5, cost=0.25)
    await store.count_usage({(name, 2 * hour, "k", "m", "e"): used for hour, name in enumerate(ODD_IDS)})
    keys = [StoredKey(bytes([number]) * 32, name, "nk-", b"{}", number) for number, name in enumerate(ODD_IDS)]
    await store.put_keys([*keys, StoredKey(b"\xff" * 32, "ended", "nk-", b"{}", 5, 6.5, "revoked")], 0)
    await store.delete_response("r2")


async def test_every_table_and_column_of_the_database_is_copied(store: Store, database: Database) -> None:
    assert {table.name: set(table.columns) for table in TABLES} == await database.tables(store)


@pytest.mark.parametrize("copied_bytes", [1, 300, stores.copies.COPIED_BYTES])
async def test_rows_come_in_pieces_in_the_order_of_their_key(
    store: Store, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(store)
    whole = {name: await all_rows(store, table) for name, table in BY_NAME.items()}
    monkeypatch.setattr("stores.copies.COPIED_BYTES", copied_bytes)
    for name, table in BY_NAME.items():
        rows = await all_rows(store, table)
        assert rows == whole[name]
        assert len(rows) == await store.count_rows(table) > 0
        keys = [[part.encode() if isinstance(part, str) else part for part in table.key_of(one)] for one in rows]
        assert keys == sorted(keys)
        if copied_bytes == 1:
            assert [await store.read_rows(table)] == [rows[:1]]


@pytest.mark.parametrize("name", DATABASES)
async def test_a_store_that_was_given_all_rows_of_another_is_as_that_one(
    store: Store, name: str, tmp_path: Path
) -> None:
    await fill(store)
    copy = make_store(DATABASES[name](tmp_path / "copy").url)
    await copy.open()
    for table in TABLES:
        await copy.write_rows(table, await all_rows(store, table))
    for table in TABLES:
        assert await all_rows(copy, table) == await all_rows(store, table)
    assert await copy.get_setting("seal_key", "another") == "a secret"
    assert await said_in(copy, "r1", owner="B") == await said_in(store, "r1", owner="B") != []
    assert await copy.get_events("r0") == await store.get_events("r0") != []
    assert await copy.get_items(ODD_IDS) == await store.get_items(ODD_IDS) != {}
    pages = [await one.list_conversation_items("conv_1", owner="B") for one in (copy, store)]
    assert pages[0] == pages[1]
    assert len(pages[0].items) == 2
    assert await copy.unfinished() == await store.unfinished() != []
    # What comes next has a number of its own, behind those that came along.
    await copy.store_response("next", **said("more", after="r0"))
    assert (await all_rows(copy, BY_NAME["responses"]))[:-1] == await all_rows(store, BY_NAME["responses"])
    await copy.store_conversation("next", created_at=6, metadata={}, items=[with_id("a")])
    assert (await all_rows(copy, BY_NAME["conversations"]))[:-1] == await all_rows(store, BY_NAME["conversations"])
    assert (await said_in(copy, "next"))[-2:] == ["more", "answer to more"]
    await copy.close()


async def test_rows_that_are_there_already_are_refused_and_nothing_of_them_is_written(store: Store) -> None:
    await fill(store)
    responses = BY_NAME["responses"]
    before = await all_rows(store, responses)
    new = (1_000_000, "", "new", *before[0][3:])
    with pytest.raises(CopyError, match="responses"):
        await store.write_rows(responses, [new, before[0]])
    assert await all_rows(store, responses) == before
