"""The scenarios with langchain-openai: `ChatOpenAI(use_responses_api=True)`."""

import json
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, custom_tool
from openai import APIError, APIStatusError
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


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
async def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def chat(model: str, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=BASE_URL, api_key="none", use_responses_api=True, max_retries=0, **settings)


def usage_of(message: AIMessage) -> Json:
    usage = message.usage_metadata
    assert usage is not None
    return {
        "input": usage["input_tokens"],
        "cached": usage["input_token_details"]["cache_read"],
        "output": usage["output_tokens"],
        "reasoning": usage["output_token_details"]["reasoning"],
    }


def calls_of(message: AIMessage) -> list[list[str]]:
    return [[call["name"], json.dumps(call["args"])] for call in message.tool_calls]


async def outputs_of(message: AIMessage) -> list[ToolMessage]:
    return [await get_weather.ainvoke(call) for call in message.tool_calls]


async def streamed(model: Any, messages: Any) -> tuple[list[Any], AIMessage]:
    """The chunks, and their sum."""
    chunks = [chunk async for chunk in model.astream(messages)]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return chunks, whole


BRIEF = [SystemMessage("Be brief."), HumanMessage("Say hello.")]


async def text(model: str) -> Json:
    message = await chat(model).ainvoke(BRIEF)
    return {"text": message.text, "usage": usage_of(message)}


async def stream(model: str) -> Json:
    chunks, message = await streamed(chat(model), BRIEF)
    return {"deltas": [chunk.text for chunk in chunks if chunk.text], "text": message.text, "usage": usage_of(message)}


async def thought(model: str, **settings: Any) -> Json:
    """Without a store: the sealed reasoning goes back with the tool's answer."""
    unstored: Json = {"store": False, "include": ["reasoning.encrypted_content"], "output_version": "responses/v1"}
    bound = chat(model, **unstored, **settings).bind_tools([get_weather])
    question = HumanMessage("The weather in Paris?")
    _, message = await streamed(bound, [question])
    summaries = [block.get("summary", []) for block in message.content if block["type"] == "reasoning"]
    answer = await bound.ainvoke([question, message, *await outputs_of(message)])
    return {"reasoning": "".join(part["text"] for summary in summaries for part in summary), "text": answer.text}


async def summary(model: str) -> Json:
    """All that it shows of reasoning."""
    return await thought(model, reasoning={"effort": "low", "summary": "auto"})


async def sealed(model: str) -> Json:
    return {"text": (await thought(model))["text"]}


async def tools(model: str) -> Json:
    bound = chat(model).bind_tools([get_weather])
    question = HumanMessage("The weather in Paris and Oslo?")
    message = await bound.ainvoke([question])
    answer = await bound.ainvoke([question, message, *await outputs_of(message)])
    return {"calls": calls_of(message), "text": answer.text}


async def tools_stream(model: str) -> Json:
    bound = chat(model).bind_tools([get_weather])
    question = HumanMessage("The weather in Paris and Oslo?")
    _, message = await streamed(bound, [question])
    _, answer = await streamed(bound, [question, message, *await outputs_of(message)])
    return {"calls": calls_of(message), "text": answer.text}


async def structured(model: str) -> Json:
    person = await chat(model).with_structured_output(Person).ainvoke("Who was Ada?")
    assert isinstance(person, Person)
    return person.model_dump()


async def structured_by_function(model: str) -> Json:
    person = await chat(model).with_structured_output(Person, method="function_calling").ainvoke("Who was Ada?")
    assert isinstance(person, Person)
    return person.model_dump()


async def json_mode(model: str) -> Json:
    person = await chat(model).with_structured_output(Person, method="json_mode").ainvoke("Who was Ada, in JSON?")
    assert isinstance(person, Person)
    return person.model_dump()


async def chain(model: str) -> Json:
    """It finds the id in the history, and sends what comes after it."""
    chained = chat(model, use_previous_response_id=True)
    question = HumanMessage("The capital of France?")
    first = await chained.ainvoke([question])
    second = await chained.ainvoke([question, first, HumanMessage("And of Norway?")])
    return {"texts": [first.text, second.text]}


