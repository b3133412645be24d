"""Messages of Ollama's API, and which call each tool message of a chat answers.

An Ollama hands its messages to the template of the model as they come: calls need no ids and no outputs, and outputs no
calls. Chat servers insist on all of them, each output right behind the message that made its call.

    assistant f, g      ──▶   calls f, g     outputs of both
    assistant h         ──▶   call h         its output
    tool f, tool h

Specification: ollama/ollama api/types.go, Message.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Collection

import msgspec

from core.json import Json, encode_json
from requests.tools import Item

NO_OUTPUT = "(no output)"
# What made an output that names no tool.
UNNAMED = "tool"


class Function(msgspec.Struct):
    name: str
    arguments: Json | None = None


class ToolCall(msgspec.Struct):
    function: Function
    id: str | None = None


class OllamaMessage(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Call(msgspec.Struct, eq=False):
    id: str
    given_id: str | None
    name: str
    # Where its output stands.
    outputs: list[Item]
    is_answered: bool = False


class _OpenCalls:
    """Calls that may wait for their outputs: those of the last round come first, and of a round in their order."""

    def __init__(self) -> None:
        self._rounds: list[tuple[int, deque[_Call]]] = []

    def add(self, number: int, call: _Call) -> None:
        """A call of the round with that number, which is none before the last."""
        if not self._rounds or self._rounds[-1][0] != number:
            self._rounds.append((number, deque()))
        self._rounds[-1][1].append(call)

    def first(self) -> _Call | None:
        """The first one that waits."""
        while self._rounds:
            calls = self._rounds[-1][1]
            while calls and calls[0].is_answered:
                calls.popleft()
            if calls:
                return calls[0]
            self._rounds.pop()
        return None


class ToolRounds:
    """Puts the items of a chat together. Calls get ids of their own where theirs are none, or repeated; a call that was
    never answered gets an output, and an output without a call the call that it must have had."""

    def __init__(self, given_ids: Collection[str]) -> None:
        # Nine letters and digits: Mistral's templates take no other ids.
        made = (f"call{count:05}" for count in itertools.count(1))
        self._made = (call_id for call_id in made if call_id not in given_ids)
        self._used: set[str] = set()
        # The items of each message and, behind them, the outputs of its calls.
        self._slots: list[tuple[list[Item], list[Item]]] = []
        self._calls: list[_Call] = []
        # The calls of assistant messages that stand together are a round. All of them, by their names, by their ids.
        self._round = 0
        self._is_round_open = False
        self._open = _OpenCalls()
        self._by_name: defaultdict[str, _OpenCalls] = defaultdict(_OpenCalls)
        self._by_id: defaultdict[str, _OpenCalls] = defaultdict(_OpenCalls)

    def begin(self, role: str) -> None:
        """A message that is no tool's begins."""
        self._slots.append(([], []))
        if role != "assistant" or not self._is_round_open:
            self._round += 1
        self._is_round_open = role == "assistant"

    def add(self, item: Item) -> None:
        """An item of the message that has begun."""
        self._slots[-1][0].append(item)

    def call(self, function: Function, given_id: str | None) -> _Call:
        """A call of the message that has begun."""
        call_id = given_id if given_id and given_id not in self._used else next(self._made)
        self._used.add(call_id)
        items, outputs = self._slots[-1]
        arguments = encode_json(function.arguments or {}).decode()
        items.append({"type": "function_call", "call_id": call_id, "name": function.name, "arguments": arguments})
        call = _Call(call_id, given_id, function.name, outputs)
        self._calls.append(call)
        for waiting in (self._open, self._by_name[call.name], *((self._by_id[given_id],) if given_id else ())):
            waiting.add(self._round, call)
        return call

    def answer(self, message: OllamaMessage, content: object) -> None:
        """A tool's message."""
        self._is_round_open = False
        if (call := self._answered(message)) is None:
            self.begin("assistant")
            call = self.call(Function(message.tool_name or UNNAMED), message.tool_call_id)
            self._is_round_open = False
        call.is_answered = True
        call.outputs.append({"type": "function_call_output", "call_id": call.id, "output": content})

    def items(self) -> list[Item]:
        """All of them, in their order."""
        for call in self._calls:
            if not call.is_answered:
                call.outputs.append({"type": "function_call_output", "call_id": call.id, "output": NO_OUTPUT})
        return [item for slot in self._slots for part in slot for item in part]

    def _answered(self, message: OllamaMessage) -> _Call | None:
        """The call that a tool's message answers: by its id, else the first of its name, else the first that is
        open."""
        wanted, name = message.tool_call_id, message.tool_name
        if wanted and wanted in self._by_id and (call := self._by_id[wanted].first()):
            return call
        if not name:
            return self._open.first()
        return self._by_name[name].first() if name in self._by_name else None
