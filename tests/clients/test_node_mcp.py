"""A server of MCP that others have written, in another language: the protocol's own "everything" server for node, which
the router starts as a process. `make clients` installs it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat
from tests.sdk import EVENT_CLASSES
from tests.stream_grammar import check_stream, fold
from tests.turns import create, eventually, stream

Json = dict[str, Any]

EVERYTHING = Path(__file__).parent / "node/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
TOOL: Json = {"type": "mcp", "server_label": "all"}

pytestmark = pytest.mark.skipif(
    not EVERYTHING.exists() or shutil.which("node") is None, reason="it is not installed: `make clients` does it"
)


@pytest.fixture
async def served(backend: FakeBackend) -> AsyncIterator[Running]:
    servers = {"all": {"command": ["node", str(EVERYTHING), "stdio"]}}
    async with running_router(
        endpoints=[{"url": backend.url, "kind": "vllm"}], mcp={"servers": servers}, tools={"timeout_s": 3}
    ) as running:
        yield running
        await eventually(lambda: running.app.state.mcp.sessions == 0, "its processes have ended")


def uses(*calls: tuple[str, Json]) -> Any:
    return chat(*(call(f"all__{name}", arguments, id=f"c{at}") for at, (name, arguments) in enumerate(calls)))


async def test_all_that_it_answers_is_read(served: Running, backend: FakeBackend) -> None:
    asked = [
        ("echo", {"message": "hi"}),
        ("get-sum", {"a": 2, "b": 3}),
        ("get-tiny-image", {}),
        ("get-structured-content", {"location": "New York"}),
        ("get-resource-reference", {"resourceType": "Text", "resourceId": 1}),
        ("get-resource-links", {"count": 2}),
        ("trigger-long-running-operation", {"duration": 0.3, "steps": 3}),
    ]
    backend.script(uses(*asked), chat("Done."))
    events = await stream(served.http, tools=[TOOL])
    check_stream(events)
    for event in events:
        assert EVENT_CLASSES[event["type"]].model_validate(event, strict=True).to_dict() == event
    response = events[-1]["response"]
    assert fold(events) == response
    listed, *ran, _ = response["output"]
    assert {tool["name"] for tool in listed["tools"]} >= {name for name, _ in asked}
    assert [(item["name"], item["error"]) for item in ran] == [(name, None) for name, _ in asked]
    outputs = {item["name"]: item["output"] for item in ran}
    assert outputs["echo"] == "Echo: hi"
    assert "5" in outputs["get-sum"]
    assert json.loads(outputs["get-structured-content"])["temperature"]
    assert [part["type"] for part in json.loads(outputs["get-tiny-image"])] == ["text", "image", "text"]
    assert "resource_link" in outputs["get-resource-links"]
    sent = [message["content"] for message in backend.turns[-1].json["messages"]]
    assert [[part["type"] for part in content] for content in sent if isinstance(content, list)] == [["image_url"]]


async def test_what_it_refuses_and_what_takes_it_too_long_are_items_with_errors(
    served: Running, backend: FakeBackend
) -> None:
    backend.script(
        uses(("echo", {"message": 5}), ("trigger-long-running-operation", {"duration": 60, "steps": 600})), chat("So.")
    )
    response = await create(served.http, tools=[TOOL])
    _, wrong, slow, _ = response["output"]
    assert (wrong["status"], wrong["error"]["type"]) == ("failed", "mcp_tool_execution_error")
    assert (slow["status"], slow["error"]["code"]) == ("failed", -32001), "progress gives it no more time"


async def test_each_turn_has_a_process_of_its_own(served: Running, backend: FakeBackend) -> None:
    backend.default = chat("Hi.")
    backend.script(*[uses(("echo", {"message": "hi"}))] * 3)
    responses = await asyncio.gather(*(create(served.http, tools=[TOOL]) for _ in range(3)))
    assert {response["status"] for response in responses} == {"completed"}
