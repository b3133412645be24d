"""A real server of MCP, on a port of its own: the official package's, over streamable HTTP or SSE."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp_types import CallToolResult, InputRequiredResult, SamplingMessage, TextContent, ToolAnnotations
from pydantic import BaseModel

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Weather(BaseModel):
    """What the weather is."""

    city: str
    degrees: int


@dataclass
class Served:
    """What it was asked: its requests, with their headers; `release` lets `hang` end, which has `given_up` else."""

    url: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    called: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: int = 0
    given_up: int = 0

    @property
    def sent(self) -> str:
        """All headers that came, as text."""
        return repr(self.requests)


def tools_of(served: Served) -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("weather")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def forecast(city: str) -> Weather:
        """The weather of a city."""
        served.called.append(f"forecast {city}")
        return Weather(city=city, degrees=21)

    @server.tool()
    def plan(city: str) -> str:
        """Plans a trip."""
        served.called.append(f"plan {city}")
        return f"Go to {city}."

    @server.tool()
    def search(query: str, count: int) -> str:
        """Searches the web."""
        served.called.append(f"search {query} {count}")
        return f"Title: Of {query}\nURL: https://a.example/\nDescription: Words.\n\nOther\nhttps://b.example/"

    @server.tool()
    def fail() -> str:
        """It always fails."""
        raise ValueError("the sensor is broken")

    @server.tool()
    def picture() -> Image:
        """A picture."""
        return Image(data=PNG, format="png")

    @server.tool()
    def large(megabytes: int) -> str:
        """Much text."""
        return "x" * (megabytes * 1024 * 1024)

    @server.tool()
    async def hang(context: Context[Any, Any]) -> str:
        """It takes its time."""
        served.called.append("hang")
        try:
            while not served.release.is_set():
                await context.report_progress(1, 2)
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await served.release.wait()
        except asyncio.CancelledError:
            served.given_up += 1
            raise
        return "released"

    @server.tool()
    async def asks(context: Context[Any, Any]) -> str:
        """It asks the user."""

        class Answer(BaseModel):
            name: str

        answer = await context.elicit("Who are you?", Answer)
        return f"{answer.action}"

    @server.tool()
    async def samples(context: Context[Any, Any]) -> str:
        """It asks a model."""
        messages = [SamplingMessage(role="user", content=TextContent(type="text", text="Hi"))]
        answer = await context.session.create_message(messages, max_tokens=10)
        return f"{answer.content}"

    @server.tool()
    async def waits() -> InputRequiredResult:
        """It wants to be called again, for ever."""
        served.called.append("waits")
        return InputRequiredResult(request_state="not yet")

    return server


class Found(BaseModel):
    """What a search has found."""

    results: list[dict[str, Any]]


def hosted_tools_of(served: Served) -> MCPServer[Any]:
    """Tools that stand for those of OpenAI."""
    server: MCPServer[Any] = MCPServer("hosted")

    @server.tool()
    def run_python(code: str, session_id: str = "") -> Any:
        """Runs code."""
        served.called.append(f"{session_id}: {code}")
        if code == "crash":
            return CallToolResult(content=[TextContent(type="text", text="NameError: crash")], is_error=True)
        return [f"ran {len(code)}", Image(data=PNG, format="png")] if "plot" in code else [f"ran {len(code)}"]

    @server.tool()
    async def search(query: str, limit: int = 10, vector_store_ids: list[str] | None = None) -> Found:
        """Searches."""
        served.called.append(f"{query} {limit} {vector_store_ids}")
        if query == "slow":
            await served.release.wait()
        rows = [
            {"id": f"file-{n}", "title": f"{n}.md", "text": f"{query} in {n}", "score": 1 - n / 4, "metadata": {"n": n}}
            for n in range(4)
        ]
        return Found(results=[] if query == "nothing" else rows)

    @server.tool()
    def generate_image(prompt: str, size: str = "") -> Any:
        """Makes an image."""
        served.called.append(f"{prompt} {size}")
        return Image(data=PNG, format="png") if prompt != "words" else "no image"

    return server


@asynccontextmanager
async def mcp_server(path: str = "/mcp", tools: Callable[[Served], MCPServer[Any]] = tools_of) -> AsyncIterator[Served]:
    served = Served()
    server = tools(served)
    app = server.sse_app() if path == "/sse" else server.streamable_http_app()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            served.requests.append((f"{scope['method']} {scope['path']}", headers))
            if served.refuses:
                await send({"type": "http.response.start", "status": served.refuses, "headers": []})
                await send({"type": "http.response.body", "body": b"no"})
                return
        await app(scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(uvicorn.Config(watched, log_level="error", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(running.serve(sockets=[listener]))
        while not running.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        served.url = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
        try:
            yield served
        finally:
            served.release.set()
            running.should_exit = True
            await serving
