"""What web and terminal UIs ask, replayed as it was recorded (tests/data/README.md): Open WebUI, oterm, llm-ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from tests.conftest import running_router
from tests.fake_backend import FakeBackend, Reply, call, chat
from tests.stream_grammar import check_stream, parse_sse

Json = dict[str, Any]

FOLDER = Path(__file__).parent / "data" / "clients"
PARIS, OSLO = "user: The weather in Paris?", "user: And of Oslo?"
CALLED = ("assistant: Let me look. get_weather", "tool: sunny")
BRIEF = "system: Be brief."
# What a model was sent at last, for each request of a UI that asks one.
CONVERSATIONS: dict[str, list[tuple[str, ...]]] = {
    "open-webui": [
        (PARIS,),
        (PARIS, "assistant: get_weather", "tool: sunny"),
        (PARIS,),
        (PARIS, *CALLED),
        (PARIS, *CALLED, "assistant: It is sunny.", OSLO),
    ],
    "oterm": [
        (BRIEF, PARIS),
        (BRIEF, PARIS, *CALLED, OSLO),
        (BRIEF, PARIS),
        (BRIEF, PARIS, *CALLED),
        (BRIEF, PARIS, *CALLED, "assistant: It is sunny.", OSLO),
    ],
    "llm-ollama": [
        ("user: Say hello.",),
        (PARIS,),
        (PARIS, *CALLED),
        (PARIS, *CALLED, "assistant: It is sunny.", OSLO),
    ],
}


async def weatherman(reply: Reply) -> None:
    """A model that asks for the weather once, if it can."""
    asked = reply.request.json
    knows = not asked.get("tools") or any(message["role"] == "tool" for message in asked["messages"])
    await (chat("It is sunny.") if knows else chat("Let me look.", call("get_weather", {"city": "Paris"})))(reply)


def transcript(asked: Json) -> tuple[str, ...]:
    lines = []
    for message in asked["messages"]:
        names = [made["function"]["name"] for made in message.get("tool_calls", ())]
        lines.append(" ".join(filter(None, [f"{message['role']}:", message.get("content"), *names])))
    return tuple(lines)


def response_in(answer: httpx2.Response) -> Json:
    """The response of an answer of /v1/responses. A stream must be whole."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        response: Json = answer.json()
        return response
    events = [event for _, event in parse_sse(answer.content)]
    check_stream(events)
    last: Json = events[-1]["response"]
    return last


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_what_an_interface_asks_is_answered_and_its_model_reads_it_once(name: str, backend: FakeBackend) -> None:
    backend.models, backend.default, backend.strict = ["gpt-test"], weatherman, True
    exchanges = orjson.loads((FOLDER / f"{name}.json").read_bytes())
    previous = ""
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
        for exchange in exchanges:
            body = orjson.dumps(exchange["body"]) if "body" in exchange else b""
            asked = body.replace(b"{previous}", previous.encode())
            answer = await running.http.request(exchange["method"], exchange["path"], content=asked)
            assert answer.status_code == 200, f"{exchange['path']}: {answer.text}"
            if exchange["path"] == "/v1/responses":
                response = response_in(answer)
                assert (response["status"], bool(response["output"])) == ("completed", True)
                previous = response["id"]
            elif exchange["method"] == "GET":
                assert "gpt-test" in answer.text or exchange["path"] == "/api/ps"
        assert running.in_flight() == 0
    assert [transcript(turn.json) for turn in backend.turns] == CONVERSATIONS[name]
