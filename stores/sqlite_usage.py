"""SQLite's SQL for what was used."""

from __future__ import annotations

import sqlite3

from core.usage import DAY_S, HOUR_S, By, Spent, UsageRow, Use, Where
from stores.writing import Write

COLUMNS = Use._fields
_ADDED = ", ".join(f"{column} = {column} + excluded.{column}" for column in COLUMNS)
_SUMS = ", ".join(f"TOTAL({column})" if column in ("slot_s", "cost") else f"SUM({column})" for column in COLUMNS)
_KEY = "owner, at, key, model, endpoint, seconds"
COUNT = f"""INSERT INTO usage ({_KEY}, {", ".join(COLUMNS)})
    VALUES ({", ".join("?" * (6 + len(COLUMNS)))})
    ON CONFLICT ({_KEY}) DO UPDATE SET {_ADDED}"""
# A name by which is listed is no value: it is one of four.
LIST: dict[By, str] = {
    by: f"""SELECT (at / :step) * :step AS at, {by} AS name, {_SUMS} FROM usage
    WHERE at >= :begin AND at < :end AND (:owner IS NULL OR owner = :owner)
    GROUP BY 1, 2 ORDER BY 1, 2"""
    for by in ("owner", "key", "model", "endpoint")
}
SPENT = """SELECT TOTAL(input_tokens + output_tokens), TOTAL(cost) FROM usage
    WHERE owner = :owner AND at >= :since AND (:key IS NULL OR key = :key)"""
# A day that has begun to be rolled up may get more: an hour may be counted late.
ROLL_UP = f"""INSERT INTO usage ({_KEY}, {", ".join(COLUMNS)})
    SELECT owner, (at / {DAY_S}) * {DAY_S}, key, model, endpoint, {DAY_S}, {_SUMS} FROM usage
    WHERE seconds = {HOUR_S} AND at < ? GROUP BY 1, 2, 3, 4, 5
    ON CONFLICT ({_KEY}) DO UPDATE SET {_ADDED}"""
DELETE_HOURS = f"DELETE FROM usage WHERE seconds = {HOUR_S} AND at < ?"


def counting(where: Where, used: Use) -> Write:
    """The write that adds what was used in an hour."""
    owner, hour, key, model, endpoint = where
    return COUNT, (owner, hour * HOUR_S, key, model, endpoint, HOUR_S, *used)


def usage_row(row: sqlite3.Row) -> UsageRow:
    """A row of `LIST`."""
    at, name, *used = row
    return UsageRow(at, name, Use(*used))


def spent(row: sqlite3.Row) -> Spent:
    """The row of `SPENT`."""
    return Spent(int(row[0]), row[1])
