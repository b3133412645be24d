"""The model of a native answer: what upstream says has answered, as OpenAI names its snapshots. What was asked for
stands in a header."""

from typing import Any

import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, event_stream, json_answer, native_events
from tests.turns import create, ended, retrieve, stream, turn

Json = dict[str, Any]
SNAPSHOT = "test-model-2026-08-07"


def _events(model: Any) -> list[Json]:
    """A stream whose responses name that model; `...` for none at all."""
    events = native_events("Hello.")
    for event in events:
        if "response" in event:
            event["response"]["model"] = model
            if model is ...:
                del event["response"]["model"]
    return events


@pytest.mark.parametrize("as_stream", [False, True], ids=["json", "stream"])
async def test_the_response_names_the_snapshot_and_a_header_what_was_asked(
    served_natively: Running, backend: FakeBackend, as_stream: bool
) -> None:
    backend.default = event_stream(_events(SNAPSHOT)) if as_stream else json_answer(_events(SNAPSHOT)[-1]["response"])
    http = served_natively.http
    answer = await http.post("/v1/responses", json=turn(stream=as_stream))
    assert answer.headers["x-nomyo-model"] == backend.turns[-1].json["model"] == "test-model"
    if as_stream:
        events = await stream(http)
        assert {event["response"]["model"] for event in events if "response" in event} == {SNAPSHOT}
        response = events[-1]["response"]
    else:
        response = await create(http)
    assert response["model"] == (await retrieve(http, response["id"]))["model"] == SNAPSHOT
    await create(http, previous_response_id=response["id"])
    assert backend.turns[-1].json["model"] == "test-model", "the next turn asks as its client does"


async def test_in_the_background_too(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(json_answer(_events(SNAPSHOT)[-1]["response"]))
    queued = await create(served_natively.http, background=True)
    assert queued["model"] == "test-model", "nobody has answered yet"
    response = await ended(served_natively.http, queued["id"])
    assert (response["model"], response["nomyo"]["model"]) == (SNAPSHOT, "test-model")


async def test_a_hit_of_the_cache_names_it_again(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai"}]
    async with running_router(endpoints=endpoints, cache={"backend": "memory"}) as running:
        backend.script(json_answer(_events(SNAPSHOT)[-1]["response"]))
        first, second = [await create(running.http, nomyo={"cache": True}) for _ in range(2)]
        assert first["model"] == second["model"] == SNAPSHOT
        events = await stream(running.http, nomyo={"cache": True})
        assert {event["response"]["model"] for event in events if "response" in event} == {SNAPSHOT}
    assert len(backend.turns) == 1


@pytest.mark.parametrize("model", [..., None, "", 7, ["m"]])
async def test_what_is_no_name_leaves_the_one_that_was_asked_for(
    served_natively: Running, backend: FakeBackend, model: Any
) -> None:
    backend.script(json_answer(_events(model)[-1]["response"]), event_stream(_events(model)))
    assert (await create(served_natively.http))["model"] == "test-model"
    events = await stream(served_natively.http)
    assert {event["response"]["model"] for event in events if "response" in event} == {"test-model"}
