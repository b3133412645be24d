"""A turn, in two halves: what is asked, which never changes, and what runs for it.

body ──begin_turn──▶ TurnRequest    the body, checked, behind the history that it builds on, and whose it is
                     Turn           the response that is being built for it, its way through the fleet, its headers
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Protocol, cast

from msgspec import Struct, field

from api.turns.history import resolve_conversation, resolve_history, resolve_references, stored_items
from api.turns.tally import Tally, admit, routing_of, settle
from backends.fleet.failover import Attempt
from backends.fleet.pool import Pool
from backends.fleet.routing import Routing, printable
from backends.wire.relay import NOWHERE, Out, Unread
from core.errors import APIError, InvalidRequest, ServerError
from core.keys import Principal
from core.request_context import RequestContext, current_request
from core.state import AppState
from core.turn_record import ToolRun, TurnRecord
from requests.emission import EMIT_EVENTS, EMIT_FRAMES, EMIT_NOTHING, EMIT_OBFUSCATED, Emission
from requests.events import ResponseBuilder
from requests.included import SEALED_REASONING
from requests.items import check_input, input_items, type_of
from requests.kept import given_request, key_of_request
from requests.open_items import Event
from requests.params import CreateParams, check_counts, check_request
from requests.repeats import may_repeat, without_repeats
from requests.responses import new_id, response_resource
from requests.router_tools import RouterTools
from requests.tokens import answered_tokens, turn_tokens
from requests.tools import CALLS, Item
from requests.usage import NO_TOKENS, Tokens, tokens_of

NOTHING_REMEMBERED: Mapping[str, list[Item]] = MappingProxyType({})


class TurnRequest(Struct, frozen=True):
    """What is asked. `params` is what of the `body` we act on, `model` the name by which an endpoint is chosen;
    `history` are the items of the turns before, `input` those of this one, each with an id. `has_references`: some of
    `input` stand where the client named stored items. `places` are those of `input` in the request, where the client
    has sent some of the history again. `is_remembered`: its socket keeps it, stored or not, so that it can be continued
    there. `conversation` is the id of the one that it is a turn of."""

    body: dict[str, Any]
    params: CreateParams
    model: str
    history: list[Item]
    input: list[Item]
    principal: Principal
    has_references: bool = False
    places: list[int] | None = None
    is_remembered: bool = False
    conversation: str | None = None
    # Those that the router runs in this turn.
    router_tools: RouterTools | None = None

    @property
    def items(self) -> list[Item]:
        """The whole conversation, oldest first."""
        return [*self.history, *self.input]

    @property
    def stored(self) -> bool:
        """Whether the client can ask for the response later, and go on from it: OpenAI's default."""
        return self.params.store is not False

    # Asked for so often that a function of Python's would be felt.
    stream = property(attrgetter("params.stream"), doc="Whether the client wants events.")
    background = property(attrgetter("params.background"), doc="Whether it runs on without its client.")

    @property
    def uses_cache(self) -> bool:
        """Whether the same request may have been answered already."""
        return (ours := self.params.nomyo) is not None and bool(ours.cache)

    @property
    def is_compaction(self) -> bool:
        """Whether the client wants a summary of the conversation instead of its next turn."""
        return "compaction_trigger" in map(type_of, self.input)

    @property
    def obfuscated(self) -> bool:
        """Whether the client wants to hide the length of its deltas on the wire."""
        return bool(self.params.stream_options and self.params.stream_options.include_obfuscation)

    @property
    def compact_threshold(self) -> int | None:
        """About how many tokens of context are too many for the client (`context_management`)."""
        if not (entries := self.params.context_management):
            return None
        return min((entry.compact_threshold for entry in entries if entry.compact_threshold), default=None)


def seals_for_us(request: TurnRequest) -> bool:
    """Whether upstream is asked for its reasoning, sealed, though the client did not: upstream keeps nothing, and a
    turn that goes on from this one needs it."""
    can_go_on = request.stored or request.is_remembered
    return can_go_on and SEALED_REASONING not in (request.params.include or ())


class TurnOut(Out, Protocol):
    """Where a turn leaves: an SSE stream, a WebSocket, a background turn that keeps its events, another front door's
    shape. `has_begun`: something has left, so that an error is an event from then on. `on_begin` is called before the
    first does."""

    has_begun: bool
    on_begin: Callable[[], object] | None

    def end(self, output: Any, /) -> None:
        """Sends the last of it."""
        ...


class NoStream(Unread):
    """Of a turn whose response alone counts."""

    has_begun = False
    on_begin: Callable[[], object] | None = None

    def end(self, output: Any, /) -> None:
        """There is nothing to end."""


NO_STREAM = NoStream()


