"""The answer to a request that allows some tools alone: a model that does nothing but call others is asked once
more."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from api.turns.adapting import TOOL_PARAMS
from api.turns.backend import reached
from api.turns.chat_request import ChatRequest
from api.turns.turn import Turn
from core.errors import ModelFailed
from core.json import Json
from requests.endings import incomplete_reason

log = logging.getLogger("nomyo.responses")

Ask = Callable[[Json], Awaitable[None]]


async def allowed_answer(turn: Turn, chat: ChatRequest, ask: Ask) -> None:
    """The answer, which `ask` gives to the parameters of a chat request. Where nothing of it may reach the client,
    another one, for which the model was shown only what it may call. Raises `ModelFailed` if that one is no better."""
    builder = turn.builder
    await ask({**chat.params})
    if _is_answered(turn):
        return
    log.info("%s: the model called only what the request forbids", turn.id)
    narrowed = chat.choice.narrowed()
    params = {key: value for key, value in chat.params.items() if key not in TOOL_PARAMS or narrowed.tools}
    if narrowed.tools:
        params |= {"tools": narrowed.tools, "tool_choice": narrowed.chat}
    turn.note_change(ASKED_AGAIN)
    usage = builder.chat_usage
    builder.begin_again()
    try:
        await reached(turn, lambda: ask({**params}))
    finally:
        builder.add_usage(usage)
    if not _is_answered(turn):
        log.info("%s: the model called only what the request forbids, twice", turn.id)
        raise only_forbidden_calls(builder.suppressed, ", also when it was asked again")


def _is_answered(turn: Turn) -> bool:
    """Whether something of the answer, which is closed with this, has reached the client, or would have at its end."""
    builder = turn.builder
    turn.emit(builder.close())
    return not builder.is_mute or incomplete_reason(builder.finish_reason) is not None


def only_forbidden_calls(names: list[str], when: str = "") -> ModelFailed:
    """The error of an answer that has nothing but calls of these, which its request forbids."""
    called = ", ".join(f"'{name[:64]}'" for name in dict.fromkeys(names))
    return ModelFailed(
        f"The model called {called}, which the request does not allow, and gave no other answer{when}.",
        code="forbidden_call",
    )


ASKED_AGAIN = "tools=allowed"
