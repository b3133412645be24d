"""Responses items as chat messages.

    items ──responses_input_to_messages──▶ messages

A Responses conversation is a flat list of items; a chat conversation is a list of messages in which one assistant
message holds the text and all tool calls of a turn, and the tool messages follow it at once. So items are gathered into
nodes: an assistant message with the tool messages that answer it. An output that comes late still lands behind its
call. The other direction is in `requests/from_messages.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from core.errors import InvalidRequest
from core.json import encode_json
from requests.bounded_json import mend
from requests.compatibility import IGNORED, ITEMS, RUN_HERE, chat_names
from requests.content import EVERY_PART, Content, Files
from requests.hidden import output_in
from requests.hosted_calls import HOSTED_CALLS
from requests.item_text import item_as_text, output_as_text
from requests.pairs import OpenCalls, needs_output
from requests.router_tools import ASKED_FOR
from requests.tools import BRINGS_TOOLS, CALLS, OUTPUTS, Call, Item, ToolBook, call_id_of, call_of_item, output_of

Message = dict[str, Any]

THINK_TAGS = "<think>"
SUMMARY = "A summary of our conversation up to here, which was made to save space:"
UNREADABLE = "(It was made by another service and cannot be read here.)"
ATTACHED = "(The attachments of this output follow in the next user message.)"
# Items that are for the router, and not for a model.
SILENT = BRINGS_TOOLS | chat_names(ITEMS, RUN_HERE) | {name for name, row in ITEMS.items() if row.is_setting}
IGNORED_ITEMS = chat_names(ITEMS, IGNORED)
KNOWN_ITEMS = frozenset(ITEMS)
UNSPOKEN = SILENT | IGNORED_ITEMS
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def responses_input_to_messages(
    input: str | list[Item],
    instructions: str | None = None,
    *,
    history: int = 0,
    places: Sequence[int] | None = None,
    carries: frozenset[str] = EVERY_PART,
    reasoning_key: str | None = "reasoning_content",
    book: ToolBook | None = None,
    ignored: set[str] | None = None,
    files: Files | None = None,
    adapted: set[str] | None = None,
) -> list[Message]:
    """Chat messages for a Responses input.

    `history` is how many of the items come from earlier turns, so that an error names the place in the client's own
    `input`; `places` are those of the items there, if some were left out. `carries` names the content parts, other than
    text, that the backend takes; anything else is an `Unsupported` (400) that names the parameter. `reasoning_key` is
    where the backend reads earlier reasoning from: a key of the message, `THINK_TAGS` for its text, or None where it
    must be left out. `book` knows the backend's names of the tools. `ignored` gets the names of items and keys of which
    nothing came, `adapted` those of items that nobody knows, which are text. `files` are those that are named by URL;
    without it they are refused."""
    items = [] if isinstance(input, str) else input
    conversation = _Conversation(
        items, carries, reasoning_key, book or ToolBook(()), set() if ignored is None else ignored, files, adapted
    )
    if instructions:
        conversation.system(instructions)
    if isinstance(input, str):
        conversation.message("user", input)
        return conversation.messages()
    try:
        for item in input[:history]:
            conversation.item(item, "")
    except InvalidRequest as error:
        error.param = "previous_response_id"
        raise
    for index, item in enumerate(input[history:]):
        conversation.item(item, f"input[{places[index] if places else index}]")
    return conversation.messages()


NEVER_SUPERSEDED = (BRINGS_TOOLS - OUTPUTS) | {"agent_message"}


def without_superseded(items: list[Item]) -> list[Item]:
    """The items, less what the last compaction among them stands for: all before it but the messages of users, and
    calls that are answered behind it. One that could not be opened (its `summary` is None) stands for nothing."""
    summaries = (
        index
        for index, item in enumerate(items)
        if item.get("type") == "compaction" and item.get("summary", "") is not None
    )
    last = max(summaries, default=0)
    if not last:
        return items
    open_calls = {call_id_of(item) for item in items[last:] if item.get("type") in OUTPUTS}
    kept = [
        item
        for item in items[:last]
        if item.get("role") in ("user", "system", "developer")
        or item.get("type") in NEVER_SUPERSEDED
        or (item.get("type") in CALLS and call_id_of(item) in open_calls)
    ]
    return [*kept, *items[last:]]


class _Node:
    """A message, and what must follow it at once: the tool messages, then the images of their outputs."""

    __slots__ = ("message", "shown", "tools")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.tools: list[Message] = []
        self.shown: list[dict[str, Any]] = []


class _Conversation:
    def __init__(
        self,
        items: list[Item],
        carries: frozenset[str],
        reasoning_key: str | None,
        book: ToolBook,
        ignored: set[str],
        files: Files | None,
        adapted: set[str] | None,
    ) -> None:
        self._items = items
        self._adapted = adapted
        self._ignored = ignored
        self._content = Content(carries, ignored, files)
        self._reasoning_key = reasoning_key
        self._book = book
        self._nodes: list[_Node] = []
        self._reasoning = ""
        self._open: OpenCalls[tuple[_Node, str]] = OpenCalls()
        # The ids of calls as the backend knows them: none twice.
        self._call_ids: set[str] = set()
        # How often each of them has come.
        self._numbers: dict[str, int] = {}
        # The searches that have an output, once somebody asks.
        self._searched: set[str | None] | None = None
        # What was answered to those who asked whether a tool may run, and what has run then, once somebody asks.
        self._approvals: dict[str, Item] | None = None
        self._approved: set[str] = set()

    def messages(self) -> list[Message]:
        self._flush_reasoning()
        messages: list[Message] = []
        for node in self._nodes:
            message = node.message
            if message["content"] is None and message.get("refusal") and not message.get("tool_calls"):
                # Strict servers want a content, and all but OpenAI's read nothing else.
                message["content"] = message["refusal"]
            messages.append(message)
            messages += node.tools
            if node.shown:
                messages.append({"role": "user", "content": node.shown})
        return messages

    def item(self, item: Item, where: str) -> None:
        kind = item.get("type") or "message"
        if kind in CALLS and call_id_of(item) and (kind != "tool_search_call" or self._is_answered(item)):
            self._call(item)
            return
        if kind in OUTPUTS and (call_id_of(item) or item.get("name")):
            self._call_output(item, where)
            return
        match kind:
            case "message":
                role = ROLES[item["role"]]
                if role == "assistant":
                    self._assistant(item.get("content"), f"{where}.content")
                elif role == "system":
                    self.system(self._content.of(item.get("content"), f"{where}.content", between="\n\n"))
                else:
                    self.message(role, self._content.of(item.get("content"), f"{where}.content"))
            case "compaction":
                self.message("user", summary_text(item.get("summary")))
            case "agent_message":
                self.message("user", _agent_text(item.get("content") or ""))
            case "reasoning":
                self._reasoning = "\n\n".join(filter(None, [self._reasoning, reasoning_text(item)]))
            case "mcp_call" if _names_a_tool(item):
                made = _call_of_server(item), item.get("arguments")
                self._run_call(item, made, *output_as_text(item, shows_pictures=self._content.carries_images))
            case _ if (hosted := HOSTED_CALLS.get(kind)) and (output := output_in(item)) is not None:
                name, arguments = hosted.called(item) or (kind.removesuffix("_call"), {})
                pictures = hosted.pictures(item) if self._content.carries_images else ()
                self._run_call(item, (Call(kind, name), arguments), output, pictures)
            case _ if kind == ASKED_FOR and _names_a_tool(item) and (answer := self._approval(item["id"])):
                if item["id"] not in self._approved:  # Else its call follows, with what came of it.
                    made = _call_of_server(item), item.get("arguments")
                    self._run_call(item, made, _without_approval(answer))
            case "mcp_approval_response" if item.get("approval_request_id") in self._asked:
                pass
            case _ if kind in IGNORED_ITEMS:
                if where:  # Else it is of a turn before, and may be our own.
                    self._ignored.add(f"input.{kind}")
            case _ if kind not in SILENT:
                # Something that OpenAI ran, in an earlier turn: the model reads what it was.
                if kind not in KNOWN_ITEMS and self._adapted is not None:
                    self._adapted.add(f"input.{kind}=text")
                text, pictures = item_as_text(item, shows_pictures=self._content.carries_images)
                node = self._assistant(f"{text}\n{ATTACHED}" if pictures else text, where)
                node.shown += [{"type": "image_url", "image_url": {"url": url}} for url in pictures]

    def message(self, role: str, content: Any) -> None:
        self._flush_reasoning()
        self._nodes.append(_Node({"role": role, "content": content}))

    def system(self, content: Any) -> None:
        """Leading system texts become one message: many chat templates know a single one, at the start."""
        self._flush_reasoning()
        first = self._nodes[0].message if len(self._nodes) == 1 else None
        if first and first["role"] == "system" and isinstance(content, str) and isinstance(first["content"], str):
            first["content"] += "\n\n" + content
        else:
            self._nodes.append(_Node({"role": "system", "content": content}))

    def _assistant(self, content: Any, where: str) -> _Node:
        texts, refusals = split_refusals(content)
        body = self._content.of(texts, where) if texts else None if refusals else ""
        node = self._open_assistant()
        if node is None or not node.message.get("tool_calls"):
            # Texts of one turn stay messages of their own, unless a call between them waits for its output.
            node = self._new_assistant()
        message = node.message
        message["content"] = _joined(message["content"], body)
        if refusals:
            message["refusal"] = "\n\n".join([*filter(None, [message.get("refusal")]), *refusals])
        return node

    def _is_answered(self, call: Item) -> bool:
        """Whether a search has an output, or must have one: a hosted one may have answered itself."""
        if needs_output(call) or call.get("execution") != "server":
            return True
        if self._searched is None:
            self._searched = {call_id_of(item) for item in self._items if item.get("type") == "tool_search_output"}
        return call_id_of(call) in self._searched

    def _call(self, item: Item) -> None:
        node = self._open_assistant() or self._new_assistant()
        made, arguments = call_of_item(item)
        call_id = self._free_call_id(item["call_id"])
        call = {
            "id": call_id,
            "type": "function",
            "function": {"name": self._book.name_of(made), "arguments": whole_arguments(arguments)},
        }
        node.message.setdefault("tool_calls", []).append(call)
        self._open.add(item, (node, call_id))

    def _run_call(self, item: Item, made: tuple[Call, Any], output: str, pictures: Sequence[str] = ()) -> None:
        """A call that the router has run, or would have: the model reads it as any other, with its output. `made` is
        how the model has called it, with its arguments."""
        node = self._open_assistant() or self._new_assistant()
        call_id = self._free_call_id(str(item.get("id") or "call"))
        call, arguments = made
        function = {"name": self._book.name_of(call), "arguments": whole_arguments(arguments)}
        node.message.setdefault("tool_calls", []).append({"id": call_id, "type": "function", "function": function})
        text = f"{output}\n{ATTACHED}" if pictures else output
        node.tools.append({"role": "tool", "tool_call_id": call_id, "content": text})
        node.shown += [{"type": "image_url", "image_url": {"url": url}} for url in pictures]

    @property
    def _asked(self) -> set[str]:
        """The ids of what has asked whether a tool may run."""
        return {item["id"] for item in self._items if item.get("type") == ASKED_FOR and _names_a_tool(item)}

    def _approval(self, request_id: str) -> Item | None:
        """What was answered to whoever asked whether a tool may run."""
        if self._approvals is None:
            self._approvals = {}
            for item in self._items:
                named = item.get("approval_request_id")
                if item.get("type") == "mcp_approval_response" and isinstance(named, str):
                    self._approvals[named] = item
                elif item.get("type") == "mcp_call" and isinstance(named, str):
                    self._approved.add(named)
        return self._approvals.get(request_id)

    def _free_call_id(self, call_id: str) -> str:
        """The id of a call, if no other has it; else one that is made of it, the same in every turn."""
        free = call_id
        if free in self._call_ids:
            number = self._numbers.get(call_id, 1)
            while free in self._call_ids:
                number += 1
                free = f"{call_id}_{number}"
            self._numbers[call_id] = number
        self._call_ids.add(free)
        return free

    def _call_output(self, item: Item, where: str) -> None:
        text, shown = self._output(output_of(item, self._book), where)
        found = self._open.take(item)
        if found is not None:
            node, call_id = found
            node.tools.append({"role": "tool", "tool_call_id": call_id, "content": text})
            node.shown += shown
        elif call_id_of(item) is not None:
            raise orphan_output(item, where)
        else:  # A function that answers without having been called: it runs beside the conversation.
            named = f"[output of {item['name']}: {text}]"
            self.message("user", [{"type": "text", "text": named}, *shown] if shown else named)

    def _output(self, output: Any, where: str) -> tuple[str, list[dict[str, Any]]]:
        """A tool message takes text alone: from the first image on, all goes into a user message behind the outputs."""
        if not isinstance(output, list):
            return output if isinstance(output, str) else encode_json(output).decode(), []
        content = self._content.of(output, f"{where}.output")
        if isinstance(content, str):
            return content, []
        first = next(index for index, part in enumerate(content) if part["type"] != "text")
        texts = [part["text"] for part in content[:first]]
        return "\n".join([*texts, ATTACHED]), content[first:]

    def _open_assistant(self) -> _Node | None:
        """The assistant message that is still being made: the last one, not answered by a tool yet."""
        if self._reasoning or not self._nodes:
            return None
        last = self._nodes[-1]
        return last if last.message["role"] == "assistant" and not last.tools else None

    def _new_assistant(self) -> _Node:
        node = _Node({"role": "assistant", "content": None})
        if self._reasoning and self._reasoning_key == THINK_TAGS:
            node.message["content"] = f"<think>\n{self._reasoning}\n</think>"
        elif self._reasoning and self._reasoning_key:
            node.message[self._reasoning_key] = self._reasoning
        self._reasoning = ""
        self._nodes.append(node)
        return node

    def _flush_reasoning(self) -> None:
        """Reasoning that no text or call followed: the turn was cut while the model was thinking."""
        if self._reasoning and self._reasoning_key:
            message = self._new_assistant().message
            message["content"] = message["content"] or ""
        self._reasoning = ""


def summary_text(summary: str | None) -> str:
    """What a model reads of a compaction: its summary, if we could open it."""
    return f"{SUMMARY}\n\n{summary or UNREADABLE}"


def _names_a_tool(item: Item) -> bool:
    """Whether an item is a call of a tool of a server, as it should be."""
    return all(isinstance(item.get(key), str) and item[key] for key in ("id", "name", "server_label"))


def _call_of_server(item: Item) -> Call:
    return Call("mcp_call", item["name"], item["server_label"])


def _without_approval(answer: Item) -> str:
    if answer.get("approve") is True:
        return "(The tool was approved of, and was not there to run.)"
    reason = answer.get("reason")
    return f"(The user did not let this tool run{f': {reason}' if isinstance(reason, str) and reason else '.'})"


def _agent_text(content: str | list[dict[str, Any]]) -> str:
    """What another agent has written to this one (Codex). The part that should be sealed is plain: nobody here has
    sealed it."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or part.get("encrypted_content") or "") for part in content)


