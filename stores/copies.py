"""What a copy of a store is made of, whatever databases it goes from and to: tables, and their rows as plain values.

    Store.read_rows ──rows, in the order of the key──▶ Store.write_rows        the verbs that `./nomyo move` calls

A new table gets its line in `TABLES`; tests/stores/test_store_copies.py finds one that has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Value = str | bytes | int | float | None
# The values of a row, in the order of the table's columns.
CopiedRow = tuple[Value, ...]

# So much is read or written at once, but a row at least.
COPIED_BYTES = 4 * 1024 * 1024


class CopyError(Exception):
    """No copy was made, or not a whole one: one line about why, and what to do."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table by its name, its columns, and those that no two rows have the same of, by which they are ordered: a
    key. `binary` are the
    columns that hold bytes."""

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    binary: frozenset[str] = frozenset()

    def key_of(self, row: CopiedRow) -> CopiedRow:
        """The values of a row's key."""
        return tuple(row[self.columns.index(column)] for column in self.key)

    def row_of(self, values: Iterable[Value]) -> CopiedRow:
        """A row as every store gives it: bytes in the columns that are for bytes."""
        return tuple(
            value.encode() if isinstance(value, str) and column in self.binary else value
            for column, value in zip(self.columns, values, strict=True)
        )


# In an order in which each finds what it refers to.
TABLES = (
    Table("settings", ("name",), ("name", "value")),
    Table(
        "responses",
        ("number",),
        (
            *("number", "owner", "id", "previous_response_id", "conversation", "model", "status", "created_at"),
            *("input", "output", "response", "request"),
        ),
        frozenset({"input", "output", "response", "request"}),
    ),
    Table(
        "api_keys",
        ("digest",),
        ("digest", "name", "shown", "settings", "created_at", "ends_at", "ended_by", "change"),
        frozenset({"digest", "settings"}),
    ),
    Table(
        "conversations",
        ("number",),
        ("number", "owner", "id", "created_at", "used_at", "metadata"),
        frozenset({"metadata"}),
    ),
    Table("conversation_items", ("number",), ("number", "conversation_number", "id", "item"), frozenset({"item"})),
    Table("response_items", ("owner", "item_id", "response"), ("owner", "item_id", "response")),
    Table("response_events", ("response",), ("response", "events"), frozenset({"events"})),
    Table(
        "usage",
        ("owner", "at", "key", "model", "endpoint", "seconds"),
        (
            *("owner", "at", "key", "model", "endpoint", "seconds", "requests", "errors", "input_tokens"),
            *("cached_tokens", "output_tokens", "reasoning_tokens", "slot_s", "cache_hits", "cost"),
        ),
    ),
)


def length_of(row: CopiedRow) -> int:
    """About how many bytes a row has."""
    return sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
