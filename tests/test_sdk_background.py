"""Responses that run without a client: polled, followed, left, rejoined and cancelled with the official SDK."""

import asyncio

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from tests.conftest import Running, running_router
from tests.fake_backend import DONE, FakeBackend, chat, chunk, cut, reasoning, stall, steps, until
from tests.sdk import MODEL, check_raw, check_types, collected, ended, strict_client, types_of, until_text


@pytest.fixture
def strict(served: Running) -> AsyncOpenAI:
    return strict_client(served)


async def test_a_background_response_is_queued_polled_and_completed(strict: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script(stall(), chat("Hello."))
    created = await strict.responses.create(model=MODEL, input="Hi", background=True)
    assert created.status == "queued"
    assert created.background is True
    assert (created.output, created.usage) == ([], None)
    at_once = await strict.responses.retrieve(created.id)
    assert at_once.status in ("queued", "in_progress")
    await backend.wait_for(lambda b: b.in_flight == 1)
    assert (await strict.responses.retrieve(created.id)).status == "in_progress"
    with pytest.raises(BadRequestError, match="still"):
        await strict.responses.create(model=MODEL, input="On", previous_response_id=created.id)
    await strict.responses.cancel(created.id)
    second = await strict.responses.create(model=MODEL, input="Hi", background=True)
    done = await ended(strict, second.id)
    assert done.status == "completed"
    assert done.output_text == "Hello."
    assert done.usage is not None
    chained = await strict.responses.create(model=MODEL, input="On", previous_response_id=second.id)
    assert chained.status == "completed"


async def test_a_background_stream_begins_queued_and_is_read_strictly(
    served: Running, strict: AsyncOpenAI, backend: FakeBackend
) -> None:
    backend.script(chat(reasoning("Hm."), "Hello."), chat(reasoning("Hm."), "Hello."))
    events = await collected(
        await served.openai.responses.create(model=MODEL, input="Hi", background=True, stream=True)
    )
    check_raw(events)
    assert types_of(events)[:3] == ["response.created", "response.queued", "response.in_progress"]
    check_types(await collected(await strict.responses.create(model=MODEL, input="Hi", background=True, stream=True)))


async def test_a_background_stream_goes_on_without_its_client_and_can_be_rejoined(
    served: Running, backend: FakeBackend
) -> None:
    go = asyncio.Event()
    ending = [chunk({"content": " two."}), chunk({}, finish_reason="stop"), DONE]
    backend.script(chat("One", then=steps(until(go), *ending)))
    stream = await served.openai.responses.create(model=MODEL, input="Count", background=True, stream=True)
    seen = await until_text(stream)
    await stream.close()
    response_id = seen[0].response.id
    assert (await served.openai.responses.retrieve(response_id)).status == "in_progress"
    rejoined = await served.openai.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    assert backend.aborts == 0, "the client left, and the turn went with it"
    go.set()
    rest = await collected(rejoined)
    check_raw([*seen, *rest])
    assert rest[-1].response.output_text == "One two."


async def test_who_rejoins_live_or_later_sees_the_same_events(served: Running, backend: FakeBackend) -> None:
    go = asyncio.Event()
    thought = reasoning("Hm.")
    backend.script(steps(until(go), chat(thought, "One two three.")))
    created = await served.openai.responses.create(model=MODEL, input="Count", background=True, stream=True)
    response_id = (await anext(aiter(created))).response.id
    retrieve = served.openai.responses.retrieve
    streams = [await retrieve(response_id, stream=True) for _ in range(2)]
    go.set()
    live, also_live = await asyncio.gather(*map(collected, streams))
    check_raw(live)
    later = await collected(await retrieve(response_id, stream=True))
    part = await collected(await retrieve(response_id, stream=True, starting_after=5))
    assert live == also_live == later
    assert part == live[6:]
    await created.close()


async def test_the_stream_helper_rejoins_a_background_response(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("One two three.", delay_s=0.005))
    created = await served.openai.responses.create(model=MODEL, input="Count", background=True)
    async with served.openai.responses.stream(response_id=created.id) as stream:
        final = await stream.get_final_response()
    assert final.output_text == "One two three."


async def test_a_running_background_response_is_cancelled_and_its_backend_aborted(
    strict: AsyncOpenAI, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat("Hello", then=stall()))
    created = await strict.responses.create(model=MODEL, input="Hi", background=True)
    await backend.wait_for(lambda b: b.in_flight == 1)
    cancelled = await strict.responses.cancel(created.id)
    assert cancelled.status == "cancelled"
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served.in_flight() == 0
    assert (await strict.responses.retrieve(created.id)).status == "cancelled"
    assert (await strict.responses.cancel(created.id)).status == "cancelled", "a second cancel is answered alike"


@pytest.mark.parametrize("validated", [False, True], ids=["lenient", "strict"])
async def test_who_follows_a_background_stream_sees_that_it_was_cancelled(
    served: Running, strict: AsyncOpenAI, backend: FakeBackend, validated: bool
) -> None:
    client = strict if validated else served.openai
    backend.script(chat("Hello there", then=stall()))
    stream = await client.responses.create(model=MODEL, input="Hi", background=True, stream=True)
    events = await until_text(stream)
    await client.responses.cancel(events[0].response.id)
    events += await collected(stream)
    check_types(events)
    if not validated:
        check_raw(events)
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "cancelled")
    assert events[-1].response.output[0].status == "incomplete", "the partial output is lost"
    again = await collected(await client.responses.retrieve(events[0].response.id, stream=True))
    assert again == events


