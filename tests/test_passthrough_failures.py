"""What is passed on and goes wrong: requests that go nowhere, refusals, backends that break off, and clients that
leave."""

import asyncio
from contextlib import AsyncExitStack

import httpx2
import orjson
import pytest

from tests.conftest import running_router
from tests.fake_backend import (
    CHAT,
    FakeBackend,
    chat,
    chunk,
    cut,
    empty,
    http_error,
    json_answer,
    stall,
    stream,
)
from tests.test_passthrough import (
    ANSWER,
    DOORS,
    MODEL,
    ODD,
    Json,
    answers,
    asked,
    body_of,
    opened,
    post,
    post_bytes,
    quiet,
    tokens,
    two_backends,
)
from tests.turns import assert_error, eventually

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


class TestRequestsThatGoNowhere:
    @pytest.mark.parametrize("path", DOORS)
    async def test_an_unknown_model(self, served, backend, path):
        assert_error(
            await post(served, path, model="test-modell"), 404, code="model_not_found", param="model", says=MODEL
        )
        assert not asked(backend)

    @pytest.mark.parametrize("path", DOORS)
    async def test_no_model(self, served, backend, path):
        for body in (b"{}", b'{"model": 7}', b'{"model": null}', b"[]", b'"test-model"', b"7"):
            assert_error(await post_bytes(served, body, path), 400, type="invalid_request_error", param="model")
        assert not asked(backend)

    @pytest.mark.parametrize("path", DOORS)
    async def test_no_json(self, served, backend, path):
        model = b'"model": "test-model"'
        for body in (
            b"",
            b"{",
            b"{" + model,
            b"{" + model + b"} x",
            b"{" + model + b', "n": NaN',
            b"\xff\xfe",
            b'{"model":"\xe9"}',
        ):
            assert_error(await post_bytes(served, body, path), 400, code="invalid_json")
        assert not asked(backend)

    async def test_a_prompt_cache_key_is_the_backends_to_judge(self, served, backend):
        for key in (b"7", b"null", b'{"a": 1}'):
            sent = b'{"model":"test-model","messages":[{"role":"user","content":"Hi"}],"prompt_cache_key":%b}' % key
            answer = await post_bytes(served, sent)
            assert answer.status_code == 200, answer.text
            assert asked(backend)[-1].body == sent

    async def test_a_body_that_is_too_large(self, backend):
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, max_body_mb=0.01) as running:
            assert_error(await post(running, padding="x" * 20_000), 413)
        assert not asked(backend)

    async def test_no_key(self, backend):
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, api_key="secret") as running:
            for path in DOORS:
                for given in ("", "Bearer wrong"):
                    answer = await running.http.post(path, json={"model": MODEL}, headers={"Authorization": given})
                    assert_error(answer, 401, code="invalid_api_key")
            assert not asked(backend)
            assert (await post(running)).status_code == 200

    async def test_a_full_queue(self, backend):
        backend.default = stall()
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint], queue={"max": 1}) as running:
            waiting = [asyncio.create_task(post(running))]
            await backend.wait_for(lambda b: b.in_flight == 1)
            waiting.append(asyncio.create_task(post(running)))
            await eventually(lambda: len(running.app.state.pool.line) == 1, "one waits")
            answer = await post(running)
            assert_error(answer, 429, type="rate_limit_error")
            assert answer.headers["retry-after"] == "1"
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await eventually(lambda: not len(running.app.state.pool.line), "nobody waits")
            await quiet(running, backend)

    async def test_a_slot_that_does_not_come_free(self, backend):
        backend.default = stall()
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint], queue={"timeout_s": 0.05}) as running:
            first = asyncio.create_task(post(running))
            await backend.wait_for(lambda b: b.in_flight == 1)
            assert_error(await post(running), 429)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await quiet(running, backend)

    async def test_no_server_of_the_model_has_this_door(self, backend):
        async with running_router(endpoints=[{"url": backend.url, "kind": "ollama"}]) as running:
            assert_error(await post(running, "/v1/rerank"), 400, param="model", says="/v1/rerank")
            await quiet(running, backend)
        assert not [request for request in backend.requests if request.path == "/v1/rerank"]

    async def test_another_method(self, served):
        for path in DOORS:
            answer = await served.http.get(path)
            assert_error(answer, 405)
            assert answer.headers["allow"] == "POST"


