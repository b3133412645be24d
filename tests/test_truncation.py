"""What goes when a conversation is too long: whole turns from the oldest on, whole tool rounds, and never what must stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.messages import ATTACHED
from requests.truncation import truncated

Message = dict[str, Any]


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def called(*ids: str) -> Message:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def output(id: str, content: Any = "done") -> Message:
    return {"role": "tool", "tool_call_id": id, "content": content}


def one_each(message: Message) -> int:
    return 1


SHOWN = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
TALK = [
    said("system", "Be brief."),
    said("user", "one"),
    said("assistant", "1"),
    said("user", "two"),
    called("a", "b"),
    output("a"),
    output("b"),
    said("assistant", "2"),
    said("user", "three"),
    called("c"),
    output("c"),
    called("d"),
    output("d"),
]
# How many tokens must go, where each message is one; which messages stay, as places in TALK.
CUTS: dict[str, tuple[int, list[int] | None]] = {
    "nothing": (0, list(range(13))),
    "a part of the first turn": (1, [0, *range(3, 13)]),
    "the first turn": (2, [0, *range(3, 13)]),
    "more than the first": (3, [0, *range(8, 13)]),
    "all but the last": (7, [0, *range(8, 13)]),
    "a round of the last": (8, [0, 8, 11, 12]),
    "as much as can": (9, [0, 8, 11, 12]),
    "too much": (10, None),
}


@pytest.mark.parametrize(("excess", "stays"), CUTS.values(), ids=CUTS)
def test_the_oldest_go_first(excess: int, stays: list[int] | None) -> None:
    left = truncated(TALK, excess_tokens=excess, tokens_of=one_each)
    assert left == (None if stays is None else [TALK[place] for place in stays])


def test_the_attachments_of_a_round_go_with_it() -> None:
    talk = [said("user", "one"), called("a"), output("a", f"see: {ATTACHED}"), SHOWN, said("user", "two")]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) == talk[-1:]
    assert truncated(talk[:-1], excess_tokens=1, tokens_of=one_each) is None, "the last round must stay"


def test_an_image_of_the_user_behind_an_output_is_a_turn() -> None:
    talk = [said("user", "one"), called("a"), output("a"), SHOWN]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) == [SHOWN]


@st.composite
def talks(draw: st.DrawFn) -> list[Message]:
    talk = [said("system", "Be brief.")] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 5))):
        talk.append(said("user", f"question {turn}" * draw(st.integers(1, 3))))
        for number in range(draw(st.integers(0, 3))):
            ids = [f"c{turn}-{number}-{place}" for place in range(draw(st.integers(1, 2)))]
            has_images = draw(st.booleans())
            talk += [called(*ids), *(output(id, ATTACHED if has_images else "x") for id in ids)]
            talk += [SHOWN] if has_images else []
        if draw(st.booleans()):
            talk.append(said("assistant", "answer"))
        if draw(st.integers(0, 9)) == 0:
            talk.append(said("system", "Now be long."))
    return talk


def size(message: Message) -> int:
    return 1 + len(str(message["content"]))


@given(talks(), st.integers(0, 400))
def test_what_stays_is_a_conversation(talk: list[Message], excess: int) -> None:
    left = truncated(talk, excess_tokens=excess, tokens_of=size)
    if left is None:
        assert excess > 0
        return
    assert sum(map(size, talk)) - sum(map(size, left)) >= excess, "not short enough"
    assert [m for m in left if m["role"] == "system"] == [m for m in talk if m["role"] == "system"]
    users = [m for m in talk if m["role"] == "user" and m is not SHOWN]
    assert any(m is users[-1] for m in left), "the last user message is gone"
    places = [next(place for place, its in enumerate(talk) if its is m) for m in left if m is not SHOWN]
    assert places == sorted(places), "the order has changed"
    waiting: set[str] = set()
    for message in left:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, "an output without its call"
            waiting.discard(message["tool_call_id"])
        elif message["role"] != "system":
            assert not waiting, "a call without its output"
            waiting |= {call["id"] for call in message.get("tool_calls") or ()}
    assert not waiting
    first = next(m for m in left if m["role"] != "system")
    assert first["role"] == "user", "it begins with an answer"


@given(talks(), st.integers(1, 400))
def test_no_turn_goes_without_need(talk: list[Message], excess: int) -> None:
    left = truncated(talk, excess_tokens=excess, tokens_of=size)
    less = truncated(talk, excess_tokens=excess - 1, tokens_of=size)
    if left is not None:
        assert less is not None
        assert len(less) >= len(left)
