"""A body of many values costs no more than a look at it: past 25 for each item that a request may have it is a 400, at
every front door, and nothing is made of it."""

from __future__ import annotations

import resource
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

import requests.bounded_json
from requests.bounded_json import LARGE, MAX_ITEMS, VALUES_PER_ITEM, TooManyValues, decode_bounded, values_in
from tests.conftest import Running
from tests.doors import doors_of, every_door, message_of
from tests.test_laws import law
from tests.turns import URL, assert_error, create, turn

MOST = VALUES_PER_ITEM * MAX_ITEMS
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(',[{"\\}]aé\n', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(',[{"\\', max_size=3), inner, max_size=4),
    max_leaves=20,
)


def count(value: Any) -> int:
    """How many values there are, an empty list or object for two."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if inside is None else 1 + max(1, sum(map(count, inside)))


@law
@given(JSON, st.integers(1, 40))
def test_values_are_counted_as_they_are_whatever_stands_in_strings(value: Any, piece: int) -> None:
    whole = requests.bounded_json.PIECE
    requests.bounded_json.PIECE = piece
    try:
        assert values_in(orjson.dumps(value), 10**9) == count(value)
    finally:
        requests.bounded_json.PIECE = whole


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1", b'{"a":1}', b'""', b"null", b'[[[["\\\\"]]]]'])
def test_past_the_limit_nothing_is_made_of_a_body(value: bytes) -> None:
    body = b"[%b%b]" % ((value + b",") * (60_000_000 // (len(value) + 1)), value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(TooManyValues, match=f"more than {MOST} values"):
        decode_bounded(body)
    assert time.process_time() - began < 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100, "MB more"


def test_up_to_the_limit_and_in_strings_there_may_be_as_much_as_there_is() -> None:
    numbers = [100] * (MOST - 1)
    assert decode_bounded(orjson.dumps(numbers)) == numbers
    with pytest.raises(TooManyValues):
        decode_bounded(orjson.dumps([*numbers, 100]))
    assert len(decode_bounded(orjson.dumps([*numbers, 100]), max_items=MAX_ITEMS + 1)) == MOST
    text = 'f(a, [b], {"c": "\\\\"}),\n' * 100_000
    assert decode_bounded(orjson.dumps({"input": text})) == {"input": text}


@pytest.mark.parametrize("kind", ["openai-chat", "ollama"])
async def test_at_every_front_door(kind: str) -> None:
    async with every_door(kind) as (running, _):
        many = [1] * (4 * MOST + 1)
        for path, asked in doors_of(kind).items():
            answer = await running.http.post(path, content=orjson.dumps(asked | {"unknown": many}))
            assert answer.status_code == 400, f"{path}: {answer.text[:300]}"
            assert "values" in message_of(answer, path)


async def test_in_a_form_and_over_a_websocket(served: Running) -> None:
    form = b"model=test-model&input=" + b"[1%2C" + b"1%2C" * MOST + b"1]"
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert_error(await served.http.post(URL, content=form, headers=headers), 400, code="too_many_values")
    async with connect(f"ws{served.url[4:]}{URL}", proxy=None, max_size=None) as socket:
        await socket.send(orjson.dumps(turn(type="response.create", unknown=[1] * (MOST + LARGE))).decode())
        assert orjson.loads(await socket.recv())["error"]["code"] == "too_many_values"


async def test_a_request_of_as_many_items_as_there_may_be_passes(served: Running) -> None:
    part = {"type": "input_text", "text": "x"}
    items = [{"type": "message", "role": "user", "content": [part, part]}] * MAX_ITEMS
    assert (await create(served.http, input=items))["status"] == "completed"
