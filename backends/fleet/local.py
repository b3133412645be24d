"""The model servers of this machine, for a router whose settings name none: 127.0.0.1 is asked, at the usual ports.

look() ──▶ found   an `EndpointConfig` for each server that has answered
           tried   what came of each port
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from backends.fleet.advice import MACHINE_OF_CONTAINER, is_in_container, is_strange
from backends.kinds import discover, kind_of, recognise
from backends.wire.client import BackendClient
from core.config import EndpointConfig
from core.errors import APIError, BackendRefused, BackendTimeout, BackendUnreachable
from core.hops import RouterLoop

log = logging.getLogger("nomyo.backends")

# Where each listens unless it is asked not to.
USUAL_PORTS = {
    11434: "Ollama",
    1234: "LM Studio",
    8080: "llama.cpp, llama-swap",
    9292: "llama-swap",
    8000: "vLLM",
}
HOST = "127.0.0.1"
ASK_TIMEOUT_S = 2.0
# How often all are asked again while none answers; and who answers as no model server does, such as somebody's web
# site in the making, whose log would fill.
LOOK_AGAIN_S = 2.0
ASK_OTHERS_AGAIN_S = 60.0
START_ONE = "start one (`ollama serve`), or name yours as `endpoints` in config.yaml"
IN_CONTAINER = (
    f". In a container that address is the container itself; where its machine has an Ollama: "
    f"OLLAMA_URL=http://{MACHINE_OF_CONTAINER}:11434"
)


@dataclass(frozen=True, slots=True)
class Tried:
    """A port that was asked: whose it usually is, the kind of server that answers there, and else what is wrong with
    whoever does; neither where nobody does."""

    port: int
    usual: str
    kind: str | None = None
    problem: str = ""

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://{HOST}:{self.port}"

    def describe(self) -> dict[str, str | int | None]:
        """As JSON has it."""
        return {"port": self.port, "usual": self.usual, "kind": self.kind, "problem": self.problem or None}


class LocalServers:
    """Which there are, as far as `look` has seen. `router_id` is this router's own, which is never found."""

    def __init__(self, router_id: str) -> None:
        self._router_id = router_id
        self._not_before: dict[int, float] = {}
        self._warned = False
        self.tried: list[Tried] = [Tried(port, usual) for port, usual in USUAL_PORTS.items()]
        self.found: tuple[EndpointConfig, ...] = ()

    async def look(self) -> list[EndpointConfig]:
        """Asks all ports at once. Gives the servers that were not `found` before."""
        self.tried = list(await asyncio.gather(*map(self._ask, self.tried)))
        new = [one for one in self.tried if one.kind and EndpointConfig(url=one.url) not in self.found]
        for one in new:
            log.info("found at port %d of this machine: a server of the kind %s", one.port, one.kind)
        added = [EndpointConfig(url=one.url) for one in new]
        self.found += tuple(added)
        if not self.found and not self._warned:
            log.warning("%s; looking again until one answers", self.reason())
            self._warned = True
        return added

    def reason(self) -> str:
        """Why there are no endpoints, and what to do."""
        ports = ", ".join(f"{tried.port} ({tried.usual})" for tried in self.tried)
        problems = "".join(f"; at {tried.port} {tried.problem}" for tried in self.tried if tried.problem)
        more = IN_CONTAINER if is_in_container() else ""
        return f"No model server answers at the usual ports of {HOST}: {ports}{problems}; {START_ONE}{more}"

    async def _ask(self, before: Tried) -> Tried:
        """What answers at a port; who was no model server is left alone for a while."""
        port, usual = before.port, before.usual
        if time.monotonic() < self._not_before.get(port, 0):
            return before
        config = EndpointConfig(url=before.url)
        client = BackendClient(config.url, config.url, connect_timeout_s=ASK_TIMEOUT_S, router_id=self._router_id)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                kind = kind_of(config, await recognise(lambda path: client.get_json(path, ASK_TIMEOUT_S), config.url))
                # Whoever answers everything with some JSON lists no models.
                below = kind.addresses(config.url)[0].removeprefix(config.url)
                await discover(kind, lambda path: client.get_json(below + path, ASK_TIMEOUT_S))
        except (APIError, TimeoutError) as error:
            problem, may_change = _problem(error)
        else:
            if not kind.is_router:
                return Tried(port, usual, kind.name)
            problem, may_change = "another router answers", False
        finally:
            await client.close()
        if not may_change:
            self._not_before[port] = time.monotonic() + ASK_OTHERS_AGAIN_S
        return Tried(port, usual, problem=problem)


def _problem(error: Exception) -> tuple[str, bool]:
    """What is wrong with whoever answered, empty where nobody did; and whether that may change soon, as of a server
    that starts."""
    if isinstance(error, BackendUnreachable):
        return "", True
    if not isinstance(error, APIError) or isinstance(error, BackendTimeout):
        return f"whoever listens gives no answer in {ASK_TIMEOUT_S:g} s", True
    if error.code == RouterLoop.code:
        return "this router answers", False
    if error.code == "backend_authentication_failed":
        return "a server asks for a key: name it in config.yaml, with its `api_key`", False
    if is_strange(error) or isinstance(error, BackendRefused):
        return "what answers is no model server", False
    return error.message.rstrip("."), True
