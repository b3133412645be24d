"""Turn after turn with the official SDK: chains, branches, tool round trips, and what the backend sees of them."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, reasoning, refusal
from tests.sdk import MODEL, PIXEL, WEATHER_TOOL, check_raw, collected

PARIS, OSLO = {"city": "Paris"}, {"city": "Oslo"}


def messages(backend: FakeBackend) -> list[dict[str, Any]]:
    """The conversation as the backend saw it last."""
    return backend.turns[-1].json["messages"]


def said(backend: FakeBackend) -> list[tuple[str, Any]]:
    return [(message["role"], message.get("content")) for message in messages(backend)]


# ── chains ───────────────────────────────────────────────────────────────────


async def test_a_chain_gives_the_backend_the_whole_history_in_order(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("One."), chat("Two."), chat("Three."))
    create = served.openai.responses.create
    first = await create(model=MODEL, input="1")
    second = await create(model=MODEL, input="2", previous_response_id=first.id)
    third = await create(model=MODEL, input="3", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    assert said(backend) == [
        ("user", "1"),
        ("assistant", "One."),
        ("user", "2"),
        ("assistant", "Two."),
        ("user", "3"),
    ]


async def test_instructions_hold_for_their_own_turn_alone(served: Running, backend: FakeBackend) -> None:
    create = served.openai.responses.create
    backend.script(chat("Arr."), chat("Yes."), chat("Oui."))
    first = await create(model=MODEL, input="1", instructions="Speak like a pirate.")
    second = await create(model=MODEL, input="2", previous_response_id=first.id)
    assert said(backend) == [("user", "1"), ("assistant", "Arr."), ("user", "2")]
    assert second.instructions is None
    await create(model=MODEL, input="3", previous_response_id=second.id, instructions="Speak French.")
    assert said(backend)[0] == ("system", "Speak French.")
    assert [role for role, _ in said(backend)].count("system") == 1


async def test_branches_do_not_see_each_other(served: Running, backend: FakeBackend) -> None:
    create = served.openai.responses.create
    backend.script(chat("Root."), chat("Left."), chat("Right."), chat("More left."))
    root = await create(model=MODEL, input="0")
    left = await create(model=MODEL, input="go left", previous_response_id=root.id)
    await create(model=MODEL, input="go right", previous_response_id=root.id)
    assert said(backend) == [("user", "0"), ("assistant", "Root."), ("user", "go right")]
    await create(model=MODEL, input="on", previous_response_id=left.id)
    assert said(backend)[2:] == [("user", "go left"), ("assistant", "Left."), ("user", "on")]


async def test_several_continuations_at_once_all_see_their_parent(served: Running, backend: FakeBackend) -> None:
    create = served.openai.responses.create
    backend.script(chat("Root."))
    root = await create(model=MODEL, input="0")
    branches = await asyncio.gather(
        *(create(model=MODEL, input=f"branch {n}", previous_response_id=root.id) for n in range(10))
    )
    assert len({branch.id for branch in branches}) == 10
    seen = [turn.json["messages"] for turn in backend.turns[1:]]
    assert [conversation[:2] for conversation in seen] == [
        [{"role": "user", "content": "0"}, {"role": "assistant", "content": "Root."}]
    ] * 10
    assert {conversation[2]["content"] for conversation in seen} == {f"branch {n}" for n in range(10)}


@pytest.mark.parametrize("stored_in", ["memory", "a file"])
async def test_a_turn_can_be_continued_the_moment_its_last_event_arrived(
    backend: FakeBackend, stack: AsyncExitStack, tmp_path: Path, stored_in: str
) -> None:
    url = "sqlite://" if stored_in == "memory" else f"sqlite:///{tmp_path}/router.db"
    served = await stack.enter_async_context(
        running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], database={"url": url})
    )
    previous = None
    for number in range(50):
        backend.script(chat(f"Answer {number}."))
        stream = await served.openai.responses.create(
            model=MODEL, input=f"Question {number}", stream=True, previous_response_id=previous
        )
        async for event in stream:
            if event.type == "response.completed":
                previous = event.response.id
                break  # the stream's end is not waited for
        expected = [text for n in range(number) for text in (f"Question {n}", f"Answer {n}.")]
        given = [content for _, content in said(backend)]
        assert given == [*expected, f"Question {number}"], f"turn {number} has another history"


async def test_a_streamed_and_a_stored_turn_continue_alike(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), "One."), chat("Two."), chat("Three."))
    events = await collected(await served.openai.responses.create(model=MODEL, input="1", stream=True))
    second = await served.openai.responses.create(
        model=MODEL, input="2", stream=True, previous_response_id=events[-1].response.id
    )
    check_raw(await collected(second))
    assert said(backend) == [("user", "1"), ("assistant", "One."), ("user", "2")]


async def test_what_cannot_be_found_cannot_be_continued(served: Running, backend: FakeBackend) -> None:
    create = served.openai.responses.create
    deleted = await create(model=MODEL, input="1")
    await served.openai.responses.delete(deleted.id)
    unstored = await create(model=MODEL, input="1", store=False)
    turns = len(backend.turns)
    for response_id in (deleted.id, unstored.id, "resp_unknown"):
        for stream in (False, True):
            with pytest.raises(BadRequestError, match=response_id) as refused:
                await create(model=MODEL, input="2", previous_response_id=response_id, stream=stream)
            assert refused.value.code == "previous_response_not_found"
            assert refused.value.param == "previous_response_id"
            assert refused.value.type == "invalid_request_error"
    assert len(backend.turns) == turns, "the backend was asked"


async def test_a_chain_breaks_where_an_earlier_turn_was_deleted(served: Running, backend: FakeBackend) -> None:
    create = served.openai.responses.create
    first = await create(model=MODEL, input="1")
    second = await create(model=MODEL, input="2", previous_response_id=first.id)
    await served.openai.responses.delete(first.id)
    with pytest.raises(BadRequestError) as refused:
        await create(model=MODEL, input="3", previous_response_id=second.id)
    assert refused.value.code == "previous_response_not_found"


async def test_an_incomplete_answer_can_be_continued(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Once upon", finish_reason="length"), chat(" a time."))
    first = await served.openai.responses.create(model=MODEL, input="A tale", max_output_tokens=16)
    await served.openai.responses.create(model=MODEL, input="Go on", previous_response_id=first.id)
    assert said(backend) == [("user", "A tale"), ("assistant", "Once upon"), ("user", "Go on")]


async def test_a_refusal_stays_in_the_history(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(refusal("I will not.")), chat("All right."))
    first = await served.openai.responses.create(model=MODEL, input="Do it")
    await served.openai.responses.create(model=MODEL, input="Please", previous_response_id=first.id)
    assert messages(backend)[1]["refusal"] == "I will not."


async def test_a_turn_that_is_not_stored_can_continue_one_that_is(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("One."), chat("Two."))
    first = await served.openai.responses.create(model=MODEL, input="1")
    second = await served.openai.responses.create(model=MODEL, input="2", previous_response_id=first.id, store=False)
    assert second.output_text == "Two."
    assert said(backend) == [("user", "1"), ("assistant", "One."), ("user", "2")]


# ── tools ────────────────────────────────────────────────────────────────────


async def test_a_function_call_makes_a_round_trip_through_the_chain(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(call("get_weather", PARIS, id="call_a")), chat("It rains in Paris."))
    first = await served.openai.responses.create(model=MODEL, input="Weather in Paris?", tools=[WEATHER_TOOL])
    (asked,) = first.output
    assert (asked.type, asked.name, asked.arguments) == ("function_call", "get_weather", '{"city":"Paris"}')
    second = await served.openai.responses.create(
        model=MODEL,
        tools=[WEATHER_TOOL],
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": asked.call_id, "output": "rain"}],
    )
    assert second.output_text == "It rains in Paris."
    function = {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    assert messages(backend) == [
        {"role": "user", "content": "Weather in Paris?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_a", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_a", "content": "rain"},
    ]


async def test_an_agent_goes_many_rounds_with_a_backend_that_numbers_its_calls_from_one(
    served: Running, backend: FakeBackend
) -> None:
    backend.strict = True
    rounds = 6
    backend.script(*[chat(call("get_weather", {"city": str(n)}, id="call_1")) for n in range(rounds)], chat("Done."))
    ask: Any = {"model": MODEL, "tools": [WEATHER_TOOL], "stream": True}
    events = await collected(await served.openai.responses.create(input="Go", **ask))
    call_ids = []
    for _ in range(rounds):
        (asked,) = events[-1].response.output
        call_ids.append(asked.call_id)
        output = {"type": "function_call_output", "call_id": asked.call_id, "output": f"it is {asked.arguments}"}
        stream = await served.openai.responses.create(
            input=[output], previous_response_id=events[-1].response.id, **ask
        )
        events = await collected(stream)
    assert events[-1].response.output_text == "Done."
    assert len(set(call_ids)) == rounds, f"call ids repeat: {call_ids}"
    tools = [message for message in messages(backend) if message["role"] == "tool"]
    assert [tool["content"] for tool in tools] == [f'it is {{"city":"{n}"}}' for n in range(rounds)]


async def test_several_calls_of_a_turn_are_one_assistant_message(served: Running, backend: FakeBackend) -> None:
    backend.strict = True
    backend.script(
        chat("Both.", call("get_weather", PARIS, id="call_a"), call("get_weather", OSLO, id="call_b")),
        chat("Rain and snow."),
    )
    stream = await served.openai.responses.create(model=MODEL, input="Weather?", tools=[WEATHER_TOOL], stream=True)
    first = (await collected(stream))[-1].response
    # The outputs come in the other order, one as text and one as parts.
    await served.openai.responses.create(
        model=MODEL,
        tools=[WEATHER_TOOL],
        previous_response_id=first.id,
        input=[
            {
                "type": "function_call_output",
                "call_id": "call_b",
                "output": [{"type": "input_text", "text": "snow"}, {"type": "input_text", "text": "-3 °C"}],
            },
            {"type": "function_call_output", "call_id": "call_a", "output": "rain"},
            {"role": "user", "content": "Well?"},
        ],
    )
    _, assistant, *tools, question = messages(backend)
    assert assistant["content"] == "Both."
    assert [tool_call["id"] for tool_call in assistant["tool_calls"]] == ["call_a", "call_b"]
    outputs = {tool["tool_call_id"]: tool["content"] for tool in tools}
    assert [tool["role"] for tool in tools] == ["tool", "tool"]
    assert outputs == {"call_a": "rain", "call_b": "snow\n-3 °C"}
    assert question == {"role": "user", "content": "Well?"}


async def test_an_image_in_a_tool_output_follows_as_a_user_message(served: Running, backend: FakeBackend) -> None:
    backend.strict = True
    backend.script(chat(call("look", "{}", id="call_a")), chat("A dot."))
    look = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}
    first = await served.openai.responses.create(model=MODEL, input="Look", tools=[look])
    await served.openai.responses.create(
        model=MODEL,
        tools=[look],
        previous_response_id=first.id,
        input=[
            {
                "type": "function_call_output",
                "call_id": "call_a",
                "output": [{"type": "input_image", "image_url": PIXEL, "detail": "low"}],
            }
        ],
    )
    *_, tool, shown = messages(backend)
    assert tool["role"] == "tool"
    assert shown["role"] == "user"
    assert shown["content"] == [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]


async def test_a_client_can_keep_the_history_itself(served: Running, backend: FakeBackend) -> None:
    """As the SDK's documentation does: `input += response.output`, then the outputs."""
    backend.strict = True
    backend.script(chat(reasoning("Weather."), call("get_weather", PARIS, id="call_a")), chat("It rains."))
    history: list[Any] = [{"role": "user", "content": "Weather in Paris?"}]
    first = await served.openai.responses.create(model=MODEL, input=history, tools=[WEATHER_TOOL], store=False)
    history += first.output
    history += [{"type": "function_call_output", "call_id": "call_a", "output": "rain"}]
    second = await served.openai.responses.create(model=MODEL, input=history, tools=[WEATHER_TOOL], store=False)
    assert second.output_text == "It rains."
    user, assistant, tool = messages(backend)
    assert user == {"role": "user", "content": "Weather in Paris?"}
    assert assistant["reasoning_content"] == "Weather."
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == "call_a"


