"""The SQL of conversations that clients have made, in PostgreSQL (`kept_conversations.py` has the verbs). What writes
takes many rows at once, a column an array."""

from __future__ import annotations

from collections.abc import Sequence

from core.json import decode_json, encode_json
from stores.kept_conversations import NewItem
from stores.postgres_connection import ResultRow
from stores.postgres_values import decode_integer, decode_text
from stores.rows import Conversation, Item, ItemPage, items_with_ids
from stores.writing import Write

STORE = """INSERT INTO conversations (owner, id, created_at, used_at, metadata)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bytea[])"""
_NAMED = "owner = $1::text AND id = $2::text"
GET = f"SELECT owner, id, created_at, metadata FROM conversations WHERE {_NAMED}"
CHANGE = f"UPDATE conversations SET metadata = $3::bytea WHERE {_NAMED}"
# Who holds these rows is the only one that adds items: what comes next sees all that were added before. In one order
# everywhere, so that no two wait for each other.
USE = """WITH n AS (
        SELECT owner, id, max(at) AS at FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (owner, id, at)
        GROUP BY owner, id
    ), held AS MATERIALIZED (
        SELECT c.number, n.at FROM conversations c JOIN n USING (owner, id) ORDER BY c.number FOR UPDATE OF c
    )
    UPDATE conversations c SET used_at = greatest(c.used_at, held.at) FROM held WHERE c.number = held.number"""
# An item of a response that another process has taken over is not added: the other one has its own. Held until the end,
# so that none takes it over meanwhile.
APPEND = """WITH n AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::text[])
            WITH ORDINALITY AS n (owner, conversation, id, spare, item, response, process, place)
    ), held AS MATERIALIZED (
        SELECT r.owner, r.id, r.process FROM responses r
        WHERE (r.owner, r.id) IN (SELECT n.owner, n.response FROM n WHERE n.process IS NOT NULL)
        ORDER BY r.number FOR UPDATE
    )
    INSERT INTO conversation_items (conversation_number, id, item)
    SELECT c.number, CASE WHEN row_number() OVER (PARTITION BY c.number, n.id ORDER BY n.place) > 1
        OR EXISTS (SELECT FROM conversation_items i
            WHERE i.conversation_number = c.number AND left(i.id, 200) = left(n.id, 200) AND i.id = n.id)
        THEN n.spare ELSE n.id END, n.item
    FROM n JOIN conversations c ON c.owner = n.owner AND c.id = n.conversation
    WHERE NOT EXISTS (SELECT FROM held WHERE held.owner = n.owner AND held.id = n.response
        AND held.process IS DISTINCT FROM n.process)
    ORDER BY n.place"""
# The items go with it.
DELETE = f"DELETE FROM conversations WHERE {_NAMED}"
DELETE_UNUSED = "DELETE FROM conversations WHERE used_at < $1::bigint"
_ITEM = "i.conversation_number = c.number AND left(i.id, 200) = left({id}, 200) AND i.id = {id}"
DELETE_ITEM = f"""DELETE FROM conversation_items i USING conversations c
    WHERE c.owner = $1::text AND c.id = $2::text AND {_ITEM.format(id="$3::text")}"""
GET_ITEMS = f"""SELECT i.id, i.item FROM conversations c CROSS JOIN unnest($3::text[]) AS wanted (id)
    JOIN conversation_items i ON {_ITEM.format(id="wanted.id")}
    WHERE c.owner = $1::text AND c.id = $2::text"""
_PAGE = f"""WITH start AS (
        SELECT c.number AS conversation, CASE WHEN $3::text IS NULL THEN {{first}}
            ELSE (SELECT i.number FROM conversation_items i WHERE {_ITEM.format(id="$3::text")} LIMIT 1) END AS number
        FROM conversations c WHERE c.owner = $1::text AND c.id = $2::text
    )
    SELECT start.number, page.id, page.item FROM start LEFT JOIN LATERAL (
        SELECT i.number, i.id, i.item FROM conversation_items i
        WHERE i.conversation_number = start.conversation AND i.number {{behind}} start.number
        ORDER BY i.number {{order}} LIMIT $4::bigint
    ) page ON true ORDER BY page.number {{order}}"""
# Rows of a start, an id and an item: one without an item where the page is empty, without a start where `after` is none
# of the items, and none at all where there is no such conversation.
LIST = {
    "asc": _PAGE.format(first="0::bigint", behind=">", order="ASC"),
    "desc": _PAGE.format(first=f"{2**63 - 1}::bigint", behind="<", order="DESC"),
}


def storing(conversation: Conversation, at: int) -> Write:
    """The write that stores a new one."""
    metadata = encode_json(conversation["metadata"])
    return STORE, (conversation["owner"], conversation["id"], conversation["created_at"], at, metadata)


def appending(new: NewItem, process: str | None) -> Write:
    """The write that adds an item. `process` is whose the response is that it comes with."""
    response = new.response[1] if new.response else None
    return APPEND, (*new.conversation, new.id, new.spare, new.item, response, process)


def conversation_of(row: ResultRow) -> Conversation:
    """The conversation of a row of `GET`."""
    owner, id_, created_at, metadata = (value or b"" for value in row)
    return {
        "id": decode_text(id_),
        "owner": decode_text(owner),
        "created_at": decode_integer(created_at),
        "metadata": decode_json(metadata),
    }


def item_of(id_: bytes | None, item: bytes | None) -> Item:
    """The item of a row."""
    return {**decode_json(item or b""), "id": decode_text(id_ or b"")}


def page_of(rows: Sequence[ResultRow], limit: int | None) -> ItemPage | None:
    """The page that rows of `LIST` are, which was asked for one more."""
    if not rows:
        return None
    items = items_with_ids((decode_text(id_ or b""), item) for _, id_, item in rows[:limit] if item is not None)
    return ItemPage(items, limit is not None and len(rows) > limit, knows_after=rows[0][0] is not None)
