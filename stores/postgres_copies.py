"""Rows of a PostgreSQL database as every store gives and takes them (`stores/copies.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.json import decode_json
from stores import copies
from stores.copies import CopiedRow, Table, Value
from stores.postgres_connection import ResultRow, Statement
from stores.postgres_values import decode_float, decode_integer, decode_text
from stores.rows import UNFINISHED

# Tables and columns that no other database has: they follow from the rest, or matter while somebody serves.
OF_ITS_OWN = frozenset(
    {
        *("nomyo_router", "processes", "counters"),
        *("process", "is_unwanted", "moves_at", "waits_since", "input_ids", "output_ids"),
    }
)
INTEGERS = frozenset(
    {
        *(
            "number",
            "created_at",
            "used_at",
            "conversation_number",
            "response",
            "at",
            "seconds",
            "requests",
            "errors",
            "input_tokens",
        ),
        *("cached_tokens", "output_tokens", "reasoning_tokens", "cache_hits", "change"),
    }
)
FLOATS = frozenset({"slot_s", "cost", "ends_at"})
AT_MOST = 5000
LAST_NUMBER = """SELECT setval(pg_get_serial_sequence('{table}', 'number'), max(number))
    FROM {table} HAVING max(number) IS NOT NULL"""


def reading(table: Table, after: CopiedRow | None) -> Statement:
    """The rows behind a key, of about `COPIED_BYTES`."""
    columns = ", ".join(table.columns)
    order = _order(table, list(table.key))
    values = _order(table, [f"${number}::{_type(table, name)[0]}" for number, name in enumerate(table.key, 1)])
    lengths = [f"COALESCE(octet_length({name}), 0)" if _type(table, name)[1] else "8" for name in table.columns]
    return Statement(
        f"""WITH behind AS (
            SELECT {columns}, {" + ".join(lengths)} AS length FROM {table.name}
            {f"WHERE ({order}) > ({values})" if after is not None else ""} ORDER BY {order} LIMIT {AT_MOST}
        ), summed AS (SELECT *, sum(length) OVER (ORDER BY {order}) - length AS before FROM behind)
        SELECT {columns} FROM summed WHERE before < {copies.COPIED_BYTES} ORDER BY {order}""",
        after or (),
    )


def _order(table: Table, key: list[str]) -> str:
    """The order of a key, of columns or of values for them, as the index has it."""
    if table.name == "response_items":
        key.insert(1, f"left({key[1]}, 200)")
    return ", ".join(key)


def row_of(table: Table, row: ResultRow) -> CopiedRow:
    """A row as every store gives it."""
    return tuple(
        None if value is None else _type(table, name)[2](value) for name, value in zip(table.columns, row, strict=True)
    )


def writing(table: Table, rows: Sequence[CopiedRow], ids_of: Callable[[Sequence[Any]], str]) -> list[Statement]:
    """Adds rows. `ids_of` gives the ids of items, as the store keeps them."""
    names = list(table.columns)
    columns: list[Sequence[Value]] = [*zip(*rows, strict=True)]
    statements: list[Statement] = []
    if table.name == "responses":
        given = {name: columns[names.index(name)] for name in ("input", "output", "status")}
        columns.append([ids_of(decode_json(value or b"[]")) for value in given["input"]])  # type: ignore[arg-type]
        columns.append([value and ids_of(decode_json(value)) for value in given["output"]])  # type: ignore[arg-type]
        columns.append(["" if status in UNFINISHED else None for status in given["status"]])
        names += ["input_ids", "output_ids", "process"]
    if "number" in table.columns:
        statements.append(Statement(LAST_NUMBER.format(table=table.name)))
    arrays = ", ".join(f"${number}::{_type(table, name)[0]}[]" for number, name in enumerate(names, 1))
    insert = f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays})"
    return [Statement(insert, columns), *statements]


def _type(table: Table, column: str) -> tuple[str, bool, Callable[[bytes], Value]]:
    """The type of a column, whether its values have any length, and what decodes them."""
    if column in table.binary:
        return "bytea", True, bytes
    if column in INTEGERS:
        return "bigint", False, decode_integer
    if column in FLOATS:
        return "float8", False, decode_float
    return "text", True, decode_text
