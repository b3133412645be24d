"""The scenarios with openai-python: `AsyncOpenAI().responses`, its strict stream helper and its WebSocket."""

from typing import Any

from openai import APIError, APIStatusError, AsyncOpenAI, NotFoundError, pydantic_function_tool
from openai.types.responses import Response, ToolParam
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CODE,
    FILES,
    OUTPUTS,
    PICTURE,
    PIXEL,
    PNG_BEGINS,
    RESULTS,
    TRIPS,
    WEATHER,
    WEB,
    Json,
    run,
)

client = AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
responses = client.responses


class Person(BaseModel):
    name: str
    age: int


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str


TOOL: Any = pydantic_function_tool(GetWeather, name="get_weather")
NOTE: ToolParam = {"type": "custom", "name": "note", "description": "Writes a note.", "format": {"type": "text"}}


def usage_of(response: Response) -> Json:
    usage = response.usage
    assert usage is not None
    return {
        "input": usage.input_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
        "output": usage.output_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
    }


def calls_of(response: Any) -> list[Any]:
    return [item for item in response.output if item.type == "function_call"]


def called(response: Any) -> list[list[str]]:
    return [[call.name, call.arguments] for call in calls_of(response)]


def outputs_of(response: Any) -> list[Any]:
    return [
        {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER[call.parsed_arguments.city]}
        for call in calls_of(response)
    ]


async def streamed(type: str, **request: Any) -> tuple[list[str], Any]:
    """The deltas of one type, and the response."""
    async with responses.stream(**request) as stream:
        deltas = [event.delta async for event in stream if event.type == type]
        return deltas, await stream.get_final_response()


async def text(model: str) -> Json:
    response = await responses.create(model=model, instructions="Be brief.", input="Say hello.")
    return {"text": response.output_text, "usage": usage_of(response)}


async def stream(model: str) -> Json:
    deltas, response = await streamed(
        "response.output_text.delta", model=model, instructions="Be brief.", input="Say hello."
    )
    return {"deltas": deltas, "text": response.output_text, "usage": usage_of(response)}


async def reasoning(model: str) -> Json:
    """Streamed, its deltas read; then answered by carrying it along, sealed."""
    request: Json = {"model": model, "store": False, "include": ["reasoning.encrypted_content"], "tools": [TOOL]}
    question = {"role": "user", "content": "The weather in Paris?"}
    thoughts, first = await streamed("response.reasoning_text.delta", **request, input=[question])
    second = await responses.parse(**request, input=[question, *first.output, *outputs_of(first)])
    return {"reasoning": "".join(thoughts), "text": second.output_text}


async def tools(model: str) -> Json:
    question: Any = {"role": "user", "content": "The weather in Paris and Oslo?"}
    first = await responses.parse(model=model, input=[question], tools=[TOOL])
    history = [question, *first.output, *outputs_of(first)]
    second = await responses.parse(model=model, input=history, tools=[TOOL])
    return {"calls": called(first), "text": second.output_text}


async def tools_stream(model: str) -> Json:
    """Chained by previous_response_id: only the outputs are sent."""
    request: Json = {"model": model, "tools": [TOOL]}
    fragments, first = await streamed(
        "response.function_call_arguments.delta", **request, input="The weather in Paris and Oslo?"
    )
    assert "".join(fragments) == "".join(arguments for _, arguments in called(first))
    _, second = await streamed("", **request, previous_response_id=first.id, input=outputs_of(first))
    return {"calls": called(first), "text": second.output_text}


async def structured(model: str) -> Json:
    response = await responses.parse(model=model, input="Who was Ada?", text_format=Person)
    assert isinstance(response.output_parsed, Person)
    return response.output_parsed.model_dump()


async def chain(model: str) -> Json:
    first = await responses.create(model=model, input="The capital of France?")
    second = await responses.create(model=model, input="And of Norway?", previous_response_id=first.id)
    return {"texts": [first.output_text, second.output_text]}


async def image(model: str) -> Json:
    content: Any = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    ]
    return {"text": (await responses.create(model=model, input=[{"role": "user", "content": content}])).output_text}


async def length(model: str) -> Json:
    response = await responses.create(model=model, input="Count.", max_output_tokens=16)
    assert response.incomplete_details is not None
    return {"text": response.output_text, "finish": [response.status, response.incomplete_details.reason]}


async def refused(model: str) -> Json:
    try:
        await responses.create(model=model, input="Too long.")
    except APIStatusError as error:
        return {"error": type(error).__name__, "status": error.status_code, "code": error.code}
    raise AssertionError("it raised nothing")


async def broken(model: str) -> Json:
    deltas: list[str] = []
    try:
        async with responses.stream(model=model, input="Go on.") as events:
            async for event in events:
                deltas += [event.delta] if event.type == "response.output_text.delta" else []
    except APIError as error:
        return {"deltas": deltas, "error": type(error).__name__, "message": error.message}
    raise AssertionError("it raised nothing")


