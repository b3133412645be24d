"""The text of a custom tool, out of the arguments of the function that stands for it: while they arrive, and at the
end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import ServerError
from requests.responses import chat_message_to_output_items
from requests.tools import TextOfJSON, ToolBook, custom_input
from tests.stream_grammar import check_stream, fold
from tests.streams import builder, call, calls, decoded, ends

TOOLS = [{"type": "custom", "name": "p"}]

# Characters, each with all the ways to write it in JSON.
plain = st.characters(exclude_characters='"\\', exclude_categories=["Cs"], min_codepoint=0x20).map(
    lambda char: (char, char)
)
short = st.sampled_from([("\b", "\\b"), ("\f", "\\f"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")])
marks = st.sampled_from([('"', '\\"'), ("\\", "\\\\"), ("/", "\\/"), ("/", "/")])


def _by_number(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02X}" for at in range(0, len(units), 2))


numbers = st.characters(exclude_categories=["Cs"]).map(lambda char: (char, _by_number(char)))
characters = st.one_of(plain, short, marks, numbers)
# What models write, though it is no JSON: raw control characters.
raw = st.sampled_from([(char, char) for char in "\n\t\r\x00\x1f"])
# And what nobody can read for sure: escapes that there are not, halves of characters, anything.
broken = st.sampled_from(
    ["\\d", "\\'", "\\x41", "\\ud83d", "\\ude00", "\\u12", "\\uZZZZ", "\\\n", "\\ud83d\\u0041"]
).map(lambda text: (None, text))
spaces = st.text(" \n\t", max_size=2)


@st.composite
def objects(draw: Any, *kinds: Any) -> tuple[str, str]:
    """A text, and the JSON of an object with it."""
    drawn = draw(st.lists(st.one_of(*kinds), max_size=20))
    text = "".join(char or "" for char, _ in drawn)
    written = "".join(written for _, written in drawn)
    one, two, three, four = (draw(spaces) for _ in range(4))
    return text, f'{one}{{{two}"input"{three}:{four}"{written}"{two}}}{one}'


def split_at(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(borders)]


def fed(fragments: list[str]) -> str:
    reader = TextOfJSON()
    deltas = [reader.feed(fragment) for fragment in fragments]
    assert "".join(deltas) == reader.text
    reader.text.encode()
    return reader.text


cuts = st.lists(st.integers(0, 500), max_size=9)


@given(objects(characters), cuts)
@example(("🙂", '{"input": "\\ud83d\\ude42"}'), [])
def test_the_deltas_join_to_the_text_whatever_the_split(pair: tuple[str, str], cuts: list[int]) -> None:
    text, json = pair
    assert orjson.loads(json) == {"input": text}, "the test itself is right"
    assert fed(split_at(json, cuts)) == fed([json]) == fed(list(json)) == custom_input(json) == text


@given(objects(characters, raw), cuts)
def test_raw_control_characters_are_read_as_they_are_meant(pair: tuple[str, str], cuts: list[int]) -> None:
    text, json = pair
    assert fed(split_at(json, cuts)) == fed(list(json)) == custom_input(json) == text


@given(objects(characters, raw, broken), cuts)
def test_what_is_no_json_is_read_the_same_whatever_the_split(pair: tuple[str, str], cuts: list[int]) -> None:
    _, json = pair
    assert fed(split_at(json, cuts)) == fed(list(json)) == fed([json]) == custom_input(json)


@given(objects(characters, raw), st.integers(0, 500), cuts)
def test_cut_off_anywhere_it_is_a_beginning_of_the_text(pair: tuple[str, str], end: int, cuts: list[int]) -> None:
    text, json = pair
    half = json[: end % (len(json) + 1)]
    assert text.startswith(fed(split_at(half, cuts)))
    assert text.startswith(custom_input(half, whole=False))


@given(st.text(max_size=50), cuts)
def test_anything_at_all_is_read_the_same_whatever_the_split(text: str, cuts: list[int]) -> None:
    assert fed(split_at(text, cuts)) == fed([text])


@given(objects(characters, raw))
def test_what_can_be_read_of_a_beginning_has_been_emitted_by_then(pair: tuple[str, str]) -> None:
    _, json = pair
    reader = TextOfJSON()
    for end, fragment in enumerate(json, 1):
        reader.feed(fragment)
        assert reader.text == fed([json[:end]])


INPUTS: dict[str, tuple[str, str]] = {
    "as it was asked for": ('{"input": "ls"}', "ls"),
    "an empty text": ('{"input": ""}', ""),
    "another name": ('{"command": "ls"}', "ls"),
    "another key first": ('{"why": "so", "input": "ls"}', "ls"),
    "another key behind": ('{"input": "ls", "why": "so"}', "ls"),
    "a JSON text": ('"ls"', "ls"),
    "no JSON: the model wrote the text itself": ("*** Begin Patch\n+a", "*** Begin Patch\n+a"),
    "no arguments": ("", ""),
    "an empty object": ("{}", ""),
    "a list": ('["ls"]', '["ls"]'),
    "an object of something else": ('{"a": 1, "b": "x"}', '{"a": 1, "b": "x"}'),
    "an input that is an object": ('{"input": {"a": 1}}', '{"input": {"a": 1}}'),
}


@pytest.mark.parametrize(("arguments", "text"), INPUTS.values(), ids=INPUTS)
def test_the_text_is_found_whatever_a_model_makes_of_the_arguments(arguments: str, text: str) -> None:
    assert custom_input(arguments) == text
    for response in (streamed(list(arguments)), streamed([arguments]), at_once(arguments)):
        assert response["output"][0]["input"] == text


# ── as calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def streamed(fragments: list[str], reason: str = "tool_calls", *, fails: bool = False) -> dict[str, Any]:
    """The response to a stream of a call with these arguments, if everybody can read its events."""
    made = builder()
    made.offer(ToolBook(TOOLS))
    events = made.start()
    pieces = [call(0, arguments=fragment) for fragment in fragments]
    for chunk in decoded(calls(call(0, "c", "p")), *map(calls, pieces)):
        events += made.chunk(chunk)
    for chunk in decoded(ends(reason)) if not fails else ():
        events += made.chunk(chunk)
    events += made.fail(ServerError("It broke.")) if fails else made.finish()
    events.append(made.end())
    check_stream(events)
    if not fails:
        assert fold(events) == events[-1]["response"]
    return made.response


def at_once(arguments: str, reason: str = "tool_calls") -> dict[str, Any]:
    made = builder()
    made.offer(ToolBook(TOOLS))
    message = {"tool_calls": [{"id": "c", "function": {"name": "p", "arguments": arguments}}]}
    items = chat_message_to_output_items(message)
    check_stream([*made.start(), *made.completion(items, finish_reason=reason, usage=None), made.end()])
    return made.response


@given(objects(characters, raw, broken), cuts)
def test_a_call_is_the_same_streamed_and_at_once(pair: tuple[str, str], cuts: list[int]) -> None:
    _, json = pair
    inputs = [response["output"][0]["input"] for response in (streamed(split_at(json, cuts)), at_once(json))]
    assert inputs[0] == inputs[1]


@given(objects(characters, raw), st.integers(0, 500), cuts, st.booleans())
def test_a_call_that_is_cut_or_fails_holds_a_beginning_of_the_text(
    pair: tuple[str, str], end: int, cuts: list[int], fails: bool
) -> None:
    text, json = pair
    half = json[: end % (len(json) + 1)]
    for response in (streamed(split_at(half, cuts), "length", fails=fails), at_once(half, "length")):
        (item,) = response["output"]
        assert item["status"] == "incomplete"
        assert text.startswith(item["input"])
