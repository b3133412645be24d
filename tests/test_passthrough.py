"""The front doors that hand on: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `/v1/rerank`, on real
sockets."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import openai
import orjson
import pytest
from pydantic import BaseModel

from api.passthrough import check_names
from core.errors import InvalidRequest
from tests.conftest import Running, running_router
from tests.fake_backend import (
    CHAT,
    DONE,
    JSON_HEADERS,
    SSE_HEADERS,
    Answer,
    FakeBackend,
    Reply,
    Request,
    call,
    chat,
    chat_usage,
    chunk,
    cut,
    http_error,
    json_answer,
    pieces,
    stream,
    until,
)
from tests.turns import assert_error, eventually, soon

Json = dict[str, Any]

MODEL = "test-model"
HELLO = [{"role": "user", "content": "Hello."}]
DOORS = {
    CHAT: {"messages": HELLO},
    "/v1/completions": {"prompt": "Once"},
    "/v1/embeddings": {"input": ["one", "two"]},
    "/v1/rerank": {"query": "a fruit", "documents": ["apple", "stone"]},
}
# What a parser would not give back as it came: spaces, spellings, sizes, order, things that are there twice.
ODD = (
    b'{ "stream_options" :null,\r\n\t"seed": 123456789012345678901234567890, '
    b'"temperature":1.00, "top_k":1e2, "top_p":-0.0,'
    b'"model":"%b" ,"logit_bias":{"50256":-100},"x_unknown":["\\u00e9\xc3\xa9 \\ud83d\\ude00\xf0\x9f\x98\x80\\/ '
    b'\\u0000 \xe2\x80\xa8",{},[]],"twice":1,"twice":2,"messages":[{"role":"user","content":"caf\\u00e9"}]}\n'
)
ANSWER = (
    b'{"id":"x", "n":18446744073709551617,  "t":"\\ud83d\\ude00 \xe2\x80\xa8", "model":"as the backend says", '
    b'"twice":1,"twice":2}\n'
)


pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


def answers(backend: FakeBackend, path: str, answer: Answer) -> None:
    """All that comes to `path` gets this answer."""
    if path == CHAT:
        backend.default = answer
    else:
        backend.routes[f"POST {path}"] = answer


def asked(backend: FakeBackend) -> list[Request]:
    """The requests that were passed on: what POSTs there are."""
    return [request for request in backend.requests if request.method == "POST"]


def body_of(data: bytes, *, headers: Json = JSON_HEADERS) -> Answer:
    """A 200 with exactly this body."""

    async def answer(reply: Reply) -> None:
        await reply.start(200, headers, length=len(data))
        await reply.end(data)

    return answer


async def post(running: Running, path: str = CHAT, **params: Any) -> httpx2.Response:
    return await running.http.post(path, json={"model": MODEL, **DOORS[path], **params})


async def post_bytes(running: Running, body: bytes, path: str = CHAT) -> httpx2.Response:
    return await running.http.post(path, content=body, headers=JSON_HEADERS)


@asynccontextmanager
async def opened(running: Running) -> AsyncIterator[AsyncIterator[bytes]]:
    """The rest of an answer whose first piece has come. Leaving the block closes the connection, as a client that goes
    away."""
    async with running.http.stream("POST", CHAT, json={"model": MODEL, **DOORS[CHAT], "stream": True}) as answer:
        received = answer.aiter_raw()
        await anext(received)
        yield received


async def quiet(running: Running, *backends: FakeBackend) -> None:
    """Nobody holds a slot, and no backend works for anybody."""
    await eventually(lambda: running.in_flight() == 0, "no slot is taken")
    assert not running.app.state.pool.line, "somebody still waits"
    for backend in backends:
        await backend.wait_for(lambda b: all(request.outcome != "open" for request in b.requests))


@asynccontextmanager
async def two_backends(**settings: Any) -> AsyncIterator[tuple[Running, FakeBackend, FakeBackend]]:
    """A router before two backends with the same model; the first is asked first."""
    async with (
        FakeBackend() as first,
        FakeBackend() as second,
        running_router(
            endpoints=[
                {"url": f"{first.url}/v1", "kind": "openai-chat", "name": "first"},
                {"url": f"{second.url}/v1", "kind": "openai-chat", "name": "second", "priority": 1},
            ],
            **settings,
        ) as running,
    ):
        yield running, first, second


class TestByteForByte:
    @pytest.mark.parametrize("path", DOORS)
    async def test_a_request_and_its_answer(self, served, backend, path):
        answers(backend, path, body_of(ANSWER, headers={"Content-Type": "application/json; charset=utf-8"}))
        sent = ODD % MODEL.encode()
        answer = await post_bytes(served, sent, path)
        assert answer.status_code == 200, answer.text
        (request,) = asked(backend)
        assert (request.path, request.body) == (path, sent)
        assert answer.content == ANSWER
        assert answer.headers["content-type"] == "application/json; charset=utf-8"

    @pytest.mark.parametrize("path", DOORS)
    async def test_half_a_surrogate_pair_is_nobodys_business(self, served, backend, path):
        answers(backend, path, body_of(ANSWER))
        sent = b'{"model":"test-model","input":"\\ud83d","messages":[{"role":"user","content":"\\udc00"}]}'
        answer = await post_bytes(served, sent, path)
        assert (answer.status_code, answer.content) == (200, ANSWER)
        assert asked(backend)[0].body == sent

    @pytest.mark.parametrize("path", DOORS)
    async def test_of_an_alias_only_the_model_is_another(self, backend, path):
        answers(backend, path, body_of(ANSWER))
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "aliases": {"fast": MODEL}}
        async with running_router(endpoints=[endpoint]) as running:
            answer = await post_bytes(running, ODD % b"fast", path)
        assert answer.content == ANSWER, "the answer is not touched, the model's name in it neither"
        assert answer.headers["x-nomyo-model"] == MODEL
        (request,) = asked(backend)
        expected = _pairs(ODD % MODEL.encode())
        assert dict(_pairs(request.body)) == dict(expected), "a parameter is not what it was"

    async def test_half_a_surrogate_pair_with_an_alias(self, backend):
        """Another name of the model is no reason to refuse what the backend takes."""
        backend.default = body_of(ANSWER)
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "aliases": {"fast": MODEL}}
        async with running_router(endpoints=[endpoint]) as running:
            answer = await post_bytes(running, b'{"model":"fast","messages":[{"role":"user","content":"\\ud83d"}]}')
            odd = await post_bytes(running, b'{"model":"fast","\xe9":1,"messages":[]}')
            assert odd.status_code == 200, "a name that is no UTF-8 is nobody's business either"
        assert answer.status_code == 200, answer.text
        sent = json.loads(asked(backend)[0].body)
        assert sent == {"model": MODEL, "messages": [{"role": "user", "content": "\ud83d"}]}

    @pytest.mark.parametrize("named", ["llama3", "llama3:latest"])
    async def test_latest_is_said_where_the_server_says_it(self, backend, named):
        backend.models = ["llama3:latest"]
        answers(backend, "/v1/embeddings", body_of(ANSWER))
        async with running_router(endpoints=[{"url": backend.url, "kind": "ollama"}]) as running:
            answer = await post(running, "/v1/embeddings", model=named, dimensions=64)
        assert answer.content == ANSWER
        request = next(request for request in asked(backend) if request.path == "/v1/embeddings")
        assert request.json == {"model": "llama3:latest", "input": ["one", "two"], "dimensions": 64}

    @pytest.mark.parametrize("type", ["application/json", "text/event-stream; charset=utf-8", "audio/x-odd", None])
    async def test_the_type_of_the_answer_is_the_backends(self, served, backend, type):
        answers(backend, CHAT, body_of(b"\x00\xff not text", headers={"Content-Type": type} if type else {}))
        answer = await post(served)
        assert answer.content == b"\x00\xff not text"
        assert answer.headers["content-type"] == (type or "application/json")
        assert answer.headers["x-nomyo-endpoint"] == backend.url.removeprefix("http://")

    async def test_the_query_and_the_keys_of_a_client_stay_with_us(self, backend):
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "api_key": "theirs", "headers": {"X-Team": "a"}}
        async with running_router(endpoints=[endpoint], api_key="ours") as running:
            assert (await post(running)).status_code == 200
        headers = asked(backend)[0].headers
        assert (headers["authorization"], headers["x-team"]) == ("Bearer theirs", "a")
        assert headers["content-type"] == "application/json"
        assert not any("ours" in value for value in headers.values()), "the router's key has left the house"


def _pairs(body: bytes) -> list[tuple[str, Any]]:
    """The members of an object, numbers as they are spelled."""
    pairs: list[tuple[str, Any]] = json.loads(
        body, object_pairs_hook=lambda pairs: list(pairs), parse_int=str, parse_float=str
    )
    return pairs


class TestStreams:
    WRITES = (
        b": hello, a comment\n\n",
        chunk({"role": "assistant", "content": "H\u00e9"}),
        b"event: odd\r\nid: 7\r\nretry: 10\r\ndata: {not json}\r\n\r\n",
        b'data: {"half',
        b' a frame"\xe2',
        b"\x80\xa8}\n\n:\n\n",
        chunk({}, finish_reason="stop"),
        b"data: [DONE]\n\n",
        b": behind the end\n\n",
    )

    @pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
    async def test_each_write_arrives_before_the_next_is_made(self, served, backend, path):
        gates = [asyncio.Event() for _ in self.WRITES]
        gated = [step for gate, written in zip(gates, self.WRITES, strict=True) for step in (until(gate), written)]
        answers(backend, path, stream(*gated))
        body = {"model": MODEL, **DOORS[path], "stream": True}
        gates[0].set()
        async with served.http.stream("POST", path, json=body) as answer, soon():
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["x-accel-buffering"] == "no"
            assert "content-length" not in answer.headers
            received = answer.aiter_raw()
            for number, written in enumerate(self.WRITES):
                gates[number].set()
                assert await anext(received) == written, f"write {number}"
            assert await anext(received, None) is None
        await quiet(served, backend)

    async def test_in_pieces_of_any_size(self, served, backend):
        whole = b"".join(self.WRITES)
        for size in (1, 2, 7, 1000):
            answers(backend, CHAT, stream(*pieces(whole, size)))
            assert (await post(served, stream=True)).content == whole, f"in pieces of {size}"

    async def test_a_slow_reader_slows_the_backend(self, served, backend):
        """What nobody reads is not heaped up in the router."""
        written = 0
        piece = b": " + b"x" * 65_530 + b"\n\n"

        async def endless(reply: Reply) -> None:
            nonlocal written
            await reply.start(200, SSE_HEADERS)
            while True:
                await reply.write(piece)
                written += len(piece)
                await asyncio.sleep(0)

        answers(backend, CHAT, endless)
        async with opened(served):
            before = -1
            async with soon():
                while before != written:
                    before = written
                    await asyncio.sleep(0.1)
                    assert written < 40_000_000, "the backend may write as much as it likes"
        await quiet(served, backend)


class TestOpenAIClient:
    """The official client, unmodified."""

    async def test_chat(self, served, backend):
        backend.script(chat("Hello there", usage=chat_usage(5, 2, cached=3)))
        completion = await served.openai.chat.completions.create(
            model=MODEL, messages=HELLO, seed=7, extra_body={"top_k": 3, "chat_template_kwargs": {"thinking": False}}
        )
        assert completion.choices[0].message.content == "Hello there"
        assert completion.usage.prompt_tokens_details.cached_tokens == 3
        sent = backend.turns[0].json
        assert sent == {
            "model": MODEL,
            "messages": HELLO,
            "seed": 7,
            "top_k": 3,
            "chat_template_kwargs": {"thinking": False},
        }

    async def test_chat_as_a_stream(self, served, backend):
        backend.script(chat("Hello there"))
        stream = await served.openai.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(said) == "Hello there"
        assert chunks[-1].usage.total_tokens == 10

    @pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
    async def test_tools(self, served, backend, streaming):
        backend.script(chat(call("get_weather", {"city": "Oslo"}, id="call_7")))
        function = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
        params: Json = {"model": MODEL, "messages": HELLO, "tools": [{"type": "function", "function": function}]}
        if streaming:
            async with served.openai.chat.completions.stream(**params) as events:
                completion = await events.get_final_completion()
        else:
            completion = await served.openai.chat.completions.create(**params)
        (made,) = completion.choices[0].message.tool_calls
        assert (made.id, made.function.name, orjson.loads(made.function.arguments)) == (
            "call_7",
            "get_weather",
            {"city": "Oslo"},
        )
        assert backend.turns[0].json["tools"][0]["function"]["name"] == "get_weather"

    async def test_parse(self, served, backend):
        class Person(BaseModel):
            name: str
            age: int

        backend.script(chat('{"name": "Ada", "age": 36}'))
        completion = await served.openai.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Person)
        assert completion.choices[0].message.parsed == Person(name="Ada", age=36)
        assert backend.turns[0].json["response_format"]["json_schema"]["name"] == "Person"

    async def test_completions(self, served, backend):
        answered = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "text": " upon a time", "finish_reason": "stop", "logprobs": None}],
            "usage": chat_usage(1, 3),
        }
        answers(backend, "/v1/completions", json_answer(answered))
        completion = await served.openai.completions.create(model=MODEL, prompt="Once", suffix=".")
        assert completion.choices[0].text == " upon a time"
        assert asked(backend)[0].json == {"model": MODEL, "prompt": "Once", "suffix": "."}

    async def test_embeddings(self, served, backend):
        """The client asks for base64, and takes it apart."""
        data = [{"object": "embedding", "index": 0, "embedding": "AACAPwAAAEA="}]
        answered = {"object": "list", "data": data, "model": MODEL, "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        answers(backend, "/v1/embeddings", json_answer(answered))
        embeddings = await served.openai.embeddings.create(model=MODEL, input="one")
        assert embeddings.data[0].embedding == [1.0, 2.0]
        assert asked(backend)[0].json == {"model": MODEL, "input": "one", "encoding_format": "base64"}

    async def test_models(self, served):
        assert [model.id async for model in served.openai.models.list()] == [MODEL]
        assert (await served.openai.models.retrieve(MODEL)).id == MODEL

    async def test_errors_have_its_classes(self, served, backend):
        with pytest.raises(openai.NotFoundError) as unknown:
            await served.openai.chat.completions.create(model="nobody", messages=HELLO)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        backend.script(http_error(400, "temperature must be below 2"))
        with pytest.raises(openai.BadRequestError, match="temperature must be below 2"):
            await served.openai.chat.completions.create(model=MODEL, messages=HELLO, temperature=3)
        backend.script(chat("Hello", then=cut()))
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in await served.openai.chat.completions.create(model=MODEL, messages=HELLO, stream=True):
                pass


def usage_of(prompt: int, completion: int) -> bytes:
    details = b'{"cached_tokens":2,"audio":{"n":[1,{"x":{}}]}}'
    return b'"usage": {"prompt_tokens_details":%b, "prompt_tokens": %d, "completion_tokens":%d}' % (
        details,
        prompt,
        completion,
    )


class TestUsage:
    SAYS = b'{"choices":[{"text":"\\"usage\\": {\\"prompt_tokens\\": 999}"}],'

    @pytest.mark.parametrize(
        ("path", "body", "counted"),
        [
            (CHAT, SAYS + usage_of(7, 3) + b"}", (7, 3)),
            (CHAT, SAYS + usage_of(7, 3) + b', "timings": {"predicted_n": 3}, "id": "x"}\n', (7, 3)),
            ("/v1/completions", b"{" + usage_of(7, 3) + b',"choices":[]}', (7, 3)),
            ("/v1/embeddings", b'{"data":[],"usage":{"prompt_tokens":4,"total_tokens":4}}', (4, 0)),
            ("/v1/rerank", b'{"results":[],"usage":{"prompt_tokens":9,"total_tokens":9}}', (9, 0)),
            (CHAT, b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"completion_tokens_details":null}}', (1, 2)),
            (CHAT, SAYS + b'"usage":null, "timings": {"prompt_tokens": 5}}', (0, 0)),
            (CHAT, SAYS + b'"usage":{"prompt_tokens":"many"}}', (0, 0)),
            (CHAT, SAYS + b'"id":"x"}', (0, 0)),
            (CHAT, b'"usage"', (0, 0)),
            (CHAT, b'{"usage":{"prompt_tokens":', (0, 0)),
        ],
    )
    async def test_of_a_whole_answer(self, served, backend, path, body, counted):
        answers(backend, path, body_of(body))
        assert (await post(served, path)).content == body
        assert tokens(served) == counted

    @pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
    async def test_that_comes_before_a_long_list(self, served, backend, path):
        """llama.cpp says first what it used, then what it made of it."""
        body = b'{"model":"m","object":"list","usage":{"prompt_tokens":6,"total_tokens":6},"data":[%b]}' % (
            b"0.5," * 50_000
        )
        answers(backend, path, body_of(body))
        assert (await post(served, path)).content == body
        assert tokens(served) == (6, 0)

    @pytest.mark.parametrize("size", [1, 13, 4096], ids=lambda size: f"reads of {size}")
    async def test_of_a_stream_is_found_across_reads(self, served, backend, size):
        said = b"".join(chunk({"content": word}, usage=None) for word in ("Hel", "lo"))
        whole = said + b"data: {" + usage_of(11, 5) + b"}\n\n" + DONE
        answers(backend, CHAT, stream(*pieces(whole, size)))
        assert (await post(served, stream=True)).content == whole
        assert tokens(served) == (11, 5)

    async def test_of_a_stream_that_counts_all_along_is_the_last(self, served, backend):
        chunks = [chunk({"content": "x"}, usage=chat_usage(11, n)) for n in range(1, 6)]
        answers(backend, CHAT, stream(*chunks, DONE))
        await post(served, stream=True)
        assert tokens(served) == (11, 5)

    async def test_of_a_stream_without_any(self, served, backend):
        answers(backend, CHAT, chat("Hello", usage=None))
        await post(served, stream=True)
        assert tokens(served) == (0, 0)

    async def test_adds_up_and_is_in_the_metrics(self, served, backend):
        answers(backend, CHAT, chat("Hello", usage=chat_usage(7, 3)))
        answers(backend, "/v1/embeddings", json_answer({"usage": {"prompt_tokens": 4, "total_tokens": 4}}))
        await post(served)
        await post(served, stream=True, stream_options={"include_usage": True})
        await post(served, "/v1/embeddings")
        assert tokens(served) == (18, 6)
        metrics = (await served.http.get("/metrics")).text
        assert 'nomyo_tokens_total{direction="input",model="test-model"} 18.0\n' in metrics, metrics
        assert 'nomyo_tokens_total{direction="output",model="test-model"} 6.0\n' in metrics, metrics
        assert 'nomyo_requests_total{endpoint="' in metrics, "the requests are not counted"


def tokens(running: Running) -> tuple[int, int]:
    """What was counted of the model's tokens, input and output."""
    counted = running.app.state.telemetry.tokens
    return counted[MODEL, "input"], counted[MODEL, "output"]


