"""Two real llama.cpp servers with models of different names: requests land where the model is, and one server may
die."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import openai
import pytest
import pytest_asyncio

from demo.model_server import address_of, starting_model_server
from demo.processes import Child
from tests.conftest import Running, running_router
from tests.sdk import collected
from tests.turns import eventually

pytestmark = [pytest.mark.heavy, pytest.mark.live, pytest.mark.asyncio(loop_scope="module")]

FIRST, SECOND = "smollm2-first", "smollm2-second"
COOLDOWN_S = 0.5


@dataclass
class Fleet:
    router: Running
    servers: dict[str, Child]

    async def ask(self, model: str) -> str:
        """The endpoint that answered."""
        answer = await self.router.openai.responses.with_raw_response.create(
            model=model, input="Say hello.", max_output_tokens=8
        )
        return answer.headers["x-nomyo-endpoint"]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Child]]:
    with starting_model_server(name=FIRST) as first, starting_model_server(name=SECOND) as second:
        for child in (first, second):
            child.wait_until(lambda child=child: address_of(child), 60)
        yield {"a": first, "b": second}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(servers: dict[str, Child]) -> AsyncIterator[Fleet]:
    endpoints = [{"url": address_of(child), "name": name, "kind": "auto"} for name, child in servers.items()]
    async with running_router(
        endpoints=endpoints, models_refresh_s=1, fallback_models={FIRST: [SECOND]}, breaker={"cooldown_s": COOLDOWN_S}
    ) as router:
        pool = router.app.state.pool
        await eventually(lambda: {FIRST, SECOND} <= pool.endpoints.models().keys(), "both are known")
        yield Fleet(router, servers)


async def test_both_are_known_for_what_they_are(fleet: Fleet) -> None:
    listed = (await fleet.router.http.get("/api/endpoints")).json()["endpoints"]
    assert [endpoint["kind"] for endpoint in listed] == ["llama.cpp", "llama.cpp"]
    assert [endpoint["max_concurrent"] for endpoint in listed] == [2, 2], "what /props says of their slots"
    assert {model["context"] for endpoint in listed for model in endpoint["models"]} == {8192}


async def test_requests_land_where_the_model_is(fleet: Fleet) -> None:
    asked = [FIRST, SECOND] * 4

    async def all_do() -> bool:
        return await asyncio.gather(*map(fleet.ask, asked)) == ["a", "b"] * 4

    # A request whose kept connection the server closes in that very moment goes to the fallback, and those behind it
    # do for as long as the breaker is open.
    for _ in range(10):
        if await all_do():
            return
        await asyncio.sleep(COOLDOWN_S)
    pytest.fail("requests go elsewhere, again and again")


async def test_other_doors_lead_there_too(fleet: Fleet) -> None:
    for model, endpoint in ((FIRST, "a"), (SECOND, "b")):
        answer = await fleet.router.openai.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "Say hello."}], max_completion_tokens=8
        )
        assert answer.headers["x-nomyo-endpoint"] == endpoint
        assert answer.parse().choices[0].message.content


async def test_one_is_killed_in_mid_stream(fleet: Fleet) -> None:
    """The last test: what it kills stays dead. The stream fails honestly, and the model's fallback takes over."""
    stream = await fleet.router.openai.responses.create(
        model=FIRST,
        input="Tell me a long story.",
        max_output_tokens=2000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    events = aiter(stream)
    while (await anext(events)).type != "response.output_text.delta":
        pass
    os.kill(fleet.servers["a"].process.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="backend"):
        await collected(stream)
    assert [await fleet.ask(FIRST) for _ in range(5)] == ["b"] * 5
    pool = fleet.router.app.state.pool
    await eventually(lambda: not pool.endpoints[address_of(fleet.servers["a"])].healthy, "it is seen to be down")
    assert fleet.router.in_flight() == 0
