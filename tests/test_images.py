"""Images that the router fetches for backends: what it takes, and where it will not go."""

from __future__ import annotations

import asyncio
import base64
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backends.images import ImageFetcher, InvalidImage, with_images_fetched
from backends.wire.addresses import is_public
from tests.site import Asked, Names, Site, never, redirect, redirect_as_asked, reply, running_site

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
FILES = {
    "png": PNG,
    "jpeg": b"\xff\xd8\xff\xe0" + b"x" * 10,
    "gif": b"GIF89a" + b"x" * 10,
    "webp": b"RIFF\0\0\0\0WEBPVP8 ",
}


async def endless(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n")
    while True:
        writer.write(PNG)
        await writer.drain()


ANSWERS = {
    **{f"/{name}": reply(body, content_type="text/plain") for name, body in FILES.items()},
    "/large": reply(PNG + b"x" * 5000),
    "/slow": never,
    "/to/": redirect_as_asked,
    "/loop": redirect("/loop"),
    "/hops/1": redirect("/png"),
    **{f"/hops/{left}": redirect(f"/hops/{left - 1}") for left in range(2, 7)},
    "/endless": endless,
    "/packed": reply(zlib.compress(PNG + bytes(1_000_000)), content_encoding="deflate"),
    "/text": reply(b"no image", content_type="image/png"),
}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site(dict(ANSWERS)) as site:
        yield site


@pytest.fixture
async def fetcher() -> AsyncIterator[ImageFetcher]:
    """One that may go to the test's own site."""
    fetcher = ImageFetcher(max_bytes=4096, timeout_s=60, allow_private=True)
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


async def test_sites_learn_nothing_of_us(
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
    for asked in site.requests:
        assert not {"cookie", "authorization", "referer"} & set(asked.headers)


WRONG = {
    "/nothing": "could not be fetched",
    "/text": "no PNG",
    "/large": "larger than",
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


@pytest.mark.parametrize("path", ["/slow", "/to/?at=/slow"])
async def test_what_does_not_come_is_not_waited_for(site: Site, path: str) -> None:
    fetcher = ImageFetcher(timeout_s=0.05, allow_private=True)
    assert "too long" in await refused(fetcher, site.url + path)
    await fetcher.close()


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/x.png", "http://", "http://u:p@example.com/", "", "x.png", "ws://a/"],
)
async def test_other_addresses_are_none(fetcher: ImageFetcher, url: str) -> None:
    assert "must" in await refused(fetcher, url)


@pytest.mark.parametrize("url", ["http://[", "http://a:99999/", "http://a b/", "http://\0/", "http://nowhere/"])
async def test_what_cannot_be_reached_is_the_clients_mistake(url: str) -> None:
    fetcher = ImageFetcher(resolve=Names())
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
    fetcher = ImageFetcher(resolve=names)
    message = await refused(fetcher, f"http://{host}:{site.port}/png")
    await fetcher.close()
    assert message == "The image cannot be used: it could not be fetched.", "it shows what there is inside"
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
    monkeypatch.setattr("backends.wire.outbound.is_public", lambda address: address == "127.0.0.1")
    names = Names(
        **{
            "public.example": ["127.0.0.1"],
            "inside.example": ["127.0.0.2"],
            # Another answer each time: public when it is checked, inside when it is used.
            "turning.example": ["127.0.0.1", "127.0.0.2"],
        }
    )
    fetcher = ImageFetcher(resolve=names)
    outside = f"http://public.example:{site.port}"
    assert (await fetcher.fetch(f"{outside}/to/?at=/png")).startswith("data:image/png"), "the site is not public here"
    if host == "turning.example":
        with socket.create_server(
            ("127.0.0.1", 0)
        ) as elsewhere:  # is connected to with the first answer, and gives none
            elsewhere.setblocking(False)
            first = asyncio.create_task(fetcher.fetch(f"http://{host}:{elsewhere.getsockname()[1]}/"))
            connection, _ = await asyncio.get_running_loop().sock_accept(elsewhere)
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            connection.close()
        assert names.asked[-1] == host
    site.requests.clear()
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
    later_is_known = asyncio.Event()

    async def large(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await later_is_known.wait()
        writer.write(ANSWERS["/large"])

    async def text(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWERS["/text"])
        await writer.drain()
        later_is_known.set()

    site.answers |= {"/large": large, "/text": text}

    def said(*names: str) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": f"{site.url}/{name}"}} for name in names]
        return {"role": "user", "content": parts}

    with pytest.raises(InvalidImage) as raised:
        await with_images_fetched(
            [{"role": "system", "content": "x"}, said("png"), said("png", "large", "text")], fetcher
        )
    assert raised.value.place == (2, 1)
    assert "larger than" in raised.value.message


async def test_what_holds_no_remote_image_stays_and_opens_nothing() -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,"}}]
    given = [{"role": "assistant", "content": None}, {"role": "user", "content": parts}]
    fetcher = ImageFetcher(resolve=Names())
    assert await with_images_fetched(given, fetcher) == given
    await fetcher.close()


async def test_all_are_fetched_at_the_same_time(fetcher: ImageFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    together = asyncio.Barrier(3)

    async def fetch(url: str) -> str:
        await together.wait()
        return f"data:{url}"

    monkeypatch.setattr(fetcher, "fetch", fetch)
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in "abcab"]
    sent = await with_images_fetched([{"role": "user", "content": parts}], fetcher)
    assert [part["image_url"]["url"] for part in sent[0]["content"]] == [f"data:{url}" for url in "abcab"]


def showing(*urls: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image_url", "image_url": {"url": url}} for url in urls]}


def shown(messages: list[dict[str, Any]]) -> list[str]:
    """What each part of the messages is: `image`, or its text."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part.get("text", "image") for part in parts]


ANSWER = {"role": "assistant", "content": "I see."}


async def test_too_many_images_of_a_turn_are_refused_before_any_is_fetched(site: Site) -> None:
    fetcher = ImageFetcher(max_count=3, allow_private=True)
    with pytest.raises(InvalidImage) as raised:
        await with_images_fetched([showing(*[f"{site.url}/{number}" for number in range(20_000)])], fetcher)
    assert (raised.value.status, raised.value.param, raised.value.code) == (400, "input", "too_many_images")
    assert raised.value.place == (0, 3)
    assert site.asked == []
    await fetcher.close()


async def test_one_url_many_times_is_one_image_and_data_urls_are_none(site: Site) -> None:
    fetcher = ImageFetcher(max_count=1, allow_private=True)
    given = [showing(*[f"{site.url}/png"] * 50, *[f"data:image/png;base64,{number}" for number in range(50)])]
    assert shown(await with_images_fetched(given, fetcher)) == ["image"] * 100
    assert site.asked == ["/png"]
    await fetcher.close()


async def test_images_of_earlier_turns_give_way_to_new_ones_the_oldest_first(site: Site) -> None:
    site.answers |= {f"/{number}": reply(PNG) for number in range(6)}
    fetcher = ImageFetcher(max_count=3, allow_private=True)
    urls = [f"{site.url}/{number}" for number in range(6)]
    given = [showing(*urls[:3]), ANSWER, showing(urls[3]), ANSWER, showing(urls[4], urls[5])]
    sent = shown(await with_images_fetched(given, fetcher))
    assert sent[3:] == ["image"] * 3
    assert all(url in text and "not shown" in text for url, text in zip(urls, sent[:3], strict=False))
    assert sorted(site.asked) == ["/3", "/4", "/5"]
    await fetcher.close()


async def test_images_that_are_too_much_together_are_refused_or_not_shown(site: Site) -> None:
    fetcher = ImageFetcher(max_total_bytes=3 * len(PNG), allow_private=True)
    site.answers |= {f"/{number}": reply(PNG) for number in range(6)}
    urls = [f"{site.url}/{number}" for number in range(6)]
    with pytest.raises(InvalidImage) as raised:
        await with_images_fetched([showing(*urls)], fetcher)
    assert (raised.value.status, raised.value.param, raised.value.code) == (400, "input", "images_too_large")
    sent = shown(await with_images_fetched([showing(*urls[:5]), ANSWER, showing(urls[5])], fetcher))
    assert [text == "image" for text in sent] == [False, False, False, True, True, True]
    await fetcher.close()


async def test_no_more_than_four_are_fetched_at_once(fetcher: ImageFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    async def fetch(url: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return f"data:{url}"

    monkeypatch.setattr(fetcher, "fetch", fetch)
    await with_images_fetched([showing(*map(str, range(60)))], fetcher)
    assert most == 4


async def test_many_dead_images_of_earlier_turns_do_not_hold_the_loop(fetcher: ImageFetcher) -> None:
    """20,000 tasks at once did, for 7 s. Here no more than `max_count` are asked for, the others are named."""
    asked: list[str] = []

    async def fetch(url: str) -> str:
        asked.append(url)
        return "data:image/png;base64,"

    fetcher.fetch = fetch  # type: ignore[method-assign]
    sent = shown(await with_images_fetched([showing(*map(str, range(20_000))), ANSWER, showing("new")], fetcher))
    assert len(asked) == fetcher.max_count == sent.count("image")
