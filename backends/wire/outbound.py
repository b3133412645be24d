"""HTTP out to URLs that somebody else gave: the images of a request, later pages, searches, MCP servers. The hot path
is `http1.py`. This imports httpx2, a third of a start: whoever uses it imports it when it is needed, in a thread.

    client.get(url)             httpx2: redirects, each of them a request of its own to …
      GuardedTransport            the URL is checked; limits of time and size; no cookies
        AsyncConnectionPool         httpcore2: kept connections
          GuardedNetwork              the name is resolved, each address checked, and that very address connected to
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial

import httpcore2
import httpx2

from backends.wire.addresses import is_public

# The IP addresses of a host at a port. Raises `OSError` where there are none.
Resolve = Callable[[str, int], Awaitable[list[str]]]

# Their lines have whole URLs, and these the words of a search or a key. Whoever has set up logging may want all lines.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

# An address that does not answer in this time gives way to the next one of the same name.
PATIENCE_S = 2.0
# Names that are looked up at once. A name service that hangs holds these threads, and nobody else's.
LOOKUPS = 4


class ForbiddenURL(httpx2.UnsupportedProtocol):
    """The URL is not of the web, or holds a name and password. The message names which, for whoever gave the URL."""


class ForbiddenAddress(httpx2.ConnectError):
    """The host has no address that may be connected to."""


class AnswerTooLarge(httpx2.ReadError):
    """The answer has more bytes than may be read, as it comes or decoded."""


class AnswerTooSlow(httpx2.ReadTimeout):
    """The answer was not there, whole, in time; redirects count."""


def guarded_client(
    *,
    max_bytes: int,
    timeout_s: float | None,
    allow_private: bool = False,
    max_redirects: int = 5,
    headers: Mapping[str, str] | None = None,
    resolve: Resolve | None = None,
) -> httpx2.AsyncClient:
    """A client for URLs that somebody else gave. It follows redirects, up to `max_redirects` (0: none), looks at no
    environment variable but OpenSSL's own, and keeps no cookie. Making one loads the certificates of the world: do it
    once, in a thread.

    - `max_bytes`: of a body, as it comes and decoded.
    - `timeout_s`: from the request to the end of the answer, over all redirects; None: for ever.
    - `allow_private`: also addresses that are not public.
    - `resolve`: the name service; None: the system's.

    Its requests raise `httpx2.InvalidURL` and `httpx2.RequestError`: of these also the ones above."""
    transport = GuardedTransport(max_bytes=max_bytes, timeout_s=timeout_s, allow_private=allow_private, resolve=resolve)
    return httpx2.AsyncClient(
        transport=transport,
        headers={"User-Agent": "nomyo-router", "Accept-Encoding": "gzip, deflate", **(headers or {})},
        follow_redirects=max_redirects > 0,
        max_redirects=max_redirects,
        timeout=None,  # The transport has one for all of it.
        trust_env=False,
    )


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends each request, also those that follow a redirect, if its URL and address allow it; limits the answer. Its
    parameters are those of `guarded_client`. Answers come decoded, without `Content-Encoding`, and redirects bare."""

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_s: float | None,
        allow_private: bool = False,
        resolve: Resolve | None = None,
        max_connections: int = 32,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._names = SystemNames()
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=max_connections,
            max_keepalive_connections=8,
            keepalive_expiry=15.0,
            network_backend=GuardedNetwork(resolve or self._names.resolve, allow_private=allow_private),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request to where it may go. Raises `ForbiddenURL` or `ForbiddenAddress` where it may not, and
        httpx2's errors."""
        check_url(request.url)
        # httpx2 hands the extensions on to the request that follows a redirect.
        deadline = request.extensions.setdefault("deadline", self._deadline())
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        sent = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        async with _within(deadline):
            answer = await self._pool.handle_async_request(sent)
        # Nothing of one site is kept for the next request.
        headers = [
            (name, value) for name, value in answer.headers if name.lower() not in (b"set-cookie", b"set-cookie2")
        ]
        received = httpx2.Response(
            answer.status,
            headers=headers,
            stream=_Received(answer, self._max_bytes, deadline),
            extensions=answer.extensions,
        )
        try:
            return await self._checked(request, received)
        except BaseException:
            await received.aclose()
            raise

    async def _checked(self, request: httpx2.Request, received: httpx2.Response) -> httpx2.Response:
        """The answer as it is given on: decoded, as far as its limits go."""
        headers = received.headers.copy()
        if received.has_redirect_location:
            await received.aclose()  # Its body is nobody's, and may be endless.
            for name in ("Content-Length", "Content-Encoding", "Transfer-Encoding"):
                headers.pop(name, None)
            return httpx2.Response(received.status_code, headers=headers, content=b"", extensions=received.extensions)
        length = headers.get("Content-Length", "")
        if request.method != "HEAD" and length.isascii() and length.isdecimal() and int(length) > self._max_bytes:
            raise AnswerTooLarge(f"more than {self._max_bytes} bytes")
        encodings = headers.get_list("Content-Encoding", split_commas=True)
        if len(encodings) > 1:
            # Nobody needs it, and what is packed twice unpacks to a million times its size on the way to nothing.
            raise httpx2.DecodingError("more than one content encoding")
        if encodings:
            del headers["Content-Encoding"]
            headers.pop("Content-Length", None)
        return httpx2.Response(
            received.status_code,
            headers=headers,
            stream=_Decoded(received, self._max_bytes),
            extensions=received.extensions,
        )

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._pool.aclose()
        self._names.close()

    def _deadline(self) -> float | None:
        return None if self._timeout_s is None else asyncio.get_running_loop().time() + self._timeout_s


