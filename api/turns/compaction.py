"""A conversation becomes a summary that the client carries for us, sealed."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from api.turns.backend import Backend
from api.turns.chat_events import whole_answer
from api.turns.chat_request import with_files
from api.turns.turn import TurnRequest
from core.errors import BackendError
from requests.items import input_items
from requests.messages import without_superseded
from requests.responses import new_id, output_text
from requests.tools import Item

SUMMARIZE = """Our conversation gets too long to go on with. Write a summary of it that can take its place: what was
asked,
what was decided and found out, with the names, numbers, paths and commands that matter, what is done and what is left
to do. Write the summary and nothing else."""
# What of a request its summary is asked with. The tools are not offered, and limits are for the answer.
ASKED_WITH = ("model", "instructions")


async def summary_of(backend: Backend, request: TurnRequest) -> tuple[Item, dict[str, Any] | None]:
    """A summary of the conversation by the backend's model, as the one item that the client carries on, and what it
    used."""
    chat = await with_files(backend, _summarizing(request), offers_tools=False)
    inner = await whole_answer(backend, chat.params)
    summary = output_text(inner.response["output"])
    if not summary.strip():
        raise BackendError("The model made no summary.", code="backend_empty_answer")
    item = {"type": "compaction", "id": new_id("cmp"), "encrypted_content": backend.sealer.seal(summary, "compaction")}
    return item, inner.chat_usage


def _summarizing(request: TurnRequest) -> TurnRequest:
    """The request for the summary of a conversation: it goes on with nothing but the wish for one."""
    body = {key: request.body[key] for key in ASKED_WITH if request.body.get(key) is not None}
    items = [item for item in request.input if item["type"] != "compaction_trigger"]
    return replace(request, body=body, input=[*items, *input_items(SUMMARIZE)])


def can_shrink(items: list[Item]) -> bool:
    """Whether a compaction would leave anything out: what people wrote stays."""
    items = without_superseded(items)
    return len(without_superseded([*items, {"type": "compaction"}])) <= len(items)
