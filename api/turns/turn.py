"""A turn: one request, what it builds on, and the response that is being built for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from api.http.replies import Express
from backends.fleet.pool import Routing
from core.errors import InvalidRequest
from core.keys import Principal
from core.state import AppState
from requests.events import ResponseBuilder
from requests.messages import told_summary
from requests.params import CreateParams, check_input, check_request, input_items, without_cut_calls
from requests.responses import new_id, response_resource
from requests.tools import CALLS, Item

SUMMARIZE = """Our conversation gets too long to go on with. Write a summary of it that can take its place: what was asked,
what was decided and found out, with the names, numbers, paths and commands that matter, what is done and what is left to do.
Write the summary and nothing else."""


@dataclass(slots=True)
class Turn:
    """One request, and the response that is being built for it."""

    request: dict[str, Any]
    params: CreateParams
    history: list[Item]
    input: list[Item]
    builder: ResponseBuilder
    principal: Principal
    offers_tools: bool = True
    has_references: bool = False
    from_cache: bool = False
    routing: Routing = field(default_factory=Routing)
    express: Express | None = None
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
    def is_compaction(self) -> bool:
        """Whether the client wants a summary of the conversation instead of its next turn."""
        return any(item["type"] == "compaction_trigger" for item in self.input)

    @property
    def obfuscated(self) -> bool:
        """Whether the client wants to hide the length of its deltas on the wire."""
        return bool(self.params.stream_options and self.params.stream_options.include_obfuscation)

    @property
    def compact_threshold(self) -> int | None:
        """About how many tokens of context are too many for the client (`context_management`)."""
        thresholds = [entry.compact_threshold for entry in self.params.context_management or ()]
        return min((tokens for tokens in thresholds if tokens), default=None)

    def summarizing(self) -> Turn:
        """The turn whose answer is the summary of this one's conversation."""
        request = {key: self.request[key] for key in ("model", "instructions") if self.request.get(key) is not None}
        items = [item for item in self.input if item["type"] != "compaction_trigger"]
        asked = input_items(SUMMARIZE)
        resource = response_resource(request, response_id=self.id, created_at=0, status="in_progress")
        builder = ResponseBuilder(resource)
        return replace(self, request=request, input=[*items, *asked], builder=builder, offers_tools=False)

    @property
    def uses_cache(self) -> bool:
        return bool(self.params.nomyo and self.params.nomyo.cache)


async def begin_turn(
    state: AppState, body: Any, principal: Principal, remembered: Mapping[str, list[Item]] = MappingProxyType({})
) -> Turn:
    """A turn, checked. Its id and times are made here. `remembered` are the conversations that only its socket knows, by the id
    of their last response. Raises `InvalidRequest`."""
    params = check_request(body)
    before = params.previous_response_id
    history = await resolve_history(state, before, remembered) if before else []
    given = input_items(params.input)
    new_items = given if isinstance(params.input, str) else await resolve_references(state, given)
    items = history + new_items
    check_input(items, len(history))
    resource = response_resource(
        body,
        response_id=new_id("resp"),
        created_at=int(time.time()),
        status="queued" if params.background else "in_progress",
    )
    taken = [item["call_id"] for item in items if item.get("type") in CALLS and item.get("call_id")]
    seal = state.sealer.seal if "reasoning.encrypted_content" in (params.include or ()) else None
    return Turn(
        body,
        params,
        history,
        new_items,
        ResponseBuilder(resource, taken_call_ids=taken, seal=seal),
        principal,
        has_references=new_items != given,
        routing=Routing(principal=principal.id, affinity=affinity_of(params, items)),
    )


def affinity_of(params: CreateParams, items: list[Item]) -> list[str]:
    """What of a request may be warm at an endpoint, the surest first: what its client says, the turn before it, and how it
    begins."""
    names = [name for name in (params.prompt_cache_key, params.previous_response_id) if name]
    first = first_asked = items[0] if items else NO_ITEM
    for item in items:
        if item.get("role") == "user":
            first_asked = item
            break
    leading = _leading_text(first), _leading_text(first_asked)
    begins = hash((params.model, (params.instructions or "")[:LEADING], leading))
    return [*names, f"begins {begins}"]


