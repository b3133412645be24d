"""The client that speaks to a backend, against one that answers in every wrong way, byte for byte."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.wire.client import BackendClient, create_chat_with_retries
from backends.wire.relay import Relay
from core.errors import (
    APIError,
    BackendCut,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    TooManyRequests,
)
from requests.native_translator import NativeTranslator
from tests.conftest import running_router
from tests.fake_backend import (
    CHAT,
    DONE,
    Answer,
    FakeBackend,
    call,
    chat,
    chat_usage,
    chunk,
    cut,
    empty,
    event_stream,
    http_error,
    json_answer,
    native,
    native_events,
    pause,
    pieces,
    sse,
    sse_error,
    stall,
    steps,
    stream,
)
from tests.stream_grammar import parse_sse
from tests.streams import builder
from tests.test_outbound import certified
from tests.translated import Written, relayed
from tests.turns import URL, assert_error, create, eventually, soon, turn

ASK: dict[str, Any] = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}]}
STREAM = ASK | {"stream": True, "stream_options": {"include_usage": True}}


@asynccontextmanager
async def client_of(backend: FakeBackend, **settings: Any) -> AsyncIterator[BackendClient]:
    client = BackendClient(backend.url, f"{backend.url}/v1", **settings)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[BackendClient]:
    async with client_of(backend) as client:
        yield client


async def said(client: BackendClient, params: dict[str, Any] = STREAM) -> str:
    """The text of an answer, whichever form it has."""
    answer = await create_chat_with_retries(client, params)
    if hasattr(answer, "choices"):
        return answer.choices[0].message["content"]
    return "".join((await relayed(answer, builder(), Written())).deltas)


async def refused(client: BackendClient, kind: type[APIError], params: dict[str, Any] = STREAM) -> APIError:
    """The error of exactly that kind that the call ends with, before or in its answer."""
    with pytest.raises(APIError) as raised:
        await said(client, params)
    assert type(raised.value) is kind, f"{raised.value!r} is no {kind.__name__}"
    return raised.value


class TestConnections:
    async def test_a_connection_is_used_again_after_a_stream_and_after_json(self, backend, client):
        for _ in range(5):
            assert await said(client) == "Hello from the fake backend."
            assert await said(client, ASK) == "Hello from the fake backend."
        assert backend.connections == 1

    async def test_a_connection_is_used_again_after_an_error_status(self, backend, client):
        backend.script(*(http_error(400) for _ in range(3)))
        for _ in range(3):
            await refused(client, BackendRefused)
        await said(client)
        assert backend.connections <= 2, "each error costs a connection"

    async def test_turns_at_the_same_time_have_a_connection_each(self, backend, client):
        await asyncio.gather(*(said(client) for _ in range(8)))
        assert backend.connections == 8

    @pytest.mark.parametrize("params", [ASK, STREAM], ids=["json", "stream"])
    async def test_a_kept_connection_that_the_server_closed_is_no_failure(self, backend, client, params):
        for _ in range(4):
            await asyncio.gather(*(said(client, params) for _ in range(3)))
            backend.drop_idle()
            # They are closed, and the client sends before its loop has seen it.
            await asyncio.sleep(0)
        assert await said(client, params)

    async def test_a_stream_that_is_left_early_is_cut(self, backend, client):
        backend.script(chat("Hel", then=stall()))
        begun = asyncio.Event()
        answer = await client.chat.completions.create(**STREAM)
        relaying = asyncio.create_task(relayed(answer, builder(), Written(lambda _: begun.set())))
        await begun.wait()
        relaying.cancel()
        await backend.wait_for(lambda b: b.aborts == 1)

    @pytest.mark.parametrize(
        "answer",
        [stall(), chat("Hel", then=stall()), chat("Hel", then=stall(), as_stream=True)],
        ids=["nothing", "half a body", "half a stream"],
    )
    async def test_a_call_that_is_cancelled_is_cut(self, backend, client, answer):
        backend.script(answer)
        task = asyncio.create_task(said(client, ASK))
        await backend.wait_for(lambda b: b.in_flight == 1)
        await asyncio.sleep(0.01)
        task.cancel()
        await backend.wait_for(lambda b: b.aborts == 1)
        assert len(backend.turns) == 1

    async def test_the_key_of_the_endpoint_is_sent_and_no_other(self, backend, client):
        await said(client)
        assert "authorization" not in backend.turns[-1].headers
        async with client_of(backend, api_key="sk-upstream") as with_key:
            await said(with_key)
            await with_key.get_json("/v1/models", 1)
        assert [request.headers["authorization"] for request in backend.requests[-2:]] == ["Bearer sk-upstream"] * 2


class TestRetries:
    async def test_a_refused_connection_is_unreachable(self, backend, client):
        await backend.stop()
        error = await refused(client, BackendUnreachable)
        assert (error.status, error.code) == (502, "backend_unreachable")

    async def test_a_server_that_loads_its_model_is_unreachable(self, backend, client):
        backend.script(http_error(503, "Loading model", headers={"Retry-After": "7"}))
        error = await refused(client, BackendUnreachable)
        assert (error.status, error.retry_after_s) == (502, 7)
        assert len(backend.turns) == 1

    @pytest.mark.parametrize("reset", [False, True])
    async def test_what_breaks_on_a_kept_connection_is_not_sent_twice(self, backend, client, reset):
        await asyncio.gather(*(said(client) for _ in range(5)))
        asked = len(backend.turns)
        backend.script(*[cut(reset=reset)] * 6)
        await refused(client, BackendUnreachable)
        assert len(backend.turns) == asked + 1

    @pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 502, 504])
    async def test_other_failures_are_not_tried_again(self, backend, client, status):
        backend.script(http_error(status))
        with pytest.raises(APIError):
            await said(client)
        assert len(backend.turns) == 1

    async def test_an_answer_that_has_begun_is_never_asked_for_twice(self, backend, client):
        begun: dict[str, tuple[Answer, dict[str, Any], type[APIError]]] = {
            "half a body": (chat("Hello", then=cut()), ASK, BackendCut),
            "half a body, reset": (chat("Hello", then=cut(reset=True)), ASK, BackendCut),
            "half a stream": (chat("Hello", then=cut()), STREAM, BackendCut),
            "half a stream, reset": (chat("Hello", then=cut(reset=True)), STREAM, BackendCut),
            "an error in the stream": (chat("Hello", then=sse_error()), STREAM, BackendError),
            "a 503 in the stream": (chat("Hello", then=sse_error(code=503)), STREAM, BackendUnreachable),
        }
        for number, (name, (answer, params, kind)) in enumerate(begun.items(), 1):
            backend.script(answer)
            with pytest.raises(APIError) as raised:
                await said(client, params)
            assert type(raised.value) is kind, f"{name}: {raised.value!r}"
            assert len(backend.turns) == number, f"{name} was asked for again"

    async def test_an_answer_that_breaks_off_before_its_first_event_is_an_error_of_the_backend(self, backend, client):
        for answer in (stream(cut()), stream(cut(reset=True)), stream(b"data: {", cut()), stream(b": hi\n\n", cut())):
            backend.script(answer)
            with pytest.raises(BackendError) as raised:
                await said(client)
            assert raised.value.status == 502
        assert len(backend.turns) == 4


class TestTimeouts:
    @pytest.mark.parametrize("params", [ASK, STREAM], ids=["json", "stream"])
    async def test_a_backend_that_sends_nothing_is_a_timeout(self, backend, params):
        backend.script(stall())
        async with client_of(backend, read_timeout_s=0.05) as client:
            error = await refused(client, BackendTimeout, params)
        assert (error.status, error.code) == (504, "backend_timeout")
        await backend.wait_for(lambda b: b.aborts == 1)
        assert len(backend.turns) == 1

    @pytest.mark.parametrize("params", [ASK, STREAM], ids=["json", "stream"])
    async def test_one_that_stops_in_the_middle_too(self, backend, params):
        backend.script(chat("Hel", then=stall()))
        async with client_of(backend, read_timeout_s=0.05) as client:
            await refused(client, BackendTimeout, params)
        await backend.wait_for(lambda b: b.aborts == 1)

    async def test_a_slow_answer_is_none_as_long_as_something_comes(self, backend, clock):
        go = asyncio.Semaphore(0)

        async def until_released(reply: Any) -> None:
            await go.acquire()

        writes = [step for written in (*HELLO, *END) for step in (written, until_released)]
        backend.script(stream(*writes))
        async with client_of(backend, read_timeout_s=600) as client:

            def go_on(_: Any) -> None:
                clock.advance(400)
                go.release()

            await relayed(await client.chat.completions.create(**STREAM), builder(), Written(go_on))
            assert len(backend.turns) == 1

    async def test_a_backend_that_takes_no_connection_is_unreachable(self, backend):
        # 192.0.2.0/24 is nobody's (RFC 5737); where the network says so at once, that is unreachable as well.
        client = BackendClient("http://192.0.2.1", "http://192.0.2.1/v1", connect_timeout_s=0.05)
        try:
            await refused(client, BackendUnreachable)
        finally:
            await client.close()

    async def test_whoever_runs_the_router_reads_why_there_is_no_connection(self, tmp_path):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certified(tmp_path, "site.example"))

        async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async def said_of(url: str) -> str:
            client = BackendClient(url, f"{url}/v1")
            try:
                return (await refused(client, BackendUnreachable)).message
            finally:
                await client.close()

        for handler, context, says in (
            (closes, tls, "certificate is not accepted: self"),
            (plain, None, "does not speak TLS"),
        ):
            server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=context)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            assert says in await said_of(f"https://{address}")
            server.close()
        assert "refused the connection" in await said_of(f"http://{address}")
        assert "name could not be resolved (DNS)" in await said_of("http://nowhere.invalid")
        assert "name could not be resolved (DNS)" in await said_of(f"http://{'x' * 70}.example")

    async def test_an_answer_that_is_too_large_is_a_502_that_says_so(self, backend):
        async with client_of(backend, max_answer_bytes=1000) as client:
            backend.script(*[chat("Hello " * 1000)] * 2)
            for params in (ASK, STREAM):
                error = await refused(client, BackendError, params)
                assert (error.status, error.code) == (502, "backend_answer_too_large")
                assert "max_answer_mb" in error.message

    async def test_a_listing_has_its_own_timeout(self, backend, client):
        backend.routes["GET /v1/models"] = stall()
        with pytest.raises(BackendTimeout):
            await client.get_json("/v1/models", 0.05)


HELLO = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hello"}), chunk({"content": " there"})]
END = [chunk({}, finish_reason="stop"), chunk(usage=chat_usage()), DONE]
HELLO_UTF8 = [chunk({"content": "naïve 🦙"}), *END]


class TestForms:
    async def test_json_may_come_when_a_stream_was_asked_for(self, backend, client):
        backend.script(chat("Hello", as_stream=False))
        assert await said(client, STREAM) == "Hello"

    async def test_a_stream_may_come_when_json_was_asked_for(self, backend, client):
        backend.script(chat("Hello there", as_stream=True))
        assert await said(client, ASK) == "Hello there"

    @pytest.mark.parametrize(
        "answer",
        [
            stream(*HELLO, *END),
            stream(b"".join([*HELLO, *END])),
            stream(b": ping\n\n", HELLO[0], b": ping\n\n: pong\n\n", *HELLO[1:], b":\n\n", *END),
            stream(*(frame.replace(b"\n", b"\r\n") for frame in [*HELLO, *END])),
            stream(*pieces(b"".join([*HELLO, *END]).replace(b"\n", b"\r\n"), 7)),
            stream(*pieces(b"".join([*HELLO, *END]), 1)),
            stream(*(b"event: chunk\nid: 1\nretry: 5\n" + frame for frame in [*HELLO, *END])),
            stream(*(frame.replace(b"data: ", b"data:") for frame in [*HELLO, *END])),
            stream(b"\xef\xbb\xbf", *HELLO, *END),
            stream(*HELLO, END[0]),
            stream(*HELLO, END[0], END[1]),
            stream(*HELLO, DONE),
            stream(*HELLO, *END[:2], DONE.rstrip()),
            stream(*HELLO, *END, b": bye\n\n"),
            stream(*HELLO, *END, chunk({"content": " and more"})),
            stream(*HELLO, *END, stall()),
            stream(*HELLO, *END, cut()),
            stream(*HELLO, *END, headers={"Content-Type": "text/event-stream; charset=utf-8"}),
        ],
        ids=[
            "as it should be",
            "all in one write",
            "comments",
            "CRLF",
            "CRLF, split",
            "byte by byte",
            "other fields",
            "no space",
            "a BOM",
            "no [DONE], no usage",
            "no [DONE]",
            "no finish_reason",
            "no blank line at the end",
            "a comment behind [DONE]",
            "a chunk behind [DONE]",
            "a stall behind [DONE]",
            "a cut behind [DONE]",
            "a charset",
        ],
    )
    async def test_a_stream_in_any_clothes_says_hello_there(self, backend, client, answer):
        backend.script(answer)
        async with soon():
            assert await said(client) == "Hello there"

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    async def test_characters_may_be_split(self, backend, client, size):
        backend.script(stream(*pieces(b"".join(HELLO_UTF8), size)))
        assert await said(client) == "naïve 🦙"

    async def test_what_one_read_held_leaves_in_one_write(self, backend, client):
        backend.script(stream(b"".join(HELLO), pause(0.02), b"".join(END)))
        made = builder(emits="frames")
        written = await relayed(await client.chat.completions.create(**STREAM), made, Written())
        assert [output.count(b".delta\n") for output in written] == [2]

    async def test_a_token_is_given_on_at_once(self, backend, client):
        backend.script(stream(*HELLO[:2], stall()))
        written = Written()
        relaying = asyncio.create_task(relayed(await client.chat.completions.create(**STREAM), builder(), written))
        await eventually(lambda: written.deltas == ["Hello"], "the token has left")
        relaying.cancel()

    async def test_a_stream_that_stays_open_behind_done_costs_no_time(self, backend, client):
        backend.script(stream(*HELLO, *END, stall()))
        async with soon():
            await said(client)
        await backend.wait_for(lambda b: b.in_flight == 0)


class TestWhatIsNoAnswer:
    """Each is asked for as JSON and as a stream: backends answer both ways to both."""

    ANSWERS: tuple[tuple[str, Answer, type[APIError], str | None], ...] = (
        ("an empty 200", empty(), BackendError, "backend_empty_answer"),
        ("an empty stream", stream(), BackendError, "backend_empty_answer"),
        ("a stream of comments", stream(b": hi\n\n", b": ho\n\n"), BackendError, "backend_empty_answer"),
        ("a stream of [DONE]", stream(DONE), BackendError, "backend_empty_answer"),
        ("garbage", http_error(200, body=b"<html>It works!</html>"), BackendError, "backend_bad_answer"),
        ("bytes", http_error(200, body=bytes(range(256))), BackendError, "backend_bad_answer"),
        ("garbage in a stream", stream(b"data: It works!\n\n"), BackendError, "backend_bad_answer"),
        ("a list", json_answer([]), BackendError, "backend_bad_answer"),
        ("null", json_answer(None), BackendError, "backend_bad_answer"),
        ("another object", json_answer({"ok": True}), BackendError, "backend_bad_answer"),
        ("choices of another type", json_answer({"choices": "a"}), BackendError, "backend_bad_answer"),
        ("choices of another type, streamed", stream(sse({"choices": 5})), BackendError, "backend_bad_answer"),
        ("an error object", json_answer({"error": {"message": "no", "code": 500}}), BackendError, "backend_error"),
        ("an error text", json_answer({"error": "no"}), BackendError, "backend_error"),
        ("an error as the first event", stream(sse_error()), BackendError, "backend_error"),
        ("a refusal in a 200", json_answer({"error": {"message": "no", "code": 400}}), BackendRefused, None),
        ("a refusal as the first event", stream(sse_error(code=400)), BackendRefused, None),
        ("a 429 as the first event", stream(sse_error(code=429)), TooManyRequests, "rate_limit_exceeded"),
        ("vLLM's error", stream(sse({"object": "error", "message": "no", "code": 400})), BackendRefused, None),
        ("llama.cpp's old error", stream(b'error: {"code":500,"message":"no"}\n\n'), BackendError, "backend_error"),
    )

    @pytest.mark.parametrize(("name", "answer", "kind", "code"), ANSWERS, ids=[row[0] for row in ANSWERS])
    async def test_it_is_an_error_of_the_backend(self, backend, client, name, answer, kind, code):
        for params in (ASK, STREAM):
            backend.script(answer)
            error = await refused(client, kind, params)
            assert error.code == code
            assert error.message
        assert len(backend.turns) == 2, "it was asked for again"

    async def test_what_came_before_an_error_is_given_on(self, backend, client):
        for ending in (sse_error(), cut(), b"data: garbage\n\n"):
            backend.script(stream(*HELLO, ending))
            written = Written()
            with pytest.raises(BackendError):
                await relayed(await client.chat.completions.create(**STREAM), builder(), written)
            assert written.deltas == ["Hello", " there"]

    async def test_a_stream_that_ends_without_an_end_is_cut(self, backend, client):
        backend.script(stream(*HELLO))
        error = await refused(client, BackendCut)
        assert error.code == "backend_disconnected"

    async def test_no_http_at_all_is_a_fault_of_its_own(self, backend, client):
        async def ssh(reply: Any) -> None:
            await reply.raw(b"SSH-2.0-OpenSSH_9.6\r\n")
            reply.cut()

        backend.script(ssh, ssh, ssh)
        error = await refused(client, BackendError)
        assert (error.code, error.message) == ("backend_bad_answer", "The backend's answer is no valid HTTP.")


OVERFLOW = {
    "message": "the request exceeds the available context size",
    "type": "exceed_context_size_error",
    "code": 400,
    "n_ctx": 8,
}


class TestStatuses:
    """What a backend's status becomes: kept where the client can act on it."""

    TABLE: tuple[tuple[Answer, type[APIError], int, str | None], ...] = (
        (http_error(400, "bad temperature"), BackendRefused, 400, None),
        (http_error(400, code="invalid_value"), BackendRefused, 400, "invalid_value"),
        (json_answer({"error": OVERFLOW}, status=400), BackendRefused, 400, "context_length_exceeded"),
        (http_error(400, code="context_length_exceeded"), BackendRefused, 400, "context_length_exceeded"),
        (http_error(401), BackendError, 502, "backend_authentication_failed"),
        (http_error(403), BackendError, 502, "backend_authentication_failed"),
        (http_error(404), BackendRefused, 404, "model_not_found"),
        (http_error(404, body=b"404 page not found"), BackendError, 502, "backend_path_not_found"),
        (http_error(405), BackendRefused, 400, None),
        (http_error(408), BackendTimeout, 504, "backend_timeout"),
        (http_error(413), BackendRefused, 413, None),
        (http_error(422), BackendRefused, 400, None),
        (json_answer({"detail": [{"msg": "field required"}]}, status=422), BackendRefused, 400, None),
        (http_error(429), TooManyRequests, 429, "rate_limit_exceeded"),
        (http_error(500), BackendError, 502, "backend_error"),
        (http_error(500, body=b"Internal Server Error"), BackendError, 502, "backend_error"),
        (empty(500), BackendError, 502, "backend_error"),
        (http_error(502), BackendError, 502, "backend_error"),
        (http_error(504), BackendTimeout, 504, "backend_timeout"),
        (http_error(507), BackendError, 502, "backend_error"),
        (empty(400), BackendRefused, 400, None),
        (empty(404), BackendError, 502, "backend_path_not_found"),
    )

    @pytest.mark.parametrize("number", range(len(TABLE)))
    async def test_it_becomes_ours(self, backend, client, number):
        answer, kind, status, code = self.TABLE[number]
        backend.script(answer)
        error = await refused(client, kind)
        assert (error.status, error.code) == (status, code)
        assert error.message

    async def test_the_words_of_a_refusal_are_kept(self, backend, client):
        backend.script(http_error(400, "temperature must be positive"), json_answer({"detail": "no such"}, status=422))
        assert (await refused(client, BackendRefused)).message == "temperature must be positive"
        assert (await refused(client, BackendRefused)).message == "no such"

    async def test_what_a_backend_says_about_our_key_is_not(self, backend, client):
        for status in (401, 403):
            backend.script(http_error(status, "Incorrect API key provided: sk-upstream"))
            error = await refused(client, BackendError)
            assert "sk-" not in error.message
            assert error.type == "server_error"

    @pytest.mark.parametrize(
        ("given", "kept"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("", None), (None, None)]
    )
    async def test_retry_after_is_kept_where_it_is_a_number(self, backend, client, given, kept):
        backend.script(http_error(429, headers=None if given is None else {"Retry-After": given}))
        assert (await refused(client, TooManyRequests)).retry_after_s == kept

    async def test_a_huge_error_body_is_not_read_to_its_end(self, backend, client):
        async def endless(reply: Any) -> None:
            await reply.start(500)
            while True:
                await reply.write(b"x" * 65536)
                await asyncio.sleep(0)

        backend.script(endless)
        async with soon():
            assert len((await refused(client, BackendError)).message) < 70_000


