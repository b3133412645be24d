"""What every store in SQL does in the same way: what writes is queued, a conversation that goes on stays in memory, an
item is found by its id once its response has ended.

    QueuedStore ──writes──▶ WriteQueue ──a batch──▶ _commit ──▶ the SQL of a database
                ──reads───▶ WarmChains, else ─────▶ _read_… ──▶ the SQL of a database

A subclass has the SQL: what makes a `Write` of a verb, and what reads rows.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from core.deletions import Deletions, OwnDeletions
from core.errors import ServerError
from core.json import encode_json
from core.usage import Use, Where
from stores.kept_conversations import KeptConversations
from stores.rows import (
    UNFINISHED,
    Event,
    History,
    Item,
    Response,
    StoredResponse,
    UnfinishedResponse,
    ids_of,
    interrupted,
    items_of,
    output_and_rest,
    turn_of,
)
from stores.warm_chains import Begun, Key, WarmChains
from stores.writing import Write, WriteQueue, Written

# How often it is looked whether the database can be written, and how long that may take.
CHECK_EVERY_S = 1.0
CHECK_S = 2.0


class NewRow(NamedTuple):
    """A response as it is stored first; `input`, `output` and `response` are JSON, the last without the output."""

    key: Key
    previous: str | None
    conversation: str | None
    model: str
    status: str
    created_at: int
    input: bytes
    output: bytes | None
    response: bytes | None
    request: bytes | None
    moves_at: int | None
    input_items: Sequence[Item]
    output_items: Sequence[Item]


# Without a call in Python: every turn that is stored makes one.
_new_row: Callable[[tuple[Any, ...]], NewRow] = partial(tuple.__new__, NewRow)


class ChangedRow(NamedTuple):
    """How a response stands now. `is_own`: this process has begun it, and nobody else ends it."""

    key: Key
    status: str
    output: bytes | None
    response: bytes | None
    output_items: Sequence[Item]
    is_own: bool


class ChainRow(NamedTuple):
    """A response of a conversation."""

    previous: str | None
    status: str
    input: bytes
    output: bytes | None
    conversation: str | None


class SqlDatabase(Protocol):
    """What is opened, and closed, with a store."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...


