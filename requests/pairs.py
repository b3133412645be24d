"""Calls and their outputs: which belongs to which.

An output names its call by `call_id`. Ids may come again in a conversation (some servers count their calls from zero in
every turn): then the outputs belong to the calls in their order. An output without an id belongs to the oldest open
call of the function that it names; a call that a service answers within itself needs none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from requests.tools import Item, call_id_of

T = TypeVar("T")


def needs_output(call: Item) -> bool:
    """Whether a conversation cannot go on without the output of a call: not of one that was cut off, nor of a hosted
    search."""
    is_hosted = call["type"] == "tool_search_call" and call.get("execution") == "server"
    return call.get("status") != "incomplete" and not is_hosted


class OpenCalls(Generic[T]):
    """The calls that wait for their outputs, and something for each of them."""

    __slots__ = ("_again", "_by_name", "_open")

    def __init__(self) -> None:
        self._open: dict[str, tuple[Item, T]] = {}
        # Those that wait behind another of their id.
        self._again: dict[str, deque[tuple[Item, T]]] = {}
        # The open calls of each function, and some that are open no more. Hardly a conversation needs it.
        self._by_name: dict[tuple[object, object], deque[Item]] | None = None

    def add(self, call: Item, what: T) -> None:
        """A call that is to be answered; ids may repeat, and are answered in their order."""
        call_id = call["call_id"]
        if call_id in self._open:
            self._again.setdefault(call_id, deque()).append((call, what))
        else:
            self._wait(call_id, (call, what))

    def take(self, output: Item) -> T | None:
        """What was added for the call that an output answers. None if no call waits for it."""
        call_id = call_id_of(output) or self._named(output)
        found = self._open.pop(call_id, None) if call_id is not None else None
        if found is None or call_id is None:
            return None
        if again := self._again.get(call_id):
            self._wait(call_id, again.popleft())
        return found[1]

    def __bool__(self) -> bool:
        return bool(self._open)

    def __iter__(self) -> Iterator[Item]:
        """The calls that still wait."""
        for call, _ in (*self._open.values(), *(waiting for again in self._again.values() for waiting in again)):
            yield call

    def _wait(self, call_id: str, waiting: tuple[Item, T]) -> None:
        self._open[call_id] = waiting
        if self._by_name is not None:
            self._by_name.setdefault(_function_of(waiting[0]), deque()).append(waiting[0])

    def _named(self, output: Item) -> str | None:
        """The id of the first open call of the function that an output names."""
        if not isinstance(output.get("name"), str) or not output["name"]:
            return None
        if self._by_name is None:
            self._by_name = {}
            for call, _ in self._open.values():
                self._by_name.setdefault(_function_of(call), deque()).append(call)
        calls = self._by_name.get(_function_of(output))
        while calls:
            call_id: str = calls[0]["call_id"]
            if (found := self._open.get(call_id)) is not None and found[0] is calls[0]:
                return call_id
            calls.popleft()
        return None


def _function_of(item: Item) -> tuple[object, object]:
    """The function of a call, or that an output names."""
    return item.get("name"), item.get("namespace") or None
