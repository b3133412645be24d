"""The way out for the middle of a stream, which wakes no task: what leaves by it is what would have left without it."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import orjson
import pytest

from api.http.protocol import Wire
from api.http.replies import WireOutlet
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, cut, reasoning
from tests.stream_grammar import check_stream, fold, parse_sse
from tests.turns import eventually, open_stream, text_of, turn

WORDS = " ".join(f"word{number}" for number in range(200))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events left by the express way, one number a write."""
    counts: list[int] = []
    write, outlet_write = Wire.write, WireOutlet.write
    waking: list[WireOutlet] = []

    def counted(self: Wire, body: bytes) -> bool:
        if not waking:
            counts.append(body.count(b"\n\n"))
        return write(self, body)

    async def by_a_task(self: WireOutlet, body: bytes) -> None:
        waking.append(self)
        await outlet_write(self, body)
        waking.pop()

    monkeypatch.setattr(Wire, "write", counted)
    monkeypatch.setattr(WireOutlet, "write", by_a_task)
    return counts


async def test_most_of_a_stream_leaves_by_it(served: Running, backend: FakeBackend, written: list[int]) -> None:
    backend.script(chat(reasoning("Hm. Let me think."), WORDS, delay_s=0.001))
    async with open_stream(served.http) as events:
        seen = await events.rest()
    check_stream(seen)
    assert fold(seen) == seen[-1]["response"]
    assert text_of(seen[-1]["response"]) == WORDS
    assert sum(written) > 150, f"only {sum(written)} of {len(seen)} events took the express way"


async def test_a_chat_stream_leaves_by_it(served: Running, backend: FakeBackend, written: list[int]) -> None:
    backend.script(chat(WORDS, delay_s=0.001))
    ask = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    stream = await served.openai.chat.completions.create(**ask)
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert said == WORDS
    assert len(written) > 50


async def test_what_fails_in_the_middle_fails_as_ever(
    served: Running, backend: FakeBackend, written: list[int]
) -> None:
    backend.script(chat(WORDS, delay_s=0.001, then=cut()))
    async with open_stream(served.http) as events:
        seen = await events.rest()
    check_stream(seen)
    assert seen[-1]["type"] == "response.failed"
    assert seen[-1]["response"]["error"]["code"] == "server_error"
    assert written
    assert served.in_flight() == 0


async def test_a_client_that_reads_slowly_gets_all_in_order(backend: FakeBackend, written: list[int]) -> None:
    """More than the sockets between hold: the express way closes, and what was under way comes first."""
    long = " ".join(f"{number:06d}" * 20 for number in range(12_000))
    backend.script(chat(long))
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
        address = urlsplit(running.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**16)
        body = orjson.dumps(turn(stream=True))
        head = f"POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await asyncio.sleep(0.5)
        received = bytearray()
        while piece := await reader.read(2**16):
            received += piece
        writer.close()
        await eventually(lambda: running.in_flight() == 0, "the slot is free")
    assert written, "nothing took the express way"
    seen = [event for _, event in parse_sse(dechunked(bytes(received)))]
    check_stream(seen)
    assert text_of(seen[-1]["response"]) == long


def dechunked(answer: bytes) -> bytes:
    """The body of an HTTP answer in chunks."""
    at = answer.index(b"\r\n\r\n") + 4
    body = bytearray()
    while at < len(answer):
        end = answer.index(b"\r\n", at)
        size = int(answer[at:end], 16)
        body += answer[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return bytes(body)
