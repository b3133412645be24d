"""GET /api/usage: who has used what, by hour or day, as JSON or CSV."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from starlette.responses import Response

from api.http.keys import principal_of
from api.http.replies import json_response
from api.http.routes import Routes
from core.errors import InvalidRequest
from core.state import AppState
from core.usage import DAY_S, HOUR_S, By, UsageRow, Use, time_of

routes = Routes(tags=["usage"])

STEPS = {"hour": HOUR_S, "day": DAY_S}
# Where no beginning is given: today and the days before.
DAYS = 7


@routes.get("/api/usage")
async def list_usage(
    request: Request,
    begin: Annotated[str, Query(alias="from")] = "",
    end: Annotated[str, Query(alias="to")] = "",
    by: By = "key",
    step: Literal["hour", "day"] = "day",
    format: Literal["", "json", "csv"] = "",
) -> Response:
    """What was used from `from` to `to` (a day or time, `2027-01-31T12:00:00Z`, or Unix seconds; by default the last
    seven days), by key, model, endpoint or owner, in steps of an hour or a day, UTC: requests, errors, tokens, seconds
    of a slot, cache hits, cost. Days of more than a month ago have no hours. One's own; for admins, of all. Answers
    `{object, from, to, by, step, data, total}`, or CSV (`format=csv`, `Accept: text/csv`)."""
    state: AppState = request.app.state
    principal = principal_of(request)
    now = int(time.time())
    to_s = _time(end, "to") if end else now + 1
    from_s = _time(begin, "from") if begin else now // DAY_S * DAY_S - (DAYS - 1) * DAY_S
    if from_s > to_s:
        raise InvalidRequest("'from' lies behind 'to'.", param="from", code="invalid_value")
    if (written := state.usage.flush()) is not None:
        await written
    owner = None if principal.is_admin else principal.owner
    rows = await state.db.list_usage(from_s, to_s, by=by, step=STEPS[step], owner=owner)
    if format == "csv" or (not format and "text/csv" in request.headers.get("accept", "")):
        return Response(_as_csv(by, rows), media_type="text/csv; charset=utf-8")
    total = Use()
    for row in rows:
        total = total.plus(row.used)
    return json_response(
        {
            "object": "usage",
            "from": from_s,
            "to": to_s,
            "by": by,
            "step": step,
            "data": [{"at": row.at, by: row.name, **_counts(row.used)} for row in rows],
            "total": _counts(total),
        }
    )


def _counts(used: Use) -> dict[str, Any]:
    return {**used._asdict(), "slot_s": round(used.slot_s, 3), "cost": round(used.cost, 9)}


def _as_csv(by: By, rows: list[UsageRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(("at", by, *Use._fields))
    for row in rows:
        at = datetime.fromtimestamp(row.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        writer.writerow((at, row.name, *_counts(row.used).values()))
    return text.getvalue()


def _time(text: str, param: str) -> int:
    """Unix seconds, of a parameter. Raises `InvalidRequest`."""
    try:
        # A plus in an address is a space.
        return time_of(text.replace(" ", "+") if "T" in text else text)
    except ValueError as error:
        raise InvalidRequest(f"Invalid value for '{param}': {error}.", param=param, code="invalid_value") from None
