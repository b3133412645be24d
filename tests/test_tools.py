"""Tools and tool choices, Responses to chat: what a backend is offered, and what a client gets instead."""

from __future__ import annotations

import re
from typing import Any

import pytest

from core.errors import InvalidRequest, Unsupported
from requests.tool_choice import ToolChoice, check_tool_choice, tool_choice_responses_to_chat
from requests.tools import Call, ToolBook, check_tools, tools_responses_to_chat

Json = dict[str, Any]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def function(name: str, **more: Any) -> Json:
    return {"type": "function", "name": name, **more}


def chat_function(name: str, **more: Any) -> Json:
    return {"type": "function", "function": {"name": name, **more}}


WEB_SEARCH = {"type": "web_search", "external_web_access": False}
MCP = {"type": "mcp", "server_label": "docs", "server_url": "http://x"}
SHELL, LOCAL_SHELL, APPLY_PATCH = {"type": "shell"}, {"type": "local_shell"}, {"type": "apply_patch"}
TOOL_SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": PARAMETERS}
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
    search = {"type": "tool_search"}
    book = ToolBook([WEB_SEARCH, function("f"), MCP, function("g"), {"type": "computer"}, search])
    assert book.chat == [chat_function("f"), chat_function("g")]
    assert book.omitted == ["web_search", "mcp:docs", "computer", "tool_search"]


def test_tools_that_the_client_runs_are_never_named_as_omitted() -> None:
    book = ToolBook([function("f"), CUSTOM, SHELL, LOCAL_SHELL, TOOL_SEARCH, namespace("n", function("g"))])
    assert book.omitted == ToolBook([]).omitted == []


def names(book: ToolBook) -> list[str]:
    return [tool["function"]["name"] for tool in book.chat]


def namespace(name: str, *tools: Json) -> Json:
    return {"type": "namespace", "name": name, "description": "", "tools": [*tools]}


# A tool, the name that the backend is offered, and what the client gets when it is called.
KINDS: dict[str, tuple[Json, str, Call]] = {
    "a function": (function("f"), "f", Call("function_call", "f")),
    "a custom tool": (CUSTOM, "apply_patch", Call("custom_tool_call", "apply_patch")),
    "a function of a namespace": (namespace("n", function("f")), "n__f", Call("function_call", "f", "n")),
    "a custom tool of a namespace": (
        namespace("n", CUSTOM),
        "n__apply_patch",
        Call("custom_tool_call", "apply_patch", "n"),
    ),
    "a search for tools": (TOOL_SEARCH, "tool_search", Call("tool_search_call", "tool_search")),
    "the shell": (SHELL, "shell", Call("shell_call", "shell")),
    "the local shell": (LOCAL_SHELL, "local_shell", Call("local_shell_call", "local_shell")),
    "patches": (APPLY_PATCH, "apply_patch", Call("apply_patch_call", "apply_patch")),
}


@pytest.mark.parametrize(("tool", "name", "call"), KINDS.values(), ids=KINDS)
def test_each_kind_that_a_client_runs_is_offered_as_a_function_and_found_again(
    tool: Json, name: str, call: Call
) -> None:
    book = ToolBook([tool])
    assert names(book) == [name]
    assert book.call_of(name) == call
    assert book.name_of(call) == name
    parameters = book.chat[0]["function"].get("parameters")
    assert tool["type"] in ("function", "namespace") or parameters["type"] == "object"


def test_a_name_that_was_not_offered_is_a_function_of_that_name() -> None:
    assert ToolBook([]).call_of("made_up") == Call("function_call", "made_up")


