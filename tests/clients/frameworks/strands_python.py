"""The scenarios with Strands: `Agent` over its Responses model, with the history on either side."""

import json
from typing import Any

from scenarios import BASE_URL, WEATHER, Json, run
from strands import Agent, tool
from strands.models.openai_responses import OpenAIResponsesModel


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def agent(model: str, *tools: Any, **settings: Any) -> Agent:
    responses = OpenAIResponsesModel(
        client_args={"base_url": BASE_URL, "api_key": "none", "max_retries": 0}, model_id=model, **settings
    )
    return Agent(model=responses, tools=[*tools], callback_handler=None)


def calls_in(messages: Any) -> list[list[str]]:
    uses = [block["toolUse"] for message in messages for block in message["content"] if "toolUse" in block]
    return [[use["name"], json.dumps(use["input"])] for use in uses]


async def tools_stream(model: str, **settings: Any) -> Json:
    asked = agent(model, get_weather, **settings)
    calls: list[list[str]] = []
    result: Any = None
    async for event in asked.stream_async("The weather in Paris and Oslo?"):
        if "message" in event:
            calls += calls_in([event["message"]])
        result = event.get("result", result)
    return {"calls": calls, "text": str(result).strip()}


interleaved = tools_stream


async def auto_chain(model: str) -> Json:
    return await tools_stream(model, stateful=True)


async def hello_stream(model: str) -> Json:
    pieces: list[str] = []
    async for event in agent(model).stream_async("Say hello."):
        pieces += [event["data"]] if event.get("data") else []
    return {"deltas": pieces, "text": "".join(pieces)}


async def chain(model: str) -> Json:
    return await history(model, stateful=True)


async def history(model: str, **settings: Any) -> Json:
    asked = agent(model, **settings)
    texts = [str(await asked.invoke_async(text)).strip() for text in ("The capital of France?", "And of Norway?")]
    return {"texts": texts}


run(globals())
