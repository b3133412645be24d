"""The scenarios with Semantic Kernel: `OpenAIResponsesAgent`, which names the response before and sends the user's
message and the outputs again."""

from typing import Annotated, Any

from openai import AsyncOpenAI
from scenarios import BASE_URL, WEATHER, Json, run
from semantic_kernel.agents import OpenAIResponsesAgent
from semantic_kernel.contents import FunctionCallContent
from semantic_kernel.functions import kernel_function


class Weather:
    @kernel_function(name="get_weather")
    def get_weather(self, city: Annotated[str, "The city."]) -> str:
        """The weather in a city."""
        return WEATHER[city]


def agent(model: str, **settings: Any) -> OpenAIResponsesAgent:
    client = AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0)
    return OpenAIResponsesAgent(ai_model_id=model, client=client, name="agent", **settings)


class Calls:
    """The calls in the messages between."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []

    async def note(self, message: Any) -> None:
        for item in message.items:
            if isinstance(item, FunctionCallContent):
                name = (item.name or "").rpartition("-")[2]
                self.made.append([name, item.arguments if isinstance(item.arguments, str) else str(item.arguments)])


BOTH = "The weather in Paris and Oslo?"


async def hello(model: str) -> Json:
    answer = await agent(model).get_response("Say hello.")
    return {"text": str(answer.message)}


async def hello_stream(model: str) -> Json:
    asked = agent(model).invoke_stream("Say hello.")
    pieces = [str(piece.message) async for piece in asked]
    pieces = [piece for piece in pieces if piece]
    return {"deltas": pieces, "text": "".join(pieces)}


async def resent(model: str) -> Json:
    calls = Calls()
    asked = agent(model, plugins=[Weather()])
    answer = [answer async for answer in asked.invoke(BOTH, on_intermediate_message=calls.note)][-1]
    return {"calls": calls.made, "text": str(answer.message)}


async def resent_stream(model: str) -> Json:
    calls = Calls()
    asked = agent(model, plugins=[Weather()])
    pieces = [str(piece.message) async for piece in asked.invoke_stream(BOTH, on_intermediate_message=calls.note)]
    return {"calls": calls.made, "text": "".join(pieces)}


async def chain(model: str) -> Json:
    asked = agent(model)
    first = await asked.get_response("The capital of France?")
    second = await asked.get_response("And of Norway?", thread=first.thread)
    return {"texts": [str(first.message), str(second.message)]}


run(globals())
