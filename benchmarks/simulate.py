"""Routing, simulated: the router's own chooser, line, breakers and affinity on a fake clock, against two simple ones.

    python -m benchmarks.simulate [--seeds 5]     prints the table of benchmarks/README.md

A fleet of endpoints serves conversations. Each endpoint keeps one model in memory and swaps it for seconds, reads a
prompt at its own speed unless it has read its beginning before (it remembers as many conversations as it has slots),
and writes at its own speed. Some endpoints fail for a while: they refuse at once, hang, or die with what they run. All
policies try a failed request at other endpoints, three times at most; only ours knows who fails. Ours without affinity
shows what affinity is worth.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, quantiles

from backends.fleet.breaker import Breaker
from backends.fleet.choice import Affinity, Candidate, choose
from backends.fleet.line import Effects, Line, Rejection
from cluster.alone import OwnLine

SWAP_S = 8.0
HANG_S = 30.0
TRIES = 4
# How long until the registry sees that an endpoint does not answer, or does again.
NOTICED_AFTER_S = 2.0


@dataclass(frozen=True)
class Outage:
    """From `start` to `end` an endpoint `refuses`, `hangs` or is `dead`: it refuses, and cuts what it ran."""

    kind: str
    start: float
    end: float


@dataclass
class Server:
    """One simulated endpoint. Speeds are in tokens a second."""

    name: str
    models: frozenset[str]
    slots: int
    reads: float
    writes: float
    outage: Outage | None = None
    loaded: str | None = None
    in_flight: int = 0
    free_from: float = 0.0
    warm: OrderedDict[int, None] = field(default_factory=OrderedDict)
    breaker: Breaker = field(default_factory=lambda: Breaker(3, 2.0, 60.0))

    def fails(self, now: float) -> str | None:
        return self.outage.kind if self.outage and self.outage.start <= now < self.outage.end else None

    def seems_healthy(self, now: float) -> bool:
        """What the registry knows, a little late. A server that only refuses requests still answers the registry."""
        outage = self.outage
        if outage is None or outage.kind == "refuses":
            return True
        return not outage.start + NOTICED_AFTER_S <= now < outage.end + NOTICED_AFTER_S


@dataclass(eq=False)
class Request:
    conversation: int
    model: str
    owner: str
    prompt: int
    answer: int
    turn: int
    arrived: float
    tried: set[str] = field(default_factory=set)


@dataclass
class Result:
    """What came of a run. Waits are seconds until a request's first token. `cut` are answers that broke off in the
    middle: no policy can prevent those."""

    waits: list[float] = field(default_factory=list)
    errors: int = 0
    cut: int = 0
    swaps: int = 0
    hits: int = 0
    could_hit: int = 0

    def row(self) -> tuple[float, float, float, float, float, float]:
        """p50 and p99 of the waits; errors, cut answers and swaps in a thousand requests; the share of warm prompts."""
        cuts = quantiles(self.waits, n=100)
        in_a_thousand = 1000 / (len(self.waits) + self.errors + self.cut)
        counts = self.errors * in_a_thousand, self.cut * in_a_thousand, self.swaps * in_a_thousand
        return cuts[49], cuts[98], *counts, self.hits / self.could_hit


Policy = Callable[[list[Server], Request, float], Server | None]


class Ours:
    """The router's choice. It `remembers` where so many conversations were."""

    def __init__(self, rng: random.Random, remembers: int = 10_000) -> None:
        self._rng = rng
        self._affinity = Affinity(max_entries=remembers, max_age_s=1800.0)

    def __call__(self, servers: list[Server], request: Request, now: float) -> Server | None:
        candidates = [
            Candidate(
                endpoint=server.name,
                model=request.model,
                in_flight=server.in_flight,
                max_concurrent=server.slots,
                loaded=server.loaded == request.model,
                healthy=server.seems_healthy(now),
                allowed=server.breaker.allows(now),
                probe=server.breaker.wants_probe(now),
            )
            for server in servers
        ]
        warm = self._affinity.get(str(request.conversation), now)
        chosen = choose(candidates, warm, self._rng)
        if chosen is None:
            return None
        server = next(server for server in servers if server.name == chosen.endpoint)
        server.breaker.begin(now)
        self._affinity.put(str(request.conversation), server.name, now)
        return server