class TestNative:
    """`client.responses.create`: dicts and events as they came."""

    async def test_json_and_events_are_given_as_they_came(self, backend, client):
        asked = {"model": "test-model", "input": "hi"}
        assert (await client.responses.create(**asked))["output"][0]["type"] == "message"
        backend.script(native("Hello", call("f")))
        stream = await client.responses.create(**asked, stream=True)
        events = [event for _, event in parse_sse(await stream.read())]
        assert events == native_events("Hello", call("f"), request=asked | {"stream": True})
        assert backend.connections == 1

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (empty(), BackendError),
            (stream(), BackendError),
            (json_answer({"ok": True}), BackendError),
            (json_answer({"error": {"message": "no", "code": 500}}), BackendError),
            (stream(sse_error(code=400)), BackendRefused),
            (event_stream(native_events("Hello")[:3]), BackendCut),
            (native("Hello", then=cut()), BackendCut),
            (http_error(404), BackendRefused),
        ],
    )
    async def test_what_is_no_answer_is_an_error(self, backend, client, answer, kind):
        backend.script(answer)

        async def read() -> None:
            stream = await client.responses.create(model="m", input="hi", stream=True)
            made = builder()
            await Relay(stream.answer, NativeTranslator(made, stream.errors), Written()).run()

        with pytest.raises(APIError) as raised:
            await read()
        assert type(raised.value) is kind, repr(raised.value)


