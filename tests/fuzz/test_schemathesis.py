"""schemathesis against a router that runs: what the OpenAPI document describes is asked for in every way that it can
think of, and no answer is a fault of the router's. It runs in an environment of its own (`make fuzz`)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import running_router
from tests.fuzz.test_fuzzed_bodies import backends_for
from tests.turns import eventually

HERE = Path(__file__).parent
PROGRAM = HERE / ".venv" / "bin" / "schemathesis"
EXAMPLES = 200

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PROGRAM.exists(), reason="schemathesis is not installed: make fuzz"),
]


@pytest.mark.parametrize("api_key", ["", "secret"])
async def test_what_the_document_describes_is_answered_honestly(api_key: str, stack: AsyncExitStack) -> None:
    _, endpoints = await backends_for(stack)
    async with running_router(endpoints=endpoints, api_key=api_key) as running:
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, "run", f"{running.url}/openapi.json", "--checks", "answers_honestly", "--seed", "2026"),
            *("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing", "--request-timeout", "30"),
            *("--suppress-health-check", "all", "--continue-on-failure", "--no-color", "--warnings", "off"),
            *(("--header", f"Authorization: Bearer {api_key}") if api_key else ()),
            cwd=HERE,
            env={"SCHEMATHESIS_HOOKS": "hooks", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(HERE), "NO_PROXY": "*"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        text = output.decode(errors="replace")
        print(text[-3000:])
        assert process.returncode == 0, text[-5000:]
        assert "answers_honestly" in text or "No issues found" in text, text[-3000:]
        await eventually(lambda: running.in_flight() == 0, "no slot is taken")
