"""The scenarios with openai-agents: `Runner` over its Responses model, its sessions and its WebSocket model."""

from typing import Any

from agents import (
    Agent,
    ApplyPatchResult,
    ApplyPatchTool,
    CodeInterpreterTool,
    CustomTool,
    FileSearchTool,
    HostedMCPTool,
    ImageGenerationTool,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesCompactionSession,
    OpenAIResponsesModel,
    OpenAIResponsesWSModel,
    RawResponsesStreamEvent,
    RunItemStreamEvent,
    Runner,
    ShellTool,
    SQLiteSession,
    WebSearchTool,
    function_tool,
    set_tracing_disabled,
)
from agents.result import RunResultBase
from openai import APIError, APIStatusError, AsyncOpenAI
from openai.types.shared import Reasoning
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CODE,
    FILES,
    OUTPUTS,
    PICTURE,
    PIXEL,
    PNG_BEGINS,
    TRIPS,
    WEATHER,
    Json,
    run,
)

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0)


class Person(BaseModel):
    name: str
    age: int


@function_tool
async def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER[city]


def agent(model: str, **settings: Any) -> Agent:
    return Agent(name="agent", model=OpenAIResponsesModel(model, client), **settings)


def calls_of(result: RunResultBase) -> list[list[str]]:
    items = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    return [[item.name, item.arguments] for item in items]


def usage_of(result: RunResultBase) -> Json:
    usage = result.context_wrapper.usage
    return {
        "input": usage.input_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
        "output": usage.output_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
    }


async def streamed(agent: Agent, prompt: Any, type: str, **options: Any) -> tuple[list[str], RunResultBase]:
    """The deltas of one type, and the result."""
    result = Runner.run_streamed(agent, prompt, **options)
    deltas = [
        event.data.delta
        async for event in result.stream_events()
        if isinstance(event, RawResponsesStreamEvent) and event.data.type == type
    ]
    return deltas, result


async def text(model: str) -> Json:
    result = await Runner.run(agent(model, instructions="Be brief."), "Say hello.")
    return {"text": result.final_output, "usage": usage_of(result)}


async def stream(model: str) -> Json:
    brief = agent(model, instructions="Be brief.")
    deltas, result = await streamed(brief, "Say hello.", "response.output_text.delta")
    return {"deltas": deltas, "text": result.final_output, "usage": usage_of(result)}


async def reasoning(model: str) -> Json:
    """Kept by the client: what the runner sends after the tool holds the sealed reasoning."""
    settings = ModelSettings(
        store=False, reasoning=Reasoning(effort="low"), response_include=["reasoning.encrypted_content"]
    )
    thinking = agent(model, tools=[get_weather], model_settings=settings)
    thoughts, result = await streamed(thinking, "The weather in Paris?", "response.reasoning_text.delta")
    assert "reasoning_item" in [item.type for item in result.new_items]
    return {"reasoning": "".join(thoughts), "text": result.final_output}


async def tools(model: str) -> Json:
    result = await Runner.run(agent(model, tools=[get_weather]), "The weather in Paris and Oslo?")
    return {"calls": calls_of(result), "text": result.final_output}


async def tools_stream(model: str) -> Json:
    result = Runner.run_streamed(agent(model, tools=[get_weather]), "The weather in Paris and Oslo?")
    names = [event.name async for event in result.stream_events() if isinstance(event, RunItemStreamEvent)]
    assert names == ["tool_called"] * 2 + ["tool_output"] * 2 + ["message_output_created"], names
    return {"calls": calls_of(result), "text": result.final_output}


async def structured(model: str) -> Json:
    result = await Runner.run(agent(model, output_type=Person), "Who was Ada?")
    assert isinstance(result.final_output, Person)
    return result.final_output.model_dump()


async def chain(model: str) -> Json:
    first = await Runner.run(agent(model), "The capital of France?")
    second = await Runner.run(agent(model), "And of Norway?", previous_response_id=first.last_response_id)
    return {"texts": [first.final_output, second.final_output]}


async def image(model: str) -> Json:
    content: Any = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    ]
    result = await Runner.run(agent(model), [{"role": "user", "content": content}])
    return {"text": result.final_output}


