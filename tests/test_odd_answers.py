"""What servers send besides OpenAI's own form, in chunks and in whole answers: read where the turn can do without
it, mended where it cannot. Each table is a kind of fault that was reported of some server; the laws say it of all
values."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.turns.chat_events import check
from core.errors import BackendError
from requests.chat import as_plain, decode_chunk, decode_completion
from requests.endings import ENDINGS
from requests.events import Event, ResponseBuilder
from requests.responses import chat_message_to_output_items, output_text
from requests.sse import frames
from requests.tools import ToolBook
from tests.stream_grammar import check_stream, fold, parse_sse
from tests.streams import Json, bare, builder, call, calls, chunk, ends, judged, said, says, thought
from tests.test_json import any_value
from tests.test_laws import law
from tests.translated import alone, chat_translator, listed

BOOK = ToolBook(
    [{"type": "function", "name": name, "parameters": {}} for name in ("get", "get_weather", "read_file")]
    + [{"type": "custom", "name": "write"}]
)


def read(*chunks: Json, emits: str = "events") -> list[Any]:
    """The events of a stream whose chunks arrive in one read each, as Python's own module would write them."""
    made = fresh(emits)
    translator = chat_translator(made)
    events: list[Any] = made.begin()
    for value in chunks:
        events += listed(translator.feed(b"data: %b\n\n" % json.dumps(value).encode()))
        if translator.failure is not None:
            raise translator.failure
    check(made.finish_reason)
    return [*events, *made.finish(), made.end()]


def fresh(emits: str = "events") -> ResponseBuilder:
    made = builder(emits=emits)
    made.offer(BOOK)
    return made


def whole(body: Json) -> list[Event]:
    """The events of an answer that came at once."""
    answer = decode_completion(json.dumps(body).encode())
    choice = answer.choices[0]
    check(choice.finish_reason)
    made = fresh()
    logprobs = as_plain(choice.logprobs) or {}
    items = chat_message_to_output_items(choice.message, logprobs.get("content"))
    events = made.begin()
    events += made.completion(items, finish_reason=choice.finish_reason, usage=answer.usage)
    return [*events, made.end()]


def output(events: list[Any]) -> list[Json]:
    return bare(events[-1]["response"]["output"])


def as_events(events: list[Any]) -> list[Event]:
    return [event for _, event in parse_sse(frames(events))]


def called(events: list[Any]) -> list[tuple[str, str]]:
    """The names and arguments of the calls, each with an id of its own."""
    items = [item for item in events[-1]["response"]["output"] if item["type"] == "function_call"]
    assert all(item["call_id"] for item in items)
    assert len({item["call_id"] for item in items}) == len(items)
    return [(item["name"], item["arguments"]) for item in items]


# ── fields that the turn can do without ──────────────────────────────────────────────────────────────────────────────

COUNTS = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
LOGPROBS = {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}
FRAME = {"id": "cc-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "x"}
STREAM: list[Json] = [
    FRAME | chunk({"role": "assistant", "content": ""}) | {"usage": None},
    FRAME | chunk({"content": "Hi", "reasoning_content": None}, logprobs=LOGPROBS, finish_reason=None),
    FRAME | chunk({"content": " there"}, logprobs=None),
    FRAME | calls({"index": 0, "id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a"'}}),
    FRAME | calls(call(0, arguments=":1}")),
    FRAME | ends("tool_calls") | {"x_groq": {"usage": COUNTS}},
    FRAME | {"choices": [], "usage": COUNTS, "timings": {"n": 1}},
]
ANSWER: Json = FRAME | {
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hi there",
                "refusal": None,
                "reasoning_content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a":1}'}, "index": 0}
                ],
            },
            "logprobs": LOGPROBS,
            "finish_reason": "tool_calls",
        }
    ],
    "usage": COUNTS,
}
# What an answer says is here, and in nothing else.
NEEDED = {"choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments", "finish_reason"}
Path = tuple[str | int, ...]


