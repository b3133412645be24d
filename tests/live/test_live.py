"""A real model behind the router, the official SDK in front of it. The model is too small to be clever: what is
asserted is the shape of what it says, never its wit."""

import asyncio
from typing import Any

import openai
import orjson
import pytest
from openai import pydantic_function_tool
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)

from demo.model_server import CONTEXT_TOKENS, MODEL
from tests.conftest import running_router
from tests.live.conftest import Live
from tests.sdk import PIXEL, WEATHER_TOOL, GetWeather, Person, check_raw, check_types, collected, until_text
from tests.site import reply, running_site
from tests.turns import soon

pytestmark = [pytest.mark.live, pytest.mark.asyncio(loop_scope="session")]

HELLO: dict[str, Any] = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 24}
# llama.cpp's own parameter, passed on as it is: the model talks on until it is stopped. That would take a minute.
ENDLESS: dict[str, Any] = {
    "model": MODEL,
    "input": "Tell me a long story.",
    "max_output_tokens": 4000,
    "extra_body": {"ignore_eos": True},
}


async def test_it_answers(live: Live) -> None:
    response = await live.strict.responses.create(**HELLO)
    assert response.status in ("completed", "incomplete")
    assert response.output_text
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    usage = response.usage
    assert usage is not None
    assert usage.input_tokens > 0
    assert 0 < usage.output_tokens <= 24
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_it_streams(live: Live) -> None:
    events = await collected(await live.openai.responses.create(**HELLO, stream=True))
    check_raw(events)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3, "the text came in one piece"
    assert "".join(deltas) == events[-1].response.output_text
    assert events[-1].response.usage is not None
    check_types(await collected(await live.strict.responses.create(**HELLO, stream=True)))


async def test_a_second_turn_knows_the_first(live: Live) -> None:
    first = await live.openai.responses.create(**HELLO)
    stream = await live.openai.responses.create(
        model=MODEL, input="And again.", previous_response_id=first.id, max_output_tokens=24, stream=True
    )
    events = await collected(stream)
    check_raw(events)
    second = events[-1].response
    assert second.previous_response_id == first.id
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens, "the history did not reach the model"


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
async def test_a_function_call_makes_a_round_trip(live: Live, streamed: bool) -> None:
    ask: Any = {"model": MODEL, "tools": [WEATHER_TOOL], "max_output_tokens": 64}
    question = "What is the weather in Paris?"
    if streamed:
        events = await collected(await live.openai.responses.create(input=question, stream=True, **ask))
        check_raw(events)
        first = events[-1].response
    else:
        first = await live.strict.responses.create(input=question, **ask)
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls, f"no call in {first.output}"
    assert isinstance(calls[0], ResponseFunctionToolCall)
    assert calls[0].name == "get_weather"
    assert set(orjson.loads(calls[0].arguments)) == {"city"}
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": '{"sky": "rain", "degrees": 12}'}
        for item in calls
    ]
    second = await live.strict.responses.create(input=outputs, previous_response_id=first.id, **ask)
    assert second.output_text, f"no text in {second.output}"


THREE = [
    {"type": "function", "name": name, "description": about, "parameters": WEATHER_TOOL["parameters"], "strict": False}
    for name, about in (("search_web", "Searches the web."), ("get_weather", "The weather."), ("get_time", "The time."))
]
SEARCH = {"type": "function", "name": "search_web"}
CHOICES: dict[str, Any] = {
    "named": SEARCH,
    "the only one that is allowed, required": {"type": "allowed_tools", "mode": "required", "tools": [SEARCH]},
}


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
async def test_a_function_that_is_demanded_beside_others_is_called(live: Live, choice: Any, streamed: bool) -> None:
    ask: Any = {"model": MODEL, "tools": THREE, "tool_choice": choice, "max_output_tokens": 128}
    question = "What is the weather in Paris?"
    if streamed:
        events = await collected(await live.openai.responses.create(input=question, stream=True, **ask))
        check_raw(events)
        response = events[-1].response
    else:
        response = await live.strict.responses.create(input=question, **ask)
    calls = [item for item in response.output if item.type == "function_call"]
    assert calls, f"nothing was called: {response.output}"
    assert {call.name for call in calls} == {"search_web"}


async def test_the_sdk_parses_a_call(live: Live) -> None:
    response = await live.openai.responses.parse(
        model=MODEL,
        input="What is the weather in Oslo?",
        tools=[pydantic_function_tool(GetWeather)],
        max_output_tokens=64,
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert isinstance(call.parsed_arguments, GetWeather)


async def test_a_web_search_that_is_demanded_is_made_and_read(live: Live) -> None:
    rows = [
        {
            "url": "https://example.org/paris",
            "title": "Weather in Paris",
            "content": "It rains in Paris, at 12 degrees.",
        }
    ]
    answer = reply(orjson.dumps({"results": rows}), content_type="application/json")
    endpoints = [{"url": str(live.model_server.base_url), "kind": "llama.cpp"}]
    async with running_site({"/search": answer}) as site:
        search = {"provider": "searxng", "url": site.url}
        async with running_router(endpoints=endpoints, web_search=search) as router:
            events = await collected(
                await router.openai.responses.create(
                    model=MODEL,
                    input="What is the weather in Paris?",
                    tools=[{"type": "web_search", "external_web_access": False}],
                    tool_choice="required",
                    max_output_tokens=96,
                    stream=True,
                )
            )
    check_raw(events)
    response = events[-1].response
    called = response.output[0]
    assert (called.type, called.status, called.action.type) == ("web_search_call", "completed", "search")
    assert site.requests[0].query["q"] == called.action.query
    assert response.output_text, "the model has answered, with what it has read"


async def test_structured_output_has_its_structure(live: Live) -> None:
    ask: Any = {"model": MODEL, "input": "Ada is 36 years old. Who is it?", "text_format": Person}
    response = await live.openai.responses.parse(**ask)
    assert isinstance(response.output_parsed, Person)
    async with live.openai.responses.stream(**ask) as stream:
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Person)


