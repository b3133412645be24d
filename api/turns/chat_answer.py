"""The answer of a backend that speaks chat completions.

chat_answer ──▶ chat_events       items → messages → chunks → events
                structured        the same, where the prompt must describe the JSON format, and the answer is checked
                allowed_answer    one more, where the model has called nothing but what the request forbids
                compacted         a summary of the conversation, as one sealed item
                compacted_first   a context that grew past its threshold: a summary, then the answer to what is left
"""

from __future__ import annotations

import logging
from functools import partial

from msgspec.structs import replace

from api.turns.allowed_answer import allowed_answer
from api.turns.backend import Backend, reached
from api.turns.chat_events import chat_events
from api.turns.chat_request import ChatRequest, apply, prepare_chat, with_files
from api.turns.compaction import can_shrink, summary_of
from api.turns.structured_answer import is_verified, structured
from api.turns.turn import Turn
from requests.tokens import estimated_tokens
from requests.tool_choice import NO_TOOLS

log = logging.getLogger("nomyo.responses")


async def chat_answer(backend: Backend, turn: Turn) -> None:
    """The events of the answer. Raises `InvalidRequest` for what the backend cannot be given."""
    request = turn.request
    if request.is_compaction:
        await _compacted(backend, turn)
        return
    chat = prepare_chat(backend, request)
    if chat.wanted:
        chat = await with_files(backend, request)
        turn.note_change("fetched_files")
    apply(backend, turn, chat)
    threshold = request.compact_threshold
    if threshold and can_shrink(request.items) and (tokens := estimated_tokens(chat.params)) > threshold:
        log.info("%s: about %d tokens are more than %d, compacting first", turn.id, tokens, threshold)
        await _compacted_first(backend, turn)
    else:
        await _translated(backend, turn, chat)


async def _translated(backend: Backend, turn: Turn, chat: ChatRequest) -> None:
    if chat.choice.allowed is not None:
        await allowed_answer(
            turn, chat, lambda params: _translated(backend, turn, replace(chat, params=params, choice=NO_TOOLS))
        )
    elif "response_format" in chat.params and (
        backend.kind.structured_outputs != "native" or is_verified(backend, turn)
    ):
        await structured(backend, turn, chat.params)
    else:
        await chat_events(backend, turn, chat.params)


async def _compacted(backend: Backend, turn: Turn) -> None:
    """The summary of the conversation, and nothing else."""
    item, usage = await summary_of(backend, turn.request)
    turn.emit(turn.builder.begin() + turn.builder.completion([item], finish_reason=None, usage=usage))


async def _compacted_first(backend: Backend, turn: Turn) -> None:
    """The summary, and then the answer to what it leaves."""
    item, _ = await summary_of(backend, turn.request)
    turn.emit(turn.builder.begin() + turn.builder.item(item))
    chat = await with_files(backend, turn.request, items=[*turn.request.input, item])
    apply(backend, turn, chat)
    await reached(turn, partial(_translated, backend, turn, chat))
