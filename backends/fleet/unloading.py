"""Taking a model out of memory, wherever it is."""

from __future__ import annotations

from backends.fleet.endpoints import Endpoints
from core.errors import APIError


async def unload(endpoints: Endpoints, model: str) -> None:
    """Unloads a model at every endpoint that has it in memory. Raises `NotFound` where nobody serves it, and the first
    endpoint's error where none has unloaded it: `Unsupported`, a 501, of a server that cannot."""
    if not endpoints.serving(model):
        await endpoints.search(model)
    error: APIError | None = None
    has_unloaded = False
    for endpoint, there in endpoints.serving(model):
        if endpoint.healthy and endpoint.has_loaded(there):
            try:
                await endpoint.unload(there)
                has_unloaded = True
            except APIError as failure:
                error = error or failure
    if error and not has_unloaded:
        raise error
