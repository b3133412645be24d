"""What any server may answer, and the steps that an answer is made of."""

import asyncio
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson

from tests.fake_backend.reply import Answer, Json, Reply, Step

if TYPE_CHECKING:
    from tests.fixtures import Exchange

SSE_HEADERS = {"Content-Type": "text/event-stream"}
JSON_HEADERS = {"Content-Type": "application/json"}


# ── steps ────────────────────────────────────────────────────────────────────


def stall() -> Answer:
    """Nothing more, until the client leaves. Alone, it stalls before the headers."""

    async def answer(reply: Reply) -> None:
        await asyncio.Event().wait()

    return answer


def until(event: asyncio.Event) -> Answer:
    """Go on when the test sets the event."""

    async def answer(reply: Reply) -> None:
        await event.wait()

    return answer


def pause(seconds: float) -> Answer:
    async def answer(reply: Reply) -> None:
        await asyncio.sleep(seconds)

    return answer


def cut(*, reset: bool = False) -> Answer:
    """Close the connection, without the rest of the body. Alone, before the first byte."""

    async def answer(reply: Reply) -> None:
        reply.cut(reset=reset)

    return answer


def steps(*parts: Step) -> Answer:
    """One after another, as in `steps(pause(0.1), chat("late"))`."""

    async def answer(reply: Reply) -> None:
        await _run(reply, parts)

    return answer


async def _run(reply: Reply, parts: Iterable[Step], delay_s: float = 0.0) -> None:
    for part in parts:
        if callable(part):
            await part(reply)
        else:
            await reply.write(part)
            # A client on this loop reads each write by itself.
            await (asyncio.sleep(delay_s) if delay_s else polled())


async def polled() -> None:
    """Let the loop look at its sockets. Once is too little: it runs us again before it looks."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# ── answers ──────────────────────────────────────────────────────────────────


def stream(*parts: Step, delay_s: float = 0.0, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An event stream of exactly these writes. `stream()` is an empty one."""

    async def answer(reply: Reply) -> None:
        await reply.start(status, headers or SSE_HEADERS)
        last = parts[-1] if parts else b""
        if callable(last):
            await _run(reply, parts, delay_s)
        else:
            await _run(reply, parts[:-1], delay_s)
            # In one write: a client that stops reading at [DONE] has still read a complete answer.
            await reply.end(last)

    return answer


def json_answer(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None, then: Step | None = None
) -> Answer:
    """One JSON body. With `then`, only its first half, and then that step."""
    data = orjson.dumps(body)

    async def answer(reply: Reply) -> None:
        await reply.start(status, JSON_HEADERS | (headers or {}), length=len(data))
        await (reply.end(data) if then is None else _run(reply, [data[: len(data) // 2], then]))

    return answer


def http_error(
    status: int,
    message: str = "the fake backend refuses",
    *,
    type: str = "invalid_request_error",
    code: Any = None,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """An error status with OpenAI's error object, or with any other body."""
    if body is None:
        error = {"message": message, "type": type, "param": None, "code": code}
        return json_answer({"error": error}, status=status, headers=headers)

    async def answer(reply: Reply) -> None:
        await reply.start(status, {"Content-Type": "text/plain"} | (headers or {}), length=len(body))
        await reply.end(body)

    return answer


def empty(status: int = 200) -> Answer:
    """A status and no body at all."""

    async def answer(reply: Reply) -> None:
        await reply.start(status, length=0)

    return answer


def event_stream(events: Iterable[Json], *, delay_s: float = 0.0, then: Step | None = None) -> Answer:
    """These events as `event:` and `data:` frames, one write each, then the step."""
    ending = [] if then is None else [then]
    return stream(*(sse(event, event["type"]) for event in events), *ending, delay_s=delay_s)


def replay(exchange: "Exchange", *, size: int | None = None, delay_s: float = 0.0, then: Step | None = None) -> Answer:
    """A recorded answer: a stream goes frame by frame, or in writes of `size` bytes; `then` follows the last one."""
    headers = {
        name: value
        for name, value in exchange.headers.items()
        if name not in ("content-length", "transfer-encoding", "connection", "keep-alive")
    }
    if exchange.is_stream:
        writes = frames(exchange.body) if size is None else pieces(exchange.body, size)
        ending = [] if then is None else [then]
        return stream(*writes, *ending, delay_s=delay_s, status=exchange.status, headers=headers)

    async def answer(reply: Reply) -> None:
        await reply.start(exchange.status, headers, length=len(exchange.body))
        await reply.end(exchange.body)

    return answer


# ── bytes ────────────────────────────────────────────────────────────────────


def sse(data: Any, event: str | None = None) -> bytes:
    """One frame."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + orjson.dumps(data) + b"\n\n"


def sse_error(message: str = "the fake backend broke", *, code: Any = 500, type: str = "server_error") -> bytes:
    """The frame that a server sends when it fails in the middle of a stream."""
    return sse({"error": {"message": message, "type": type, "code": code}})


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data in writes of `size` bytes: across frames, lines and UTF-8 characters."""
    return [data[i : i + size] for i in range(0, len(data), size)]


def frames(data: bytes) -> list[bytes]:
    """A recorded event stream, frame by frame."""
    return [part for part in re.split(rb"(?<=\n\n)", data) if part]
