"""The scenarios with pydantic-ai: `Agent` over `OpenAIResponsesModel`."""

import json
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    BinaryContent,
    FilePart,
    ModelHTTPError,
    NativeOutput,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ToolCallPart,
    ToolOutput,
)
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.native_tools import (
    CodeExecutionTool,
    FileSearchTool,
    ImageGenerationTool,
    MCPServerTool,
    WebSearchTool,
)
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import BASE_URL, PIXEL, TRIPS, WEATHER, Json, run

client = AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
provider = OpenAIProvider(openai_client=client)


class Person(BaseModel):
    name: str
    age: int


async def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def agent(model: str, *, settings: Json | None = None, **others: Any) -> Agent[None, Any]:
    settings = {f"openai_{name}": value for name, value in (settings or {}).items()}
    return Agent(OpenAIResponsesModel(model, provider=provider), model_settings=settings, **others)


def parts_of(result: Any, kind: type) -> list[Any]:
    return [part for message in result.all_messages() for part in message.parts if isinstance(part, kind)]


def calls_of(result: Any) -> list[list[str]]:
    return [[part.tool_name, part.args_as_json_str()] for part in parts_of(result, ToolCallPart)]


def usage_of(result: Any) -> Json:
    usage = result.usage
    return {
        "input": usage.input_tokens,
        "cached": usage.cache_read_tokens,
        "output": usage.output_tokens,
        "reasoning": usage.details["reasoning_tokens"],
    }


async def text(model: str) -> Json:
    result = await agent(model, instructions="Be brief.").run("Say hello.")
    return {"text": result.output, "usage": usage_of(result)}


async def stream(model: str) -> Json:
    async with agent(model, instructions="Be brief.").run_stream("Say hello.") as result:
        deltas = [delta async for delta in result.stream_text(delta=True, debounce_by=None)]
        return {"deltas": deltas, "text": "".join(deltas), "usage": usage_of(result)}


async def reasoning(model: str) -> Json:
    settings = {"store": False, "send_reasoning_ids": True}
    result = await _run_streamed(agent(model, settings=settings, tools=[get_weather]), "The weather in Paris?")
    (thought,) = parts_of(result, ThinkingPart)
    reasoning = thought.content or "".join((thought.provider_details or {}).get("raw_content", []))
    return {"reasoning": reasoning, "text": result.output}


async def _run_streamed(agent: Agent[None, Any], prompt: Any) -> Any:
    async with agent.iter(prompt) as steps:
        async for step in steps:
            if Agent.is_model_request_node(step):
                async with step.stream(steps.ctx) as events:
                    async for _ in events:
                        pass
    return steps.result


async def tools(model: str) -> Json:
    result = await agent(model, tools=[get_weather]).run("The weather in Paris and Oslo?")
    return {"calls": calls_of(result), "text": result.output}


async def tools_stream(model: str) -> Json:
    result = await _run_streamed(agent(model, tools=[get_weather]), "The weather in Paris and Oslo?")
    return {"calls": calls_of(result), "text": result.output}


async def structured(model: str) -> Json:
    result = await agent(model, output_type=NativeOutput(Person)).run("Who was Ada?")
    assert isinstance(result.output, Person)
    return result.output.model_dump()


async def structured_by_function(model: str) -> Json:
    result = await agent(model, output_type=ToolOutput(Person, name="Person")).run("Who was Ada?")
    assert isinstance(result.output, Person)
    return result.output.model_dump()


async def chain(model: str) -> Json:
    chained = agent(model, settings={"previous_response_id": "auto"})
    first = await chained.run("The capital of France?")
    second = await chained.run("And of Norway?", message_history=first.all_messages())
    return {"texts": [first.output, second.output]}


async def history(model: str) -> Json:
    first = await agent(model).run("The capital of France?")
    second = await agent(model).run("And of Norway?", message_history=first.all_messages())
    return {"texts": [first.output, second.output]}


async def image(model: str) -> Json:
    result = await agent(model).run(["What is this?", BinaryContent.from_data_uri(PIXEL)])
    return {"text": result.output}


