"""Opaque texts that a client carries for us: sealed reasoning and compacted conversations.

Encrypted and authenticated (Fernet: AES-128-CBC with HMAC-SHA256), so that nobody else can read or forge one, and every
router with the same key can open it again.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class Sealer:
    """Seals with one key. `key` is any text; what it is made of is up to whoever chose it."""

    def __init__(self, key: str) -> None:
        self._key = base64.urlsafe_b64encode(hashlib.sha256(key.encode()).digest())

    @cached_property
    def _fernet(self) -> Fernet:
        from cryptography.fernet import Fernet  # 6 MB, for those who seal

        return Fernet(self._key)

    def seal(self, text: str) -> str:
        """The text, encrypted, as letters and digits: about a third longer."""
        return self._fernet.encrypt(text.encode()).decode()

    def open(self, sealed: Any) -> str | None:
        """The text, or None for anything that was not sealed with this key: a client may send what it likes."""
        if not isinstance(sealed, str):
            return None
        from cryptography.fernet import InvalidToken

        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except (InvalidToken, UnicodeError):
            return None
