"""/api/endpoints: how the fleet stands, and taking an endpoint out of it."""

from __future__ import annotations

from operator import itemgetter

from fastapi import Request
from starlette.responses import Response

from api.admin.metrics import SHOWN, all_figures
from api.http.replies import json_response
from api.http.routes import Routes
from api.peers import as_peer, is_from_peer
from core.errors import NotFound
from core.state import AppState

routes = Routes(tags=["fleet"], for_admins=True)


@routes.get("/api/endpoints")
async def list_endpoints(request: Request) -> Response:
    """Every endpoint: what it has, how busy it is, how it fares; and the queue of those who wait for a slot. What is
    counted is counted over all processes; how an endpoint stands is how the process sees it that was asked."""
    state: AppState = request.app.state
    figures = await all_figures(request)
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
            # While the settings name no endpoints: what came of each port of this machine that was asked.
            "local": [tried.describe() for tried in local.tried] if (local := state.pool.endpoints.local) else None,
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
                await state.cluster.ask("POST", request.url.path, as_peer(state))
            return json_response(endpoint.describe())
    raise NotFound(f"There is no endpoint '{name}'.", param="name")
