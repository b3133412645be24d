"""What of a native answer grows: an item, its parts and their texts, as a client puts them together.

NativeItem ──▶ NativePart, of a summary or a content ──▶ NativeText
           ──▶ NativeText, the arguments of a call
Flow           where deltas of one of these go that may go on untouched
"""

from __future__ import annotations

from typing import Any, Protocol

from core.json import Halves, Json, has_half
from requests.native_events import Column
from requests.native_shapes import begun
from requests.open_items import STREAMED_CALLS, STREAMED_PARTS
from requests.tools import Item

Part = Json


class Fragments(Protocol):
    """What grows."""

    def append(self, fragment: str, /) -> None: ...


class Nowhere:
    """What nobody puts together."""

    def append(self, fragment: str, /) -> None:
        """Keeps nothing."""


NOWHERE = Nowhere()


class Flow:
    """Where the deltas of one thing go that may go on as they came, with log probabilities that are empty. `name` is
    that of their events."""

    __slots__ = ("append", "logprobs", "name")

    def __init__(self, type: str, fragments: Fragments, logprobs: list[object] | None) -> None:
        self.name = type.encode()
        self.append = fragments.append
        self.logprobs = logprobs

    def take(self, deltas: Column, logprobs: Column) -> bool:
        """Whether these deltas are such; then they are taken."""
        if logprobs.count(self.logprobs) != len(deltas):
            return False
        try:
            self.append("".join(deltas))
        except TypeError:  # One of them has no text.
            return False
        return True


Flows = dict[tuple[Any, ...], Flow]
NO_FLOWS: Flows = {}


class NativeText:
    """A text that grows: of a part, or the arguments of a call."""

    __slots__ = ("_halves", "fragments", "has_ended", "index", "kind")

    def __init__(self, kind: str, index: int = 0) -> None:
        self.kind = kind
        self.index = index
        self.fragments: list[str] = []
        self.has_ended = False
        self._halves: Halves | None = None

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.fragments)

    @property
    def is_cut(self) -> bool:
        """Whether the other half of a character is to come."""
        return self._halves is not None

    def joined(self, delta: object) -> str:
        """The text of a delta, with the half of a character that came before, and without the one that it ends in."""
        text = delta if isinstance(delta, str) else ""
        if self._halves is None:
            if not has_half(text):
                return text
            self._halves = Halves()
        text = self._halves.feed(text)
        if not self._halves.held:
            self._halves = None
        return text

    def rest(self, whole: object) -> str:
        """What is missing of the `whole` text, as far as that goes on with what was streamed."""
        rest = self._halves.flush() if self._halves is not None else ""
        self._halves = None
        so_far = self.text + rest
        return rest + whole[len(so_far) :] if isinstance(whole, str) and whole.startswith(so_far) else rest


class NativePart(NativeText):
    """A part of a content or of a summary. `part` is what is known of it besides its text."""

    __slots__ = ("annotations", "done", "logprobs", "part")

    def __init__(self, kind: str, index: int, part: Part) -> None:
        super().__init__(kind, index)
        self.part = part
        self.annotations: list[object] = []
        self.logprobs: list[object] = []
        self.done: Part | None = None

    @property
    def family(self) -> str:
        """Whether it is of the summary or of the content."""
        return "summary" if self.kind == "summary_text" else "content"

    def late_logprobs(self, given: Part) -> list[object]:
        """The log probabilities that its server gives only with its whole text, behind those that it has streamed."""
        whole: list[object] = given.get("logprobs") or self.part.get("logprobs") or []
        streamed = len(self.logprobs)
        return whole[streamed:] if whole[:streamed] == self.logprobs else []

    def whole(self, given: Part | None) -> Part:
        """The part with its text, and what its server gives at the end."""
        whole: Part = {**self.part, **(given or {}), STREAMED_PARTS[self.kind][1]: self.text}
        if self.kind == "output_text":
            whole["annotations"] = whole.get("annotations") or self.annotations
            whole["logprobs"] = self.logprobs
        return whole


class NativeItem:
    """An item. `item` is how it began; `index` and `names` are its server's, ours are its `output_index` and the
    id in `item`. A call that has no name yet has not begun."""

    __slots__ = ("arguments", "done", "index", "item", "names", "output_index", "parts")

    def __init__(self, item: Item, index: int | None) -> None:
        self.item = item
        self.index = index
        self.names = {item["id"]}
        self.output_index = -1
        self.parts: list[NativePart] = []
        self.arguments = NativeText(item["type"])
        self.done: Item | None = None

    @property
    def kind(self) -> str:
        """Its type."""
        return str(self.item["type"])

    @property
    def where(self) -> Json:
        """How our events name it."""
        return {"item_id": self.item["id"], "output_index": self.output_index}

    @property
    def has_grown(self) -> bool:
        """Whether a client has seen anything of it but that it began."""
        return self.output_index >= 0 and bool(self.parts or self.arguments.fragments)

    def part(self, kind: str, index: int | None) -> NativePart | None:
        """The part of that kind with that index; without one, the last that is open."""
        parts = [part for part in self.parts if part.kind == kind]
        if index is None:
            return next((part for part in reversed(parts) if part.done is None), None)
        return next((part for part in parts if part.index == index), None)

    def of_family(self, family: str) -> list[NativePart]:
        """The parts of its summary, or of its content."""
        return [part for part in self.parts if part.family == family]

    def partial(self) -> Item:
        """What of it was streamed, as a client has it."""
        item = {**begun(self.item), **({"status": "incomplete"} if "status" in self.item else {})}
        for family in ("summary", "content"):
            if parts := self.of_family(family):
                item[family] = [part.done or part.whole(None) for part in parts]
        if self.kind in STREAMED_CALLS:
            item[STREAMED_CALLS[self.kind][1]] = self.arguments.text
        return item
