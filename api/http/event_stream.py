"""The SSE sink: a stream of events as the body of a reply.

prime ──first batch──▶ __call__ ──▶ end          the usual way: what cannot start is an HTTP error
  └──start_s──▶ begins without one ──┘           there is a status and a beginning; an error is an event from here on
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import aclosing

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from api.http.headers import headers_of
from api.http.leaving import ClientLeft, ClientWatch, Closable
from api.http.origins import share
from api.http.replies import Express, Outlet, StreamedReply, outlet_of, raw
from api.http.silence import Watched
from core.errors import without_frames
from core.json import Json
from requests.sse import KEEPALIVE, frames, obfuscated

LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})

# Events that arrived together.
Batches = Closable[list[Json]]
# Events that the stream asks for, when nothing comes by itself.
Events = Callable[[], list[Json]]


def nothing() -> list[Json]:
    """No events: what a stream that has none of its own gets while it is silent."""
    return []


class EventStream(StreamedReply, Watched):
    """All events of a batch leave in one write. While the stream is silent, it gets what `still_here` gives now and
    then, or a comment where that is nothing.

    `batches` must have been started (`prime`), or own nothing yet: it is closed here, whatever happens.
    """

    media_type = "text/event-stream; charset=utf-8"

    def __init__(
        self,
        batches: Batches,
        *,
        obfuscate: bool = False,
        express: Express | None = None,
        still_here: Events = nothing,
    ) -> None:
        super().__init__({"Content-Type": self.media_type})
        self._batches = batches
        self._frames = (lambda events: frames(obfuscated(events))) if obfuscate else frames
        self._express = express
        self._still_here = still_here
        self._beginning = nothing
        self._scope: Scope = {}
        self._outlet: Outlet | None = None
        self._first: list[Json] | Exception | None = None

    async def prime(self, request: Request, *, start_s: float, beginning: Events) -> None:
        """Waits for the first batch. Raises why there is none. After `start_s` the answer begins all the same, with the
        events of `beginning`, unless that gives none: what goes wrong from then on breaks it off."""
        self._scope, self._beginning = request.scope, beginning
        self._outlet = outlet_of(request.scope, request._send, self._express, self._frames)
        self.watch(start_s)
        try:
            async with ClientWatch(request.scope, request.receive):
                self._first = await anext(self._batches)
        except BaseException as error:
            if self.has_begun and isinstance(error, Exception):
                self._first = without_frames(error)
                return
            self.stop()
            await self._batches.aclose()
            raise

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """For an answer that has not begun without them."""
        self.raw_headers += raw(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._batches):
            with contextlib.suppress(ClientLeft):
                try:
                    async with ClientWatch(scope, receive):
                        if (outlet := self._outlet) is None:
                            self._outlet = outlet = outlet_of(scope, send, self._express, self._frames)
                            self.watch()
                        await self._send_all(outlet)
                finally:
                    self.stop()

    async def _send_all(self, outlet: Outlet) -> None:
        if self.has_begun:
            await outlet.resume()
        else:
            self.has_begun = True
            await outlet.start(self.raw_headers)
        events, self._first = self._first, None
        if isinstance(events, Exception):
            raise events
        if events is not None and await self._is_last(outlet, events):
            return
        async for events in self._batches:
            if await self._is_last(outlet, events):
                return
        await outlet.end()

    async def _is_last(self, outlet: Outlet, events: list[Json]) -> bool:
        """Sends a batch: the last one in one write with the end of the answer."""
        if events and type(events[-1]) is dict and events[-1]["type"] in LAST_EVENTS:
            await outlet.end(self._frames(events))
            return True
        await outlet.write(self._frames(events))
        return False

    # ── while it is silent ───────────────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        super().stop()
        if self._outlet is not None:
            self._outlet.stop()

    def was_silent(self) -> bool:
        return self._outlet is not None and self._outlet.was_silent()

    def speak_first(self) -> None:
        if self._outlet is None or not (events := self._beginning()):
            return
        self.has_begun = True
        if b"origin" in headers_of(self._scope):
            share(self, self._scope, self._scope["app"].state.config)
        body = self._frames(events)
        self._outlet.write_aside(lambda: body, self.raw_headers)

    def keep_alive(self) -> None:
        if self._outlet is not None:
            self._outlet.write_aside(self._sign_of_life)

    def _sign_of_life(self) -> bytes:
        return self._frames(self._still_here()) or KEEPALIVE
