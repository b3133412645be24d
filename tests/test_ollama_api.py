"""Ollama's API on real sockets, with the official Ollama client as judge: in front of a chat server, and of an
Ollama."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import ollama
import orjson
import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    Reply,
    call,
    chat,
    chunk,
    cut,
    http_error,
    json_answer,
    reasoning,
    sse_error,
    stall,
    stream,
    with_logprobs,
)
from tests.turns import eventually

pytestmark = pytest.mark.usefixtures("strict_backend")

Json = dict[str, Any]
ClientOf = Callable[..., ollama.AsyncClient]

MODEL = "test-model"
USER = {"role": "user", "content": "Hi."}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"Sun in {city}."


@pytest.fixture
async def served(backend: FakeBackend) -> AsyncIterator[Running]:
    async with running_router(endpoints=[{"url": backend.url, "kind": "lmstudio"}]) as running:
        yield running
        assert running.in_flight() == 0, "a slot was not given back"


@pytest.fixture
async def client_of(stack: AsyncExitStack) -> ClientOf:
    """Makes a client of a router, closed after the test."""

    def make(running: Running, **headers: str) -> ollama.AsyncClient:
        client = ollama.AsyncClient(host=running.url, headers=headers, verify=False, timeout=None)
        stack.push_async_callback(client.close)
        return client

    return make


@pytest.fixture
async def client(served: Running, client_of: ClientOf) -> ollama.AsyncClient:
    return client_of(served)


async def parts_of(answer: Any) -> list[Any]:
    return [part async for part in await answer]


class TestChat:
    async def test_an_answer(self, backend, client):
        backend.script(chat(reasoning("Hm."), "Hello you."))
        answer = await client.chat(MODEL, [USER])
        assert (answer.message.role, answer.message.content, answer.message.thinking) == (
            "assistant",
            "Hello you.",
            "Hm.",
        )
        assert (answer.model, answer.done, answer.done_reason) == (MODEL, True, "stop")
        assert (answer.prompt_eval_count, answer.eval_count) == (7, 3)
        assert answer.eval_duration > 0

    async def test_a_stream(self, backend, client):
        backend.script(chat(reasoning("Hm, hm."), "Hello you there."))
        parts = await parts_of(client.chat(MODEL, [USER], stream=True))
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert "".join(part.message.content for part in parts) == "Hello you there."
        assert "".join(part.message.thinking or "" for part in parts) == "Hm, hm."
        assert len(parts) > 3, "it did not come piece by piece"
        assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 3)

    async def test_whoever_says_nothing_of_streams_gets_one(self, backend, served):
        backend.script(chat("Hello you."))
        answer = await served.http.post("/api/chat", json={"model": MODEL, "messages": [USER], "tools": []})
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["x-nomyo-model"] == MODEL
        lines = [orjson.loads(line) for line in answer.text.splitlines()]
        assert "".join(line["message"]["content"] for line in lines) == "Hello you."
        assert lines[-1]["done"] is True

    @pytest.mark.parametrize("streams", [False, True])
    async def test_a_tool_round_trip(self, backend, client, streams):
        backend.script(chat(call("get_weather", {"city": "Paris"}), call("get_weather", {"city": "Rome"})))
        messages: list[Any] = [{"role": "user", "content": "The weather?"}]
        asked = client.chat(MODEL, messages, tools=[get_weather], stream=streams)
        parts = await parts_of(asked) if streams else [await asked]
        calls = [called for part in parts for called in part.message.tool_calls or ()]
        assert [called.function.arguments for called in calls] == [{"city": "Paris"}, {"city": "Rome"}]
        (tool,) = backend.turns[0].json["tools"]
        assert tool["function"]["parameters"]["required"] == ["city"]

        said = next(part.message for part in parts if part.message.tool_calls)
        said.tool_calls = [called for part in parts for called in part.message.tool_calls or ()]
        outputs = [get_weather(**called.function.arguments) for called in calls]
        messages += [said, *({"role": "tool", "tool_name": "get_weather", "content": text} for text in outputs)]
        backend.script(chat("It shines."))
        assert (await client.chat(MODEL, messages, tools=[get_weather])).message.content == "It shines."
        _, assistant, first, second = backend.turns[1].json["messages"]
        assert [call["id"] for call in assistant["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
        assert [first["content"], second["content"]] == ["Sun in Paris.", "Sun in Rome."]

    async def test_images_formats_options_and_thinking_arrive(self, backend, client):
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        backend.script(chat('{"name": "Al"}'))
        answer = await client.chat(
            MODEL,
            [{"role": "user", "content": "Who?", "images": [PNG]}],
            format=schema,
            options={"num_predict": 9, "top_k": 3, "stop": ["x"], "num_ctx": 512},
            think="low",
            keep_alive="5m",
        )
        assert answer.message.content == '{"name": "Al"}'
        sent = backend.turns[0].json
        assert sent["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
        assert sent["response_format"]["json_schema"]["schema"] == schema
        assert (sent["max_tokens"], sent["top_k"], sent["stop"], sent["reasoning_effort"]) == (9, 3, ["x"], "low")
        assert not sent.keys() & {"num_ctx", "keep_alive", "options", "format", "think", "store", "input"}

    async def test_options_that_the_server_does_not_get_are_named(self, served):
        options = {"num_ctx": 512, "temperature": 0, "numa": True}
        answer = await served.http.post("/api/chat", json={"model": MODEL, "messages": [USER], "options": options})
        assert answer.headers["x-nomyo-omitted-options"] == "num_ctx, numa"

    async def test_log_probabilities(self, backend, client):
        backend.script(chat(with_logprobs("Hello you")))
        answer = await client.chat(MODEL, [USER], logprobs=True, top_logprobs=1)
        assert [entry.token for entry in answer.logprobs] == ["Hello", " you"]
        assert backend.turns[0].json["top_logprobs"] == 1

    async def test_a_limit(self, backend, client):
        backend.script(chat("Hello", finish_reason="length"))
        assert (await client.chat(MODEL, [USER])).done_reason == "length"

    async def test_thoughts_in_tags(self, backend, client):
        backend.script(chat("<think>Hm. </think>Hello."))
        answer = await client.chat(MODEL, [USER])
        assert (answer.message.thinking, answer.message.content) == ("Hm. ", "Hello.")

    async def test_a_server_that_streams_always_gives_whole_answers_too(
        self, stack: AsyncExitStack, backend, client_of
    ):
        running = await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "llama.cpp"}]))
        backend.script(chat("Hello you."))
        answer = await client_of(running).chat(MODEL, [USER])
        assert answer.message.content == "Hello you."
        assert backend.turns[0].json["stream"] is True

    async def test_a_server_of_responses_is_asked_for_a_chat(self, stack: AsyncExitStack, backend, client_of):
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai"}
        running = await stack.enter_async_context(running_router(endpoints=[endpoint]))
        backend.script(chat("Hello you."))
        answer = await client_of(running).chat(MODEL, [USER], options={"seed": 1, "stop": ["x"]})
        assert answer.message.content == "Hello you."
        assert (backend.turns[0].path, backend.turns[0].json["seed"]) == ("/v1/chat/completions", 1)

    async def test_a_server_that_cannot_hold_a_format_gets_it_in_words(self, stack: AsyncExitStack, backend, client_of):
        endpoint = {"url": backend.url, "kind": "lmstudio", "structured_outputs": "prompt"}
        running = await stack.enter_async_context(running_router(endpoints=[endpoint]))
        backend.script(chat("Sure: 1"), chat('{"a": 1}'))
        answer = await client_of(running).chat(MODEL, [USER], format="json")
        assert answer.message.content == '{"a": 1}'
        assert "response_format" not in backend.turns[0].json

    async def test_a_chat_that_is_too_long_loses_its_oldest_turns(self, backend, client):
        overflow = http_error(
            400, "the request exceeds the available context size (20 tokens)", type="exceed_context_size_error"
        )
        backend.script(overflow, chat("Hello."))
        turns = [{**USER, "content": "word " * 40}, {"role": "assistant", "content": "word " * 40}, USER]
        assert (await client.chat(MODEL, turns)).message.content == "Hello."
        assert backend.turns[-1].json["messages"] == [USER]

    async def test_no_messages_load_the_model_and_ask_nothing(self, backend, client):
        assert (await client.chat(MODEL, [])).done_reason == "load"
        assert backend.turns == []


LM_STUDIOS = {"models": [{"key": MODEL, "loaded_instances": [{"id": f"{MODEL}:2"}, {"id": MODEL}]}]}


class TestUnloading:
    @pytest.mark.parametrize(
        ("kind", "listings", "path", "bodies"),
        [
            (
                "ollama",
                {"/api/ps": {"models": [{"name": MODEL}]}},
                "/api/generate",
                [{"model": MODEL, "keep_alive": 0}],
            ),
            (
                "llama.cpp",
                {"/v1/models": {"data": [{"id": MODEL, "status": {"value": "loaded"}}]}, "/props": {"role": "router"}},
                "/models/unload",
                [{"model": MODEL}],
            ),
            (
                "llama-swap",
                {"/running": {"running": [{"model": MODEL, "state": "ready"}]}},
                f"/api/models/unload/{MODEL}",
                [{}],
            ),
            (
                "lmstudio",
                {"/api/v1/models": LM_STUDIOS},
                "/api/v1/models/unload",
                [{"instance_id": f"{MODEL}:2"}, {"instance_id": MODEL}],
            ),
        ],
    )
    async def test_a_keep_alive_of_zero_unloads_where_the_server_can(
        self, stack: AsyncExitStack, backend, client_of, kind, listings, path, bodies
    ):
        backend.routes |= {f"GET {where}": json_answer(listing) for where, listing in listings.items()}
        backend.routes[f"POST {path}"] = json_answer({"success": True})
        running = await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": kind}]))
        client = client_of(running)
        assert [model.model for model in (await client.ps()).models] == [MODEL]
        (part,) = await parts_of(client.generate(MODEL, "", keep_alive=0, stream=True))
        assert (part.done, part.done_reason) == (True, "unload")
        assert (await client.ps()).models == []
        asked = [request for request in backend.requests if request.method == "POST"]
        assert [request.path for request in asked] == [path] * len(bodies)
        assert all(request.json.items() >= body.items() for request, body in zip(asked, bodies, strict=True))
        assert (await client.chat(MODEL, [], keep_alive="0s")).done_reason == "unload"
        assert len([request for request in backend.requests if request.method == "POST"]) == len(bodies)

    @pytest.mark.parametrize("kind", ["vllm", "openai-chat", "llama.cpp", "lmstudio", "llama-swap"])
    async def test_it_is_a_501_where_the_server_cannot(self, stack: AsyncExitStack, backend, client_of, kind):
        url = f"{backend.url}/v1" if kind == "openai-chat" else backend.url
        backend.routes["GET /running"] = json_answer({"running": [{"model": MODEL, "state": "ready"}]})
        running = await stack.enter_async_context(running_router(endpoints=[{"url": url, "kind": kind}]))
        for ask in (client_of(running).generate, client_of(running).chat):
            with pytest.raises(ollama.ResponseError, match="cannot take it out of memory") as caught:
                await ask(MODEL, keep_alive=0)
            assert caught.value.status_code == 501
        assert backend.turns == []

    async def test_it_leaves_every_server_that_has_it(self, stack: AsyncExitStack, backend, client_of):
        other = await stack.enter_async_context(FakeBackend())
        for one in (backend, other):
            one.routes["GET /api/ps"] = json_answer({"models": [{"name": MODEL}]})
            one.routes["POST /api/generate"] = json_answer({"done": True})
        endpoints = [{"url": one.url, "kind": "ollama"} for one in (backend, other)]
        client = client_of(await stack.enter_async_context(running_router(endpoints=endpoints)))
        assert (await client.generate(MODEL, keep_alive=0)).done_reason == "unload"
        assert [one.requests[-1].path for one in (backend, other)] == ["/api/generate"] * 2

    async def test_what_asks_something_is_answered(self, backend, client):
        backend.script(chat("Hello."))
        assert (await client.chat(MODEL, [USER], keep_alive=0)).message.content == "Hello."

    async def test_a_model_that_nobody_has(self, client):
        with pytest.raises(ollama.ResponseError) as caught:
            await client.generate("nope", keep_alive=0)
        assert (caught.value.error, caught.value.status_code) == ("model 'nope' not found", 404)


class TestGenerate:
    async def test_an_answer(self, backend, client):
        backend.script(chat(reasoning("Hm."), "Four."))
        answer = await client.generate(MODEL, "2+2?", system="Be brief.", think=True)
        assert (answer.response, answer.thinking, answer.done_reason) == ("Four.", "Hm.", "stop")
        assert [message["role"] for message in backend.turns[0].json["messages"]] == ["system", "user"]

    async def test_a_stream(self, backend, client):
        backend.script(chat("Four and more."))
        parts = await parts_of(client.generate(MODEL, "2+2?", stream=True))
        assert "".join(part.response for part in parts) == "Four and more."
        assert parts[-1].done
        assert len(parts) > 2

    async def test_what_a_chat_server_cannot_do_is_a_400(self, backend, client):
        for extra in ({"suffix": "}"}, {"raw": True}, {"template": "{{ .Prompt }}"}, {"context": [1]}):
            with pytest.raises(ollama.ResponseError, match=f"'{next(iter(extra))}' cannot be given") as caught:
                await client.generate(MODEL, "def f", **extra)
            assert caught.value.status_code == 400
        assert backend.turns == []


class TestEmbeddings:
    async def test_vectors(self, backend, client):
        rows = [{"index": 1, "embedding": [0.5, 1]}, {"index": 0, "embedding": [0.25, 2]}]
        backend.routes["POST /v1/embeddings"] = json_answer({"data": rows, "usage": {"prompt_tokens": 4}})
        answer = await client.embed(MODEL, ["a", "b"], dimensions=2)
        assert answer.embeddings == [[0.25, 2], [0.5, 1]]
        assert (answer.model, answer.prompt_eval_count) == (MODEL, 4)
        assert backend.requests[-1].json == {"model": MODEL, "input": ["a", "b"], "dimensions": 2}

    async def test_the_older_route(self, backend, client):
        backend.routes["POST /v1/embeddings"] = json_answer({"data": [{"embedding": [0.25, 2]}]})
        assert (await client.embeddings(MODEL, "a")).embedding == [0.25, 2]

    async def test_no_text_has_no_vector(self, backend, client):
        assert (await client.embed(MODEL, "")).embeddings == []
        assert (await client.embeddings(MODEL, "")).embedding == []
        assert backend.requests[-1].method == "GET"

    async def test_a_refusal(self, backend, client):
        backend.routes["POST /v1/embeddings"] = http_error(400, "no embeddings here")
        with pytest.raises(ollama.ResponseError, match="no embeddings here") as caught:
            await client.embed(MODEL, "a")
        assert caught.value.status_code == 400

    async def test_a_server_that_cannot_embed(self, backend, served, client):
        # llama.cpp without --embeddings.
        words = "This server does not support embeddings."
        backend.routes["POST /v1/embeddings"] = http_error(501, words, type="not_supported_error")
        for _ in range(4):
            with pytest.raises(ollama.ResponseError, match=words) as caught:
                await client.embed(MODEL, "a")
        assert caught.value.status_code in (400, 501)
        assert (await client.chat(MODEL, [USER])).message.content, "it chats as before"
        (endpoint,) = served.app.state.pool.endpoints.values()
        assert endpoint.outcomes["failed"] == 0


class TestModels:
    async def test_list(self, backend, client):
        (model,) = (await client.list()).models
        assert (model.model, model.size, model.modified_at, model.details.families) == (MODEL, None, None, None)
        assert len(model.digest) == 64

    async def test_ps_has_what_is_loaded(self, backend, client):
        assert (await client.ps()).models == []
        await client.chat(MODEL, [USER])
        (model,) = (await client.ps()).models
        assert (model.model, model.name, model.context_length) == (MODEL, MODEL, None)
        assert (model.expires_at, model.size_vram) == (None, None)

    async def test_show(self, stack: AsyncExitStack, backend, client_of):
        backend.routes["GET /v1/models"] = json_answer({"data": [{"id": MODEL, "max_model_len": 4096}]})
        running = await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]))
        shown = await client_of(running).show(MODEL)
        assert shown.capabilities == ["completion", "tools"]
        assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] == 4096

    @pytest.mark.parametrize(
        ("kind", "listings", "capabilities"),
        [
            (
                "llama.cpp",
                {
                    "/v1/models": {"data": [{"id": MODEL}]},
                    "/props": {
                        "modalities": {"vision": True, "audio": True},
                        "chat_template_caps": {"supports_tools": False},
                        "chat_template": "{% if enable_thinking %}",
                    },
                },
                ["completion", "vision", "audio", "thinking"],
            ),
            (
                "llama.cpp",
                {
                    "/v1/models": {
                        "data": [
                            {
                                "id": MODEL,
                                "status": {"value": "unloaded"},
                                "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
                            }
                        ]
                    }
                },
                ["completion", "tools", "vision"],
            ),
            (
                "vllm",
                {"/v1/models": {"data": [{"id": MODEL, "architecture": {"output_modalities": ["embeddings"]}}]}},
                ["embedding"],
            ),
            ("lmstudio", {"/api/v1/models": {"models": [{"key": MODEL, "type": "embedding"}]}}, ["embedding"]),
            (
                "lmstudio",
                {
                    "/api/v1/models": {
                        "models": [
                            {
                                "key": MODEL,
                                "type": "llm",
                                "capabilities": {
                                    "vision": True,
                                    "trained_for_tool_use": False,
                                    "reasoning": {"default": "on"},
                                },
                            }
                        ]
                    }
                },
                ["completion", "vision", "thinking"],
            ),
            ("lmstudio", {"/api/v0/models": {"data": [{"id": MODEL, "type": "embeddings"}]}}, ["embedding"]),
            (
                "lmstudio",
                {"/api/v0/models": {"data": [{"id": MODEL, "type": "vlm"}]}},
                ["completion", "tools", "vision"],
            ),
        ],
    )
    async def test_show_says_what_the_server_says_that_the_model_can(
        self, stack: AsyncExitStack, backend, client_of, kind, listings, capabilities
    ):
        backend.routes |= {f"GET {where}": json_answer(listing) for where, listing in listings.items()}
        running = await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": kind}]))
        assert (await client_of(running).show(MODEL)).capabilities == capabilities

    async def test_list_says_what_the_server_says(self, stack: AsyncExitStack, backend, client_of):
        meta = {"n_params": 134515008, "size": 96576768, "ftype": "Q4_1"}
        backend.routes["GET /v1/models"] = json_answer({"data": [{"id": MODEL, "meta": meta}]})
        running = await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "llama.cpp"}]))
        (model,) = (await client_of(running).list()).models
        details = model.details
        assert (model.size, details.parameter_size, details.quantization_level) == (96576768, "134.52M", "Q4_1")

    async def test_the_version_is_new_enough_for_codex(self, served):
        version = (await served.http.get("/api/version")).json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 13, 4)

    async def test_models_are_not_changed_here(self, client):
        for ask in (client.pull, client.push, client.delete):
            with pytest.raises(ollama.ResponseError, match="not changed here") as caught:
                await ask(MODEL)
            assert caught.value.status_code == 501
        with pytest.raises(ollama.ResponseError, match="not changed here"):
            await parts_of(client.pull(MODEL, stream=True))


class TestErrors:
    async def test_a_model_that_nobody_has(self, client):
        for ask in (
            client.chat("nope", [USER]),
            client.generate("nope", "Hi."),
            client.embed("nope", "Hi."),
            client.embeddings("nope", "Hi."),
            client.show("nope"),
            parts_of(client.chat("nope", [USER], stream=True)),
        ):
            with pytest.raises(ollama.ResponseError) as caught:
                await ask
            assert (caught.value.error, caught.value.status_code) == ("model 'nope' not found", 404)

    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"{}", b'{"model": 1}', b'{"model": ""}', b'{"model": "m", "x": "\\ud']
    )
    @pytest.mark.parametrize("path", ["chat", "generate", "embed", "embeddings", "show"])
    async def test_what_is_no_request(self, served, path, body):
        answer = await served.http.post(f"/api/{path}", content=body)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), answer.text
        assert isinstance(answer.json()["error"], str)

    async def test_a_bad_message_says_where_it_is(self, client):
        with pytest.raises(ollama.ResponseError, match=r"messages\[0\]\.images\[0\]: illegal base64") as caught:
            await client.chat(MODEL, [{"role": "user", "content": "Look.", "images": ["no base64!"]}])
        assert caught.value.status_code == 400

    async def test_what_the_server_refuses_keeps_its_words(self, backend, client):
        backend.script(http_error(400, "I do not like this."))
        with pytest.raises(ollama.ResponseError, match="I do not like this") as caught:
            await client.chat(MODEL, [USER])
        assert caught.value.status_code == 400

    async def test_busy_says_when_to_come_back(self, backend, served):
        backend.script(http_error(429, "busy", headers={"Retry-After": "7"}))
        answer = await served.http.post("/api/chat", json={"model": MODEL, "messages": [USER]})
        assert (answer.status_code, answer.headers["retry-after"], answer.json()) == (429, "7", {"error": "busy"})

    @pytest.mark.parametrize("end", [cut(), sse_error("the GPU is gone")])
    async def test_an_error_in_the_middle_is_a_line(self, backend, client, end):
        backend.script(chat("Hello", then=end))
        parts = []
        answer = await client.chat(MODEL, [USER], stream=True)
        parts.append(await anext(answer))
        with pytest.raises(ollama.ResponseError):
            parts.append(await anext(answer))
        assert [part.message.content for part in parts] == ["Hello"]

    async def test_an_error_in_the_middle_of_a_whole_answer_is_a_status(
        self, stack: AsyncExitStack, backend, client_of
    ):
        running = await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "llama.cpp"}]))
        backend.default = chat("Hello", then=cut())
        with pytest.raises(ollama.ResponseError) as caught:
            await client_of(running).chat(MODEL, [USER])
        assert caught.value.status_code == 502

    async def test_the_key_of_the_router(self, stack: AsyncExitStack, backend, client_of):
        running = await stack.enter_async_context(
            running_router(endpoints=[{"url": backend.url, "kind": "lmstudio"}], api_key="secret")
        )
        with pytest.raises(ollama.ResponseError) as caught:
            await client_of(running).list()
        assert caught.value.status_code == 401
        assert (await client_of(running, Authorization="Bearer secret").list()).models

    @pytest.mark.parametrize(
        ("method", "path", "key", "status"),
        [
            ("GET", "/api/nothing", "secret", 404),
            ("GET", "/api/chat/x", "secret", 404),
            ("GET", "/api", "secret", 404),
            ("GET", "/api/chat", "secret", 405),
            ("POST", "/api/chat", "wrong", 401),
            ("POST", "/api/nothing", "wrong", 401),
            ("POST", "//api/chat/", "wrong", 401),
            ("HEAD", "/api/nothing", "secret", 404),
        ],
    )
    async def test_errors_outside_the_endpoints_have_ollamas_form(
        self, stack: AsyncExitStack, backend, method, path, key, status
    ):
        endpoints = [{"url": backend.url, "kind": "lmstudio"}]
        running = await stack.enter_async_context(running_router(endpoints=endpoints, api_key="secret"))
        headers = {"Authorization": f"Bearer {key}"}
        answer = await running.http.request(method, running.url + path, headers=headers)
        assert answer.status_code == status
        if method != "HEAD":
            assert list(answer.json()) == ["error"]
            assert isinstance(answer.json()["error"], str)

    async def test_the_routers_own_paths_keep_openais_form(self, served):
        answer = await served.http.post("/api/endpoints")
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "invalid_method")

    async def test_the_faults_of_clients_are_not_the_servers(self, backend, served, client):
        for _ in range(5):
            with pytest.raises(ollama.ResponseError):
                await client.generate(MODEL, "Hi.", raw=True)
        (endpoint,) = served.app.state.pool.endpoints.values()
        assert endpoint.outcomes["failed"] == 0, "three of them would open its breaker"


class TestFleet:
    async def test_a_failure_before_the_first_line_goes_elsewhere(self, stack: AsyncExitStack, backend, client_of):
        other = await stack.enter_async_context(FakeBackend())
        endpoints = [{"url": one.url, "kind": "lmstudio"} for one in (backend, other)]
        endpoints[1]["priority"] = 1
        running = await stack.enter_async_context(running_router(endpoints=endpoints))
        backend.script(http_error(500))
        other.script(chat("Hello from the other."))
        parts = await parts_of(client_of(running).chat(MODEL, [USER], stream=True))
        assert "".join(part.message.content for part in parts) == "Hello from the other."
        assert (len(backend.turns), len(other.turns)) == (1, 1)

    async def test_what_only_an_ollama_can_do_goes_to_one(self, stack: AsyncExitStack, backend, client_of):
        theirs = await stack.enter_async_context(FakeBackend())
        theirs.routes["POST /api/generate"] = json_answer({"response": "Filled.", "done": True})
        endpoints: list[Json] = [
            {"url": backend.url, "kind": "lmstudio"},
            {"url": theirs.url, "kind": "ollama", "priority": 1},
        ]
        client = client_of(await stack.enter_async_context(running_router(endpoints=endpoints)))
        assert (await client.generate(MODEL, "def f", suffix="}")).response == "Filled."
        assert (await client.generate(MODEL, "def f")).response == "Hello from the fake backend."
        assert len(backend.turns) == 1

    async def test_half_an_answer_that_nobody_saw_is_asked_for_again(self, stack: AsyncExitStack, backend, client_of):
        other = await stack.enter_async_context(FakeBackend())
        endpoints: list[Json] = [{"url": one.url, "kind": "llama.cpp"} for one in (backend, other)]
        endpoints[1]["priority"] = 1
        running = await stack.enter_async_context(running_router(endpoints=endpoints))
        backend.script(chat("Half", then=cut()))
        other.script(chat("Whole."))
        assert (await client_of(running).chat(MODEL, [USER])).message.content == "Whole."

    async def test_a_client_that_leaves_frees_the_slot(self, backend, served, client):
        backend.script(stream(chunk({"content": "Hello"}), stall()))
        answer = await client.chat(MODEL, [USER], stream=True)
        assert (await anext(answer)).message.content == "Hello"
        await answer.aclose()
        await backend.wait_for(lambda b: b.aborts == 1)
        await eventually(lambda: served.in_flight() == 0, "the slot is free")

    async def test_a_client_that_leaves_before_the_first_line_does_too(self, backend, served):
        backend.script(stall())
        asking = asyncio.create_task(served.http.post("/api/chat", json={"model": MODEL, "messages": [USER]}))
        await backend.wait_for(lambda b: b.in_flight == 1)
        asking.cancel()
        await backend.wait_for(lambda b: b.aborts == 1)
        await eventually(lambda: served.in_flight() == 0, "the slot is free")

    async def test_tokens_are_counted(self, backend, served, client):
        backend.script(chat("Hello."))
        await client.chat(MODEL, [USER])
        await eventually(lambda: served.app.state.telemetry.tokens[MODEL, "output"] == 3, "the tokens are counted")


# ── in front of an Ollama ────────────────────────────────────────────────────────────────────────────────────────────


def lines(*said: Json | bytes, then: Answer | None = None) -> Answer:
    """Ollama's own stream."""
    data = [line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in said]
    return stream(*data, *([then] if then else []), headers={"Content-Type": "application/x-ndjson"})


