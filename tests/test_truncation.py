"""What goes when a conversation is too long: whole turns from the oldest on, whole tool rounds, and never what must
stay."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.messages import ATTACHED, responses_input_to_messages
from requests.tokens import IMAGE_TOKENS
from requests.truncation import truncated

Message = dict[str, Any]
Block = list[Message]

IMAGE = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 50_000}


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def round_of(*ids: str, output: Any = "done") -> Block:
    """A tool round, as our own translation makes it."""
    calls = [{"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"} for id in ids]
    return responses_input_to_messages(
        [*calls, *({"type": "function_call_output", "call_id": id, "output": output} for id in ids)]
    )


def one_each(message: Message) -> int:
    return 1


TALK = [
    said("system", "Be brief."),
    said("user", "one"),
    said("assistant", "1"),
    said("user", "two"),
    *round_of("a", "b"),
    said("assistant", "2"),
    said("user", "three"),
    *round_of("c"),
    *round_of("d"),
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


@pytest.mark.parametrize(
    "output", [[IMAGE], [{"type": "input_text", "text": "See."}, IMAGE]], ids=["image", "text too"]
)
def test_the_attachments_of_a_round_go_with_it(output: Any) -> None:
    shown = round_of("a", "b", output=output)
    assert [message["role"] for message in shown] == ["assistant", "tool", "tool", "user"]
    talk = [said("user", "one"), *shown, said("user", "two")]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) == talk[-1:]
    assert truncated(talk[:-1], excess_tokens=1, tokens_of=one_each) is None, "the last round must stay"
    again = [said("user", "one"), *shown, *round_of("c")]
    assert truncated(again, excess_tokens=1, tokens_of=one_each) == [again[0], *again[-2:]]


def test_an_image_of_the_user_behind_an_output_is_a_turn() -> None:
    image = responses_input_to_messages([{"role": "user", "content": [IMAGE]}])
    assert truncated([said("user", "one"), *round_of("a"), *image], excess_tokens=1, tokens_of=one_each) == image


@pytest.mark.parametrize("quote", [f"grep: ATTACHED = {ATTACHED}", ATTACHED], ids=["among others", "alone"])
def test_an_output_that_quotes_us_does_not_swallow_the_question_behind_it(quote: str) -> None:
    talk = [said("user", "old"), *round_of("a", output=quote), said("user", "new"), *round_of("b"), *round_of("c")]
    assert truncated(talk, excess_tokens=4, tokens_of=one_each) == [talk[3], *talk[6:]]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_the_open_round_stays_also_when_a_text_is_behind_it(role: str) -> None:
    talk = [said("user", "one"), *round_of("a"), said(role, "text")]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) is None


def test_texts_behind_the_last_question_stay() -> None:
    talk = [said("user", "one"), *(said("assistant", text) for text in "abc")]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) is None


def test_the_same_message_twice_is_two_messages() -> None:
    same = said("user", "go on")
    assert truncated([same, said("assistant", "1"), same], excess_tokens=1, tokens_of=one_each) == [same]


def test_answers_before_the_first_question_are_the_oldest_turn() -> None:
    talk = [said("system", "Be brief."), said("assistant", "Hello."), said("user", "one")]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) == [talk[0], talk[2]]


def test_without_a_question_only_rounds_go() -> None:
    talk = [*round_of("a"), *round_of("b")]
    assert truncated(talk, excess_tokens=1, tokens_of=one_each) == talk[2:]
    assert truncated(talk[2:], excess_tokens=1, tokens_of=one_each) is None
    assert truncated([said("system", "x")], excess_tokens=1) is None
    assert truncated([], excess_tokens=0) == []


def test_an_image_counts_the_same_however_large_its_file_is() -> None:
    image = responses_input_to_messages([{"role": "user", "content": [IMAGE]}])
    talk = [*image, said("assistant", "A cat."), said("user", "And this?")]
    assert truncated(talk, excess_tokens=IMAGE_TOKENS) == talk[2:]
    assert truncated(talk, excess_tokens=IMAGE_TOKENS * 2) is None, "its base64 was counted"


# Turns as lists of blocks: the first is the user's message, the others are rounds and texts.
@st.composite
def turns(draw: st.DrawFn) -> list[list[Block]]:
    talk: list[list[Block]] = []
    for turn in range(draw(st.integers(1, 4))):
        blocks = [[said("user", f"question {turn}" * draw(st.integers(1, 3)))]]
        for number in range(draw(st.integers(0, 3))):
            ids = [f"{turn}-{number}-{place}" for place in range(draw(st.integers(1, 2)))]
            blocks.append(round_of(*ids, output=draw(st.sampled_from(["done", ATTACHED, [IMAGE]]))))
        if draw(st.booleans()):
            blocks.append([said("assistant", "answer")])
        if draw(st.integers(0, 4)) == 0:
            blocks.insert(draw(st.integers(1, len(blocks))), [said("system", "Now be long.")])
        talk.append(blocks)
    return talk


def size(message: Message) -> int:
    return 1 + len(str(message["content"])) % 50


def as_short_as(talk: list[list[Block]], gone_turns: int, gone_rounds: int = 0) -> list[Message]:
    """The talk without its first turns, and without the first rounds of its last turn. System texts stay."""
    kept = [[block for block in turn if block[0]["role"] == "system"] for turn in talk[:gone_turns]] + talk[gone_turns:]
    gone = [block for block in kept[-1] if "tool_calls" in block[0]][:gone_rounds]
    kept[-1] = [block for block in kept[-1] if block not in gone]
    return list(chain(*chain(*kept)))


@given(turns(), st.booleans(), st.integers(-1, 400))
def test_what_goes_is_the_least_that_is_enough(talk: list[list[Block]], instructed: bool, excess: int) -> None:
    head = [said("system", "Be brief.")] if instructed else []
    whole = head + as_short_as(talk, 0)
    last = len(talk) - 1
    rounds = sum("tool_calls" in block[0] for block in talk[-1])
    cuts = [*((gone, 0) for gone in range(last + 1)), *((last, gone) for gone in range(1, rounds))]
    shorter = (head + as_short_as(talk, *cut) for cut in cuts)
    enough = (left for left in shorter if sum(map(size, whole)) - sum(map(size, left)) >= excess)
    assert truncated(whole, excess_tokens=excess, tokens_of=size) == next(enough, None)


@given(turns(), st.integers(0, 400))
def test_what_stays_is_a_conversation(talk: list[list[Block]], excess: int) -> None:
    whole = as_short_as(talk, 0)
    copy = list(whole)
    left = truncated(whole, excess_tokens=excess, tokens_of=size)
    assert whole == copy, "the list that was given has changed"
    if left is None:
        assert excess > 0
        return
    assert truncated(left, excess_tokens=0, tokens_of=size) == left
    assert [m for m in left if m["role"] == "system"] == [m for m in whole if m["role"] == "system"]
    assert any(m is talk[-1][0][0] for m in left), "the last user message is gone"
    waiting: set[str] = set()
    for message in left:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, "an output without its call"
            waiting.discard(message["tool_call_id"])
        elif message["role"] != "system":
            assert not waiting, "a call without its output"
            waiting |= {call["id"] for call in message.get("tool_calls") or ()}
    assert not waiting
    assert left[0]["role"] in ("system", "user"), "it begins with an answer"
    first = next(m for m in left if m["role"] != "system")
    assert first["role"] == "user", "it begins with an answer"
    assert isinstance(first["content"], str), "it begins with the attachments of a round"
