"""Whoever was chosen for a turn, and its answer as it arrives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from msgspec import Struct

from api.turns.adapting import Adapting
from api.turns.turn import Turn
from backends.files import FileFetcher
from backends.kinds.kind import Kind
from backends.wire.relay import Out, Relay, pump
from backends.wire.streams import Stream
from core.errors import BackendUnreachable
from core.seals import Sealer
from requests.translator import Translator

T = TypeVar("T")


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


async def reached(turn: Turn, ask: Callable[[], Awaitable[None]]) -> None:
    """Another answer within a turn, which no failover sees. A server that is about to close the connection of the
    answer before is asked once more, if nothing has come."""
    made = turn.builder.sequence_number
    try:
        await ask()
    except BackendUnreachable:
        if turn.builder.sequence_number != made:
            raise
        await ask()


async def passed(answer: Any, translator: Translator[T], piece: Callable[[Any], T], out: Out) -> None:
    """Passes a backend's stream on, to its end. One that is not ours (an SDK's) gives its pieces one by one, each as
    `piece` makes it. Raises what is wrong with it."""
    if isinstance(answer, Stream):
        await Relay(answer.answer, translator, out, answer.begins).run()
    else:
        await pump(answer, lambda given: translator.take([piece(given)]), translator, out)
