"""The keys in PostgreSQL: read since a change, and changed all or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.keys import StoredKey
from stores.postgres_connection import ResultRow, Statement
from stores.postgres_values import decode_float, decode_integer, decode_text

COLUMNS = "digest, name, shown, settings, created_at, ends_at, ended_by, change"
LIST = f"SELECT {COLUMNS} FROM api_keys WHERE change > $1::bigint ORDER BY change, created_at, name"
# One at a time changes keys: any number that no other lock has.
LOCK = Statement(f"SELECT pg_advisory_xact_lock({0x6E6F6D796F + 1})")
_LAST = "(SELECT COALESCE(max(change), 0) FROM api_keys)"
PUT_NONE = f"SELECT 1 WHERE {_LAST} = $1::bigint"
PUT = f"""INSERT INTO api_keys ({COLUMNS})
    SELECT n.*, $8::bigint + 1 FROM unnest($1::bytea[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::float8[],
        $7::text[]) AS n
    WHERE {_LAST} = $8::bigint
    ON CONFLICT (digest) DO UPDATE SET name = excluded.name, shown = excluded.shown, settings = excluded.settings,
        created_at = excluded.created_at, ends_at = excluded.ends_at, ended_by = excluded.ended_by,
        change = excluded.change
    RETURNING change"""


def stored_key(row: ResultRow) -> StoredKey:
    """The key of a row."""
    digest, name, shown, settings, created_at, ends_at, ended_by, change = row
    ending: Any = None if ended_by is None else decode_text(ended_by)
    return StoredKey(
        digest or b"",
        decode_text(name or b""),
        decode_text(shown or b""),
        settings or b"",
        decode_integer(created_at or b""),
        None if ends_at is None else decode_float(ends_at),
        ending,
        decode_integer(change or b""),
    )


def putting(keys: Sequence[StoredKey], after: int) -> list[Statement]:
    """Puts keys, if the last change of all is `after`: the last statement has a row then."""
    if not keys:
        return [LOCK, Statement(PUT_NONE, (after,))]
    rows = [(key.digest, key.name, key.shown, key.settings, key.created_at, key.ends_at, key.ended_by) for key in keys]
    return [LOCK, Statement(PUT, [*zip(*rows, strict=True), after])]
