"""A backend that speaks the Responses API itself fails, and the official SDK is told."""

from typing import Any

import openai
import pytest

from tests.conftest import Running
from tests.fake_backend import (
    Answer,
    FakeBackend,
    cut,
    event_stream,
    http_error,
    json_answer,
    native,
    native_events,
    sse,
    stall,
)
from tests.sdk import MODEL, check_refused, collected, until_text, wire_events
from tests.stream_grammar import check_stream

FAILURES: dict[str, tuple[Answer, type[openai.APIStatusError], int, str | None]] = {
    "it refuses the request": (http_error(400, "no such tool", code="bad"), openai.BadRequestError, 400, "bad"),
    "the context overflows": (
        http_error(400, "too long", code="context_length_exceeded"),
        openai.BadRequestError,
        400,
        "context_length_exceeded",
    ),
    "it does not know the model": (http_error(404, "no model"), openai.NotFoundError, 404, "model_not_found"),
    "it rejects our key": (http_error(401), openai.InternalServerError, 502, "backend_authentication_failed"),
    "it is busy": (http_error(429, "busy"), openai.RateLimitError, 429, "rate_limit_exceeded"),
    "it breaks": (http_error(500, "boom"), openai.InternalServerError, 502, "backend_error"),
    "it closes the connection": (cut(), openai.InternalServerError, 502, "backend_unreachable"),
    "its answer is no response": (json_answer({"hello": 1}), openai.InternalServerError, 502, "backend_bad_answer"),
    "its stream begins with an error": (
        event_stream([{"type": "error", "code": "server_error", "message": "boom", "param": None}]),
        openai.InternalServerError,
        502,
        "backend_error",
    ),
}


@pytest.mark.parametrize(("answer", "expected", "status", "code"), FAILURES.values(), ids=FAILURES.keys())
async def test_a_failure_before_the_first_event_is_an_http_error(
    served_natively: Running,
    backend: FakeBackend,
    answer: Answer,
    expected: type[openai.APIStatusError],
    status: int,
    code: str | None,
) -> None:
    backend.default = answer
    await check_refused(served_natively, expected, status, code)


async def test_a_backend_that_is_not_there_is_asked_again(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(cut(), native("Hello."), http_error(503, "loading"), native("Hello."))
    body = await served_natively.openai.responses.create(model=MODEL, input="Hi")
    events = await collected(await served_natively.openai.responses.create(model=MODEL, input="Hi", stream=True))
    assert body.output_text == events[-1].response.output_text == "Hello."
    assert len(backend.turns) == 4


FLAT = {"type": "error", "code": "server_error", "message": "boom", "param": None, "sequence_number": 9}
NESTED = {"type": "error", "error": {"type": "server_error", "code": "server_error", "message": "boom", "param": None}}


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (sse(FLAT, "error"), "backend_error"),
        (sse(NESTED, "error"), "backend_error"),
        (cut(), "backend_disconnected"),
        (cut(reset=True), "backend_disconnected"),
        (b"data: {nonsense\n\n", "backend_bad_answer"),
    ],
    ids=["a flat error event", "a nested error event", "closed", "reset", "nonsense"],
)
async def test_an_error_in_mid_stream_is_raised_and_the_response_kept_as_failed(
    served_natively: Running, backend: FakeBackend, ending: Any, code: str
) -> None:
    answer = native("Hello there", then=ending)
    backend.script(answer, answer, answer)
    events = await wire_events(served_natively)
    check_stream(events, prefixes=False)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    failed = events[-1]["response"]
    stored = await served_natively.openai.responses.retrieve(failed["id"])
    assert stored.status == "failed"
    assert stored.error is not None
    assert stored.error.message == failed["error"]["message"]
    stream = await served_natively.openai.responses.create(model=MODEL, input="Hi", stream=True)
    with pytest.raises(openai.APIError) as raised:
        await collected(stream)
    assert raised.value.code == code
    async with served_natively.openai.responses.stream(model=MODEL, input="Hi") as helper:
        with pytest.raises(openai.APIError) as raised:
            await helper.get_final_response()
    assert raised.value.code == code
    assert served_natively.in_flight() == 0, "the slot was kept"


async def test_a_response_that_upstream_says_failed_is_passed_on_as_that(
    served_natively: Running, backend: FakeBackend
) -> None:
    *events, end = native_events("Hello")
    events = [event for event in events if not event["type"].endswith(".done")]
    error = {"code": "server_error", "message": "the model crashed"}
    end = end | {"type": "response.failed"}
    end["response"] |= {"status": "failed", "error": error, "output": [], "completed_at": None}
    backend.script(event_stream([*events, end]), json_answer(end["response"]))
    streamed = await collected(await served_natively.openai.responses.create(model=MODEL, input="Hi", stream=True))
    body = await served_natively.openai.responses.create(model=MODEL, input="Hi")
    for response in (streamed[-1].response, body):
        assert response.status == "failed"
        assert response.error is not None
        assert response.error.message == "the model crashed"
        assert (await served_natively.openai.responses.retrieve(response.id)).error == response.error


async def test_a_client_that_leaves_aborts_upstream(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(native("Hello there", then=stall()))
    stream = await served_natively.openai.responses.create(model=MODEL, input="Hi", stream=True)
    await until_text(stream)
    await stream.close()
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served_natively.in_flight() == 0
