"""Taking a model out of memory, wherever it is."""

from __future__ import annotations

from backends.fleet.endpoints import Endpoints, Patterns
from core.errors import APIError


async def unload(endpoints: Endpoints, model: str, allowed: Patterns = None) -> None:
    """Unloads a model that is `allowed` at every endpoint that has it in memory. Raises `NotFound` where nobody serves
    it, and the first endpoint's error where none has unloaded it: `Unsupported`, a 501, of a server that cannot."""
    if not endpoints.serving(model, allowed):
        await endpoints.search(model, allowed)
    error: APIError | None = None
    has_unloaded = False
    for endpoint, there in endpoints.serving(model, allowed):
        if endpoint.healthy and endpoint.has_loaded(there):
            try:
                await endpoint.unload(there)
                has_unloaded = True
            except APIError as failure:
                error = error or failure
    if error and not has_unloaded:
        raise error
