"""A JSON object with one member changed, and all else in it as it was spelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from requests.bounded_json import TooDeep
from requests.chat import DecodeError

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_model(body: bytes, model: str) -> bytes:
    """The body of a request, for another model. All else in it stays as it is spelled. Raises `TooDeep`."""
    return _edited(body, lambda members: members | {"model": model})


def without(body: bytes, name: str) -> bytes:
    """The body of a request without one of its parameters. All else in it stays as it is spelled. Raises `TooDeep`."""
    return _edited(body, lambda members: {key: value for key, value in members.items() if key != name})


def _edited(body: bytes, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    try:
        try:
            return msgspec.json.encode(edit(_members.decode(body)))
        except DecodeError:  # half a surrogate pair, or a name that is no UTF-8
            return json.dumps(edit(json.loads(body.decode("utf-8", "replace")))).encode()
    except RecursionError:
        raise TooDeep from None
