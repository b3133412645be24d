"""What a client sends again behind `previous_response_id`: the conversation has it already, so it is no part of the
turn.

    history   user   message   call c1
    input            message   call c1   output c1   ──without_repeats──▶   output c1

An item is known by its id, a call or an output by its call id too, and its content must be the same. A message that has
no id by which it is known, is so by where it stands: before something that the history has, as the one before that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from requests.hidden import OUTPUT
from requests.tools import CALLS, OUTPUTS, Call, Item, arguments_of, call_id_of, call_of_item

# What may differ in items that are one: it is made here or in a client, and a model reads none of it.
UNREAD = frozenset({"id", "status", "annotations", "logprobs", "parsed", "parsed_arguments", OUTPUT})


def may_repeat(history: Sequence[Item], given: str | Sequence[Item] | None) -> bool:
    """Whether there can be anything in an input, as the client sent it, that the history has: more than the outputs of
    calls that wait for them, and words of its user behind."""
    if given is None or isinstance(given, str):
        return False
    waited_for: set[str] = set()
    has_words = False
    for item in given:
        if item.get("id"):
            return True
        if "role" in item:
            has_words = True
            if item["role"] == "assistant":
                return True
        elif has_words or item.get("type") not in OUTPUTS:
            return True
        elif (call_id := call_id_of(item)) is not None:
            waited_for.add(call_id)
    return bool(waited_for) and _has_answered(history, waited_for)


def _has_answered(history: Sequence[Item], call_ids: set[str]) -> bool:
    """Whether one of these calls has an output. The last calls of a history are near its end."""
    for item in reversed(history):
        call_id = item.get("call_id")
        if isinstance(call_id, str) and call_id in call_ids:
            if item["type"] in OUTPUTS:
                return True
            call_ids.discard(call_id)
            if not call_ids:
                return False
    return False


def without_repeats(history: Sequence[Item], given: Sequence[Item]) -> tuple[list[Item], list[int] | None]:
    """The items of an input that its history has not, and their places in it; None where those are all. What has a
    known call id and differs is not left out, for whoever checks that each call has one output."""
    repeated = _Known(history).repeated(given)
    if not repeated:
        return [*given], None
    places = [place for place in range(len(given)) if place not in repeated]
    return [given[place] for place in places], places


class _Known:
    """Where in a history its items are, by the names that they have. Of those of one call id and of one role, the last
    is met first."""

    def __init__(self, history: Sequence[Item]) -> None:
        self._history = history
        self._ids: dict[str, int] = {}
        self._calls: defaultdict[str, list[int]] = defaultdict(list)
        self._outputs: defaultdict[str, list[int]] = defaultdict(list)
        self._messages: defaultdict[str, list[int]] = defaultdict(list)
        self._last = -1
        for place, item in enumerate(history):
            kind = item["type"]
            if isinstance(item.get("id"), str):
                self._ids[item["id"]] = place
            if kind == "message":
                self._messages[item.get("role", "")].append(place)
                self._last = place
            elif kind in CALLS or kind in OUTPUTS:
                of_its_kind = self._calls if kind in CALLS else self._outputs
                if isinstance(call_id := call_id_of(item), str):
                    of_its_kind[call_id].append(place)

    def repeated(self, given: Sequence[Item]) -> set[int]:
        """The places of what is sent again. The input is read from its end, and the history with it."""
        repeated: set[int] = set()
        # Where in the history the input is; and the message because of which alone it is there.
        before: int | None = None
        doubtful: int | None = None
        other_outputs: set[str] = set()
        for place in reversed(range(len(given))):
            item = given[place]
            kind = item["type"]
            call_id = call_id_of(item) if kind in CALLS or kind in OUTPUTS else None
            found = self._by_id(item)
            if found is None and call_id is not None and call_id not in other_outputs:
                found = self._by_call_id(self._calls if kind in CALLS else self._outputs, call_id, item)
            if found is not None:
                doubtful = None
            elif kind == "message":
                found = self._by_place(item, before)
                if found is None and doubtful is not None:
                    # The same words in another conversation.
                    repeated -= {one for one in repeated if one <= doubtful}
                    doubtful = before = None
                elif found is not None and before is None:
                    doubtful = place
            elif call_id is not None and kind in OUTPUTS and self._calls.get(call_id):
                before = self._calls[call_id][-1]
                if call_id in self._outputs:
                    # An id that comes again, with a call of its own; else it is a second output.
                    other_outputs.add(call_id)
            if found is not None:
                repeated.add(place)
                before = found
        return repeated

    def _by_id(self, item: Item) -> int | None:
        found = self._ids.get(item["id"])
        return found if found is not None and is_same(item, self._history[found]) else None

    def _by_call_id(self, of_its_kind: dict[str, list[int]], call_id: str, item: Item) -> int | None:
        """Each stands for one item of the input."""
        places = of_its_kind.get(call_id)
        return places.pop() if places and is_same(item, self._history[places[-1]]) else None

    def _by_place(self, item: Item, before: int | None) -> int | None:
        """The nearest message of its role before a place. Behind everything it is the last message, and only what the
        model has answered: a user may ask the same twice."""
        places = self._messages.get(item["role"], [])
        if before is None:
            found = self._last if item["role"] == "assistant" else -1
        else:
            found = places[nearest - 1] if (nearest := bisect_left(places, before)) else -1
        return found if found >= 0 and is_same(item, self._history[found]) else None


def is_same(item: Item, stored: Item) -> bool:
    """Whether an item is a stored one, as far as a model reads it. Keys that one of them lacks do not count: clients
    send back what they know of, and servers' items are seen through `include`."""
    kind = stored.get("type")
    if item.get("type") != kind:
        return False
    if kind == "reasoning":
        return True
    if kind == "message":
        return bool(item["role"] == stored.get("role") and _content(item) == _content(stored))
    if kind in CALLS:
        called, before = _called(item), _called(stored)
        return before is not None and called == before
    if kind in OUTPUTS and _content(item, "output") != _content(stored, "output"):
        return False
    shared = (item.keys() & stored.keys()) - UNREAD - {"output", "encrypted_content"}
    return all(item[key] == stored[key] for key in shared if item[key] is not None and stored[key] is not None)


def _called(item: Item) -> tuple[Call, Any] | None:
    """What a call calls, and with which arguments. None for one that a server has given less than that."""
    try:
        call, arguments = call_of_item(item)
    except (AttributeError, KeyError):
        return None
    return call, _as_object(arguments)


def _content(item: Item, key: str = "content") -> Any:
    """The parts of a content, each a text or what else a model reads of it; what is no content, as it is."""
    content = item.get(key)
    if isinstance(content, str):
        return [content] if content else []
    return [_read(part) for part in content] if isinstance(content, list) else content


def _read(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("text"), str):
        return part["text"]
    return {key: value for key, value in part.items() if key not in UNREAD and value is not None}


def _as_object(arguments: Any) -> Any:
    given = arguments_of(arguments) if isinstance(arguments, str) else None
    return arguments if given is None else given