def reasoning_text(item: Item) -> str:
    """The text of a reasoning item: its content, or else its summary."""
    parts = item.get("content") or item.get("summary") or []
    return "\n\n".join(part["text"] for part in parts if part.get("text"))


def split_refusals(content: Any) -> tuple[Any, list[str]]:
    """An assistant's content without its refusals, and the refusals."""
    if not isinstance(content, list):
        return content, []
    texts = [part for part in content if part.get("type") != "refusal"]
    refusals = [part.get("refusal") or "" for part in content if part.get("type") == "refusal"]
    return texts, refusals


def whole_arguments(arguments: Any) -> str:
    """Tool call arguments as the text of a JSON object, whatever a model made of them: servers parse those of the
    history, and a call that was cut off at the token limit must not make the conversation fail for ever."""
    if not isinstance(arguments, str):
        given = {} if arguments is None else arguments if isinstance(arguments, dict) else {"arguments": arguments}
        return encode_json(given).decode()
    if not arguments.strip():
        return "{}"
    try:
        given = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        mended = mend(arguments.encode())
        return whole_arguments({"arguments": arguments} if mended is None else mended.decode())
    if isinstance(given, dict):
        return arguments
    return "{}" if given is None else f'{{"arguments":{arguments.strip()}}}'


def orphan_output(item: Item, where: str) -> InvalidRequest:
    """The error for an output whose call is nowhere before it."""
    kind = item["type"].replace("_", " ")
    return InvalidRequest(f"No tool call found for {kind} with call_id {call_id_of(item)}.", param=where)


def _joined(first: Any, second: Any) -> Any:
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