def dispensable(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where the values are that say nothing of the text or the calls."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        at = (*path, key)
        inside_needed = all(step in NEEDED or isinstance(step, int) for step in at)
        if not inside_needed:
            yield at
        yield from dispensable(below, at)


def replaced(value: Any, path: Path, new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return value


def says_something(path: Path, new: Any) -> bool:
    """Whether this value has a meaning there: an error, or the place of another choice or call."""
    return (path[-1] == "object" and new == "error") or (path[-1] == "index" and is_number(new))


def is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and float(value) != 0
    except (TypeError, ValueError, OverflowError):
        return isinstance(value, int)


@law
@given(st.sampled_from([*dispensable(STREAM)]), any_value, st.sampled_from(["events", "frames", "nothing"]))
def test_any_value_in_a_field_of_a_chunk_that_says_nothing_changes_nothing(path: Path, new: Any, emits: str) -> None:
    if says_something(path, new):
        return
    events = read(*replaced(STREAM, path, new), emits=emits)
    if emits != "nothing":
        check_stream(as_events(events))
        assert fold(as_events(events)) == events[-1]["response"]
    response = events[-1]["response"]
    assert response["status"] == "completed"
    assert output_text(response["output"]) == "Hi there"
    assert called(events) == [("get", '{"a":1}')]
    json.dumps(response, allow_nan=False).encode()


@law
@given(st.sampled_from([*dispensable(ANSWER)]), any_value)
def test_any_value_in_a_field_of_a_whole_answer_that_says_nothing_changes_nothing(path: Path, new: Any) -> None:
    events = whole(replaced(ANSWER, path, new))
    check_stream(as_events(events))
    assert output_text(events[-1]["response"]["output"]) == "Hi there"
    assert called(events) == [("get", '{"a":1}')]


@law
@given(st.sampled_from(["error", "timings", "x_groq", "object", "message", "code", "another"]), any_value)
def test_any_value_in_a_key_of_a_chunk_that_nobody_sent_before_changes_nothing(key: str, new: Any) -> None:
    if key == "error" or (key, new) == ("object", "error"):
        new = None
    events = read(*[value | {key: new} for value in STREAM])
    assert output_text(events[-1]["response"]["output"]) == "Hi there"


@law
@given(any_value, st.sampled_from(["decode_chunk", "decode_completion"]))
def test_no_value_is_more_than_refused(value: Any, decode: str) -> None:
    for body in (value, {"choices": value}, {"choices": [{"delta": value, "message": value}]}):
        try:
            if decode == "decode_chunk":
                decode_chunk(json.dumps(body).encode())
            elif decode_completion(json.dumps(body).encode()).choices:
                whole(body)
        except (ValueError, BackendError, msgspec.DecodeError):
            continue


NO_ERRORS = [None, "", {}, [], 0, False, {"message": "", "code": None}, {"code": 0, "type": ""}]


@pytest.mark.parametrize("error", NO_ERRORS, ids=map(str, NO_ERRORS))
def test_an_error_with_nothing_in_it_is_none(error: Any) -> None:
    events = judged(read(*[value | {"error": error} for value in (says("Hi"), ends())]))
    assert output(events) == [said("Hi")]


ODD_FORMS: dict[str, list[Json]] = {
    "choices as an object": [{"choices": says("Hi")["choices"][0]}, {"choices": ends()["choices"][0]}],
    "choices by their places": [{"choices": {"0": says("Hi")["choices"][0]}}, ends()],
    "an index as a text": [{"choices": [{"index": "0", "delta": {"content": "Hi"}}]}, ends()],
    "an index as a float": [{"choices": [{"index": 0.0, "delta": {"content": "Hi"}}]}, ends()],
    "a delta that is a text": [{"choices": [{"index": 0, "delta": "Hi"}]}, ends()],
    "a delta that is a list of parts": [{"choices": [{"delta": [{"type": "text", "text": "Hi"}]}]}, ends()],
    "content as one part": [chunk({"content": {"type": "text", "text": "Hi"}}), ends()],
    "content as texts": [chunk({"content": ["H", "i"]}), ends()],
    "content as parts with a picture that has no address": [
        chunk({"content": [{"type": "image_url", "image_url": {"url": ""}}, {"type": "text", "text": "Hi"}]}),
        ends(),
    ],
    "null choices among others": [{"choices": [None, 3, says("Hi")["choices"][0]]}, ends()],
    "data that is nothing": [cast(Json, None), cast(Json, []), says("Hi"), ends()],
    "a reason in an object": [says("Hi"), {"choices": [{"index": 0, "delta": {}, "finish_reason": {"type": "stop"}}]}],
    "a reason that is true": [says("Hi"), {"choices": [{"index": 0, "delta": {}, "finish_reason": True}]}],
    "the reason null as a text in each": [says("Hi", finish_reason="null"), ends()],
    "a completion's text": [{"choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}],
    "a message in place of a delta": [{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}],
    "a message in place of each delta": [{"choices": [{"message": {"content": part}}]} for part in "Hi"] + [ends()],
    "a message that has all so far": [{"choices": [{"message": {"content": part}}]} for part in ("H", "Hi")] + [ends()],
    "a message behind the deltas": [
        says("H"),
        says("i"),
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]},
    ],
    "a message that says more than the deltas": [
        says("H"),
        {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]},
    ],
}


@pytest.mark.parametrize("emits", ["events", "frames", "nothing"])
@pytest.mark.parametrize("chunks", ODD_FORMS.values(), ids=ODD_FORMS)
def test_a_text_is_read_in_any_form(chunks: list[Json], emits: str) -> None:
    events = read(*chunks, emits=emits)
    assert output(events) == [said("Hi")]
    if emits != "nothing":
        judged(as_events(events))


def test_a_number_in_place_of_a_text_is_its_digits() -> None:
    assert output(judged(read(chunk({"content": 4}), chunk({"content": 2.5}), ends()))) == [said("42.5")]


def test_integers_in_arguments_stay_integers() -> None:
    arguments = {"id": 2**64 + 1, "seed": 10**30}
    for events in (
        judged(read(calls(call(0, "c1", "get", arguments)), ends())),
        judged(whole({"choices": [{"message": {"tool_calls": [call(0, "c1", "get", arguments)]}}]})),
    ):
        ((_, spelled),) = called(events)
        assert json.loads(spelled) == arguments


def test_a_server_that_says_minus_infinity_says_very_unlikely() -> None:
    """In OpenAI's word for it: JSON has none."""
    entry = {"token": "Hi", "logprob": float("-inf"), "bytes": None, "top_logprobs": [{"token": "Ho", "logprob": None}]}
    events = judged(read(chunk({"content": "Hi"}, logprobs={"content": [entry]}), ends()))
    (given_,) = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert given_ == {
        "token": "Hi",
        "logprob": -9999.0,
        "bytes": [72, 105],
        "top_logprobs": [{"token": "Ho", "logprob": -9999.0, "bytes": [72, 111]}],
    }


# ── halves of characters ─────────────────────────────────────────────────────────────────────────────────────────────

HALF, OTHER = "\ud83d", "\ude00"


def texts(key: str) -> Callable[[str], Json]:
    return lambda text: chunk({key: text})


def arguments(text: str) -> Json:
    return calls(call(0, "c1", "read_file", text))


def written(text: str) -> Json:
    return calls(call(0, "c1", "write", text))


@pytest.mark.parametrize("emits", ["events", "frames", "nothing"])
@pytest.mark.parametrize("key", ["content", "reasoning_content", "reasoning", "thinking", "refusal"])
@pytest.mark.parametrize(
    ("pieces", "whole_text"),
    [
        (["ok " + HALF, OTHER + " yes"], "ok 😀 yes"),
        (["ok", HALF, OTHER, " yes"], "ok😀 yes"),
        (["ok " + HALF, " no"], "ok \ufffd no"),
        (["ok " + HALF], "ok \ufffd"),
        ([OTHER + " ok"], "\ufffd ok"),
        ([HALF + HALF + OTHER], "\ufffd😀"),
    ],
)
def test_half_a_character_is_joined_or_marked(key: str, pieces: list[str], whole_text: str, emits: str) -> None:
    events = read(*map(texts(key), pieces), says("!"), ends(), emits=emits)
    if emits != "nothing":
        judged(as_events(events))
    item = output(events)[0]
    text = "".join(part.get("text", part.get("refusal")) for part in item["content"])
    assert text.removesuffix("!") == whole_text


@pytest.mark.parametrize("size", [1, 2, 3])
def test_bytes_of_a_character_in_several_chunks_are_joined(size: int) -> None:
    text = "a😀é漢b"
    sent = text.encode()
    cut = [sent[at : at + size] for at in range(0, len(sent), size)]
    made = fresh("frames")
    translator = chat_translator(made)
    events: list[Any] = made.begin()
    for piece in cut:
        events += listed(translator.feed(b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % piece))
        assert translator.failure is None
    events += [*made.finish(), made.end()]
    assert output(events) == [said(text)]
    judged(as_events(events))


def test_half_a_character_in_arguments_is_joined_or_marked() -> None:
    events = judged(read(arguments('{"a":"' + HALF), arguments(OTHER + HALF + '"}'), ends()))
    assert called(events) == [("read_file", '{"a":"😀\ufffd"}')]
    events = judged(read(written('{"input":"' + HALF), written(OTHER + HALF + '"}'), ends()))
    assert events[-1]["response"]["output"][0]["input"] == "😀\ufffd"


def test_a_fast_stream_goes_on_fast_behind_half_a_character() -> None:
    translator = chat_translator(fresh("frames"))
    for value in (says("a" + HALF), says(OTHER)):
        translator.feed(b"data: %b\n\n" % json.dumps(value).encode())
    assert alone(translator, b"data: %b\n\n" % json.dumps(says("b")).encode()) is not None


@law
@given(st.lists(st.text(st.characters(), max_size=4), max_size=6), st.sampled_from(["content", "reasoning", "refusal"]))
def test_no_half_of_a_character_leaves(pieces: list[str], key: str) -> None:
    events = read(*map(texts(key), pieces), ends())
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    frames(events).decode()


def test_halves_in_a_whole_answer_are_joined_or_marked() -> None:
    events = judged(whole({"choices": [{"message": {"content": HALF + OTHER + HALF, "refusal": HALF}}]}))
    (item,) = output(events)
    assert [part.get("text", part.get("refusal")) for part in item["content"]] == ["😀\ufffd", "\ufffd"]


# ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────────────

A, B = '{"city":"Oslo"}', '{"city":"Rome"}'
F, G = "get_weather", "read_file"
ONE = [(F, A)]
CALLS: dict[str, tuple[list[Json], list[tuple[str, str]]]] = {
    "the name in every chunk": ([call(0, "c", F, ""), call(0, None, F, '{"city"'), call(0, None, F, ':"Oslo"}')], ONE),
    "and once more behind whole arguments": ([call(0, "c", F, A), call(0, None, F, ""), call(0, None, F)], ONE),
    "name and id in every chunk": ([call(0, "c", F, ""), call(0, "c", F, A), call(0, "c", F, "")], ONE),
    "name and another id in every chunk": (
        [call(0, "c1", F, ""), call(0, "c2", F, '{"city"'), call(0, "c3", F, ':"Oslo"}'), call(0, "c4", F, "")],
        ONE,
    ),
    "the same without an index": (
        [call(None, "c1", F, '{"ci'), call(None, "c2", F, 'ty":"Os'), call(None, "c3", F, 'lo"}')],
        ONE,
    ),
    "another id in every chunk, the name in the first": (
        [call(0, "c1", F, '{"city"'), call(0, "c2", None, ':"Oslo"}')],
        ONE,
    ),
    "the same, without an index": ([call(None, "c1", F, '{"city"'), call(None, "c2", None, ':"Oslo"}')], ONE),
    "the name in pieces": ([call(0, "c", "get_"), call(0, None, "weather"), call(0, None, None, A)], ONE),
    "the name in pieces, with the id": ([call(0, "c", "get_"), call(0, "c", "weather"), call(0, None, None, A)], ONE),
    "a name in pieces whose first is another tool's": ([call(0, "c", "get"), call(0, None, "_weather", A)], ONE),
    "a name in pieces, and no arguments": ([call(0, "c", "get_"), call(0, "c", "weather")], [(F, "{}")]),
    "a name that another tool's begins with": ([call(0, "c", "get"), call(0, None, None, A)], [("get", A)]),
    "marks of the model's format behind the name": ([call(0, "c", f"{F}<|channel|>commentary", A)], ONE),
    "marks in a chunk of their own": ([call(0, "c", F), call(0, None, "<|channel|>json"), call(0, None, None, A)], ONE),
    "the recipient in place of the name": ([call(0, "c", f"functions.{F}", A)], ONE),
    "an empty object before the arguments": (
        [call(0, "c", F, "{}"), call(0, None, None, '{"city"'), call(0, None, None, ':"Oslo"}')],
        ONE,
    ),
    "an empty object and nothing behind it": ([call(0, "c", F, "{}"), call(0, None, None, "")], [(F, "{}")]),
    "all arguments so far in every chunk": (
        [call(0, "c", F, '{"ci'), call(0, None, None, '{"city":"Os'), call(0, None, None, A)],
        ONE,
    ),
    "the whole call again in the last chunk": (
        [call(0, "c", F, '{"city":'), call(0, None, None, '"Oslo"}'), call(0, "c", F, A)],
        ONE,
    ),
    "two with the index 0, and ids": ([call(0, "a", F, A), call(0, "b", F, B)], [(F, A), (F, B)]),
    "two with the index 0, and one id": ([call(0, "a", F, A), call(0, "a", F, B)], [(F, A), (F, B)]),
    "two with the index 0, the second without arguments": ([call(0, "a", F, A), call(0, "b", G)], [(F, A), (G, "{}")]),
    "two with the index 0, in pieces": (
        [call(0, None, F, '{"city":'), call(0, None, F, '"Oslo"}'), call(0, None, G, "{"), call(0, None, G, "}")],
        [(F, A), (G, "{}")],
    ),
    "two without index and ids": ([call(None, None, F, A), call(None, None, F, B)], [(F, A), (F, B)]),
    "two that are one id, the function's name": ([call(0, F, F, A), call(1, F, F, B)], [(F, A), (F, B)]),
    "ids that are null": ([call(0, None, F, A) | {"id": None}, call(1, None, G, B) | {"id": None}], [(F, A), (G, B)]),
    "an index as a text, a number as id": (
        [call(0, None, F, '{"city":') | {"index": "0", "id": 7}, call(0, None, None, '"Oslo"}')],
        ONE,
    ),
    "the function's keys beside the id": ([{"index": 0, "id": "c", "name": F, "arguments": A}], ONE),
    "arguments as an object in every chunk": (
        [call(0, "c", F, {"city": "Oslo"}), call(0, "c", F, {"city": "Oslo"})],
        ONE,
    ),
    "interleaved": (
        [
            call(0, "a", F, '{"city"'),
            call(1, "b", F, '{"city"'),
            call(0, None, None, ':"Oslo"}'),
            call(1, None, None, ':"Rome"}'),
        ],
        [(F, A), (F, B)],
    ),
}


@pytest.mark.parametrize("emits", ["events", "frames", "nothing"])
@pytest.mark.parametrize(("deltas", "expected"), CALLS.values(), ids=CALLS)
def test_calls_are_those_that_the_model_made(deltas: list[Json], expected: Any, emits: str) -> None:
    events = read(*[calls(delta) for delta in deltas], ends("tool_calls"), emits=emits)
    assert called(events) == expected
    if emits != "nothing":
        judged(as_events(events))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_calls_without_anything_in_one_chunk_are_as_many_as_they_are(number: int) -> None:
    events = judged(read(calls(*[call(None, None, "get")] * number), ends()))
    assert called(events) == [("get", "{}")] * number


FORMS: dict[str, Json] = {
    "one call as an object": {"tool_calls": call(0, "c", F, A)},
    "calls by their places": {"tool_calls": {"0": call(0, "c", F, A)}},
    "with nulls among them": {"tool_calls": [None, call(0, "c", F, A), "x"]},
    "arguments as an object": {"tool_calls": [call(0, "c", F, {"city": "Oslo"})]},
    "the call of 2023": {"function_call": {"name": F, "arguments": A}},
    "marks behind the name": {"tool_calls": [call(0, "c", f"{F}<|constrain|>json", A)]},
}


@pytest.mark.parametrize("delta", FORMS.values(), ids=FORMS)
def test_calls_are_read_in_any_form(delta: Json) -> None:
    assert called(judged(read(chunk(delta), ends()))) == ONE
    assert called(judged(whole({"choices": [{"message": delta, "finish_reason": "stop"}]}))) == ONE
    last = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Look:", **delta}}]}
    assert called(judged(read(says("Look:"), last, ends()))) == ONE, "a message that brings what no delta did"


def test_arguments_behind_a_call_that_was_whole_when_another_began_are_left_out() -> None:
    deltas = [call(None, "a", "<|x", "{}"), call(1, "", F, "{"), call(0, None, "get_", "1}")]
    events = judged(read(*[calls(delta) for delta in deltas], ends()))
    assert called(events)[0][1] == "{}"
    events = judged(read(calls(call(0, "c", F, A)), says("Look:"), calls(call(0, arguments="0")), ends()))
    assert called(events) == ONE


@law
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["", '{"a":', "1}", "{}", A, "x"])), max_size=8), st.data()
)
def test_whatever_a_server_does_to_its_calls_the_stream_is_whole(
    drawn: list[tuple[int, str]], data: st.DataObject
) -> None:
    deltas = []
    for index, spelled in drawn:
        id_ = data.draw(st.sampled_from([None, "", "a", "b"]))
        name = data.draw(st.sampled_from([None, "", F, G, "get", "get_", "weather", "<|x"]))
        deltas.append(call(data.draw(st.sampled_from([index, 0, None])), id_, name, spelled))
    events = read(*[calls(delta) for delta in deltas], ends())
    check_stream(events)
    assert fold(events) == events[-1]["response"]


