"""A model server that costs next to nothing: chat completions, and Responses, out of ready-made bytes.

    python -m benchmarks.mock_backend PORT

The request decides how it is answered: without `stream` by JSON; with `slowly` in its prompt by a token every 20 ms;
with `briefly` by the words of the JSON; else by all tokens in one write. Any GET is answered by its models, whatever a
gateway wants to know.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from typing import Any, cast

import orjson
import uvloop

TOKENS = 64
EVERY_S = 0.02
STREAM = re.compile(rb'"stream": ?true')

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"


def _whole(content_type: bytes, body: bytes) -> bytes:
    return _HEAD % content_type + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,%b}]}\n\n'
)


def _delta(text: bytes) -> bytes:
    return _CHUNK % (b'"delta":{"content":"%b"},"finish_reason":null' % text)


_DELTAS = [_delta(b" token%d" % number) for number in range(TOKENS)]
_END = (
    _CHUNK
    % b'"delta":{},"finish_reason":"stop"'
    + b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":64,"total_tokens":69}}\n\ndata: [DONE]\n\n'
)
MODELS = _whole(b"application/json", b'{"object":"list","data":[{"id":"mock","object":"model"}]}')
JSON = _whole(
    b"application/json",
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"Hello there."},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":3,'
    b'"total_tokens":8}}',
)
BRIEF = _whole(b"text/event-stream", b"".join(map(_delta, (b"Hello", b" there", b"."))) + _END)
BURST = _whole(b"text/event-stream", b"".join(_DELTAS) + _END)
STREAM_HEAD = _HEAD % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n"
PIECES = [*map(_chunked, _DELTAS), _chunked(_END) + b"0\r\n\r\n"]


def _response(status: str, texts: list[str]) -> dict[str, Any]:
    part = {"type": "output_text", "text": "".join(texts), "annotations": [], "logprobs": []}
    message = {"type": "message", "id": "msg_1", "status": status, "role": "assistant", "content": [part]}
    counts = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": len(texts)}
    usage = {**counts, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5 + len(texts)}
    done = status == "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "model": "m",
        "output": [message] if done else [],
        "usage": usage if done else None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _events(texts: list[str]) -> list[bytes]:
    """A Responses stream."""
    begun, whole = _response("in_progress", texts), _response("completed", texts)
    (message,) = whole["output"]
    (part,) = message["content"]
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    opened = {**message, "status": "in_progress", "content": []}
    events: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": begun}),
        ("in_progress", {"response": begun}),
        ("output_item.added", {"output_index": 0, "item": opened}),
        ("content_part.added", {**at, "part": {**part, "text": ""}}),
        *(("output_text.delta", {**at, "delta": text, "logprobs": []}) for text in texts),
        ("output_text.done", {**at, "text": part["text"], "logprobs": []}),
        ("content_part.done", {**at, "part": part}),
        ("output_item.done", {"output_index": 0, "item": message}),
        ("completed", {"response": whole}),
    ]
    return [
        b"event: response.%b\ndata: %b\n\n"
        % (name.encode(), orjson.dumps({"type": f"response.{name}", "sequence_number": number, **event}))
        for number, (name, event) in enumerate(events)
    ]


_TEXTS = [f" token{number}" for number in range(TOKENS)]
_NATIVE = _events(_TEXTS)
NATIVE_JSON = _whole(b"application/json", orjson.dumps(_response("completed", ["Hello", " there."])))
NATIVE_BRIEF = _whole(b"text/event-stream", b"".join(_events(["Hello", " there", "."])))
NATIVE_BURST = _whole(b"text/event-stream", b"".join(_NATIVE))
# What is before the first token comes with it, and what is behind the last one together.
NATIVE_PIECES = [
    *map(_chunked, [b"".join(_NATIVE[:5]), *_NATIVE[5:-4]]),
    _chunked(b"".join(_NATIVE[-4:])) + b"0\r\n\r\n",
]


class Connection(asyncio.Protocol):
    """One kept connection; requests on it come one after the other."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._head = b""
        # Where the request ends, once its head is there.
        self._end = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._end or self._read_head():
            if len(self._received) < self._end:
                return
            body = bytes(self._received[len(self._head) : self._end])
            del self._received[: self._end]
            self._end = 0
            self.answer(self._head, body)

    def _read_head(self) -> bool:
        """Whether one is there; then `_end` is known."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._head = bytes(self._received[: end + 4]).lower()
        at = self._head.find(b"content-length:")
        self._end = end + 4 + (int(self._head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0)
        return True

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self._transport.write(MODELS)
            return
        native = head.startswith(b"post /v1/responses ")
        if not STREAM.search(body):
            self._transport.write(NATIVE_JSON if native else JSON)
        elif b"slowly" in body:
            self._transport.write(STREAM_HEAD)
            self.trickle(iter(NATIVE_PIECES if native else PIECES))
        elif b"briefly" in body:
            self._transport.write(NATIVE_BRIEF if native else BRIEF)
        else:
            self._transport.write(NATIVE_BURST if native else BURST)

    def trickle(self, pieces: Iterator[bytes]) -> None:
        if (piece := next(pieces, None)) is not None and not self._transport.is_closing():
            self._transport.write(piece)
            asyncio.get_running_loop().call_later(EVERY_S, self.trickle, pieces)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
