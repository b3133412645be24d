"""Rows of a SQLite database as every store gives and takes them (`stores/copies.py`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from stores import copies
from stores.copies import CopiedRow, Table, length_of
from stores.sqlite_connection import transaction


def read_rows(table: Table, after: CopiedRow | None, connection: sqlite3.Connection) -> list[CopiedRow]:
    """The rows behind a key, of about `COPIED_BYTES`."""
    key, marks = ", ".join(table.key), ", ".join("?" * len(table.key))
    where = "" if after is None else f"WHERE ({key}) > ({marks})"
    cursor = connection.execute(
        f"SELECT {', '.join(table.columns)} FROM {table.name} {where} ORDER BY {key}", after or ()
    )
    rows: list[CopiedRow] = []
    length = 0
    try:
        for values in cursor:
            rows.append(row := table.row_of(values))
            if (length := length + length_of(row)) >= copies.COPIED_BYTES:
                break
    finally:
        cursor.close()
    return rows


def write_rows(table: Table, rows: Sequence[CopiedRow], connection: sqlite3.Connection) -> None:
    """Adds rows, all or none."""
    marks = ", ".join("?" * len(table.columns))
    with transaction(connection):
        connection.executemany(f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})", rows)


def count_rows(table: Table, connection: sqlite3.Connection) -> int:
    """How many rows it has."""
    count: int = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]
    return count
