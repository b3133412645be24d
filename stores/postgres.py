"""The store in PostgreSQL, which several replicas share.

    responses, response_items, response_events, settings    as in SQLite; see `migrations/postgres_0001_responses.py`
    conversations, conversation_items                       see `migrations/postgres_0002_conversations.py`
    processes                                               who has the database open, and when each was seen last

One connection writes, a batch of turns in a transaction of few statements (`postgres_sql.py`); others read beside it.
What a process leaves unfinished when it dies goes to the one that claims it first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Literal

import psycopg

from core.config import DatabaseConfig
from core.deletions import Deletions
from core.errors import ServerError
from core.json import decode_json, encode_json
from core.keys import StoredKey
from core.usage import By, Spent, UsageRow
from stores import postgres_conversations as conversations
from stores import postgres_copies, postgres_keys
from stores import postgres_listing as listing
from stores import postgres_sql as sql
from stores.copies import CopiedRow, CopyError, Table
from stores.kept_conversations import NewItem
from stores.postgres_connection import ResultRow, Statement, one_line
from stores.postgres_database import LEASE_S, UNWANTED, PostgresDatabase
from stores.postgres_usage import LIST, ROLL_UP, SPENT, counting, spent, usage_row
from stores.postgres_values import Parameter, decode_integer, decode_text, encode_text
from stores.queued_store import ChainRow, ChangedRow, NewRow, QueuedStore
from stores.rows import (
    UNFINISHED,
    Conversation,
    Event,
    Item,
    ItemPage,
    ListedConversation,
    ListedResponse,
    StoredResponse,
    UnfinishedResponse,
    ids_of,
    response_of,
)
from stores.warm_chains import Key
from stores.writing import OUTAGE_S, Outage, Value, Write

# How often it is looked for turns that wait elsewhere.
LOOK_FOR_WAITING_S = 1.0
# Of the values of one statement. PostgreSQL takes a GB.
STATEMENT_BYTES = 64 * 1024 * 1024


class PostgresStore(QueuedStore):
    """`db.Store` in the database at `url`."""

    _database: PostgresDatabase

    def __init__(
        self, url: str, deletions: Deletions | None, service: str | None, settings: DatabaseConfig | None = None
    ) -> None:
        super().__init__(deletions)
        self._service = service or ""
        self.moves_turns = bool(service)
        self._database = PostgresDatabase(url, settings or DatabaseConfig(), self.deletions, self._service)
        # Unfinished responses as they were read: whose each was; and those that are this process's by a claim.
        self._whose: dict[Key, str] = {}
        self._claimed: set[Key] = set()

    # ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _commit(self, writes: list[Write]) -> Sequence[Write]:
        statements = list(statements_of(writes))
        results = await self._database.write(*statements)
        late = {
            (_text(owner), _text(id_))
            for statement, rows in zip(statements, results, strict=True)
            if statement.sql is sql.UPDATE
            for owner, id_ in rows
        }
        return [write for write in writes if late and write[0] is sql.UPDATE and write[1][:2] in late]

    def _storing(self, row: NewRow) -> Write:
        values = (
            *(*row.key, row.previous, row.conversation, row.model, row.status, row.created_at),
            *(self._database.process if row.status in UNFINISHED else None, row.moves_at),
            *(_ids_of(row.input_items), _ids_of(row.output_items), row.input, row.output, row.response, row.request),
        )
        return sql.STORE, values

    def _updating(self, row: ChangedRow) -> Write:
        is_own = row.is_own or row.key in self._claimed
        if row.status not in UNFINISHED:
            self._claimed.discard(row.key)
        return sql.UPDATE, _changed(row, self._database.process if is_own else None)

    def _failing(self, row: ChangedRow) -> Write:
        self._claimed.discard(row.key)
        return sql.FAIL, _changed(row, None)

    def _indexing(self, key: Key, item_ids: Iterable[str]) -> list[Write]:
        return [(sql.STORE_ITEM, (*key, item_id)) for item_id in item_ids]

    def _indexing_row(self, key: Key) -> Write:
        return sql.STORE_ITEMS_OF_ROW, key

    def _unindexing_row(self, key: Key) -> Write:
        return sql.DELETE_ITEMS, key

    def _deleting(self, keys: Sequence[Key]) -> list[Write]:
        return [*((sql.DELETE, key) for key in keys), *self._database.announcing_deletions(len(keys))]

    def _count_deletions(self, number: int) -> None:
        self._database.count_deletions(number)

    def _storing_events(self, key: Key, events: bytes) -> Write:
        return sql.STORE_EVENTS, (*key, events)

    def _storing_conversation(self, conversation: Conversation, at: int) -> Write:
        return conversations.storing(conversation, at)

    def _changing_conversation(self, key: Key, metadata: bytes) -> Write:
        return conversations.CHANGE, (*key, metadata)

    def _using_conversation(self, key: Key, at: int) -> Write:
        return conversations.USE, (*key, at)

    def _appending(self, item: NewItem) -> Write:
        is_own = item.response in self._running or item.response in self._claimed
        return conversations.appending(item, self._database.process if is_own else None)

    def _deleting_conversation(self, key: Key) -> list[Write]:
        return [(conversations.DELETE, key)]

    def _deleting_item(self, key: Key, item_id: str) -> Write:
        return conversations.DELETE_ITEM, (*key, item_id)

    def _deleting_unused(self, at: int) -> list[Write]:
        return [(conversations.DELETE_UNUSED, (at,))]

    _counting = staticmethod(counting)

    def _checking(self) -> Write:
        return sql.STORE_CHECK, ()

    # ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, statement: str, *values: Parameter) -> list[ResultRow]:
        """Raises `ServerError` where the database is away."""
        try:
            return (await self._database.read(Statement(statement, values)))[0]
        except Outage as error:
            raise unreadable() from error

    async def get_response(self, response_id: str, *, owner: str = "") -> StoredResponse | None:
        rows = await self._read(sql.GET, owner, response_id)
        return _stored(rows[0]) if rows else None

    async def unfinished(self) -> list[UnfinishedResponse]:
        rows = await self._read(sql.UNFINISHED_ROWS, self._database.lease_s(), self._service)
        unfinished: list[UnfinishedResponse] = [{**_stored(row), "request": row[-2]} for row in rows]
        self._whose = {_key(one): _text(row[-1]) for one, row in zip(unfinished, rows, strict=True)}
        return unfinished

    async def claim(self, orphans: Sequence[UnfinishedResponse]) -> list[UnfinishedResponse]:
        keys = [key for one in orphans if (key := _key(one)) in self._whose]
        values = ([owner for owner, _ in keys], [id_ for _, id_ in keys], [self._whose[key] for key in keys])
        claimed = {
            (_text(owner), _text(id_)) for owner, id_ in await self._read(sql.CLAIM, self._database.process, *values)
        }
        self._claimed |= claimed
        return [one for one in orphans if _key(one) in claimed]

    def abandoned(self) -> AsyncIterator[None]:
        return self._database.abandoned()

    async def room_wanted(self) -> AsyncIterator[None]:
        while self._service:
            await asyncio.sleep(LOOK_FOR_WAITING_S)
            yield

    async def take_waiting(self, most: int) -> list[UnfinishedResponse]:
        rows = await self._database.look(Statement(sql.TAKE_WAITING, (self._database.process, most)))
        taken: list[UnfinishedResponse] = [{**_stored(row), "request": row[-2]} for row in rows]
        self._claimed.update(map(_key, taken))
        return taken

    async def ask_to_cancel(self, response_id: str, *, owner: str = "") -> bool:
        try:
            rows, _ = await self._database.read(
                Statement(sql.ASK_TO_CANCEL, (owner, response_id)), Statement(sql.NOTIFY, (UNWANTED, ""))
            )
        except Outage as error:
            raise unreadable() from error
        return bool(rows)

    async def unwanted(self) -> AsyncIterator[tuple[str, str]]:
        while self._service:
            await self._database.wait_for_unwanted()
            for owner, id_ in await self._database.look(Statement(sql.UNWANTED, (self._database.process,))):
                yield _text(owner), _text(id_)

    async def _exists(self, key: Key) -> bool:
        return bool(await self._read(sql.EXISTS, *key))

    async def _read_expired(self, created_at: int) -> list[Key]:
        return [(_text(owner), _text(id_)) for owner, id_ in await self._read(sql.GET_EXPIRED, created_at)]

    async def _read_chain(self, key: Key) -> list[ChainRow]:
        rows = await self._read(sql.GET_HISTORY, *key)
        return [
            ChainRow(_optional(previous), _text(status), given or b"", output, _optional(conversation))
            for previous, status, given, output, conversation in rows
        ]

    async def _read_items(self, item_ids: list[str], owner: str) -> list[tuple[list[str], bytes, bytes | None]]:
        rows = await self._read(sql.GET_OF_ITEMS, item_ids, owner)
        return [
            ([item_ids[place - 1] for place in decode_json(places or b"[]")], given or b"", output)
            for places, given, output in rows
        ]

    async def list_input_items(
        self,
        response_id: str,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None:
        rows = await self._read(sql.INPUT_ITEMS[order], owner, response_id, after, limit + 1)
        if not rows:
            return None
        items: list[Item] = []
        for _, id_, item in rows[:limit]:
            if item is not None:
                items.append(decode_json(item))
                if id_ is not None:
                    items[-1]["id"] = decode_text(id_)
        return ItemPage(items, has_more=len(rows) > limit, knows_after=rows[0][0] is not None)

    async def get_events(self, response_id: str, *, owner: str = "") -> list[Event] | None:
        rows = await self._read(sql.GET_EVENTS, owner, response_id)
        return decode_json(rows[0][0] or b"") if rows else None

    async def get_setting(self, name: str, default: str) -> str:
        await self._queue.write((sql.STORE_SETTING, (name, default)))
        return _text((await self._read(sql.GET_SETTING, name))[0][0])

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_conversation(self, conversation_id: str, *, owner: str = "") -> Conversation | None:
        rows = await self._read(conversations.GET, owner, conversation_id)
        return conversations.conversation_of(rows[0]) if rows else None

    async def list_conversation_items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        limit: int | None = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None:
        at_most = None if limit is None else limit + 1
        rows = await self._read(conversations.LIST[order], owner, conversation_id, after, at_most)
        return conversations.page_of(rows, limit)

    async def get_conversation_items(
        self, conversation_id: str, item_ids: list[str], *, owner: str = ""
    ) -> dict[str, Item]:
        rows = await self._read(conversations.GET_ITEMS, owner, conversation_id, item_ids)
        items = [conversations.item_of(id_, item) for id_, item in rows]
        return {item["id"]: item for item in items}

    # ── for whoever runs the service ─────────────────────────────────────────────────────────────────────────────────

    async def list_responses(
        self, *, before: int | None = None, limit: int, owner: str | None, at_work: bool = False
    ) -> list[ListedResponse]:
        rows = await self._read(listing.RESPONSES[at_work], before, owner, limit)
        return [listing.listed_response(row) for row in rows]

    async def list_conversations(
        self, *, before: int | None = None, limit: int, owner: str | None
    ) -> list[ListedConversation]:
        rows = await self._read(listing.CONVERSATIONS, before, owner, limit)
        return [listing.listed_conversation(row) for row in rows]

    # ── what was used ────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_usage(self, begin: int, end: int, *, by: By, step: int, owner: str | None = None) -> list[UsageRow]:
        return [usage_row(row) for row in await self._read(LIST[by], begin, end, step, owner)]

    async def spent(self, since: int, *, owner: str, key: str | None = None) -> Spent:
        return spent((await self._read(SPENT, owner, since, key))[0])

    async def roll_up_usage(self, before: int) -> None:
        await self._queue.write((ROLL_UP, (before,)))

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_keys(self, after: int = 0) -> list[StoredKey]:
        return [postgres_keys.stored_key(row) for row in await self._read(postgres_keys.LIST, after)]

    async def put_keys(self, keys: Sequence[StoredKey], after: int) -> bool:
        return bool((await self._database.read(*postgres_keys.putting(keys, after)))[-1])

    # ── copies ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read_rows(self, table: Table, after: CopiedRow | None = None) -> list[CopiedRow]:
        (rows,) = await self._database.read(postgres_copies.reading(table, after))
        return [postgres_copies.row_of(table, row) for row in rows]

    async def write_rows(self, table: Table, rows: Sequence[CopiedRow]) -> None:
        try:
            await self._database.write(*postgres_copies.writing(table, rows, _ids_of))
        except (psycopg.Error, Outage) as error:
            raise CopyError(f"{table.name} cannot be written: {one_line(str(error))}") from error

    async def count_rows(self, table: Table) -> int:
        return decode_integer((await self._read(f"SELECT count(*) FROM {table.name}"))[0][0] or b"")

    async def other_services(self) -> int:
        return decode_integer((await self._read(sql.OTHER_SERVICES, self._service, LEASE_S))[0][0] or b"")


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def statements_of(writes: list[Write]) -> Iterator[Statement]:
    """A batch as few statements: the writes of the same SQL are one, where they do not stand in each other's way."""
    if all(statement in sql.RANKS for statement, _ in writes):
        writes = sorted(writes, key=lambda write: sql.RANKS[write[0]])
    for statement, group in groupby(writes, key=itemgetter(0)):
        rows = [values for _, values in group]
        if "[]" not in statement:
            yield from (Statement(statement, row) for row in rows)
        else:
            for some in _in_parts(rows, sql.KEYED.get(statement, 0)):
                yield Statement(statement, [*zip(*some, strict=True)])


