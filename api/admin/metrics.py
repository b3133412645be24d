"""GET /metrics: what was counted, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.admin.exposition import exposition, values
from api.http.keys import require_admin
from api.http.replies import json_response
from api.http.routes import Routes
from api.peers import as_peer, is_from_peer
from core.errors import NotFound
from core.json import Json
from core.state import AppState
from core.telemetry import added

routes = Routes(tags=["fleet"])

# So many of those who wait are shown one by one.
SHOWN = 50
# Where the peers are asked.
FIGURES = "/api/workers/figures"


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """What was counted, by all processes on this machine, in Prometheus' text format 0.0.4, or as OpenMetrics where
    `Accept` asks for that. For admins, unless `metrics_open` is set."""
    state: AppState = request.app.state
    if not state.config.metrics_open:
        require_admin(request)
    figures = _sum(own_figures(state), await state.cluster.ask_machine("GET", FIGURES, as_peer(state)))
    shown = values(state, figures, is_stored=await state.db.outage() is None)
    # Not here: prometheus-client is loaded first, and thousands of series take a while.
    text, content_type = await asyncio.to_thread(exposition, shown, request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get(FIGURES, include_in_schema=False)
async def figures_for_peers(request: Request) -> Response:
    """For the peers alone: what this one has counted, and the responses that it is working on."""
    if not is_from_peer(request):
        raise NotFound(f"There is no GET {FIGURES}.", code="unknown_url")
    state: AppState = request.app.state
    return json_response({**own_figures(state), "running": ids_at_work(state)})


def ids_at_work(state: AppState) -> list[str]:
    """The responses that this process is working on, and those that wait in it."""
    return list({*state.db.running_ids(), *state.tasks.ids()})


def own_figures(state: AppState) -> Json:
    """What this process has counted, and what waits and runs in it."""
    pool = state.pool
    # One that was replaced, and still answers something, has the name of its successor.
    endpoints = [endpoint for endpoint in pool.endpoints.values() if not endpoint.leaving]
    return {
        **state.telemetry.figures(),
        "outcomes": {endpoint.name: dict(endpoint.outcomes) for endpoint in endpoints},
        "background": len(state.tasks.ids()),
        "waiting": len(pool.line),
        "by_key": list(pool.line.counts().values()),
        "first": pool.first_waiting(SHOWN),
        "longest_wait_s": pool.longest_wait_s(),
    }


async def all_figures(request: Request) -> Json:
    """The figures of all processes as one: numbers are added, but for the longest wait."""
    state: AppState = request.app.state
    return _sum(own_figures(state), await state.cluster.ask("GET", FIGURES, as_peer(state)))


def _sum(total: Json, others: Iterable[Any]) -> Json:
    for figures in others:
        if figures is not None:
            longest = max(total["longest_wait_s"], figures["longest_wait_s"])
            total = added(total, figures)
            total["longest_wait_s"] = longest
    return total


async def running_elsewhere(state: AppState) -> set[str] | None:
    """The responses that the peers are working on. None if one of them does not answer."""
    answers = await state.cluster.ask("GET", FIGURES, as_peer(state))
    return None if None in answers else {response_id for answer in answers for response_id in answer["running"]}
