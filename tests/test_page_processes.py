"""The live page of a real service: of several workers, and at its stop."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from tests.engines.postgres import PostgresServer
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import FakeBackend, chat, say, stall
from tests.keyed import ADMIN
from tests.test_page_feed import looking
from tests.test_page_session import SESSION
from tests.test_replica_processes import Fleet
from tests.test_restart import router_process
from tests.turns import URL, create, soon, turn

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_page_shows_all_workers_and_keeps_no_stop_up(
    workers: int, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.script(chat("Half a", then=stall()))
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu", "max_concurrent": 100}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "background": {"drain_s": 0.3},
        "workers": workers,
    }
    async with AsyncExitStack() as stack:
        http, process = await stack.enter_async_context(router_process(settings, tmp_path, "serve.py"))
        frames = await stack.enter_async_context(looking(http))
        now = await frames.until(lambda now: now["processes"] == workers)
        assert not now["running"]
        await http.post(URL, json=turn(background=True))
        await frames.until(lambda now: now["background"]["running"] == 1 and now["running_total"] == 1)
        backend.default = say("Hello.")
        for _ in range(6):  # Of whichever worker takes the connection.
            async with httpx2.AsyncClient(base_url=http.base_url, headers=http.headers, verify=False) as other:
                await create(other)
        await frames.until(lambda _: len(frames.turns) == 6)
        assert len({row["id"] for row in frames.turns}) == 6
        process.send_signal(signal.SIGTERM)
        await frames.end()
        async with soon():
            assert await process.wait() in (0, -signal.SIGTERM)


async def test_replicas_show_one_another_and_take_one_anothers_sessions(
    backend: FakeBackend, own_valkey: ValkeyServer, postgres: PostgresServer, tmp_path: Path
) -> None:
    backend.script(chat("Half a", then=stall()))
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "gpu"}
    settings = {
        "endpoints": [endpoint],
        "api_key": ADMIN,
        "database": {"url": postgres.new_database()},
        "cluster": {"url": own_valkey.url},
        "background": {"drain_s": 0.3},
    }
    fleet = Fleet(tmp_path, settings)
    async with AsyncExitStack() as stack:
        one, other = [await fleet.start(stack) for _ in range(2)]
        here = {"Origin": str(one.http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        answer = await one.http.post(SESSION, json={"key": ADMIN}, headers=here)
        cookie = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
        one.http.cookies.clear()
        made = (await one.http.post(URL, json=turn(background=True), headers={**here, **cookie})).json()
        frames = await stack.enter_async_context(looking(other.http, **cookie))
        await frames.until(lambda now: now["processes"] == 2 and now["running_total"] == 1)
        there = {"Origin": str(other.http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin", **cookie}
        answer = await other.http.post(f"/api/page/responses/{made['id']}/cancel", headers=there)
        assert answer.json() == {"id": made["id"], "status": "cancelled"}
        await frames.until(lambda _: [row["status"] for row in frames.turns] == ["cancelled"])
        assert frames.turns[0]["id"] == made["id"]
