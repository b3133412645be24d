"""A router in front of a real llama.cpp server with a real, very small model. One server runs for all tests."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from demo.model_server import running_model_server
from tests.conftest import Running, running_router
from tests.sdk import strict_client
from tests.turns import eventually


@pytest.fixture(scope="session")
def model_server() -> Iterator[str]:
    """The URL of the model server."""
    with running_model_server() as url:
        yield url


@dataclass
class Live:
    """A router in front of the model server, clients of it, and a look behind it."""

    router: Running
    openai: AsyncOpenAI
    strict: AsyncOpenAI
    model_server: httpx2.AsyncClient

    async def busy_slots(self) -> int:
        """How many requests llama.cpp works on."""
        slots = (await self.model_server.get("/slots")).raise_for_status().json()
        return sum(slot["is_processing"] for slot in slots)

    async def wait_for_busy_slots(self, number: int) -> None:
        async def reached() -> bool:
            return await self.busy_slots() == number

        await eventually(reached, f"llama.cpp has {number} busy slots")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def live(model_server: str) -> AsyncIterator[Live]:
    async with (
        running_router(endpoints=[{"url": model_server, "kind": "llama.cpp"}]) as router,
        httpx2.AsyncClient(base_url=model_server, timeout=None) as behind,
    ):
        yield Live(router, router.openai, strict_client(router), behind)
