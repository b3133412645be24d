"""A second start by mistake, on a port that is taken, does no harm to the router that has it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import yaml

from db import make_store
from tests.turns import SOON_S

ROOT = Path(__file__).parents[1]


async def test_a_start_on_a_taken_port_leaves_the_turns_alone_that_run_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/router.db"
    store = make_store(url)
    await store.open()
    await store.store_response(
        "resp_1", previous_response_id=None, model="m", status="in_progress", created_at=1, input_messages=[]
    )
    settings = {"endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat"}], "database": {"url": url}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "serve.py", "--port", str(taken.getsockname()[1])),
            cwd=ROOT,
            env={**os.environ, "ROUTER_CONFIG": str(tmp_path / "config.yaml")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), SOON_S)
    stored = await store.get_response("resp_1")
    await store.close()
    assert process.returncode, output.decode()
    assert "in use" in output.decode()
    assert stored is not None
    assert stored["status"] == "in_progress"