COLLISIONS: dict[str, list[Json]] = {
    "two namespaces": [namespace("a", function("b__c")), namespace("a__b", function("c"))],
    "a function that looks flat": [function("a__b"), namespace("a", function("b"))],
    "a function that looks flat, and comes last": [namespace("a", function("b")), function("a__b")],
    "characters that chat does not know": [function("a.b"), function("a_b"), function("a b"), function("ä")],
    "namespaces that do not fit": [namespace("n" * 60 + last, function("same")) for last in "12"],
    "names that do not fit": [function("f" * 70 + last) for last in "12"],
    "names that fit just about": [function("f" * 64), namespace("n" * 31, function("f" * 31))],
    "kinds of one name": [function("shell"), SHELL, APPLY_PATCH, CUSTOM, TOOL_SEARCH, function("tool_search")],
    "the same name in each": [namespace("a", function("say")), function("say"), namespace("b", function("say"))],
}


@pytest.mark.parametrize("tools", COLLISIONS.values(), ids=COLLISIONS)
def test_tools_whose_names_would_meet_stay_apart(tools: list[Json]) -> None:
    book = ToolBook(tools)
    wanted = [
        (tool["name"], inner["name"]) if tool["type"] == "namespace" else (None, inner["name"])
        for tool in tools
        for inner in tool.get("tools") or [{"name": tool["type"], **tool}]
    ]
    calls = [book.call_of(name) for name in names(book)]
    assert [(call.namespace, call.name) for call in calls] == wanted
    assert len(set(names(book))) == len(wanted)
    assert [book.name_of(call) for call in calls] == names(book)
    for name in names(book):
        assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", name), f"no chat server takes {name!r}"


def test_a_name_is_the_same_in_every_turn_whatever_else_is_offered() -> None:
    long = namespace("n" * 60, function("f"))
    (name,) = names(ToolBook([long]))
    call = Call("function_call", "f", "n" * 60)
    assert ToolBook([function("g"), long]).name_of(call) == name
    assert ToolBook([]).name_of(call) == name, "it is not offered any more, but in the history"


def test_items_bring_tools_and_a_tool_is_offered_once() -> None:
    brings = [
        {"type": "additional_tools", "role": "developer", "tools": [function("f"), namespace("n", CUSTOM)]},
        {"type": "message", "role": "user", "content": "hi", "tools": [function("no")]},
        {"type": "tool_search_output", "call_id": "c1", "tools": [function("f"), function("g")]},
    ]
    assert names(ToolBook.of([function("g")], brings)) == ["g", "f", "n__apply_patch"]
    assert names(ToolBook.of(None, [])) == []


GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}


def custom(**more: Any) -> Json:
    (offered,) = tools_responses_to_chat([{"type": "custom", "name": "p", **more}])
    return offered["function"]


def test_a_custom_tool_is_offered_as_a_function_of_one_text() -> None:
    for format in (None, {"type": "text"}, GRAMMAR):
        parameters = custom(description="Patches.", format=format)["parameters"]
        assert parameters["required"] == list(parameters["properties"]) == ["input"]
        assert parameters["properties"]["input"]["type"] == "string"
        assert "pattern" not in parameters["properties"]["input"]
    assert custom(description="Patches.")["description"] == "Patches."


def test_the_model_can_read_the_grammar_of_a_custom_tool() -> None:
    for more in ({"description": "Patches."}, {}):
        description = custom(**more, format=GRAMMAR)["description"]
        assert description.startswith(more.get("description", ""))
        assert 'start: "x"' in description
        assert "lark" in description


@pytest.mark.parametrize(
    ("definition", "fits", "does_not"),
    [
        ("[0-9]+", ["1", "42"], ["", "a", "4a"]),
        ("^[0-9]+$", ["1", "42"], ["", "a", "4a"]),
        ("yes|no", ["yes", "no"], ["yesterday", "casino"]),
        (r"\d+\$", ["5$"], ["5", "$"]),
    ],
)
def test_a_regex_is_given_as_a_pattern_for_the_whole_text(
    definition: str, fits: list[str], does_not: list[str]
) -> None:
    format = {"type": "grammar", "syntax": "regex", "definition": definition}
    pattern = custom(format=format)["parameters"]["properties"]["input"]["pattern"]
    assert pattern[0] + pattern[-1] == "^$", "llama.cpp takes no other"
    for text in fits:
        assert re.search(pattern, text), f"{pattern} does not take {text}"
    for text in does_not:
        assert not re.search(pattern, text), f"{pattern} takes {text}"


