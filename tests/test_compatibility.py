"""The table of what becomes of everything (requests/compatibility.py), against what becomes of it.

Each row has an example here, which is sent through a router to a chat server and to a native one. What the row says
must be what is seen: in the request that arrived there, in the headers, in the answer.

    carried     it arrived as it was given                 run here    it did not arrive, and its effect shows
    adapted     the request is another one for it          ignored     the request is the same, and the client reads its
    name refused     400, and the parameter is named
"""

from __future__ import annotations

import ast
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import httpx2
import orjson
import pytest
from openai.types.responses import (
    ResponseIncludable,
    ResponseInputContentParam,
    ResponseInputItemParam,
    ToolParam,
)
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming

from backends.fetching import Fetched
from backends.files import FileFetcher
from requests.compatibility import (
    EVENTS,
    INCLUDES,
    ITEMS,
    PARAMETERS,
    PARTS,
    TABLES,
    TOOLS,
    Way,
    compatibility,
)
from requests.params import CreateParams
from requests.tools import TYPED_TOOLS
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.sdk import EVENT_CLASSES, MODEL, PIXEL
from tests.stream_grammar import parse_sse
from tests.test_event_coverage import HOSTED_ONLY, OURS
from tests.turns import URL

Json = dict[str, Any]
MARK = "Zanzibar"
USER: Json = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
FUNCTION: Json = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}


@dataclass(frozen=True, slots=True)
class Example:
    """What is given beyond `base`, and what of it reaches a chat server (`sent`, by its name there) where it is
    carried; its effect, where it is run here. `name` is how it is named where it is ignored, `param` where it is
    refused."""

    given: Json
    sent: Json | None = None
    effect: Callable[[Json], bool] | None = None
    name: str = ""
    param: str = ""
    base: Json = field(default_factory=dict)


def parameter(name: str, value: Any, **more: Any) -> Example:
    holder, _, key = name.partition(".")
    given = {holder: {key: value} if key else value}
    return Example(given, **({"sent": given, "name": name, "param": holder} | more))


def echoed(name: str, value: Any) -> Callable[[Json], bool]:
    return lambda response: response[name] == value


def is_answered(response: Json) -> bool:
    return response["status"] == "completed"


