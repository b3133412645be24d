"""A model backend on a real socket that answers exactly what a test scripts, byte for byte.

    async with FakeBackend() as backend:
        backend.script(http_error(503), chat(reasoning("Hm."), "Hello"))   # one answer a turn, in this order
        ...
        assert backend.turns[-1].json["model"] == "test-model"
        await backend.wait_for(lambda b: b.aborts == 1)

An answer is an async function of a `Reply`. Answers are made of steps: a step is bytes (one write, one HTTP chunk)
or an answer again, so `chat("Hel", then=cut())` and `stream(b"data: {", stall())` read as what happens.
When the client leaves, the answer is cancelled: `stall()` needs no end.

    server → chat_answers, native_answers → parts, answers → reply
"""

from tests.fake_backend.answers import (
    JSON_HEADERS,
    SSE_HEADERS,
    cut,
    empty,
    event_stream,
    http_error,
    json_answer,
    pause,
    pieces,
    replay,
    sse,
    sse_error,
    stall,
    steps,
    stream,
    until,
)
from tests.fake_backend.chat_answers import DONE, chat, chat_usage, chunk
from tests.fake_backend.native_answers import native, native_events, responses_usage
from tests.fake_backend.parts import Call, call, interleaved, reasoning, refusal, with_logprobs
from tests.fake_backend.reply import CHAT, Answer, Reply, Request
from tests.fake_backend.server import FakeBackend, say
from tests.fake_backend.strict import strict_error

__all__ = [
    "CHAT",
    "DONE",
    "JSON_HEADERS",
    "SSE_HEADERS",
    "Answer",
    "Call",
    "FakeBackend",
    "Reply",
    "Request",
    "call",
    "chat",
    "chat_usage",
    "chunk",
    "cut",
    "empty",
    "event_stream",
    "http_error",
    "interleaved",
    "json_answer",
    "native",
    "native_events",
    "pause",
    "pieces",
    "reasoning",
    "refusal",
    "replay",
    "responses_usage",
    "say",
    "sse",
    "sse_error",
    "stall",
    "steps",
    "stream",
    "strict_error",
    "until",
    "with_logprobs",
]
