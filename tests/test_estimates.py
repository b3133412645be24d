"""How long a request and an answer are, where nobody counts: whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.tokens import IMAGE_TOKENS, SMALL_BODY, answered_tokens, body_tokens, turn_tokens

texts = st.text(max_size=20) | st.just("\ud83d") | st.just("x" * 3000)
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
keys = st.sampled_from(["type", "content", "output", "text", "arguments", "encrypted_content", "image_url", "tools"])
# What is there is an object: that is checked before.
items = st.lists(st.dictionaries(keys, values, max_size=5), max_size=5)


@given(values, st.integers(0, 2))
def test_every_body_has_some_length(value: Any, padding: int) -> None:
    body = json.dumps({"a": value, "b": "y " * (SMALL_BODY * padding)}).encode()
    assert 0 <= body_tokens(body) <= len(body) + IMAGE_TOKENS * body.count(b'"')


@pytest.mark.parametrize("body", [b"", b"no JSON" * SMALL_BODY, b"[" * 900 + b"]" * 900, b"[" * 90_000, b"\xff" * 9000])
def test_what_is_no_body_has_one_too(body: bytes) -> None:
    assert body_tokens(body) == len(body) // 4 or len(body) < SMALL_BODY


@given(st.dictionaries(keys, values, max_size=4), items)
def test_every_turn_has_some_length(body: Any, given_items: Any) -> None:
    assert turn_tokens(body, given_items) >= 0


@given(st.lists(values, max_size=5))
def test_every_answer_has_some_length(output: Any) -> None:
    assert answered_tokens(output) >= 0


def test_an_answer_is_as_long_as_what_was_written_of_it() -> None:
    output = [
        {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "four" * 3}]},
        {
            "type": "message",
            "content": [{"type": "output_text", "text": "four" * 5, "annotations": [{"url": "x" * 99}]}],
        },
        {"type": "function_call", "name": "f", "call_id": "call_1", "arguments": "four" * 2},
    ]
    assert answered_tokens(output) == 10
    assert answered_tokens([]) == 0
