"""/v1/responses: a request becomes a turn, a turn is a stream of events, and every way to answer is an end of that stream.

    begin_turn ──▶ run_turn ──▶ EventStream | final_response | Background
                      ↑
         replayed (cache) | translated (chat) | native

What a turn does to the world is the six imported names below `# seams`; tests swap exactly those. Specification: OpenAI's
Responses API, and Open Responses 2026-04-24.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.background import Background
from api.http import Batches, EventStream, cancelled_if_client_leaves, json_response, owner_of, read_json

# seams
from backends.client import BackendStream, create_chat_with_retries, refusal_of
from backends.pool import _make_openai_client, choose_endpoint, decrement_usage, is_ext_openai_endpoint
from cache import get_llm_cache
from errors import APIError, BackendError, InvalidRequest, NotFound, ServerError
from requests.chat import as_chunk
from requests.events import Event, ResponseBuilder, replay, unfinished
from requests.messages import Item, responses_input_to_messages
from requests.responses import (
    CreateParams,
    chat_message_to_output_items,
    chat_request,
    check_input,
    check_request,
    input_items,
    new_id,
    omitted_tools,
    response_resource,
    with_output_text,
    without_cut_calls,
)

log = logging.getLogger("nomyo.responses")

routes = APIRouter(prefix="/v1/responses", tags=["responses"])


# ── a turn ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Turn:
    """One request, and the response that is being built for it."""

    request: dict[str, Any]
    params: CreateParams
    history: list[Item]
    input: list[Item]
    builder: ResponseBuilder
    owner: str
    from_cache: bool = False
    row_begun: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        response_id: str = self.builder.response["id"]
        return response_id

    @property
    def model(self) -> str:
        return self.params.model or ""

    @property
    def stored(self) -> bool:
        return self.params.store is not False

    @property
    def stream(self) -> bool:
        return bool(self.params.stream)

    @property
    def background(self) -> bool:
        return bool(self.params.background)

    @property
    def uses_cache(self) -> bool:
        return bool(self.params.nomyo and self.params.nomyo.cache)


async def begin_turn(state: Any, body: Any, owner: str) -> Turn:
    """A turn, checked. Its id and times are made here. Raises `InvalidRequest`."""
    params = check_request(body)
    history = await resolve_history(state, params.previous_response_id)
    new_items = input_items(params.input)
    check_input([*history, *new_items], len(history))
    resource = response_resource(
        body,
        response_id=new_id("resp"),
        created_at=int(time.time()),
        status="queued" if params.background else "in_progress",
    )
    taken = [item["call_id"] for item in (*history, *new_items) if item.get("type") == "function_call"]
    return Turn(body, params, history, new_items, ResponseBuilder(resource, taken_call_ids=taken), owner)


async def resolve_history(state: Any, previous_response_id: str | None) -> list[Item]:
    """The items of all turns before this one, oldest first. Instructions are not among them: each turn gives its own."""
    if not previous_response_id:
        return []
    chain = await state.db.get_chain(previous_response_id)
    if not chain or chain[0]["previous_response_id"]:
        missing = chain[0]["previous_response_id"] if chain else previous_response_id
        raise InvalidRequest(
            f"Previous response with id '{missing}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if chain[-1]["status"] in ("queued", "in_progress"):
        raise InvalidRequest(
            f"Response '{previous_response_id}' is still {chain[-1]['status']}: it can be continued when it has ended.",
            param="previous_response_id",
        )
    items: list[Item] = []
    for row in chain:
        items += row["input"]
        items += (row["response"] or {}).get("output", [])
    return without_cut_calls(items)


async def run_turn(state: Any, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The events of a turn, in batches that arrived together. An error before the first event is raised; after it, it is the
    end of the stream. Whatever happens, the slot is given back and the store knows how the turn ended."""
    builder = turn.builder
    ending: list[Event] = []
    try:
        async with aclosing(_answered(state, turn)) as answered:
            async for events in answered:
                if turn.stored and turn.stream and not turn.row_begun:
                    begin_row(state, turn)
                yield events
        if not builder.ended:
            ending = builder.finish()
        # Before the last event leaves: a client that chains on it at once must find the row.
        await record(state, turn)
    except Exception as error:
        described = _described(error, turn)
        if not builder.started:
            raise described from error
        ending += builder.fail(described)
        await _record_failure(state, turn)
    except BaseException:
        # The client left, or somebody cancelled us: no time to wait for the store, but it will know.
        if turn.row_begun and not turn.background:
            builder.cancel()
            state.db.update_response(turn.id, builder.response)
        raise
    yield [*ending, builder.end()]


