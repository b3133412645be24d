"""Tools and tool choices, Responses to chat: what a backend is offered, and what a client is told instead."""

from __future__ import annotations

from typing import Any

import pytest

from errors import InvalidRequest, Unsupported
from requests.tools import (
    check_tool_choice,
    check_tools,
    omitted_tools,
    tool_choice_responses_to_chat,
    tools_responses_to_chat,
)

Json = dict[str, Any]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def function(name: str, **more: Any) -> Json:
    return {"type": "function", "name": name, **more}


def chat_function(name: str, **more: Any) -> Json:
    return {"type": "function", "function": {"name": name, **more}}


WEB_SEARCH = {"type": "web_search", "external_web_access": False}
MCP = {"type": "mcp", "server_label": "docs", "server_url": "http://x"}
CUSTOM = {"type": "custom", "name": "apply_patch", "format": {"type": "text"}}


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────

FUNCTIONS: dict[str, tuple[Json, Json]] = {
    "a name alone": (function("f"), chat_function("f")),
    "everything": (
        function("f", description="Does f.", parameters=PARAMETERS, strict=True),
        chat_function("f", description="Does f.", parameters=PARAMETERS, strict=True),
    ),
    "strict is kept when false": (function("f", strict=False), chat_function("f", strict=False)),
    "empty is not null": (
        function("f", description="", parameters={}),
        chat_function("f", description="", parameters={}),
    ),
    "nulls are left out": (function("f", description=None, parameters=None, strict=None), chat_function("f")),
    "keys that chat does not know are left out": (function("f", defer_loading=True), chat_function("f")),
}


