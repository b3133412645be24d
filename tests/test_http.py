"""HTTP itself: what a stream looks like on the wire, when it leaves, and connections that are used again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import orjson

import api.http.silence
from tests.conftest import Running
from tests.fake_backend import DONE, chat, chat_usage, chunk, http_error, stall, stream, until
from tests.stream_grammar import check_stream, parse_sse
from tests.turns import URL, create, soon, turn

HELLO = b"".join([chunk({"role": "assistant", "content": ""}), chunk({"content": "Hello"}), chunk({"content": " you"})])
END = b"".join([chunk({}, finish_reason="stop"), chunk(usage=chat_usage()), DONE])


class Wire:
    """A client that sees each HTTP chunk by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, body: bytes, path: str = URL) -> tuple[int, dict[str, str]]:
        """Sends a request; gives the status and the headers of the answer."""
        head = f"POST {path} HTTP/1.1\r\nHost: router\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = [line.split(": ", 1) for line in lines[1:] if line]
        return int(lines[0].split()[1]), {name.lower(): value for name, value in fields}

    async def chunk(self) -> bytes:
        """The next HTTP chunk; empty at the end."""
        size = int((await self._reader.readline()).strip(), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        chunks = []
        while data := await self.chunk():
            chunks.append(data)
        return b"".join(chunks)

    async def read(self, length: int) -> bytes:
        return await self._reader.readexactly(length)


@asynccontextmanager
async def wire_to(running: Running) -> AsyncIterator[Wire]:
    address = urlsplit(running.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


STREAM = orjson.dumps(turn(stream=True))


class TestStreams:
    async def test_its_headers_say_what_it_is(self, served):
        async with wire_to(served) as wire:
            status, headers = await wire.post(STREAM)
            assert status == 200
            assert headers["content-type"].startswith("text/event-stream")
            assert headers["cache-control"] == "no-cache"
            assert headers["x-accel-buffering"] == "no", "nginx would hold it back"
            assert headers["transfer-encoding"] == "chunked"
            assert "content-length" not in headers
            pairs = parse_sse(await wire.rest())
        check_stream([event for _, event in pairs])

    async def test_what_one_read_brought_leaves_in_one_write(self, served, backend):
        gate = asyncio.Event()
        backend.script(stream(HELLO, until(gate), END))
        async with wire_to(served) as wire:
            await wire.post(STREAM)
            first = [name for name, _ in parse_sse(await wire.chunk())]
            assert first == [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.delta",
            ]
            gate.set()
            last = [name for name, _ in parse_sse(await wire.chunk())]
            assert last[-2:] == ["response.output_item.done", "response.completed"]
            assert await wire.chunk() == b""

    async def test_a_token_that_arrived_is_on_its_way(self, served, backend):
        backend.script(stream(HELLO, stall()))
        async with wire_to(served) as wire, soon():
            await wire.post(STREAM)
            received = b""
            while b" you" not in received:
                received += await wire.chunk()

    async def test_a_silent_stream_gets_an_event_now_and_then(self, served, backend, monkeypatch):
        monkeypatch.setattr(api.http.silence, "KEEPALIVE_S", 0.03)
        gate = asyncio.Event()
        backend.script(stream(HELLO, until(gate), END))
        async with wire_to(served) as wire:
            await wire.post(STREAM)
            received = await wire.chunk()
            for _ in range(3):
                event = await wire.chunk()
                assert event.startswith(b"event: keepalive\n"), "Codex takes a comment for silence"
                received += event
            gate.set()
            received += await wire.rest()
        check_stream([event for _, event in parse_sse(received)])

    async def test_a_busy_stream_gets_none(self, served, backend, clock):
        gates = [asyncio.Event() for _ in range(10)]
        words = [step for gate in gates for step in (until(gate), chunk({"content": "word "}))]
        backend.script(stream(HELLO, *words, END))
        received = b""
        async with wire_to(served) as wire:
            await wire.post(STREAM)
            for gate in gates:
                received += await wire.chunk()
                clock.advance(api.http.silence.KEEPALIVE_S * 2 / 3)
                gate.set()
            received += await wire.rest()
        assert b": ping" not in received
        assert b"keepalive" not in received
        assert received.count(b"word ") > len(gates)


class TestConnections:
    async def test_one_serves_every_kind_of_answer_in_turn(self, served, backend):
        async with wire_to(served) as wire:
            for _ in range(3):
                status, headers = await wire.post(orjson.dumps(turn()))
                assert status == 200
                assert orjson.loads(await wire.read(int(headers["content-length"])))["status"] == "completed"
                assert (await wire.post(STREAM))[0] == 200
                assert b"response.completed" in await wire.rest()
                backend.script(http_error(400))
                status, headers = await wire.post(STREAM)
                assert (status, headers["content-type"]) == (400, "application/json")
                assert "error" in orjson.loads(await wire.read(int(headers["content-length"])))
                status, headers = await wire.post(b"{", f"{URL}/resp_1/cancel")
                assert status == 404
                await wire.read(int(headers["content-length"]))

    async def test_a_body_may_come_in_any_pieces_and_under_any_name(self, served):
        async def pieces() -> AsyncIterator[bytes]:
            for byte in orjson.dumps(turn()):
                yield bytes([byte])

        assert (await served.http.post(URL, content=pieces())).status_code == 200
        answer = await served.http.post(URL, content=orjson.dumps(turn()), headers={"Content-Type": "text/plain"})
        assert answer.status_code == 200


class TestAnswers:
    async def test_json_is_a_whole_response_with_its_text(self, served, backend):
        backend.script(chat("naïve 🦙"))
        answer = await served.http.post(URL, json=turn())
        assert answer.headers["content-type"] == "application/json"
        assert "naïve 🦙".encode() in answer.content, "it is escaped"
        assert answer.json()["output_text"] == "naïve 🦙"

    async def test_tools_that_the_backend_cannot_run_are_named(self, served, backend):
        tools = [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": None}]
        for streaming in (False, True):
            answer = await served.http.post(URL, json=turn(tools=tools, stream=streaming))
            assert answer.headers["x-nomyo-omitted-tools"] == "web_search"
            assert [tool["function"]["name"] for tool in backend.turns[-1].json["tools"]] == ["f"]

    async def test_health_names_no_endpoint_and_no_key(self, served, backend):
        await create(served.http)
        answer = await served.http.get("/health")
        assert answer.json() == {"status": "ok", "endpoints": {"configured": 1, "up": 1}}
        await backend.stop()
        assert (await served.http.get("/health")).status_code == 200, "the router runs, whether or not its backends do"

    async def test_the_api_describes_itself(self, served):
        paths = (await served.http.get("/openapi.json")).json()["paths"]
        assert {"/v1/responses", "/v1/responses/{response_id}", "/v1/models", "/health"} <= set(paths)
        assert (await served.http.get("/docs")).status_code == 200
