"""What the router keeps of responses: the verbs of every store (`Store`), and the one that the settings ask for
(`make_store`).

    db.py ──▶ stores/sqlite.py, postgres.py    its own SQL behind the verbs
              stores/migrations/               how its tables came to be

Everything belongs to an owner, whom each verb is given: another's id is an id that never was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from core.config import DatabaseConfig
from core.deletions import Deletions
from core.json import Json
from core.keys import StoredKey
from core.usage import By, Spent, UsageRow, Use, Where
from stores.copies import TABLES, CopiedRow, CopyError, Table
from stores.rows import (
    INTERRUPTED,
    Conversation,
    Event,
    History,
    Item,
    ItemPage,
    ListedConversation,
    ListedResponse,
    Response,
    StoredResponse,
    UnfinishedResponse,
)
from stores.writing import Written

__all__ = [
    "INTERRUPTED",
    "TABLES",
    "Conversation",
    "CopiedRow",
    "CopyError",
    "Deletions",
    "Event",
    "History",
    "Item",
    "ItemPage",
    "ListedConversation",
    "ListedResponse",
    "Response",
    "Store",
    "StoredResponse",
    "Table",
    "UnfinishedResponse",
    "Written",
    "back_up",
    "has_database",
    "make_store",
]


class Store(Protocol):
    """What every store does; tests/stores/ holds each of them to it. What writes is queued when it is called, in that
    order: awaiting it waits for its commit, and raises `ServerError` (`storage_error`) if that failed. What reads sees
    what was committed. A database that fails under a read raises its own error."""

    deletions: Deletions
    """Shared with whoever shares the database."""
    moves_turns: bool
    """Whether other processes may take turns that wait in this one (`take_waiting`)."""

    async def open(self) -> None:
        """Inside the running loop. Makes what the database lacks. Raises `core.errors.StartError` where it cannot be
        opened, such as `stores.migrations.NewerDatabase` for one that a later version has made."""
        ...

    async def close(self) -> None:
        """What is queued is written first."""
        ...

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
        """Stores a new response, made at `created_at` (Unix seconds): `input_messages` are the input items of its own
        turn, `response` is the object, if there is one yet, `conversation` the id of the conversation that it is a turn
        of. `request` is what it takes to run a turn again that waits in the background, opaque to the store, and kept
        until the turn has ended; `moves_at` is the priority with which another process may take it while it
        waits (`take_waiting`), None where none may. `appended`
        are the items that the conversation gets with it, as `update_response` adds them. The items of a response can be
        found by their ids when it has ended. Storing one again changes where it stands, and nothing else."""
        ...

    def update_response(
        self,
        response_id: str,
        response: Response,
        *,
        conversation: str | None = None,
        appended: Sequence[Item] = (),
        owner: str = "",
    ) -> Written:
        """The response has come further. Does nothing if it was deleted meanwhile. One that ends well may bring items
        to its conversation: all of `appended` in the same transaction, one behind the other, behind all that are there;
        to one that was deleted meanwhile none."""
        ...

    async def get_response(self, response_id: str, *, owner: str = "") -> StoredResponse | None:
        """A response as it was stored last, or None where there is none of that owner."""
        ...

    async def delete_response(self, response_id: str, *, owner: str = "") -> bool:
        """Deletes a response with its events. Its items go with it, but for those that another response has too. Gives
        whether there was such a response."""
        ...

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────

    def store_conversation(
        self, conversation_id: str, *, created_at: int, metadata: Json, items: Sequence[Item] = (), owner: str = ""
    ) -> Written:
        """Stores a new conversation, made at `created_at` (Unix seconds), that begins with `items`."""
        ...

    async def get_conversation(self, conversation_id: str, *, owner: str = "") -> Conversation | None:
        """A conversation without its items, or None where there is none of that owner."""
        ...

    async def update_conversation(self, conversation_id: str, metadata: Json, *, owner: str = "") -> bool:
        """Gives a conversation other metadata. Gives whether there was such a one."""
        ...

    async def delete_conversation(self, conversation_id: str, *, owner: str = "") -> bool:
        """Deletes a conversation with its items; responses that are turns of it stay. Gives whether there was such a
        one."""
        ...

    async def append_items(self, conversation_id: str, items: Sequence[Item], *, owner: str = "") -> list[Item] | None:
        """Adds items to the end of a conversation, and gives them as they are in it: one of which the id was taken, or
        that has none, with one of its own. None: there is no such conversation."""
        ...

    async def list_conversation_items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        limit: int | None = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None:
        """A page of the items of a conversation, oldest first or last, or with `limit` None all of them. It begins
        behind the item `after`. Each has an id that no other of them has. None: there is no such conversation."""
        ...

    async def get_conversation_items(
        self, conversation_id: str, item_ids: list[str], *, owner: str = ""
    ) -> dict[str, Item]:
        """Items of a conversation, by their ids; those that are not there are left out."""
        ...

    async def delete_conversation_item(self, conversation_id: str, item_id: str, *, owner: str = "") -> bool:
        """Deletes an item of a conversation. Gives whether there was such a one."""
        ...

    async def get_history(self, response_id: str, *, owner: str = "") -> History:
        """The chain of responses up to one of them, from memory if it is there. Nobody may change its items."""
        ...

    async def list_input_items(
        self,
        response_id: str,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None:
        """A page of what a response was made from: the input of its own turn, behind input and output of all turns
        before it that are still there; oldest first, or last. It begins behind the item `after`. Each item has an id
        that no other of them has, and that stays. None: there is no such response, or no object of it yet."""
        ...

    async def get_items(self, item_ids: list[str], *, owner: str = "") -> dict[str, Item]:
        """Input and output items of responses that have ended, by their ids; those that are not there are left out.
        Where several responses have an item of the same id, it is that of the one that was stored first."""
        ...

    # ── events of background streams ─────────────────────────────────────────────────────────────────────────────────

    def store_events(self, response_id: str, events: list[Event], *, owner: str = "") -> Written:
        """Keeps all events of a response's stream, once. Does nothing if the response was deleted."""
        ...

    async def get_events(self, response_id: str, *, owner: str = "") -> list[Event] | None:
        """The events that were stored of a response, in their order; None where there is no such response."""
        ...

    # ── what was used ────────────────────────────────────────────────────────────────────────────────────────────────

    def count_usage(self, used: Mapping[Where, Use], failed: Callable[[], object] | None = None) -> Written:
        """Adds what was used to what was counted before. What is called behind it, before anything is awaited, is
        committed with it. `failed` is called if that fails."""
        ...

    async def list_usage(self, begin: int, end: int, *, by: By, step: int, owner: str | None = None) -> list[UsageRow]:
        """What was used from `begin` to `end` (Unix seconds), of one owner or of all, in steps of so many seconds, UTC,
        in their order. What was rolled up to days stands at their beginning."""
        ...

    async def spent(self, since: int, *, owner: str, key: str | None = None) -> Spent:
        """What an owner has used since some time (Unix seconds), or one of its keys alone."""
        ...

    async def roll_up_usage(self, before: int) -> None:
        """Adds the hours before some time (Unix seconds, a day's beginning) up to days."""
        ...

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def list_keys(self, after: int = 0) -> list[StoredKey]:
        """The keys of which the last change is one behind `after`, in the order of their changes: with 0 all of
        them."""
        ...

    async def put_keys(self, keys: Sequence[StoredKey], after: int) -> bool:
        """Puts keys, by their digests, all as one change: the next behind `after`, which is the last that whoever puts
        them knows. Gives False, and changes nothing, where there is a later one already."""
        ...

    # ── for whoever runs the service, over all owners or of one ──────────────────────────────────────────────────────

    async def list_responses(
        self, *, before: int | None = None, limit: int, owner: str | None, at_work: bool = False
    ) -> list[ListedResponse]:
        """Responses without what is in them, the newest first, from the one with the number `before` on, which is left
        out; with `at_work` those alone that wait or run in the background."""
        ...

    async def list_conversations(
        self, *, before: int | None = None, limit: int, owner: str | None
    ) -> list[ListedConversation]:
        """Conversations without what is in them, the newest first, as `list_responses` lists."""
        ...

    # ── for the service, over all owners ─────────────────────────────────────────────────────────────────────────────

    async def unfinished(self) -> list[UnfinishedResponse]:
        """The responses that have not ended, in any process of this service, in the order in which they were stored;
        and what processes of others have left that are dead."""
        ...

    async def claim(self, orphans: Sequence[UnfinishedResponse]) -> list[UnfinishedResponse]:
        """Makes unfinished responses that no process works on this one's: gives those that no other process has claimed
        since `unfinished` gave them, here. What the process still writes whose they were changes nothing."""
        ...

    def abandoned(self) -> AsyncIterator[None]:
        """Gives one each time that processes of other services may have left something unfinished and died. Ends where
        only one service at a time can have the database."""
        ...

    def running_ids(self) -> list[str]:
        """The responses that this process has begun and not ended."""
        ...

    def room_wanted(self) -> AsyncIterator[None]:
        """Gives one each time that turns may wait in other processes for which there may be room here, every second.
        Ends where one service at a time can have the database."""
        ...

    async def take_waiting(self, most: int) -> list[UnfinishedResponse]:
        """Turns that wait in other processes for more than a second and may move, of the lowest priority those that
        wait longest: they are this one's from now on. Whoever had them is refused what it stores of them
        (`core.errors.TakenOver`)."""
        ...

    async def ask_to_cancel(self, response_id: str, *, owner: str = "") -> bool:
        """Asks whichever process works on a response to cancel it. Gives whether it may be one that only the database
        leads to: there are none where one service at a time has it."""
        ...

    def unwanted(self) -> AsyncIterator[tuple[str, str]]:
        """Owner and id of responses of this process that others have asked to cancel, within a second; perhaps more
        than once. Ends where nobody can."""
        ...

    async def fail_orphaned_responses(self) -> int:
        """Marks as failed what was running when the service stopped. For its start, before anything runs. Gives their
        number."""
        ...

    async def fail_orphans(self, orphans: Iterable[UnfinishedResponse]) -> int:
        """Marks as failed what was running when its process died. Gives their number."""
        ...

    async def delete_older_than(self, created_at: int) -> int:
        """Deletes responses made before `created_at` (Unix seconds) that no younger one builds on, and conversations
        that were made, and got their last items, before. Gives the number of responses."""
        ...

    def observe_writes(self, observe: Callable[[float], object]) -> None:
        """Has `observe` called with how long each batch of writes has taken, in seconds."""
        ...

    async def outage(self) -> str | None:
        """Why nothing can be written now, in a line for whoever looks after the service; None where all is well. Looks,
        by writing, but not more often than once a second."""
        ...

    async def get_setting(self, name: str, default: str) -> str:
        """A value that every router on this database shares. The first to ask decides it with its `default`."""
        ...

    # ── to copy it (./nomyo move), while nobody serves from it ───────────────────────────────────────────────────────

    async def read_rows(self, table: Table, after: CopiedRow | None = None) -> list[CopiedRow]:
        """The rows of one of `TABLES` that come behind the key `after` in the order of the key (texts by their UTF-8
        bytes): about `stores.copies.COPIED_BYTES` of them, and none at the end."""
        ...

    async def write_rows(self, table: Table, rows: Sequence[CopiedRow]) -> None:
        """Adds rows as another store has given them, in one transaction: also their numbers stay, and what is stored
        later has higher ones. Raises `CopyError`."""
        ...

    async def count_rows(self, table: Table) -> int:
        """How many rows one of `TABLES` has."""
        ...

    async def other_services(self) -> int:
        """How many other services have the database open, or had it until they were killed just now."""
        ...


