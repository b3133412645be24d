"""The WebSocket at /v1/responses: the official SDK over it, and by hand what no SDK would do."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
import uvicorn
from openai.resources.responses.responses import AsyncResponsesConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

import api.websocket
from tests.conftest import Clock, Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    call,
    chat,
    cut,
    http_error,
    reasoning,
    stall,
    steps,
    stream,
    until,
)
from tests.sdk import EVENT_CLASSES, MODEL, WEATHER_TOOL, ended, wire_events
from tests.stream_grammar import check_stream, fold
from tests.turns import SOON_S, soon

Json = dict[str, Any]

ENDS = ("response.completed", "response.incomplete", "response.failed")


class Lane:
    """A socket by hand: every event is taken, and each turn's are checked to be one whole stream."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, **message: Any) -> None:
        await self.socket.send(orjson.dumps({"type": "response.create", "model": MODEL, **message}).decode())

    async def next(self) -> Json:
        message = await asyncio.wait_for(self.socket.recv(), SOON_S)
        assert isinstance(message, str), "an event is a text message"
        event: Json = orjson.loads(message)
        return event

    async def turn(self) -> list[Json]:
        """The events of the next turn. No other lane may be speaking."""
        events = [await self.next()]
        while events[-1]["type"] not in ENDS:
            assert "status" not in events[-1], events[-1]
            events.append(await self.next())
        judge(events)
        return events

    async def answer(self, **message: Any) -> Json:
        """The response that a message is answered with."""
        await self.send(**{"input": "Hi", **message})
        response: Json = (await self.turn())[-1]["response"]
        return response

    async def error(self) -> Json:
        event = await self.next()
        assert event.keys() - {"stream_id"} == {"type", "status", "error"}, event
        assert event["type"] == "error"
        assert event["error"].keys() == {"message", "type", "param", "code"}
        assert event["error"]["message"]
        return event

    async def refusal(self, **message: Any) -> Json:
        await self.send(**{"input": "Hi", **message})
        return await self.error()


def judge(events: list[Json]) -> None:
    """They are the events of one stream, as everybody may read them."""
    bare = [{key: value for key, value in event.items() if key != "stream_id"} for event in events]
    check_stream(bare)
    if bare[-1]["type"] != "response.failed":
        assert fold(bare) == bare[-1]["response"]


@asynccontextmanager
async def connected(served: Running, **options: Any) -> AsyncIterator[Lane]:
    url = served.url.replace("http", "ws") + "/v1/responses"
    async with connect(url, proxy=None, **options) as socket:
        yield Lane(socket)


@pytest.fixture
async def lane(served: Running) -> AsyncIterator[Lane]:
    async with connected(served) as lane:
        yield lane


def text_of(response: Json) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", []) if "text" in part)


def said_to(backend: FakeBackend) -> list[Any]:
    """The roles and words of the last turn's messages."""
    return [(message["role"], message.get("content")) for message in backend.turns[-1].json["messages"]]


# ── the official SDK ─────────────────────────────────────────────────────────


async def sdk_turn(connection: AsyncResponsesConnection) -> list[Any]:
    events = []
    async for event in connection:
        events.append(event)
        if event.type in ENDS:
            break
    judge([_plain(event) for event in events])
    for event in events:
        # A class of the socket's own, with the fields of the stream's.
        assert type(event).__name__.startswith("Response"), event
        EVENT_CLASSES[event.type].model_validate(event.to_dict())
    return events


def _plain(event: Any) -> Json:
    body: Json = orjson.loads(event.to_json())
    for key in ("created_at", "completed_at"):  # the SDK reads times as floats
        if (at := body.get("response", {}).get(key)) is not None:
            body["response"][key] = int(at)
    return body


async def test_the_sdk_has_a_conversation_over_one_socket(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello."), chat(reasoning("Hm."), "Again."))
    async with served.openai.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="Hi", store=False)
        first = (await sdk_turn(connection))[-1].response
        assert first.output[0].content[0].text == "Hello."
        await connection.response.create(
            model=MODEL, input="And again?", previous_response_id=first.id, store=False, stream=True
        )
        second = (await sdk_turn(connection))[-1].response
    assert (second.previous_response_id, second.output[-1].content[0].text) == (first.id, "Again.")
    assert said_to(backend) == [("user", "Hi"), ("assistant", "Hello."), ("user", "And again?")]
    assert served.in_flight() == 0


