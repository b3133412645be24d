"""How long a request is, where nobody counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from core.json import Json, decode_json, encode_json

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


def turn_tokens(body: Json, items: list[Any]) -> int:
    """About how many input tokens a turn of Responses has: its items, behind what its request has besides."""
    counted: Json = {key: body[key] for key in ("tools", "text", "instructions") if key in body}
    return estimated_tokens(counted | {"input": items})


def body_tokens(body: bytes) -> int:
    """About how many input tokens a request of any API has, as it came."""
    if len(body) < SMALL_BODY:  # No image has room in it.
        return len(body) // BYTES_PER_TOKEN
    try:
        characters, blobs = _measured(decode_json(body))
    except (ValueError, RecursionError):  # Half a character, or a depth that another one may take.
        return len(body) // BYTES_PER_TOKEN
    return characters // BYTES_PER_TOKEN + IMAGE_TOKENS * blobs


def answered_tokens(output: Iterable[Any]) -> int:
    """About how many tokens output items have, as far as they have come: what a model has written of them."""
    written = sum(_written(value, 0) for value in output)
    return -(-written // BYTES_PER_TOKEN)


SMALL_BODY = 8 * 1024
# A longer text without a space is no text.
LONGEST_WORD = 2000
WRITTEN = frozenset({"text", "arguments", "input", "refusal", "code"})
# Items hold their parts, and parts what annotates them.
DEEPEST = 4


def _measured(value: object) -> tuple[int, int]:
    """The characters of the texts in a value, and how many of them are no texts but images or other files."""
    if isinstance(value, str):
        if len(value) > LONGEST_WORD and " " not in value[:LONGEST_WORD]:
            return 0, 1
        return len(value), 0
    if isinstance(value, dict):
        measured = [_measured(each) for each in value.values()]
        return sum(one[0] for one in measured) + sum(map(len, value)), sum(one[1] for one in measured)
    if isinstance(value, list):
        measured = [_measured(each) for each in value]
        return sum(one[0] for one in measured), sum(one[1] for one in measured)
    return BYTES_PER_TOKEN, 0


def _written(value: object, depth: int) -> int:
    if depth > DEEPEST:
        return 0
    if isinstance(value, list):
        return sum(_written(each, depth + 1) for each in value)
    if not isinstance(value, dict):
        return 0
    texts = sum(len(each) for key, each in value.items() if key in WRITTEN and isinstance(each, str))
    return texts + sum(_written(each, depth + 1) for each in value.values() if isinstance(each, list))


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in IMAGES
