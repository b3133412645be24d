"""Version 4: the keys that the command makes.

api_keys   a row for each key that there ever was, by its SHA-256; `change` counts the changes of all of them
"""

from __future__ import annotations

import sqlite3

TABLE = """CREATE TABLE api_keys (
        digest BLOB PRIMARY KEY,
        name TEXT NOT NULL,
        shown TEXT NOT NULL,
        settings BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        ends_at REAL,
        ended_by TEXT,
        change INTEGER NOT NULL
    ) WITHOUT ROWID"""
INDEX = "CREATE INDEX api_keys_change ON api_keys (change)"


def migrate(connection: sqlite3.Connection) -> None:
    """Makes the table, empty."""
    connection.execute(TABLE)
    connection.execute(INDEX)
