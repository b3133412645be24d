"""Brings a PostgreSQL database to the newest version, one replica at a time.

    nomyo_router: the number of the last step; there is no such table ──postgres_0001_responses──▶ 1 ──▶ …

Each step is a transaction, and whoever has the lock takes it. A change of the tables is a new file here and a line in
`MIGRATIONS`; what has been released is never edited.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from core.errors import StartError
from stores.migrations import NewerDatabase, postgres_0001_responses, postgres_0002_conversations

log = logging.getLogger("nomyo.db")

MIGRATIONS = (postgres_0001_responses.statements, postgres_0002_conversations.statements)
# Of the lock that whoever takes a step holds: any number that nobody else has.
LOCK = 0x6E6F6D796F
# A step may have much to write anew, and who waits for it waits as long.
PATIENT = (
    "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"
)
# Not by `to_regclass`, which remembers for a whole transaction that there was none.
HAS_TABLE = """SELECT count(*) > 0 FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relname = 'nomyo_router'"""
VERSION = "SELECT version FROM nomyo_router"
MAKE_VERSION = ("CREATE TABLE nomyo_router (version INTEGER NOT NULL)", "INSERT INTO nomyo_router VALUES (0)")
# Where we would make our tables, those that no extension has made.
FOREIGN_TABLES = """SELECT c.relname FROM pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
    ORDER BY c.relname"""
COMPRESSIONS = "SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'"
OLDEST = 140000


async def migrate(connect: Callable[[], Awaitable[psycopg.AsyncConnection]], name: str) -> None:
    """Takes the steps that the database lacks, on a connection of its own. `name` is what the database is called.
    Raises `NewerDatabase`, `StartError` where tables of somebody else's are in it, and `psycopg.Error`."""
    connection = await connect()
    try:
        if connection.info.server_version < OLDEST:
            raise StartError(
                f"{name} is PostgreSQL {connection.info.server_version // 10000}: "
                f"the router needs {OLDEST // 10000} or newer (database.url)"
            )
        while await _took_step(connection, name):
            pass
    finally:
        await connection.close()


async def _took_step(connection: psycopg.AsyncConnection, name: str) -> bool:
    async with connection.transaction():
        if await _version(connection, name) == len(MIGRATIONS):
            return False
        for statement in PATIENT.split("; "):
            await connection.execute(statement)
        await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
        # Looked at in here: another process may have done it while this one waited.
        version = await _version(connection, name)
        if version == len(MIGRATIONS):
            return False
        if version is None:
            await _check_emptiness(connection, name)
            for statement in MAKE_VERSION:
                await connection.execute(statement)
            version = 0
        else:
            log.info("%s: from version %d to %d", name, version, version + 1)
        has_lz4 = "lz4" in (await _value(connection, COMPRESSIONS) or ())
        for statement in MIGRATIONS[version]("COMPRESSION lz4" if has_lz4 else ""):
            await connection.execute(statement)
        await connection.execute(f"UPDATE nomyo_router SET version = {version + 1}")
    return True


async def _version(connection: psycopg.AsyncConnection, name: str) -> int | None:
    """The number of the last step, or None where there was none."""
    if not await _value(connection, HAS_TABLE):
        return None
    version = int(await _value(connection, VERSION))
    if version > len(MIGRATIONS):
        raise NewerDatabase(name, version, len(MIGRATIONS))
    return version


async def _check_emptiness(connection: psycopg.AsyncConnection, name: str) -> None:
    tables = [row[0] for row in await (await connection.execute(FOREIGN_TABLES)).fetchall()]
    if tables:
        some = ", ".join(tables[:3]) + (", …" if len(tables) > 3 else "")
        raise StartError(
            f"{name} has tables of something else ({some}): give the router a database of its own (database.url)"
        )


async def _value(connection: psycopg.AsyncConnection, sql: str) -> Any:
    row = await (await connection.execute(sql)).fetchone()
    return row[0] if row else None