def at_random(rng: random.Random) -> Policy:
    def policy(servers: list[Server], request: Request, now: float) -> Server | None:
        free = [server for server in servers if server.in_flight < server.slots]
        return rng.choice(free) if free else None

    return policy


def round_robin(rng: random.Random) -> Policy:
    turn = itertools.count()

    def policy(servers: list[Server], request: Request, now: float) -> Server | None:
        start = next(turn)
        in_turn = [servers[(start + place) % len(servers)] for place in range(len(servers))]
        return next((server for server in in_turn if server.in_flight < server.slots), None)

    return policy


POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    "ours": Ours,
    "ours, no affinity": partial(Ours, remembers=0),
    "random": at_random,
    "round robin": round_robin,
}


class Simulation(Effects[Request, Server]):
    """One run of a policy over a fleet and its requests. It is the world that the line acts upon."""

    def __init__(self, servers: list[Server], policy: Policy) -> None:
        self._servers = servers
        self._policy = policy
        self._line = Line(self, OwnLine())
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self.result = Result()

    def run(self, requests: list[Request]) -> Result:
        for request in requests:
            self._at(request.arrived, partial(self._arrive, request))
        while self._events:
            self._now, _, event = heapq.heappop(self._events)
            event(self._now)
        assert not len(self._line), "somebody still waits"
        assert not any(server.in_flight for server in self._servers), "a slot was lost"
        return self.result

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def _arrive(self, request: Request, now: float) -> None:
        if not self._able(request):
            self.result.errors += 1
        elif server := self.take(request):
            self.hand(request, server)
        else:
            self._line.arrive(request.owner, request, None if request.tried else request.model, now)

    def _able(self, request: Request) -> list[Server]:
        return [s for s in self._servers if request.model in s.models and s.name not in request.tried]

    def waits(self, wish: Request) -> bool:
        return True

    def take(self, wish: Request) -> Server | None:
        server = self._policy(self._able(wish), wish, self._now)
        if server is not None:
            server.in_flight += 1
        return server

    def reject(self, wish: Request, why: Rejection) -> None:
        raise AssertionError(f"nobody is rejected here: {why}")

    def hand(self, wish: Request, slot: Server) -> None:
        """The server begins with the request."""
        now, request, server = self._now, wish, slot
        failure = server.fails(now)
        if failure:
            after = HANG_S if failure == "hangs" else 0.001
            self._at(now + after, lambda at: self._failed(server, request, at))
            return
        begins = max(now, server.free_from) if server.loaded != request.model else now
        if server.loaded != request.model:
            # A swap stops the server: what runs ends later, what comes waits.
            begins += SWAP_S
            server.loaded, server.free_from = request.model, begins
            server.warm.clear()
            self.result.swaps += 1
        begins = max(begins, server.free_from)
        if request.turn:
            self.result.could_hit += 1
        if request.conversation in server.warm:
            self.result.hits += 1
            reads = 0.05
        else:
            reads = request.prompt / server.reads
        server.warm[request.conversation] = None
        server.warm.move_to_end(request.conversation)
        if len(server.warm) > server.slots:
            server.warm.popitem(last=False)
        first = begins + reads
        ends = first + request.answer / server.writes
        outage = server.outage
        if outage and outage.kind == "dead" and now < outage.start < ends:
            if outage.start <= first:
                self._at(outage.start, lambda at: self._failed(server, request, at))
            else:
                self._at(outage.start, lambda at: self._cut(server, at))
            return
        self._at(ends, lambda at: self._ended(server, request, first, at))

    def _ended(self, server: Server, request: Request, first: float, now: float) -> None:
        self.result.waits.append(first - request.arrived)
        server.breaker.success()
        self._release(server, now)

    def _cut(self, server: Server, now: float) -> None:
        """It had begun to answer: nobody can take that over, whatever the policy."""
        self.result.cut += 1
        self._count_failure(server, now)
        server.loaded = None
        self._release(server, now)

    def _failed(self, server: Server, request: Request, now: float) -> None:
        failure = server.fails(now)
        self._count_failure(server, now, hung=failure == "hangs")
        server.loaded = None if failure == "dead" else server.loaded
        request.tried.add(server.name)
        if len(request.tried) >= TRIES:
            self.result.errors += 1
        else:
            self._arrive(request, now)
        self._release(server, now)

    def _count_failure(self, server: Server, now: float, *, hung: bool = False) -> None:
        server.breaker.failure(now, hung=hung)
        if server.breaker.until is not None:
            self._at(server.breaker.until, lambda at: self._line.changed())

    def _release(self, server: Server, now: float) -> None:
        server.in_flight -= 1
        self._line.given_back(now)


