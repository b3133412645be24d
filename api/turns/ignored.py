"""What a server has ignored of a request, where its answer shows that: its client reads the name in `x-nomyo-ignored`;
of a stream, whose headers have left by then, in its last response."""

from __future__ import annotations

import logging

from api.turns.turn import Turn
from requests.heeded import ignored_demands

log = logging.getLogger("nomyo.responses")


def name_ignored(turn: Turn) -> None:
    """Names to the client what its completed answer does not heed."""
    if not (ignored := ignored_demands(turn.request.params, turn.builder.response)):
        return
    before = turn.headers.get("x-nomyo-ignored")
    names = [*(before.split(", ") if before else []), *ignored]
    turn.headers["x-nomyo-ignored"] = ", ".join(dict.fromkeys(names))
    turn.describes_itself = turn.describes_itself or bool(turn.request.stream)
    log.info("%s: the backend has ignored %s: %s", turn.id, ", ".join(ignored), turn.describe_way())
