"""What a request costs grows with what is in it, and not with its square: no body within the limits holds up the
others for seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
import pytest

from requests.open_items import MOST_ITEMS
from tests.conftest import Running, running_router
from tests.fake_backend import (
    DONE,
    Answer,
    FakeBackend,
    chat,
    chunk,
    event_stream,
    native,
    native_events,
    reasoning,
    stream,
)
from tests.fake_backend import call as fake_call
from tests.stream_grammar import parse_sse
from tests.turns import Json, assert_error, eventually

ROOT = Path(__file__).parents[1]
PARTS = tuple(f"{ROOT}/{part}/" for part in ("api", "requests", "backends", "core", "stores"))
FEW, MANY = 250, 1000
# In a square it would be 16 times.
MOST_TIMES = 6.5

RESPONSES = "/v1/responses"


def request(*items: Json, **params: Any) -> Json:
    return {"model": "test-model", "input": [*items, {"role": "user", "content": "Hi"}], **params}


def call(call_id: str, name: str = "f", type: str = "function_call", **keys: Any) -> Json:
    said = {"input": "x"} if type == "custom_tool_call" else {"arguments": "{}"}
    return {"type": type, "call_id": call_id, "name": name, **said, **keys}


def output(call_id: str | None, type: str = "function_call_output", **keys: Any) -> Json:
    return {"type": type, **({"call_id": call_id} if call_id else {}), "output": "y", **keys}


def search(number: int, execution: str) -> Json:
    return {"type": "tool_search_call", "call_id": f"s{number}", "execution": execution, "arguments": {"query": "x"}}


def found(number: int) -> Json:
    return {"type": "tool_search_output", "call_id": f"s{number}", "execution": "server", "tools": []}


def function(name: str) -> Json:
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}


def message(*content: Json, role: str = "user") -> Json:
    return {"type": "message", "role": role, "content": list(content)}


TEXT = {"type": "input_text", "text": "x"}
THOUGHT = {"type": "summary_text", "text": "x"}
PIXEL = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}

SHAPES: dict[str, Callable[[range], Json]] = {
    "messages": lambda n: request(*({"role": "user", "content": "x"} for _ in n)),
    "messages in turns": lambda n: request(*({"role": ("user", "assistant")[i % 2], "content": "x"} for i in n)),
    "developer messages": lambda n: request(*({"role": "developer", "content": "x"} for _ in n)),
    "parts": lambda n: request(message(*(TEXT for _ in n))),
    "images": lambda n: request(message(*(PIXEL for _ in n))),
    "calls, each answered": lambda n: request(*(one for i in n for one in (call(f"c{i}"), output(f"c{i}")))),
    "calls, all answered at the end": lambda n: request(*(call(f"c{i}") for i in n), *(output(f"c{i}") for i in n)),
    "calls of one id": lambda n: request(*(one for _ in n for one in (call("c"), output("c")))),
    "calls of one id, answered at the end": lambda n: request(*(call("c") for _ in n), *(output("c") for _ in n)),
    "calls of two ids that look alike": lambda n: request(
        *(one for i in n for one in (call("c" if i % 2 else "c_2"), output("c" if i % 2 else "c_2")))
    ),
    "outputs by names": lambda n: request(
        *(call(f"c{i}", f"f{i}") for i in n), *(output(None, name=f"f{i}") for i in reversed(n))
    ),
    "outputs by one name": lambda n: request(*(call(f"c{i}") for i in n), *(output(None, name="f") for _ in n)),
    "custom calls": lambda n: request(
        *(
            one
            for i in n
            for one in (call(f"c{i}", type="custom_tool_call"), output(f"c{i}", "custom_tool_call_output"))
        )
    ),
    "calls that were cut": lambda n: request(*(call(f"c{i}", status="incomplete") for i in n)),
    "searches that are hosted": lambda n: request(*(search(i, "server") for i in n)),
    "searches with their outputs": lambda n: request(*(one for i in n for one in (search(i, "server"), found(i)))),
    "thoughts": lambda n: request(*({"type": "reasoning", "id": f"rs_{i}", "summary": [THOUGHT]} for i in n)),
    "a long thought": lambda n: request({"type": "reasoning", "id": "rs_1", "summary": [THOUGHT for _ in n]}),
    "compactions": lambda n: request(*({"type": "compaction", "encrypted_content": f"foreign {i}"} for i in n)),
    "unknown items": lambda n: request(*({"type": f"unknown_{i}", "id": f"x_{i}"} for i in n)),
    "unknown parts": lambda n: request(message(TEXT, role="assistant"), **{f"key {i}": i for i in n}),
    "tools": lambda n: request(tools=[function(f"f{i}") for i in n]),
    "tools of one name": lambda n: request(tools=[function("f") for _ in n]),
    "tools whose names are cut": lambda n: request(tools=[function("f" * 70 + str(i)) for i in n]),
    "tools that cannot be offered": lambda n: request(tools=[{"type": f"hosted_{i}"} for i in n]),
    "a namespace": lambda n: request(
        tools=[{"type": "namespace", "name": "n", "description": "d", "tools": [function(f"f{i}") for i in n]}]
    ),
    "namespaces": lambda n: request(
        tools=[{"type": "namespace", "name": f"n{i}", "description": "d", "tools": [function("f")]} for i in n]
    ),
    "tools that items bring": lambda n: request(
        *({"type": "additional_tools", "role": "developer", "tools": [function(f"f{i}")]} for i in n)
    ),
    "allowed tools": lambda n: request(
        tools=[function(f"f{i}") for i in n],
        tool_choice={
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": f"f{i}"} for i in n],
        },
    ),
    "an allowed namespace, many times": lambda n: request(
        tools=[{"type": "namespace", "name": "n", "description": "d", "tools": [function(f"f{i}") for i in n]}],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "n"} for _ in n]},
    ),
    "things to include": lambda n: request(include=["reasoning.encrypted_content" for _ in n]),
    "a schema": lambda n: request(
        text={
            "format": {
                "type": "json_schema",
                "name": "a",
                "schema": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in n}},
            }
        }
    ),
}
OLLAMA: dict[str, Callable[[range], Json]] = {
    "messages": lambda n: {"model": "test-model", "messages": [{"role": "user", "content": "x"} for _ in n]},
    "tool rounds": lambda n: {
        "model": "test-model",
        "messages": [
            one
            for _ in n
            for one in (
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                {"role": "tool", "tool_name": "f", "content": "x"},
            )
        ],
    },
    "tool rounds, answered at the end": lambda n: {
        "model": "test-model",
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"name": f"f{i}", "arguments": {}}} for i in n]},
            *({"role": "tool", "tool_name": f"f{i}", "content": "x"} for i in reversed(n)),
        ],
    },
    "images": lambda n: {
        "model": "test-model",
        "messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgo=" for _ in n]}],
    },
}


# The answer, in as many pieces, of a server that speaks chat completions, or Responses. Where items are known by what
# their servers call them, all that came before are looked through: of these there are no more than `MOST_ITEMS`.
ANSWERS: dict[str, Callable[[range], tuple[str, Answer]]] = {
    "calls": lambda n: ("openai-chat", chat(*(fake_call("f", {}) for _ in n))),
    "calls of one id": lambda n: ("openai-chat", chat(*(fake_call("f", {}, id="c") for _ in n))),
    "thoughts and texts": lambda n: (
        "openai-chat",
        chat(*(part for _ in n for part in (reasoning("Hm."), "Hello."))),
    ),
    "chunks of a call": lambda n: (
        "openai-chat",
        stream(
            chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": "'}}]}),
            *(chunk({"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]}) for _ in n),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"}'}}]}),
            chunk({}, finish_reason="tool_calls"),
            DONE,
        ),
    ),
    "letters of a tag that never ends": lambda n: ("openai-chat", chat("<think>" + "<" * len(n))),
    "native calls at once": lambda n: ("openai", native(*(fake_call("f", {}) for _ in n), as_stream=False)),
    "native items that were never streamed": lambda n: (
        "openai",
        event_stream([native_events(*("Hello." for _ in n))[index] for index in (0, 1, -1)]),
    ),
}


async def opcodes_of(running: Running, path: str, body: Json) -> int:
    """How many opcodes of ours it takes until it is answered."""
    count = 0

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PARTS):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return on_opcode

    def on_opcode(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "opcode"
        return on_opcode

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        answer = await running.http.post(path, content=orjson.dumps(body))
    finally:
        sys.settrace(before)
    assert answer.status_code in (200, 400), answer.text
    return count


async def grows_with_its_length(path: str, shape: Callable[[range], Json]) -> None:
    async with FakeBackend() as backend:
        backend.default = chat("Hello")
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
        async with running_router(endpoints=[endpoint], max_tools=10_000) as running:
            await opcodes_of(running, path, shape(range(2)))  # What is made once.
            none, few, many = [await opcodes_of(running, path, shape(range(count))) for count in (1, FEW, MANY)]
    check_growth(none, few, many)


def check_growth(none: int, few: int, many: int) -> None:
    times = (many - none) / max(few - none, 1)
    assert many < 50_000 or times < MOST_TIMES, f"{few} opcodes for {FEW}, {many} for {MANY}: {times:.1f} times"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_a_responses_request_costs_no_square(shape: Callable[[range], Json]) -> None:
    await grows_with_its_length(RESPONSES, shape)


@pytest.mark.heavy
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_costs_no_square(answer: Callable[[range], tuple[str, Answer]], stream: bool) -> None:
    counts = []
    body = request(stream=stream, tools=[function("f")])
    async with FakeBackend() as backend:
        endpoint = {"url": f"{backend.url}/v1", "kind": answer(range(1))[0]}
        async with running_router(endpoints=[endpoint]) as running:
            for many in (2, 1, FEW, MANY):
                backend.default = answer(range(many))[1]
                counts.append(await opcodes_of(running, RESPONSES, body))
    check_growth(*counts[1:])


@pytest.mark.parametrize("shape", OLLAMA.values(), ids=OLLAMA)
async def test_an_ollama_request_costs_no_square(shape: Callable[[range], Json]) -> None:
    await grows_with_its_length("/api/chat", shape)


MANY_PIECES: dict[str, tuple[str, Answer]] = {
    "calls": ("openai-chat", chat(*(fake_call("f", {}) for _ in range(MOST_ITEMS + 1)))),
    "calls without an index": (
        "openai-chat",
        stream(
            *(
                chunk({"tool_calls": [{"id": f"c{number}", "function": {"name": "f", "arguments": "{}"}}]})
                for number in range(MOST_ITEMS + 1)
            ),
            DONE,
        ),
    ),
    "native calls": ("openai", native(*(fake_call("f", {}, fragments=1) for _ in range(MOST_ITEMS + 1)))),
    "native calls at once": (
        "openai",
        native(*(fake_call("f", {}) for _ in range(MOST_ITEMS + 1)), as_stream=False),
    ),
    "native parts": (
        "openai",
        event_stream(
            [
                *native_events("Hello.")[:3],
                *(
                    {
                        "type": "response.content_part.added",
                        "item_id": native_events("Hello.")[2]["item"]["id"],
                        "output_index": 0,
                        "content_index": number,
                        "part": {"type": "refusal", "refusal": ""},
                    }
                    for number in range(MOST_ITEMS + 1)
                ),
            ]
        ),
    ),
}


@pytest.mark.parametrize(("kind", "answer"), MANY_PIECES.values(), ids=MANY_PIECES)
async def test_an_answer_of_more_pieces_than_any_model_makes_has_failed(kind: str, answer: Answer) -> None:
    async with FakeBackend() as backend:
        backend.default = answer
        endpoint = {"url": f"{backend.url}/v1", "kind": kind}
        async with running_router(endpoints=[endpoint], retry={"max": 0}) as running:
            body = request(tools=[function("f")])
            refused = await running.http.post(RESPONSES, json=body)
            assert_error(refused, 502, code="backend_bad_answer")
            assert f"more than {MOST_ITEMS}" in refused.text
            streamed = await running.http.post(RESPONSES, json={**body, "stream": True})
            # An error before anything has left is no event.
            last = parse_sse(streamed.content)[-1][1] if streamed.status_code == 200 else {"response": streamed.json()}
            assert f"more than {MOST_ITEMS}" in last["response"]["error"]["message"]
            await eventually(lambda: running.in_flight() == 0, "the slot is back")
