"""Requests that a backend refuses, changed so that it takes them: what is changed, where that is named, and what is left
alone."""

import base64
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, ClassVar

import httpx2
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.learned import BELIEVED_S, EVERY_MODEL, MOST, Learned
from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    Reply,
    Request,
    chat,
    chunk,
    http_error,
    json_answer,
    native,
    sse,
    stream,
    strict_error,
)
from tests.sdk import PIXEL, WEATHER_TOOL
from tests.stream_grammar import check_stream, parse_sse
from tests.test_roles import TEMPLATES
from tests.turns import URL, assert_error, eventually, turn

pytestmark = pytest.mark.usefixtures("strict_backend")

Json = dict[str, Any]

ADAPTED = "x-nomyo-adapted"
STREAMING = pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
EVERYTHING = {"tools": True, "images": True, "parameters": True}


@asynccontextmanager
async def router_before(backend: FakeBackend, kind: str = "openai-chat", **settings: Any) -> AsyncIterator[Running]:
    """A router whose slots are all free again when the block ends."""
    url = f"{backend.url}/v1" if kind.startswith("openai") else backend.url
    async with running_router(endpoints=[{"url": url, "kind": kind}], **settings) as running:
        yield running
        await eventually(lambda: running.in_flight() == 0, "every slot is free")


async def ask(running: Running, *, streaming: bool = False, **params: Any) -> httpx2.Response:
    """The answer to a turn. A stream that goes well is checked as such."""
    answer = await running.http.post(URL, json=turn(stream=streaming, **params))
    if streaming and answer.status_code == 200:
        check_stream([event for _, event in parse_sse(answer.content)])
    return answer


def said(answer: httpx2.Response) -> str:
    """The text of a response that went well."""
    assert answer.status_code == 200, answer.text[:500]
    is_stream = answer.headers["content-type"].startswith("text/event-stream")
    response = parse_sse(answer.content)[-1][1]["response"] if is_stream else answer.json()
    assert response["status"] == "completed", response["error"]
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


# ── conversations that are too long ──────────────────────────────────────────


def count(messages: list[Json]) -> int:
    """The tokens of messages, as a backend counts them whose tokens are half of what we take one for."""
    return sum(len(orjson.dumps(message)) for message in messages) // 2


def llama_cpp(prompt: int, limit: int) -> Answer:
    error = {
        "code": 400,
        "message": f"request ({prompt} tokens) exceeds the available context size ({limit} tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": prompt,
        "n_ctx": limit,
    }
    return json_answer({"error": error}, status=400)


def vllm(prompt: int, limit: int) -> Answer:
    message = (
        f"This model's maximum context length is {limit} tokens. However, your request has {prompt} input tokens. "
        f"Please "
        "reduce the length of the input messages."
    )
    body = {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}
    return json_answer(body, status=400)


def vllm_without_a_count(prompt: int, limit: int) -> Answer:
    return http_error(400, f"This model's maximum context length is {limit} tokens. Please reduce the length.")


def ollama(prompt: int, limit: int) -> Answer:
    """Its runner's error, as JSON in a text."""
    inner = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": prompt, "n_ctx": limit}
    return http_error(400, orjson.dumps({"error": inner | {"message": "too long"}}).decode(), type="api_error")


def ollama_without_numbers(prompt: int, limit: int) -> Answer:
    return http_error(400, "the input length exceeds the context length", type="api_error")


COUNTING = [llama_cpp, vllm, ollama]
ALL_SERVERS = [*COUNTING, vllm_without_a_count, ollama_without_numbers]
NAMED = {"ids": lambda value: value.__name__}


def crowded(limit: int, words: Callable[[int, int], Answer] = llama_cpp) -> Answer:
    """A backend that takes `limit` tokens, prompt and answer together."""

    async def answer(reply: Reply) -> None:
        request = reply.request.json
        if problem := strict_error(request):
            raise AssertionError(problem)
        prompt = count(request["messages"])
        fits = prompt + (request.get("max_tokens") or 1) <= limit
        await (chat("Fine.") if fits else words(prompt, limit))(reply)

    return answer


def talk(turns: int, size: int = 200) -> list[Json]:
    """A conversation of so many turns and a last question."""
    items: list[Json] = []
    for n in range(turns):
        items.append({"role": "user", "content": f"Question {n}. " + "q" * size})
        items.append({"role": "assistant", "content": f"Answer {n}. " + "a" * size})
    return [*items, {"role": "user", "content": "The last question."}]


def rounds(many: int, size: int = 200) -> list[Json]:
    """One question that took so many tool rounds, two calls each."""
    items: list[Json] = [{"role": "user", "content": "The last question."}]
    for n in range(many):
        ids = [f"call_{n}_{which}" for which in "ab"]
        items += [
            {"type": "function_call", "call_id": id, "name": "get_weather", "arguments": '{"city":"Oslo"}'}
            for id in ids
        ]
        items += [{"type": "function_call_output", "call_id": id, "output": "o" * size} for id in ids]
    return items


def messages_of(request: Request) -> list[Json]:
    return request.json["messages"]


