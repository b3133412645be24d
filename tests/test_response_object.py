"""The response object: a chat message becomes output items, and a response that strict clients of both APIs can
read."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)

from requests.responses import (
    build_response_object,
    chat_message_to_output_items,
    new_id,
    response_resource,
    usage_chat_to_responses,
    whole_item,
    with_output_text,
)
from tests.response_grammar import RESPONSE_KEYS

Json = dict[str, Any]


# ── a chat message becomes output items ──────────────────────────────────────────────────────────────────────────────


def said(*parts: Json) -> Json:
    return {"type": "message", "role": "assistant", "content": list(parts)}


def text(text: str, **more: Any) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], **more}


def refusal(text: str) -> Json:
    return {"type": "refusal", "refusal": text}


def thought(text: str) -> Json:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def call(call_id: str, name: str = "f", arguments: str = "{}") -> Json:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def called(call_id: str | None, name: str = "f", arguments: Any = "{}") -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


OUTPUT: dict[str, tuple[Json, list[Json]]] = {
    "text": ({"content": "hi"}, [said(text("hi"))]),
    "text in parts": (
        {"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        [said(text("hi"))],
    ),
    "nothing": ({"content": None}, []),
    "an empty text": ({"content": ""}, []),
    "nothing, with every key": (
        {"content": None, "refusal": None, "reasoning_content": None, "reasoning": None, "tool_calls": None},
        [],
    ),
    "reasoning before text": (
        {"content": "hi", "reasoning_content": "Hm."},
        [thought("Hm."), said(text("hi"))],
    ),
    "reasoning under its other key": ({"content": "hi", "reasoning": "Hm."}, [thought("Hm."), said(text("hi"))]),
    "reasoning under both keys": (
        {"content": "hi", "reasoning_content": "Hm.", "reasoning": "Hm."},
        [thought("Hm."), said(text("hi"))],
    ),
    "a refusal": ({"content": None, "refusal": "No."}, [said(refusal("No."))]),
    "a text and a refusal": ({"content": "Well.", "refusal": "No."}, [said(text("Well."), refusal("No."))]),
    "calls": (
        {"content": None, "tool_calls": [called("c1"), called("c2", "g", '{"x": 1}')]},
        [call("c1"), call("c2", "g", '{"x": 1}')],
    ),
    "text before calls": ({"content": "Look:", "tool_calls": [called("c1")]}, [said(text("Look:")), call("c1")]),
    "arguments as an object": ({"tool_calls": [called("c1", arguments={"x": 1})]}, [call("c1", arguments='{"x":1}')]),
    "no arguments": ({"tool_calls": [called("c1", arguments="")]}, [call("c1", arguments="")]),
    "null arguments": ({"tool_calls": [called("c1", arguments=None)]}, [call("c1", arguments="")]),
    "arguments that are no JSON are the client's to judge": (
        {"tool_calls": [called("c1", arguments='{"x": ')]},
        [call("c1", arguments='{"x": ')],
    ),
    "a call without a name": ({"tool_calls": [{"id": "c1", "function": {}}]}, [call("c1", name="", arguments="")]),
}


@pytest.mark.parametrize(("message", "items"), OUTPUT.values(), ids=OUTPUT)
def test_a_chat_message_becomes_output_items(message: Json, items: list[Json]) -> None:
    assert chat_message_to_output_items({"role": "assistant", **message}) == items


def test_a_call_without_an_id_gets_one() -> None:
    one, two = chat_message_to_output_items({"tool_calls": [called(None), called("")]})
    assert one["call_id"].startswith("call_")
    assert one["call_id"] != two["call_id"]


def test_log_probabilities_are_a_part_of_the_text() -> None:
    top = {"token": "hü", "logprob": -1, "bytes": [1, 2]}
    (item,) = chat_message_to_output_items(
        {"content": "hü"}, [{"token": "hü", "logprob": -0.5, "bytes": None, "top_logprobs": [top]}, {"token": "!"}]
    )
    (part,) = item["content"]
    assert part["logprobs"] == [
        {"token": "hü", "logprob": -0.5, "bytes": [104, 195, 188], "top_logprobs": [top]},
        {"token": "!", "logprob": 0.0, "bytes": [33], "top_logprobs": []},
    ], "bytes are there even where the backend leaves them out: strict clients need them"


# ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────────────

NO_DETAILS = {
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}


def counts(input_tokens: int, output_tokens: int, total: int | None = None) -> Json:
    total = input_tokens + output_tokens if total is None else total
    return {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total}


USAGE: dict[str, tuple[Json | None, Json | None]] = {
    "none": (None, None),
    "an empty one": ({}, None),
    "two counts": ({"prompt_tokens": 7, "completion_tokens": 3}, counts(7, 3)),
    "three counts": ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 11}, counts(7, 3, 11)),
    "null counts": ({"prompt_tokens": 7, "completion_tokens": None, "total_tokens": None}, counts(7, 0)),
    "null details": ({"prompt_tokens": 7, "prompt_tokens_details": None}, counts(7, 0) | NO_DETAILS),
    "null details of the other side": (
        {"prompt_tokens": 7, "completion_tokens_details": None},
        counts(7, 0) | NO_DETAILS,
    ),
    "details": (
        {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
        counts(7, 3)
        | {
            "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 2},
        },
    ),
}


@pytest.mark.parametrize(("chat", "expected"), USAGE.values(), ids=USAGE)
def test_usage_is_counted_as_responses_count_it(chat: Json | None, expected: Json | None) -> None:
    assert usage_chat_to_responses(chat) == expected


# ── the response object ──────────────────────────────────────────────────────────────────────────────────────────────

DEFAULTS: Json = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1700000000,
    "completed_at": None,
    "status": "in_progress",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "model": "m",
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
    "metadata": {},
}

FUNCTION = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}

ECHOED: Json = {
    "instructions": "be brief",
    "max_output_tokens": 16,
    "max_tool_calls": 3,
    "parallel_tool_calls": False,
    "previous_response_id": "resp_0",
    "prompt_cache_key": "k",
    "reasoning": {"effort": "low", "summary": "auto"},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": False,
    "background": True,
    "temperature": 0,
    "text": {"format": SCHEMA, "verbosity": "low"},
    "tool_choice": {"type": "function", "name": "f"},
    "tools": [FUNCTION, {"type": "web_search"}],
    "top_logprobs": 2,
    "top_p": 0.5,
    "presence_penalty": -1,
    "frequency_penalty": 1.5,
    "truncation": "auto",
    "user": "u",
    "metadata": {"k": "v"},
}


def resource(**request: Any) -> Json:
    return response_resource(
        {"model": "m", **request}, response_id="resp_1", created_at=1700000000, status="in_progress"
    )


def test_a_silent_request_gets_openais_defaults() -> None:
    assert resource() == DEFAULTS
    assert resource(**dict.fromkeys(ECHOED)) == DEFAULTS, "null is silence too"


@pytest.mark.parametrize(("name", "value"), ECHOED.items(), ids=ECHOED)
def test_what_a_request_says_is_echoed(name: str, value: Any) -> None:
    assert resource(**{name: value}) == DEFAULTS | {name: value}


HALF_GIVEN: dict[str, tuple[Json, Json]] = {
    "reasoning with its effort alone": (
        {"reasoning": {"effort": "low"}},
        {"reasoning": {"effort": "low", "summary": None}},
    ),
    "text with its verbosity alone": (
        {"text": {"verbosity": "low"}},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}},
    ),
    "text with nulls, which strict clients refuse": (
        {"text": {"format": None, "verbosity": None}},
        {"text": {"format": {"type": "text"}}},
    ),
    "a function with its name alone": (
        {"tools": [{"type": "function", "name": "f"}]},
        {"tools": [{"type": "function", "name": "f", "description": None, "parameters": None, "strict": True}]},
    ),
    "a function that leaves open whether it is strict": (
        {"tools": [{"type": "function", "name": "f", "strict": None}]},
        {"tools": [{"type": "function", "name": "f", "description": None, "parameters": None, "strict": None}]},
    ),
}


@pytest.mark.parametrize(("given", "echoed"), HALF_GIVEN.values(), ids=HALF_GIVEN)
def test_what_a_request_half_says_is_made_whole(given: Json, echoed: Json) -> None:
    assert resource(**given) == DEFAULTS | echoed


@pytest.mark.parametrize("request_", [{}, ECHOED], ids=["silent", "talkative"])
def test_every_required_key_is_there_and_of_its_type(request_: Json) -> None:
    response = resource(**request_)
    missing = RESPONSE_KEYS.keys() - response.keys()
    assert not missing, f"Open Responses requires {sorted(missing)}"
    wrong = {key: response[key] for key, types in RESPONSE_KEYS.items() if not isinstance(response[key], types)}
    assert not wrong, f"of another type: {wrong}"


# ── the finished response ────────────────────────────────────────────────────────────────────────────────────────────

EVERYTHING = [thought("Hm."), said(text("Hi "), text("there")), said(refusal("No.")), call("c1", arguments='{"x":1}')]


def built(*items: Json, **more: Any) -> Json:
    return build_response_object(response_id="resp_1", model="m", output_items=list(items), **more)


def test_items_are_made_whole_for_the_wire() -> None:
    output = built(*EVERYTHING)["output"]
    assert [item.pop("id").split("_")[0] for item in output] == ["rs", "msg", "msg", "fc"], "the prefixes of the ids"
    assert output == [
        thought("Hm."),
        {**said(text("Hi ", logprobs=[]), text("there", logprobs=[])), "status": "completed"},
        {**said(refusal("No.")), "status": "completed"},
        {**call("c1", arguments='{"x":1}'), "status": "completed"},
    ]


def test_items_that_are_whole_stay_as_they_are() -> None:
    items = [whole_item(item, "incomplete") for item in EVERYTHING]
    assert [item.get("status") for item in items] == [None, "incomplete", "incomplete", "incomplete"]
    assert [whole_item(item) for item in items] == items
    native = {"type": "web_search_call", "id": "ws_1", "status": "searching", "action": {}}
    assert whole_item(native) == native, "unknown items are untouched"


def test_the_text_of_all_messages_is_joined() -> None:
    assert built(*EVERYTHING)["output_text"] == "Hi there"
    assert built(said(text("a")), call("c1"), said(text("b")))["output_text"] == "ab"
    assert built()["output_text"] == "", "no text is an empty one, never null"


def test_a_finished_response_knows_when_it_was() -> None:
    before = int(time.time())
    response = built(said(text("hi")))
    assert before <= response["created_at"] <= response["completed_at"] <= time.time()
    assert built(created_at=1700000000)["created_at"] == 1700000000
    assert built(status="incomplete")["completed_at"] is None, "only a completed response was completed"


def test_output_text_is_a_convenience_of_the_answer_and_not_of_what_is_kept() -> None:
    response = resource()
    assert with_output_text(response) == {**response, "output_text": ""}
    assert "output_text" not in response


def test_ids_are_never_the_same() -> None:
    ids = {new_id("msg") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(id_.startswith("msg_") and len(id_) > 20 for id_ in ids)


# ── the official SDK as judge ────────────────────────────────────────────────────────────────────────────────────────

DETAILED_USAGE = usage_chat_to_responses({"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None})


@pytest.mark.parametrize("request_", [{}, ECHOED], ids=["silent", "talkative"])
@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled", "queued", "in_progress"])
def test_the_sdk_reads_every_response(status: str, request_: Json) -> None:
    response = built(*EVERYTHING, status=status, usage=DETAILED_USAGE, request=request_)
    read = Response.model_validate(response, strict=True)
    assert read.status == status
    assert read.output_text == response["output_text"], "the SDK joins the text in another way"
    kinds = [ResponseReasoningItem, ResponseOutputMessage, ResponseOutputMessage, ResponseFunctionToolCall]
    assert [type(item) for item in read.output] == kinds, "an item was read as something else"
    assert read.to_dict() == response, "the SDK sees another response than we sent"