# ── why an answer ended ──────────────────────────────────────────────────────────────────────────────────────────────


def spellings(reason: str) -> list[str]:
    return [reason, reason.upper(), reason.replace("_", "-"), f"FinishReason.{reason.upper()}", reason.title()]


@pytest.mark.parametrize("reason", [reason for reason in ENDINGS if reason])
def test_a_reason_means_the_same_however_it_is_spelled(reason: str) -> None:
    for spelled in spellings(reason):
        if ENDINGS[reason] == "failed":
            with pytest.raises(BackendError, match="gave up"):
                read(says("Hi"), ends(spelled))
            with pytest.raises(BackendError, match="gave up"):
                whole({"choices": [{"message": {"content": "Hi"}, "finish_reason": spelled}]})
            continue
        for events in (
            judged(read(says("Hi"), ends(spelled))),
            judged(whole({"choices": [{"message": {"content": "Hi"}, "finish_reason": spelled}]})),
        ):
            response = events[-1]["response"]
            if ENDINGS[reason] == "completed":
                assert (response["status"], response["incomplete_details"]) == ("completed", None)
            else:
                assert response["status"] == "incomplete"
                assert response["incomplete_details"] == {"reason": ENDINGS[reason]}


def test_an_unknown_reason_completes_the_answer_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert judged(read(says("Hi"), ends("because of the moon")))[-1]["response"]["status"] == "completed"
    assert [record.getMessage() for record in caplog.records if "moon" in record.getMessage()] == [
        "A backend ended an answer with the reason 'because of the moon', which nobody knows: it counts as completed"
    ]


