"""One suite over real model servers, each behind a router that knows nothing of it but its address, and those that
speak Responses once more as such. What each was seen to do is the table in README.md; what it cannot must be plain to
its client. `make servers` installs them; one that is not there is left out.

    make servers SERVERS="router litellm" ARGS="-k forced"
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from demo.model_server import running_model_server
from tests.conftest import Running, running_router
from tests.sdk import WEATHER_TOOL, check_types, collected, strict_client
from tests.servers.servers import CASES, SERVERS, RealServer
from tests.stream_grammar import check_stream, parse_sse
from tests.turns import URL, Json, eventually, open_stream, text_of

# The first one waits for its server: vLLM takes a minute.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

README = Path(__file__).with_name("README.md")
WANTED = os.environ.get("SERVERS", "").split()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": SCHEMA}}
YES = "yes"


@dataclass(frozen=True)
class Spoken:
    """A server, and the kind that the router is given for it."""

    server: RealServer
    kind: str = "auto"

    @property
    def name(self) -> str:
        return self.server.name if self.kind == "auto" else f"{self.server.name}, native"


SPOKEN = [
    Spoken(server, kind)
    for server in SERVERS
    for kind in ("auto", "openai")
    if kind == "auto" or server.name in ("litellm", "ogx", "transformers", "vllm")
]


@dataclass
class Place:
    """A router in front of a server."""

    spoken: Spoken
    router: Running
    model_server: str

    @property
    def http(self) -> httpx2.AsyncClient:
        return self.router.http

    def ask(self, **params: Any) -> Json:
        asked = {"model": self.spoken.server.model, "max_output_tokens": 24, "temperature": 0, "input": "Say hello."}
        return {**asked, **params}

    async def post(self, path: str = URL, **params: Any) -> httpx2.Response:
        answer = await self.http.post(path, json=self.ask(**params))
        assert answer.status_code < 500 or answer.status_code in (501, 502), answer.text
        assert not re.search(r"site-packages|\.py\"|Traceback", answer.text), f"its files are shown: {answer.text}"
        return answer

    async def create(self, **params: Any) -> Json:
        answer = await self.post(**params)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="session")
def model_server() -> Iterator[str]:
    with running_model_server() as url:
        yield url


@pytest.fixture(scope="module", params=SPOKEN, ids=lambda spoken: spoken.name.replace(", ", "-"))
def spoken(request: pytest.FixtureRequest) -> Spoken:
    spoken: Spoken = request.param
    if WANTED and spoken.server.name not in WANTED:
        pytest.skip(f"{spoken.server.name} is not among SERVERS")
    if not spoken.server.is_installed:
        pytest.skip(f"{spoken.server.name} is not installed: `make servers` installs it where it can")
    return spoken


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(spoken: Spoken, model_server: str) -> AsyncIterator[Place]:
    with spoken.server.running(model_server) as url:
        endpoint = {"url": url if spoken.kind == "auto" else f"{url}/v1", "kind": spoken.kind}
        async with running_router(endpoints=[endpoint]) as router:
            (seen,) = router.app.state.pool.endpoints.values()
            await eventually(lambda: seen.healthy, f"{spoken.name} has listed its models")
            yield Place(spoken, router, model_server)


# ── the cases: what each does, in a word ─────────────────────────────────────────────────────────────────────────────


async def json_answer(place: Place) -> str:
    response = await strict_client(place.router).responses.create(**place.ask())
    assert response.status in ("completed", "incomplete")
    assert response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
    return YES


async def stream(place: Place) -> str:
    answer = await place.http.post(URL, json=place.ask(stream=True))
    events = [event for _, event in parse_sse(answer.content)]
    check_stream(events)
    strict = strict_client(place.router)
    check_types(await collected(await strict.responses.create(**place.ask(), stream=True)))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    return YES if len(deltas) > 2 else "in one piece"


async def chain(place: Place) -> str:
    first = await place.create()
    second = await place.create(input="And again.", previous_response_id=first["id"])
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"], "the history did not reach the model"
    return YES


async def tools(place: Place) -> str:
    question = {"tools": [WEATHER_TOOL], "max_output_tokens": 64}
    first = await place.create(input="What is the weather in Paris?", **question)
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    # The round is made whoever has called: what a client replays must be taken.
    item = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    asked: list[Json] = [] if calls else [{"role": "user", "content": "What is the weather in Paris?"}, item]
    outputs = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": '{"sky": "rain"}'}
        for call in calls or [item]
    ]
    before = {"previous_response_id": first["id"]} if calls else {}
    second = await place.create(input=[*asked, *outputs], **question, **before)
    assert second["output"]
    return YES if calls else "takes rounds, calls none"


async def forced_tool(place: Place) -> str:
    answer = await place.post(
        input="What is the weather in Paris?", tools=[WEATHER_TOOL], tool_choice="required", max_output_tokens=160
    )
    if answer.status_code == 400:
        return f"400 ({answer.json()['error']['param']})"
    response = answer.json()
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    if calls:
        assert set(orjson.loads(calls[0]["arguments"])) <= {"city"}
        return YES
    if response["status"] == "incomplete":
        return "cut before a call"
    assert "tool_choice" in answer.headers["x-nomyo-ignored"], "ignored in silence"
    return "ignored, and named"


async def schema(place: Place) -> str:
    answer = await place.post(input="Ada is 36 years old. Who is it?", text=FORMAT, max_output_tokens=160)
    if answer.status_code == 400:
        return f"400 ({answer.json()['error']['param']})"
    response = answer.json()
    if response["status"] == "incomplete":
        return "cut"
    if "text.format" in answer.headers.get("x-nomyo-ignored", ""):
        return "ignored, and named"
    assert set(orjson.loads(text_of(response))) == {"name", "age"}
    return YES


async def cancel(place: Place) -> str:
    # Theirs who know it: the model talks on until it is stopped.
    knows = place.spoken.server.name in ("router", "litellm", "ogx", "vllm")
    endless = place.ask(
        input="Tell me a long story.", max_output_tokens=2000, **({"ignore_eos": True} if knows else {})
    )
    async with open_stream(place.http, **endless) as events:
        await events.until("response.output_text.delta")
    await eventually(lambda: place.router.in_flight() == 0, "the router's slot is free")
    if place.spoken.server.is_proxy:

        async def is_idle() -> bool:
            async with httpx2.AsyncClient(base_url=place.model_server) as behind:
                return not any(slot["is_processing"] for slot in (await behind.get("/slots")).json())

        await eventually(is_idle, "the model behind it works no more")
    await place.create()
    return YES


async def overflow(place: Place) -> str:
    answer = await place.post(input="word " * 9000)
    if answer.status_code == 200:
        return "answers"
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded"), error
    return YES


async def errors(place: Place) -> str:
    """A parameter that only the server knows, and its value is none."""
    answer = await place.post(top_k="five")
    if answer.status_code == 200:
        return "takes anything"
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    return YES if "top_k" in f"{error['param']} {error['message']}" else "400 without its name"


async def counting(place: Place) -> str:
    answer = await place.http.post(f"{URL}/input_tokens", json={"model": place.spoken.server.model, "input": "Hello."})
    assert answer.status_code == 200, answer.text
    assert answer.json()["input_tokens"] > 0
    return "estimate" if "x-nomyo-estimated" in answer.headers else YES


async def embeddings(place: Place) -> str:
    body = {"model": place.spoken.server.model, "input": "Hello."}
    answer = await place.http.post("/v1/embeddings", json=body)
    if answer.status_code == 200:
        assert answer.json()["data"][0]["embedding"]
        return YES
    error = answer.json()["error"]
    assert "url or kind is wrong" not in error["message"], error
    assert not re.search(r"site-packages|Traceback", error["message"]), error
    return str(answer.status_code)


RUN: dict[str, Callable[[Place], Awaitable[str]]] = dict(
    zip(
        CASES,
        (json_answer, stream, chain, tools, forced_tool, schema, cancel, overflow, errors, counting, embeddings),
        strict=True,
    )
)


def table() -> dict[str, dict[str, str]]:
    """What the README names of each server, by case."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in README.read_text().splitlines()
        if line.startswith("|")
    ]
    head, _, *body = rows
    assert tuple(head[1:]) == CASES
    return {row[0]: dict(zip(CASES, row[1:], strict=True)) for row in body}


async def test_it_is_recognised(place: Place) -> None:
    (endpoint,) = place.router.app.state.pool.endpoints.values()
    assert endpoint.healthy, endpoint.error
    assert endpoint.kind.name == (place.spoken.server.found if place.spoken.kind == "auto" else place.spoken.kind)
    assert place.spoken.server.model in endpoint.models


@pytest.mark.parametrize("case", CASES)
async def test_it_does_what_the_table_names(place: Place, case: str) -> None:
    seen = await RUN[case](place)
    print(f"SEEN | {place.spoken.name} | {case} | {seen}")
    assert seen == table()[place.spoken.name][case]
