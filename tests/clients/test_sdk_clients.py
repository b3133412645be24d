"""The clients that people use, with the router before a strict chat backend: what each gave its user, and what the
model was sent.

    script ──the client's own API──▶ client ──Responses──▶ router ──chat completions──▶ FakeBackend(strict=True)

A script runs all scenarios of its client in one process. The name of a scenario is its model, and the backend answers
by it. What a scenario gives and sends is the same for all clients. `make clients` installs them.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from api.turns.compaction import SUMMARIZE
from api.turns.hosted.image_generation import MADE
from requests.events import ResponseBuilder
from requests.file_search import DATA
from requests.messages import ATTACHED, SUMMARY
from requests.web_search import DATA as WEB_DATA
from tests.conftest import running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    Reply,
    call,
    chat,
    chat_usage,
    http_error,
    interleaved,
    json_answer,
    reasoning,
    sse_error,
)
from tests.mcp_server import PNG, hosted_tools_of, mcp_server

Json = dict[str, Any]

HERE = Path(__file__).parent
PICTURE = base64.b64encode(PNG).decode()
NODE_MODULES = HERE / "node" / "node_modules"
TIMEOUT_S = 50


# ── what the model says, what the client makes of it, what the model was sent ────────────────────────────────────────


@dataclass(frozen=True)
class Scenario:
    """`answers` has an answer for each turn of the backend; `gives` is what the script prints; `sent` is the transcript
    of each turn, and `asks` what the first one holds besides."""

    answers: tuple[Answer, ...]
    gives: Json
    sent: tuple[tuple[str, ...], ...]
    asks: Json = field(default_factory=dict)


def given(**properties: str) -> Json:
    """The parameters of a function, as every client writes them."""
    return {"type": "object", "properties": {name: {"type": type} for name, type in properties.items()}}


PARIS, OSLO = call("get_weather", {"city": "Paris"}), call("get_weather", {"city": "Oslo"})
HELLO = "Hello there."
GREETING = Scenario((chat(HELLO),), {"text": HELLO}, (("user: Say hello.",),))
BRIEF = Scenario(
    (chat(HELLO, usage=chat_usage(11, 4, cached=8, reasoning=1)),),
    {"text": HELLO, "usage": {"input": 11, "cached": 8, "output": 4, "reasoning": 1}},
    (("system: Be brief.", "user: Say hello."),),
)
WEATHER_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": given(city="string")}}
BOTH = ("user: The weather in Paris and Oslo?",)
BOTH_CALLED = (*BOTH, "assistant: get_weather(city=Paris) get_weather(city=Oslo)", "tool: sunny", "tool: rain")
TOOLS = Scenario(
    (chat(PARIS, OSLO), chat("Sun and rain.")),
    {"calls": [["get_weather", {"city": "Paris"}], ["get_weather", {"city": "Oslo"}]], "text": "Sun and rain."},
    (BOTH, BOTH_CALLED),
    {"tools": [WEATHER_TOOL]},
)
THOUGHT = Scenario(
    (chat(reasoning("Let me look."), PARIS), chat("Sun.")),
    {"reasoning": "Let me look.", "text": "Sun."},
    (
        ("user: The weather in Paris?",),
        ("user: The weather in Paris?", "assistant: (Let me look.) get_weather(city=Paris)", "tool: sunny"),
    ),
)
ADA = '{"name":"Ada","age":36}'
PERSON = given(name="string", age="integer")
TYPED = Scenario(
    (chat(ADA),),
    {"name": "Ada", "age": 36},
    (("user: Who was Ada?",),),
    {"response_format": {"type": "json_schema", "json_schema": {"schema": PERSON}}},
)
FRANCE = "user: The capital of France?"
CAPITALS = Scenario(
    (chat("Paris."), chat("Oslo.")),
    {"texts": ["Paris.", "Oslo."]},
    ((FRANCE,), (FRANCE, "assistant: Paris.", "user: And of Norway?")),
)
SHELL = call("shell", {"commands": ["ls"]})
PATCH = call("apply_patch", {"type": "create_file", "path": "a.txt", "diff": "+a\n"})
# The tool of a server of MCP, which the router runs.
TRIP = Scenario(
    (chat(call("trips__plan", {"city": "Rome"})), chat("Pack.")),
    {"calls": [["plan", {"city": "Rome"}]], "outputs": ["Go to Rome."], "text": "Pack."},
    (("user: Plan a trip.",), ("user: Plan a trip.", "assistant: trips__plan(city=Rome)", "tool: Go to Rome.")),
)
RAN = Scenario(
    (chat(call("code_interpreter", {"code": "print(1)"})), chat("One.")),
    {"code": ["print(1)"], "logs": ["ran 8"], "text": "One."},
    (("user: Count.",), ("user: Count.", "assistant: code_interpreter(code=print(1))", "tool: ran 8")),
)
PASSAGES = "\n\n".join([DATA, *(f"【{n + 1}】 {n}.md\nmoss in {n}" for n in range(4))])
FOUND = Scenario(
    (chat(call("file_search", {"queries": ["moss"]})), chat("Green【1】.")),
    {"queries": ["moss"], "files": ["0.md", "1.md", "2.md", "3.md"], "cited": ["0.md"], "text": "Green."},
    (("user: Moss?",), ("user: Moss?", "assistant: file_search(queries=['moss'])", f"tool: {PASSAGES}")),
)
DRAWN = Scenario(
    (chat(call("image_generation", {"prompt": "a cat"})), chat("Here.")),
    {"is_png": True, "text": "Here."},
    (
        ("user: Draw a cat.",),
        (
            "user: Draw a cat.",
            "assistant: image_generation(prompt=a cat)",
            f"tool: {MADE}\n{ATTACHED}",
            "user: [image_url]",
        ),
    ),
)
PAGE = "http://moss.example/"
WEB = Scenario(
    (chat(call("web_search", {"query": "moss"})), chat("Green 【1】.")),
    {"cited": [PAGE], "text": f"Green ([moss.example]({PAGE}))."},
    (
        ("user: Moss?",),
        ("user: Moss?", "assistant: web_search(query=moss)", f"tool: {WEB_DATA}\n\n【1】 Moss\n{PAGE}\nIt is green."),
    ),
)
SUMMED_UP = f"user: {SUMMARY}\n\nShe is Ada."

SCENARIOS = {
    "hello": GREETING,
    "hello_stream": Scenario(
        GREETING.answers, GREETING.gives | {"deltas": ["Hello", " there."]}, GREETING.sent, {"stream": True}
    ),
    "text": BRIEF,
    "stream": Scenario(BRIEF.answers, BRIEF.gives | {"deltas": ["Hello", " there."]}, BRIEF.sent, {"stream": True}),
    "reasoning": THOUGHT,
    "summary": Scenario(THOUGHT.answers, THOUGHT.gives, THOUGHT.sent, {"stream": True}),
    "sealed": Scenario(THOUGHT.answers, {"text": "Sun."}, THOUGHT.sent),
    "referred": Scenario(THOUGHT.answers, {"text": "Sun."}, THOUGHT.sent),
    "tools": TOOLS,
    "tools_stream": Scenario(TOOLS.answers, TOOLS.gives, TOOLS.sent, TOOLS.asks | {"stream": True}),
    "interleaved": Scenario(
        (chat(interleaved(PARIS, OSLO)), TOOLS.answers[1]), TOOLS.gives, TOOLS.sent, TOOLS.asks | {"stream": True}
    ),
    "auto_chain": TOOLS,
    "conversation": Scenario(
        TOOLS.answers,
        TOOLS.gives | {"types": ["message", *["function_call"] * 2, *["function_call_output"] * 2, "message"]},
        TOOLS.sent,
        TOOLS.asks,
    ),
    # It names the response before, and sends some of what that has again. The tool may have another name.
    "resent": Scenario(TOOLS.answers, TOOLS.gives, TOOLS.sent),
    "resent_stream": Scenario(TOOLS.answers, TOOLS.gives, TOOLS.sent, {"stream": True}),
    "tool_runner": Scenario(TOOLS.answers, {"text": "Sun and rain."}, TOOLS.sent, TOOLS.asks),
    "tool_choice": Scenario(
        (chat(call("find", {"city": "Paris"})),),
        {"calls": [["find", {"city": "Paris"}]]},
        (("user: Find Paris.",),),
        {"tool_choice": {"type": "function", "function": {"name": "find"}}},
    ),
    "structured": TYPED,
    "structured_stream": Scenario(TYPED.answers, TYPED.gives, TYPED.sent, TYPED.asks | {"stream": True}),
    "structured_by_function": Scenario(
        (chat(call("Person", ADA)),),
        TYPED.gives,
        TYPED.sent,
        {"tools": [{"type": "function", "function": {"name": "Person", "parameters": PERSON}}]},
    ),
    "json_mode": Scenario(
        TYPED.answers, TYPED.gives, (("user: Who was Ada, in JSON?",),), {"response_format": {"type": "json_object"}}
    ),
    "chain": CAPITALS,
    "history": CAPITALS,
    "session": CAPITALS,
    "conversations_session": Scenario(
        CAPITALS.answers, CAPITALS.gives | {"roles": ["user", "assistant"] * 2}, CAPITALS.sent
    ),
    "websocket": CAPITALS,
    "websocket_tools": Scenario(
        (*TOOLS.answers, chat("Any time.")),
        {"calls": TOOLS.gives["calls"], "texts": ["Sun and rain.", "Any time."]},
        (*TOOLS.sent, (*BOTH_CALLED, "assistant: Sun and rain.", "user: Thanks.")),
        TOOLS.asks,
    ),
    "image": Scenario((chat("A pixel."),), {"text": "A pixel."}, (("user: What is this? [image_url]",),)),
    "length": Scenario(
        (chat("One two", finish_reason="length"),),
        {"text": "One two", "finish": ["length"]},
        (("user: Count.",),),
        {"max_tokens": 16},
    ),
    "refused": Scenario(
        (http_error(400, "it is too long", code="context_length_exceeded"),),
        {"error": "BadRequestError", "status": 400, "code": "context_length_exceeded"},
        (("user: Too long.",),),
    ),
    "broken": Scenario(
        (chat("One two", then=sse_error("the model broke")),),
        {"deltas": ["One", " two"], "error": "APIError", "message": "The backend failed: the model broke"},
        (("user: Go on.",),),
    ),
    "stored": Scenario(
        GREETING.answers,
        {
            "text": HELLO,
            "input": [{"type": "input_text", "text": "Say hello."}],
            "ends": ["response.created", "response.completed"],
            "gone": 404,
        },
        GREETING.sent,
    ),
    "background": Scenario(GREETING.answers, {"begun": True, "status": "completed", "text": HELLO}, GREETING.sent),
    "polled": GREETING,
    "compact": Scenario(
        (chat("She is Ada."), chat("Ada.")),
        {"types": ["message", "compaction"], "text": "Ada."},
        (("user: I am Ada.", f"user: {SUMMARIZE}"), ("user: I am Ada.", SUMMED_UP, "user: Who am I?")),
    ),
    "compact_session": Scenario(
        (chat("Hello."), chat("She is Ada."), chat("Ada.")),
        {"types": ["message", "compaction"], "text": "Ada."},
        (
            ("user: I am Ada.",),
            ("user: I am Ada.", "assistant: Hello.", f"user: {SUMMARIZE}"),
            ("user: I am Ada.", SUMMED_UP, "user: Who am I?"),
        ),
    ),
    "hosted_tool": GREETING,
    "custom_tool": Scenario(
        (chat(call("note", {"input": 'one\n"two"'})), chat("Done.")),
        {"input": 'one\n"two"', "text": "Done."},
        (("user: Note it.",), ("user: Note it.", 'assistant: note(input=one\n"two")', "tool: noted")),
    ),
    "shell": Scenario(
        (chat(SHELL), chat("One file.")),
        {"commands": [["ls"]], "text": "One file."},
        (
            ("user: List the files.",),
            ("user: List the files.", "assistant: shell(commands=['ls'])", "tool: a.txt\n(exit code 0)"),
        ),
    ),
    "apply_patch": Scenario(
        (chat(PATCH), chat("Made.")),
        {"operations": [["create_file", "a.txt", "+a\n"]], "text": "Made."},
        (
            ("user: Make a file.",),
            (
                "user: Make a file.",
                "assistant: apply_patch(diff=+a\n, path=a.txt, type=create_file)",
                "tool: completed: made",
            ),
        ),
    ),
    "code": RAN,
    "files": FOUND,
    "picture": DRAWN,
    "web": WEB,
    "mcp": TRIP,
    "mcp_approval": TRIP,
    "mcp_session": Scenario(
        (*TRIP.answers, chat("Any time.")),
        TRIP.gives
        | {
            "types": ["message", "mcp_list_tools", "mcp_call", "message", "message", "message"],
            "texts": ["Pack.", "Any time."],
        },
        (*TRIP.sent, (*TRIP.sent[1], "assistant: Pack.", "user: Thanks.")),
    ),
    "handoff": Scenario(
        (chat(call("transfer_to_clerk")), chat("Here it is.")),
        {"agent": "clerk", "text": "Here it is."},
        (
            ("user: A stamp, please.",),
            (
                "system: You are the clerk.",
                "user: A stamp, please.",
                "assistant: transfer_to_clerk()",
                'tool: {"assistant": "clerk"}',
            ),
        ),
    ),
}


# ── the clients ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Client:
    """`scenarios` in the order in which they run; `otherwise` is what this client gives or sends in words of its
    own; `folder` is where its script and its environment are."""

    script: str
    scenarios: str
    otherwise: dict[str, Json] = field(default_factory=dict)
    folder: str = "python"

    @property
    def is_python(self) -> bool:
        return self.script.endswith(".py")

    @property
    def python(self) -> Path:
        return HERE / self.folder / ".venv" / "bin" / "python"

    @property
    def missing(self) -> str | None:
        """Why it cannot run here."""
        if self.is_python:
            return None if self.python.exists() else f"the clients in {self.folder}/ are not: `make clients` does it"
        if shutil.which("npm") is None or shutil.which("node") is None:
            return "node and npm are not installed"
        return None if (NODE_MODULES / "ai").is_dir() else "the node clients are not installed: `make clients` does it"

    @property
    def command(self) -> list[str]:
        return (
            [str(self.python), str(HERE / self.folder / self.script)]
            if self.is_python
            else ["node", str(HERE / "node" / self.script)]
        )


INCOMPLETE = {"finish": ["incomplete", "max_output_tokens"]}
AI_SDK = {"refused": {"error": "AI_APICallError"}, "broken": {"error": "AI_StreamProviderError"}}
CLIENTS = {
    "openai-python": Client(
        "openai_python.py",
        "text stream reasoning tools tools_stream structured chain image length refused broken stored background "
        "compact custom_tool websocket mcp mcp_approval code files picture web",
        {"length": INCOMPLETE},
    ),
    "openai-agents": Client(
        "agents_python.py",
        "text stream reasoning tools tools_stream structured chain image refused broken session auto_chain "
        "conversations_session conversation compact_session handoff hosted_tool custom_tool shell apply_patch "
        "websocket_tools mcp mcp_approval mcp_session code files picture web",
    ),
    "langchain-openai": Client(
        "langchain_python.py",
        "text stream summary sealed tools tools_stream structured structured_by_function json_mode chain history image "
        "length refused broken custom_tool mcp mcp_approval code files picture web",
        {"length": INCOMPLETE, "refused": {"error": "OpenAIInvalidRequestError"}},
    ),
    "pydantic-ai": Client(
        "pydantic_ai_python.py",
        "text stream reasoning tools tools_stream structured structured_by_function chain history image length refused "
        "broken polled websocket_tools mcp code files picture web",
        {"refused": {"error": "ModelContextWindowExceededError"}, "broken": {"error": "ModelServerError"}},
    ),
    "agno": Client(
        "agno_python.py",
        "hello hello_stream tools tools_stream interleaved structured history",
        folder="frameworks",
    ),
    "camel": Client("camel_python.py", "hello resent resent_stream chain", folder="frameworks"),
    "langgraph": Client("langgraph_python.py", "tools tools_stream interleaved history chain", folder="frameworks"),
    "llama-index": Client(
        "llama_index_python.py",
        "hello hello_stream tools_stream interleaved auto_chain structured history",
        folder="frameworks",
    ),
    "semantic-kernel": Client(
        "semantic_kernel_python.py", "hello hello_stream resent resent_stream chain", folder="frameworks"
    ),
    "strands": Client(
        "strands_python.py", "hello_stream tools_stream interleaved auto_chain history chain", folder="frameworks"
    ),
    "openai-node": Client(
        "openai_node.mjs",
        "text stream reasoning tools tools_stream structured chain image length refused broken stored background "
        "compact custom_tool tool_runner websocket mcp mcp_approval code files picture web",
        {"length": INCOMPLETE},
    ),
    "ai-sdk-openai": Client(
        "ai_sdk_openai.mjs",
        "text stream summary sealed referred tools tools_stream structured structured_stream chain history image "
        "length refused broken tool_choice hosted_tool custom_tool shell apply_patch mcp mcp_approval code files "
        "picture web",
        AI_SDK,
    ),
    "ai-sdk-open-responses": Client(
        "ai_sdk_open_responses.mjs",
        "text stream reasoning tools tools_stream structured structured_stream history image length refused broken "
        "tool_choice",
        AI_SDK,
    ),
}


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Ran:
    """What came of all scenarios of a client: by scenario, what it printed, what the backend was sent, what it still
    had to say."""

    printed: dict[str, Json]
    sent: dict[str, list[Json]]
    unused: dict[str, int]
    in_flight: int
    log: str


@functools.cache
def ran(name: str) -> Ran:
    return asyncio.run(_run(CLIENTS[name]))


@functools.cache
def ran_in_silence(name: str) -> Ran:
    """The same, before a backend that is silent for long before each piece: streams begin by themselves and are full of
    `keepalive`s."""
    with pytest.MonkeyPatch.context() as patched:
        write = Reply.write

        async def write_late(self: Reply, data: bytes) -> None:
            await asyncio.sleep(0.02)
            await write(self, data)

        kept_alive: list[Json] = []
        keep_alive = ResponseBuilder.keep_alive

        def counted(self: ResponseBuilder) -> list[Json]:
            kept_alive.extend(events := keep_alive(self))
            return events

        patched.setattr(ResponseBuilder, "keep_alive", counted)
        patched.setattr(Reply, "write", write_late)
        patched.setattr("api.http.silence.KEEPALIVE_S", 0.004)
        run = asyncio.run(_run(CLIENTS[name], stream_start_s=0.004))
        assert len(kept_alive) > 20
        return run


async def _run(client: Client, **settings: Any) -> Ran:
    answers = {name: deque(SCENARIOS[name].answers) for name in client.scenarios.split()}
    sent = defaultdict(list)

    async def by_model(reply: Reply) -> None:
        body = reply.request.json
        name = "compact_session" if body["model"] == "gpt-compact" else body["model"]
        sent[name].append(body)
        await (answers[name].popleft() if answers[name] else http_error(400, "nothing more is scripted"))(reply)

    async with FakeBackend(strict=True) as backend, mcp_server() as trips, mcp_server(tools=hosted_tools_of) as hosted:
        # It is also the server of images, and the search engine.
        backend.routes["POST /v1/images/generations"] = json_answer({"data": [{"b64_json": PICTURE}]})
        backend.routes["GET /search"] = json_answer(
            {"results": [{"url": PAGE, "title": "Moss", "content": "It is green."}]}
        )
        settings |= {
            "mcp": {"servers": {"hosted": {"url": hosted.url}}},
            "tools": {
                "code_interpreter": "mcp:hosted",
                "file_search": "mcp:hosted",
                "image_generation": {"url": f"{backend.url}/v1", "model": "painter"},
            },
            "web_search": {"provider": "searxng", "url": backend.url},
        }
        backend.models = [*answers, "gpt-compact"]
        backend.default = by_model
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
        async with running_router(endpoints=[endpoint], **settings) as router:
            out, err = await _output(client.command, trips.url, f"{router.url}/v1", *answers)
            in_flight = router.in_flight() + backend.in_flight
    # Some libraries log to where we read.
    lines = [orjson.loads(line) for line in out.splitlines() if line.startswith('{"scenario"')]
    printed = {line["scenario"]: line for line in lines}
    return Ran(printed, sent, {name: len(left) for name, left in answers.items()}, in_flight, err)


async def _output(command: list[str], mcp_url: str, *args: str) -> tuple[str, str]:
    """In a folder of its own: nothing of ours is in the way of what it imports."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": home,
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "MCP_URL": mcp_url,
        }
        # What all scripts share; and nobody's machine is asked for the like of tokens and figures.
        environment |= {"PYTHONPATH": str(HERE / "python"), "OTEL_SDK_DISABLED": "true", "AGNO_TELEMETRY": "false"}
        process = await asyncio.create_subprocess_exec(
            *command,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=home,
            env=environment,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
    return out.decode(), err.decode()


def transcript(body: Json) -> tuple[str, ...]:
    """The messages of a chat request, a line each."""
    return tuple(_line(message) for message in body["messages"])


def _line(message: Json) -> str:
    thought = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    pieces = [f"({thought})"] if thought else []
    pieces += [part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts]
    for tool_call in message.get("tool_calls", ()):
        arguments = orjson.loads(tool_call["function"]["arguments"])
        pieces.append(f"{tool_call['function']['name']}({', '.join(f'{k}={v}' for k, v in sorted(arguments.items()))})")
    return f"{message['role']}: {' '.join(filter(None, pieces))}"


def holds(whole: Any, part: Any) -> bool:
    """The part is in the whole: all its keys in an object, each of its entries in a list of as many."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and holds(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


PAIRS = [(client, scenario) for client in CLIENTS for scenario in CLIENTS[client].scenarios.split()]


@pytest.mark.parametrize(("client", "scenario"), PAIRS, ids=[f"{client}-{scenario}" for client, scenario in PAIRS])
@pytest.mark.parametrize("way", [ran, ran_in_silence], ids=["at once", "in silence"])
def test_a_client_gets_what_the_model_said(client: str, scenario: str, way: Callable[[str], Ran]) -> None:
    if reason := CLIENTS[client].missing:
        pytest.skip(reason)
    expected, run = SCENARIOS[scenario], way(client)
    printed = run.printed.get(scenario, {"error": "it printed nothing"})
    assert "error" not in printed, f"{printed['error']}\n{run.log}"
    gave = printed["result"]
    if "calls" in gave:
        gave = gave | {"calls": [[name, orjson.loads(arguments)] for name, arguments in gave["calls"]]}
    assert gave == expected.gives | CLIENTS[client].otherwise.get(scenario, {})
    assert tuple(map(transcript, run.sent[scenario])) == expected.sent
    assert holds(run.sent[scenario][0], expected.asks), run.sent[scenario][0]
    assert (run.unused[scenario], run.in_flight) == (0, 0), "answers that nobody came for, turns that never ended"
