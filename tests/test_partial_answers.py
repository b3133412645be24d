"""What a client has seen of a turn that was cut short is kept: in the store and in the last event, whatever kind of
backend it came from, and however it was cut short."""

from __future__ import annotations

import json

import pytest
import websockets

from tests.conftest import running_router
from tests.fake_backend import FakeBackend, chat, cut, native, reasoning, stall
from tests.fake_backend.parts import Part
from tests.fake_backend.reply import Answer, Step
from tests.turns import URL, Json, create, ended, has_status, open_stream, rejoin, text_of, turn

KINDS = ("openai-chat", "openai")
PARTS = (reasoning("Hm."), "Hello there")


def answer_of(kind: str, *parts: Part, then: Step | None = None) -> Answer:
    return (native if kind == "openai" else chat)(*parts, then=then)


def check_partial(response: Json, status: str) -> None:
    assert response["status"] == status
    assert text_of(response) == "Hello there"
    thought, message = response["output"]
    assert thought["type"] == "reasoning"
    assert message["status"] == "incomplete"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("obfuscated", [False, True])
async def test_of_a_stream_whose_client_leaves(kind: str, obfuscated: bool, backend: FakeBackend) -> None:
    backend.script(answer_of(kind, *PARTS, then=stall()))
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
        async with open_stream(running.http, stream_options={"include_obfuscation": obfuscated}) as events:
            while (await events.until("response.output_text.delta"))["delta"] != " there":
                pass
        response = await has_status(running.http, events.seen[0]["response"]["id"], "cancelled")
        check_partial(response, "cancelled")


async def test_of_a_background_stream_that_is_cancelled(kind: str, backend: FakeBackend) -> None:
    backend.script(answer_of(kind, *PARTS, then=stall()))
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
        async with open_stream(running.http, background=True) as events:
            while (await events.until("response.output_text.delta"))["delta"] != " there":
                pass
            response_id = events.seen[0]["response"]["id"]
            cancelled = (await running.http.post(f"{URL}/{response_id}/cancel")).json()
            last = (await events.rest())[-1]
        assert last["type"] == "response.failed"
        for response in (cancelled, last["response"], await ended(running.http, response_id)):
            check_partial(response, "cancelled")
        check_partial((await rejoin(running.http, response_id))[-1]["response"], "cancelled")
        backend.script(answer_of(kind, "Onwards."))
        await create(running.http, input="Go on.", previous_response_id=response_id)
        assert "Hello there" in str(backend.turns[-1].json)


async def test_of_a_stream_whose_backend_breaks_off(kind: str, backend: FakeBackend) -> None:
    backend.script(answer_of(kind, *PARTS, then=cut()))
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
        async with open_stream(running.http) as events:
            last = (await events.rest())[-1]["response"]
        check_partial(last, "failed")
        check_partial(await ended(running.http, last["id"]), "failed")


async def test_of_a_turn_of_a_websocket_that_is_cancelled(kind: str, backend: FakeBackend) -> None:
    backend.script(answer_of(kind, *PARTS, then=stall()))
    async with (
        running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running,
        websockets.connect(f"ws{running.url[4:]}{URL}") as socket,
    ):
        await socket.send(json.dumps({"type": "response.create", **turn()}))
        while (event := json.loads(await socket.recv())).get("delta") != " there":
            if event["type"] == "response.created":
                response_id = event["response"]["id"]
        await socket.send(json.dumps({"type": "response.cancel"}))
        while (event := json.loads(await socket.recv()))["type"] != "response.failed":
            pass
        check_partial(event["response"], "cancelled")
        check_partial(await ended(running.http, response_id), "cancelled")
