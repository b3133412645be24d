"""The store in SQLite.

    responses         a row a response: the items of its own turn, its output, and the rest of the response object
    response_items    the responses that have an item, for clients that send a reference to it
    conversations     those that clients have made, and conversation_items (sqlite_conversations.py)
    response_events   the events of a background stream, kept for clients that join later
    settings          what all routers on this database share
    usage             what was used, by the hour (sqlite_usage.py)
    api_keys          the keys that the command makes (sqlite_keys.py)

A conversation is a chain of rows, read in one query; those that went on lately stay in memory. Writes are queued and
committed together. Ids begin with a time, so that new rows lie side by side at the end of each index: what a write
costs does not depend on how many rows there are. How the tables came to be is in `migrations/`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

from core.deletions import Deletions
from core.json import decode_json, encode_json
from core.keys import StoredKey
from core.usage import By, Spent, UsageRow
from stores import sqlite_conversations as conversations
from stores import sqlite_copies, sqlite_keys
from stores import sqlite_listing as listing
from stores.copies import CopiedRow, CopyError, Table
from stores.kept_conversations import NewItem
from stores.migrations.sqlite import migrate
from stores.queued_store import ChainRow, ChangedRow, NewRow, QueuedStore
from stores.rows import (
    Conversation,
    Event,
    Item,
    ItemPage,
    ListedConversation,
    ListedResponse,
    StoredResponse,
    UnfinishedResponse,
    response_of,
)
from stores.sqlite_connection import SQLite
from stores.sqlite_input_items import INPUT_ITEMS
from stores.sqlite_usage import COUNT, DELETE_HOURS, LIST, ROLL_UP, SPENT, counting, spent, usage_row
from stores.warm_chains import Key
from stores.writing import Write

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
GET_HISTORY = """WITH RECURSIVE chain (previous_response_id, status, input, output, conversation) AS (
        SELECT previous_response_id, status, input, output, conversation FROM responses WHERE owner = ? AND id = ?
        UNION ALL
        SELECT r.previous_response_id, r.status, r.input, r.output, r.conversation
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

# A response is stored before it is updated, so within a batch what is stored may go first.
RANKS = {
    STORE: 0,
    conversations.STORE: 1,
    conversations.USE: 2,
    conversations.APPEND: 3,
    UPDATE: 4,
    STORE_ITEM: 5,
    COUNT: 6,
}


class SQLiteStore(QueuedStore):
    """`db.Store` in the file at `path`, or in memory (`:memory:`)."""

    _database: SQLite

    def __init__(self, path: str, deletions: Deletions | None = None, service: str | None = None) -> None:
        super().__init__(deletions)
        self._database = SQLite(path, migrate, service)

    # ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _commit(self, writes: list[Write]) -> Sequence[Write]:
        """With the writes of the same SQL together, where they do not stand in each other's way."""
        if all(sql in RANKS for sql, _ in writes):
            writes.sort(key=lambda write: RANKS[write[0]])
        await self._database.write(writes)
        return ()

    def _storing(self, row: NewRow) -> Write:
        return STORE, (*row.key, *row[1:10])  # From the one before it to the request.

    def _updating(self, row: ChangedRow) -> Write:
        return UPDATE, (row.status, row.output, row.response, row.status, *row.key)

    def _failing(self, row: ChangedRow) -> Write:
        return FAIL, (row.status, row.output, row.response, row.status, *row.key)

    def _indexing(self, key: Key, item_ids: Iterable[str]) -> list[Write]:
        return [(STORE_ITEM, (*key, item_id)) for item_id in item_ids]

    def _indexing_row(self, key: Key) -> Write:
        return STORE_ITEMS_OF_ROW, key

    def _unindexing_row(self, key: Key) -> Write:
        return DELETE_ITEMS, key

    def _deleting(self, keys: Sequence[Key]) -> list[Write]:
        return [(sql, key) for sql in (DELETE_EVENTS, DELETE_ITEMS, DELETE) for key in keys]

    def _storing_events(self, key: Key, events: bytes) -> Write:
        return STORE_EVENTS, (events, *key)

    def _storing_conversation(self, conversation: Conversation, at: int) -> Write:
        return conversations.storing(conversation, at)

    def _changing_conversation(self, key: Key, metadata: bytes) -> Write:
        return conversations.CHANGE, (metadata, *key)

    def _using_conversation(self, key: Key, at: int) -> Write:
        return conversations.USE, (at, *key)

    def _appending(self, item: NewItem) -> Write:
        return conversations.appending(item)

    def _deleting_conversation(self, key: Key) -> list[Write]:
        return conversations.deleting(key)

    def _deleting_item(self, key: Key, item_id: str) -> Write:
        return conversations.DELETE_ITEM, (*key, item_id)

    def _deleting_unused(self, at: int) -> list[Write]:
        return [(sql, (at,)) for sql in (conversations.DELETE_UNUSED_ITEMS, conversations.DELETE_UNUSED)]

    _counting = staticmethod(counting)

    def _checking(self) -> Write:
        return STORE_CHECK, ("checked_at", f"{time.time():.0f}")

    # ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_response(self, response_id: str, *, owner: str = "") -> StoredResponse | None:
        rows = await self._database.read_each(_stored, GET, owner, response_id)
        return rows[0] if rows else None

    async def unfinished(self) -> list[UnfinishedResponse]:
        return await self._database.read_each(_unfinished, UNFINISHED_ROWS)

    async def _exists(self, key: Key) -> bool:
        return bool(await self._database.read(EXISTS, *key))

    async def _read_expired(self, created_at: int) -> list[Key]:
        return await self._database.read_each(_key, GET_EXPIRED, created_at)

    async def _read_chain(self, key: Key) -> list[ChainRow]:
        return [ChainRow(*row.values()) for row in await self._database.read(GET_HISTORY, *key, key[0])]

    async def _read_items(self, item_ids: list[str], owner: str) -> list[tuple[list[str], bytes, bytes | None]]:
        rows = await self._database.read(GET_OF_ITEMS, encode_json(item_ids).decode(), owner)
        return [(decode_json(row["item_ids"]), row["input"], row["output"]) for row in rows]

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
        rows = await self._database.read(INPUT_ITEMS[order], **values)
        if not rows:
            return None
        items = [{**decode_json(row["item"].encode()), "id": row["id"]} for row in rows[:limit] if row["item"]]
        return ItemPage(items, has_more=len(rows) > limit, knows_after=rows[0]["start"] is not None)

    async def get_events(self, response_id: str, *, owner: str = "") -> list[Event] | None:
        rows = await self._database.read(GET_EVENTS, owner, response_id)
        return decode_json(rows[0]["events"]) if rows else None

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_conversation(self, conversation_id: str, *, owner: str = "") -> Conversation | None:
        read = self._database.read_each
        rows = await read(conversations.conversation_of, conversations.GET, owner, conversation_id)
        return rows[0] if rows else None

    async def list_conversation_items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        limit: int | None = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None:
        at_most = conversations.EVERYTHING if limit is None else limit + 1
        values = {"owner": owner, "id": conversation_id, "after": after, "limit": at_most}
        return conversations.page_of(await self._database.read(conversations.LIST[order], **values), limit)

    async def get_conversation_items(
        self, conversation_id: str, item_ids: list[str], *, owner: str = ""
    ) -> dict[str, Item]:
        ids = encode_json(item_ids).decode()
        rows = await self._database.read(conversations.GET_ITEMS, owner, conversation_id, ids)
        return {row["id"]: conversations.item_of(row) for row in rows}

    # ── for whoever runs the service ─────────────────────────────────────────────────────────────────────────────────

    async def list_responses(
        self, *, before: int | None = None, limit: int, owner: str | None, at_work: bool = False
    ) -> list[ListedResponse]:
        values = {"before": listing.LAST if before is None else before, "limit": limit, "owner": owner}
        return await self._database.read_each(listing.listed_response, listing.RESPONSES[at_work], **values)

    async def list_conversations(
        self, *, before: int | None = None, limit: int, owner: str | None
    ) -> list[ListedConversation]:
        values = {"before": listing.LAST if before is None else before, "limit": limit, "owner": owner}
        return await self._database.read_each(listing.listed_conversation, listing.CONVERSATIONS, **values)

    # ── what was used ────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_usage(self, begin: int, end: int, *, by: By, step: int, owner: str | None = None) -> list[UsageRow]:
        values = {"begin": begin, "end": end, "step": step, "owner": owner}
        return await self._database.read_each(usage_row, LIST[by], **values)

    async def spent(self, since: int, *, owner: str, key: str | None = None) -> Spent:
        return (await self._database.read_each(spent, SPENT, since=since, owner=owner, key=key))[0]

    async def roll_up_usage(self, before: int) -> None:
        await self._queue.write((ROLL_UP, (before,)), (DELETE_HOURS, (before,)))

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_keys(self, after: int = 0) -> list[StoredKey]:
        return await self._database.read_each(sqlite_keys.stored_key, sqlite_keys.LIST, after)

    async def put_keys(self, keys: Sequence[StoredKey], after: int) -> bool:
        return await self._database.run_writing(partial(sqlite_keys.put_keys, keys, after))

    # ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_setting(self, name: str, default: str) -> str:
        await self._queue.write((STORE_SETTING, (name, default)))
        value: str = (await self._database.read(GET_SETTING, name))[0]["value"]
        return value

    # ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read_rows(self, table: Table, after: CopiedRow | None = None) -> list[CopiedRow]:
        return await self._database.run_reading(partial(sqlite_copies.read_rows, table, after))

    async def write_rows(self, table: Table, rows: Sequence[CopiedRow]) -> None:
        try:
            await self._database.run_writing(partial(sqlite_copies.write_rows, table, rows))
        except sqlite3.Error as error:
            raise CopyError(f"{table.name} cannot be written: {error}") from error

    async def count_rows(self, table: Table) -> int:
        return await self._database.run_reading(partial(sqlite_copies.count_rows, table))

    async def other_services(self) -> int:
        return 0  # A file has one (stores/service_lock.py).


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
