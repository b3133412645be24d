"""Messages for strict templates: what they refuse of an ordinary conversation they take when it is changed, and nothing
is lost."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.roles import BEGINS, BETWEEN, in_turns, system_as_user, system_items_as_user

Message = dict[str, Any]
Messages = list[Message]

# ── templates, as their models have them ─────────────────────────────────────────────────────────────────────────────


def qwen(messages: Messages) -> str | None:
    """Qwen 3.5's."""
    if any(message["role"] == "system" for message in messages[1:]):
        return "System message must be at the beginning."
    if not any(message["role"] == "user" for message in messages):
        return "No user query found in messages."
    return None


def gemma(messages: Messages) -> str | None:
    """Gemma 3's: it knows no tools."""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    if any((message["role"] == "user") != (place % 2 == 0) for place, message in enumerate(rest)):
        return "Conversation roles must alternate user/assistant/user/assistant/..."
    return None


def gemma_2(messages: Messages) -> str | None:
    return "System role not supported" if messages[0]["role"] == "system" else gemma(messages)


def devstral(messages: Messages) -> str | None:
    """Devstral's, which does not count tool rounds."""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    turns = [m for m in rest if m["role"] != "tool" and not (m["role"] == "assistant" and m.get("tool_calls"))]
    if any(message["role"] == "system" for message in turns):
        return "Only user, assistant and tool roles are supported, got system."
    if any((message["role"] == "user") != (place % 2 == 0) for place, message in enumerate(turns)):
        return (
            "After the optional system message, conversation roles must alternate user and assistant roles except for "
            "tool calls and results."
        )
    return None


def mistral(messages: Messages) -> str | None:
    """Mistral's API."""
    allowed = {"system": {"system", "user", "assistant"}, "user": {"user", "assistant"}}
    after = allowed | {"assistant": {"user", "assistant", "tool"}, "tool": {"tool", "assistant"}}
    last = "system"
    for message in messages:
        if message["role"] not in after[last]:
            return f"Unexpected role '{message['role']}' after role '{last}'"
        last = message["role"]
    return None


TEMPLATES = {"qwen": qwen, "gemma": gemma, "gemma_2": gemma_2, "devstral": devstral, "mistral": mistral}

# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = st.text("abc ", min_size=1, max_size=5)


def said(role: str) -> st.SearchStrategy[Messages]:
    contents = TEXTS | st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=2)
    return contents.map(lambda content: [{"role": role, "content": content}])


@st.composite
def a_tool_round(draw: st.DrawFn) -> Messages:
    ids = [f"c{draw(st.integers(0, 10**9))}.{number}" for number in range(draw(st.integers(1, 2)))]
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    asked = {"role": "assistant", "content": draw(st.none() | TEXTS), "tool_calls": calls}
    return [asked, *({"role": "tool", "tool_call_id": id, "content": draw(TEXTS)} for id in ids)]


TURNS = st.one_of(said("user"), said("assistant"), said("system"))


def in_one(turns: list[Messages]) -> Messages:
    return [message for turn in turns for message in turn]


CONVERSATIONS = st.lists(TURNS | a_tool_round(), min_size=1, max_size=7).map(in_one)
WITHOUT_TOOLS = st.lists(TURNS, min_size=1, max_size=7).map(in_one)


def texts(messages: Messages) -> list[str]:
    """Everything that is said, in its order."""
    found: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [part["text"] for part in content]
        found += [word for part in parts for word in part.split()]
    ours = {"<system>", "</system>", *BEGINS.split(), *BETWEEN.split()}
    return [word for word in found if word not in ours]


def calls(messages: Messages) -> list[str]:
    return [call["id"] for message in messages for call in message.get("tool_calls") or ()]


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(CONVERSATIONS)
def test_no_system_text_is_left_but_the_first(messages: Messages) -> None:
    changed = system_as_user(messages)
    assert all(message["role"] != "system" for message in changed[1:])
    assert changed[:1] == messages[:1] or changed[0]["role"] == "user" != messages[0]["role"]
    assert all(message["role"] != "system" for message in system_as_user(messages, also_leading=True))
    assert texts(changed) == texts(messages)
    assert len(changed) == len(messages), "each stays in its place"


