"""`<think>…</think>` at the start of a text: a model's thought, where its server does not take it out."""

from __future__ import annotations

from core.json import Json

OPENING, CLOSING = "<think>", "</think>"


class ThinkSplitter:
    """Parts thought from text while they are still arriving, however the tags are cut. Only a text that begins with the
    tag has thoughts, or any where the tag `is_open` before it; later tags are text. `feed` and `flush` give
    `(is_thought, text)` pairs."""

    __slots__ = ("_held", "_state", "is_open")

    def __init__(self, *, is_open: bool = False) -> None:
        self._held = ""
        self._state = "start"
        self.is_open = is_open

    @property
    def is_over(self) -> bool:
        """Whether all that comes now is text."""
        return self._state == "text"

    def feed(self, text: str) -> list[tuple[bool, str]]:
        """The pieces that are certain now; a tag that may be cut is held back."""
        if self._state == "text":
            return [(False, text)]
        self._held += text
        pieces: list[tuple[bool, str]] = []
        if self._state == "start":
            begun = self._held.lstrip()
            if OPENING.startswith(begun[: len(OPENING)]) and len(begun) < len(OPENING):
                return []
            if not begun.startswith(OPENING) and not self.is_open:
                return [*pieces, *self._to_text(self._held)]
            self._state, self._held = "begun", begun.removeprefix(OPENING)
        if self._state == "begun" and (held := self._held.lstrip()):
            self._state, self._held = "thought", held
        if self._state == "begun":
            return []
        if self._state == "thought":
            thought, tag, rest = self._held.partition(CLOSING)
            if not tag:
                keep = _overlap(self._held)
                thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                return [(True, thought)] if thought else []
            if thought:
                pieces.append((True, thought))
            self._state, self._held = "after", rest
        # Behind the thought comes an empty line that is neither.
        if answer := self._held.lstrip():
            pieces += self._to_text(answer)
        else:
            self._held = ""
        return pieces

    def flush(self) -> list[tuple[bool, str]]:
        """What was held back, when something else comes or nothing more."""
        if self._state == "start" and not self._held:
            return []
        held, thought = "" if self._state == "begun" else self._held, self._state == "thought"
        self._state, self._held = "text", ""
        return [(thought, held)] if held else []

    def _to_text(self, text: str) -> list[tuple[bool, str]]:
        self._state, self._held = "text", ""
        return [(False, text)] if text else []


def split_thinking(text: str, *, is_open: bool = False) -> tuple[str, str]:
    """The thought and the text of a whole answer."""
    splitter = ThinkSplitter(is_open=is_open)
    pieces = [*splitter.feed(text), *splitter.flush()]
    return "".join(text for thought, text in pieces if thought), "".join(
        text for thought, text in pieces if not thought
    )


def _overlap(text: str) -> int:
    """How much of the end of `text` may be the start of the closing tag."""
    return next(
        (size for size in range(min(len(CLOSING) - 1, len(text)), 0, -1) if CLOSING.startswith(text[-size:])), 0
    )


def with_thoughts_apart(message: Json, *, are_open: bool = False) -> Json:
    """A chat message with the thought in its text where other servers put it. Where the tags `are_open` before the
    text, it begins with one, unless its server has taken that out by itself."""
    content = message.get("content")
    if not isinstance(content, str):
        return message
    if not are_open and not content.lstrip().startswith(OPENING):
        return message
    thought_before = message.get("reasoning_content") or message.get("reasoning") or ""
    is_open = are_open and not thought_before
    if not is_open and not content.lstrip().startswith(OPENING):
        return message
    thought, text = split_thinking(content, is_open=is_open)
    return {**message, "reasoning_content": thought_before + thought, "content": text}
