"""Clients that leave before they are answered."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any

from starlette.types import Receive, Scope

from api.http.protocol import wire_of


class ClientLeft(Exception):
    """The client closed the connection: nobody reads what we answer."""


class ClientWatch:
    """Cancels its body the moment the client closes the connection, and raises `ClientLeft` then. For requests whose
    body has been read: what `receive` gives after that is the disconnect."""

    __slots__ = ("_body", "_has_left", "_receive", "_watcher", "_wire")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._wire = wire_of(scope)
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._has_left = False

    async def __aenter__(self) -> None:
        body = asyncio.current_task()
        assert body is not None
        self._body = body
        if self._wire is None:
            self._watcher = asyncio.create_task(self._watch(), name="disconnect watch")
        else:
            self._wire.on_left(self._left)
            if self._wire.has_left:
                self._left()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._wire is not None:
            self._wire.on_left(None)
        elif self._watcher is not None:
            self._watcher.cancel()
        if not self._has_left:
            return
        if isinstance(error, asyncio.CancelledError):
            if self._body.uncancel() == 0:
                raise ClientLeft from None
        elif error is None or isinstance(error, Exception):
            await _take_cancellation(self._body)
            raise ClientLeft from None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self._has_left = True
        self._body.cancel()


async def _take_cancellation(task: asyncio.Task[Any]) -> None:
    """The client left in the last moment, and what cancels us may not have arrived yet: it must not hit whoever is
    next."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    task.uncancel()