class TestRefusals:
    """An endpoint's own 4xx, in our envelope and its words."""

    @pytest.mark.parametrize("path", DOORS)
    async def test_keep_their_words(self, served, backend, path):
        answers(backend, path, http_error(400, "That is 7 too many.", code="too_many"))
        assert_error(
            await post(served, path), 400, type="invalid_request_error", code="too_many", says="That is 7 too many."
        )
        assert len(asked(backend)) == 1, "a refusal was tried again"
        await quiet(served, backend)

    @pytest.mark.parametrize(
        ("status", "body", "expected", "code"),
        [
            (400, b'{"error":"a bare text"}', 400, None),
            (422, b'{"detail":[{"type":"missing","loc":["body","n"],"msg":"Field required"}]}', 400, None),
            (400, b"no json at all", 400, None),
            (401, b'{"error":{"message":"Incorrect API key: sk-secret"}}', 502, "backend_authentication_failed"),
            (404, b"404 page not found", 502, "backend_path_not_found"),
            (413, b'{"error":{"message":"too big"}}', 413, None),
            (501, b'{"error":{"message":"start it with --embeddings"}}', 501, "not_supported"),
            (302, b"", 502, "backend_redirects"),
        ],
    )
    async def test_of_every_spelling(self, served, backend, status, body, expected, code):
        backend.default = http_error(status, body=body, headers={"Content-Type": "application/json"})
        error = assert_error(await post(served), expected, code=code)
        assert "sk-secret" not in error["message"]
        await quiet(served, backend)

    @pytest.mark.parametrize(
        ("words", "code", "param"),
        [
            ("This model's maximum context length is 4096 tokens.", "context_length_exceeded", "messages"),
            ("test-model does not support tools", "unsupported_parameter", "tools"),
            ("image input is not supported - hint: mmproj", "unsupported_parameter", "messages"),
            ('"test-model" does not support thinking', "unsupported_parameter", "reasoning_effort"),
            ("Unsupported parameter: 'max_tokens' is not supported", "unsupported_parameter", "max_tokens"),
            ("'response_format.type' must be 'json_schema'", "unsupported_parameter", "response_format"),
            ("Unknown parameter: 'verbosity'", "unsupported_parameter", "verbosity"),
        ],
    )
    async def test_name_the_parameters_of_this_api(self, served, backend, words, code, param):
        """Not those of Responses, which this client does not speak."""
        backend.default = http_error(400, words)
        assert_error(await post(served), 400, code=code, param=param, says=words)

    async def test_a_busy_server_says_when_to_come_back(self, served, backend):
        backend.default = http_error(429, "busy", headers={"Retry-After": "7"})
        answer = await post(served)
        assert_error(answer, 429, says="busy")
        assert answer.headers["retry-after"] == "7"


FAILURES = {
    "500": http_error(500),
    "503": http_error(503, "loading"),
    "429": http_error(429),
    "no such model": http_error(404, "model not found", code="model_not_found"),
    "cannot do this": http_error(501),
    "cut before the head": cut(),
    "cut behind the head": stream(cut()),
    "nothing": empty(),
    "an empty stream": stream(),
}


