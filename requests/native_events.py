"""The events of a server that speaks Responses, read no further than they must be: most go on as they came."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
from msgspec.structs import astuple

from core.errors import BackendError
from core.json import Json, decode_json, whole_value
from requests.bounded_json import has_too_many_values

# The events that carry the response: what it is then, or nothing where it goes on. Codex's own backend ends with
# `response.done`.
WHOLE = "response.done"
LIFECYCLE = {
    "response.created": "",
    "response.queued": "",
    "response.in_progress": "",
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
    "response.cancelled": "cancelled",
    "response.canceled": "cancelled",
    WHOLE: "completed",
}
ENDS = frozenset({"error", *(type for type, status in LIFECYCLE.items() if status)})


class EventHead(msgspec.Struct, gc=False):
    """What is read of an event: what it is, what it belongs to, and what it adds."""

    type: str
    sequence_number: Any = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: str | None = None
    logprobs: list[Any] | None = None


# One field of many events.
Column = tuple[Any, ...]
TYPE, NUMBER, DELTA, LOGPROBS = map(EventHead.__struct_fields__.index, ("type", "sequence_number", "delta", "logprobs"))
# What an event goes on with.
PLACE_FIELDS = ("type", "item_id", "output_index", "content_index", "summary_index")
PLACE = tuple(map(EventHead.__struct_fields__.index, PLACE_FIELDS))
place_of = attrgetter(*PLACE_FIELDS)

_heads = msgspec.json.Decoder(list[EventHead])
_head = msgspec.json.Decoder(EventHead)
# Of one event. Raises `requests.chat.DecodeError`.
parse_head = _head.decode


class NativeEvent:
    """An event: its head, and all of it as `data`; or its `value`, where the bytes cannot go on as they are."""

    __slots__ = ("_value", "data", "head")

    def __init__(self, head: EventHead, data: bytes, value: Json | None = None) -> None:
        self.head = head
        self.data = data
        self._value = value

    @classmethod
    def of(cls, value: Json) -> NativeEvent:
        """The event that was read already, or is not as its server has sent it. Its delta may hold halves of
        characters."""
        delta = value.get("delta")
        value = whole_value({key: inner for key, inner in value.items() if key != "delta"}) | (
            {"delta": delta} if "delta" in value else {}
        )
        return cls(EventHead(value["type"], value.get("sequence_number")), b"", value)

    @property
    def type(self) -> str:
        """Its name."""
        return self.head.type

    def model_dump(self) -> Json:
        """All of it."""
        if self._value is None and has_too_many_values(self.data):
            raise BackendError("The backend's answer holds far too many values.", code="backend_bad_answer")
        value: Json = decode_json(self.data) if self._value is None else self._value
        return value


class NativeRun:
    """Deltas that go on with one thing, one behind the other, with numbers that do so too. `deltas` and `logprobs` are
    those of each."""

    __slots__ = ("datas", "deltas", "heads", "logprobs")

    def __init__(self, heads: list[EventHead], datas: list[bytes], deltas: Column, logprobs: Column) -> None:
        self.heads = heads
        self.datas = datas
        self.deltas = deltas
        self.logprobs = logprobs

    @property
    def type(self) -> str:
        """The name of each."""
        return self.heads[0].type

    def events(self) -> list[NativeEvent]:
        """Each as an event of its own."""
        return [*map(NativeEvent, self.heads, self.datas)]


def pieces_in(datas: list[bytes]) -> list[NativeEvent | NativeRun] | None:
    """Some events at once, up to the end of the answer. None where one of them is none, or not as it should be."""
    try:
        heads = _heads.decode(b"[%b]" % b",".join(datas))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if len(heads) != len(datas):
        return None
    # Of each field, that of all events: none is asked for by its name, which would take as long as to decode them.
    columns = [*zip(*map(astuple, heads), strict=True)]
    begin, end = _run_in(columns)
    pieces: list[NativeEvent | NativeRun] = []
    for head, data in zip(heads[:begin], datas[:begin], strict=True):
        pieces.append(NativeEvent(head, data))
        if head.type in ENDS:
            return pieces
    if begin < end:
        deltas, logprobs = columns[DELTA][begin:end], columns[LOGPROBS][begin:end]
        pieces.append(NativeRun(heads[begin:end], datas[begin:end], deltas, logprobs))
    for head, data in zip(heads[end:], datas[end:], strict=True):
        pieces.append(NativeEvent(head, data))
        if head.type in ENDS:
            break
    return pieces


def _run_in(columns: list[Column]) -> tuple[int, int]:
    """Where the deltas around the middle begin and end that go on with one thing, and whose numbers go on. Nowhere, if
    there is none."""
    types = columns[TYPE]
    middle = len(types) // 2
    type = types[middle]
    if not type.endswith(".delta"):
        return middle, middle
    begin, end = types.index(type), len(types) - types[::-1].index(type)
    if any(columns[field][begin:end].count(columns[field][middle]) < end - begin for field in PLACE):
        begin, end = _around([*zip(*(columns[field] for field in PLACE), strict=True)], middle)
    numbers = columns[NUMBER][begin:end]
    try:
        goes_on = numbers == (*range(numbers[0], numbers[0] + len(numbers)),)
    except TypeError:  # No numbers, or none that count.
        goes_on = False
    return (begin, end) if goes_on else (middle, middle)


def _around(places: list[tuple[Any, ...]], middle: int) -> tuple[int, int]:
    """Where what is alike around the middle begins and ends."""
    begin = end = 0
    for _, group in groupby(places):
        begin, end = end, end + len([*group])
        if end > middle:
            break
    return begin, end