async def _answered(state: Any, turn: Turn) -> AsyncGenerator[list[Event]]:
    """The events of whoever answers: the cache, or a backend, whose slot is held until its answer ends."""
    cache = get_llm_cache(state) if turn.uses_cache else None
    if cache is not None and (cached := await cache.get_chat(CACHE_ROUTE, turn.model, cache_key(turn))):
        yield _replayed(turn, orjson.loads(cached))
        return
    endpoint, model = await choose_endpoint(state.pool, turn.model)
    try:
        client = _make_openai_client(state.pool, endpoint)
        if is_ext_openai_endpoint(state.pool, endpoint):
            source = _native(client, turn, model)
        else:
            source = _translated(client, state.pool.kind(endpoint), turn, model)
        async with aclosing(source):
            async for events in source:
                yield events
    finally:
        await decrement_usage(state.pool, endpoint, model)


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _replayed(turn: Turn, cached: dict[str, Any]) -> list[Event]:
    """A cached response, as this turn's: new ids, for it is stored and continued like any other."""
    turn.from_cache = True
    turn.headers["x-nomyo-cache"] = "hit"
    items = [{key: value for key, value in item.items() if key != "id"} for item in cached["output"]]
    return replay(turn.builder, {**cached, "output": items, "completed_at": int(time.time())})


async def _translated(client: Any, kind: Any, turn: Turn, model: str) -> AsyncGenerator[list[Event]]:
    """The answer of a chat-completions backend."""
    builder = turn.builder
    if omitted := omitted_tools(turn.request.get("tools") or []):
        turn.headers["x-nomyo-omitted-tools"] = ", ".join(omitted).encode("ascii", "replace").decode()
        log.info("%s: the backend cannot run, and is not offered: %s", turn.id, ", ".join(omitted))
    messages = responses_input_to_messages(
        [*turn.history, *turn.input],
        turn.params.instructions,
        history=len(turn.history),
        carries=kind.carries,
        reasoning_key=kind.reasoning_key,
    )
    answer = await create_chat_with_retries(
        client, chat_request(turn.request, messages, model=model, stream=turn.stream)
    )
    if hasattr(answer, "choices"):  # whole: not asked to stream, or the backend does not care
        if not answer.choices:
            raise BackendError("The backend's answer is empty.", code="backend_empty_answer")
        choice = answer.choices[0]
        logprobs = getattr(choice, "logprobs", None)
        items = chat_message_to_output_items(choice.message.model_dump(), logprobs and logprobs.content)
        events = _started(builder)
        yield events + builder.completion(
            items,
            finish_reason=getattr(choice, "finish_reason", None),
            usage=answer.usage.model_dump() if answer.usage else None,
        )
        return
    async for chunks in batches_of(answer):
        events = _started(builder)
        for chunk in chunks:
            events += builder.chunk(as_chunk(chunk))
        if events:
            yield events


async def _native(client: Any, turn: Turn, model: str) -> AsyncGenerator[list[Event]]:
    """The answer of a backend that speaks Responses: the request goes out as it came, with the history that only we know."""
    params = {key: value for key, value in turn.request.items() if key not in ROUTER_ONLY}
    params |= {"model": model, "input": native_input(turn), "store": False}
    answer = await client.responses.create(**params)
    if hasattr(answer, "model_dump"):
        yield turn.builder.adopt_whole(answer.model_dump())
        return
    async for batch in batches_of(answer):
        events: list[Event] = []
        for native_event in batch:
            event = native_event.model_dump()
            if event["type"] == "error":
                if events:
                    yield events
                described = event.get("error") or event
                raise refusal_of(described.get("status") or 500, described)
            events += turn.builder.adopt(event)
        if events:
            yield events
    if not turn.builder.ended:
        raise BackendError("The backend ended its answer in the middle.", code="backend_disconnected")


# OpenAI's own service knows nothing of these, or must not act on them: we do.
ROUTER_ONLY = frozenset({"nomyo", "previous_response_id", "background"})


