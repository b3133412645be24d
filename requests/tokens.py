"""How long a request is, where nobody counts."""

from __future__ import annotations

from core.json import Json, encode_json

# What a token is in English and in code, roughly; and what a message costs beside its text.
BYTES_PER_TOKEN = 4


# What an image costs, about, however large its file is.
IMAGE_TOKENS = 800


IMAGES = frozenset({"image_url", "input_image", "computer_screenshot"})


def message_tokens(message: Json) -> int:
    """About how many tokens a chat message has, or an item of a native request."""
    key = "output" if "output" in message else "content"
    content = message.get(key)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return len(encode_json(message)) // BYTES_PER_TOKEN
    texts = [part for part in content if not _is_image(part)]
    text_bytes = len(encode_json({**message, key: texts}))
    return text_bytes // BYTES_PER_TOKEN + IMAGE_TOKENS * (len(content) - len(texts))


def estimated_tokens(params: Json) -> int:
    """About how many input tokens a chat request has, or a native one."""
    counted = {key: params[key] for key in ("tools", "response_format", "text", "instructions") if key in params}
    given = params["messages"] if "messages" in params else params.get("input")
    if not isinstance(given, list):
        given = [{"role": "user", "content": given}]
    unsealed = [{**one, "encrypted_content": None} if "encrypted_content" in one else one for one in given]
    return len(encode_json(counted)) // BYTES_PER_TOKEN + sum(map(message_tokens, unsealed))


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in IMAGES
