"""A turn: one request, what it builds on, and the response that is being built for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from errors import InvalidRequest
from requests.events import ResponseBuilder
from requests.messages import Item
from requests.responses import (
    CreateParams,
    check_input,
    check_request,
    input_items,
    new_id,
    response_resource,
    without_cut_calls,
)


@dataclass
class Turn:
    """One request, and the response that is being built for it."""

    request: dict[str, Any]
    params: CreateParams
    history: list[Item]
    input: list[Item]
    builder: ResponseBuilder
    owner: str
    from_cache: bool = False
    row_begun: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        response_id: str = self.builder.response["id"]
        return response_id

    @property
    def model(self) -> str:
        return self.params.model or ""

    @property
    def stored(self) -> bool:
        return self.params.store is not False

    @property
    def stream(self) -> bool:
        return bool(self.params.stream)

    @property
    def background(self) -> bool:
        return bool(self.params.background)

    @property
    def uses_cache(self) -> bool:
        return bool(self.params.nomyo and self.params.nomyo.cache)


async def begin_turn(state: Any, body: Any, owner: str) -> Turn:
    """A turn, checked. Its id and times are made here. Raises `InvalidRequest`."""
    params = check_request(body)
    history = await resolve_history(state, params.previous_response_id)
    new_items = input_items(params.input)
    check_input([*history, *new_items], len(history))
    resource = response_resource(
        body,
        response_id=new_id("resp"),
        created_at=int(time.time()),
        status="queued" if params.background else "in_progress",
    )
    taken = [item["call_id"] for item in (*history, *new_items) if item.get("type") == "function_call"]
    return Turn(body, params, history, new_items, ResponseBuilder(resource, taken_call_ids=taken), owner)


async def resolve_history(state: Any, previous_response_id: str | None) -> list[Item]:
    """The items of all turns before this one, oldest first. Instructions are not among them: each turn gives its own."""
    if not previous_response_id:
        return []
    chain = await state.db.get_chain(previous_response_id)
    if not chain or chain[0]["previous_response_id"]:
        missing = chain[0]["previous_response_id"] if chain else previous_response_id
        raise InvalidRequest(
            f"Previous response with id '{missing}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if chain[-1]["status"] in ("queued", "in_progress"):
        raise InvalidRequest(
            f"Response '{previous_response_id}' is still {chain[-1]['status']}: it can be continued when it has ended.",
            param="previous_response_id",
        )
    items: list[Item] = []
    for row in chain:
        items += row["input"]
        items += (row["response"] or {}).get("output", [])
    return without_cut_calls(items)


# Ours to act on: upstream knows nothing of the first two, and would run the third by itself.
NOT_SENT_UPSTREAM = frozenset({"nomyo", "previous_response_id", "background"})


def native_input(turn: Turn) -> Any:
    """The input for a native backend: as it came, behind the history. Upstream stores nothing, so it knows none of our ids,
    and reasoning that it cannot open again is of no use to it."""
    if not turn.history:
        return turn.params.input
    history = [
        item if item.get("role") == "assistant" or item["type"] == "reasoning" else _without_id(item)
        for item in turn.history
        if item["type"] != "reasoning" or item.get("encrypted_content")
    ]
    return [
        *history,
        *(turn.params.input if isinstance(turn.params.input, list) else map(_without_id, turn.input)),
    ]


def _without_id(item: Item) -> Item:
    return {key: value for key, value in item.items() if key != "id"}


# These shape how an answer travels and what is kept of it, not what it says.
NOT_IN_CACHE_KEY = frozenset(
    {"input", "previous_response_id", "stream", "stream_options", "store", "background", "metadata", "nomyo"}
)


def cache_key(turn: Turn) -> list[Any]:
    """The whole request that a backend would see, and whose it is: parameters first, then the items of history and input,
    without the ids that are new in every turn."""
    shaping = {key: value for key, value in turn.request.items() if key not in NOT_IN_CACHE_KEY and value is not None}
    items = [{key: value for key, value in item.items() if key not in ("id", "status")} for item in turn.history]
    items += [{key: value for key, value in item.items() if key not in ("id", "status")} for item in turn.input]
    return [{"owner": turn.owner, **shaping}, *items]
