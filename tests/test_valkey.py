"""The connection to a Valkey: addresses, what is refused, and what is done while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.config_checks import parse_config
from core.errors import ConfigError, StartError
from core.valkey import Script, Valkey, ValkeyError
from core.valkey_address import Address
from tests.engines.server import free_port
from tests.engines.valkey import ValkeyServer
from tests.turns import SOON_S, eventually

ECHO = Script("return {KEYS[1], ARGV[1]}")


def of(url: str) -> Address:
    return Address.of(url, "cluster.url")


@asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[Valkey]:
    connection = Valkey(of(url), "cluster.url", **options)  # type: ignore[arg-type]
    await connection.open()
    yield connection
    await connection.close()


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://host", ("host", 6379, False, "", "", 0)),
        ("redis://host:1/2", ("host", 1, False, "", "", 2)),
        ("valkeys://:p%40ss@host/", ("host", 6379, True, "", "p@ss", 0)),
        ("rediss://me:secret@[::1]:7/15", ("::1", 7, True, "me", "secret", 15)),
    ],
)
def test_an_address_says_where_and_who(url: str, address: tuple[object, ...]) -> None:
    assert tuple(of(url)) == address
    assert "secret" not in str(of(url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://host", "must begin with valkey://"),
        ("host:6379", "must begin with valkey://"),
        ("valkey:///0", "no host"),
        ("valkey://host:0", "no host or port"),
        ("valkey://host:port", "is no URL"),
        ("valkey://:secret@host:99999", "is no URL"),
        ("valkey://:secret@host/one", "number of a database"),
        ("valkey://:secret@host/0?db=1", "takes no options"),
    ],
)
def test_what_is_no_address_is_one_line_without_the_password(url: str, words: str) -> None:
    settings = {"endpoints": [{"url": "http://127.0.0.1:9"}], "cluster": {"url": url}}
    with pytest.raises(ConfigError, match=words) as raised:
        parse_config(settings)
    assert str(raised.value).startswith("cluster.url: ")
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", value) for value in ("", "a b", "{x}")),
        *(("advertise", value) for value in ("http://host", "host:0x", "host:0", "host:65536", ":1")),
    ],
)
def test_other_settings_that_are_wrong_are_named(key: str, value: str) -> None:
    settings = {"endpoints": [{"url": "http://127.0.0.1:9"}], "cluster": {key: value}}
    with pytest.raises(ConfigError, match=rf"^cluster\.{key}: "):
        parse_config(settings)


# ── a server that refuses ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_lets_nobody_in_is_one_line_that_says_why() -> None:
    with ValkeyServer.started(password="secret") as server:
        wrong = {
            server.url.replace("secret", "other"): "the name or the password is wrong",
            f"valkey://127.0.0.1:{server.port}": "it asks for a password",
            f"{server.url}/4000": "DB index is out of range",
        }
        for url, words in wrong.items():
            with pytest.raises(StartError, match=words) as raised:
                await Valkey(of(url), "cluster.url").open()
            assert str(raised.value).startswith(f"cluster.url: Valkey at 127.0.0.1:{server.port} refuses: ")
        async with opened(f"{server.url}/3") as connection:
            assert await connection.call("SET", "mine", "1") == b"OK"


async def test_a_part_of_a_cluster_is_refused_in_a_line() -> None:
    with ValkeyServer.started(**{"cluster-enabled": "yes"}) as server, pytest.raises(StartError) as raised:
        await Valkey(of(server.url), "cluster.url").open()
    assert str(raised.value) == (
        f"cluster.url: Valkey at 127.0.0.1:{server.port} cannot be used: it is a part of a cluster: "
        "what is shared takes one server, without cluster-enabled"
    )


async def test_a_sentinel_is_refused_in_a_line() -> None:
    is_left = asyncio.Event()

    async def sentinel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"%2\r\n$6\r\nserver\r\n$6\r\nvalkey\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read(100)
        writer.close()
        is_left.set()

    async with await asyncio.start_server(sentinel, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(StartError, match="it is a Sentinel, which keeps nothing: name the server itself"):
            await Valkey(of(f"valkey://127.0.0.1:{port}"), "cluster.url").open()
        await is_left.wait()


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_answers_come_to_those_who_asked_in_the_order_in_which_they_did(valkey: ValkeyServer) -> None:
    async with opened(valkey.url) as connection:
        asked = [connection.call("INCR", "mine") for _ in range(1000)]
        asked[500].cancel()
        assert await asyncio.gather(*asked[:500], *asked[501:]) == [n for n in range(1, 1001) if n != 501]


async def test_a_command_that_is_refused_is_an_error_of_its_own_and_no_other_s(valkey: ValkeyServer) -> None:
    async with opened(valkey.url) as connection:
        refused, taken = connection.call("INCR"), connection.call("INCR", "mine")
        with pytest.raises(ValkeyError, match="wrong number of arguments"):
            await refused
        assert await taken == 1


async def test_a_script_that_the_server_has_forgotten_is_sent_to_it_again(valkey: ValkeyServer) -> None:
    async with opened(valkey.url, scripts=(ECHO,)) as connection:
        for _ in range(2):
            assert await connection.run(ECHO, "key", b"\x00\xff") == [b"key", b"\x00\xff"]
            valkey.run("SCRIPT", "FLUSH")


async def test_messages_come_by_the_same_connection(valkey: ValkeyServer) -> None:
    heard: list[bytes] = []
    async with opened(valkey.url) as connection:
        connection.listen("news", heard.append)
        assert await connection.call("PUBLISH", "news", "first") == 1
        valkey.run("PUBLISH", "news", "second")
        await eventually(lambda: heard == [b"first", b"second"], "both came")
        connection.stop_listening("news")
        assert await connection.call("PUBLISH", "news", "third") == 0


async def test_channels_are_listened_to_again_when_the_server_is_back(own_valkey: ValkeyServer) -> None:
    heard: list[bytes] = []
    async with opened(own_valkey.url) as connection:
        connection.listen("news", heard.append)
        own_valkey.restart()
        await eventually(lambda: own_valkey.run("PUBLISH", "news", "again") == 1, "it listens again")
        await eventually(lambda: heard == [b"again"], "it came")


async def test_megabytes_come_as_they_went(valkey: ValkeyServer) -> None:
    large = bytes(range(256)) * 40_000
    async with opened(valkey.url) as connection:
        await connection.call("SET", "mine", large)
        assert await connection.call("GET", "mine") == large


# ── a server that is away ────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_a_server_it_opens_and_each_call_fails_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(f"valkey://127.0.0.1:{free_port()}", meanwhile="each for itself") as connection:
        assert not connection.is_there
        with pytest.raises(ConnectionError):
            await connection.call("PING")
        await asyncio.sleep(0.3)
    assert [record.getMessage().rpartition(";")[2] for record in caplog.records] == [" each for itself"], "once"


async def test_it_comes_back_by_itself_when_the_server_does(
    own_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[bool] = []
    lost: list[bool] = []
    async with opened(
        own_valkey.url,
        on_open=lambda: made.append(True),
        on_lost=lambda: lost.append(True),
        meanwhile="each for itself",
    ) as connection:
        for times in (1, 2):
            own_valkey.kill()
            await eventually(lambda: not connection.is_there, "it is known to be away")
            assert len(lost) == times
            own_valkey.start()
            await eventually(lambda: connection.is_there, "it is there again")
            assert len(made) == times + 1
            assert await connection.call("PING") == b"PONG"
    assert len([record for record in caplog.records if "is away" in record.getMessage()]) == 2


async def test_one_that_stands_still_is_away_and_nobody_waits_for_it(own_valkey: ValkeyServer) -> None:
    async with opened(own_valkey.url) as connection:
        own_valkey.pause()
        asked = [connection.call("PING") for _ in range(3)]
        async with asyncio.timeout(SOON_S):
            failed = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in failed] == [ConnectionError] * 3
        assert not connection.is_there
        own_valkey.resume()
        await eventually(lambda: connection.is_there, "it is there again")


async def test_what_is_not_understood_ends_the_connection_and_not_the_process(caplog: pytest.LogCaptureFixture) -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(100)
        writer.close()

    async with await asyncio.start_server(odd, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"valkey://127.0.0.1:{port}", meanwhile="each for itself") as connection:
            assert not connection.is_there
    assert "is away" in caplog.text


def test_it_runs_on_the_loop_that_the_service_has(valkey: ValkeyServer) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def ask() -> object:
        async with opened(valkey.url) as connection:
            return await connection.call("PING")

    assert uvloop.run(ask()) == b"PONG"


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def certificate_in(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that nobody has signed but itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


@asynccontextmanager
async def over_tls(valkey: ValkeyServer, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A port where the server is behind TLS, and the certificate that it has."""
    certificate, key = certificate_in(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", valkey.port)
        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], certificate


@pytest.mark.parametrize("scheme", ["valkeys", "rediss"])
async def test_a_server_is_asked_over_tls_and_only_with_a_certificate_that_is_trusted(
    valkey: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    async with over_tls(valkey, tmp_path) as (port, certificate):
        url = f"{scheme}://localhost:{port}"
        with pytest.raises(StartError, match=rf"cluster\.url: no TLS with localhost:{port}: .*VERIFY"):
            await Valkey(of(url), "cluster.url").open()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with opened(url) as connection:
            large = b"x" * 1_000_000
            await connection.call("SET", "mine", large)
            assert await connection.call("GET", "mine") == large
