"""The store: what a response was made from, and what came of it. Verbs (`Store`) over a connector that only runs SQL (`db_sqlite.py`).

    responses         a row a response: the items of its own turn, its output, and the rest of the response object
    response_items    which response an item belongs to, for clients that send a reference to it
    response_events   the events of a background stream, kept for clients that join later

A conversation is a chain of rows, read in one query; those that went on lately stay in memory and are not read at all.
Writes are queued when they are called and committed together, in one transaction for all turns that finish at the same
time; awaiting one waits for its commit. Ids begin with a time, so that new rows lie side by side at the end of each index: what
a write costs does not depend on how many rows there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from core.deletions import Deletions, OwnDeletions
from core.errors import ServerError
from stores.sqlite import Row, SQLite, Write

log = logging.getLogger("nomyo.db")

Item = dict[str, Any]

SCHEMA = (
    # What a conversation needs comes before what it does not: SQLite reads a long row only as far as it must.
    """CREATE TABLE IF NOT EXISTS responses (
        id TEXT PRIMARY KEY,
        previous_response_id TEXT,
        model TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at BIGINT NOT NULL,
        input BLOB NOT NULL,
        output BLOB,
        response BLOB
    )""",
    """CREATE INDEX IF NOT EXISTS responses_previous ON responses (previous_response_id)
        WHERE previous_response_id IS NOT NULL""",
    "CREATE INDEX IF NOT EXISTS responses_created ON responses (created_at)",
    """CREATE INDEX IF NOT EXISTS responses_running ON responses (status)
        WHERE status IN ('queued', 'in_progress')""",
    "CREATE TABLE IF NOT EXISTS response_events (response_id TEXT PRIMARY KEY, events BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS response_items (item_id TEXT PRIMARY KEY, response_id TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)
# What databases of earlier versions lack, and what they have for nothing. Their rows hold the output in the response.
ADDED_COLUMNS = (("responses", "output", "BLOB"),)
DROPPED = ("DROP INDEX IF EXISTS response_items_response",)

STORE = """INSERT INTO responses (id, previous_response_id, model, status, created_at, input, output, response)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, output = excluded.output, response = excluded.response"""
# Not an upsert: a response that was deleted while it ran stays deleted.
UPDATE = "UPDATE responses SET status = ?, output = ?, response = ? WHERE id = ?"
# What has ended meanwhile was no orphan.
FAIL = f"{UPDATE} AND status IN ('queued', 'in_progress')"
GET = "SELECT * FROM responses WHERE id = ?"
EXISTS = "SELECT 1 FROM responses WHERE id = ?"
# Youngest first: a chain has one row at a time to go on from.
GET_HISTORY = """WITH RECURSIVE chain (previous_response_id, status, input, output) AS (
        SELECT previous_response_id, status, input, COALESCE(output, response) FROM responses WHERE id = ?
        UNION ALL
        SELECT r.previous_response_id, r.status, r.input, COALESCE(r.output, r.response)
        FROM chain JOIN responses r ON r.id = chain.previous_response_id
    )
    SELECT * FROM chain"""
RUNNING = "SELECT * FROM responses WHERE status IN ('queued', 'in_progress')"
DELETE = "DELETE FROM responses WHERE id = ?"
DELETE_EVENTS = "DELETE FROM response_events WHERE response_id = ?"
# The ids are in the row, so no index leads from a response to its items.
DELETE_ITEMS = """WITH kept AS (SELECT id, CAST(input AS TEXT) AS input, CAST(COALESCE(output, response) AS TEXT) AS output,
        CASE WHEN output IS NULL THEN '$.output' ELSE '$' END AS place FROM responses WHERE id = ?)
    DELETE FROM response_items WHERE response_id = (SELECT id FROM kept) AND item_id IN (
        SELECT json_extract(item.value, '$.id') FROM kept, json_each(kept.input) item
        UNION ALL SELECT json_extract(item.value, '$.id') FROM kept, json_each(kept.output, kept.place) item)"""
STORE_ITEM = """INSERT INTO response_items (item_id, response_id) VALUES (?, ?)
    ON CONFLICT (item_id) DO UPDATE SET response_id = excluded.response_id"""
# For a response that may be gone.
STORE_ITEM_OF = """INSERT INTO response_items (item_id, response_id) SELECT ?, id FROM responses WHERE id = ?
    ON CONFLICT (item_id) DO UPDATE SET response_id = excluded.response_id"""
GET_OF_ITEMS = """SELECT json_group_array(i.item_id) AS item_ids, r.input, COALESCE(r.output, r.response) AS output
    FROM response_items i JOIN responses r ON r.id = i.response_id
    WHERE i.item_id IN (SELECT value FROM json_each(?)) GROUP BY r.id"""
STORE_SETTING = "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING"
GET_SETTING = "SELECT value FROM settings WHERE name = ?"
STORE_EVENTS = """INSERT INTO response_events (response_id, events)
    SELECT id, ? FROM responses WHERE id = ? ON CONFLICT DO NOTHING"""
GET_EVENTS = "SELECT events FROM response_events WHERE response_id = ?"
# The end of a chain goes first: a turn that a younger one still builds on is kept.
EXPIRED = """SELECT id FROM responses r
    WHERE created_at < ? AND status NOT IN ('queued', 'in_progress')
    AND NOT EXISTS (SELECT 1 FROM responses c WHERE c.previous_response_id = r.id)
    LIMIT 500"""

UNFINISHED = frozenset({"queued", "in_progress"})
INTERRUPTED = ServerError("The router stopped while this response was running.", code="interrupted")
# The conversations that are kept in memory, as JSON: as objects they would take three to six times that.
WARM_MB = 4


@dataclass(frozen=True, slots=True)
class History:
    """The items of a response and of all before it, oldest first. `missing` is the id of the one that is not there, `unfinished` the
    status of a response that has not ended."""

    items: list[Item]
    missing: str | None = None
    unfinished: str | None = None


class Store:
    """Responses, by id. `url` is `sqlite:///relative/path`, `sqlite:////absolute/path`, or `sqlite://` for memory alone.
    `open()` inside the running loop, `close()` at its end."""

    def __init__(self, url: str) -> None:
        self.deletions: Deletions = OwnDeletions()
        path = url.removeprefix("sqlite://").removeprefix("/") or ":memory:"
        self._connector = SQLite(path, SCHEMA, ADDED_COLUMNS, DROPPED)
        self._warm = WarmChains(self.deletions.value)
        self._running: dict[str, Begun] = {}
        self._queue: list[Written] = []
        self._queued = asyncio.Event()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._connector.open()
        self._warm, self._running = WarmChains(self.deletions.value), {}
        self._queue, self._queued, self._closing = [], asyncio.Event(), False
        self._writer = asyncio.create_task(self._write_batches(), name="store writer")

    async def close(self) -> None:
        """What is queued is written first."""
        if self._writer is not None:
            self._closing = True
            self._queued.set()
            await self._writer
        await self._connector.close()

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
        response: dict[str, Any] | None = None,
    ) -> Written:
        """Stores a new response: `input_messages` are the input items of its own turn, `response` is the object, if there is one
        yet. Its items can be found by their ids when it has ended. Queued at once; await it for the commit. Raises
        `ServerError` if that failed."""
        given, (output, rest) = orjson.dumps(input_messages), _output_and_rest(response)
        row = (response_id, previous_response_id, model, status, created_at, given, output, rest)
        begun = Begun(response_id, previous_response_id, given, _ids_of(input_messages), self.deletions.value)
        if response is None or status in UNFINISHED:
            self._running[response_id] = begun
            return self._write((STORE, row), then=begun.commit)
        begun.commit()
        return self._end(begun, (STORE, row), response, output)

    def update_response(self, response_id: str, response: dict[str, Any]) -> Written:
        """The response has come further. Does nothing if it was deleted meanwhile."""
        output, rest = _output_and_rest(response)
        update = (UPDATE, (response["status"], output, rest, response_id))
        if response["status"] in UNFINISHED:
            return self._write(update)
        if (begun := self._running.pop(response_id, None)) is None:
            return self._write(update, then=lambda: self._warm_chains().drop(response_id))
        return self._end(begun, update, response, output)

    def _end(self, begun: Begun, write: Write, response: dict[str, Any], output: bytes | None) -> Written:
        """Writes how a response has ended. `output` is the JSON of its output."""
        # If something was deleted meanwhile, it may have been this one.
        store_item = STORE_ITEM if begun.deletions == self.deletions.value else STORE_ITEM_OF
        item_ids = begun.item_ids + _ids_of(response.get("output") or ())
        items = [(store_item, (item_id, begun.id)) for item_id in item_ids]
        return self._write(write, *items, then=lambda: self._keep_warm(begun, output))

    async def get_response(self, response_id: str) -> Row | None:
        """`{id, previous_response_id, model, status, created_at, input, response}`, or None."""
        rows = await self._connector.read(GET, response_id, each=_loaded)
        return rows[0] if rows else None

    async def delete_response(self, response_id: str) -> bool:
        """Whether there was such a response."""
        if not await self._connector.read(EXISTS, response_id):
            return False
        await self._delete([response_id])
        return True

    def _delete(self, ids: list[str]) -> Written:
        for response_id in ids:
            self._running.pop(response_id, None)
        # Behind the commit: what was read before it is not good for the time after it.
        counted = partial(self.deletions.add, len(ids))
        return self._write(*((sql, (id,)) for sql in (DELETE_EVENTS, DELETE_ITEMS, DELETE) for id in ids), then=counted)

    async def fail_orphaned_responses(self) -> int:
        """Marks as failed what was running when the service stopped. For its start, before anything runs. Gives their number."""
        return await self.fail_orphans(await self.unfinished())

    async def unfinished(self) -> list[Row]:
        """The responses that have not ended, in any process."""
        return await self._connector.read(RUNNING, each=_loaded)

    def running_ids(self) -> list[str]:
        """The responses that this process has begun and not ended."""
        return list(self._running)

    async def fail_orphans(self, orphans: list[Row]) -> int:
        """Marks as failed what was running when its process died. Gives their number."""
        failed = {"status": "failed", "error": INTERRUPTED.to_response_error()}
        for row in orphans:
            output, rest = _output_and_rest({**(row["response"] or {}), **failed})
            await self._write((FAIL, ("failed", output, rest, row["id"])))
        return len(orphans)

    async def delete_older_than(self, created_at: int) -> int:
        """Deletes responses made before `created_at` (Unix seconds) that no younger one builds on. Gives their number."""
        deleted = 0
        while ids := [row["id"] for row in await self._connector.read(EXPIRED, created_at)]:
            await self._delete(ids)
            deleted += len(ids)
        return deleted

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_history(self, response_id: str) -> History:
        """The conversation up to a response, from memory if it is there."""
        chains = self._warm_chains()
        if (warm := chains.get(response_id)) is not None:
            return History(_items_of(warm))
        rows = await self._connector.read(GET_HISTORY, response_id)
        if not rows:
            return History([], missing=response_id)
        turns = [_turn_in(row) for row in reversed(rows)]
        status = rows[0]["status"]
        missing, unfinished = rows[-1]["previous_response_id"], status if status in UNFINISHED else None
        if not missing and not unfinished:
            # Those of before the reading: if something was deleted meanwhile, nobody looks there any more.
            chains.put(response_id, turns)
        return History(_items_of(turns), missing, unfinished)

    def _keep_warm(self, begun: Begun, output: bytes | None) -> None:
        """A response was stored as ended: its conversation takes the place of the one that it goes on from."""
        chains = self._warm_chains()
        if not begun.committed or begun.deletions != chains.deletions:
            return
        turns = chains.drop(begun.previous) if begun.previous else []
        if turns is not None:
            turns.append(_turn_of(begun.input, output or NO_ITEMS))
            chains.put(begun.id, turns)

    def _warm_chains(self) -> WarmChains:
        """Those of now: after a deletion, by whomever, none that was kept before it is sure any more."""
        if self._warm.deletions != self.deletions.value:
            self._warm = WarmChains(self.deletions.value)
        return self._warm

    async def get_items(self, item_ids: list[str]) -> dict[str, Item]:
        """Input and output items of stored responses, by their ids. Those that are not there are left out."""
        found: dict[str, Item] = {}
        for row in await self._connector.read(GET_OF_ITEMS, orjson.dumps(item_ids).decode()):
            of_row = {item.get("id"): item for item in _items_of([_turn_in(row)])}
            found |= {item_id: of_row[item_id] for item_id in orjson.loads(row["item_ids"]) if item_id in of_row}
        return found

    async def get_setting(self, name: str, default: str) -> str:
        """A value that every router on this database shares. The first to ask decides it with its `default`."""
        await self._write((STORE_SETTING, (name, default)))
        value: str = (await self._connector.read(GET_SETTING, name))[0]["value"]
        return value

    # ── events of background streams ─────────────────────────────────────────────────────────────────────────────────

    def store_events(self, response_id: str, events: list[dict[str, Any]]) -> Written:
        """Keeps all events of a response's stream, once. Does nothing if the response was deleted."""
        return self._write((STORE_EVENTS, (orjson.dumps(events), response_id)))

    async def get_events(self, response_id: str) -> list[dict[str, Any]] | None:
        rows = await self._connector.read(GET_EVENTS, response_id)
        return orjson.loads(rows[0]["events"]) if rows else None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, *writes: Write, then: Callable[[], object] | None = None) -> Written:
        if self._closing:
            raise _not_stored()
        written = Written(writes, then)
        self._queue.append(written)
        self._queued.set()
        return written

    async def _write_batches(self) -> None:
        while not self._closing or self._queue:
            await self._queued.wait()
            self._queued.clear()
            batch, self._queue = self._queue, []
            if batch and not await self._wrote(batch) and len(batch) > 1:
                # One of them is bad. Alone, it takes nobody else down.
                for one in batch:
                    await self._wrote([one])

    async def _wrote(self, batch: list[Written]) -> bool:
        try:
            await self._connector.write(_side_by_side([write for written in batch for write in written.writes]))
        except Exception as error:
            if len(batch) == 1:
                log.exception("a write failed")
                batch[0].end(_not_stored(error))
            return False
        for written in batch:
            written.end(None)
        return True


