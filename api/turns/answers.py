"""Who answers a turn: the sources of its events.

replayed        a cached response
native_answer   a backend that speaks Responses
chat_answer     a backend that speaks chat completions:
    translated      items → messages → chunks → events
    structured      likewise, for a backend that must be told its JSON format, and whose answer is checked
    compacted       a summary of the conversation, as one sealed item
    with a context that grew past its threshold: a summary first, then the answer to what is left
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson

from api.http.replies import Express
from api.turns.turn import SEALED, Turn, native_params, opened
from backends.fleet.pool import printable
from backends.kinds.kind import Kind
from backends.wire.failures import refusal_of
from backends.wire.streams import BackendStream, NativeEvent, NativeRun
from core.errors import BackendError, ModelFailed, Unsupported
from requests.chat import as_chunk, as_plain
from requests.events import ResponseBuilder, replay
from requests.messages import responses_input_to_messages, without_superseded
from requests.open_items import Event
from requests.params import chat_request
from requests.responses import chat_message_to_output_items, new_id, output_text, response_resource
from requests.structured import Checker, format_prompt, repair_prompt
from requests.thinking import with_thoughts_apart
from requests.tokens import estimated_tokens
from requests.tools import NO_TOOLS, OPENAI_TOOLS, Item, ToolBook, tool_choice_responses_to_chat

log = logging.getLogger("nomyo.responses")


@dataclass(slots=True)
class Backend:
    """Whoever was chosen for a turn. `create` sends a request, chat or native, and gives the answer or its stream."""

    model: str
    kind: Kind
    sealer: Any
    create: Callable[[dict[str, Any]], Awaitable[Any]]
    refuses_hosted_tools: bool = False


def replayed(turn: Turn, cached: dict[str, Any]) -> list[Event]:
    """A cached response, as this turn's: new ids, for it is stored and continued like any other."""
    turn.from_cache = True
    turn.headers["x-nomyo-cache"] = "hit"
    items = [{key: value for key, value in item.items() if key != "id"} for item in cached["output"]]
    return replay(turn.builder, {**cached, "output": items, "completed_at": int(time.time())})


