"""A client that costs little and times what it gets.

    python -m benchmarks.load PORT PATH --clients 32 --requests 1000 < BODY     prints one line of JSON, times in ms

With `--expected TEXT` an answer without that text is a failure. With `--token TEXT`, which is the first token's, it is
timed when that comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from statistics import quantiles
from typing import cast

import uvloop


class Client(asyncio.Protocol):
    """Sends a request again and again over one connection, and times the answers."""

    def __init__(self, request: bytes, load: Load) -> None:
        self._request = request
        self._load = load

        self._reads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self._send()

    def _send(self) -> None:
        if not self._load.take():
            self._transport.close()
            return
        self._received = bytearray()
        self._head_end = -1
        self._ends: bytes | int = b""
        self._awaits_token = bool(self._load.token)
        self._sent = self._last = time.perf_counter()
        self._reads = 0
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._reads += 1
        if self._reads == 1:
            self._load.first.append(now - self._sent)
        else:
            self._load.gaps.append(now - self._last)
        self._last = now
        self._received += data
        if self._awaits_token and self._load.token in self._received:
            self._awaits_token = False
            self._load.tokens.append(now - self._sent)
        if self._head_end < 0:
            self._read_head()
        whole = (
            len(self._received) >= self._ends
            if isinstance(self._ends, int)
            else bool(self._ends) and self._received.endswith(self._ends, self._head_end)  # a header may end in 0
        )
        if whole:
            self._load.total.append(now - self._sent)
            if self._load.expected not in self._received:
                self._load.fail(f"answered {bytes(self._received[-300:])!r}")
            self._send()

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        if b" 200 " not in head.split(b"\r\n", 1)[0] + b" ":
            self._load.fail(f"answered {bytes(self._received[:300])!r}")
        self._head_end = end + 4
        # From the line's start: LiteLLM gives the backend's in a header of its own.
        at = head.find(b"\r\ncontent-length:")
        self._ends = self._head_end + int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else b"0\r\n\r\n"

    def connection_lost(self, error: Exception | None) -> None:
        if self._reads and not self._load.is_over:
            self._load.fail(f"closed behind {bytes(self._received[-300:])!r}")
        self._load.closed()


class Load:
    """The requests of a run, and the times of their answers in seconds."""

    def __init__(self, requests: int, clients: int, expected: bytes, token: bytes) -> None:
        self.expected = expected
        self.token = token
        self._left = requests
        self._clients = clients
        self.done = asyncio.Event()
        self.failure: str | None = None
        self.first: list[float] = []
        self.tokens: list[float] = []
        self.gaps: list[float] = []
        self.total: list[float] = []

    @property
    def is_over(self) -> bool:
        return self._left < 0

    def fail(self, why: str) -> None:
        self.failure = why
        self.done.set()

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def closed(self) -> None:
        self._clients -= 1
        if not self._clients:
            self.done.set()


def at(percent: int, seconds: list[float]) -> float:
    """A percentile, in ms."""
    return round(quantiles(seconds, n=100)[percent - 1] * 1000, 3) if len(seconds) > 1 else 0.0


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--expected", default="", help="what every answer holds")
    parser.add_argument("--token", default="", help="the first token")
    parser.add_argument("--key", default="none", help="that it sends")
    given = parser.parse_args()
    body = sys.stdin.buffer.read()
    request = (
        f"POST {given.path} HTTP/1.1\r\nHost: 127.0.0.1:{given.port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {given.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    load = Load(given.requests, given.clients, given.expected.encode(), given.token.encode())
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    for _ in range(given.clients):
        await loop.create_connection(lambda: Client(request, load), "127.0.0.1", given.port)
    await load.done.wait()
    if load.failure:
        raise SystemExit(load.failure)
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "requests": len(load.total),
                "per_s": round(len(load.total) / seconds, 1),
                "first_p50": at(50, load.first),
                "first_p99": at(99, load.first),
                "token_p50": at(50, load.tokens),
                "token_p99": at(99, load.tokens),
                "gap_p50": at(50, load.gaps),
                "gap_p99": at(99, load.gaps),
                "total_p50": at(50, load.total),
                "total_p99": at(99, load.total),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