@given(CONVERSATIONS, CONVERSATIONS)
def test_a_conversation_that_goes_on_keeps_its_prefix(messages: Messages, more: Messages) -> None:
    """What a server has kept of it is worth something only if it is the same the next time."""
    changed, longer = system_as_user(messages), system_as_user(messages + more)
    assert longer[: len(changed)] == changed
    joined, longer = in_turns(changed), in_turns(longer)
    assert longer[: len(joined) - 1] == joined[:-1], "only the last may be added to"


@given(CONVERSATIONS)
def test_user_and_assistant_are_in_turns(messages: Messages) -> None:
    changed = in_turns(system_as_user(messages))
    roles = [message["role"] for message in changed]
    for one, next in pairwise(roles):
        assert one != next or one == "tool"
        assert (one, next) != ("tool", "user")
        assert (one, next) != ("system", "assistant")
    assert roles[0] != "assistant"
    assert texts(changed) == texts(messages)
    assert calls(changed) == calls(messages)
    assert in_turns(changed) is changed, "nothing is left to change"


@given(CONVERSATIONS)
def test_a_call_is_answered_right_behind_it(messages: Messages) -> None:
    open_calls: set[str] = set()
    for message in in_turns(system_as_user(messages)):
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls
            open_calls = {call["id"] for call in message.get("tool_calls") or ()}


@given(CONVERSATIONS)
def test_what_needs_no_change_is_left_as_it_is(messages: Messages) -> None:
    if not any(message["role"] == "system" for message in messages[1:]):
        assert system_as_user(messages) is messages
    for message, changed in zip(messages, system_as_user(messages), strict=True):
        assert changed is message or message["role"] == "system"


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
def test_a_strict_template_takes_it(name: str, data: st.DataObject) -> None:
    template = TEMPLATES[name]
    messages = data.draw(WITHOUT_TOOLS if name.startswith("gemma") else CONVERSATIONS)
    changed = in_turns(system_as_user(messages, also_leading=name == "gemma_2"))
    problem = template(changed)
    if problem == "No user query found in messages.":
        changed = in_turns(system_as_user(messages, also_leading=True))
        problem = template(changed)
    assert problem is None or not any(message["role"] == "user" for message in changed)


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_system_text_in_the_middle_is_marked() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}]
    assert system_as_user(messages)[1] == {"role": "user", "content": "<system>\nBe brief.\n</system>"}


def test_a_system_text_of_parts_is_marked_around_them() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "system", "content": [image]}]
    opening, part, closing = system_as_user(messages)[1]["content"]
    assert (opening["text"], part, closing["text"]) == ("<system>", image, "</system>")


def test_neighbours_are_one_message() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    messages: Messages = [
        {"role": "user", "content": "A"},
        {"role": "user", "content": "B"},
        {"role": "user", "content": [image]},
        {"role": "assistant", "content": None, "reasoning": "hm", "refusal": "No."},
        {"role": "assistant", "content": "C", "reasoning": "so"},
    ]
    assert in_turns(messages) == [
        {"role": "user", "content": [{"type": "text", "text": "A\n\nB"}, image]},
        {"role": "assistant", "content": "C", "reasoning": "hm\n\nso", "refusal": "No."},
    ]


def test_somebody_answers_between_a_tool_and_the_user() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    round = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    messages = [{"role": "user", "content": "A"}, *round, {"role": "user", "content": "Stop."}]
    assert in_turns(messages) == [*messages[:3], {"role": "assistant", "content": BETWEEN}, messages[3]]


def test_the_user_begins() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}]
    assert in_turns(messages) == [messages[0], {"role": "user", "content": BEGINS}, messages[1]]


ITEMS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "system", "developer"]),
        TEXTS,
    )
    | st.builds(lambda output: {"type": "function_call_output", "call_id": "c", "output": output}, TEXTS),
    min_size=1,
    max_size=6,
)


@given(ITEMS, ITEMS)
def test_of_the_items_of_a_responses_input_too(items: list[Any], more: list[Any]) -> None:
    changed = system_items_as_user(items)
    assert not any(item.get("role") in ("system", "developer") for item in changed[1:])
    assert changed[0] is items[0]
    assert system_items_as_user(items + more)[: len(changed)] == changed
    assert system_items_as_user(changed) is changed
    assert not any(
        item.get("role") in ("system", "developer") for item in system_items_as_user(items, also_leading=True)
    )


def test_a_developer_item_is_marked_by_parts_around_its_own() -> None:
    items = [
        {"role": "user", "content": "Hi"},
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    ]
    content = system_items_as_user(items)[1]["content"]
    assert [part["text"] for part in content] == ["<system>", "Be brief.", "</system>"]
