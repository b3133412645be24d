"""Shared fixtures. The application under test is `router.app`, with settings of the tests' own: set before it is imported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

_settings = Path(tempfile.mkdtemp(prefix="nomyo-tests-"))
(_settings / "config.yaml").write_text(
    f"""
endpoints: [{{url: "http://127.0.0.1:9", kind: ollama}}]
database: {{url: "sqlite:///{_settings}/router.db"}}
background: {{drain_s: 0.2}}
"""
)
for name in [name for name in os.environ if name.startswith("ROUTER_")]:
    del os.environ[name]
os.environ["ROUTER_CONFIG"] = str(_settings / "config.yaml")

import router  # noqa: E402


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """An in-process client of `router.app`, its lifespan entered (httpx's ASGITransport runs none)."""
    async with router.app.router.lifespan_context(router.app):
        transport = httpx2.ASGITransport(app=router.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://router") as client:
            yield client
