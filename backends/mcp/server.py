"""A server of MCP, as a turn names it, and what it did not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.config import McpServerConfig
from core.json import Json

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class McpServer:
    """A server: at a `url`, or a process that `command` starts. `is_clients`: the client has named it, so that the
    addresses that it may lie at are checked. `headers` are for it alone."""

    label: str
    url: str = ""
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    is_clients: bool = False
    is_sse: bool = False

    def scrubbed(self, message: str) -> str:
        """A message without the URL and the credentials of the server."""
        values = [self.url, *(value for _, value in (*self.headers, *self.env))]
        secrets = {*values, *(value.removeprefix("Bearer ") for value in values)} - {""}
        for secret in sorted(secrets, key=len, reverse=True):
            message = message.replace(secret, "…")
        return message[:1000]


def server_of_settings(label: str, settings: McpServerConfig, headers: Mapping[str, str] = NO_HEADERS) -> McpServer:
    """A server of the settings, under the label that a turn has for it, with more `headers`."""
    return McpServer(
        label,
        settings.url,
        settings.command,
        env=tuple(settings.env.items()),
        headers=tuple({**settings.headers, **headers}.items()),
        is_sse=settings.transport == "sse",
    )


class ServerFailed(Exception):
    """A server could not be asked, or has not answered, for the reason in `error`, which is one of a call."""

    def __init__(self, error: Json) -> None:
        super().__init__(error["message"])
        self.error = error
