"""Every kind of tool that clients run themselves, over HTTP: offered to a chat backend as a function, emitted to the
client as the item of its own kind, and given back with its output, by input and by previous_response_id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI

from tests.conftest import Running, running_router
from tests.fake_backend import Call, FakeBackend, call, chat, chunk, interleaved, reasoning, stream
from tests.sdk import MODEL, WEATHER_TOOL, check_raw, collected, strict_client, wire_events
from tests.streams import judged
from tests.turns import URL, assert_error, create

pytestmark = pytest.mark.usefixtures("strict_backend")

Json = dict[str, Any]
# A server of OpenAI's own; one that a client names by its URL is asked here (tests/test_mcp.py).
CONNECTOR: Json = {"type": "mcp", "server_label": "docs", "connector_id": "connector_gmail"}


@pytest.fixture
def strict(served: Running) -> AsyncOpenAI:
    return strict_client(served)


LARK = 'start: "*** Begin Patch" LF hunk+ "*** End Patch"'
TEXT = 'line 1\n\t"quoted" \\ / \x01 é 🙂\n'
PATCH = {"type": "update_file", "path": "a.txt", "diff": "@@\n-a\n+b\n"}
SCREEN = [
    {"stdout": "a.txt\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}},
    {"stdout": "", "stderr": "slow", "outcome": {"type": "timeout"}},
]


def grammar(syntax: str, definition: str) -> Json:
    return {"type": "grammar", "syntax": syntax, "definition": definition}


def namespace(name: str, *tools: Json) -> Json:
    return {"type": "namespace", "name": name, "description": f"The tools of {name}.", "tools": [*tools]}


def function(name: str) -> Json:
    return {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False}


@dataclass(frozen=True)
class Kind:
    """A tool, what the backend is offered and calls it with, the item that the client gets, and what the client
    answers."""

    tool: Json
    wire: str
    arguments: Json
    item: Json
    output: Json
    said: str
    # What the backend reads of the call afterwards, where that is not `arguments`.
    replayed: Json | None = None


SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Finds tools.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
}


def custom(format: Json | None = None) -> Kind:
    tool = {"type": "custom", "name": "patch", "description": "Changes files."}
    return Kind(
        tool if format is None else {**tool, "format": format},
        "patch",
        {"input": TEXT},
        {"type": "custom_tool_call", "name": "patch", "input": TEXT},
        {"type": "custom_tool_call_output", "output": "Done."},
        "Done.",
    )


KINDS: dict[str, Kind] = {
    "function": Kind(
        function("f"),
        "f",
        {"x": TEXT},
        {"type": "function_call", "name": "f", "arguments": orjson.dumps({"x": TEXT}).decode()},
        {"type": "function_call_output", "output": "42"},
        "42",
    ),
    "custom": custom(),
    "custom, text": custom({"type": "text"}),
    "custom, lark": custom(grammar("lark", LARK)),
    "custom, regex": custom(grammar("regex", "(?s).*")),
    "custom, with an output of parts": Kind(
        custom().tool,
        "patch",
        {"input": ""},
        {"type": "custom_tool_call", "name": "patch", "input": ""},
        {"type": "custom_tool_call_output", "output": [{"type": "input_text", "text": "Done."}]},
        "Done.",
    ),
    "namespace": Kind(
        namespace("mcp__echo", function("say"), function("add")),
        "mcp__echo__say",
        {"text": "hi"},
        {"type": "function_call", "name": "say", "namespace": "mcp__echo", "arguments": '{"text":"hi"}'},
        {"type": "function_call_output", "output": "hi"},
        "hi",
    ),
    "namespace, custom": Kind(
        namespace("functions", custom().tool),
        "functions__patch",
        {"input": TEXT},
        {"type": "custom_tool_call", "name": "patch", "namespace": "functions", "input": TEXT},
        {"type": "custom_tool_call_output", "output": "Done."},
        "Done.",
    ),
    "tool_search": Kind(
        SEARCH,
        "tool_search",
        {"query": "files"},
        {"type": "tool_search_call", "execution": "client", "arguments": {"query": "files"}},
        {
            "type": "tool_search_output",
            "execution": "client",
            "status": "completed",
            "tools": [namespace("files", function("read"), function("write"))],
        },
        "These tools can be called now: files__read, files__write",
    ),
    "tool_search that finds nothing": Kind(
        SEARCH,
        "tool_search",
        {"query": "files"},
        {"type": "tool_search_call", "execution": "client", "arguments": {"query": "files"}},
        {"type": "tool_search_output", "execution": "client", "status": "completed", "tools": []},
        "No tool was found.",
    ),
    "local_shell": Kind(
        {"type": "local_shell"},
        "local_shell",
        {"command": ["ls", "-l"], "working_directory": "/tmp", "timeout_ms": 1000},
        {
            "type": "local_shell_call",
            "action": {
                "type": "exec",
                "command": ["ls", "-l"],
                "env": {},
                "working_directory": "/tmp",
                "timeout_ms": 1000,
            },
        },
        {"type": "local_shell_call_output", "output": "total 0"},
        "total 0",
    ),
    "shell": Kind(
        {"type": "shell"},
        "shell",
        {"commands": ["ls", "sleep 9"], "timeout_ms": 1000},
        {
            "type": "shell_call",
            "action": {"commands": ["ls", "sleep 9"], "timeout_ms": 1000, "max_output_length": None},
        },
        {"type": "shell_call_output", "output": SCREEN},
        "a.txt\n\n(exit code 0)\nslow\n(it took too long)",
    ),
    "apply_patch": Kind(
        {"type": "apply_patch"},
        "apply_patch",
        PATCH,
        {"type": "apply_patch_call", "operation": PATCH},
        {"type": "apply_patch_call_output", "status": "failed", "output": "No such line."},
        "failed: No such line.",
    ),
    "apply_patch that deletes": Kind(
        {"type": "apply_patch"},
        "apply_patch",
        {"type": "delete_file", "path": "a.txt"},
        {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a.txt"}},
        {"type": "apply_patch_call_output", "status": "completed"},
        "completed",
    ),
}

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def calling(kind: Kind, **more: Any) -> Call:
    return call(kind.wire, kind.arguments, id="call_x", **more)


def bare(item: Json) -> Json:
    """An item without its id, and without nulls, which say nothing."""
    return {key: value for key, value in item.items() if key != "id" and value is not None}


def expected(kind: Kind) -> Json:
    return {**kind.item, "call_id": "call_x", "status": "completed"}


def response_of(events: list[Json]) -> Json:
    """The response that the events end with, if all of them can be read by everybody."""
    return judged(events)[-1]["response"]


@each_kind
async def test_a_call_comes_back_as_the_item_of_its_kind(
    kind: Kind, served: Running, strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.script(*[chat(calling(kind))] * 3)
    request: Json = {"model": MODEL, "input": "Go.", "tools": [kind.tool]}
    at_once = await strict.responses.create(**request)
    check_raw(await collected(await strict.responses.create(**request, stream=True)))
    streamed = response_of(await wire_events(served, tools=[kind.tool]))
    assert [bare(item) for item in streamed["output"]] == [expected(kind)]
    assert [bare(item.to_dict()) for item in at_once.output] == [expected(kind)]
    assert streamed["tools"][0].items() >= kind.tool.items(), "the tool is echoed as it was given"
    assert "x-nomyo-omitted-tools" not in (await served.http.post(URL, json=request)).headers
    for turn in backend.turns:
        offered = {tool["function"]["name"] for tool in turn.json["tools"]}
        assert kind.wire in offered


@each_kind
@pytest.mark.parametrize("fragments", [0, 1, 1000], ids=["in its first delta", "in one", "in single characters"])
async def test_the_stream_of_a_call_is_whole_however_it_arrives(
    kind: Kind, fragments: int, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(reasoning("Hm."), "I will.", calling(kind, fragments=fragments)))
    response = response_of(await wire_events(served, tools=[kind.tool]))
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", kind.item["type"]]
    assert bare(response["output"][-1]) == expected(kind)


async def test_the_text_of_a_custom_tool_streams_while_its_arguments_do(served: Running, backend: FakeBackend) -> None:
    kind = KINDS["custom"]
    backend.script(chat(calling(kind, fragments=1000)))
    events = await wire_events(served, tools=[kind.tool])
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert deltas == list(TEXT), "each character as it arrives"
    (done,) = [event for event in events if event["type"] == "response.custom_tool_call_input.done"]
    assert done["input"] == TEXT


async def test_calls_of_several_kinds_at_the_same_time_do_not_mix(served: Running, backend: FakeBackend) -> None:
    kinds = [KINDS[name] for name in ("custom", "function", "namespace", "shell", "apply_patch")]
    tools = [kind.tool for kind in kinds]
    backend.script(*[chat(interleaved(*(call(kind.wire, kind.arguments, fragments=9) for kind in kinds)))] * 2)
    streamed = response_of(await wire_events(served, tools=tools))
    at_once = await create(served.http, tools=tools)
    wanted = {(kind.item["type"], orjson.dumps(kind.item, option=orjson.OPT_SORT_KEYS)) for kind in kinds}
    for response in (streamed, at_once):
        items = [bare(item) for item in response["output"]]
        given = [{key: value for key, value in item.items() if key not in ("call_id", "status")} for item in items]
        given = [item if item["type"] != "shell_call" else KINDS["shell"].item for item in given]
        assert {(item["type"], orjson.dumps(item, option=orjson.OPT_SORT_KEYS)) for item in given} == wanted
        assert len({item["call_id"] for item in items}) == len(kinds)


# ── the way back ─────────────────────────────────────────────────────────────────────────────────────────────────────


def replayed_call(backend: FakeBackend) -> tuple[str, Any, Any]:
    """The name and arguments of the one call that the last request holds, and the content of its tool message."""
    messages = backend.turns[-1].json["messages"]
    (caller,) = [message for message in messages if message.get("tool_calls")]
    (answer,) = [message for message in messages if message["role"] == "tool"]
    (made,) = caller["tool_calls"]
    assert made["id"] == answer["tool_call_id"] == "call_x"
    assert messages.index(answer) == messages.index(caller) + 1
    return made["function"]["name"], orjson.loads(made["function"]["arguments"]), answer["content"]


def expected_call(kind: Kind) -> tuple[str, Any, Any]:
    return kind.wire, kind.arguments if kind.replayed is None else kind.replayed, kind.said


@each_kind
async def test_a_call_and_its_output_go_back_by_input(
    kind: Kind, served: Running, strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.script(chat(calling(kind)), chat("Done."), chat("Done."))
    request: Json = {"model": MODEL, "tools": [kind.tool], "store": False}
    asked = {"role": "user", "content": "Go."}
    first = await strict.responses.create(input=[asked], **request)
    output = {**kind.output, "call_id": "call_x"}
    again = [asked, *(item.to_dict() for item in first.output), output]
    second = await strict.responses.create(input=again, **request)
    assert second.output_text == "Done."
    assert replayed_call(backend) == expected_call(kind)
    # What clients leave out: the ids of items, and the status.
    short = [asked, {key: value for key, value in first.output[0].to_dict().items() if key not in ("id", "status")}]
    response_of(await wire_events(served, input=[*short, output], **request))
    assert replayed_call(backend) == expected_call(kind)


@each_kind
async def test_an_output_alone_goes_on_from_its_call(kind: Kind, served: Running, backend: FakeBackend) -> None:
    output = {**kind.output, "call_id": "call_x"}
    for stream_first in (False, True):
        backend.script(chat(calling(kind)), chat("Done."))
        first = (
            response_of(await wire_events(served, tools=[kind.tool]))
            if stream_first
            else await create(served.http, tools=[kind.tool])
        )
        second = await create(
            served.http, input=[output], previous_response_id=first["id"], tools=[kind.tool], instructions="Go on."
        )
        assert second["status"] == "completed"
        assert replayed_call(backend) == expected_call(kind)
        listed = (await served.http.get(f"{URL}/{second['id']}/input_items")).json()["data"]
        assert listed[0].items() >= output.items()
        assert listed[0]["id"]


@each_kind
async def test_a_call_whose_tool_is_not_given_any_more_is_emitted_all_the_same(
    kind: Kind, served: Running, backend: FakeBackend
) -> None:
    items = [
        {"role": "user", "content": "Go."},
        {**kind.item, "call_id": "call_x"},
        {**kind.output, "call_id": "call_x"},
    ]
    await create(served.http, input=items)
    name, arguments, _ = replayed_call(backend)
    assert (name, arguments) == expected_call(kind)[:2]


@each_kind
async def test_a_call_without_an_output_and_an_output_without_a_call_are_refused(
    kind: Kind, served: Running, backend: FakeBackend
) -> None:
    made, output = {**kind.item, "call_id": "call_x"}, {**kind.output, "call_id": "call_x"}
    for items, says in (
        ([made], "No tool output found"),
        ([output], "No tool call found"),
        ([made, output, output], "Duplicate"),
        ([made, made, output], "No tool output found"),
    ):
        answer = await served.http.post(URL, json={"model": MODEL, "input": items, "tools": [kind.tool]})
        assert_error(answer, 400, type="invalid_request_error", says=says)
    assert not backend.turns


async def test_the_output_of_a_local_shell_may_name_its_call_by_id(served: Running, backend: FakeBackend) -> None:
    kind = KINDS["local_shell"]
    items = [{**kind.item, "id": "lsh_1", "call_id": "call_x"}, {**kind.output, "id": "call_x"}]
    await create(served.http, input=items, tools=[kind.tool])
    assert replayed_call(backend) == expected_call(kind)


async def test_a_picture_in_the_output_of_a_custom_tool_is_shown(served: Running, backend: FakeBackend) -> None:
    kind, picture = KINDS["custom"], "data:image/png;base64,AAAA"
    parts = [{"type": "input_text", "text": "See."}, {"type": "input_image", "image_url": picture, "detail": "high"}]
    items = [{**kind.item, "call_id": "c"}, {"type": "custom_tool_call_output", "call_id": "c", "output": parts}]
    await create(served.http, input=items, tools=[kind.tool])
    *_, tool, shown = backend.turns[-1].json["messages"]
    assert (tool["role"], shown["role"]) == ("tool", "user")
    assert shown["content"] == [{"type": "image_url", "image_url": {"url": picture, "detail": "high"}}]


# ── where tools come from ────────────────────────────────────────────────────────────────────────────────────────────


def offered(backend: FakeBackend) -> list[str]:
    return [tool["function"]["name"] for tool in backend.turns[-1].json.get("tools", [])]


async def test_the_tools_that_a_search_found_can_be_called(served: Running, backend: FakeBackend) -> None:
    search = KINDS["tool_search"]
    backend.script(chat(calling(search)), chat(call("files__read", {"path": "a"})), chat("It is empty."))
    first = await create(served.http, tools=[SEARCH])
    assert offered(backend) == ["tool_search"]
    found = {**search.output, "call_id": "call_x"}
    second = response_of(await wire_events(served, input=[found], previous_response_id=first["id"], tools=[SEARCH]))
    assert offered(backend) == ["tool_search", "files__read", "files__write"]
    (made,) = second["output"]
    assert (made["type"], made["name"], made["namespace"]) == ("function_call", "read", "files")
    assert second["tools"] == [SEARCH], "the request is echoed, and nothing else"
    read = {"type": "function_call_output", "call_id": made["call_id"], "output": ""}
    await create(served.http, input=[read], previous_response_id=second["id"], tools=[SEARCH])
    assert offered(backend) == ["tool_search", "files__read", "files__write"], "also in the turn after"


async def test_tools_that_are_an_input_item_can_be_called(served: Running, backend: FakeBackend) -> None:
    """As Codex gives them in its code mode: no `tools` at all."""
    backend.script(chat(call("functions__exec", {"input": "ls"})), chat("Done."))
    tools = [
        namespace("functions", {"type": "custom", "name": "exec", "format": grammar("lark", LARK)}, function("wait"))
    ]
    brought = {"type": "additional_tools", "role": "developer", "id": "at_1", "tools": tools}
    asked = {"type": "message", "role": "user", "content": "Go."}
    first = response_of(await wire_events(served, input=[brought, asked], parallel_tool_calls=False))
    assert offered(backend) == ["functions__exec", "functions__wait"]
    assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["user"]
    (made,) = first["output"]
    assert (made["type"], made["name"], made["namespace"], made["input"]) == (
        "custom_tool_call",
        "exec",
        "functions",
        "ls",
    )
    output = {"type": "custom_tool_call_output", "call_id": made["call_id"], "output": "a.txt"}
    await create(served.http, input=[output], previous_response_id=first["id"])
    assert offered(backend) == ["functions__exec", "functions__wait"], "they are in the history"


async def test_namespaces_whose_names_would_meet_keep_their_tools_apart(served: Running, backend: FakeBackend) -> None:
    tools = [
        namespace("a", function("b__c")),
        namespace("a__b", function("c")),
        namespace("n" * 64, function("f" * 64)),
    ]
    await create(served.http, tools=tools)
    names = offered(backend)
    assert len(set(names)) == 3
    assert all(len(name) <= 64 for name in names)
    backend.script(*[chat(*map(call, names))] * 2)
    wanted = [("b__c", "a"), ("c", "a__b"), ("f" * 64, "n" * 64)]
    streamed = response_of(await wire_events(served, tools=tools))
    assert [(item["name"], item["namespace"]) for item in streamed["output"]] == wanted
    at_once = await create(served.http, tools=tools)
    assert [(item["name"], item["namespace"]) for item in at_once["output"]] == wanted
    outputs = [{"type": "function_call_output", "call_id": item["call_id"], "output": ""} for item in at_once["output"]]
    await create(served.http, input=outputs, previous_response_id=at_once["id"], tools=tools)
    calls = backend.turns[-1].json["messages"][1]["tool_calls"]
    assert [made["function"]["name"] for made in calls] == names, "the backend finds its own names in the history"


async def test_hosted_tools_are_left_out_echoed_and_named(served: Running, backend: FakeBackend) -> None:
    tools = [{"type": "web_search"}, function("f"), CONNECTOR]
    for stream_it in (False, True):
        answer = await served.http.post(URL, json={"model": MODEL, "input": "Hi", "tools": tools, "stream": stream_it})
        assert answer.headers["x-nomyo-omitted-tools"] == "web_search, mcp:docs"
        assert offered(backend) == ["f"]
    assert [tool["type"] for tool in (await create(served.http, tools=tools))["tools"]] == [
        "web_search",
        "function",
        "mcp",
    ]


# ── choices ──────────────────────────────────────────────────────────────────────────────────────────────────────────

THREE = [function("f"), KINDS["custom"].tool, {"type": "shell"}]


def allowed(mode: str, *tools: Json) -> Json:
    return {"type": "allowed_tools", "mode": mode, "tools": [*tools]}


F, PATCHES = {"type": "function", "name": "f"}, {"type": "custom", "name": "patch"}


@pytest.mark.parametrize(
    ("choice", "names", "sent"),
    [
        (allowed("auto", F), ["f"], "auto"),
        (allowed("auto", PATCHES, {"type": "shell"}), ["patch", "shell"], "auto"),
        (allowed("required", F), ["f"], {"type": "function", "function": {"name": "f"}}),
        (allowed("required", F, PATCHES), ["f", "patch"], "required"),
        (allowed("auto"), [], "none"),
    ],
    ids=["auto", "auto, two", "required", "required, two", "none"],
)
async def test_only_calls_of_allowed_tools_reach_the_client(
    choice: Json, names: list[str], sent: Any, served: Running, backend: FakeBackend
) -> None:
    """The backend calls all that there are, whatever it was sent."""
    calls = [call("f"), call("patch", {"input": "x"}), call("shell", {"commands": ["ls"]}), call("made_up")]
    for answer in (chat("Well.", *calls), chat("Well.", interleaved(*calls))):
        backend.script(answer, answer)
        streamed = response_of(await wire_events(served, tools=THREE, tool_choice=choice))
        at_once = await create(served.http, tools=THREE, tool_choice=choice)
        kinds = {"f": "function_call", "patch": "custom_tool_call", "shell": "shell_call"}
        for response in (streamed, at_once):
            assert [item["type"] for item in response["output"]] == ["message", *(kinds[name] for name in names)]
            assert response["tool_choice"] == choice
        assert backend.turns[-1].json["tool_choice"] == sent
    if sent != "required":
        assert offered(backend) == ["f", "patch", "shell"], "all stay visible"


async def test_a_forbidden_call_is_not_emitted_whatever_form_its_deltas_have(
    served: Running, backend: FakeBackend
) -> None:
    def delta(index: int | None, id: str | None = None, name: str | None = None, arguments: str = "") -> bytes:
        function = {"arguments": arguments, **({"name": name} if name else {})}
        made = {"function": function, **({"id": id} if id else {}), **({} if index is None else {"index": index})}
        return chunk({"tool_calls": [made]})

    end = chunk({}, finish_reason="tool_calls")
    forms = {
        "the name comes later": [delta(0, "c1"), delta(0, name="g", arguments="{}"), delta(1, "c2", "f", "{}")],
        "all have the index 0": [delta(0, "c1", "g", "{}"), delta(0, "c2", "f", "{}")],
        "no index": [delta(None, "c1", "g", "{"), delta(None, arguments="}"), delta(None, "c2", "f", "{}")],
        "arguments in pieces": [
            delta(0, "c1", "g", "{"),
            delta(1, "c2", "f", "{"),
            delta(0, arguments="}"),
            delta(1, arguments="}"),
        ],
    }
    for form, deltas in forms.items():
        backend.script(stream(*deltas, end))
        tools = [function("f"), function("g")]
        response = response_of(await wire_events(served, tools=tools, tool_choice=allowed("auto", F)))
        made = [(item["name"], item["arguments"]) for item in response["output"]]
        assert made == [("f", "{}")], f"{form}: {made}"


async def test_one_call_alone_is_emitted_without_parallel_calls(served: Running, backend: FakeBackend) -> None:
    calls = [call("patch", {"input": "x"}, fragments=2), call("f", fragments=2), call("shell", {"commands": ["ls"]})]
    for answer in (chat(*calls), chat(interleaved(*calls))):
        backend.script(answer, answer)
        streamed = response_of(await wire_events(served, tools=THREE, parallel_tool_calls=False))
        at_once = await create(served.http, tools=THREE, parallel_tool_calls=False)
        for response in (streamed, at_once):
            assert [(item["type"], item["input"]) for item in response["output"]] == [("custom_tool_call", "x")]
        assert backend.turns[-1].json["parallel_tool_calls"] is False


NATIVE_CHOICES: dict[str, tuple[Json, Json, str]] = {
    "custom": ({"type": "custom", "name": "patch"}, KINDS["custom"].tool, "patch"),
    "shell": ({"type": "shell"}, {"type": "shell"}, "shell"),
    "local_shell": ({"type": "local_shell"}, {"type": "local_shell"}, "local_shell"),
    "apply_patch": ({"type": "apply_patch"}, {"type": "apply_patch"}, "apply_patch"),
    "a tool of a namespace": (
        {"type": "function", "name": "say", "namespace": "mcp__echo"},
        KINDS["namespace"].tool,
        "mcp__echo__say",
    ),
}


@pytest.mark.parametrize(("choice", "tool", "name"), NATIVE_CHOICES.values(), ids=NATIVE_CHOICES)
async def test_a_tool_of_any_kind_can_be_demanded(
    choice: Json, tool: Json, name: str, served: Running, backend: FakeBackend
) -> None:
    response = await create(served.http, tools=[WEATHER_TOOL, tool], tool_choice=choice)
    assert backend.turns[-1].json["tool_choice"] == {"type": "function", "function": {"name": name}}
    assert response["tool_choice"] == choice


@pytest.mark.parametrize("choice", [{"type": "web_search"}, {"type": "mcp", "server_label": "d"}, {"type": "shell"}])
async def test_a_tool_that_the_backend_cannot_use_cannot_be_demanded(
    choice: Json, served: Running, backend: FakeBackend
) -> None:
    tools = [{"type": "web_search"}, CONNECTOR | {"server_label": "d"}, WEATHER_TOOL]
    for stream_it in (False, True):
        body = {"model": MODEL, "input": "Hi", "tools": tools, "tool_choice": choice, "stream": stream_it}
        assert_error(await served.http.post(URL, json=body), 400, type="invalid_request_error", param="tool_choice")
    assert not backend.turns


# ── calls that are cut ───────────────────────────────────────────────────────────────────────────────────────────────

CUT = {
    name: KINDS[name]
    for name in ("function", "custom", "namespace", "tool_search", "local_shell", "shell", "apply_patch")
}


@pytest.mark.parametrize("kind", CUT.values(), ids=CUT)
@pytest.mark.parametrize("before", [(), ("\n\n",), ("I will.",)], ids=["alone", "behind white space", "behind a text"])
async def test_a_call_that_is_cut_is_never_completed(
    kind: Kind, before: tuple[str, ...], served: Running, backend: FakeBackend
) -> None:
    arguments = orjson.dumps(kind.arguments).decode()
    for size in (len(arguments) // 2, 3, 1):
        half = call(kind.wire, arguments[:size], id="call_x", fragments=2)
        backend.script(*[chat(*before, half, finish_reason="length")] * 2)
        streamed = response_of(await wire_events(served, tools=[kind.tool]))
        at_once = await create(served.http, tools=[kind.tool])
        for response in (streamed, at_once):
            assert (response["status"], response["incomplete_details"]) == (
                "incomplete",
                {"reason": "max_output_tokens"},
            )
            calls = [item for item in response["output"] if item["type"] != "message"]
            assert all(item["status"] != "completed" for item in calls), f"half a call is whole: {calls}"
            if kind.item["type"] == "custom_tool_call":
                assert TEXT.startswith(calls[-1]["input"]), f"{calls[-1]['input']!r} is no beginning of the text"


@pytest.mark.parametrize("kind", CUT.values(), ids=CUT)
async def test_a_conversation_goes_on_behind_a_call_that_was_cut(
    kind: Kind, served: Running, strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    arguments = orjson.dumps(kind.arguments).decode()
    backend.script(chat("I will.", call(kind.wire, arguments[: len(arguments) // 2]), finish_reason="length"))
    first = await create(served.http, tools=[kind.tool])
    second = await strict.responses.create(
        model=MODEL, input="Go on.", previous_response_id=first["id"], tools=[kind.tool]
    )
    assert second.status == "completed"
    assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("kind", CUT.values(), ids=CUT)
async def test_arguments_that_are_no_json_never_make_a_whole_call_of_a_kind_that_needs_an_object(
    kind: Kind, served: Running, backend: FakeBackend
) -> None:
    backend.script(*[chat(call(kind.wire, '{"half": ["of', fragments=2))] * 2)
    streamed = response_of(await wire_events(served, tools=[kind.tool]))
    at_once = await create(served.http, tools=[kind.tool])
    for response in (streamed, at_once):
        for item in response["output"]:
            if item["type"] in ("function_call", "custom_tool_call"):
                said = item.get("arguments") or item.get("input")
                assert said == '{"half": ["of', "the client sees what the model said, and judges it"
            else:
                assert item["status"] != "completed", f"there is nothing to run, but it is whole: {item}"


# ── tools that only OpenAI runs ──────────────────────────────────────────────────────────────────────────────────────

HOSTED: dict[str, tuple[list[Json], str]] = {
    "one": ([{"type": "web_search"}], "web_search"),
    "among others": ([function("f"), {"type": "web_search"}], "web_search"),
    "several": ([CONNECTOR, {"type": "computer"}], "mcp:docs"),
}


@pytest.mark.parametrize(("tools", "name"), HOSTED.values(), ids=HOSTED)
async def test_hosted_tools_are_refused_where_the_settings_say_so(
    tools: list[Json], name: str, backend: FakeBackend
) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, hosted_tools="refuse") as running:
        for stream in (False, True):
            body = {"model": MODEL, "input": "Hi", "tools": tools, "stream": stream}
            answer = await running.http.post(URL, json=body)
            assert_error(answer, 400, type="invalid_request_error", param="tools", code="unsupported_tool", says=name)
            assert "x-nomyo-omitted-tools" not in answer.headers
        assert not backend.turns, "the backend was asked"
        assert running.in_flight() == 0
        await create(running.http, tools=[function("f"), {"type": "custom", "name": "g"}, {"type": "shell"}])
        assert len(backend.turns) == 1, "tools that the client runs are no hosted ones"
    async with running_router(endpoints=endpoints, hosted_tools="omit") as running:
        answer = await running.http.post(URL, json={"model": MODEL, "input": "Hi", "tools": tools})
        assert answer.status_code == 200, answer.text
        assert name in answer.headers["x-nomyo-omitted-tools"]


async def test_a_backend_that_runs_hosted_tools_is_given_them_in_any_case(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai"}]
    async with running_router(endpoints=endpoints, hosted_tools="refuse") as running:
        await create(running.http, tools=[{"type": "web_search"}])
    assert backend.turns[-1].json["tools"] == [{"type": "web_search"}]
