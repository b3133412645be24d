"""Answers out of the cache: what they are kept under, and one of them as the answer to a turn."""

from __future__ import annotations

import time
from typing import Any

from api.turns.turn import Turn, TurnRequest
from core.json import Json
from requests.events import replay
from requests.open_items import Event
from requests.tools import Item

CACHE_ROUTE = "openai_responses"
# These shape how an answer travels and what is kept of it, not its content.
NOT_IN_CACHE_KEY = frozenset(
    {
        *("input", "previous_response_id", "conversation", "stream", "stream_options", "store", "background"),
        *("metadata", "nomyo"),
    }
)


def cache_key(request: TurnRequest) -> list[Any]:
    """Whose a request is, and all of it that a backend would see: parameters, then the items of history and input,
    without the ids that are new in every turn."""
    shaping = {key: value for key, value in request.body.items() if key not in NOT_IN_CACHE_KEY and value is not None}
    # Whose it is stands apart: a request may have any key.
    return [{"principal": request.principal.cache_scope}, shaping, *map(_lasting, request.items)]


def _lasting(item: Item) -> Item:
    return {key: value for key, value in item.items() if key not in ("id", "status")}


def replayed(turn: Turn, cached: Json) -> list[Event]:
    """A cached response, as this turn's: new ids, for it is stored and continued like any other."""
    turn.from_cache = True
    turn.headers["x-nomyo-cache"] = "hit"
    turn.builder.response["model"] = cached["model"]
    items = [{key: value for key, value in item.items() if key != "id"} for item in cached["output"]]
    return replay(turn.builder, {**cached, "output": items, "completed_at": int(time.time())})
