"""Servers of MCP, real ones, that a turn uses: what the model is offered, what is run, and what never is."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from mcp_types import Tool, ToolAnnotations

from api.turns.tool_rounds import MOST_CALLS, MOST_NAME
from backends.mcp.server import ServerFailed
from backends.mcp.tool_list import MOST_LISTED, ToolList
from requests.mcp_tools import mcp_entry
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, http_error
from tests.lying_mcp import NO_MATCH
from tests.mcp_server import Served, mcp_server
from tests.sdk import EVENT_CLASSES
from tests.stream_grammar import check_stream, fold
from tests.turns import URL, assert_error, create, eventually, open_stream, retrieve, stream, text_of

Json = dict[str, Any]


@pytest.fixture
async def weather() -> AsyncIterator[Served]:
    async with mcp_server() as served:
        yield served


@asynccontextmanager
async def router(backend: FakeBackend, **settings: Any) -> AsyncIterator[Running]:
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}], **settings) as running:
        yield running
        await eventually(lambda: running.app.state.mcp.sessions == 0, "no session is open")
        assert running.in_flight() == 0


def by_url(server: Served, **more: Any) -> Json:
    return {"type": "mcp", "server_label": "w", "server_url": server.url, "require_approval": "never"} | more


def uses(name: str, **arguments: Any) -> Any:
    return chat(call(f"w__{name}", arguments, id="call_1"))


async def streamed(served: Running, **params: Any) -> Json:
    events = await stream(served.http, **params)
    check_stream(events)
    for event in events:
        assert EVENT_CLASSES[event["type"]].model_validate(event, strict=True).to_dict() == event
    response: Json = events[-1]["response"]
    assert fold(events) == response
    return response


def names(backend: FakeBackend) -> list[str]:
    return [tool["function"]["name"] for tool in backend.turns[-1].json.get("tools") or ()]


async def test_a_server_that_the_client_names_is_listed_called_and_read(backend: FakeBackend, weather: Served) -> None:
    async with router(backend) as served:
        backend.script(uses("forecast", city="Oslo"), chat("21 degrees."))
        response = await streamed(served, tools=[by_url(weather)])
        listed, called, _ = response["output"]
        assert {tool["name"] for tool in listed["tools"]} >= {"forecast", "plan"}
        assert (called["type"], called["server_label"], called["name"]) == ("mcp_call", "w", "forecast")
        assert json.loads(called["output"]) == {"city": "Oslo", "degrees": 21}
        assert text_of(response) == "21 degrees."
        before = len(weather.requests)
        backend.script(chat("Again."))
        again = await create(served.http, tools=[by_url(weather)], previous_response_id=response["id"])
        assert [item["type"] for item in again["output"]] == ["message"], "the conversation has the list"
        assert len(weather.requests) == before, "the list is remembered"
        assert "w__forecast" in names(backend)


async def test_a_server_of_the_settings_is_known_by_its_name(backend: FakeBackend, weather: Served) -> None:
    servers = {"w": {"url": weather.url, "headers": {"X-Key": "s3cret"}}}
    async with router(backend, mcp={"servers": servers, "client_servers": "deny"}) as served:
        for tool in ({"server_label": "w"}, {"server_label": "other", "connector_id": "w"}):
            label = tool["server_label"]
            backend.script(chat(call(f"{label}__plan", {"city": "Rome"}, id="c")), chat("Done."))
            response = await create(served.http, tools=[{"type": "mcp", **tool}])
            assert [item["type"] for item in response["output"]] == ["mcp_list_tools", "mcp_call", "message"]
            assert response["output"][1]["output"] == "Go to Rome."
        assert "s3cret" in weather.sent
        answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [by_url(weather)]})
        assert answer.headers["x-nomyo-omitted-tools"] == "mcp:w", "a client may name none itself"


async def test_a_server_for_every_turn_is_offered_without_being_asked_for(
    backend: FakeBackend, weather: Served
) -> None:
    async with router(backend, mcp={"servers": {"w": {"url": weather.url, "always": True}}}) as served:
        backend.script(uses("plan", city="Rome"), chat("Done."))
        response = await create(served.http)
        assert [item["type"] for item in response["output"]] == ["mcp_list_tools", "mcp_call", "message"]
        backend.script(chat("Hi"))
        answer = await served.http.post("/v1/chat/completions", json={"model": "test-model", "messages": [USER]})
        assert answer.status_code == 200
        assert not names(backend)


USER = {"role": "user", "content": "Hi"}


async def test_a_server_is_for_its_owners(backend: FakeBackend, weather: Served) -> None:
    mcp = {"servers": {"w": {"url": weather.url, "owners": ["anna"]}}}
    keys = [{"name": "a", "key": "sk-anna-12345678901234567890", "owner": "anna"}]
    keys.append({"name": "b", "key": "sk-bert-12345678901234567890", "owner": "bert"})
    async with router(backend, mcp=mcp, keys=keys) as served:
        for key, types in ((keys[0], ["mcp_list_tools", "message"]), (keys[1], ["message"])):
            headers = {"Authorization": f"Bearer {key['key']}"}
            tools = [{"type": "mcp", "server_label": "w"}]
            body = {"model": "test-model", "input": "x", "tools": tools}
            answer = await served.http.post(URL, json=body, headers=headers)
            assert [item["type"] for item in answer.json()["output"]] == types
            named = await served.http.post(URL, json=body | {"tools": [by_url(weather)]}, headers=headers)
            assert named.headers["x-nomyo-omitted-tools"] == "mcp:w", "with keys, clients name none"


async def test_no_server_of_a_client_is_looked_for_at_addresses_that_are_not_public(
    backend: FakeBackend, weather: Served
) -> None:
    async with router(backend, mcp={"allow_private": False}) as served:
        response = await create(served.http, tools=[by_url(weather)])
        assert response["output"][0]["error"] == "The router does not connect to where this server is."
        assert not weather.requests


@pytest.mark.parametrize("tool", ["fail", "asks", "nothing"])
async def test_a_tool_that_fails_is_an_item_with_its_error(backend: FakeBackend, weather: Served, tool: str) -> None:
    async with router(backend) as served:
        backend.script(uses(tool), chat("Sorry."))
        response = await streamed(served, tools=[by_url(weather)])
        called = response["output"][1]
        if tool == "nothing":  # No tool of ours: the client's, then.
            assert called["type"] == "function_call"
            return
        assert called["status"] == "failed"
        assert called["error"]["type"] in ("mcp_tool_execution_error", "mcp_protocol_error")
        assert "The tool failed" in backend.turns[-1].json["messages"][-1]["content"]


async def test_a_picture_is_shown_to_the_model(backend: FakeBackend, weather: Served) -> None:
    async with router(backend) as served:
        backend.script(uses("picture"), chat("I see."))
        response = await streamed(served, tools=[by_url(weather)])
        assert json.loads(response["output"][1]["output"])[0]["mimeType"] == "image/png"
        last = backend.turns[-1].json["messages"][-1]
        assert last["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("megabytes", "fits"), [(10, True), (30, False), pytest.param(100, False, marks=pytest.mark.heavy)]
)
async def test_an_answer_has_up_to_ten_megabytes(
    backend: FakeBackend, weather: Served, megabytes: int, fits: bool
) -> None:
    async with router(backend) as served:
        backend.script(uses("large", megabytes=megabytes), chat("Much."))
        response = await create(served.http, tools=[by_url(weather)])
        called = response["output"][1]
        assert (called["status"] == "completed") == fits, str(called["error"])[:300]
        if fits:
            assert len(called["output"]) == megabytes * 1024 * 1024
            assert backend.turns[-1].json["messages"][-1]["content"] == called["output"]


@pytest.mark.parametrize(
    ("more", "offered"),
    [
        ({"allowed_tools": ["plan"]}, ["w__plan"]),
        ({"allowed_tools": {"read_only": True}}, ["w__forecast"]),
        ({"allowed_tools": {"tool_names": ["plan", "forecast"], "read_only": False}}, ["w__plan"]),
        ({"allowed_tools": []}, []),
    ],
)
async def test_only_allowed_tools_are_offered(
    backend: FakeBackend, weather: Served, more: Json, offered: list[str]
) -> None:
    async with router(backend) as served:
        response = await create(served.http, tools=[by_url(weather, **more)])
        assert names(backend) == offered
        assert [f"w__{tool['name']}" for tool in response["output"][0]["tools"]] == offered


async def test_what_must_be_approved_of_runs_after_it_was(backend: FakeBackend, weather: Served) -> None:
    approval = {"never": {"tool_names": ["plan"]}}
    async with router(backend) as served:
        backend.script(uses("forecast", city="Oslo"))
        asked = await streamed(served, tools=[by_url(weather, require_approval=approval)])
        request = asked["output"][-1]
        assert (request["type"], weather.called) == ("mcp_approval_request", [])
        answer = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
        backend.script(chat("21."))
        tools = [by_url(weather, require_approval=approval)]
        done = await create(served.http, tools=tools, input=[answer], previous_response_id=asked["id"])
        assert [item["type"] for item in done["output"]] == ["mcp_call", "message"]
        assert weather.called == ["forecast Oslo"]


async def test_the_settings_ask_for_approval_whatever_a_client_wants(backend: FakeBackend, weather: Served) -> None:
    servers = {"w": {"url": weather.url, "require_approval": "always"}}
    async with router(backend, mcp={"servers": servers}) as served:
        backend.script(uses("plan", city="Rome"))
        tool = {"type": "mcp", "server_label": "w", "require_approval": "never"}
        response = await create(served.http, tools=[tool])
        assert response["output"][-1]["type"] == "mcp_approval_request"
        assert not weather.called


async def test_credentials_go_to_their_server_alone_and_are_kept_nowhere(
    backend: FakeBackend, weather: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with mcp_server() as other, router(backend) as served:
        secret, header = "t0p-s3cret", "h3ader-s3cret"
        first = by_url(weather, authorization=secret, headers={"X-Key": header})
        second = by_url(other, server_label="o")
        backend.script(uses("plan", city="Rome"), chat("Done."))
        response = await streamed(served, tools=[first, second])
        assert f"Bearer {secret}" in weather.sent
        assert secret not in other.sent
        assert header not in other.sent
        kept = json.dumps(await retrieve(served.http, response["id"])) + json.dumps(response) + caplog.text
        assert secret not in kept
        assert header not in kept
        assert secret not in json.dumps([turn.json for turn in backend.turns])


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_a_server_that_refuses_is_an_item_with_its_error(
    backend: FakeBackend, weather: Served, status: int
) -> None:
    weather.refuses = status
    async with router(backend) as served:
        response = await streamed(served, tools=[by_url(weather, authorization="s3cret")])
        listed, message = response["output"]
        assert listed["error"]
        assert "s3cret" not in listed["error"]
        assert message["type"] == "message"
        answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [by_url(weather)]})
        assert answer.headers["x-nomyo-failed-tools"] == "mcp:w"
        assert answer.headers["x-nomyo-omitted-tools"] == "mcp:w", "the model was not offered any of it"


async def test_a_server_that_is_down_is_an_item_with_its_error(backend: FakeBackend) -> None:
    async with router(backend) as served:
        response = await streamed(served, tools=[by_url(Served("http://127.0.0.1:9/mcp"))])
        assert response["output"][0]["error"]
        assert response["status"] == "completed"


async def test_a_client_that_leaves_while_a_server_works_leaves_no_session(
    backend: FakeBackend, weather: Served
) -> None:
    async with router(backend) as served:
        backend.script(uses("hang"))
        async with open_stream(served.http, tools=[by_url(weather)]) as events:
            await events.until("response.mcp_call.in_progress")
            await eventually(lambda: weather.called == ["hang"], "the tool runs")
        await eventually(lambda: served.app.state.mcp.sessions == 0, "no session is open")


async def test_progress_gives_a_call_no_more_time_and_whoever_is_given_up_hears_of_it(
    backend: FakeBackend, weather: Served
) -> None:
    async with router(backend, tools={"timeout_s": 0.3}) as served:
        await create(served.http, tools=[by_url(weather)])  # Its tools are known from here on.
        backend.script(uses("hang"), chat("Too slow."))
        response = await create(served.http, tools=[by_url(weather)])
        called = response["output"][1]
        assert (called["status"], called["error"]["code"]) == ("failed", -32001)
        await eventually(lambda: weather.given_up == 1, "it works for nobody any more")


async def test_what_takes_long_and_reports_progress_is_waited_for(backend: FakeBackend, weather: Served) -> None:
    async with router(backend) as served:
        backend.script(uses("hang"), chat("At last."))
        asked = asyncio.create_task(create(served.http, tools=[by_url(weather)]))
        await eventually(lambda: weather.called == ["hang"], "the tool runs")
        assert served.in_flight() == 0
        weather.release.set()
        assert (await asked)["output"][1]["output"] == "released"


async def test_a_service_that_stops_while_a_server_works_leaves_no_task(backend: FakeBackend, weather: Served) -> None:
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]) as served:
        backend.script(uses("hang"))
        asked = asyncio.create_task(create(served.http, tools=[by_url(weather)], background=True))
        await eventually(lambda: weather.called == ["hang"], "the tool runs")
        await asked
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("mcp session", "tool")]


async def test_two_servers_with_tools_of_one_name_are_told_apart(backend: FakeBackend, weather: Served) -> None:
    own = {"type": "function", "name": "w__plan", "parameters": {"type": "object"}}
    async with mcp_server() as other, router(backend) as served:
        await create(served.http, tools=[by_url(weather), by_url(other, server_label="o"), own])
        assert len(set(names(backend))) == len(names(backend))
        assert names(backend)[0] == "w__plan", "the client's name is the client's"


async def test_a_server_over_sse_is_used_too(backend: FakeBackend) -> None:
    async with mcp_server("/sse") as weather, router(backend) as served:
        backend.script(uses("plan", city="Rome"), chat("Done."))
        response = await create(served.http, tools=[by_url(weather)])
        assert response["output"][1]["output"] == "Go to Rome."


async def test_a_server_that_never_answers_is_given_up(backend: FakeBackend) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with router(backend, tools={"timeout_s": 0.2}) as served:
            response = await streamed(served, tools=[by_url(Served(f"http://127.0.0.1:{port}/mcp"))])
            assert response["output"][0]["error"] == "The server has not answered in time."
            assert response["status"] == "completed"


async def test_approval_is_given_after_a_restart(backend: FakeBackend, weather: Served, tmp_path: Path) -> None:
    database = {"url": f"sqlite:///{tmp_path}/router.db"}
    tools = [by_url(weather, require_approval="always")]
    async with router(backend, database=database) as served:
        backend.script(uses("plan", city="Rome"))
        asked = await create(served.http, tools=tools)
    request = asked["output"][-1]
    answer = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
    async with router(backend, database=database) as served:
        backend.script(chat("Done."))
        done = await create(served.http, tools=tools, input=[answer], previous_response_id=asked["id"])
        assert done["output"][0]["output"] == "Go to Rome."
        assert weather.called == ["plan Rome"]


async def test_a_program_of_the_settings_is_asked_over_stdio(backend: FakeBackend) -> None:
    program = str(Path(__file__).parent / "clients" / "codex_mcp.py")
    async with router(backend, mcp={"servers": {"w": {"command": [sys.executable, program]}}}) as served:
        backend.script(uses("forecast", city="Oslo"), chat("Done."))
        response = await create(served.http, tools=[{"type": "mcp", "server_label": "w"}])
        listed, called, _ = response["output"]
        assert [tool["name"] for tool in listed["tools"]] == ["forecast"]
        assert (called["status"], called["error"]) == ("completed", None)
        assert called["output"]


async def test_a_server_that_an_item_brings_is_used_from_there_on(backend: FakeBackend, weather: Served) -> None:
    brought = {"type": "additional_tools", "role": "developer", "tools": [by_url(weather, authorization="s3cret")]}
    question = {"role": "user", "content": "Plan."}
    async with router(backend) as served:
        backend.script(uses("plan", city="Rome"), chat("Done."))
        first = await streamed(served, input=[question, brought])
        assert [item["type"] for item in first["output"]] == ["mcp_list_tools", "mcp_call", "message"]
        assert "Bearer s3cret" in weather.sent
        backend.script(uses("plan", city="Oslo"), chat("Done."))
        second = await streamed(served, input=[question, brought], previous_response_id=first["id"])
        assert [item["type"] for item in second["output"]] == ["mcp_call", "message"], "brought again, it is the same"
        listed = await served.http.get(f"{URL}/{second['id']}/input_items")
        assert "s3cret" not in listed.text
        wrong = brought | {"tools": [by_url(weather, server_label=5)]}
        answer = await served.http.post(URL, json={"model": "test-model", "input": [question, wrong]})
        assert_error(answer, 400, param="input[1].tools[0].server_label")
        only = by_url(weather, allowed_tools=["forecast"])
        backend.script(chat("Hi."))
        await create(served.http, input=[question, brought], tools=[only])
        assert names(backend) == ["w__forecast"], "what the request has itself counts"


async def test_tools_of_servers_count_as_input(backend: FakeBackend, weather: Served) -> None:
    async def counted(served: Running, tools: list[Json]) -> int:
        body = {"model": "test-model", "input": "x", "tools": tools}
        answer = await served.http.post(f"{URL}/input_tokens", json=body)
        assert answer.status_code == 200, answer.text
        tokens: int = answer.json()["input_tokens"]
        return tokens

    async with router(backend) as served:
        none = await counted(served, [])
        one = await counted(served, [by_url(weather, allowed_tools=["plan"])])
        everything = await counted(served, [by_url(weather)])
        assert none < one < everything
        usage = (await served.http.get("/api/usage")).json()
        assert usage["total"]["input_tokens"] == usage["total"]["output_tokens"] == 0, "that was no model's work"
        down = by_url(Served("http://127.0.0.1:9/mcp"))
        answer = await served.http.post(
            f"{URL}/input_tokens", json={"model": "test-model", "input": "x", "tools": [down]}
        )
        assert (answer.json()["input_tokens"], answer.headers["x-nomyo-failed-tools"]) == (none, "mcp:w")


async def test_a_server_that_lies_about_its_schemas_harms_its_own_calls_alone(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    program = str(Path(__file__).parent / "lying_mcp.py")
    async with router(backend, mcp={"servers": {"w": {"command": [sys.executable, program]}}}) as served:
        backend.script(chat(*(call(f"w__{name}", {}, id=name) for name in ("number", "none", "typed"))), chat("So."))
        response = await streamed(served, tools=[{"type": "mcp", "server_label": "w"}])
        listed, number, none, other, _ = response["output"]
        assert [tool["name"] for tool in listed["tools"]] == ["number", "none", "large", "typed", "nested"]
        outputs = [call["output"] for call in (number, none, other)]
        assert outputs == ['{"n":"secret-1"}', "none", "typed"], "a model reads what came"
        assert "secret-1" not in caplog.text
        offered = [tool["function"]["parameters"] for tool in backend.turns[0].json["tools"]]
        assert offered == [{"type": "object", "properties": {}}] * 5, "no model server is shown what is no schema"
    wild = {"w": {"command": [sys.executable, program, "wildly"]}}
    async with router(backend, mcp={"servers": wild}) as served:
        listed, _ = (await streamed(served, tools=[{"type": "mcp", "server_label": "w"}]))["output"]
        assert listed["error"].startswith("The server does not answer as one of MCP")


@pytest.mark.parametrize(("megabytes", "fits"), [(10, True), pytest.param(100, False, marks=pytest.mark.heavy)])
async def test_a_large_answer_of_a_program_is_read_and_one_that_is_too_large_ends_its_session(
    backend: FakeBackend, megabytes: int, fits: bool
) -> None:
    program = str(Path(__file__).parent / "lying_mcp.py")
    async with router(backend, mcp={"servers": {"w": {"command": [sys.executable, program]}}}) as served:
        for size, is_read in ((megabytes, fits), (1, True)):
            backend.script(uses("large", megabytes=size), chat("Much."))
            response = await create(served.http, tools=[{"type": "mcp", "server_label": "w"}])
            called = response["output"][1]
            assert (called["status"] == "completed") == is_read, str(called["error"])[:300]


ITEMS: list[Json] = [
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "w", "tools": [], "error": None},
    {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "w", "name": "plan", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True, "reason": None},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "w", "name": "plan", "arguments": "{}", "output": "x"}
    | {"error": None, "approval_request_id": "mcpr_1", "status": "completed"},
]


async def test_an_item_of_any_shape_is_read_or_refused(backend: FakeBackend, weather: Served) -> None:
    async with router(backend, mcp={"servers": {"w": {"url": weather.url, "require_approval": "always"}}}) as served:
        for place, item in enumerate(ITEMS):
            for key, odd in product(item.keys() - {"type"}, ([], {"a": 1}, 5, None, "x")):
                changed = [*ITEMS[:place], item | {key: odd}, *ITEMS[place + 1 :]]
                body = {"model": "test-model", "input": changed, "store": False}
                answer = await served.http.post(URL, json=body | {"tools": [{"type": "mcp", "server_label": "w"}]})
                assert answer.status_code in (200, 400), f"{item['type']}.{key}: {odd}: {answer.text}"


async def test_no_more_calls_are_run_than_may_be_known_of_a_turn(backend: FakeBackend, weather: Served) -> None:
    number = MOST_CALLS + 5
    asked = [ITEMS[1] | {"id": f"mcpr_{n}", "name": "gone" * 100} for n in range(number)]
    approved = [ITEMS[2] | {"approval_request_id": item["id"]} for item in asked]
    async with router(backend, mcp={"servers": {"w": {"url": weather.url}}}) as served:
        response = await create(served.http, input=[*asked, *approved], tools=[{"type": "mcp", "server_label": "w"}])
        calls = [item for item in response["output"] if item["type"] == "mcp_call"]
        refused = [item for item in calls if item["error"] and "in one turn" in item["error"]["message"]]
        assert (len(calls), len(refused)) == (number, 5)
        (record,) = served.app.state.telemetry.recent
        assert len(record.tools) == MOST_CALLS
        assert max(len(tool.name) for tool in record.tools) == MOST_NAME


async def test_what_a_server_says_of_its_tools_holds_nobody_up(backend: FakeBackend) -> None:
    program = str(Path(__file__).parent / "lying_mcp.py")
    async with router(backend, mcp={"servers": {"w": {"command": [sys.executable, program, "dearly"]}}}) as served:
        backend.script(uses("pattern"), chat("So."))
        response = await streamed(served, tools=[{"type": "mcp", "server_label": "w"}])
        assert json.loads(response["output"][1]["output"]) == {"n": NO_MATCH}, "nobody has looked whether it fits"
        offered = [tool["function"]["parameters"] for tool in backend.turns[0].json["tools"]]
        assert offered == [{"type": "object", "properties": {}}] * 2, "nor is a schema looked at that has too much"


def test_of_the_list_of_a_server_no_more_is_taken_than_may_be_remembered() -> None:
    def tool(number: int, **more: Any) -> Any:
        return Tool(name=f"t{number}", input_schema={"type": "object"}, **more)

    for large in (
        tool(0, description="x" * MOST_LISTED),
        tool(0, annotations=ToolAnnotations(title="x" * MOST_LISTED)),
    ):
        with pytest.raises(ServerFailed, match="larger than 1 MB"):
            ToolList().take([large])
    tools = ToolList()
    for page in range(2):
        tools.take([tool(page * 10 + number, description="x" * (MOST_LISTED // 25)) for number in range(10)])
    last = [tool(20 + number, description="x" * (MOST_LISTED // 25)) for number in range(10)]
    with pytest.raises(ServerFailed):
        tools.take(last)
    assert len(tools.shown) == 24, "all pages count"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "allOf", "properties", "a"]), inner),
)


@given(st.lists(st.dictionaries(st.sampled_from(["type", "properties", "required", "$ref"]), JSON), max_size=5))
def test_whatever_schemas_a_server_has_those_that_are_shown_are_schemas(schemas: list[Json]) -> None:
    tools = ToolList()
    tools.take([Tool(name=str(number), input_schema=schema) for number, schema in enumerate(schemas)])
    for number, schema in enumerate(schemas):
        shown = tools.shown[str(number)]["input_schema"]
        assert shown in (schema, {"type": "object"})
        Draft202012Validator.check_schema(shown)


@pytest.mark.heavy
@pytest.mark.parametrize("stops", [False, True])
async def test_a_program_that_does_not_end_is_ended(backend: FakeBackend, stops: bool, tmp_path: Path) -> None:
    program = str(Path(__file__).parent / "lying_mcp.py")
    servers = {"w": {"command": [sys.executable, program, "for ever", str(tmp_path)]}}

    def runs() -> bool:
        return any(str(tmp_path).encode() in _read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))

    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}], mcp={"servers": servers}) as served:
        await create(served.http, tools=[{"type": "mcp", "server_label": "w"}])
        assert runs()
        if not stops:
            await eventually(lambda: served.app.state.mcp.sessions == 0, "its session has ended")
            assert not runs()
    assert not runs(), "no process is left"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_nothing_is_named_as_ignored_that_is_not(backend: FakeBackend, weather: Served) -> None:
    async with router(backend) as served:
        first = await create(served.http, tools=[by_url(weather)])
        body = {"model": "test-model", "input": "x", "tools": [by_url(weather)], "max_tool_calls": 3}
        for chained in (body, {"model": "test-model", "input": "x"}):
            answer = await served.http.post(URL, json=chained | {"previous_response_id": first["id"]})
            assert answer.status_code == 200
            assert "x-nomyo-ignored" not in answer.headers


@pytest.mark.parametrize("stream_it", [False, True])
@pytest.mark.parametrize("choice", [{"type": "function", "name": "none"}, {"type": "mcp", "server_label": "none"}])
async def test_a_choice_of_what_is_not_there_is_a_status_before_a_server_is_asked(
    backend: FakeBackend, weather: Served, choice: Json, stream_it: bool
) -> None:
    async with router(backend) as served:
        body = {"model": "test-model", "input": "x", "tools": [by_url(weather)], "tool_choice": choice}
        assert_error(await served.http.post(URL, json=body | {"stream": stream_it}), 400, param="tool_choice")
        assert not weather.requests


async def test_a_server_that_speaks_responses_is_given_what_a_client_names(
    backend: FakeBackend, weather: Served
) -> None:
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai"}]) as served:
        await create(served.http, tools=[by_url(weather)])
        assert backend.turns[-1].json["tools"] == [by_url(weather)]
        assert not weather.requests


WRONG: dict[str, tuple[Json, str]] = {
    "no label": ({"server_label": None}, "tools[0].server_label"),
    "a label that is none": ({"server_label": 1}, "tools[0].server_label"),
    "a URL that is none": ({"server_url": ["x"]}, "tools[0].server_url"),
    "headers that are none": ({"headers": "x"}, "tools[0].headers"),
    "a header that is none": ({"headers": {"a": "b\r\nc: d"}}, "tools[0].headers"),
    "an authorization that is none": ({"authorization": {"a": 1}}, "tools[0].authorization"),
    "a filter that is none": ({"allowed_tools": 5}, "tools[0].allowed_tools"),
    "names that are none": ({"allowed_tools": [5]}, "tools[0].allowed_tools.tool_names"),
    "an approval that is none": ({"require_approval": "maybe"}, "tools[0].require_approval"),
    "a filter of approvals that is none": ({"require_approval": {"always": 5}}, "tools[0].require_approval.always"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_with_a_server_is_named(backend: FakeBackend, name: str) -> None:
    wrong, param = WRONG[name]
    async with router(backend) as served:
        tool = by_url(Served("http://127.0.0.1:9/mcp")) | wrong
        answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [tool]})
        assert_error(answer, 400, param=param)


async def test_two_servers_of_one_label_are_refused(backend: FakeBackend) -> None:
    tool = by_url(Served("http://127.0.0.1:9/mcp"))
    async with router(backend) as served:
        answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [tool, tool]})
        assert_error(answer, 400, param="tools[1].server_label")


def test_approval_is_needed_where_a_filter_says_so() -> None:
    read, write = {"name": "r", "annotations": {"readOnlyHint": True}}, {"name": "w", "annotations": None}

    def needed(approval: Any) -> list[bool | None]:
        entry = mcp_entry({"server_label": "s", "require_approval": approval}, "tools[0]")
        return [entry.needs_approval(read), entry.needs_approval(write)]

    assert needed("always") == [True, True]
    assert needed("never") == [False, False]
    assert needed(None) == [None, None]
    assert needed({"never": {"read_only": True}}) == [False, True]
    assert needed({"always": {"tool_names": ["w"]}}) == [False, True]
    assert needed({"always": {"tool_names": ["w", "r"]}, "never": {"tool_names": ["r"]}}) == [False, True]


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROUNDS = st.lists(
    st.lists(st.sampled_from(["forecast", "plan", "fail", "asks", "hang"]), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)
ENDS = st.sampled_from(["end", "fail", "leave", "cancel", "server ends"])


@pytest.mark.heavy
@given(rounds=ROUNDS, end=ENDS, after=st.integers(0, 25))
@settings(max_examples=40, deadline=None)
def test_whatever_happens_between_rounds_leaves_no_session_task_or_slot(
    rounds: list[list[str]], end: str, after: int
) -> None:
    asyncio.run(_leaves_nothing(rounds, end, after))


async def _leaves_nothing(rounds: list[list[str]], end: str, after: int) -> None:
    async with AsyncExitStack() as stack:
        weather = await stack.enter_async_context(mcp_server())
        backend = await stack.enter_async_context(FakeBackend())
        served = await stack.enter_async_context(router(backend, tools={"timeout_s": 5}))
        if end in ("end", "fail"):
            weather.release.set()
        calls = [
            [call(f"w__{name}", {"city": "Oslo"}, id=f"c{at}") for at, name in enumerate(names)] for names in rounds
        ]
        script = [chat("I look.", *names) for names in calls]
        backend.script(*script, http_error(400) if end == "fail" else chat("Done."))
        background = {"background": True} if end == "cancel" else {}
        async with open_stream(served.http, tools=[by_url(weather)], **background) as events:
            reading = asyncio.create_task(events.rest())
            # Where a tool hangs, nothing more comes.
            while not reading.done() and len(events.seen) <= after and "hang" not in weather.called:
                await asyncio.wait([reading], timeout=0.005)
            match end:
                case "leave":
                    reading.cancel()
                    await asyncio.wait([reading])
                case "cancel":
                    await eventually(lambda: bool(events.seen), "it has begun")
                    await served.http.post(f"{URL}/{events.seen[0]['response']['id']}/cancel")
                case "server ends":
                    weather.refuses = 503
                    weather.release.set()
            seen = [] if end == "leave" else await reading
        if end != "leave":
            check_stream(seen)
            response = seen[-1]["response"]
            assert fold(seen) == response
            assert (await retrieve(served.http, response["id"]))["output"] == response["output"]
            ran = [item for item in response["output"] if item["type"] == "mcp_call"]
            assert response["status"] == "cancelled" or all(item["output"] or item["error"] for item in ran)
        await eventually(lambda: served.app.state.mcp.sessions == 0 and served.in_flight() == 0, "nothing is open")
        await eventually(
            lambda: not [task for task in asyncio.all_tasks() if task.get_name() in ("mcp session", "tool")], "no task"
        )
