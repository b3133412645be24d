"""The router as a process of its own, killed in the middle of its work, and started again on the same file."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.fake_backend import FakeBackend, chat, stall
from tests.stream_grammar import check_stream
from tests.turns import SOON_S, URL, create, eventually, has_status, open_stream, rejoin, retrieve, text_of

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def settings(backend: FakeBackend, tmp_path: Path) -> dict[str, Any]:
    return {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "background": {"max_concurrent": 1},
    }


@asynccontextmanager
async def router_process(
    settings: dict[str, Any], folder: Path, *start: str, up: int = 1
) -> AsyncIterator[tuple[httpx2.AsyncClient, asyncio.subprocess.Process]]:
    """`uvicorn router:app`, or what else shall `start`, answering and with so many endpoints `up`; killed at the end
    if it still runs."""
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [sys.executable, *(start or ("-m", "uvicorn", "router:app")), "--port", str(port), "--log-level", "error"]
    environment = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml")}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as http:

            async def is_up() -> bool:
                assert process.returncode is None, f"the router ended with {process.returncode}"
                try:
                    return (await http.get("/health")).json()["endpoints"]["up"] == up
                except httpx2.TransportError:
                    await asyncio.sleep(0.02)
                    return False

            await eventually(is_up, "the router answers")
            yield http, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_what_was_running_when_the_process_was_killed_reads_failed(backend, settings, tmp_path):
    backend.script(chat("This one is whole."))
    backend.default = chat("Half a", then=stall())
    async with router_process(settings, tmp_path) as (http, process):
        whole = await create(http)
        async with open_stream(http) as streamed, open_stream(http, background=True) as background:
            for events in (streamed, background):
                await events.until("response.output_text.delta")
            queued = await create(http, background=True)
            ids = [events.seen[0]["response"]["id"] for events in (streamed, background)] + [queued["id"]]
            for response_id, status in zip(ids, ("in_progress", "in_progress", "queued"), strict=True):
                assert (await retrieve(http, response_id))["status"] == status
            process.send_signal(signal.SIGKILL)
            await process.wait()
    await backend.wait_for(lambda b: b.in_flight == 0)
    turns = len(backend.turns)

    async with router_process(settings, tmp_path) as (http, process):
        # Nobody had begun it.
        assert (await has_status(http, ids.pop(), "in_progress"))["id"] == queued["id"]
        for response_id in ids:
            response = await retrieve(http, response_id)
            assert response["status"] == "failed"
            assert response["error"]["code"] == "server_error"
            assert "stopped" in response["error"]["message"]
            check_stream(await rejoin(http, response_id))
        assert text_of(await retrieve(http, whole["id"])) == "This one is whole."
        await backend.wait_for(lambda b: len(b.turns) == turns + 1)
        backend.script(chat("Still here."))
        assert text_of(await create(http, previous_response_id=whole["id"])) == "Still here."
        assert len(backend.turns) == turns + 2, "the killed turns were begun again"
        assert (await http.post(f"{URL}/{queued['id']}/cancel")).json()["status"] == "cancelled"

        process.terminate()
        assert await asyncio.wait_for(process.wait(), SOON_S) in (0, -signal.SIGTERM), (
            "it did not stop when it was asked to"
        )
