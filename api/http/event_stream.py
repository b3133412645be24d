"""An SSE stream as the answer to a request.

await answer ──first output──▶ head, frames …──▶ end        the usual way: what cannot start is an HTTP error
     └──start_s──▶ begins without one ──────────┘           there is a status and a beginning; an error is an event then
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from api.http.replies import StreamedReply
from api.http.silence import Watched
from backends.wire.relay import drained
from core.json import Json
from requests.emission import EMIT_FRAMES, EMIT_OBFUSCATED, Emission
from requests.sse import KEEPALIVE

LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})

# Events that the stream asks for, when nothing comes by itself.
Events = Callable[[], list[Json]]


def nothing() -> list[Json]:
    """No events: what a stream that has none of its own gets while it is silent."""
    return []


class EventStream(StreamedReply, Watched):
    """Frames, as they are written. Where nothing has been `start_s` after it was made, it begins with the events of
    `beginning`, unless these are none. While it is silent, it gets those of `still_here` now and then, or a comment
    where these are none."""

    def __init__(
        self,
        request: Request,
        *,
        emission: Emission = EMIT_FRAMES,
        headers: Callable[[], Mapping[str, str]] = dict,
        start_s: float = 0.0,
        beginning: Events = nothing,
        still_here: Events = nothing,
    ) -> None:
        super().__init__(request)
        self._emission = emission
        self._make_headers = headers
        self._beginning = beginning
        self._still_here = still_here
        self.watch(start_s)

    def headers_now(self) -> Mapping[str, str]:
        return {**CONTENT_TYPE, **self._make_headers()}

    def stop(self) -> None:
        Watched.stop(self)
        StreamedReply.stop(self)

    # ── while it is silent ───────────────────────────────────────────────────────────────────────────────────────────

    def was_silent(self) -> bool:
        was_silent, self._pipe.is_silent = self._pipe.is_silent, True
        return was_silent

    def speak_first(self) -> None:
        if events := self._beginning():
            self.write(self._emission.encode(events))  # type: ignore[arg-type]  # of an SSE stream: bytes

    def keep_alive(self) -> None:
        self.write(self._emission.encode(self._still_here()) or KEEPALIVE)  # type: ignore[arg-type]


NO_HEADERS: Mapping[str, str] = MappingProxyType({})
CONTENT_TYPE = {"Content-Type": "text/event-stream; charset=utf-8"}


async def stream_of(
    request: Request,
    batches: AsyncGenerator[list[Json]],
    *,
    obfuscate: bool,
    still_here: Events = nothing,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Response:
    """The answer that is the events of `batches`, which are closed here: each batch leaves in one write."""
    emission = EMIT_OBFUSCATED if obfuscate else EMIT_FRAMES
    stream = EventStream(request, emission=emission, still_here=still_here, headers=lambda: headers)
    return await stream.answer(_written(stream, emission, batches))


async def _written(stream: EventStream, emission: Emission, batches: AsyncGenerator[list[Json]]) -> None:
    stream.begin()
    async with aclosing(batches):
        async for events in batches:
            body = emission.encode(events)
            if events and events[-1]["type"] in LAST_EVENTS:
                stream.end(body)  # type: ignore[arg-type]
                return
            if not stream.write(body):  # type: ignore[arg-type]
                await drained(stream)
    stream.end()
