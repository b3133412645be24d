"""Bytes that go on as they came, and the tokens that they count."""

from __future__ import annotations

import contextlib
import json
import re

import msgspec

from core.errors import APIError, BackendError

# The usage is the last thing in an answer, or among the first: llama.cpp's before its embeddings.
END_BYTES = 4096
USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')


class Used(msgspec.Struct):
    """The tokens of a request, and of its answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


_first_json = json.JSONDecoder()


class PassedThrough:
    """One answer. It is over when its bytes end."""

    ended = is_done = is_counted = is_over = begun = False

    def __init__(self) -> None:
        self.start = self.tail = b""

    def feed(self, received: bytes) -> bytes:
        """What leaves of a network read: all of it."""
        self.begun = True
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

    def used(self) -> Used | None:
        """The tokens that OpenAI's APIs count in an answer."""
        for part in (self.tail, self.start):
            for found in reversed(list(USAGE.finditer(part))):
                with contextlib.suppress(ValueError):  # msgspec's, too
                    used, _ = _first_json.raw_decode(part[found.end() :].decode("utf-8", "replace"))
                    return msgspec.convert(used, Used)
        return None
