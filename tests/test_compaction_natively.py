"""/v1/responses/compact to a server that speaks Responses: its own path where it has one, the trigger item where
not."""

from typing import Any

import pytest

from tests.conftest import Running
from tests.fake_backend import FakeBackend, empty, http_error, json_answer, native_events, responses_usage
from tests.sdk import MODEL
from tests.turns import URL, assert_error, create

Json = dict[str, Any]
COMPACT = "POST /v1/responses/compact"
ITEM = {"type": "compaction", "id": "cmp_theirs", "encrypted_content": "gAAAA"}
KEPT = {"type": "message", "id": "msg_1", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
USAGE = responses_usage(20, 5)
COMPACTION = {
    "id": "resp_theirs",
    "object": "response.compaction",
    "created_at": 1,
    "output": [KEPT, ITEM],
    "usage": USAGE,
}


def _compactions(backend: FakeBackend) -> list[Json]:
    return [request.json for request in backend.requests if request.path == "/v1/responses/compact"]


async def test_the_servers_own_window_is_answered_as_it_is(served_natively: Running, backend: FakeBackend) -> None:
    backend.routes[COMPACT] = json_answer(COMPACTION)
    body = {"model": MODEL, "input": "Hi", "instructions": "Be brief.", "stream": True, "store": True}
    answer = await served_natively.http.post(f"{URL}/compact", json=body)
    assert answer.status_code == 200, answer.text
    window = answer.json()
    assert window["output"] == COMPACTION["output"]
    assert window["object"] == "response.compaction"
    assert window["id"] != "resp_theirs"
    assert window["usage"]["total_tokens"] == 25
    (sent,) = _compactions(backend)
    (said,) = sent.pop("input")
    assert (said["role"], said["content"]) == ("user", "Hi")
    assert sent == {"model": MODEL, "instructions": "Be brief."}
    assert not backend.turns


async def test_the_turns_before_are_compacted_there(served_natively: Running, backend: FakeBackend) -> None:
    backend.routes[COMPACT] = json_answer(COMPACTION)
    first = await create(served_natively.http, input="Hi")
    window = await served_natively.openai.responses.compact(model=MODEL, previous_response_id=first["id"])
    assert [item.type for item in window.output] == ["message", "compaction"]
    (sent,) = _compactions(backend)
    assert [item["role"] for item in sent["input"]] == ["user", "assistant"]
    assert "previous_response_id" not in sent


@pytest.mark.parametrize("lacking", [404, 405, 501])
@pytest.mark.parametrize("is_described", [True, False], ids=["with words", "without"])
async def test_a_server_without_the_path_gets_the_trigger(
    served_natively: Running, backend: FakeBackend, lacking: int, is_described: bool
) -> None:
    backend.routes[COMPACT] = http_error(lacking, "Invalid URL") if is_described else empty(lacking)
    backend.script(json_answer(native_events("")[-1]["response"] | {"output": [ITEM]}))
    window = await served_natively.openai.responses.compact(model=MODEL, input="Hi")
    assert [item.type for item in window.output] == ["message", "compaction"]
    (turn,) = backend.turns
    assert [item["type"] for item in turn.json["input"]] == ["message", "compaction_trigger"]
    assert len(_compactions(backend)) == 1


async def test_what_the_servers_path_refuses_is_the_clients_answer(
    served_natively: Running, backend: FakeBackend
) -> None:
    backend.routes[COMPACT] = http_error(400, "This cannot be compacted.")
    answer = await served_natively.http.post(f"{URL}/compact", json={"model": MODEL, "input": "Hi"})
    assert_error(answer, 400)
    assert "cannot be compacted" in answer.text
    assert not backend.turns


@pytest.mark.parametrize("answered", [{}, {"output": None}, [], "text"])
async def test_what_is_no_compaction_is_a_bad_answer(
    served_natively: Running, backend: FakeBackend, answered: Any
) -> None:
    backend.routes[COMPACT] = json_answer(answered)
    answer = await served_natively.http.post(f"{URL}/compact", json={"model": MODEL, "input": "Hi"})
    assert answer.status_code == 502, answer.text


async def test_a_trigger_in_an_ordinary_turn_stays_one(served_natively: Running, backend: FakeBackend) -> None:
    backend.routes[COMPACT] = json_answer(COMPACTION)
    await create(served_natively.http, input=[KEPT, {"type": "compaction_trigger"}])
    assert not _compactions(backend)