class Turn(Struct, eq=False):
    """What runs for a request. What is made of its answer leaves by `out`, and `headers` before it; `row_begun`: the
    store has a row of it; `from_cache`: no backend was asked for it alone; `feeds`: it has no client, other turns are
    given its events and errors (shared_answer.py); `describes_itself`: no headers show what became of it, so its last
    response does (`describe`). `compacts`: it was asked for at /compact, and `window` is what a server has answered
    there that has the path itself. `passes_on` passes on the answer of a server that speaks the API of its front door,
    and notes that in `is_passed_on`, and the tokens in `passed`: then nothing was made of it here. `asks_chats`: a
    server of Responses is asked for a chat as well, for only that has a place for all that is asked."""

    request: TurnRequest
    builder: ResponseBuilder
    routing: Routing
    headers: dict[str, str] = {}
    out: Out = NOWHERE
    row_begun: bool = False
    # What has begun its row: a `Written` of the store's.
    beginning: Any = None
    from_cache: bool = False
    feeds: bool = False
    describes_itself: bool = False
    compacts: bool = False
    window: list[Item] | None = None
    passes_on: Callable[[Attempt], Awaitable[None]] | None = None
    is_passed_on: bool = False
    passed: tuple[Tokens, bool] | None = None
    asks_chats: bool = False
    # The turn that feeds it, where it is the one that has begun that one.
    fed_by: Turn | None = None
    # What it has taken of limits, until `is_settled`: what it has used is counted then, once. `runs_again`: it was
    # admitted before.
    tally: Tally | None = None
    is_settled: bool = False
    runs_again: bool = False
    # What goes with its request, and the calls of tools that the router ran.
    context: RequestContext | None = field(default_factory=current_request)
    tools: list[ToolRun] = []

    @property
    def id(self) -> str:
        """That of its response."""
        response_id: str = self.builder.response["id"]
        return response_id

    @property
    def owner(self) -> str:
        """Whom all that is kept of it belongs to."""
        return self.request.principal.owner

    def emit(self, events: list[Event]) -> bool:
        """Sends events, as they are wanted. False: there is no room for more."""
        output = self.builder.emission.encode(events)
        return self.out.write(output) if output else True

    def note_change(self, name: str) -> None:
        """Names to the client what was changed of its request, once."""
        before, name = self.headers.get(ADAPTED), printable(name)[:LONGEST_CHANGE]
        if before is None:
            self.headers[ADAPTED] = name
        elif name not in before.split(", ") and len(before) < MOST_CHANGES:
            self.headers[ADAPTED] = f"{before}, {name}"

    def note_failed_tools(self, failed: Mapping[str, bool]) -> None:
        """Names to the client the tools that could not be had, or run; the model was not offered the former."""
        names = {name: printable(name)[:LONGEST_CHANGE] for name in failed}
        self.headers[FAILED_TOOLS] = ", ".join(names.values())[:MOST_CHANGES]
        if omitted := [names[name] for name, is_omitted in failed.items() if is_omitted]:
            before = self.headers.get(OMITTED_TOOLS)
            self.headers[OMITTED_TOOLS] = ", ".join([before, *omitted] if before else omitted)[:MOST_CHANGES]

    def describe_way(self) -> str:
        """Its model, where it went and how long ago it came, for the log."""
        return self.routing.describe()

    def describe(self) -> None:
        """Puts into a response that has ended what its headers do not show: under `nomyo` by their names, without
        `x-nomyo-`."""
        if self.describes_itself and self.headers:
            named: dict[str, Any] = {
                name.removeprefix("x-nomyo-").removeprefix("x-").replace("-", "_"): value
                for name, value in self.headers.items()
            }
            if waited := named.get("wait_ms"):
                named["wait_ms"] = int(waited)
            self.builder.response["nomyo"] = named


async def admit_turn(state: AppState, turn: Turn, *, with_slot: bool = False) -> None:
    """Takes what a turn may use of the limits of its principal, which has some: once, and nothing for one that feeds
    others; `with_slot` as `admit`. Raises `LimitReached`."""
    request = turn.request
    if turn.tally is not None or turn.feeds:
        return
    turn.tally = await admit(
        state,
        request.principal,
        turn.routing,
        lambda: turn_tokens(request.body, request.items),
        request.params.max_output_tokens,
        in_background=request.background,
        is_certain=turn.runs_again,
        with_slot=with_slot,
    )
    turn.headers = turn.headers | turn.routing.limits