class TestListing:
    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (http_error(500), BackendError),
            (http_error(401), BackendError),
            (http_error(404), BackendRefused),
            (http_error(200, body=b"<html>"), BackendError),
            (empty(), BackendError),
            (steps(cut()), BackendUnreachable),
        ],
    )
    async def test_a_listing_that_fails_is_an_error_of_ours(self, backend, client, answer, kind):
        backend.routes["GET /v1/models"] = answer
        with pytest.raises(APIError) as raised:
            await client.get_json("/v1/models", 1)
        assert type(raised.value) is kind, repr(raised.value)


class TestThroughTheRouter:
    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_a_backend_that_stumbles_before_its_answer_is_asked_again(self, backend, kind):
        async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
            for trouble in (cut(), cut(reset=True), http_error(503, "Loading model")):
                backend.script(trouble)
                response = await create(running.http)
                assert response["output_text"] == "Hello from the fake backend."
            backend.drop_idle()
            await create(running.http)

    async def test_the_key_of_a_client_does_not_reach_the_backend(self, served, backend):
        answer = await served.http.post(URL, json=turn(), headers={"Authorization": "Bearer sk-of-the-client"})
        assert answer.status_code == 200
        assert [request.path for request in backend.turns] == [CHAT]
        assert "authorization" not in backend.turns[0].headers


