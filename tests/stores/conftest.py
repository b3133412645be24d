"""Every store that there is, for the tests that all of them must pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from db import Store, make_store
from tests.stores.databases import DATABASES, Database


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
