"""The answer to a chat request: its chunks, or the whole of it, as the events of a response."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from api.turns.backend import Backend, passed
from api.turns.turn import Turn
from backends.wire.errors import ANY_SERVER
from backends.wire.relay import NOWHERE, Out
from backends.wire.streams import Stream
from core.errors import BackendError, BackendRefused
from core.json import Json
from requests.chat import as_chunk, as_plain
from requests.chat_translator import ChatTranslator
from requests.chat_types import Dumped
from requests.emission import EMIT_NOTHING
from requests.endings import USUAL, ending_of
from requests.events import ResponseBuilder
from requests.open_items import Event
from requests.responses import chat_message_to_output_items, response_resource
from requests.thinking import OPENING, with_thoughts_apart

log = logging.getLogger("nomyo.responses")


async def chat_events(backend: Backend, turn: Turn, params: Json) -> None:
    """The answer to a chat request, as the events of a turn; of a changed one, where the backend refused the first."""
    await _answered(backend, turn.builder, params, turn.out)


async def whole_answer(backend: Backend, params: Json) -> ResponseBuilder:
    """The whole answer to a chat request, its calls by the backend's names. Nobody sees it grow."""
    resource = response_resource({}, response_id="", created_at=0, status="in_progress")
    builder = ResponseBuilder(resource, EMIT_NOTHING)
    await _answered(backend, builder, params, NOWHERE)
    if not builder.ended:
        builder.finish()
    return builder


async def _answered(backend: Backend, builder: ResponseBuilder, params: Json, out: Out) -> None:
    adapting = backend.adapting
    if adapting is not None:
        params = await adapting.prepared(params)
    while True:
        translator: ChatTranslator | None = None
        try:
            answer = await backend.create(params)
            if hasattr(answer, "choices"):  # whole: not asked to stream, or the backend does not care
                if output := builder.emission.encode(_events_of_whole(backend, builder, answer)):
                    out.write(output)
                return
            if backend.kind.think_tags != "off":
                builder.expect_think_tags(are_open=backend.kind.think_tags == "opened")
            errors = answer.errors if isinstance(answer, Stream) else ANY_SERVER
            translator = ChatTranslator(builder, errors)
            await passed(answer, translator, as_chunk, out)
            if builder.finish_reason not in USUAL:
                check(builder.finish_reason)
            return
        except BackendRefused as error:
            # Some servers refuse in a stream: it is a refusal like any other as long as nothing came before it.
            if adapting is None or (translator is not None and translator.begun):
                raise
            params = adapting.changed(params, error)


def _events_of_whole(backend: Backend, builder: ResponseBuilder, answer: Any) -> list[Event]:
    if not answer.choices:
        raise BackendError("The backend's answer is empty.", code="backend_empty_answer")
    choice = answer.choices[0]
    finish_reason = getattr(choice, "finish_reason", None)
    if finish_reason not in USUAL:
        check(finish_reason)
    message = choice.message if type(choice.message) is Dumped else as_plain(choice.message)
    tags = backend.kind.think_tags
    if tags == "opened" or (tags == "auto" and OPENING in (message.get("content") or "")):
        message = with_thoughts_apart(message, are_open=tags == "opened")
    if (logprobs := getattr(choice, "logprobs", None)) is not None:
        logprobs = as_plain(logprobs).get("content")
    items = chat_message_to_output_items(message, logprobs)
    events = builder.begin()
    return events + builder.whole(
        items,
        finish_reason=finish_reason,
        usage=as_plain(answer.usage),
    )


def check(finish_reason: str | None) -> None:
    """Raises a `BackendError` where a backend has given up its answer."""
    ending = ending_of(finish_reason)
    if ending is None:
        _log_unknown(str(finish_reason)[:80])
    elif ending == "failed":
        raise BackendError(f"The backend gave up its answer: {finish_reason}.", code="backend_gave_up")


@lru_cache(maxsize=100)
def _log_unknown(finish_reason: str) -> None:
    """Once for each."""
    log.warning(
        "A backend ended an answer with the reason %r, which nobody knows: it counts as completed", finish_reason
    )
