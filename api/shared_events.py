"""A background stream that another process makes, or has made: its events are read where the cluster keeps them, and
followed until it ends, in whichever way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from api.http.event_stream import LAST_EVENTS
from api.turns.background import Background
from core.state import AppState
from requests.events import TERMINAL, ResponseBuilder, replay, unfinished
from requests.hidden import drop
from requests.open_items import Event

# Who makes a stream may have died, and what keeps it be away: so often somebody who reads looks at the response itself.
LOOK_S = 1.0
# What comes before a turn runs.
BEFORE = frozenset({"response.created", "response.queued", "keepalive"})


async def shared_stream(
    state: AppState, row: Mapping[str, Any], owner: str, after: int
) -> AsyncGenerator[list[Event]] | None:
    """The events of a response with a `sequence_number` above `after`, to the last: those there are at once, the others
    as they come. None where they are not kept."""
    first = await state.cluster.events.read(row["id"], after)
    return None if first is None else _follow(state, row["id"], owner, after, first)


async def followed(state: AppState, job: Background, after: int = -1) -> AsyncGenerator[list[Event]]:
    """The events of a turn that this process has begun, with a `sequence_number` above `after`, to the last: also where
    another one has gone on with it."""
    has_begun = after >= 0
    async with aclosing(job.follow(after)) as here:
        async for events in here:
            yield events
            after = events[-1]["sequence_number"]
            has_begun = has_begun or any(event["type"] not in BEFORE for event in events)
    if job.is_taken_over:
        async with aclosing(_follow(state, job.id, job.owner, after, [], has_begun=has_begun)) as elsewhere:
            async for events in elsewhere:
                yield events


async def _follow(
    state: AppState, response_id: str, owner: str, after: int, events: list[Event], *, has_begun: bool = True
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
                    yield await _rest(state, row, owner, after, has_begun=has_begun)
                return


async def _rest(state: AppState, row: Mapping[str, Any], owner: str, after: int, *, has_begun: bool) -> list[Event]:
    """The events behind `after` of a response that has ended: the stored ones, or, where its process had no time to
    store them, its end. Who has seen nothing of it but that it waits gets all of it."""
    stored = await state.db.get_events(row["id"], owner=owner) or []
    if wanted := [event for event in stored if event["sequence_number"] > after]:
        return wanted
    response = drop(row["response"])
    builder = ResponseBuilder(unfinished(response))
    if not has_begun:
        builder.sequence_number = after + 1
        begun = builder.progress() if builder.started else []
        return [*begun, *replay(builder, response), builder.end()]
    builder.start()
    while builder.sequence_number <= after:
        builder.keep_alive()
    builder.take_end(response)
    builder.response["output"] = response["output"]
    error = [builder.error(response["error"])] if response.get("error") else []
    return [*error, builder.end()]
