"""A connection to Valkey, or to Redis from 6 on: commands in a pipeline, messages of its channels, and back by itself
when it is lost.

    connection.call("GET", key)        an answer to wait for
    connection.run(SCRIPT, …)          the same of a script, in one round trip
    connection.send(args, on_answer)   without a wait

While Valkey is away each call fails at once with `ConnectionError`: nobody waits for it. Our own, because a call by
redis-py costs four times the CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, cast

from core.errors import StartError
from core.valkey_address import Address

log = logging.getLogger("nomyo.valkey")

# A server that answers nothing for so long is away. Looked at in steps.
PATIENCE_S = 0.5
STEPS = 2
# How long connecting may take, and the time between two tries.
CONNECT_S = 2.0
RETRY_S, MOST_RETRY_S = 0.05, 0.25
# What waits to be sent while the server does not read: more than this is a server that is away.
MOST_UNSENT = 64 * 1024 * 1024

# The words of a server that is there, and will answer later.
NOT_NOW = frozenset({"LOADING", "MASTERDOWN", "BUSY", "TRYAGAIN", "CLUSTERDOWN"})

# What a server may be besides one that keeps all by itself.
UNUSABLE = {
    b"sentinel": "it is a Sentinel, which keeps nothing: name the server itself, by an address that stays with it",
    b"cluster": "it is a part of a cluster: what is shared takes one server, without cluster-enabled",
}

Argument = str | bytes | int | float
OnAnswer = Callable[[Any], None]


class Script:
    """A script that the server keeps, and runs by the hash of its text."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class ValkeyError(Exception):
    """The server has refused a command."""


