"""Brings a SQLite database to the newest version, also when several processes start at once.

    PRAGMA user_version: 0 ──sqlite_0001_responses──▶ 1 ──sqlite_0002_owners──▶ 2 ──▶ …

A new file goes through all of them, so that there is one way to a table. A change of the tables is a new file here and
a line in `MIGRATIONS`; what has been released is never edited.
"""

from __future__ import annotations

import logging
import sqlite3

from stores.migrations import (
    NewerDatabase,
    sqlite_0001_responses,
    sqlite_0002_owners,
    sqlite_0003_usage,
    sqlite_0004_keys,
    sqlite_0005_conversations,
)
from stores.sqlite_connection import BUSY_S, transaction

log = logging.getLogger("nomyo.db")

MIGRATIONS = (
    sqlite_0001_responses.migrate,
    sqlite_0002_owners.migrate,
    sqlite_0003_usage.migrate,
    sqlite_0004_keys.migrate,
    sqlite_0005_conversations.migrate,
)
# Another process may be bringing a large file along.
PATIENCE_S = 3600.0


def migrate(connection: sqlite3.Connection) -> None:
    """Each step in a transaction of its own: whoever stops in the middle goes on there the next time. Raises
    `NewerDatabase`."""
    if version_of(connection) == len(MIGRATIONS):
        return
    is_new = not connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {PATIENCE_S * 1000:.0f}")
    try:
        while _took_step(connection, is_new):
            pass
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
    if not is_new:
        # A table that was written anew has gone through the log, which would stay as long as it.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def version_of(connection: sqlite3.Connection) -> int:
    """The number of the last step that a database has taken; 0 for a new one, and for those from before there were
    steps."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _took_step(connection: sqlite3.Connection, is_new: bool) -> bool:
    with transaction(connection):
        # Looked at in here: another process may have done it while this one waited.
        version = version_of(connection)
        if version > len(MIGRATIONS):
            raise NewerDatabase(_name_of(connection), version, len(MIGRATIONS))
        if version == len(MIGRATIONS):
            return False
        if not is_new:
            log.info("%s: from version %d to %d", _name_of(connection), version, version + 1)
        MIGRATIONS[version](connection)
        connection.execute(f"PRAGMA user_version = {version + 1}")
    return True


def _name_of(connection: sqlite3.Connection) -> str:
    file: str = connection.execute("PRAGMA database_list").fetchone()["file"]
    return file or "The store in memory"
