"""How long a request is, where nobody counts."""

from __future__ import annotations

from core.json import Json, encode_json

# What a token is in English and in code, roughly; and what a message costs beside its text.
BYTES_PER_TOKEN = 4


# What an image costs, about, however large its file is.
IMAGE_TOKENS = 800


def message_tokens(message: Json) -> int:
    """About how many tokens a chat message has."""
    content = message.get("content")
    if not isinstance(content, list):
        return len(encode_json(message)) // BYTES_PER_TOKEN
    images = len([part for part in content if part.get("type") == "image_url"])
    texts = [part for part in content if part.get("type") != "image_url"]
    text_bytes = len(encode_json({**message, "content": texts}))
    return text_bytes // BYTES_PER_TOKEN + IMAGE_TOKENS * images


def estimated_tokens(params: Json) -> int:
    """About how many input tokens a chat request has."""
    counted = {key: params[key] for key in ("tools", "response_format") if key in params}
    return len(encode_json(counted)) // BYTES_PER_TOKEN + sum(message_tokens(message) for message in params["messages"])
