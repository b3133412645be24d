"""What a connection may cost, on raw sockets: heads and bodies that do not come, clients that do not read, upgrades
that are none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

import api.http.connection
from tests.conftest import Clock, Running, running_router
from tests.fake_backend import DONE, FakeBackend, Reply, chat, chunk, pause, stall, steps, stream, until
from tests.turns import SOON_S, create, eventually, soon

ASK = b'{"model": "test-model", "input": "Hi"}'
STREAM = b'{"model": "test-model", "input": "Hi", "stream": true}'
OLLAMA = b'{"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], "stream": false}'


def post(
    body: bytes = ASK, *headers: str, path: str = "/v1/responses", version: str = "1.1", host: str = "Host: router"
) -> bytes:
    lines = [f"POST {path} HTTP/{version}", *([host] if host else []), f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Line:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with soon():
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
            if headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readexactly(2)
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
        return int(head[0].split(" ")[1]), headers, body

    async def refusal(self, status: int, code: str) -> None:
        """The last answer, which says why."""
        given, headers, body = await self.answer()
        assert (given, orjson.loads(body)["error"]["code"]) == (status, code), body
        assert headers["connection"] == "close"
        await self.is_closed()

    async def is_closed(self) -> None:
        async with soon():
            assert await self.reader.read() == b"", "something comes behind the last answer"


@asynccontextmanager
async def line_to(running: Running) -> AsyncIterator[Line]:
    host, _, port = running.url.removeprefix("http://").partition(":")
    line = Line(*await asyncio.open_connection(host, int(port)))
    try:
        yield line
    finally:
        line.writer.transport.abort()


class TestHeads:
    @pytest.mark.parametrize("api_key", ["", "secret"])
    @pytest.mark.parametrize(
        "sent",
        [
            b"POST /v1/responses HTTP/1.1\r\nHost: router\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
            b"POST /v1/responses HTTP/1.1\r\nHost: router\r\nX: " + b"x" * 300_000,
            b"GET /" + b"x" * 200_000,
            b"GET /v1/models HTTP/1.1\r\nHost: router\r\n" + b"X: 1\r\n" * 201 + b"\r\n",
            b"GET /v1/models HTTP/1.1\r\nHost: router\r\n" + b"X: 1\r\n" * 2_000,
            b"GET /v1/models HTTP/1.1\r\nHost: router\r\n" + (b"X: " + b"x" * 400 + b"\r\n") * 190 + b"\r\n",
        ],
        ids=[
            "one large header",
            "one that goes on",
            "a long path",
            "201 headers",
            "headers that go on",
            "64 KB of them",
        ],
    )
    async def test_past_64_KB_or_200_headers_are_a_431_before_any_key_is_looked_at(
        self, sent: bytes, api_key: str, backend: FakeBackend
    ) -> None:
        async with running_router(endpoints=[{"url": backend.url}], api_key=api_key) as running:
            for size in (len(sent), 10_000):
                async with line_to(running) as line:
                    for at in range(0, len(sent), size):
                        line.writer.write(sent[at : at + size])
                    await line.refusal(431, "head_too_large")

    async def test_of_60_KB_and_of_200_headers_pass(self, served: Running) -> None:
        large = "\r\n".join(f"X-{number}: {'x' * 300}" for number in range(195))
        for headers in (large, "X: " + "x" * 60_000, "\r\n".join(["X: 1"] * 190)):
            async with line_to(served) as line:
                for _ in range(2):
                    await line.send(post(ASK, headers))
                    assert (await line.answer())[0] == 200

    async def test_that_do_not_come_in_10_s_are_a_408(self, served: Running, clock: Clock) -> None:
        async with line_to(served) as line, line_to(served) as other:
            await other.send(post())
            assert (await other.answer())[0] == 200
            await line.send(b"POST /v1/responses HTTP/1.1\r\nHost: rou")
            await other.send(b"POST /v1/responses HT")
            await eventually(lambda: len([p for p in served.connections if p._head_since]) == 2, "both have begun")
            for _ in range(3):  # Drop by drop.
                clock.advance(3)
                await line.send(b"t")
                await other.send(b"")
            clock.advance(2)
            await line.refusal(408, "request_timeout")
            await other.refusal(408, "request_timeout")

    async def test_500_slow_ones_are_gone_and_others_were_served(self, served: Running, clock: Clock) -> None:
        host, _, port = served.url.removeprefix("http://").partition(":")
        slow = [await asyncio.open_connection(host, int(port)) for _ in range(500)]
        for _, writer in slow:
            writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: ")
        await eventually(lambda: len([p for p in served.connections if p._head_since]) == 500, "all have begun")
        assert (await create(served.http))["status"] == "completed"
        clock.advance(11)
        async with soon():
            for reader, writer in slow:
                assert b" 408 " in await reader.readline()
                writer.transport.abort()
        await eventually(lambda: len(served.connections) <= 1, "all are gone")


class TestBodies:
    @pytest.mark.parametrize("path", ["/v1/responses", "/api/chat"])
    async def test_that_stall_for_30_s_are_a_408_in_the_words_of_the_front_door(
        self, path: str, served: Running, clock: Clock
    ) -> None:
        async with line_to(served) as line:
            whole = post(ASK if path == "/v1/responses" else OLLAMA, path=path)
            await line.send(whole[:-10])
            await eventually(lambda: any(p._body_at for p in served.connections), "it has begun")
            clock.advance(29)
            await line.send(whole[-10:-5])
            before = [p._body_at for p in served.connections]
            await eventually(lambda: [p._body_at for p in served.connections] != before, "a part has come")
            clock.advance(29)
            await asyncio.sleep(0)
            assert not line.reader.at_eof()
            clock.advance(2)
            status, headers, body = await line.answer()
            assert (status, headers["connection"]) == (408, "close")
            error = orjson.loads(body)["error"]
            assert "30 s" in (error if path == "/api/chat" else error["message"])
            await line.is_closed()

    async def test_may_be_large_and_begin_late_on_a_connection_that_is_old(self, served: Running, clock: Clock) -> None:
        large = b'{"model": "test-model", "input": "%b"}' % (b"x" * 8_000_000)
        async with line_to(served) as line:
            for _ in range(2):
                whole = post(large)
                await line.send(whole[:-8_000_000])
                await asyncio.sleep(0.01)
                clock.advance(20)
                await asyncio.sleep(0.01)
                await line.send(whole[-8_000_000:])
                assert (await line.answer())[0] == 200
                clock.advance(40)

    async def test_whose_frames_go_on_without_any_content_are_refused(self, served: Running) -> None:
        async with line_to(served) as line:
            await line.send(
                b"POST /v1/responses HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
            )
            for _ in range(40):
                line.writer.write(b"X: " + b"x" * 9_000 + b"\r\n")
                await asyncio.sleep(0)
            await line.refusal(431, "head_too_large")

    async def test_may_have_trailers_which_are_no_headers(self, served: Running) -> None:
        async with line_to(served) as line:
            for _ in range(2):
                chunked = b"%x\r\n%b\r\n0\r\nAuthorization: x\r\nOrigin: https://evil.example\r\n\r\n" % (len(ASK), ASK)
                await line.send(
                    b"POST /v1/responses HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
                )
                assert (await line.answer())[0] == 200


class TestIdleConnections:
    async def test_are_closed_after_75_s_and_no_sooner(self, served: Running, clock: Clock) -> None:
        async with line_to(served) as line, line_to(served) as silent:
            await line.send(post())
            assert (await line.answer())[0] == 200
            clock.advance(70)
            await line.send(post())
            assert (await line.answer())[0] == 200
            clock.advance(70)
            await line.send(post())
            assert (await line.answer())[0] == 200
            clock.advance(76)
            await line.is_closed()
            await silent.is_closed()

    async def test_that_wait_longest_go_where_there_are_more_than_max_connections(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with (
            running_router(endpoints=endpoints, max_connections=3) as running,
            line_to(running) as first,
            line_to(running) as second,
            line_to(running) as third,
        ):
            for line in (second, first, third):
                await line.send(post())
                assert (await line.answer())[0] == 200
            async with line_to(running) as fourth:
                await fourth.send(post())
                assert (await fourth.answer())[0] == 200
                await second.is_closed()
                for line in (first, third):
                    await line.send(post())
                    assert (await line.answer())[0] == 200

    async def test_that_are_answered_stay_and_a_new_one_is_a_503(
        self, backend: FakeBackend, gate: asyncio.Event
    ) -> None:
        backend.default = stream(until(gate), chunk({"content": "Hello"}), chunk({}, finish_reason="stop") + DONE)
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with (
            running_router(endpoints=endpoints, max_connections=2) as running,
            line_to(running) as first,
            line_to(running) as second,
        ):
            for line in (first, second):
                await line.send(post())
            await eventually(lambda: running.in_flight() == 2, "both run")
            async with line_to(running) as third:
                await third.refusal(503, "too_many_connections")
            gate.set()
            for line in (first, second):
                assert (await line.answer())[0] == 200

    async def test_the_log_says_that_file_descriptors_run_out(
        self, served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(api.http.connection, "file_limit", lambda: 40)
        with caplog.at_level(logging.WARNING, "nomyo.http"):
            for _ in range(3):
                async with line_to(served) as line:
                    await line.send(post())
                    await line.answer()
        (line_,) = [
            record.getMessage() for record in caplog.records if "file descriptors run out" in record.getMessage()
        ]
        assert "of 40" in line_


class TestClientsThatStopReading:
    @pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
    async def test_lose_their_connection_after_60_s_and_their_slot_is_back(
        self, path: str, served: Running, backend: FakeBackend, clock: Clock
    ) -> None:
        backend.default = chat(" ".join(["x" * 100_000] * 200), then=stall())
        body = STREAM if path == "/v1/responses" else OLLAMA.replace(b"false", b"true")
        async with line_to(served) as line:
            line.writer.transport.pause_reading()
            await line.send(post(body, path=path))
            await eventually(lambda: any(p.flow.write_paused for p in served.connections), "it reads no more")
            assert served.in_flight() == 1
            clock.advance(59)
            await asyncio.sleep(0)
            assert served.in_flight() == 1
            clock.advance(2)
            await eventually(lambda: served.in_flight() == 0, "the slot is back")
            await eventually(lambda: not served.connections, "the connection is gone")
            await backend.wait_for(lambda b: b.in_flight == 0)

    async def test_of_a_websocket_lose_theirs_too(self, served: Running, backend: FakeBackend, clock: Clock) -> None:
        async def endless(reply: Reply) -> None:
            while not reply.is_over:
                await steps(chunk({"content": "x" * 100_000}), pause(0))(reply)

        backend.default = stream(chunk({"content": "x"}), endless)
        async with line_to(served) as line:
            line.writer.write(HANDSHAKE)
            async with soon():
                await line.reader.readuntil(b"\r\n\r\n")
            line.writer.transport.pause_reading()
            asked = orjson.dumps({"type": "response.create", "model": "test-model", "input": "Hi"})
            # Masked with zeros: as it is.
            line.writer.write(b"\x81" + bytes([0x80 | len(asked)]) + bytes(4) + asked)
            await eventually(lambda: any(not p.writable.is_set() for p in served.connections), "it reads no more")
            assert served.in_flight() == 1
            clock.advance(59)
            await asyncio.sleep(0)
            assert served.in_flight() == 1
            clock.advance(2)
            await eventually(lambda: served.in_flight() == 0, "the slot is back")
            await eventually(lambda: not served.connections, "the connection is gone")
            await backend.wait_for(lambda b: b.in_flight == 0)


class TestClientsThatSendAndDoNotRead:
    async def test_are_not_read_from_either_and_get_all_once_they_do(
        self, served: Running, backend: FakeBackend
    ) -> None:
        backend.default = chat("x" * 2_000_000)
        response_id = (await create(served.http))["id"]
        asked = f"GET /v1/responses/{response_id} HTTP/1.1\r\nHost: router\r\n\r\n".encode()
        count = 200
        async with line_to(served) as line:
            await eventually(lambda: len(served.connections) == 2, "it is connected")
            (protocol,) = [
                p
                for p in served.connections
                if p.transport.get_extra_info("peername") == line.writer.get_extra_info("sockname")
            ]
            line.writer.transport.pause_reading()
            line.writer.write(asked * count)
            await eventually(lambda: protocol._is_held, "it is held")
            for _ in range(20):
                await asyncio.sleep(0)
            assert protocol.flow.read_paused
            assert protocol.transport.get_write_buffer_size() < 10_000_000
            line.writer.transport.resume_reading()
            for _ in range(count):
                status, _, body = await line.answer()
                assert (status, len(body) > 2_000_000) == (200, True)
            await line.send(post())
            assert (await line.answer())[0] == 200

    async def test_over_a_websocket_get_no_more_pongs(self, served: Running) -> None:
        async with line_to(served) as line:
            line.writer.write(HANDSHAKE)
            async with soon():
                await line.reader.readuntil(b"\r\n\r\n")
            (protocol,) = served.connections
            line.writer.transport.pause_reading()
            ping = b"\x89" + bytes([0x80 | 125]) + bytes(4) + b"p" * 125
            for _ in range(300):
                line.writer.write(ping * 1000)
            await eventually(lambda: not protocol.writable.is_set(), "it reads no more")
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert protocol.transport.get_write_buffer_size() < 1_000_000
            assert len(protocol._unread) < 1_000_000

    async def test_and_leave_a_websocket_are_gone_with_what_they_have_sent(
        self, served: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with line_to(served) as line:
            line.writer.write(HANDSHAKE)
            async with soon():
                await line.reader.readuntil(b"\r\n\r\n")
            (protocol,) = served.connections
            line.writer.transport.pause_reading()
            ping = b"\x89" + bytes([0x80 | 125]) + bytes(4) + b"p" * 125
            for _ in range(60):
                line.writer.write(ping * 1000)
            await eventually(lambda: not protocol.writable.is_set() and protocol._unread, "it reads no more")
            line.writer.transport.abort()
            await eventually(lambda: not served.connections, "it is gone")
            await eventually(lambda: served.app.state.telemetry.sockets == 0, "nobody serves it")
        assert not protocol._unread
        assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    async def test_a_body_behind_its_answer_is_read_for_a_while_and_not_for_ever(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, max_body_mb=1) as running, line_to(running) as line:
            await line.send(b"POST /v1/responses HTTP/1.1\r\nHost: router\r\nTransfer-Encoding: chunked\r\n\r\n")
            piece = b"%x\r\n%b\r\n" % (100_000, b" " * 100_000)
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 50_000_000 and not line.writer.transport.is_closing():
                    line.writer.write(piece)
                    await line.writer.drain()
                    sent += len(piece)
            assert sent < 50_000_000
            await eventually(lambda: not running.connections, "it is closed")

    async def test_a_message_of_empty_fragments_is_closed(self, served: Running) -> None:
        async with line_to(served) as line:
            line.writer.write(HANDSHAKE)
            async with soon():
                await line.reader.readuntil(b"\r\n\r\n")
            line.writer.write(b"\x01\x80" + bytes(4))
            for _ in range(20):
                line.writer.write((b"\x00\x80" + bytes(4)) * 1000)
            async with soon():
                closed = await line.reader.readexactly(4)
            assert (closed[0], int.from_bytes(closed[2:4])) == (0x88, 1009)
            await eventually(lambda: not served.connections, "it is gone")


HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: router\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA")
SMUGGLED = b"DELETE /v1/responses/resp_1 HTTP/1.1\r\nHost: router\r\n\r\n"


class TestUpgrades:
    @pytest.mark.parametrize(
        "headers",
        [
            H2C,
            (
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: YWFhYWFhYWFhYWFhYWFhYQ==",
            ),
            ("Connection: keep-alive, upgrade", "Upgrade: TLS/1.0"),
            ("connection: UPGRADE", "upgrade: h2c, websocket"),
        ],
        ids=["h2c", "websocket", "tls", "several"],
    )
    @pytest.mark.parametrize("split", [1, 7, 60, 10**6])
    async def test_of_a_post_are_ignored_and_its_body_is_read(
        self, headers: tuple[str, ...], split: int, served: Running, backend: FakeBackend
    ) -> None:
        async with line_to(served) as line:
            sent = post(ASK, *headers) + post(STREAM, *headers) + post(ASK)
            for at in range(0, len(sent), split):
                await line.send(sent[at : at + split])
                if split > 1:
                    await asyncio.sleep(0.001)
            for kind in ("application/json", "text/event-stream; charset=utf-8", "application/json"):
                status, answered, body = await line.answer()
                assert (status, answered["content-type"]) == (200, kind), body
        assert len(backend.turns) == 3

    async def test_of_a_chunked_body_are_ignored_too(self, served: Running, backend: FakeBackend) -> None:
        head = "\r\n".join(
            ["POST /v1/responses HTTP/1.1", "Host: r", "Transfer-Encoding: chunked", *H2C, "", ""]
        ).encode()
        async with line_to(served) as line:
            for _ in range(2):
                await line.send(head + b"%x\r\n%b\r\n" % (len(ASK), ASK))
                await asyncio.sleep(0.01)
                await line.send(b"0\r\n\r\n")
                assert (await line.answer())[0] == 200
        assert len(backend.turns) == 2

    async def test_smuggle_nothing(self, served: Running) -> None:
        stored = await create(served.http)
        smuggled = SMUGGLED.replace(b"resp_1", stored["id"].encode())
        async with line_to(served) as line:
            await line.send(post(smuggled, *H2C))
            status, _, body = await line.answer()
            assert status == 400, body
            await line.send(post())
            assert (await line.answer())[0] == 200
        assert (await served.http.get(f"/v1/responses/{stored['id']}")).status_code == 200

    async def test_of_a_get_are_ignored(self, served: Running) -> None:
        async with line_to(served) as line:
            for _ in range(2):
                await line.send("\r\n".join(["GET /v1/models HTTP/1.1", "Host: r", *H2C, "", ""]).encode())
                status, _, body = await line.answer()
                assert (status, orjson.loads(body)["object"]) == (200, "list")

    async def test_to_a_websocket_are_taken(self, served: Running) -> None:
        from websockets.asyncio.client import connect

        async with connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None) as socket:
            await socket.send('{"type": "response.create", "model": "test-model", "input": "Hi"}')
            assert "response.created" in str(await socket.recv())

    async def test_connect_is_no_way_through(self, served: Running) -> None:
        async with line_to(served) as line:
            await line.send(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n" + post())
            assert (await line.answer())[0] == 400
            await line.is_closed()

    @pytest.mark.skipif(shutil.which("java") is None, reason="there is no JDK")
    @pytest.mark.heavy
    async def test_a_jdk_client_which_asks_for_h2c_is_answered(self, served: Running, backend: FakeBackend) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "Ask.java"
            file.write_text(JAVA)
            process = await asyncio.create_subprocess_exec(
                "java",
                str(file),
                f"{served.url}/v1/responses",
                ASK.decode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        assert output.decode().split() == ["200", "200", "200"]
        assert len(backend.turns) == 3


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 3; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(given[0]))
                .header("Content-Type", "application/json").POST(HttpRequest.BodyPublishers.ofString(given[1])).build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


class TestOldAndOddRequests:
    async def test_a_stream_to_http_1_0_is_not_chunked_and_ends_with_its_connection(self, served: Running) -> None:
        for headers in ((), ("Connection: keep-alive",)):
            async with line_to(served) as line:
                await line.send(post(STREAM, *headers, version="1.0", host=""))
                status, answered, body = await line.answer()
                assert status == 200
                assert "transfer-encoding" not in answered
                assert answered["connection"] == "close"
                assert body.startswith(b"event: response.created\n")
                assert body.endswith(b"\n\n")
                assert b"event: response.completed" in body

    async def test_http_1_0_needs_no_host(self, served: Running) -> None:
        async with line_to(served) as line:
            await line.send(post(version="1.0", host=""))
            assert (await line.answer())[0] == 200
            await line.is_closed()

    @pytest.mark.parametrize("api_key", ["", "secret"])
    @pytest.mark.parametrize(
        "host", ["", "Host: router\r\nHost: router", "Host: router\r\nHost: evil.example", "Host: a\r\nhOsT: b"]
    )
    async def test_a_missing_or_double_host_is_a_400(self, host: str, api_key: str, backend: FakeBackend) -> None:
        async with (
            running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], api_key=api_key) as running,
            line_to(running) as line,
        ):
            for _ in range(2):
                await line.send(post(ASK, "Authorization: Bearer secret", host=host))
                status, _, body = await line.answer()
                assert (status, orjson.loads(body)["error"]["code"]) == (400, "invalid_host")
        assert not backend.turns

    async def test_a_header_that_comes_twice_and_is_no_host_passes(self, served: Running) -> None:
        async with line_to(served) as line:
            await line.send(post(ASK, "X: 1", "X: 2"))
            assert (await line.answer())[0] == 200


@pytest.fixture
def gate() -> asyncio.Event:
    return asyncio.Event()


class TestWebSockets:
    @pytest.mark.heavy
    async def test_that_go_on_behind_64_unanswered_messages_are_closed(
        self, served: Running, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        backend.default = stream(until(asyncio.Event()))
        async with connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None) as socket:
            message = '{"type": "response.create", "model": "test-model", "input": "Hi"}'

            async def go_on() -> None:
                while True:
                    await socket.send(message)

            with pytest.raises(ConnectionClosed) as raised:
                await asyncio.wait_for(go_on(), SOON_S)
            assert raised.value.rcvd is not None
            assert raised.value.rcvd.code == 1008
        await eventually(lambda: served.in_flight() == 0, "its turns have ended")

    async def test_take_16_MB_that_wait_and_refuse_more(self, served: Running, backend: FakeBackend) -> None:
        from websockets.asyncio.client import connect

        gate = asyncio.Event()
        backend.default = stream(until(gate), chunk({"content": "Hello"}), chunk({}, finish_reason="stop") + DONE)
        url = served.url.replace("http", "ws") + "/v1/responses"
        async with connect(url, proxy=None, max_size=None) as socket:
            text = "x" * (6 * 1024 * 1024)
            for _ in range(4):  # One runs, two wait: the fourth would be too much.
                await socket.send(
                    f'{{"type": "response.create", "model": "test-model", "input": "{text}", "store": false}}'
                )
            await socket.send('{"type": "response.create", "model": "test-model", "input": "Hi", "stream_id": "small"}')
            gate.set()
            ends = []
            async with soon():
                while len(ends) < 5:
                    event = orjson.loads(await socket.recv())
                    if event["type"] in ("response.completed", "error"):
                        ends.append(event.get("status") or event["type"])
            assert sorted(map(str, ends)) == ["429", *["response.completed"] * 4]

    async def test_are_read_in_slices_so_that_what_is_compressed_does_not_swell(
        self, served: Running, backend: FakeBackend
    ) -> None:
        from websockets.asyncio.client import connect

        async with connect(served.url.replace("http", "ws") + "/v1/responses", proxy=None) as socket:
            for _ in range(20):  # 1 MB each, 1 KB on its way.
                await socket.send(" " * 2**20 + "{}")
            kinds = [orjson.loads(await socket.recv())["type"] for _ in range(20)]
            assert kinds == ["error"] * 20

    async def test_do_not_log_the_key(
        self, backend: FakeBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from websockets.asyncio.client import connect

        monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", False)
        async with running_router(
            endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}], api_key="hush"
        ) as running:
            logging.getLogger("uvicorn.error").setLevel(logging.DEBUG)
            with caplog.at_level(logging.DEBUG):
                url = running.url.replace("http", "ws") + "/v1/responses"
                async with connect(url, additional_headers={"Authorization": "Bearer hush"}, proxy=None) as socket:
                    await socket.send('{"type": "response.create", "model": "test-model", "input": "prompt"}')
                    await socket.recv()
        shown = [r.getMessage() for r in caplog.records if r.name.startswith("uvicorn")]
        assert not [line for line in shown if "hush" in line or "prompt" in line]
