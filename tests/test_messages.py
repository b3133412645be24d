"""Input items become chat messages, and messages become items: tables, a row for each form that a client sends."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from core.errors import InvalidRequest, Unsupported
from requests.content import EVERY_PART
from requests.from_messages import messages_to_responses_input
from requests.messages import responses_input_to_messages, whole_arguments

Json = dict[str, Any]

NOTHING_BUT_TEXT: frozenset[str] = frozenset()


# ── items, and the messages they become ──────────────────────────────────────────────────────────────────────────────


def message(role: str, content: Any) -> Json:
    return {"type": "message", "role": role, "content": content}


def text(text: str) -> Json:
    return {"type": "input_text", "text": text}


def said(*texts: str) -> Json:
    return message("assistant", [{"type": "output_text", "text": text, "annotations": []} for text in texts])


def refused(*parts: Json) -> Json:
    return message("assistant", [*parts, {"type": "refusal", "refusal": "I cannot."}])


def thought(text: str) -> Json:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def call(call_id: str, name: str = "f", arguments: Any = "{}") -> Json:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id: str, output: Any = "42") -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def picture(url: str = "http://x/y.png", **more: Any) -> Json:
    return {"type": "input_image", "image_url": url, **more}


def chat(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content, **more}


def chat_text(text: str) -> Json:
    return {"type": "text", "text": text}


def chat_picture(url: str = "http://x/y.png", **more: Any) -> Json:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def called(*call_ids: str, name: str = "f", arguments: str = "{}") -> list[Json]:
    function = {"name": name, "arguments": arguments}
    return [{"id": call_id, "type": "function", "function": function} for call_id in call_ids]


def answered(call_id: str, content: Any = "42") -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


MESSAGE_FORMS: dict[str, tuple[list[Json], list[Json]]] = {
    "a string": ([message("user", "hi")], [chat("user", "hi")]),
    "one part is a string": ([message("user", [text("hi")])], [chat("user", "hi")]),
    "texts are one text": ([message("user", [text("a"), text("b")])], [chat("user", "a\nb")]),
    "texts around an image stay in their order": (
        [message("user", [text("a"), picture(), text("b")])],
        [chat("user", [chat_text("a"), chat_picture(), chat_text("b")])],
    ),
    "without a type": ([{"role": "user", "content": "hi"}], [chat("user", "hi")]),
    "with a null type": ([{"type": None, "role": "user", "content": "hi"}], [chat("user", "hi")]),
    "ids and statuses are no concern of chat": (
        [{**message("user", "hi"), "id": "msg_1", "status": "completed"}],
        [chat("user", "hi")],
    ),
    "any kind of text part": (
        [message("user", [{"type": kind, "text": kind} for kind in ("input_text", "output_text", "text")])],
        [chat("user", "input_text\noutput_text\ntext")],
    ),
    "an assistant's string": ([message("assistant", "yo")], [chat("assistant", "yo")]),
    "an assistant's part": ([said("yo")], [chat("assistant", "yo")]),
    "an assistant's parts": ([said("a", "b")], [chat("assistant", "a\nb")]),
    "an assistant that said nothing": ([said()], [chat("assistant", "")]),
    "no content": ([message("user", None)], [chat("user", "")]),
    "no parts": ([message("user", [])], [chat("user", "")]),
    "a turn after a turn": (
        [message("user", "1"), said("2"), message("user", "3")],
        [chat("user", "1"), chat("assistant", "2"), chat("user", "3")],
    ),
    "two texts of one turn": ([said("a"), said("b")], [chat("assistant", "a"), chat("assistant", "b")]),
}

SYSTEM_TEXTS: dict[str, tuple[list[Json], list[Json]]] = {
    "system": ([message("system", "s")], [chat("system", "s")]),
    "developer is system": ([message("developer", "s")], [chat("system", "s")]),
    "those at the start are one": (
        [message("system", "a"), message("developer", [text("b")]), message("user", "hi")],
        [chat("system", "a\n\nb"), chat("user", "hi")],
    ),
    "those at the start are one, in parts too": (
        [message("developer", "a"), message("developer", [text("b"), text("c")]), message("user", "hi")],
        [chat("system", "a\n\nb\n\nc"), chat("user", "hi")],
    ),
    "one with an image stays as it is": (
        [message("system", "a"), message("developer", [text("b"), picture()]), message("user", "hi")],
        [chat("system", "a"), chat("system", [chat_text("b"), chat_picture()]), chat("user", "hi")],
    ),
    "one in the middle stays there": (
        [message("user", "hi"), message("developer", "now in French"), message("user", "hi")],
        [chat("user", "hi"), chat("system", "now in French"), chat("user", "hi")],
    ),
}

CONTENT_PARTS: dict[str, tuple[Json, Json]] = {
    "an image by URL": (picture(), chat_picture()),
    "an image by data URL": (picture("data:image/png;base64,AA=="), chat_picture("data:image/png;base64,AA==")),
    "detail low": (picture(detail="low"), chat_picture(detail="low")),
    "detail auto": (picture(detail="auto"), chat_picture(detail="auto")),
    "detail original, which chat calls high": (picture(detail="original"), chat_picture(detail="high")),
    "detail null": (picture(detail=None), chat_picture()),
    "a file": (
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
    ),
    "a file without a name": (
        {"type": "input_file", "file_data": "AA=="},
        {"type": "file", "file": {"filename": "file", "file_data": "AA=="}},
    ),
    "audio": (
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
    ),
}

REASONING: dict[str, tuple[list[Json], list[Json]]] = {
    "of a text": ([thought("Hm."), said("a")], [chat("assistant", "a", reasoning_content="Hm.")]),
    "of a call": (
        [thought("Hm."), call("c1"), output("c1")],
        [chat("assistant", None, reasoning_content="Hm.", tool_calls=called("c1")), answered("c1")],
    ),
    "of a text and a call": (
        [thought("Hm."), said("a"), call("c1"), output("c1")],
        [chat("assistant", "a", reasoning_content="Hm.", tool_calls=called("c1")), answered("c1")],
    ),
    "only its summary": (
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Sum."}]}, said("a")],
        [chat("assistant", "a", reasoning_content="Sum.")],
    ),
    "content before summary": (
        [{**thought("Hm."), "summary": [{"type": "summary_text", "text": "Sum."}]}, said("a")],
        [chat("assistant", "a", reasoning_content="Hm.")],
    ),
    "in parts": (
        [
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "A."}, {"type": "summary_text", "text": "B."}],
            },
            said("a"),
        ],
        [chat("assistant", "a", reasoning_content="A.\n\nB.")],
    ),
    "in several items": (
        [thought("A."), thought("B."), said("a")],
        [chat("assistant", "a", reasoning_content="A.\n\nB.")],
    ),
    "that says nothing": ([{"type": "reasoning"}, said("a")], [chat("assistant", "a")]),
    "only in a form that is OpenAI's own": (
        [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, said("a")],
        [chat("assistant", "a")],
    ),
    "that nothing followed": (
        [thought("Hm."), message("user", "go on")],
        [chat("assistant", "", reasoning_content="Hm."), chat("user", "go on")],
    ),
    "that nothing followed, at the end": ([thought("Hm.")], [chat("assistant", "", reasoning_content="Hm.")]),
    "between two calls of one turn": (
        [call("c1"), thought("Hm."), call("c2"), output("c1"), output("c2")],
        [
            chat("assistant", None, tool_calls=called("c1")),
            answered("c1"),
            chat("assistant", None, reasoning_content="Hm.", tool_calls=called("c2")),
            answered("c2"),
        ],
    ),
}

REFUSALS: dict[str, tuple[list[Json], list[Json]]] = {
    "alone": ([refused()], [chat("assistant", "I cannot.", refusal="I cannot.")]),
    "behind a text": (
        [refused({"type": "output_text", "text": "Well."})],
        [chat("assistant", "Well.", refusal="I cannot.")],
    ),
    "twice": (
        [refused({"type": "refusal", "refusal": "No."})],
        [chat("assistant", "No.\n\nI cannot.", refusal="No.\n\nI cannot.")],
    ),
    "around a call": (
        [refused(), call("c1"), refused(), output("c1")],
        [
            chat("assistant", None, refusal="I cannot.\n\nI cannot.", tool_calls=called("c1")),
            answered("c1"),
        ],
    ),
}

CALLS: dict[str, tuple[list[Json], list[Json]]] = {
    "a call and its output": (
        [call("c1"), output("c1")],
        [chat("assistant", None, tool_calls=called("c1")), answered("c1")],
    ),
    "text and several calls are one message": (
        [said("Look:"), call("c1"), call("c2"), output("c1"), output("c2")],
        [chat("assistant", "Look:", tool_calls=called("c1", "c2")), answered("c1"), answered("c2")],
    ),
    "text behind a call joins its message": (
        [said("a"), call("c1"), said("b"), output("c1")],
        [chat("assistant", "a\n\nb", tool_calls=called("c1")), answered("c1")],
    ),
    "texts behind a call join it": (
        [said("a"), call("c1"), said("b", "c"), output("c1")],
        [chat("assistant", "a\n\nb\nc", tool_calls=called("c1")), answered("c1")],
    ),
    "an id that comes again gets a name of its own, and its own output": (
        [
            call("c1"),
            output("c1", "a"),
            message("user", "hi"),
            call("c1"),
            call("c1"),
            output("c1", "b"),
            output("c1", "c"),
        ],
        [
            chat("assistant", None, tool_calls=called("c1")),
            answered("c1", "a"),
            chat("user", "hi"),
            chat("assistant", None, tool_calls=called("c1_2", "c1_3")),
            answered("c1_2", "b"),
            answered("c1_3", "c"),
        ],
    ),
    "an output that names its function answers the oldest call of it": (
        [
            call("c1", "g"),
            call("c2"),
            call("c3"),
            {"type": "function_call_output", "name": "f", "output": "a"},
            output("c1", "b"),
            output("c3", "c"),
        ],
        [
            chat("assistant", None, tool_calls=[*called("c1", name="g"), *called("c2", "c3")]),
            answered("c2", "a"),
            answered("c1", "b"),
            answered("c3", "c"),
        ],
    ),
    "what a function gives that nobody called": (
        [message("user", "hi"), {"type": "function_call_output", "name": "f", "output": "42"}],
        [chat("user", "hi"), chat("user", "[output of f: 42]")],
    ),
    "a hosted search, which has no output, is described": (
        [{"type": "tool_search_call", "execution": "server", "call_id": "c1", "arguments": {"query": "rain"}}],
        [chat("assistant", '[tool_search_call: {"execution":"server","arguments":{"query":"rain"}}]')],
    ),
    "a late output lands behind its call": (
        [call("c1"), message("user", "and?"), output("c1")],
        [chat("assistant", None, tool_calls=called("c1")), answered("c1"), chat("user", "and?")],
    ),
    "outputs in another order": (
        [call("c1"), call("c2"), output("c2", "b"), output("c1", "a")],
        [chat("assistant", None, tool_calls=called("c1", "c2")), answered("c2", "b"), answered("c1", "a")],
    ),
    "one turn after another": (
        [call("c1"), output("c1"), call("c2"), output("c2")],
        [
            chat("assistant", None, tool_calls=called("c1")),
            answered("c1"),
            chat("assistant", None, tool_calls=called("c2")),
            answered("c2"),
        ],
    ),
    "a late output of an earlier turn": (
        [call("c1"), call("c2"), output("c2"), said("so far"), output("c1")],
        [
            chat("assistant", None, tool_calls=called("c1", "c2")),
            answered("c2"),
            answered("c1"),
            chat("assistant", "so far"),
        ],
    ),
    "arguments are left as they came": (
        [call("c1", "g", '{ "x": 1}'), output("c1")],
        [chat("assistant", None, tool_calls=called("c1", name="g", arguments='{ "x": 1}')), answered("c1")],
    ),
    "arguments that were cut off": (
        [call("c1", "g", '{"x": '), output("c1")],
        [
            chat("assistant", None, tool_calls=called("c1", name="g", arguments='{"arguments":"{\\"x\\": "}')),
            answered("c1"),
        ],
    ),
}

BEHIND = "(The attachments of this output follow in the next user message.)"
OUTPUTS: dict[str, tuple[Any, list[Json]]] = {
    "text": ("42", [answered("c1", "42")]),
    "no text": ("", [answered("c1", "")]),
    "a text part": ([text("42")], [answered("c1", "42")]),
    "text parts": ([text("4"), text("2")], [answered("c1", "4\n2")]),
    "no parts": ([], [answered("c1", "")]),
    "an object, which some clients send": ({"x": 1}, [answered("c1", '{"x":1}')]),
    "an image, which a tool message cannot hold": (
        [picture()],
        [answered("c1", BEHIND), chat("user", [chat_picture()])],
    ),
    "text and an image": (
        [text("see"), picture()],
        [answered("c1", f"see\n{BEHIND}"), chat("user", [chat_picture()])],
    ),
    "texts around an image, which stay in their order": (
        [text("see"), text("this:"), picture(), text("and"), picture()],
        [
            answered("c1", f"see\nthis:\n{BEHIND}"),
            chat("user", [chat_picture(), chat_text("and"), chat_picture()]),
        ],
    ),
}


@pytest.mark.parametrize(("items", "messages"), MESSAGE_FORMS.values(), ids=MESSAGE_FORMS)
def test_a_message_of_any_form_becomes_a_chat_message(items: list[Json], messages: list[Json]) -> None:
    assert responses_input_to_messages(items) == messages


@pytest.mark.parametrize(("items", "messages"), SYSTEM_TEXTS.values(), ids=SYSTEM_TEXTS)
def test_system_texts_at_the_start_become_one(items: list[Json], messages: list[Json]) -> None:
    assert responses_input_to_messages(items) == messages


@pytest.mark.parametrize(("part", "expected"), CONTENT_PARTS.values(), ids=CONTENT_PARTS)
def test_a_content_part_becomes_its_chat_part(part: Json, expected: Json) -> None:
    (given,) = responses_input_to_messages([message("user", [text("see"), part])])
    assert given == chat("user", [chat_text("see"), expected])


@pytest.mark.parametrize(("items", "messages"), REASONING.values(), ids=REASONING)
def test_reasoning_goes_with_the_answer_that_it_led_to(items: list[Json], messages: list[Json]) -> None:
    assert responses_input_to_messages(items) == messages


@pytest.mark.parametrize(("items", "messages"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_stays_a_refusal(items: list[Json], messages: list[Json]) -> None:
    assert responses_input_to_messages(items) == messages


@pytest.mark.parametrize(("items", "messages"), CALLS.values(), ids=CALLS)
def test_calls_of_a_turn_are_one_message_and_their_outputs_follow_it(items: list[Json], messages: list[Json]) -> None:
    assert responses_input_to_messages(items) == messages


@pytest.mark.parametrize(("given", "messages"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_of_any_form_becomes_a_tool_message(given: Any, messages: list[Json]) -> None:
    _, *behind = responses_input_to_messages([call("c1"), output("c1", given)])
    assert behind == messages


def test_images_of_several_outputs_follow_the_last_of_them() -> None:
    items = [call("c1"), call("c2"), output("c1", [picture("http://1")]), output("c2", [picture("http://2")])]
    messages = responses_input_to_messages([*items, message("user", "well?")])
    assert [given["role"] for given in messages] == ["assistant", "tool", "tool", "user", "user"], "the roles"
    assert messages[3]["content"] == [chat_picture("http://1"), chat_picture("http://2")]


def test_a_string_is_a_message_of_the_user() -> None:
    assert responses_input_to_messages("hello") == [chat("user", "hello")]
    assert responses_input_to_messages("") == [chat("user", "")], "the empty one too"


def test_instructions_come_first_and_join_the_leading_system_text() -> None:
    assert responses_input_to_messages("hi", "be brief") == [chat("system", "be brief"), chat("user", "hi")]
    messages = responses_input_to_messages([message("developer", "and kind"), message("user", "hi")], "be brief")
    assert messages == [chat("system", "be brief\n\nand kind"), chat("user", "hi")]


def test_no_instructions_are_no_message() -> None:
    assert responses_input_to_messages("hi", "") == responses_input_to_messages("hi", None) == [chat("user", "hi")]


def test_reasoning_is_given_under_the_key_that_the_backend_reads() -> None:
    messages = responses_input_to_messages([thought("Hm."), said("a")], reasoning_key="reasoning")
    assert messages == [chat("assistant", "a", reasoning="Hm.")]


def test_the_input_is_left_as_it_was() -> None:
    items = [message("developer", "a"), message("developer", "b"), thought("Hm."), said("c"), call("c1"), output("c1")]
    before = orjson.dumps(items)
    responses_input_to_messages(items)
    assert orjson.dumps(items) == before, "the items were changed: they are stored after this"


# ── files for backends that take none ────────────────────────────────────────────────────────────────────────────────


def in_base64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


TEXT_FILES = {
    "a data URL in base64": f"data:text/plain;base64,{in_base64('Grüße')}",
    "a data URL with a charset": f"data:text/plain;charset=utf-8;base64,{in_base64('Grüße')}",
    "a data URL in percents": "data:text/plain,Gr%C3%BC%C3%9Fe",
    "plain base64": in_base64("Grüße"),
}


@pytest.mark.parametrize("data", TEXT_FILES.values(), ids=TEXT_FILES)
def test_a_backend_without_files_is_given_a_text_file_as_text(data: str) -> None:
    part = {"type": "input_file", "filename": "a.txt", "file_data": data}
    messages = responses_input_to_messages([message("user", [part])], carries=NOTHING_BUT_TEXT)
    assert messages == [chat("user", "a.txt:\nGrüße")]


NOT_TEXT_FILES = {
    "bytes that are no UTF-8": in_base64(b"\x89PNG\xff"),
    "bytes with a zero": in_base64(b"a\0b"),
    "no base64": "!!",
    "no base64, and not even ASCII": "Grüße",
    "a text, which is no data URL for its comma": "Hello, world",
    "a broken data URL": "data:text/plain;base64,!!",
    "a data URL that is not even ASCII": "data:text/plain;base64,Grüße",
}


@pytest.mark.parametrize("data", NOT_TEXT_FILES.values(), ids=NOT_TEXT_FILES)
def test_a_backend_without_files_is_not_given_any_other(data: str) -> None:
    part = {"type": "input_file", "filename": "a.txt", "file_data": data}
    with pytest.raises(Unsupported) as raised:
        responses_input_to_messages([message("user", [part])], carries=NOTHING_BUT_TEXT)
    assert raised.value.param == "input[0].content[0].file_data"


# ── what cannot be carried is named ──────────────────────────────────────────────────────────────────────────────────

AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
SEEN = message("user", "hi")

# Items, what the backend carries besides text, and the parameter that is named.
UNSUPPORTED: dict[str, tuple[list[Json], frozenset[str], str]] = {
    "an image": ([message("user", [picture()])], NOTHING_BUT_TEXT, "input[0].content[0].type"),
    "audio": ([SEEN, message("user", [text("hear"), AUDIO])], frozenset({"image"}), "input[1].content[1].type"),
    "an image in an output": (
        [call("c1"), output("c1", [text("see"), picture()])],
        NOTHING_BUT_TEXT,
        "input[1].output[1].type",
    ),
    "an image by id": (
        [message("user", [{"type": "input_image", "file_id": "file_1"}])],
        EVERY_PART,
        "input[0].content[0].file_id",
    ),
    "a file by id": (
        [message("user", [{"type": "input_file", "file_id": "file_1"}])],
        EVERY_PART,
        "input[0].content[0].file_id",
    ),
    "a file by URL": (
        [message("user", [{"type": "input_file", "file_url": "http://x/y.pdf"}])],
        EVERY_PART,
        "input[0].content[0].file_url",
    ),
    "a video": (
        [message("user", [{"type": "input_video", "video_url": "http://x"}])],
        EVERY_PART,
        "input[0].content[0].type",
    ),
    "a refusal of the user": (
        [message("user", [{"type": "refusal", "refusal": "no"}])],
        EVERY_PART,
        "input[0].content[0].type",
    ),
}


@pytest.mark.parametrize(("items", "carries", "param"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_a_backend_cannot_be_given_is_named(items: list[Json], carries: frozenset[str], param: str) -> None:
    with pytest.raises(Unsupported) as raised:
        responses_input_to_messages(items, carries=carries)
    assert raised.value.param == param
    assert (raised.value.status, raised.value.code) == (400, "unsupported_parameter")


@pytest.mark.parametrize(("items", "carries", "param"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_places_are_counted_from_the_clients_own_input(items: list[Json], carries: frozenset[str], param: str) -> None:
    history = [SEEN, said("yo")]
    with pytest.raises(Unsupported) as raised:
        responses_input_to_messages([*history, *items], carries=carries, history=len(history))
    assert raised.value.param == param


@pytest.mark.parametrize(("items", "carries", "param"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_an_earlier_turn_held_is_named_by_its_response(
    items: list[Json], carries: frozenset[str], param: str
) -> None:
    with pytest.raises(Unsupported) as raised:
        responses_input_to_messages([*items, message("user", "go on")], carries=carries, history=len(items))
    assert raised.value.param == "previous_response_id"


def test_an_output_without_a_call_is_named() -> None:
    with pytest.raises(InvalidRequest, match="c9") as raised:
        responses_input_to_messages([SEEN, output("c9")])
    assert (raised.value.param or "").startswith("input[1]"), f"param is {raised.value.param!r}"


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────

ARGUMENTS: dict[str, tuple[Any, str]] = {
    "JSON": ('{"x": 1}', '{"x": 1}'),
    "nothing": ("", "{}"),
    "space": (" \n", "{}"),
    "null": (None, "{}"),
    "an object": ({"x": 1}, '{"x":1}'),
    "an empty object": ({}, "{}"),
    "cut off": ('{"x": "a', '{"arguments":"{\\"x\\": \\"a"}'),
    "no JSON": ("x=1", '{"arguments":"x=1"}'),
    "two objects": ("{}{}", '{"arguments":"{}{}"}'),
    "JSON null": ("null", "{}"),
    "a list": ('["a"]', '{"arguments":["a"]}'),
    "a list that is no text": (["a"], '{"arguments":["a"]}'),
    "a text": ('"a"', '{"arguments":"a"}'),
    "a number": ("0", '{"arguments":0}'),
    "false": (False, '{"arguments":false}'),
    "a large integer": ({"x": 2**70}, f'{{"x":{2**70}}}'),
    "a large integer in a list": (f"[{2**70}]", f'{{"arguments":[{2**70}]}}'),
    "half an emoji": (r'{"x": "\ud83d!"}', r'{"x": "\ufffd!"}'),
    "half an emoji, and no JSON": (r'{"x": "\ud83d!', r'{"arguments":"{\"x\": \"\\ufffd!"}'),
}


@pytest.mark.parametrize(("given", "whole"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_the_history_are_always_json(given: Any, whole: str) -> None:
    assert whole_arguments(given) == whole


# ── messages, and the items they become ──────────────────────────────────────────────────────────────────────────────


def out(text: str) -> Json:
    return {"type": "output_text", "text": text}


TO_ITEMS: dict[str, tuple[list[Json], str | None, list[Json]]] = {
    "nothing": ([], None, []),
    "a user": ([chat("user", "hi")], None, [{"role": "user", "content": [text("hi")]}]),
    "a leading system text is the instructions": (
        [chat("system", "s"), chat("user", "hi")],
        "s",
        [{"role": "user", "content": [text("hi")]}],
    ),
    "a leading developer text too": ([chat("developer", "s")], "s", []),
    "a system text in parts stays an item": (
        [chat("system", [chat_text("s")])],
        None,
        [{"role": "system", "content": [text("s")]}],
    ),
    "a later system text stays an item": (
        [chat("user", "hi"), chat("system", "s")],
        None,
        [{"role": "user", "content": [text("hi")]}, {"role": "system", "content": [text("s")]}],
    ),
    "an assistant": ([chat("assistant", "yo")], None, [{"role": "assistant", "content": [out("yo")]}]),
    "an assistant that called": (
        [chat("assistant", None, tool_calls=called("c1", "c2")), answered("c1"), answered("c2")],
        None,
        [call("c1"), call("c2"), output("c1"), output("c2")],
    ),
    "an assistant that thought, spoke and called": (
        [chat("assistant", "yo", reasoning_content="Hm.", tool_calls=called("c1"))],
        None,
        [thought("Hm."), {"role": "assistant", "content": [out("yo")]}, call("c1")],
    ),
    "reasoning under its other key": (
        [chat("assistant", "yo", reasoning="Hm.")],
        None,
        [thought("Hm."), {"role": "assistant", "content": [out("yo")]}],
    ),
    "an assistant that refused": (
        [chat("assistant", None, refusal="No.")],
        None,
        [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
    ),
    "an assistant's empty text beside a call": (
        [chat("assistant", "", tool_calls=called("c1"))],
        None,
        [call("c1")],
    ),
    "an image": (
        [chat("user", [chat_text("see"), chat_picture(detail="low")])],
        None,
        [{"role": "user", "content": [text("see"), picture(detail="low")]}],
    ),
    "a file": (
        [chat("user", [{"type": "file", "file": {"filename": "a", "file_data": "AA=="}}])],
        None,
        [{"role": "user", "content": [{"type": "input_file", "filename": "a", "file_data": "AA=="}]}],
    ),
    "audio": ([chat("user", [AUDIO])], None, [{"role": "user", "content": [AUDIO]}]),
    "a tool message in parts": (
        [chat("assistant", None, tool_calls=called("c1")), answered("c1", [chat_text("4"), chat_text("2")])],
        None,
        [call("c1"), output("c1", [text("4"), text("2")])],
    ),
    "arguments that were cut off": (
        [chat("assistant", None, tool_calls=called("c1", arguments="{"))],
        None,
        [call("c1", arguments='{"arguments":"{"}')],
    ),
}


@pytest.mark.parametrize(("messages", "instructions", "items"), TO_ITEMS.values(), ids=TO_ITEMS)
def test_messages_become_instructions_and_items(
    messages: list[Json], instructions: str | None, items: list[Json]
) -> None:
    assert messages_to_responses_input(messages) == (instructions, items)


# A part, and the key of it that the client must change.
REFERENCES: dict[str, tuple[Json, str]] = {
    "a file by id": ({"type": "input_file", "file_id": "file_1"}, "file_id"),
    "a file by URL": ({"type": "input_file", "file_url": "http://x/y.pdf"}, "file_url"),
    "a file by nothing": ({"type": "input_file", "filename": "y.pdf"}, "file_data"),
    "a file by id, its data null": ({"type": "input_file", "file_data": None, "file_id": "file_1"}, "file_id"),
    "an image by id": ({"type": "input_image", "file_id": "file_1"}, "file_id"),
    "an image by nothing": ({"type": "input_image"}, "image_url"),
}


@pytest.mark.parametrize(("part", "key"), REFERENCES.values(), ids=REFERENCES)
def test_a_reference_that_no_chat_backend_can_follow_is_named_as_it_was_sent(part: Json, key: str) -> None:
    for items, place in (
        ([message("user", [part])], "input[0].content[0]"),
        ([call("c1"), output("c1", [text("see"), part])], "input[1].output[1]"),
    ):
        with pytest.raises(Unsupported) as raised:
            responses_input_to_messages(items)
        assert raised.value.param == f"{place}.{key}"
