"""What the fleet has, for Ollama's clients: GET /api/tags, /api/ps, /api/version, POST /api/show.

A real Ollama's rows go on as they came; of other servers' models stands here what those servers list.
"""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from api.http.keys import principal_of
from api.http.replies import json_response
from api.http.routes import Routes, takes
from api.ollama import in_ollamas_words, ollama_envelope, read_head
from backends.fleet.endpoint import Endpoint
from backends.fleet.endpoints import Endpoints
from backends.kinds.server import ModelFacts
from core.errors import APIError, NotFound, Unsupported, without_frames
from core.schemas import TEXT, object_of
from requests.members import with_model
from requests.ollama import VERSION
from requests.ollama_models import listed_model, running_model, shown_model

routes = Routes(prefix="/api", tags=["Ollama"], envelope=ollama_envelope)
NOTHING_KNOWN = ModelFacts()
# `name` is what old clients call the model.
OF_A_MODEL = object_of(model=TEXT, name=TEXT)


@routes.get("/version")
async def version(request: Request) -> Response:
    """The version of Ollama whose API this is."""
    return json_response({"version": VERSION})


@routes.get("/tags")
async def list_models(request: Request) -> Response:
    """Every model that is served."""
    rows: dict[str, ModelFacts] = {}
    for name, there in _served(request):
        known = there.facts.get(there.models[name], NOTHING_KNOWN)
        if name not in rows or len(known.row) > len(rows[name].row):
            rows[name] = known
    return json_response({"models": [listed_model(name, known.row) for name, known in rows.items()]})


@routes.get("/ps")
async def list_running(request: Request) -> Response:
    """The models that are in some server's memory."""
    running: dict[str, ModelFacts] = {}
    for name, endpoint in _served(request):
        there = endpoint.models[name]
        if there in endpoint.loaded:
            known = endpoint.facts.get(there, NOTHING_KNOWN)
            before = running.get(name)
            if before is None or (len(known.run), known.context or 0) > (len(before.run), before.context or 0):
                running[name] = known
    rows = [running_model(name, known.row, known.run, known.context) for name, known in sorted(running.items())]
    return json_response({"models": rows})


def _served(request: Request) -> list[tuple[str, Endpoint]]:
    """Every model that may be used, by every endpoint that has it."""
    endpoints: Endpoints = request.app.state.pool.endpoints
    allowed = principal_of(request).models
    return [
        (name, there) for there in endpoints.values() if not there.leaving for name in sorted(there.models_of(allowed))
    ]


@routes.post("/show", **takes(OF_A_MODEL))
async def show(request: Request) -> Response:
    """What is known of a model: an Ollama's own answer, where one has it, else what its server lists. It takes no slot.
    404 without the model."""
    head, body = await read_head(request)
    endpoints = request.app.state.pool.endpoints
    serving = endpoints.serving(head.model, principal_of(request).models)
    if not serving:
        raise NotFound(f"model '{head.model}' not found")
    error: APIError | None = None
    for endpoint, there in serving:
        if endpoint.kind.speaks_ollama and endpoint.healthy:
            try:
                asked = await endpoint.client.forward("/api/show", with_model(body, there), below_root=True)
                return Response(await asked.read(), media_type=asked.content_type)
            except APIError as failure:
                error = error or without_frames(failure)
    if error:
        raise in_ollamas_words(error, head.model)
    known = [endpoint.facts.get(there, NOTHING_KNOWN) for endpoint, there in serving]
    context = max(filter(None, (facts.context for facts in known)), default=None)
    can = next((facts.capabilities for facts in known if facts.capabilities is not None), None)
    row = max((facts.row for facts in known), key=len)
    return json_response(shown_model(head.model, row, context, can))


@routes.post("/pull", **takes(OF_A_MODEL, required=False))
@routes.post("/push", **takes(OF_A_MODEL, required=False))
@routes.post("/create", **takes(OF_A_MODEL, required=False))
@routes.post("/copy", **takes(object_of(source=TEXT, destination=TEXT), required=False))
@routes.delete("/delete", **takes(OF_A_MODEL, required=False))
async def change_models(request: Request) -> Response:
    """Models are changed at the servers that have them: 501."""
    raise Unsupported("models are not changed here, but at the servers behind this router", status=501)