class TestTooLong:
    """`truncation: auto`."""

    @STREAMING
    @pytest.mark.parametrize("words", ALL_SERVERS, **NAMED)
    async def test_the_oldest_turns_go(self, backend, caplog, words, streaming):
        caplog.set_level(logging.INFO, "nomyo")
        backend.default = crowded(2000, words)
        async with router_before(backend) as running:
            answer = await ask(
                running, input=talk(12), instructions="Be terse.", truncation="auto", streaming=streaming
            )
        assert said(answer) == "Fine."
        first, *_, last = [messages_of(request) for request in backend.turns]
        assert last[0] == {"role": "system", "content": "Be terse."}
        assert last[1:] == first[-len(last) + 1 :], "what is left is not the end of the conversation"
        assert last[1]["role"] == "user", "half a turn is left"
        named = answer.headers[ADAPTED]
        dropped = [int(part.removeprefix("truncated=")) for part in named.split(", ")]
        assert sum(dropped) == len(first) - len(last), named
        assert len(dropped) == len(backend.turns) - 1
        lines = [record.getMessage() for record in caplog.records if "adapted" in record.getMessage()]
        assert [line.rpartition(": ")[2] for line in lines] == named.split(", ")

    @pytest.mark.parametrize("words", COUNTING, **NAMED)
    @pytest.mark.parametrize("answer_tokens", [None, 100, 400])
    async def test_as_many_as_must_and_at_once(self, backend, words, answer_tokens):
        """With the backend's own numbers one more request is enough, and no turn goes that could have stayed."""
        backend.default = crowded(2000, words)
        async with router_before(backend) as running:
            given = {"max_output_tokens": answer_tokens} if answer_tokens else {}
            answer = await ask(running, input=talk(12), truncation="auto", **given)
        assert said(answer) == "Fine."
        first, last = (messages_of(request) for request in backend.turns)
        room = 2000 - (answer_tokens or 256)
        assert count(last) <= room, "there is no room for the answer"
        assert count(first[-len(last) - 4 :]) > room, "more went than had to"

    async def test_of_a_long_last_turn_the_oldest_tool_rounds_go(self, backend):
        backend.default = crowded(2000)
        async with router_before(backend) as running:
            items = [*talk(2)[:-1], *rounds(8)]
            answer = await ask(running, input=items, instructions="Be terse.", truncation="auto", tools=[WEATHER_TOOL])
        assert said(answer) == "Fine."
        first, last = (messages_of(request) for request in backend.turns)
        assert last[:2] == [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "The last question."},
        ]
        assert last[2:] == first[-len(last) + 2 :]
        assert 3 <= len(last[2:]) < 8 * 3, "no round was left out, or all were"
        assert [message["role"] for message in last[2:5]] == ["assistant", "tool", "tool"], "half a round is left"
        assert backend.turns[-1].json["tools"], "the tools are no part of the conversation"

    async def test_a_stored_conversation_stays_whole(self, backend):
        backend.default = crowded(2000)
        async with router_before(backend) as running:
            first = (await ask(running, input=talk(2), truncation="auto")).json()
            second = await ask(
                running, input=talk(6), truncation="auto", previous_response_id=first["id"], instructions="Be terse."
            )
            assert int(second.headers[ADAPTED].removeprefix("truncated=")) > 0
            assert second.json()["truncation"] == "auto"
            asked = len(backend.turns)
            backend.default = crowded(100_000)
            third = await ask(running, input="And?", previous_response_id=second.json()["id"])
        assert ADAPTED not in third.headers
        whole = messages_of(backend.turns[asked])
        assert len(whole) == 5 + 1 + 13 + 1 + 1, "the history has lost what a backend had no room for"

    async def test_several_times_until_it_fits(self, backend):
        backend.script(*[ollama_without_numbers(0, 0)] * 3, chat("Fine."))
        async with router_before(backend) as running:
            answer = await ask(running, input=talk(20), truncation="auto")
        assert said(answer) == "Fine."
        sizes = [len(messages_of(request)) for request in backend.turns]
        assert sizes == sorted(set(sizes), reverse=True), f"a request was no shorter than the one before it: {sizes}"
        named = [f"truncated={before - after}" for before, after in pairwise(sizes)]
        assert answer.headers[ADAPTED] == ", ".join(named)

    @STREAMING
    async def test_but_not_for_ever(self, backend, streaming):
        backend.default = ollama_without_numbers(0, 0)
        async with router_before(backend) as running:
            answer = await ask(running, input=talk(200, 10), truncation="auto", streaming=streaming)
        assert_error(answer, 400, code="context_length_exceeded", param="input", says="the input length exceeds")
        assert 2 <= len(backend.turns) <= 6, f"it was asked {len(backend.turns)} times"

    @STREAMING
    @pytest.mark.parametrize(
        ("input", "instructions"),
        [
            ("q" * 6000, None),
            ([*talk(3), {"role": "user", "content": "q" * 6000}], None),
            (talk(3), "s" * 6000),
            ([*rounds(1, 3000)], None),
        ],
        ids=["one question", "the last question", "the system text", "the last round"],
    )
    async def test_what_cannot_fit_is_the_backends_own_400(self, backend, input, instructions, streaming):
        backend.default = crowded(1000)
        async with router_before(backend) as running:
            answer = await ask(
                running,
                input=input,
                instructions=instructions,
                truncation="auto",
                tools=[WEATHER_TOOL],
                streaming=streaming,
            )
        assert_error(
            answer, 400, code="context_length_exceeded", param="input", says="exceeds the available context size"
        )
        assert ADAPTED not in answer.headers
        assert len(backend.turns) == 1, "it was asked again, though nothing can help"

    @STREAMING
    @pytest.mark.parametrize("words", ALL_SERVERS, **NAMED)
    @pytest.mark.parametrize("truncation", ["disabled", None])
    async def test_only_if_the_client_allows_it(self, served, backend, words, truncation, streaming):
        backend.default = words(3000, 2000)
        answer = await ask(served, input=talk(12), truncation=truncation, streaming=streaming)
        assert_error(answer, 400, type="invalid_request_error", code="context_length_exceeded", param="input")
        assert len(backend.turns) == 1

    async def test_only_if_the_settings_allow_it(self, backend):
        backend.default = crowded(2000)
        async with router_before(backend, adapt={"truncation": False}) as running:
            answer = await ask(running, input=talk(12), truncation="auto")
        assert_error(answer, 400, code="context_length_exceeded", param="input")
        assert len(backend.turns) == 1

    async def test_a_server_that_says_so_in_its_stream(self, backend):
        """LM Studio answers 200, and an error as the first event."""
        error = {
            "message": "Cannot truncate prompt with n_keep (3000) >= n_ctx (2000)",
            "code": "context_length_exceeded",
        }
        backend.script(stream(sse({"error": error}, "error")), chat("Fine."))
        async with router_before(backend) as running:
            answer = await ask(running, input=talk(12), truncation="auto", streaming=True)
        assert said(answer) == "Fine."
        assert answer.headers[ADAPTED].startswith("truncated=")

    async def test_not_when_the_answer_has_begun(self, backend):
        """What the client has seen cannot be taken back."""
        error = {"message": "Context size has been exceeded.", "code": 500, "type": "server_error"}
        backend.script(stream(chunk({"content": "Hel"}), sse({"error": error})))
        async with router_before(backend) as running:
            answer = await ask(running, input=talk(12), truncation="auto", streaming=True)
        last = parse_sse(answer.content)[-1][1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["code"] == "context_length_exceeded"
        assert len(backend.turns) == 1


# ── what a backend or its model cannot do ────────────────────────────────────

IMAGE = {
    "role": "user",
    "content": [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PIXEL}],
}
# The backend's words, what of a request they are about, as what a client knows it, the setting, and what is gone then.
REFUSED: dict[str, tuple[str, Json, str, str, str, tuple[str, ...]]] = {
    "tools": (
        "registry.ollama.ai/library/test-model does not support tools",
        {"tools": [WEATHER_TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
        "tools",
        "tools",
        "tools",
        ("tools", "tool_choice", "parallel_tool_calls"),
    ),
    "images": (
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        {"input": [IMAGE]},
        "input",
        "images",
        "images",
        (),
    ),
    "thinking": (
        '"test-model" does not support thinking',
        {"reasoning": {"effort": "high"}},
        "reasoning.effort",
        "parameters",
        "reasoning_effort",
        ("reasoning_effort",),
    ),
    "an unknown parameter": (
        "Unrecognized request argument supplied: top_k",
        {"top_k": 3},
        "top_k",
        "parameters",
        "top_k",
        ("top_k",),
    ),
    "a temperature": (
        "Unsupported parameter: 'temperature' is not supported with this model.",
        {"temperature": 0.5},
        "temperature",
        "parameters",
        "temperature",
        ("temperature",),
    ),
    "a format": (
        "'response_format.type' must be 'json_schema' or 'text'",
        {"text": {"format": {"type": "json_object"}}},
        "text",
        "parameters",
        "response_format",
        ("response_format",),
    ),
}


@STREAMING
@pytest.mark.parametrize("what", REFUSED)
class TestRefused:
    async def test_is_a_400_that_names_it(self, served, backend, what, streaming):
        words, params, param, *_ = REFUSED[what]
        backend.default = http_error(400, words)
        answer = await ask(served, **params, streaming=streaming)
        assert_error(answer, 400, type="invalid_request_error", code="unsupported_parameter", param=param, says=words)
        assert len(backend.turns) == 1, "a refusal was tried again"

    async def test_is_left_out_where_the_settings_say_so(self, backend, caplog, what, streaming):
        caplog.set_level(logging.INFO, "nomyo")
        words, params, _, setting, change, gone = REFUSED[what]
        backend.script(http_error(400, words))
        async with router_before(backend, adapt={setting: True}) as running:
            answer = await ask(running, **params, streaming=streaming)
        assert said(answer) == "Hello from the fake backend."
        assert answer.headers[ADAPTED] == change
        assert [
            record for record in caplog.records if record.getMessage().endswith(f"adapted for its backend: {change}")
        ]
        first, second = (request.json for request in backend.turns)
        if what == "images":
            asked, instead = second["messages"][0]["content"]
            assert asked == {"type": "text", "text": "What is it?"}
            assert instead["type"] == "text", "the image is still there"
            assert {**second, "messages": None} == {**first, "messages": None}
        else:
            assert set(gone) & set(first), "it was not asked for"
            assert second == {key: value for key, value in first.items() if key not in gone}

    async def test_stays_where_only_other_settings_say_so(self, backend, what, streaming):
        words, params, param, setting, *_ = REFUSED[what]
        backend.default = http_error(400, words)
        async with router_before(backend, adapt=EVERYTHING | {setting: False}) as running:
            answer = await ask(running, **params, streaming=streaming)
        assert_error(answer, 400, code="unsupported_parameter", param=param, says=words)
        assert len(backend.turns) == 1

    async def test_again_is_a_400(self, backend, what, streaming):
        """What was left out cannot be left out once more."""
        words, params, param, *_ = REFUSED[what]
        backend.default = http_error(400, words)
        async with router_before(backend, adapt=EVERYTHING) as running:
            answer = await ask(running, **params, streaming=streaming)
        assert_error(answer, 400, code="unsupported_parameter", param=param, says=words)
        assert len(backend.turns) == 2


# ── what a server does not know, and can do without ──────────────────────────

# What a client asks for, and what of it a chat server gets under that name.
HINTS: dict[str, tuple[Json, str, str]] = {
    "prompt_cache_key": ({"prompt_cache_key": "k"}, "prompt_cache_key", "prompt_cache_key"),
    "safety_identifier": ({"safety_identifier": "u"}, "safety_identifier", "safety_identifier"),
    "service_tier": ({"service_tier": "flex"}, "service_tier", "service_tier"),
    "user": ({"user": "u"}, "user", "user"),
    "parallel_tool_calls": (
        {"tools": [WEATHER_TOOL], "parallel_tool_calls": False},
        "parallel_tool_calls",
        "parallel_tool_calls",
    ),
    "stream_options": ({"stream": True}, "stream_options", "stream_options"),
    "verbosity": ({"text": {"verbosity": "low"}}, "verbosity", "text.verbosity"),
}


def refusing(name: str, answer: Callable[[str], Answer]) -> Answer:
    """A server that refuses a parameter wherever it finds it."""

    async def reply_to(reply: Reply) -> None:
        await (answer(name) if name in reply.request.json else chat("Fine."))(reply)

    return reply_to


HOW: dict[str, Callable[[str], Answer]] = {
    "OpenAI": lambda name: http_error(400, f"Unknown parameter: '{name}'.", code="unknown_parameter"),
    "Mistral": lambda name: json_answer(
        {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]},
        status=422,
    ),
    "NIM": lambda name: json_answer({"error": f"Validation: Unsupported parameter(s): `{name}`"}, status=400),
    "Groq": lambda name: http_error(400, f"property '{name}' is unsupported"),
    "a value": lambda name: json_answer(
        {"detail": [{"type": "literal_error", "loc": ["body", name], "msg": "Input should be 'x'"}]}, status=422
    ),
    "a stream": lambda name: stream(
        sse({"error": {"message": f"Unrecognized request argument supplied: {name}", "code": 400}})
    ),
}


class TestHints:
    @pytest.mark.parametrize("how", HOW)
    @pytest.mark.parametrize("hint", HINTS)
    async def test_are_left_out_and_not_sent_again(self, backend, hint, how):
        asked, name, _ = HINTS[hint]
        backend.default = refusing(name, HOW[how])
        asked = {"stream": True, **asked}
        async with router_before(backend) as running:
            for turns in (2, 3):
                answer = await ask(running, streaming=True, **{key: asked[key] for key in asked if key != "stream"})
                assert said(answer) == "Fine."
                assert name in answer.headers[ADAPTED].split(", ")
                assert len(backend.turns) == turns, "the second request was refused first"
            first, second, third = (request.json for request in backend.turns)
            assert second == third == {key: value for key, value in first.items() if key != name}

    @pytest.mark.parametrize("hint", HINTS)
    async def test_are_a_400_where_the_settings_say_so(self, backend, hint):
        asked, name, param = HINTS[hint]
        backend.default = refusing(name, HOW["OpenAI"])
        async with router_before(backend, adapt={"hints": False}) as running:
            answer = await ask(running, streaming=True, **{key: asked[key] for key in asked if key != "stream"})
            assert_error(answer, 400, code="unsupported_parameter", param=param)
        assert len(backend.turns) == 1

    async def test_all_of_them_one_after_the_other(self, backend):
        async def strict(reply: Reply) -> None:
            unknown = [name for _, name, _ in HINTS.values() if name in reply.request.json]
            await (HOW["Groq"](unknown[0]) if unknown else chat("Fine."))(reply)

        backend.default = strict
        asked = {key: value for params, *_ in HINTS.values() for key, value in params.items() if key != "stream"}
        async with router_before(backend) as running:
            answer = await ask(running, streaming=True, **asked)
            assert set(answer.headers[ADAPTED].split(", ")) == {name for _, name, _ in HINTS.values()}
            assert said(await ask(running, streaming=True, **asked)) == "Fine."
        assert len(backend.turns) == len(HINTS) + 2

    async def test_what_a_model_refuses_another_model_of_the_server_is_given(self, backend):
        async def strict(reply: Reply) -> None:
            request = reply.request.json
            refuses = request["model"] == "small" and "verbosity" in request
            words = "Unsupported parameter: 'verbosity' is not supported with this model."
            await (http_error(400, words) if refuses else chat("Fine."))(reply)

        backend.models, backend.default = ["small", "large"], strict
        async with router_before(backend) as running:
            for model, turns in (("small", 2), ("large", 3), ("small", 4)):
                assert said(await ask(running, model=model, text={"verbosity": "low"})) == "Fine."
                assert len(backend.turns) == turns
        assert ["verbosity" in request.json for request in backend.turns] == [True, False, True, False]

    async def test_what_a_server_refuses_none_of_its_models_is_given(self, backend):
        backend.models, backend.default = ["small", "large"], refusing("user", HOW["Groq"])
        async with router_before(backend) as running:
            for model, turns in (("small", 2), ("large", 3)):
                assert said(await ask(running, model=model, user="u")) == "Fine."
                assert len(backend.turns) == turns

    async def test_another_endpoint_is_given_what_one_refuses(self):
        async with FakeBackend() as first, FakeBackend() as second:
            first.script(HOW["OpenAI"]("user"), http_error(503))
            endpoints = [
                {"url": f"{first.url}/v1", "kind": "openai-chat"},
                {"url": f"{second.url}/v1", "kind": "openai-chat", "priority": 1},
            ]
            async with running_router(endpoints=endpoints) as running:
                answer = await ask(running, user="u")
            assert said(answer)
            assert ADAPTED not in answer.headers
            assert second.turns[0].json["user"] == "u"

    async def test_a_server_that_was_away_may_be_another_one(self, backend):
        backend.default = refusing("user", HOW["OpenAI"])
        async with router_before(backend) as running:
            (endpoint,) = running.app.state.pool.endpoints.values()
            await ask(running, user="u")
            backend.routes["GET /v1/models"] = http_error(500)
            await endpoint.look()
            del backend.routes["GET /v1/models"]
            await endpoint.look()
            backend.default = chat("Fine.")
            assert ADAPTED not in (await ask(running, user="u")).headers
        assert backend.turns[-1].json["user"] == "u"

    async def test_what_is_no_hint_is_not_left_out(self, backend):
        backend.default = refusing("seed", HOW["a value"])
        async with router_before(backend) as running:
            assert_error(await ask(running, seed=5), 400, param="seed")
        assert len(backend.turns) == 1


class TestTheLengthOfTheAnswer:
    WORDS = "Unsupported parameter: '{}' is not supported with this model. Use '{}' instead."

    @STREAMING
    @pytest.mark.parametrize(
        ("asked", "refused", "instead"),
        [
            ({"max_output_tokens": 7}, "max_tokens", "max_completion_tokens"),
            ({"max_completion_tokens": 7}, "max_completion_tokens", "max_tokens"),
        ],
    )
    async def test_has_the_name_that_a_server_knows(self, backend, streaming, asked, refused, instead):
        backend.default = refusing(refused, lambda _: http_error(400, self.WORDS.format(refused, instead)))
        async with router_before(backend) as running:
            for turns in (2, 3):
                answer = await ask(running, streaming=streaming, **asked)
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == f"{refused}={instead}"
                assert len(backend.turns) == turns
        first, second, third = (request.json for request in backend.turns)
        assert second == third
        assert second[instead] == first[refused] == 7
        assert refused not in second

    async def test_that_has_no_name_at_all_is_a_400(self, backend):
        async def strict(reply: Reply) -> None:
            name = "max_tokens" if "max_tokens" in reply.request.json else "max_completion_tokens"
            await http_error(400, self.WORDS.format(name, "nothing"))(reply)

        backend.default = strict
        async with router_before(backend) as running:
            answer = await ask(running, max_output_tokens=7)
            assert_error(answer, 400, code="unsupported_parameter", param="max_output_tokens")
        assert len(backend.turns) <= 3

    async def test_that_is_only_too_long_is_not_called_otherwise(self, backend):
        backend.default = http_error(400, "max_tokens is too large: 100000. This model supports at most 16384.")
        async with router_before(backend) as running:
            assert_error(await ask(running, max_output_tokens=100000), 400, says="too large")
        assert len(backend.turns) == 1


# ── roles ────────────────────────────────────────────────────────────────────

IN_THE_MIDDLE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
]


