"""Every cluster that there is, for the tests that all of them must pass (suite.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.protocol import Cluster
from tests.cluster.services import (
    AloneService,
    InProcessService,
    ReplicasService,
    Service,
    WorkersService,
)
from tests.cluster.suite import opened


@pytest.fixture
def service(request: pytest.FixtureRequest, short_path: Path) -> Service:
    made = {
        "alone": AloneService,
        "workers": lambda: WorkersService(short_path),
        "replicas": lambda: ReplicasService(request.getfixturevalue("valkey").url),
        "in process": InProcessService,
    }
    return made[request.param]()


@pytest.fixture
async def cluster(service: Service) -> AsyncIterator[Cluster]:
    """This process in the service, the first that joins it."""
    async with opened(service) as cluster:
        yield cluster
