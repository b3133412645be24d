"""What a store gives back, and how a response is cut into what a row holds.

a row     input: JSON of the items of its own turn │ output: JSON of its output items │ response: JSON of the rest
a turn    JSON of the items of input and output, without brackets: a history is its turns, joined
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from core.errors import Interrupted
from core.json import Json, decode_json, encode_json

Item = Json
# The response object, as far as it has come.
Response = Json
Event = Json

UNFINISHED = frozenset({"queued", "in_progress"})
INTERRUPTED = Interrupted()
NO_ITEMS = b"[]"


class StoredResponse(TypedDict):
    """A response as it is kept. `input` are the items of its own turn; `response` is the object, or None where there
    was none yet."""

    id: str
    owner: str
    previous_response_id: str | None
    conversation: str | None
    model: str
    status: str
    created_at: int
    input: list[Item]
    response: Response | None


class UnfinishedResponse(StoredResponse):
    """One that has not ended. `request` is what `store_response` was given to run it again."""

    request: bytes | None


class ListedResponse(TypedDict):
    """A response in a list of many: what it is, and not what is in it. `number` is its place among all; `bytes` is how
    much its own items take."""

    number: int
    id: str
    owner: str
    previous_response_id: str | None
    conversation: str | None
    model: str
    status: str
    created_at: int
    bytes: int


class ListedConversation(TypedDict):
    """A conversation in a list of many; `used_at` is when it was made, or got its last items, of which it has
    `items`."""

    number: int
    id: str
    owner: str
    created_at: int
    used_at: int
    items: int


class Conversation(TypedDict):
    """A conversation that a client has made, without its items."""

    id: str
    owner: str
    created_at: int
    metadata: Json


@dataclass(frozen=True, slots=True)
class History:
    """The items of a response and of all before it, oldest first. `missing` is the id of the one that is not there,
    `unfinished` the status of a response that has not ended, `conversation` the id of the conversation that the first
    of them is a turn of: what that had before is not among the items."""

    items: list[Item]
    missing: str | None = None
    unfinished: str | None = None
    conversation: str | None = None


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items of a longer list. `has_more`: there are others behind them. `knows_after`: what they should begin
    behind is in the list."""

    items: list[Item]
    has_more: bool = False
    knows_after: bool = True


def output_and_rest(response: Response | None) -> tuple[bytes | None, bytes | None]:
    """The JSON of a response's output, and of the response without it."""
    if response is None:
        return None, None
    if "output" not in response:
        return None, encode_json(response)
    return encode_json(response["output"]), encode_json({**response, "output": None})


def response_of(output: bytes | None, rest: bytes | None) -> Response | None:
    """The response that `output_and_rest` has taken apart."""
    if rest is None:
        return None
    response: Response = decode_json(rest)
    return response if output is None else {**response, "output": decode_json(output)}


def interrupted(response: Response | None) -> Response:
    """A response that was running when its process stopped, as failed."""
    return {**(response or {}), "status": "failed", "error": INTERRUPTED.to_response_error()}


def turn_of(given: bytes, output: bytes | None) -> bytes:
    """A turn, of the JSON of its input and of its output. It takes as much memory as it is long: what orjson has made
    is a piece of more, and to keep many of those leaves holes between them."""
    return b",".join([array[1:-1] for array in (given, output or NO_ITEMS) if array != NO_ITEMS])


def items_of(turns: Iterable[bytes]) -> list[Item]:
    """The items of turns."""
    items: list[Item] = decode_json(b"[%b]" % b",".join(filter(None, turns)))
    return items


def items_with_ids(rows: Iterable[tuple[str, bytes]]) -> list[Item]:
    """The items of rows of an id and an item's JSON, each with that id."""
    ids, items = [*zip(*rows, strict=True)] or ((), ())
    return [{**item, "id": id_} for id_, item in zip(ids, items_of(items), strict=True)]


def ids_of(items: Iterable[Item]) -> list[str]:
    """The ids of those items that have one. A backend's may be anything, and no database takes a NUL."""
    return [id_ for item in items if isinstance(id_ := item.get("id"), str) and id_ and "\0" not in id_]
