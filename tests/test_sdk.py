"""The official SDK reads every answer: as JSON, event by event, through its accumulating helper, and with strict
types."""

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from openai.types.responses import (
    ParsedResponse,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseOutputText,
    ResponseReasoningItem,
)

from tests.conftest import Running
from tests.fake_backend import (
    FakeBackend,
    call,
    chat,
    chat_usage,
    interleaved,
    reasoning,
    refusal,
    with_logprobs,
)
from tests.sdk import (
    MODEL,
    WEATHER_TOOL,
    GetWeather,
    Person,
    check_raw,
    collected,
    strict_client,
    types_of,
)

PARIS, OSLO = {"city": "Paris"}, {"city": "Oslo"}


@pytest.fixture
def strict(served: Running) -> AsyncOpenAI:
    return strict_client(served)


# ── what an answer holds ─────────────────────────────────────────────────────


async def test_a_response_holds_its_text_its_usage_and_ids(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello there.", usage=chat_usage(11, 4, cached=8, reasoning=1)))
    response = await served.openai.responses.create(model=MODEL, input="Hi")
    assert response.output_text == "Hello there."
    assert response.to_dict()["output_text"] == "Hello there.", "the JSON body has no output_text"
    assert response.id.startswith("resp_")
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    assert message.id.startswith("msg_")
    assert response.usage is not None
    assert response.usage.to_dict() == {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 15,
    }


async def test_a_response_echoes_what_the_request_set(strict: AsyncOpenAI, backend: FakeBackend) -> None:
    given: dict[str, Any] = {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.75,
        "max_output_tokens": 100,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "name": "get_weather"},
        "tools": [WEATHER_TOOL],
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "metadata": {"project": "tests"},
        "truncation": "disabled",
        "user": "somebody",
        "safety_identifier": "some-body",
        "prompt_cache_key": "key",
        "service_tier": "default",
        "top_logprobs": 2,
        "store": True,
    }
    response = await strict.responses.create(model=MODEL, input="Hi", **given)
    body = response.to_dict()
    assert {key: body[key] for key in given} == given
    assert (body["model"], body["background"], body["previous_response_id"]) == (MODEL, False, None)


ECHOED = {
    "a function that leaves out what it may": {"type": "function", "name": "f"},
    "web_search": {"type": "web_search"},
    "custom": {
        "type": "custom",
        "name": "patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": "a: b"},
    },
    "mcp": {"type": "mcp", "server_label": "docs", "server_url": "https://example.com", "require_approval": "never"},
    "namespace": {
        "type": "namespace",
        "name": "files",
        "description": "Files.",
        "tools": [{"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": False}],
    },
}


@pytest.mark.parametrize("tool", ECHOED.values(), ids=ECHOED.keys())
async def test_a_strict_client_accepts_the_echo_of_every_tool(strict: AsyncOpenAI, tool: Any) -> None:
    response = await strict.responses.create(model=MODEL, input="Hi", tools=[tool])
    (echoed,) = response.to_dict()["tools"]
    assert echoed.items() >= tool.items()


@pytest.mark.parametrize(
    "choice",
    [
        "none",
        "auto",
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
    ids=["none", "auto", "required", "function", "allowed_tools"],
)
async def test_a_strict_client_accepts_the_echo_of_every_tool_choice(strict: AsyncOpenAI, choice: Any) -> None:
    response = await strict.responses.create(model=MODEL, input="Hi", tools=[WEATHER_TOOL], tool_choice=choice)
    assert response.to_dict()["tool_choice"] == choice


async def test_an_empty_string_is_an_input(served: Running, backend: FakeBackend) -> None:
    """Codex warms a model up with one."""
    response = await served.openai.responses.create(model=MODEL, input="", max_output_tokens=1)
    assert response.status == "completed"
    assert backend.turns[-1].json["messages"] == [{"role": "user", "content": ""}]


async def test_the_sampling_parameters_reach_the_backend_under_their_chat_names(
    served: Running, backend: FakeBackend
) -> None:
    await served.openai.responses.create(
        model=MODEL,
        input="Hi",
        temperature=0.5,
        top_p=0.75,
        max_output_tokens=100,
        parallel_tool_calls=False,
        tool_choice={"type": "function", "name": "get_weather"},
        tools=[WEATHER_TOOL],
        reasoning={"effort": "low"},
        text={"verbosity": "low"},
        user="somebody",
        extra_body={"seed": 7, "top_k": 40},
    )
    sent = backend.turns[-1].json
    expected = {
        "model": MODEL,
        "temperature": 0.5,
        "top_p": 0.75,
        "max_tokens": 100,
        "parallel_tool_calls": False,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "reasoning_effort": "low",
        "verbosity": "low",
        "user": "somebody",
        "seed": 7,
        "top_k": 40,
    }
    assert {key: sent.get(key) for key in expected} == expected
    function = {key: value for key, value in WEATHER_TOOL.items() if key != "type"}
    assert sent["tools"] == [{"type": "function", "function": function}]


async def test_reasoning_is_an_item_before_the_text(strict: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Two and two."), "It is 4."))
    response = await strict.responses.create(model=MODEL, input="2 + 2?")
    thought, message = response.output
    assert isinstance(thought, ResponseReasoningItem)
    assert thought.content is not None
    assert [part.text for part in thought.content] == ["Two and two."]
    assert isinstance(message, ResponseOutputMessage)
    assert response.output_text == "It is 4."


@pytest.mark.parametrize("ask", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 1}])
async def test_logprobs_are_asked_for_and_given(strict: AsyncOpenAI, backend: FakeBackend, ask: dict[str, Any]) -> None:
    backend.script(chat(with_logprobs("Hello there.")), chat(with_logprobs("Hello there.")))
    response = await strict.responses.create(model=MODEL, input="Hi", **ask)
    part = response.output[0].content[0]
    assert isinstance(part, ResponseOutputText)
    assert [entry.token for entry in part.logprobs or []] == ["Hello", " there."]
    assert all(entry.logprob == -0.25 and entry.top_logprobs for entry in part.logprobs or [])
    assert backend.turns[-1].json["logprobs"] is True
    assert backend.turns[-1].json.get("top_logprobs") == ask.get("top_logprobs")
    events = await collected(await strict.responses.create(model=MODEL, input="Hi", stream=True, **ask))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [entry.token for delta in deltas for entry in delta.logprobs] == ["Hello", " there."]


