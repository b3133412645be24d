"""The SQL of conversations that clients have made, in SQLite (`kept_conversations.py` has the verbs)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from core.json import decode_json, encode_json
from stores.kept_conversations import NewItem
from stores.rows import Conversation, Item, ItemPage, items_with_ids
from stores.sqlite_connection import Row
from stores.warm_chains import Key
from stores.writing import Write

STORE = "INSERT INTO conversations (owner, id, created_at, used_at, metadata) VALUES (?, ?, ?, ?, ?)"
GET = "SELECT id, owner, created_at, metadata FROM conversations WHERE owner = ? AND id = ?"
CHANGE = "UPDATE conversations SET metadata = ? WHERE owner = ? AND id = ?"
USE = "UPDATE conversations SET used_at = MAX(used_at, ?) WHERE owner = ? AND id = ?"
_NUMBER = "(SELECT number FROM conversations WHERE owner = ? AND id = ?)"
# It may have been deleted meanwhile, and have an item of that id.
APPEND = """INSERT INTO conversation_items (conversation_number, id, item)
    SELECT c.number, CASE WHEN EXISTS (
            SELECT 1 FROM conversation_items i WHERE i.conversation_number = c.number AND i.id = ?
        ) THEN ? ELSE ? END, ?
    FROM conversations c WHERE c.owner = ? AND c.id = ?"""
DELETE_ITEMS = f"DELETE FROM conversation_items WHERE conversation_number = {_NUMBER}"
DELETE = "DELETE FROM conversations WHERE owner = ? AND id = ?"
DELETE_ITEM = f"DELETE FROM conversation_items WHERE conversation_number = {_NUMBER} AND id = ?"
DELETE_UNUSED_ITEMS = """DELETE FROM conversation_items
    WHERE conversation_number IN (SELECT number FROM conversations WHERE used_at < ?)"""
DELETE_UNUSED = "DELETE FROM conversations WHERE used_at < ?"
GET_ITEMS = f"""SELECT id, item FROM conversation_items
    WHERE conversation_number = {_NUMBER} AND id IN (SELECT value FROM json_each(?))"""
_PAGE = """WITH start (conversation, number) AS (
        SELECT c.number, CASE WHEN :after IS NULL THEN {first} ELSE (
            SELECT i.number FROM conversation_items i WHERE i.conversation_number = c.number AND i.id = :after
        ) END
        FROM conversations c WHERE c.owner = :owner AND c.id = :id
    ), page AS (
        SELECT i.number, i.id, i.item FROM start CROSS JOIN conversation_items i
        WHERE i.conversation_number = start.conversation AND i.number {behind} start.number
        ORDER BY i.number {order} LIMIT :limit
    )
    SELECT start.number AS start, page.id, page.item FROM start LEFT JOIN page ORDER BY page.number {order}"""
# Rows of `start`, `id` and `item`: one without an item where the page is empty, without a start where `after` is none
# of the items, and none at all where there is no such conversation.
LIST = {
    "asc": _PAGE.format(first=0, behind=">", order="ASC"),
    "desc": _PAGE.format(first=2**63 - 1, behind="<", order="DESC"),
}
EVERYTHING = -1


def storing(conversation: Conversation, at: int) -> Write:
    """The write that stores a new one."""
    metadata = encode_json(conversation["metadata"])
    return STORE, (conversation["owner"], conversation["id"], conversation["created_at"], at, metadata)


def appending(new: NewItem) -> Write:
    """The write that adds an item."""
    return APPEND, (new.id, new.spare, new.id, new.item, *new.conversation)


def deleting(key: Key) -> list[Write]:
    """The writes that delete one with its items."""
    return [(DELETE_ITEMS, key), (DELETE, key)]


def conversation_of(row: sqlite3.Row) -> Conversation:
    """The conversation of a row of `GET`."""
    return {
        "id": row["id"],
        "owner": row["owner"],
        "created_at": row["created_at"],
        "metadata": decode_json(row["metadata"]),
    }


def item_of(row: Row) -> Item:
    """The item of a row."""
    return {**decode_json(row["item"]), "id": row["id"]}


def page_of(rows: Sequence[Row], limit: int | None) -> ItemPage | None:
    """The page that rows of `LIST` are, which was asked for one more."""
    if not rows:
        return None
    items = items_with_ids((row["id"], row["item"]) for row in rows[:limit] if row["item"] is not None)
    return ItemPage(items, limit is not None and len(rows) > limit, knows_after=rows[0]["start"] is not None)
