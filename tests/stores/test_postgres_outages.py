"""The store in PostgreSQL while its server is away, or takes nothing."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

import stores.migrations.postgres
import stores.postgres_database
import stores.postgres_pool
from core.errors import ServerError
from stores.postgres import statements_of
from tests.engines.postgres import PostgresServer
from tests.stores.postgres import Opened, fails, is_stored
from tests.stores.rows import item, row
from tests.turns import eventually


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_while_the_server_is_away_all_fails_at_once_and_then_nothing(
    own: Any, own_postgres: PostgresServer, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    await own.store_response("before", **row())
    getattr(own_postgres, end)()
    await fails(own)
    with pytest.raises(ServerError) as raised:
        await own.get_response("before")
    assert (raised.value.status, raised.value.retry_after_s) == (503, 5.0)
    assert "127.0.0.1" in (await own.outage() or "")
    own_postgres.start()
    await eventually(lambda: is_stored(own, "after"), "it is stored again")
    assert (await own.get_response("before"))["input"] == [item("hi")]
    assert await own.outage() is None
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines[0].startswith("nothing can be stored: PostgreSQL at 127.0.0.1")
    assert lines[-1] == "responses are stored again"


async def test_a_restart_between_two_turns_is_noticed_by_nobody(own: Any, own_postgres: PostgresServer) -> None:
    for number in range(3):
        await own.store_response(f"r{number}", **row())
        assert await own.get_response(f"r{number}") is not None
        own_postgres.restart()
    await own.store_response("last", **row())
    assert await own.get_response("r0") is not None


@pytest.mark.heavy
async def test_what_is_written_when_the_server_dies_is_written_or_refused(
    own: Any, own_postgres: PostgresServer
) -> None:
    """Never lost: whoever got no error finds it."""
    written = {f"r{number}": own.store_response(f"r{number}", **row()) for number in range(200)}
    await asyncio.sleep(0)
    own_postgres.kill()
    outcomes = dict(zip(written, await asyncio.gather(*written.values(), return_exceptions=True), strict=True))
    own_postgres.start()
    await eventually(lambda: is_stored(own, "after"), "it is stored again")
    for response_id, outcome in outcomes.items():
        assert outcome is None or isinstance(outcome, ServerError)
        assert outcome is not None or await own.get_response(response_id) is not None


@pytest.mark.heavy
async def test_a_server_that_stands_still_is_waited_for_no_longer_than_a_statement_may_take(
    stack: AsyncExitStack, own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_connection, "CONNECT_S", 2)
    store = await Opened(stack, own_postgres.url())(service="own", timeout_s=0.3)
    await store.store_response("before", **row())
    own_postgres.pause()
    await fails(store)
    with pytest.raises(ServerError):
        await store.get_response("before")
    own_postgres.resume()
    await eventually(lambda: is_stored(store, "after"), "it is stored again")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "read-only"),
        ("LOCK TABLE responses", "lock timeout"),
    ],
)
async def test_a_database_that_takes_nothing_is_an_outage(opened: Opened, state: str, words: str) -> None:
    store = await opened(timeout_s=0.3)
    name = opened.url.rpartition("/")[2]
    with psycopg.connect(opened.url) as other:
        other.execute(state.format(name=name))  # type: ignore[call-overload]
        if "ALTER" in state:
            other.commit()
            store._database._writer.close()
        failure = await fails(store)
        assert words in str(failure.__cause__)
        other.rollback()
        other.execute(f"ALTER DATABASE {name} RESET ALL")  # type: ignore[call-overload]
        other.commit()
    store._database._writer.close()
    await store.store_response("after", **row())


@pytest.mark.heavy
async def test_two_that_stand_in_each_others_way_both_get_on(opened: Opened) -> None:
    """Transactions that PostgreSQL ends because each waits for the other go again."""
    one, two = await opened(), await opened()
    for name in ("a", "b"):
        await one.store_response(name, **row("in_progress"))
    for _ in range(4):
        await asyncio.gather(
            one._database.write(*statements_of([one._failing(changed(n)) for n in "ab" for _ in (0, 1)])),
            two._database.write(*statements_of([two._failing(changed(n)) for n in "ba" for _ in (0, 1)])),
        )


def changed(name: str) -> Any:
    return stores.queued_store.ChangedRow(("", name), "in_progress", b"[]", b"{}", [], False)
