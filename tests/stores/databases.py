"""The databases that a store can have, as its tests see them: a new one needs a class here and a line in
`DATABASES`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from db import Store
from stores.postgres_copies import OF_ITS_OWN
from tests.engines.postgres import ABSENT, shared_server


class Database(Protocol):
    """One that is empty when a test begins."""

    url: str
    is_shared: bool
    """Whether several stores can have it open, and what was stored is there when it is opened again."""

    async def reads(self, store: Store) -> list[str]:
        """A list that gets the SQL of each query that the store sends from now on."""
        ...

    async def commits(self, store: Store) -> list[str]:
        """A list that gets the SQL of each commit of the store from now on."""
        ...

    def overtake(self, store: Store, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[object]]) -> None:
        """Lets `act` happen between the store's next query and what it makes of the rows."""
        ...

    async def requests(self, store: Store) -> list[bytes]:
        """The requests that are kept."""
        ...

    async def indexed_items(self, store: Store) -> set[str]:
        """The ids under which items could be found."""
        ...

    async def tables(self, store: Store) -> dict[str, set[str]]:
        """The columns of each table of the database's that a copy of it must have."""
        ...

    def drop(self) -> None:
        """It is wanted no longer."""
        ...


class SQLiteFile:
    is_shared = True

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/deep/router.db"

    async def reads(self, store: Any) -> list[str]:
        return await sqlite_reads(store)

    async def commits(self, store: Any) -> list[str]:
        return await _traced(store._database._writer, lambda sql: sql.startswith("COMMIT"))

    def overtake(self, store: Any, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[object]]) -> None:
        read = store._database.read

        async def overtaken(*args: Any) -> Any:
            rows = await read(*args)
            monkeypatch.undo()
            await act()
            return rows

        monkeypatch.setattr(store._database, "read", overtaken)

    async def requests(self, store: Any) -> list[bytes]:
        rows = await store._database.read("SELECT request FROM responses WHERE request IS NOT NULL")
        return [row["request"] for row in rows]

    async def indexed_items(self, store: Any) -> set[str]:
        return {row["item_id"] for row in await store._database.read("SELECT item_id FROM response_items")}

    async def tables(self, store: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        columns = "SELECT t.name AS name, c.name AS column FROM sqlite_schema t, pragma_table_info(t.name) c"
        for row in await store._database.read(
            f"{columns} WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite!_%' ESCAPE '!'"
        ):
            found.setdefault(row["name"], set()).add(row["column"])
        return found

    def drop(self) -> None:
        pass


class SQLiteMemory(SQLiteFile):
    is_shared = False

    def __init__(self, folder: Path) -> None:
        self.url = "sqlite://"


class PostgresDatabase:
    """Of the server that all tests have in common."""

    is_shared = True

    def __init__(self, folder: Path) -> None:
        if ABSENT:
            pytest.skip(ABSENT)
        self._server = shared_server()
        self.url = self._server.new_database()

    async def reads(self, store: Any) -> list[str]:
        return self._runs(store._database._readers)

    async def commits(self, store: Any) -> list[str]:
        return self._runs(store._database._writer)

    def _runs(self, pool: Any) -> list[str]:
        """Gets the SQL of each round trip, which is a transaction."""
        run, seen = pool.run, list[str]()

        async def traced(*statements: Any) -> Any:
            seen.append("; ".join(statement.sql for statement in statements))
            return await run(*statements)

        pool.run = traced
        return seen

    def overtake(self, store: Any, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Awaitable[object]]) -> None:
        read = store._database.read

        async def overtaken(*statements: Any) -> Any:
            rows = await read(*statements)
            monkeypatch.undo()
            await act()
            return rows

        monkeypatch.setattr(store._database, "read", overtaken)

    async def requests(self, store: Any) -> list[bytes]:
        return [row[0] for row in await store._read("SELECT request FROM responses WHERE request IS NOT NULL")]

    async def indexed_items(self, store: Any) -> set[str]:
        return {row[0].decode() for row in await store._read("SELECT item_id FROM response_items")}

    async def tables(self, store: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        columns = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        for table, column in await store._read(columns):
            if table.decode() not in OF_ITS_OWN and column.decode() not in OF_ITS_OWN:
                found.setdefault(table.decode(), set()).add(column.decode())
        return found

    def drop(self) -> None:
        self._server.give_back(self.url)


async def sqlite_reads(store: Any) -> list[str]:
    return await _traced(store._database._reader, lambda sql: sql.startswith(("SELECT", "WITH RECURSIVE")))


async def _traced(connection: Any, is_wanted: Callable[[str], bool]) -> list[str]:
    statements: list[str] = []
    await connection.run(
        lambda sqlite: sqlite.set_trace_callback(lambda sql: statements.append(sql) if is_wanted(sql) else None)
    )
    return statements


DATABASES: dict[str, type[SQLiteFile] | type[PostgresDatabase]] = {
    "sqlite-file": SQLiteFile,
    "sqlite-memory": SQLiteMemory,
    "postgres": PostgresDatabase,
}
SHARED = [name for name, database in DATABASES.items() if database.is_shared]
# For tests in which several stores have one database.
shared = pytest.mark.parametrize("database", SHARED, indirect=True)
