"""Messages of a WebSocket: what they hold, and errors as one."""

from __future__ import annotations

import re
from typing import Any

from core.errors import APIError, InvalidRequest, TooLarge
from core.json import Json
from requests.bounded_json import decode_bounded
from requests.open_items import Event
from requests.tools import Item

# These shape how a message travels; `read_create` has looked at those that it must not ignore.
ENVELOPE = frozenset({"type", "stream_id", "generate", "stream", "stream_options", "background"})


def decoded(data: str | bytes, max_mb: float, max_items: int) -> Json:
    """A message as an object, which may be `max_mb` large and hold as much as so many items do. Raises `TooLarge` or
    `InvalidRequest`."""
    if len(data) > max_mb * 1024 * 1024:
        raise TooLarge(f"The message is larger than {max_mb:g} MB.")
    message = decode_bounded(data.encode() if isinstance(data, str) else data, "message", max_items)
    if not isinstance(message, dict):
        raise InvalidRequest("A message must be a JSON object.")
    return message


def stream_id_of(message: Json) -> str | None:
    """The `stream_id` of a message, if it has one. Raises `InvalidRequest` for an invalid one."""
    stream_id = message.get("stream_id")
    if stream_id is None:
        return None
    if not (isinstance(stream_id, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,256}", stream_id)):
        raise InvalidRequest(
            "A stream_id has 1 to 256 letters, digits, '_', '.' and '-'.", param="stream_id", code="invalid_value"
        )
    return stream_id


def read_create(message: Json) -> tuple[Json, bool]:
    """The body of the turn that a message asks for, and whether the model shall answer."""
    if message.get("type") != "response.create":
        known = "'response.create', 'response.steer' or 'response.cancel'"
        raise InvalidRequest(f"The type of a message is {known}.", param="type", code="invalid_value")
    if message.get("background"):
        raise InvalidRequest("There are no background responses over a WebSocket.", param="background")
    generate = message.get("generate")
    if not isinstance(generate, bool | None):
        raise InvalidRequest("'generate' is true or false.", param="generate", code="invalid_value")
    body = {key: value for key, value in message.items() if key not in ENVELOPE}
    return {**body, "stream": True}, generate is not False


def input_behind(items: list[Item], given: Any) -> Any:
    """An input behind some items. What no input is stays as it is, and is refused."""
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    return [*items, *(given or ())] if isinstance(given, list | None) else given


def error_message(error: APIError) -> Event:
    """The message of an error that belongs to no response; with the headers that its reply would have, as OpenAI's."""
    message = {"type": "error", "status": error.status, "error": error.to_dict()}
    if headers := error.headers():
        message["headers"] = {name.lower(): value for name, value in headers.items()}
    return message
