"""The live page of a real service: of several workers, and at its stop."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from tests.fake_backend import FakeBackend, chat, say, stall
from tests.test_page_feed import looking
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
