"""The settings of keys, as config.yaml and the database have them, and what is wrong with them.

keys: [{name, key | sha256, …}] ──▶ KeyConfig ────┬─limits_of─▶ Limits
owners: [{name, …}]             ──▶ OwnerConfig ──┘
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

import msgspec

from core.errors import ConfigError
from core.keys import UNLIMITED, Allowance, Limits

Count = Annotated[int, msgspec.Meta(ge=1)]
EVERY_MODEL = ("*",)
# Names stand in addresses, labels of metrics and columns.
_NAME = re.compile(r"\w[\w.@+-]{0,63}")
_ALLOWANCE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kM]?)\s*/\s*(day|month)\s*")
_THOUSANDS = {"": 1, "k": 1000, "M": 1_000_000}


class LimitsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key may use, or all keys of an owner together. `budget` is tokens, as `1000000/day`, `cost` in the
    currency of the prices, as `20/month`; several stand with commas between them."""

    rpm: Count | None = None
    tpm: Count | None = None
    concurrent: Count | None = None
    background: Count | None = None
    budget: str = ""
    cost: str = ""


class OwnerConfig(LimitsConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`owners[]`: what all keys of one owner may use together."""

    name: str


class NamedKey(LimitsConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a key may do. `owner`: whose everything is that it makes; empty: its own, of an admin that of all admins."""

    name: str
    owner: str = ""
    admin: bool = False
    models: tuple[str, ...] = EVERY_MODEL
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    # A day, until whose end (UTC) it is valid, or a time.
    expires: str = ""


class KeyConfig(NamedKey, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`keys[]`: one key of the settings, itself or as its SHA-256."""

    key: str = ""
    sha256: str = ""


def check_keys(keys: Sequence[KeyConfig], owners: Sequence[OwnerConfig], api_key: str) -> None:
    """Raises `ConfigError`, one line that names the setting, where one is wrong. It never holds a key."""
    names, digests = dict[str, int](), {digest_of(api_key): "api_key"} if api_key else {}
    for index, key in enumerate(keys):
        where = f"keys[{index}]"
        if wrong := wrong_with_key(key):
            raise ConfigError(f"{where}.{wrong}")
        if bool(key.key) == bool(key.sha256):
            wanted = "give one of key and sha256, not both" if key.key else "missing key or sha256"
            raise ConfigError(f"{where}: {wanted}")
        if wrong := wrong_with_secret(key.key):
            raise ConfigError(f"{where}.key: {wrong}")
        if key.sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", key.sha256):
            raise ConfigError(f"{where}.sha256: must be 64 hexadecimal digits, as `printf %s KEY | sha256sum` gives")
        if key.name in names:
            raise ConfigError(f"{where}.name: '{key.name}' is there twice")
        names[key.name] = index
        if other := digests.get(digest := digest_in(key)):
            raise ConfigError(f"{where}: '{key.name}' is the same key as {other}")
        digests[digest] = f"'{key.name}'"
    for index, owner in enumerate(owners):
        where = f"owners[{index}]"
        if not _NAME.fullmatch(owner.name):
            raise ConfigError(f"{where}.name: {_no_name(owner.name)}")
        if owner.name in (other.name for other in owners[:index]):
            raise ConfigError(f"{where}.name: '{owner.name}' is there twice")
        if wrong := _wrong_with_limits(owner):
            raise ConfigError(f"{where}.{wrong}")


def wrong_with_key(key: KeyConfig) -> str:
    """What is wrong with the settings of a key but for the key itself, as `setting: why`; empty where nothing is."""
    for setting, value in (("name", key.name), ("owner", key.owner)):
        if (value or setting == "name") and not _NAME.fullmatch(value):
            return f"{setting}: {_no_name(value)}"
    for pattern in key.models:
        if not pattern or pattern != pattern.strip():
            return f"models: '{pattern}' is no pattern of a model, as qwen* is"
    try:
        expiry(key.expires)
    except ValueError as error:
        return f"expires: {error}"
    return _wrong_with_limits(key)


def wrong_with_secret(key: str) -> str:
    """What keeps a key from being sent as it is; empty where nothing does."""
    if key != key.strip():
        return "begins or ends with a space or a line end"
    return UNSENDABLE if re.search(r"[\x00-\x1f\x7f]", key) else ""


UNSENDABLE = "has a character that no header can carry"


def digest_of(key: str) -> bytes:
    """What is kept of a key: its SHA-256."""
    return hashlib.sha256(key.encode()).digest()


def digest_in(key: KeyConfig) -> bytes:
    """The digest of a key of the settings."""
    return digest_of(key.key) if key.key else bytes.fromhex(key.sha256)


def owner_in(key: KeyConfig) -> str:
    """Whose everything is that a key makes."""
    return key.owner or ("" if key.admin else key.name)


def limits_of(settings: LimitsConfig) -> Limits:
    """The limits in some settings, which were checked; `UNLIMITED` itself where there are none."""
    limits = Limits(
        rpm=settings.rpm,
        tpm=settings.tpm,
        concurrent=settings.concurrent,
        background=settings.background,
        budget=allowances(settings.budget),
        cost=allowances(settings.cost),
    )
    return UNLIMITED if limits == UNLIMITED else limits


def allowances(text: str) -> tuple[Allowance, ...]:
    """`1000000/day`, `1M/day, 20M/month`: what may be used in each. Raises `ValueError`, whose text is why not."""
    found = dict[str, Allowance]()
    for part in text.split(",") if text.strip() else ():
        match = _ALLOWANCE.fullmatch(part)
        if match is None:
            raise ValueError(f"'{part.strip()}' is no amount a day or month, as 1000000/day or 20/month is")
        number, thousands, per = match.groups()
        if (amount := float(number) * _THOUSANDS[thousands]) <= 0:
            raise ValueError(f"'{part.strip()}' must be more than 0")
        if per in found:
            raise ValueError(f"'{text.strip()}' has two amounts a {per}")
        found[per] = Allowance(amount, "day" if per == "day" else "month")
    return tuple(found.values())


def expiry(text: str) -> float | None:
    """When a key stops being valid, in Unix seconds: the end of a day (`2027-01-31`), or a time
    (`2027-01-31T12:00:00+01:00`), in UTC where it names no zone. None for an empty one: never. Raises `ValueError`,
    whose text is why not."""
    if not text:
        return None
    try:
        if len(text) == len("2027-01-31"):
            end = datetime.combine(date.fromisoformat(text) + timedelta(days=1), time(), UTC)
        else:
            end = datetime.fromisoformat(text)
        return (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"'{text}' is no day or time, as 2027-01-31 or 2027-01-31T12:00:00Z is") from None


def _wrong_with_limits(limits: LimitsConfig) -> str:
    for setting, text in (("budget", limits.budget), ("cost", limits.cost)):
        try:
            allowances(text)
        except ValueError as error:
            return f"{setting}: {error}"
    return ""


def _no_name(name: str) -> str:
    return f"'{' '.join(name.split())[:80]}' is no name: up to 64 letters, digits and . _ @ + -"