TOOLED: Json = {"tools": [FUNCTION]}
PARAMETER_EXAMPLES: Mapping[str, Example] = {
    "access_programs": parameter("access_programs", {"a": 1}),
    "background": parameter("background", True, effect=echoed("status", "queued")),
    "background_options": parameter("background_options", {"priority": "low"}),
    "client_metadata": parameter("client_metadata", {"k": "v"}),
    "context_management": parameter(
        "context_management", [{"type": "compaction", "compact_threshold": 100_000}], effect=is_answered
    ),
    "conversation": parameter(
        "conversation", "{conversation}", effect=lambda response: response["conversation"]["id"].startswith("conv_")
    ),
    "frequency_penalty": parameter("frequency_penalty", 0.5),
    "generate": parameter("generate", False),
    "image": parameter("image", {"context_compression": "auto"}),
    "include": parameter("include", ["reasoning.encrypted_content"], effect=is_answered),
    "input": Example({"input": MARK}),
    "instructions": parameter("instructions", MARK),
    "max_output_tokens": parameter("max_output_tokens", 99),
    "max_tool_calls": parameter("max_tool_calls", 3),
    "messages": parameter("messages", [{"role": "user", "content": MARK}]),
    "metadata": parameter("metadata", {"k": "v"}, effect=echoed("metadata", {"k": "v"})),
    "model": Example({"model": f"{MODEL}:latest"}),
    "moderation": parameter("moderation", {"model": "omni-moderation-latest"}),
    "multi_agent": parameter("multi_agent", {"enabled": True}),
    "nomyo": parameter("nomyo", {"cache": False}, effect=is_answered),
    "parallel_tool_calls": parameter("parallel_tool_calls", False, base=TOOLED),
    "presence_penalty": parameter("presence_penalty", 0.5),
    "previous_response_id": parameter(
        "previous_response_id",
        "{previous}",
        effect=lambda response: response["previous_response_id"].startswith("resp_"),
    ),
    "prompt": parameter("prompt", {"id": "pmpt_1"}),
    "prompt_cache_key": parameter("prompt_cache_key", "k"),
    "prompt_cache_options": parameter("prompt_cache_options", {"prewarm": True}),
    "prompt_cache_retention": parameter("prompt_cache_retention", "24h"),
    "reasoning": parameter("reasoning", {"effort": "low"}),
    "reasoning.context": parameter("reasoning.context", "all_turns"),
    "reasoning.effort": parameter("reasoning.effort", "low"),
    "reasoning.generate_summary": parameter(
        "reasoning.generate_summary", "auto", effect=lambda response: response["reasoning"]["summary"] == "auto"
    ),
    "reasoning.mode": parameter("reasoning.mode", "fast"),
    "reasoning.summary": parameter(
        "reasoning.summary", "auto", effect=lambda response: response["reasoning"]["summary"] == "auto"
    ),
    "safety_identifier": parameter("safety_identifier", "s"),
    "service_tier": parameter("service_tier", "flex"),
    "store": parameter("store", False, effect=echoed("store", False)),
    "stream": parameter("stream", True),
    "stream_id": parameter("stream_id", "a"),
    "stream_options": parameter(
        "stream_options", {"include_obfuscation": False}, effect=is_answered, base={"stream": True}
    ),
    "stream_options.include_obfuscation": parameter(
        "stream_options.include_obfuscation", False, effect=is_answered, base={"stream": True}
    ),
    "stream_options.include_usage": parameter(
        "stream_options.include_usage",
        True,
        effect=lambda response: response["usage"]["total_tokens"] > 0,
        base={"stream": True},
    ),
    "temperature": parameter("temperature", 0.5),
    "text": parameter("text", {"verbosity": "low"}),
    "text.format": parameter("text.format", {"type": "json_object"}),
    "text.verbosity": parameter("text.verbosity", "low"),
    "tool_choice": parameter("tool_choice", {"type": "function", "name": "f"}, base=TOOLED),
    "tools": parameter("tools", [FUNCTION]),
    **{
        f"tools.{key}": Example({"tools": [FUNCTION | {key: value}]}, name=f"tools.{key}", base=TOOLED)
        for key, value in {
            "allowed_callers": ["programmatic"],
            "async": True,
            "defer_loading": True,
            "output_schema": {"type": "object"},
        }.items()
    },
    "top_logprobs": parameter("top_logprobs", 2),
    "top_p": parameter("top_p", 0.5),
    "truncation": parameter("truncation", "auto", effect=echoed("truncation", "auto")),
    "user": parameter("user", "u"),
    "*": parameter("seed", 7),
}


def include(value: str, **more: Any) -> Example:
    # A turn that is stored asks for one more itself.
    base = {"store": False}
    return Example({"include": [value]}, name=f"include.{value}", effect=is_answered, base=base, **more)


INCLUDE_EXAMPLES: Mapping[str, Example] = {
    **{value: include(value) for value in INCLUDES if value != "*"},
    "*": include("acme.everything"),
}


def items(*given: Json, chat: list[Json] | None = None, base: Json | None = None, **more: Any) -> Example:
    """Items behind what a user says. `chat` are the messages that a chat server gets for them, where they are
    carried."""
    sent = None if chat is None else {"messages": [{"role": "user", "content": "hi"}, *chat]}
    return Example({"input": [USER, *given]}, sent=sent, base=base or {}, **more)


def calling(call: Json, output: Json, **more: Any) -> Example:
    return items({"call_id": "c1"} | call, {"call_id": "c1"} | output, **more)


def hosted(type: str, **fields: Any) -> Example:
    return items({"type": type, "id": "x_1", "status": "completed"} | fields)


