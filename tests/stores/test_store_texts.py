"""Every store gives back what it was given, whatever characters are in it."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.json import decode_json, encode_json
from db import Store
from tests.stores.rows import row

# NUL, what looks like an escape, characters of four bytes, and what SQL and JSON have a meaning for.
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.text(st.sampled_from("\0\x01\x7f\u0080é\u2028\ufeff\uffff🦙'\"\\$%{}a0"), max_size=8),
)
# As they come from a client or a backend; halves of characters too.
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
numbers = count()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(texts=["\0", "\x01", "\x01\0", "\x0100", ""], value="\ud800\0", request=b"\0\xff", id_="\0")
@given(texts=st.lists(texts, min_size=5, max_size=5), value=anything, request=st.binary(max_size=8), id_=texts)
async def test_what_is_stored_is_read_again(
    store: Store, texts: list[str], value: Any, request: bytes, id_: str
) -> None:
    owner, previous, conversation, model, name = texts
    response_id = f"{name}{next(numbers)}"
    item = {"type": "message", "id": id_, "content": value}
    response = {"status": "queued", "output": [item], "metadata": value}
    values = {**row("queued", after=previous or None), "input_messages": [item], "model": model, "response": response}
    await store.store_response(response_id, **values, conversation=conversation, request=request, owner=owner)
    kept = whole(response)
    stored = {
        "id": response_id,
        "owner": owner,
        "previous_response_id": previous or None,
        "conversation": conversation,
        "model": model,
        "status": "queued",
        "created_at": 1000,
        "input": kept["output"],
        "response": kept,
    }
    assert await store.get_response(response_id, owner=owner) == stored
    assert {**stored, "request": request} in await store.unfinished()
    await store.update_response(response_id, {**response, "status": "completed"}, owner=owner)
    page = await store.list_input_items(response_id, owner=owner)
    assert page is not None
    assert [{**one, "id": id_} for one in page.items] == kept["output"]
    assert page.items[0]["id"] == id_ or not id_ or "\0" in id_, "an item has its own id, where that can be one"
    if previous:
        assert (await store.get_history(response_id, owner=owner)).missing == previous
    await store.store_events(response_id, [item], owner=owner)
    assert await store.get_events(response_id, owner=owner) == kept["output"]
    assert await store.get_setting(f"{name} {response_id}", model) == model
    assert await store.delete_response(response_id, owner=owner)
    assert await store.get_response(response_id, owner=owner) is None


def whole(value: Any) -> Any:
    """JSON as it is once no half of a character is in it."""
    return decode_json(encode_json(value))


@pytest.mark.heavy
async def test_a_body_of_60_mb_comes_back(store: Store) -> None:
    large = {"type": "message", "id": "msg_large", "content": "ü" * 30_000_000 + "\0"}
    await store.store_response("resp_1", **row(output=[large]) | {"input_messages": [large]})
    store.deletions.add(1)
    history = await store.get_history("resp_1")
    assert history.items == [large, large]
    assert (await store.get_items(["msg_large"])) == {"msg_large": large}
    page = await store.list_input_items("resp_1", limit=1)
    assert page is not None
    assert page.items == [large]


async def test_a_conversation_may_have_a_thousand_turns(store: Store) -> None:
    turns = 1000
    for number in range(turns):
        written = store.store_response(f"r{number}", **row(after=f"r{number - 1}" if number else None))
    await written
    store.deletions.add(1)
    assert len((await store.get_history(f"r{turns - 1}")).items) == turns
    page = await store.list_input_items(f"r{turns - 1}", limit=2, order="asc")
    assert page is not None
    assert page.has_more
