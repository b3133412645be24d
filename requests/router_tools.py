"""Tools that the router runs: what a model is offered of them, and the items that their calls are.

mcp_call           begins as the model calls it, waits while the tool runs (`Ladder.hand_over`), ends with its output or
                   error
web_search_call …  what OpenAI runs else (hosted_calls.py): begins once its arguments are whole; what was answered is
                   hidden in it
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from core.json import Json
from requests.hidden import OUTPUT, showing
from requests.hosted_calls import HOSTED_CALLS, HOSTED_TOOLS

# The calls that the router runs, and the name of their events.
ROUTER_CALLS = {"mcp_call": "response.mcp_call", **{kind: f"response.{kind}" for kind in HOSTED_CALLS}}
# Those that wait for somebody to approve of them.
ASKED_FOR = "mcp_approval_request"


@dataclass(frozen=True, slots=True)
class RouterTool:
    """A tool that the router runs: `label` is that of its server, empty where it has none, `parameters` a JSON schema.
    Its calls are items of the type `kind`, with these `facts`. One that `needs_approval` is asked for, and run in a
    later turn."""

    label: str
    name: str
    description: str | None = None
    parameters: Json | None = None
    needs_approval: bool = False
    kind: str = "mcp_call"
    facts: Json | None = None


@dataclass(frozen=True, slots=True)
class RouterTools:
    """Those of a turn. `labels` are the servers of the request that they are of, `kinds` the types of items of the
    hosted tools among them; `heeded` are names of what something comes of because of them (`include.…`), `ignored` of
    settings of theirs of which nothing comes. Once they `are_hidden`, the model is shown none of them any more, and
    calls of them are known for what they are."""

    tools: tuple[RouterTool, ...]
    labels: frozenset[str]
    kinds: frozenset[str] = frozenset()
    heeded: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    are_hidden: bool = False

    def stand_for(self, tool: Json) -> bool:
        """Whether a tool of the request is among these."""
        if tool["type"] == "mcp":
            return tool.get("server_label") in self.labels
        return HOSTED_TOOLS.get(tool["type"]) in self.kinds

    def hidden(self) -> RouterTools:
        """The same, where no more calls are run."""
        return replace(self, are_hidden=True)


def call_of_router(kind: str, *, id: str, label: str, name: str, arguments: str, status: str) -> Json:
    """A call of a tool of a server, as it begins."""
    item = {"type": kind, "id": id, "server_label": label, "name": name, "arguments": arguments}
    if kind == ASKED_FOR:
        return item
    return item | {"status": status, "output": None, "error": None, "approval_request_id": None}


def hosted_call(kind: str, *, id: str, name: str, arguments: Json, status: str) -> Json:
    """A call of a hosted tool, as it begins; `name` is that of the function that the model has called for it."""
    return {"type": kind, "id": id, "status": status, **HOSTED_CALLS[kind].begun(name, arguments)}


def called_name(call: Json) -> str:
    """The name of the tool of a call; of a hosted tool that of the function that stands for it."""
    if (hosted := HOSTED_CALLS.get(call["type"])) is None:
        return str(call.get("name") or "")
    called = hosted.called(call)
    return call["type"].removesuffix("_call") if called is None else called[0]


def list_of_tools(id: str, label: str) -> Json:
    """The item of the tools of a server, before it has listed them. It has an `error` if that fails, and no null for
    it, which the AI SDK does not take."""
    return {"type": "mcp_list_tools", "id": id, "server_label": label, "tools": []}


def with_output(call: Json, output: str | Json) -> Json:
    """A call whose tool has answered. `output` is what the model reads; of a hosted tool no client sees it there."""
    return {**call, "status": "completed", OUTPUT if call["type"] in HOSTED_CALLS else "output": output}


def with_outcome(call: Json, output: Json, kept: Json, include: Collection[str]) -> Json:
    """A call whose hosted tool has answered: `output` has the `text` that the model reads, `kept` what the item shows
    where `include` asks for it (`TYPE.KEY`)."""
    shown = {key: value for key, value in kept.items() if f"{call['type']}.{key}" in include}
    unasked = {key: value for key, value in kept.items() if key not in shown}
    return showing(with_output(call, output | {"kept": unasked}), shown)


def with_error(call: Json, error: Json) -> Json:
    """A call that has failed: `error` is a protocol error, one of HTTP, or what the tool itself had to report. The item
    of a hosted tool has no place for it: the model reads it alone."""
    if (hosted := HOSTED_CALLS.get(call["type"])) is not None:
        return {**call, "status": "failed", OUTPUT: f"The tool failed: {error.get('message')}", **hosted.failed(error)}
    return {**call, "status": "failed", "error": error}


def cut_off(item: Json) -> Json:
    """An item that the router had not done with when its turn ended."""
    if "status" not in item:
        return item
    hosted = HOSTED_CALLS.get(item["type"])
    return {**item, "status": hosted.cut if hosted is not None else "incomplete"}


def protocol_error(message: str, code: int = -32603) -> Json:
    """The error of a call that did not come to run, or has not ended in time. `code` is one of JSON-RPC."""
    return {"type": "mcp_protocol_error", "code": code, "message": message}


def http_error(code: int, message: str) -> Json:
    """The error of a server that cannot be reached, or answers with this status."""
    return {"type": "http_error", "code": code, "message": message}


def waiting_approvals(items: Iterable[Json]) -> list[Json]:
    """The calls that were approved of and have not run, each as the item that asked for it."""
    asked: dict[str, Json] = {}
    for item in items:
        kind = item.get("type")
        if kind == ASKED_FOR:
            asked[item["id"]] = {**item, "is_approved": False}
        elif kind == "mcp_approval_response" and (request := _named(item, asked)) is not None:
            request["is_approved"] = item.get("approve") is True
        elif kind == "mcp_call" and (request := _named(item, asked)) is not None:
            del asked[request["id"]]
    return [request for request in asked.values() if request.pop("is_approved")]


def _named(item: Json, asked: dict[str, Json]) -> Json | None:
    named = item.get("approval_request_id")
    return asked.get(named) if isinstance(named, str) else None
