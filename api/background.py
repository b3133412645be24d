"""Background turns that a process has left behind: those that waited run again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from api.responses import run_turn
from api.turns.background import Background
from api.turns.turn import begin_turn_again
from core.errors import APIError, ServerError
from core.state import AppState

# `db.UnfinishedResponse`
Row = TypeVar("Row", bound=Mapping[str, Any])

log = logging.getLogger("nomyo.background")


async def run_again(state: AppState, rows: Iterable[Row]) -> list[Row]:
    """Of responses that have not ended and that no process is working on, oldest first, queues those that only waited,
    and with `background.rerun` those that had begun. Gives the others. Raises `ServerError` where the store fails."""
    others: list[Row] = []
    again = 0
    for row in rows:
        if _runs_again(state, row):
            again += await run_here(state, row)
        else:
            others.append(row)
    if again:
        log.info("%d background responses waited when the router stopped: they run again", again)
    return others


def _runs_again(state: AppState, row: Mapping[str, Any]) -> bool:
    return row["request"] is not None and (row["status"] == "queued" or state.config.background.rerun)


async def run_here(state: AppState, row: Mapping[str, Any]) -> bool:
    """Queues a response here that another process has begun. Gives whether it could be; if not, the response holds the
    reason."""
    try:
        turn = await begin_turn_again(state, row)
        turn.row_begun = True
        job = Background(turn, state, partial(run_turn, state, turn), is_again=True)
        await job.recall()
        job.begin()
        if row["status"] != "queued":
            state.db.update_response(turn.id, turn.builder.response, owner=turn.owner)
        state.tasks.submit(job, is_accepted=True)
        job.share()
        return True
    except APIError as error:
        reason = error
    except Exception:
        log.exception("%s cannot run again", row["id"])
        reason = ServerError("The router failed to run this response again.")
    failed = {**(row["response"] or {}), "status": "failed", "error": reason.to_response_error()}
    await state.db.update_response(row["id"], failed, owner=row["owner"])
    return False
