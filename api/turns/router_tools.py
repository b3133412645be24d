"""Which tools of a turn the router runs."""

from __future__ import annotations

from api.turns.tool_rounds import TurnTools
from api.turns.turn import Turn
from core.state import AppState


def router_tools_of(state: AppState, turn: Turn) -> TurnTools | None:
    """Those of a turn; None where there are none, and the answer of its model is all."""
    return None
