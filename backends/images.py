"""Remote images, fetched for backends that cannot: `https://…` in a chat message becomes a data URL.

The address is a client's. So only public addresses are connected to, after every redirect and after every answer of the name
service; and limits hold for size, time and type.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from errors import InvalidRequest

Message = dict[str, Any]

MAX_REDIRECTS = 5
# What the first bytes of a file say that it is.
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
# IPv4 in the clothes of IPv6: what is meant is the IPv4 address (RFC 6052, RFC 3056).
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenAddress(OSError):
    """The address is none that a client may have us connect to."""


class ImageFetcher:
    """Fetches images. `close()` ends its connections."""

    def __init__(
        self,
        *,
        max_bytes: int = 20 * 1024 * 1024,
        timeout_s: float = 10.0,
        allow_private: bool = False,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str) -> str:
        """The image at `url` as a data URL. Raises `InvalidRequest`, code `invalid_image_url`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._fetch(url)
        except TimeoutError:
            raise _invalid("it took too long") from None
        except (aiohttp.ClientError, OSError, ValueError):
            # Not the reason: it would tell a client what there is inside our network.
            raise _invalid("it could not be fetched") from None
        kind = _type_of(data)
        if kind is None:
            raise _invalid("it is no PNG, JPEG, GIF or WebP image")
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    async def _fetch(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            self._check(url)
            async with self._opened().get(url, allow_redirects=False) as answer:
                if answer.status in (301, 302, 303, 307, 308) and (location := answer.headers.get("Location")):
                    url = urljoin(url, location)
                    continue
                if answer.status != 200:
                    raise _invalid("it could not be fetched")
                return await self._read(answer)
        raise _invalid("it is redirected too often")

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        data = bytearray()
        async for received in answer.content.iter_any():
            data += received
            if len(data) > self._max_bytes:
                raise _invalid(f"it is larger than {self._max_bytes / 1024 / 1024:g} MB")
        return bytes(data)

    def _check(self, url: str) -> None:
        """What can be seen in the URL. Names are checked when they are resolved."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _invalid("it must begin with http:// or https://")
        if parts.username is not None or parts.password is not None:
            raise _invalid("it must hold no name and password")
        if not self._allow_private and (address := _literal(parts.hostname)) and not is_public(address):
            raise ForbiddenAddress

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            resolver = self._resolver or ThreadedResolver()
            connector = aiohttp.TCPConnector(
                resolver=resolver if self._allow_private else PublicResolver(resolver), use_dns_cache=False, limit=32
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=True
            )
        return self._session


class PublicResolver(AbstractResolver):
    """Gives only public addresses: what it gives is what is connected to, so no name can mean one thing to the check and
    another to the connection."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        public = [result for result in found if is_public(result["host"])]
        if not public:
            raise ForbiddenAddress
        return public

    async def close(self) -> None:
        await self._resolver.close()


def is_public(host: str) -> bool:
    """Whether an IP address is one of the public internet."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo:
            inner = address.teredo[1]
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast


def _literal(host: str) -> str | None:
    """The IP address that a host is written as, in any of the ways that the C library reads; None for a name."""
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def _type_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"The image cannot be used: {why}.", param="input", code="invalid_image_url")


async def with_images_fetched(messages: list[Message], fetcher: ImageFetcher) -> list[Message]:
    """The messages, with each remote image as a data URL. Errors: as `ImageFetcher.fetch`."""
    urls = {
        part["image_url"]["url"]
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url" and not part["image_url"]["url"].startswith("data:")
    }
    if not urls:
        return messages
    async with asyncio.TaskGroup() as group:
        fetches = {url: group.create_task(_fetched(fetcher, url)) for url in urls}
    images: dict[str, str] = {}
    for url, fetch in fetches.items():
        image = fetch.result()
        if isinstance(image, InvalidRequest):
            raise image
        images[url] = image
    return [
        {**message, "content": [_with_image(part, images) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


async def _fetched(fetcher: ImageFetcher, url: str) -> str | InvalidRequest:
    try:
        return await fetcher.fetch(url)
    except InvalidRequest as error:
        return error


def _with_image(part: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image_url" or (image := images.get(part["image_url"]["url"])) is None:
        return part
    return {**part, "image_url": {**part["image_url"], "url": image}}
