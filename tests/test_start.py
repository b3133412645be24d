"""The start: what only some requests need is not imported before one of them comes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What costs memory or time, and what it is for.
HEAVY = {
    "cryptography": "sealing",
    "jsonschema_rs": "checking answers against a schema",
    "httpx": "tests",
    "httpx2": "HTTP out: images, peers",
    "openai": "tests",
    "psycopg": "the extra postgres",
    "hiredis": "the extra valkey",
    "mcp": "the extra tools",
    "jsonschema": "the extra tools",
    "opentelemetry.sdk": "the extra otel",
    "grpc": "the extra otel",
    "prometheus_client": "the first /metrics",
    "python_multipart": "mcp's servers, of which we run none",
}

# Starts the router, stops it, and prints each heavy module that was imported, with the files that led to it.
START = """
import asyncio, json, sys, traceback

imported = {}

class Watch:
    def find_spec(name, path=None, target=None):
        if name in sys.argv[1:]:
            files = [frame.filename for frame in traceback.extract_stack()]
            imported.setdefault(name, [file for file in files if not file.startswith("<")])

sys.meta_path.insert(0, Watch)

import router

async def start():
    async with router.app.router.lifespan_context(router.app):
        pass

asyncio.run(start())
print(json.dumps({name: imported.get(name, []) for name in sys.argv[1:] if name in sys.modules}))
"""


def test_a_router_starts_without_what_few_requests_need(tmp_path: Path) -> None:
    settings = {
        "endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    environment = {"ROUTER_CONFIG": str(tmp_path / "config.yaml")}
    started = subprocess.run(
        [sys.executable, "-c", START, *HEAVY], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30
    )
    assert started.returncode == 0, started.stderr
    found = {
        name: [str(Path(file).relative_to(ROOT)) for file in files if "site-packages" not in file and str(ROOT) in file]
        for name, files in json.loads(started.stdout).items()
    }
    said = [f"{name}, for {HEAVY[name]}, by {' > '.join(files)}" for name, files in found.items()]
    assert not found, f"imported at the start: {'; '.join(said)}"
