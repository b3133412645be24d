"""A turn as a row of the live page: what is known of it, and nothing of what was asked or answered. Times are
milliseconds behind its beginning, None where they never came."""

from __future__ import annotations

from backends.fleet.routing import Routing
from core.json import Json
from core.turn_record import TurnRecord


def ended_row(record: TurnRecord) -> Json:
    """A turn that has ended."""
    began_s, tokens = record.began_s, record.tokens

    def ms(at_s: float) -> float | None:
        return round(max(0.0, at_s - began_s) * 1000, 1) if at_s else None

    return {
        "id": record.id or record.request.id.decode("latin-1"),
        "at": round(record.ended_at, 3),
        "door": record.door,
        "model": record.model,
        "endpoint": record.endpoint,
        "owner": record.principal.owner,
        "key": record.principal.key,
        "status": record.status,
        "error": record.error or None,
        "input": tokens.input,
        "cached": tokens.cached,
        "output": tokens.output,
        "reasoning": tokens.reasoning,
        "is_estimated": record.is_estimated,
        "from_cache": record.from_cache,
        "waited_ms": round(record.waited_s * 1000, 1),
        "asked_ms": ms(record.asked_s),
        "answered_ms": ms(record.answered_s),
        "first_ms": ms(record.first_s),
        "total_ms": round(record.took_s * 1000, 1),
        "attempts": len(record.tries),
        "tries": [
            {"endpoint": one.endpoint, "ms": round((one.ended_s - one.asked_s) * 1000, 1), "error": one.error}
            for one in record.tries
            if one.error
        ],
        "tools": [
            {
                "kind": one.kind,
                "name": one.name,
                "ms": round((one.ended_s - one.began_s) * 1000, 1),
                "has_failed": one.has_failed,
            }
            for one in record.tools
        ],
    }


def running_row(routing: Routing, process: str, now: float, at: float) -> Json:
    """A request that an endpoint is asked now. `now` is the time of the monotonic clock, `at` the same as Unix
    time."""
    return {
        "id": f"{process}-{id(routing):x}",
        "model": routing.model,
        "endpoint": routing.endpoint,
        "since": round(at - (now - routing.began_s), 3),
        "asked_ms": round((routing.asked_s - routing.began_s) * 1000, 1),
        "attempts": routing.attempts,
    }
