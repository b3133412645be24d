"""What every cluster keeps of its peers: who is asked, and what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cluster.protocol import Cluster
from tests.cluster.services import (
    Member,
    Several,
)
from tests.cluster.suite import holds, with_others

# An ASGI application in another process, for the requests of its peers: it answers with the status at the end of the
# path, and with what came.
ANSWERS = """
import json
from contextlib import AsyncExitStack
from api.http.protocol import Protocol
from cluster.protocol import FROM_PEER

async def app(scope, receive, send):
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    said = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode(),
        "by": cluster.number, "authorization": headers.get("authorization"), "from_peer": scope.get(FROM_PEER, False)}
    status = int(scope["path"].rpartition("/")[2])
    if scope["path"].startswith("/only-") and not scope["path"].startswith(f"/only-{cluster.number}/"):
        status = 404
    head = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})

answering = cluster.answering(app, Protocol)
await answering.__aenter__()
"""


@pytest.fixture
async def peers(service: Several, cluster: Cluster) -> AsyncIterator[list[Member]]:
    """Two that answer, and this process."""
    async with service.other() as first, service.other() as second:
        members = [first, second]
        for member in members:
            await member.run(ANSWERS)

        async def all_answer() -> bool:
            return [answer and answer["by"] for answer in await cluster.ask("GET", "/200", {})] == [1, 2]

        await holds(cluster, all_answer, "both are known here")
        yield members


@with_others
@pytest.mark.usefixtures("peers")
class TestPeers:
    async def test_all_are_asked_as_the_client_asked(self, cluster: Cluster) -> None:
        answers = await cluster.ask("POST", "/a%20b/200?x=1&y=%2F", {"authorization": "Bearer k"})
        asked = {
            "method": "POST",
            "path": "/a b/200",
            "query": "x=1&y=%2F",
            "authorization": "Bearer k",
            "from_peer": True,
        }
        assert answers == [{**asked, "by": number} for number in (1, 2)]

    async def test_an_answer_that_is_no_200_is_none(self, cluster: Cluster) -> None:
        for status in (204, 404, 500):
            assert await cluster.ask("GET", f"/{status}", {}) == [None, None]

    async def test_the_first_answer_that_is_no_404_is_found(self, cluster: Cluster) -> None:
        for path, status, number in (("/200", 200, 1), ("/400", 400, 1), ("/500", 500, 1), ("/only-2/200", 200, 2)):
            found = await cluster.find("GET", path, {})
            assert found is not None
            assert (found.status, found.headers["content-type"]) == (status, "application/json")
            assert f'"by": {number}'.encode() in b"".join([piece async for piece in found.pieces()])
            await found.aclose()
        assert await cluster.find("GET", "/only-7/200", {}) is None

    async def test_one_that_is_gone_is_left_out(self, cluster: Cluster, peers: list[Member]) -> None:
        await peers[0].leave()

        async def is_left_out() -> bool:
            return [answer and answer["by"] for answer in await cluster.ask("GET", "/200", {})] == [2]

        await holds(cluster, is_left_out, "the other one is asked alone")
