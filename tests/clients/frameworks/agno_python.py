"""The scenarios with agno: `Agent` over its `OpenAIResponses` model, with the history in a database of its own."""

import json
from typing import Any

from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.openai import OpenAIResponses
from agno.run.agent import RunContentEvent, RunOutput
from pydantic import BaseModel
from scenarios import BASE_URL, WEATHER, Json, run


class Person(BaseModel):
    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def agent(model: str, **settings: Any) -> Agent:
    responses = OpenAIResponses(id=model, base_url=BASE_URL, api_key="none", max_retries=0)
    return Agent(model=responses, telemetry=False, **settings)


def calls_of(result: RunOutput) -> list[list[str]]:
    return [[call.tool_name or "", json.dumps(call.tool_args)] for call in result.tools or ()]


async def streamed(agent: Agent, question: str) -> tuple[list[str], RunOutput]:
    """The pieces of text, and the whole run."""
    pieces: list[str] = []
    result: RunOutput | None = None
    async for event in agent.arun(question, stream=True, yield_run_output=True):
        if isinstance(event, RunOutput):
            result = event
        elif isinstance(event, RunContentEvent) and event.content:
            pieces.append(str(event.content))
    assert result is not None
    return pieces, result


async def hello(model: str) -> Json:
    result = await agent(model).arun("Say hello.")
    return {"text": result.content}


async def hello_stream(model: str) -> Json:
    pieces, result = await streamed(agent(model), "Say hello.")
    return {"deltas": pieces, "text": result.content}


async def tools(model: str) -> Json:
    result = await agent(model, tools=[get_weather]).arun("The weather in Paris and Oslo?")
    return {"calls": calls_of(result), "text": result.content}


async def tools_stream(model: str) -> Json:
    _, result = await streamed(agent(model, tools=[get_weather]), "The weather in Paris and Oslo?")
    return {"calls": calls_of(result), "text": result.content}


interleaved = tools_stream


async def structured(model: str) -> Json:
    result = await agent(model, output_schema=Person).arun("Who was Ada?")
    assert isinstance(result.content, Person)
    return result.content.model_dump()


async def history(model: str) -> Json:
    remembers = agent(model, db=InMemoryDb(), session_id="s", add_history_to_context=True)
    first = await remembers.arun("The capital of France?")
    second = await remembers.arun("And of Norway?")
    return {"texts": [first.content, second.content]}


run(globals())
