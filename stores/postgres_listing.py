"""PostgreSQL's SQL for what is listed over all owners, without what was asked and answered, the newest first."""

from __future__ import annotations

from stores.postgres_connection import ResultRow
from stores.postgres_values import decode_integer, decode_text
from stores.rows import ListedConversation, ListedResponse

_PAGE = "($1::bigint IS NULL OR number < $1::bigint) AND ($2::text IS NULL OR owner = $2::text)"
# The length of a value stands beside it: what is in it is not read.
_RESPONSES = f"""SELECT number, id, owner, previous_response_id, conversation, model, status, created_at,
        (coalesce(octet_length(input), 0) + coalesce(octet_length(output), 0))::bigint
    FROM responses WHERE {_PAGE} {{condition}} ORDER BY number DESC LIMIT $3::bigint"""
# By whether they are those alone that wait or run in the background.
RESPONSES = {
    False: _RESPONSES.format(condition=""),
    True: _RESPONSES.format(condition="AND status IN ('queued', 'in_progress') AND request IS NOT NULL"),
}
CONVERSATIONS = f"""SELECT number, id, owner, created_at, used_at,
        (SELECT count(*) FROM conversation_items i WHERE i.conversation_number = conversations.number)
    FROM conversations WHERE {_PAGE} ORDER BY number DESC LIMIT $3::bigint"""


def listed_response(row: ResultRow) -> ListedResponse:
    """A row of `RESPONSES`."""
    number, id_, owner, previous, conversation, model, status, created_at, length = row
    return {
        "number": decode_integer(number or b""),
        "id": decode_text(id_ or b""),
        "owner": decode_text(owner or b""),
        "previous_response_id": None if previous is None else decode_text(previous),
        "conversation": None if conversation is None else decode_text(conversation),
        "model": decode_text(model or b""),
        "status": decode_text(status or b""),
        "created_at": decode_integer(created_at or b""),
        "bytes": decode_integer(length or b""),
    }


def listed_conversation(row: ResultRow) -> ListedConversation:
    """A row of `CONVERSATIONS`."""
    number, id_, owner, created_at, used_at, items = (value or b"" for value in row)
    return {
        "number": decode_integer(number),
        "id": decode_text(id_),
        "owner": decode_text(owner),
        "created_at": decode_integer(created_at),
        "used_at": decode_integer(used_at),
        "items": decode_integer(items),
    }