async def stored(model: str) -> Json:
    """Retrieve, list its input, replay, delete."""
    first = await responses.create(model=model, input="Say hello.")
    again = await responses.retrieve(first.id)
    (item,) = [item async for item in responses.input_items.list(first.id)]
    types = [event.type async for event in await responses.retrieve(first.id, stream=True)]
    await responses.delete(first.id)
    try:
        await responses.retrieve(first.id)
    except NotFoundError as error:
        content = item.to_dict()["content"]
        return {"text": again.output_text, "input": content, "ends": [types[0], types[-1]], "gone": error.status_code}
    raise AssertionError("it is still there")


async def background(model: str) -> Json:
    response = await responses.create(model=model, input="Say hello.", background=True)
    begun = response.status in ("queued", "in_progress")
    while response.status in ("queued", "in_progress"):
        response = await responses.retrieve(response.id)
    return {"begun": begun, "status": response.status, "text": response.output_text}


async def compact(model: str) -> Json:
    compacted = await responses.compact(model=model, input=[{"role": "user", "content": "I am Ada."}])
    history: Any = [*compacted.output, {"role": "user", "content": "Who am I?"}]
    response = await responses.create(model=model, input=history)
    return {"types": [item.type for item in compacted.output], "text": response.output_text}


async def custom_tool(model: str) -> Json:
    request: Json = {"model": model, "tools": [NOTE]}
    inputs, first = await streamed("response.custom_tool_call_input.delta", **request, input="Note it.")
    (call,) = first.output
    assert "".join(inputs) == call.input
    output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "noted"}
    second = await responses.create(**request, previous_response_id=first.id, input=[output])
    return {"input": call.input, "text": second.output_text}


async def websocket(model: str) -> Json:
    """Two turns over one connection, with nothing stored."""
    texts: list[str] = []
    previous: str | None = None
    async with responses.connect() as connection:
        for prompt in ("The capital of France?", "And of Norway?"):
            await connection.response.create(model=model, input=prompt, store=False, previous_response_id=previous)
            async for event in connection:
                if event.type == "response.completed":
                    previous = event.response.id
                    texts.append(event.response.output_text)
                    break
    return {"texts": texts}


def planned(response: Response) -> Json:
    calls = [item for item in response.output if item.type == "mcp_call"]
    outputs = [call.output for call in calls]
    return {"calls": [[call.name, call.arguments] for call in calls], "outputs": outputs, "text": response.output_text}


async def mcp(model: str) -> Json:
    deltas, response = await streamed(
        "response.mcp_call_arguments.delta", model=model, input="Plan a trip.", tools=[TRIPS]
    )
    assert "".join(deltas) == planned(response)["calls"][0][1]
    return planned(response)


async def mcp_approval(model: str) -> Json:
    tools: Any = [TRIPS | {"require_approval": "always"}]
    first = await responses.create(model=model, input="Plan a trip.", tools=tools)
    request = first.output[-1]
    assert request.type == "mcp_approval_request"
    approval: Any = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    return planned(await responses.create(model=model, input=[approval], tools=tools, previous_response_id=first.id))


def items_of(response: Response, type: str) -> list[Any]:
    return [item for item in response.output if item.type == type]


def cited(response: Response) -> list[Any]:
    parts = [part for item in items_of(response, "message") for part in item.content]
    return [annotation for part in parts for annotation in part.annotations]


async def code(model: str) -> Json:
    deltas, response = await streamed(
        "response.code_interpreter_call_code.delta", model=model, input="Count.", tools=[CODE], include=[OUTPUTS]
    )
    (ran,) = items_of(response, "code_interpreter_call")
    assert "".join(deltas) == ran.code
    return {"code": [ran.code], "logs": [output.logs for output in ran.outputs], "text": response.output_text}


async def files(model: str) -> Json:
    _, response = await streamed("", model=model, input="Moss?", tools=[FILES], include=[RESULTS])
    (found,) = items_of(response, "file_search_call")
    return {
        "queries": found.queries,
        "files": [result.filename for result in found.results],
        "cited": [citation.filename for citation in cited(response)],
        "text": response.output_text,
    }


async def picture(model: str) -> Json:
    _, response = await streamed("", model=model, input="Draw a cat.", tools=[PICTURE])
    (made,) = items_of(response, "image_generation_call")
    return {"is_png": made.result.startswith(PNG_BEGINS), "text": response.output_text}


async def web(model: str) -> Json:
    _, response = await streamed("", model=model, input="Moss?", tools=[WEB])
    (found,) = items_of(response, "web_search_call")
    assert found.action.type == "search"
    assert [response.output_text[one.start_index : one.end_index] for one in cited(response)] == [
        "([moss.example](http://moss.example/))"
    ]
    return {"cited": [citation.url for citation in cited(response)], "text": response.output_text}


run(globals())
