"""Stores on a PostgreSQL of the tests, and what is behind them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from core.config import DatabaseConfig
from core.errors import ServerError
from db import Store, make_store
from tests.stores.rows import row


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


def let_die(url: str, service: str) -> None:
    """As after a crash: nobody has heard of it for long."""
    sql_of(url, f"UPDATE processes SET seen_at = now() - interval '1 hour' WHERE service = '{service}'")


def sql_of(url: str, statement: str) -> list[Any]:
    import psycopg  # The extra `postgres`: most tests go without.

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
