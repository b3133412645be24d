"""Items of other APIs are refused in words that name ours; items that nobody knows are text, and named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.errors import InvalidRequest
from requests.compatibility import ITEMS, PARTS
from requests.foreign import FOREIGN_KEYS, FOREIGN_ROLES, FOREIGN_TYPES
from requests.params import check_request
from requests.tools import ToolBook, call_item
from tests.conftest import Running
from tests.fake_backend import FakeBackend, chat
from tests.turns import assert_error, create, stream

Json = dict[str, Any]

USER: Json = {"role": "user", "content": "Hi"}


def refusal(*items: Json) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        check_request({"model": "m", "input": [USER, *items]})
    assert raised.value.status == 400
    return raised.value


ITEMS_OF_OTHERS: dict[str, tuple[Json, str, str]] = {
    "Anthropic's call": ({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}, "type", "function_call"),
    "Anthropic's output": (
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "42"},
        "type",
        "function_call_output",
    ),
    "Anthropic's thought": ({"type": "thinking", "thinking": "Hm.", "signature": "x"}, "type", "reasoning"),
    "Anthropic's search": ({"type": "server_tool_use", "id": "s", "name": "web_search"}, "type", "web_search_call"),
    "a part of Anthropic's": ({"type": "image", "source": {"type": "url", "url": "http://x"}}, "type", "input_image"),
    "a part of ours": ({"type": "input_text", "text": "Hi"}, "type", "content of a message"),
    "chat's call": (
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": "{}"}},
        "type",
        "function_call",
    ),
    "chat's output": ({"role": "tool", "tool_call_id": "c1", "content": "42"}, "role", "function_call_output"),
    "chat's older output": ({"role": "function", "name": "f", "content": "42"}, "role", "function_call_output"),
    "chat's message with calls": (
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function"}]},
        "tool_calls",
        "function_call",
    ),
    "Gemini's message": ({"role": "model", "parts": [{"text": "Hi"}]}, "role", "'assistant'"),
    "Gemini's call": ({"functionCall": {"name": "f", "args": {}}}, "type", "function_call"),
    "Gemini's output": ({"functionResponse": {"name": "f", "response": {}}}, "type", "function_call_output"),
    "Gemini's part": ({"text": "Hi"}, "type", "input_text"),
    "Bedrock's call": ({"toolUse": {"toolUseId": "t", "name": "f", "input": {}}}, "type", "function_call"),
    "Bedrock's output": ({"toolResult": {"toolUseId": "t", "content": []}}, "type", "function_call_output"),
    "the AI SDK's output": ({"type": "tool-result", "toolCallId": "c1", "result": 42}, "type", "function_call_output"),
}


@pytest.mark.parametrize(("item", "key", "meant"), ITEMS_OF_OTHERS.values(), ids=ITEMS_OF_OTHERS)
def test_an_item_of_another_api_is_refused_in_words_that_name_ours(item: Json, key: str, meant: str) -> None:
    error = refusal(item)
    assert (error.param, error.code) == (f"input[1].{key}", "invalid_value")
    assert meant in error.message


def test_no_type_of_ours_is_another_apis() -> None:
    assert not FOREIGN_TYPES.keys() & ITEMS.keys()
    assert not FOREIGN_ROLES.keys() & {"user", "assistant", "system", "developer"}
    parts = {name.partition(".")[0] for name in PARTS} - {"*", "computer_screenshot"}
    assert parts <= FOREIGN_TYPES.keys(), "a part that stands alone is named as one"


@pytest.mark.parametrize("kind", sorted(FOREIGN_TYPES))
def test_each_type_is_refused_whatever_else_is_in_it(kind: str) -> None:
    for rest in ({}, {"id": "x"}, {"role": "user"}, {"content": 5}, {"call_id": "c1", "output": "42"}):
        assert refusal({"type": kind, **rest}).param == "input[1].type"


@pytest.mark.parametrize("key", sorted(FOREIGN_KEYS))
def test_each_key_is_refused_where_nothing_else_names_the_item(key: str) -> None:
    assert refusal({key: {}}).param == "input[1].type"
    check_request({"model": "m", "input": [{"id": "msg_1", key: {}}, {**USER, "tool_calls": []}]})


async def test_at_a_native_backend_too(served_natively: Running, backend: FakeBackend) -> None:
    body = {"model": "test-model", "input": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]}
    assert_error(await served_natively.http.post("/v1/responses", json=body), 400, param="input[0].type")
    assert not backend.turns


async def test_a_part_of_another_api_is_named_too(served: Running) -> None:
    for kind, meant in (("tool_result", "function_call_output"), ("image_url", "input_image"), ("tool_use", "call_id")):
        body = {"model": "test-model", "input": [{"role": "user", "content": [{"type": kind}]}]}
        error = assert_error(await served.http.post("/v1/responses", json=body), 400, param="input[0].content[0].type")
        assert meant in error["message"]


# ── what nobody knows ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_items_that_nobody_knows_are_text_and_named(served: Running, backend: FakeBackend) -> None:
    moon, odd = {"type": "acme:moon", "phase": "full"}, {"type": "x\r\ny" + "z" * 500, "a": 1}
    body = {"model": "test-model", "input": [moon, moon, odd, {"type": "web_search_call", "id": "ws_1"}, USER]}
    answer = await served.http.post("/v1/responses", json=body)
    assert answer.status_code == 200
    first, second = answer.headers["x-nomyo-adapted"].split(", ")
    assert (first, second[:13]) == ("input.acme:moon=text", "input.x??yzzz")
    assert len(second) <= 200
    assert "full" in backend.turns[-1].json["messages"][0]["content"]
    again = {"model": "test-model", "input": "And?", "previous_response_id": answer.json()["id"]}
    answer = await served.http.post("/v1/responses", json=again)
    assert "input.acme:moon=text" in answer.headers["x-nomyo-adapted"], "it is still text"


async def test_so_many_names_fit_into_a_header(served: Running) -> None:
    items = [{"type": f"acme:{number}:{'x' * 300}"} for number in range(200)]
    answer = await served.http.post("/v1/responses", json={"model": "test-model", "input": [*items, USER]})
    assert answer.status_code == 200
    assert 1000 < len(answer.headers["x-nomyo-adapted"]) < 2048


async def test_a_native_backend_gets_them_as_they_are(served_natively: Running, backend: FakeBackend) -> None:
    body = {"model": "test-model", "input": [{"type": "acme:moon", "phase": "full"}, USER]}
    answer = await served_natively.http.post("/v1/responses", json=body)
    assert "x-nomyo-adapted" not in answer.headers
    assert backend.turns[-1].json["input"][0] == {"type": "acme:moon", "phase": "full"}


# ── patches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_must_give_a_patch_what_it_changes() -> None:
    (offered,) = ToolBook([{"type": "apply_patch"}]).chat
    parameters = offered["function"]["parameters"]
    assert parameters["required"] == ["type", "path", "diff"]
    call_of = ToolBook([{"type": "apply_patch"}]).call_of("apply_patch")
    arguments = '{"type": "delete_file", "path": "a.txt", "diff": ""}'
    item = call_item(call_of, id="apc_1", call_id="c1", arguments=arguments, status="completed")
    assert item["operation"] == {"type": "delete_file", "path": "a.txt"}, "what is deleted has no diff"


@pytest.mark.parametrize("key", ["operation", "patch", "input"])
def test_a_patch_is_found_in_the_object_that_a_model_puts_it_in(key: str) -> None:
    operation = {"type": "create_file", "path": "a.txt", "diff": "+x"}
    call_of = ToolBook([{"type": "apply_patch"}]).call_of("apply_patch")
    arguments = json.dumps({"type": "apply_patch", key: operation})
    item = call_item(call_of, id="apc_1", call_id="c1", arguments=arguments, status="completed")
    assert item["operation"] == operation


@pytest.mark.parametrize("kind", ["create_file", "update_file"])
@pytest.mark.parametrize("diff", [{}, {"diff": None}, {"diff": ["+a"]}], ids=["none", "null", "a list"])
def test_a_patch_without_its_diff_is_refused_at_its_place(kind: str, diff: Json) -> None:
    item = {"type": "apply_patch_call", "call_id": "c1", "operation": {"type": kind, "path": "a.txt", **diff}}
    assert refusal(item).param == "input[1].operation.diff"


@pytest.mark.parametrize("operation", [{"type": "delete_file", "path": "a.txt"}, {"type": ["x"]}, {}, None])
def test_other_patches_need_none(operation: Any) -> None:
    item = {"type": "apply_patch_call", "call_id": "c1", "operation": operation}
    check_request({"model": "m", "input": [item]})


# ── options that mean nothing ────────────────────────────────────────────────────────────────────────────────────────


async def test_stream_options_are_for_streams(served: Running, backend: FakeBackend) -> None:
    options = {"include_obfuscation": True}
    body = {"model": "test-model", "input": "Hi", "stream_options": options}
    for given in (body, {**body, "stream": False}, {**body, "background": True}):
        assert_error(await served.http.post("/v1/responses", json=given), 400, param="stream_options")
    assert (await stream(served.http, stream_options=options))[-1]["type"] == "response.completed"
    for path in ("compact", "input_tokens"):
        backend.script(chat("A summary."))
        answer = await served.http.post(f"/v1/responses/{path}", json={**body, "stream": True})
        assert answer.status_code == 200, answer.text


async def test_unknown_keys_of_text_are_named(served: Running) -> None:
    body = {"model": "test-model", "input": "Hi", "text": {"verbosity": "low", "formt": {"type": "json_object"}}}
    answer = await served.http.post("/v1/responses", json=body)
    error = assert_error(answer, 400, param="text.formt", code="unknown_parameter")
    assert error["message"] == "Unknown parameter: 'text.formt'."
    await create(served.http, text=None)
