"""The answer to a request that allows some tools alone: a model that does nothing but call others is asked once
more."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from api.turns.adapting import TOOL_PARAMS
from api.turns.backend import reached
from api.turns.chat_request import ChatRequest
from api.turns.turn import Turn
from core.errors import ModelFailed
from core.json import Json
from requests.endings import incomplete_reason
from requests.open_items import Event

log = logging.getLogger("nomyo.responses")

Ask = Callable[[Json], AsyncGenerator[list[Event]]]


async def allowed_answer(turn: Turn, chat: ChatRequest, ask: Ask) -> AsyncGenerator[list[Event]]:
    """The events of the answer, which `ask` gives to the parameters of a chat request. Where nothing of it may reach
    the client, those of another, for which the model was shown only what it may call. Raises `ModelFailed` if that one
    is no better."""
    builder, params = turn.builder, chat.params
    usage: Json | None = None
    for is_second in (False, True):
        answer = reached(partial(_asked, ask, params)) if is_second else ask({**params})
        try:
            async with aclosing(answer) as batches:
                async for events in batches:
                    yield events
        finally:
            if is_second:
                builder.add_usage(usage)
        if closed := builder.close():
            yield closed
        if not builder.is_mute or incomplete_reason(builder.finish_reason):
            return
        log.info("%s: the model called only what the request forbids%s", turn.id, ", twice" if is_second else "")
        if is_second:
            break
        narrowed = chat.choice.narrowed()
        params = {key: value for key, value in params.items() if key not in TOOL_PARAMS or narrowed.tools}
        if narrowed.tools:
            params |= {"tools": narrowed.tools, "tool_choice": narrowed.chat}
        turn.note_change(ASKED_AGAIN)
        usage = builder.chat_usage
        builder.begin_again()
    raise only_forbidden_calls(builder.suppressed, ", also when it was asked again")


def only_forbidden_calls(names: list[str], when: str = "") -> ModelFailed:
    """The error of an answer that has nothing but calls of these, which its request forbids."""
    called = ", ".join(f"'{name[:64]}'" for name in dict.fromkeys(names))
    return ModelFailed(
        f"The model called {called}, which the request does not allow, and gave no other answer{when}.",
        code="forbidden_call",
    )


def _asked(ask: Ask, params: Json) -> AsyncGenerator[list[Event]]:
    return ask({**params})


ASKED_AGAIN = "tools=allowed"
