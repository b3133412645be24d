"""Bytes that go on as they came, and the tokens that they count."""

from __future__ import annotations

import contextlib
import json
import re

from core.errors import APIError, BackendError
from requests.tokens import BYTES_PER_TOKEN, body_tokens
from requests.usage import NO_TOKENS, Tokens, tokens_of_chat

# The usage is the last thing in an answer, or among the first: llama.cpp's before its embeddings.
END_BYTES = 4096
USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
STREAMS = ("text/event-stream", "application/x-ndjson")

_first_json = json.JSONDecoder()


class PassedThrough:
    """One answer. It is over when its bytes end."""

    ended = is_done = is_counted = is_over = begun = False

    def __init__(self) -> None:
        self.start = self.tail = b""
        self.received_bytes = 0

    def feed(self, received: bytes) -> bytes:
        """What leaves of a network read: all of it."""
        self.begun = True
        self.received_bytes += len(received)
        if len(self.start) < END_BYTES:
            self.start += received[: END_BYTES - len(self.start)]
        self.tail = (self.tail + received)[-END_BYTES:]
        return received

    def settle(self) -> bytes:
        """Nothing: nobody knows when it has ended but its bytes."""
        return b""

    def finish(self) -> bytes:
        """Nothing more."""
        return b""

    def wrong(self) -> APIError | None:
        """What is wrong with an answer whose bytes have ended."""
        return None if self.begun else BackendError("The backend's answer is empty.", code="backend_empty_answer")

    def used(self) -> Tokens | None:
        """The tokens that OpenAI's APIs count in an answer."""
        for part in (self.tail, self.start):
            for found in reversed(list(USAGE.finditer(part))):
                with contextlib.suppress(ValueError):
                    used, _ = _first_json.raw_decode(part[found.end() :].decode("utf-8", "replace"))
                    return tokens_of_chat(used)
        return None

    def estimated(self, body: bytes, content_type: str, *, is_text: bool = True) -> Tokens:
        """About how many tokens there are, where the answer to a `body` counts none: in a stream it is mostly one a
        frame. `is_text`: the answer is what a model has written."""
        if not self.begun:
            return NO_TOKENS
        output = 0
        if content_type.startswith(STREAMS):
            frames = self.tail.count(b"\n\n") or self.tail.count(b"\n")
            output = self.received_bytes * frames // len(self.tail)
        elif is_text:
            output = self.received_bytes // BYTES_PER_TOKEN
        return Tokens(body_tokens(body), output=output)