NO_TOOLS: dict[str, tuple[list[Any], str]] = {
    "a text": (["f"], "tools[0].type"),
    "null": ([None], "tools[0].type"),
    "no type": ([{"name": "f"}], "tools[0].type"),
    "a type that is no text": ([{"type": 1, "name": "f"}], "tools[0].type"),
    "a function without a name": ([function("f"), {"type": "function"}], "tools[1].name"),
    "a function with an empty name": ([function("")], "tools[0].name"),
    "a function whose name is no text": ([{"type": "function", "name": ["f"]}], "tools[0].name"),
    "a function in the form of chat": ([chat_function("f")], "tools[0].name"),
    "a custom tool without a name": ([{"type": "custom"}], "tools[0].name"),
    "a custom tool whose format is no object": ([{**CUSTOM, "format": "text"}], "tools[0].format"),
    "a namespace without a name": ([{"type": "namespace", "tools": []}], "tools[0].name"),
    "a namespace whose tools are no list": ([{"type": "namespace", "name": "n", "tools": {"f": 1}}], "tools[0].tools"),
    "a function without a name in a namespace": (
        [WEB_SEARCH, {"type": "namespace", "name": "n", "tools": [function("f"), {"type": "function"}]}],
        "tools[1].tools[1].name",
    ),
}


