"""The lines of docs/clients.md for clients that have an environment of their own: each runs as it stands, against the
router. `make clients` installs them; those that need nothing else run in tests/test_snippets.py."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.clients.test_sdk_clients import HERE, NODE_MODULES
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat
from tests.snippets import ROUTER, Snippet, models, snippets
from tests.test_snippets import place

PYTHON = HERE / "python" / ".venv" / "bin" / "python"
TIMEOUT_S = 50


@pytest.fixture
async def served(stack: AsyncExitStack, backend: FakeBackend) -> Running:
    backend.models = sorted({name for snippet in snippets("python", "js") for name in models(snippet)})
    backend.default = chat("Hello there.")
    return await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]))


async def printed(*command: str | Path, at: Path) -> str:
    """What a program prints that ends well, in a folder."""
    environment = {**os.environ, "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=at,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is not there: `make clients` installs it")
@pytest.mark.parametrize("snippet", [one for one in snippets("python") if "ollama" not in one.text], ids=place)
async def test_python_runs_as_it_stands(snippet: Snippet, served: Running, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(snippet.text.replace(ROUTER, served.url))
    assert await printed(PYTHON, "snippet.py", at=tmp_path)


@pytest.mark.skipif(not NODE_MODULES.exists(), reason=f"{NODE_MODULES} is not there: `make clients` installs it")
@pytest.mark.parametrize("snippet", snippets("js"), ids=place)
async def test_javascript_runs_as_it_stands(snippet: Snippet, served: Running, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "snippet.mjs").write_text(snippet.text.replace(ROUTER, served.url))
    node = shutil.which("node")
    assert node is not None
    assert await printed(node, "snippet.mjs", at=tmp_path) == "Hello there.\n"
