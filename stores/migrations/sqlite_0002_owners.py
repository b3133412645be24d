"""Version 2: everything has an owner, an item id stays with whoever wrote it first, and a queued turn keeps its
request.

    responses         a row a response. `number` is the order in which they were begun
    response_items    the responses that have an item, by its owner and id: it is the one of the lowest number
    response_events   the events of a background stream

All three are written anew: rows of earlier versions may hold the output within the response, and lead from an item to
the last response that had it.
"""

from __future__ import annotations

import sqlite3

import orjson

TABLES = (
    # What a conversation needs comes before what it does not: SQLite reads a long row only as far as it must.
    """CREATE TABLE responses (
        number INTEGER PRIMARY KEY,
        owner TEXT NOT NULL DEFAULT '',
        id TEXT NOT NULL,
        previous_response_id TEXT,
        conversation TEXT,
        model TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        input BLOB NOT NULL,
        output BLOB,
        response BLOB,
        request BLOB,
        UNIQUE (owner, id)
    )""",
    """CREATE TABLE response_items (
        owner TEXT NOT NULL DEFAULT '',
        item_id TEXT NOT NULL,
        response INTEGER NOT NULL,
        PRIMARY KEY (owner, item_id, response)
    ) WITHOUT ROWID""",
    "CREATE TABLE response_events (response INTEGER PRIMARY KEY, events BLOB NOT NULL)",
)
INDEXES = (
    """CREATE INDEX responses_previous ON responses (owner, previous_response_id)
        WHERE previous_response_id IS NOT NULL""",
    "CREATE INDEX responses_created ON responses (created_at)",
    "CREATE INDEX responses_running ON responses (status) WHERE status IN ('queued', 'in_progress')",
)
# An item may be anything, and so may its id.
ITEM_ID = """CASE item.type WHEN 'object' THEN
    CASE json_type(item.value, '$.id') WHEN 'text' THEN json_extract(item.value, '$.id') END END"""
COPY = (
    """INSERT INTO responses (number, id, previous_response_id, model, status, created_at, input, output, response)
        SELECT rowid, id, previous_response_id, model, status, created_at, CAST(input AS BLOB),
            CASE WHEN output IS NULL THEN output_in(response) ELSE output END,
            CASE WHEN output IS NULL THEN rest_of(response) ELSE response END
        FROM earlier_responses ORDER BY rowid""",
    """INSERT INTO response_events (response, events)
        SELECT r.number, e.events FROM earlier_response_events e JOIN responses r ON r.id = e.response_id""",
    *(
        f"""INSERT OR IGNORE INTO response_items (item_id, response)
        SELECT {ITEM_ID} AS item_id, r.number FROM responses r, json_each(CAST(r.{column} AS TEXT)) item
        WHERE r.status NOT IN ('queued', 'in_progress') AND item_id <> ''"""
        for column in ("input", "output")
    ),
)
EARLIER = ("responses", "response_items", "response_events")


def migrate(connection: sqlite3.Connection) -> None:
    """Makes the tables anew with owners and conversations, and moves all rows into them."""
    for table in EARLIER:
        connection.execute(f"ALTER TABLE {table} RENAME TO earlier_{table}")
    for statement in TABLES:
        connection.execute(statement)
    connection.create_function("output_in", 1, _output_in)
    connection.create_function("rest_of", 1, _rest_of)
    for statement in COPY:
        connection.execute(statement)
    for name in ("output_in", "rest_of"):
        connection.create_function(name, 1, None)
    for table in EARLIER:
        connection.execute(f"DROP TABLE earlier_{table}")  # with its indexes, whose names are wanted
    for statement in INDEXES:
        connection.execute(statement)


def _output_in(response: bytes | str | None) -> bytes | None:
    """The output, of a row that holds it within the response."""
    loaded = orjson.loads(response) if response else {}
    return orjson.dumps(loaded["output"]) if "output" in loaded else None


def _rest_of(response: bytes | str | None) -> bytes | None:
    """The response without it."""
    if not response:
        return None
    loaded = orjson.loads(response)
    return orjson.dumps({**loaded, "output": None} if "output" in loaded else loaded)
