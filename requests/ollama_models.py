"""Rows of models as Ollama's clients read them. Clients show what is there: what nobody knows is left out, but for what
they read without a look.

Specification: ollama/ollama api/types.go: ListModelResponse, ProcessModelResponse, ShowResponse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from core.json import Json

# Where a server lists nothing of what its model can do.
CHATS = ("completion", "tools")


def listed_model(name: str, row: Mapping[str, object]) -> Json:
    """A row of /api/tags. `row` is an Ollama's own, or what another server lists, in its words. The digest of a model
    that is at no Ollama is one of its name, because clients cut it without a look."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"digest": digest, "details": {}, **row, "name": name, "model": name}


def running_model(name: str, row: Mapping[str, object], run: Mapping[str, object], context: int | None) -> Json:
    """A row of /api/ps. `row` and `run` are an Ollama's of /api/tags and /api/ps, or what another server lists."""
    listed = listed_model(name, row)
    listed.pop("modified_at", None)
    return {**({"context_length": context} if context else {}), **listed, **run, "name": name, "model": name}


def shown_model(name: str, row: Mapping[str, object], context: int | None, capabilities: Sequence[str] | None) -> Json:
    """The answer of /api/show for a model that is at no Ollama."""
    given = row.get("details")
    details = given if isinstance(given, dict) else {}
    architecture = details.get("family") or "unknown"
    info: Json = {"general.architecture": architecture, "general.basename": name}
    if context:
        info[f"{architecture}.context_length"] = context
    return {
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": details,
        "model_info": info,
        "capabilities": list(CHATS if capabilities is None else capabilities),
    }