async def length(model: str) -> Json:
    result = await agent(model).run("Count.", model_settings={"max_tokens": 16})
    return {"text": result.output, "finish": [result.response.finish_reason]}


async def refused(model: str) -> Json:
    try:
        await agent(model).run("Too long.")
    except ModelHTTPError as error:
        return {"error": type(error).__name__, "status": error.status_code, "code": error.body["code"]}
    raise AssertionError("it raised nothing")


async def broken(model: str) -> Json:
    deltas: list[str] = []
    try:
        async with agent(model).iter("Go on.") as steps:
            async for step in steps:
                if Agent.is_model_request_node(step):
                    async with step.stream(steps.ctx) as events:
                        async for event in events:
                            if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                                deltas.append(event.part.content)
                            if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                                deltas.append(event.delta.content_delta)
    except ModelHTTPError as error:
        return {
            "deltas": [delta for delta in deltas if delta],
            "error": type(error).__name__,
            "message": error.body["message"],
        }
    raise AssertionError("it raised nothing")


async def polled(model: str) -> Json:
    result = await agent(model, settings={"background": True}).run("Say hello.")
    return {"text": result.output}


async def websocket_tools(model: str) -> Json:
    spoken = agent(model, settings={"transport": "websocket"}, tools=[get_weather])
    async with spoken:
        result = await spoken.run("The weather in Paris and Oslo?")
        second = await spoken.run("Thanks.", message_history=result.all_messages())
    return {"calls": calls_of(result), "texts": [result.output, second.output]}


async def mcp(model: str) -> Json:
    """What the tool has answered is a part of its history, which it sends again."""
    server = MCPServerTool(id=TRIPS["server_label"], url=TRIPS["server_url"], allowed_tools=TRIPS["allowed_tools"])
    planner = agent(model, capabilities=[NativeTool(server)])
    async with planner.run_stream("Plan a trip.") as result:
        text = await result.get_output()
    calls = [args for part in parts_of(result, NativeToolCallPart) if "tool_args" in (args := part.args_as_dict())]
    returned = [part.content for part in parts_of(result, NativeToolReturnPart)]
    return {
        "calls": [[call["tool_name"], json.dumps(call["tool_args"])] for call in calls],
        "outputs": [content["output"] for content in returned if "output" in content],
        "text": text,
    }


async def with_tool(model: str, tool: Any, prompt: str, **settings: bool) -> tuple[Any, str, Json, Json]:
    """The result, its text, and what was called and came of it."""
    hosted = agent(model, settings=settings, capabilities=[NativeTool(tool)])
    async with hosted.run_stream(prompt) as result:
        text = await result.get_output()
    (called,), (came,) = parts_of(result, NativeToolCallPart), parts_of(result, NativeToolReturnPart)
    return result, text, called.args_as_dict() if called.args else {}, came.content


async def code(model: str) -> Json:
    _, text, called, came = await with_tool(model, CodeExecutionTool(), "Count.", include_code_execution_outputs=True)
    return {"code": [called["code"]], "logs": came["logs"], "text": text}


async def files(model: str) -> Json:
    tool = FileSearchTool(file_store_ids=["vs_1"])
    asked = {"include_file_search_results": True, "include_raw_annotations": True}
    result, text, called, came = await with_tool(model, tool, "Moss?", **asked)
    notes = [part.provider_details["annotations"] for part in parts_of(result, TextPart)]
    return {
        "queries": called["queries"],
        "files": [one["filename"] for one in came["results"]],
        "cited": [note["filename"] for of_part in notes for note in of_part],
        "text": text,
    }


async def picture(model: str) -> Json:
    result, text, _, came = await with_tool(model, ImageGenerationTool(), "Draw a cat.")
    (file,) = parts_of(result, FilePart)
    assert came["status"] == "completed"
    return {"is_png": file.content.data.startswith(b"\x89PNG"), "text": text}


async def web(model: str) -> Json:
    result, text, _, came = await with_tool(model, WebSearchTool(), "Moss?", include_raw_annotations=True)
    assert came["status"] == "completed"
    notes = [part.provider_details["annotations"] for part in parts_of(result, TextPart)]
    return {"cited": [note["url"] for of_part in notes for note in of_part], "text": text}


run(globals())
