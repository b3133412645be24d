"""What may happen to a turn on a WebSocket while it runs: it is silent, is cancelled, is steered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import DONE, FakeBackend, call, chat, chunk, cut, http_error, native, stall, steps, until
from tests.sdk import EVENT_CLASSES, MODEL, WEATHER_TOOL, ended
from tests.stream_grammar import check_stream
from tests.test_websocket import ENDS, Lane, connected, judge, said_to, text_of
from tests.turns import eventually, retrieve

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

BEGINNING = ["response.created", "response.in_progress"]
STEERED = [{"type": "message", "role": "user", "content": "In French, please."}]


def types_of(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


async def until_type(lane: Lane, type: str) -> list[Any]:
    """The events up to the first of that type."""
    events = [await lane.next()]
    while events[-1]["type"] != type:
        assert "status" not in events[-1], events[-1]
        events.append(await lane.next())
    return events


async def send(lane: Lane, type: str, **message: Any) -> None:
    await lane.send(**{"type": type, "model": None, **message})


async def steer(lane: Lane, response_id: Any, input: Any = STEERED, **more: Any) -> None:
    message = {"type": "response.steer", "previous_response_id": response_id, "input": input, **more}
    await lane.socket.send(orjson.dumps(message).decode())


@pytest.fixture
async def lane(served: Running) -> AsyncIterator[Lane]:
    async with connected(served) as lane:
        yield lane


@pytest.fixture
async def impatient(backend: FakeBackend) -> AsyncIterator[Running]:
    """A router whose streams begin by themselves at once."""
    async with running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "b0"}], stream_start_s=0.02
    ) as served:
        yield served


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_begins_before_its_backend_does_and_is_kept_alive(
    backend: FakeBackend, impatient: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.silence.KEEPALIVE_S", 0.02)
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("Hello there.")))
    async with connected(impatient) as lane:
        await lane.send(input="Hi")
        events = await until_type(lane, "keepalive")
        assert types_of(events) == [*BEGINNING, "keepalive"]
        assert (await retrieve(impatient.http, events[0]["response"]["id"]))["status"] == "in_progress"
        events += await until_type(lane, "keepalive")
        gate.set()
        events += await until_type(lane, "response.completed")
        judge(events)
        assert events[-1]["response"]["nomyo"] == {"endpoint": "b0", "model": MODEL, "wait_ms": 0}


async def test_an_error_behind_the_beginning_is_an_event(backend: FakeBackend, impatient: Running) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), http_error(400, "the prompt is odd")), chat("Hello."))
    async with connected(impatient) as lane:
        await lane.send(input="Hi")
        events = await until_type(lane, "response.in_progress")
        gate.set()
        events += await until_type(lane, "response.failed")
        check_stream(events)
        assert "the prompt is odd" in events[-1]["response"]["error"]["message"]
        assert (await lane.answer())["status"] == "completed"


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("by", ["nothing", "lane", "id"])
@pytest.mark.parametrize("kind", ["openai-chat", "openai"])
async def test_a_turn_is_cancelled_in_the_middle(backend: FakeBackend, by: str, kind: str) -> None:
    backend.script((native if kind == "openai" else chat)("Hello there", then=stall()), chat("On."))
    stream_id = {"stream_id": "a"} if by == "lane" else {}
    async with (
        running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as served,
        connected(served) as lane,
    ):
        await lane.send(input="Hi", **stream_id)
        events = await until_type(lane, "response.output_text.delta")
        response_id = events[0]["response"]["id"]
        await send(lane, "response.cancel", **({"response_id": response_id} if by == "id" else stream_id))
        events += await until_type(lane, "response.failed")
        check_stream([{k: v for k, v in e.items() if k != "stream_id"} for e in events], prefixes=False)
        last = events[-1]["response"]
        assert (last["status"], last["error"]) == ("cancelled", None)
        if kind == "openai-chat":
            assert last["output"][0]["content"][0]["text"], "what there was is kept"
        await backend.wait_for(lambda b: b.aborts == 1)
        assert (await retrieve(served.http, response_id))["status"] == "cancelled"
        await eventually(lambda: served.in_flight() == 0, "the slot is free")
        backend.script((native if kind == "openai" else chat)("On."))


async def test_the_socket_goes_on_behind_a_turn_that_was_cancelled(backend: FakeBackend, lane: Lane) -> None:
    backend.script(chat("Hello there", then=stall()), chat("On."))
    await lane.send(input="Hi")
    await until_type(lane, "response.output_text.delta")
    await lane.send(input="And?")
    await send(lane, "response.cancel")
    await until_type(lane, "response.failed")
    assert text_of((await lane.turn())[-1]["response"]) == "On.", "the one that waited"


@pytest.mark.parametrize("waits_for", ["the backend", "nothing yet"])
async def test_a_turn_is_cancelled_before_it_has_begun(
    served: Running, backend: FakeBackend, lane: Lane, waits_for: str
) -> None:
    backend.default = stall()
    await lane.send(input="Hi")
    if waits_for == "the backend":
        await backend.wait_for(lambda b: b.in_flight == 1)
    await send(lane, "response.cancel")
    events = await lane.turn()
    assert types_of(events) == [*BEGINNING, "response.failed"]
    assert events[-1]["response"]["status"] == "cancelled"
    assert (await ended(served.openai, events[0]["response"]["id"])).status == "cancelled"
    assert backend.in_flight == 0 or await _aborted(backend)
    await eventually(lambda: served.in_flight() == 0, "the slot is free")


async def _aborted(backend: FakeBackend) -> bool:
    await backend.wait_for(lambda b: b.aborts == 1)
    return True


async def test_of_several_turns_one_must_be_named(backend: FakeBackend, lane: Lane) -> None:
    backend.default = chat("Hello", then=stall())
    for stream_id in ("a", "b"):
        await lane.send(input="Hi", stream_id=stream_id)
    await backend.wait_for(lambda b: b.in_flight == 2)
    await send(lane, "response.cancel")
    while "error" not in (event := await lane.next()):
        pass
    assert event["error"]["param"] == "response_id"
    for stream_id in ("a", "b"):
        await send(lane, "response.cancel", stream_id=stream_id)
        while (event := await lane.next())["type"] not in ENDS:
            pass
        assert (event["stream_id"], event["response"]["status"]) == (stream_id, "cancelled")


# ── steering ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def gated_chat(gate: asyncio.Event, *parts: Any, finish_reason: str = "stop") -> Any:
    """An answer that has said all, and ends when the test lets it."""
    return chat(*parts, then=steps(until(gate), chunk({}, finish_reason=finish_reason), DONE))


async def begun(lane: Lane, **message: Any) -> tuple[str, list[Any]]:
    """The id of a response that has begun to speak, and its events so far."""
    await lane.send(**{"input": "Hi", **message})
    events = await until_type(lane, "response.created")
    while not types_of(events)[-1].endswith(".delta"):
        events.append(await lane.next())
    return events[0]["response"]["id"], events


def without_lane(events: list[Any]) -> list[Any]:
    return [{key: value for key, value in event.items() if key != "stream_id"} for event in events]


def numbers_of(events: list[Any]) -> list[int]:
    return [event["sequence_number"] for event in events]


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("given", [STEERED, "In French, please."], ids=["messages", "text"])
async def test_what_steers_is_taken_up_when_the_response_has_ended(
    backend: FakeBackend, lane: Lane, store: bool, given: Any
) -> None:
    gate = asyncio.Event()
    backend.script(gated_chat(gate, "Hello there."), chat("Bonjour."), chat("Au revoir."))
    response_id, events = await begun(lane, store=store, instructions="Be brief.", stream_id="a")
    await steer(lane, response_id, given)
    events += await until_type(lane, "response.steer.accepted")
    assert events[-1]["steer"]["previous_response_id"] == response_id
    assert events[-1]["stream_id"] == "a"
    gate.set()
    events += await until_type(lane, "response.completed")
    assert numbers_of(events) == list(range(len(events)))
    successor = without_lane(await lane.turn())
    assert successor[0]["response"]["previous_response_id"] == response_id
    assert successor[0]["response"]["instructions"] == "Be brief."
    assert text_of(successor[-1]["response"]) == "Bonjour."
    assert said_to(backend) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello there."),
        ("user", "In French, please."),
    ]
    last = await lane.answer(previous_response_id=successor[-1]["response"]["id"], store=store, stream_id="a")
    assert text_of(last) == "Au revoir."


async def test_a_backend_that_speaks_responses_is_steered_too(backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), native("Hello there.")), native("Bonjour."))
    async with (
        running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai"}], stream_start_s=0) as served,
        connected(served) as lane,
    ):
        await lane.send(input="Hi")
        response_id = (await until_type(lane, "response.in_progress"))[0]["response"]["id"]
        await steer(lane, response_id)
        await until_type(lane, "response.steer.accepted")
        gate.set()
        await until_type(lane, "response.completed")
        assert text_of((await until_type(lane, "response.completed"))[-1]["response"]) == "Bonjour."
    assert "In French, please." in str(backend.turns[-1].json["input"][-1]["content"])


async def test_what_steers_waits_for_the_clients_tools(backend: FakeBackend, lane: Lane) -> None:
    backend.strict = True
    gate = asyncio.Event()
    backend.script(
        gated_chat(gate, "Hm. ", call("get_weather", {"city": "Oslo"}, id="call_1"), finish_reason="tool_calls"),
        chat("Il pleut."),
    )
    response_id, events = await begun(lane, tools=[WEATHER_TOOL])
    await steer(lane, response_id)
    await steer(lane, response_id, "And briefly.")
    gate.set()
    events += await until_type(lane, "response.completed")
    pending = [await lane.next(), await lane.next()]
    accepted = [event["steer"] for event in events if event["type"] == "response.steer.accepted"]
    assert [event["steer"] for event in pending] == accepted
    for event in pending:
        assert (event["type"], event["reason"]) == ("response.steer.pending", "waiting_for_required_input")
        assert event["required_input"] == [{"type": "function_call_output", "call_id": "call_1", "name": "get_weather"}]
    assert numbers_of([*events, *pending]) == list(range(len(events) + 2))
    output = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    answer = await lane.answer(tools=[WEATHER_TOOL], previous_response_id=response_id, input=[output])
    assert text_of(answer) == "Il pleut."
    said = backend.turns[-1].json["messages"]
    assert {(m["role"], m.get("content")) for m in said} >= {("user", "In French, please."), ("user", "And briefly.")}
    assert [m["role"] for m in said if m["role"] == "tool"] == ["tool"]


@pytest.mark.parametrize("how", [pytest.param("fails", marks=pytest.mark.logs("backend_disconnected")), "is cancelled"])
async def test_what_steers_a_response_that_fails_comes_back(backend: FakeBackend, lane: Lane, how: str) -> None:
    gate = asyncio.Event()
    backend.script(chat("Hello there.", then=steps(until(gate), cut())))
    response_id, events = await begun(lane)
    await steer(lane, response_id)
    events += await until_type(lane, "response.steer.accepted")
    if how == "fails":
        gate.set()
    else:
        await send(lane, "response.cancel")
    events += await until_type(lane, "response.steer.failed")
    assert "response.failed" in types_of(events)
    assert events[-1]["error"]["code"] == "response_not_active"
    accepted = next(event for event in events if event["type"] == "response.steer.accepted")
    assert events[-1]["steer"] == {**accepted["steer"], "input": STEERED}
    assert numbers_of(events) == list(range(len(events)))


async def test_a_successor_that_cannot_begin_gives_its_input_back(
    served: Running, backend: FakeBackend, lane: Lane
) -> None:
    gate = asyncio.Event()
    backend.script(gated_chat(gate, "Hello there."), chat("On."))
    response_id, _ = await begun(lane)
    await steer(lane, response_id)
    await until_type(lane, "response.steer.accepted")
    await served.http.delete(f"/v1/responses/{response_id}")
    gate.set()
    await until_type(lane, "response.completed")
    failed = await lane.next()
    assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "successor_creation_failed")
    assert failed["steer"]["input"] == STEERED
    assert text_of(await lane.answer()) == "On."


WRONG: dict[str, Any] = {
    "nothing": {"input": ""},
    "no list": {"input": 7},
    "an empty list": {"input": []},
    "the system": {"input": [{"role": "system", "content": "Obey."}]},
    "an output": {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
    "no message": {"input": ["Hi"]},
    "an odd part": {"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]},
    "no part": {"input": [{"role": "user", "content": [7]}]},
    "an id": {"input": [{"role": "user", "content": "x", "id": "msg_1"}]},
    "no content": {"input": [{"role": "user"}]},
    "a lane": {"stream_id": "a"},
    "a model": {"model": MODEL},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_what_cannot_steer_is_refused_and_the_response_goes_on(
    backend: FakeBackend, lane: Lane, wrong: Any
) -> None:
    gate = asyncio.Event()
    backend.script(gated_chat(gate, "Hello there."))
    response_id, events = await begun(lane)
    await steer(lane, response_id, **wrong)
    events += await until_type(lane, "response.steer.failed")
    assert events[-1]["error"]["code"] == "invalid_input"
    assert events[-1]["error"]["message"]
    assert events[-1]["steer"] == {"previous_response_id": response_id, "input": wrong.get("input", STEERED)}
    gate.set()
    events += await until_type(lane, "response.completed")
    assert numbers_of(events) == list(range(len(events)))


@pytest.mark.parametrize("response_id", ["resp_0", None, 7, {"a": 1}, ["x"]])
async def test_what_does_not_run_cannot_be_steered(lane: Lane, response_id: Any) -> None:
    await steer(lane, response_id)
    failed = await lane.next()
    assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "response_not_found")


async def test_what_has_ended_cannot_be_steered(lane: Lane) -> None:
    await steer(lane, (await lane.answer())["id"])
    assert (await lane.next())["error"]["code"] == "response_already_completed"


async def test_a_turn_that_shortens_its_conversation_cannot_be_steered(backend: FakeBackend, lane: Lane) -> None:
    backend.script(chat("Hello there.", then=stall()))
    management = [{"type": "compaction", "compact_threshold": 100_000}]
    response_id, _ = await begun(lane, context_management=management)
    await steer(lane, response_id)
    failed = (await until_type(lane, "response.steer.failed"))[-1]
    assert failed["error"]["code"] == "steering_not_supported"


async def test_so_many_may_wait_for_a_response(
    backend: FakeBackend, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.websocket.MAX_PENDING", 2)
    backend.script(chat("Hello there.", then=stall()))
    response_id, _ = await begun(lane)
    for _ in range(3):
        await steer(lane, response_id)
    failed = (await until_type(lane, "response.steer.failed"))[-1]
    assert failed["error"]["code"] == "too_many_pending_steers"


async def test_the_sdk_steers_and_reads_what_comes_of_it(served: Running, backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(gated_chat(gate, "Hello there."), chat("Bonjour."))
    events: list[Any] = []
    async with served.openai.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="Hi", stream_id="a")
        async for event in connection:
            events.append(event)
            if event.type == "response.output_text.delta" and not gate.is_set() and len(events) < 6:
                await connection.response.steer(input="In French.", previous_response_id=events[0].response.id)
            if event.type == "response.steer.accepted":
                gate.set()
            if [event.type for event in events].count("response.completed") == 2:
                break
    for event in events:
        EVENT_CLASSES.get(event.type, type(event)).model_validate(event.to_dict())
    accepted = next(event for event in events if event.type == "response.steer.accepted")
    assert type(accepted).__name__ == "ResponseSteerAcceptedEvent"
    assert events[-1].response.output_text == "Bonjour."
