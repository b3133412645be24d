"""A message whose text has marks in it, which become links and annotations as it grows."""

from __future__ import annotations

from core.json import Json
from requests.citations import Marks, Piece, Sources, cited
from requests.open_items import Event, Ladder, OpenText
from requests.tools import Item


class CitedText(OpenText):
    """An open message that refers to `sources`. Nothing of it is made as a plain frame, for any delta may hold a
    mark."""

    __slots__ = ("_annotations", "_length", "_marks", "_sources")

    def __init__(self, output_index: int, sources: Sources) -> None:
        super().__init__("message", output_index)
        self._sources = sources
        self._begin_part()

    def _begin_part(self) -> None:
        self._marks = Marks(self._sources)
        self._annotations: list[Json] = []
        self._length = 0

    def grow(self, ladder: Ladder, events: list[Event], part: str, delta: str, logprobs: list[Json] | None) -> None:
        """Adds a piece of text, as far as it surely is no part of a mark."""
        if part != "output_text":
            self._begin_held(ladder, events)
            super().grow(ladder, events, part, delta, logprobs)
            return
        pieces = self._marks.feed(delta)
        if logprobs and not pieces:  # They are of tokens, whatever these become.
            self._add(ladder, events, "", logprobs)
        self._give(ladder, events, pieces, logprobs)

    def _give(
        self, ladder: Ladder, events: list[Event], pieces: list[Piece], logprobs: list[Json] | None = None
    ) -> None:
        for text, source in pieces:
            self._add(ladder, events, text, logprobs)
            logprobs = None
            if source is not None:
                annotation = source.annotation(self._length - len(text), self._length)
                note = {"annotation_index": len(self._annotations), "annotation": annotation}
                self._annotations.append(annotation)
                if ladder.emission.makes_events:
                    events.append(ladder.event("response.output_text.annotation.added", **self._where, **note))

    def _add(self, ladder: Ladder, events: list[Event], text: str, logprobs: list[Json] | None) -> None:
        before = len(self.fragments) if self.part else 0
        super().grow(ladder, events, "output_text", text, logprobs)
        self._length += sum(map(len, self.fragments[before:]))
        self.frames = None

    def _whole_part(self) -> Json:
        part = super()._whole_part()
        return {**part, "annotations": self._annotations} if self._annotations else part

    def close(self, ladder: Ladder, status: str) -> list[Event]:
        """The events of its end."""
        events: list[Event] = []
        self._begin_held(ladder, events)
        return [*events, *super().close(ladder, status)]

    def _begin_held(self, ladder: Ladder, events: list[Event]) -> None:
        """Begins a part with what was held back, where nothing else has come of it."""
        if not self.part:
            self._give(ladder, events, self._marks.flush())

    def _close_part(self, ladder: Ladder) -> list[Event]:
        if self.part != "output_text":
            return super()._close_part(ladder)
        events: list[Event] = []
        self._give(ladder, events, self._marks.flush())
        events += super()._close_part(ladder)
        self._begin_part()
        return events


def cited_message(item: Item, sources: Sources) -> Item:
    """A whole message with the marks in its texts as a reader sees them, and their annotations."""
    return {**item, "content": [_cited_part(part, sources) for part in item["content"]]}


def _cited_part(part: Json, sources: Sources) -> Json:
    if part["type"] != "output_text":
        return part
    text, annotations = cited(part["text"], sources)
    return {**part, "text": text, "annotations": [*(part.get("annotations") or ()), *annotations]}