F_CALL: Json = {"type": "function_call", "name": "f", "arguments": "{}"}
F_OUTPUT: Json = {"type": "function_call_output", "output": MARK}
F_CHAT: list[Json] = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": MARK},
]
C_CALL: Json = {"type": "custom_tool_call", "name": "f", "input": MARK}
C_OUTPUT: Json = {"type": "custom_tool_call_output", "output": MARK}
C_CHAT: list[Json] = [
    F_CHAT[0]
    | {
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": f'{{"input":"{MARK}"}}'}}
        ]
    },
    F_CHAT[1],
]
PATCH: Json = {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": MARK}}
SHELL: Json = {"type": "shell_call", "action": {"commands": [MARK]}}
LOCAL_SHELL: Json = {"type": "local_shell_call", "action": {"type": "exec", "command": [MARK], "env": {}}}
SEARCH: Json = {"type": "tool_search_call", "execution": "client", "arguments": {"query": MARK}}
FOUND: Json = {"type": "tool_search_output", "execution": "client", "tools": [FUNCTION | {"name": "found"}]}
ITEM_EXAMPLES: Mapping[str, Example] = {
    "additional_tools": items({"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}),
    "agent_message": items({"type": "agent_message", "content": [{"type": "input_text", "text": MARK}]}),
    "apply_patch_call": calling(PATCH, {"type": "apply_patch_call_output", "status": "completed"}),
    "apply_patch_call_output": calling(PATCH, {"type": "apply_patch_call_output", "status": "failed", "output": MARK}),
    "code_interpreter_call": hosted("code_interpreter_call", code=MARK, container_id="cntr_1", outputs=[]),
    "compaction": items({"type": "compaction", "encrypted_content": "{ours}"}),
    "compaction_trigger": items(
        {"type": "compaction_trigger"}, effect=lambda response: response["output"][0]["type"] == "compaction"
    ),
    "computer_call": hosted("computer_call", call_id="c1", action={"type": "type", "text": MARK}),
    "computer_call_output": hosted("computer_call_output", call_id="c1", output={"type": "computer_screenshot"}),
    "configuration_update": items(
        {"type": "configuration_update", "reasoning": {"effort": "low"}}, name="input.configuration_update"
    ),
    "custom_tool_call": calling(C_CALL, C_OUTPUT),
    "custom_tool_call_output": calling(C_CALL, C_OUTPUT, chat=C_CHAT),
    "file_search_call": hosted("file_search_call", queries=[MARK], results=None),
    "function_call": calling(F_CALL, F_OUTPUT, chat=F_CHAT),
    "function_call_output": calling(F_CALL, F_OUTPUT, chat=F_CHAT),
    "image_generation_call": hosted("image_generation_call", revised_prompt=MARK, result=None),
    "item_reference": items({"type": "item_reference", "id": "{stored}"}, effect=is_answered),
    "local_shell_call": calling(LOCAL_SHELL, {"type": "local_shell_call_output", "output": "x"}),
    "local_shell_call_output": calling(LOCAL_SHELL, {"type": "local_shell_call_output", "output": MARK}),
    "mcp_approval_request": hosted("mcp_approval_request", name=MARK, arguments="{}", server_label="s"),
    "mcp_approval_response": hosted("mcp_approval_response", approval_request_id="x_1", approve=True, reason=MARK),
    "mcp_call": hosted("mcp_call", name="f", arguments="{}", server_label="s", output=MARK),
    "mcp_list_tools": items(
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": []}, name="input.mcp_list_tools"
    ),
    "message": items({"role": "assistant", "content": MARK}, chat=[{"role": "assistant", "content": MARK}]),
    "multi_agent_call": hosted("multi_agent_call", action=MARK),
    "program": hosted("program", call_id="c1", code=MARK, fingerprint="x"),
    "program_output": hosted("program_output", call_id="c1", result=MARK),
    "reasoning": items(
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": MARK}]},
        {"role": "assistant", "content": "x"},
    ),
    "shell_call": calling(SHELL, {"type": "shell_call_output", "output": []}),
    "shell_call_output": calling(SHELL, {"type": "shell_call_output", "output": [{"stdout": MARK}]}),
    "tool_search_call": calling(SEARCH, FOUND),
    "tool_search_output": calling(SEARCH, FOUND),
    "web_search_call": hosted("web_search_call", action={"type": "search", "query": MARK}),
    "*": hosted("acme:telegraph", text=MARK),
}


def part(given: Json, chat: Any = None, param: str = "", role: str = "user", name: str = "") -> Example:
    """A content part of a message. `chat` is the content that a chat server gets for it, where it is carried."""
    message = {"type": "message", "role": role, "content": [given]}
    sent = None if chat is None else {"messages": [{"role": role, "content": chat}]}
    base: Json = {"input": [message | {"content": [{k: v for k, v in given.items() if k in ("type", "text")}]}]}
    return Example({"input": [message]}, sent=sent, param=param or "input[0].content[0]", name=name, base=base)


def thought(type: str, holder: str) -> Example:
    return items({"type": "reasoning", "summary": [], holder: [{"type": type, "text": MARK}]}, chat=[THOUGHT])


THOUGHT: Json = {"role": "assistant", "content": "", "reasoning_content": MARK}
SOUND: Json = {"data": "UklGRg==", "format": "wav"}
PART_EXAMPLES: Mapping[str, Example] = {
    "computer_screenshot": part({"type": "computer_screenshot", "image_url": PIXEL}),
    "image_url": part({"type": "image_url", "image_url": {"url": PIXEL}}),
    "input_audio": part({"type": "input_audio", "input_audio": SOUND}, [{"type": "input_audio", "input_audio": SOUND}]),
    "input_file.file_data": part(
        {"type": "input_file", "filename": "a.txt", "file_data": MARK},
        [{"type": "file", "file": {"filename": "a.txt", "file_data": MARK}}],
    ),
    "input_file.file_id": part({"type": "input_file", "file_id": "file_1"}),
    "input_file.file_url": part(
        {"type": "input_file", "file_url": "https://example.org/a.txt"},
        [
            {
                "type": "file",
                "file": {
                    "filename": "a.txt",
                    "file_data": f"data:text/plain;base64,{b64encode(MARK.encode()).decode()}",
                },
            }
        ],
    ),
    "input_image.file_id": part({"type": "input_image", "file_id": "file_1"}),
    "input_image.image_url": part(
        {"type": "input_image", "image_url": PIXEL}, [{"type": "image_url", "image_url": {"url": PIXEL}}]
    ),
    "input_text": part({"type": "input_text", "text": MARK}, MARK),
    "input_video": part({"type": "input_video", "video_url": "https://example.org/a.mp4"}),
    "output_text": part({"type": "output_text", "text": MARK}, MARK, role="assistant"),
    "reasoning_text": thought("reasoning_text", "content"),
    "refusal": Example(
        {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": MARK}]}, USER]},
        sent={"messages": [{"role": "assistant", "content": MARK, "refusal": MARK}, {"role": "user", "content": "hi"}]},
    ),
    "summary_text": thought("summary_text", "summary"),
    "text": part({"type": "text", "text": MARK}, MARK),
    "*.prompt_cache_breakpoint": part(
        {"type": "input_text", "text": MARK, "prompt_cache_breakpoint": {}}, name="input.prompt_cache_breakpoint"
    ),
    "*": part({"type": "acme:hologram", "text": MARK}),
}


def tool(type: str, effect: Any = None, **fields: Any) -> Example:
    return Example({"tools": [{"type": type, **fields}]}, name=type, effect=effect)


NAMESPACE: Json = {"type": "namespace", "name": "n", "tools": [FUNCTION]}
SKILL: Json = {"name": "pdf", "description": "Reads PDFs.", "path": "/skills/pdf"}
TOOL_EXAMPLES: Mapping[str, Example] = {
    "apply_patch": tool("apply_patch"),
    "code_interpreter": tool("code_interpreter", effect=is_answered, container={"type": "auto"}),
    "computer": tool("computer"),
    "computer_use_preview": tool("computer_use_preview", display_height=1, display_width=1, environment="linux"),
    "custom": tool("custom", name="c"),
    "file_search": tool("file_search", effect=is_answered, vector_store_ids=["vs_1"]),
    "function": Example(
        TOOLED,
        sent={
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": False}}
            ]
        },
    ),
    "image_generation": tool("image_generation", effect=is_answered),
    "local_shell": tool("local_shell"),
    "mcp": Example(
        {"tools": [{"type": "mcp", "server_label": "s", "server_url": "http://127.0.0.1:9/mcp"}]},
        effect=lambda response: response["output"][0]["type"] == "mcp_list_tools",
    ),
    "namespace": Example({"tools": [NAMESPACE]}),
    "namespace.description": Example(
        {"tools": [NAMESPACE | {"description": MARK}]}, name="tools.description", base={"tools": [NAMESPACE]}
    ),
    "programmatic_tool_calling": tool("programmatic_tool_calling"),
    "shell": tool("shell"),
    "shell.container_auto": tool("shell", environment={"type": "container_auto"}),
    "shell.container_reference": tool("shell", environment={"type": "container_reference", "container_id": "c_1"}),
    "shell.skills": Example(
        {"tools": [{"type": "shell", "environment": {"type": "local", "skills": [SKILL]}}]},
        name="tools.skills",
        base={"tools": [{"type": "shell"}]},
    ),
    "tool_search": tool("tool_search"),
    "tool_search.client": tool("tool_search", execution="client"),
    **{
        type: Example({"tools": [{"type": type}]}, name=type, effect=is_answered)
        for type in ("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11")
    },
    "*": tool("acme:telegraph"),
}


def choice(value: Any, sent: Any = None) -> Example:
    tools = [FUNCTION, {"type": "custom", "name": "c"}, {"type": "shell"}, {"type": "apply_patch"}]
    given = {"tool_choice": value}
    return Example(given, sent={"tool_choice": sent} if sent else None, param="tool_choice", base={"tools": tools})


CHOICE_EXAMPLES: Mapping[str, Example] = {
    "allowed_tools": choice(
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    ),
    "apply_patch": choice({"type": "apply_patch"}),
    "auto": choice("auto", "auto"),
    "custom": choice({"type": "custom", "name": "c"}),
    "function": choice({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    "none": choice("none", "none"),
    "required": choice("required", "required"),
    "shell": choice({"type": "shell"}),
    "mcp": choice({"type": "mcp", "server_label": "s"}),
    **{
        type: choice({"type": type})
        for type in (
            "code_interpreter",
            "computer",
            "computer_use_preview",
            "file_search",
            "image_generation",
            "programmatic_tool_calling",
            "web_search_preview",
        )
    },
    "*": choice({"type": "acme:telegraph"}),
}

EXAMPLES: Mapping[str, Mapping[str, Example]] = {
    "parameters": PARAMETER_EXAMPLES,
    "includes": INCLUDE_EXAMPLES,
    "items": ITEM_EXAMPLES,
    "parts": PART_EXAMPLES,
    "tools": TOOL_EXAMPLES,
    "choices": CHOICE_EXAMPLES,
}


def response_of(answer: httpx2.Response) -> Json:
    """The response, streamed or not."""
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    response: Json = parse_sse(answer.content)[-1][1]["response"] if is_stream else answer.json()
    return response


# Named where the answer shows that the server has not heeded it, as the one here never does (tests/test_heeded.py).
SEEN_IN_THE_ANSWER = {"text.format", "tool_choice"}


@pytest.fixture
async def served(backend: FakeBackend) -> AsyncIterator[Running]:
    """One that runs what it can."""
    search = {"provider": "searxng", "url": "http://127.0.0.1:9"}
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    servers = {"s": {"url": "http://127.0.0.1:9/mcp"}}
    hosted = dict.fromkeys(("code_interpreter", "file_search", "image_generation"), "mcp:s")
    async with running_router(
        endpoints=endpoints, web_search=search, mcp={"servers": servers}, tools=hosted
    ) as running:
        yield running


class Trial:
    """One example, sent through a router: the answer, and what arrived at the server with it and without."""

    def __init__(self, example: Example, answer: httpx2.Response, plain: Json, sent: Json | None) -> None:
        self.example = example
        self.answer = answer
        self.plain = plain
        self.sent = sent

    @property
    def named(self) -> list[str]:
        headers = (self.answer.headers.get(f"x-nomyo-{kind}", "") for kind in ("ignored", "omitted-tools"))
        return [name.partition(":")[0] for header in headers for name in header.split(", ") if name]

    def problem(self, way: Way, *, natively: bool) -> str:
        """What is not as `way` says; nothing, if all is."""
        example = self.example
        if way == "refused":
            if self.answer.status_code != 400:
                return f"answered {self.answer.status_code}"
            param = self.answer.json()["error"]["param"] or ""
            return "" if param.startswith(example.param) else f"param is {param}"
        if self.answer.status_code != 200 or self.sent is None:
            return f"answered {self.answer.status_code} {self.answer.text[:200]}"
        name = example.name.partition(":")[0]
        is_named = name in self.named and name not in SEEN_IN_THE_ANSWER
        if is_named != (way == "ignored"):
            return f"named: {self.named}"
        if way == "ignored":
            return "" if self.sent == self.plain else f"sent: {self.differs()}"
        if way == "carried":
            wanted = example.given if natively else example.sent
            assert wanted is not None, "the example says nothing of what is sent"
            return (
                "" if all(self.sent.get(key) == value for key, value in wanted.items()) else f"sent: {self.differs()}"
            )
        if way == "adapted":
            # A model's name, say, stands in every request: what is given is there as something else.
            replaced = any(key in self.sent and self.sent[key] != value for key, value in example.given.items())
            return "" if replaced or self.sent != self.plain else "sent the same"
        assert way == "run here", way
        assert example.effect is not None, "the example says nothing of its effect"
        arrived = [key for key, value in example.given.items() if self.sent.get(key) == value != self.plain.get(key)]
        if arrived:
            return f"sent: {arrived}"
        return "" if example.effect(response_of(self.answer)) else f"no effect: {self.answer.text[:300]}"

    def differs(self) -> str:
        assert self.sent is not None
        return json.dumps({key: value for key, value in self.sent.items() if self.plain.get(key) != value})


async def tried(served: Running, backend: FakeBackend, example: Example) -> Trial:
    plain = {"model": MODEL, "input": [USER]} | example.base
    stored = response_of(await served.http.post(URL, json=plain | {"model": MODEL, "input": "hi", "store": True}))
    made = (await served.http.post("/v1/conversations", json={"items": [{"role": "user", "content": "Hi."}]})).json()
    given = orjson.loads(
        orjson.dumps(plain | example.given)
        .replace(b"{ours}", served.app.state.sealer.seal(MARK, "compaction").encode())
        .replace(b"{conversation}", made["id"].encode())
        .replace(b"{previous}", stored["id"].encode())
        .replace(b"{stored}", stored["output"][0]["id"].encode())
    )
    assert (await served.http.post(URL, json=plain)).status_code in (200, 400)
    without = backend.turns[-1].json
    before = len(backend.turns)
    answer = await served.http.post(URL, json=given)
    if given.get("background"):
        await backend.wait_for(lambda backend: len(backend.turns) > before)
    sent = backend.turns[-1].json if len(backend.turns) > before else None
    return Trial(example, answer, without, sent)


@pytest.mark.parametrize("title", EXAMPLES)
def test_every_row_has_an_example(title: str) -> None:
    assert EXAMPLES[title].keys() == TABLES[title].keys()


@pytest.mark.parametrize("title", EXAMPLES)
@pytest.mark.parametrize("server", ["chat", "native"])
async def test_what_the_table_says_happens(
    title: str,
    server: str,
    served: Running,
    served_natively: Running,
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def get(fetcher: FileFetcher, url: str) -> Fetched:
        return Fetched(MARK.encode(), "text/plain")

    monkeypatch.setattr(FileFetcher, "get", get)
    natively = server == "native"
    problems = {}
    for name, example in EXAMPLES[title].items():
        trial = await tried(served_natively if natively else served, backend, example)
        row = TABLES[title][name]
        if problem := trial.problem(row.native if natively else row.chat, natively=natively):
            problems[name] = f"{row.native if natively else row.chat}: {problem}"
    assert not problems, "\n".join(f"{name}: {problem}" for name, problem in problems.items())


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────────


def literals(union: Any, key: str = "type") -> set[str]:
    """The values of a key in all typed dicts of a union."""
    if get_origin(union) is Literal:
        return set(get_args(union))
    if isinstance(union, type):
        hints = get_type_hints(union, include_extras=False)
        return literals(hints[key]) if key in hints else set()
    return set().union(*(literals(member, key) for member in get_args(union)))


def test_the_table_knows_all_that_the_sdk_knows() -> None:
    names = {name.partition(".")[0] for name in PARAMETERS}
    assert get_type_hints(ResponseCreateParamsStreaming).keys() <= names
    assert literals(ResponseIncludable) <= INCLUDES.keys()
    assert {"message", "program"} < literals(ResponseInputItemParam) <= ITEMS.keys()
    assert {"function", "mcp"} < literals(ToolParam) <= TOOLS.keys()
    parts = {name.partition(".")[0] for name in PARTS}
    assert literals(ResponseInputContentParam) <= parts
    assert EVENT_CLASSES.keys() == EVENTS.keys()


def test_the_table_knows_all_that_we_read() -> None:
    assert set(CreateParams.__struct_fields__) <= PARAMETERS.keys()
    assert {name for name in TYPED_TOOLS if TOOLS[name].chat != "adapted"} == set()


def test_the_events_of_a_chat_server_are_those_that_the_table_names() -> None:
    made = set().union(*(scenario.makes for scenario in OURS.values() if not scenario.is_native))
    never = {name for name, row in EVENTS.items() if row.chat == "never"}
    assert made <= EVENTS.keys() - never
    hosted = set().union(*(scenario.events for scenario in HOSTED_ONLY.values()))
    run_here = {name for name, row in EVENTS.items() if row.chat == "run here"}
    assert hosted <= never | run_here
    assert {EVENTS[name].native for name in hosted} == {"carried"}


async def test_it_can_be_published(served: Running) -> None:
    plain = (await served.http.get("/v1/compatibility")).json()
    assert plain == orjson.loads(orjson.dumps(compatibility()))
    assert plain["parameters"]["max_output_tokens"] == {"chat": "adapted", "native": "carried", "note": "max_tokens"}
    assert plain["tools"]["computer"] == {"chat": "ignored", "native": "carried"}
    ways = {row[server] for table in plain.values() for row in table.values() for server in ("chat", "native")}
    assert ways == set(get_args(Way))


def test_reading_it_costs_a_request_nothing_worth_a_name() -> None:
    """The translators keep what they need of it: no request looks into the table itself."""
    readers = [file for file in (Path(__file__).parents[1] / "requests").glob("*.py") if file.stem != "compatibility"]
    for file in readers:
        tree = ast.parse(file.read_bytes())
        inside = [
            node for top in tree.body if isinstance(top, ast.FunctionDef | ast.ClassDef) for node in ast.walk(top)
        ]
        named = {node.id for node in inside if isinstance(node, ast.Name)}
        assert not named & {title.upper() for title in TABLES}, f"{file.name} reads it in a function"