async def test_the_sdk_makes_a_tool_round_trip_over_the_socket(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(call("get_weather", {"city": "Oslo"})), chat("It rains."))
    async with served.openai.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="Weather?", tools=[WEATHER_TOOL], store=False)
        response = (await sdk_turn(connection))[-1].response
        (asked,) = response.output
        await connection.response.create(
            model=MODEL,
            tools=[WEATHER_TOOL],
            previous_response_id=response.id,
            input=[{"type": "function_call_output", "call_id": asked.call_id, "output": "rain"}],
            store=False,
        )
        assert (await sdk_turn(connection))[-1].response.output[0].content[0].text == "It rains."
    assert [role for role, _ in said_to(backend)] == ["user", "assistant", "tool"]


async def test_the_sdk_reads_an_error_as_one_of_the_socket(served: Running) -> None:
    async with served.openai.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="Hi", previous_response_id="resp_0", stream_id="a")
        error: Any = await connection.recv()
        assert type(error).__name__ == "ResponseWsError"
        assert (error.status, error.stream_id, error.error.code) == (400, "a", "previous_response_not_found")
        await connection.response.create(model=MODEL, input="Hi")
        assert (await sdk_turn(connection))[-1].type == "response.completed"


# ── turns ────────────────────────────────────────────────────────────────────


async def test_a_turn_has_the_events_of_a_stream(served: Running, backend: FakeBackend, lane: Lane) -> None:
    parts = (reasoning("Hm."), "Hello there.", call("get_weather", {"city": "Oslo"}))
    backend.script(chat(*parts), chat(*parts))
    await lane.send(input="Hi", tools=[WEATHER_TOOL])
    over_socket = await lane.turn()
    assert over_socket[-1]["response"].pop("nomyo")["model"] == MODEL, "no headers say it"
    over_http = await wire_events(served, tools=[WEATHER_TOOL])
    assert _without_ids(over_socket) == _without_ids(over_http)
    assert backend.turns[0].json == backend.turns[1].json


def _without_ids(events: list[Json]) -> Any:
    """The events, with each id and time as the place where it came first."""
    seen: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"{match[1]}_{seen.setdefault(match[0], len(seen))}"

    text = re.sub(r"\b(resp|msg|rs|fc|call)_[0-9a-f]{8,}", number, orjson.dumps(events).decode())
    return orjson.loads(re.sub(r'"(created|completed)_at":\d+', '"at":0', text))


async def test_turns_of_a_socket_are_answered_in_order(backend: FakeBackend, lane: Lane) -> None:
    backend.script(chat("One"), http_error(400), chat("Three"))
    for _ in range(3):
        await lane.send(input="Hi")
    assert text_of((await lane.turn())[-1]["response"]) == "One"
    assert (await lane.error())["status"] == 400
    assert text_of((await lane.turn())[-1]["response"]) == "Three"


async def test_a_message_may_be_binary(backend: FakeBackend, lane: Lane) -> None:
    await lane.socket.send(orjson.dumps({"type": "response.create", "model": MODEL, "input": "Hi"}))
    assert (await lane.turn())[-1]["type"] == "response.completed"


async def test_stream_and_its_options_mean_nothing(backend: FakeBackend, lane: Lane) -> None:
    response = await lane.answer(stream=False, stream_options={"include_obfuscation": 7}, background=False)
    assert response["status"] == "completed"
    assert backend.turns[0].json["stream"] is True
    assert "type" not in backend.turns[0].json


async def test_a_turn_over_the_socket_is_stored(served: Running, lane: Lane) -> None:
    response = await lane.answer()
    kept = await served.openai.responses.retrieve(response["id"])
    assert (kept.id, kept.status, kept.output_text) == (response["id"], "completed", text_of(response))
    assert (await lane.answer(previous_response_id=response["id"]))["previous_response_id"] == response["id"]


