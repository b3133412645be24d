"""The store in a file of SQLite: what other databases need not do in the same way."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import stores.sqlite
from core.errors import StartError
from db import Store, make_store
from tests.stores.rows import item, row
from tests.turns import SOON_S, soon

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    store = make_store(f"sqlite:///{path}")
    await store.open()
    yield store
    await store.close()


async def test_the_file_is_in_wal_mode(store, path):
    with sqlite3.connect(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


async def test_a_reader_does_not_wait_for_a_writer(store, path):
    await store.store_response("resp_1", **row())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.ensure_future(store.store_response("resp_2", **row()))
    async with soon():
        assert await store.get_response("resp_1") is not None
    assert not write.done()
    other.execute("COMMIT")
    await write
    other.close()


async def test_closing_writes_what_is_queued(store, path):
    writes = [store.store_response(f"resp_{n}", **row()) for n in range(50)]
    await store.close()
    await asyncio.wait_for(asyncio.gather(*writes), SOON_S)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT COUNT(*) FROM responses").fetchone() == (50,)
    other.close()


async def test_what_was_stored_is_there_after_a_restart(store, path):
    await store.store_response("resp_1", **row())
    await store.close()
    await store.open()
    assert (await store.get_response("resp_1"))["input"] == [item("hi")]


async def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(StartError, match=f"{tmp_path} is a folder"):
        await make_store(f"sqlite:///{tmp_path}").open()


def test_a_relative_url_is_a_relative_path():
    paths = [make_store(url)._database.path for url in ("sqlite:///data/router.db", "sqlite:////srv/router.db")]
    assert paths == ["data/router.db", "/srv/router.db"]
    assert make_store("sqlite://")._database.path == ":memory:"


# Opens a store, and ends without closing it.
LEFT_OPEN = """
import asyncio, sys
from db import make_store

async def main():
    store = make_store("sqlite:///" + sys.argv[1])
    await store.open()
    raise SystemExit(7)

asyncio.run(main())
"""


def test_a_process_that_ends_without_closing_the_store_ends(path):
    """The thread of its connection does not keep it."""
    ended = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(path)], cwd=ROOT, timeout=20, check=False)
    assert ended.returncode == 7


async def test_a_batch_of_writes_is_one_call_into_the_thread(store, monkeypatch):
    calls = []
    writer = store._database._writer._connection
    execute = writer._execute

    async def counted(*args):
        calls.append(args)
        return await execute(*args)

    monkeypatch.setattr(writer, "_execute", counted)
    await asyncio.gather(*(store.store_response(f"resp_{n}", **row()) for n in range(200)))
    assert 1 <= len(calls) <= 3, f"{len(calls)} calls for 200 responses"


PLANS = {
    "GET": ("", "id"),
    "GET_HISTORY": ("", "id", ""),
    "DELETE": ("", "id"),
    "DELETE_EVENTS": ("", "id"),
    "DELETE_ITEMS": ("", "id"),
    "STORE_ITEM": ("", "id", "item"),
    "GET_OF_ITEMS": ("[]", ""),
    "GET_EVENTS": ("", "id"),
    "GET_EXPIRED": (1,),
    "UNFINISHED_ROWS": (),
}


@pytest.mark.parametrize("name", PLANS)
async def test_no_statement_reads_a_whole_table(store, name):
    """By the plan that SQLite makes, whatever is in them."""
    sql = f"EXPLAIN QUERY PLAN {getattr(stores.sqlite, name)}"
    steps = [step["detail"] for step in await store._database.read(sql, *PLANS[name])]
    tables = ("r", "c", "i", "responses", "response_items", "response_events")
    scans = [step for step in steps if re.match(rf"SCAN ({'|'.join(tables)})\b(?!.* USING )", step)]
    assert not scans, f"{name}: {steps}"
