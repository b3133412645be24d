"""What a dead process was working on: the process that inherits it marks it as failed, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import router
from core.config_checks import parse_config
from tests.cluster.in_process import InProcess, Shared
from tests.conftest import Running
from tests.fake_backend import FakeBackend, stall
from tests.turns import create, eventually, has_status, retrieve


@asynccontextmanager
async def process(settings: dict[str, Any], cluster: InProcess) -> AsyncIterator[Running]:
    """A router of a service, and a client that reaches no other."""
    app = router.create_app(parse_config(settings), cluster=cluster)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://router") as http,
    ):
        yield Running(app, "", http, None)


@pytest.fixture
def settings(backend: FakeBackend, tmp_path: Path) -> dict[str, Any]:
    backend.default = stall()
    return {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "background": {"drain_s": 0},
    }


async def test_the_heir_of_a_dead_process_fails_what_that_one_ran_also_where_the_store_fails_at_first(
    settings: dict[str, Any], backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(router, "ORPHANS_AGAIN_S", 0.01)
    shared = Shared()
    lives, doomed, heir = InProcess(shared), InProcess(shared), InProcess(shared)
    async with process(settings, lives) as here, process(settings, doomed) as there:
        kept = (await create(here.http, background=True))["id"]
        lost = (await create(there.http, background=True))["id"]
        await backend.wait_for(lambda b: b.in_flight == 2)
        doomed.die()
        tries = 0
        store_type = type(here.app.state.db)
        unfinished = store_type.unfinished

        async def fails_twice(store: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise OSError("disk I/O error")
            return await unfinished(store)

        monkeypatch.setattr(store_type, "unfinished", fails_twice)
        async with process(settings, heir):
            await has_status(here.http, lost, "failed")
            assert (await retrieve(here.http, kept))["status"] == "in_progress"
            await eventually(lambda: tries == 3, "it is done once")
        assert sum("could not be marked as failed" in record.getMessage() for record in caplog.records) == 2
