"""What a request leaves behind is freed with it. Objects that refer to each other in a cycle would wait for the garbage
collector, which then looks at all that there is: it was a twentieth of a plain request."""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest

from tests.conftest import Running
from tests.fake_backend import FakeBackend, chat
from tests.turns import turn

OURS = ("api.", "backends.", "requests.", "db", "uvicorn.")
CHAT = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "JSON": ("/v1/responses", turn(store=False)),
    "a stream": ("/v1/responses", turn(store=False, stream=True)),
    "stored": ("/v1/responses", turn()),
    "chat": ("/v1/chat/completions", CHAT),
    "a chat stream": ("/v1/chat/completions", CHAT | {"stream": True}),
}


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_a_request_leaves_no_cycle(path: str, body: Any, served: Running, backend: FakeBackend) -> None:
    backend.default = chat("Hello there, and more than one word of it.", delay_s=0.001)
    for _ in range(3):  # The first ones make what stays.
        assert (await served.http.post(path, json=body)).status_code == 200
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            await served.http.post(path, json=body)
        gc.collect()
        kinds = Counter(f"{type(thing).__module__}.{type(thing).__name__}" for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    left = {kind: count for kind, count in kinds.items() if kind.startswith(OURS)}
    assert not left, f"these referred to each other in a cycle: {left}"
