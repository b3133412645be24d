"""Requests that a backend refuses, changed so that it takes them: what is changed, where that is named, and what is
left alone."""

import base64
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

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
    sse,
    stream,
    strict_error,
)
from tests.sdk import PIXEL, WEATHER_TOOL
from tests.stream_grammar import check_stream, parse_sse
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


NULL_REFUSED = (
    Path(__file__).parent / "data" / "llama-server" / "llama-cpp-python" / "err-null-content.response.json"
).read_bytes()
ROUND = [
    {"role": "user", "content": "Weather in Paris?"},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "rain"},
]


async def wants_texts(reply: Reply) -> None:
    """As llama-cpp-python answers, whose messages have no null."""
    is_refused = any(message["content"] is None for message in reply.request.json["messages"])
    await (http_error(500, body=NULL_REFUSED) if is_refused else chat("Rain."))(reply)


class TestNullContent:
    """A call without a text has null for its content, as OpenAI writes it."""

    @STREAMING
    async def test_it_is_empty_where_a_server_wants_a_text(self, backend: FakeBackend, streaming: bool) -> None:
        backend.default = wants_texts
        async with router_before(backend) as running:
            for tries in (2, 1):
                before = len(backend.turns)
                answer = await ask(running, streaming=streaming, input=ROUND)
                assert answer.status_code == 200, answer.text
                assert answer.headers[ADAPTED] == "empty_content"
                assert len(backend.turns) - before == tries, "what it refused it is not sent again"
        assert [message["content"] for message in backend.turns[-1].json["messages"]] == [
            "Weather in Paris?",
            "",
            "rain",
        ]

    async def test_it_stays_null_elsewhere(self, backend: FakeBackend) -> None:
        """Templates know a call by it (DeepSeek's)."""
        async with router_before(backend) as running:
            assert ADAPTED not in (await ask(running, input=ROUND)).headers
        assert backend.turns[-1].json["messages"][1]["content"] is None

    async def test_a_request_without_one_is_refused_with_its_parameter(self, backend: FakeBackend) -> None:
        """Nothing can be changed in it."""
        async with router_before(backend) as running:
            backend.script(http_error(500, body=NULL_REFUSED))
            assert_error(await ask(running), 400, param="input")
        assert len(backend.turns) == 1
