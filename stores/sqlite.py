"""The store in SQLite.

    responses         a row a response: the items of its own turn, its output, and the rest of the response object
    response_items    the responses that have an item, for clients that send a reference to it
    response_events   the events of a background stream, kept for clients that join later
    settings          what all routers on this database share
    usage             what was used, by the hour (sqlite_usage.py)
    api_keys          the keys that the command makes (sqlite_keys.py)

A conversation is a chain of rows, read in one query; those that went on lately stay in memory. Writes are queued and
committed together. Ids begin with a time, so that new rows lie side by side at the end of each index: what a write
costs does not depend on how many rows there are. How the tables came to be is in `migrations/`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

from core.deletions import Deletions, OwnDeletions
from core.errors import ServerError
from core.json import decode_json, encode_json
from core.keys import StoredKey
from core.usage import By, Spent, UsageRow, Use, Where
from stores import sqlite_copies, sqlite_keys
from stores.copies import CopiedRow, CopyError, Table
from stores.migrations.sqlite import migrate
from stores.rows import (
    UNFINISHED,
    Event,
    History,
    Item,
    ItemPage,
    Response,
    StoredResponse,
    UnfinishedResponse,
    ids_of,
    interrupted,
    items_of,
    output_and_rest,
    response_of,
    turn_of,
)
from stores.sqlite_connection import SQLite
from stores.sqlite_input_items import INPUT_ITEMS
from stores.sqlite_usage import COUNT, DELETE_HOURS, LIST, ROLL_UP, SPENT, counting, spent, usage_row
from stores.warm_chains import Begun, Key, WarmChains
from stores.writing import Write, WriteQueue, Written

STORE = """INSERT INTO responses (owner, id, previous_response_id, conversation, model, status, created_at,
        input, output, response, request)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (owner, id) DO UPDATE SET status = excluded.status, output = excluded.output,
        response = excluded.response, request = excluded.request"""
# Not an upsert: a response that was deleted while it ran stays deleted. What has ended will not run again.
UPDATE = """UPDATE responses SET status = ?, output = ?, response = ?,
        request = CASE WHEN ? IN ('queued', 'in_progress') THEN request END
    WHERE owner = ? AND id = ?"""
# What has ended meanwhile was no orphan.
FAIL = f"{UPDATE} AND status IN ('queued', 'in_progress')"
STORED = "id, owner, previous_response_id, conversation, model, status, created_at, input, output, response"
GET = f"SELECT {STORED} FROM responses WHERE owner = ? AND id = ?"
EXISTS = "SELECT 1 FROM responses WHERE owner = ? AND id = ?"
UNFINISHED_ROWS = f"SELECT {STORED}, request FROM responses WHERE status IN ('queued', 'in_progress') ORDER BY number"
# Youngest first: a chain has one row at a time to go on from.
GET_HISTORY = """WITH RECURSIVE chain (previous_response_id, status, input, output) AS (
        SELECT previous_response_id, status, input, output FROM responses WHERE owner = ? AND id = ?
        UNION ALL
        SELECT r.previous_response_id, r.status, r.input, r.output
        FROM chain JOIN responses r ON r.owner = ? AND r.id = chain.previous_response_id
    )
    SELECT * FROM chain"""
DELETE = "DELETE FROM responses WHERE owner = ? AND id = ?"
DELETE_EVENTS = """DELETE FROM response_events
    WHERE response = (SELECT number FROM responses WHERE owner = ? AND id = ?)"""
# An item may be anything, and so may its id.
ITEM_ID = """CASE item.type WHEN 'object' THEN
    CASE json_type(item.value, '$.id') WHEN 'text' THEN json_extract(item.value, '$.id') END END"""
# The ids are in the row, so no index leads from a response to its items.
ITEMS_OF_ROW = f"""WITH kept AS (
        SELECT number, owner, status, CAST(input AS TEXT) AS input, CAST(output AS TEXT) AS output
        FROM responses WHERE owner = ? AND id = ?
    ), items (owner, item_id, response, status) AS (
        SELECT owner, {ITEM_ID}, number, status FROM kept, json_each(kept.input) item
        UNION ALL SELECT owner, {ITEM_ID}, number, status FROM kept, json_each(kept.output) item
    )"""
DELETE_ITEMS = f"""{ITEMS_OF_ROW} DELETE FROM response_items
    WHERE (owner, item_id, response) IN (SELECT owner, item_id, response FROM items)"""
STORE_ITEMS_OF_ROW = f"""{ITEMS_OF_ROW} INSERT OR IGNORE INTO response_items (owner, item_id, response)
    SELECT owner, item_id, response FROM items WHERE item_id <> '' AND status NOT IN ('queued', 'in_progress')"""
# The response may have been deleted meanwhile.
STORE_ITEM = """INSERT OR IGNORE INTO response_items (owner, item_id, response)
    SELECT item.column1, item.column3, r.number FROM (VALUES (?, ?, ?)) item
    CROSS JOIN responses r ON r.owner = item.column1 AND r.id = item.column2"""
# Whoever wrote an item first keeps its id.
GET_OF_ITEMS = """SELECT json_group_array(wanted.value) AS item_ids, r.input, r.output
    FROM json_each(?) wanted JOIN responses r ON r.number =
        (SELECT MIN(i.response) FROM response_items i JOIN responses ON number = i.response
        WHERE i.owner = ? AND i.item_id = wanted.value)
    GROUP BY r.number"""
STORE_CHECK = "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
STORE_SETTING = "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING"
GET_SETTING = "SELECT value FROM settings WHERE name = ?"
STORE_EVENTS = """INSERT OR IGNORE INTO response_events (response, events)
    SELECT number, ? FROM responses WHERE owner = ? AND id = ?"""
GET_EVENTS = """SELECT events FROM response_events
    WHERE response = (SELECT number FROM responses WHERE owner = ? AND id = ?)"""
# The end of a chain goes first: a turn that a younger one still builds on is kept.
GET_EXPIRED = """SELECT owner, id FROM responses r
    WHERE created_at < ? AND status NOT IN ('queued', 'in_progress')
    AND NOT EXISTS (SELECT 1 FROM responses c WHERE c.owner = r.owner AND c.previous_response_id = r.id)
    LIMIT 500"""

# How often it is looked whether the database can be written, and how long that may take.
CHECK_EVERY_S = 1.0
CHECK_S = 2.0

# A response is stored before it is updated, so within a batch what is stored may go first.
RANKS = {STORE: 0, UPDATE: 1, STORE_ITEM: 2, COUNT: 3}


class SQLiteStore:
    """`db.Store` in the file at `path`, or in memory (`:memory:`)."""

    def __init__(self, path: str, deletions: Deletions | None = None, service: str | None = None) -> None:
        self.deletions: Deletions = deletions if deletions is not None else OwnDeletions()
        self._connector = SQLite(path, migrate, service)
        self._queue = WriteQueue(self._run)
        self._warm = WarmChains(self.deletions)
        self._running: dict[Key, Begun] = {}
        self._checked_at = 0.0

    async def open(self) -> None:
        await self._connector.open()
        self._warm, self._running = WarmChains(self.deletions), {}
        self._queue.open()

    async def close(self) -> None:
        await self._queue.close()
        await self._connector.close()

    async def _run(self, writes: list[Write]) -> None:
        """Commits a batch, with the writes of the same SQL together where they do not stand in each other's way."""
        if all(sql in RANKS for sql, _ in writes):
            writes.sort(key=lambda write: RANKS[write[0]])
        await self._connector.write(writes)

    # ── responses ────────────────────────────────────────────────────────────────────────────────────────────────────

    def store_response(
        self,
        response_id: str,
        *,
        previous_response_id: str | None,
        model: str,
        status: str,
        created_at: int,
        input_messages: list[Item],
        response: Response | None = None,
        conversation: str | None = None,
        request: bytes | None = None,
        owner: str = "",
    ) -> Written:
        given, (output, rest) = encode_json(input_messages), output_and_rest(response)
        row = (
            *(owner, response_id, previous_response_id, conversation, model, status, created_at),
            *(given, output, rest, request if status in UNFINISHED else None),
        )
        key, previous = (owner, response_id), (owner, previous_response_id) if previous_response_id else None
        begun = Begun(key, previous, given, ids_of(input_messages), self.deletions.value)
        if response is None or status in UNFINISHED:
            self._running[key] = begun
            return self._queue.write((STORE, row), then=begun.commit)
        begun.commit()
        return self._end(begun, (STORE, row), response, output)

    def update_response(self, response_id: str, response: Response, *, owner: str = "") -> Written:
        key, status = (owner, response_id), response["status"]
        output, rest = output_and_rest(response)
        update = (UPDATE, (status, output, rest, status, *key))
        if status in UNFINISHED:
            return self._queue.write(update)
        if (begun := self._running.pop(key, None)) is None:
            # Not begun here, or ended already: its items may be others now.
            drop = partial(self._warm.drop, key)
            return self._queue.write((DELETE_ITEMS, key), update, (STORE_ITEMS_OF_ROW, key), then=drop)
        return self._end(begun, update, response, output)

    def _end(self, begun: Begun, write: Write, response: Response, output: bytes | None) -> Written:
        """Writes how a response has ended. `output` is the JSON of its output."""
        item_ids = begun.item_ids + ids_of(response.get("output") or ())
        items = [(STORE_ITEM, (*begun.key, item_id)) for item_id in item_ids]
        return self._queue.write(write, *items, then=partial(self._warm.end, begun, output))

    async def get_response(self, response_id: str, *, owner: str = "") -> StoredResponse | None:
        rows = await self._connector.read_each(_stored, GET, owner, response_id)
        return rows[0] if rows else None

    async def delete_response(self, response_id: str, *, owner: str = "") -> bool:
        if not await self._connector.read(EXISTS, owner, response_id):
            return False
        await self._delete([(owner, response_id)])
        return True

    def _delete(self, keys: Sequence[Key]) -> Written:
        for key in keys:
            self._running.pop(key, None)
        # Behind the commit: what was read before it is not good for the time after it.
        counted = partial(self.deletions.add, len(keys))
        return self._queue.write(
            *((sql, key) for sql in (DELETE_EVENTS, DELETE_ITEMS, DELETE) for key in keys), then=counted
        )

    async def unfinished(self) -> list[UnfinishedResponse]:
        return await self._connector.read_each(_unfinished, UNFINISHED_ROWS)

    def running_ids(self) -> list[str]:
        return [response_id for _, response_id in self._running]

    async def fail_orphaned_responses(self) -> int:
        return await self.fail_orphans(await self.unfinished())

    async def fail_orphans(self, orphans: Iterable[UnfinishedResponse]) -> int:
        failed = 0
        for row in orphans:
            output, rest = output_and_rest(interrupted(row["response"]))
            key = (row["owner"], row["id"])
            await self._queue.write((FAIL, ("failed", output, rest, "failed", *key)), (STORE_ITEMS_OF_ROW, key))
            failed += 1
        return failed

    async def delete_older_than(self, created_at: int) -> int:
        deleted = 0
        while expired := await self._connector.read_each(_key, GET_EXPIRED, created_at):
            await self._delete(expired)
            deleted += len(expired)
        return deleted

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_history(self, response_id: str, *, owner: str = "") -> History:
        key = (owner, response_id)
        if (warm := self._warm.get(key)) is not None:
            return History(items_of(warm))
        as_of = self.deletions.value
        rows = await self._connector.read(GET_HISTORY, *key, owner)
        if not rows:
            return History([], missing=response_id)
        turns = [turn_of(row["input"], row["output"]) for row in reversed(rows)]
        status = rows[0]["status"]
        missing, unfinished = rows[-1]["previous_response_id"], status if status in UNFINISHED else None
        if not missing and not unfinished:
            self._warm.put(key, turns, as_of)
        return History(items_of(turns), missing, unfinished)

    async def list_input_items(
        self,
        response_id: str,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None:
        values = {"owner": owner, "response": response_id, "after": after, "limit": limit + 1}
        rows = await self._connector.read(INPUT_ITEMS[order], **values)
        if not rows:
            return None
        items = [{**decode_json(row["item"].encode()), "id": row["id"]} for row in rows[:limit] if row["item"]]
        return ItemPage(items, has_more=len(rows) > limit, knows_after=rows[0]["start"] is not None)

    async def get_items(self, item_ids: list[str], *, owner: str = "") -> dict[str, Item]:
        found: dict[str, Item] = {}
        for row in await self._connector.read(GET_OF_ITEMS, encode_json(item_ids).decode(), owner):
            of_row: dict[str, Item] = {}
            for item in items_of([turn_of(row["input"], row["output"])]):
                for item_id in ids_of([item]):
                    of_row.setdefault(item_id, item)
            found |= {item_id: of_row[item_id] for item_id in decode_json(row["item_ids"]) if item_id in of_row}
        return found

    # ── events of background streams ─────────────────────────────────────────────────────────────────────────────────

    def store_events(self, response_id: str, events: list[Event], *, owner: str = "") -> Written:
        return self._queue.write((STORE_EVENTS, (encode_json(events), owner, response_id)))

    async def get_events(self, response_id: str, *, owner: str = "") -> list[Event] | None:
        rows = await self._connector.read(GET_EVENTS, owner, response_id)
        return decode_json(rows[0]["events"]) if rows else None

    # ── what was used ────────────────────────────────────────────────────────────────────────────────────────────────

    def count_usage(self, used: Mapping[Where, Use], failed: Callable[[], object] | None = None) -> Written:
        return self._queue.write(*(counting(where, more) for where, more in used.items()), failed=failed)

    async def list_usage(self, begin: int, end: int, *, by: By, step: int, owner: str | None = None) -> list[UsageRow]:
        values = {"begin": begin, "end": end, "step": step, "owner": owner}
        return await self._connector.read_each(usage_row, LIST[by], **values)

    async def spent(self, since: int, *, owner: str, key: str | None = None) -> Spent:
        return (await self._connector.read_each(spent, SPENT, since=since, owner=owner, key=key))[0]

    async def roll_up_usage(self, before: int) -> None:
        await self._queue.write((ROLL_UP, (before,)), (DELETE_HOURS, (before,)))

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_keys(self, after: int = 0) -> list[StoredKey]:
        return await self._connector.read_each(sqlite_keys.stored_key, sqlite_keys.LIST, after)

    async def put_keys(self, keys: Sequence[StoredKey], after: int) -> bool:
        return await self._connector.run_writing(partial(sqlite_keys.put_keys, keys, after))

    # ── whether it works ──────────────────────────────────────────────────────────────────────────────────────────────

    async def outage(self) -> str | None:
        now = time.monotonic()
        if now - self._checked_at >= CHECK_EVERY_S:
            self._checked_at = now
            checked = self._queue.write((STORE_CHECK, ("checked_at", f"{time.time():.0f}")))
            try:
                async with asyncio.timeout(CHECK_S):
                    await checked
            except TimeoutError:
                self._checked_at = 0.0
                return "the database does not answer"
            except ServerError:
                self._checked_at = 0.0
        return self._queue.outage

    # ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_setting(self, name: str, default: str) -> str:
        await self._queue.write((STORE_SETTING, (name, default)))
        value: str = (await self._connector.read(GET_SETTING, name))[0]["value"]
        return value

    # ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read_rows(self, table: Table, after: CopiedRow | None = None) -> list[CopiedRow]:
        return await self._connector.run_reading(partial(sqlite_copies.read_rows, table, after))

    async def write_rows(self, table: Table, rows: Sequence[CopiedRow]) -> None:
        try:
            await self._connector.run_writing(partial(sqlite_copies.write_rows, table, rows))
        except sqlite3.Error as error:
            raise CopyError(f"{table.name} cannot be written: {error}") from error

    async def count_rows(self, table: Table) -> int:
        return await self._connector.run_reading(partial(sqlite_copies.count_rows, table))


def _stored(row: sqlite3.Row) -> StoredResponse:
    return {
        "id": row["id"],
        "owner": row["owner"],
        "previous_response_id": row["previous_response_id"],
        "conversation": row["conversation"],
        "model": row["model"],
        "status": row["status"],
        "created_at": row["created_at"],
        "input": decode_json(row["input"]),
        "response": response_of(row["output"], row["response"]),
    }


def _unfinished(row: sqlite3.Row) -> UnfinishedResponse:
    return {**_stored(row), "request": row["request"]}


def _key(row: sqlite3.Row) -> Key:
    return row["owner"], row["id"]
