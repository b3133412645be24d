"""SQLite's SQL for what is listed over all owners, without what was asked and answered, the newest first."""

from __future__ import annotations

import sqlite3
from typing import cast

from stores.rows import ListedConversation, ListedResponse

_PAGE = "number < :before AND (:owner IS NULL OR owner = :owner)"
# The length of a blob is at its beginning: what is in it is not read.
_RESPONSES = f"""SELECT number, id, owner, previous_response_id, conversation, model, status, created_at,
        COALESCE(LENGTH(input), 0) + COALESCE(LENGTH(output), 0) AS bytes
    FROM responses WHERE {_PAGE} {{condition}} ORDER BY number DESC LIMIT :limit"""
# By whether they are those alone that wait or run in the background.
RESPONSES = {
    False: _RESPONSES.format(condition=""),
    True: _RESPONSES.format(condition="AND status IN ('queued', 'in_progress') AND request IS NOT NULL"),
}
CONVERSATIONS = f"""SELECT number, id, owner, created_at, used_at,
        (SELECT COUNT(*) FROM conversation_items i WHERE i.conversation_number = conversations.number) AS items
    FROM conversations WHERE {_PAGE} ORDER BY number DESC LIMIT :limit"""
LAST = 2**63 - 1


def listed_response(row: sqlite3.Row) -> ListedResponse:
    """A row of `RESPONSES`."""
    return cast(ListedResponse, dict(row))


def listed_conversation(row: sqlite3.Row) -> ListedConversation:
    """A row of `CONVERSATIONS`."""
    return cast(ListedConversation, dict(row))