async def test_a_backend_that_speaks_responses_is_asked_over_the_socket(
    served_natively: Running, backend: FakeBackend
) -> None:
    async with connected(served_natively) as lane:
        first = await lane.answer(store=False)
        await lane.answer(store=False, previous_response_id=first["id"], input="More")
    sent = backend.turns[-1].json
    assert (sent["stream"], sent["store"]) == (True, False)
    assert not sent.keys() & {"type", "previous_response_id", "stream_id", "generate"}
    assert len(sent["input"]) == 3


# ── what is continued ────────────────────────────────────────────────────────


async def test_an_unstored_turn_is_continued_on_its_socket_alone(
    served: Running, backend: FakeBackend, lane: Lane
) -> None:
    backend.script(chat("Hello."))
    first = await lane.answer(store=False)
    second = await lane.answer(store=False, previous_response_id=first["id"], input="Two")
    await lane.answer(store=False, previous_response_id=second["id"], input="Three")
    assert [role for role, _ in said_to(backend)] == ["user", "assistant", "user", "assistant", "user"]
    await lane.answer(store=False, previous_response_id=first["id"], input="Other two")
    assert said_to(backend) == [("user", "Hi"), ("assistant", "Hello."), ("user", "Other two")]
    with pytest.raises(openai.NotFoundError):
        await served.openai.responses.retrieve(first["id"])
    with pytest.raises(openai.BadRequestError):
        await served.openai.responses.create(model=MODEL, input="Hi", previous_response_id=first["id"])
    async with connected(served) as other:
        error = await other.refusal(previous_response_id=first["id"])
        assert error["error"]["code"] == "previous_response_not_found"


async def test_a_stored_turn_on_an_unstored_one_is_continued_on_its_socket(backend: FakeBackend, lane: Lane) -> None:
    first = await lane.answer(store=False)
    second = await lane.answer(previous_response_id=first["id"])
    await lane.answer(previous_response_id=second["id"])
    assert len(said_to(backend)) == 5


async def test_a_stored_response_is_continued_on_any_socket(served: Running, backend: FakeBackend, lane: Lane) -> None:
    stored = await served.openai.responses.create(model=MODEL, input="One")
    second = await lane.answer(store=False, previous_response_id=stored.id, input="Two")
    await lane.answer(store=False, previous_response_id=second["id"], input="Three")
    assert [text for role, text in said_to(backend) if role == "user"] == ["One", "Two", "Three"]


async def test_what_is_deleted_is_not_continued(served: Running, lane: Lane) -> None:
    response = await lane.answer()
    await served.openai.responses.delete(response["id"])
    assert (await lane.refusal(previous_response_id=response["id"]))["status"] == 400


async def test_an_unknown_response_is_an_error_message(backend: FakeBackend, lane: Lane) -> None:
    error = await lane.refusal(previous_response_id="resp_0")
    assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")
    assert error["error"]["param"] == "previous_response_id"
    assert not backend.turns


FAILURES: dict[str, tuple[Answer | None, Json]] = {
    "the request is wrong": (None, {"temperature": 9}),
    "an output without a call": (
        None,
        {"input": [{"type": "function_call_output", "call_id": "call_0", "output": "?"}]},
    ),
    "the backend refuses": (http_error(400), {}),
    "the backend fails": (http_error(500), {}),
    "the backend breaks off": (chat("Hel", then=cut()), {}),
}


@pytest.mark.parametrize(("answer", "message"), FAILURES.values(), ids=FAILURES.keys())
async def test_a_failed_continuation_forgets_its_parent(
    backend: FakeBackend, lane: Lane, answer: Answer | None, message: Json
) -> None:
    first = await lane.answer(store=False)
    backend.default = answer or backend.default
    await lane.send(**{"input": "Two", "store": False, "previous_response_id": first["id"], **message})
    event = await lane.next()
    if event["type"] != "error":
        while event["type"] != "response.failed":
            event = await lane.next()
    error = await lane.refusal(store=False, previous_response_id=first["id"])
    assert error["error"]["code"] == "previous_response_not_found"


