"""The scenarios with CAMEL: `ChatAgent` over OpenAI's model in its mode for Responses, which names the response before
and sends the calls in it again."""

import json
from typing import Any

from camel.agents import ChatAgent
from camel.messages import OpenAIMessage
from camel.models import ModelFactory
from camel.types import ModelPlatformType
from camel.utils import BaseTokenCounter
from scenarios import BASE_URL, WEATHER, Json, run


def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city (str): The name of the city.
    """
    return WEATHER[city]


class Counter(BaseTokenCounter):
    """CAMEL's own fetches its tokens from the net."""

    def count_tokens_from_messages(self, messages: list[OpenAIMessage]) -> int:
        return len(str(messages)) // 4

    def encode(self, text: str) -> list[int]:
        return [*text.encode()]

    def decode(self, token_ids: list[int]) -> str:
        return bytes(token_ids).decode()


def agent(model: str, *tools: Any, **settings: Any) -> ChatAgent:
    made = ModelFactory.create(
        model_platform=ModelPlatformType.OPENAI,
        model_type=model,
        api_key="none",
        url=BASE_URL,
        api_mode="responses",
        token_counter=Counter(),
        model_config_dict=settings,
    )
    return ChatAgent(model=made, tools=[*tools], stream_accumulate=False)


BOTH = "The weather in Paris and Oslo?"


def calls_of(answer: Any) -> list[list[str]]:
    return [[call.tool_name, json.dumps(call.args)] for call in answer.info["tool_calls"]]


async def hello(model: str) -> Json:
    answer = await agent(model).astep("Say hello.")
    return {"text": answer.msgs[0].content}


async def resent(model: str) -> Json:
    answer = await agent(model, get_weather).astep(BOTH)
    return {"calls": calls_of(answer), "text": answer.msgs[0].content}


async def resent_stream(model: str) -> Json:
    pieces = [piece async for piece in await agent(model, get_weather, stream=True).astep(BOTH)]
    text = "".join(piece.msgs[0].content for piece in pieces if piece.msgs)
    return {"calls": calls_of(pieces[-1]), "text": text}


async def chain(model: str) -> Json:
    asked = agent(model)
    answers = [await asked.astep(question) for question in ("The capital of France?", "And of Norway?")]
    return {"texts": [answer.msgs[0].content for answer in answers]}


run(globals())
