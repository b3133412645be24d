"""Reasoning that a native backend seals: the next turn of a stored conversation has it, a client that did not ask for
it never sees it."""

from typing import Any

import orjson
import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    event_stream,
    http_error,
    json_answer,
    native,
    native_events,
    reasoning,
)
from tests.stream_grammar import check_stream
from tests.test_websocket import connected
from tests.turns import assert_error, create, ended, rejoin, retrieve, stream, turn

Json = dict[str, Any]
SEALED = "reasoning.encrypted_content"
ASKED = [SEALED]
SEAL = "gAAAA-seal"


def _events() -> list[Json]:
    """A stream with sealed reasoning, as OpenAI's: the seal is in `added`, `done` and the last response."""
    events = native_events(reasoning("Hm."), "Hello.")
    for event in events:
        for item in [event.get("item", {}), *event.get("response", {}).get("output", ())]:
            if item.get("type") == "reasoning":
                item["encrypted_content"] = SEAL
    return events


def _answer(*, as_stream: bool) -> Answer:
    return event_stream(_events()) if as_stream else json_answer(_events()[-1]["response"])


def _sealed_in(sent: Json) -> list[str]:
    items = sent["input"] if isinstance(sent["input"], list) else []
    return [item["encrypted_content"] for item in items if item.get("type") == "reasoning"]


@pytest.mark.parametrize("as_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in the background"])
async def test_the_chain_has_the_seal_and_the_client_never_sees_it(
    served_natively: Running, backend: FakeBackend, as_stream: bool, in_background: bool
) -> None:
    http = served_natively.http
    backend.script(_answer(as_stream=as_stream), native("On."))
    seen: list[Any] = []
    if as_stream:
        events = await stream(http, background=in_background)
        check_stream(events, prefixes=False)
        seen += events
        response_id = events[-1]["response"]["id"]
    else:
        first = await create(http, background=in_background)
        response_id = first["id"]
        seen.append(first)
    seen.append(await ended(http, response_id))
    assert [item["type"] for item in seen[-1]["output"]] == ["reasoning", "message"]
    seen += await rejoin(http, response_id)
    seen.append(await create(http, input="On", previous_response_id=response_id))
    items = await http.get(f"/v1/responses/{seen[-1]['id']}/input_items")
    assert SEAL not in f"{seen}{items.text}"
    assert "nomyo_encrypted" not in f"{seen}{items.text}"
    assert [sent.json["include"] for sent in backend.turns] == [ASKED, ASKED]
    assert _sealed_in(backend.turns[-1].json) == [SEAL]
    assert "nomyo_encrypted" not in str(backend.turns[-1].json)


@pytest.mark.parametrize("name", ["include", "include[]"])
async def test_a_client_that_asks_later_sees_it_then(name: str, served_natively: Running, backend: FakeBackend) -> None:
    http = served_natively.http
    backend.script(_answer(as_stream=True))
    response = (await stream(http))[-1]["response"]
    url = f"/v1/responses/{response['id']}"
    asked = (await http.get(url, params={name: SEALED})).json()
    assert (asked["output"][0]["encrypted_content"], "nomyo_encrypted" in str(asked)) == (SEAL, False)
    events = await http.get(url, params={name: SEALED, "stream": "true"})
    assert SEAL in events.text
    for params in ({}, {name: "message.output_text.logprobs"}, {"stream": "true"}):
        assert SEAL not in (await http.get(url, params=params)).text


@pytest.mark.parametrize("as_stream", [False, True], ids=["json", "stream"])
async def test_a_client_that_asks_sees_the_seal_everywhere(
    served_natively: Running, backend: FakeBackend, as_stream: bool
) -> None:
    backend.script(_answer(as_stream=as_stream))
    if as_stream:
        events = await stream(served_natively.http, include=ASKED)
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert done[0]["encrypted_content"] == SEAL
        response = events[-1]["response"]
    else:
        response = await create(served_natively.http, include=ASKED)
    stored = await retrieve(served_natively.http, response["id"])
    assert response["output"][0]["encrypted_content"] == stored["output"][0]["encrypted_content"] == SEAL
    assert backend.turns[-1].json["include"] == ASKED


async def test_a_turn_that_is_not_stored_asks_for_what_its_client_asked(
    served_natively: Running, backend: FakeBackend
) -> None:
    await create(served_natively.http, store=False)
    assert "include" not in backend.turns[-1].json


