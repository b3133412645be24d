"""Version 5: conversations that clients have made, and what is in them.

conversations        a row for each; `used_at` is when it was made, or got its last items
conversation_items   its items, in the order of `number`: each a copy of its own, under an id that no other of them has
"""

from __future__ import annotations

import sqlite3

STATEMENTS = (
    """CREATE TABLE conversations (
        number INTEGER PRIMARY KEY,
        owner TEXT NOT NULL,
        id TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        used_at INTEGER NOT NULL,
        metadata BLOB NOT NULL,
        UNIQUE (owner, id)
    )""",
    "CREATE INDEX conversations_used ON conversations (used_at)",
    """CREATE TABLE conversation_items (
        number INTEGER PRIMARY KEY,
        conversation_number INTEGER NOT NULL,
        id TEXT NOT NULL,
        item BLOB NOT NULL,
        UNIQUE (conversation_number, id)
    )""",
    "CREATE INDEX conversation_items_of ON conversation_items (conversation_number, number)",
)


def migrate(connection: sqlite3.Connection) -> None:
    """Makes the tables, empty."""
    for statement in STATEMENTS:
        connection.execute(statement)
