"""What another server that speaks Responses sends, whole: every key that strict clients need, and none of another type
than they know. What is fine stays as it came.

Specification: OpenAI's Response and its items, Open Responses 2026-04-24.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal, get_args

import msgspec

from core.json import Json, encode_json
from requests.endings import incomplete_reason
from requests.open_items import STREAMED_CALLS, STREAMED_PARTS
from requests.responses import HAS_STATUS, ID_PREFIXES, new_id
from requests.tools import CALLS, Item
from requests.usage import whole_usage

Part = Json
Text = Annotated[str, msgspec.Meta(min_length=1)]
Status = Literal["in_progress", "completed", "incomplete"]

STATUSES = frozenset(get_args(Status))
# An answer is the assistant's; what a server has compacted holds the words of others, too.
Role = Literal["assistant", "user", "system", "developer"]
ROLES = frozenset(get_args(Role))
# Strict clients know these absent, and not null.
NEVER_NULL = ("phase", "logprobs", "encrypted_content", "content", "annotations", "status")


Given = str | bool | int | float | list[Any] | Json | msgspec.UnsetType


class NotNull(msgspec.Struct, kw_only=True):
    """What may be absent, and not null, in whatever holds it."""

    phase: Given = msgspec.UNSET
    logprobs: Given = msgspec.UNSET
    encrypted_content: Given = msgspec.UNSET
    content: Given = msgspec.UNSET
    annotations: Given = msgspec.UNSET
    status: Given = msgspec.UNSET


class WholeText(NotNull, tag="output_text", kw_only=True):
    text: str
    annotations: list[Json]
    logprobs: list[Json]


class WholeRefusal(NotNull, tag="refusal", kw_only=True):
    refusal: str


class WholeThought(NotNull, tag="reasoning_text", kw_only=True):
    text: str


class WholeSummary(NotNull, tag="summary_text", kw_only=True):
    text: str


WholePart = WholeText | WholeRefusal | WholeThought | WholeSummary


class WholeMessage(NotNull, tag="message", kw_only=True):
    id: Text
    status: Status
    role: Role
    content: list[WholeText | WholeRefusal]
    phase: Text | msgspec.UnsetType = msgspec.UNSET


class WholeReasoning(NotNull, tag="reasoning", kw_only=True):
    id: Text
    summary: list[WholeSummary]
    content: list[WholeThought] | msgspec.UnsetType = msgspec.UNSET
    encrypted_content: str | msgspec.UnsetType = msgspec.UNSET
    status: Status | msgspec.UnsetType = msgspec.UNSET


class WholeCall(NotNull, tag="function_call", kw_only=True):
    id: Text
    call_id: Text
    name: Text
    arguments: str
    status: Status


WholeItem = WholeMessage | WholeReasoning | WholeCall


# msgspec knows a struct at once; what a union means it would work out again with each value.
class OneItem(msgspec.Struct):
    value: WholeItem


class AllItems(msgspec.Struct):
    value: list[WholeItem]


class OnePart(msgspec.Struct):
    value: WholePart


def is_whole(given: object, whole: type[msgspec.Struct]) -> bool:
    """Whether it is a `value` that lacks nothing, as nearly all that comes: to look at each key would take ten times as
    long."""
    try:
        msgspec.convert({"value": given}, whole)
    except msgspec.ValidationError:
        return False
    return True


def whole_item(given: Any, status: str) -> Item | None:
    """An item, with the `status` where it gives none. None for what is no item."""
    if is_whole(given, OneItem):
        whole: Item = given  # and so a dict
        return whole
    if not isinstance(given, dict) or (kind := _kind_of(given)) is None:
        return None
    item: Item = {key: value for key, value in given.items() if value is not None or key not in NEVER_NULL}
    item["type"] = kind
    if not _is_name(item.get("id")):
        item["id"] = new_id(ID_PREFIXES.get(kind, "item"))
    if kind in HAS_STATUS and not (isinstance(given_status := item.get("status"), str) and given_status in STATUSES):
        item["status"] = status
    if kind in CALLS and not _is_name(item.get("call_id")) and not _runs_there(item):
        item["call_id"] = _name(item.get("call_id")) or new_id("call")
    if kind == "message":
        item["role"] = role if isinstance(role := item.get("role"), str) and role in ROLES else "assistant"
        item["content"] = whole_parts(item.get("content"), "output_text")
    elif kind == "reasoning":
        item["summary"] = whole_parts(item.get("summary"), "summary_text")
        if "content" in item:
            item["content"] = whole_parts(item["content"], "reasoning_text")
    elif kind in STREAMED_CALLS:
        key = STREAMED_CALLS[kind][1]
        item["name"] = _name(item.get("name"))
        item[key] = _text_of(item.get(key))
    return item


def whole_parts(given: object, kind: str) -> list[Part]:
    """The parts of a content or a summary; a text stands for one of that kind."""
    parts = given if isinstance(given, list) else [] if given in (None, "") else [given]
    return [part for part in (whole_part(part, kind) for part in parts) if part is not None]


def whole_part(given: Any, kind: str) -> Part | None:
    """A part, of that kind where it names none. None for what is no part."""
    if is_whole(given, OnePart):
        whole: Part = given  # and so a dict
        return whole
    if isinstance(given, str):
        given = {"type": kind, "text": given}
    if not isinstance(given, dict):
        return None
    part: Part = {key: value for key, value in given.items() if value is not None or key not in NEVER_NULL}
    if not _is_name(part.get("type")):
        part["type"] = kind
    if (streamed := STREAMED_PARTS.get(part["type"])) is not None:
        part[streamed[1]] = _text_of(part.get(streamed[1]))
    if part["type"] == "output_text":
        for key in ("annotations", "logprobs"):
            part[key] = objects_in(part.get(key))
    return part


def begun(item: Item) -> Item:
    """The item as it is added: what is streamed is empty yet."""
    added = dict(item)
    if "status" in added:
        added["status"] = "in_progress"
    if item["type"] == "message":
        added["content"] = []
    elif item["type"] == "reasoning":
        added["summary"] = []
        if "content" in added:
            added["content"] = []
    elif item["type"] in STREAMED_CALLS:
        added[STREAMED_CALLS[item["type"]][1]] = ""
    return added


class Format(msgspec.Struct):
    type: Text


class TextConfig(msgspec.Struct):
    format: Format
    verbosity: Text | msgspec.UnsetType = msgspec.UNSET


class Known(msgspec.Struct):
    """The keys of a response that strict clients want to be of a type."""

    model: Text = "m"
    tools: list[Json] = []
    tool_choice: str | Json = "auto"
    metadata: Json = {}
    text: TextConfig | msgspec.UnsetType = msgspec.UNSET
    truncation: Text = "disabled"
    service_tier: Text = "default"
    parallel_tool_calls: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    reasoning: Json | None = None
    instructions: str | list[Json] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None


def whole_response(given: Json) -> Json:
    """A response whose keys are of the types that clients know; those that are not are left out, and what ends it is
    not looked at."""
    try:
        msgspec.convert(given, Known)
    except msgspec.ValidationError:
        pass
    else:
        return given
    response = {key: value for key, value in given.items() if key not in Known.__struct_fields__ or _fits(key, value)}
    if isinstance(text := given.get("text"), dict):
        text = {key: value for key, value in text.items() if value is not None}
        response["text"] = text if _fits("text", text) else {**text, "format": {"type": "text"}}
    return response


def _fits(key: str, value: object) -> bool:
    try:
        msgspec.convert({key: value}, Known)
    except msgspec.ValidationError:
        return False
    return True


def whole_error(given: object) -> Json:
    """The error of a failed response."""
    error = given if isinstance(given, dict) else {"message": given if isinstance(given, str) else ""}
    code, message = error.get("code"), error.get("message")
    return {
        **error,
        "code": code if _is_name(code) else "server_error",
        "message": message if _is_name(message) else "The backend failed.",
    }


def whole_output(response: Json, status: str) -> list[Item]:
    """The items of a response, each with this `status` where it has none; or the text that stands for them."""
    given = response.get("output")
    if given and is_whole(given, AllItems):
        items: list[Item] = given
        return items
    whole = (whole_item(item, status) for item in objects_in(given))
    # A call without a name is none that a client could run.
    items = [item for item in whole if item is not None and item.get("name", "a name")]
    if items or not _is_name(text := response.get("output_text")):
        return items
    message = whole_item({"type": "message", "content": text}, status)
    return [message] if message is not None else []


def ending(response: Json, status: str) -> Json:
    """Why and when a response ended, and what it used, as it must be with this status."""
    ended: Json = {"error": None, "incomplete_details": None, "completed_at": None}
    ended["usage"] = whole_usage(response.get("usage"))
    if status == "completed":
        at = response.get("completed_at")
        ended["completed_at"] = (
            at if type(at) is int and at > 0 else int(at if type(at) is float and at > 0 else time.time())
        )
    elif status == "incomplete":
        details = response.get("incomplete_details")
        details = details if isinstance(details, dict) else {}
        reason = details.get("reason")
        # Some give chat's reason (`length`). What nobody knows is their own affair.
        ours = incomplete_reason(reason) or reason if _is_name(reason) else "max_output_tokens"
        ended["incomplete_details"] = details if ours == reason else {**details, "reason": ours}
    elif response.get("error") or status == "failed":
        ended["error"] = whole_error(response.get("error"))
    return ended


def objects_in(value: object) -> list[object]:
    """The objects of a list, if it is one."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _kind_of(item: Item) -> str | None:
    """The type of an item, also of one that names none."""
    if _is_name(kind := item.get("type")):
        return str(kind)
    if "arguments" in item and "name" in item:
        return "function_call"
    if "role" in item and "content" in item:
        return "message"
    return "reasoning" if "summary" in item else None


def _runs_there(item: Item) -> bool:
    """Whether a search of tools was the server's own: nobody answers it."""
    return item["type"] == "tool_search_call" and item.get("execution") == "server"


def _text_of(value: object) -> str:
    """A text; other values as JSON, for servers that send arguments as what they are."""
    if isinstance(value, str):
        return value
    return "" if value is None else encode_json(value).decode()


def _name(value: object) -> str:
    return (
        value
        if isinstance(value, str)
        else str(value)
        if isinstance(value, int) and not isinstance(value, bool)
        else ""
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""