@pytest.mark.parametrize(("tools", "param"), NO_TOOLS.values(), ids=NO_TOOLS)
def test_what_is_no_tool_is_named(tools: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_tools(tools)
    assert raised.value.param == param


def test_tools_of_every_known_kind_pass() -> None:
    check_tools([])
    check_tools([SHELL, LOCAL_SHELL, APPLY_PATCH, TOOL_SEARCH, {"type": "namespace", "name": "n", "tools": None}])
    check_tools([function("f"), WEB_SEARCH, MCP, CUSTOM, {"type": "namespace", "name": "n", "tools": []}])


# ── tool_choice ──────────────────────────────────────────────────────────────────────────────────────────────────────

F, G = function("f"), function("g")


def allowed(*tools: Any, mode: str | None = "auto") -> Json:
    return {"type": "allowed_tools", "mode": mode, "tools": [*tools]}


TOOLS = [F, G, WEB_SEARCH, CUSTOM, SHELL, namespace("n", F, G)]
ALL = ToolBook(TOOLS).chat
OFFERED = {tool["function"]["name"]: tool for tool in ALL}

# The choice, what a chat backend is sent, the only names that it may call, and the tools that it is offered with it.
CHOICES: dict[str, tuple[Any, Any, set[str] | None, list[Json]]] = {
    "none given": (None, None, None, ALL),
    "auto": ("auto", "auto", None, ALL),
    "none": ("none", "none", None, ALL),
    "required": ("required", "required", None, ALL),
    "a function": ({"type": "function", "name": "g"}, chat_function("g"), {"g"}, ALL),
    "a function in the form of chat": (chat_function("g"), chat_function("g"), {"g"}, ALL),
    "a function of a namespace": (
        {"type": "function", "name": "g", "namespace": "n"},
        chat_function("n__g"),
        {"n__g"},
        ALL,
    ),
    "a custom tool": ({"type": "custom", "name": "apply_patch"}, chat_function("apply_patch"), {"apply_patch"}, ALL),
    "the shell": ({"type": "shell"}, chat_function("shell"), {"shell"}, ALL),
    "one that is allowed": (allowed({"type": "function", "name": "g"}), "auto", {"g"}, ALL),
    "one that is allowed, and required": (
        allowed({"type": "function", "name": "g"}, mode="required"),
        chat_function("g"),
        {"g"},
        ALL,
    ),
    "two that are allowed, and required": (
        allowed({"type": "function", "name": "g"}, {"type": "shell"}, mode="required"),
        "required",
        {"g", "shell"},
        [OFFERED["g"], OFFERED["shell"]],
    ),
    "the mode is auto": (allowed({"type": "function", "name": "g"}, mode=None), "auto", {"g"}, ALL),
    "all are allowed": (allowed(*({"type": "function", "name": name} for name in "fg")), "auto", {"f", "g"}, ALL),
    "other kinds are allowed": (
        allowed({"type": "custom", "name": "apply_patch"}, {"type": "shell"}),
        "auto",
        {"apply_patch", "shell"},
        ALL,
    ),
    "a namespace is allowed": (allowed({"type": "namespace", "name": "n"}), "auto", {"n__f", "n__g"}, ALL),
    "hosted ones cannot be called, allowed or not": (allowed({"type": "web_search"}, G), "auto", {"g"}, ALL),
    "nothing that the backend could call": (allowed({"type": "web_search"}), "none", set(), ALL),
    "nothing at all": (allowed(), "none", set(), ALL),
}


@pytest.mark.parametrize(("choice", "sent", "only", "offered"), CHOICES.values(), ids=CHOICES)
def test_a_tool_choice_becomes_its_chat_form(
    choice: Any, sent: Any, only: set[str] | None, offered: list[Json]
) -> None:
    check_tool_choice(choice)
    expected = ToolChoice(sent, offered, None if only is None else frozenset(only))
    assert tool_choice_responses_to_chat(choice, ToolBook(TOOLS)) == expected


WRONG_CHOICES: dict[str, tuple[Any, str]] = {
    "an unknown word": ("sometimes", "tool_choice"),
    "no type": ({"name": "f"}, "tool_choice.type"),
    "a type that is no text": ({"type": ["function"], "name": "f"}, "tool_choice.type"),
    "a function that is not there": ({"type": "function", "name": "h"}, "tool_choice"),
    "a function without a name": ({"type": "function"}, "tool_choice"),
    "a function whose name is no text": ({"type": "function", "name": ["f"]}, "tool_choice"),
    "a function that is no object": ({"type": "function", "function": "f"}, "tool_choice"),
    "a function that is in a namespace": ({"type": "function", "name": "only_there"}, "tool_choice"),
    "a function that is a custom tool": ({"type": "function", "name": "apply_patch"}, "tool_choice"),
    "a custom tool that is a function": ({"type": "custom", "name": "f"}, "tool_choice"),
    "a custom tool that is not there": ({"type": "custom", "name": "h"}, "tool_choice"),
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
    book = ToolBook([*TOOLS, namespace("m", function("only_there"))])

    def begin() -> None:
        check_tool_choice(choice)
        tool_choice_responses_to_chat(choice, book)

    with pytest.raises(InvalidRequest) as raised:
        begin()
    assert raised.value.param == param


HOSTED_CHOICES: dict[str, Any] = {
    "a hosted tool": {"type": "web_search"},
    "a server's tool": {"type": "mcp", "server_label": "docs"},
    "a tool of the client that is not given": {"type": "local_shell"},
    "required, of hosted tools": allowed(WEB_SEARCH, mode="required"),
    "required, of none": allowed(mode="required"),
}


@pytest.mark.parametrize("choice", HOSTED_CHOICES.values(), ids=HOSTED_CHOICES)
def test_a_choice_that_no_chat_backend_can_be_given_is_named(choice: Any) -> None:
    check_tool_choice(choice)
    with pytest.raises(Unsupported) as raised:
        tool_choice_responses_to_chat(choice, ToolBook(TOOLS))
    assert raised.value.param == "tool_choice"


@pytest.mark.parametrize("tools", [[], [WEB_SEARCH]], ids=["no tools", "hosted tools alone"])
def test_a_backend_without_functions_cannot_be_required_to_call_one(tools: list[Json]) -> None:
    with pytest.raises(Unsupported) as raised:
        tool_choice_responses_to_chat("required", ToolBook(tools))
    assert raised.value.param == "tool_choice"
    assert tool_choice_responses_to_chat("auto", ToolBook(tools)) == ToolChoice("auto", []), "auto asks for nothing"
