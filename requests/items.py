"""The input of a request, as items: checked, whole, and each call with its output."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from core.errors import InvalidRequest
from requests.foreign import check_foreign, check_role
from requests.messages import ROLES, orphan_output
from requests.pairs import OpenCalls, needs_output
from requests.responses import HAS_STATUS, ID_PREFIXES, new_id
from requests.tools import CALLS, OUTPUTS, Item, call_id_of, check_tools


def check_item(item: Item, where: str) -> None:
    """Raises `InvalidRequest` for an item that is none. `where` is its place in the request."""
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if not isinstance(kind, str):
        raise InvalidRequest("The type of an item is a string.", param=f"{where}.type")
    if not isinstance(item.get("id") or "", str):
        raise InvalidRequest("The id of an item is a string.", param=f"{where}.id")
    if kind == "message":
        if not isinstance(item.get("role"), str) or item["role"] not in ROLES or "tool_calls" in item:
            check_role(item, where)
        if not isinstance(item.get("role"), str) or item["role"] not in ROLES:
            raise InvalidRequest("The role is user, assistant, system or developer.", param=f"{where}.role")
        _check_content(item.get("content"), f"{where}.content")
    elif kind in CALLS | OUTPUTS:
        _check_call(item, kind, where)
    elif kind == "additional_tools":
        if not isinstance(item.get("tools"), list):
            raise InvalidRequest("The tools of an additional_tools item are a list.", param=f"{where}.tools")
        check_tools(item["tools"], f"{where}.tools")
    elif kind == "agent_message":
        _check_content(item.get("content"), f"{where}.content")
    elif kind == "reasoning":
        for key in ("content", "summary"):
            if not isinstance(item.get(key) or [], list):
                raise InvalidRequest(f"The {key} of a reasoning item is a list of parts.", param=f"{where}.{key}")
            _check_content(item.get(key), f"{where}.{key}")
    elif kind == "configuration_update":
        for holder, key in (("reasoning", "effort"), ("text", "verbosity")):
            given = item.get(holder) or {}
            if not (isinstance(given, dict) and isinstance(given.get(key) or "", str)):
                raise InvalidRequest(
                    f"A configuration_update has an object '{holder}' with a text '{key}'.", param=f"{where}.{holder}"
                )
    else:
        check_foreign(item, kind, where)
        if kind == "item_reference" and not item.get("id"):
            raise InvalidRequest("A reference needs the 'id' of an item.", param=f"{where}.id")


def _check_call(item: Item, kind: str, where: str) -> None:
    call_id, name = call_id_of(item), item.get("name")
    if not isinstance(call_id, str) and not (call_id is None and _may_lack_id(item, kind)):
        raise InvalidRequest(f"A {kind} needs a 'call_id'.", param=f"{where}.call_id")
    if kind in ("function_call", "custom_tool_call") and not (isinstance(name, str) and name):
        raise InvalidRequest(f"A {kind} needs a 'name'.", param=f"{where}.name")
    if "namespace" in item and not isinstance(item["namespace"] or "", str):
        raise InvalidRequest("A namespace is a string.", param=f"{where}.namespace")
    if kind in ("function_call_output", "custom_tool_call_output") and item.get("output") is None:
        raise InvalidRequest(f"A {kind} needs an 'output'.", param=f"{where}.output")
    for key in ("action", "operation"):
        if not isinstance(item.get(key) or {}, dict):
            raise InvalidRequest(f"The {key} of a {kind} is an object.", param=f"{where}.{key}")
    operation = item.get("operation") or {}
    if operation.get("type") in ("create_file", "update_file") and not isinstance(operation.get("diff"), str):
        raise InvalidRequest(f"The operation {operation['type']} needs a 'diff'.", param=f"{where}.operation.diff")
    if isinstance(item.get("output"), list) and kind != "shell_call_output":
        _check_content(item["output"], f"{where}.output")
    if kind == "tool_search_output":
        if not isinstance(item.get("tools") or [], list):
            raise InvalidRequest("The tools of a tool_search_output are a list.", param=f"{where}.tools")
        check_tools(item.get("tools") or [], f"{where}.tools")


def _may_lack_id(item: Item, kind: str) -> bool:
    """A hosted search answers itself, and the output of a function may name that instead."""
    names_function = kind == "function_call_output" and isinstance(item.get("name"), str)
    return names_function or item.get("execution") == "server"


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise InvalidRequest("Content is a string or a list of parts.", param=where)
    for index, part in enumerate(content):
        if not (isinstance(part, dict) and isinstance(part.get("type"), str)):
            raise InvalidRequest("A content part is an object with a 'type'.", param=f"{where}[{index}]")
        for key in ("text", "refusal"):
            if not isinstance(part.get(key) or "", str):
                raise InvalidRequest(f"The {key} of a part is a string.", param=f"{where}[{index}].{key}")


def input_items(input: str | list[Item] | None) -> list[Item]:
    """The input as items, each with an id: as they are stored, listed and replayed."""
    if isinstance(input, str):
        return [
            {
                "type": "message",
                "id": new_id("msg"),
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_text", "text": input}],
            }
        ]
    return [] if input is None else [_input_item(item) for item in input]


def _input_item(item: Item) -> Item:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    whole = {**item, "type": kind, "id": item.get("id") or new_id(ID_PREFIXES.get(kind, "item"))}
    if kind == "message" and isinstance(content := item.get("content"), str):
        text_type = "output_text" if item["role"] == "assistant" else "input_text"
        part = {"type": text_type, "text": content}
        whole["content"] = [{**part, "annotations": []} if text_type == "output_text" else part]
    if whole.get("status") is None and kind in HAS_STATUS:
        whole["status"] = "completed"
    return whole


# Of many items, without a line of Python for each.
type_of = itemgetter("type")
# What has another to it.
TIED = CALLS | OUTPUTS


def check_input(
    items: list[Item], history: int, places: Sequence[int] | None = None, before: str = "previous_response_id"
) -> None:
    """Every call has its output and every output its call. Raises `InvalidRequest` with the words of OpenAI. `history`
    is how many of the items come from earlier turns, which the parameter `before` names; `places` are those of the
    others in the request, if some were left out."""
    if TIED.isdisjoint(map(type_of, items)):
        return
    open_calls: OpenCalls[str] = OpenCalls()
    answered: set[str] = set()
    for index, item in enumerate(items):
        kind = item.get("type", "")
        if kind in CALLS:
            if (call_id := item.get("call_id")) is not None:
                open_calls.add(item, call_id)
        elif kind in OUTPUTS:
            if (taken := open_calls.take(item)) is not None:
                answered.add(taken)
            elif (call_id := call_id_of(item)) is not None:
                where = before
                if index >= history:
                    where = f"input[{places[index - history] if places else index - history}].call_id"
                if call_id in answered:
                    words = _words(kind).removesuffix(" output")
                    raise InvalidRequest(f"Duplicate output for {words} {call_id}.", param=where)
                raise orphan_output(item, where)
    for item in open_calls or ():
        if needs_output(item):
            raise InvalidRequest(f"No tool output found for {_words(item['type'])} {item['call_id']}.", param="input")


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def without_cut_calls(items: list[Item]) -> list[Item]:
    """The items less the calls that were cut off at a token limit and never answered: no client could run them."""
    cut = {item["call_id"] for item in items if item.get("type") in CALLS and item.get("status") == "incomplete"}
    if not cut:
        return items
    cut -= {call_id_of(item) for item in items if item.get("type") in OUTPUTS}
    return [item for item in items if item.get("type") not in CALLS or item.get("call_id") not in cut]
