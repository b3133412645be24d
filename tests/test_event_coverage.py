"""Every stream event that the SDK knows is produced here through the router, or a test that counts them fails.

OURS         what the router makes itself: of a chat backend's answer, or of a native one that came whole
HOSTED_ONLY  what only a service that runs its tools can emit, with the reason: a native backend streams it, and it must
             arrive as it was sent
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Running
from tests.fake_backend import (
    Answer,
    FakeBackend,
    call,
    chat,
    event_stream,
    json_answer,
    native_events,
    reasoning,
    refusal,
    responses_usage,
    sse_error,
)
from tests.sdk import EVENT_CLASSES, wire_events
from tests.stream_grammar import check_stream
from tests.streams import judged

Json = dict[str, Any]

# The SDK's types want `cache_write_tokens` as well.
USAGE = responses_usage()
USAGE["input_tokens_details"]["cache_write_tokens"] = 0


def test_every_event_of_the_sdk_has_a_scenario() -> None:
    assert len(EVENT_CLASSES) == 59, "this SDK has other events: give the new ones a scenario"
    made = set().union(*(scenario.makes for scenario in OURS.values()))
    hosted = set().union(*(scenario.events for scenario in HOSTED_ONLY.values()))
    assert made | hosted == EVENT_CLASSES.keys()
    assert not made & hosted, "what the router makes itself is not hosted only"


# ── what the router makes ────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Made:
    """An answer, the events that the router makes of it, and what the request says more."""

    answer: Answer
    makes: set[str]
    request: Json = field(default_factory=dict)
    is_native: bool = False


def verbs(name: str, *verbs: str) -> set[str]:
    return {f"response.{name}.{verb}" for verb in verbs}


BEGUN = {"response.created", "response.in_progress"}
ITEM = BEGUN | verbs("output_item", "added", "done")
PART = ITEM | verbs("content_part", "added", "done")
TEXT = PART | verbs("output_text", "delta", "done")
COMPLETED = {"response.completed"}

CITATION = {
    "type": "url_citation",
    "url": "https://example.org/rain",
    "title": "Rain",
    "start_index": 0,
    "end_index": 4,
}
CITED = {"type": "output_text", "text": "Rain.", "annotations": [CITATION], "logprobs": []}
WHOLE = native_events(usage=USAGE)[-1]["response"] | {
    "output": [
        {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "I looked."}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [CITED]},
    ]
}

OURS = {
    "text": Made(chat("Hello there."), TEXT | COMPLETED),
    "a refusal": Made(chat(refusal("I will not.")), PART | verbs("refusal", "delta", "done") | COMPLETED),
    "reasoning": Made(chat(reasoning("Hm.")), PART | verbs("reasoning_text", "delta", "done") | COMPLETED),
    "a function call": Made(
        chat(call("now", {"zone": "UTC"})),
        ITEM | verbs("function_call_arguments", "delta", "done") | COMPLETED,
        {"tools": [{"type": "function", "name": "now", "parameters": {"type": "object"}, "strict": None}]},
    ),
    "a custom call": Made(
        chat(call("write", {"input": "a line"})),
        ITEM | verbs("custom_tool_call_input", "delta", "done") | COMPLETED,
        {"tools": [{"type": "custom", "name": "write"}]},
    ),
    "a compaction": Made(
        chat("They spoke of rain."),
        ITEM | {"response.compaction.compacting"} | COMPLETED,
        {"input": [{"role": "user", "content": "Rain?"}, {"type": "compaction_trigger"}]},
    ),
    "in the background": Made(chat("Later."), TEXT | COMPLETED | {"response.queued"}, {"background": True}),
    "cut at the token limit": Made(chat("Once upon", finish_reason="length"), TEXT | {"response.incomplete"}),
    "a backend that breaks": Made(
        chat("Hel", then=sse_error()),
        TEXT - verbs("output_text", "done") - verbs("content_part", "done") - verbs("output_item", "done")
        | {"error", "response.failed"},
    ),
    "a native answer that came whole": Made(
        json_answer(WHOLE),
        TEXT
        | verbs("output_text", "annotation.added")
        | verbs("reasoning_summary_part", "added", "done")
        | verbs("reasoning_summary_text", "delta", "done")
        | COMPLETED,
        is_native=True,
    ),
}


@pytest.mark.parametrize("scenario", OURS.values(), ids=OURS)
async def test_the_router_makes(
    served: Running, served_natively: Running, backend: FakeBackend, scenario: Made
) -> None:
    backend.script(scenario.answer)
    events = judged(await wire_events(served_natively if scenario.is_native else served, **scenario.request))
    assert {event["type"] for event in events} == scenario.makes


# ── what only a hosted service emits ─────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Hosted:
    """Why no chat backend can make the router emit these events; and the item that they belong to, as it is done, with
    the keys that were different when it was added."""

    reason: str
    item: Json
    added: Json
    steps: list[Json]

    @property
    def events(self) -> set[str]:
        return {step["type"] for step in self.steps}


def step(name: str, **fields: Any) -> Json:
    return {"type": f"response.{name}", **fields}


def steps(name: str, *verbs: str) -> list[Json]:
    return [step(f"{name}.{verb}") for verb in verbs]


def item(type: str, id: str, **fields: Any) -> Json:
    return {"type": type, "id": id, "status": "completed", **fields}


BEGINS = {"status": "in_progress"}
SHELL = "it runs in OpenAI's containers; the shell of a client is emitted as a whole `shell_call`"
MCP = "OpenAI speaks to the MCP server; no chat backend is offered one"
IMAGE = {"output_format": "png", "quality": "low", "size": "1024x1024", "background": "opaque"}
MCP_CALL = {"server_label": "maps", "name": "route", "arguments": '{"to":"Rome"}'}
BROKEN = {"type": "http_error", "code": 502, "message": "Bad gateway"}
PRINTED = {"stdout": "a\n", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}

HOSTED_ONLY = {
    "web search": Hosted(
        "OpenAI searches",
        item("web_search_call", "ws_1", action={"type": "search", "query": "rain", "queries": ["rain"]}),
        BEGINS,
        steps("web_search_call", "in_progress", "searching", "completed"),
    ),
    "file search": Hosted(
        "the files are in OpenAI's vector stores",
        item(
            "file_search_call",
            "fs_1",
            queries=["rain"],
            results=[{"file_id": "file_1", "filename": "a.txt", "score": 0.5, "text": "wet", "attributes": {"n": 1.5}}],
        ),
        BEGINS | {"results": None},
        steps("file_search_call", "in_progress", "searching", "completed"),
    ),
    "code interpreter": Hosted(
        "the code runs in OpenAI's containers",
        item(
            "code_interpreter_call",
            "ci_1",
            code="print(1)",
            container_id="cntr_1",
            outputs=[{"type": "logs", "logs": "1\n"}, {"type": "image", "url": "https://example.org/1.png"}],
        ),
        BEGINS | {"code": "", "outputs": None},
        [
            step("code_interpreter_call.in_progress"),
            step("code_interpreter_call_code.delta", delta="print"),
            step("code_interpreter_call_code.delta", delta="(1)"),
            step("code_interpreter_call_code.done", code="print(1)"),
            *steps("code_interpreter_call", "interpreting", "completed"),
        ],
    ),
    "image generation": Hosted(
        "OpenAI draws",
        item("image_generation_call", "ig_1", result="iVBORw0K", revised_prompt="Grey rain", **IMAGE),
        BEGINS | {"result": None, "revised_prompt": None},
        [
            *steps("image_generation_call", "in_progress", "generating"),
            step("image_generation_call.partial_image", partial_image_index=0, partial_image_b64="iVBO", **IMAGE),
            step("image_generation_call.completed"),
        ],
    ),
    "the tools of an MCP server": Hosted(
        MCP,
        {
            "type": "mcp_list_tools",
            "id": "mcpl_1",
            "server_label": "maps",
            "tools": [{"name": "route", "input_schema": {"type": "object"}, "annotations": None, "description": "To."}],
        },
        {"tools": []},
        steps("mcp_list_tools", "in_progress", "completed"),
    ),
    "an MCP server that lists none": Hosted(
        MCP,
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "maps", "tools": [], "error": "Bad gateway"},
        {"error": None},
        steps("mcp_list_tools", "in_progress", "failed"),
    ),
    "an MCP call": Hosted(
        MCP,
        item("mcp_call", "mcp_1", **MCP_CALL, output="Via Pisa.", error=None, approval_request_id=None),
        BEGINS | {"arguments": "", "output": None},
        [
            step("mcp_call.in_progress"),
            step("mcp_call_arguments.delta", delta='{"to":"Rome"}'),
            step("mcp_call_arguments.done", arguments='{"to":"Rome"}'),
            step("mcp_call.completed"),
        ],
    ),
    "an MCP call that fails": Hosted(
        MCP,
        item("mcp_call", "mcp_1", **MCP_CALL, output=None, error=BROKEN) | {"status": "failed"},
        BEGINS | {"error": None},
        steps("mcp_call", "in_progress", "failed"),
    ),
    "a shell's command": Hosted(
        SHELL,
        item("shell_call", "sh_1", call_id="call_1", action={"commands": ["ls"], "timeout_ms": None}),
        BEGINS,
        [
            step("shell_call_command.added", command_index=0, command=""),
            step("shell_call_command.delta", command_index=0, delta="ls", obfuscation="x7"),
            step("shell_call_command.done", command_index=0, command="ls"),
        ],
    ),
    "a shell's output": Hosted(
        SHELL,
        item("shell_call_output", "sho_1", call_id="call_1", max_output_length=100, output=[PRINTED]),
        BEGINS | {"output": []},
        [
            step("shell_call_output_content.delta", command_index=0, delta={"stdout": "a\n", "stderr": ""}),
            step("shell_call_output_content.done", command_index=0, output=[PRINTED]),
        ],
    ),
    "sound": Hosted(
        "a chat backend's sound has no place in a response's items",
        item("message", "msg_1", role="assistant", content=[]),
        BEGINS,
        [
            step("audio.delta", delta="UklGRg=="),
            step("audio.transcript.delta", delta="Hello."),
            step("audio.done"),
            step("audio.transcript.done"),
        ],
    ),
}


def events_of(scenario: Hosted) -> list[Json]:
    """The whole stream of a service that runs its tools."""
    done = scenario.item
    where = {"output_index": 0, "item_id": done["id"]}
    begun, progress, end = native_events(usage=USAGE)
    end["response"]["output"] = [done]
    events = [begun, progress, step("output_item.added", output_index=0, item=done | scenario.added)]
    for event in scenario.steps:
        # A shell's commands have no item_id, and sound has neither.
        known = EVENT_CLASSES[event["type"]].model_fields
        events.append(event | {key: value for key, value in where.items() if key in known})
    events += [step("output_item.done", output_index=0, item=done), end]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


@pytest.mark.parametrize("scenario", HOSTED_ONLY.values(), ids=HOSTED_ONLY)
async def test_a_hosted_services_events_arrive_as_they_were_sent(
    served_natively: Running, backend: FakeBackend, scenario: Hosted
) -> None:
    sent = events_of(scenario)
    backend.script(event_stream(sent))
    events = await wire_events(served_natively)
    check_stream(events)
    assert [event["type"] for event in events] == [event["type"] for event in sent]
    assert events[2:-1] == sent[2:-1]
    assert events[-1]["response"]["output"] == [scenario.item]
    for event in events:
        read = EVENT_CLASSES[event["type"]].model_validate(event, strict=True)
        assert read.to_dict() == event, f"the SDK sees another {event['type']} than we sent"
