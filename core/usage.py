"""What was used: counted as requests end, added up in memory, and written with the turns.

request ends ──add──▶ pending, by hour, owner, key, model, endpoint ──flush──▶ the store
                                 ▲────────────── what could not be written ───────┘
"""

from __future__ import annotations

from operator import add
from typing import Literal, NamedTuple

HOUR_S = 3600
DAY_S = 86_400
# What usage can be listed by.
By = Literal["owner", "key", "model", "endpoint"]


class Use(NamedTuple):
    """What some requests have used. `cached` tokens are a part of the input, `reasoning` of the output; `slot_s` is how
    long they held slots of endpoints; `cost` is in the currency of the prices."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    slot_s: float = 0.0
    cache_hits: int = 0
    cost: float = 0.0

    def plus(self, other: Use) -> Use:
        """Both together."""
        return Use(*map(add, self, other))


class Where(NamedTuple):
    """Whose use of what it was, in the hour that began `at` (Unix seconds)."""

    at: int
    owner: str
    key: str
    model: str
    endpoint: str


class UsageRow(NamedTuple):
    """A row of a list of usage: from `at` on (Unix seconds), of one owner, key, model or endpoint, by which it is
    called."""

    at: int
    name: str
    used: Use


class Spent(NamedTuple):
    """What an owner, or one of its keys, has used since some time: tokens, and their cost."""

    tokens: int = 0
    cost: float = 0.0