def settle_turn(state: AppState, turn: Turn, error: APIError | None = None) -> None:
    """Counts what a turn has used, at its end, and records it; once, however often it is called. `error` is what it has
    failed with."""
    if turn.is_settled:
        return
    turn.is_settled = True
    builder, request, from_cache = turn.builder, turn.request, turn.from_cache
    response = builder.response
    if (usage := response["usage"]) and not from_cache:
        tokens, is_estimated = tokens_of(usage), False
    else:
        tokens, is_estimated = tokens_used(turn)
    if turn.fed_by is not None:
        return  # That one is counted, and has what this one has taken.
    routing, context = turn.routing, turn.context
    if context is None:
        context = RequestContext(b"", began_s=routing.began_s)
    elif state.tracer is not None and state.tracer.with_content:
        context.content = request.items, response["output"]
    record = TurnRecord(
        response["id"],
        context,
        request.principal,
        routing,
        request.model,
        response["status"] if error is None else "failed",
        "" if error is None else error.code or error.type,
        tokens,
        # A whole answer shows nothing of when it began.
        builder.first_s if request.stream else 0.0,
        turn.tools,
        is_estimated,
        from_cache,
    )
    settle(state, record, routing, tokens, turn.tally, from_cache)


def tokens_used(turn: Turn) -> tuple[Tokens, bool]:
    """The tokens of a turn that has ended, or is cancelled hereby; and whether that is an estimate by what has come of
    it, as of what was cut off."""
    builder, request = turn.builder, turn.request
    if turn.passed is not None:
        return turn.passed
    if turn.from_cache:  # They were counted when it was made.
        return NO_TOKENS, False
    if usage := builder.response["usage"]:
        return tokens_of(usage), False
    if not builder.started or not turn.routing.endpoint:
        return NO_TOKENS, False
    if not builder.ended:
        builder.cancel()
    if usage := builder.response["usage"]:
        return tokens_of(usage), False
    if not (output := answered_tokens(builder.response["output"])):
        return NO_TOKENS, False
    return Tokens(turn_tokens(request.body, request.items), output=output), True


ADAPTED, FAILED_TOOLS, OMITTED_TOOLS = "x-nomyo-adapted", "x-nomyo-failed-tools", "x-nomyo-omitted-tools"
# A name of a client's own is as long as it likes, and headers are not.
LONGEST_CHANGE = 200
MOST_CHANGES = 1500
# So many items are checked in some milliseconds.
MANY_ITEMS = 1000
# The parameter that names the turns before.
BEFORE = "previous_response_id"


async def begin_turn(
    state: AppState,
    body: Any,
    principal: Principal,
    remembered: Mapping[str, list[Item]] = NOTHING_REMEMBERED,
    emission: Emission | None = None,
) -> Turn:
    """A turn, checked. Its id and times are made here. `remembered` are the conversations that only its socket knows,
    by the id of their last response; `emission` is what is made of its events, where that is not by the request. Raises
    `InvalidRequest`."""
    check_counts(body, max_items=state.config.max_items, max_tools=state.config.max_tools)
    params = check_request(body)
    is_text = isinstance(params.input, str)
    if not is_text and len(params.input or ()) > MANY_ITEMS:
        await asyncio.sleep(0)  # Others are waiting: what is checked next takes as long again.
    model = params.model or _model_for_prompts(state.pool, principal)
    conversation: str | None = params.conversation  # type: ignore[assignment]  # Checked: it is an id.
    if params.previous_response_id or conversation:
        history = await _history(state, params, principal.owner, remembered)
    else:
        history = []
    given = input_items(params.input)
    if is_text:
        new_items, has_references, places = given, False, None
    else:
        new_items = await resolve_references(state, given, principal.owner, conversation)
        has_references, places = new_items != given, None
    if history and may_repeat(history, params.input):
        new_items, places = without_repeats(history, new_items)
    is_remembered = remembered is not NOTHING_REMEMBERED
    request = TurnRequest(
        body, params, model, history, new_items, principal, has_references, places, is_remembered, conversation
    )
    check_input(items := request.items, len(history), places, BEFORE if conversation is None else "conversation")
    return _turn(state, request, items, emission or _emission(request), new_id("resp"), int(time.time()))


async def begin_turn_again(state: AppState, row: Mapping[str, Any]) -> Turn:
    """The turn of a background response that has not ended, from its row (`db.UnfinishedResponse`): the same id, input
    and times. Raises `InvalidRequest` where it cannot run any more, and `ServerError` where its request cannot be
    read."""
    sealer = state.sealer.of(row["owner"])
    kept = row["request"] or b"{}"
    body = given_request(kept, partial(sealer.open, purpose="request"))
    if body is None:
        raise ServerError("The request of this response was sealed with another key.", code="cannot_open_request")
    params = check_request(body)
    owner = row["owner"]
    history = await _history(state, params, owner, NOTHING_REMEMBERED)
    principal = _principal_again(state, key_of_request(kept), owner)
    has_references = any(item["type"] == "item_reference" for item in input_items(params.input))
    items = stored_items(sealer, row["input"])
    places = None
    if history and may_repeat(history, params.input) and not has_references:
        _, places = without_repeats(history, input_items(params.input))
    conversation: str | None = params.conversation  # type: ignore[assignment]
    request = TurnRequest(
        *(body, params, row["model"], history, items, principal, has_references, places), conversation=conversation
    )
    check_input(items := request.items, len(history), places, BEFORE if conversation is None else "conversation")
    turn = _turn(state, request, items, EMIT_EVENTS, row["id"], row["created_at"])
    turn.runs_again = True
    return turn


