"""PostgreSQL's SQL for what was used."""

from __future__ import annotations

from core.usage import DAY_S, HOUR_S, By, Spent, UsageRow, Use, Where
from stores.postgres_connection import ResultRow
from stores.postgres_values import decode_float, decode_integer, decode_text
from stores.writing import Write

COLUMNS = Use._fields
TYPES = ["float8" if column in ("slot_s", "cost") else "bigint" for column in COLUMNS]
_ADDED = ", ".join(f"{column} = usage.{column} + excluded.{column}" for column in COLUMNS)
_SUMS = ", ".join(f"sum({column})::{type_}" for column, type_ in zip(COLUMNS, TYPES, strict=True))
_KEY = "owner, at, key, model, endpoint, seconds"
_ARRAYS = ", ".join(
    f"${number}::{type_}[]"
    for number, type_ in enumerate(["text", "bigint", "text", "text", "text", "bigint", *TYPES], 1)
)
# Added up first: an upsert must not meet a key twice. In one order everywhere, so that no two wait for each other.
COUNT = f"""INSERT INTO usage ({_KEY}, {", ".join(COLUMNS)})
    SELECT {_KEY}, {_SUMS} FROM unnest({_ARRAYS}) AS n ({_KEY}, {", ".join(COLUMNS)})
    GROUP BY {_KEY} ORDER BY {_KEY}
    ON CONFLICT ({_KEY}) DO UPDATE SET {_ADDED}"""
# A name by which is listed is no value: it is one of four.
LIST: dict[By, str] = {
    by: f"""SELECT (at / $3::bigint) * $3::bigint, {by}, {_SUMS} FROM usage
    WHERE at >= $1::bigint AND at < $2::bigint AND ($4::text IS NULL OR owner = $4::text)
    GROUP BY 1, 2 ORDER BY 1, 2"""
    for by in ("owner", "key", "model", "endpoint")
}
SPENT = """SELECT COALESCE(sum(input_tokens + output_tokens), 0)::bigint, COALESCE(sum(cost), 0)::float8 FROM usage
    WHERE owner = $1::text AND at >= $2::bigint AND ($3::text IS NULL OR key = $3::text)"""
# In one statement: an hour that is counted meanwhile is rolled up the next time. A day that has begun to be rolled up
# may get more: an hour may be counted late.
ROLL_UP = f"""WITH hours AS (DELETE FROM usage WHERE seconds = {HOUR_S} AND at < $1::bigint RETURNING *)
    INSERT INTO usage ({_KEY}, {", ".join(COLUMNS)})
    SELECT owner, (at / {DAY_S}) * {DAY_S}, key, model, endpoint, {DAY_S}, {_SUMS} FROM hours
    GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT ({_KEY}) DO UPDATE SET {_ADDED}"""


def counting(where: Where, used: Use) -> Write:
    """The write that adds what was used in an hour."""
    owner, hour, *rest = where
    return COUNT, (owner, hour * HOUR_S, *rest, HOUR_S, *used)


def usage_row(row: ResultRow) -> UsageRow:
    """A row of `LIST`."""
    at, name, *used = (value or b"" for value in row)
    numbers = [
        decode_float(value) if type_ == "float8" else decode_integer(value)
        for value, type_ in zip(used, TYPES, strict=True)
    ]
    return UsageRow(decode_integer(at), decode_text(name), Use(*numbers))  # type: ignore[arg-type]


def spent(row: ResultRow) -> Spent:
    """The row of `SPENT`."""
    tokens, cost = (value or b"" for value in row)
    return Spent(decode_integer(tokens), decode_float(cost))