class TestFailover:
    @pytest.mark.parametrize("failure", FAILURES)
    @pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
    async def test_before_the_first_byte(self, path, failure):
        async with two_backends() as (running, first, second):
            answers(first, path, FAILURES[failure])
            answers(second, path, body_of(ANSWER))
            sent = ODD % MODEL.encode()
            answer = await post_bytes(running, sent, path)
            assert (answer.status_code, answer.content) == (200, ANSWER)
            assert answer.headers["x-nomyo-endpoint"] == "second"
            # A kept connection that is closed under a request is no failure yet: it is sent again.
            assert {request.body for request in asked(first)} == {sent}
            assert [request.body for request in asked(second)] == [sent]
            await quiet(running, first, second)

    @pytest.mark.logs("The backend could not be reached")
    async def test_a_server_that_is_gone(self):
        async with two_backends() as (running, first, _):
            await first.stop()
            for _ in range(5):
                answer = await post(running)
                assert (answer.status_code, answer.headers["x-nomyo-endpoint"]) == (200, "second")

    async def test_a_server_that_is_silent(self, stack: AsyncExitStack):
        first, second = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
        first.default = stall()
        endpoints = [
            {"url": f"{first.url}/v1", "kind": "openai-chat", "first_byte_timeout_s": 0.05},
            {"url": f"{second.url}/v1", "kind": "openai-chat", "priority": 1},
        ]
        running = await stack.enter_async_context(running_router(endpoints=endpoints))
        assert (await post(running)).status_code == 200
        await first.wait_for(lambda b: b.aborts == 1)
        await quiet(running, first, second)

    async def test_to_another_name_of_the_model(self, stack: AsyncExitStack):
        """The name that an endpoint did not answer to is not what the next one is given."""
        first, second = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
        first.default, second.models = http_error(503), ["other"]
        endpoints = [
            {"url": f"{first.url}/v1", "kind": "openai-chat"},
            {"url": f"{second.url}/v1", "kind": "openai-chat", "priority": 1, "aliases": {MODEL: "other"}},
        ]
        running = await stack.enter_async_context(running_router(endpoints=endpoints))
        answer = await post(running, top_k=3)
        assert (answer.status_code, answer.headers["x-nomyo-model"]) == (200, "other")
        assert [backend.turns[0].json["model"] for backend in (first, second)] == [MODEL, "other"]
        assert second.turns[0].json["top_k"] == 3

    async def test_to_a_model_that_may_answer_in_its_place(self, backend):
        backend.models = [MODEL, "fallback"]
        backend.script(http_error(503), chat("Here I am"))
        async with running_router(
            endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], fallback_models={MODEL: ["fallback"]}
        ) as running:
            answer = await post(running)
        assert answer.json()["choices"][0]["message"]["content"] == "Here I am"
        assert [request.json["model"] for request in backend.turns] == [MODEL, "fallback"]

    async def test_what_nobody_takes_gets_the_first_error(self):
        async with two_backends() as (running, first, second):
            first.default, second.default = http_error(503, "the first words"), http_error(500, "the second")
            assert_error(await post(running), 502, code="backend_unreachable", says="the first words")
            await quiet(running, first, second)

    @pytest.mark.parametrize("begun", [chat("Hello", then=cut()), stream(b": only a comment\n\n", cut(reset=True))])
    async def test_none_after_the_first_byte(self, begun):
        async with two_backends() as (running, first, second):
            first.default = begun
            answer = await post(running, stream=True)
            assert answer.status_code == 200
            assert b"error" in answer.content
            assert (len(first.turns), len(second.turns)) == (1, 0)
            await quiet(running, first, second)


class TestBreakingOff:
    @pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
    async def test_of_a_stream_is_an_error_in_its_last_data(self, served, backend, reset):
        said = chunk({"content": "Hel"})
        backend.default = stream(said, cut(reset=reset))
        answer = await post(served, stream=True)
        assert answer.content.startswith(said)
        (data,) = datas(answer.content.removeprefix(said))
        assert set(data) == {"error"}
        assert data["error"]["code"] == "backend_disconnected"
        assert data["error"]["type"] == "server_error"
        await quiet(served, backend)

    async def test_of_a_stream_in_the_middle_of_a_frame(self, served, backend):
        """The error is a frame of its own, not the end of a line that cannot be read."""
        backend.default = stream(chunk({"content": "Hel"}), b'data: {"half', cut())
        answer = await post(served, stream=True)
        *_, last, nothing = answer.content.split(b"\n\n")
        assert not nothing, "the stream does not end with a frame"
        (data,) = datas(last)
        assert data["error"]["code"] == "backend_disconnected"

    async def test_of_a_stream_that_falls_silent(self, backend):
        backend.default = stream(chunk({"content": "Hel"}), stall())
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "read_timeout_s": 0.1}
        async with running_router(endpoints=[endpoint]) as running:
            answer = await post(running, stream=True)
            assert datas(answer.content)[-1]["error"]["code"] == "backend_timeout"
            await backend.wait_for(lambda b: b.aborts == 1)
            await quiet(running, backend)

    @pytest.mark.logs("an answer broke off: backend_disconnected")
    @pytest.mark.parametrize("path", DOORS)
    async def test_of_json_breaks_the_connection(self, served, backend, path):
        answers(backend, path, json_answer({"data": ["x" * 1000]}, then=cut()))
        with pytest.raises(httpx2.RemoteProtocolError):
            await post(served, path)
        await quiet(served, backend)

    async def test_counts_against_the_endpoint(self, served, backend):
        backend.default = stream(chunk({"content": "Hel"}), cut())
        await post(served, stream=True)
        assert served.app.state.telemetry.counts["failures"] == 1
        assert tokens(served) == (0, 0)


