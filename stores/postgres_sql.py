"""The SQL of the store in PostgreSQL.

What writes takes many rows at once, a column an array: turns that end together are one statement. Where one must not
meet a key twice, it is in `KEYED`, with how many columns are the key.
"""

from __future__ import annotations

from stores.postgres_conversations import APPEND, USE
from stores.postgres_conversations import STORE as STORE_CONVERSATION
from stores.postgres_usage import COUNT

STORE = """INSERT INTO responses (owner, id, previous_response_id, conversation, model, status, created_at, process,
        moves_at, waits_since, input_ids, output_ids, input, output, response, request)
    SELECT owner, id, previous, conversation, model, status, created_at, process,
        moves_at, CASE WHEN moves_at IS NOT NULL THEN clock_timestamp() END,
        input_ids, output_ids, input, output, response, request
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[],
        $9::bigint[], $10::text[], $11::text[], $12::bytea[], $13::bytea[], $14::bytea[], $15::bytea[])
        AS n (owner, id, previous, conversation, model, status, created_at, process, moves_at, input_ids, output_ids,
            input, output, response, request)
    ON CONFLICT (owner, id) DO UPDATE SET status = excluded.status, process = excluded.process,
        output_ids = excluded.output_ids, output = excluded.output, response = excluded.response,
        request = excluded.request"""
# Not an upsert: a response that was deleted while it ran stays deleted. What has ended will not run again, and is
# nobody's. What a process writes of a turn that was given to another one changes nothing; that is what the rows are.
_CHANGED = """WITH n AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::bytea[], $7::text[])
            AS n (owner, id, status, output_ids, output, response, process)
    ), changed AS (
        UPDATE responses r SET status = n.status, output_ids = n.output_ids, output = n.output,
            response = n.response,
            request = CASE WHEN n.status IN ('queued', 'in_progress') THEN r.request END,
            process = CASE WHEN n.status IN ('queued', 'in_progress') THEN r.process END
        FROM n WHERE r.owner = n.owner AND r.id = n.id AND {condition}
        RETURNING r.owner, r.id
    )"""
UPDATE = f"""{_CHANGED.format(condition="(n.process IS NULL OR r.process = n.process)")}
    SELECT n.owner, n.id FROM n WHERE n.process IS NOT NULL AND (n.owner, n.id) NOT IN (SELECT * FROM changed)
    AND EXISTS (SELECT FROM responses r WHERE r.owner = n.owner AND r.id = n.id)"""
# What has ended meanwhile was no orphan.
FAIL = f"""{_CHANGED.format(condition="r.status IN ('queued', 'in_progress')")}
    SELECT FROM changed WHERE false"""
_STORED = """r.owner, r.id, r.previous_response_id, r.conversation, r.model, r.status, r.created_at, r.input, r.output,
    r.response"""
GET = f"SELECT {_STORED} FROM responses r WHERE owner = $1::text AND id = $2::text"
EXISTS = "SELECT 1 FROM responses WHERE owner = $1::text AND id = $2::text"
# One that has left is there no longer, one that was killed is not seen any more.
_IS_SEEN = "p.name = r.process AND p.seen_at > now() - make_interval(secs => $1::bigint)"
# All but what processes of other services work on.
UNFINISHED_ROWS = f"""SELECT {_STORED}, r.request, r.process FROM responses r
    WHERE r.status IN ('queued', 'in_progress')
    AND NOT EXISTS (SELECT FROM processes p WHERE {_IS_SEEN} AND p.service <> $2::text) ORDER BY r.number"""
IS_ABANDONED = f"""SELECT 1 FROM responses r
    WHERE r.status IN ('queued', 'in_progress') AND NOT EXISTS (SELECT FROM processes p WHERE {_IS_SEEN}) LIMIT 1"""
# Each row is given once: whoever comes second waits for the first, and then it is no longer that process's.
CLAIM = """UPDATE responses r SET process = $1::text
    FROM unnest($2::text[], $3::text[], $4::text[]) AS n (owner, id, process)
    WHERE r.owner = n.owner AND r.id = n.id AND r.process = n.process AND r.status IN ('queued', 'in_progress')
    RETURNING r.owner, r.id"""
# By the chain itself: youngest first.
GET_HISTORY = """WITH RECURSIVE chain (depth, previous_response_id, status, input, output, conversation) AS (
        SELECT 0, previous_response_id, status, input, output, conversation
        FROM responses WHERE owner = $1::text AND id = $2::text
        UNION ALL
        SELECT depth + 1, r.previous_response_id, r.status, r.input, r.output, r.conversation
        FROM chain JOIN responses r ON r.owner = $1::text AND r.id = chain.previous_response_id
    )
    SELECT previous_response_id, status, input, output, conversation FROM chain ORDER BY depth"""
