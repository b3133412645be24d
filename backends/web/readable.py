"""A page of the web as a text to read: its headings, paragraphs, lists, tables and code, without what is around them on
every page of a site.

Loads lxml, whose parser is in C: in a thread. It gives events, and no tree is built: whoever writes pages can have a
tree of any browser's rules take gigabytes (each open <b> is made again in every paragraph) or hours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from lxml import etree  # type: ignore[import-untyped]

from backends.web.query import MOST_TEXT

MOST_NODES = 200_000
PIECE = 16_384
# The parser looks for what an end tag ends among all that is open.
MOST_DEPTH = 500
# A main part that is less of a page than this is a teaser.
MAIN_PART = 0.3

SKIPPED = frozenset(
    {
        *("script", "style", "noscript", "template", "svg", "math", "canvas", "iframe", "object", "embed", "head"),
        *("nav", "footer", "aside", "dialog", "button", "select", "textarea", "input"),
    }
)
ROLES = frozenset({"navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "dialog"})
BLOCKS = frozenset(
    {
        *("address", "article", "blockquote", "body", "details", "div", "fieldset", "figcaption", "figure", "form"),
        *("header", "hr", "main", "p", "pre", "section", "summary", "table", "tbody", "thead", "tr"),
        *("dd", "dl", "dt", "li", "ol", "ul", "h1", "h2", "h3", "h4", "h5", "h6"),
    }
)
# What a block begins with, and those that no empty line follows.
BEGINS = {**{f"h{level}": f"{'#' * level} " for level in range(1, 7)}, "li": "- ", "blockquote": "> "}
EMPTY = frozenset(text.strip() for text in BEGINS.values())
TITLES = ("title", "h1")
TIGHT = frozenset({"li", "tr", "dt", "dd", "summary"})


def readable(html: str) -> tuple[str, str]:
    """The title of a page, and its text."""
    page = _Page()
    parser = etree.HTMLParser(target=page, encoding="utf-8", no_network=True)
    data = html.encode(errors="replace")
    with suppress(_Enough, etree.LxmlError):  # What has come up to there is the page.
        for start in range(0, len(data), PIECE):  # It stops between two pieces alone.
            parser.feed(data[start : start + PIECE])
        parser.close()
    return page.title(), page.text()


class _Enough(Exception):
    """Nobody reads more of a page."""


def _is_read(tag: str, attributes: Mapping[str, str]) -> bool:
    if tag in SKIPPED:
        return False
    if not attributes:
        return True
    return not ("hidden" in attributes or attributes.get("aria-hidden") == "true" or attributes.get("role") in ROLES)


class _Page:
    """The lines of a page, as they are put together (it is the target of a parser); and where among them its main part
    is."""

    def __init__(self) -> None:
        self._length = self._nodes = 0
        self._lines: list[str] = []
        self._line: list[str] = []
        self._code = 0
        # How many elements are open of which nothing is read.
        self._skipped = 0
        # The open parts that may be the main one: the element, and where it has begun, by lines and characters.
        self._open: list[tuple[int, int, int]] = []
        self._depth = 0
        self._main = (0, 0, 0)
        # The texts of the first <title> and <h1>; those that are open.
        self._titles: dict[str, list[str]] = {}
        self._naming = ""

    # ── what the parser calls ────────────────────────────────────────────────────────────────────────────────────────

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > MOST_NODES or self._length > MOST_TEXT or self._depth > MOST_DEPTH:
            raise _Enough
        if tag in TITLES and tag not in self._titles:
            self._titles[tag], self._naming = [], tag
        if self._skipped or not _is_read(tag, attributes):
            self._skipped += 1
            return
        if tag in BLOCKS:
            self._end()
            if tag == "pre":
                self._code += 1
                self._lines.append("```")
            elif tag in BEGINS:
                self._line.append(BEGINS[tag])
        elif tag == "br":
            self._end()
        elif tag in ("td", "th") and self._line:
            self._line.append(" | ")
        if tag in ("main", "article") or attributes.get("role") == "main":
            self._open.append((self._depth, len(self._lines), self._length))

    def end(self, tag: str) -> None:
        depth, self._depth = self._depth, self._depth - 1
        if tag == self._naming:
            self._naming = ""
        if self._skipped:
            self._skipped -= 1
            return
        if tag in BLOCKS:
            self._end()
            if tag == "pre" and self._code:
                self._code -= 1
                self._lines.append("```")
            if tag not in TIGHT and self._lines and self._lines[-1]:
                self._lines.append("")
        if self._open and self._open[-1][0] == depth:
            _, line, length = self._open.pop()
            self._main = max(self._main, (self._length - length, line, len(self._lines)))

    def data(self, text: str) -> None:
        if self._naming:
            self._titles[self._naming].append(text)
        if not self._skipped:
            self._line.append(text)
            self._length += len(text)

    def close(self) -> None:
        pass

    # ── what there is then ───────────────────────────────────────────────────────────────────────────────────────────

    def title(self) -> str:
        """What the page is called; empty where it has no name."""
        titles = ("".join(self._titles.get(tag, ())) for tag in TITLES)
        return next((text for title in titles if (text := " ".join(title.split()))), "")

    def text(self) -> str:
        """All of it, or the main part."""
        self._end()
        length, begins, ends = self._main
        lines = self._lines[begins:ends] if length > MAIN_PART * self._length else self._lines
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()[:MOST_TEXT]

    def _end(self) -> None:
        line = "".join(self._line)
        self._line = []
        if self._code:
            if line.strip():
                self._lines.append(line.strip("\n"))
            return
        line = " ".join(line.split())
        if line and line not in EMPTY:
            self._lines.append(line)
