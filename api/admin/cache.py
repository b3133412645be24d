"""/api/cache: looking at the cache, and emptying it."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_body
from api.http.replies import json_response
from api.http.routes import Routes, takes
from cache import get_llm_cache
from core.errors import InvalidRequest
from core.schemas import object_of
from requests.bounded_json import decode_bounded

routes = Routes(prefix="/api/cache", tags=["cache"], for_admins=True)


@routes.get("/stats")
async def cache_stats(request: Request) -> Response:
    """`{backend, entries, max_entries, max_age_s, hits, misses}`; only `{backend: "none"}` without a cache."""
    cache = get_llm_cache(request.app.state)
    return json_response(await cache.stats() if cache else {"backend": "none"})


@routes.post("/invalidate", **takes(object_of(model={"type": ["string", "null"]}), required=False))
async def invalidate_cache(request: Request) -> Response:
    """Forgets all entries, or with the body `{"model": name}` those of one model. Answers `{invalidated: number}`."""
    given = await read_body(request)
    body = decode_bounded(given) if given else {}
    model = body.get("model") if isinstance(body, dict) else body
    if not isinstance(body, dict) or not (model is None or isinstance(model, str)):
        raise InvalidRequest("The body is empty, or an object with a 'model'.", param="model")
    cache = get_llm_cache(request.app.state)
    return json_response({"invalidated": await cache.invalidate(model) if cache else 0})