# ── token counts ─────────────────────────────────────────────────────────────────────────────────────────────────────

PLAIN = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
USAGES: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "OpenAI": (
        PLAIN | {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 3}},
        (2, 0, 3),
    ),
    "no details": (PLAIN, (0, 0, 0)),
    "null details": (PLAIN | {"prompt_tokens_details": None, "completion_tokens_details": None}, (0, 0, 0)),
    "details of other types": (PLAIN | {"prompt_tokens_details": [], "completion_tokens_details": 3}, (0, 0, 0)),
    "null in the details": (PLAIN | {"prompt_tokens_details": {"cached_tokens": None}}, (0, 0, 0)),
    "DeepSeek": (PLAIN | {"prompt_cache_hit_tokens": 2, "prompt_cache_miss_tokens": 7}, (2, 0, 0)),
    "Moonshot": (PLAIN | {"cached_tokens": 2}, (2, 0, 0)),
    "SGLang": (PLAIN | {"prompt_tokens_details": {"cached_tokens": 2}, "reasoning_tokens": 3}, (2, 0, 3)),
    "Anthropic's relatives": (PLAIN | {"cache_read_input_tokens": 2, "cache_creation_input_tokens": 5}, (2, 5, 0)),
    "OpenRouter": (
        PLAIN | {"cost": 0.1, "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 5}},
        (2, 5, 0),
    ),
    "in the words of Responses": (
        {"input_tokens": 9, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 3}},
        (0, 0, 3),
    ),
    "floats": ({"prompt_tokens": 9.0, "completion_tokens": 4.0, "total_tokens": 13.0}, (0, 0, 0)),
    "texts": ({"prompt_tokens": "9", "completion_tokens": "4", "total_tokens": "13", "cached_tokens": "2"}, (2, 0, 0)),
    "no total": ({"prompt_tokens": 9, "completion_tokens": 4}, (0, 0, 0)),
    "a total of another type": (PLAIN | {"total_tokens": [13]}, (0, 0, 0)),
}


