"""The servers of MCP that turns use: sessions with them, and what tools they have, which is remembered for a while."""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from backends.mcp.server import McpServer
from core.config import McpConfig, McpServerConfig
from core.json import Json

if TYPE_CHECKING:
    from backends.mcp.session import Session
    from backends.wire.outbound import GuardedTransport

# So long, and of so many servers.
TOOLS_FOR_S = 300.0
MOST_LISTS = 200


class McpServers:
    """What the process has of them. `allow_private`: those that clients name may lie at any address."""

    def __init__(self, config: McpConfig) -> None:
        self.take_settings(config)
        self._lists: dict[tuple[str, McpServer, bytes], tuple[float, list[Json]]] = {}
        self._transports: dict[bool, asyncio.Task[GuardedTransport]] = {}
        self._sessions: dict[asyncio.Task[Any], Session] = {}

    def take_settings(self, config: McpConfig) -> None:
        """Goes by other settings from now on."""
        self._config = config
        self.has_always = any(server.always for server in config.servers.values())

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._sessions)

    def named(self, name: str, owner: str) -> McpServerConfig | None:
        """The server of the settings that an owner knows by this name."""
        server = self._config.servers.get(name)
        return server if server is not None and _is_for(server, owner) else None

    def always(self, owner: str) -> list[str]:
        """The names of those that are offered to every turn of an owner."""
        if not self.has_always:
            return []
        return [name for name, server in self._config.servers.items() if server.always and _is_for(server, owner)]

    async def session(self, server: McpServer, *, allow_private: bool) -> Session:
        """A new session, which its caller closes."""
        from backends.mcp.session import Session
        from backends.wire.outbound import over

        http = None
        if not server.command:
            http = over(await self._transport(not server.is_clients or allow_private), dict(server.headers))
        session = Session(server, http)
        self._sessions[session.task] = session
        session.task.add_done_callback(self._sessions.pop)
        return session

    def known_tools(self, server: McpServer, owner: str) -> list[Json] | None:
        """The tools of a server, where an owner has asked for them lately."""
        at, tools = self._lists.get(_key(server, owner), (0.0, []))
        return tools if at and time.monotonic() - at < TOOLS_FOR_S else None

    def remember_tools(self, server: McpServer, owner: str, tools: list[Json]) -> None:
        """Remembers them, for this owner and these credentials."""
        key = _key(server, owner)
        self._lists.pop(key, None)
        self._lists[key] = time.monotonic(), tools
        while len(self._lists) > MOST_LISTS:
            del self._lists[next(iter(self._lists))]

    async def close(self) -> None:
        """Ends all sessions, and closes all connections."""
        for session in self._sessions.values():
            session.close()
        if self._sessions:
            limit_s = max(session.closes_within_s for session in self._sessions.values())
            await asyncio.wait([*self._sessions], timeout=limit_s)
        for made in self._transports.values():
            await (await made).aclose()

    async def _transport(self, allow_private: bool) -> GuardedTransport:
        """The connections that all share who may go to the same addresses. To make them loads the certificates of the
        world."""
        if allow_private not in self._transports:

            def made() -> GuardedTransport:
                from backends.mcp.session import MOST_BYTES
                from backends.wire.outbound import GuardedTransport

                return GuardedTransport(
                    max_bytes=MOST_BYTES, timeout_s=None, allow_private=allow_private, max_connections=1000
                )

            self._transports[allow_private] = asyncio.create_task(asyncio.to_thread(made))
        return await asyncio.shield(self._transports[allow_private])


def _is_for(server: McpServerConfig, owner: str) -> bool:
    return server.owners is None or owner in server.owners


def _key(server: McpServer, owner: str) -> tuple[str, McpServer, bytes]:
    """Without the credentials themselves."""
    digest = blake2b(repr((server.headers, server.env)).encode(), digest_size=16).digest()
    return owner, McpServer(server.label, server.url, server.command, is_clients=server.is_clients), digest