def strict_template(template: Callable[[list[Json]], str | None], status: int = 400, words: str = "{}") -> Answer:
    """A server whose model has this template."""

    async def answer(reply: Reply) -> None:
        problem = template(reply.request.json["messages"])
        await (http_error(status, words.format(problem)) if problem else chat("Fine."))(reply)

    return answer


JINJA = "\n------------\nWhile executing CallExpression at line 85 …\nError: Jinja Exception: {}"


class TestRoles:
    @STREAMING
    @pytest.mark.parametrize(("status", "words"), [(400, "{}"), (500, JINJA)], ids=["vLLM", "llama.cpp"])
    async def test_a_system_text_in_the_middle_stays_there_as_the_users(self, backend, status, words, streaming):
        backend.default = strict_template(TEMPLATES["qwen"], status, words)
        async with router_before(backend) as running:
            for turns in (2, 3):
                answer = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.", streaming=streaming)
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == "system_as_user"
                assert len(backend.turns) == turns, "the second request was refused first"
        first, second, third = (request.json["messages"] for request in backend.turns)
        assert second == third
        assert [message["role"] for message in second] == ["system", "user", "assistant", "user", "user"]
        assert second[3]["content"] == "<system>\nBe brief.\n</system>"
        assert [second[place] for place in (0, 1, 2, 4)] == [first[place] for place in (0, 1, 2, 4)]

    @pytest.mark.parametrize(
        ("template", "adapted"),
        [
            ("gemma", "system_as_user, roles_in_turns"),
            ("gemma_2", "system_as_user, all_system_as_user, roles_in_turns"),
            ("devstral", "system_as_user, roles_in_turns"),
            ("mistral", "system_as_user"),
        ],
    )
    async def test_each_strict_template_answers_in_the_end_and_then_at_once(self, backend, template, adapted):
        backend.default = strict_template(TEMPLATES[template])
        async with router_before(backend) as running:
            answer = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.")
            assert said(answer) == "Fine."
            assert set(answer.headers[ADAPTED].split(", ")) == set(adapted.split(", "))
            asked = len(backend.turns)
            again = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.")
            assert said(again) == "Fine."
            assert len(backend.turns) == asked + 1
            assert backend.turns[-1].json == backend.turns[-2].json

    async def test_a_tool_run_that_the_user_broke_off_goes_on(self, backend):
        """Denied, or stopped: the user speaks right behind a tool."""
        backend.default = strict_template(TEMPLATES["mistral"])
        asked = [
            {"role": "user", "content": "Delete it."},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "The user said no."},
            {"role": "user", "content": "Do something else."},
        ]
        async with router_before(backend) as running:
            answer = await ask(running, input=asked, tools=[WEATHER_TOOL])
        assert said(answer) == "Fine."
        assert answer.headers[ADAPTED] == "roles_in_turns"
        roles = [message["role"] for message in backend.turns[-1].json["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]

    async def test_the_prefix_stays_warm_while_the_conversation_goes_on(self, backend):
        backend.default = strict_template(TEMPLATES["qwen"])
        async with router_before(backend) as running:
            last, seen = None, []
            for said_now in ("Hi", "And?", "So?"):
                items = [{"role": "developer", "content": f"Note {said_now}"}, {"role": "user", "content": said_now}]
                body = turn(input=items, **({"previous_response_id": last} if last else {}))
                last = (await running.http.post(URL, json=body)).json()["id"]
                seen.append(backend.turns[-1].json["messages"])
        for before, after in pairwise(seen):
            assert after[: len(before)] == before

    async def test_a_conversation_of_system_texts_alone_is_the_users(self, backend):
        backend.default = strict_template(TEMPLATES["qwen"], 500, JINJA)
        async with router_before(backend) as running:
            answer = await ask(running, input=[{"role": "developer", "content": "Say hello."}])
        assert said(answer) == "Fine."
        assert answer.headers[ADAPTED] == "all_system_as_user"

    async def test_it_is_remembered_for_that_model_alone(self, backend):
        async def strict(reply: Reply) -> None:
            is_strict = reply.request.json["model"] == "strict"
            await (strict_template(TEMPLATES["qwen"]) if is_strict else chat("Fine."))(reply)

        backend.models, backend.default = ["strict", "mild"], strict
        async with router_before(backend) as running:
            assert said(await ask(running, model="strict", input=IN_THE_MIDDLE)) == "Fine."
            answer = await ask(running, model="mild", input=IN_THE_MIDDLE)
        assert ADAPTED not in answer.headers
        assert backend.turns[-1].json["messages"][2]["role"] == "system"

    async def test_a_request_that_needs_no_change_is_not_changed_later(self, backend):
        backend.default = strict_template(TEMPLATES["gemma"])
        async with router_before(backend) as running:
            await ask(running, input=IN_THE_MIDDLE)
            answer = await ask(running, input="Hi", instructions="You are X.")
        assert ADAPTED not in answer.headers
        assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["system", "user"]

    @STREAMING
    @pytest.mark.parametrize("template", ["qwen", "gemma"])
    async def test_it_is_the_servers_own_400_where_the_settings_say_so(self, backend, template, streaming):
        backend.default = strict_template(TEMPLATES[template], 500, JINJA)
        async with router_before(backend, adapt={"roles": False}) as running:
            answer = await ask(running, input=IN_THE_MIDDLE, streaming=streaming)
            assert_error(answer, 400, type="invalid_request_error", param="input", says="Jinja")
        assert len(backend.turns) == 1

    async def test_a_server_that_is_never_content_is_not_asked_for_ever(self, backend):
        backend.default = http_error(400, "Conversation roles must alternate user/assistant/user/assistant/...")
        async with router_before(backend) as running:
            answer = await ask(running, input=IN_THE_MIDDLE)
            assert_error(answer, 400, says="alternate")
        assert len(backend.turns) <= 3


class TestNative:
    """A backend that speaks Responses: it gets the same hints, and its model may have the same template."""

    HINTS: ClassVar[dict[str, Json]] = {
        "prompt_cache_key": {"prompt_cache_key": "k"},
        "safety_identifier": {"safety_identifier": "u"},
        "service_tier": {"service_tier": "flex"},
        "user": {"user": "u"},
        "metadata": {"metadata": {"a": "b"}},
        "parallel_tool_calls": {"parallel_tool_calls": False},
        "stream_options": {"stream_options": {"include_obfuscation": False}},
        "text.verbosity": {"text": {"verbosity": "low"}},
    }

    @STREAMING
    @pytest.mark.parametrize("hint", HINTS)
    async def test_hints_are_left_out_and_not_sent_again(self, backend, hint, streaming):
        holder, _, key = hint.rpartition(".")

        async def strict(reply: Reply) -> None:
            request = reply.request.json
            has_it = key in (request.get(holder) or {}) if holder else hint in request
            await (HOW["OpenAI"](hint) if has_it else native("Fine."))(reply)

        backend.default = strict
        async with router_before(backend, "openai") as running:
            for turns in (2, 3):
                answer = await ask(running, streaming=streaming, **self.HINTS[hint])
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == hint
                assert len(backend.turns) == turns

    @pytest.mark.parametrize(("status", "words"), [(400, "{}"), (500, JINJA)], ids=["vLLM", "llama.cpp"])
    async def test_a_developer_item_in_the_middle_stays_there_as_the_users(self, backend, status, words):
        async def strict(reply: Reply) -> None:
            request = reply.request.json
            begins = [{"role": "system"}] if request.get("instructions") else []
            items = [{**item, "role": item["role"].replace("developer", "system")} for item in request["input"]]
            problem = TEMPLATES["qwen"]([*begins, *items])
            await (http_error(status, words.format(problem)) if problem else native("Fine."))(reply)

        backend.default = strict
        async with router_before(backend, "openai") as running:
            for turns in (2, 3):
                answer = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.")
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == "system_as_user"
                assert len(backend.turns) == turns
        texts = [part["text"] for part in backend.turns[-1].json["input"][2]["content"]]
        assert texts == ["<system>", "Be brief.", "</system>"]

    async def test_other_refusals_go_on_as_they_are(self, backend):
        backend.default = http_error(400, "Unknown parameter: 'top_k'.", code="unknown_parameter")
        async with router_before(backend, "openai", adapt=EVERYTHING) as running:
            assert_error(await ask(running, top_k=5, truncation="auto"), 400, code="unknown_parameter")
        assert len(backend.turns) == 1


class TestLearned:
    """`Learned`, told the time."""

    def test_it_is_of_a_model_or_of_all(self):
        learned = Learned()
        assert not learned
        learned.add("m", "a", 0.0)
        learned.add(EVERY_MODEL, "b", 0.0)
        assert learned
        assert (learned.changes("m", 1.0), learned.changes("n", 1.0)) == (["a", "b"], ["b"])

    def test_it_is_believed_for_a_while(self):
        learned = Learned()
        learned.add("m", "a", 0.0)
        learned.add("m", "b", 10.0)
        assert learned.changes("m", BELIEVED_S - 1) == ["a", "b"]
        assert learned.changes("m", BELIEVED_S) == ["b"]
        assert learned.changes("m", BELIEVED_S + 10) == []
        assert not learned

    @given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=40))
    def test_it_is_bounded(self, pairs):
        learned = Learned()
        for number in range(20):
            for model, change in pairs:
                learned.add(f"{model}{number}", change, 0.0)
        assert len(learned._until) <= MOST
        if pairs:
            assert pairs[-1][1] in learned.changes(f"{pairs[-1][0]}19", 0.0)