class Valkey:
    """A connection that is kept up from `open` to `close`. `on_open` is called each time that it is made: what it sends
    goes first. `on_lost` when it is lost. The `scripts` are there from the beginning, so that none of them has to be
    sent again behind what was sent after it. `meanwhile`: what happens while it is away, for the log; without it the
    log has nothing of that."""

    def __init__(
        self,
        address: Address,
        setting: str,
        *,
        scripts: Sequence[Script] = (),
        on_open: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        meanwhile: str = "",
    ) -> None:
        self.address = address
        self._setting = setting
        self._listeners: dict[bytes, Callable[[bytes], None]] = {}
        self._scripts = scripts
        self._on_open = on_open
        self._on_lost = on_lost
        self._meanwhile = meanwhile
        self._link: Link | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._refused_at = -math.inf
        # Why it is away, for people; empty while it is there.
        self.problem = "not asked yet"

    @property
    def is_there(self) -> bool:
        """Whether it answers, as far as is known."""
        return self._link is not None

    @property
    def own_host(self) -> str:
        """The address of this machine from which the server is reached; empty while it is away."""
        return str(self._link.transport.get_extra_info("sockname")[0]) if self._link else ""

    async def open(self) -> None:
        """Connects, and stays connected. A server that is away is asked again and again, also after this. Raises
        `StartError` where one is there and does not let us in."""
        try:
            await self._connect()
        except OSError as error:
            self._is_away(error)
        self._keeping = asyncio.create_task(self._keep(), name="valkey")

    async def close(self) -> None:
        """What was sent before is sent."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        if self._link is not None:
            link, self._link = self._link, None
            link.transport.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await link.lost.wait()

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, args: Sequence[Argument], on_answer: OnAnswer | None = None) -> bool:
        """Sends a command. `on_answer` gets its answer; a `ValkeyError` where the server refuses it, or a
        `ConnectionError` where none will come. False, and nothing else, while it is away."""
        if self._link is None:
            return False
        self._link.send(args, on_answer or self._unheard)
        return True

    def call(self, *args: Argument) -> asyncio.Future[Any]:
        """The answer to a command. Raises `ValkeyError` and `ConnectionError`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.send(args, Answering(answer)):
            answer.set_exception(ConnectionError(f"Valkey at {self.address} is away"))
        return answer

    def run(self, script: Script, *args: Argument) -> asyncio.Future[Any]:
        """The answer of a script, whose one key is the first of its arguments. Raises as `call`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self.start(script, args, Answering(answer)):
            answer.set_exception(ConnectionError(f"Valkey at {self.address} is away"))
        return answer

    def start(self, script: Script, args: Sequence[Argument], on_answer: OnAnswer | None = None) -> bool:
        """Runs a script as `send` sends a command. One that the server does not know any more is sent to it."""
        heard = on_answer or self._unheard

        def sent_if_unknown(answer: Any) -> None:
            if type(answer) is ValkeyError and str(answer).startswith("NOSCRIPT"):
                if not self.send(("EVAL", script.text, 1, *args), heard):
                    heard(ConnectionError(f"Valkey at {self.address} is away"))
            else:
                heard(answer)

        return self.send(("EVALSHA", script.sha, 1, *args), sent_if_unknown)

    # ── channels ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def listen(self, channel: str, on_message: Callable[[bytes], None]) -> None:
        """From now on `on_message` is called with what comes by a channel."""
        self._listeners[channel.encode()] = on_message
        self._subscribe("SUBSCRIBE", channel)

    def stop_listening(self, channel: str) -> None:
        """Not any more."""
        del self._listeners[channel.encode()]
        self._subscribe("UNSUBSCRIBE", channel)

    def _subscribe(self, command: str, channel: str) -> None:
        """It is answered with a message, and the PING behind it as all commands are."""
        if self._link is not None:
            self._link.send(("PING",), self._unheard, first=(command, channel))

    def _unheard(self, answer: Any) -> None:
        """Nobody waits for this answer; but a command that the server refuses is a fault of ours, or of its
        settings."""
        if isinstance(answer, ValkeyError) and (now := time.monotonic()) - self._refused_at > 1:
            self._refused_at = now
            log.error("Valkey at %s refuses a command: %s", self.address, answer)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep(self) -> None:
        retry_s = RETRY_S
        while True:
            if self._link is not None:
                why = await self._link.watch()
                self._link = None
                self._is_away(why)
                if self._on_lost is not None:
                    self._on_lost()
                retry_s = RETRY_S
            await asyncio.sleep(retry_s * (0.5 + random.random()))
            retry_s = min(retry_s * 2, MOST_RETRY_S)
            try:
                await self._connect()
            except (OSError, StartError) as error:
                self._is_away(error)

    async def _connect(self) -> None:
        """Raises `OSError` and `StartError`."""
        address = self.address
        loop = asyncio.get_running_loop()
        tls = ssl.create_default_context() if address.is_tls else None
        try:
            async with asyncio.timeout(CONNECT_S):
                _, link = await loop.create_connection(lambda: Link(self._message), address.host, address.port, ssl=tls)
                try:
                    await self._greet(link)
                except BaseException:
                    link.transport.abort()
                    raise
        except TimeoutError:
            raise ConnectionError(f"no answer in {CONNECT_S:g} s") from None
        except ValkeyError as error:
            refusal = str(error)
            if refusal.partition(" ")[0] in NOT_NOW:
                raise ConnectionError(refusal) from None
            raise StartError(f"{self._setting}: Valkey at {address} refuses: {_in_words(refusal)}") from None
        except ssl.SSLError as error:
            raise StartError(f"{self._setting}: no TLS with {address}: {error.reason or error}") from None
        self._link = link
        if self._meanwhile and self.problem and self.problem != "not asked yet":
            log.warning("Valkey at %s is there again", address)
        self.problem = ""
        if self._on_open is not None:
            self._on_open()

    async def _greet(self, link: Link) -> None:
        address = self.address
        is_known = bool(address.user or address.password)
        who = ("AUTH", address.user or "default", address.password) if is_known else ()
        hello = await self._greeted(link, ("HELLO", 3, *who))
        if (why := UNUSABLE.get(hello.get(b"mode"))) is not None:
            raise StartError(f"{self._setting}: Valkey at {address} cannot be used: {why}")
        if address.database:
            await self._greeted(link, ("SELECT", address.database))
        rest = [self._greeted(link, ("SCRIPT", "LOAD", script.text)) for script in self._scripts]
        if self._listeners:
            # What subscribing is answered with is a message.
            rest.append(self._greeted(link, ("PING",), first=("SUBSCRIBE", *self._listeners)))
        await asyncio.gather(*rest)

    def _greeted(
        self, link: Link, greeting: Sequence[Argument], *, first: Sequence[Argument] = ()
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        link.send(greeting, Answering(answer), first=first)
        return answer

    def _message(self, channel: bytes, message: bytes) -> None:
        if on_message := self._listeners.get(channel):
            on_message(message)

    def _is_away(self, why: Exception) -> None:
        """Once, until it is there again."""
        problem = str(why) or type(why).__name__
        if self._meanwhile and (not self.problem or self.problem == "not asked yet"):
            log.warning("Valkey at %s is away: %s; %s", self.address, problem, self._meanwhile)
        self.problem = problem


class Link(asyncio.Protocol):
    """One connection, from its beginning to its end."""

    transport: asyncio.Transport

    def __init__(self, on_message: Callable[[bytes, bytes], None]) -> None:
        import hiredis  # The extra `valkey`.

        self._pack: Callable[[Any], bytes] = hiredis.pack_command
        self._reader = hiredis.Reader(replyError=ValkeyError)
        self._push = hiredis.PushNotification
        self._on_message = on_message
        self._pending: deque[OnAnswer] = deque()
        # How often something came, which may be a piece of a large answer.
        self._heard = 0
        self._end: Exception | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first thing that happens."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's.

    def send(self, args: Sequence[Argument], on_answer: OnAnswer, *, first: Sequence[Argument] = ()) -> None:
        """Sends a command, behind another one (`first`) that nobody answers."""
        if self.lost.is_set():
            on_answer(ConnectionError("the connection is lost"))
            return
        self._pending.append(on_answer)
        self.transport.write(self._pack(tuple(first)) + self._pack(tuple(args)) if first else self._pack(tuple(args)))

    def data_received(self, data: bytes) -> None:
        """Hands out what is whole."""
        self._heard += 1
        reader = self._reader
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                if type(answer) is self._push:
                    if answer[0] == b"message":
                        self._on_message(answer[1], answer[2])
                else:
                    self._pending.popleft()(answer)
        except Exception as error:
            # What it sends is no longer understood: whatever comes behind it cannot be either.
            log.exception("an answer of Valkey")
            self._end = ConnectionError(f"what it answers is not understood: {error!r}")
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """No answer comes any more."""
        self._end = self._end or error or ConnectionError("it has closed the connection")
        self.lost.set()
        reason = ConnectionError("the connection is lost")
        while self._pending:
            self._pending.popleft()(reason)

    async def watch(self) -> Exception:
        """Waits for its end, and makes one when nothing is answered any more. Gives the reason."""
        stood_still, before = 0, (-1, -1)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S / STEPS):
                    await self.lost.wait()
                    break
            # Steps: this process may have stood still itself, and its answers be there.
            unsent = self.transport.get_write_buffer_size()
            stood_still = stood_still + 1 if self._pending and before == (self._heard, unsent) else 0
            before = self._heard, unsent
            if stood_still >= STEPS or unsent > MOST_UNSENT:
                self._end = ConnectionError(f"no answer in {PATIENCE_S:g} s")
                self.transport.abort()
        assert self._end is not None
        return self._end


class Answering:
    """Hands an answer to whoever waits for it."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def __call__(self, answer: Any) -> None:
        if self._future.done():
            return
        if isinstance(answer, Exception):
            self._future.set_exception(answer)
        else:
            self._future.set_result(answer)


def _in_words(refusal: str) -> str:
    """A server's refusal, as whoever sets the router up calls it."""
    word = refusal.partition(" ")[0]
    if word == "WRONGPASS":
        return "the name or the password is wrong"
    if word == "NOAUTH":
        return "it asks for a password: valkey://:password@host, or valkey://name:password@host"
    if "HELLO" in refusal or word == "NOPROTO":
        return "it is too old: Valkey, or Redis from 6 on"
    return refusal
