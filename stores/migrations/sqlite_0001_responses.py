"""Version 1: responses, their items and events, as the router kept them before its databases had versions.

A file of those days has all of this already, or of the still earlier ones nearly all.
"""

from __future__ import annotations

import sqlite3

TABLES = (
    """CREATE TABLE IF NOT EXISTS responses (
        id TEXT PRIMARY KEY,
        previous_response_id TEXT,
        model TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        input BLOB NOT NULL,
        output BLOB,
        response BLOB
    )""",
    "CREATE TABLE IF NOT EXISTS response_events (response_id TEXT PRIMARY KEY, events BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS response_items (item_id TEXT PRIMARY KEY, response_id TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


def migrate(connection: sqlite3.Connection) -> None:
    """Makes the tables, and adds what databases of the first versions lack."""
    for statement in TABLES:
        connection.execute(statement)
    if "output" not in {row["name"] for row in connection.execute("PRAGMA table_info(responses)")}:
        connection.execute("ALTER TABLE responses ADD COLUMN output BLOB")
