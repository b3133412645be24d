"""The keys that a process knows, those of the settings and those of the database, and whom each stands for.

    config.yaml ──take_settings──▶ Keyring ──find──▶ Principal
    database ─────take_stored────▶

A key is looked up by a part of its digest, and the digest is compared in constant time. Nobody can choose a key by its
digest, so that no time depends on how near a key is to a valid one.
"""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from core.config import Config
from core.errors import ConfigError
from core.key_changes import KeyStore
from core.key_settings import KeyConfig, digest_in, digest_of, expiry, limits_of, owner_in
from core.keys import UNLIMITED, Ending, Limits, Principal, StoredKey

log = logging.getLogger("nomyo.keys")

_PART = 8
NO_DIGEST = bytes(32)
_settings = msgspec.json.Decoder(KeyConfig)
# Between two lines about the same key, or about unknown ones.
LOG_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    principal: Principal
    ends_at: float | None = None
    ended_by: Ending | None = None


class Keyring:
    """The keys of a router with some settings."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stored: dict[bytes, StoredKey] = {}
        self._keys: dict[bytes, _Key] = {}
        self._logged: dict[str, float] = {}
        # The last change of the database that is known here.
        self.seen = 0
        # By which the processes of one service ask one another.
        self.peer_key = ""
        self.asks_for_keys = False
        self._gather()

    def take_settings(self, config: Config) -> None:
        """Takes new settings."""
        self._config = config
        self._gather()

    def check_names(self, config: Config) -> None:
        """Raises `ConfigError` for a name that is in the settings and in the database: nobody knows which is meant."""
        now = time.time()
        stored = {key.name for key in self._stored.values() if key.ends_at is None or key.ends_at > now}
        for index, key in enumerate(config.keys):
            if key.name in stored:
                raise ConfigError(
                    f"keys[{index}].name: '{key.name}' is a key of the database too: rename this one, or revoke that "
                    f"one (./nomyo keys revoke {key.name})"
                )

    def take_stored(self, keys: Iterable[StoredKey]) -> None:
        """Takes those keys of the database that are new, or have changed."""
        changed = list(keys)
        for key in changed:
            self._stored[key.digest] = key
            self.seen = max(self.seen, key.change)
        if changed:
            self._gather()

    async def take_changes(self, store: KeyStore) -> None:
        """Takes the keys of the database that have changed since the last time."""
        if not (changed := await store.list_keys(self.seen)):
            return
        self.take_stored(changed)
        try:
            self.check_names(self._config)
        except ConfigError as error:
            log.error("%s", error)

    def find(self, given: bytes) -> Principal | None:
        """Whom a key stands for; None for one that is unknown, revoked or expired."""
        return self.holder(sha256(given).digest())

    def holder(self, digest: bytes) -> Principal | None:
        """The same by the SHA-256 of the key."""
        key = self._keys.get(digest[:_PART])
        is_known = hmac.compare_digest(digest, NO_DIGEST if key is None else key.digest)
        if key is None or not is_known or (key.ends_at is not None and key.ends_at <= time.time()):
            return None
        return key.principal

    def log_refusal(self, given: bytes) -> None:
        """For whoever runs the router: why `find` has found nobody. No client learns which of the three it is."""
        if not given:
            return
        key = self._keys.get(sha256(given).digest()[:_PART])
        name, now = key.principal.key if key else "", time.monotonic()
        if now - self._logged.get(name, -math.inf) < LOG_EVERY_S:
            return
        self._logged[name] = now
        if key:
            log.info(
                "the key '%s' was refused: it %s",
                name,
                "has expired" if key.ended_by is None else f"was {key.ended_by}",
            )
        else:
            log.info("a key was refused: it is unknown")

    def is_peer(self, given: bytes) -> bool:
        """Whether it is what a process of this service asks another one with."""
        return bool(self.peer_key) and hmac.compare_digest(given, self.peer_key.encode())

    def named(self, name: str) -> Principal | None:
        """Whom the key of a name stands for, or has stood for, the one that is valid longest; None where there never
        was one."""
        named = [key for key in self._keys.values() if name and key.principal.key == name]
        return max(named, key=lambda key: math.inf if key.ends_at is None else key.ends_at).principal if named else None

    def stored(self) -> list[StoredKey]:
        """The keys of the database, the oldest first."""
        return sorted(self._stored.values(), key=lambda key: (key.created_at, key.change))

    def _gather(self) -> None:
        config = self._config
        owners = {owner.name: limits_of(owner) for owner in config.owners}
        keys = [key for stored in self._stored.values() if (key := _of_database(stored, owners))]
        keys += [_of_settings(key, digest_in(key), owners) for key in config.keys]
        if config.api_key:
            keys.append(_Key(digest_of(config.api_key), Principal("api_key", is_admin=True)))
        self._keys = {key.digest[:_PART]: key for key in keys}
        # One that was revoked counts too: whoever revokes the last one does not mean to let everybody in.
        self.asks_for_keys = bool(self._keys or self._stored)


def _of_settings(settings: KeyConfig, digest: bytes, owners: dict[str, Limits]) -> _Key:
    owner = owner_in(settings)
    principal = Principal(
        settings.name,
        owner,
        settings.admin,
        limits_of(settings),
        settings.name,
        owners.get(owner, UNLIMITED),
        None if "*" in settings.models else settings.models,
        settings.priority,
    )
    return _Key(digest, principal, expiry(settings.expires))


def _of_database(stored: StoredKey, owners: dict[str, Limits]) -> _Key | None:
    """None for a key whose settings are not understood: a later version may have limits for it that are unknown
    here."""
    try:
        key = _of_settings(_settings.decode(stored.settings), stored.digest, owners)
    except ValueError as error:  # msgspec's, too
        log.error("the key '%s' of the database is not taken: %s", stored.name, error)
        return None
    return _Key(stored.digest, key.principal, stored.ends_at, stored.ended_by)