# ── fleets and their work ────────────────────────────────────────────────────────────────────────────────────────────


def fleet(count: int, rng: random.Random, *, outages: bool) -> list[Server]:
    """Endpoints of different speeds and model sets; a fifth of them fails in the middle, one way or the other."""
    names = [f"model-{number}" for number in range(max(3, count // 4))]
    servers = []
    for number in range(count):
        has = frozenset({names[number % len(names)], *rng.sample(names, k=min(2, len(names)))})
        speed = rng.choice((0.5, 1.0, 2.0))
        servers.append(Server(f"server-{number}", has, rng.choice((2, 4)), 800 * speed, 40 * speed))
    if outages:
        first = rng.randrange(3)
        for number in range(max(1, count // 5)):
            kind = ("refuses", "hangs", "dead")[(first + number) % 3]
            servers[number].outage = Outage(kind, 200.0, 500.0)
    return servers


def work(servers: list[Server], rng: random.Random, *, seconds: float, load: float) -> list[Request]:
    """Conversations that keep the fleet as busy as `load`, about."""
    models = sorted(frozenset().union(*(server.models for server in servers)))
    answer, turns, pause = 200, 5, 20.0
    # A request takes a server of speed 1 about this long, warm or cold.
    cost = answer / 40 + 1.0
    capacity = sum(server.slots * server.writes / 40 for server in servers) / cost
    arrivals = load * capacity / turns
    requests, now, conversation = [], 0.0, 0
    while (now := now + rng.expovariate(arrivals)) < seconds:
        conversation += 1
        model, owner, at, prompt = rng.choice(models), f"key-{rng.randrange(5)}", now, rng.randrange(500, 4000)
        for turn in range(turns):
            length = max(20, int(rng.expovariate(1 / answer)))
            requests.append(Request(conversation, model, owner, prompt, length, turn, at))
            prompt += length + 100
            at += rng.expovariate(1 / pause) + length / 40
    return requests


# Endpoints, load, whether some fail. A load of 1 would be a fleet that never swaps a model nor reads a prompt.
SCENARIOS = {
    "3 endpoints": (3, 0.15, False),
    "10 endpoints": (10, 0.2, False),
    "50 endpoints": (50, 0.2, False),
    "3 endpoints, 1 fails": (3, 0.1, True),
    "10 endpoints, 2 fail": (10, 0.15, True),
    "50 endpoints, 10 fail": (50, 0.15, True),
}


def simulate(policy: str, count: int, load: float, outages: bool, seed: int, seconds: float = 900.0) -> Result:
    """One run: the same fleet and the same work for every policy of a seed."""
    servers = fleet(count, random.Random(seed), outages=outages)
    requests = work(servers, random.Random(seed + 1), seconds=seconds, load=load)
    return Simulation(servers, POLICIES[policy](random.Random(seed + 2))).run(requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5, help="runs of which the means are shown")
    seeds = parser.parse_args().seeds
    print("| fleet | policy | p50 wait s | p99 wait s | errors ‰ | cut ‰ | swaps ‰ | warm prompts |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (count, load, outages) in SCENARIOS.items():
        for policy in POLICIES:
            rows = [simulate(policy, count, load, outages, seed).row() for seed in range(seeds)]
            p50, p99, errors, cut, swaps, hits = map(mean, zip(*rows, strict=True))
            print(
                f"| {name} | {policy} | {p50:.2f} | {p99:.1f} | {errors:.1f} | {cut:.1f} | {swaps:.0f} | {hits:.0%} |"
            )


if __name__ == "__main__":
    main()
