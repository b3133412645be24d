"""What becomes of the keys of a database when one is made, replaced or revoked: keys in, keys to be put out.

new_key(keys, settings, at) ──▶ NewKey        the one time that a key itself is seen
replaced(keys, name, …)     ──▶ NewKey        the earlier one ends after a while
revoked(keys, name, at)     ──▶ [StoredKey]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from secrets import token_urlsafe

import msgspec

from core.key_settings import KeyConfig, digest_of, expiry, wrong_with_key
from core.keys import StoredKey

PREFIX = "nk-"
_BYTES = 32  # 256 bits
_SHOWN = len(PREFIX) + 6
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_settings = msgspec.json.Decoder(KeyConfig)


class CannotChange(ValueError):
    """One line about why keys cannot be changed so, and what to do."""


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
    `expires` gives nothing else. Raises `CannotChange`."""
    earlier = _valid(keys, name, at)
    if not earlier:
        raise CannotChange(_no_key(keys, name))
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


def revoked(keys: Iterable[StoredKey], name: str, at: float) -> list[StoredKey]:
    """The valid keys of a name, as they end now. Raises `CannotChange` where there is none."""
    earlier = _valid(keys, name, at)
    if not earlier:
        raise CannotChange(_no_key(keys, name))
    return [replace(key, ends_at=at, ended_by="revoked") for key in earlier]


def settings_of(key: StoredKey) -> KeyConfig:
    """The settings of a key. Raises `CannotChange` where they are not understood."""
    try:
        return _settings.decode(key.settings)
    except msgspec.MsgspecError as error:
        raise CannotChange(f"name: '{key.name}' has settings that this version does not know: {error}") from None


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