async def native_answer(backend: Backend, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The answer of a backend that speaks Responses: the request goes out as it came, with the history that only we know."""
    answer = await backend.create(native_params(turn, backend.model, backend.sealer))
    if hasattr(answer, "model_dump"):
        yield turn.builder.adopt_whole(answer.model_dump())
        return
    builder = turn.builder
    if turn.express is not None and isinstance(answer, BackendStream):
        answer.shortcut(
            turn.express,
            lambda batch: [told for piece in batch for told in _adopted(builder, piece)],
            builder.relay_alone,
        )
    async with aclosing(batches_of(answer)) as batches:
        async for batch in batches:
            events: list[Any] = []
            for piece in map(_as_native, batch):
                if piece.type == "error" and isinstance(piece, NativeEvent):
                    if events:
                        yield events
                    event = piece.model_dump()
                    described = event.get("error") or event
                    raise refusal_of(described.get("status") or 500, described)
                events += _adopted(builder, piece)
            if events:
                yield events
    if not builder.ended:
        raise BackendError("The backend ended its answer in the middle.", code="backend_disconnected")


def _as_native(event: Any) -> NativeEvent | NativeRun:
    """Events of upstream's, also of an SDK that stands in for our client."""
    if isinstance(event, NativeEvent | NativeRun):
        return event
    dumped = event.model_dump()
    return NativeEvent(dumped["type"], dumped.get("sequence_number"), orjson.dumps(dumped))


def _adopted(builder: ResponseBuilder, piece: NativeEvent | NativeRun) -> list[Any]:
    """Events of upstream's as ours."""
    if isinstance(piece, NativeEvent):
        frame = builder.relay(piece.type, piece.number, [piece.data])
        return builder.adopt(piece.model_dump()) if frame is None else [frame]
    frames = builder.relay(piece.type, piece.number, piece.datas)
    return [told for event in piece.events() for told in _adopted(builder, event)] if frames is None else [frames]


def chat_answer(backend: Backend, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The answer of a chat-completions backend."""
    if turn.is_compaction:
        return _compacted(backend, turn)
    params = chat_params(backend, turn)
    threshold = turn.compact_threshold
    if threshold and _has_more_to_tell(turn) and (tokens := estimated_tokens(params)) > threshold:
        log.info("%s: about %d tokens are more than %d, compacting first", turn.id, tokens, threshold)
        return _compacted_first(backend, turn)
    return _translated(backend, turn, params)


def _translated(backend: Backend, turn: Turn, params: dict[str, Any]) -> AsyncGenerator[list[Event]]:
    if "response_format" in params and backend.kind.structured_outputs != "native":
        return _structured(backend, turn, params)
    return _chat_events(backend, turn.builder, params, turn.express)


async def _compacted(backend: Backend, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The summary of the conversation, and nothing else."""
    item, usage = await _summary(backend, turn)
    yield turn.builder.begin() + turn.builder.completion([item], finish_reason=None, usage=usage)


async def _compacted_first(backend: Backend, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The summary, and then the answer to what it leaves."""
    item, _ = await _summary(backend, turn)
    yield turn.builder.begin() + turn.builder.item(item)
    params = chat_params(backend, replace(turn, input=[*turn.input, item]))
    async with aclosing(_translated(backend, turn, params)) as batches:
        async for events in batches:
            yield events


def _has_more_to_tell(turn: Turn) -> bool:
    """Whether a compaction would leave anything out: what people said stays."""
    items = without_superseded([*turn.history, *turn.input])
    return len(without_superseded([*items, {"type": "compaction"}])) <= len(items)


# ── chat completions ─────────────────────────────────────────────────────────────────────────────────────────────────


def chat_params(backend: Backend, turn: Turn, *, stream: bool | None = None) -> dict[str, Any]:
    """The chat request for a turn; its builder learns what the backend is offered. Tools that have no chat form are named to
    the client, or refused. Raises `InvalidRequest` for what the backend cannot be given."""
    if turn.params.prompt:
        raise Unsupported("Stored prompts are known to OpenAI alone.", param="prompt")
    kind = backend.kind
    items = [*turn.history, *turn.input]
    earlier, places = len(turn.history), None
    if not SEALED.isdisjoint([item["type"] for item in items]):
        history, given = opened(backend.sealer, turn.history), opened(backend.sealer, turn.input)
        items = without_superseded([*history, *given])
        kept = set(map(id, items))
        earlier = sum(id(item) in kept for item in history)
        places = [place for place, item in enumerate(given) if id(item) in kept]
    book = ToolBook.of(turn.request.get("tools"), items)
    choice = tool_choice_responses_to_chat(turn.params.tool_choice, book) if turn.offers_tools else NO_TOOLS
    turn.builder.offer(book, allowed=choice.allowed, one_call=turn.params.parallel_tool_calls is False)
    if book.omitted:
        _tell_omitted(backend, turn, book.omitted)
    messages = responses_input_to_messages(
        items,
        turn.params.instructions,
        history=earlier,
        places=places,
        carries=kind.carries,
        reasoning_key=kind.reasoning_key,
        book=book,
    )
    if stream is None:
        stream = turn.stream or kind.streams_always
    return chat_request(turn.request, messages, model=backend.model, stream=stream, choice=choice, efforts=kind.efforts)


def _tell_omitted(backend: Backend, turn: Turn, omitted: list[str]) -> None:
    if backend.refuses_hosted_tools:
        raise Unsupported(
            f"The backend of this model cannot run these tools: {', '.join(omitted)}.",
            param="tools",
            code="unsupported_tool",
        )
    turn.headers["x-nomyo-omitted-tools"] = printable(", ".join(omitted))
    types = {name.partition(":")[0] for name in omitted}
    shown = sorted(type if type in OPENAI_TOOLS else "others" for type in types)
    log.info("%s: the backend cannot be offered: %s", turn.id, ", ".join(shown))


async def _chat_events(
    backend: Backend, builder: ResponseBuilder, params: dict[str, Any], express: Express | None = None
) -> AsyncGenerator[list[Event]]:
    """The answer to a chat request, as the events of `builder`."""
    kind = backend.kind
    if kind.think_tags:
        builder.expect_think_tags()
    answer = await backend.create(params)
    if hasattr(answer, "choices"):  # whole: not asked to stream, or the backend does not care
        if not answer.choices:
            raise BackendError("The backend's answer is empty.", code="backend_empty_answer")
        choice = answer.choices[0]
        logprobs = as_plain(getattr(choice, "logprobs", None)) or {}
        message = as_plain(choice.message)
        if kind.think_tags:
            message = with_thoughts_apart(message)
        items = chat_message_to_output_items(message, logprobs.get("content"))
        events = builder.begin()
        yield events + builder.completion(
            items,
            finish_reason=getattr(choice, "finish_reason", None),
            usage=as_plain(answer.usage),
        )
        return
    is_ours = isinstance(answer, BackendStream)
    if is_ours and express is not None:
        answer.shortcut(express, builder.chunks, builder.frame_of)
    async with aclosing(batches_of(answer)) as batches:
        async for chunks in batches:
            events = builder.begin() + builder.chunks(chunks if is_ours else [as_chunk(chunk) for chunk in chunks])
            if events or builder.telling == "nothing":
                yield events


def batches_of(answer: Any) -> AsyncGenerator[list[Any]]:
    """What each network read of a backend's stream held. A stream that is not ours gives its pieces one by one."""
    return answer.batches() if isinstance(answer, BackendStream) else _one_by_one(answer)


async def _one_by_one(answer: Any) -> AsyncGenerator[list[Any]]:
    try:
        async for piece in answer:
            yield [piece]
    finally:
        await (answer.close() if hasattr(answer, "close") else answer.aclose())


# ── answers that nobody sees grow ────────────────────────────────────────────────────────────────────────────────────


async def _whole(backend: Backend, params: dict[str, Any]) -> ResponseBuilder:
    """The whole answer to a chat request, its calls by the backend's names. Nobody sees it grow."""
    builder = ResponseBuilder(response_resource({}, response_id="", created_at=0, status="in_progress"))
    builder.telling = "nothing"
    async with aclosing(_chat_events(backend, builder, params)) as batches:
        async for _ in batches:
            pass
    if not builder.ended:
        builder.finish()
    return builder


async def _summary(backend: Backend, turn: Turn) -> tuple[Item, dict[str, Any] | None]:
    """A summary of the conversation by the backend's model, as the one item that the client carries on, and what it used."""
    inner = await _whole(backend, chat_params(backend, turn.summarizing()))
    summary = output_text(inner.response["output"])
    if not summary.strip():
        raise BackendError("The model made no summary.", code="backend_empty_answer")
    item = {"type": "compaction", "id": new_id("cmp"), "encrypted_content": backend.sealer.seal(summary)}
    return item, inner.chat_usage


async def _structured(backend: Backend, turn: Turn, params: dict[str, Any]) -> AsyncGenerator[list[Event]]:
    """The answer of a backend that cannot hold its model to a JSON format: the model is told the format, its answer is checked,
    and it gets one try to repair what is wrong. Raises `ModelFailed` if that fails, `Unsupported` where the settings refuse."""
    if backend.kind.structured_outputs == "refuse":
        raise Unsupported("The backend of this model cannot be held to a JSON format.", param="text.format")
    assert turn.params.text is not None
    assert turn.params.text.format is not None
    format = turn.params.text.format
    checker = Checker(format)
    del params["response_format"]
    params["messages"] = format_prompt(params["messages"], format)
    usage: dict[str, Any] | None = None
    for is_repair in (False, True):
        inner = await _whole(backend, params)
        output = inner.response["output"]
        usage = _sum(usage, inner.chat_usage)
        said = output_text(output)
        if inner.response["status"] != "completed" or not _is_text(output):
            break  # Cut off, refused, or not the answer yet.
        text, problem = checker.check(said)
        if problem is None:
            _set_text(output, text)
            break
        log.info("%s: the answer does not fit its format%s", turn.id, ", not repaired" if is_repair else "")
        if is_repair:
            raise ModelFailed(f"The model did not answer in the format that was asked for: {problem}")
        params["messages"] = [*params["messages"], *repair_prompt(said, problem)]
    yield turn.builder.begin() + turn.builder.completion(output, finish_reason=inner.finish_reason, usage=usage)


def _is_text(output: list[Item]) -> bool:
    """Whether the model has said something, and neither called a tool nor refused."""
    parts = [part["type"] for item in output if item["type"] == "message" for part in item["content"]]
    return "refusal" not in parts and not any(item["type"] == "function_call" for item in output)


def _set_text(output: list[Item], text: str) -> None:
    """Makes `text` all that the output says. Log probabilities belong to what the model said, which may be more."""
    messages = [item for item in output if item["type"] == "message"]
    for message in messages[1:]:
        output.remove(message)
    first = messages[0]["content"][0]
    messages[0]["content"] = [first if first["text"] == text else {**first, "text": text, "logprobs": []}]


def _sum(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """Two counts of tokens as one."""
    if not first or not second:
        return first or second
    total = dict(second)
    for key, value in first.items():
        if isinstance(value, dict):
            total[key] = _sum(value, second.get(key))
        elif isinstance(value, int):
            total[key] = value + (second.get(key) or 0)
    return total
