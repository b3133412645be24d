"""Where a Valkey is, or a Redis: `valkey://[user:password@]host[:port][/database]`. `valkeys` and `rediss` are over
TLS."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from core.errors import ConfigError

SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
PORT = 6379


class Address(NamedTuple):
    """Where a server is, and who asks it."""

    host: str
    port: int
    is_tls: bool
    user: str
    password: str
    database: int

    def __str__(self) -> str:
        """Without the password."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @classmethod
    def of(cls, url: str, setting: str) -> Address:
        """Raises `ConfigError`, which names the setting and shows no password."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError(f"{setting}: is no URL, as valkey://host:{PORT} is") from None
        if parts.scheme not in SCHEMES:
            raise ConfigError(f"{setting}: must begin with valkey:// or redis://, with valkeys:// or rediss:// for TLS")
        if not parts.hostname or port == 0:
            raise ConfigError(f"{setting}: has no host or port to connect to, as valkey://host:{PORT} has")
        if parts.query or parts.fragment:
            raise ConfigError(f"{setting}: takes no options behind the number of the database")
        database = parts.path.strip("/")
        if database and not (database.isascii() and database.isdecimal()):
            raise ConfigError(f"{setting}: the path must be the number of a database, as in valkey://host:{PORT}/0")
        return cls(
            parts.hostname,
            port or PORT,
            SCHEMES[parts.scheme],
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            int(database or 0),
        )
