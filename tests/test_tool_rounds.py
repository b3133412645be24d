"""The rounds of a turn whose tools the router runs, with tools of the tests' own behind the seam: one response,
whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.turns.turn import Turn
from requests.events import ResponseBuilder, replay, unfinished
from requests.router_tools import RouterTool, RouterTools, http_error, with_error, with_output
from requests.tools import Item
from tests.conftest import Running, running_router
from tests.fake_backend import Call, FakeBackend, call, chat, reasoning, stall
from tests.fake_backend import http_error as http_failure
from tests.sdk import EVENT_CLASSES
from tests.stream_grammar import check_stream, fold
from tests.turns import assert_error, create, ended, eventually, open_stream, retrieve, stream, text_of

Json = dict[str, Any]
SERVER: Json = {"type": "mcp", "server_label": "t", "require_approval": "never"}
PLAIN: Json = {"type": "function", "name": "mine", "parameters": {"type": "object"}}
Answer = Callable[[Json], Awaitable[Json]]


class OwnTools:
    """`echo` answers with its arguments, `fail` does not; `hang` waits for `release`; `ask` needs approval."""

    def __init__(self) -> None:
        self.failed: dict[str, bool] = {}
        self.ran: list[Json] = []
        self.running = self.most = 0
        self.release = asyncio.Event()
        self.opened = self.closed = 0

    async def offered(self, turn: Turn) -> RouterTools:
        self.opened += 1
        tools = [RouterTool("t", name, f"It is {name}.", {"type": "object"}, name == "ask") for name in NAMES]
        return RouterTools(tuple(tools), frozenset({"t"}))

    async def run(self, call: Item) -> Item:
        self.ran.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            match call["name"]:
                case "echo" | "ask":
                    await asyncio.sleep(0)
                    return with_output(call, f"echo {call['arguments']}")
                case "hang":
                    await self.release.wait()
                    return with_output(call, "released")
                case "fail":
                    self.failed["t"] = False
                    return with_error(call, http_error(502, "Bad gateway"))
                case _:
                    raise RuntimeError("a tool that is broken")
        finally:
            self.running -= 1

    def close(self) -> None:
        self.closed += 1


NAMES = ("echo", "fail", "hang", "ask", "broken")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> OwnTools:
    made = OwnTools()
    monkeypatch.setattr(
        "api.responses.router_tools_of",
        lambda state, turn: made if any(tool["type"] == "mcp" for tool in turn.request.params.tools) else None,
    )
    return made


@pytest.fixture
async def served(backend: FakeBackend) -> AsyncIterator[Running]:
    async with running_router(
        endpoints=[{"url": backend.url, "kind": "vllm", "max_concurrent": 1}],
        tools={"max_rounds": 5, "concurrency": 2, "timeout_s": 20},
    ) as running:
        yield running


def calls(*names: str, **arguments: Any) -> list[Call]:
    return [call(f"t__{name}", arguments, id=f"call_{number}") for number, name in enumerate(names)]


def types(response: Json) -> list[str]:
    return [item["type"] for item in response["output"]]


async def both(served: Running, backend: FakeBackend, *script: Any, **params: Any) -> list[Json]:
    """The response, asked for at once and as a stream, which passes every check."""
    backend.script(*script)
    whole = await create(served.http, **params)
    backend.script(*script)
    events = await stream(served.http, **params)
    check_stream(events)
    for event in events:
        assert EVENT_CLASSES[event["type"]].model_validate(event, strict=True).to_dict() == event
    assert fold(events) == events[-1]["response"]
    await eventually(lambda: served.in_flight() == 0, "no slot is held")
    return [whole, events[-1]["response"]]


async def test_what_a_tool_answers_goes_back_to_the_model_in_one_response(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    script = (chat(reasoning("Hm."), "I look.", *calls("echo", x=1)), chat(*calls("echo", x=2)), chat("It is 2."))
    for response in await both(served, backend, *script, tools=[SERVER, PLAIN]):
        assert types(response) == ["reasoning", "message", "mcp_call", "mcp_call", "message"]
        assert [item["output"] for item in response["output"] if item["type"] == "mcp_call"] == [
            'echo {"x":1}',
            'echo {"x":2}',
        ]
        assert response["status"] == "completed"
        assert text_of(response) == "I look.It is 2."
        (one,) = {turn.json["model"] for turn in backend.turns}
        assert one
        *_, last = backend.turns
        assert [tool["function"]["name"] for tool in last.json["tools"]] == ["mine", *(f"t__{name}" for name in NAMES)]
        roles = [message["role"] for message in last.json["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "tool"]
        assert last.json["messages"][-1]["content"] == 'echo {"x":2}'
    assert tools.closed == 2
    for record in served.app.state.telemetry.recent:
        assert [one.error for one in record.tries] == ["", "", ""], "each round is an attempt"
        assert [(tool.kind, tool.has_failed) for tool in record.tools] == [("mcp_call", False)] * 2
        times = [(one.asked_s, one.ended_s) for one in record.tries]
        times += [(tool.began_s, tool.ended_s) for tool in record.tools]
        flat = [time for pair in sorted(times) for time in pair]
        assert flat == sorted(flat), "one after the other"


async def test_the_tokens_of_all_rounds_are_the_usage(served: Running, backend: FakeBackend, tools: OwnTools) -> None:
    one = (await both(served, backend, chat("A"), tools=[SERVER]))[0]["usage"]
    for response in await both(served, backend, chat(*calls("echo")), chat("A"), tools=[SERVER]):
        assert response["usage"]["input_tokens"] == 2 * one["input_tokens"]


async def test_calls_of_one_round_run_side_by_side_within_the_limit(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    backend.script(chat(*calls("hang", "hang", "hang")), chat("Done."))
    running = asyncio.create_task(create(served.http, tools=[SERVER]))
    await eventually(lambda: tools.running == 2, "two run at once")
    assert served.in_flight() == 0, "no slot is held while tools run"
    tools.release.set()
    response = await running
    assert tools.most == 2
    assert types(response) == ["mcp_call"] * 3 + ["message"]


async def test_a_tool_that_fails_is_an_item_with_its_error(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    for response in await both(served, backend, chat(*calls("fail", "broken")), chat("Sorry."), tools=[SERVER]):
        first, second, _ = response["output"]
        assert (first["status"], first["error"]) == ("failed", http_error(502, "Bad gateway"))
        assert (second["status"], second["error"]["type"]) == ("failed", "mcp_protocol_error")
        assert "Bad gateway" in backend.turns[-1].json["messages"][2]["content"]
    backend.script(chat(*calls("fail")), chat("Sorry."))
    answer = await served.http.post("/v1/responses", json={"model": "test-model", "input": "x", "tools": [SERVER]})
    assert answer.headers["x-nomyo-failed-tools"] == "t"
    assert "x-nomyo-omitted-tools" not in answer.headers


async def test_a_tool_that_hangs_is_given_up(backend: FakeBackend, tools: OwnTools) -> None:
    endpoints = [{"url": backend.url, "kind": "vllm"}]
    async with running_router(endpoints=endpoints, tools={"timeout_s": 0.05}) as served:
        for response in await both(served, backend, chat(*calls("hang")), chat("Too slow."), tools=[SERVER]):
            assert response["output"][0]["error"]["code"] == -32001
    assert tools.running == 0


async def test_a_call_of_the_clients_own_ends_the_turn_and_ours_have_run(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    mixed = chat(*calls("echo"), call("mine", {}, id="call_mine"))
    for response in await both(served, backend, mixed, tools=[SERVER, PLAIN]):
        assert types(response) == ["mcp_call", "function_call"]
        assert response["output"][0]["status"] == "completed"
    output = {"type": "function_call_output", "call_id": response["output"][1]["call_id"], "output": "5"}
    backend.script(chat("5."))
    await create(served.http, input=[output], previous_response_id=response["id"], tools=[SERVER, PLAIN])
    messages = backend.turns[-1].json["messages"]
    assert [message["content"] for message in messages if message["role"] == "tool"] == ["echo {}", "5"]


async def test_no_more_calls_are_run_than_the_request_allows(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    for response in await both(
        served, backend, chat(*calls("echo", "echo")), chat("Done."), tools=[SERVER], max_tool_calls=1
    ):
        first, second, _ = response["output"]
        assert (first["error"], second["output"]) == (None, None)
        assert "max_tool_calls" in second["error"]["message"]
        assert not backend.turns[-1].json.get("tools"), "the model is shown no tool that it may not call"


async def test_a_model_that_calls_for_ever_is_stopped(served: Running, backend: FakeBackend, tools: OwnTools) -> None:
    for response in await both(served, backend, *[chat(*calls("echo"))] * 6, tools=[SERVER]):
        assert types(response) == ["mcp_call"] * 6
        assert [item["status"] for item in response["output"]] == ["completed"] * 5 + ["failed"]


async def test_what_had_to_be_called_has_to_be_called_once(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    for choice in (
        "required",
        {"type": "mcp", "server_label": "t"},
        {"type": "mcp", "server_label": "t", "name": "echo"},
    ):
        await both(served, backend, chat(*calls("echo")), chat("Done."), tools=[SERVER], tool_choice=choice)
        first, second = [turn.json.get("tool_choice") for turn in backend.turns[-2:]]
        assert first not in (None, "auto")
        assert second == "auto"


async def test_approval_is_asked_for_and_given_in_the_next_turn(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    for asked in await both(served, backend, chat(*calls("ask", x=1)), tools=[SERVER]):
        (request,) = asked["output"]
        assert request == {**request, "type": "mcp_approval_request", "name": "ask", "arguments": '{"x":1}'}
        assert not tools.ran
    approve = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
    for approved in await both(
        served, backend, chat("It ran."), tools=[SERVER], input=[approve], previous_response_id=asked["id"]
    ):
        assert types(approved) == ["mcp_call", "message"]
        assert approved["output"][0] | {"approval_request_id": request["id"]} == approved["output"][0]
        contents = [message["content"] for message in backend.turns[-1].json["messages"]]
        assert contents[-1] == 'echo {"x":1}'
    before = len(tools.ran)
    await both(served, backend, chat("Yes."), tools=[SERVER], previous_response_id=approved["id"])
    assert len(tools.ran) == before, "it runs once"
    deny = approve | {"approve": False, "reason": "too dear"}
    for denied in await both(
        served, backend, chat("Well."), tools=[SERVER], input=[deny], previous_response_id=asked["id"]
    ):
        assert types(denied) == ["message"]
        assert "too dear" in backend.turns[-1].json["messages"][-1]["content"]
    assert len(tools.ran) == before


@pytest.mark.parametrize(
    ("answer", "param"),
    [
        ({"approval_request_id": "mcpr_never", "approve": True}, "input[1].approval_request_id"),
        ({"approval_request_id": [1], "approve": True}, "input[1].approval_request_id"),
        ({"approve": True}, "input[1].approval_request_id"),
    ],
)
async def test_an_approval_of_nothing_is_refused(
    served: Running, backend: FakeBackend, tools: OwnTools, answer: Json, param: str
) -> None:
    items = [{"role": "user", "content": "x"}, {"type": "mcp_approval_response", **answer}]
    got = await served.http.post("/v1/responses", json={"model": "test-model", "input": items, "tools": [SERVER]})
    assert_error(got, 400, param=param)
    assert tools.closed == 1


async def test_a_backend_that_fails_in_a_later_round_is_tried_again(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    busy = http_failure(503, headers={"Retry-After": "0"})
    for response in await both(served, backend, chat(*calls("echo")), busy, chat("Done."), tools=[SERVER]):
        assert types(response) == ["mcp_call", "message"]


async def test_a_turn_that_fails_in_a_later_round_has_what_came_before(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    backend.script(chat(*calls("echo")), http_failure(400))
    events = await stream(served.http, tools=[SERVER])
    check_stream(events)
    failed = events[-1]["response"]
    assert (failed["status"], types(failed)) == ("failed", ["mcp_call"])
    assert failed["usage"]["input_tokens"] > 0, "its tokens were used"
    assert (await retrieve(served.http, failed["id"]))["status"] == "failed"


async def test_a_client_that_leaves_while_a_tool_runs_leaves_nothing(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    backend.script(chat("Wait.", *calls("hang")))
    async with open_stream(served.http, tools=[SERVER]) as events:
        begun = await events.until("response.created")
        await eventually(lambda: tools.running == 1, "the tool runs")
    await eventually(lambda: tools.running == 0 and tools.closed == 1, "nothing runs any more")
    assert served.in_flight() == 0

    async def is_kept() -> bool:
        return (await retrieve(served.http, begun["response"]["id"]))["status"] == "cancelled"

    await eventually(is_kept, "the store knows")
    kept = await retrieve(served.http, begun["response"]["id"])
    assert [(item["type"], item["status"]) for item in kept["output"]] == [
        ("message", "completed"),
        ("mcp_call", "incomplete"),
    ]


async def test_a_background_turn_is_cancelled_while_a_tool_runs(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    backend.script(chat(*calls("hang")))
    begun = await create(served.http, tools=[SERVER], background=True)
    await eventually(lambda: tools.running == 1, "the tool runs")
    await served.http.post(f"/v1/responses/{begun['id']}/cancel")
    response = await ended(served.http, begun["id"])
    assert (response["status"], types(response)) == ("cancelled", ["mcp_call"])
    await eventually(lambda: tools.running == 0 and tools.closed == 1, "nothing runs any more")


async def test_a_client_that_leaves_while_the_model_answers_a_tool_frees_the_slot(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    backend.script(chat(*calls("echo")), chat("Now", then=stall()))
    async with open_stream(served.http, tools=[SERVER]) as events:
        await events.until("response.output_text.delta")
    await eventually(lambda: served.in_flight() == 0 and tools.closed == 1, "the slot is free")


async def test_what_was_run_is_read_by_the_model_in_later_turns(
    served: Running, backend: FakeBackend, tools: OwnTools
) -> None:
    backend.script(chat(*calls("echo", x=1)), chat("Done."))
    first = await create(served.http, tools=[SERVER], store=False)
    backend.script(chat("Again."))
    history = [{"role": "user", "content": "Say something."}, *first["output"], {"role": "user", "content": "More."}]
    await create(served.http, input=history)
    messages = backend.turns[-1].json["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert json.loads(messages[1]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]


async def test_tools_of_ours_run_over_a_websocket(served: Running, backend: FakeBackend, tools: OwnTools) -> None:
    backend.script(chat(*calls("echo")), chat("Done."))
    async with served.openai.responses.connect() as connection:
        await connection.response.create(model="test-model", input="Hi", tools=[SERVER])
        seen = []
        async for event in connection:
            seen.append(event)
            if event.type in ("response.completed", "response.failed", "error"):
                break
    assert [item.type for item in seen[-1].response.output] == ["mcp_call", "message"]


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROUNDS = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from(["echo", "fail", "broken", "hang", "ask", "mine"]), max_size=3)),
    min_size=1,
    max_size=4,
)
ENDS = st.sampled_from(["end", "leave", "fail"])


@given(rounds=ROUNDS, end=ENDS, after=st.integers(0, 30))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_leaves_nothing_and_the_stream_is_what_is_stored(
    rounds: list[tuple[bool, list[str]]], end: str, after: int
) -> None:
    asyncio.run(_goes_well(rounds, end, after))


async def _goes_well(rounds: list[tuple[bool, list[str]]], end: str, after: int) -> None:
    tools = OwnTools()
    # Whoever leaves may leave while one hangs.
    hangs = end == "leave" and any("hang" in names for _, names in rounds)
    if not hangs:
        tools.release.set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.responses.router_tools_of", lambda state, turn: tools)
        async with FakeBackend() as backend, running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]) as served:
            script = [
                chat(*(["I look."] if has_text else []), *(each for name in names for each in _call_of(name)))
                for has_text, names in rounds
            ]
            backend.script(*script, http_failure(400) if end == "fail" else chat("Done."))
            async with open_stream(served.http, tools=[SERVER, PLAIN]) as events:
                if end == "leave":
                    for _ in range(after):
                        if tools.running or await events.next() is None:
                            break
                else:
                    seen = await events.rest()
                    check_stream(seen)
                    response = seen[-1]["response"]
                    assert fold(seen) == response
                    stored = await retrieve(served.http, response["id"])
                    assert stored["output"] == response["output"]
                    builder = ResponseBuilder(unfinished(response))
                    assert fold([*replay(builder, response), builder.end()]) == response
            await eventually(lambda: served.in_flight() == 0, "no slot is held")
            await eventually(lambda: tools.opened == tools.closed and not tools.running, "no tool runs")
            await eventually(
                lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "tool"], "no task is left"
            )


def _call_of(name: str) -> list[Call]:
    return [call("mine", {}, id="call_mine")] if name == "mine" else calls(name, x=1)
