"""Citations: the marks by which a model refers to numbered sources, as what a reader sees and annotations of it.

    "It rains 【2】."  ──Marks.feed──▶  "It rains ([example.org](https://example.org/rain))."  and where the link is

A model is shown its sources by number (`Sources`), and asked to write 【n】; it also writes [n], [n, m], 【n†…】 and
links to what it was shown. Each becomes what OpenAI's own models write: a link, with a `url_citation` that has its
place in the text, counted in characters. A mark of no source, one in code, and what is too much, stay as they are.
However the text was cut on its way, what comes of it is the same.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from core.json import Json


class Source(Protocol):
    """Something that a model can refer to."""

    @property
    def shown(self) -> str:
        """What stands in the text for a mark."""
        ...

    def annotation(self, start: int, end: int) -> Json:
        """The annotation of a text in which it is shown from `start` to `end`."""
        ...


@dataclass(frozen=True, slots=True)
class PageSource:
    """A page of the web."""

    url: str
    title: str

    @property
    def shown(self) -> str:
        """A link, as OpenAI's models write it."""
        place = re.split(r"[/?#]", self.url.partition("://")[2], maxsplit=1)[0]
        host = re.sub(r"^.*@|:\d*$", "", place).removeprefix("www.")
        return f"([{host or 'source'}]({self.url}))"

    def annotation(self, start: int, end: int) -> Json:
        """A `url_citation`."""
        return {"type": "url_citation", "start_index": start, "end_index": end, "url": self.url, "title": self.title}


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file that was searched."""

    file_id: str
    filename: str

    @property
    def shown(self) -> str:
        """Nothing: OpenAI's annotation has the place where a client may show it."""
        return ""

    def annotation(self, start: int, end: int) -> Json:
        """A `file_citation`."""
        return {"type": "file_citation", "file_id": self.file_id, "filename": self.filename, "index": start}


def plain_url(url: str) -> str:
    """A URL that can stand in a link and in a JSON text: what would end either is percent-encoded."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if not host.isascii():
        with suppress(UnicodeError):
            host = host.encode("idna").decode()
    return f"{scheme}{separator}{_quoted(host)}{slash}{_quoted(path)}"


def _quoted(text: str) -> str:
    return quote(text, safe="/:?#[]@!$&'*+,;=%~", errors="replace")


class Sources:
    """The sources of a conversation, by their numbers, which begin with 1 and are never given twice."""

    def __init__(self) -> None:
        self._sources: dict[int, Source] = {}
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, key: str, source: Source) -> int:
        """The number of a source, which is known by its `key` (a page by its URL): a new one, or that it has."""
        if (number := self._numbers.get(key)) is None:
            number = max(self._sources, default=0) + 1
            self.put(number, key, source)
        return number

    def put(self, number: int, key: str, source: Source) -> None:
        """Takes a source that had its number before."""
        self._sources[number] = source
        self._numbers[key] = number

    def get(self, number: int) -> Source | None:
        """The source with a number."""
        return self._sources.get(number)

    def named(self, key: str) -> Source | None:
        """The source with a key."""
        number = self._numbers.get(key)
        return None if number is None else self._sources[number]


# So often a source is named in one text: each has its link there, and an annotation.
MOST_CITED = 1000

# A text, and the source that it stands for, if it does.
Piece = tuple[str, Source | None]

_NUMBERS = r"\d{1,4}(?:\s?[,;、]\s?\^?\d{1,4}){0,9}"
_WIDE = re.compile(rf"【\s?({_NUMBERS})\s?(?:†[^】\n]{{0,80}})?】")
# Neither a link, nor what defines one.
_SQUARE = re.compile(rf"\[\^?({_NUMBERS})\](?![(:])")
_LINK = re.compile(r"\[[^\[\]\n]{0,200}\]\((https?://[^()\s]{1,1000})\)")
# What may still become one of these, at the end of what has come.
_BEGUN = re.compile(r"【[^】\n]{0,160}\Z|\[[^\[\]\n]{0,200}(?:\](?:\([^()\s]{0,1010})?)?\Z")
_NOTABLE = re.compile(r"[【\[`]")
_TICKS = re.compile(r"`+")
_TICKS_OR_LINE = re.compile(r"`+|\n")


class Marks:
    """Finds the marks in one text, which comes in deltas of any size."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._held = ""
        self._left = MOST_CITED
        # The last character of what was given, and how many backticks have begun the code that it stands in.
        self._last = " "
        self._ticks = 0

    def feed(self, delta: str) -> list[Piece]:
        """The pieces that are whole with a delta."""
        return self._pieces(self._held + delta, is_end=False)

    def flush(self) -> list[Piece]:
        """What was held back because it might have become a mark."""
        return self._pieces(self._held, is_end=True)

    def _pieces(self, text: str, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        at = 0
        while at < len(text):
            step = self._in_code(text, at, is_end) if self._ticks else self._in_words(text, at, is_end)
            if step is None:
                break
            end, found = step
            for piece in found or [(text[at:end], None)]:
                self._last = piece[0][-1:] or self._last
                pieces.append(piece)
            at = end
        self._held = text[at:]
        return pieces

    def _in_words(self, text: str, at: int, is_end: bool) -> tuple[int, list[Piece]] | None:
        """Where the next step ends, and the pieces that it makes of the text up to there, if it does not stay as it is.
        None: more of the text has to come."""
        notable = _NOTABLE.search(text, at)
        if notable is None or notable.start() > at:
            return (notable.start() if notable else len(text)), []
        if ticks := _TICKS.match(text, at):
            if ticks.end() == len(text) and not is_end:
                return None
            self._ticks = len(ticks[0])
            return ticks.end(), []
        if not is_end and _BEGUN.match(text, at):
            return None
        if self._left <= 0:
            return at + 1, []
        if mark := _WIDE.match(text, at) or _SQUARE.match(text, at):
            return mark.end(), self._meant(mark[1])
        if (link := _LINK.match(text, at)) and (source := self._sources.named(link[1])):
            self._left -= 1
            return link.end(), [(link[0], source)]
        return at + 1, []

    def _in_code(self, text: str, at: int, is_end: bool) -> tuple[int, list[Piece]] | None:
        """The same in code, which as many backticks end as have begun it; what is no block ends with its paragraph."""
        for found in _TICKS_OR_LINE.finditer(text, at):
            start, end = found.span()
            if found[0] == "\n":
                before = text[start - 1] if start > at else self._last
                if self._ticks < 3 and before == "\n":
                    self._ticks = 0
                    return end, []
            elif start > at:
                return start, []
            elif end == len(text) and not is_end:
                return None
            else:
                if end - start == self._ticks or end - start > self._ticks >= 3:
                    self._ticks = 0
                return end, []
        return len(text), []

    def _meant(self, numbers: str) -> list[Piece]:
        """The sources with these numbers, as they are shown, apart from each other and from the word before."""
        pieces: list[Piece] = []
        last = self._last
        for number in re.findall(r"\d+", numbers):
            if (source := self._sources.get(int(number))) is not None:
                if source.shown and not last.isspace() and last not in "([{（":
                    pieces.append((" ", None))
                pieces.append((source.shown, source))
                self._left -= 1
                last = source.shown[-1:] or last
        return pieces


def cited(text: str, sources: Sources) -> tuple[str, list[Json]]:
    """A whole text with its marks as a reader sees them, and their annotations."""
    marks = Marks(sources)
    shown, annotations = "", []
    for piece, source in [*marks.feed(text), *marks.flush()]:
        shown += piece
        if source is not None:
            annotations.append(source.annotation(len(shown) - len(piece), len(shown)))
    return shown, annotations
