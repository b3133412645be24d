"""Every store that there is, for the tests that all of them must pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from db import Store, make_store
from tests.engines.postgres import PostgresServer
from tests.stores.databases import DATABASES, Database
from tests.stores.postgres import Opened


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = DATABASES[request.param](tmp_path)
    yield database
    database.drop()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    store = make_store(database.url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other(store: Store, database: Database) -> AsyncIterator[Store]:
    """The store of another worker."""
    assert database.is_shared, "give the test `shared`"
    other = make_store(database.url, store.deletions)
    await other.open()
    yield other
    await other.close()


# ── PostgreSQL alone ──


@pytest.fixture
async def url(stack: AsyncExitStack, postgres: PostgresServer) -> str:
    """An empty database. It is given back when all is closed that a test has on its stack."""
    url = postgres.new_database()
    stack.callback(postgres.give_back, url)
    return url


@pytest.fixture
async def opened(stack: AsyncExitStack, url: str) -> Opened:
    return Opened(stack, url)


@pytest.fixture
async def own(stack: AsyncExitStack, own_postgres: PostgresServer) -> Any:
    """A store on a server that its test may stop."""
    return await Opened(stack, own_postgres.url())(service="own", timeout_s=5.0)