class QueuedStore(KeptConversations, ABC):
    """The verbs of `db.Store` that are the same in every SQL."""

    moves_turns = False
    # A subclass makes it.
    _database: SqlDatabase

    def __init__(self, deletions: Deletions | None) -> None:
        self.deletions: Deletions = deletions if deletions is not None else OwnDeletions()
        self._queue = WriteQueue(self._commit)
        self._warm = WarmChains(self.deletions)
        self._running: dict[Key, Begun] = {}
        self._checked_at = 0.0

    async def open(self) -> None:
        await self._database.open()
        self._warm, self._running = WarmChains(self.deletions), {}
        self._queue.open()

    async def close(self) -> None:
        await self._queue.close()
        await self._database.close()

    # ── what a database adds ─────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def _commit(self, writes: list[Write]) -> Sequence[Write]:
        """Commits a batch, or raises and changes nothing. Gives the writes that came too late."""

    @abstractmethod
    def _storing(self, row: NewRow) -> Write:
        """Stores a response; of one that is there it changes where it stands."""

    @abstractmethod
    def _updating(self, row: ChangedRow) -> Write:
        """Changes where a response stands, if it is there. What has ended loses its request."""

    @abstractmethod
    def _failing(self, row: ChangedRow) -> Write:
        """The same, if it has not ended."""

    @abstractmethod
    def _indexing(self, key: Key, item_ids: Iterable[str]) -> list[Write]:
        """Lets a response be found by items, if it is there."""

    @abstractmethod
    def _indexing_row(self, key: Key) -> Write:
        """Lets it be found by all items that its row has, if it has ended."""

    @abstractmethod
    def _unindexing_row(self, key: Key) -> Write:
        """Lets it be found by none of them."""

    @abstractmethod
    def _deleting(self, keys: Sequence[Key]) -> list[Write]:
        """Deletes responses, with their events, and the index of their items."""

    @abstractmethod
    def _storing_events(self, key: Key, events: bytes) -> Write:
        """Keeps the events of a response, once, if it is there."""

    @abstractmethod
    def _counting(self, where: Where, used: Use) -> Write:
        """Adds what was used to what was counted of that hour."""

    @abstractmethod
    def _checking(self) -> Write:
        """Writes what shows that it can be written."""

    @abstractmethod
    async def get_response(self, response_id: str, *, owner: str = "") -> StoredResponse | None: ...

    @abstractmethod
    async def unfinished(self) -> list[UnfinishedResponse]: ...

    @abstractmethod
    async def _read_expired(self, created_at: int) -> list[Key]:
        """Some responses made before, ended, that none builds on."""

    @abstractmethod
    async def _read_chain(self, key: Key) -> list[ChainRow]:
        """A response and all before it, youngest first."""

    @abstractmethod
    async def _read_items(self, item_ids: list[str], owner: str) -> list[tuple[list[str], bytes, bytes | None]]:
        """For each response that has some of the items: their ids, the JSON of its input, and of its output."""

    @abstractmethod
    async def _exists(self, key: Key) -> bool:
        """Whether there is such a response."""

    @abstractmethod
    def _deleting_unused(self, at: int) -> list[Write]:
        """Deletes conversations that got their last items before."""

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
        moves_at: int | None = None,
        appended: Sequence[Item] = (),
        owner: str = "",
    ) -> Written:
        given, (output, rest) = encode_json(input_messages), output_and_rest(response)
        key, previous = (owner, response_id), (owner, previous_response_id) if previous_response_id else None
        begun = Begun(key, previous, given, ids_of(input_messages), self.deletions.value, conversation)
        is_running = status in UNFINISHED
        kept, items = request if is_running else None, _output_of(response)
        # fmt: off
        row = _new_row((
            key, previous_response_id, conversation, model, status, created_at, given, output, rest, kept, moves_at,
            input_messages, items,
        ))
        # fmt: on
        if response is None or is_running:
            self._running[key] = begun
            return self._queue.write(self._storing(row), then=begun.commit)
        begun.is_committed = True
        before = self._appended(key, conversation, appended, is_begun=False) if appended else ()
        return self._end(begun, self._storing(row), items, output, before)

    def update_response(
        self,
        response_id: str,
        response: Response,
        *,
        conversation: str | None = None,
        appended: Sequence[Item] = (),
        owner: str = "",
    ) -> Written:
        key, status = (owner, response_id), response["status"]
        output, rest = output_and_rest(response)
        begun = self._running.get(key)
        row = ChangedRow(key, status, output, rest, _output_of(response), is_own=begun is not None)
        if status in UNFINISHED:
            return self._queue.write(self._updating(row))
        # Before it has ended for the database: until then it is seen whose it is.
        before = self._appended(key, conversation, appended, is_begun=True) if appended else ()
        if begun is None:
            # Not begun here, or ended already: its items may be others now.
            drop = partial(self._warm.drop, key)
            index = (self._unindexing_row(key), self._indexing_row(key))
            return self._queue.write(*before, index[0], self._updating(row), index[1], then=drop)
        del self._running[key]
        return self._end(begun, self._updating(row), row.output_items, output, before)

    def _end(
        self,
        begun: Begun,
        write: Write,
        output_items: Sequence[Item],
        output: bytes | None,
        before: Sequence[Write] = (),
    ) -> Written:
        """Writes how a response has ended, behind what is to be written `before`. `output` is the JSON of its
        output."""
        items = self._indexing(begun.key, begun.item_ids + ids_of(output_items))
        return self._queue.write(*before, write, *items, then=partial(self._warm.end, begun, output))

    async def delete_response(self, response_id: str, *, owner: str = "") -> bool:
        if not await self._exists((owner, response_id)):
            return False
        await self._delete([(owner, response_id)])
        return True

    def _delete(self, keys: Sequence[Key]) -> Written:
        for key in keys:
            self._running.pop(key, None)
        # Behind the commit: what was read before it is not good for the time after it.
        return self._queue.write(*self._deleting(keys), then=partial(self._count_deletions, len(keys)))

    def _count_deletions(self, number: int) -> None:
        """Counts what was deleted here, behind the commit."""
        self.deletions.add(number)

    def running_ids(self) -> list[str]:
        return [response_id for _, response_id in self._running]

    async def claim(self, orphans: Sequence[UnfinishedResponse]) -> list[UnfinishedResponse]:
        return list(orphans)  # Of the one service that has the database, one process asks.

    async def abandoned(self) -> AsyncIterator[None]:
        return
        yield

    async def room_wanted(self) -> AsyncIterator[None]:
        return
        yield

    async def take_waiting(self, most: int) -> list[UnfinishedResponse]:
        return []

    async def ask_to_cancel(self, response_id: str, *, owner: str = "") -> bool:
        return False

    async def unwanted(self) -> AsyncIterator[tuple[str, str]]:
        return
        yield

    async def fail_orphaned_responses(self) -> int:
        return await self.fail_orphans(await self.unfinished())

    async def fail_orphans(self, orphans: Iterable[UnfinishedResponse]) -> int:
        failed = 0
        for orphan in orphans:
            response = interrupted(orphan["response"])
            key = (orphan["owner"], orphan["id"])
            row = ChangedRow(key, "failed", *output_and_rest(response), _output_of(response), is_own=False)
            await self._queue.write(self._failing(row), self._indexing_row(key))
            failed += 1
        return failed

    async def delete_older_than(self, created_at: int) -> int:
        deleted = 0
        while expired := await self._read_expired(created_at):
            await self._delete(expired)
            deleted += len(expired)
        await self._queue.write(*self._deleting_unused(created_at))
        return deleted

    def store_events(self, response_id: str, events: list[Event], *, owner: str = "") -> Written:
        return self._queue.write(self._storing_events((owner, response_id), encode_json(events)))

    def count_usage(self, used: Mapping[Where, Use], failed: Callable[[], object] | None = None) -> Written:
        return self._queue.write(*[self._counting(*one) for one in used.items()], failed=failed)

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_history(self, response_id: str, *, owner: str = "") -> History:
        key = (owner, response_id)
        if (warm := self._warm.get(key)) is not None:
            return History(items_of(warm))
        as_of = self.deletions.value
        rows = await self._read_chain(key)
        if not rows:
            return History([], missing=response_id)
        turns = [turn_of(row.input, row.output) for row in reversed(rows)]
        status = rows[0].status
        missing, unfinished = rows[-1].previous, status if status in UNFINISHED else None
        conversation = rows[-1].conversation
        if not (missing or unfinished or conversation):
            self._warm.put(key, turns, as_of)
        return History(items_of(turns), missing, unfinished, conversation)

    async def get_items(self, item_ids: list[str], *, owner: str = "") -> dict[str, Item]:
        found: dict[str, Item] = {}
        for ids, given, output in await self._read_items(item_ids, owner):
            of_row: dict[str, Item] = {}
            for item in items_of([turn_of(given, output)]):
                for item_id in ids_of([item]):
                    of_row.setdefault(item_id, item)
            found |= {item_id: of_row[item_id] for item_id in ids if item_id in of_row}
        return found

    # ── whether it works ─────────────────────────────────────────────────────────────────────────────────────────────

    def observe_writes(self, observe: Callable[[float], object]) -> None:
        self._queue.observe = observe

    async def outage(self) -> str | None:
        now = time.monotonic()
        if now - self._checked_at >= CHECK_EVERY_S:
            self._checked_at = now
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._queue.write(self._checking())
            except TimeoutError:
                self._checked_at = 0.0
                return "the database does not answer"
            except ServerError:
                self._checked_at = 0.0
        return self._queue.outage


def _output_of(response: Response | None) -> Sequence[Item]:
    return (response.get("output") if response else None) or ()
