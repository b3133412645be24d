"""What the tests have in common that every cluster must pass: which clusters there are, and when one sees what others
do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.protocol import Cluster
from tests.cluster.services import (
    Service,
)
from tests.turns import eventually


def services(*, with_others: bool) -> list[str]:
    several = ["workers", "replicas", "in process"]
    return several if with_others else ["alone", *several]


every = pytest.mark.parametrize("service", services(with_others=False), indirect=True)
with_others = pytest.mark.parametrize("service", services(with_others=True), indirect=True)


@asynccontextmanager
async def opened(service: Service) -> AsyncIterator[Cluster]:
    cluster = service.here()
    await cluster.open()
    yield cluster
    await cluster.close()


async def holds(cluster: Cluster, condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str) -> None:
    """At once where one look is enough to see what others do, soon where there is a network between them."""
    if not cluster.is_exact:
        await eventually(condition, what)
        return
    held = condition()
    assert await held if isinstance(held, Awaitable) else held, what
