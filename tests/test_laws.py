"""Laws of the pure half: what holds for every stream, every cut and every conversation, tried on many that nobody
thought of.

The examples are the same in every run. LAW_EXAMPLES=5000 looks at that many new ones instead.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BackendCut, InvalidRequest
from requests.chat import DecodeError, decode_chunk, decode_completion
from requests.chat_params import chat_request
from requests.content import EVERY_PART
from requests.events import Event, ResponseBuilder, replay, unfinished
from requests.from_messages import messages_to_responses_input
from requests.items import check_input, input_items
from requests.messages import responses_input_to_messages, whole_arguments
from requests.params import CreateParams, check_request
from requests.responses import chat_message_to_output_items, response_resource
from requests.sse import SSEDecoder, frames
from tests.stream_grammar import check_stream, fold, parse_sse
from tests.streams import bare, builder, call, calls, chunk, decoded, ends

Json = dict[str, Any]

MANY = int(os.environ.get("LAW_EXAMPLES", "0"))
law = settings(max_examples=MANY or 100, derandomize=not MANY, database=None, deadline=None)

# Text as JSON may hold it: everything but half a surrogate pair.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some_text = texts.filter(bool)
names = st.sampled_from(["f", "g", "get_weather"])


# ── streams of every kind of server ──────────────────────────────────────────────────────────────────────────────────


@st.composite
def streams(draw: st.DrawFn) -> list[Json]:
    """The chunks of an answer: text, reasoning, refusals and calls, in any order, written as some server would."""
    style = draw(st.sampled_from(["indexed", "all zero", "no index", "no id", "late name"]))
    steps = draw(
        st.lists(st.sampled_from(["text", "thought", "other thought", "refusal", "call", "more"]), max_size=12)
    )
    chunks: list[Json] = []
    opened = 0
    for step in steps:
        if step in ("call", "more") and (step == "call" or not opened):
            chunks += _opening(style, opened, draw(names), draw(st.one_of(texts, st.none(), st.just({"x": 1}))))
            opened += 1
        elif step == "more":
            # A server that gives every call the index 0, or none, writes one after the other.
            number = opened - 1 if style in ("all zero", "no index") else draw(st.integers(0, opened - 1))
            index = {"all zero": 0, "no index": None}.get(style, number)
            chunks.append(calls(call(index, arguments=draw(texts))))
        else:
            key = {"text": "content", "thought": "reasoning_content", "other thought": "reasoning"}.get(step, step)
            chunks.append(chunk({key: draw(texts)}))
        if draw(st.integers(0, 9)) == 0:
            chunks.append(draw(noise))
    return [*chunks, ends(draw(finish_reasons))] if draw(st.booleans()) else chunks


def _opening(style: str, number: int, name: str, arguments: Any) -> list[Json]:
    match style:
        case "all zero":
            return [calls(call(0, f"c{number}", name, arguments))]
        case "no index":
            return [calls(call(None, f"c{number}", name, arguments))]
        case "no id":
            return [calls(call(number, None, name, arguments))]
        case "late name":
            return [calls(call(number, f"c{number}", None, arguments)), calls(call(number, None, name))]
        case _:
            return [calls(call(number, f"c{number}", name, arguments))]


noise = st.sampled_from(
    [
        {"choices": []},
        {"choices": None},
        {"choices": [{"index": 0}]},
        {"choices": [{"index": 1, "delta": {"content": "another choice"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
        chunk({"role": "assistant", "content": None}),
        chunk({"content": "p", "reasoning_content": "q"}, logprobs={"content": [{"token": "p", "logprob": -1}]}),
    ]
)
finish_reasons = st.sampled_from(["stop", "tool_calls", "length", "content_filter"])


def fed(made: ResponseBuilder, chunks: list[Json]) -> list[Event]:
    events = made.start()
    for given_ in decoded(*chunks):
        events += made.chunk(given_)
    return events


@law
@given(streams())
def test_every_stream_is_whole_and_folds_to_its_last_response(chunks: list[Json]) -> None:
    made = builder()
    events = [*fed(made, chunks), *made.finish(), made.end()]
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]


@law
@given(streams(), st.booleans())
def test_a_stream_that_is_cut_off_anywhere_is_whole_too(chunks: list[Json], cancelled: bool) -> None:
    made = builder()
    events = fed(made, chunks)
    if cancelled:
        made.cancel()
    else:
        events += made.fail(BackendCut("x"))
    events.append(made.end())
    check_stream(events)
    assert fold(events) == events[-1]["response"]


@law
@given(streams())
def test_replaying_a_response_gives_it_back(chunks: list[Json]) -> None:
    made = builder()
    response = [*fed(made, chunks), *made.finish(), made.end()][-1]["response"]
    again = ResponseBuilder(unfinished(response))
    events = [*replay(again, response), again.end()]
    check_stream(events)
    assert fold(events) == events[-1]["response"] == response


@law
@given(streams())
def test_what_is_sent_reads_as_what_was_made(chunks: list[Json]) -> None:
    made = builder()
    events = [*fed(made, chunks), *made.finish(), made.end()]
    assert [event for _, event in parse_sse(frames(events))] == events


# ── a stream and the same answer at once ─────────────────────────────────────────────────────────────────────────────


@st.composite
def completions(draw: st.DrawFn) -> tuple[Json, list[Json]]:
    """A completion, and chunks that say the same."""
    message: Json = {
        "role": "assistant",
        "reasoning_content": draw(st.none() | texts),
        "content": draw(st.none() | texts),
        "refusal": draw(st.none() | texts),
        "tool_calls": [
            {
                "id": f"c{number}",
                "type": "function",
                "function": {"name": draw(names), "arguments": draw(st.none() | texts)},
            }
            for number in range(draw(st.integers(0, 3)))
        ],
    }
    chunks = [
        chunk({key: piece})
        for key in ("reasoning_content", "content", "refusal")
        for piece in draw(pieces_of(message[key] or ""))
    ]
    waiting = []
    for index, tool_call in enumerate(message["tool_calls"]):
        function = tool_call["function"]
        chunks.append(calls(call(index, tool_call["id"], function["name"], draw(st.none() | st.just("")))))
        waiting += [(index, piece) for piece in draw(pieces_of(function["arguments"] or ""))]
    order = draw(st.permutations([index for index, _ in waiting]))
    queues = {index: [piece for other, piece in waiting if other == index] for index in order}
    chunks += [calls(call(index, arguments=queues[index].pop(0))) for index in order]
    reason = draw(finish_reasons)
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    completion = {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}
    return completion, [*chunks, ends(reason), {"choices": [], "usage": usage}]


@st.composite
def pieces_of(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@law
@given(completions())
def test_a_streamed_answer_is_the_answer_that_comes_at_once(given_: tuple[Json, list[Json]]) -> None:
    completion, chunks = given_
    made = builder()
    streamed = [*fed(made, chunks), *made.finish(), made.end()][-1]["response"]

    answer = decode_completion(orjson.dumps(completion))
    choice = answer.choices[0]
    made = builder()
    assert answer.usage is not None
    events = made.start()
    events += made.completion(
        chat_message_to_output_items(choice.message.model_dump()),
        finish_reason=choice.finish_reason,
        usage=answer.usage.model_dump(),
    )
    events.append(made.end())
    check_stream(events)
    at_once = events[-1]["response"]
    assert bare(streamed["output"]) == bare(at_once["output"])
    for key in ("status", "incomplete_details", "usage"):
        assert streamed[key] == at_once[key], key


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12)


@law
@given(
    events=st.lists(st.lists(lines, min_size=1, max_size=3).filter(any), max_size=5),
    between=st.lists(st.sampled_from([": ping", "event: x", "id: 1", "retry: 5", ":"]), max_size=5),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
    data=st.data(),
)
def test_any_cut_of_the_bytes_gives_the_same_data(
    events: list[list[str]], between: list[str], line_end: str, bom: bool, data: st.DataObject
) -> None:
    written = []
    for number, event in enumerate(events):
        written += [*between[number : number + 1], *(f"data: {line}" for line in event), ""]
    sent = ("\ufeff" * bom + "".join(line + line_end for line in written)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    decoder = SSEDecoder()
    got = [
        piece
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)
        for piece in decoder.feed(sent[start:end])
    ]
    assert got + decoder.flush() == ["\n".join(event).encode() for event in events]


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


json_objects = st.dictionaries(texts, json_values, max_size=3)


@law
@given(st.one_of(texts, json_values, json_values.map(lambda value: orjson.dumps(value).decode())))
def test_arguments_of_the_history_are_always_an_object_and_objects_are_left_alone(arguments: Any) -> None:
    whole = whole_arguments(arguments)
    assert isinstance(orjson.loads(whole), dict)
    assert whole_arguments(whole) == whole


@law
@given(json_objects)
def test_arguments_that_are_an_object_go_on_as_they_are_spelled(arguments: Json) -> None:
    spelled = json.dumps(arguments, indent=1)
    assert whole_arguments(spelled) == spelled
    assert orjson.loads(whole_arguments(arguments)) == arguments


# ── conversations, there and back ────────────────────────────────────────────────────────────────────────────────────


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """What chat can carry: a system text, then users, assistants with reasoning, text, refusals and calls, and the
    outputs of all calls behind them, in their order."""
    messages = [{"role": "system", "content": draw(some_text)}] if draw(st.booleans()) else []
    next_call = 0
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            messages.append({"role": "user", "content": draw(contents)})
            continue
        answer: Json = {"role": "assistant", "content": draw(st.none() | some_text)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(some_text)
        if draw(st.integers(0, 4)) == 0:
            answer["refusal"] = draw(some_text)
        made = [f"c{next_call + number}" for number in range(draw(st.integers(0, 2)))]
        next_call += len(made)
        if made:
            function = {"name": draw(names), "arguments": orjson.dumps(draw(json_objects)).decode()}
            answer["tool_calls"] = [{"id": id_, "type": "function", "function": function} for id_ in made]
        if not made:
            # A refusal alone is the content too: hardly a server reads it anywhere else.
            answer["content"] = answer["content"] or answer.get("refusal") or draw(some_text)
        # Two assistant messages in a row, the second of them calls alone, are one turn, which is one message.
        if messages and messages[-1]["role"] == "assistant":
            answer["content"] = answer["content"] or draw(some_text)
        messages.append(answer)
        messages += [{"role": "tool", "tool_call_id": id_, "content": draw(texts)} for id_ in made]
    return messages


chat_parts = st.one_of(
    some_text.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(["low", "high", "auto"]).map(
        lambda detail: {"type": "image_url", "image_url": {"url": "http://x", "detail": detail}}
    ),
    st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}),
    st.just({"type": "file", "file": {"filename": "a.pdf", "file_data": "AA=="}}),
    st.just({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}),
)
# Texts alone are written as a string.
contents = texts | st.lists(chat_parts, min_size=1, max_size=3).filter(
    lambda parts: any(part["type"] != "text" for part in parts)
)


@law
@given(conversations())
def test_chat_to_responses_and_back_loses_nothing(messages: list[Json]) -> None:
    instructions, items = messages_to_responses_input(messages)
    assert responses_input_to_messages(items, instructions) == messages


def normal(items: list[Json]) -> list[Json]:
    """Items in their normal form: without what chat has no word for (ids, statuses), with what may be left out."""
    kept = ("type", "role", "content", "summary", "call_id", "name", "arguments", "output")
    return [{"type": "message"} | {key: item[key] for key in kept if key in item} for item in items]


@law
@given(conversations())
def test_responses_to_chat_and_back_loses_nothing_but_ids(messages: list[Json]) -> None:
    instructions, items = messages_to_responses_input(messages)
    stored = input_items(items)
    assert messages_to_responses_input(responses_input_to_messages(stored, instructions)) == (instructions, items)
    assert normal(stored) == normal(items), "storing changed more than ids and statuses"


@law
@given(conversations())
def test_a_conversation_with_an_output_for_each_call_is_accepted(messages: list[Json]) -> None:
    instructions, items = messages_to_responses_input(messages)
    params = check_request({"model": "m", "input": items, "instructions": instructions})
    for history in range(len(items) + 1):
        check_input(input_items(params.input), history)


@law
@given(completions())
def test_an_answer_can_be_given_back_in_the_next_turn(given_: tuple[Json, list[Json]]) -> None:
    """output → input → chat: the message that the backend sees again is the one that it sent."""
    message = given_[0]["choices"][0]["message"]
    made = builder()
    made.start()
    made.completion(chat_message_to_output_items(message), finish_reason="stop", usage=None)
    output = made.end()["response"]["output"]
    answers = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "42"}
        for item in output
        if item["type"] == "function_call"
    ]
    messages = responses_input_to_messages([*output, *answers])
    seen = messages[0] if messages else {}
    for key in ("reasoning_content", "refusal"):
        assert (seen.get(key) or "") == (message[key] or ""), key
    said = message["content"] or (None if message["tool_calls"] else message["refusal"])
    assert (seen.get("content") or "") == (said or "")
    repeated = [(tool_call["id"], tool_call["function"]["name"]) for tool_call in seen.get("tool_calls", [])]
    assert repeated == [(tool_call["id"], tool_call["function"]["name"]) for tool_call in message["tool_calls"]]


# ── whatever comes in ────────────────────────────────────────────────────────────────────────────────────────────────

kinds = st.sampled_from(
    ["message", "function_call", "function_call_output", "reasoning", "item_reference", "web_search_call"]
)
part_kinds = st.sampled_from(
    ["input_text", "output_text", "refusal", "input_image", "input_file", "input_audio", "summary_text", "x"]
)


def nearly(keys: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Json]:
    """An object with some of these keys; each value is a fitting one, or anything."""
    return st.fixed_dictionaries({}, optional={key: st.one_of(fits, fits, json_values) for key, fits in keys.items()})


parts = nearly(
    {
        "type": part_kinds,
        "text": texts,
        "refusal": texts,
        "image_url": texts,
        "detail": texts,
        "file_data": texts,
        "filename": texts,
        "input_audio": json_values,
    }
)
part_lists = texts | st.lists(parts, max_size=2)
items_ = nearly(
    {
        "type": kinds,
        "role": st.sampled_from(["user", "assistant", "system", "developer"]),
        "content": part_lists,
        "summary": part_lists,
        "output": part_lists,
        "call_id": st.sampled_from(["c1", "c2"]),
        "name": names,
        "arguments": texts,
        "id": texts,
        "status": st.sampled_from(["completed", "incomplete"]),
    }
)
tools_ = nearly({"type": st.sampled_from(["function", "web_search", "custom"]), "name": names, "function": json_values})
choices = nearly(
    {
        "type": st.sampled_from(["function", "allowed_tools", "web_search"]),
        "name": names,
        "function": json_values,
        "mode": st.sampled_from(["auto", "required"]),
        "tools": st.lists(tools_, max_size=2),
    }
)
formats = nearly(
    {"type": st.sampled_from(["text", "json_object", "json_schema"]), "name": texts, "schema": json_values}
)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "input": texts | st.lists(items_, max_size=4),
    "tools": st.lists(tools_, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required"]) | choices,
    "text": nearly({"format": formats, "verbosity": texts}),
    "reasoning": nearly({"effort": texts, "summary": texts}),
    "metadata": st.dictionaries(texts, texts, max_size=2),
    "nomyo": nearly({"cache": st.booleans()}),
}


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    """A body with some parameters, which fit, or nearly, or not at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(json_values)
    body = {"model": "m", "input": draw(FITTING["input"])}
    for name in draw(st.lists(st.sampled_from(CreateParams.__struct_fields__), max_size=3, unique=True)):
        fits = draw(st.integers(0, 3))
        body[name] = draw(FITTING[name] if fits and name in FITTING else json_values)
    return body


@settings(law, max_examples=MANY or 300)
@given(bodies(), st.sampled_from([frozenset(), EVERY_PART]))
def test_whatever_the_body_is_it_is_understood_or_refused_by_name(body: Any, carries: frozenset[str]) -> None:
    try:
        params = check_request(body)
        items = input_items(params.input)
        check_input(items, 0)
        resource = response_resource(body, response_id="resp_1", created_at=1, status="in_progress")
        messages = responses_input_to_messages(items, params.instructions, carries=carries)
        orjson.dumps([chat_request(body, messages, model="m", stream=True), resource])
    except InvalidRequest as error:
        refusal = error
    else:
        return
    assert refusal.status == 400
    assert refusal.param or not isinstance(body, dict), f"no parameter is named: {refusal.message}"


@law
@given(st.binary(max_size=40) | json_values.map(orjson.dumps), st.sampled_from([decode_chunk, decode_completion]))
def test_whatever_a_backend_sends_is_decoded_or_refused(body: bytes, decode: Callable[[bytes], Any]) -> None:
    with contextlib.suppress(*DecodeError):
        decode(body)
