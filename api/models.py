"""/v1/models: what the backends serve. /health and /: whether the router runs."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import Request
from starlette.responses import Response

from api.http.keys import principal_of
from api.http.replies import json_response
from api.http.routes import Routes
from api.turns.hosted import types_set_up
from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from backends.kinds.server import ModelFacts
from core.errors import NotFound
from core.hops import came_through
from core.json import Json
from requests.compatibility import compatibility

routes = Routes(tags=["models"])


@routes.get("/v1/models")
async def list_models(request: Request) -> Response:
    """Every model that an endpoint is known to serve, as OpenAI's list of models."""
    state = request.app.state
    endpoints, principal = state.pool.endpoints, principal_of(request)
    # What the router that asks has itself it shall not look for here.
    asking = came_through()
    models = endpoints.models(asking, principal.models)
    described: Json = {}
    if asking:
        described["nomyo"] = {
            **_for_routers(endpoints, models, asking),
            "tools": types_set_up(state, principal.owner),
        }
    listed = [_model(name, endpoint) for name, endpoint in models.items()]
    return json_response({"object": "list", "data": listed, **described})


@routes.get("/v1/compatibility")
async def show_compatibility(request: Request) -> Response:
    """What becomes of each parameter, item, part, tool, tool choice and event, by what answers a request: `chat` is a
    server that speaks chat completions, `native` one that speaks Responses. Each is `carried`, `adapted`, `run here`,
    `ignored`, `refused` or, of an event, `never` there."""
    return json_response(compatibility())


@routes.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Response:
    """One model. 404 `model_not_found` if nobody serves it."""
    allowed = principal_of(request).models
    for name, endpoint in request.app.state.pool.endpoints.models(allowed=allowed).items():
        if endpoint.models.get(name) == endpoint.name_of(model):
            return json_response(_model(name, endpoint))
    raise NotFound(f"The model '{model}' does not exist.", param="model", code="model_not_found")


@routes.get("/health")
async def health(request: Request) -> Response:
    """200 while the router runs, whether or not its backends do, and 503 while nothing can be stored. `cluster: apart`
    while it cannot reach what its replicas share. Asks for no key, and names neither an endpoint nor a file."""
    is_out = await request.app.state.db.outage() is not None
    endpoints = request.app.state.pool.endpoints.values()
    up = sum(endpoint.error is None for endpoint in endpoints)
    fleet = {"configured": len(endpoints), "up": up}
    # Each process counts for itself then, and serves as before.
    cluster = {"cluster": "apart"} if request.app.state.cluster.is_apart else {}
    if is_out:
        answer = {"status": "storage_error", "endpoints": fleet, **cluster}
        return json_response(answer, 503, {"Retry-After": "5"})
    return json_response({"status": "ok", "endpoints": fleet, **cluster})


@routes.get("/ready")
async def ready(request: Request) -> Response:
    """200 while a request may be sent here: an endpoint answers, responses can be stored, and no stop has begun; else
    503, with what is missing. For load balancers; asks for no key, and names neither an endpoint nor a file."""
    state = request.app.state
    missing = []
    if state.stopping.has_begun:
        missing.append("the router stops")
    if not any(endpoint.healthy and not endpoint.draining for endpoint in state.pool.endpoints.values()):
        missing.append("no endpoint answers")
    if await state.db.outage() is not None:
        missing.append("nothing can be stored")
    if missing:
        return json_response({"status": "not_ready", "missing": missing}, 503, {"Retry-After": "5"})
    return json_response({"status": "ready"})


def _for_routers(endpoints: Endpoints, models: dict[str, Endpoint], asking: Collection[str]) -> Json:
    """What another router needs to know of this one: its id, how many requests it runs at once, what it knows of its
    models."""
    return {
        "router": endpoints.router_id,
        "max_concurrent": sum(
            endpoint.max_concurrent
            for endpoint in endpoints.values()
            if endpoint.healthy and not (endpoint.leaving or endpoint.draining or endpoint.router in asking)
        ),
        "models": {name: _facts(endpoint, endpoint.models[name]) for name, endpoint in models.items()},
    }


def _facts(endpoint: Endpoint, there: str) -> Json:
    facts = endpoint.facts.get(there, ModelFacts())
    return {"loaded": facts.loaded, "context": facts.context, "capabilities": facts.capabilities}


def _model(name: str, endpoint: Endpoint) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": endpoint.kind.name}