async def test_reasoning_comes_before_the_text_and_goes_back_in_the_next_turn(live: Live) -> None:
    ask: Any = {"model": MODEL, "reasoning": {"effort": "low"}, "max_output_tokens": 128}
    events = await collected(await live.openai.responses.create(input="What color is snow?", stream=True, **ask))
    check_raw(events)
    first = events[-1].response
    assert first.status == "completed", first.incomplete_details
    assert isinstance(first.output[0], ResponseReasoningItem)
    assert first.output[0].content
    assert isinstance(first.output[1], ResponseOutputMessage)
    assert any(event.type == "response.reasoning_text.delta" for event in events)
    second = await live.strict.responses.create(input="And grass?", previous_response_id=first.id, **ask)
    assert isinstance(second.output[0], ResponseReasoningItem)


async def test_the_token_limit_makes_an_answer_incomplete(live: Live) -> None:
    response = await live.strict.responses.create(**ENDLESS | {"max_output_tokens": 5})
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None
    assert response.usage.output_tokens == 5
    events = await collected(await live.openai.responses.create(**ENDLESS | {"max_output_tokens": 5, "stream": True}))
    check_raw(events)
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
async def test_too_long_an_input_is_a_bad_request(live: Live, streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await live.openai.responses.create(model=MODEL, input="word " * (CONTEXT_TOKENS + 100), stream=streamed)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "input")
    assert raised.value.type == "invalid_request_error"


async def test_logprobs_are_those_of_the_tokens(live: Live) -> None:
    response = await live.strict.responses.create(**HELLO, top_logprobs=2, include=["message.output_text.logprobs"])
    part = response.output[0].content[0]
    assert part.logprobs
    assert response.output_text.startswith("".join(entry.token for entry in part.logprobs[:4]))
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in part.logprobs)
    events = await collected(await live.openai.responses.create(**HELLO, top_logprobs=2, stream=True))
    check_raw(events)
    assert any(event.logprobs for event in events if event.type == "response.output_text.delta")


async def test_an_image_that_the_model_cannot_see_is_an_error_that_says_so(live: Live) -> None:
    content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": PIXEL}]
    with pytest.raises(openai.APIStatusError, match="image"):
        await live.openai.responses.create(model=MODEL, input=[{"role": "user", "content": content}])


async def test_two_streams_run_side_by_side(live: Live) -> None:
    streams = [
        await live.openai.responses.create(model=MODEL, input=f"Count to {n}.", max_output_tokens=24, stream=True)
        for n in (3, 5)
    ]
    first, second = await asyncio.gather(*map(collected, streams))
    check_raw(first)
    check_raw(second)
    assert first[0].response.id != second[0].response.id


async def test_the_model_is_listed(live: Live) -> None:
    await live.openai.responses.create(model=MODEL, input="Hi", max_output_tokens=1)
    assert MODEL in [model.id async for model in live.strict.models.list()]
    assert (await live.strict.models.retrieve(MODEL)).id == MODEL


async def test_a_background_response_is_polled_until_it_is_done(live: Live) -> None:
    created = await live.strict.responses.create(**HELLO, background=True)
    assert created.status == "queued"
    seen = set()
    async with soon():
        while (response := await live.strict.responses.retrieve(created.id)).status in ("queued", "in_progress"):
            seen.add(response.status)
    assert response.status in ("completed", "incomplete"), response.error
    assert "in_progress" in seen
    assert response.output_text
    replayed = await collected(await live.openai.responses.retrieve(created.id, stream=True))
    check_raw(replayed)


async def test_a_background_stream_can_be_left_and_rejoined(live: Live) -> None:
    stream = await live.openai.responses.create(**HELLO, background=True, stream=True)
    seen = await until_text(stream)
    await stream.close()
    response_id, number = seen[0].response.id, seen[-1].sequence_number
    rest = await collected(await live.openai.responses.retrieve(response_id, stream=True, starting_after=number))
    check_raw([*seen, *rest])


async def test_a_cancelled_background_response_frees_the_slot_of_the_model(live: Live) -> None:
    created = await live.strict.responses.create(**ENDLESS, background=True)
    await live.wait_for_busy_slots(1)
    cancelled = await live.strict.responses.cancel(created.id)
    assert cancelled.status == "cancelled"
    await live.wait_for_busy_slots(0)
    assert live.router.in_flight() == 0


async def test_a_client_that_leaves_in_mid_stream_frees_the_slot_of_the_model(live: Live) -> None:
    stream = await live.openai.responses.create(**ENDLESS, stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    assert await live.busy_slots() == 1
    await stream.close()
    await live.wait_for_busy_slots(0)
    assert live.router.in_flight() == 0


async def test_a_client_that_leaves_before_the_answer_frees_the_slot_of_the_model(live: Live) -> None:
    """While another one stays: llama.cpp would not see that somebody left if we had asked it for a whole answer."""
    staying = await live.openai.responses.create(**ENDLESS, stream=True)
    asking = asyncio.create_task(live.openai.responses.create(**ENDLESS))
    await live.wait_for_busy_slots(2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await live.wait_for_busy_slots(1)
    assert live.router.in_flight() == 1
    await staying.close()
    await live.wait_for_busy_slots(0)