def native_input(turn: Turn) -> Any:
    """The input for a native backend: as it came, behind the history. Upstream stores nothing, so it knows none of our ids,
    and reasoning that it cannot open again is of no use to it."""
    if not turn.history:
        return turn.params.input
    history = [
        item if item.get("role") == "assistant" or item["type"] == "reasoning" else _without_id(item)
        for item in turn.history
        if item["type"] != "reasoning" or item.get("encrypted_content")
    ]
    return [
        *history,
        *(turn.params.input if isinstance(turn.params.input, list) else map(_without_id, turn.input)),
    ]


def _without_id(item: Item) -> Item:
    return {key: value for key, value in item.items() if key != "id"}


async def batches_of(answer: Any) -> AsyncGenerator[list[Any]]:
    """What each network read of a backend's stream held. A stream that is not ours gives its pieces one by one."""
    if isinstance(answer, BackendStream):
        async with aclosing(answer.batches()) as batches:
            async for batch in batches:
                yield batch
        return
    try:
        async for piece in answer:
            yield [piece]
    finally:
        await (answer.close() if hasattr(answer, "close") else answer.aclose())


def _started(builder: ResponseBuilder) -> list[Event]:
    return [] if builder.started else builder.start()


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────


def begin_row(state: Any, turn: Turn) -> Awaitable[None]:
    """The client is about to know the id: whoever asks for it now shall find the response."""
    turn.row_begun = True
    return _store(state, turn)


def _store(state: Any, turn: Turn) -> Awaitable[None]:
    response = turn.builder.response
    written: Awaitable[None] = state.db.store_response(
        turn.id,
        previous_response_id=turn.params.previous_response_id,
        model=turn.model,
        status=response["status"],
        created_at=response["created_at"],
        input_messages=turn.input,
        response=response,
    )
    return written


async def record(state: Any, turn: Turn) -> None:
    """Keeps what came of a turn: in the store, and in the cache if it asked for that and went well. `store: false` leaves
    nothing on a disk, so it fills only a cache that does neither."""
    response = turn.builder.response
    if turn.stored:
        await (state.db.update_response(turn.id, response) if turn.row_begun else _store(state, turn))
    if turn.uses_cache and not turn.from_cache and response["status"] == "completed":
        cache = get_llm_cache(state)
        if cache is not None and (turn.stored or not cache.persistent):
            await cache.set_chat(CACHE_ROUTE, turn.model, cache_key(turn), orjson.dumps(response))


async def _record_failure(state: Any, turn: Turn) -> None:
    try:
        await record(state, turn)
    except ServerError:
        log.error("%s: the failure could not be stored either", turn.id)


CACHE_ROUTE = "openai_responses"
# These shape how an answer travels and what is kept of it, not what it says.
NOT_IN_CACHE_KEY = frozenset(
    {"input", "previous_response_id", "stream", "stream_options", "store", "background", "metadata", "nomyo"}
)


def cache_key(turn: Turn) -> list[Any]:
    """The whole request that a backend would see, and whose it is: parameters first, then the items of history and input,
    without the ids that are new in every turn."""
    shaping = {key: value for key, value in turn.request.items() if key not in NOT_IN_CACHE_KEY and value is not None}
    items = [{key: value for key, value in item.items() if key not in ("id", "status")} for item in turn.history]
    items += [{key: value for key, value in item.items() if key not in ("id", "status")} for item in turn.input]
    return [{"owner": turn.owner, **shaping}, *items]


def _described(error: Exception, turn: Turn) -> APIError:
    if isinstance(error, APIError):
        if error.status >= 500:
            log.warning("%s: %s (%s)", turn.id, error.message, error.__cause__ or error.code)
        return error
    log.error("%s failed", turn.id, exc_info=error)
    return ServerError("The router failed to answer this request.")


