"""/v1/responses: a request becomes a turn, a turn is a stream of events, and every way to answer is an end of that
stream.

    begin_turn ──▶ run_turn ──▶ out: EventStream | NO_STREAM | Background | SocketTurn | another door's
                      ↑
         replayed (cache) | shared_answer | chat_answer | native_answer       api/turns/
                            tool_rounds: one of these after the other, while the model calls tools that we run

What a turn may do to the world is six names, which tests swap here, so they are looked up here: `choose_endpoint`,
`decrement_usage`, `is_ext_openai_endpoint`, `_make_openai_client`, `get_llm_cache`, `create_chat_with_retries`.
Specification: OpenAI's Responses API, and Open Responses 2026-04-24.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Coroutine, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http.bodies import read_json
from api.http.event_stream import EventStream, stream_of
from api.http.keys import principal_of
from api.http.leaving import ClientWatch
from api.http.replies import json_response
from api.http.routes import Routes, takes
from api.shared_events import followed
from api.turns.adapting import Adapting
from api.turns.allowed_answer import only_forbidden_calls
from api.turns.backend import Backend
from api.turns.background import Background
from api.turns.cached import CACHE_ROUTE, cache_key, replayed
from api.turns.chat_answer import chat_answer
from api.turns.ignored import name_ignored
from api.turns.native_answer import native_answer
from api.turns.router_tools import has_brought, router_tools_of
from api.turns.shared_answer import shared_answer
from api.turns.tally import is_limited
from api.turns.tool_rounds import tool_rounds
from api.turns.turn import NO_STREAM, Turn, TurnOut, admit_turn, begin_turn, settle_turn
from backends.fleet.failover import Attempt, Attempts
from backends.fleet.pool import _make_openai_client, choose_endpoint, decrement_usage, is_ext_openai_endpoint
from backends.wire.client import compact_with_retries, create_chat_with_retries, create_response_with_retries
from backends.wire.relay import NOWHERE
from cache import get_llm_cache
from core.errors import APIError, BackendError, Interrupted, NotFound, ServerError, TakenOver, without_frames
from core.json import TOO_DEEP, decode_json, encode_json
from core.keys import UNLIMITED
from core.schemas import schema_of
from core.state import AppState
from requests.hidden import drop
from requests.kept import kept_items, kept_request
from requests.open_items import Event
from requests.params import CreateParams
from requests.responses import with_output_text
from requests.tools import Item

log = logging.getLogger("nomyo.responses")

routes = Routes(prefix="/v1/responses", tags=["responses"])


async def run_turn(state: AppState, turn: Turn, out: TurnOut) -> None:
    """Runs a turn: its events leave by `out`, the last of them when the store knows it. Whatever happens, the slot is
    given back and the store knows how the turn ended. An error is the end of the stream; where there is none yet, or
    nobody reads one, it is raised."""
    builder, request = turn.builder, turn.request
    params = request.params
    is_stored, uses_cache = params.store is not False, params.nomyo is not None and request.uses_cache
    ending: list[Event] = []
    principal = request.principal
    if principal.limits is not UNLIMITED or principal.owner_limits is not UNLIMITED:
        await admit_turn(state, turn, with_slot=not uses_cache)
    turn.out = out
    if is_stored and request.stream and not turn.row_begun:
        out.on_begin = partial(begin_row, state, turn)
    try:
        if uses_cache and (cached := await _cached(state, turn)):
            turn.emit(replayed(turn, cached))
        elif uses_cache and (cache := get_llm_cache(state)) is not None and not turn.compacts:
            await shared_answer(state, turn, cache, run_turn)
        elif (
            params.tools
            or state.mcp.has_always
            or ((request.history or params.input.__class__ is not str) and has_brought(request))
        ) and (ours := router_tools_of(state, turn)) is not None:
            await tool_rounds(state, turn, ours, partial(_ask, state, turn))
        else:
            await _ask(state, turn)
            if turn.is_passed_on:
                builder.response["status"] = "completed"
                settle_turn(state, turn)
                out.end(b"")
                return
        if not builder.ended:
            ending = builder.finish()
        _describe_answer(turn)
        settle_turn(state, turn)
        if is_stored or uses_cache or request.conversation:
            # Before the last event leaves: a client that chains on it at once must find the row.
            await _to_the_end(record(state, turn))
            if (context := turn.context) is not None:
                context.stored_s = time.monotonic()
    except Exception as error:
        described = _described(error, turn)
        without_frames(error)
        try:
            ending += await _ended_by(state, turn, out, described)
        finally:
            del described
    except BaseException as error:
        if not isinstance(error, asyncio.CancelledError) or turn.request.background or not state.stopping.interrupts():
            _break_off(state, turn)
            raise
        ending += await _ended_by(state, turn, out, Interrupted())
    finally:
        turn.out = NOWHERE  # Or the two would wait for the collector.
    out.end(builder.emission.encode([*ending, builder.end()]))


async def _ask(state: AppState, turn: Turn) -> None:
    """Asks one backend after the other, until one answers: it is output that ends failing over, not bytes."""
    builder, routing = turn.builder, turn.routing
    is_read = builder.emission.makes_events
    async for attempt in Attempts(
        state.pool, turn.request.model, routing, choose=choose_endpoint, release=decrement_usage
    ):
        async with attempt:
            if routing.attempts > 1:
                # The headers of an attempt before this one are not true any more, though they may have left.
                turn.describes_itself |= builder.started and is_read
                builder.restart()
            turn.headers = routing.headers()
            try:
                await _answered(state, turn, attempt)
            finally:
                attempt.begun |= builder.ended or (is_read and builder.has_output)
    if turn.request.params.store is not False or turn.feeds:
        # The next turn of this conversation finds its prefix there.
        state.pool.slots.remember([turn.id], attempt.endpoint)


def _describe_answer(turn: Turn) -> None:
    """What came of the request, in its headers or its last response, and in the log. Raises `ModelFailed` where that is
    nothing, because all of it was forbidden."""
    params = turn.request.params
    if params.tool_choice is not None or params.text is not None:
        name_ignored(turn)
    if turn.describes_itself:
        turn.describe()
    if suppressed := turn.builder.suppressed:
        log.info("%s: %d calls were suppressed, which the request forbids", turn.id, len(suppressed))
        if turn.builder.response["status"] == "completed" and turn.builder.is_mute:
            raise only_forbidden_calls(suppressed)


def _break_off(state: AppState, turn: Turn) -> None:
    """The client left, or somebody cancelled the turn: no time to wait for the store, but it will know. A turn in the
    background is ended by whoever stops it: it may run again."""
    if turn.request.background:
        return
    if turn.builder.started:
        if state.stopping.is_over:
            turn.builder.fail(Interrupted())
        else:
            turn.builder.cancel()
        turn.describe()
    settle_turn(state, turn)
    if turn.row_begun:
        state.usage.flush()
        state.db.update_response(turn.id, turn.builder.response, owner=turn.owner)


async def _ended_by(state: AppState, turn: Turn, out: TurnOut, error: APIError) -> list[Event]:
    """The events of a turn that fails, once the store knows. Raises the error where nobody reads events, and where the
    end of a background turn is another process's to write."""
    builder = turn.builder
    is_taken_over = isinstance(error, TakenOver)
    if not out.has_begun or not builder.emission.makes_events or (is_taken_over and turn.request.background):
        settle_turn(state, turn, error)
        raise error from error.__cause__
    events = builder.fail(error)
    turn.describe()
    settle_turn(state, turn, error)
    if not is_taken_over:
        await _record_failure(state, turn)
    return events


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Waits for work that it is too late to cancel: the turn has ended, and whoever follows it must see how."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


