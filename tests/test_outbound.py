"""The guarded client: where it does not go, whatever URL, redirect or name service, and what it does not read."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from backends.wire import outbound
from backends.wire.addresses import is_public
from backends.wire.outbound import (
    AnswerTooLarge,
    AnswerTooSlow,
    ForbiddenAddress,
    ForbiddenURL,
    GuardedNetwork,
    guarded_client,
)
from tests.site import Asked, Names, Site, never, redirect, redirect_as_asked, reply, running_site

MB = 1024 * 1024


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site({"/": reply(b"here"), "/to": redirect_as_asked, "/never": never}) as site:
        yield site


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """One that may go to the test's own site."""
    async with guarded_client(max_bytes=MB, timeout_s=60, allow_private=True) as client:
        yield client


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────

v4 = st.ip_addresses(v=4)
ANY = st.one_of(v4, st.ip_addresses(v=6)).map(str)
# In these nothing is public, whatever the version of Python.
SPECIAL = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/128 ::1/128 64:ff9b:1::/48 100::/64 2001:2::/48 2001:10::/28
    2001:db8::/32 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8"""
INSIDE = st.sampled_from(SPECIAL.split()).flatmap(lambda network: st.ip_addresses(network=network))


@given(INSIDE)
def test_no_address_of_a_special_network_is_public(address: Any) -> None:
    assert not is_public(str(address))


def mapped(a: int) -> int:
    return 0xFFFF << 32 | a


def nat64(a: int) -> int:
    return int(ipaddress.ip_address("64:ff9b::")) | a


def six_to_four(a: int) -> int:
    return 0x2002 << 112 | a << 80


def teredo(a: int) -> int:
    return 0x20010000 << 96 | a ^ 0xFFFFFFFF


@given(v4, st.sampled_from([mapped, nat64, six_to_four, teredo]))
def test_an_ipv4_address_in_ipv6_is_as_public_as_by_itself(address: Any, written: Callable[[int], int]) -> None:
    assert is_public(str(ipaddress.IPv6Address(written(int(address))))) == is_public(str(address))


class Network(httpcore2.AsyncNetworkBackend):
    """Stands in for the network: which addresses were connected to. Some do not answer, some refuse."""

    def __init__(self, dead: frozenset[str] = frozenset(), refusing: frozenset[str] = frozenset()) -> None:
        self.connected: list[str] = []
        self.dead = dead
        self.refusing = refusing

    async def connect_tcp(self, host: str, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
        self.connected.append(host)
        if host in self.dead:
            await asyncio.Event().wait()
        if host in self.refusing:
            raise httpcore2.ConnectError("refused")
        return httpcore2.AsyncMockStream([])


def guarded(network: Network, *addresses: str, allow_private: bool = False) -> GuardedNetwork:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    guard = GuardedNetwork(resolve, allow_private=allow_private)
    guard._network = network  # type: ignore[assignment]
    return guard


@given(st.lists(ANY | INSIDE.map(str), max_size=6), st.data())
async def test_only_public_addresses_of_a_name_are_connected_to(addresses: list[str], data: st.DataObject) -> None:
    network = Network(refusing=frozenset(data.draw(st.lists(st.sampled_from(addresses or ["1.1.1.1"])))))
    public = [address for address in addresses if is_public(address)]
    answering = [address for address in public if address not in network.refusing]
    try:
        await guarded(network, *addresses).connect_tcp("name.example", 80)
    except ForbiddenAddress:
        assert not public
    except httpcore2.ConnectError:
        assert public
        assert not answering
    else:
        assert network.connected[-1] == answering[0], "the first that answers"
    assert network.connected == public[: len(network.connected)], "one after the other, and no other"


async def test_no_url_gets_into_a_log_at_any_level(
    site: Site, client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"):
        assert (await client.get(f"{site.url}/?key=s3cret", headers={"X-Key": "s3cret"})).status_code == 200
    assert "s3cret" not in caplog.text


async def test_an_address_that_does_not_answer_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "PATIENCE_S", 0.01)
    network = Network(dead=frozenset({"1.1.1.1"}))
    await guarded(network, "1.1.1.1", "8.8.8.8").connect_tcp("name.example", 80)
    assert network.connected == ["1.1.1.1", "8.8.8.8"]


@pytest.mark.parametrize("answer", ["localhost", "", "127.1", "8.8.8.8:80", "0x08080808", "8.8.8.8 "])
async def test_what_the_name_service_gives_is_an_address_or_nothing(answer: str) -> None:
    network = Network()
    with pytest.raises(ForbiddenAddress):
        await guarded(network, answer, allow_private=True).connect_tcp("name.example", 80)
    assert network.connected == []


async def test_a_name_is_looked_up_once_and_that_very_address_connected_to(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "is_public", lambda address: address == "127.0.0.3")
    names = Names(**{"turning.example": ["127.0.0.3", "127.0.0.2"]})
    async with guarded_client(max_bytes=MB, timeout_s=60, resolve=names) as client:
        answer = await client.get(f"http://turning.example:{site.port}/")
        assert answer.content == b"here"
        (to,) = {asked.to for asked in site.requests}
        assert to.removeprefix("::ffff:") == "127.0.0.3"
        assert names.asked == ["turning.example"]
        assert site.requests[0].headers["host"] == f"turning.example:{site.port}"
        # A kept connection leads where it was checked; a new one is checked anew.
        assert (await client.get(f"http://turning.example:{site.port}/")).content == b"here"
        assert names.asked == ["turning.example"]
        with pytest.raises(ForbiddenAddress):
            await client.get(f"http://turning.example:{site.port + 1}/")


async def test_no_url_leads_to_a_unix_socket() -> None:
    with pytest.raises(ForbiddenAddress):
        await guarded(Network(), "8.8.8.8", allow_private=True).connect_unix_socket("/run/docker.sock")


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("A.example", "a.example"),
    ],
)
async def test_a_host_in_any_script_is_looked_up_as_dns_knows_it(site: Site, host: str, asked: str) -> None:
    names = Names(**{asked: ["127.0.0.1"]})
    async with guarded_client(max_bytes=MB, timeout_s=60, allow_private=True, resolve=names) as client:
        assert (await client.get(f"http://{host}:{site.port}/")).content == b"here"
    assert names.asked == [asked]


# ── URLs and redirects ───────────────────────────────────────────────────────────────────────────────────────────────

NOT_WEB = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "ftp://127.0.0.1/x",
    "ws://127.0.0.1/x",
    "wss://127.0.0.1/x",
    "gopher://127.0.0.1/x",
    "unix:///run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/info",
    "data:text/plain,x",
    "javascript:alert(1)",
    "mailto:a@b",
    "http:",
    "http://",
    "http:///path",
    "//127.0.0.1/x",
    "",
]


@pytest.mark.parametrize("url", NOT_WEB)
async def test_what_is_not_of_the_web_is_forbidden(site: Site, client: httpx2.AsyncClient, url: str) -> None:
    with pytest.raises(ForbiddenURL, match="must begin"):
        await client.get(url)
    assert site.asked == []


@pytest.mark.parametrize("offset", [65536, -65536, -100_000_000])
async def test_an_invalid_port_is_no_other_port(site: Site, client: httpx2.AsyncClient, offset: int) -> None:
    with pytest.raises(httpx2.InvalidURL):
        await client.get(f"http://127.0.0.1:{site.port + offset}/")
    assert site.asked == []


# Behind a redirect the last ones are relative: they lead to the same site.
@pytest.mark.parametrize("url", [url for url in NOT_WEB if ":" in url and not url.startswith("http:")])
async def test_a_redirect_does_not_leave_the_web(site: Site, client: httpx2.AsyncClient, url: str) -> None:
    with pytest.raises((ForbiddenURL, httpx2.RemoteProtocolError)):
        await client.get(f"{site.url}/to", params={"at": url})
    assert site.asked == ["/to"]


@pytest.mark.parametrize("place", ["{}", "/to?at={}"])
async def test_a_name_and_password_in_a_url_go_nowhere(site: Site, client: httpx2.AsyncClient, place: str) -> None:
    url = f"http://me:secret@127.0.0.1:{site.port}/"
    with pytest.raises(ForbiddenURL, match="no name and password"):
        await client.get(place.format(url) if place == "{}" else site.url + place.format(url))
    assert all("authorization" not in asked.headers for asked in site.requests)
    assert "/" not in site.asked


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_each_redirect_is_a_request_of_its_own_whose_address_is_checked(
    site: Site, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(outbound, "is_public", lambda address: address == "127.0.0.1")
    site.answers["/in"] = redirect(f"http://127.0.0.2:{site.port}/", status)
    async with guarded_client(max_bytes=MB, timeout_s=60) as client:
        with pytest.raises(ForbiddenAddress):
            await client.get(f"{site.url}/in")
    assert site.asked == ["/in"]


async def test_without_redirects_the_answer_is_the_redirect(site: Site) -> None:
    async with guarded_client(max_bytes=MB, timeout_s=60, allow_private=True, max_redirects=0) as client:
        answer = await client.get(f"{site.url}/to?at=/")
    assert (answer.status_code, answer.headers["location"], answer.content) == (302, "/", b"")
    assert site.asked == ["/to"]


async def test_the_body_of_a_redirect_is_not_read(site: Site, client: httpx2.AsyncClient) -> None:
    site.answers["/in"] = redirect("/", content_encoding="gzip").replace(b"content-length: 0", b"content-length: 9")
    assert (await client.get(f"{site.url}/in")).content == b"here"


async def test_no_cookie_of_one_request_comes_with_the_next(site: Site, client: httpx2.AsyncClient) -> None:
    site.answers["/set"] = reply(b"x", set_cookie="a=b; Path=/")
    answer = await client.get(f"{site.url}/set")
    assert "set-cookie" not in answer.headers
    await client.get(f"{site.url}/to?at=/set")
    await client.get(f"{site.url}/")
    assert site.asked == ["/set", "/to", "/set", "/"]
    assert all("cookie" not in asked.headers for asked in site.requests)
    assert not client.cookies


async def test_no_proxy_of_the_environment_is_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, site.url)
        monkeypatch.setenv(name.upper(), site.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with guarded_client(max_bytes=MB, timeout_s=60, allow_private=True) as client:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
            for scheme in ("http", "https"):
                with pytest.raises(httpx2.ConnectError):
                    await client.get(f"{scheme}://127.0.0.1:{port}/")
    assert site.requests == []


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def certified(folder: Path, host: str) -> Path:
    """A key and a certificate of `host`, signed by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def test_tls_is_for_the_name_and_not_for_its_address(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = certified(tmp_path, "site.example")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(file)
    site.answers["/down"] = redirect(f"{site.url}/")
    server = await asyncio.start_server(site.connected, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    names = Names(**{"site.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})

    def client() -> httpx2.AsyncClient:
        return guarded_client(max_bytes=MB, timeout_s=60, allow_private=True, resolve=names)

    async with client() as stranger:
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get(f"https://site.example:{port}/")
    # As OpenSSL has it for a company's own certificates.
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    async with client() as knowing:
        assert (await knowing.get(f"https://site.example:{port}/")).content == b"here"
        assert (await knowing.get(f"https://site.example:{port}/down")).content == b"here", "from https to http"
        for host in ("other.example", "127.0.0.1"):
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await knowing.get(f"https://{host}:{port}/")
    assert site.asked == ["/", "/down", "/"]
    server.close()


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def packed(encoding: str, body: bytes) -> bytes:
    return gzip.compress(body, mtime=0) if encoding == "gzip" else zlib.compress(body)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_an_answer_comes_decoded(site: Site, client: httpx2.AsyncClient, encoding: str) -> None:
    site.answers["/x"] = reply(packed(encoding, b"text" * 1000), content_encoding=encoding)
    answer = await client.get(f"{site.url}/x")
    assert answer.content == b"text" * 1000
    assert not {"content-encoding", "content-length"} & answer.headers.keys()


@pytest.mark.parametrize("length", [MB - 1, MB, MB + 1])
async def test_as_much_as_may_be_is_read_and_no_byte_more(site: Site, client: httpx2.AsyncClient, length: int) -> None:
    body = bytes(length)
    site.answers |= {
        "/long": reply(body),
        "/packed": reply(packed("gzip", body), content_encoding="gzip"),
        "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + f"{length:x}\r\n".encode()
        + body
        + b"\r\n0\r\n\r\n",
        "/closed": b"HTTP/1.0 200 OK\r\n\r\n" + body,
    }
    for path in ("/long", "/packed", "/chunked"):
        if length > MB:
            with pytest.raises(AnswerTooLarge):
                await client.get(site.url + path)
        else:
            assert (await client.get(site.url + path)).content == body


async def test_what_is_announced_too_large_is_not_read(site: Site, client: httpx2.AsyncClient) -> None:
    site.answers["/x"] = reply(length=MB + 1)  # and there is no body to wait for
    with pytest.raises(AnswerTooLarge):
        await client.get(f"{site.url}/x")
    await site.is_left()
    assert (await client.head(f"{site.url}/x")).headers["content-length"] == str(MB + 1)


async def test_a_bomb_does_not_go_off(site: Site, client: httpx2.AsyncClient) -> None:
    bomb = packed("gzip", bytes(200 * MB))
    assert len(bomb) < MB
    site.answers["/x"] = reply(bomb, content_encoding="gzip")
    tracemalloc.start()
    with pytest.raises(AnswerTooLarge):
        await client.get(f"{site.url}/x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MB


async def test_what_is_packed_more_than_once_is_not_unpacked(site: Site, client: httpx2.AsyncClient) -> None:
    twice = packed("gzip", packed("gzip", b"x"))
    site.answers["/x"] = reply(twice, content_encoding="gzip, gzip")
    with pytest.raises(httpx2.DecodingError):
        await client.get(f"{site.url}/x")


async def test_an_endless_body_that_decodes_to_nothing_has_an_end(site: Site, client: httpx2.AsyncClient) -> None:
    async def nothing(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate\r\n\r\n\x78\x9c")
        while True:
            writer.write(b"\x00\x00\x00\xff\xff" * 1000)  # stored blocks of no bytes
            await writer.drain()

    site.answers["/x"] = nothing
    with pytest.raises(AnswerTooLarge):
        await client.get(f"{site.url}/x")
    await site.is_left()


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"x", length=5),
        reply(b"\x1f\x8b\x08", content_encoding="gzip", length=9),
        reply(b"no gzip", content_encoding="gzip"),
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MB,
        b"",
    ],
)
async def test_an_answer_that_is_broken_is_an_error_of_httpx(
    site: Site, client: httpx2.AsyncClient, answer: bytes
) -> None:
    async def then_leave(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    site.answers["/x"] = then_leave
    with pytest.raises(httpx2.RequestError):
        await client.get(f"{site.url}/x")


async def test_who_reads_a_stream_gets_each_piece_when_it_comes(site: Site, client: httpx2.AsyncClient) -> None:
    first_was_read = asyncio.Event()

    async def two(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n1")
        await first_was_read.wait()
        writer.write(b"2")

    site.answers["/x"] = two
    async with client.stream("GET", f"{site.url}/x") as answer, aclosing(answer.aiter_bytes()) as pieces:
        assert await anext(pieces) == b"1"
        first_was_read.set()
        assert await anext(pieces) == b"2"


async def test_who_leaves_a_stream_closes_its_connection(site: Site, client: httpx2.AsyncClient) -> None:
    async with client.stream("GET", f"{site.url}/never"):
        assert len(site.connections) == 1
    await site.is_left()


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def trickling(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Always a byte more, so that no single read takes long."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.001)


async def informing(asked: Asked, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


# Each of these goes on for ever.
ENDLESS = {
    "/silent": silent,
    "/trickling": trickling,
    "/informing": informing,
    "/loop": redirect("/loop"),
    "/never": never,
}


@pytest.mark.parametrize("path", ENDLESS)
async def test_what_has_no_end_ends_in_time(site: Site, path: str) -> None:
    site.answers |= ENDLESS
    async with guarded_client(max_bytes=10**9, timeout_s=0.1, allow_private=True, max_redirects=10**9) as client:
        with pytest.raises(AnswerTooSlow):
            await client.get(site.url + path)
        await site.is_left()


async def test_the_time_is_for_all_redirects_together(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    deadlines = []
    within = outbound._within

    def seen(deadline: float | None) -> Any:
        deadlines.append(deadline)
        return within(deadline)

    monkeypatch.setattr(outbound, "_within", seen)
    async with guarded_client(max_bytes=MB, timeout_s=60, allow_private=True) as client:
        await client.get(f"{site.url}/to?at=/to?at=/")
        before = set(deadlines)
        await client.get(f"{site.url}/")
    assert len(before) == 1
    assert before < set(deadlines), "another request has a time of its own"


async def test_a_name_that_is_never_found_ends_in_time() -> None:
    async def lost(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    async with guarded_client(max_bytes=MB, timeout_s=0.05, resolve=lost) as client:
        with pytest.raises(AnswerTooSlow):
            await client.get("http://lost.example/")


async def test_names_that_hang_hold_up_no_thread_that_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    looked_up = socket.getaddrinfo

    def hanging(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "hanging.example":
            answered.wait()
            raise socket.gaierror("too late")
        return looked_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    try:
        async with guarded_client(max_bytes=MB, timeout_s=0.05) as client:
            fetches = [client.get("http://hanging.example/") for _ in range(100)]
            results = await asyncio.gather(*fetches, return_exceptions=True)
            assert {type(result) for result in results} == {AnswerTooSlow}
            assert await asyncio.to_thread(lambda: "free") == "free"
        # Nor does closing the client wait for them.
    finally:
        answered.set()