def said(text: str, **more: Any) -> Json:
    return {"model": "x", "created_at": "", "message": {"role": "assistant", "content": text}, "done": False, **more}


@pytest.fixture
async def native(backend: FakeBackend) -> AsyncIterator[Running]:
    """A router in front of an Ollama that has `llama3:latest`, `fast` by its other name."""
    backend.models = ["llama3:latest"]
    endpoint = {"url": backend.url, "kind": "ollama", "aliases": {"fast": "llama3:latest"}}
    async with running_router(endpoints=[endpoint]) as running:
        yield running
        assert running.in_flight() == 0, "a slot was not given back"


class TestNative:
    async def test_requests_and_answers_go_through_byte_by_byte(self, backend, native):
        answer = lines(
            said("Hel"), said("lo", odd=[1.0]), b'{"done" : true , "prompt_eval_count": 5, "eval_count":2}\n'
        )
        got: list[bytes] = []
        for path in ("chat", "generate", "embed", "embeddings"):
            backend.routes[f"POST /api/{path}"] = answer
            body = b'{"model":"llama3:latest" , "raw":true,"unknown": 1.0}'
            given = await native.http.post(f"/api/{path}", content=body)
            assert given.headers["content-type"] == "application/x-ndjson"
            assert backend.requests[-1].body == body
            got.append(given.content)
        whole = orjson.dumps(said("Hel")) + b"\n" + orjson.dumps(said("lo", odd=[1.0])) + b"\n"
        assert got == [whole + b'{"done" : true , "prompt_eval_count": 5, "eval_count":2}\n'] * 4
        pool = native.app.state.pool
        assert (pool.telemetry.tokens["llama3:latest", "input"], pool.telemetry.tokens["llama3:latest", "output"]) == (
            20,
            8,
        )

    @pytest.mark.parametrize("name", ["llama3", "fast", "LLama3:Latest", "LLAMA3"])
    async def test_the_ollama_gets_its_own_name_of_the_model(self, backend, native, name, client_of):
        backend.routes["POST /api/chat"] = json_answer(said("Hello.", done=True))
        backend.routes["POST /api/show"] = json_answer({"model_info": {"a": 1}, "capabilities": ["vision"]})
        client = client_of(native)
        assert (await client.chat(name, [USER])).message.content == "Hello."
        assert backend.requests[-1].json == {"model": "llama3:latest", "messages": [USER], "tools": [], "stream": False}
        assert (await client.show(name)).capabilities == ["vision"]
        assert backend.requests[-1].json["model"] == "llama3:latest"

    async def test_the_stream_of_an_ollama(self, backend, native, client_of):
        backend.routes["POST /api/chat"] = lines(said("Hel"), said("lo"), said("", done=True, done_reason="stop"))
        parts = await parts_of(client_of(native).chat("llama3", [USER], stream=True))
        assert [part.message.content for part in parts] == ["Hel", "lo", ""]

    async def test_a_stream_that_breaks_ends_with_an_error(self, backend, native, client_of):
        backend.routes["POST /api/chat"] = lines(said("Hel"), then=cut())
        with pytest.raises(ollama.ResponseError, match="broke off"):
            await parts_of(client_of(native).chat("llama3", [USER], stream=True))

    async def test_half_a_line_is_not_made_part_of_the_error(self, backend, native):
        backend.routes["POST /api/chat"] = lines(said("Hel"), b'{"mess', then=cut())
        given = await native.http.post("/api/chat", json={"model": "llama3", "messages": [USER]})
        *_, half, error = given.content.splitlines()
        assert half == b'{"mess'
        assert list(orjson.loads(error)) == ["error"]

    async def test_what_it_refuses_keeps_its_words(self, backend, native, client_of):
        refusal = {"error": '"llama3" does not support tools'}
        backend.routes["POST /api/chat"] = json_answer(refusal, status=400)
        with pytest.raises(ollama.ResponseError, match="does not support tools") as caught:
            await client_of(native).chat("llama3", [USER], tools=[get_weather])
        assert caught.value.status_code == 400

    async def test_a_model_that_has_gone_is_not_found(self, backend, native, client_of):
        gone = json_answer({"error": "model 'llama3:latest' not found"}, status=404)
        backend.routes |= {"POST /api/chat": gone, "POST /api/show": gone}
        client = client_of(native)
        for ask in (client.chat("llama3", [USER]), client.show("llama3")):
            with pytest.raises(ollama.ResponseError) as caught:
                await ask
            assert (caught.value.error, caught.value.status_code) == ("model 'llama3' not found", 404)

    async def test_an_ollama_that_is_not_ready_is_asked_again(self, backend, native, client_of):
        answers = iter([http_error(503, "loading"), json_answer(said("Hello.", done=True))])

        async def answer(reply: Reply) -> None:
            await next(answers)(reply)

        backend.routes["POST /api/chat"] = answer
        assert (await client_of(native).chat("llama3", [USER])).message.content == "Hello."

    async def test_its_own_questions_are_answered_by_the_router(self, stack: AsyncExitStack, backend, client_of):
        backend.models = ["llama3:latest", "other:1b"]
        backend.routes["GET /api/ps"] = json_answer({"models": [{"name": "llama3:latest", "context_length": 8192}]})
        endpoint = {"url": backend.url, "kind": "ollama", "aliases": {"fast": "llama3:latest"}}
        client = client_of(await stack.enter_async_context(running_router(endpoints=[endpoint])))
        assert {model.model for model in (await client.list()).models} == {"llama3:latest", "fast", "other:1b"}
        running = (await client.ps()).models
        assert {model.model: model.context_length for model in running} == {"llama3:latest": 8192, "fast": 8192}

    async def test_its_rows_go_through(self, stack: AsyncExitStack, backend, client_of):
        details = {"family": "llama", "parameter_size": "8.0B", "quantization_level": "Q4_K_M"}
        row = {"name": "llama3:latest", "size": 5, "digest": "ab" * 32, "modified_at": "2026-01-02T03:04:05Z"}
        run = {"name": "llama3:latest", "size": 7, "size_vram": 6, "expires_at": "2026-01-02T03:09:05Z"}
        backend.routes["GET /api/tags"] = json_answer({"models": [{**row, "details": details, "new": [1]}]})
        backend.routes["GET /api/ps"] = json_answer({"models": [run]})
        endpoint = {"url": backend.url, "kind": "ollama", "aliases": {"fast": "llama3:latest"}}
        router = await stack.enter_async_context(running_router(endpoints=[endpoint]))
        listed = {row["name"]: row for row in (await router.http.get("/api/tags")).json()["models"]}
        for name in ("llama3:latest", "fast"):
            assert listed[name] == {**row, "details": details, "new": [1], "name": name, "model": name}
        first = (await client_of(router).ps()).models[0]
        assert (first.size, first.size_vram, first.digest, first.expires_at.year) == (7, 6, "ab" * 32, 2026)
