"""Processes whose lease at the Valkey has ended: who is dead, and who is only slow."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack

import pytest

from cluster import peers
from cluster.alone import Alone
from cluster.valkey import Replicas
from core.config import ClusterConfig
from tests.engines.valkey import ValkeyServer
from tests.turns import eventually

# Short: it is waited for.
LEASE_S = 0.5


async def test_who_is_slow_is_asked_though_another_process_looks_after_it_and_the_server_forgets_it(
    own_valkey: ValkeyServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PATIENCE_S", 0.02)
    here, there = [Replicas(ClusterConfig(url=own_valkey.url), Alone(), lease_s=LEASE_S) for _ in range(2)]
    for cluster in (here, there):
        await cluster.open()
        stack.push_async_callback(cluster.close)
    # It holds its port, and does not answer.
    slow = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    own_valkey.run("HSET", "{nomyo}:dead", "slow", f"{there.membership.id} 127.0.0.1:{slow.getsockname()[1]}")

    async def is_asked() -> bool:
        return await here.ask("GET", "/", {}) == [None]

    async def is_left_out() -> bool:
        return await here.ask("GET", "/", {}) == []

    await eventually(is_asked, "nobody knows what it runs")
    own_valkey.empty()
    until = time.monotonic() + 2 * LEASE_S
    while time.monotonic() < until:
        assert await is_asked(), "it was forgotten meanwhile"
        await asyncio.sleep(0.02)
    slow.close()
    await eventually(is_left_out, "it is dead")