async def _cached(state: AppState, turn: Turn) -> dict[str, Any] | None:
    """The response to the same request, from the cache."""
    if (cache := get_llm_cache(state)) is None:
        return None
    state.telemetry.counts["cache_lookups"] += 1
    found = await cache.get_chat(CACHE_ROUTE, turn.request.model, cache_key(turn.request))
    return decode_json(found) if found else None


def _answered(state: AppState, turn: Turn, attempt: Attempt) -> Awaitable[None]:
    """The answer of the endpoint of an attempt."""
    pool, key = state.pool, attempt.endpoint
    client = _make_openai_client(pool, key)
    native = is_ext_openai_endpoint(pool, key) and not turn.asks_chats
    kind = pool.endpoints.kind(key)
    if turn.passes_on is not None and kind.speaks_ollama:
        return turn.passes_on(attempt)
    create: Any = partial(create_response_with_retries if native else create_chat_with_retries, client)
    refuses = state.config.hosted_tools == "refuse"
    adapting = Adapting(turn, state, attempt)
    backend = Backend(
        attempt.model,
        kind,
        state.sealer.of(turn.request.principal.owner),
        create,
        refuses_hosted_tools=refuses,
        adapting=adapting,
        files=state.files,
        compact=partial(compact_with_retries, client) if native and turn.compacts else None,
    )
    return native_answer(backend, turn) if native else chat_answer(backend, turn)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def begin_early(turn: Turn) -> list[Event]:
    """The beginning of a stream whose backend takes its time: from here on an error is an event. None where the stream
    has begun, or is about to end."""
    if turn.builder.started or turn.builder.ended:
        return []
    turn.describes_itself = True
    return turn.builder.begin()


