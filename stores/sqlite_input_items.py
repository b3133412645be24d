"""The SQL of `list_input_items`: what a response was made from, a page of it, without any more of it leaving the
database.

    chain    the response (0) and those before it (1, 2, …)
    items    of each the input (0), then, but for its own, the output (1): where each stands, and its id
    page     those behind `after`; only they are cut out of the rows

An item without an id, or with one that another before it has, has one of its place.
"""

from __future__ import annotations

_PAGE = """WITH RECURSIVE chain (depth, response, previous, input, output) AS (
        SELECT 0, id, previous_response_id, CAST(input AS TEXT), '[]'
        FROM responses WHERE owner = :owner AND id = :response AND response IS NOT NULL
        UNION ALL
        SELECT depth + 1, r.id, r.previous_response_id, CAST(r.input AS TEXT), CAST(COALESCE(r.output, '[]') AS TEXT)
        FROM chain JOIN responses r ON r.owner = :owner AND r.id = chain.previous
    ), given (depth, half, place, response, id) AS (
        SELECT depth, 0, item.key, response, {id} FROM chain, json_each(chain.input) item WHERE item.type = 'object'
        UNION ALL
        SELECT depth, 1, item.key, response, {id} FROM chain, json_each(chain.output) item WHERE item.type = 'object'
    ), counted AS (
        SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY depth DESC, half, place) AS nth FROM given
    ), items AS (
        SELECT ROW_NUMBER() OVER (ORDER BY depth {downwards}, half {upwards}, place {upwards}) AS position,
            depth, half, place,
            CASE WHEN id <> '' AND nth = 1 THEN id ELSE
            'item_' || substr(response, instr(response, '_') + 1) || '_' || half || '_' || place END AS id
        FROM counted
    ), start (position) AS (
        SELECT CASE WHEN :after IS NULL THEN 0 ELSE (SELECT position FROM items WHERE id = :after) END
    ), page AS (
        SELECT * FROM items WHERE position > (SELECT position FROM start) ORDER BY position LIMIT :limit
    )
    SELECT start.position AS start, page.id, json_extract(
        CASE page.half WHEN 0 THEN chain.input ELSE chain.output END, '$[' || page.place || ']') AS item
    FROM start LEFT JOIN page LEFT JOIN chain ON chain.depth = page.depth
    WHERE EXISTS (SELECT 1 FROM chain) ORDER BY page.position"""
_ID = "CASE json_type(item.value, '$.id') WHEN 'text' THEN json_extract(item.value, '$.id') END"

# Rows of `start`, `id` and `item`: one without an item where the page is empty, without a start where `after` is none
# of the items, and none at all where there is no such response.
INPUT_ITEMS = {
    "asc": _PAGE.format(id=_ID, downwards="DESC", upwards="ASC"),
    "desc": _PAGE.format(id=_ID, downwards="ASC", upwards="DESC"),
}