def datas(body: bytes) -> list[Json]:
    """What the data lines of a stream hold."""
    return [
        orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ") and line[6:] != b"[DONE]"
    ]


class TestTheClientLeaves:
    @pytest.mark.parametrize("path", DOORS)
    @pytest.mark.parametrize("where", ["before the head", "before the first byte"])
    async def test_before_anything_was_said(self, served, backend, path, where):
        answers(backend, path, stall() if where == "before the head" else stream(stall()))
        asking = asyncio.create_task(post(served, path))
        await eventually(lambda: len(asked(backend)) == 1, "the backend was asked")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await backend.wait_for(lambda b: asked(b)[0].outcome == "aborted")
        await quiet(served, backend)

    @pytest.mark.parametrize("kind", ["stream", "json"])
    async def test_in_the_middle(self, served, backend, kind):
        answers(
            backend,
            CHAT,
            stream(chunk({"content": "Hel"}), stall()) if kind == "stream" else json_answer(["x" * 1000], then=stall()),
        )
        async with opened(served):
            assert served.in_flight() == 1
        await backend.wait_for(lambda b: b.aborts == 1)
        await quiet(served, backend)
        assert served.app.state.telemetry.counts["failures"] == 0, "a client that leaves is no failure of the backend"

    async def test_while_it_waits_for_a_slot(self, backend):
        backend.default = stall()
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint]) as running:
            first = asyncio.create_task(post(running))
            await backend.wait_for(lambda b: b.in_flight == 1)
            second = asyncio.create_task(post(running))
            await eventually(lambda: len(running.app.state.pool.line) == 1, "the second waits")
            for task in (second, first):
                task.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            await eventually(lambda: not len(running.app.state.pool.line), "nobody waits")
            await quiet(running, backend)
        assert len(backend.turns) == 1

    async def test_the_slot_is_free_for_the_next(self, backend):
        backend.script(stream(chunk({"content": "Hel"}), stall()))
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
        async with running_router(endpoints=[endpoint]) as running:
            async with opened(running):
                waiting = asyncio.create_task(post(running))
                await eventually(lambda: len(running.app.state.pool.line) == 1, "the next waits")
            next_answer = await waiting
        assert next_answer.status_code == 200
        assert int(next_answer.headers["x-nomyo-wait-ms"]) >= 0


class TestOfAModelThatIsNoneForThePath:
    """What a server has for some models alone."""

    @pytest.mark.parametrize("path", ["/embeddings", "/rerank"])
    @pytest.mark.parametrize("status", [404, 405])
    async def test_a_model_that_chats_has_no_embeddings(self, served, backend, path, status):
        words = "Not Found" if status == 404 else "Method Not Allowed"
        answers(backend, f"/v1{path}", http_error(status, body=orjson.dumps({"detail": words})))
        error = assert_error(
            await post(served, f"/v1{path}"),
            501,
            code="not_supported",
            param="model",
            says=f"The server of this model has no /v1{path}: it may be a model that chats.",
        )
        assert "url" not in error["message"]
        await quiet(served, backend)

    @pytest.mark.logs("backend_path_not_found")
    async def test_a_model_that_embeds_has_no_conversations_and_goes_on_embedding(self, served, backend):
        answers(backend, "/v1/embeddings", json_answer({"object": "list", "data": []}))
        assert (await post(served, "/v1/embeddings")).status_code == 200
        for path in ("/v1/chat/completions", "/v1/responses"):
            backend.default = http_error(404, body=b'{"detail":"Not Found"}')
            for _ in range(6):
                body = {"model": "test-model", "input": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
                answer = await served.http.post(path, json=body)
                error = assert_error(answer, 502, code="backend_path_not_found")
                assert "one that embeds" in error["message"]
        assert (await post(served, "/v1/embeddings")).status_code == 200, "the breaker took it for dead"

    async def test_what_a_server_words_as_a_failure_of_its_own_is_none(self, served, backend):
        words = "Llama model must be created with embedding=True to call this method"
        answers(backend, "/v1/embeddings", http_error(500, words, type="internal_server_error"))
        assert_error(await post(served, "/v1/embeddings"), 501, code="not_supported", says=words)