class Written:
    """Queued writes, which are committed together or not at all; `then` is called behind the commit. Awaiting it waits for that;
    whoever stops waiting does not stop the write, and nobody has to wait at all."""

    __slots__ = ("_failure", "_is_done", "_then", "_waiting", "writes")

    def __init__(self, writes: Sequence[Write], then: Callable[[], object] | None = None) -> None:
        self.writes = writes
        self._then = then
        self._waiting: list[asyncio.Future[None]] = []
        self._is_done = False
        self._failure: ServerError | None = None

    def done(self) -> bool:
        return self._is_done

    def end(self, failure: ServerError | None) -> None:
        self._is_done, self._failure = True, failure
        if failure is None and self._then is not None:
            self._then()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        if not self._is_done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            yield from waiter
        if self._failure is not None:
            raise self._failure


@dataclass(slots=True)
class Begun:
    """What of a response is known before it has ended: of its input the JSON, and the ids of its items; and how many deletions there
    were before it was stored."""

    id: str
    previous: str | None
    input: bytes
    item_ids: list[str]
    deletions: int
    committed: bool = False

    def commit(self) -> None:
        self.committed = True


class WarmChains:
    """Conversations by the id of their last response, the latest used last: the JSON of their items (`_turn_of`). All are of a time with
    so many deletions."""

    def __init__(self, deletions: int) -> None:
        self.deletions = deletions
        self._chains: dict[str, list[bytes]] = {}
        self._size = 0

    def get(self, response_id: str) -> list[bytes] | None:
        if warm := self._chains.pop(response_id, None):
            self._chains[response_id] = warm
        return warm

    def put(self, response_id: str, turns: list[bytes]) -> None:
        self.drop(response_id)
        self._chains[response_id] = turns
        self._size += _size_of(turns)
        while self._size > WARM_MB * 1024 * 1024:
            self.drop(next(iter(self._chains)))

    def drop(self, response_id: str) -> list[bytes] | None:
        if dropped := self._chains.pop(response_id, None):
            self._size -= _size_of(dropped)
        return dropped


