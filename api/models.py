"""/v1/models: what the backends serve. /health and /: whether the router runs."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from api.http.replies import json_response
from api.http.routes import Routes
from core.errors import NotFound
from core.json import Json

routes = Routes(tags=["models"])


@routes.get("/v1/models")
async def list_models(request: Request) -> Response:
    """Every model that an endpoint is known to serve, as OpenAI's list of models."""
    models = request.app.state.pool.endpoints.models()
    return json_response({"object": "list", "data": [_model(name, endpoint) for name, endpoint in models.items()]})


@routes.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Response:
    """One model. 404 `model_not_found` if nobody serves it."""
    for name, endpoint in request.app.state.pool.endpoints.models().items():
        if endpoint.models.get(name) == endpoint.name_of(model):
            return json_response(_model(name, endpoint))
    raise NotFound(f"The model '{model}' does not exist.", param="model", code="model_not_found")


@routes.get("/health")
async def health(request: Request) -> Response:
    """200 while the router runs, whether or not its backends do, and 503 while nothing can be stored. Asks for no key,
    and names neither an endpoint nor a file."""
    is_out = await request.app.state.db.outage() is not None
    endpoints = request.app.state.pool.endpoints.values()
    up = sum(endpoint.error is None for endpoint in endpoints)
    fleet = {"configured": len(endpoints), "up": up}
    if is_out:
        return json_response({"status": "storage_error", "endpoints": fleet}, 503, {"Retry-After": "5"})
    return json_response({"status": "ok", "endpoints": fleet})


@routes.get("/")
async def root(request: Request) -> Response:
    """200 while the router runs, in the words that Ollama's clients look for. Asks for no key."""
    return PlainTextResponse("Ollama is running")


def _model(name: str, endpoint: Any) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": endpoint.kind.name}