async def test_a_failed_turn_is_not_remembered(backend: FakeBackend, lane: Lane) -> None:
    backend.script(chat("Hel", then=cut()))
    failed = await lane.answer(store=False)
    assert failed["status"] == "failed"
    assert (await lane.refusal(previous_response_id=failed["id"]))["status"] == 400


async def test_a_socket_remembers_so_many_turns(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.websocket, "MAX_REMEMBERED", 2)
    ids = [(await lane.answer(store=False))["id"] for _ in range(3)]
    assert (await lane.answer(store=False, previous_response_id=ids[1]))["status"] == "completed"
    assert (await lane.refusal(store=False, previous_response_id=ids[0]))["status"] == 400


# ── warming up ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("store", [False, True])
async def test_a_turn_that_generates_nothing_can_be_continued(backend: FakeBackend, lane: Lane, store: bool) -> None:
    await lane.send(input="You read this first.", generate=False, store=store)
    events = await lane.turn()
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]
    warm = events[-1]["response"]
    assert (warm["status"], warm["output"]) == ("completed", [])
    assert not backend.turns, "the backend was asked"
    response = await lane.answer(previous_response_id=warm["id"], store=store, generate=True)
    assert response["output"]
    assert said_to(backend) == [("user", "You read this first."), ("user", "Hi")]


FIXTURES = Path(os.environ.get("CLIENT_FIXTURES") or Path(__file__).parents[2] / "shared" / "fixtures" / "clients")


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recorded client requests lie outside of the repo")
async def test_codex_goes_through_its_recorded_session(served: Running, backend: FakeBackend) -> None:
    opened, warm_up, turn, outputs = (orjson.loads((FIXTURES / f"codex_ws-{n}.json").read_bytes()) for n in range(1, 5))
    of_the_socket = ("host", "connection", "upgrade", "authorization", "user-agent")
    headers = [pair for pair in opened["headers"] if pair[0] not in of_the_socket and "sec-" not in pair[0]]
    call_id = outputs["body"]["input"][0]["call_id"]
    backend.script(chat(call("exec_command", {"cmd": "echo stub-tool-ok"}, id=call_id)), chat("Done."))
    async with connected(served, additional_headers=headers) as lane:
        warm = await lane.answer(**warm_up["body"] | {"model": MODEL})
        assert not backend.turns, "the warm-up asked the backend"
        asked = await lane.answer(**turn["body"] | {"model": MODEL, "previous_response_id": warm["id"]})
        assert asked["output"][0]["call_id"] == call_id
        done = await lane.answer(**outputs["body"] | {"model": MODEL, "previous_response_id": asked["id"]})
    assert text_of(done) == "Done."
    assert [role for role, _ in said_to(backend)][-2:] == ["assistant", "tool"]


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the recorded client requests lie outside of the repo")
async def test_the_sdk_goes_through_its_recorded_session(backend: FakeBackend, lane: Lane) -> None:
    first, second, warm_up = (orjson.loads((FIXTURES / f"oaipy-ws-{n}.json").read_bytes())["body"] for n in (2, 3, 4))
    response = await lane.answer(**first | {"model": MODEL})
    await lane.answer(**second | {"model": MODEL, "previous_response_id": response["id"]})
    assert (await lane.answer(**warm_up | {"model": MODEL}))["output"] == []
    assert len(backend.turns) == 2


# ── lanes ────────────────────────────────────────────────────────────────────


async def test_lanes_run_beside_each_other_and_each_in_order(served: Running, backend: FakeBackend, lane: Lane) -> None:
    free = asyncio.Event()
    backend.script(chat("A1", then=steps(until(free), stream_end())))
    await lane.send(input="Hi", stream_id="a")
    await backend.wait_for(lambda b: b.in_flight == 1)
    await lane.send(input="Hi", stream_id="a")
    backend.script(chat("B1"))
    await lane.send(input="Hi", stream_id="b.2_-")
    events: dict[Any, list[Json]] = {"a": [], "b.2_-": []}
    while not events["b.2_-"] or events["b.2_-"][-1]["type"] not in ENDS:
        event = await lane.next()
        events[event["stream_id"]].append(event)
    assert len(backend.turns) == 2, "the second turn of a lane did not wait for the first"
    backend.script(chat("A2"))
    free.set()
    while sum(event["type"] in ENDS for event in events["a"]) < 2:
        event = await lane.next()
        events[event["stream_id"]].append(event)
    first = next(index for index, event in enumerate(events["a"], 1) if event["type"] in ENDS)
    turns = [events["a"][:first], events["a"][first:], events["b.2_-"]]
    for turn in turns:
        judge(turn)
    assert [text_of(turn[-1]["response"]) for turn in turns] == ["A1", "A2", "B1"]
    assert served.in_flight() == 0


