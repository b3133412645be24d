"""An answer on its way: what arrives of it leaves in the same turn of the event loop, and no task is woken for it.

    data_received ─▶ Answer ─▶ Relay.data ─▶ out.write(translator.feed(bytes))     full: its socket pauses until drained
    await relay.run()                                                             its end, or what is wrong with it
    await pump(pieces, …)                                                         the same for who gives pieces (an SDK)

A client that leaves cancels whoever awaits the relay, which closes the answer: that aborts the backend's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import Any, Protocol, TypeVar

from backends.wire.errors import raise_named
from backends.wire.http1 import Answer
from requests.emission import Output

# How long what belongs to an answer may come behind its end: the usage; and behind that [DONE].
GRACE_S = 2.0
DONE_S = 0.5
# So long behind the end nothing of the answer itself is expected any more.
SETTLED_S = 0.1
# And the end of the HTTP body, for which nobody waits, but which leaves a connection that can be used again.
LAST_READ_S = 0.05

T = TypeVar("T")


class Out(Protocol):
    """Where what is made of an answer leaves."""

    def write(self, output: Any, /) -> bool:
        """Sends it. False: there is no room for more, until `when_drained` calls."""
        ...

    def when_drained(self, call: Callable[[], None], /) -> None:
        """Has `call` called once, as soon as there is room again."""
        ...


class Unread:
    """Where what nobody reads leaves."""

    def write(self, output: Any, /) -> bool:
        """Has room for all."""
        return True

    def when_drained(self, call: Callable[[], None], /) -> None:
        """Is never full."""


NOWHERE = Unread()


class Feed(Protocol):
    """What makes of bytes what leaves (`requests.translator.Translator`; bytes that go on as they came)."""

    ended: bool
    is_done: bool
    is_counted: bool
    is_over: bool
    begun: bool

    def feed(self, received: bytes, /) -> Output: ...
    def settle(self) -> Output: ...
    def finish(self) -> Output: ...
    def wrong(self) -> Exception | None: ...


class Relay:
    """An answer, from its head to its end. `begins` is what was read of it already."""

    _waiter: asyncio.Future[None] | None = None
    _error: Exception | None = None
    _has_closed = False

    def __init__(self, answer: Answer, feed: Feed, out: Out, begins: bytes = b"") -> None:
        self._answer = answer
        self._feed = feed
        self._out = out
        self._begins = begins

    async def run(self) -> None:
        """Until all of it has left. Raises a `BackendError` or `TooManyRequests`: what is wrong with it; and what
        `out.write` raises."""
        answer, feed = self._answer, self._feed
        try:
            if self._begins:
                self.data(self._begins)
            answer.deliver_to(self)
            while not (feed.is_over or self._has_closed):
                await self._more()
            if feed.ended and not feed.is_done:
                await self._late()
            if (error := self._error) is not None and not feed.ended:
                self._error = None
                try:
                    raise_named(error, begun=feed.begun)
                finally:
                    del error
            self._write(feed.finish())
            if (wrong := feed.wrong()) is not None:
                try:
                    raise wrong
                finally:
                    del wrong
        finally:
            answer.close(LAST_READ_S if feed.is_done else 0.0)

    async def _late(self) -> None:
        """What comes behind the end is not waited for as long as for the answer: some servers send comments for
        ever."""
        loop = asyncio.get_running_loop()
        ended_at, is_settled = loop.time(), False
        while not (self._feed.is_done or self._has_closed):
            grace_s = DONE_S if self._feed.is_counted else GRACE_S
            try:
                async with asyncio.timeout_at(ended_at + (grace_s if is_settled else SETTLED_S)):
                    await self._more()
            except TimeoutError:
                if is_settled:
                    return
                is_settled = True
                self._write(self._feed.settle())

    def _more(self) -> asyncio.Future[None]:
        """Until something has changed."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def _write(self, output: Output) -> None:
        if output and not self._out.write(output):
            self._answer.pause()
            self._out.when_drained(self._answer.resume)

    def _notify(self) -> None:
        if (waiter := self._waiter) is not None and not waiter.done():
            waiter.set_result(None)

    # ── what its answer calls ────────────────────────────────────────────────────────────────────────────────────────

    def data(self, received: bytes) -> None:
        """A piece of its body."""
        feed = self._feed
        try:
            if (output := feed.feed(received)) and not self._out.write(output):
                self._answer.pause()
                self._out.when_drained(self._answer.resume)
        except Exception as error:
            # What it was given may have left in part: nothing follows that.
            self.closed(error)
            self._answer.receiver = None
        if feed.is_over:
            self._notify()

    def closed(self, error: Exception | None) -> None:
        """Its body has ended, or failed."""
        if not self._has_closed:
            self._has_closed, self._error = True, error
            self._notify()


async def drained(out: Out) -> None:
    """Waits until there is room again."""
    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    out.when_drained(lambda: None if room.done() else room.set_result(None))
    await room


async def pump(pieces: AsyncIterable[T], take: Callable[[T], Output], feed: Feed, out: Out) -> None:
    """The same for the stream of a client that gives pieces, such as an SDK's: each is for `take`."""
    try:
        async for piece in pieces:
            if (output := take(piece)) and not out.write(output):
                await drained(out)
            if feed.is_over and not feed.ended:
                break
        feed.ended = True  # Where it was cut, its client has raised that.
    finally:
        given: Any = pieces
        close = given.close if hasattr(given, "close") else given.aclose
        await close()
    if output := feed.finish():
        out.write(output)
    if (wrong := feed.wrong()) is not None:
        try:
            raise wrong
        finally:
            del wrong
