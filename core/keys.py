"""Who asks: what a key stands for, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Window = Literal["day", "month"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """So much in each calendar day or month (UTC)."""

    amount: float
    per: Window


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key, or all keys of an owner together, may use; None and () are without limit. `rpm` and `tpm` are
    requests and tokens a minute, `concurrent` turns at once, `background` background turns that wait or run, `budget`
    tokens, `cost` in the currency of the prices."""

    rpm: int | None = None
    tpm: int | None = None
    concurrent: int | None = None
    background: int | None = None
    budget: tuple[Allowance, ...] = ()
    cost: tuple[Allowance, ...] = ()


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks. `id` keeps principals apart in the fair queue; where no key is asked for it is a label, made of
    what the client sent as one. Everything that is stored or runs belongs to `owner`; "" is that of admins, and of
    whoever asks a router without keys. `key` is the name of the key, "" for `api_key` and where none is asked for.
    `limits` are the key's, `owner_limits` those of all keys of the owner together. `models` are patterns of those that
    it may use; None: all. A lower `priority` comes first."""

    id: str
    owner: str = ""
    is_admin: bool = False
    limits: Limits = field(default=UNLIMITED)
    key: str = ""
    owner_limits: Limits = field(default=UNLIMITED)
    models: tuple[str, ...] | None = None
    priority: int = 0

    def may_use(self, *names: str) -> bool:
        """Whether it may use a model that goes by these names."""
        patterns = self.models
        return patterns is None or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