class TestRefusedMoreThanOnce:
    async def test_one_after_the_other(self, backend):
        kinds = ("tools", "thinking", "images", "an unknown parameter")
        backend.script(*(http_error(400, REFUSED[kind][0]) for kind in kinds))
        asked = {key: value for kind in kinds for key, value in REFUSED[kind][1].items()}
        async with router_before(backend, adapt=EVERYTHING) as running:
            answer = await ask(running, **asked)
        assert said(answer) == "Hello from the fake backend."
        assert answer.headers[ADAPTED] == "tools, reasoning_effort, images, top_k"
        assert set(backend.turns[-1].json) <= {"model", "messages", "stream"}

    async def test_but_not_for_ever(self, backend):
        odd = {f"odd_{n}": n for n in range(9)}
        backend.script(*(http_error(400, f"Unknown parameter: '{name}'") for name in odd))
        async with router_before(backend, adapt=EVERYTHING) as running:
            answer = await ask(running, **odd)
        assert_error(answer, 400, code="unsupported_parameter")
        assert 2 <= len(backend.turns) <= 6, f"it was asked {len(backend.turns)} times"

    @pytest.mark.parametrize("name", ["model", "messages", "stream"])
    async def test_what_makes_it_a_request_stays(self, backend, name):
        backend.default = http_error(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        async with router_before(backend, adapt=EVERYTHING) as running:
            assert_error(await ask(running), 400, code="unsupported_parameter")
        assert len(backend.turns) == 1

    async def test_what_was_not_asked_for_is_no_reason_to_ask_again(self, backend):
        backend.default = http_error(400, REFUSED["tools"][0])
        async with router_before(backend, adapt=EVERYTHING) as running:
            assert_error(await ask(running), 400, param="tools")
        assert len(backend.turns) == 1

    async def test_sound_is_a_part_of_the_input(self, served, backend):
        backend.default = http_error(400, "audio input is not supported - hint: if this is unexpected, see mmproj")
        assert_error(await ask(served), 400, code="unsupported_parameter", param="input")

    async def test_an_endpoint_that_refuses_is_not_failing(self, backend):
        backend.default = http_error(400, REFUSED["tools"][0])
        async with router_before(backend) as running:
            for _ in range(5):
                assert_error(await ask(running, tools=[WEATHER_TOOL]), 400, param="tools")
            assert running.app.state.telemetry.counts["failures"] == 0
            backend.default = chat("Hello.")
            assert said(await ask(running)) == "Hello."

    async def test_what_an_endpoint_before_was_spared_is_not_named_for_the_next(self):
        """The first refuses tools, then fails; the second takes all."""
        async with FakeBackend() as first, FakeBackend() as second:
            first.script(http_error(400, REFUSED["tools"][0]), http_error(503))
            endpoints = [
                {"url": f"{first.url}/v1", "kind": "openai-chat"},
                {"url": f"{second.url}/v1", "kind": "openai-chat", "priority": 1},
            ]
            async with running_router(endpoints=endpoints, adapt=EVERYTHING) as running:
                answer = await ask(running, tools=[WEATHER_TOOL])
            assert said(answer) == "Hello from the fake backend."
            assert ADAPTED not in answer.headers
            assert second.turns[0].json["tools"]


# ── images ───────────────────────────────────────────────────────────────────

PNG = base64.b64decode(PIXEL.partition(",")[2])


def file(data: bytes, type: str = "image/png") -> Answer:
    async def answer(reply: Reply) -> None:
        await reply.start(200, {"Content-Type": type}, length=len(data))
        await reply.end(data)

    return answer


def looking_at(*urls: str) -> Json:
    images = [{"type": "input_image", "image_url": url} for url in urls]
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, *images]}]}