def stream_end() -> Answer:
    """The end of a streamed chat completion."""

    async def answer(reply: Any) -> None:
        await reply.end(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')

    return answer


async def test_lanes_interleave_and_each_is_a_whole_stream(backend: FakeBackend, lane: Lane) -> None:
    backend.default = chat(*(f"word {n} " for n in range(20)), delay_s=0.001)
    names = [f"lane-{n}" for n in range(5)]
    for name in names:
        await lane.send(input="Hi", stream_id=name)
    events: dict[str, list[Json]] = {name: [] for name in names}
    arrived = []
    while any(not of_lane or of_lane[-1]["type"] not in ENDS for of_lane in events.values()):
        event = await lane.next()
        events[event["stream_id"]].append(event)
        arrived.append(event["stream_id"])
    for of_lane in events.values():
        judge(of_lane)
    assert len(list(itertools.groupby(arrived))) > len(names), "the lanes were answered one after another"


async def test_a_lane_goes_on_from_another_ones_response(backend: FakeBackend, lane: Lane) -> None:
    first = await lane.answer(store=False, stream_id="main")
    await lane.send(store=False, stream_id="fork", previous_response_id=first["id"], input="Two")
    events = await lane.turn()
    assert {event["stream_id"] for event in events} == {"fork"}
    assert len(said_to(backend)) == 3


async def test_without_a_stream_id_no_event_has_one(lane: Lane) -> None:
    await lane.send(input="Hi")
    assert not any("stream_id" in event for event in await lane.turn())


@pytest.mark.parametrize("stream_id", ["", "a b", "ä", "x" * 257, 7, ["a"], "a\n"])
async def test_a_stream_id_is_a_short_word(backend: FakeBackend, lane: Lane, stream_id: Any) -> None:
    error = await lane.refusal(stream_id=stream_id)
    assert (error["status"], error["error"]["param"], "stream_id" in error) == (400, "stream_id", False)
    assert not backend.turns
    assert (await lane.answer(stream_id="x" * 256))["status"] == "completed"


# ── errors ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", ["", "{", "nonsense", b"\xff", "[]", '"response.create"', "null", "7"])
async def test_what_is_not_an_object_is_an_error(lane: Lane, data: str | bytes) -> None:
    await lane.socket.send(data)
    error = await lane.error()
    assert (error["status"], error["error"]["type"]) == (400, "invalid_request_error")
    assert (await lane.answer())["status"] == "completed", "the socket is closed"


WRONG: dict[str, tuple[Json, str]] = {
    "no type": ({"type": None}, "type"),
    "another type": ({"type": "session.update"}, "type"),
    "a cancel of nothing": ({"type": "response.cancel"}, "response_id"),
    "in the background": ({"background": True}, "background"),
    "generate": ({"generate": "no"}, "generate"),
    "no model": ({"model": None}, "model"),
    "input": ({"input": 7}, "input"),
    "input of a warm-up": ({"input": 7, "generate": False}, "input"),
    "parent": ({"previous_response_id": ["resp_0"]}, "previous_response_id"),
}


@pytest.mark.parametrize(("message", "param"), WRONG.values(), ids=WRONG.keys())
async def test_a_wrong_message_is_an_error_that_names_the_parameter(
    backend: FakeBackend, lane: Lane, message: Json, param: str
) -> None:
    error = await lane.refusal(stream_id="a", **message)
    assert (error["status"], error["error"]["param"], error["stream_id"]) == (400, param, "a")
    assert not backend.turns
    assert (await lane.answer(stream_id="a"))["status"] == "completed"


@pytest.mark.parametrize(
    ("answer", "status"),
    [(http_error(400), 400), (http_error(429), 429), (http_error(500), 502), (stream(), 502), (cut(), 502)],
    ids=["refused", "too many", "failed", "empty", "cut"],
)
async def test_a_backend_that_fails_at_once_is_an_error(
    served: Running, backend: FakeBackend, lane: Lane, answer: Answer, status: int
) -> None:
    backend.default = answer
    assert (await lane.refusal())["status"] == status
    backend.default = chat("Hello.")
    assert text_of(await lane.answer()) == "Hello."
    assert served.in_flight() == 0


async def test_an_unknown_model_is_a_400(lane: Lane) -> None:
    error = await lane.refusal(model="nobody")
    assert (error["status"], error["error"]["code"]) == (400, "model_not_found")


async def test_a_backend_that_breaks_off_ends_the_turn_as_in_a_stream(backend: FakeBackend, lane: Lane) -> None:
    backend.script(chat("Hello", then=cut()))
    await lane.send(input="Hi")
    events = await lane.turn()
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert (await lane.answer())["status"] == "completed"


async def test_a_fault_of_ours_leaves_the_socket_open(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(message: Json) -> Any:
        raise KeyError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(api.websocket, "read_create", broken)
        error = await lane.refusal()
    assert (error["status"], "secret" in str(error)) == (500, False)
    assert (await lane.answer())["status"] == "completed"


async def test_a_message_that_is_too_large_is_an_error(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, max_body_mb=0.001) as served, connected(served) as lane:
        assert (await lane.refusal(input="x" * 2000))["status"] == 413
        assert (await lane.answer())["status"] == "completed"


async def test_a_socket_may_have_so_many_turns_that_wait(
    backend: FakeBackend, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.websocket, "MAX_UNANSWERED", 2)
    backend.default = stall()
    for stream_id in ("a", "a", "b"):
        await lane.send(input="Hi", stream_id=stream_id)
    error = await lane.error()
    assert (error["status"], error["stream_id"]) == (429, "b")


# ── the end of a connection ──────────────────────────────────────────────────

LEAVE: dict[str, Callable[[ClientConnection], Any]] = {
    "closed": lambda socket: socket.close(),
    "cut off": lambda socket: socket.transport.abort(),
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE.keys())
async def test_a_client_that_leaves_takes_all_its_turns_with_it(
    served: Running, backend: FakeBackend, leave: Callable[[ClientConnection], Any]
) -> None:
    backend.default = chat("Hello", then=stall())
    async with connected(served) as lane:
        for stream_id in ("a", "b", "b"):
            await lane.send(input="Hi", stream_id=stream_id)
        created: dict[str, str] = {}
        while len(created) < 2:
            event = await lane.next()
            if event["type"] == "response.created":
                created[event["stream_id"]] = event["response"]["id"]
        leaving = leave(lane.socket)
        if leaving is not None:
            await leaving
        await backend.wait_for(lambda b: b.aborts == 2)
    async with soon():
        while served.in_flight():  # noqa: ASYNC110  # the pool has no event for it
            await asyncio.sleep(0.005)
    assert len(backend.turns) == 2, "a turn that waited was begun"
    for response_id in created.values():
        assert (await ended(served.openai, response_id)).status == "cancelled"


async def test_a_turn_that_is_being_stored_ends_after_the_hour_and_no_other_begins(
    served: Running, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    update = served.app.state.db.update_response

    async def slowly(*args: Any, **more: Any) -> None:
        clock.advance(api.websocket.CONNECTION_LIMIT_S)
        await asyncio.sleep(0.01)  # The loop looks at its timers.
        await update(*args, **more)

    monkeypatch.setattr(served.app.state.db, "update_response", slowly)
    async with connected(served) as lane:
        await lane.send(input="Hi")
        await lane.send(input="Hi")
        assert (await lane.turn())[-1]["type"] == "response.completed"
        assert (await lane.error())["error"]["code"] == "websocket_connection_limit_reached"
    assert len(backend.turns) == 1, "the turn that waited was begun"


async def test_a_socket_lives_for_an_hour(served: Running, backend: FakeBackend, clock: Clock) -> None:
    assert api.websocket.CONNECTION_LIMIT_S == 3600
    backend.script(chat("Hello."), stall())
    async with connected(served) as lane:
        assert text_of(await lane.answer()) == "Hello."
        clock.advance(3500)
        await lane.send(input="Hi")
        await backend.wait_for(lambda b: b.in_flight == 1)
        clock.advance(100)
        assert [(await lane.next())["type"] for _ in range(2)] == ["response.created", "response.in_progress"]
        error = await lane.error()
        assert (error["status"], error["error"]["code"]) == (400, "websocket_connection_limit_reached")
        with pytest.raises(ConnectionClosed) as closed:
            await lane.next()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served.in_flight() == 0


async def test_a_router_that_stops_closes_its_sockets(backend: FakeBackend) -> None:
    backend.default = stall()
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as served:
        socket = await connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None)
        await Lane(socket).send(input="Hi")
        await backend.wait_for(lambda b: b.in_flight == 1)
    with pytest.raises(ConnectionClosed):
        await asyncio.wait_for(socket.recv(), SOON_S)
    await backend.wait_for(lambda b: b.aborts == 1)


# ── the upgrade ──────────────────────────────────────────────────────────────


async def test_messages_are_compressed_where_the_client_can(lane: Lane) -> None:
    assert lane.socket.response is not None
    assert "permessage-deflate" in lane.socket.response.headers["Sec-WebSocket-Extensions"]
    assert (await lane.answer(input="Hi " * 10000))["status"] == "completed"


async def test_the_routers_key_is_asked_for_in_the_upgrade(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, api_key="the-key") as served:
        for headers in ({}, {"Authorization": "Bearer another"}):
            with pytest.raises(InvalidStatus) as raised:
                await connected(served, additional_headers=headers).__aenter__()
            answer = raised.value.response
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert orjson.loads(answer.body or b"")["error"]["code"] == "invalid_api_key"
        async with connected(served, additional_headers={"Authorization": "Bearer the-key"}) as lane:
            assert (await lane.answer())["status"] == "completed"
        async with served.openai.responses.connect() as connection:
            await connection.response.create(model=MODEL, input="Hi")
            assert (await sdk_turn(connection))[-1].type == "response.completed"


async def test_where_websockets_are_off_the_upgrade_is_a_426(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, websockets=False) as served:
        await expect_426(served)


async def test_where_the_server_knows_no_websockets_the_upgrade_is_a_426(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn, "Config", partial(uvicorn.Config, ws="none"))
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints) as served:
        await expect_426(served)


async def expect_426(served: Running) -> None:
    with pytest.raises(InvalidStatus) as raised:
        await connected(served).__aenter__()
    answer = raised.value.response
    assert answer.status_code == 426
    assert answer.headers["Upgrade"] == "HTTP/1.1"
    assert orjson.loads(answer.body or b"")["error"]["code"] == "websockets_disabled"
    assert (await served.openai.responses.create(model=MODEL, input="Hi")).output_text


async def test_a_plain_get_is_not_allowed(served: Running) -> None:
    reply = await served.http.get("/v1/responses")
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")
    assert reply.json()["error"]["code"] == "invalid_method"


async def test_there_is_no_websocket_elsewhere(served: Running) -> None:
    with pytest.raises(InvalidStatus) as raised:
        await connect(served.url.replace("http", "ws") + "/v1/models", proxy=None)
    assert raised.value.response.status_code == 404
    assert orjson.loads(raised.value.response.body)["error"]["code"] == "unknown_url"


@pytest.mark.parametrize(("key", "status"), [("", 403), ("secret", None)])
async def test_a_page_of_another_site_needs_a_key(backend: FakeBackend, key: str, status: int | None) -> None:
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], api_key=key) as served:
        url = served.url.replace("http", "ws") + "/v1/responses"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with connect(url, origin=served.url, additional_headers=headers):
            pass  # the router's own page
        if status is None:
            async with connect(url, origin="https://elsewhere.example", additional_headers=headers):
                return
        with pytest.raises(InvalidStatus) as raised:
            await connect(url, origin="https://elsewhere.example", additional_headers=headers)
        assert raised.value.response.status_code == status
