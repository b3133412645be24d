"""What the gateways are asked: the columns of `make bench`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.agent import agent_request, encoded

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
# The mock backend answers by these words.
BRIEFLY, HELLO, SLOWLY = "Say hello briefly.", "Say hello.", "Say hello slowly."


@dataclass(frozen=True)
class Scenario:
    """Requests of one sort: so many, from so many clients at once. An empty `prompt` is an agent's turn."""

    name: str
    stream: bool
    prompt: str
    clients: int
    requests: int
    store: bool = False
    turn: int = 1
    """Which one of its chain each request is; those before it are asked once, ahead."""

    @property
    def expected(self) -> str:
        """What every answer must hold: a 200 may be an error in a stream."""
        return "Hello there." if self.prompt == BRIEFLY else "token63"

    @property
    def token(self) -> str:
        """The first of a stream's."""
        return "token0" if self.stream else ""

    def body(self, path: str, model: str, previous: str | None = None) -> bytes:
        """The request, as JSON; `previous` is the id of the response that it follows."""
        if not self.prompt:
            return encoded(agent_request(path, model))
        asked: dict[str, Any] = {"model": model, "stream": self.stream}
        if path == CHAT:
            return encoded(asked | {"messages": [{"role": "user", "content": self.prompt}]})
        chained = {} if previous is None else {"previous_response_id": previous}
        return encoded(asked | {"input": self.prompt, "store": self.store, **chained})

    def warming_up(self) -> Scenario:
        """The same in small."""
        return replace(self, clients=min(self.clients, 32), requests=self.requests // 5)


PLAIN = Scenario("plain, 32 at once", False, BRIEFLY, 32, 8000)
BURST = Scenario("burst, 32 at once", True, HELLO, 32, 6000)
TRICKLE = Scenario("trickle, 200 at once", True, SLOWLY, 200, 600)
PLAIN_ALONE = Scenario("plain, one client", False, BRIEFLY, 1, 1000)
BURST_ALONE = Scenario("burst, one client", True, HELLO, 1, 1000)
STORED = Scenario("plain, stored", False, BRIEFLY, 32, 2000, store=True)
AGENT = Scenario("an agent's turn, 4 at once", True, "", 4, 400)
CHAINED = Scenario("300th turn of a chain, 4 at once", False, BRIEFLY, 4, 400, store=True, turn=300)
SCENARIOS = (PLAIN, BURST, TRICKLE, PLAIN_ALONE, BURST_ALONE, STORED, AGENT, CHAINED)
