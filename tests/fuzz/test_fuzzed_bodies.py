"""20,000 bodies that nobody would send on purpose, at every front door of a router that runs: each is answered, none
by a fault of the router's own, and nothing of them is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import running_router
from tests.fake_backend import FakeBackend, Reply, http_error, json_answer, say
from tests.fuzz.bodies import MODELS, Fuzzed, fuzzed
from tests.test_restart import router_process
from tests.turns import eventually

pytestmark = [pytest.mark.timeout(1800)]

FEW, MANY = 400, 20_000
AT_ONCE = 16
# Until then all that is made once has been made.
WARM = MANY // 4
FLAT_MB = 40.0
# A backend's fault; and what of Ollama's API is not to be had here.
HONEST = {502, 503, 504}
NOT_IMPLEMENTED = "/api/"
PATIENCE_S = 60.0
# Of the front doors that pass on what comes.
USAGE = {"prompt_tokens": 1, "total_tokens": 1}
DONE: dict[str, Any] = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop"}
OTHER_ANSWERS: dict[str, Any] = {
    "/v1/embeddings": {"object": "list", "data": [{"index": 0, "embedding": [0.1, 0.2]}], "usage": USAGE},
    "/v1/completions": {"object": "text_completion", "choices": [{"index": 0, "text": "x"}], "usage": USAGE},
    "/v1/rerank": {"results": [{"index": 0, "relevance_score": 0.5}], "usage": USAGE},
    "/api/chat": DONE | {"message": {"role": "assistant", "content": "Hi"}},
    "/api/generate": DONE | {"response": "Hi"},
    "/api/embed": {"model": "m", "embeddings": [[0.1, 0.2]], "prompt_eval_count": 1},
    "/api/embeddings": {"embedding": [0.1, 0.2]},
    "/api/show": {"capabilities": ["completion", "tools"], "model_info": {}},
}


async def as_a_server_would(reply: Reply) -> None:
    """An answer; a 400 to what cannot be read, for some front doors pass on all that comes."""
    try:
        body = json.loads(reply.request.body.decode())
        counts = bool((body.get("stream_options") or {}).get("include_usage"))
        streams = body.get("stream") is True
    except (ValueError, AttributeError, RecursionError):
        await http_error(400, "That cannot be read.")(reply)
    else:
        # What our answers look at.
        reply.request.body = json.dumps({"stream": streams, "stream_options": {"include_usage": counts}}).encode()
        await say("Hello from the fake backend.")(reply)


async def answer_to(http: httpx2.AsyncClient, sent: Fuzzed) -> int:
    async with asyncio.timeout(PATIENCE_S):
        answer = await http.post(sent.path, content=sent.body, headers=sent.headers)
    status = int(answer.status_code)
    is_honest = status < 500 or status in HONEST or (status == 501 and sent.path.startswith(NOT_IMPLEMENTED))
    assert is_honest, f"{status} {answer.text[:500]}\n{sent.path} {sent.headers}\n{sent.body[:3000]!r}"
    if status >= 400:
        error = answer.json()["error"]
        assert isinstance(error, str) or error["message"], answer.text
    elif "event: error" in answer.text:
        assert "The router failed" not in answer.text, f"{sent.path}\n{sent.body[:3000]!r}"
    return status


async def send_all(http: httpx2.AsyncClient, left: Iterator[Fuzzed], backends: list[FakeBackend]) -> Counter[int]:
    statuses = Counter[int]()

    async def one_after_another() -> None:
        for sent in left:
            statuses[await answer_to(http, sent)] += 1
            for backend in backends:
                if len(backend.requests) > 1000:
                    backend.requests[:] = [request for request in backend.requests if request.outcome == "open"]

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_another())
    return statuses


async def backends_for(stack: Any) -> tuple[list[FakeBackend], list[dict[str, Any]]]:
    backends = [await stack.enter_async_context(FakeBackend()) for _ in MODELS]
    endpoints = []
    for backend, model, kind in zip(backends, MODELS, ("openai-chat", "openai", "ollama"), strict=True):
        backend.routes |= {f"POST {path}": json_answer(body) for path, body in OTHER_ANSWERS.items()}
        backend.models, backend.default = [model], as_a_server_would
        endpoints.append({"url": f"{backend.url}/v1", "kind": kind, "max_concurrent": 100})
    return backends, endpoints


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_few_bodies_that_nobody_would_send_are_answered(seed: int, stack: Any) -> None:
    backends, endpoints = await backends_for(stack)
    dice = random.Random(seed)
    async with running_router(endpoints=endpoints) as running:
        await send_all(running.http, iter([fuzzed(dice) for _ in range(FEW)]), backends)
        await eventually(lambda: running.in_flight() == 0, "no slot is taken")


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
async def test_20000_bodies_that_nobody_would_send_are_answered_and_leave_nothing(tmp_path: Path, stack: Any) -> None:
    backends, endpoints = await backends_for(stack)
    settings = {"endpoints": endpoints, "database": {"url": f"sqlite:///{tmp_path}/router.db"}}
    dice = random.Random(2026)
    async with router_process(settings, tmp_path, "serve.py", up=len(endpoints)) as (http, process):
        statuses = await send_all(http, (fuzzed(dice) for _ in range(WARM)), backends)
        warm_mb = resident_mb(process.pid)
        statuses += await send_all(http, (fuzzed(dice) for _ in range(MANY - WARM)), backends)
        grown_mb = resident_mb(process.pid) - warm_mb
        shown = (await http.get("/api/endpoints")).json()["endpoints"]
    print(f"{dict(statuses)}; {warm_mb:.0f} MB, and {grown_mb:+.1f} MB behind {MANY - WARM} more")
    assert statuses.total() == MANY
    assert statuses[200] > MANY // 10, f"hardly any came through: {statuses}"
    assert grown_mb < FLAT_MB, f"{grown_mb:.1f} MB more behind {MANY - WARM} bodies"
    assert [endpoint["in_flight"] for endpoint in shown] == [0] * len(MODELS)