@pytest.mark.parametrize(
    "refusal",
    ["Encrypted content is not supported with this model.", "Unknown parameter: 'include'."],
)
async def test_a_server_that_knows_no_seals_is_asked_without_from_then_on(
    served_natively: Running, backend: FakeBackend, refusal: str
) -> None:
    backend.script(http_error(400, refusal), native("One."), native("Two."))
    answer = await served_natively.http.post("/v1/responses", json=turn())
    assert answer.status_code == 200
    assert "x-nomyo-adapted" not in answer.headers, "the client had not asked"
    await create(served_natively.http)
    assert [sent.json.get("include") for sent in backend.turns] == [ASKED, None, None]


async def test_what_the_client_asked_for_itself_is_refused_to_it(
    served_natively: Running, backend: FakeBackend
) -> None:
    backend.script(http_error(400, "Encrypted content is not supported with this model."))
    answer = await served_natively.http.post("/v1/responses", json=turn(include=ASKED))
    assert_error(answer, 400)
    assert len(backend.turns) == 1


async def test_a_server_that_cannot_open_an_earlier_seal_is_asked_without_it(
    served_natively: Running, backend: FakeBackend
) -> None:
    first_answer = _answer(as_stream=False)
    refusal = http_error(400, f"The encrypted content {SEAL} could not be verified.", code="invalid_encrypted_content")
    backend.script(first_answer, refusal, native("On."))
    first = await create(served_natively.http)
    answer = await served_natively.http.post("/v1/responses", json=turn(previous_response_id=first["id"]))
    assert answer.status_code == 200
    assert answer.headers["x-nomyo-adapted"] == "earlier_reasoning"
    assert [_sealed_in(sent.json) for sent in backend.turns[1:]] == [[SEAL], []]
    assert [sent.json["include"] for sent in backend.turns] == [ASKED] * 3


async def test_what_a_server_could_not_open_it_is_not_given_again(
    served_natively: Running, backend: FakeBackend
) -> None:
    """What it has sealed itself since then is."""
    refusal = http_error(400, "The encrypted content could not be verified.", code="invalid_encrypted_content")
    theirs = json_answer(orjson.loads(orjson.dumps(_events()[-1]["response"]).replace(SEAL.encode(), b"own-seal")))
    backend.script(_answer(as_stream=False), refusal, theirs, native("On."), native("Another."))
    http = served_natively.http
    first = await create(http)
    second = await create(http, previous_response_id=first["id"])
    answer = await http.post("/v1/responses", json=turn(previous_response_id=second["id"]))
    assert answer.headers["x-nomyo-adapted"] == "earlier_reasoning"
    await create(http, previous_response_id=first["id"])
    assert [_sealed_in(sent.json) for sent in backend.turns] == [[], [SEAL], [], ["own-seal"], []]


async def test_what_one_server_could_not_open_another_is_given(backends_: list[FakeBackend]) -> None:
    first, second = backends_
    refusal = http_error(400, "The encrypted content could not be verified.", code="invalid_encrypted_content")
    endpoints = [
        {"url": f"{backend.url}/v1", "kind": "openai", "name": name}
        for backend, name in zip(backends_, "ab", strict=True)
    ]
    async with running_router(endpoints=endpoints) as running:
        first.script(_answer(as_stream=False), native("On."))
        second.script(refusal, native("On."))
        http = running.http
        await http.post("/api/endpoints/b/drain")
        response = await create(http)
        for drained, enabled in ("a", "b"), ("b", "a"), ("a", "b"):
            await http.post(f"/api/endpoints/{drained}/drain")
            await http.post(f"/api/endpoints/{enabled}/enable")
            await create(http, previous_response_id=response["id"])
    assert [_sealed_in(sent.json) for sent in second.turns] == [[SEAL], [], []]
    assert [_sealed_in(sent.json) for sent in first.turns] == [[], [SEAL]]


async def test_a_socket_remembers_the_reasoning_of_turns_that_nobody_stores(
    served_natively: Running, backend: FakeBackend
) -> None:
    backend.script(_answer(as_stream=True), native("On."))
    async with connected(served_natively) as lane:
        await lane.send(input="Hi", store=False)
        events = await lane.turn()
        await lane.answer(store=False, previous_response_id=events[-1]["response"]["id"])
    assert SEAL not in str(events)
    assert "nomyo_encrypted" not in str(events)
    assert [sent.json["include"] for sent in backend.turns] == [ASKED, ASKED]
    assert _sealed_in(backend.turns[-1].json) == [SEAL]


async def test_a_seal_is_kept_of_an_answer_that_breaks_off(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(event_stream(_events()[:-1]))
    events = await stream(served_natively.http)
    assert events[-1]["type"] == "response.failed"
    stored = await retrieve(served_natively.http, events[-1]["response"]["id"])
    assert stored["output"][0]["type"] == "reasoning"
    assert SEAL not in f"{events}{stored}"