class TestWhereItGoes:
    async def test_a_server_without_the_door_is_never_asked(self, stack: AsyncExitStack):
        lacking, having = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
        answers(having, "/v1/rerank", body_of(ANSWER))
        endpoints = [
            {"url": lacking.url, "kind": "ollama", "priority": -1},
            {"url": f"{having.url}/v1", "kind": "openai-chat", "max_concurrent": 1},
        ]
        running = await stack.enter_async_context(running_router(endpoints=endpoints))
        results = await asyncio.gather(*(post(running, "/v1/rerank") for _ in range(10)))
        assert [answer.content for answer in results] == [ANSWER] * 10
        # Not even when the one that has it fails.
        answers(having, "/v1/rerank", http_error(500, "out of order"))
        assert_error(await post(running, "/v1/rerank"), 502, says="out of order")
        assert not [request for request in lacking.requests if request.path == "/v1/rerank"]
        # Its other doors are open.
        assert (await post(running)).headers["x-nomyo-endpoint"] == lacking.url.removeprefix("http://")

    async def test_what_begins_alike_goes_where_its_like_was(self, stack: AsyncExitStack):
        running = await self.twins(stack)
        system = {"role": "system", "content": "You are terse."}
        places = set()
        for n in range(12):
            conversation = [system, {"role": "user", "content": "Q" * 2000}, {"role": "user", "content": f"{n}"}]
            places.add((await post(running, messages=conversation)).headers["x-nomyo-endpoint"])
        assert len(places) == 1, "one conversation was at two servers"
        prompts = {
            (await post(running, "/v1/completions", prompt="P" * n)).headers["x-nomyo-endpoint"] for n in range(24)
        }
        assert len(prompts) == 2, "different prompts went to one server"

    async def test_a_prompt_cache_key_is_surer(self, stack: AsyncExitStack):
        running = await self.twins(stack)
        places = set()
        for n in range(12):
            answer = await post(running, messages=[{"role": "user", "content": f"{n}"}], prompt_cache_key="team a")
            places.add(answer.headers["x-nomyo-endpoint"])
        assert len(places) == 1

    async def test_what_has_no_beginning_goes_anywhere(self, stack: AsyncExitStack):
        running = await self.twins(stack)
        places = {(await post(running, "/v1/embeddings")).headers["x-nomyo-endpoint"] for _ in range(24)}
        assert len(places) == 2, "embeddings have no warm prompt, and were all sent to one server"

    async def twins(self, stack: AsyncExitStack) -> Running:
        """A router before two backends that are equal."""
        both = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
        for backend in both:
            for path in DOORS:
                answers(backend, path, body_of(ANSWER))
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"} for backend in both]
        return await stack.enter_async_context(running_router(endpoints=endpoints))


class TestLargeBodies:
    async def test_go_through_without_a_heap_of_copies(self, served, backend):
        size = 20 * 1024 * 1024
        sent = b'{"model":"test-model","messages":[{"role":"user","content":"%b"}]}' % (
            b"0123456789abcdef" * (size // 16)
        )
        backend.default = body_of(sent)
        tracemalloc.start()
        try:
            answer = await post_bytes(served, sent)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert answer.content == sent
        assert backend.turns[0].body == sent
        # The fake backend and the client, in this process, hold two copies each.
        assert peak < 7 * size, f"{peak / size:.1f} times the body"


@pytest.mark.parametrize("second", ["Model", "MODEL", "model", "mod\\u0065l"])
def test_a_second_model_is_refused_in_any_case_where_a_key_may_use_only_some(second: str) -> None:
    """Some servers take the one or the other, whose model nobody has looked at."""
    with pytest.raises(InvalidRequest, match="once"):
        check_names(f'{{"model": "test-model", "messages": [], "{second}": "another"}}'.encode(), ["model"])
    check_names(b'{"model": "test-model", "messages": [{"content": "x", "Model": 1, "model": 2}]}', ["model"])
