"""A request's way through the fleet: what it depends on, and what became of it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from msgspec import Struct, field

from cluster.protocol import Drawing
from core.turn_record import Try


class Admission(Protocol):
    """What a request is still to take of the limits of whoever asks: together with its first slot."""

    drawing: Drawing

    @property
    def is_refused(self) -> bool:
        """Whether there was no room for it."""
        ...

    def check(self, routing: Routing) -> None:
        """Puts what is left into its headers, when it is known. Raises `LimitReached`."""
        ...


class Routing(Struct, eq=False):
    """`principal` is whose place in the line it takes, before those of a higher `priority`; `affinity` names what may
    be warm somewhere (a conversation, a prefix), the surest first. `models` are patterns of those that it may go to;
    None: all."""

    principal: str = ""
    priority: int = 0
    affinity: Sequence[str] = ()
    # Patterns of those models that whoever asks may use; None: all.
    models: tuple[str, ...] | None = None
    # The front door, as a path below /v1, where it is not every endpoint's.
    path: str = ""
    # Keys of endpoints that it is not sent to again.
    tried: set[str] = set()
    # And of those that it is not sent to at all.
    unfit: frozenset[str] = frozenset()
    attempts: int = 0
    began_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0
    # When it had its last slot.
    asked_s: float = 0.0
    # The attempts that have ended, unless there was but one, and it went well.
    tries: list[Try] = []
    # How long it has held slots.
    slot_s: float = 0.0
    # What is left of the limits of whoever asks, as headers.
    limits: dict[str, str] = {}
    admission: Admission | None = None
    endpoint: str = ""
    model: str = ""

    def attempts_made(self) -> list[Try]:
        """The attempts that have ended."""
        if not self.tries and self.asked_s and self.slot_s:
            self.tries.append(Try(self.endpoint, self.asked_s, self.asked_s + self.slot_s))
        return self.tries

    def describe(self) -> str:
        """The model, where that is one that there is, where it went and how long ago that was, for the log."""
        where = f"{printable(self.model)} at {printable(self.endpoint)}, " if self.endpoint else ""
        return f"{where}{time.monotonic() - self.began_s:.2f} s"

    def headers(self) -> dict[str, str]:
        """What the client reads of it."""
        if not self.endpoint:
            return {**self.limits}
        headers = {
            "x-nomyo-endpoint": printable(self.endpoint),
            "x-nomyo-model": printable(self.model),
            "x-nomyo-wait-ms": f"{self.waited_s * 1000:.0f}",
        }
        return headers | self.limits if self.limits else headers


@lru_cache(maxsize=1024)
def printable(text: str) -> str:
    """The text as a header may hold it."""
    return re.sub(r"[^ -~]", "?", text)