# The ids of a row lead to what the index has of it.
_ITEMS_OF = """SELECT r.owner, item.id AS item_id, r.number
    FROM {rows} r CROSS JOIN LATERAL (
        SELECT id FROM json_array_elements_text(r.input_ids::json) input (id)
        UNION SELECT id FROM json_array_elements_text(COALESCE(r.output_ids, '[]')::json) output (id)
    ) item
    WHERE item.id IS NOT NULL"""
_NAMED = "(SELECT * FROM unnest($1::text[], $2::text[])) AS named (owner, id)"
_UNINDEX = """DELETE FROM response_items i USING items
    WHERE i.owner = items.owner AND left(i.item_id, 200) = left(items.item_id, 200) AND i.item_id = items.item_id
    AND i.response = items.number"""
DELETE_ITEMS = f"""WITH rows AS (SELECT r.* FROM {_NAMED} JOIN responses r USING (owner, id)),
    items AS ({_ITEMS_OF.format(rows="rows")})
    {_UNINDEX}"""
DELETE = f"""WITH gone AS (
        DELETE FROM responses r USING {_NAMED} WHERE r.owner = named.owner AND r.id = named.id
        RETURNING r.owner, r.number, r.input_ids, r.output_ids
    ), events AS (DELETE FROM response_events e USING gone WHERE e.response = gone.number),
    items AS ({_ITEMS_OF.format(rows="gone")})
    {_UNINDEX}"""
_INDEX = """INSERT INTO response_items (owner, item_id, response)
    SELECT DISTINCT items.owner, items.item_id, items.number FROM items
    WHERE NOT EXISTS (SELECT FROM response_items i WHERE i.owner = items.owner
        AND left(i.item_id, 200) = left(items.item_id, 200) AND i.item_id = items.item_id
        AND i.response = items.number)"""
STORE_ITEMS_OF_ROW = f"""WITH rows AS (
        SELECT r.* FROM {_NAMED} JOIN responses r USING (owner, id) WHERE r.status NOT IN ('queued', 'in_progress')
    ), items AS ({_ITEMS_OF.format(rows="rows")})
    {_INDEX}"""
# The response may have been deleted meanwhile.
STORE_ITEM = f"""WITH items AS (
        SELECT n.owner, n.item_id, r.number
        FROM unnest($1::text[], $2::text[], $3::text[]) AS n (owner, id, item_id)
        JOIN responses r ON r.owner = n.owner AND r.id = n.id
    )
    {_INDEX}"""
# Whoever wrote an item first keeps its id.
GET_OF_ITEMS = """WITH found AS (
        SELECT wanted.place, (SELECT min(i.response) FROM response_items i JOIN responses r ON r.number = i.response
            WHERE i.owner = $2::text AND left(i.item_id, 200) = left(wanted.id, 200) AND i.item_id = wanted.id)
            AS number
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (id, place)
    ), by_row AS (
        SELECT number, array_to_json(array_agg(place))::text AS places FROM found WHERE number IS NOT NULL
        GROUP BY number
    )
    SELECT by_row.places, r.input, r.output FROM by_row JOIN responses r USING (number)"""
STORE_EVENTS = """INSERT INTO response_events (response, events)
    SELECT r.number, n.events FROM unnest($1::text[], $2::text[], $3::bytea[]) AS n (owner, id, events)
    JOIN responses r ON r.owner = n.owner AND r.id = n.id
    ON CONFLICT DO NOTHING"""
GET_EVENTS = """SELECT e.events FROM response_events e JOIN responses r ON r.number = e.response
    WHERE r.owner = $1::text AND r.id = $2::text"""
# The end of a chain goes first: a turn that a younger one still builds on is kept.
GET_EXPIRED = """SELECT owner, id FROM responses r
    WHERE created_at < $1::bigint AND status NOT IN ('queued', 'in_progress')
    AND NOT EXISTS (SELECT FROM responses c WHERE c.owner = r.owner AND c.previous_response_id = r.id)
    LIMIT 500"""
# Several replicas do this: none waits for another.
STORE_CHECK = """WITH free AS (SELECT name FROM counters WHERE name = 'checks' FOR UPDATE SKIP LOCKED)
    UPDATE counters c SET value = value + 1 FROM free WHERE c.name = free.name"""
STORE_SETTING = """INSERT INTO settings (name, value) SELECT * FROM unnest($1::text[], $2::text[])
    ON CONFLICT DO NOTHING"""
GET_SETTING = "SELECT value FROM settings WHERE name = $1::text"
COUNT_DELETIONS = "UPDATE counters SET value = value + $1::bigint WHERE name = 'deletions'"
GET_DELETIONS = "SELECT value FROM counters WHERE name = 'deletions'"
NOTIFY = "SELECT pg_notify($1::text, $2::text)"
# Those of the lowest priority that wait longest. A turn that has just been stored begins at once where there is room.
TAKE_WAITING = f"""WITH waiting AS (
        SELECT number FROM responses r
        WHERE r.status IN ('queued', 'in_progress') AND r.status = 'queued' AND r.process <> $1::text
        AND NOT r.is_unwanted AND r.waits_since < now() - interval '1 second'
        ORDER BY moves_at, number LIMIT $2::bigint FOR UPDATE SKIP LOCKED
    )
    UPDATE responses r SET process = $1::text, waits_since = now() FROM waiting WHERE r.number = waiting.number
    RETURNING {_STORED}, r.request, r.process"""
