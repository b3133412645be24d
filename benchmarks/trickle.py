"""Many slow streams at once, and how long each token was on its way: the model server and the clients, in one event
loop.

Each token is the time at which it was sent, in ns of this machine's monotonic clock. The client reads it out of the
delta, whoever stands between the two.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass, field
from typing import cast

from benchmarks.mock_backend import MODELS, STREAM_HEAD

# A token in the delta of a Responses event, or of a chat chunk.
TOKEN = re.compile(rb'"(?:delta|content)":"(\d+)"')
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,%b}]}\n\n'
)
_TOKEN = _CHUNK % b'"delta":{"content":"%d"},"finish_reason":null'
_END = _CHUNK % b'"delta":{},"finish_reason":"stop"' + b"data: [DONE]\n\n"
# All streams are open after this; so none has to hurry.
RAMP_S = 4.0


@dataclass(frozen=True)
class Pace:
    """What is asked of a run: so many streams, each with so many tokens a second, all at once for so long."""

    streams: int
    tokens_per_s: float
    seconds: float

    @property
    def tokens(self) -> int:
        """Of one stream: the first has some left when the last one has begun and its time is over."""
        return int((RAMP_S + 1 + self.seconds) * self.tokens_per_s)


@dataclass
class Trickle:
    """What the clients of a run have seen."""

    pace: Pace
    # (received, on its way), of each token, both in ns.
    delays: list[tuple[int, int]] = field(default_factory=list)
    failure: str | None = None
    # When all streams are open, and when all have ended; or when one has failed.
    open: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _opened: int = 0
    _ended: int = 0

    def opened(self) -> None:
        self._opened += 1
        if self._opened == self.pace.streams:
            self.open.set()

    def end(self, failure: str | None) -> None:
        self._ended += 1
        self.failure = self.failure or failure
        if self.failure or self._ended == self.pace.streams:
            self.open.set()
            self.ended.set()


class Model(asyncio.Protocol):
    """Answers each request by a stream of times, at the pace of the run that `paced` holds."""

    def __init__(self, paced: list[Pace]) -> None:
        self._paced = paced
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if not found or len(body) < length:
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(MODELS)
            return
        self._transport.write(STREAM_HEAD)
        self._every_s = 1 / self._paced[-1].tokens_per_s
        self._left = self._paced[-1].tokens
        self._due = self._loop.time()
        self._next()

    def _next(self) -> None:
        if self._transport.is_closing():
            return
        if not self._left:
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_END), _END))
            return
        self._left -= 1
        token = _TOKEN % time.monotonic_ns()
        self._transport.write(b"%x\r\n%b\r\n" % (len(token), token))
        self._due += self._every_s
        self._loop.call_at(self._due, self._next)


class Reader(asyncio.Protocol):
    """The client of one stream."""

    def __init__(self, request: bytes, trickle: Trickle) -> None:
        self._request = request
        self._trickle = trickle
        self._received = b""
        self._tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._received += data
        end = self._received.rfind(b"\n\n") + 2
        if end < 2:
            return
        for sent in TOKEN.findall(self._received, 0, end):
            self._trickle.delays.append((now, now - int(sent)))
            if not self._tokens:
                self._trickle.opened()
            self._tokens += 1
        self._received = self._received[end:]
        if self._received.endswith(b"0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        expected = self._trickle.pace.tokens
        is_whole = self._tokens == expected
        self._trickle.end(
            None if is_whole else f"{self._tokens} of {expected} tokens came, and {self._received[:300]!r}"
        )


async def open_streams(pace: Pace, port: int, request: bytes) -> Trickle:
    """Begins all streams, one after the other, at odd moments; returns when all are open."""
    trickle = Trickle(pace)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for due in sorted(random.uniform(0, RAMP_S) for _ in range(pace.streams)):
        await asyncio.sleep(max(0.0, began + due - loop.time()))
        await loop.create_connection(lambda: Reader(request, trickle), "127.0.0.1", port)
    await trickle.open.wait()
    return trickle
