"""A backend that speaks the Responses API itself fails, and the official SDK raises what it should."""

from typing import Any

import openai
import pytest

from tests.conftest import Running, running_router
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
from tests.turns import stream

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
    "it breaks": (http_error(500, "boom"), openai.InternalServerError, 500, "backend_error"),
    "it closes the connection": (cut(), openai.InternalServerError, 502, "backend_unreachable"),
    "its answer is no response": (json_answer({"hello": 1}), openai.InternalServerError, 502, "backend_bad_answer"),
    "its stream begins with an error": (
        event_stream([{"type": "error", "code": "server_error", "message": "boom", "param": None}]),
        openai.InternalServerError,
        500,
        "server_error",
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
        (sse(FLAT, "error"), "server_error"),
        (sse(NESTED, "error"), "server_error"),
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


# ── upstream's errors go on as they are ──────────────────────────────────────────────────────────────────────────────

QUOTA = {
    "message": "You exceeded your current quota, please check your plan and billing details.",
    "type": "insufficient_quota",
    "param": None,
    "code": "insufficient_quota",
}
NO_ACCESS = {
    "message": "Project `proj_1` does not have access to model `gpt-x`.",
    "type": "invalid_request_error",
    "param": None,
    "code": "model_not_found",
}
WRONG = {
    "message": "Unsupported parameter: 'temperature' is not supported with this model.",
    "type": "invalid_request_error",
    "param": "temperature",
    "code": "unsupported_parameter",
    "innererror": {"code": "more"},
}
ODD = {"message": "No.\nNot at all.", "type": "server_error", "param": None, "code": None, "request_id": "req_9"}
HEADERS = {"Retry-After-Ms": "1500", "X-Request-Id": "req_9", "Set-Cookie": "secret=1"}


@pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (429, QUOTA, openai.RateLimitError),
        (403, NO_ACCESS, openai.PermissionDeniedError),
        (400, WRONG, openai.BadRequestError),
        (409, WRONG, openai.ConflictError),
        (422, WRONG, openai.UnprocessableEntityError),
    ],
)
async def test_an_http_error_of_upstream_goes_on_with_all_that_it_says(
    served_natively: Running,
    backend: FakeBackend,
    status: int,
    error: dict[str, Any],
    expected: type[openai.APIStatusError],
    streaming: bool,
) -> None:
    backend.default = json_answer({"error": error}, status=status, headers=HEADERS)
    with pytest.raises(expected) as raised:
        await served_natively.openai.responses.create(model=MODEL, input="Hi", stream=streaming)
    assert raised.value.status_code == status
    assert raised.value.body == error
    assert (raised.value.code, raised.value.param, raised.value.type) == (error["code"], error["param"], error["type"])
    assert raised.value.response.headers["x-nomyo-backend-request-id"] == "req_9"
    assert raised.value.request_id not in (None, "req_9"), "the router's own is in its log"
    headers = raised.value.response.headers
    assert headers["retry-after-ms"] == "1500"
    assert headers["retry-after"] == "2"
    assert "set-cookie" not in headers
    assert len(backend.turns) == 1, "it was asked again"


async def test_a_fault_of_upstreams_goes_on_too(served_natively: Running, backend: FakeBackend) -> None:
    backend.default = json_answer({"error": ODD}, status=500, headers=HEADERS)
    with pytest.raises(openai.InternalServerError) as raised:
        await served_natively.openai.responses.create(model=MODEL, input="Hi")
    assert raised.value.status_code == 500
    assert raised.value.body == ODD | {"code": "backend_error"}, "its code is ours where it has none"
    begun = native_events("Hi")[:2]
    backend.script(event_stream([*begun, {"type": "error", "message": "Odd.", "code": None, "param": None}]))
    events = await stream(served_natively.http)
    assert events[-1]["response"]["error"]["code"] == "server_error", "strict clients know no other"


async def test_an_upstream_that_rejects_our_key_is_our_fault_and_not_the_clients(
    served_natively: Running, backend: FakeBackend
) -> None:
    error = {
        "message": "Incorrect API key provided: sk-up…",
        "type": "invalid_request_error",
        "code": "invalid_api_key",
    }
    backend.default = json_answer({"error": error}, status=401)
    with pytest.raises(openai.InternalServerError) as raised:
        await served_natively.openai.responses.create(model=MODEL, input="Hi")
    assert raised.value.code == "backend_authentication_failed"
    assert "sk-up" not in raised.value.message


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (QUOTA, 429, openai.RateLimitError),
        (WRONG, 500, openai.InternalServerError),
        ({"code": "rate_limit_exceeded", "message": "slow down", "param": None}, 429, openai.RateLimitError),
        ({"code": "context_length_exceeded", "message": "too long", "param": "input"}, 400, openai.BadRequestError),
    ],
)
async def test_an_error_event_keeps_its_code_and_its_parameter(
    served_natively: Running,
    backend: FakeBackend,
    error: dict[str, Any],
    status: int,
    expected: type[openai.APIStatusError],
    nested: bool,
) -> None:
    event = {"type": "error", "sequence_number": 9, **({"error": error} if nested else {**error, "type": "error"})}
    if nested and "type" in error and status == 500:
        status, expected = 400, openai.BadRequestError  # Its type says what it is.
    backend.script(event_stream([event]), native("Hello there", then=sse(event, "error")))
    with pytest.raises(expected) as raised:
        await served_natively.openai.responses.create(model=MODEL, input="Hi", stream=True)
    assert raised.value.status_code == status
    assert (raised.value.code, raised.value.param) == (error["code"], error["param"])
    events = await wire_events(served_natively)
    event, failed = events[-2:]
    assert (event["code"], event["param"], event["message"]) == (error["code"], error["param"], error["message"])
    assert event["error"]["code"] == error["code"]
    assert failed["response"]["error"]["code"] == error["code"]
    assert failed["response"]["error"]["message"] == error["message"]


async def test_another_endpoint_is_asked_where_a_model_is_not_the_projects(backends_: list[FakeBackend]) -> None:
    backends_[0].default = json_answer({"error": NO_ACCESS}, status=403)
    backends_[1].default = native("Hello.")
    endpoints = [
        {"url": f"{backend.url}/v1", "kind": "openai", "priority": number} for number, backend in enumerate(backends_)
    ]
    async with running_router(endpoints=endpoints) as running:
        assert (await running.openai.responses.create(model=MODEL, input="Hi")).output_text == "Hello."


async def test_an_overflow_that_upstream_has_no_code_for_gets_one(
    served_natively: Running, backend: FakeBackend
) -> None:
    """vLLM's own Responses: Codex compacts at the code."""
    words = "This model's maximum context length is 4096 tokens. However, your request has 9000 input tokens."
    backend.default = json_answer({"error": {"message": words, "type": "BadRequestError", "code": 400}}, status=400)
    with pytest.raises(openai.BadRequestError) as raised:
        await served_natively.openai.responses.create(model=MODEL, input="Hi")
    assert (raised.value.code, raised.value.type) == ("context_length_exceeded", "BadRequestError")