def places(usage: Any) -> list[list[Json]]:
    """Streams that have it where servers put it."""
    return [
        [says("Hi"), ends(), {"choices": [], "usage": usage}],
        [says("Hi"), ends(), {"usage": usage}],
        [says("Hi"), ends() | {"usage": usage}],
        [says("Hi"), ends() | {"x_groq": {"id": "r", "usage": usage}}],
        [says("Hi"), chunk({}, finish_reason="stop", usage=usage)],
        [says("Hi") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}, ends() | {"usage": usage}],
        [says("Hi"), {"usage": usage, "choices": []}, ends() | {"usage": None}],
    ]


@pytest.mark.parametrize(("usage", "details"), USAGES.values(), ids=USAGES)
def test_every_servers_counts_are_told_in_openais_words(usage: Any, details: tuple[int, int, int]) -> None:
    cached, written_, thought_ = details
    expected = {
        "input_tokens": 9,
        "output_tokens": 4,
        "total_tokens": 13,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written_},
        "output_tokens_details": {"reasoning_tokens": thought_},
    }
    for stream in places(usage):
        assert judged(read(*stream))[-1]["response"]["usage"] == expected
    at_once = whole({"choices": [{"message": {"content": "Hi"}}], "usage": usage})
    assert judged(at_once)[-1]["response"]["usage"] == expected