# ── sinks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Primed(Batches):
    """A turn's batches, begun before the answer is: a turn that cannot start is an HTTP error. A generator that never
    started would run no `finally`, so this is none."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._first: list[Event] | None = None

    async def prime(self) -> None:
        self._first = await anext(self._batches)

    def __aiter__(self) -> Primed:
        return self

    async def __anext__(self) -> list[Event]:
        if (first := self._first) is not None:
            self._first = None
            return first
        return await anext(self._batches)

    async def aclose(self) -> None:
        await self._batches.aclose()


async def final_response(batches: AsyncIterator[list[Event]]) -> dict[str, Any]:
    """The response in the last event. A turn that failed on its way has no HTTP status any more but its own: it is returned
    as OpenAI does, a response with `status: failed`."""
    last: Event = {}
    async for events in batches:
        last = events[-1]
    response: dict[str, Any] = last["response"]
    return response


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@routes.post("")
async def create_response(request: Request) -> Response:
    """Creates a response. Body: OpenAI's and Open Responses' CreateResponse; `nomyo: {cache: true}` asks for the cache.

    Answers the response as JSON; with `stream` its events as SSE; with `background` the queued response at once, or its events.
    Errors: 400 that names the parameter, 404 `model_not_found`, 429, 502 and 504 for a backend's failures, all in OpenAI's
    envelope. `x-nomyo-omitted-tools` names tools that the backend cannot run and was not offered.
    """
    state = request.app.state
    turn = await begin_turn(state, await read_json(request), owner_of(request))
    if turn.background:
        return await _create_in_background(state, turn)
    batches = Primed(run_turn(state, turn))
    try:
        async with cancelled_if_client_leaves(request.receive):
            await batches.prime()
            if not turn.stream:
                return _found(await final_response(batches), turn.headers)
    except BaseException:
        await batches.aclose()
        raise
    return EventStream(batches, turn.headers)


async def _create_in_background(state: Any, turn: Turn) -> Response:
    state.tasks.check_room()
    job = Background(turn, state.db, lambda: run_turn(state, turn))
    await begin_row(state, turn)
    job.begin()
    answer = EventStream(job.follow()) if turn.stream else _found(turn.builder.response)
    state.tasks.submit(job)
    return answer


@routes.get("/{response_id}")
async def retrieve_response(
    request: Request,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1)] = -1,
) -> Response:
    """A stored response, as it is now. With `stream=true` its events, from the one after `starting_after`: those of a
    background response as they come, those of a finished one again. 404 if there is none."""
    state = request.app.state
    if stream and (job := state.tasks.get(response_id)):
        return EventStream(job.follow(starting_after))
    row = await _row(state, response_id)
    if not stream:
        return _found(row["response"])
    if row["status"] in ("queued", "in_progress"):
        raise InvalidRequest("Only a background response can be joined while it runs.", param="stream")
    events = await state.db.get_events(response_id)
    if events is None:
        builder = ResponseBuilder(unfinished(row["response"]))
        events = [*replay(builder, row["response"]), builder.end()]
    return EventStream(_one_batch([event for event in events if event["sequence_number"] > starting_after]))


@routes.delete("/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    """Deletes a stored response; one that still runs in the background is cancelled first. 404 if there is none."""
    state = request.app.state
    await state.tasks.cancel(response_id)
    if not await state.db.delete_response(response_id):
        raise _not_found(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@routes.post("/{response_id}/cancel")
async def cancel_response(request: Request, response_id: str) -> Response:
    """Cancels a background response, also while it is queued: the backend's work is aborted. One that has ended is answered as
    it is. 404 if there is none, 400 for one that is not in the background."""
    state = request.app.state
    row = await _row(state, response_id)
    if row["status"] in ("queued", "in_progress"):
        if not row["response"]["background"]:
            raise InvalidRequest("Only background responses can be cancelled.", param="response_id")
        await state.tasks.cancel(response_id)
        row = await _row(state, response_id)
    return _found(row["response"])


@routes.get("/{response_id}/input_items")
async def list_input_items(
    request: Request,
    response_id: str,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The input items of a response's own turn, `limit` of them behind the item `after`. `include` is accepted; everything
    that it could ask for is given. 404 if there is no such response, 400 if `after` is none of its items."""
    items = (await _row(request.app.state, response_id))["input"]
    if order == "desc":
        items = items[::-1]
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequest(f"No input item has the id '{after}'.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


async def _row(state: Any, response_id: str) -> dict[str, Any]:
    row: dict[str, Any] | None = await state.db.get_response(response_id)
    if row is None:
        raise _not_found(response_id)
    return row


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"Response with id '{response_id}' not found.", param="response_id")


def _found(response: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return json_response(with_output_text(response), headers=headers)


async def _one_batch(events: list[Event]) -> AsyncGenerator[list[Event]]:
    yield events
