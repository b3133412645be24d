"""Who asks: what a key stands for."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """What a principal may use. None yet: the single key of a router has no limits."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks. `id` keeps principals apart in the fair queue and in the cache; where no key is asked for it is a
    label, made of what the client sent as one. Everything that is stored or runs belongs to `owner`."""

    id: str
    owner: str = ""
    is_admin: bool = False
    limits: Limits = field(default_factory=Limits)
