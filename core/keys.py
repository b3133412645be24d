"""Who asks: what a key stands for, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Window = Literal["day", "month"]
Ending = Literal["revoked", "replaced"]


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
class StoredKey:
    """A key as a database keeps it: its SHA-256, and its first characters (`shown`), by which people know it.
    `settings` are those of `core.key_settings.KeyConfig`, as JSON. Times are Unix seconds; `ends_at` is when it stops
    being valid, None never, and `ended_by` why it does that before it expires. `change` counts the changes of all keys
    of a database: that of a key is the last that it had."""

    digest: bytes
    name: str
    shown: str
    settings: bytes
    created_at: int
    ends_at: float | None = None
    ended_by: Ending | None = None
    change: int = 0


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

    @property
    def cache_scope(self) -> str:
        """With whom it shares cached answers: all keys of its owner that may use the same models. Admins, and clients
        that only have a label, share them with nobody."""
        if not self.owner:
            return self.id
        return f"owner {self.owner}" if self.models is None else f"owner {self.owner} {self.models}"