def begin_row(state: AppState, turn: Turn) -> Awaitable[None]:
    """The client is about to know the id: whoever asks for it now shall find the response."""
    turn.row_begun = True
    turn.beginning = written = _store(state, turn)
    begun: Awaitable[None] = written
    return begun


def _store(state: AppState, turn: Turn, appended: Sequence[Item] = ()) -> Any:
    request, response = turn.request, turn.builder.response
    params, owner = request.params, request.principal.owner
    seal = partial(_sealed, state, owner)
    return state.db.store_response(
        response["id"],
        previous_response_id=params.previous_response_id,
        model=request.model,
        status=response["status"],
        created_at=response["created_at"],
        input_messages=kept_items(request.input, seal),
        response=response,
        conversation=request.conversation,
        # Whoever is not here any more when it is its turn must be able to run it.
        request=kept_request(request.body, seal, request.principal.key) if params.background else None,
        moves_at=request.principal.priority if params.background and not params.stream else None,
        appended=appended,
        owner=owner,
    )


async def record(state: AppState, turn: Turn) -> None:
    """Keeps what came of a turn: in the store, in its conversation, and in the cache if it asked for that and went
    well. `store: false` leaves nothing on a disk but in a conversation, so it fills only a cache that does neither."""
    request, response = turn.request, turn.builder.response
    appended = _appended(state, turn) if request.conversation else ()
    if request.stored:
        state.usage.flush()  # In the same transaction: whoever sees the turn ended finds it counted.
        if not turn.row_begun:
            await _store(state, turn, appended)
        else:
            await state.db.update_response(
                turn.id, response, conversation=request.conversation, appended=appended, owner=turn.owner
            )
            # It may have begun while nothing could be stored: then there was no row to update.
            if turn.beginning is not None and turn.beginning.has_failed:
                await _store(state, turn)
    elif request.conversation and appended:
        await state.db.append_items(request.conversation, appended, owner=turn.owner)
    if request.uses_cache and not turn.from_cache and response["status"] == "completed":
        cache = get_llm_cache(state)
        if cache is not None and (request.stored or not cache.persistent):
            await cache.set_chat(CACHE_ROUTE, request.model, cache_key(request), encode_json(drop(response)))


def _appended(state: AppState, turn: Turn) -> Sequence[Item]:
    """What the conversation of a turn gets of it: all, if it ended well. To count or to compact is no turn of it."""
    if turn.compacts or turn.builder.response["status"] not in ("completed", "incomplete"):
        return ()
    seal = partial(_sealed, state, turn.owner)
    given = [item for item in turn.request.input if item["type"] != "compaction_trigger"]
    return [*kept_items(given, seal), *turn.builder.response["output"]]


