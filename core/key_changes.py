"""What becomes of the keys of a database when one is made, replaced or revoked: keys in, keys to be put out.

new_key(keys, settings, at) ──▶ NewKey        the one time that a key itself is seen
replaced(keys, name, …)     ──▶ NewKey        the earlier one ends after a while
revoked(keys, name, at)     ──▶ Revoked
change_keys(store, change)      puts what `change` makes of the keys that there are
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from secrets import token_urlsafe
from typing import Any, Protocol, TypeVar

import msgspec

from core.key_settings import KeyConfig, digest_of, expiry, owner_in, wrong_with_key
from core.keys import StoredKey

PREFIX = "nk-"
_BYTES = 32  # 256 bits
_SHOWN = len(PREFIX) + 6
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_settings = msgspec.json.Decoder(KeyConfig)
DEFAULTS = msgspec.to_builtins(KeyConfig(name=""))
# Who a key is, and when it ends, stands beside what it may do.
NOT_GIVEN = frozenset({"name", "key", "sha256", "owner", "expires"})


class CannotChange(ValueError):
    """One line about why keys cannot be changed so, and what to do."""


class NoSuchKey(CannotChange):
    """There is no valid key of that name."""


class KeyStore(Protocol):
    """Of `db.Store`: what keys need."""

    async def list_keys(self, after: int = 0) -> list[StoredKey]: ...

    async def put_keys(self, keys: Sequence[StoredKey], after: int) -> bool: ...


class Change(Protocol):
    @property
    def changed(self) -> Sequence[StoredKey]:
        """All that is to be put."""
        ...


C = TypeVar("C", bound=Change)


@dataclass(frozen=True, slots=True)
class Revoked:
    """Keys that end now."""

    changed: tuple[StoredKey, ...]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made (`secret`), as it is to be put (`stored`), and the others that change with it."""

    secret: str
    stored: StoredKey
    others: tuple[StoredKey, ...] = ()

    @property
    def changed(self) -> list[StoredKey]:
        """All that is to be put."""
        return [*self.others, self.stored]


async def change_keys(store: KeyStore, change: Callable[[Sequence[StoredKey]], C]) -> C:
    """What `change` makes of the keys that there are, put into the store. Where somebody else changes them meanwhile it
    is asked again. Raises what it raises."""
    while True:
        kept = await store.list_keys()
        made = change(kept)
        if await store.put_keys(made.changed, max((key.change for key in kept), default=0)):
            return made


def new_key(keys: Iterable[StoredKey], settings: KeyConfig, at: float) -> NewKey:
    """A new key with some settings. Raises `CannotChange` where they are wrong, or there is a valid key of that
    name."""
    if wrong := wrong_with_key(settings):
        raise CannotChange(wrong)
    if _valid(keys, settings.name, at):
        raise CannotChange(f"name: there is a key '{settings.name}': rotate or revoke it, or give another name")
    return _made(settings, at)


def replaced(
    keys: Iterable[StoredKey], name: str, at: float, *, grace_s: float = 0.0, expires: str | None = None
) -> NewKey:
    """A new key for a name, in place of the valid ones, which end after `grace_s` seconds. It expires as they did, if
    `expires` gives nothing else. Raises `NoSuchKey`, and `CannotChange`."""
    earlier = _valid(keys, name, at)
    if not earlier:
        raise NoSuchKey(_no_key(keys, name))
    settings = settings_of(earlier[-1])
    if expires is not None:
        settings = msgspec.structs.replace(settings, expires=expires)
        if wrong := wrong_with_key(settings):
            raise CannotChange(wrong)
    until = at + grace_s
    ending = tuple(
        replace(key, ends_at=until, ended_by="replaced") if key.ends_at is None or key.ends_at > until else key
        for key in earlier
    )
    return replace(_made(settings, at), others=ending)