# To be cancelled, by whichever process works on it.
ASK_TO_CANCEL = """UPDATE responses SET is_unwanted = true
    WHERE owner = $1::text AND id = $2::text AND status IN ('queued', 'in_progress') RETURNING 1"""
UNWANTED = """SELECT owner, id FROM responses
    WHERE status IN ('queued', 'in_progress') AND process = $1::text AND is_unwanted"""
SEEN = """INSERT INTO processes (name, service, seen_at) VALUES ($1::text, $2::text, now())
    ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at RETURNING 1"""
OTHER_SERVICES = """SELECT count(DISTINCT service) FROM processes
    WHERE service <> $1::text AND seen_at > now() - make_interval(secs => $2::bigint)"""
FORGET = "DELETE FROM processes WHERE seen_at < now() - interval '1 day' OR name = $1::text"

KEYED = {STORE: 2, UPDATE: 2, FAIL: 2}
# A response is stored before it is updated, so within a batch what is stored may go first; what all replicas add to
# comes last, so that they wait for each other as short as can be.
RANKS = {STORE: 0, STORE_CONVERSATION: 1, USE: 2, APPEND: 3, UPDATE: 4, STORE_ITEM: 5, COUNT: 6}


# A page of what a response was made from, without any more of it leaving the database:
#
#     chain    the response (0) and those before it (1, 2, …)
#     items    of each the input (0), then, but for its own, the output (1): where each stands, and its id
#     page     those behind `after`; only they are cut out of the rows
#
# An item without an id, or with one that another before it has, has one of its place; else `id` is null in the result,
# and it is the item's own.
_PAGE = """WITH RECURSIVE chain (depth, number, response, previous, input_ids, output_ids) AS (
        SELECT 0, number, id, previous_response_id, input_ids, '[]'
        FROM responses WHERE owner = $1::text AND id = $2::text AND response IS NOT NULL
        UNION ALL
        SELECT depth + 1, r.number, r.id, r.previous_response_id, r.input_ids, COALESCE(r.output_ids, '[]')
        FROM chain JOIN responses r ON r.owner = $1::text AND r.id = chain.previous
    ), given AS (
        SELECT depth, 0 AS half, place, number, response, id
        FROM chain, json_array_elements_text(chain.input_ids::json) WITH ORDINALITY AS item (id, place)
        UNION ALL
        SELECT depth, 1, place, number, response, id
        FROM chain, json_array_elements_text(chain.output_ids::json) WITH ORDINALITY AS item (id, place)
    ), counted AS (
        SELECT *, row_number() OVER (PARTITION BY id ORDER BY depth DESC, half, place) AS nth FROM given
    ), items AS (
        SELECT row_number() OVER (ORDER BY depth {downwards}, half {upwards}, place {upwards}) AS position,
            number, half, place, id IS NOT NULL AND nth = 1 AS is_own,
            CASE WHEN id IS NOT NULL AND nth = 1 THEN id ELSE
                'item_' || substr(response, strpos(response, '_') + 1) || '_' || half || '_' || (place - 1) END AS id
        FROM counted
    ), start AS (
        SELECT CASE WHEN $3::text IS NULL THEN 0
            ELSE (SELECT position FROM items WHERE id = $3::text LIMIT 1) END AS position
    ), page AS (
        SELECT * FROM items WHERE position > (SELECT position FROM start) ORDER BY position LIMIT $4::bigint
    ), cut AS (
        SELECT halves.number, halves.half, item.place, item.value
        FROM (SELECT DISTINCT number, half FROM page) halves JOIN responses r USING (number)
        CROSS JOIN LATERAL json_array_elements(
            convert_from(CASE halves.half WHEN 0 THEN r.input ELSE r.output END, 'UTF8')::json
        ) WITH ORDINALITY AS item (value, place)
    )
    SELECT start.position, CASE WHEN NOT page.is_own THEN page.id END, cut.value::text
    FROM start LEFT JOIN page ON true LEFT JOIN cut USING (number, half, place)
    WHERE EXISTS (SELECT FROM chain) ORDER BY page.position"""

# Rows of a start, an id and an item: one without an item where the page is empty, without a start where `after` is none
# of the items, and none at all where there is no such response.
INPUT_ITEMS = {
    "asc": _PAGE.format(downwards="DESC", upwards="ASC"),
    "desc": _PAGE.format(downwards="ASC", upwards="DESC"),
}