async def refused(model: str) -> Json:
    try:
        await Runner.run(agent(model), "Too long.")
    except APIStatusError as error:
        return {"error": type(error).__name__, "status": error.status_code, "code": error.code}
    raise AssertionError("it raised nothing")


async def broken(model: str) -> Json:
    result = Runner.run_streamed(agent(model), "Go on.")
    deltas = []
    try:
        async for event in result.stream_events():
            if isinstance(event, RawResponsesStreamEvent) and event.data.type == "response.output_text.delta":
                deltas.append(event.data.delta)  # noqa: PERF401  # those before the error count
    except APIError as error:
        return {"deltas": deltas, "error": type(error).__name__, "message": error.message}
    raise AssertionError("it raised nothing")


async def session(model: str) -> Json:
    """The history kept by the client, in SQLite."""
    kept = SQLiteSession("talk")
    first = await Runner.run(agent(model), "The capital of France?", session=kept)
    second = await Runner.run(agent(model), "And of Norway?", session=kept)
    return {"texts": [first.final_output, second.final_output]}


async def conversations_session(model: str) -> Json:
    """The history kept by the router."""
    kept = OpenAIConversationsSession(openai_client=client)
    first = await Runner.run(agent(model), "The capital of France?", session=kept)
    second = await Runner.run(agent(model), "And of Norway?", session=kept)
    items: list[Any] = [*await kept.get_items()]
    assert await kept.get_items(limit=1) == items[-1:]
    assert await kept.pop_item() == items[-1]
    assert await kept.get_items() == items[:-1]
    await kept.add_items([{"role": "user", "content": f"{number}"} for number in range(45)])
    assert len(await kept.get_items()) == 48
    await kept.clear_session()
    return {"roles": [item["role"] for item in items], "texts": [first.final_output, second.final_output]}


async def conversation(model: str) -> Json:
    """Only the new items are sent, also in the middle of a run."""
    made = await client.conversations.create()
    talker = agent(model, tools=[get_weather])
    result = await Runner.run(talker, "The weather in Paris and Oslo?", conversation_id=made.id)
    types = [item.type async for item in client.conversations.items.list(made.id, order="asc")]
    return {"calls": calls_of(result), "text": result.final_output, "types": types}


async def auto_chain(model: str) -> Json:
    """Only the new items are sent, also in the middle of a run."""
    result = await Runner.run(
        agent(model, tools=[get_weather]), "The weather in Paris and Oslo?", auto_previous_response_id=True
    )
    return {"calls": calls_of(result), "text": result.final_output}


async def compact_session(model: str) -> Json:
    kept = OpenAIResponsesCompactionSession("talk", SQLiteSession("talk"), client=client, model="gpt-compact")
    await Runner.run(agent(model), "I am Ada.", session=kept)
    await kept.run_compaction({"force": True})
    types = [item.get("type") for item in await kept.get_items()]
    result = await Runner.run(agent(model), "Who am I?", session=kept)
    return {"types": types, "text": result.final_output}


async def handoff(model: str) -> Json:
    clerk = Agent(name="clerk", model=OpenAIResponsesModel(model, client), instructions="You are the clerk.")
    result = await Runner.run(agent(model, handoffs=[clerk]), "A stamp, please.")
    return {"agent": result.last_agent.name, "text": result.final_output}


async def hosted_tool(model: str) -> Json:
    """Tools that only OpenAI runs do not stop a turn."""
    result = await Runner.run(agent(model, tools=[get_weather, WebSearchTool()]), "Say hello.")
    return {"text": result.final_output}


async def custom_tool(model: str) -> Json:
    noted: list[str] = []

    async def note(context: Any, input: str) -> str:
        noted.append(input)
        return "noted"

    tool = CustomTool(name="note", description="Writes a note.", on_invoke_tool=note, format={"type": "text"})
    _, result = await streamed(agent(model, tools=[tool]), "Note it.", "response.custom_tool_call_input.delta")
    return {"input": noted[0], "text": result.final_output}


async def shell(model: str) -> Json:
    asked: list[Any] = []

    async def execute(request: Any) -> str:
        asked.append(request.data.action.commands)
        return "a.txt"

    _, result = await streamed(agent(model, tools=[ShellTool(executor=execute)]), "List the files.", "")
    return {"commands": asked, "text": result.final_output}


