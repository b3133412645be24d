"""Asking a peer at its socket: what one may do that answers badly, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster import peers
from cluster.peers import Peer
from tests.turns import SOON_S, eventually

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 50\r\n\r\n"


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "worker-1.sock"


@asynccontextmanager
async def peer(path: Path, serve: Serve) -> AsyncIterator[None]:
    async with await asyncio.start_unix_server(serve, path):
        yield


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"{")
    await at_once(reader, writer)


async def no_json(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"x" * 50)
    await at_once(reader, writer)


async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"+PONG\r\n")
    await at_once(reader, writer)


@pytest.mark.parametrize("serves", [never, at_once, in_the_middle, no_json, no_http])
async def test_one_that_does_not_answer_is_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, serves: Serve
) -> None:
    monkeypatch.setattr(peers, "PATIENCE_S", 0.1)
    assert await peers.ask([Peer.at(path)], "GET", "/metrics", {}) == [None], "it is not up yet"
    async with peer(path, serves):
        assert await asyncio.wait_for(peers.ask([Peer.at(path)], "GET", "/metrics", {}), SOON_S) == [None]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["worker-1 does not answer"] * 2


@pytest.mark.parametrize("serves", [never, at_once, no_http])
async def test_one_that_does_not_answer_is_passed_over(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, serves: Serve
) -> None:
    # Who says nothing is waited for while others are asked; who fails is done with.
    monkeypatch.setattr(peers, "NEXT_S", 0.05 if serves is never else SOON_S)
    async with peer(path, serves), peer(path.with_name("worker-2.sock"), in_the_middle):
        sockets = [path.with_name("worker-3.sock"), path, path.with_name("worker-2.sock")]
        found = await asyncio.wait_for(peers.find(map(Peer.at, sockets), "GET", "/v1/responses/1", {}), SOON_S)
        assert found is not None
        await found.aclose()
    assert len(caplog.records) == (1 if serves is never else 2)


async def test_one_that_never_answers_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peers, "FINDING_PATIENCE_S", 0.1)
    async with peer(path, never):
        assert await asyncio.wait_for(peers.find([Peer.at(path)], "GET", "/v1/responses/1", {}), SOON_S) is None
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["worker-1 does not answer"]


async def test_an_answer_comes_in_pieces_and_where_it_breaks_off_that_is_an_error(path: Path) -> None:
    goes_on = asyncio.Event()

    async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"one")
        await goes_on.wait()
        writer.write(b"two")
        await at_once(reader, writer)

    async with peer(path, in_pieces):
        found = await peers.find([Peer.at(path)], "GET", "/", {})
        assert found is not None
        assert found.headers["content-type"] == "text/event-stream"
        pieces = found.pieces()
        assert await anext(pieces) == b"one"
        goes_on.set()
        assert await anext(pieces) == b"two"
        with pytest.raises(ConnectionError):
            await anext(pieces)
        await found.aclose()


async def test_a_connection_is_closed_with_its_answer_also_where_nothing_was_read_of_it(path: Path) -> None:
    closed = 0

    async def stays_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed
        writer.write(HEAD + b"one")
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()
        closed += 1
        writer.close()

    async with peer(path, stays_open):
        found = await peers.find([Peer.at(path)], "GET", "/", {})
        assert found is not None
        await found.aclose()
        await eventually(lambda: closed == 1, "the connection is closed")
        found = await peers.find([Peer.at(path)], "GET", "/", {})
        assert found is not None
        await anext(found.pieces())
        await found.aclose()
        await eventually(lambda: closed == 2, "the connection is closed")


async def test_one_that_is_slow_holds_up_the_others_for_a_moment_only(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stands still, as a process does that was stopped; and whoever is asked next has the answer."""
    monkeypatch.setattr(peers, "NEXT_S", 0.01)
    left = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()
        writer.close()

    async def has_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await at_once(reader, writer)

    async with peer(path, slow), peer(path.with_name("worker-2.sock"), has_it):
        found = await peers.find([Peer.at(path), Peer.at(path.with_name("worker-2.sock"))], "GET", "/", {})
        assert found is not None
        assert [piece async for piece in found.pieces()] == [b"{}"]
        await found.aclose()
        await asyncio.wait_for(left.wait(), SOON_S)
    assert not caplog.records, "it may still come"
