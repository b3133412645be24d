"""Whoever was chosen for a turn, and its answer as it arrives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from msgspec import Struct

from api.turns.adapting import Adapting
from backends.files import FileFetcher
from backends.kinds.kind import Kind
from backends.wire.streams import BackendStream
from core.errors import BackendUnreachable
from core.seals import Sealer
from requests.open_items import Event


class Backend(Struct, frozen=True, eq=False):
    """An endpoint, as a turn sees it. `model` is the model's name there; `create` sends a request, chat or native, and
    gives the answer or its stream. `refuses_hosted_tools`: tools that it cannot run are an error, not left out.
    `adapting` changes what it refuses; None: nothing is changed. `files` fetches files that are named by URL."""

    model: str
    kind: Kind
    sealer: Sealer
    create: Callable[[dict[str, Any]], Awaitable[Any]]
    refuses_hosted_tools: bool = False
    adapting: Adapting | None = None
    files: FileFetcher | None = None
    # Asks its own /responses/compact; None where it has none.
    compact: Callable[[dict[str, Any]], Awaitable[dict[str, Any] | None]] | None = None


async def reached(ask: Callable[[], AsyncGenerator[list[Event]]]) -> AsyncGenerator[list[Event]]:
    """The events of another answer within a turn, which no failover sees. A server that is about to close the
    connection of the answer before is asked once more, if nothing has come."""
    for is_last in (False, True):
        has_begun = False
        try:
            async with aclosing(ask()) as batches:
                async for events in batches:
                    has_begun = True
                    yield events
        except BackendUnreachable:
            if has_begun or is_last:
                raise
        else:
            return


def batches_of(answer: Any) -> AsyncGenerator[list[Any]]:
    """What each network read of a backend's stream held. A stream that is not ours gives its pieces one by one."""
    return answer.batches() if isinstance(answer, BackendStream) else _one_by_one(answer)


async def _one_by_one(answer: Any) -> AsyncGenerator[list[Any]]:
    try:
        async for piece in answer:
            yield [piece]
    finally:
        await (answer.close() if hasattr(answer, "close") else answer.aclose())
