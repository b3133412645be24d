"""The items that are known at once are those that are checked one by one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.agent import agent_request
from requests.items import check_item
from requests.params import check_request
from requests.usual_items import are_usual

TEXT = st.text(max_size=5)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
PART = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["input_text", "output_text", "refusal"]) | ANY,
        "text": TEXT | ANY,
        "refusal": TEXT | ANY,
    },
)
CONTENT = TEXT | st.lists(PART, max_size=2) | ANY
ITEM = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                "message",
                "reasoning",
                "function_call",
                "function_call_output",
                "custom_tool_call",
                "custom_tool_call_output",
                "item_reference",
            ]
        )
        | ANY
    },
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | ANY,
        "content": CONTENT,
        "summary": CONTENT,
        "output": CONTENT,
        "id": TEXT | ANY,
        "call_id": TEXT | ANY,
        "name": TEXT | ANY,
        "namespace": TEXT | ANY,
        "arguments": TEXT | ANY,
        "action": ANY,
        "operation": ANY,
        "execution": ANY,
    },
)


@given(st.lists(ITEM, min_size=1, max_size=3))
def test_what_is_usual_would_be_passed_one_by_one(items: list[dict[str, Any]]) -> None:
    if are_usual(items):
        for item in items:
            check_item(item, "input[0]")


def test_an_agents_session_is_usual() -> None:
    items = agent_request("/v1/responses", "m")["input"]
    assert are_usual(items)
    assert check_request({"model": "m", "input": items}).input == items


def test_one_odd_item_has_all_looked_at() -> None:
    message = {"type": "message", "role": "user", "content": "Hi"}
    assert are_usual([message])
    assert not are_usual([message, {"role": "user", "content": "Hi"}]), "it has no type, and is fine nevertheless"