async def test_a_queued_background_response_is_cancelled_before_it_ran(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, background={"max_concurrent": 1, "drain_s": 0}) as served:
        responses = served.openai.responses
        backend.script(chat("Hello", then=stall()))
        running = await responses.create(model=MODEL, input="1", background=True)
        await backend.wait_for(lambda b: b.in_flight == 1)
        waiting = await responses.create(model=MODEL, input="2", background=True)
        assert (await responses.retrieve(waiting.id)).status == "queued"
        assert (await responses.cancel(waiting.id)).status == "cancelled"
        assert (await responses.cancel(running.id)).status == "cancelled"
        third = await responses.create(model=MODEL, input="3", background=True)
        assert (await ended(served.openai, third.id)).status == "completed"
    asked = [turn.json["messages"][-1]["content"] for turn in backend.turns]
    assert asked == ["1", "3"], "the cancelled one reached the backend"


async def test_cancels_at_any_moment_leave_no_response_without_an_end(served: Running, backend: FakeBackend) -> None:
    backend.default = chat("One two three four five.", delay_s=0.001)
    responses = served.openai.responses

    async def cancelled_at(moment: int) -> tuple[str | None, str | None]:
        created = await responses.create(model=MODEL, input="Count", background=True, stream=moment % 2 == 0)
        if moment % 2 == 0:
            response_id = (await anext(aiter(created))).response.id
        else:
            response_id = created.id
        await asyncio.sleep(moment / 1000)
        answered = (await responses.cancel(response_id)).status
        return answered, (await responses.retrieve(response_id)).status

    for answered, kept in await asyncio.gather(*map(cancelled_at, range(30))):
        assert answered == kept
        assert answered in ("cancelled", "completed")
    assert served.in_flight() == 0
    await backend.wait_for(lambda b: b.in_flight == 0)


async def test_a_finished_background_response_is_answered_as_it_is_when_cancelled(served: Running) -> None:
    created = await served.openai.responses.create(model=MODEL, input="Hi", background=True)
    done = await ended(served.openai, created.id)
    assert await served.openai.responses.cancel(created.id) == done


async def test_a_response_in_the_foreground_cannot_be_cancelled(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello", then=stall()))
    stream = await served.openai.responses.create(model=MODEL, input="Hi", stream=True)
    first = await anext(aiter(stream))
    with pytest.raises(BadRequestError, match="background"):
        await served.openai.responses.cancel(first.response.id)
    await stream.close()


async def test_a_background_response_that_fails_says_why(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello", then=cut()))
    created = await served.openai.responses.create(model=MODEL, input="Hi", background=True)
    failed = await ended(served.openai, created.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "server_error"
    assert failed.error.message


async def test_a_background_response_of_an_unknown_model_fails(served: Running) -> None:
    created = await served.openai.responses.create(model="nobody", input="Hi", background=True)
    failed = await ended(served.openai, created.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "nobody" in failed.error.message


async def test_deleting_a_running_background_response_stops_it(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello", then=stall()))
    created = await served.openai.responses.create(model=MODEL, input="Hi", background=True)
    await backend.wait_for(lambda b: b.in_flight == 1)
    await served.openai.responses.delete(created.id)
    await backend.wait_for(lambda b: b.aborts == 1)
    with pytest.raises(NotFoundError):
        await served.openai.responses.retrieve(created.id)


async def test_background_without_a_store_is_refused(served: Running) -> None:
    with pytest.raises(BadRequestError) as refused:
        await served.openai.responses.create(model=MODEL, input="Hi", background=True, store=False)
    assert refused.value.param == "store"