@pytest.mark.parametrize("usage", [None, {}, [], [1], 3, "many", True])
def test_what_is_no_usage_is_none(usage: Any) -> None:
    for stream in places(usage)[:5]:
        assert judged(read(*stream))[-1]["response"]["usage"] is None


@law
@given(st.dictionaries(st.sampled_from([*COUNTS, "cached_tokens", "reasoning_tokens"]), any_value, min_size=1))
def test_whatever_is_in_a_usage_its_counts_are_counts(usage: Json) -> None:
    counted = judged(read(says("Hi"), ends(), {"choices": [], "usage": usage}))[-1]["response"]["usage"]
    flat = [*counted.values(), *counted["input_tokens_details"].values(), *counted["output_tokens_details"].values()]
    assert all(type(count) is int and count >= 0 for count in flat if not isinstance(count, dict))


# ── thoughts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXT_PART = {"type": "text", "text": "Four."}
THOUGHTS: dict[str, list[Json]] = {
    "reasoning_content": [{"reasoning_content": "I "}, {"reasoning_content": "add."}],
    "reasoning": [{"reasoning": "I "}, {"reasoning": "add."}],
    "thinking": [{"thinking": "I "}, {"thinking": "add."}],
    "both keys": [{"reasoning": "I add.", "reasoning_content": "I add."}],
    "an object": [{"reasoning": {"content": "I add."}}],
    "an object with a summary": [{"reasoning": {"summary": [{"type": "summary_text", "text": "I add."}]}}],
    "a list": [{"reasoning_content": [{"type": "text", "text": "I add."}]}],
    "OpenRouter's details": [{"reasoning_details": [{"type": "reasoning.text", "text": "I add.", "signature": None}]}],
    "details beside the text": [
        {"reasoning": "I add.", "reasoning_details": [{"type": "reasoning.text", "text": "I add."}]}
    ],
    "a summary in details": [
        {"reasoning": None, "reasoning_details": [{"type": "reasoning.summary", "summary": "I add."}]}
    ],
    "LiteLLM's blocks": [{"thinking_blocks": [{"type": "thinking", "thinking": "I add.", "signature": "x"}]}],
    "blocks beside the text": [
        {"reasoning_content": "I add.", "thinking_blocks": [{"type": "thinking", "thinking": "I add."}]}
    ],
    "Mistral's parts": [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "I add."}]}]}],
    "a text in a part": [{"content": [{"type": "thinking", "thinking": "I add."}]}],
    "a part of reasoning": [{"content": [{"type": "reasoning", "text": "I add."}]}],
    "a part that is marked": [{"content": [{"type": "text", "text": "I add.", "thought": True}]}],
    "what is sealed says nothing": [
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
        {"reasoning": "I add."},
    ],
}