def over(transport: httpx2.AsyncBaseTransport, headers: Mapping[str, str]) -> httpx2.AsyncClient:
    """A client with headers of its own over connections that others share, and that stay open when it is closed. It
    follows no redirect, and has no limit of time."""
    return httpx2.AsyncClient(
        transport=_Shared(transport),
        headers={"User-Agent": "nomyo-router", "Accept-Encoding": "gzip, deflate", **headers},
        timeout=None,
        max_redirects=0,
        trust_env=False,
    )


class _Shared(httpx2.AsyncBaseTransport):
    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)


def check_url(url: httpx2.URL) -> None:
    """What can be seen in a URL. Where it leads is checked when it is connected to. Raises `ForbiddenURL`,
    and `httpx2.InvalidURL` for a port that is none."""
    if url.scheme not in ("http", "https") or not url.host:
        raise ForbiddenURL("it must begin with http:// or https://")
    if url.userinfo:
        raise ForbiddenURL("it must hold no name and password")
    if url.port is not None and not 0 < url.port < 65536:
        raise httpx2.InvalidURL("a port is one from 1 to 65535")


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Received(httpx2.AsyncByteStream):
    """The body of an answer as it comes, in time, and not more of it than may be read."""

    def __init__(self, answer: httpcore2.Response, max_bytes: int, deadline: float | None) -> None:
        assert isinstance(answer.stream, AsyncIterable)
        self._answer = answer
        self._stream: AsyncIterable[bytes] = answer.stream
        self._left = max_bytes
        self._deadline = deadline

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        pieces = aiter(self._stream)
        while True:
            async with _within(self._deadline):
                piece = await anext(pieces, None)
            if piece is None:
                return
            self._left -= len(piece)
            if self._left < 0:
                raise AnswerTooLarge("more bytes than may be read")
            yield piece

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Decoded(httpx2.AsyncByteStream):
    """The body of `received`, decoded. httpx2 decodes a megabyte at a time: it is counted before a bomb goes off."""

    def __init__(self, received: httpx2.Response, max_bytes: int) -> None:
        self._received = received
        self._left = max_bytes

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async with aclosing(self._received.aiter_bytes()) as pieces:
            async for piece in pieces:
                self._left -= len(piece)
                if self._left < 0:
                    raise AnswerTooLarge("more bytes than may be read, decoded")
                yield piece

    async def aclose(self) -> None:
        await self._received.aclose()


@asynccontextmanager
async def _within(deadline: float | None) -> AsyncGenerator[None]:
    """httpcore2's errors get httpx2's names; what is not done by `deadline`, a time of the loop, is `AnswerTooSlow`."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise AnswerTooSlow("it took too long") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
        raise getattr(httpx2, type(error).__name__)(str(error)) from None


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to those addresses of a name that are allowed. The name is looked up once: what was checked is what is
    connected to, whatever the name service answers next."""

    def __init__(self, resolve: Resolve, *, allow_private: bool) -> None:
        self._resolve = resolve
        self._allow_private = allow_private
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolves a name, checks every address, and connects to the first that answers. Raises `ForbiddenAddress`."""
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host}: {error}") from None
        allowed = [address for address in addresses if self._may_connect(address)]
        if not allowed:
            raise ForbiddenAddress(f"{host} has no address that may be connected to")
        connect = partial(
            self._network.connect_tcp,
            port=port,
            timeout=timeout,
            local_address=local_address,
            socket_options=socket_options,
        )
        for address in allowed[:-1]:
            with suppress(TimeoutError, httpcore2.ConnectError):
                async with asyncio.timeout(PATIENCE_S):
                    return await connect(address)
        return await connect(allowed[-1])

    def _may_connect(self, address: str) -> bool:
        try:
            public = is_public(address)
        except ValueError:
            return False  # No IP address: the network below would look it up once more.
        return public or self._allow_private

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises `ForbiddenAddress`."""
        raise ForbiddenAddress("no URL leads to a Unix socket")

    async def sleep(self, seconds: float) -> None:
        """Waits for so many seconds."""
        await self._network.sleep(seconds)


class SystemNames:
    """The system's name service, asked in threads of its own: a name that hangs takes none that another needs."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="names")

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of `host`, in the order that the system recommends. Raises `OSError`."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Ends its threads, without waiting for a name that is being resolved."""
        self._threads.shutdown(wait=False, cancel_futures=True)