async def apply_patch(model: str) -> Json:
    done: list[Any] = []

    class Editor:
        def create_file(self, operation: Any) -> ApplyPatchResult:
            done.append([operation.type, operation.path, operation.diff])
            return ApplyPatchResult(output="made")

        update_file = delete_file = create_file

    _, result = await streamed(agent(model, tools=[ApplyPatchTool(editor=Editor())]), "Make a file.", "")
    return {"operations": done, "text": result.final_output}


async def websocket_tools(model: str) -> Json:
    spoken = OpenAIResponsesWSModel(model, client)
    try:
        talker = Agent(name="agent", model=spoken, tools=[get_weather])
        result = await Runner.run(talker, "The weather in Paris and Oslo?")
        history: Any = [*result.to_input_list(), {"role": "user", "content": "Thanks."}]
        deltas, second = await streamed(talker, history, "response.output_text.delta")
    finally:
        await spoken.close()
    assert "".join(deltas) == second.final_output
    return {"calls": calls_of(result), "texts": [result.final_output, second.final_output]}


def planned(result: RunResultBase) -> Json:
    calls = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    outputs = [call.output for call in calls]
    return {"calls": [[call.name, call.arguments] for call in calls], "outputs": outputs, "text": result.final_output}


async def mcp(model: str) -> Json:
    _, result = await streamed(agent(model, tools=[HostedMCPTool(tool_config=TRIPS)]), "Plan a trip.", "")
    assert [item.type for item in result.new_items] == ["mcp_list_tools_item", "tool_call_item", "message_output_item"]
    return planned(result)


async def mcp_approval(model: str) -> Json:
    """Its own code is asked whether the tool may run."""
    asked: list[Any] = []

    def approve(request: Any) -> Any:
        asked.append(request.data.name)
        return {"approve": True}

    tool = HostedMCPTool(tool_config=TRIPS | {"require_approval": "always"}, on_approval_request=approve)
    result = await Runner.run(agent(model, tools=[tool]), "Plan a trip.")
    assert asked == ["plan"]
    return planned(result)


def raw_of(result: RunResultBase, type: str) -> list[Any]:
    return [item.raw_item for item in result.new_items if item.raw_item.type == type]


def cited(result: RunResultBase) -> list[Any]:
    parts = [part for item in raw_of(result, "message") for part in item.content]
    return [annotation for part in parts for annotation in part.annotations]


async def mcp_session(model: str) -> Json:
    """What a tool has answered is kept in a conversation of the router's, and read again from there."""
    kept = OpenAIConversationsSession(openai_client=client)
    planner = agent(model, tools=[HostedMCPTool(tool_config=TRIPS)])
    result = await Runner.run(planner, "Plan a trip.", session=kept)
    second = await Runner.run(planner, "Thanks.", session=kept)
    types = [item.get("type", "message") for item in await kept.get_items()]
    return planned(result) | {"types": types, "texts": [result.final_output, second.final_output]}


async def code(model: str) -> Json:
    asked = ModelSettings(response_include=[OUTPUTS])
    _, result = await streamed(
        agent(model, tools=[CodeInterpreterTool(tool_config=CODE)], model_settings=asked), "Count.", ""
    )
    (ran,) = raw_of(result, "code_interpreter_call")
    return {"code": [ran.code], "logs": [output.logs for output in ran.outputs], "text": result.final_output}


async def files(model: str) -> Json:
    tool = FileSearchTool(vector_store_ids=FILES["vector_store_ids"], include_search_results=True)
    _, result = await streamed(agent(model, tools=[tool]), "Moss?", "")
    (found,) = raw_of(result, "file_search_call")
    return {
        "queries": found.queries,
        "files": [one.filename for one in found.results],
        "cited": [citation.filename for citation in cited(result)],
        "text": result.final_output,
    }


async def picture(model: str) -> Json:
    _, result = await streamed(agent(model, tools=[ImageGenerationTool(tool_config=PICTURE)]), "Draw a cat.", "")
    (made,) = raw_of(result, "image_generation_call")
    return {"is_png": made.result.startswith(PNG_BEGINS), "text": result.final_output}


async def web(model: str) -> Json:
    _, result = await streamed(agent(model, tools=[WebSearchTool()]), "Moss?", "")
    assert len(raw_of(result, "web_search_call")) == 1
    return {"cited": [citation.url for citation in cited(result)], "text": result.final_output}


run(globals())
