"""What goes wrong reaches a client as the class that the official SDK has for it, with its code, param and type."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    call,
    chat,
    chunk,
    cut,
    empty,
    http_error,
    json_answer,
    reasoning,
    sse_error,
    stall,
)
from tests.fake_backend import (
    stream as stream_of,
)
from tests.sdk import EVENT_CLASSES, MODEL, check_refused, collected, stored_events, strict_client
from tests.stream_grammar import check_stream


def described(error: openai.APIError) -> tuple[str | None, str | None, str | None]:
    return error.code, error.param, error.type


# ── the request is wrong ─────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "nobody", "content": "Hi"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"conversation": {"name": "conv_1"}}, "conversation.id"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"extra_body": {"nomyo": {"cash": True}}}, "nomyo.cash"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_wrong_parameter_is_a_bad_request_that_names_it(
    served: Running, backend: FakeBackend, given: dict[str, Any], param: str
) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as raised:
            await served.openai.responses.create(**{"model": MODEL, "input": "Hi", "stream": streamed, **given})
        error = raised.value
        assert (error.param, error.type) == (param, "invalid_request_error")
        assert error.request.url == f"{served.url}/v1/responses"
        assert error.message
    assert not backend.turns, "the backend was asked"


async def test_a_missing_model_or_input_is_named(served: Running) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await served.openai.responses.create(input="Hi")
    assert described(raised.value) == ("missing_required_parameter", "model", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as raised:
        await served.openai.responses.create(model=MODEL)
    assert described(raised.value) == ("missing_required_parameter", "input", "invalid_request_error")


async def test_a_body_that_is_too_large_is_a_413(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, max_body_mb=0.001) as served:
        with pytest.raises(openai.APIStatusError) as raised:
            await served.openai.responses.create(model=MODEL, input="x" * 2000)
    assert raised.value.status_code == 413
    assert raised.value.code == "request_too_large"


async def test_a_client_without_the_key_is_not_authenticated(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, api_key="the-key") as served:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="another", max_retries=0) as stranger:
            for ask in (
                stranger.responses.create(model=MODEL, input="Hi"),
                stranger.responses.create(model=MODEL, input="Hi", stream=True),
                stranger.responses.retrieve("resp_1"),
                stranger.responses.delete("resp_1"),
                stranger.models.retrieve(MODEL),
            ):
                with pytest.raises(openai.AuthenticationError) as raised:
                    await ask
                assert described(raised.value) == ("invalid_api_key", None, "invalid_request_error")
                assert "the-key" not in raised.value.message
        assert not backend.turns, "the backend was asked"
        assert (await served.openai.responses.create(model=MODEL, input="Hi")).status == "completed"
    assert "the-key" not in str(backend.turns[-1].headers), "the router's key went to the backend"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_an_unknown_model_is_a_bad_request_and_elsewhere_not_found(served: Running, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="test-modle") as raised:
        await served.openai.responses.create(model="test-modle", input="Hi", stream=stream)
    assert described(raised.value) == ("model_not_found", "model", "invalid_request_error")
    assert MODEL in raised.value.message, "the nearest model is not named"
    chat: Any = [{"role": "user", "content": "Hi"}]
    for elsewhere in (
        served.openai.models.retrieve("test-modle"),
        served.openai.chat.completions.create(model="test-modle", messages=chat),
    ):
        with pytest.raises(openai.NotFoundError) as not_found:
            await elsewhere
        assert described(not_found.value) == ("model_not_found", "model", "invalid_request_error")


async def test_a_route_that_is_not_there_is_not_found(served: Running) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await served.openai.files.retrieve("file_1")
    assert described(raised.value) == ("unknown_url", None, "invalid_request_error")


# ── the backend fails before its first event ─────────────────────────────────

FAILURES: dict[str, tuple[Answer, type[openai.APIStatusError], int, str | None]] = {
    "it refuses the request": (http_error(400, "no such grammar"), openai.BadRequestError, 400, None),
    "the context overflows": (
        http_error(400, "too long", type="exceed_context_size_error"),
        openai.BadRequestError,
        400,
        "context_length_exceeded",
    ),
    "it has unloaded the model": (http_error(404, "no such model"), openai.NotFoundError, 404, "model_not_found"),
    "it rejects our key": (
        http_error(401, "bad key"),
        openai.InternalServerError,
        502,
        "backend_authentication_failed",
    ),
    "it forbids": (http_error(403), openai.InternalServerError, 502, "backend_authentication_failed"),
    "it is busy": (http_error(429, "busy"), openai.RateLimitError, 429, "rate_limit_exceeded"),
    "it breaks": (http_error(500, "boom"), openai.InternalServerError, 502, "backend_error"),
    "it breaks with a page": (
        http_error(502, body=b"<html>Bad Gateway</html>"),
        openai.InternalServerError,
        502,
        "backend_error",
    ),
    "it timed out itself": (http_error(504, "slow"), openai.InternalServerError, 504, "backend_timeout"),
    "its answer is empty": (empty(), openai.InternalServerError, 502, "backend_empty_answer"),
    "its stream is empty": (stream_of(), openai.InternalServerError, 502, "backend_empty_answer"),
    "its answer is no JSON": (
        http_error(200, body=b"Hello"),
        openai.InternalServerError,
        502,
        "backend_bad_answer",
    ),
    "its 200 is an error": (
        json_answer({"error": {"message": "boom", "code": 500}}),
        openai.InternalServerError,
        502,
        "backend_error",
    ),
    "its stream begins with an error": (stream_of(sse_error("boom")), openai.InternalServerError, 502, "backend_error"),
}


@pytest.mark.parametrize(("answer", "expected", "status", "code"), FAILURES.values(), ids=FAILURES.keys())
async def test_a_failure_before_the_first_event_is_an_http_error(
    served: Running,
    backend: FakeBackend,
    answer: Answer,
    expected: type[openai.APIStatusError],
    status: int,
    code: str | None,
) -> None:
    backend.script(answer, answer)
    await check_refused(served, expected, status, code)
    assert len(backend.turns) == 2, "the backend was asked again"


async def test_a_busy_backend_says_when_to_come_again_and_the_sdk_does(served: Running, backend: FakeBackend) -> None:
    backend.script(http_error(429, "busy", headers={"Retry-After": "7"}))
    with pytest.raises(openai.RateLimitError, match="busy") as raised:
        await served.openai.responses.create(model=MODEL, input="Hi")
    assert raised.value.response.headers["retry-after"] == "7"
    assert described(raised.value) == ("rate_limit_exceeded", None, "rate_limit_error")
    backend.script(http_error(429, "busy", headers={"Retry-After": "0"}), chat("Hello."))
    patient = served.openai.with_options(max_retries=1)
    assert (await patient.responses.create(model=MODEL, input="Hi")).output_text == "Hello."


async def test_a_backend_that_cannot_be_reached_is_a_502(served: Running, backend: FakeBackend) -> None:
    await served.openai.responses.create(model=MODEL, input="The router knows the model now.")
    await backend.stop()
    with pytest.raises(openai.InternalServerError) as raised:
        await served.openai.responses.create(model=MODEL, input="Hi")
    assert (raised.value.status_code, raised.value.code) == (502, "backend_unreachable")


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
async def test_a_silent_backend_is_a_504(backend: FakeBackend, streamed: bool) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "read_timeout_s": 0.1}
    async with running_router(endpoints=[endpoint]) as served:
        backend.script(stall())
        with pytest.raises(openai.InternalServerError) as raised:
            await served.openai.responses.create(model=MODEL, input="Hi", stream=streamed)
        assert (raised.value.status_code, raised.value.code) == (504, "backend_timeout")
        await backend.wait_for(lambda b: b.aborts == 1)
        assert served.in_flight() == 0


async def test_a_json_answer_that_breaks_off_is_a_502_and_not_asked_for_again(
    served: Running, backend: FakeBackend
) -> None:
    backend.script(chat("Hello there.", then=cut()))
    with pytest.raises(openai.InternalServerError) as raised:
        await served.openai.responses.create(model=MODEL, input="Hi")
    assert (raised.value.status_code, raised.value.code) == (502, "backend_disconnected")
    assert len(backend.turns) == 1, "the backend was asked again"


async def test_a_full_queue_is_a_429(backend: FakeBackend, stack: AsyncExitStack) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
    served = await stack.enter_async_context(running_router(endpoints=[endpoint], queue={"max": 0}))
    backend.script(chat("Hello", then=stall()))
    first = await served.openai.responses.create(model=MODEL, input="1", stream=True)
    with pytest.raises(openai.RateLimitError) as raised:
        await served.openai.responses.create(model=MODEL, input="2")
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.response.headers["retry-after"] == "1"
    await first.close()
    await backend.wait_for(lambda b: b.aborts == 1)
    assert (await served.openai.responses.create(model=MODEL, input="3")).status == "completed"


# ── the backend fails in the middle of a stream ──────────────────────────────

MIDDLES: dict[str, tuple[Answer, str]] = {
    "it closes the connection": (chat("Hello there", then=cut()), "backend_disconnected"),
    "it resets the connection": (chat("Hello there", then=cut(reset=True)), "backend_disconnected"),
    "it sends an error": (chat("Hello there", then=sse_error("boom")), "backend_error"),
    "it sends an error while it thinks": (chat(reasoning("Hm"), then=sse_error("boom")), "backend_error"),
    "it sends an error in a call": (chat(call("f", '{"a": 1}'), then=sse_error("boom")), "backend_error"),
    "it sends nonsense": (chat("Hello there", then=b"data: {nonsense\n\n"), "backend_bad_answer"),
    "it just ends": (stream_of(chunk({"content": "Hello"}), chunk({"content": " there"})), "backend_disconnected"),
    "it is overrun": (
        chat("Hello there", then=sse_error("busy", code=429, type="rate_limit_error")),
        "rate_limit_exceeded",
    ),
    "the context overflows": (
        chat("Hello there", then=sse_error("full", code=400, type="exceed_context_size_error")),
        "context_length_exceeded",
    ),
}
middles = pytest.mark.parametrize(("answer", "code"), MIDDLES.values(), ids=MIDDLES.keys())


@middles
async def test_an_error_in_mid_stream_is_raised_by_raw_iteration_and_the_response_is_kept_as_failed(
    served: Running, backend: FakeBackend, answer: Answer, code: str
) -> None:
    backend.script(answer)
    stream = await served.openai.responses.create(model=MODEL, input="Hi", stream=True)
    created = await anext(aiter(stream))
    with pytest.raises(openai.APIError) as raised:
        await collected(stream)
    assert not isinstance(raised.value, openai.APIConnectionError), (
        "our stream broke off instead of failing in its events"
    )
    assert raised.value.code == code
    assert raised.value.message
    failed = await served.openai.responses.retrieve(created.response.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.message == raised.value.message
    assert "incomplete" in {item.status or "incomplete" for item in failed.output}, "the partial output is lost"
    with pytest.raises(openai.APIError) as raised_again:
        await collected(await served.openai.responses.retrieve(failed.id, stream=True))
    assert raised_again.value.message == raised.value.message
    replayed = await stored_events(served, failed.id)
    check_stream(replayed)
    assert replayed[-1]["type"] == "response.failed"
    assert served.in_flight() == 0, "the slot was kept"


@middles
async def test_an_error_in_mid_stream_is_raised_by_the_stream_helper(
    served: Running, backend: FakeBackend, answer: Answer, code: str
) -> None:
    backend.script(answer)
    async with served.openai.responses.stream(model=MODEL, input="Hi") as stream:
        with pytest.raises(openai.APIError) as raised:
            await stream.get_final_response()
    assert raised.value.code == code


async def test_a_strict_client_reads_a_failed_response(served: Running, backend: FakeBackend) -> None:
    """But for the code `context_length_exceeded`, which Codex acts on and the SDK's types do not know."""
    strict = strict_client(served)
    for answer in (chat("Hello there", then=cut()), chat("Hello", then=sse_error("busy", code=429))):
        backend.script(answer)
        created = await strict.responses.create(model=MODEL, input="Hi", stream=True)
        first = await anext(aiter(created))
        with pytest.raises(openai.APIError) as raised:
            await collected(created)
        assert not isinstance(raised.value, openai.APIResponseValidationError)
        failed = await strict.responses.retrieve(first.response.id)
        assert failed.error is not None
        assert failed.error.code in ("server_error", "rate_limit_exceeded")
        replayed = await stored_events(served, first.response.id)
        for event in replayed:
            EVENT_CLASSES[event["type"]].model_validate(event, strict=True)
        last = EVENT_CLASSES["response.failed"].model_validate(replayed[-1], strict=True).response
        assert (last.error, last.output) == (failed.error, failed.output)


