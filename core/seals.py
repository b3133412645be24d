"""Opaque texts that a client carries for us, or that we keep: sealed reasoning, compacted conversations, requests.

    key ──purpose, owner──▶ a key of its own ──▶ "nomyo_1_" + Fernet

Encrypted and authenticated (Fernet: AES-128-CBC with HMAC-SHA256), so that nobody else can read or forge one, and every
router with the same key can open it again, for the purpose and the owner that it was sealed for and no others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from copy import copy
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

Purpose = Literal["reasoning", "compaction", "request", "session"]

# How ours begin. Before they did, they had one key for all purposes, and looked like those of others.
PREFIX = "nomyo_1_"
MOST_OWNERS = 1000


class Sealer:
    """Seals with one key. `key` is any text; what it is made of is up to whoever chose it."""

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(key.encode()).digest()
        self._owner = ""
        self._fernets: dict[bytes, Fernet] = {}
        self._others: dict[str, Sealer] = {}

    def of(self, owner: str) -> Sealer:
        """The sealer of one owner: what it seals no other opens. That of "" is this one, and has sealed all there is
        from before there were owners."""
        if not owner:
            return self
        if (sealer := self._others.get(owner)) is None:
            if len(self._others) >= MOST_OWNERS:
                self._others.clear()
            sealer = copy(self)
            sealer._owner, sealer._fernets, sealer._others = owner, {}, {}
            self._others[owner] = sealer
        return sealer

    def key_for_peers(self) -> str:
        """What a process proves to its peers with that it is one: they have the same key."""
        return hmac.digest(self._key, b"peers", "sha256").hex()

    def service_id(self) -> str:
        """What names those who have this key, and gives nothing of it away."""
        return hmac.digest(self._key, b"service", "sha256")[:6].hex()

    def seal(self, text: str, purpose: Purpose) -> str:
        """The text, encrypted, as letters and digits: about a third longer."""
        return PREFIX + self._fernet(self._key_for(purpose)).encrypt(text.encode()).decode()

    def open(self, sealed: object, purpose: Purpose) -> str | None:
        """The text, or None for what was not sealed with this key for this purpose: a client may send what it likes."""
        if not isinstance(sealed, str):
            return None
        from cryptography.fernet import InvalidToken

        if (self._owner or purpose == "session") and not is_ours(sealed):  # There were neither before the prefix.
            return None
        key = self._key_for(purpose) if is_ours(sealed) else self._key
        try:
            return self._fernet(key).decrypt(sealed.removeprefix(PREFIX).encode()).decode()
        except (InvalidToken, UnicodeError):
            return None

    def _key_for(self, purpose: Purpose) -> bytes:
        return hmac.digest(self._key, (f"{purpose}\0{self._owner}" if self._owner else purpose).encode(), "sha256")

    def _fernet(self, key: bytes) -> Fernet:
        if (fernet := self._fernets.get(key)) is None:
            from cryptography.fernet import Fernet  # 6 MB, for those who seal

            fernet = self._fernets[key] = Fernet(base64.urlsafe_b64encode(key))
        return fernet


def is_ours(sealed: object) -> bool:
    """Whether a router of ours sealed it, with whichever key. Those from before the prefix are not known."""
    return isinstance(sealed, str) and sealed.startswith(PREFIX)