def _in_parts(rows: Iterable[tuple[Value, ...]], key: int) -> Iterator[list[tuple[Value, ...]]]:
    """Rows in their order, so that no part is too long, or has two of the same first `key` values."""
    part: list[tuple[Value, ...]] = []
    keys: set[tuple[Value, ...]] = set()
    size = 0
    for row in rows:
        length = sum(len(value) for value in row if isinstance(value, str | bytes))
        if part and (row[:key] in keys or size + length > STATEMENT_BYTES):
            yield part
            part, keys, size = [], set(), 0
        part.append(row)
        size += length
        if key:
            keys.add(row[:key])
    yield part


def _changed(row: ChangedRow, process: str | None) -> tuple[Value, ...]:
    return (*row.key, row.status, _ids_of(row.output_items), row.output, row.response, process)


def _ids_of(items: Sequence[Item]) -> str:
    """A JSON list with the id of each item, or null where it has none (`rows.ids_of`)."""
    ids = [ids_of([item]) for item in items]
    return encode_json([encode_text(id_[0]).decode() if id_ else None for id_ in ids]).decode()


def unreadable() -> ServerError:
    """The error of a read while the database is away."""
    words = "What was stored cannot be read for now."
    return ServerError(words, code="storage_error", status=503, retry_after_s=OUTAGE_S)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stored(row: ResultRow) -> StoredResponse:
    owner, id_, previous, conversation, model, status, created_at, given, output, rest = row[:10]
    return {
        "id": _text(id_),
        "owner": _text(owner),
        "previous_response_id": _optional(previous),
        "conversation": _optional(conversation),
        "model": _text(model),
        "status": _text(status),
        "created_at": decode_integer(created_at or b""),
        "input": decode_json(given or b""),
        "response": response_of(output, rest),
    }


def _key(row: StoredResponse) -> Key:
    return row["owner"], row["id"]


def _text(value: bytes | None) -> str:
    return decode_text(value or b"")


def _optional(value: bytes | None) -> str | None:
    return None if value is None else decode_text(value)
