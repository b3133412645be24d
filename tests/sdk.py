"""What the tests with the official SDK share: the tools and answers they speak of, and the class of every event.

The SDK builds objects without a look at the data, unless `_strict_response_validation` is set: then each event and each
response must be exactly what its types say, or reading it raises.
"""

from collections.abc import AsyncIterable
from typing import Any, Literal, get_args, get_origin

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from tests.conftest import Running
from tests.stream_grammar import check_stream, parse_sse
from tests.turns import soon

MODEL = "test-model"
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ENDED = ("completed", "incomplete", "failed", "cancelled")

WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Person(BaseModel):
    """A structured output."""

    name: str
    age: int


class GetWeather(BaseModel):
    """The arguments of a function tool."""

    city: str


def _event_classes() -> dict[str, type[BaseModel]]:
    union = get_args(ResponseStreamEvent)[0]
    classes: dict[str, type[BaseModel]] = {}
    for event in get_args(union):
        annotation = event.model_fields["type"].annotation
        assert get_origin(annotation) is Literal, f"{event.__name__} has no one type"
        classes |= dict.fromkeys(get_args(annotation), event)
    return classes


EVENT_CLASSES = _event_classes()


def strict_client(running: Running) -> AsyncOpenAI:
    """The client of a router that takes nothing but what its types say."""
    return running.openai.with_options(_extra_kwargs={"_strict_response_validation": True})


async def collected(stream: AsyncIterable[Any]) -> list[Any]:
    return [event async for event in stream]


async def until_text(stream: AsyncIterable[Any]) -> list[Any]:
    """The events up to the first token of a text."""
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            return seen
    raise AssertionError(f"no text among {types_of(seen)}")


async def check_refused(running: Running, expected: type[openai.APIStatusError], status: int, code: str | None) -> None:
    """A turn fails before its first event, with and without a stream: the SDK raises, and the slot is given back."""
    for streamed in (False, True):
        with pytest.raises(expected) as raised:
            await running.openai.responses.create(model=MODEL, input="Hi", stream=streamed)
        assert (raised.value.status_code, raised.value.code) == (status, code)
        assert raised.value.message
        assert running.in_flight() == 0, "the slot was kept"


def check_types(events: list[Any]) -> None:
    """Each event has the class that its `type` says, and no other one that would have fitted as well."""
    for number, event in enumerate(events):
        expected = EVENT_CLASSES.get(event.type)
        assert expected is not None, f"event {number}: the SDK knows no {event.type}"
        assert type(event) is expected, f"event {number}: {event.type} was read as {type(event).__name__}"


def check_raw(events: list[Any]) -> None:
    """The events of `create(stream=True)`, as they came, are one whole stream, and each has its own class."""
    check_types(events)
    check_stream([_as_sent(event) for event in events])


def _as_sent(event: Any) -> dict[str, Any]:
    """The JSON of an event. The SDK reads the times of a response as floats."""
    body = event.to_dict()
    for key in ("created_at", "completed_at"):
        if (at := body.get("response", {}).get(key)) is not None:
            body["response"][key] = int(at)
    return body


def types_of(events: list[Any]) -> list[str]:
    return [event.type for event in events]


def bare(output: list[Any]) -> list[dict[str, Any]]:
    """Output items without their ids: what two answers of the same words have in common."""
    return [{key: value for key, value in item.to_dict().items() if key != "id"} for item in output]


async def wire_events(served: Running, **request: Any) -> list[dict[str, Any]]:
    """The events of a stream as they are on the wire."""
    reply = await served.http.post("/v1/responses", json={"model": MODEL, "input": "Hi", "stream": True} | request)
    assert reply.status_code == 200, reply.text
    return [body for _, body in parse_sse(reply.content)]


async def stored_events(served: Running, response_id: str) -> list[dict[str, Any]]:
    """The events of a kept response as they are on the wire."""
    reply = await served.http.get(f"/v1/responses/{response_id}", params={"stream": "true"})
    assert reply.status_code == 200, reply.text
    return [body for _, body in parse_sse(reply.content)]


async def ended(client: AsyncOpenAI, response_id: str) -> Response:
    """The response once it has ended, polled for as clients do."""
    async with soon():
        while True:
            response = await client.responses.retrieve(response_id)
            if response.status in ENDED:
                return response
