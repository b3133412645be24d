"""What is known of a turn that has ended, for metrics, the log, traces and the page: times, tries, tools, tokens.

    began ──waited──▶ asked ──▶ answered ──▶ first output ──▶ ended ──▶ stored     seconds of the monotonic clock
                        └── a `Try` for each attempt ──┘     a `ToolRun` for each call that the router ran

It holds neither what was asked nor what was answered.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct, field

from core.keys import Principal
from core.request_context import RequestContext


class Try(Struct, frozen=True):
    """An attempt: where, from when to when a slot was held, and the code of its error, if it failed."""

    endpoint: str
    asked_s: float
    ended_s: float
    error: str = ""


class ToolRun(NamedTuple):
    """A call of a tool that the router ran: its item's type, and the tool's name."""

    kind: str
    name: str
    began_s: float
    ended_s: float
    has_failed: bool


class Counts(Protocol):
    """The tokens of a turn. `cached` are a part of the input, `reasoning` of the output."""

    @property
    def input(self) -> int: ...
    @property
    def cached(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def reasoning(self) -> int: ...


class Way(Protocol):
    """A turn's way through the fleet: where it went last, by which name of its model, how long it waited and held
    slots, and each attempt."""

    endpoint: str
    model: str
    waited_s: float
    slot_s: float

    def attempts_made(self) -> Sequence[Try]: ...


class TurnRecord(Struct, eq=False):
    """A turn that has ended. `status` is that of its response, `error` the code of what it failed with, `model` the
    name by which it is counted; `is_estimated`: no backend has counted its tokens. `first_s` is when its first output
    came, 0 where nobody knows."""

    id: str
    request: RequestContext
    principal: Principal
    way: Way
    model: str
    status: str
    error: str
    tokens: Counts
    first_s: float = 0.0
    tools: Sequence[ToolRun] = ()
    is_estimated: bool = False
    from_cache: bool = False
    ended_s: float = field(default_factory=time.monotonic)
    ended_at: float = field(default_factory=time.time)

    @property
    def endpoint(self) -> str:
        """The name of the endpoint that answered, or was asked last; empty where none was."""
        return self.way.endpoint

    @property
    def waited_s(self) -> float:
        """How long it waited for slots."""
        return self.way.waited_s

    @property
    def tries(self) -> Sequence[Try]:
        """Its attempts, one after the other."""
        return self.way.attempts_made()

    @property
    def door(self) -> str:
        """The front door, as a word: `responses`, `chat.completions`, `websocket`."""
        return self.request.door or door_of(self.request.path)

    @property
    def began_s(self) -> float:
        """When its request came."""
        return self.request.began_s

    @property
    def asked_s(self) -> float:
        """When it had its last slot."""
        return self.tries[-1].asked_s if self.tries else 0.0

    @property
    def answered_s(self) -> float:
        """When the head of the backend's answer was there."""
        return self.request.answered_s

    @property
    def stored_s(self) -> float:
        """When it was stored, if it is by now."""
        return self.request.stored_s

    @property
    def has_failed_over(self) -> bool:
        """Whether it was answered after an attempt that failed."""
        return self.status in ("completed", "incomplete") and any(one.error for one in self.tries)

    @property
    def took_s(self) -> float:
        """From the request to the end."""
        return max(self.ended_s, self.request.stored_s) - self.request.began_s

    @property
    def first_output_s(self) -> float | None:
        """From the request to the first output, where there was one."""
        return self.first_s - self.request.began_s if self.first_s else None

    @property
    def output_token_s(self) -> float | None:
        """How long each token of the output took behind the first; None where that cannot be known."""
        if not self.first_s or self.tokens.output < 2 or self.from_cache:
            return None
        return (self.ended_s - self.first_s) / (self.tokens.output - 1)


DOORS = {
    "/v1/responses": "responses",
    "/v1/responses/compact": "compact",
    "/v1/responses/input_tokens": "input_tokens",
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/api/chat": "ollama.chat",
    "/api/generate": "ollama.generate",
    "/api/embed": "ollama.embed",
    "/api/embeddings": "ollama.embed",
}


def door_of(path: str) -> str:
    """The front door at a path, as a word that no client can make up: of others than those that take turns the first
    part of the path, if it is one of ours."""
    if (door := DOORS.get(path)) is not None:
        return door
    parts = path.split("/", 3)
    if path.startswith("/v1/") and parts[2] in ("responses", "conversations", "models"):
        return parts[2]
    return "api" if path.startswith("/api/") else path[1:] if path in PAGES else "other"


PAGES = frozenset({"/metrics", "/health", "/ready", "/docs", "/openapi.json"})
