"""The store in PostgreSQL: what other databases need not do in the same way."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

import stores.migrations.postgres
import stores.postgres_database
import stores.postgres_pool
from core.config import DatabaseConfig
from core.errors import ServerError, StartError, TakenOver
from db import Store, make_store
from stores import postgres_sql
from stores.migrations import NewerDatabase
from stores.postgres import statements_of
from tests.engines.pooler import Pooler, certificate_for
from tests.engines.postgres import PostgresServer
from tests.engines.server import free_port
from tests.stores.rows import item, row, said
from tests.turns import eventually, soon


@pytest.fixture
async def url(stack: AsyncExitStack, postgres: PostgresServer) -> str:
    """An empty database. It is given back when all is closed that a test has on its stack."""
    url = postgres.new_database()
    stack.callback(postgres.give_back, url)
    return url


class Opened:
    """Stores that a test has open, each of a service of its own."""

    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack, self.url = stack, url

    async def __call__(self, service: str | None = None, **settings: Any) -> Any:
        store = make_store(self.url, service=service, settings=DatabaseConfig(**settings))
        await store.open()
        store._database._steady_since -= 60  # As if it had been there for long.
        self._stack.push_async_callback(store.close)
        return store


@pytest.fixture
async def opened(stack: AsyncExitStack, url: str) -> Opened:
    return Opened(stack, url)


@pytest.fixture
async def own(stack: AsyncExitStack, own_postgres: PostgresServer) -> Any:
    """A store on a server that its test may stop."""
    return await Opened(stack, own_postgres.url())(service="own", timeout_s=5.0)


def sql_of(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


async def fails(store: Store, response_id: str = "refused") -> ServerError:
    """The error of a write that cannot be made for now."""
    with pytest.raises(ServerError) as raised:
        await store.store_response(response_id, **row())
    assert (raised.value.status, raised.value.code) == (503, "storage_error")
    assert raised.value.retry_after_s
    return raised.value


async def is_stored(store: Store, response_id: str) -> bool:
    try:
        await store.store_response(response_id, **row())
    except ServerError:
        return False
    return await store.get_response(response_id) is not None


# ── a server that is away ────────────────────────────────────────────────────────────────────────────────────────────


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


# ── a start ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_start_waits_for_the_server(
    own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "ATTEMPT_EVERY_S", 0.05)
    own_postgres.stop()
    store = make_store(own_postgres.url())
    opening = asyncio.create_task(store.open())
    await eventually(lambda: "trying again" in caplog.text, "it waits")
    own_postgres.start()
    await opening
    await store.store_response("r", **row())
    await store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://me:secret@127.0.0.1:{free}/router", "refused"),
        ("postgresql://postgres:secret@127.0.0.1:{port}/no_such", 'database "no_such" does not exist'),
        ("postgresql://postgres:secret@127.0.0.1:{port}/postgres?sslmode=require", "SSL"),
        ("postgresql://postgres:secret@127.0.0.1:{port}/postgres?no_such_option=1", "no_such_option"),
        ("postgresql://me:secret@127.0.0.1:port/postgres", "port"),
        ("postgresql://me:secret@no-such-host.invalid/postgres", "no-such-host.invalid"),
    ],
)
async def test_a_start_that_fails_is_one_line_without_a_password(
    url: str, words: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "PATIENCE_S", 0)
    with pytest.raises(StartError) as raised:
        await make_store(url.format(port=postgres.port, free=free_port())).open()
    line = str(raised.value)
    assert words in line
    assert "database.url" in line
    assert "secret" not in line
    assert "\n" not in line


async def test_a_database_of_a_newer_version_is_refused(opened: Opened) -> None:
    await (await opened()).close()
    sql_of(opened.url, "UPDATE nomyo_router SET version = 1000")
    ours = len(stores.migrations.postgres.MIGRATIONS)
    with pytest.raises(NewerDatabase, match=f"version 1000.*up to {ours}"):
        await opened()


async def test_a_database_with_tables_of_something_else_is_refused_and_left_alone(opened: Opened) -> None:
    sql_of(opened.url, "CREATE TABLE responses (mine TEXT)")
    sql_of(opened.url, "CREATE TABLE orders ()")
    with pytest.raises(StartError, match=r"tables of something else \(orders, responses\)"):
        await opened()
    assert sql_of(opened.url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(2,)]


async def test_what_an_extension_brings_is_nobodys(opened: Opened) -> None:
    sql_of(opened.url, "CREATE EXTENSION pg_buffercache")
    await opened()


async def test_of_many_that_start_at_once_one_makes_the_tables(opened: Opened) -> None:
    stores_ = await asyncio.gather(*(opened(service=f"s{number}") for number in range(6)))
    for number, store in enumerate(stores_):
        await store.store_response(f"r{number}", **row())
    assert await stores_[0].get_response("r5") is not None


async def test_a_step_that_breaks_off_leaves_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = stores.migrations.postgres.MIGRATIONS
    broken = lambda compressed: [*steps[0](compressed), "SELECT 1 / 0"]  # noqa: E731
    monkeypatch.setattr(stores.migrations.postgres, "MIGRATIONS", (broken,))
    with pytest.raises(StartError, match="division by zero"):
        await opened()
    assert sql_of(opened.url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    monkeypatch.setattr(stores.migrations.postgres, "MIGRATIONS", steps)
    await (await opened()).store_response("r", **row())


async def test_what_the_url_leaves_open_is_taken_from_the_environment(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch, stack: AsyncExitStack
) -> None:
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(postgres.port))
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setenv("PGDATABASE", url.rpartition("/")[2])
    store = await Opened(stack, "postgresql://")()
    await store.store_response("r", **row())
    assert sql_of(url, "SELECT id FROM responses") == [("r",)]


async def test_it_goes_with_a_password(
    own_postgres: PostgresServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_postgres.run("CREATE ROLE me LOGIN PASSWORD 'a secret/@:?'")
    own_postgres.run("CREATE DATABASE router OWNER me")
    own_postgres.ask_for_passwords()
    own_postgres.restart()
    at = f"127.0.0.1:{own_postgres.port}/router"
    for wrong, words in (("me", "password"), ("me:wrong", "password authentication failed")):
        with pytest.raises(StartError, match=words):
            await make_store(f"postgresql://{wrong}@{at}").open()
    await (await Opened(stack, f"postgresql://me:a%20secret%2F%40%3A%3F@{at}")()).store_response("r", **row())
    monkeypatch.setenv("PGPASSWORD", "a secret/@:?")
    assert await (await Opened(stack, f"postgresql://me@{at}")()).get_response("r") is not None


async def test_it_goes_by_tls(
    postgres: PostgresServer, url: str, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "PATIENCE_S", 0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate := certificate_for("localhost", tmp_path))
    before = Pooler.before(postgres.port, url.rpartition("/")[2], tls=context)
    at = f"postgresql://postgres@localhost:{(await stack.enter_async_context(before)).port}/pooled"
    for options, words in (("disable", "closed"), ("verify-full&sslrootcert=system", "certificate")):
        with pytest.raises(StartError, match=words):
            await make_store(f"{at}?sslmode={options}").open()
    for options in ("require", f"verify-full&sslrootcert={certificate}"):
        store = await Opened(stack, f"{at}?sslmode={options}")()
        large = item("x" * 3_000_000)
        await store.store_response(options, **row() | {"input_messages": [large]})
        store.deletions.add(1)
        assert (await store.get_history(options)).items == [large]


# ── several services ─────────────────────────────────────────────────────────────────────────────────────────────────


def let_die(url: str, service: str) -> None:
    """As after a crash: nobody has heard of it for long."""
    sql_of(url, f"UPDATE processes SET seen_at = now() - interval '1 hour' WHERE service = '{service}'")


async def test_what_a_living_service_works_on_is_left_alone(opened: Opened) -> None:
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"))
    assert await two.unfinished() == []
    assert await two.fail_orphaned_responses() == 0
    assert [response["id"] for response in await one.unfinished()] == ["r"]


async def test_what_a_dead_one_has_left_is_given_to_one_of_the_others(opened: Opened) -> None:
    dead, *others = [await opened(name) for name in ("dead", "a", "b", "c", "d")]
    for number in range(50):
        dead.store_response(f"r{number}", **row("queued"), request=b"sealed")
    await dead.store_response("ended", **row())
    let_die(opened.url, "dead")
    seen = await asyncio.gather(*(other.unfinished() for other in others))
    assert [len(rows) for rows in seen] == [50] * 4
    taken = await asyncio.gather(*(other.claim(rows) for other, rows in zip(others, seen, strict=True)))
    ids = [response["id"] for rows in taken for response in rows]
    assert sorted(ids) == sorted(f"r{number}" for number in range(50))
    for rows in taken:
        assert [response["request"] for response in rows] == [b"sealed"] * len(rows)


async def test_what_one_has_left_that_was_stopped_is_anybodys_at_once(opened: Opened) -> None:
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("queued"), request=b"sealed")
    await one.close()
    (left,) = await two.unfinished()
    assert left["id"] == "r"
    assert await two.claim([left]) == [left]
    assert await two.claim([left]) == [], "it is no longer the other's"


async def test_one_that_was_given_up_and_goes_on_changes_nothing_any_more(opened: Opened) -> None:
    """A process that stood still for long, and whose turn was failed meanwhile."""
    slow, other = await opened("slow"), await opened("other")
    await slow.store_response("r", **row("in_progress"))
    let_die(opened.url, "slow")
    assert await other.fail_orphaned_responses() == 1
    refused = slow.update_response("r", {"status": "completed", "output": []})
    others = [slow.store_response(f"r{number}", **row()) for number in range(3)]
    with pytest.raises(ServerError):  # Else whoever waits for it would take it for stored.
        await refused
    await asyncio.gather(*others)
    assert (await other.get_response("r"))["status"] == "failed"


async def test_what_is_deleted_while_it_runs_is_no_turn_of_anothers(opened: Opened) -> None:
    one, other = await opened("one"), await opened("other")
    await one.store_response("r", **row("in_progress"))
    assert await other.delete_response("r")
    await one.update_response("r", {"status": "completed", "output": []})
    assert await one.get_response("r") is None


async def test_nobody_is_taken_for_dead_because_the_database_was_away(opened: Opened) -> None:
    """Whoever is back first finds that nobody was seen lately."""
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"))
    two._database._seen_at -= 60
    await two._database._be_seen()
    let_die(opened.url, "one")
    assert await two.unfinished() == []
    two._database._steady_since -= 60
    assert len(await two.unfinished()) == 1


async def test_a_turn_that_was_claimed_is_its_new_processs(opened: Opened) -> None:
    slow, other = await opened("slow"), await opened("other")
    await slow.store_response("r", **row("queued"), request=b"sealed")
    let_die(opened.url, "slow")
    assert len(await other.claim(await other.unfinished())) == 1
    with pytest.raises(ServerError):
        await slow.update_response("r", {"status": "failed", "output": []})
    await other.update_response("r", {"status": "in_progress", "output": []})
    await other.update_response("r", {"status": "completed", "output": []})
    assert (await other.get_response("r"))["status"] == "completed"


async def test_what_waits_for_long_is_taken_by_its_priority_and_once(opened: Opened) -> None:
    full, *others = [await opened(name) for name in ("full", "a", "b")]
    for number in range(12):
        full.store_response(f"r{number:02}", **row("queued"), request=b"sealed", moves_at=-(number % 3))
    full.store_response("stays", **row("queued"), request=b"sealed")
    full.store_response("runs", **row("in_progress"), request=b"sealed", moves_at=0)
    await full.store_response("ended", **row(), moves_at=0)
    assert await others[0].take_waiting(100) == [], "they have only just begun to wait"
    sql_of(opened.url, "UPDATE responses SET waits_since = waits_since - interval '1 minute'")
    (first,) = await others[0].take_waiting(1)
    assert (first["id"], first["request"]) == ("r02", b"sealed")
    taken = await asyncio.gather(*(other.take_waiting(6) for other in others))
    ids = [response["id"] for rows in taken for response in rows]
    assert sorted(ids) == sorted({f"r{number:02}" for number in range(12)} - {"r02"})
    with pytest.raises(TakenOver):
        await full.update_response("r00", {"status": "in_progress", "output": []})
    assert {response["id"] for response in await full.unfinished()} == {"stays", "runs"}


def test_who_cancels_waits_for_less_than_a_second_also_where_nothing_is_heard() -> None:
    assert stores.postgres_database.UNWANTED_EVERY_S < 1


@pytest.mark.parametrize("hears", [True, False])
async def test_a_process_learns_what_others_were_asked_to_cancel(
    opened: Opened, hears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "UNWANTED_EVERY_S", 3600 if hears else 0.02)
    if not hears:
        monkeypatch.setattr(stores.postgres_listener.PostgresListener, "open", lambda self: None)
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"), owner="ann")
    await one.store_response("ended", **row(), owner="ann")
    assert not await two.ask_to_cancel("ended", owner="ann")
    assert not await two.ask_to_cancel("r", owner="bob")
    assert await two.ask_to_cancel("r", owner="ann")
    async with soon():
        assert await anext(one.unwanted()) == ("ann", "r")


async def test_what_is_abandoned_is_noticed(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.postgres_database, "LOOK_FOR_ABANDONED_S", 0.01)
    one, two = await opened("one"), await opened("two")
    noticed = 0

    async def notice() -> None:
        nonlocal noticed
        async for _ in two.abandoned():
            noticed += 1

    noticing = asyncio.create_task(notice())
    await one.store_response("r", **row("queued"))
    await asyncio.sleep(0.1)
    assert not noticed
    let_die(opened.url, "one")
    await eventually(lambda: bool(noticed), "it is noticed")
    noticing.cancel()


async def test_one_that_works_is_seen_again_and_again(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.postgres_database, "SEEN_EVERY_S", 0.02)
    await opened("one")
    let_die(opened.url, "one")
    await eventually(
        lambda: bool(sql_of(opened.url, "SELECT 1 FROM processes WHERE seen_at > now() - interval '1 minute'")),
        "it is seen",
    )


@pytest.mark.parametrize("hears", [True, False])
async def test_what_another_service_deletes_is_in_no_memory(
    opened: Opened, hears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "LOOK_EVERY_S", 3600 if hears else 0.02)
    if not hears:
        monkeypatch.setattr(stores.postgres_listener.PostgresListener, "open", lambda self: None)
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **said("hello"))
    assert len((await two.get_history("r")).items) == 2

    async def is_listening() -> bool:
        return not hears or bool(sql_of(opened.url, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%LISTEN%'"))

    await eventually(is_listening, "it listens")
    await one.delete_response("r")

    async def is_gone() -> bool:
        return (await two.get_history("r")).missing == "r"

    await eventually(is_gone, "it is gone")


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