def images_in(request: Request) -> list[str]:
    contents = [message["content"] for message in messages_of(request)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


class TestRemoteImages:
    @pytest.fixture
    async def site(self) -> AsyncIterator[FakeBackend]:
        """Where the images are."""
        async with FakeBackend() as site:
            site.routes |= {"GET /a.png": file(PNG), "GET /page": file(b"<html>", "text/html")}
            yield site

    @STREAMING
    @pytest.mark.parametrize("kind", ["ollama", "lmstudio"])
    async def test_are_fetched_for_servers_that_cannot(self, backend, site, caplog, kind, streaming):
        caplog.set_level(logging.INFO, "nomyo")
        async with router_before(backend, kind, images={"allow_private": True}) as running:
            url = f"{site.url}/a.png"
            answer = await ask(running, **looking_at(url, PIXEL, url), streaming=streaming)
        assert said(answer) == "Hello from the fake backend."
        assert images_in(backend.turns[0]) == [PIXEL] * 3
        assert [request.path for request in site.requests] == ["/a.png"], "it was not fetched once"
        assert "images" in answer.headers.get(ADAPTED, ""), "the client cannot see it"
        assert [record for record in caplog.records if "adapted" in record.getMessage()], "it is not in the log"

    @pytest.mark.parametrize("kind", ["llama.cpp", "llama-swap", "vllm", "openai-chat"])
    async def test_are_left_to_servers_that_can(self, backend, site, kind):
        async with router_before(backend, kind, images={"allow_private": True}) as running:
            url = f"{site.url}/a.png"
            answer = await ask(running, **looking_at(url))
        assert said(answer) == "Hello from the fake backend."
        assert images_in(backend.turns[0]) == [url]
        assert not site.requests
        assert ADAPTED not in answer.headers

    async def test_are_left_alone_where_the_settings_say_so(self, backend, site):
        settings = {"images": {"allow_private": True}, "adapt": {"fetch_images": False}}
        async with router_before(backend, "ollama", **settings) as running:
            url = f"{site.url}/a.png"
            said(await ask(running, **looking_at(url)))
        assert images_in(backend.turns[0]) == [url]
        assert not site.requests

    async def test_that_are_given_are_not_fetched(self, backend):
        async with router_before(backend, "ollama") as running:
            answer = await ask(running, **looking_at(PIXEL))
        assert images_in(backend.turns[0]) == [PIXEL]
        assert ADAPTED not in answer.headers

    async def test_of_an_earlier_turn_too(self, backend, site):
        async with router_before(backend, "ollama", images={"allow_private": True}) as running:
            first = await ask(running, **looking_at(f"{site.url}/a.png"))
            said(await ask(running, input="And?", previous_response_id=first.json()["id"]))
        assert [images_in(request) for request in backend.turns] == [[PIXEL], [PIXEL]]

    @STREAMING
    @pytest.mark.parametrize(
        ("path", "allowed", "says"),
        [("/a.png", False, "could not be fetched"), ("/none", True, "could not be fetched"), ("/page", True, "no PNG")],
        ids=["private", "404", "a page"],
    )
    async def test_that_cannot_be_had_are_a_400(self, backend, site, path, allowed, says, streaming):
        async with router_before(backend, "ollama", images={"allow_private": allowed}) as running:
            answer = await ask(running, **looking_at(f"{site.url}{path}"), streaming=streaming)
            error = assert_error(answer, 400, code="invalid_image_url", says=says)
            assert error["param"].startswith("input"), error
            assert running.app.state.telemetry.counts["failures"] == 0, "it is no fault of the backend's"
        assert not backend.turns
        assert len(site.requests) == allowed, "a private address was asked"

    async def test_that_the_model_cannot_see_are_left_out_after_all(self, backend, site):
        backend.script(http_error(400, REFUSED["images"][0]))
        settings = {"images": {"allow_private": True}, "adapt": {"images": True}}
        async with router_before(backend, "ollama", **settings) as running:
            answer = await ask(running, **looking_at(f"{site.url}/a.png"))
        assert said(answer) == "Hello from the fake backend."
        assert [images_in(request) for request in backend.turns] == [[PIXEL], []]
