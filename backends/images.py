"""Remote images, fetched for backends that cannot: `https://…` in a chat message becomes a data URL.

The address is a client's. So only public addresses are connected to, however the URL, a redirect or the name service spells
them: each socket is checked when it is made, for the address that it will connect to. Limits hold for size, time and type.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from core.errors import InvalidRequest

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver

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
# The part of IPv6 that is given out (RFC 4291): without mapped, compatible, local and not yet used addresses.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# Where machines at Azure and Oracle get their settings: inside, though `ipaddress` takes the numbers for public ones.
CLOUDS = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))


class ForbiddenAddress(OSError):
    """The address is none that a client may have us connect to."""


class InvalidImage(InvalidRequest):
    """An image that cannot be used. `place` says which: the number of its message, and of its part in this."""

    code = "invalid_image_url"
    place: tuple[int, int] | None = None


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
        """The image at `url` as a data URL. Raises `InvalidImage`."""
        if self._session is None:
            # 10 MB and a fifth of the start, for the few who need it. It takes 0.3 s: other requests must not wait for that.
            await asyncio.to_thread(import_module, "aiohttp")
        import aiohttp

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
        too_large = (answer.content_length or 0) > self._max_bytes
        while not too_large and (received := await answer.content.readany()):
            data += received
            too_large = len(data) > self._max_bytes
        if too_large:
            raise _invalid(f"it is larger than {self._max_bytes / 1024 / 1024:g} MB")
        return bytes(data)

    def _check(self, url: str) -> None:
        """What can be seen in the URL. Where it leads is checked when it is connected to."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _invalid("it must begin with http:// or https://")
        if parts.username is not None or parts.password is not None:
            raise _invalid("it must hold no name and password")

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp
        from aiohttp.resolver import ThreadedResolver

        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver or ThreadedResolver(),
                socket_factory=None if self._allow_private else _public_socket,
                use_dns_cache=False,
                limit=32,
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=True
            )
        return self._session


def _public_socket(target: aiohttp.AddrInfoType) -> socket.socket:
    """A socket for an address that is about to be connected to. Checked here, no spelling of a host and no second answer of
    the name service can lead elsewhere."""
    family, kind, protocol, _, address = target
    if not is_public(str(address[0])):
        raise ForbiddenAddress
    return socket.socket(family, kind, protocol)


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
        return address.is_global and address in GLOBAL_UNICAST
    return address.is_global and not address.is_multicast and not any(address in cloud for cloud in CLOUDS)


def _type_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


def _invalid(why: str) -> InvalidImage:
    return InvalidImage(f"The image cannot be used: {why}.", param="input")


async def with_images_fetched(messages: list[Message], fetcher: ImageFetcher) -> list[Message]:
    """The messages, with each remote image as a data URL. Each URL is fetched once, all at the same time. Raises the
    `InvalidImage` of the first that cannot be used."""
    places: dict[str, tuple[int, int]] = {}
    for number, message in enumerate(messages):
        if isinstance(message["content"], list):
            for at, part in enumerate(message["content"]):
                if part["type"] == "image_url" and part["image_url"]["url"][:5].lower() != "data:":
                    places.setdefault(part["image_url"]["url"], (number, at))
    if not places:
        return messages
    async with asyncio.TaskGroup() as group:
        fetches = {url: group.create_task(_fetched(fetcher, url)) for url in places}
    images: dict[str, str] = {}
    for url, fetch in fetches.items():
        image = fetch.result()
        if isinstance(image, InvalidImage):
            image.place = places[url]
            raise image
        images[url] = image
    return [
        {**message, "content": [_with_image(part, images) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


async def _fetched(fetcher: ImageFetcher, url: str) -> str | InvalidImage:
    try:
        return await fetcher.fetch(url)
    except InvalidImage as error:
        return error


def _with_image(part: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    if part["type"] != "image_url" or (image := images.get(part["image_url"]["url"])) is None:
        return part
    return {**part, "image_url": {**part["image_url"], "url": image}}