async def test_a_failed_response_cannot_be_mistaken_for_an_answer_in_the_cache(
    served: Running, backend: FakeBackend
) -> None:
    ask: Any = {"model": MODEL, "input": "Hi", "stream": True, "extra_body": {"nomyo": {"cache": True}}}
    backend.script(chat("Hello there", then=cut()), chat("Once upon", finish_reason="length"), chat("Hello."))
    with pytest.raises(openai.APIError):
        await collected(await served.openai.responses.create(**ask))
    cut_off = await collected(await served.openai.responses.create(**ask))
    assert cut_off[-1].type == "response.incomplete"
    whole = await collected(await served.openai.responses.create(**ask))
    assert whole[-1].response.output_text == "Hello."
    assert len(backend.turns) == 3


# ── the client leaves ────────────────────────────────────────────────────────


@pytest.mark.parametrize("after", ["response.created", "response.output_text.delta"])
async def test_a_client_that_closes_its_stream_aborts_the_backend(
    served: Running, backend: FakeBackend, after: str
) -> None:
    backend.script(chat("Hello there", then=stall()))
    stream = await served.openai.responses.create(model=MODEL, input="Hi", stream=True)
    async for event in stream:
        if event.type == after:
            break
    await stream.close()
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served.in_flight() == 0


async def test_a_client_that_times_out_aborts_the_backend(served: Running, backend: FakeBackend) -> None:
    backend.script(stall())
    with pytest.raises(openai.APITimeoutError):
        await served.openai.with_options(timeout=0.2).responses.create(model=MODEL, input="Hi")
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served.in_flight() == 0


async def test_a_client_that_is_cancelled_aborts_the_backend(served: Running, backend: FakeBackend) -> None:
    backend.script(stall())
    asking = asyncio.create_task(served.openai.responses.create(model=MODEL, input="Hi"))
    await backend.wait_for(lambda b: b.in_flight == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served.in_flight() == 0