async def test_a_call_without_its_output_cannot_be_continued(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(call("get_weather", PARIS, id="call_a")))
    first = await served.openai.responses.create(model=MODEL, input="Weather?", tools=[WEATHER_TOOL])
    with pytest.raises(BadRequestError, match="No tool output found for function call call_a") as refused:
        await served.openai.responses.create(model=MODEL, input="Well?", previous_response_id=first.id)
    assert refused.value.param == "input"


async def test_an_output_without_its_call_is_refused(served: Running, backend: FakeBackend) -> None:
    with pytest.raises(BadRequestError, match="call_nobody") as refused:
        await served.openai.responses.create(
            model=MODEL, input=[{"type": "function_call_output", "call_id": "call_nobody", "output": "rain"}]
        )
    assert refused.value.param == "input[0].call_id"
    assert not backend.turns, "the backend was asked"


# ── what a turn can hold ─────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
async def test_reasoning_is_replayed_in_the_next_turn(served: Running, backend: FakeBackend, key: str) -> None:
    backend.script(chat(reasoning("Two and two.", key=key), "It is 4."), chat("Yes."))
    first = await served.openai.responses.create(model=MODEL, input="2 + 2?")
    await served.openai.responses.create(model=MODEL, input="Sure?", previous_response_id=first.id)
    assert messages(backend)[1] == {
        "role": "assistant",
        "content": "It is 4.",
        "reasoning_content": "Two and two.",
    }