async def _history(
    state: AppState, params: CreateParams, owner: str, remembered: Mapping[str, list[Item]]
) -> list[Item]:
    """The items before a turn. Raises `InvalidRequest`, and `NotFound` for a conversation."""
    if before := params.previous_response_id:
        return await resolve_history(state, before, remembered, owner)
    if params.conversation is None:
        return []
    history = await resolve_conversation(state, cast(str, params.conversation), owner)
    if not history and params.input is None and params.prompt is None:
        raise InvalidRequest(
            "Missing required parameter: 'input', for the conversation is empty.",
            param="input",
            code="missing_required_parameter",
        )
    return history


def _principal_again(state: AppState, key: str, owner: str) -> Principal:
    """Who had asked for a turn that runs again. Of a key that there is no more nobody knows what it might use."""
    principal = state.keys.named(key)
    if principal is not None and principal.owner == owner:
        return principal
    # Nobody knows any more which label asked; what the owner has is shared with nobody else.
    return Principal(f"kept {owner}", owner, key=key, models=() if key else None)


def _emission(request: TurnRequest) -> Emission:
    """What is made of the events of a request by HTTP. Those of a background turn are kept as they are."""
    if request.background:
        return EMIT_EVENTS
    if not request.stream:
        return EMIT_NOTHING
    return EMIT_OBFUSCATED if request.obfuscated else EMIT_FRAMES


def _turn(
    state: AppState, request: TurnRequest, items: list[Item], emission: Emission, response_id: str, created_at: int
) -> Turn:
    return Turn(
        request,
        builder_of(state, request, emission, response_id=response_id, created_at=created_at, items=items),
        routing_of(request.principal, affinity_of(request.params, items, request.principal.owner)),
    )


def builder_of(
    state: AppState,
    request: TurnRequest,
    emission: Emission,
    *,
    response_id: str,
    created_at: int,
    items: list[Item] | None = None,
) -> ResponseBuilder:
    """What builds the response to a request. `items` are the whole conversation, where somebody has put it together
    already."""
    status = "queued" if request.background else "in_progress"
    resource = response_resource(request.body, response_id=response_id, created_at=created_at, status=status)
    given = request.items if items is None else items
    if request.conversation:
        resource["conversation"] = {"id": request.conversation}
    taken = (item["call_id"] for item in given if item.get("type") in CALLS and item.get("call_id"))
    asks = SEALED_REASONING in (request.params.include or ())
    seal = partial(state.sealer.of(request.principal.owner).seal, purpose="reasoning") if asks else None
    return ResponseBuilder(resource, emission, taken_call_ids=taken, seal=seal)


def _model_for_prompts(pool: Pool, principal: Principal) -> str:
    """A model of a server that may know stored prompts: these name their model themselves. Raises `InvalidRequest` if
    there is no such server, or not every model may be used."""
    for model, endpoint in pool.endpoints.models().items():
        if endpoint.kind.native and principal.models is None:
            return model
    raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")


def affinity_of(params: CreateParams, items: list[Item], owner: str = "") -> list[str]:
    """What of a request may be warm at an endpoint, the surest first: the words of its client, the turn before it, and
    how it begins."""
    # An owner's words are its own: whoever names another's id learns nothing of where that is warm.
    names = [f"{owner} {key[:LONGEST_KEY]}"] if (key := params.prompt_cache_key) else []
    if before := params.previous_response_id:
        names.append(before)
    elif params.conversation:
        names.append(f"{owner} {params.conversation}")
    first = items[0] if items else NO_ITEM
    leading = asked = _leading_text(first)
    if first.get("role") != "user":
        asked = next((_leading_text(item) for item in items if item.get("role") == "user"), leading)
    begins = "\0".join((params.model or "", (params.instructions or "")[:LEADING], leading, asked))
    # The same in each process.
    return [*names, f"begins {blake2b(begins.encode(errors='surrogatepass'), digest_size=8).hexdigest()}"]


def _leading_text(item: Item) -> str:
    """How the text of a message begins. Not its images: they are large, and no conversation is known by them."""
    content = item.get("content")
    if isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and (text := part.get("text")):
                return str(text)[:LEADING]
    return content[:LEADING] if isinstance(content, str) else ""


# Of a key of a client's that is remembered.
LONGEST_KEY = 256
# How much of a beginning sets conversations apart.
LEADING = 1024
NO_ITEM: Item = {}
