"""The answer to a chat request: its chunks, or the whole of it, as the events of a response."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from api.http.replies import Express
from api.turns.backend import Backend, batches_of
from backends.wire.streams import BackendStream
from core.errors import BackendError, BackendRefused
from core.json import Json
from requests.chat import as_chunk, as_plain
from requests.chat_types import Dumped
from requests.endings import USUAL, ending_of
from requests.events import ResponseBuilder
from requests.open_items import Event
from requests.responses import chat_message_to_output_items, response_resource
from requests.thinking import OPENING, with_thoughts_apart

log = logging.getLogger("nomyo.responses")


async def chat_events(
    backend: Backend, builder: ResponseBuilder, params: Json, express: Express | None = None
) -> AsyncGenerator[list[Event]]:
    """The answer to a chat request, as the events of `builder`; of a changed one, where the backend refused the
    first."""
    adapting = backend.adapting
    if adapting is not None:
        params = await adapting.prepared(params)
    while True:
        begun = False
        try:
            answer = await backend.create(params)
            if hasattr(answer, "choices"):  # whole: not asked to stream, or the backend does not care
                yield _events_of_whole(backend, builder, answer)
                return
            if backend.kind.think_tags != "off":
                builder.expect_think_tags(are_open=backend.kind.think_tags == "opened")
            is_ours = isinstance(answer, BackendStream)
            if is_ours and express is not None:
                answer.shortcut(express, builder.chunks, builder.frame_of)
            async with aclosing(batches_of(answer)) as batches:
                async for chunks in batches:
                    begun = True
                    events = builder.begin()
                    if chunks:
                        events += builder.chunks(chunks if is_ours else [as_chunk(chunk) for chunk in chunks])
                    else:
                        check(builder.finish_reason)
                        events += builder.close()
                    if events or builder.emits == "nothing":
                        yield events
            if builder.finish_reason not in USUAL:
                check(builder.finish_reason)
            return
        except BackendRefused as error:
            # Some servers refuse in a stream: it is a refusal like any other as long as nothing came before it.
            if begun or adapting is None:
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


async def whole_answer(backend: Backend, params: Json) -> ResponseBuilder:
    """The whole answer to a chat request, its calls by the backend's names. Nobody sees it grow."""
    builder = ResponseBuilder(response_resource({}, response_id="", created_at=0, status="in_progress"))
    builder.emits = "nothing"
    async with aclosing(chat_events(backend, builder, params)) as batches:
        async for _ in batches:
            pass
    if not builder.ended:
        builder.finish()
    return builder