async def history(model: str) -> Json:
    """The whole history, with the items' ids."""
    question = HumanMessage("The capital of France?")
    first = await chat(model).ainvoke([question])
    second = await chat(model).ainvoke([question, first, HumanMessage("And of Norway?")])
    return {"texts": [first.text, second.text]}


async def image(model: str) -> Json:
    picture = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}}
    message = await chat(model).ainvoke([HumanMessage([{"type": "text", "text": "What is this?"}, picture])])
    return {"text": message.text}


async def length(model: str) -> Json:
    message = await chat(model, max_tokens=16).ainvoke("Count.")
    known = message.response_metadata
    return {"text": message.text, "finish": [known["status"], known["incomplete_details"]["reason"]]}


async def refused(model: str) -> Json:
    try:
        await chat(model).ainvoke("Too long.")
    except APIStatusError as error:
        return {"error": type(error).__name__, "status": error.status_code, "code": error.code}
    raise AssertionError("it raised nothing")


async def broken(model: str) -> Json:
    deltas = []
    try:
        async for chunk in chat(model).astream("Go on."):
            deltas += [chunk.text] if chunk.text else []
    except APIError as error:
        return {"deltas": deltas, "error": type(error).__name__, "message": error.message}
    raise AssertionError("it raised nothing")


async def custom_tool_(model: str) -> Json:
    @custom_tool
    def note(input: str) -> str:
        """Writes a note."""
        return "noted"

    bound = chat(model).bind_tools([note])
    question = HumanMessage("Note it.")
    _, message = await streamed(bound, [question])
    (call,) = message.tool_calls
    answer = await bound.ainvoke([question, message, await note.ainvoke(call)])
    return {"input": call["args"]["__arg1"], "text": answer.text}


def planned(message: AIMessage) -> Json:
    calls = [block for block in message.content if isinstance(block, dict) and block["type"] == "mcp_call"]
    outputs = [call["output"] for call in calls]
    return {"calls": [[call["name"], call["arguments"]] for call in calls], "outputs": outputs, "text": message.text}


async def mcp(model: str) -> Json:
    _, whole = await streamed(chat(model).bind_tools([TRIPS]), [HumanMessage("Plan a trip.")])
    return planned(whole)


async def mcp_approval(model: str) -> Json:
    bound = chat(model).bind_tools([TRIPS | {"require_approval": "always"}])
    first = await bound.ainvoke([HumanMessage("Plan a trip.")])
    (request,) = [block for block in first.content if block["type"] == "mcp_approval_request"]
    approval = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
    second = await bound.ainvoke([HumanMessage([approval])], previous_response_id=first.response_metadata["id"])
    return planned(second)


def blocks_of(message: AIMessage, type: str) -> list[Json]:
    return [block for block in message.content if isinstance(block, dict) and block["type"] == type]


def cited(message: AIMessage) -> list[Json]:
    return [annotation for block in blocks_of(message, "text") for annotation in block["annotations"]]


async def code(model: str) -> Json:
    _, whole = await streamed(chat(model, include=[OUTPUTS]).bind_tools([CODE]), [HumanMessage("Count.")])
    (ran,) = blocks_of(whole, "code_interpreter_call")
    return {"code": [ran["code"]], "logs": [output["logs"] for output in ran["outputs"]], "text": whole.text}


async def files(model: str) -> Json:
    whole = await chat(model, include=[RESULTS]).bind_tools([FILES]).ainvoke([HumanMessage("Moss?")])
    (found,) = blocks_of(whole, "file_search_call")
    return {
        "queries": found["queries"],
        "files": [result["filename"] for result in found["results"]],
        "cited": [citation["filename"] for citation in cited(whole)],
        "text": whole.text,
    }


async def picture(model: str) -> Json:
    _, whole = await streamed(chat(model).bind_tools([PICTURE]), [HumanMessage("Draw a cat.")])
    (made,) = blocks_of(whole, "image_generation_call")
    return {"is_png": made["result"].startswith(PNG_BEGINS), "text": whole.text}


async def web(model: str) -> Json:
    _, whole = await streamed(chat(model).bind_tools([WEB]), [HumanMessage("Moss?")])
    assert len(blocks_of(whole, "web_search_call")) == 1
    return {"cited": [citation["url"] for citation in cited(whole)], "text": whole.text}


run(globals() | {"custom_tool": custom_tool_})