def _sealed(state: AppState, owner: str, text: str) -> str:
    """A text of a request, as it may be stored."""
    return state.sealer.of(owner).seal(text, purpose="request")


async def _record_failure(state: AppState, turn: Turn) -> None:
    try:
        await record(state, turn)
    except ServerError:
        log.error("%s: the failure could not be stored either", turn.id)


def at_this_door(error: APIError, model: str) -> APIError:
    """A model that no server has, as OpenAI's Responses API puts it: a 400, where chat completions have a 404. What can
    be no model's name at all is not there, anywhere."""
    if isinstance(error, NotFound) and error.code == "model_not_found" and model.isprintable():
        error.status = 400
    return error


def _described(error: Exception, turn: Turn) -> APIError:
    if isinstance(error, APIError):
        if error.param == "previous_response_id" and turn.request.conversation:
            error.param = "conversation"  # That is where its history is from.
        error = at_this_door(error, turn.request.model)
        if error.status >= 500:
            # Not its message: a backend may repeat the prompt in it.
            cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
            log.warning("%s: %s%s: %s", turn.id, error.code, cause, turn.describe_way())
        return error
    if isinstance(error, RecursionError) or str(error) == TOO_DEEP:  # A request's depth was checked as it came.
        log.warning("%s: the backend's answer is nested too deeply", turn.id)
        return BackendError("The backend's answer is nested too deeply.", code="backend_bad_answer")
    log.error("%s failed", turn.id, exc_info=error)
    return ServerError("The router failed to answer this request.")


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("", **takes(schema_of(CreateParams)))
async def create_response(request: Request) -> Response:
    """Creates a response. Body: OpenAI's and Open Responses' CreateResponse; `nomyo: {cache: true}` asks for the cache.

    Answers the response as JSON; with `stream` its events as SSE; with `background` the queued response at once, or its
    events. Errors: 400 that names the parameter, also for an unknown model (`model_not_found`), 429, 502 and 504 for a
    backend's failures, all in OpenAI's envelope. `x-nomyo-omitted-tools` names tools that the backend cannot run and
    was not offered.
    """
    state: AppState = request.scope["app"].state
    turn = await begin_turn(state, await read_json(request), principal_of(request))
    if turn.request.background:
        return await _create_in_background(request, state, turn)
    if not turn.request.stream:
        async with ClientWatch(request.scope, request.receive):
            await run_turn(state, turn, NO_STREAM)
        return _answer(turn.builder.shown, turn.headers)
    stream = EventStream(
        request,
        emission=turn.builder.emission,
        headers=lambda: turn.routing.limits if turn.describes_itself else turn.headers,
        start_s=state.config.stream_start_s,
        beginning=partial(begin_early, turn),
        still_here=turn.builder.keep_alive,
    )
    return await stream.answer(run_turn(state, turn, stream))


async def _create_in_background(request: Request, state: AppState, turn: Turn) -> Response:
    if is_limited(turn.request.principal):
        await admit_turn(state, turn)
    job = Background(turn, state, partial(run_turn, state, turn))
    job.begin()
    answer = None if turn.request.stream else _answer(turn.builder.response, turn.routing.limits)
    try:
        state.tasks.submit(job)
    except APIError as error:
        settle_turn(state, turn, error)
        raise
    job.share()
    try:
        # Whoever knows the id from our answer shall find the response.
        await begin_row(state, turn)
    except ServerError as error:
        await state.tasks.cancel(turn.id, error)
        raise
    if answer is None:
        obfuscate = turn.request.obfuscated
        headers = turn.routing.limits
        answer = await stream_of(
            request, followed(state, job), obfuscate=obfuscate, still_here=job.still_here, headers=headers
        )
    return answer


def _answer(response: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return json_response(with_output_text(response), headers=headers)
