"""Images that the router fetches for backends: what it takes, and where it will not go."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from backends.images import ImageFetcher, is_public, with_images_fetched
from errors import InvalidRequest

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
FILES = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff\xe0" + b"x" * 10,
    "gif": b"GIF89a" + b"x" * 10,
    "webp": b"RIFF\0\0\0\0WEBPVP8 ",
}


class Names(AbstractResolver):
    """A name service that says what a test wants."""

    def __init__(self, **names: str) -> None:
        self.names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=self.names[host], port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


class Site:
    """A web server of images."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        name = request.path[1:]
        if name in FILES:
            return web.Response(body=FILES[name], content_type="text/plain")
        if name == "large":
            return web.Response(body=PNG + b"x" * 5000)
        if name == "slow":
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.Event().wait()
        if name.startswith("to/"):
            raise web.HTTPFound(request.query["at"])
        if name == "loop":
            raise web.HTTPFound("/loop")
        if name == "text":
            return web.Response(text="no image", content_type="image/png")
        raise web.HTTPNotFound


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{tail:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        site.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield site
        await runner.cleanup()


@pytest.fixture
async def fetcher() -> AsyncIterator[ImageFetcher]:
    """One that may go to the test's own site."""
    fetcher = ImageFetcher(max_bytes=4096, timeout_s=0.5, allow_private=True)
    yield fetcher
    await fetcher.close()


async def refused(fetcher: ImageFetcher, url: str) -> str:
    with pytest.raises(InvalidRequest) as raised:
        await fetcher.fetch(url)
    assert (raised.value.code, raised.value.status) == ("invalid_image_url", 400)
    return raised.value.message


@pytest.mark.parametrize("kind", FILES)
async def test_an_image_becomes_a_data_url_of_the_type_that_it_is(site: Site, fetcher: ImageFetcher, kind: str) -> None:
    encoded = base64.b64encode(FILES[kind]).decode()
    assert await fetcher.fetch(f"{site.url}/{kind}") == f"data:image/{kind};base64,{encoded}"


async def test_a_redirect_is_followed(site: Site, fetcher: ImageFetcher) -> None:
    assert (await fetcher.fetch(f"{site.url}/to/?at=/png")).startswith("data:image/png")


WRONG = {
    "/nothing": "could not be fetched",
    "/text": "no PNG",
    "/large": "larger than",
    "/slow": "too long",
    "/loop": "too often",
}


@pytest.mark.parametrize(("path", "why"), WRONG.items())
async def test_what_is_no_image_is_refused(site: Site, fetcher: ImageFetcher, path: str, why: str) -> None:
    assert why in await refused(fetcher, site.url + path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/x.png", "http://", "http://u:p@example.com/"])
async def test_other_addresses_are_none(fetcher: ImageFetcher, url: str) -> None:
    assert "must" in await refused(fetcher, url)


INSIDE = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "localhost", "evil"]


@pytest.mark.parametrize("host", INSIDE)
async def test_what_is_not_public_is_not_asked(site: Site, host: str) -> None:
    names = dict.fromkeys([*INSIDE, "127.1"], "127.0.0.1")
    fetcher = ImageFetcher(resolver=Names(**names))
    try:
        message = await refused(fetcher, site.url.replace("127.0.0.1", host) + "/png")
    finally:
        await fetcher.close()
    assert message == "The image cannot be used: it could not be fetched.", "it tells what there is inside"
    assert site.asked == []


async def test_a_redirect_does_not_lead_inside(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    port = site.url.rpartition(":")[2]
    # For the length of this test, the site is public under its name, and nothing else is.
    names = Names(public="127.0.0.1")
    monkeypatch.setattr("backends.images.PublicResolver", lambda resolver: resolver)
    fetcher = ImageFetcher(resolver=names)
    try:
        outside = f"http://public:{port}"
        assert (await fetcher.fetch(f"{outside}/to/?at=/png")).startswith("data:image/png")
        site.asked.clear()
        await refused(fetcher, f"{outside}/to/?at={site.url}/png")
        assert site.asked == ["/to/"]
    finally:
        await fetcher.close()


PUBLIC = {
    "8.8.8.8": True,
    "2606:4700::1111": True,
    "10.0.0.1": False,
    "127.0.0.1": False,
    "169.254.169.254": False,
    "100.64.0.1": False,
    "192.168.1.1": False,
    "224.0.0.1": False,
    "0.0.0.0": False,
    "255.255.255.255": False,
    "::1": False,
    "::": False,
    "fe80::1%eth0": False,
    "fc00::1": False,
    "::ffff:10.0.0.1": False,
    "::ffff:8.8.8.8": True,
    "64:ff9b::7f00:1": False,
    "2002:7f00:1::": False,
}


@pytest.mark.parametrize(("address", "expected"), PUBLIC.items())
def test_what_is_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


async def test_each_image_is_fetched_once_and_the_messages_stay_as_they_were(site: Site, fetcher: ImageFetcher) -> None:
    def image(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}

    given = [
        {"role": "user", "content": [{"type": "text", "text": "See."}, image(f"{site.url}/png"), image("data:x")]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [image(f"{site.url}/png")]},
    ]
    sent = await with_images_fetched(given, fetcher)
    urls = [part["image_url"]["url"][:14] for m in (sent[0], sent[2]) for part in m["content"] if "image_url" in part]
    assert urls == ["data:image/png", "data:x", "data:image/png"]
    assert sent[0]["content"][1]["image_url"]["detail"] == "low"
    assert site.asked == ["/png"]
    assert given[2]["content"][0]["image_url"]["url"] == f"{site.url}/png"


async def test_one_wrong_image_is_an_error(site: Site, fetcher: ImageFetcher) -> None:
    parts = [{"type": "image_url", "image_url": {"url": f"{site.url}/{name}"}} for name in ("png", "nothing")]
    with pytest.raises(InvalidRequest):
        await with_images_fetched([{"role": "user", "content": parts}], fetcher)
