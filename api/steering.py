"""`response.steer` over a WebSocket: a user's words for a response that still runs, taken up when it has ended.

    accepted ──▶ the response ends ──▶ its successor begins with them
                     ├─ waits for the client's tools ─▶ pending ─▶ they go before the input that brings the outputs
                     └─ failed, cancelled ─▶ failed: the client has them again

Specification: OpenAI's WebSocket mode, as in the SDK (`response.steer`, `response.steer.accepted`, `.pending`,
`.failed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from api.turns.turn import TurnRequest
from core.errors import InvalidRequest
from core.json import Json
from requests.events import ResponseBuilder
from requests.items import check_input, input_items
from requests.open_items import Event
from requests.params import check_request
from requests.tools import Item

# Of one response.
MAX_PENDING = 16
FIELDS = frozenset({"type", "previous_response_id", "input"})
MESSAGE_FIELDS = frozenset({"type", "role", "content"})
PARTS = frozenset({"input_text", "input_image", "input_file"})
# What a client gives back for a call, where it is not its type with `_output` behind.
OUTPUT_OF = {"tool_search_call": "tool_search_output"}


@dataclass(frozen=True, slots=True)
class Steer:
    """Words for a response. `given` is the input as it came, `items` what the model will read, `builder` numbers its
    events."""

    id: str
    previous_response_id: str
    given: Any
    items: list[Item]
    builder: ResponseBuilder

    def accepted(self) -> Event:
        """The event of a steer that is read in the next round."""
        return self.builder.event("response.steer.accepted", steer=self._named)

    def pending(self, required: list[Item]) -> Event:
        """The event of a steer that waits for what the client must send first."""
        reason = "waiting_for_required_input"
        return self.builder.event("response.steer.pending", reason=reason, required_input=required, steer=self._named)

    def failed(self, code: str, message: str) -> Event:
        """The event of a steer that nobody will read."""
        named = {**self._named, "input": self.given}
        return self.builder.event("response.steer.failed", error=_error(code, message), steer=named)

    @property
    def _named(self) -> Json:
        return {"id": self.id, "previous_response_id": self.previous_response_id}


def refused(message: Json, code: str, why: str, builder: ResponseBuilder | None = None) -> Event:
    """`response.steer.failed` for what was never accepted. `builder` is that of the response, if it runs."""
    named = {"previous_response_id": message.get("previous_response_id"), "input": message.get("input")}
    fields = {"error": _error(code, why), "steer": named}
    if builder is not None:
        return builder.event("response.steer.failed", **fields)
    return {"type": "response.steer.failed", "sequence_number": 0, **fields}


def _error(code: str, message: str) -> Json:
    return {"code": code, "message": message, "type": "invalid_request_error"}


def steering_items(message: Json) -> list[Item]:
    """The messages of a `response.steer`. Raises `InvalidRequest` for one that is not the user's."""
    if unknown := sorted(message.keys() - FIELDS):
        raise InvalidRequest(f"A steer has no '{unknown[0]}'.", param=unknown[0], code="unknown_parameter")
    given = message.get("input")
    if not given or not isinstance(given, str | list):
        raise InvalidRequest("A steer needs input: text, or messages of the user.", param="input", code="invalid_value")
    for index, item in enumerate(given if isinstance(given, list) else ()):
        _check_message(item, f"input[{index}]")
    params = check_request({"model": "any", "input": given})
    items = input_items(params.input)
    check_input(items, 0)
    return items


def _check_message(item: Any, place: str) -> None:
    if not isinstance(item, dict) or item.get("type", "message") != "message" or item.get("role") != "user":
        raise InvalidRequest("Only messages of the user steer.", param=place, code="invalid_value")
    if unknown := sorted(item.keys() - MESSAGE_FIELDS):
        raise InvalidRequest(f"A message that steers has no '{unknown[0]}'.", param=place, code="unknown_parameter")
    content = item.get("content")
    if not content or not isinstance(content, str | list):
        raise InvalidRequest("A message has content.", param=f"{place}.content", code="missing_required_parameter")
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type") not in PARTS:
            raise InvalidRequest("It has texts, images and files.", param=f"{place}.content", code="invalid_value")


def can_be_steered(request: TurnRequest) -> bool:
    """A turn that shortens its conversation by itself cannot, nor one of a conversation that others go on with too."""
    return not (request.is_compaction or request.compact_threshold or request.body.get("conversation"))


def required_input(output: list[Item]) -> list[Item]:
    """What a response waits for before it can go on: for each call that the client runs, the beginning of its
    output."""
    required: list[Item] = []
    for item in output:
        kind = item["type"]
        if kind == "mcp_approval_request":
            required.append({"type": "mcp_approval_response", "approval_request_id": item["id"]})
        if not kind.endswith("_call") or not item.get("call_id") or item.get("status") == "incomplete":
            continue
        if item.get("execution") == "server":
            continue
        stub = {"type": OUTPUT_OF.get(kind, f"{kind}_output"), "call_id": item["call_id"]}
        if kind == "function_call":
            stub["name"] = item["name"]
        if kind == "tool_search_call":
            stub["execution"] = "client"
        required.append(stub)
    return required