def make_store(
    url: str,
    deletions: Deletions | None = None,
    service: str | None = None,
    settings: DatabaseConfig | None = None,
) -> Store:
    """The store at `url`, not opened yet: `sqlite:///relative/path`, `sqlite:////absolute/path`, or `sqlite://` for
    memory alone; `postgresql://user:password@host/database`, of which PG* variables and PostgreSQL's defaults may give
    any part. `deletions` is the count of those who share the database; None: nobody does. `service` names the service
    that runs turns on it: a file serves one at a time, PostgreSQL any number. None: whoever opens it runs none.
    `settings` are the other ones of the database. Raises `ValueError` for another database."""
    scheme, _, place = url.partition("://")
    if scheme == "sqlite":
        from stores.sqlite import SQLiteStore  # Of several databases, only the one in use is loaded.

        return SQLiteStore(place.removeprefix("/") or ":memory:", deletions, service)
    if scheme in ("postgresql", "postgres"):
        from stores.postgres import PostgresStore

        return PostgresStore(url, deletions, service, settings)
    if not place:
        raise ValueError("A database is a URL: sqlite:///relative/path, sqlite:////absolute/path, or postgresql://….")
    raise ValueError(f"There is no store for {scheme}:// URLs.")


def has_database(url: str) -> bool:
    """Whether there may be something at `url`: opening a store makes what is not there. Raises `ValueError` for what
    only lies in a process's memory."""
    scheme, _, place = url.partition("://")
    if scheme != "sqlite":
        return True
    return _path_of(place).is_file()


def back_up(url: str, file: Path, *, replace: bool, progress: Callable[[int, int], None]) -> int:
    """Copies the SQLite database at `url` to `file` while routers serve from it, and gives its length in bytes.
    `progress` is given how much is left, of how much. Raises `StartError` where there is no such database,
    `FileExistsError` where `file` is there (with `replace`: where it is the database itself), `CopyError`, and
    `ValueError` for a database that has its own way to be copied."""
    scheme, _, place = url.partition("://")
    if scheme != "sqlite":
        raise ValueError(f"there are copies of SQLite alone, not of {scheme}://: PostgreSQL's are made by pg_dump")
    path = str(_path_of(place))
    from stores.sqlite_backup import copy_database

    return copy_database(path, file, replace=replace, progress=progress)


def _path_of(place: str) -> Path:
    """The file of SQLite's at what a URL has behind sqlite://."""
    if not (path := place.removeprefix("/")):
        raise ValueError("sqlite:// lies in the memory of its router: nobody else can copy it")
    return Path(path)
