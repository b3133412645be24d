"""GET /api/page/feed: what the live page shows, as it changes, as SSE.

    Snapshots ──every second, while somebody looks──▶ Snapshot ──▶ each page that is open
      fleet    the endpoints and what they have      where it has changed, and at first
      turns    turns that have ended                 as they do, and at first the last ones
      now      figures that move                     each time

Who looks is asked about each time: a feed ends with its session, its key or its right. A page that reads slowly misses
some, and begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from fastapi import Request
from starlette.responses import Response

from api.http.event_stream import CONTENT_TYPE
from api.http.headers import HEAD_ONLY
from api.http.keys import check_key, require_admin
from api.http.replies import StreamedReply
from api.http.routes import Routes
from api.page.snapshots import Snapshot
from core.errors import APIError
from core.state import AppState

routes = Routes(tags=["page"], for_admins=True)

# A browser asks again so long after its feed has ended.
RETRY = b"retry: 1000\n\n"
BYE = b"event: bye\ndata: {}\n\n"


@routes.get("/api/page/feed", include_in_schema=False)
async def follow_feed(request: Request) -> Response:
    """The feed, until the page is closed, its session ends or the router stops."""
    if HEAD_ONLY in request.scope:
        return Response(headers=dict(CONTENT_TYPE))
    stream = FeedStream(request)
    return await stream.answer(_followed(request, stream))


class FeedStream(StreamedReply):
    """The stream of one page."""

    def headers_now(self) -> Mapping[str, str]:
        return CONTENT_TYPE


class Follower:
    """One page that is open: takes a `Snapshot` until it has `ended`. What it has no room for it does without, until it
    can be given all again."""

    def __init__(self, stream: FeedStream, may_look: Callable[[], bool]) -> None:
        self._stream = stream
        self._may_look = may_look
        self._is_full = False
        self._begins_anew = True
        self.ended = asyncio.Event()

    def take(self, snapshot: Snapshot) -> None:
        """Sends what is new to it."""
        if self._is_full or self.ended.is_set():
            return
        if not self._may_look():
            self.ended.set()
            return
        body = snapshot.whole() if self._begins_anew else snapshot.changes
        self._begins_anew = False
        if not self._stream.write(body):
            self._is_full = self._begins_anew = True
            self._stream.when_drained(self._drained)

    def _drained(self) -> None:
        self._is_full = False


async def _followed(request: Request, stream: FeedStream) -> None:
    state: AppState = request.app.state
    follower = Follower(stream, lambda: _may_look(request))
    stream.write(RETRY)
    listeners = state.stopping.listeners
    listeners.add(follower.ended.set)
    try:
        if not state.stopping.has_begun:
            with state.page_feed.followed_by(follower.take):
                await follower.ended.wait()
    finally:
        listeners.discard(follower.ended.set)
    stream.end(BYE)


def _may_look(request: Request) -> bool:
    """Whether the one who has begun to look would be let in now."""
    try:
        check_key(request.app.state, request.scope)
        require_admin(request)
    except APIError:
        return False
    return True
