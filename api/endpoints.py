"""/api/endpoints: how the fleet stands, and taking an endpoint out of it. /metrics: the same in numbers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.http import json_response
from errors import NotFound

routes = APIRouter(tags=["fleet"])

# So many of those who wait are shown one by one.
SHOWN = 50


@routes.get("/api/endpoints")
async def list_endpoints(request: Request) -> Response:
    """Every endpoint: what it has, how busy it is, how it fares; and the queue of those who wait for a slot."""
    pool = request.app.state.pool
    return json_response(
        {
            "endpoints": [endpoint.describe() for endpoint in pool.endpoints.values()],
            "queue": {
                "waiting": len(pool.queue),
                "by_key": list(pool.queue.counts().values()),
                "first": pool.first_waiting(SHOWN),
            },
            "config_error": request.app.state.config_error,
        }
    )


@routes.post("/api/endpoints/{name}/drain")
async def drain_endpoint(request: Request, name: str) -> Response:
    """Sends an endpoint no new requests; those that run there go on. 404 if there is none of that name."""
    return _set_draining(request, name, draining=True)


@routes.post("/api/endpoints/{name}/enable")
async def enable_endpoint(request: Request, name: str) -> Response:
    """Sends it requests again, also if it was left alone for its failures. 404 if there is none of that name."""
    return _set_draining(request, name, draining=False)


def _set_draining(request: Request, name: str, *, draining: bool) -> Response:
    pool = request.app.state.pool
    for endpoint in pool.endpoints.values():
        if endpoint.name == name and not endpoint.leaving:
            pool.set_draining(endpoint, draining)
            return json_response(endpoint.describe())
    raise NotFound(f"There is no endpoint '{name}'.", param="name")


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    """The counts of the fleet in Prometheus' text format, version 0.0.4."""
    lines = _metrics(request.app.state.pool)
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def _metrics(pool: Any) -> list[str]:
    lines: list[str] = []

    def metric(name: str, kind: str, help: str, values: list[tuple[dict[str, str], float]]) -> None:
        lines.append(f"# HELP nomyo_{name} {help}")
        lines.append(f"# TYPE nomyo_{name} {kind}")
        for labels, value in values:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"nomyo_{name}{{{shown}}} {value!r}" if shown else f"nomyo_{name} {value!r}")

    # One that was replaced, and still answers something, has the name of its successor.
    endpoints = [endpoint for endpoint in pool.endpoints.values() if not endpoint.leaving]
    by_endpoint = [({"endpoint": endpoint.name}, endpoint) for endpoint in endpoints]
    metric("endpoint_up", "gauge", "Answers when it is asked.", [(at, float(it.healthy)) for at, it in by_endpoint])
    metric("endpoint_in_flight", "gauge", "Requests that run there.", [(at, it.in_flight) for at, it in by_endpoint])
    metric("endpoint_slots", "gauge", "Requests it may run.", [(at, it.max_concurrent) for at, it in by_endpoint])
    outcomes = [({**at, "outcome": outcome}, count) for at, it in by_endpoint for outcome, count in it.outcomes.items()]
    metric("requests_total", "counter", "Requests by how they ended.", outcomes)
    metric("queue_waiting", "gauge", "Requests that wait for a slot.", [({}, len(pool.queue))])
    metric(
        "queue_longest_wait_seconds", "gauge", "How long the first of them has waited.", [({}, pool.longest_wait_s())]
    )
    metric("queue_wait_seconds_total", "counter", "Seconds that requests have waited.", [({}, pool.waited_s)])
    for name, help in COUNTS.items():
        metric(f"{name}_total", "counter", help, [({}, pool.counts[name])])
    tokens = [({"model": model, "direction": way}, count) for (model, way), count in pool.tokens.items()]
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
