"""A background stream that another process makes, or has made: its events are read where the cluster keeps them, and
followed until it ends, in whichever way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from api.http.event_stream import LAST_EVENTS
from core.state import AppState
from requests.events import TERMINAL, ResponseBuilder, unfinished
from requests.hidden import drop
from requests.open_items import Event

# Who makes a stream may have died, and what keeps it be away: so often somebody who reads looks at the response itself.
LOOK_S = 1.0


async def shared_stream(
    state: AppState, row: Mapping[str, Any], owner: str, after: int
) -> AsyncGenerator[list[Event]] | None:
    """The events of a response with a `sequence_number` above `after`, to the last: those there are at once, the others
    as they come. None where they are not kept."""
    first = await state.cluster.events.read(row["id"], after)
    return None if first is None else _follow(state, row["id"], owner, after, first)


async def _follow(
    state: AppState, response_id: str, owner: str, after: int, events: list[Event]
) -> AsyncGenerator[list[Event]]:
    shared = state.cluster.events
    with shared.news(response_id) as news:
        while True:
            if events:
                yield events
                after = events[-1]["sequence_number"]
                if events[-1]["type"] in LAST_EVENTS:
                    return
            news.clear()
            events = await shared.read(response_id, after) or []
            if events:
                continue
            try:
                async with asyncio.timeout(LOOK_S):
                    await news.wait()
            except TimeoutError:
                row = await state.db.get_response(response_id, owner=owner)
                if row is not None and row["status"] not in TERMINAL:
                    continue
                # What it ended with may have come meanwhile.
                if events := await shared.read(response_id, after) or []:
                    continue
                if row is not None:
                    yield await _rest(state, row, owner, after)
                return


async def _rest(state: AppState, row: Mapping[str, Any], owner: str, after: int) -> list[Event]:
    """The events behind `after` of a response that has ended: the stored ones, or, where its process had no time to
    store them, its end."""
    stored = await state.db.get_events(row["id"], owner=owner) or []
    if wanted := [event for event in stored if event["sequence_number"] > after]:
        return wanted
    response = drop(row["response"])
    builder = ResponseBuilder(unfinished(response))
    builder.start()
    while builder.sequence_number <= after:
        builder.keep_alive()
    builder.take_end(response)
    error = [builder.error(response["error"])] if response.get("error") else []
    return [*error, builder.end()]
