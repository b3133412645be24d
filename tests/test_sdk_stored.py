"""What is kept of a response, and what the cache makes of it, as the official SDK asks for them."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from tests.conftest import Running
from tests.fake_backend import (
    DONE,
    FakeBackend,
    call,
    chat,
    chunk,
    interleaved,
    reasoning,
    sse_error,
    stall,
    steps,
    until,
)
from tests.sdk import (
    MODEL,
    PIXEL,
    WEATHER_TOOL,
    check_raw,
    check_types,
    collected,
    ended,
    stored_events,
    strict_client,
    types_of,
    until_text,
    wire_events,
)
from tests.stream_grammar import check_stream


@pytest.fixture
def strict(served: Running) -> AsyncOpenAI:
    return strict_client(served)


# ── retrieve and delete ──────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True], ids=["created whole", "created as a stream"])
async def test_what_is_retrieved_is_what_was_answered(strict: AsyncOpenAI, backend: FakeBackend, stream: bool) -> None:
    backend.script(chat(reasoning("Hm."), "Hello.", call("get_weather", '{"city":"Paris"}')))
    answer: Any = await strict.responses.create(
        model=MODEL, input="Hi", tools=[WEATHER_TOOL], metadata={"a": "b"}, stream=stream
    )
    created = (await collected(answer))[-1].response if stream else answer
    retrieved = await strict.responses.retrieve(created.id, include=["message.output_text.logprobs"])
    assert retrieved.to_dict() | {"output_text": ""} == created.to_dict() | {"output_text": ""}
    assert retrieved.output_text == "Hello."


async def test_a_stored_response_is_streamed_again_in_whole_and_in_part(served: Running, backend: FakeBackend) -> None:
    backend.script(
        chat(reasoning("Hm."), "Hello.", interleaved(call("now", "{}"), call("get_weather", '{"city":"Paris"}')))
    )
    created = await served.openai.responses.create(model=MODEL, input="Hi")
    again = await collected(await served.openai.responses.retrieve(created.id, stream=True))
    check_raw(again)
    assert again[-1].response.output == created.output
    rest = await collected(await served.openai.responses.retrieve(created.id, stream=True, starting_after=4))
    assert [event.sequence_number for event in rest] == list(range(5, len(again)))
    assert rest == again[5:]
    assert await collected(await served.openai.responses.retrieve(created.id, stream=True, starting_after=999)) == []


async def test_the_stream_helper_takes_up_a_stored_response(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("One two three."))
    created = await served.openai.responses.create(model=MODEL, input="Count")
    async with served.openai.responses.stream(response_id=created.id, starting_after=3) as stream:
        events = await collected(stream)
        final = await stream.get_final_response()
    assert events[0].sequence_number == 4
    assert final.id == created.id
    assert final.output_text == "One two three."


async def test_a_strict_client_accepts_a_replay(strict: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), "Hello.", call("now", ""), finish_reason="length"))
    created = await strict.responses.create(model=MODEL, input="Hi")
    events = await collected(await strict.responses.retrieve(created.id, stream=True))
    check_types(events)
    assert types_of(events)[-1] == "response.incomplete"


async def test_a_deleted_response_is_gone(served: Running) -> None:
    created = await served.openai.responses.create(model=MODEL, input="Hi")
    await served.openai.responses.delete(created.id)
    for ask in (
        served.openai.responses.retrieve(created.id),
        served.openai.responses.retrieve(created.id, stream=True),
        served.openai.responses.delete(created.id),
        served.openai.responses.cancel(created.id),
        served.openai.responses.input_items.list(created.id),
    ):
        with pytest.raises(NotFoundError, match=created.id) as refused:
            await ask
        assert refused.value.type == "invalid_request_error"


async def test_a_response_can_be_retrieved_while_it_streams_and_is_cancelled_when_its_client_leaves(
    strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.script(chat("Hello there", then=stall()))
    stream = await strict.responses.create(model=MODEL, input="Hi", stream=True)
    response_id = (await until_text(stream))[0].response.id
    assert (await strict.responses.retrieve(response_id)).status == "in_progress"
    with pytest.raises(BadRequestError, match="in_progress") as refused:
        await strict.responses.create(model=MODEL, input="On", previous_response_id=response_id)
    assert refused.value.param == "previous_response_id"
    await stream.close()
    await backend.wait_for(lambda b: b.aborts == 1)
    left = await ended(strict, response_id)
    assert left.status == "cancelled"
    assert left.output[0].status == "incomplete", "the partial output is lost"


async def test_a_response_that_is_deleted_while_it_streams_stays_gone(served: Running, backend: FakeBackend) -> None:
    go = asyncio.Event()
    ending = [chunk({"content": " two."}), chunk({}, finish_reason="stop"), DONE]
    backend.script(chat("One", then=steps(until(go), *ending)))
    stream = await served.openai.responses.create(model=MODEL, input="Hi", stream=True)
    first = await anext(aiter(stream))
    await served.openai.responses.delete(first.response.id)
    go.set()
    rest = await collected(stream)
    assert rest[-1].type == "response.completed"
    with pytest.raises(NotFoundError):
        await served.openai.responses.retrieve(first.response.id)


async def test_store_false_leaves_nothing_to_retrieve(served: Running) -> None:
    created = await served.openai.responses.create(model=MODEL, input="Hi", store=False)
    assert created.to_dict()["store"] is False
    with pytest.raises(NotFoundError):
        await served.openai.responses.retrieve(created.id)


# ── input items ──────────────────────────────────────────────────────────────


async def test_input_items_come_in_pages_in_either_order(served: Running) -> None:
    created = await served.openai.responses.create(
        model=MODEL, input=[{"role": "user", "content": f"message {n}"} for n in range(25)]
    )
    list_items = served.openai.responses.input_items.list

    def texts(items: list[Any]) -> list[int]:
        return [int(item.content[0].text.removeprefix("message ")) for item in items]

    newest = await list_items(created.id)
    assert texts(newest.data) == list(range(24, 4, -1)), "20 items, the newest first, are the default"
    assert newest.has_more
    assert newest.has_next_page()
    assert texts((await newest.get_next_page()).data) == [4, 3, 2, 1, 0]
    oldest = await list_items(created.id, order="asc", limit=3)
    assert texts(oldest.data) == [0, 1, 2]
    after = await list_items(created.id, order="asc", limit=3, after=oldest.data[-1].id)
    assert texts(after.data) == [3, 4, 5]
    body = oldest.to_dict()
    assert (body["first_id"], body["last_id"]) == (oldest.data[0].id, oldest.data[-1].id)
    last = await list_items(created.id, order="asc", limit=3, after=newest.data[0].id)
    assert (last.data, last.has_more) == ([], False)
    every = [item async for item in list_items(created.id, limit=7, order="asc")]
    assert texts(every) == list(range(25)), "auto-pagination"


async def test_input_items_are_what_the_response_was_made_from_each_with_its_type(
    strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.script(chat(call("get_weather", '{"city":"Paris"}', id="call_a")))
    first = await strict.responses.create(model=MODEL, input="Weather?", tools=[WEATHER_TOOL])
    second = await strict.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[
            {"type": "function_call_output", "call_id": "call_a", "output": "rain"},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "And here?"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
                ],
            },
            {"role": "assistant", "content": "Hm."},
        ],
    )
    (only,) = [item async for item in strict.responses.input_items.list(first.id)]
    assert (only.type, only.role, only.content[0].text) == ("message", "user", "Weather?")
    page = await strict.responses.input_items.list(
        second.id, order="asc", include=["message.input_image.image_url", "reasoning.encrypted_content"]
    )
    first_question, called, output, question, answer = page.data
    assert first_question.id == only.id
    assert (called.type, called.id) == ("function_call", first.output[0].id)
    assert (output.type, output.call_id, output.output) == ("function_call_output", "call_a", "rain")
    assert question.content[1].image_url == PIXEL
    assert answer.content[0].type == "output_text"
    assert len({item.id for item in page.data}) == 5


async def test_an_unknown_item_in_after_is_named(served: Running) -> None:
    created = await served.openai.responses.create(model=MODEL, input="Hi")
    with pytest.raises(BadRequestError) as refused:
        await served.openai.responses.input_items.list(created.id, after="msg_unknown")
    assert refused.value.param == "after"
    with pytest.raises(BadRequestError) as refused:
        await served.openai.responses.input_items.list(created.id, limit=101)
    assert refused.value.param == "limit"


# ── the cache ────────────────────────────────────────────────────────────────


async def test_a_cached_answer_is_a_response_of_its_own(
    served: Running, strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.script(chat(reasoning("Hm."), "Hello.", call("now", "{}", id="call_a")))
    ask: Any = {"model": MODEL, "input": "Hi", "extra_body": {"nomyo": {"cache": True}}}
    streamed = await collected(await served.openai.responses.create(stream=True, **ask))
    body = await strict.responses.create(**ask)
    replayed = await collected(await served.openai.responses.create(stream=True, **ask))
    assert len(backend.turns) == 1, "the backend was asked again"
    check_raw(streamed)
    check_raw(replayed)
    responses = [streamed[-1].response, body, replayed[-1].response]
    assert len({response.id for response in responses}) == 3
    assert len({item.id for response in responses for item in response.output}) == 9, "items share ids"
    assert {response.output_text for response in responses} == {"Hello."}
    chained = await served.openai.responses.create(
        model=MODEL,
        previous_response_id=body.id,
        input=[{"type": "function_call_output", "call_id": "call_a", "output": "noon"}],
    )
    assert chained.status == "completed"
    assert (await strict.responses.retrieve(body.id)).output_text == "Hello."


async def test_a_cached_answer_is_given_in_the_background_too(served: Running, backend: FakeBackend) -> None:
    ask: Any = {"model": MODEL, "input": "Hi", "extra_body": {"nomyo": {"cache": True}}}
    await served.openai.responses.create(**ask)
    events = await collected(await served.openai.responses.create(background=True, stream=True, **ask))
    assert len(backend.turns) == 1, "the backend was asked again"
    check_raw(events)
    created = await served.openai.responses.create(background=True, **ask)
    assert (await ended(served.openai, created.id)).output_text == events[-1].response.output_text


# ── a response that failed ───────────────────────────────────────────────────


async def test_a_failed_response_is_streamed_again_with_its_error(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hel", then=sse_error("it broke", code=500)))
    live = await wire_events(served)
    again = await stored_events(served, live[-1]["response"]["id"])
    check_stream(again)
    assert [event["type"] for event in live[-2:]] == ["error", "response.failed"]
    assert [event["type"] for event in again[-2:]] == ["error", "response.failed"]
    assert again[-2]["message"] == again[-2]["error"]["message"] == live[-2]["message"]
    assert again[-1]["response"] == live[-1]["response"]


async def test_half_a_call_does_not_end_when_it_is_streamed_again(served: Running, backend: FakeBackend) -> None:
    """A client that saw it end might run it."""
    backend.script(chat(call("delete", '{"path": "/tmp/a"}'), then=sse_error()))
    live = await wire_events(served, tools=[WEATHER_TOOL | {"name": "delete"}])
    again = await stored_events(served, live[-1]["response"]["id"])
    for events in (live, again):
        check_stream(events)
        assert events[-1]["response"]["output"][0]["status"] == "incomplete"
        ends = [event["type"] for event in events if event["type"].endswith((".done", ".completed"))]
        assert not ends, f"the call ends: {ends}"
