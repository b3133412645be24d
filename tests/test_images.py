"""Images that the router fetches for backends: what it takes, and where it will not go."""

from __future__ import annotations

import asyncio
import base64
import socket
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from backends.images import ImageFetcher, InvalidImage, is_public, with_images_fetched

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
FILES = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff\xe0" + b"x" * 10,
    "gif": b"GIF89a" + b"x" * 10,
    "webp": b"RIFF\0\0\0\0WEBPVP8 ",
}


class Names(AbstractResolver):
    """A name service that says what a test wants: a name's addresses one after the other, then the last for ever. It knows no
    other name."""

    def __init__(self, **names: list[str]) -> None:
        self.names = names
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        left = self.names[host]
        address = left.pop(0) if len(left) > 1 else left[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None:
        pass


class Site:
    """A web server of images."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.url = ""
        self.port = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers.append(request.headers)
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
            raise web.HTTPFound(request.query["at"], headers={"Set-Cookie": "a=b; Path=/"})
        if name == "loop":
            raise web.HTTPFound("/loop")
        if name.startswith("hops/"):
            left = int(name[5:])
            raise web.HTTPFound(f"/hops/{left - 1}" if left > 1 else "/png")
        if name == "endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(PNG)
        if name == "packed":
            return web.Response(body=zlib.compress(PNG + bytes(1_000_000)), headers={"Content-Encoding": "deflate"})
        if name == "text":
            return web.Response(text="no image", content_type="image/png")
        raise web.HTTPNotFound


def everywhere() -> socket.socket:
    try:
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError:  # a machine without IPv6
        return socket.create_server(("0.0.0.0", 0))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    app = web.Application()
    app.router.add_get("/{tail:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    # At every address of this machine: 127.0.0.1, 127.0.0.2 and so on, ::1.
    with everywhere() as listener:
        await web.SockSite(runner, listener).start()
        site.port = listener.getsockname()[1]
        site.url = f"http://127.0.0.1:{site.port}"
        yield site
        await runner.cleanup()


@pytest.fixture
async def fetcher() -> AsyncIterator[ImageFetcher]:
    """One that may go to the test's own site."""
    fetcher = ImageFetcher(max_bytes=4096, timeout_s=0.5, allow_private=True)
    yield fetcher
    await fetcher.close()


async def refused(fetcher: ImageFetcher, url: str) -> str:
    with pytest.raises(InvalidImage) as raised:
        await fetcher.fetch(url)
    assert (raised.value.code, raised.value.status) == ("invalid_image_url", 400)
    return raised.value.message


@pytest.mark.parametrize("kind", FILES)
async def test_an_image_becomes_a_data_url_of_the_type_that_it_is(site: Site, fetcher: ImageFetcher, kind: str) -> None:
    encoded = base64.b64encode(FILES[kind]).decode()
    assert await fetcher.fetch(f"{site.url}/{kind}") == f"data:image/{kind};base64,{encoded}"


@pytest.mark.parametrize("path", ["/to/?at=/png", "/hops/5"])
async def test_redirects_are_followed(site: Site, fetcher: ImageFetcher, path: str) -> None:
    assert (await fetcher.fetch(site.url + path)).startswith("data:image/png")


async def test_sites_are_told_nothing_of_us(
    site: Site, fetcher: ImageFetcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    await fetcher.fetch(f"{site.url}/to/?at=/png")
    assert site.asked == ["/to/", "/png"]
    for headers in site.headers:
        assert not {"Cookie", "Authorization", "Referer"} & set(headers)


WRONG = {
    "/nothing": "could not be fetched",
    "/text": "no PNG",
    "/large": "larger than",
    "/slow": "too long",
    "/loop": "too often",
    "/hops/6": "too often",
    "/endless": "larger than",
    "/packed": "larger than",
    "/to/?at=file:///etc/passwd": "must begin",
    "/to/?at=http://u:p@example.com/": "no name and password",
    "/to/?at=http://[": "could not be fetched",
}


@pytest.mark.parametrize(("path", "why"), WRONG.items())
async def test_what_is_no_image_is_refused(site: Site, fetcher: ImageFetcher, path: str, why: str) -> None:
    assert why in await refused(fetcher, site.url + path)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/x.png", "http://", "http://u:p@example.com/", "", "x.png", "ws://a/"],
)
async def test_other_addresses_are_none(fetcher: ImageFetcher, url: str) -> None:
    assert "must" in await refused(fetcher, url)


@pytest.mark.parametrize("url", ["http://[", "http://a:99999/", "http://a b/", "http://\0/", "http://nowhere/"])
async def test_what_cannot_be_reached_is_the_clients_mistake(url: str) -> None:
    fetcher = ImageFetcher(resolver=Names())
    assert "could not be fetched" in await refused(fetcher, url)
    await fetcher.close()


# Ways to write this machine. The name service is asked for some, and knows what the C library knows.
INSIDE = {
    "127.0.0.1": None,
    "127.1": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "0x7f000001": "127.0.0.1",
    "017700000001": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",
    "0": "0.0.0.0",
    "127.0.0.1.": "127.0.0.1",
    "127%2e0%2e0%2e1": "127.0.0.1",
    "１２７.0.0.1": None,
    "①②⑦.⓪.⓪.①": None,
    "127。0。0。1": None,
    "[::1]": None,
    "[::]": None,
    "[::ffff:127.0.0.1]": None,
    "[::ffff:7f00:1]": None,
    "[64:ff9b::127.0.0.1]": None,
    "localhost": "127.0.0.1",
    "LOCALHOST": "127.0.0.1",
    "localhost.": "::1",
    "named.example": "127.0.0.1",
    "mapped.example": "::ffff:127.0.0.1",
}


@pytest.mark.parametrize(("host", "address"), INSIDE.items())
async def test_what_is_not_public_is_not_asked(site: Site, host: str, address: str | None) -> None:
    names = Names(**({host: [address], host.lower(): [address]} if address else {}))
    fetcher = ImageFetcher(resolver=names, timeout_s=2)
    message = await refused(fetcher, f"http://{host}:{site.port}/png")
    await fetcher.close()
    assert message == "The image cannot be used: it could not be fetched.", "it tells what there is inside"
    assert site.asked == [], "the site inside was asked"


async def test_the_default_name_service_leads_nowhere_inside(site: Site) -> None:
    fetcher = ImageFetcher()
    for host in ("localhost", "127.1", "2130706433"):
        await refused(fetcher, f"http://{host}:{site.port}/png")
    await fetcher.close()
    assert site.asked == []


REDIRECTS = ["127.0.0.2", "１２７.0.0.2", "[::1]", "[::ffff:127.0.0.2]", "inside.example", "turning.example"]


@pytest.mark.parametrize("host", REDIRECTS)
async def test_a_redirect_does_not_lead_inside(site: Site, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    # For the length of this test, 127.0.0.1 is public, and nothing else is.
    monkeypatch.setattr("backends.images.is_public", lambda address: address == "127.0.0.1")
    names = Names(
        **{
            "public.example": ["127.0.0.1"],
            "inside.example": ["127.0.0.2"],
            # Another answer each time: public when it is checked, inside when it is used.
            "turning.example": ["127.0.0.1", "127.0.0.2"],
        }
    )
    fetcher = ImageFetcher(resolver=names)
    outside = f"http://public.example:{site.port}"
    assert (await fetcher.fetch(f"{outside}/to/?at=/png")).startswith("data:image/png"), "the site is not public here"
    if host == "turning.example":
        with socket.create_server(("127.0.0.1", 0)) as elsewhere:  # takes the first answer, and says nothing
            first = fetcher.fetch(f"http://{host}:{elsewhere.getsockname()[1]}/")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(first, 0.05)
        assert names.asked[-1] == host
    site.asked.clear()
    assert "could not be fetched" in await refused(fetcher, f"{outside}/to/?at=http://{host}:{site.port}/png")
    assert site.asked == ["/to/"]
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
    "64:ff9b::808:808": True,
    "64:ff9b:1::a00:1": False,
    "2002:7f00:1::": False,
    "2002:808:808::": True,
    "2001:0:808:808:0:0:80ff:fffe": False,  # Teredo of 127.0.0.1
    "::127.0.0.1": False,
    "::ffff:0:127.0.0.1": False,
    "fec0::1": False,
    "fd00:ec2::254": False,
    "ff02::1": False,
    "ff0e::1": False,
    "2001:db8::1": False,
    "5f00::1": False,
    "100.100.100.200": False,
    "168.63.129.16": False,
    "172.16.0.1": False,
    "172.32.0.1": True,
    "192.0.0.192": False,
    "198.18.0.1": False,
    "239.255.255.250": False,
    "240.0.0.1": False,
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


async def test_the_first_wrong_image_is_the_error(site: Site, fetcher: ImageFetcher) -> None:
    def said(*names: str) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": f"{site.url}/{name}"}} for name in names]
        return {"role": "user", "content": parts}

    with pytest.raises(InvalidImage) as raised:
        await with_images_fetched(
            [{"role": "system", "content": "x"}, said("png"), said("png", "slow", "text")], fetcher
        )
    assert raised.value.place == (2, 1)
    assert "too long" in raised.value.message


async def test_what_holds_no_remote_image_stays_and_opens_nothing() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,"}}]
    given = [{"role": "assistant", "content": None}, {"role": "user", "content": parts}]
    fetcher = ImageFetcher(resolver=Names())
    assert await with_images_fetched(given, fetcher) == given
    await fetcher.close()


async def test_all_are_fetched_at_the_same_time(fetcher: ImageFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Barrier(3)

    async def fetch(url: str) -> str:
        async with asyncio.timeout(1):
            await together.wait()
        return f"data:{url}"

    monkeypatch.setattr(fetcher, "fetch", fetch)
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in "abcab"]
    sent = await with_images_fetched([{"role": "user", "content": parts}], fetcher)
    assert [part["image_url"]["url"] for part in sent[0]["content"]] == [f"data:{url}" for url in "abcab"]
