"""The keys in SQLite: read since a change, and changed all or none."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from core.keys import StoredKey
from stores.sqlite_connection import transaction

COLUMNS = "digest, name, shown, settings, created_at, ends_at, ended_by, change"
LIST = f"SELECT {COLUMNS} FROM api_keys WHERE change > ? ORDER BY change, created_at, name"
LAST_CHANGE = "SELECT COALESCE(MAX(change), 0) FROM api_keys"
PUT = f"INSERT OR REPLACE INTO api_keys ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


def stored_key(row: sqlite3.Row) -> StoredKey:
    """The key of a row."""
    return StoredKey(**dict(row))


def put_keys(keys: Sequence[StoredKey], after: int, connection: sqlite3.Connection) -> bool:
    """Puts keys, if the last change of all is `after`. Gives whether it was."""
    with transaction(connection):
        if connection.execute(LAST_CHANGE).fetchone()[0] != after:
            return False
        rows = [
            (
                *(key.digest, key.name, key.shown, key.settings, key.created_at, key.ends_at, key.ended_by),
                after + 1,
            )
            for key in keys
        ]
        connection.executemany(PUT, rows)
    return True
