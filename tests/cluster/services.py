"""A service of each kind of cluster, for the suite that all must pass: this process as one member, and others that are
given what to do."""

from __future__ import annotations

import asyncio
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.alone import Alone
from cluster.protocol import Cluster
from cluster.valkey import Replicas
from cluster.workers import Workers
from core.config import ClusterConfig
from tests.cluster.evaluation import evaluate
from tests.cluster.in_process import InProcess, Shared

ROOT = Path(__file__).parents[2]


class Member(ABC):
    """Another process of the service, as one that does what it is given as code: `cluster` is its own."""

    @abstractmethod
    async def run(self, code: str) -> Any:
        """What the code gives there, as JSON has it."""

    @abstractmethod
    async def kill(self) -> None:
        """It dies as it stands."""

    @abstractmethod
    async def leave(self) -> None:
        """It closes its cluster, and ends."""


class Service(ABC):
    """The processes of a service. `here` is a new cluster of this process, not open yet."""

    @abstractmethod
    def here(self) -> Cluster: ...


class Several(Service):
    """One that may have others."""

    @abstractmethod
    def other(self) -> AbstractAsyncContextManager[Member]:
        """Another process, that has joined; killed at the end if it still runs."""


class AloneService(Service):
    def here(self) -> Cluster:
        return Alone()


class ProcessService(Several):
    """Each member is a process of its own, which runs tests/cluster/member.py with `where` it finds the others."""

    where: str

    @asynccontextmanager
    async def other(self) -> AsyncIterator[ProcessMember]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.cluster.member", self.where),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        member = ProcessMember(process)
        try:
            await member.answer()
            yield member
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


class WorkersService(ProcessService):
    """Workers that share `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)
        Workers.prepare(folder)

    def here(self) -> Workers:
        return Workers(self.folder)


# Long enough for a process that a busy machine lets stand still, and short enough to wait for.
LEASE_S = 1.5


def replica(url: str) -> Replicas:
    """A process that shares a Valkey with others."""
    return Replicas(ClusterConfig(url=url), Alone(), lease_s=LEASE_S)


class ReplicasService(ProcessService):
    """Replicas that share a Valkey."""

    def __init__(self, url: str) -> None:
        self.where = url

    def here(self) -> Replicas:
        return replica(self.where)


class ProcessMember(Member):
    """Of a process that runs tests/cluster/member.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, code: str) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(code).encode() + b"\n")
        return await self.answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def answer(self) -> Any:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        assert line, "the other process has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def leave(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert await self._process.wait() == 0


class InProcessService(Several):
    """All members in this process: what the tests of the pool use. It keeps the same laws."""

    def __init__(self) -> None:
        self.shared = Shared()

    def here(self) -> InProcess:
        return InProcess(self.shared)

    @asynccontextmanager
    async def other(self) -> AsyncIterator[Member]:
        member = InProcessMember(self.here())
        await member.run("await cluster.open()")
        yield member
        await member.kill()


class InProcessMember(Member):
    def __init__(self, cluster: InProcess) -> None:
        self._names = {"cluster": cluster}
        self._cluster = cluster

    async def run(self, code: str) -> Any:
        return json.loads(json.dumps(await evaluate(code, self._names)))

    async def kill(self) -> None:
        self._cluster.die()

    async def leave(self) -> None:
        await self._cluster.close()