@pytest.mark.parametrize("deltas", THOUGHTS.values(), ids=THOUGHTS)
def test_a_thought_is_told_once_and_is_no_text(deltas: list[Json]) -> None:
    four = [thought("I add."), said("Four.")]
    assert output(judged(read(*map(chunk, deltas), says("Four."), ends()))) == four
    assert output(as_events(read(*map(chunk, deltas), says("Four."), ends(), emits="frames"))) == four
    message: Json = {"content": "Four."}
    for delta in deltas:
        for key, value in delta.items():
            message[key] = (
                [*value, TEXT_PART] if key == "content" else value if key not in message else message[key] + value
            )
    if "an object" not in deltas:
        assert output(judged(whole({"choices": [{"message": message}]}))) == four


def test_thought_and_text_in_one_list_of_parts_keep_their_order() -> None:
    parts = [{"type": "thinking", "thinking": "I add."}, TEXT_PART, {"type": "thinking", "thinking": "Done."}]
    assert output(judged(read(chunk({"content": parts}), ends()))) == [
        thought("I add."),
        said("Four."),
        thought("Done."),
    ]


def test_a_refusal_alone_is_a_message() -> None:
    no = {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "refusal", "refusal": "No."}],
    }
    for delta in (
        {"refusal": "No."},
        {"content": None, "refusal": "No."},
        {"content": [{"type": "refusal", "refusal": "No."}]},
    ):
        assert output(judged(read(chunk(delta), ends()))) == [no]
        assert output(judged(whole({"choices": [{"message": delta}]}))) == [no]
