"""The scenarios with LangGraph: a graph of a model and its tools, over `ChatOpenAI(use_responses_api=True)`."""

import json
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from scenarios import BASE_URL, WEATHER, Json, run


@tool
async def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def graph(model: str, *tools: Any, saver: InMemorySaver | None = None, **settings: Any) -> Any:
    chat: Any = ChatOpenAI(
        model=model, base_url=BASE_URL, api_key="none", use_responses_api=True, max_retries=0, **settings
    )
    chat = chat.bind_tools(tools) if tools else chat

    async def answer(state: MessagesState) -> Json:
        return {"messages": [await chat.ainvoke(state["messages"])]}

    built = StateGraph(MessagesState)
    built.add_node("answer", answer)
    built.add_edge(START, "answer")
    if tools:
        built.add_node("tools", ToolNode(tools))
        built.add_conditional_edges("answer", tools_condition)
        built.add_edge("tools", "answer")
    return built.compile(checkpointer=saver)


def outcome(messages: list[Any]) -> Json:
    made = [call for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]
    return {"calls": [[call["name"], json.dumps(call["args"])] for call in made], "text": messages[-1].text}


BOTH = {"messages": [HumanMessage("The weather in Paris and Oslo?")]}


async def tools(model: str) -> Json:
    return outcome((await graph(model, get_weather).ainvoke(BOTH))["messages"])


async def tools_stream(model: str) -> Json:
    """The tokens of the messages, as a page shows them, and the state at the end."""
    state: Json = {}
    async for mode, value in graph(model, get_weather, streaming=True).astream(
        BOTH, stream_mode=["messages", "values"]
    ):
        if mode == "values":
            state = value
    return outcome(state["messages"])


interleaved = tools_stream


async def history(model: str) -> Json:
    """The graph's memory sends the whole history again."""
    return await _asked_twice(graph(model, saver=InMemorySaver()))


async def chain(model: str) -> Json:
    return await _asked_twice(graph(model, saver=InMemorySaver(), use_previous_response_id=True))


async def _asked_twice(asked: Any) -> Json:
    thread = {"configurable": {"thread_id": "t"}}
    texts = []
    for question in ("The capital of France?", "And of Norway?"):
        state = await asked.ainvoke({"messages": [HumanMessage(question)]}, thread)
        texts.append(state["messages"][-1].text)
    return {"texts": texts}


run(globals())
