"""The answer of a backend that speaks Responses: the request goes out as it came, behind the history that only we know,
and its events come back as ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from api.turns.backend import Backend, passed
from api.turns.history import summary_in
from api.turns.turn import Turn, TurnRequest, seals_for_us
from backends.wire.errors import ANY_SERVER
from backends.wire.streams import Stream
from core.errors import BackendRefused
from core.seals import Sealer, is_ours
from requests.hidden import without_outputs
from requests.included import SEALED_REASONING
from requests.messages import summary_text
from requests.native_events import NativeEvent
from requests.native_translator import NativeTranslator
from requests.tools import Item

# Ours to act on: upstream knows nothing of the first two, and would run the third by itself.
NOT_SENT_UPSTREAM = frozenset({"nomyo", "previous_response_id", "conversation", "background"})


async def native_answer(backend: Backend, turn: Turn) -> None:
    """The events of the answer, renamed to our id and numbers. Raises what upstream refused, or that it broke off."""
    builder = turn.builder
    if any(_is_sealed_here(item) for item in turn.request.input):
        turn.headers["x-nomyo-ignored"] = "input.reasoning"
    params = native_params(turn.request, backend.model, backend.sealer)
    if seals_for_us(turn.request):
        builder.hides_seals = not turn.feeds
        params["include"] = [*(turn.request.params.include or ()), SEALED_REASONING]
    if backend.compact is not None and (compaction := await _begun(backend, _compacting(params), backend.compact)):
        turn.window = [item for item in compaction["output"] if isinstance(item, dict)]
        made = [item for item in turn.window if item.get("type") == "compaction"]
        turn.emit(builder.adopt_whole({"output": made, "usage": compaction.get("usage")}))
        return
    answer = await _begun(backend, params, backend.create)
    if backend.kind.is_router:
        _pass_on(turn, answer.headers)
    if hasattr(answer, "model_dump"):
        turn.emit(builder.adopt_whole(answer.model_dump()))
        return
    errors = answer.errors if isinstance(answer, Stream) else ANY_SERVER
    await passed(answer, NativeTranslator(builder, errors), _as_native, turn.out)


# What became of a request behind another router.
PASSED_ON = ("x-nomyo-ignored", "x-nomyo-adapted", "x-nomyo-omitted-tools")


def _pass_on(turn: Turn, headers: Mapping[str, str]) -> None:
    for name in PASSED_ON:
        if theirs := headers.get(name):
            before = turn.headers.get(name)
            turn.headers[name] = f"{before}, {theirs}" if before else theirs


async def _begun(backend: Backend, params: dict[str, Any], create: Callable[[dict[str, Any]], Awaitable[Any]]) -> Any:
    """The answer to the request, or to a changed one, where upstream refused the first."""
    adapting = backend.adapting
    if adapting is not None:
        params = await adapting.prepared(params)
    while True:
        try:
            return await create(params)
        except BackendRefused as error:
            if adapting is None:
                raise
            params = adapting.changed(params, error)


def _as_native(event: Any) -> NativeEvent:
    """An event of upstream's, out of an SDK that stands in for our client."""
    return NativeEvent.of(event.model_dump())


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────────────────


def native_params(request: TurnRequest, model: str, sealer: Sealer) -> dict[str, Any]:
    """The request for a native backend: as it came, but for what is ours to do."""
    params = {key: value for key, value in request.body.items() if key not in NOT_SENT_UPSTREAM}
    items = _native_input(request, sealer)
    params["store"] = False
    if "model" in params:  # A stored prompt names its own.
        params["model"] = model
    if items is not None:
        params["input"] = items
    return params


def _compacting(params: dict[str, Any]) -> dict[str, Any]:
    """The request for upstream's own /compact, which needs no trigger, and whose answer is neither streamed nor
    stored."""
    items = [item for item in params["input"] if item.get("type") != "compaction_trigger"]
    return {key: value for key, value in params.items() if key not in ("store", "stream")} | {"input": items}


def _native_input(request: TurnRequest, sealer: Sealer) -> Any:
    """The input for a native backend: as it came, behind the history. Upstream stores nothing, so it knows none of our
    ids, and reasoning that it cannot open is of no use to it."""
    given, places = request.params.input, request.places
    if request.has_references:
        given = without_outputs(request.input)
    elif places is not None and isinstance(given, list):
        given = [given[place] for place in places]
    if isinstance(given, list):
        given = [
            _with_summary(sealer, item, f"input[{places[index] if places else index}].encrypted_content")
            for index, item in enumerate(given)
            if not _is_sealed_here(item)
        ]
    if not request.history:
        return given
    history = [
        _without_id(item) if _has_foreign_id(item) else item
        for item in (_with_summary(sealer, item, "previous_response_id") for item in without_outputs(request.history))
        if item["type"] != "compaction_trigger" and (item["type"] != "reasoning" or _is_upstreams(sealer, item))
    ]
    return [*history, *(given if isinstance(given, list) else map(_without_id, request.input))]


def _has_foreign_id(item: Item) -> bool:
    """Whether upstream takes an item only without its id: reasoning, which Azure looks up; and what we had no right
    name for. The others need theirs, because items refer to each other, and hosted calls are invalid without."""
    return item["type"] == "reasoning" or str(item.get("id")).startswith("item_")


def _with_summary(sealer: Sealer, item: Item, where: str) -> Item:
    """A summary that we have sealed, as a message: upstream could not open it. `where` is its place in the request."""
    if item.get("type") != "compaction" or (summary := summary_in(sealer, item, where)) is None:
        return item
    return {"type": "message", "role": "user", "content": summary_text(summary)}


def _is_upstreams(sealer: Sealer, item: Item) -> bool:
    """Whether reasoning was sealed by somebody else than us."""
    sealed = item.get("encrypted_content")
    return bool(sealed) and not is_ours(sealed) and sealer.open(sealed, "reasoning") is None


def _is_sealed_here(item: Item) -> bool:
    """Whether it is reasoning that a router of ours has sealed: upstream would refuse it."""
    return item.get("type") == "reasoning" and is_ours(item.get("encrypted_content"))


def _without_id(item: Item) -> Item:
    return {key: value for key, value in item.items() if key != "id"}
