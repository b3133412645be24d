"""Calls and their outputs: which belongs to which.

An output names its call by `call_id`. Ids may come again in a conversation (some servers count their calls from zero in every turn):
then the outputs belong to the calls in their order. An output without an id belongs to the oldest open call of the function that it
names; a call that a service answers within itself needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from requests.tools import Item, call_id_of

T = TypeVar("T")


def needs_output(call: Item) -> bool:
    """Whether a conversation cannot go on without the output of a call: not of one that was cut off, nor of a hosted search."""
    is_hosted = call["type"] == "tool_search_call" and call.get("execution") == "server"
    return call.get("status") != "incomplete" and not is_hosted


class OpenCalls(Generic[T]):
    """The calls that wait for their outputs, and something for each of them."""

    def __init__(self) -> None:
        self._open: dict[str, list[tuple[int, Item, T]]] = {}
        self._count = 0

    def add(self, call: Item, what: T) -> None:
        self._count += 1
        waiting = (self._count, call, what)
        if (others := self._open.get(call["call_id"])) is None:
            self._open[call["call_id"]] = [waiting]
        else:
            others.append(waiting)

    def take(self, output: Item) -> T | None:
        """What was added for the call that an output answers. None if no call waits for it."""
        call_id = call_id_of(output) or self._named(output)
        others = self._open.get(call_id) if call_id else None
        if not others or not call_id:
            return None
        _, _, what = others.pop(0)
        if not others:
            del self._open[call_id]
        return what

    def __iter__(self) -> Iterator[Item]:
        """The calls that still wait."""
        for others in self._open.values():
            for _, call, _ in others:
                yield call

    def _named(self, output: Item) -> str | None:
        """The id of the oldest open call of the function that an output names."""
        if not output.get("name"):
            return None
        first = min(
            (
                (number, call["call_id"])
                for others in self._open.values()
                for number, call, _ in others[:1]
                if call.get("name") == output.get("name") and call.get("namespace") == output.get("namespace")
            ),
            default=(0, None),
        )
        return first[1]
