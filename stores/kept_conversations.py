"""Conversations that clients have made, in every SQL: their items are copies of their own, in one order, so that what
becomes of a response changes nothing in them.

    a turn that ends ──appended──▶ the same transaction ──▶ all of its items, behind those of turns that ended before
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Literal

from core.json import Json, encode_json
from stores.rows import Conversation, Item, ItemPage, ids_of
from stores.warm_chains import Key
from stores.writing import Write, WriteQueue, Written


@dataclass(slots=True)
class NewItem:
    """An item on its way into a conversation, as JSON, and its id: `spare` where the conversation has that one
    already. `response` is the one it comes with, where that was begun before."""

    conversation: Key
    id: str
    spare: str
    item: bytes
    response: Key | None


class KeptConversations(ABC):
    """The verbs of `db.Store` for conversations. A subclass has the SQL."""

    _queue: WriteQueue

    # ── what a database adds ─────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def _storing_conversation(self, conversation: Conversation, at: int) -> Write:
        """Stores a new one."""

    @abstractmethod
    def _changing_conversation(self, key: Key, metadata: bytes) -> Write:
        """Gives it other metadata, if it is there."""

    @abstractmethod
    def _using_conversation(self, key: Key, at: int) -> Write:
        """Notes that it gets items; from here on no other process adds some, until all is committed."""

    @abstractmethod
    def _appending(self, item: NewItem) -> Write:
        """Adds an item to a conversation, if it is there. Not with a response that another process has taken over."""

    @abstractmethod
    def _deleting_conversation(self, key: Key) -> list[Write]:
        """Deletes it with its items."""

    @abstractmethod
    def _deleting_item(self, key: Key, item_id: str) -> Write:
        """Deletes one item of it."""

    @abstractmethod
    async def get_conversation(self, conversation_id: str, *, owner: str = "") -> Conversation | None: ...

    @abstractmethod
    async def list_conversation_items(
        self,
        conversation_id: str,
        *,
        after: str | None = None,
        limit: int | None = 20,
        order: Literal["asc", "desc"] = "desc",
        owner: str = "",
    ) -> ItemPage | None: ...

    @abstractmethod
    async def get_conversation_items(
        self, conversation_id: str, item_ids: list[str], *, owner: str = ""
    ) -> dict[str, Item]: ...

    # ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def store_conversation(
        self, conversation_id: str, *, created_at: int, metadata: Json, items: Sequence[Item] = (), owner: str = ""
    ) -> Written:
        conversation: Conversation = {
            "id": conversation_id,
            "owner": owner,
            "created_at": created_at,
            "metadata": metadata,
        }
        key = (owner, conversation_id)
        writes = [self._appending(item) for item in _new_items(key, items, None)]
        return self._queue.write(self._storing_conversation(conversation, _now()), *writes)

    async def update_conversation(self, conversation_id: str, metadata: Json, *, owner: str = "") -> bool:
        if await self.get_conversation(conversation_id, owner=owner) is None:
            return False
        await self._queue.write(self._changing_conversation((owner, conversation_id), encode_json(metadata)))
        return True

    async def delete_conversation(self, conversation_id: str, *, owner: str = "") -> bool:
        if await self.get_conversation(conversation_id, owner=owner) is None:
            return False
        await self._queue.write(*self._deleting_conversation((owner, conversation_id)))
        return True

    async def append_items(self, conversation_id: str, items: Sequence[Item], *, owner: str = "") -> list[Item] | None:
        key = (owner, conversation_id)
        if await self.get_conversation(conversation_id, owner=owner) is None:
            return None
        new = _new_items(key, items, None)
        await self._queue.write(self._using_conversation(key, _now()), *map(self._appending, new))
        spared = await self.get_conversation_items(conversation_id, [item.spare for item in new], owner=owner)
        return [
            {**item, "id": one.spare if one.spare in spared else one.id} for item, one in zip(items, new, strict=True)
        ]

    async def delete_conversation_item(self, conversation_id: str, item_id: str, *, owner: str = "") -> bool:
        if not await self.get_conversation_items(conversation_id, [item_id], owner=owner):
            return False
        await self._queue.write(self._deleting_item((owner, conversation_id), item_id))
        return True

    def _appended(self, key: Key, conversation: str | None, items: Sequence[Item], *, is_begun: bool) -> list[Write]:
        """The writes by which a conversation gets the items of a response. `is_begun`: that was stored before."""
        if conversation is None or not items:
            return []
        of = (key[0], conversation)
        new = _new_items(of, items, key if is_begun else None)
        return [self._using_conversation(of, _now()), *map(self._appending, new)]


def _new_items(conversation: Key, items: Sequence[Item], response: Key | None) -> list[NewItem]:
    new: list[NewItem] = []
    for item in items:
        own = ids_of([item])
        prefix, separator, _ = own[0].partition("_") if own else ("item", "_", "")
        spare = f"{prefix if separator else 'item'}_{_now():08x}{token_hex(12)}"
        new.append(NewItem(conversation, own[0] if own else spare, spare, encode_json(item), response))
    return new


def _now() -> int:
    return int(time.time())
