"""How the store in PostgreSQL starts: who is waited for, what is made, what is refused, and how it gets in."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import stores.migrations.postgres
import stores.postgres_database
import stores.postgres_pool
from core.errors import StartError
from db import make_store
from stores.migrations import NewerDatabase
from tests.engines.pooler import Pooler, certificate_for
from tests.engines.postgres import PostgresServer
from tests.engines.server import free_port
from tests.stores.postgres import Opened, sql_of
from tests.stores.rows import item, row
from tests.turns import eventually


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
