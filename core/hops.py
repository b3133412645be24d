"""Routers behind routers: which of them a request has come through, so that none goes round and round.

A request to another router has `x-nomyo-via: ID, …`: the ids of those that it came through, the last one's at the end.
For a list of models a router asks with its own id alone: what the other only has from there is left out of the answer.
"""

from __future__ import annotations

import re
from contextvars import ContextVar

from core.errors import APIError

HEADER = b"x-nomyo-via"
# Nobody has more routers in a row.
MOST_HOPS = 16
_ID = re.compile(r"[\w-]{1,64}")

_via: ContextVar[tuple[str, ...]] = ContextVar("via", default=())


class RouterLoop(APIError):
    """A request has come back to a router that it came through."""

    status = 508
    code = "router_loop"


def arrive(given: bytes, router_id: str) -> None:
    """Notes for all that happens for this request which routers it came through. Raises `RouterLoop` where this one is
    among them, or where there are too many."""
    ids = tuple(_ID.findall(given.decode("latin-1"), 0, 4096))
    if router_id in ids or len(ids) > MOST_HOPS:
        raise RouterLoop("This request has come back to a router that it came through: their endpoints form a loop.")
    _via.set(ids)


def came_through() -> tuple[str, ...]:
    """The ids of the routers that this request came through, the last one's at the end."""
    return _via.get()


def line_of_request(router_id: str) -> bytes:
    """The header of a request to another router."""
    return _line(*_via.get(), router_id)


def line_of_look(router_id: str) -> bytes:
    """The header of a question for what a server has: nobody's but this router's, whoever has made it ask."""
    return _line(router_id) if router_id else b""


def _line(*ids: str) -> bytes:
    return b"%b: %b\r\n" % (HEADER, ", ".join(ids).encode())
