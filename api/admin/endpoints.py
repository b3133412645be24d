"""/api/endpoints: how the fleet stands, and taking an endpoint out of it. /metrics: the same in numbers."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http.replies import json_response
from api.http.routes import Routes
from api.peers import is_from_peer, key_of
from core.errors import NotFound
from core.state import AppState

routes = Routes(tags=["fleet"])

# So many of those who wait are shown one by one.
SHOWN = 50
# Where the peers are asked.
FIGURES = "/api/workers/figures"


@routes.get("/api/endpoints")
async def list_endpoints(request: Request) -> Response:
    """Every endpoint: what it has, how busy it is, how it fares; and the queue of those who wait for a slot. What is counted is counted
    over all processes; how an endpoint stands is how the process sees it that was asked."""
    state: AppState = request.app.state
    figures = await _all_figures(request)
    endpoints = [endpoint.describe() for endpoint in state.pool.endpoints.values()]
    for endpoint in endpoints:
        endpoint["outcomes"] = figures["outcomes"].get(endpoint["name"], {})
    return json_response(
        {
            "endpoints": endpoints,
            "queue": {
                "waiting": figures["waiting"],
                "by_key": figures["by_key"],
                "first": sorted(figures["first"], key=itemgetter("waited_s"), reverse=True)[:SHOWN],
            },
            "config_error": state.config_error,
        }
    )


@routes.post("/api/endpoints/{name}/drain")
async def drain_endpoint(request: Request, name: str) -> Response:
    """Sends an endpoint no new requests; those that run there go on. 404 if there is none of that name."""
    return await _set_draining(request, name, draining=True)


@routes.post("/api/endpoints/{name}/enable")
async def enable_endpoint(request: Request, name: str) -> Response:
    """Sends it requests again, also if it was left alone for its failures. 404 if there is none of that name."""
    return await _set_draining(request, name, draining=False)


async def _set_draining(request: Request, name: str, *, draining: bool) -> Response:
    state: AppState = request.app.state
    for endpoint in state.pool.endpoints.values():
        if endpoint.name == name and not endpoint.leaving:
            state.pool.set_draining(endpoint, draining)
            if not is_from_peer(request):
                await state.cluster.ask("POST", request.url.path, key_of(request))
            return json_response(endpoint.describe())
    raise NotFound(f"There is no endpoint '{name}'.", param="name")


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """The counts of the fleet, over all processes, in Prometheus' text format, version 0.0.4."""
    state: AppState = request.app.state
    lines = _metrics(state.pool, await _all_figures(request))
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.get(FIGURES, include_in_schema=False)
async def own_figures(request: Request) -> Response:
    """For the peers alone: what this one has counted, and the responses that it is working on."""
    if not is_from_peer(request):
        raise NotFound(f"There is no GET {FIGURES}.", code="unknown_url")
    state: AppState = request.app.state
    return json_response({**_figures(state.pool), "running": state.db.running_ids()})


def _figures(pool: Any) -> dict[str, Any]:
    # One that was replaced, and still answers something, has the name of its successor.
    endpoints = [endpoint for endpoint in pool.endpoints.values() if not endpoint.leaving]
    return {
        "outcomes": {endpoint.name: dict(endpoint.outcomes) for endpoint in endpoints},
        "counts": dict(pool.counts),
        "tokens": {model: {way: pool.tokens[model, way] for way in ("input", "output")} for model, _ in pool.tokens},
        "waited_s": pool.waited_s,
        "waiting": len(pool.line),
        "by_key": list(pool.line.counts().values()),
        "first": pool.first_waiting(SHOWN),
        "longest_wait_s": pool.longest_wait_s(),
    }


async def _all_figures(request: Request) -> dict[str, Any]:
    """The figures of all processes as one: numbers are added, but for the longest wait."""
    state: AppState = request.app.state
    total = _figures(state.pool)
    for figures in await state.cluster.ask("GET", FIGURES, key_of(request)):
        if figures is not None:
            longest = max(total["longest_wait_s"], figures["longest_wait_s"])
            total = _added(total, figures)
            total["longest_wait_s"] = longest
    return total


def _added(first: Any, second: Any) -> Any:
    """Two figures as one: numbers and lists are added, key by key."""
    if isinstance(first, dict):
        both = first.keys() & second.keys()
        return {**first, **second, **{key: _added(first[key], second[key]) for key in both}}
    return first + second


async def running_elsewhere(state: AppState) -> set[str] | None:
    """The responses that the peers are working on. None if one of them does not answer."""
    key = state.config.api_key
    answers = await state.cluster.ask("GET", FIGURES, {"authorization": f"Bearer {key}"} if key else {})
    return None if None in answers else {response_id for answer in answers for response_id in answer["running"]}


def _metrics(pool: Any, figures: dict[str, Any]) -> list[str]:
    lines: list[str] = []

    def metric(name: str, kind: str, help: str, values: list[tuple[dict[str, str], float]]) -> None:
        lines.append(f"# HELP nomyo_{name} {help}")
        lines.append(f"# TYPE nomyo_{name} {kind}")
        for labels, value in values:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"nomyo_{name}{{{shown}}} {value!r}" if shown else f"nomyo_{name} {value!r}")

    endpoints = [endpoint for endpoint in pool.endpoints.values() if not endpoint.leaving]
    by_endpoint = [({"endpoint": endpoint.name}, endpoint) for endpoint in endpoints]
    metric("endpoint_up", "gauge", "Answers when it is asked.", [(at, float(it.healthy)) for at, it in by_endpoint])
    metric("endpoint_in_flight", "gauge", "Requests that run there.", [(at, it.busy) for at, it in by_endpoint])
    metric("endpoint_slots", "gauge", "Requests it may run.", [(at, it.max_concurrent) for at, it in by_endpoint])
    outcomes = [
        ({"endpoint": name, "outcome": outcome}, count)
        for name, of_endpoint in figures["outcomes"].items()
        for outcome, count in of_endpoint.items()
    ]
    metric("requests_total", "counter", "Requests by how they ended.", outcomes)
    metric("queue_waiting", "gauge", "Requests that wait for a slot.", [({}, figures["waiting"])])
    longest = figures["longest_wait_s"]
    metric("queue_longest_wait_seconds", "gauge", "How long the first of them has waited.", [({}, longest)])
    metric("queue_wait_seconds_total", "counter", "Seconds that requests have waited.", [({}, figures["waited_s"])])
    for name, help in COUNTS.items():
        metric(f"{name}_total", "counter", help, [({}, figures["counts"].get(name, 0))])
    tokens = [
        ({"model": model, "direction": way}, count)
        for model, ways in figures["tokens"].items()
        for way, count in ways.items()
    ]
    metric("tokens_total", "counter", "Tokens that backends have counted.", tokens)
    return lines


COUNTS = {
    "queued": "Requests that had to wait for a slot.",
    "queue_full": "Requests refused because too many waited.",
    "queue_timeout": "Requests that waited too long.",
    "retries": "Requests tried again after a failure.",
    "failures": "Failures of backends.",
}


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