async def test_images_and_files_reach_the_backend_now_and_in_the_next_turn(
    served: Running, backend: FakeBackend
) -> None:
    first = await served.openai.responses.create(
        model=MODEL,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "high"},
                    {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
                    {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                ],
            }
        ],
    )
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "auto"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    ]
    assert said(backend) == [("user", parts)]
    await served.openai.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    assert said(backend)[0] == ("user", parts)


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_image", "file_id": "file_1", "detail": "auto"}, "input[0].content[0].file_id"),
        ({"type": "input_file", "file_id": "file_1"}, "input[0].content[0].file_id"),
    ],
)
async def test_what_a_chat_backend_cannot_be_given_is_refused_by_name(
    served: Running, backend: FakeBackend, part: Any, param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        await served.openai.responses.create(model=MODEL, input=[{"role": "user", "content": [part]}])
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    assert not backend.turns, "the backend was asked"


async def test_messages_of_every_role_and_form_arrive(served: Running, backend: FakeBackend) -> None:
    await served.openai.responses.create(
        model=MODEL,
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "How are you?"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Fine.", "annotations": []}],
            },
            {"role": "system", "content": "It is late."},
            {"role": "user", "content": "Bye"},
        ],
    )
    assert said(backend) == [
        ("system", "Be brief.\n\nBe kind."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "How are you?"),
        ("assistant", "Fine."),
        ("system", "It is late."),
        ("user", "Bye"),
    ]
