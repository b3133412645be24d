"""How the service stands at one moment, over all processes, for the live page.

    this process ──┐                       ┌─ fleet   endpoints, models, what is wrong with the settings
    its peers ─────┴─ Snapshots.make() ──▶ ├─ now     what runs, waits and was counted
                                           └─ turns   those that have ended since the last time

Nothing is gathered while nobody looks.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from heapq import nsmallest
from operator import attrgetter, itemgetter
from secrets import token_hex
from typing import Annotated, NamedTuple

from fastapi import Query, Request
from starlette.responses import Response

from api.http.replies import json_response
from api.http.routes import Routes
from api.page.turn_rows import ended_row, running_row
from api.peers import as_peer, is_from_peer
from backends.fleet.endpoint import Endpoint
from core.errors import NotFound
from core.json import Json, encode_json
from core.state import AppState
from core.telemetry import MOST_RECENT

routes = Routes(tags=["page"], for_admins=True)

# Where the peers are asked.
HERE = "/api/workers/page"
# So many turns are shown of those that run, that wait for a slot, and that have ended.
MOST_RUNNING = 50
MOST_WAITING = 20
MOST_ENDED = 1000
# Clocks of several machines differ: turns are asked for again that may have been seen, and known by what they are.
OVERLAP_S = 5.0
# What moves, and stands in `now`; the rest of an endpoint's description is the fleet's.
MOVING = frozenset({"in_flight", "outcomes", "max_concurrent"})
# Of this process: what names its turns that run.
PROCESS = token_hex(4)


class Snapshot(NamedTuple):
    """What a page is given: `changes` where it has seen all before, or the `whole`, of a page that is opened."""

    changes: bytes
    fleet: bytes
    turns: Sequence[Json]
    now: bytes

    def whole(self) -> bytes:
        """All that a page shows."""
        return b"".join((self.fleet, _frame("turns", list(self.turns)), self.now))


class Snapshots:
    """Of a service. `make` is called every so often while somebody looks."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._fleet = b""
        self._turns: deque[Json] = deque(maxlen=MOST_ENDED)
        self._known: set[tuple[str, float]] = set()
        self._since = 0.0

    async def make(self) -> Snapshot:
        """How it stands now, and what is new since this was called last."""
        state, at, since = self._state, time.time(), max(0.0, self._since - OVERLAP_S)
        answers = await state.cluster.ask("GET", f"{HERE}?since={since:.3f}", as_peer(state))
        parts = [how_it_is_here(state, since), *(answer for answer in answers if answer is not None)]
        new = self._take(row for part in parts for row in part["ended"])
        self._since = at
        fleet = _frame("fleet", _fleet(state))
        now = _frame("now", _now(state, parts) | {"knows_since": self._knows_since(parts)})
        changes = [now]
        if new:
            changes.insert(0, _frame("turns", new))
        if fleet != self._fleet:
            self._fleet = fleet
            changes.insert(0, fleet)
        return Snapshot(b"".join(changes), fleet, self._turns, now)

    def _knows_since(self, parts: Sequence[Json]) -> float:
        """Since when all turns are known that have ended; 0: since the start."""
        oldest = [float(part["knows_since"]) for part in parts]
        if len(self._turns) == MOST_ENDED:
            oldest.append(self._turns[0]["at"])
        return max(oldest)

    def _take(self, rows: Iterable[Json]) -> list[Json]:
        """Those that were not seen before."""
        new = sorted((row for row in rows if (row["id"], row["at"]) not in self._known), key=lambda row: row["at"])
        self._turns.extend(new)
        if new:
            self._known = {(row["id"], row["at"]) for row in self._turns}
        return new


@routes.get(HERE, include_in_schema=False)
async def show_process(request: Request, since: Annotated[float, Query(ge=0)] = 0.0) -> Response:
    """For the peers alone: how it is in this one."""
    if not is_from_peer(request):
        raise NotFound(f"There is no GET {HERE}.", code="unknown_url")
    return json_response(how_it_is_here(request.app.state, since))


def how_it_is_here(state: AppState, since: float) -> Json:
    """What runs and waits in this process, what it has counted, and the turns that have ended in it since a Unix
    time."""
    pool, now, at = state.pool, time.monotonic(), time.time()
    recent = state.telemetry.recent
    first = nsmallest(MOST_RUNNING, pool.asked, key=attrgetter("began_s"))
    running, queued = state.tasks.counts()
    return {
        "ended": [ended_row(record) for record in recent if record.ended_at >= since],
        "knows_since": recent[0].ended_at if len(recent) == MOST_RECENT else 0.0,
        "running": [running_row(routing, PROCESS, now, at) for routing in first],
        "running_total": len(pool.asked),
        "waiting": len(pool.line),
        "first": pool.first_waiting(MOST_WAITING),
        "longest_wait_s": pool.longest_wait_s(),
        "counts": dict(state.telemetry.counts),
        "outcomes": {endpoint.name: dict(endpoint.outcomes) for endpoint in _shown(state)},
        "background": {"running": running, "queued": queued},
        "streams": state.telemetry.streams,
        "sockets": state.telemetry.sockets,
    }


def _shown(state: AppState) -> Collection[Endpoint]:
    # One that was replaced, and still answers something, has the name of its successor.
    return [endpoint for endpoint in state.pool.endpoints.values() if not endpoint.leaving]


def _fleet(state: AppState) -> Json:
    described = [endpoint.describe() for endpoint in _shown(state)]
    local = state.pool.endpoints.local
    return {
        "endpoints": [{key: value for key, value in one.items() if key not in MOVING} for one in described],
        "config_error": state.config_error,
        # The ports that were asked, where the settings name no endpoint.
        "local": [tried.describe() for tried in local.tried] if local else None,
    }


def _now(state: AppState, parts: Sequence[Json]) -> Json:
    outcomes: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part["outcomes"].items():
            outcomes.setdefault(name, Counter()).update(counts)
    first = [row for part in parts for row in part["first"]]
    running = sorted((row for part in parts for row in part["running"]), key=lambda row: row["since"])
    return {
        "at": time.time(),
        "processes": len(parts),
        "is_apart": state.cluster.is_apart,
        "endpoints": {
            endpoint.name: {
                "in_flight": endpoint.busy,
                "max_concurrent": endpoint.max_concurrent,
                "outcomes": outcomes.get(endpoint.name, {}),
            }
            for endpoint in _shown(state)
        },
        "queue": {
            "waiting": sum(part["waiting"] for part in parts),
            "first": sorted(first, key=itemgetter("waited_s"), reverse=True)[:MOST_WAITING],
            "longest_wait_s": max(part["longest_wait_s"] for part in parts),
        },
        "running": running[:MOST_RUNNING],
        "running_total": sum(part["running_total"] for part in parts),
        "counts": _sum(part["counts"] for part in parts),
        "background": _sum(part["background"] for part in parts),
        "streams": sum(part["streams"] for part in parts),
        "sockets": sum(part["sockets"] for part in parts),
    }


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _frame(name: str, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode_json(value))