def _leading_text(item: Item) -> str:
    """How the text of a message begins. Not its images: they are large, and no conversation is known by them."""
    content = item.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("text"):
            return str(part["text"])[:LEADING]
    return content[:LEADING] if isinstance(content, str) else ""


# How much of a beginning tells conversations apart.
LEADING = 1024
NO_ITEM: Item = {}


async def resolve_references(state: AppState, items: list[Item]) -> list[Item]:
    """The items, and for each reference among them the stored item that it means."""
    meant = [item["id"] for item in items if item["type"] == "item_reference"]
    if not meant:
        return items
    stored = await state.db.get_items(meant)
    resolved: list[Item] = []
    for index, item in enumerate(items):
        if item["type"] != "item_reference":
            resolved.append(item)
        elif item["id"] in stored:
            resolved.append(stored[item["id"]])
        else:
            raise InvalidRequest(f"Item with id '{item['id']}' not found.", param=f"input[{index}].id")
    return resolved


# The items of which we seal a part.
SEALED = frozenset({"reasoning", "compaction"})


def opened(sealer: Any, items: list[Item]) -> list[Item]:
    """The items, with what we have sealed in them in the open: for a backend, never for a client or the store."""
    return [
        _opened(sealer, item) if item["type"] in SEALED and item.get("encrypted_content") else item for item in items
    ]


def _opened(sealer: Any, item: Item) -> Item:
    if item["type"] == "compaction":
        return {**item, "summary": sealer.open(item["encrypted_content"])}
    if item.get("content") or (text := sealer.open(item["encrypted_content"])) is None:
        return item
    return {**item, "content": [{"type": "reasoning_text", "text": text}]}


async def resolve_history(
    state: AppState, previous_response_id: str, remembered: Mapping[str, list[Item]]
) -> list[Item]:
    """The items of all turns before this one, oldest first. Instructions are not among them: each turn gives its own."""
    if (items := remembered.get(previous_response_id)) is not None:
        return without_cut_calls(items)
    history = await state.db.get_history(previous_response_id)
    if history.missing:
        raise InvalidRequest(
            f"Previous response with id '{history.missing}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if history.unfinished:
        raise InvalidRequest(
            f"Response '{previous_response_id}' is still {history.unfinished}: it can be continued when it has ended.",
            param="previous_response_id",
        )
    return without_cut_calls(history.items)


# Ours to act on: upstream knows nothing of the first two, and would run the third by itself.
NOT_SENT_UPSTREAM = frozenset({"nomyo", "previous_response_id", "background"})


def native_params(turn: Turn, model: str, sealer: Any) -> dict[str, Any]:
    """The request for a native backend: as it came, but for what is ours to do."""
    params = {key: value for key, value in turn.request.items() if key not in NOT_SENT_UPSTREAM}
    items = native_input(turn, sealer)
    return params | {"model": model, "store": False} | ({} if items is None else {"input": items})


def native_input(turn: Turn, sealer: Any) -> Any:
    """The input for a native backend: as it came, behind the history. Upstream stores nothing, so it knows none of our ids,
    and reasoning that it cannot open is of no use to it."""
    given = turn.input if turn.has_references else turn.params.input
    if isinstance(given, list):
        given = [_told_summary(sealer, item) for item in given]
    if not turn.history:
        return given
    history = [
        item if item.get("role") == "assistant" or item["type"] == "reasoning" else _without_id(item)
        for item in (_told_summary(sealer, item) for item in turn.history)
        if item["type"] != "compaction_trigger" and (item["type"] != "reasoning" or _is_upstreams(sealer, item))
    ]
    return [*history, *(given if isinstance(given, list) else map(_without_id, turn.input))]


def _told_summary(sealer: Any, item: Item) -> Item:
    """A summary that we have sealed, as a message: upstream could not open it."""
    sealed = item.get("encrypted_content") if item.get("type") == "compaction" else None
    if not sealed or (summary := sealer.open(sealed)) is None:
        return item
    return {"type": "message", "role": "user", "content": told_summary(summary)}


def _is_upstreams(sealer: Any, item: Item) -> bool:
    """Whether reasoning was sealed by somebody else than us."""
    return bool(item.get("encrypted_content")) and sealer.open(item["encrypted_content"]) is None


def _without_id(item: Item) -> Item:
    return {key: value for key, value in item.items() if key != "id"}


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
    return [{"principal": turn.principal.id, **shaping}, *items]
