"""The fake backend does what the other tests rely on. The clients here are httpx2 and OpenAI's SDK."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from tests.fake_backend import (
    DONE,
    FakeBackend,
    Reply,
    call,
    chat,
    chat_usage,
    chunk,
    cut,
    empty,
    event_stream,
    http_error,
    interleaved,
    json_answer,
    native,
    native_events,
    pause,
    pieces,
    reasoning,
    refusal,
    replay,
    sse_error,
    stall,
    steps,
    stream,
    strict_error,
    until,
    with_logprobs,
)
from tests.fixtures import recorded, recordings
from tests.stream_grammar import check_stream

USER = {"role": "user", "content": "hi"}
BODY = {"model": "m", "messages": [USER]}
STREAM = BODY | {"stream": True}


@pytest.fixture
async def http(backend: FakeBackend) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(backend) as client:
        yield client


@pytest.fixture
async def sdk(backend: FakeBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{backend.url}/v1", api_key="k", max_retries=0) as client:
        yield client


def client_of(backend: FakeBackend) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=backend.url, timeout=None, verify=False)


async def post(http: httpx2.AsyncClient, body: Any = STREAM, path: str = "/v1/chat/completions") -> bytes:
    return (await http.post(path, json=body)).content


class TestWhatTheSdkSees:
    async def test_text(self, backend, sdk):
        backend.script(chat("Hello there"))
        completion = await sdk.chat.completions.create(model="m", messages=[USER])
        assert completion.choices[0].message.content == "Hello there"
        assert completion.choices[0].finish_reason == "stop"
        assert completion.model == "m"
        assert completion.usage.total_tokens == 10
        assert backend.turns[-1].json["messages"] == [USER]
        assert backend.turns[-1].headers["authorization"] == "Bearer k"

    async def test_streamed_text_comes_in_words_and_joins_to_the_text(self, backend, sdk):
        backend.script(chat("Hello  there \n", usage=chat_usage(cached=2, reasoning=1)))
        chunks = [
            chunk
            async for chunk in await sdk.chat.completions.create(
                model="m", messages=[USER], stream=True, stream_options={"include_usage": True}
            )
        ]
        words = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
        assert words == ["Hello", "  there", " \n"]
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 2
        assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 1

    async def test_usage_is_streamed_only_when_it_is_asked_for(self, backend, http):
        assert b"usage" not in await post(http)
        assert b"usage" in await post(http, STREAM | {"stream_options": {"include_usage": True}})

    @pytest.mark.parametrize("as_stream", [True, False])
    async def test_every_kind_of_part_in_both_forms(self, backend, sdk, as_stream):
        backend.script(
            chat(
                reasoning("Let me see."),
                "Before.",
                interleaved(call("a", {"x": 1}), call("b", {"y": "two words"})),
                call("c", fragments=0),
                with_logprobs(" After it."),
                refusal("No more."),
            )
        )
        if as_stream:
            async with sdk.chat.completions.stream(model="m", messages=[USER]) as events:
                completion = await events.get_final_completion()
        else:
            completion = await sdk.chat.completions.create(model="m", messages=[USER])
        choice = completion.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Before. After it."
        assert choice.message.refusal == "No more."
        assert choice.message.model_extra["reasoning_content"] == "Let me see."
        assert [entry.token for entry in choice.logprobs.content] == [" After", " it."]
        assert [(c.id, c.function.name, c.function.arguments) for c in choice.message.tool_calls] == [
            ("call_1", "a", '{"x":1}'),
            ("call_2", "b", '{"y":"two words"}'),
            ("call_3", "c", "{}"),
        ]

    async def test_interleaved_calls_take_turns(self, backend, sdk):
        backend.script(chat(interleaved(call("a", {"x": 1}), call("b", {"y": 2}))))
        indexes = [
            chunk.choices[0].delta.tool_calls[0].index
            async for chunk in await sdk.chat.completions.create(model="m", messages=[USER], stream=True)
            if chunk.choices[0].delta.tool_calls
        ]
        assert indexes == [0, 1] * 4

    async def test_an_error_in_the_middle_of_a_stream_is_raised(self, backend, sdk):
        backend.script(chat("Hel", then=sse_error("boom")))
        with pytest.raises(openai.APIError, match="boom"):
            async for _ in await sdk.chat.completions.create(model="m", messages=[USER], stream=True):
                pass

    async def test_an_error_status_comes_with_its_headers(self, backend, sdk):
        backend.script(http_error(429, "slow down", code="rate_limit", headers={"Retry-After": "7"}))
        with pytest.raises(openai.RateLimitError, match="slow down") as caught:
            await sdk.chat.completions.create(model="m", messages=[USER])
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.code == "rate_limit"

    async def test_models(self, backend, sdk):
        backend.models = ["one", "two"]
        assert [model.id async for model in sdk.models.list()] == ["one", "two"]
        assert backend.turns == []

    @pytest.mark.parametrize("incomplete", [None, "max_output_tokens"])
    async def test_native_responses_in_both_forms(self, backend, sdk, incomplete):
        parts = [reasoning("Hm."), "Hello there", call("f", {"a": 1})]
        backend.script(native(*parts, incomplete=incomplete), native(*parts, incomplete=incomplete))
        whole = await sdk.responses.create(model="m", input="hi", instructions="Be brief.")
        streamed = [event async for event in await sdk.responses.create(model="m", input="hi", stream=True)]
        assert whole.output_text == "Hello there"
        assert whole.instructions == "Be brief."
        assert whole.status == ("incomplete" if incomplete else "completed")
        assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
        assert streamed[-1].response.output == whole.output

    async def test_the_sdk_accumulates_a_native_stream(self, backend, sdk):
        backend.script(native(reasoning("Hm."), "Hello there", refusal("No."), call("f", {"a": 1})))
        async with sdk.responses.stream(model="m", input="hi") as events:
            final = await events.get_final_response()
        assert final.output_text == "Hello there"


class TestTheWire:
    async def test_connections_are_kept_alive(self, backend, http):
        for _ in range(3):
            await post(http)
            await post(http, BODY)
        assert backend.connections == 1
        assert {request.connection for request in backend.requests} == {1}
        assert {request.outcome for request in backend.requests} == {"answered"}

    @pytest.mark.parametrize("where", ["request", "answer"])
    async def test_connection_close_is_obeyed(self, backend, http, where):
        close = {"Connection": "close"}
        backend.script(chat("a", headers=close if where == "answer" else {}))
        await http.post("/v1/chat/completions", json=BODY, headers=close if where == "request" else {})
        await post(http)
        assert backend.connections == 2

    async def test_a_dropped_idle_connection_is_replaced(self, backend, http):
        await post(http)
        backend.drop_idle()
        await backend.wait_for(lambda b: not b._open)
        await post(http)
        assert backend.connections == 2

    async def test_a_request_may_meet_a_dropped_connection(self, backend):
        # Not with httpx2: it looks whether a connection is still there before it sends.
        host, port = backend.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
        writer.write(request)
        await backend.wait_for(lambda b: b.turns and b.turns[-1].outcome == "answered")
        backend.drop_idle()
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        assert reader.at_eof() or reader.exception()
        assert len(backend.turns) == 1
        writer.close()

    async def test_each_write_is_a_read_of_its_own(self, backend, http):
        writes = pieces(chunk({"content": "für 東京 🦊"}) + DONE, 1)
        backend.script(stream(*writes))
        async with http.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
            assert [data async for data in answer.aiter_raw()] == writes

    async def test_json_though_a_stream_was_asked_for_and_the_reverse(self, backend, http):
        backend.script(chat("Hi", as_stream=False), chat("Hi", as_stream=True))
        answer = await http.post("/v1/chat/completions", json=STREAM)
        assert answer.json()["choices"][0]["message"]["content"] == "Hi"
        assert "content-length" in answer.headers
        assert (await post(http, BODY)).endswith(DONE)

    @pytest.mark.parametrize("answer", [empty(), stream()])
    async def test_empty_bodies(self, backend, http, answer):
        backend.script(answer)
        assert await post(http) == b""

    async def test_any_body_with_an_error_status(self, backend, http):
        backend.script(http_error(502, body=b"<html>Bad Gateway</html>"))
        answer = await http.post("/v1/chat/completions", json=BODY)
        assert (answer.status_code, answer.text) == (502, "<html>Bad Gateway</html>")

    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("body", [STREAM, BODY], ids=["stream", "json"])
    async def test_a_cut_in_the_middle_of_the_body(self, backend, http, body, reset):
        backend.script(chat("Hello", then=cut(reset=reset)))
        with pytest.raises(httpx2.ReadError if reset else httpx2.RemoteProtocolError):
            await post(http, body)
        assert [request.outcome for request in backend.turns] == ["cut"]
        assert backend.aborts == 0

    async def test_a_cut_before_the_headers(self, backend, http):
        backend.script(cut())
        with pytest.raises(httpx2.RemoteProtocolError, match="without sending a response"):
            await post(http)

    async def test_other_paths_and_methods_are_not_found(self, backend, http):
        for method, path in [("GET", "/v1/nope"), ("GET", "/v1/chat/completions"), ("POST", "/v1/models")]:
            assert (await http.request(method, path)).status_code == 404

    async def test_tags_health_and_a_route_of_ones_own(self, backend, http):
        backend.routes["GET /api/ps"] = json_answer({"models": []})
        assert (await http.get("/api/tags")).json()["models"][0]["name"] == "test-model"
        assert (await http.get("/health?x=1")).json() == {"status": "ok"}
        assert (await http.get("/api/ps")).json() == {"models": []}

    async def test_the_answers_come_in_order_and_then_the_default(self, backend, http):
        backend.script(chat("one"), chat("two"))
        backend.default = chat("more")
        bodies = [await post(http) for _ in range(4)]
        words = [b"one", b"two", b"more", b"more"]
        assert all(word in body for word, body in zip(words, bodies, strict=True))
        assert backend.unused == 0

    async def test_it_comes_back_on_the_same_port(self, backend, http):
        await post(http)
        url = backend.url
        await backend.stop()
        with pytest.raises(httpx2.ConnectError):
            await post(http)
        await backend.start()
        assert backend.url == url
        assert (await post(http)).endswith(DONE)

    async def test_a_broken_answer_fails_the_test(self):
        async def broken(reply: Reply) -> None:
            raise ZeroDivisionError

        async def use() -> None:
            async with FakeBackend() as backend, client_of(backend) as http:
                backend.script(broken)
                with pytest.raises(httpx2.TransportError):
                    await post(http)

        with pytest.raises(ZeroDivisionError):
            await use()


STALLS = {
    "before the headers": stall(),
    "after the headers": stream(stall()),
    "in the middle of a stream": chat("Hello", then=stall()),
    "in the middle of a json body": chat("Hello", then=stall(), as_stream=False),
    "in the middle of a frame": stream(b'data: {"cho', stall()),
    "in a native stream": native("Hello", then=stall()),
    "in a long stream": chat("word " * 1000, delay_s=0.01),
}


class TestAborts:
    @pytest.mark.parametrize("answer", STALLS.values(), ids=STALLS.keys())
    async def test_a_client_that_leaves_is_counted_at_once(self, backend, http, answer):
        backend.script(answer)
        turn = asyncio.create_task(post(http))
        await backend.wait_for(lambda b: b.in_flight == 1)
        assert backend.aborts == 0
        turn.cancel()
        await backend.wait_for(lambda b: b.aborts == 1)
        assert backend.in_flight == 0
        # The next one is served as ever.
        assert (await post(http)).endswith(DONE)

    async def test_a_finished_answer_is_no_abort(self, backend, http):
        await post(http)
        await http.aclose()
        await backend.wait_for(lambda b: not b._open)
        assert backend.aborts == 0

    async def test_a_client_that_stops_reading_at_done_is_no_abort(self, backend, http):
        async with http.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    break
        assert (backend.aborts, backend.in_flight) == (0, 0)

    async def test_a_stop_is_no_abort(self, backend, http):
        backend.script(chat("Hello", then=stall()))
        turn = asyncio.create_task(post(http))
        await backend.wait_for(lambda b: b.in_flight == 1)
        await backend.stop()
        with pytest.raises(httpx2.TransportError):
            await turn
        assert [request.outcome for request in backend.turns] == ["cut"]

    async def test_the_test_can_hold_an_answer(self, backend, http):
        go = asyncio.Event()
        backend.script(steps(pause(0), until(go), chat("Hello")))
        turn = asyncio.create_task(post(http))
        await backend.wait_for(lambda b: b.in_flight == 1)
        go.set()
        assert (await turn).endswith(DONE)

    async def test_a_client_that_reads_slowly_holds_the_answer_up(self, backend, http):
        backend.script(stream(*[b"x" * 1_000_000] * 50))
        async with http.stream("POST", "/v1/chat/completions", json=STREAM) as answer:
            await anext(answer.aiter_raw(1))
            assert backend.in_flight == 1

    async def test_waiting_in_vain_says_what_there_is(self, backend):
        with pytest.raises(AssertionError, match=r"FakeBackend.*0 connections"):
            await backend.wait_for(lambda b: b.aborts == 1, timeout_s=0.01)


class TestNativeEvents:
    def test_they_keep_the_grammar(self):
        check_stream(native_events(reasoning("Hm."), with_logprobs("Hello there"), refusal("No."), call("f")))
        check_stream(native_events("Hello there", incomplete="max_output_tokens"))

    async def test_events_go_out_as_they_are(self, backend, http):
        backend.script(event_stream([{"type": "response.created", "x": 1}], then=stall()))
        frame = b""
        async with http.stream("POST", "/v1/responses", json={"stream": True}) as answer:
            async for piece in answer.aiter_raw():
                frame += piece
                if frame.endswith(b"\n\n"):
                    break
        assert frame == b'event: response.created\ndata: {"type":"response.created","x":1}\n\n'


class TestReplays:
    @pytest.mark.parametrize("size", [None, 100])
    @pytest.mark.parametrize("name", ["02-chat-stream-usage", "01-chat", "92-loading-chat", "08-sse-ping-stream"])
    async def test_a_recorded_answer_arrives_byte_for_byte(self, backend, http, name, size):
        exchange = recorded(name)
        backend.script(replay(exchange, size=size))
        answer = await http.post("/v1/chat/completions", json=exchange.request)
        assert answer.status_code == exchange.status
        assert answer.headers["content-type"] == exchange.headers["content-type"]
        assert answer.content == exchange.body

    async def test_a_killed_server_cuts_the_stream(self, backend, http):
        backend.script(replay(recorded("94-server-killed-mid-stream"), then=cut()))
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(http)

    def test_what_is_recorded_can_be_asked_for(self):
        assert "01-chat" in recordings("01-")
        assert recordings(path="/v1/responses", stream=True) == recordings("20-", stream=True)
        assert all(recorded(name).status == 400 for name in recordings(status=400))
        assert recorded("90-err-malformed-json").request is None
        assert recorded("94-connection-refused").status == 0
        assert (recorded("00-models").method, recorded("00-models").path) == ("GET", "/v1/models")
        assert recorded("02-chat-stream-usage").chunks[-1]["usage"]["total_tokens"] == 35


def tool_turn(**tool_call: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"} | tool_call
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


RESULT = {"role": "tool", "tool_call_id": "c1", "content": "42"}
TOOL = {"type": "function", "function": {"name": "f"}}

REFUSED = {
    "no messages": ({"messages": []}, "at least one message"),
    "an unknown role": ({"messages": [{"role": "critic", "content": "x"}]}, "unknown role 'critic'"),
    "a lone tool message": ({"messages": [USER, RESULT]}, r"messages\[1\]: tool_call_id 'c1' answers no"),
    "two answers to one call": ({"messages": [tool_turn(), RESULT, RESULT]}, "answers no"),
    "an answer to another call": ({"messages": [tool_turn(), RESULT | {"tool_call_id": "c2"}]}, "'c2'"),
    "an unanswered call": ({"messages": [tool_turn(), USER]}, r"not answered before it: \['c1'\]"),
    "an unanswered call at the end": ({"messages": [USER, tool_turn()]}, "without an answer"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, "must not be null"),
    "an assistant who says nothing": (
        {"messages": [{"role": "assistant", "content": None}]},
        "must not be null",
    ),
    "no parts": ({"messages": [{"role": "user", "content": []}]}, "at least one part"),
    "a number": ({"messages": [{"role": "user", "content": 1}]}, "must be a string"),
    "an input_text part": (
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
        "unknown content part 'input_text'",
    ),
    "a hollow part": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'text' is empty"),
    "bad arguments": ({"messages": [tool_turn(arguments="{no"), RESULT]}, "arguments are not JSON: '{no'"),
    "empty arguments": ({"messages": [tool_turn(arguments=""), RESULT]}, "arguments are not JSON"),
    "a nameless call": ({"messages": [tool_turn(name=""), RESULT]}, "not a function call"),
    "empty tool_calls": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]},
        "at least one call",
    ),
    "a user's tool call": (
        {"messages": [tool_turn() | {"role": "user", "content": "x"}]},
        "in an assistant message",
    ),
    "no tools": ({"messages": [USER], "tools": []}, "at least one tool"),
    "a flat tool": (
        {"messages": [USER], "tools": [{"type": "function", "name": "f"}]},
        "not a function tool",
    ),
    "tool_choice alone": ({"messages": [USER], "tool_choice": "auto"}, "tool_choice is only allowed"),
    "stream_options alone": ({"messages": [USER], "stream_options": {}}, "stream_options is only allowed"),
}


class TestStrict:
    @pytest.mark.parametrize(("body", "problem"), REFUSED.values(), ids=REFUSED.keys())
    async def test_it_refuses(self, body, problem):
        async with FakeBackend(strict=True) as backend, client_of(backend) as http:
            refused = json.loads(await post(http, body))
        assert [request.outcome for request in backend.turns] == ["answered"]
        assert re.search(problem, refused["error"]["message"])

    async def test_a_refusal_leaves_the_script_alone(self):
        async with FakeBackend(strict=True) as backend, client_of(backend) as http:
            backend.script(chat("Hello"))
            await post(http, {"messages": []})
            assert b"Hello" in await post(http, BODY)

    @pytest.mark.parametrize(
        "body",
        [
            BODY,
            {"messages": [{"role": "system", "content": "s"}, USER, tool_turn(), RESULT], "tools": [TOOL]},
            {
                "messages": [
                    USER,
                    tool_turn(),
                    RESULT,
                    tool_turn(),
                    RESULT,
                    {"role": "assistant", "content": "x"},
                ]
            },
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            {
                "messages": [USER],
                "tools": [TOOL],
                "tool_choice": "auto",
                "stream": True,
                "stream_options": {},
            },
        ],
    )
    def test_it_accepts(self, body):
        assert strict_error(body) is None
