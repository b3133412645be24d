"""Version 3: what was used, by the hour, and by the day when it is old.

usage   a row for each hour, owner, key, model and endpoint; `seconds` is 3600, or 86400 for a day
"""

from __future__ import annotations

import sqlite3

TABLE = """CREATE TABLE usage (
        owner TEXT NOT NULL,
        at INTEGER NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        seconds INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        errors INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        slot_s REAL NOT NULL,
        cache_hits INTEGER NOT NULL,
        cost REAL NOT NULL,
        PRIMARY KEY (owner, at, key, model, endpoint, seconds)
    ) WITHOUT ROWID"""
INDEX = "CREATE INDEX usage_at ON usage (at)"


def migrate(connection: sqlite3.Connection) -> None:
    """Makes the table, empty: what was used before was not kept."""
    connection.execute(TABLE)
    connection.execute(INDEX)
