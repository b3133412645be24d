"""Every kind of answer that a chat backend can give, read by the official SDK in every form that it can be asked for.

One router serves the whole file: these tests differ in what the backend says and in nothing else.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseIncompleteEvent

from tests.conftest import running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    call,
    chat,
    chat_usage,
    interleaved,
    reasoning,
    refusal,
    with_logprobs,
)
from tests.sdk import MODEL, WEATHER_TOOL, bare, check_raw, check_types, collected, strict_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARIS, OSLO = {"city": "Paris"}, {"city": "Oslo"}

ANSWERS: dict[str, Answer] = {
    "text": chat("Hello there, reader."),
    "no text at all": chat(),
    "letters and line ends of every kind": chat("Ein Ü,\n ein 🙂,\r\n ein\u2028 ein\u0085 ein\u000b Ende\t"),
    "reasoning, then text": chat(reasoning("Two and two."), "It is 4."),
    "reasoning under the key of Ollama": chat(reasoning("Two and two.", key="reasoning"), "It is 4."),
    "a call": chat(call("get_weather", PARIS)),
    "a call in one delta": chat(call("get_weather", PARIS, fragments=0)),
    "a call without arguments": chat(call("now", "")),
    "two calls": chat(call("get_weather", PARIS), call("get_weather", OSLO)),
    "two calls at the same time": chat(interleaved(call("get_weather", PARIS), call("get_weather", OSLO))),
    "text, then a call": chat("Let me see.", call("get_weather", PARIS)),
    "reasoning, text and calls": chat(reasoning("Two."), "Both.", call("get_weather", PARIS), call("now", "{}")),
    "a refusal": chat(refusal("I will not.")),
    "logprobs": chat(with_logprobs("Hello there.")),
    "cut at the token limit": chat("Once upon a", finish_reason="length"),
    "cut while thinking": chat(reasoning("Well, let me"), finish_reason="length"),
    "cut in a call": chat(call("get_weather", '{"city": "Par'), finish_reason="length"),
    "stopped by a filter": chat("The recipe is", finish_reason="content_filter"),
    "usage with details": chat("Hello.", usage=chat_usage(20, 5, cached=16, reasoning=2)),
    "no usage": chat("Hello.", usage=None),
    "whole where a stream was asked for": chat(reasoning("Hm."), "Hello.", call("now", "{}"), as_stream=False),
    "streamed where it was not asked for": chat(
        reasoning("Hm."), "Hello.", call("now", "{}"), usage=None, as_stream=True
    ),
}
answers = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())


@dataclass
class Clients:
    """Both kinds of client of one router, and what its backend will say to each of them."""

    lenient: AsyncOpenAI
    strict: AsyncOpenAI
    backend: FakeBackend

    def say(self, *answers: Answer) -> None:
        assert not self.backend.unused, "a test before this one did not ask for all of its answers"
        self.backend.script(*answers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients() -> AsyncIterator[Clients]:
    async with FakeBackend() as backend:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints) as running:
            yield Clients(running.openai, strict_client(running), backend)


@answers
async def test_every_event_of_a_stream_is_read_as_its_own_type(clients: Clients, answer: Answer) -> None:
    clients.say(answer)
    events = await collected(await clients.lenient.responses.create(model=MODEL, input="Hi", stream=True))
    check_raw(events)


@answers
async def test_a_strict_client_accepts_every_event(clients: Clients, answer: Answer) -> None:
    clients.say(answer)
    events = await collected(
        await clients.strict.responses.create(model=MODEL, input="Hi", stream=True, tools=[WEATHER_TOOL], reasoning={})
    )
    check_types(events)
    final = events[-1].response
    assert isinstance(final, Response), f"the terminal event holds a {type(final).__name__}"


@answers
async def test_a_strict_client_accepts_the_json_body(clients: Clients, answer: Answer) -> None:
    clients.say(answer)
    response = await clients.strict.responses.create(model=MODEL, input="Hi", tools=[WEATHER_TOOL])
    again = await clients.strict.responses.retrieve(response.id)
    assert again == response, "what is retrieved is not what was answered"


@answers
async def test_a_stream_and_a_json_body_hold_the_same_output(clients: Clients, answer: Answer) -> None:
    clients.say(answer, answer)
    body = await clients.lenient.responses.create(model=MODEL, input="Hi")
    events = await collected(await clients.lenient.responses.create(model=MODEL, input="Hi", stream=True))
    streamed = events[-1].response
    assert bare(streamed.output) == bare(body.output)
    assert (streamed.status, streamed.incomplete_details, streamed.usage) == (
        body.status,
        body.incomplete_details,
        body.usage,
    )


@answers
async def test_the_accumulator_of_the_sdk_comes_to_the_final_response(clients: Clients, answer: Answer) -> None:
    clients.say(answer)
    async with clients.lenient.responses.stream(model=MODEL, input="Hi") as stream:
        events = await collected(stream)
    last = events[-1]
    if last.type == "response.completed":
        final = await stream.get_final_response()
        assert bare(final.output) == bare(last.response.output)
    else:
        assert isinstance(last, ResponseIncompleteEvent), f"the stream ended with {last.type}"
        with pytest.raises(RuntimeError, match=r"response\.completed"):
            await stream.get_final_response()
