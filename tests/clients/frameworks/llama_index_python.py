"""The scenarios with LlamaIndex: its `OpenAIResponses`, alone and under its agents' workflow."""

import json
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent, ToolCall
from llama_index.core.llms import ChatMessage
from llama_index.core.workflow import Context
from llama_index.llms.openai import OpenAIResponses
from pydantic import BaseModel
from scenarios import BASE_URL, WEATHER, Json, run


class Person(BaseModel):
    """A person."""

    name: str
    age: int


async def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def model_of(name: str, **settings: Any) -> OpenAIResponses:
    return OpenAIResponses(
        model=name, api_base=BASE_URL, api_key="none", max_retries=0, context_window=8192, **settings
    )


async def hello(model: str) -> Json:
    answer = await model_of(model).achat([ChatMessage("Say hello.", role="user")])
    return {"text": answer.message.content}


async def hello_stream(model: str) -> Json:
    asked = await model_of(model).astream_chat([ChatMessage("Say hello.", role="user")])
    pieces = [piece async for piece in asked]
    return {"deltas": [piece.delta for piece in pieces if piece.delta], "text": pieces[-1].message.content}


async def agent_run(model: str, **settings: Any) -> Json:
    agent = FunctionAgent(tools=[get_weather], llm=model_of(model, **settings), streaming=True)
    handler = agent.run("The weather in Paris and Oslo?")
    made = [event async for event in handler.stream_events() if isinstance(event, ToolCall)]
    calls = [[call.tool_name, json.dumps(call.tool_kwargs)] for call in made]
    return {"calls": calls, "text": str(await handler)}


async def tools_stream(model: str) -> Json:
    return await agent_run(model)


interleaved = tools_stream


async def auto_chain(model: str) -> Json:
    """It names the response before, and sends what came after it, and more."""
    return await agent_run(model, store=True, track_previous_responses=True)


async def history(model: str) -> Json:
    agent = FunctionAgent(llm=model_of(model), tools=[], streaming=False)
    context = Context(agent)
    texts = [str(await agent.run(asked, ctx=context)) for asked in ("The capital of France?", "And of Norway?")]
    return {"texts": texts}


async def structured(model: str) -> Json:
    person = await model_of(model).as_structured_llm(Person).achat([ChatMessage("Who was Ada?", role="user")])
    return person.raw.model_dump()


run(globals())