def _size_of(turns: list[bytes]) -> int:
    """How much memory a conversation takes, with what Python needs for each turn."""
    return sum(map(len, turns)) + 41 * len(turns) + 300


def _not_stored(cause: Exception | None = None) -> ServerError:
    failure = ServerError("The response could not be stored.", code="storage_error")
    failure.__cause__ = cause
    return failure


def _output_and_rest(response: dict[str, Any] | None) -> tuple[bytes | None, bytes | None]:
    """The JSON of a response's output, and of the response without it."""
    if response is None:
        return None, None
    if "output" not in response:
        return None, orjson.dumps(response)
    return orjson.dumps(response["output"]), orjson.dumps({**response, "output": None})


def _loaded(row: Row) -> Row:
    response = row["response"] and orjson.loads(row["response"])
    if (output := row.pop("output")) is not None:
        response["output"] = orjson.loads(output)
    return {**row, "input": orjson.loads(row["input"]), "response": response}


def _turn_in(row: Row) -> bytes:
    """`_turn_of` a row, whose `output` may be a whole response, as it was stored once, or None."""
    output = row["output"] or NO_ITEMS
    if not output.startswith(b"["):
        output = orjson.dumps(orjson.loads(output).get("output") or [])
    return _turn_of(row["input"], output)


NO_ITEMS = b"[]"


def _turn_of(given: bytes, output: bytes) -> bytes:
    """The JSON of a turn's items, without brackets, out of that of its input and its output. It takes as much memory as it is long: what
    orjson has made is a piece of more, and to keep many of those leaves holes between them."""
    return b",".join([array[1:-1] for array in (given, output) if array != NO_ITEMS])


def _items_of(turns: Iterable[bytes]) -> list[Item]:
    items: list[Item] = orjson.loads(b"[%b]" % b",".join(filter(None, turns)))
    return items


def _ids_of(items: Iterable[Item]) -> list[str]:
    return [item["id"] for item in items if item.get("id")]


# A response is stored before it is updated, so within a batch what is stored may go first.
RANKS = {STORE: 0, UPDATE: 1, STORE_ITEM: 2}


def _side_by_side(writes: list[Write]) -> list[Write]:
    """The writes of a batch, with those of the same SQL together where they do not stand in each other's way."""
    if any(sql not in RANKS for sql, _ in writes):
        return writes
    return sorted(writes, key=lambda write: RANKS[write[0]])
