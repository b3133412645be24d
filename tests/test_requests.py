"""A request is checked, its input becomes items, and it becomes a chat request: each error names its parameter."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest, Unsupported
from requests.chat_params import EFFORTS, NOT_PASSED_ON, chat_request, nearest_effort
from requests.items import check_input, input_items, without_cut_calls
from requests.params import CreateParams, check_request

Json = dict[str, Any]


def body(**more: Any) -> Json:
    return {"model": "m", "input": "hi", **more}


def call(call_id: str, **more: Any) -> Json:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}", **more}


def output(call_id: str) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": "42"}


USER = {"type": "message", "role": "user", "content": "hi"}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}


# ── check_request: what is wrong is named ────────────────────────────────────────────────────────────────────────────

# For each parameter: values that are of the wrong type or out of its range.
WRONG_VALUES: dict[str, list[Any]] = {
    "model": [1, "", ["m"]],
    "input": [1, True, {"role": "user"}],
    "instructions": [1, ["be brief"]],
    "previous_response_id": [1, {}],
    "include": ["reasoning.encrypted_content", 1],
    "tools": [{}, "f"],
    "tool_choice": [1, ["auto"], "sometimes"],
    "parallel_tool_calls": ["true", 1],
    "max_tool_calls": [0, "1", 1.5],
    "metadata": ["a", ["a"], {"a": 1}, {"a": None}, {"a": {}}, {str(n): "" for n in range(17)}],
    "text": ["json", []],
    "reasoning": ["low", []],
    "temperature": [-0.1, 2.1, "1", True],
    "top_p": [-0.1, 1.1, "1"],
    "presence_penalty": [-2.1, 2.1, "0"],
    "frequency_penalty": [-2.1, 2.1, "0"],
    "top_logprobs": [-1, 21, "1", 0.5],
    "max_output_tokens": [0, -1, "16", 0.5, True],
    "stream": ["true", 1],
    "stream_options": [True, []],
    "background": ["true", 1],
    "store": ["false", 0],
    "truncation": ["sometimes", 1],
    "service_tier": [1, []],
    "user": [1, {}],
    "safety_identifier": [1],
    "prompt_cache_key": [1],
    "prompt_cache_retention": ["1h", 24, {}],
    "conversation": [1, []],
    "prompt": ["pmpt_1", []],
    "context_management": [{}, "auto"],
    "nomyo": [True, "cache"],
}
# The same, deeper inside.
WRONG_PLACES: list[tuple[str, Json]] = [
    ("include[1]", {"include": ["a", 1]}),
    ("input[0]", {"input": ["hi"]}),
    ("context_management[0]", {"context_management": ["compaction"]}),
    ("context_management[0]", {"context_management": [{"compact_threshold": 5}]}),
    ("context_management[0].type", {"context_management": [{"type": 1}]}),
    *[
        ("context_management[1].compact_threshold", {"context_management": [{"type": "compaction"}, wrong]})
        for threshold in (0, -1, 0.5, "5", True)
        for wrong in [{"type": "compaction", "compact_threshold": threshold}]
    ],
    ("stream_options.include_obfuscation", {"stream_options": {"include_obfuscation": "true"}}),
    ("input[1].type", {"input": [USER, {"type": ["message"], "role": "user"}]}),
    ("input[0].role", {"input": [{"type": "message", "content": "hi"}]}),
    ("input[0].role", {"input": [{"role": "tool", "content": "hi"}]}),
    ("input[0].role", {"input": [{"role": ["user"], "content": "hi"}]}),
    ("input[0].content", {"input": [{"role": "user", "content": 5}]}),
    ("input[0].content", {"input": [{"role": "user", "content": {"type": "input_text"}}]}),
    ("input[0].content[1]", {"input": [{"role": "user", "content": [{"type": "input_text"}, "hi"]}]}),
    ("input[0].content[0]", {"input": [{"role": "user", "content": [{"text": "hi"}]}]}),
    ("input[0].content[0].text", {"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}),
    (
        "input[0].content[0].refusal",
        {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": 5}]}]},
    ),
    ("input[0].id", {"input": [{**USER, "id": 5}]}),
    ("input[0].call_id", {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}),
    ("input[0].call_id", {"input": [call("")]}),
    ("input[0].name", {"input": [{"type": "function_call", "call_id": "c1", "arguments": "{}"}]}),
    ("input[1].call_id", {"input": [call("c1"), {"type": "function_call_output", "output": "42"}]}),
    ("input[1].output[0]", {"input": [call("c1"), {**output("c1"), "output": ["42"]}]}),
    ("input[0].summary", {"input": [{"type": "reasoning", "summary": "Hm."}]}),
    ("input[0].content", {"input": [{"type": "reasoning", "summary": [], "content": "Hm."}]}),
    ("input[0].summary[0]", {"input": [{"type": "reasoning", "summary": ["Hm."]}]}),
    ("tools[1].type", {"tools": [FUNCTION, {"name": "g"}]}),
    ("tools[0].name", {"tools": [{"type": "function"}]}),
    ("tool_choice.type", {"tools": [FUNCTION], "tool_choice": {"name": "f"}}),
    ("text.format", {"text": {"format": "json"}}),
    ("text.format.type", {"text": {"format": {"type": "grammar"}}}),
    ("text.format.name", {"text": {"format": {"type": "json_schema", "schema": {}}}}),
    ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "answer"}}}),
    ("text.format.schema", {"text": {"format": {**SCHEMA, "schema": "object"}}}),
    ("text.verbosity", {"text": {"verbosity": 1}}),
    ("reasoning.effort", {"reasoning": {"effort": 1}}),
    ("reasoning.summary", {"reasoning": {"summary": True}}),
    ("metadata." + "k" * 64, {"metadata": {"k" * 65: ""}}),
    ("metadata.k", {"metadata": {"k": "v" * 513}}),
    ("nomyo.cahce", {"nomyo": {"cahce": True}}),
    ("text.acme", {"text": {"verbosity": "low", "acme": 1}}),
    ("text.response_format", {"text": {"response_format": {"type": "json_object"}}}),
    ("stream_options", {"stream_options": {"include_obfuscation": False}}),
    ("stream_options", {"stream_options": {"include_usage": True, "include_obfuscation": True}, "stream": False}),
    ("nomyo.cache", {"nomyo": {"cache": "yes"}}),
]


def param_of(given: Any) -> str | None:
    """The parameter in the error that the request is refused with."""
    with pytest.raises(InvalidRequest) as raised:
        check_request(given)
    assert raised.value.status == 400
    assert raised.value.message, "an error without words"
    return raised.value.param


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_VALUES.items() for value in values]
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    assert param_of(body(**{name: value})) == name


@pytest.mark.parametrize(("param", "more"), WRONG_PLACES, ids=[param for param, _ in WRONG_PLACES])
def test_a_wrong_value_inside_is_named_by_its_place(param: str, more: Json) -> None:
    assert param_of(body(**more)) == param


def test_every_parameter_that_is_checked_is_tried_here() -> None:
    assert WRONG_VALUES.keys() == set(CreateParams.__struct_fields__)


@pytest.mark.parametrize("given", [None, [], "hi", 5, True])
def test_a_body_that_is_no_object_is_refused(given: Any) -> None:
    assert param_of(given) is None
    with pytest.raises(InvalidRequest, match="JSON object"):
        check_request(given)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"input": "hi"}, "model"),
        ({"model": None, "input": "hi"}, "model"),
        ({"model": "m"}, "input"),
        ({"model": "m", "input": None}, "input"),
    ],
)
def test_a_missing_parameter_is_named(given: Json, missing: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_request(given)
    assert (raised.value.param, raised.value.code) == (missing, "missing_required_parameter")


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("context_management[0].type", {"context_management": [{"type": "clear_tool_uses"}]}),
    ],
)
def test_what_the_router_does_not_have_is_named(param: str, more: Json) -> None:
    with pytest.raises(Unsupported) as raised:
        check_request(body(**more))
    assert (raised.value.param, raised.value.code) == (param, "unsupported_parameter")


def test_a_background_response_cannot_be_without_its_row() -> None:
    assert param_of(body(background=True, store=False)) == "store"
    check_request(body(background=True, store=True))
    check_request(body(background=True))
    check_request(body(background=False, store=False))


# ── check_request: what is tolerated ─────────────────────────────────────────────────────────────────────────────────

TOLERATED: dict[str, Json] = {
    "null for everything": {**dict.fromkeys(CreateParams.__struct_fields__), **body()},
    "nulls inside": body(text={"format": None, "verbosity": None}, reasoning={"effort": None, "summary": None}),
    "an empty include": body(include=[]),
    "empty tools": body(tools=[], tool_choice="auto"),
    "empty objects": body(text={}, reasoning={}, metadata={}, stream_options={}, nomyo={}),
    "an empty context_management": body(context_management=[]),
    "an empty input": body(input=""),
    "no items": body(input=[]),
    "no input, but a response to continue": {"model": "m", "previous_response_id": "resp_1"},
    "unknown keys": body(seed=1, top_k=40, chat_template_kwargs={"thinking": False}),
    "the usage that is there anyway": body(stream_options={"include_usage": True}),
    "unknown keys inside": body(reasoning={"effort": "low", "mode": "x"}, stream=True, stream_options={"x": 1}),
    "unknown words": body(include=["x"], service_tier="ultrafast", reasoning={"effort": "max"}),
    "the ends of each range": body(
        temperature=2, top_p=0, presence_penalty=-2, frequency_penalty=2, top_logprobs=20, max_output_tokens=1
    ),
    "the other ends": body(temperature=0, top_p=1.0, presence_penalty=2.0, top_logprobs=0, max_tool_calls=1),
    "as much metadata as there may be": body(metadata={f"{n:064}": "v" * 512 for n in range(16)}),
    "a message without a type": body(input=[{"role": "user", "content": "hi"}]),
    "a message without content": body(input=[{"role": "assistant"}]),
    "a part without text": body(input=[{"role": "user", "content": [{"type": "input_text", "text": None}]}]),
    "reasoning without content": body(input=[{"type": "reasoning", "summary": [], "content": None}]),
    "items that only a native backend knows": body(input=[{"type": "web_search_call", "id": "ws_1"}]),
    "tools that only a native backend knows": body(tools=[{"type": "web_search"}], tool_choice={"type": "web_search"}),
    "every format": body(text={"format": {"type": "json_object"}}),
    "each retention": body(prompt_cache_retention="in_memory"),
    "an older word for it": body(prompt_cache_retention="in-memory"),
    "a schema": body(text={"format": SCHEMA, "verbosity": "low"}),
}


@pytest.mark.parametrize("given", TOLERATED.values(), ids=TOLERATED)
def test_what_clients_send_is_tolerated(given: Json) -> None:
    assert check_request(given).model == "m"


# ── input_items ──────────────────────────────────────────────────────────────────────────────────────────────────────


def without_ids(items: list[Json]) -> list[Json]:
    assert all(isinstance(item["id"], str) and item["id"] for item in items), f"an item has no id: {items}"
    return [{key: value for key, value in item.items() if key != "id"} for item in items]


def whole(role: str, *parts: Json) -> Json:
    return {"type": "message", "status": "completed", "role": role, "content": list(parts)}


ITEMS: dict[str, tuple[Any, list[Json]]] = {
    "nothing": (None, []),
    "a string": ("hi", [whole("user", {"type": "input_text", "text": "hi"})]),
    "a message without a type": (
        [{"role": "user", "content": "hi"}],
        [whole("user", {"type": "input_text", "text": "hi"})],
    ),
    "a developer's string": (
        [{"role": "developer", "content": "hi"}],
        [whole("developer", {"type": "input_text", "text": "hi"})],
    ),
    "an assistant's string": (
        [{"role": "assistant", "content": "yo"}],
        [whole("assistant", {"type": "output_text", "text": "yo", "annotations": []})],
    ),
    "parts stay as they are": (
        [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}],
        [whole("user", {"type": "input_image", "image_url": "u"})],
    ),
    "calls and outputs": (
        [call("c1"), output("c1")],
        [{**call("c1"), "status": "completed"}, {**output("c1"), "status": "completed"}],
    ),
    "a status that is given": ([call("c1", status="incomplete")], [call("c1", status="incomplete")]),
    "reasoning has no status": ([{"type": "reasoning", "summary": []}], [{"type": "reasoning", "summary": []}]),
}


@pytest.mark.parametrize(("given", "expected"), ITEMS.values(), ids=ITEMS)
def test_input_becomes_whole_items(given: Any, expected: list[Json]) -> None:
    assert without_ids(input_items(given)) == expected


def test_items_keep_their_ids_and_get_new_ones_of_their_kind() -> None:
    kinds = ["message", "function_call", "function_call_output", "reasoning", "compaction", "web_search_call"]
    items = input_items([{"type": kind, "role": "user", "content": []} for kind in kinds])
    prefixes = [item["id"].rsplit("_", 1)[0] for item in items]
    assert prefixes == ["msg", "fc", "fco", "rs", "cmp", "ws"]
    assert len({item["id"] for item in items}) == len(items), "two items have one id"
    assert input_items([{**USER, "id": "mine"}])[0]["id"] == "mine"
    assert input_items([{**USER, "id": None}])[0]["id"], "null is no id"


# ── check_input: every call has its output, every output its call ────────────────────────────────────────────────────

PAIRED: dict[str, list[Json]] = {
    "nothing": [],
    "a call and its output": [call("c1"), output("c1")],
    "in another order": [call("c1"), call("c2"), USER, output("c2"), output("c1")],
    "a call that was cut off": [call("c1", status="incomplete"), USER],
    "a call that was cut off, and answered": [call("c1", status="incomplete"), output("c1")],
    "an id that comes again": [call("c1"), output("c1"), USER, call("c1"), output("c1")],
    "an id that comes again at once": [call("c1"), call("c1"), output("c1"), output("c1")],
    "an output that names its function": [call("c1"), {"type": "function_call_output", "name": "f", "output": "42"}],
    "an output of a function that nobody called": [{"type": "function_call_output", "name": "g", "output": "42"}],
    "a hosted search": [{"type": "tool_search_call", "execution": "server", "call_id": "c1", "arguments": {}}],
    "a hosted search with its output": [
        {"type": "tool_search_call", "execution": "server", "call_id": "c1", "arguments": {}},
        {"type": "tool_search_output", "execution": "server", "call_id": "c1", "tools": []},
    ],
}
# Items, the place that is named, and words of OpenAI's that some clients look for.
UNPAIRED: dict[str, tuple[list[Json], str, str]] = {
    "an orphan output": ([USER, output("c9")], "input[1].call_id", "No tool call found for function call output"),
    "an output before its call": ([output("c1"), call("c1")], "input[0].call_id", "No tool call found"),
    "two outputs": ([call("c1"), output("c1"), output("c1")], "input[2].call_id", "Duplicate output"),
    "two calls of one id, and one output": (
        [call("c1"), call("c1"), output("c1")],
        "input",
        "No tool output found for function call c1",
    ),
    "a call again": (
        [call("c1"), output("c1"), call("c1")],
        "input",
        "No tool output found for function call c1",
    ),
    "an output for each of two calls of one id, and one more": (
        [call("c1"), call("c1"), output("c1"), output("c1"), output("c1")],
        "input[4].call_id",
        "Duplicate output",
    ),
    "no output": ([call("c1"), USER], "input", "No tool output found for function call c1"),
}


@pytest.mark.parametrize("items", PAIRED.values(), ids=PAIRED)
def test_calls_with_their_outputs_pass(items: list[Json]) -> None:
    for history in range(len(items) + 1):
        check_input(items, history)


@pytest.mark.parametrize(("items", "param", "words"), UNPAIRED.values(), ids=UNPAIRED)
def test_a_call_without_its_output_or_an_output_without_its_call_is_named(
    items: list[Json], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        check_input(items, 0)
    assert raised.value.param == param
    with pytest.raises(InvalidRequest) as raised:
        check_input([call("h1"), output("h1"), *items], 2)
    assert raised.value.param == param, "places are counted from the client's own input"


def test_an_output_may_answer_a_call_of_an_earlier_turn() -> None:
    check_input([USER, call("c1"), output("c1")], 2)
    with pytest.raises(InvalidRequest) as raised:
        check_input([USER, call("c1"), USER], 2)
    assert raised.value.param == "input", "the output is missing in what the client sent now"


def test_calls_that_were_cut_off_and_never_answered_are_left_out() -> None:
    cut = call("c1", status="incomplete")
    assert without_cut_calls([USER, cut]) == [USER]
    assert without_cut_calls([USER, cut, output("c1")]) == [USER, cut, output("c1")], "it was answered"
    assert without_cut_calls([USER, call("c2")]) == [USER, call("c2")], "it was not cut off"


# ── chat_request ─────────────────────────────────────────────────────────────────────────────────────────────────────

MESSAGES = [{"role": "user", "content": "hi"}]


def translated(more: Json, *, stream: bool = False) -> Json:
    """What a chat request holds besides its model and its messages."""
    params = chat_request(body(**more), MESSAGES, model="m:latest", stream=stream)
    assert params.pop("model") == "m:latest", "the model is the one that the endpoint was chosen for"
    assert params.pop("messages") == MESSAGES
    return params


CHAT_FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT_SCHEMA = {"name": "answer", "schema": {"type": "object"}}
LOGPROBS = "message.output_text.logprobs"

TRANSLATED: dict[str, tuple[Json, Json]] = {
    "nothing": ({}, {}),
    "max_output_tokens": ({"max_output_tokens": 5}, {"max_tokens": 5}),
    "format text": ({"text": {"format": {"type": "text"}}}, {}),
    "format json_object": (
        {"text": {"format": {"type": "json_object"}}},
        {"response_format": {"type": "json_object"}},
    ),
    "format json_schema": (
        {"text": {"format": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": CHAT_SCHEMA}},
    ),
    "format json_schema, with all that it has": (
        {"text": {"format": {**SCHEMA, "description": "d", "strict": True}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {**CHAT_SCHEMA, "description": "d", "strict": True},
            }
        },
    ),
    "format json_schema, with nulls": (
        {"text": {"format": {**SCHEMA, "description": None, "strict": None}}},
        {"response_format": {"type": "json_schema", "json_schema": CHAT_SCHEMA}},
    ),
    "verbosity": ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
    "reasoning.effort": ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
    "reasoning.effort none": ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}),
    "reasoning.summary alone": ({"reasoning": {"summary": "auto"}}, {}),
    "top_logprobs": ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    "top_logprobs 0": ({"top_logprobs": 0}, {}),
    "logprobs that are included": ({"include": [LOGPROBS]}, {"logprobs": True}),
    "logprobs that are included, with the top": (
        {"include": [LOGPROBS], "top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 2},
    ),
    "another include": ({"include": ["reasoning.encrypted_content"]}, {}),
    "tools": ({"tools": [FUNCTION]}, {"tools": [CHAT_FUNCTION]}),
    "tools, with all that goes with them": (
        {"tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False},
        {"tools": [CHAT_FUNCTION], "tool_choice": "required", "parallel_tool_calls": False},
    ),
    "a choice and parallel calls, but no tools": ({"tool_choice": "auto", "parallel_tool_calls": True}, {}),
    "hosted tools alone": ({"tools": [{"type": "web_search"}], "tool_choice": "auto"}, {}),
    "all tools stay visible, allowed or not": (
        {
            "tools": [FUNCTION, {"type": "function", "name": "g"}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        },
        {
            "tools": [CHAT_FUNCTION, {"type": "function", "function": {"name": "g"}}],
            "tool_choice": "auto",
        },
    ),
    "no tool is allowed": (
        {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "tools": []}},
        {"tools": [CHAT_FUNCTION], "tool_choice": "none"},
    ),
}

# Parameters that mean the same in chat, and unknown ones, which the backend may know.
AS_THEY_ARE: Json = {
    "temperature": 0,
    "top_p": 0.5,
    "presence_penalty": 0.0,
    "frequency_penalty": -1.5,
    "user": "u",
    "service_tier": "flex",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "seed": 0,
    "stop": ["."],
    "top_k": 40,
    "min_p": 0.1,
    "logit_bias": {"1": -100},
    "chat_template_kwargs": {"enable_thinking": False},
    "options": {"num_ctx": 8192},
    "extra": False,
}

# What concerns OpenAI's service or this router, and what a chat backend would misunderstand.
NEVER_PASSED_ON: Json = {
    "background": False,
    "client_metadata": {"k": "v"},
    "context_management": [],
    "conversation": None,
    "generate": False,
    "include": [],
    "instructions": "be brief",
    "max_tool_calls": 3,
    "messages": [{"role": "user", "content": "something else"}],
    "metadata": {"k": "v"},
    "moderation": {},
    "nomyo": {"cache": True},
    "previous_response_id": "resp_1",
    "prompt": {},
    "prompt_cache_retention": "24h",
    "reasoning": {},
    "store": True,
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "text": {},
    "truncation": "auto",
}


@pytest.mark.parametrize(("more", "expected"), TRANSLATED.values(), ids=TRANSLATED)
def test_a_parameter_becomes_its_chat_form(more: Json, expected: Json) -> None:
    assert translated(more) == expected


@pytest.mark.parametrize(("name", "value"), AS_THEY_ARE.items(), ids=AS_THEY_ARE)
def test_a_parameter_that_chat_shares_or_that_we_do_not_know_goes_on_as_it_is(name: str, value: Any) -> None:
    assert translated({name: value}) == {name: value}


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_a_null_does_not_go_on(name: str) -> None:
    assert translated({name: None}) == {}


@pytest.mark.parametrize(("name", "value"), NEVER_PASSED_ON.items(), ids=NEVER_PASSED_ON)
def test_what_a_chat_backend_does_not_know_is_never_passed_on(name: str, value: Any) -> None:
    assert name in NOT_PASSED_ON
    assert translated({name: value}) == {}


def test_a_stream_is_asked_for_with_its_usage() -> None:
    expected = {"stream": True, "stream_options": {"include_usage": True}}
    assert translated({"stream_options": {"include_obfuscation": True}}, stream=True) == expected
    assert translated({}) == {}, "and not where it is not"


def test_the_request_is_left_as_it_was() -> None:
    request = body(tools=[FUNCTION], text={"format": SCHEMA}, temperature=1, seed=1)
    before = repr(request)
    chat_request(request, MESSAGES, model="m", stream=True)
    assert repr(request) == before, "the request was changed: the response echoes it after this"


# ── how much to think ────────────────────────────────────────────────────────────────────────────────────────────────

words = st.sampled_from(EFFORTS)
vocabularies = st.lists(words, unique=True)


@given(words, vocabularies)
def test_a_backend_is_sent_a_word_that_it_knows_or_nothing(effort: str, known: list[str]) -> None:
    word_sent = nearest_effort(effort, known)
    assert word_sent is None or word_sent in known
    assert (word_sent == effort) == (effort in known), "its own word for the effort is the nearest"
    if known and known != ["none"]:
        assert word_sent is not None, "it has a word for thinking, and is not sent"


@given(words, vocabularies)
def test_thinking_is_switched_off_where_that_was_asked_for_alone(effort: str, known: list[str]) -> None:
    if effort != "none":
        assert nearest_effort(effort, known) != "none"


@given(words, words, vocabularies)
def test_who_asks_for_more_thinking_gets_no_less(one: str, other: str, known: list[str]) -> None:
    less, more = sorted((one, other), key=EFFORTS.index)
    word_sent = [nearest_effort(effort, known) for effort in (less, more)]
    if None not in word_sent:
        assert EFFORTS.index(word_sent[0]) <= EFFORTS.index(word_sent[1])


@given(words, vocabularies)
def test_a_backend_is_sent_no_more_than_was_asked_for_if_it_has_a_lower_word(effort: str, known: list[str]) -> None:
    word_sent = nearest_effort(effort, known)
    lower = [word for word in known if word != "none" and EFFORTS.index(word) <= EFFORTS.index(effort)]
    if lower and effort != "none":
        assert word_sent == max(lower, key=EFFORTS.index)


@given(st.none() | words | st.text())
def test_a_backend_that_knows_every_word_is_sent_what_was_asked_for(effort: str | None) -> None:
    assert nearest_effort(effort, None) == effort
    assert nearest_effort(effort, []) is None


def test_a_word_that_is_none_of_ours_goes_on() -> None:
    assert nearest_effort("ultra", ["low", "high"]) == "ultra"
    assert nearest_effort(None, ["low", "high"]) is None