async def test_a_refusal_is_a_part_of_its_own(strict: AsyncOpenAI, backend: FakeBackend) -> None:
    backend.script(chat(refusal("I will not.")), chat(refusal("I will not.")))
    response = await strict.responses.create(model=MODEL, input="Hi")
    part = response.output[0].content[0]
    assert isinstance(part, ResponseOutputRefusal)
    assert (part.refusal, response.output_text) == ("I will not.", "")
    async with strict.responses.stream(model=MODEL, input="Hi") as stream:
        said = [event.delta async for event in stream if event.type == "response.refusal.delta"]
    assert "".join(said) == "I will not."


@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_a_cut_answer_is_incomplete_and_says_why(
    strict: AsyncOpenAI, backend: FakeBackend, finish_reason: str, reason: str
) -> None:
    backend.script(chat("Once upon a", finish_reason=finish_reason))
    response = await strict.responses.create(model=MODEL, input="A tale", max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == reason
    assert response.output[-1].status == "incomplete"
    assert response.output_text == "Once upon a"
    assert response.completed_at is None, "what is not complete has no time of completion"


async def test_hosted_tools_are_left_out_and_named_in_a_header(served: Running, backend: FakeBackend) -> None:
    raw = await served.openai.responses.with_raw_response.create(
        model=MODEL, input="Hi", tools=[{"type": "web_search"}, WEATHER_TOOL]
    )
    assert raw.headers["x-nomyo-omitted-tools"] == "web_search"
    assert [tool["function"]["name"] for tool in backend.turns[-1].json["tools"]] == ["get_weather"]
    response = raw.parse()
    assert [tool.type for tool in response.tools] == ["web_search", "function"], "the echo is the request's"


# ── the helpers of the SDK ───────────────────────────────────────────────────


async def test_the_stream_helper_gives_the_text_as_it_grows(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("One two three."))
    async with served.openai.responses.stream(model=MODEL, input="Count") as stream:
        deltas = [event async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert [delta.delta for delta in deltas] == ["One", " two", " three."]
    assert [delta.snapshot for delta in deltas] == ["One", "One two", "One two three."]
    assert final.output_text == "One two three."
    assert final.usage is not None


async def test_the_stream_helper_gives_calls_with_parsed_arguments(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(interleaved(call("GetWeather", PARIS, id="call_a"), call("GetWeather", OSLO, id="call_b"))))
    async with served.openai.responses.stream(
        model=MODEL, input="Weather?", tools=[pydantic_function_tool(GetWeather)]
    ) as stream:
        events = await collected(stream)
        final = await stream.get_final_response()
    grown: dict[int, str] = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            grown[event.output_index] = event.snapshot
    assert grown == {0: '{"city":"Paris"}', 1: '{"city":"Oslo"}'}
    assert [item.call_id for item in final.output] == ["call_a", "call_b"]
    assert [item.parsed_arguments for item in final.output] == [GetWeather(city="Paris"), GetWeather(city="Oslo")]


async def test_the_stream_helper_parses_structured_output(served: Running, backend: FakeBackend) -> None:
    backend.script(chat('{"name": "Ada", "age": 36}'))
    async with served.openai.responses.stream(model=MODEL, input="Who?", text_format=Person) as stream:
        parsed = [event.parsed async for event in stream if event.type == "response.output_text.done"]
        final = await stream.get_final_response()
    assert parsed == [Person(name="Ada", age=36)]
    assert final.output_parsed == Person(name="Ada", age=36)


@pytest.mark.parametrize("validated", [False, True], ids=["lenient", "strict"])
async def test_parse_gives_the_structured_output_as_an_object(
    served: Running, strict: AsyncOpenAI, backend: FakeBackend, validated: bool
) -> None:
    backend.script(chat(reasoning("Ada, then."), '{"name": "Ada", "age": 36}'))
    client = strict if validated else served.openai
    response = await client.responses.parse(model=MODEL, input="Who?", text_format=Person)
    assert isinstance(response, ParsedResponse)
    assert response.output_parsed == Person(name="Ada", age=36)
    sent = backend.turns[-1].json["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["name"] == "Person"
    assert sent["json_schema"]["strict"] is True
    assert set(sent["json_schema"]["schema"]["properties"]) == {"name", "age"}


@pytest.mark.parametrize("validated", [False, True], ids=["lenient", "strict"])
async def test_parse_gives_the_arguments_of_a_call_as_an_object(
    served: Running, strict: AsyncOpenAI, backend: FakeBackend, validated: bool
) -> None:
    backend.script(chat(call("GetWeather", PARIS)))
    client = strict if validated else served.openai
    response = await client.responses.parse(model=MODEL, input="Weather?", tools=[pydantic_function_tool(GetWeather)])
    (item,) = response.output
    assert isinstance(item, ResponseFunctionToolCall)
    assert item.parsed_arguments == GetWeather(city="Paris")
    (tool,) = backend.turns[-1].json["tools"]
    assert (tool["function"]["name"], tool["function"]["strict"]) == ("GetWeather", True)


async def test_parse_leaves_a_refusal_unparsed(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(refusal("I will not.")))
    response = await served.openai.responses.parse(model=MODEL, input="Who?", text_format=Person)
    assert response.output_parsed is None
    assert response.output[0].content[0].type == "refusal"


async def test_json_mode_reaches_the_backend(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("{}"))
    response = await served.openai.responses.create(
        model=MODEL, input="Answer in JSON", text={"format": {"type": "json_object"}}
    )
    assert backend.turns[-1].json["response_format"] == {"type": "json_object"}
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_object"


async def test_the_synchronous_client_does_all_of_it(served: Running, backend: FakeBackend) -> None:
    backend.script(
        chat("One."),
        chat("One two."),
        chat("One two three."),
        chat('{"name": "Ada", "age": 36}'),
    )

    def use() -> list[Any]:
        with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=None) as client:
            created = client.responses.create(model=MODEL, input="Count")
            events = list(
                client.responses.create(model=MODEL, input="On", stream=True, previous_response_id=created.id)
            )
            with client.responses.stream(model=MODEL, input="On") as stream:
                final = stream.get_final_response()
            parsed = client.responses.parse(model=MODEL, input="Who?", text_format=Person)
            items = [item.type for item in client.responses.input_items.list(created.id)]
            client.responses.delete(created.id)
            return [created.output_text, events, final.output_text, parsed.output_parsed, items]

    said, events, final, parsed, items = await asyncio.to_thread(use)
    assert (said, final, parsed, items) == ("One.", "One two three.", Person(name="Ada", age=36), ["message"])
    check_raw(events)
    assert isinstance(events[-1], ResponseCompletedEvent)
    assert events[-1].response.output_text == "One two."


async def test_raw_and_streaming_responses_of_the_sdk_work(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello."), chat("Hello."))
    raw = await served.openai.responses.with_raw_response.create(model=MODEL, input="Hi")
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().output_text == "Hello."
    async with served.openai.responses.with_streaming_response.create(model=MODEL, input="Hi", stream=True) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = await collected(await reply.parse())
    assert types_of(events)[-1] == "response.completed"


# ── models ───────────────────────────────────────────────────────────────────


async def test_the_models_are_listed_and_retrieved(strict: AsyncOpenAI, backend: FakeBackend) -> None:
    await strict.responses.create(model=MODEL, input="The router has looked for models when this is answered.")
    listed = [model async for model in strict.models.list()]
    assert [model.id for model in listed] == [MODEL]
    model = await strict.models.retrieve(MODEL)
    assert (model.id, model.object) == (MODEL, "model")
    assert model == listed[0]


async def test_a_function_that_does_not_say_is_echoed_as_strict_and_sent_as_it_is(
    served: Running, backend: FakeBackend
) -> None:
    tool: Any = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}
    response = await served.openai.responses.create(model=MODEL, input="Hi", tools=[tool])
    assert response.tools[0].to_dict()["strict"] is True
    assert "strict" not in str(backend.turns[-1].json)
