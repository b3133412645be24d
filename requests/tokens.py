"""How long a request is, where nobody counts."""

from __future__ import annotations

from typing import Any

import orjson

# What a token is in English and in code, roughly; and what a message costs beside its text.
BYTES_PER_TOKEN = 4


def estimated_tokens(params: dict[str, Any]) -> int:
    """About how many input tokens a chat request has."""
    said = {key: params[key] for key in ("messages", "tools", "response_format") if key in params}
    return len(orjson.dumps(said)) // BYTES_PER_TOKEN