class TestNotFound:
    """A model that the backend does not have is the client's to choose again; a path that it does not have is our
    settings' fault: a wrong `url`, or a `kind` that the server is not."""

    UNKNOWN_MODEL = (
        {"error": {"message": "model 'x' not found", "type": "not_found_error", "param": None, "code": None}},
        {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}},
        {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404},
        {"error": {"message": "No such model.", "type": "invalid_request_error", "code": "model_not_found"}},
    )
    # As Go's mux, a proxy, FastAPI (llama-cpp-python, vLLM) and llama.cpp answer.
    UNKNOWN_PATH = (
        b"404 page not found",
        b"<html>Not Found</html>",
        b"",
        b'{"detail":"Not Found"}',
        b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}',
    )

    @pytest.mark.parametrize("body", UNKNOWN_MODEL)
    async def test_a_model_is_the_clients_to_choose_again(self, backend, client, body):
        backend.script(json_answer(body, status=404))
        error = await refused(client, BackendRefused)
        assert (error.status, error.code, error.param) == (404, "model_not_found", "model")

    @pytest.mark.parametrize("body", UNKNOWN_PATH)
    async def test_a_path_is_no_fault_of_the_client(self, backend, client, body):
        backend.script(http_error(404, body=body))
        error = await refused(client, BackendError)
        assert error.status == 502
        assert error.code != "model_not_found"
        assert error.param is None
        assert error.message

    async def test_a_chat_server_that_is_said_to_speak_responses_does_not_lack_the_model(self, backend):
        backend.script(http_error(404, body=b'{"detail":"Not Found"}'))
        async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai"}]) as running:
            answer = await running.http.post(URL, json=turn())
        assert_error(answer, 502, type="server_error", param=None)


@pytest.mark.parametrize("begins", [b"data: ", b": ", b""], ids=["data", "a comment", "nothing known"])
async def test_a_line_without_end_is_a_502_that_says_so(
    backend: FakeBackend, client: BackendClient, monkeypatch: pytest.MonkeyPatch, begins: bytes
) -> None:
    monkeypatch.setattr("requests.sse.MOST_LINE", 1_000_000)

    async def endless(reply: Any) -> None:
        await reply.start(headers={"Content-Type": "text/event-stream"})
        await reply.write(begins)
        while True:
            await reply.write(b"x" * 100_000)

    backend.script(endless)
    error = await refused(client, BackendError)
    assert (error.status, error.code) == (502, "backend_answer_too_large")
    assert "a line has more than" in error.message