def revoked(keys: Iterable[StoredKey], name: str, at: float) -> Revoked:
    """The valid keys of a name, as they end now. Raises `NoSuchKey` where there is none."""
    earlier = _valid(keys, name, at)
    if not earlier:
        raise NoSuchKey(_no_key(keys, name))
    return Revoked(tuple(replace(key, ends_at=at, ended_by="revoked") for key in earlier))


def settings_of(key: StoredKey) -> KeyConfig:
    """The settings of a key. Raises `CannotChange` where they are not understood."""
    try:
        return _settings.decode(key.settings)
    except msgspec.MsgspecError as error:
        raise CannotChange(f"name: '{key.name}' has settings that this version does not know: {error}") from None


def described(key: StoredKey, at: float) -> dict[str, Any]:
    """A key as people and programs read it: its settings, but for those that it does not have, and how it stands. One
    whose settings are not understood has the state `unknown`."""
    try:
        settings = settings_of(key)
        state, owner, given = state_of(key, at), owner_in(settings), given_in(settings)
    except CannotChange:
        state, owner, given = "unknown", None, {}
    return {
        "name": key.name,
        "key": f"{key.shown}…",
        "owner": owner,
        "state": state,
        "created_at": key.created_at,
        "ends_at": key.ends_at,
        **given,
    }


def given_in(settings: KeyConfig) -> dict[str, Any]:
    """What a key may do: its settings, but for those that have their default."""
    given = msgspec.to_builtins(settings)
    return {name: value for name, value in given.items() if name not in NOT_GIVEN and value != DEFAULTS[name]}


def state_of(key: StoredKey, at: float) -> str:
    """How a key stands: `valid`, `ending` (it was replaced, and its grace runs), `expired`, `replaced` or `revoked`."""
    if key.ends_at is None or key.ends_at > at:
        return "ending" if key.ended_by else "valid"
    return key.ended_by or "expired"


def expiry_from(text: str, at: float) -> str:
    """A day or time as the settings have it, or so much from now on: `90d`, `12h`, `4w`, `30m`. Raises `ValueError`,
    whose text is why not."""
    if match := re.fullmatch(r"(\d{1,9})([mhdw])", text.strip()):
        try:
            end = datetime.fromtimestamp(at + seconds_of(text), UTC)
        except (ValueError, OverflowError, OSError):
            raise ValueError(f"'{text}' is too far away") from None
        if not match[1].strip("0"):
            raise ValueError(f"'{text}' is now")
        return end.isoformat(timespec="seconds")
    try:
        end_s = expiry(text)
    except ValueError:
        raise ValueError(f"'{text}' is no time, as 90d, 12h or 2027-01-31 is") from None
    if end_s is not None and end_s <= at:
        raise ValueError(f"'{text}' is over")
    return text


def seconds_of(text: str) -> float:
    """`90d`, `12h`, `4w`, `30m` in seconds. Raises `ValueError`, whose text is why not."""
    if match := re.fullmatch(r"(\d{1,9})([mhdw])", text.strip()):
        return float(match[1]) * _SECONDS[match[2]]
    if text.strip() == "0":
        return 0.0
    raise ValueError(f"'{text}' is no time, as 30m, 12h or 7d is")


def _made(settings: KeyConfig, at: float) -> NewKey:
    secret = PREFIX + token_urlsafe(_BYTES)
    kept = msgspec.json.encode(msgspec.structs.replace(settings, key="", sha256=""))
    shown = secret[:_SHOWN]
    stored = StoredKey(digest_of(secret), settings.name, shown, kept, int(at), expiry(settings.expires))
    return NewKey(secret, stored)


def _valid(keys: Iterable[StoredKey], name: str, at: float) -> list[StoredKey]:
    return [key for key in keys if key.name == name and (key.ends_at is None or key.ends_at > at)]


def _no_key(keys: Iterable[StoredKey], name: str) -> str:
    ended = any(key.name == name for key in keys)
    return f"name: '{name}' is not valid any more" if ended else f"name: there is no key '{name}' in the database"
