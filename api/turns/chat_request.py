"""What a chat backend is asked for a turn.

TurnRequest ──prepare_chat──▶ ChatRequest    the parameters, and what was found out on the way
Turn, ChatRequest ──apply──▶             its builder knows the tools, its client what was left out
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from api.turns.backend import Backend
from api.turns.history import SEALED, opened
from api.turns.turn import OMITTED_TOOLS, Turn, TurnRequest
from backends.fleet.routing import printable
from core.errors import InvalidRequest, Unsupported
from requests.chat_params import chat_request, configured, ignored_in
from requests.content import Files
from requests.items import type_of
from requests.messages import UNSPOKEN, responses_input_to_messages, without_superseded
from requests.tool_choice import NO_TOOLS, ToolChoice, tool_choice_responses_to_chat
from requests.tools import BRINGS_TOOLS, KNOWN_TOOLS, Item, ToolBook

log = logging.getLogger("nomyo.responses")


class ChatRequest(Struct, frozen=True):
    """A chat request: the `params` of POST /v1/chat/completions, the tools that are behind its functions, which of them
    the client has allowed (`choice`), the names of what nothing comes of (`ignored`), those of unknown items that are
    text (`adapted`), and the files that are still to be fetched, with their places (`wanted`)."""

    params: dict[str, Any]
    book: ToolBook
    choice: ToolChoice
    one_call: bool
    ignored: set[str]
    adapted: set[str]
    wanted: dict[str, str] = {}


async def with_files(backend: Backend, request: TurnRequest, **options: Any) -> ChatRequest:
    """`prepare_chat`, with the files that the request names by URL. Raises `InvalidRequest` for those that cannot be
    had."""
    chat = prepare_chat(backend, request, **options)
    if not chat.wanted or backend.files is None:
        return chat
    return prepare_chat(backend, request, **options, files=await backend.files.fetch_all(chat.wanted))


def prepare_chat(
    backend: Backend,
    request: TurnRequest,
    *,
    items: list[Item] | None = None,
    stream: bool | None = None,
    offers_tools: bool = True,
    files: Mapping[str, str | None] | None = None,
) -> ChatRequest:
    """What a chat backend is asked for a request. `items` stand for its input, where they are others; `stream` is as
    the client wants it, where it is None; `files` are those that were fetched. Raises `InvalidRequest` for what the
    backend cannot be given."""
    if request.params.prompt:
        raise Unsupported("Stored prompts are known to OpenAI alone.", param="prompt")
    kind = backend.kind
    given = request.input if items is None else items
    earlier, places = len(request.history), request.places
    if places is not None:  # Those of any that follow are theirs.
        places = [*places, *range(len(places), len(given))]
    items = [*request.history, *given] if earlier else given
    unread: set[str] = set()
    types = set(map(type_of, items))
    if types <= UNSPOKEN:
        raise InvalidRequest("There is nothing in the input for the model.", param="input")
    body = configured(request.body, items) if "configuration_update" in types else request.body
    if not SEALED.isdisjoint(types):
        history = opened(backend.sealer, request.history, unread, "previous_response_id")
        given = opened(backend.sealer, given, unread)
        whole = [*history, *given]
        if (items := without_superseded(whole)) is not whole:
            kept = set(map(id, items))
            earlier = sum(id(item) in kept for item in history)
            left = [place for place, item in enumerate(given) if id(item) in kept]
            places = [places[place] for place in left] if places else left
    book = ToolBook.of(body.get("tools"), () if BRINGS_TOOLS.isdisjoint(types) else items, request.router_tools)
    demanded = request.params.tool_choice
    choice = tool_choice_responses_to_chat(demanded, book, kind.chooses_by_name) if offers_tools else NO_TOOLS
    ignored = ignored_in(body) | book.ignored | unread
    adapted: set[str] = set()
    by_url = None if backend.files is None else Files(files)
    messages = responses_input_to_messages(
        items,
        request.params.instructions,
        history=earlier,
        places=places,
        carries=kind.carries,
        reasoning_key=kind.reasoning_key,
        book=book,
        ignored=ignored,
        files=by_url,
        adapted=adapted,
    )
    if request.router_tools is not None:
        ignored = (ignored - HELD_HERE - request.router_tools.heeded) | request.router_tools.ignored
    if stream is None:
        stream = request.stream or kind.streams_always
    params = chat_request(body, messages, model=backend.model, stream=stream, choice=choice, efforts=kind.efforts)
    for name, theirs in kind.option_names.items():
        if name in params:
            params[theirs] = params.pop(name)
    one_call = request.params.parallel_tool_calls is False
    return ChatRequest(params, book, choice, one_call, ignored, adapted, by_url.wanted if by_url else {})


def apply(backend: Backend, turn: Turn, chat: ChatRequest) -> None:
    """Prepares a turn for the answer: its builder learns what the backend is offered. What nothing comes of, and tools
    that have no chat form, are named to the client. Raises `Unsupported` where the settings refuse those."""
    turn.builder.offer(chat.book, allowed=chat.choice.allowed, one_call=chat.one_call)
    if chat.ignored:
        turn.headers["x-nomyo-ignored"] = _named(sorted(chat.ignored))
    for name in sorted(chat.adapted):
        turn.note_change(name)
    omitted = chat.book.omitted
    if not omitted:
        return
    if backend.refuses_hosted_tools:
        raise Unsupported(
            f"The backend of this model cannot run these tools: {', '.join(omitted)}.",
            param="tools",
            code="unsupported_tool",
        )
    turn.headers[OMITTED_TOOLS] = _named(omitted)
    types = {name.partition(":")[0] for name in omitted}
    shown = sorted(type if type in KNOWN_TOOLS else "others" for type in types)
    log.info("%s: the backend cannot be offered: %s", turn.id, ", ".join(shown))


# What something comes of where the router runs tools.
HELD_HERE = frozenset({"max_tool_calls", "input.mcp_list_tools"})


def _named(names: list[str]) -> str:
    """Names as a header holds them. They are the client's own text, and may be as long as it likes."""
    return printable(", ".join(names))[:MOST]


# Servers and proxies take no longer headers, all together, than some kilobytes.
MOST = 2048
