"""GET /metrics: what was counted, over all processes, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from starlette.responses import Response

from api.http.keys import require_admin
from api.http.replies import json_response
from api.http.routes import Routes
from api.peers import as_peer, is_from_peer
from core.errors import NotFound
from core.json import Json
from core.state import AppState
from core.telemetry import (
    COUNTED,
    ENDPOINT_IN_FLIGHT,
    ENDPOINT_SLOTS,
    ENDPOINT_UP,
    QUEUE_LONGEST_WAIT,
    QUEUE_WAIT,
    QUEUE_WAITING,
    REQUESTS,
    TOKENS,
    Metric,
    Samples,
    added,
    exposition,
)

routes = Routes(tags=["fleet"])

# So many of those who wait are shown one by one.
SHOWN = 50
# Where the peers are asked.
FIGURES = "/api/workers/figures"


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """The counts of the fleet, over all processes, in Prometheus' text format, version 0.0.4. For admins, unless
    `metrics_open` is set."""
    state: AppState = request.app.state
    if not state.config.metrics_open:
        require_admin(request)
    text = exposition(_samples(state, await all_figures(request)))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _samples(state: AppState, figures: Json) -> Iterator[tuple[Metric, Samples]]:
    endpoints = [endpoint for endpoint in state.pool.endpoints.values() if not endpoint.leaving]
    by_endpoint = [({"endpoint": endpoint.name}, endpoint) for endpoint in endpoints]
    yield ENDPOINT_UP, [(at, float(endpoint.healthy)) for at, endpoint in by_endpoint]
    yield ENDPOINT_IN_FLIGHT, [(at, endpoint.busy) for at, endpoint in by_endpoint]
    yield ENDPOINT_SLOTS, [(at, endpoint.max_concurrent) for at, endpoint in by_endpoint]
    yield (
        REQUESTS,
        [
            ({"endpoint": name, "outcome": outcome}, count)
            for name, outcomes in figures["outcomes"].items()
            for outcome, count in outcomes.items()
        ],
    )
    yield QUEUE_WAITING, [({}, figures["waiting"])]
    yield QUEUE_LONGEST_WAIT, [({}, figures["longest_wait_s"])]
    yield QUEUE_WAIT, [({}, figures["waited_s"])]
    for name, metric in COUNTED.items():
        yield metric, [({}, figures["counts"].get(name, 0))]
    yield (
        TOKENS,
        [
            ({"model": model, "direction": way}, count)
            for model, ways in figures["tokens"].items()
            for way, count in ways.items()
        ],
    )


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get(FIGURES, include_in_schema=False)
async def own_figures(request: Request) -> Response:
    """For the peers alone: what this one has counted, and the responses that it is working on."""
    if not is_from_peer(request):
        raise NotFound(f"There is no GET {FIGURES}.", code="unknown_url")
    state: AppState = request.app.state
    return json_response({**_figures(state), "running": ids_at_work(state)})


def ids_at_work(state: AppState) -> list[str]:
    """The responses that this process is working on, and those that wait in it."""
    return list({*state.db.running_ids(), *state.tasks.ids()})


def _figures(state: AppState) -> Json:
    pool = state.pool
    # One that was replaced, and still answers something, has the name of its successor.
    endpoints = [endpoint for endpoint in pool.endpoints.values() if not endpoint.leaving]
    return {
        **state.telemetry.figures(),
        "outcomes": {endpoint.name: dict(endpoint.outcomes) for endpoint in endpoints},
        "waiting": len(pool.line),
        "by_key": list(pool.line.counts().values()),
        "first": pool.first_waiting(SHOWN),
        "longest_wait_s": pool.longest_wait_s(),
    }


async def all_figures(request: Request) -> Json:
    """The figures of all processes as one: numbers are added, but for the longest wait."""
    state: AppState = request.app.state
    total = _figures(state)
    for figures in await state.cluster.ask("GET", FIGURES, as_peer(state)):
        if figures is not None:
            longest = max(total["longest_wait_s"], figures["longest_wait_s"])
            total = added(total, figures)
            total["longest_wait_s"] = longest
    return total


async def running_elsewhere(state: AppState) -> set[str] | None:
    """The responses that the peers are working on. None if one of them does not answer."""
    answers = await state.cluster.ask("GET", FIGURES, as_peer(state))
    return None if None in answers else {response_id for answer in answers for response_id in answer["running"]}