@pytest.mark.parametrize(("tool", "expected"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_becomes_its_chat_form(tool: Json, expected: Json) -> None:
    assert tools_responses_to_chat([tool]) == [expected]


def test_tools_that_only_openai_runs_are_left_out_and_named() -> None:
    tools = [WEB_SEARCH, function("f"), MCP, function("g"), CUSTOM]
    assert tools_responses_to_chat(tools) == [chat_function("f"), chat_function("g")]
    assert omitted_tools(tools) == ["web_search", "mcp", "custom:apply_patch"]


def test_functions_are_never_named_as_omitted() -> None:
    assert omitted_tools([function("f"), function("g")]) == omitted_tools([]) == []


NO_TOOLS: dict[str, tuple[list[Any], str]] = {
    "a text": (["f"], "tools[0].type"),
    "null": ([None], "tools[0].type"),
    "no type": ([{"name": "f"}], "tools[0].type"),
    "a type that is no text": ([{"type": 1, "name": "f"}], "tools[0].type"),
    "a function without a name": ([function("f"), {"type": "function"}], "tools[1].name"),
    "a function with an empty name": ([function("")], "tools[0].name"),
    "a function whose name is no text": ([{"type": "function", "name": ["f"]}], "tools[0].name"),
    "a function in the form of chat": ([chat_function("f")], "tools[0].name"),
}


@pytest.mark.parametrize(("tools", "param"), NO_TOOLS.values(), ids=NO_TOOLS)
def test_what_is_no_tool_is_named(tools: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_tools(tools)
    assert raised.value.param == param


def test_tools_of_every_known_kind_pass() -> None:
    check_tools([])
    check_tools([function("f"), WEB_SEARCH, MCP, CUSTOM, {"type": "namespace", "name": "n", "tools": []}])


# ── tool_choice ──────────────────────────────────────────────────────────────────────────────────────────────────────

F, G = function("f"), function("g")


def allowed(*tools: Any, mode: str | None = "auto") -> Json:
    return {"type": "allowed_tools", "mode": mode, "tools": [*tools]}


# The choice, what a chat backend is told, and the tools that it is offered with it.
CHOICES: dict[str, tuple[Any, Any, list[Json]]] = {
    "none given": (None, None, [F, G, WEB_SEARCH]),
    "auto": ("auto", "auto", [F, G, WEB_SEARCH]),
    "none": ("none", "none", [F, G, WEB_SEARCH]),
    "required": ("required", "required", [F, G, WEB_SEARCH]),
    "a function": ({"type": "function", "name": "g"}, chat_function("g"), [F, G, WEB_SEARCH]),
    "a function in the form of chat": (chat_function("g"), chat_function("g"), [F, G, WEB_SEARCH]),
    "one that is allowed": (allowed({"type": "function", "name": "g"}), "auto", [G]),
    "one that is allowed, and required": (
        allowed({"type": "function", "name": "g"}, mode="required"),
        "required",
        [G],
    ),
    "the mode is auto": (allowed({"type": "function", "name": "g"}, mode=None), "auto", [G]),
    "all are allowed": (allowed(*({"type": "function", "name": name} for name in "fg")), "auto", [F, G]),
    "hosted ones are not offered, allowed or not": (allowed({"type": "web_search"}, G), "auto", [G]),
    "nothing that the backend could call": (allowed({"type": "web_search"}), "none", []),
    "nothing at all": (allowed(), "none", []),
}


@pytest.mark.parametrize(("choice", "told", "offered"), CHOICES.values(), ids=CHOICES)
def test_a_tool_choice_becomes_its_chat_form(choice: Any, told: Any, offered: list[Json]) -> None:
    assert tool_choice_responses_to_chat(choice, [F, G, WEB_SEARCH]) == (told, offered)


@pytest.mark.parametrize("choice", [row[0] for row in CHOICES.values()], ids=CHOICES)
def test_a_tool_choice_of_any_form_is_accepted(choice: Any) -> None:
    check_tool_choice(choice, [F, G, WEB_SEARCH])


WRONG_CHOICES: dict[str, tuple[Any, str]] = {
    "an unknown word": ("sometimes", "tool_choice"),
    "no type": ({"name": "f"}, "tool_choice.type"),
    "a type that is no text": ({"type": ["function"], "name": "f"}, "tool_choice.type"),
    "a function that is not there": ({"type": "function", "name": "h"}, "tool_choice"),
    "a function without a name": ({"type": "function"}, "tool_choice"),
    "a function whose name is no text": ({"type": "function", "name": ["f"]}, "tool_choice"),
    "a function that is no object": ({"type": "function", "function": "f"}, "tool_choice"),
    "an unknown mode": (allowed(F, mode="never"), "tool_choice.mode"),
    "allowed, but not there": (
        allowed({"type": "function", "name": "f"}, {"type": "function", "name": "h"}),
        "tool_choice.tools[1]",
    ),
    "allowed, and its name is no text": (allowed({"type": "function", "name": ["f"]}), "tool_choice.tools[0]"),
    "allowed, and without a type": (allowed({"name": "f"}), "tool_choice.tools[0]"),
    "allowed, and no object": (allowed(5), "tool_choice.tools[0]"),
    "allowed, and an object": ({**allowed(), "tools": {"a": 1}}, "tool_choice.tools"),
    "allowed, and a number": ({**allowed(), "tools": 5}, "tool_choice.tools"),
}


@pytest.mark.parametrize(("choice", "param"), WRONG_CHOICES.values(), ids=WRONG_CHOICES)
def test_what_is_no_tool_choice_is_named(choice: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_tool_choice(choice, [F, G, WEB_SEARCH])
    assert raised.value.param == param


HOSTED_CHOICES: dict[str, Any] = {
    "a hosted tool": {"type": "web_search"},
    "a server's tool": {"type": "mcp", "server_label": "docs"},
    "a custom tool": {"type": "custom", "name": "apply_patch"},
    "required, of hosted tools": allowed(WEB_SEARCH, mode="required"),
    "required, of none": allowed(mode="required"),
}


@pytest.mark.parametrize("choice", HOSTED_CHOICES.values(), ids=HOSTED_CHOICES)
def test_a_choice_that_no_chat_backend_can_be_given_is_named(choice: Any) -> None:
    check_tool_choice(choice, [F, G, WEB_SEARCH])
    with pytest.raises(Unsupported) as raised:
        tool_choice_responses_to_chat(choice, [F, G, WEB_SEARCH])
    assert raised.value.param == "tool_choice"


@pytest.mark.parametrize("tools", [[], [WEB_SEARCH]], ids=["no tools", "hosted tools alone"])
def test_a_backend_without_functions_cannot_be_required_to_call_one(tools: list[Json]) -> None:
    with pytest.raises(Unsupported) as raised:
        tool_choice_responses_to_chat("required", tools)
    assert raised.value.param == "tool_choice"
    assert tool_choice_responses_to_chat("auto", tools) == ("auto", tools), "auto asks for nothing"
