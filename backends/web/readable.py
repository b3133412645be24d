"""A page of the web as a text to read: its headings, paragraphs, lists, tables and code, without what is around them on
every page of a site. Loads selectolax, a parser in C: in a thread."""

from __future__ import annotations

import re
from typing import Any

from selectolax.lexbor import LexborHTMLParser, LexborNode

# More than this of a page nobody reads.
MOST_TEXT = 200_000
MOST_NODES = 300_000
# A main part that is less of a page than this is a teaser.
MAIN_PART = 0.3

SKIPPED = frozenset(
    {
        *("script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "embed", "head"),
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
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
BEGINS = {**{tag: f"{marks} " for tag, marks in HEADINGS.items()}, "li": "- ", "blockquote": "> "}


def readable(html: str) -> tuple[str, str]:
    """The title of a page, and its text."""
    page = LexborHTMLParser(html)
    titles = (page.css_first("title"), page.css_first("h1"))
    title = next((text for node in titles if node is not None and (text := " ".join(node.text().split()))), "")
    if page.body is None:
        return title, ""
    whole = _text_of(page.body)
    parts = [_text_of(node) for node in page.css("main, [role=main], article")[:50]]
    main = max(parts, key=len, default="")
    return title, main if len(main) > MAIN_PART * len(whole) else whole


def _text_of(root: Any) -> str:
    """The text in a node: walked without recursion, for pages can be nested as deeply as they like."""
    out = _Out()
    node: Any = root
    for _ in range(MOST_NODES):
        is_read = _is_read(node)
        if is_read:
            out.enter(node)
        child = node.child if is_read else None
        if child is not None and out.length < MOST_TEXT:
            node = child
            continue
        if is_read:
            out.leave(node.tag)
        while node.mem_id != root.mem_id and node.next is None:
            node = node.parent
            out.leave(node.tag)
        if node.mem_id == root.mem_id or out.length >= MOST_TEXT:
            break
        node = node.next
    return out.text()


def _is_read(node: LexborNode) -> bool:
    tag = node.tag
    if tag == "-text":
        return True
    if tag in SKIPPED or tag is None or tag.startswith(("-", "!", "_")):
        return False
    attributes = node.attributes
    if not attributes:
        return True
    return not ("hidden" in attributes or attributes.get("aria-hidden") == "true" or attributes.get("role") in ROLES)


class _Out:
    """Lines, as they are put together."""

    def __init__(self) -> None:
        self.length = 0
        self._lines: list[str] = []
        self._line: list[str] = []
        self._code = 0

    def enter(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if tag == "-text":
            self._add(node.text_content or "")
        elif tag == "br":
            self._end()
        elif tag in ("td", "th"):
            if self._line:
                self._line.append(" | ")
        elif tag in BLOCKS:
            self._end()
            if tag == "pre":
                self._code += 1
                self._lines.append("```")
            elif tag in BEGINS:
                self._line.append(BEGINS[tag])

    def leave(self, tag: str | None) -> None:
        if tag in BLOCKS:
            self._end()
            if tag == "pre" and self._code:
                self._code -= 1
                self._lines.append("```")
            elif tag != "li" and tag != "tr" and self._lines and self._lines[-1]:
                self._lines.append("")

    def text(self) -> str:
        self._end()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip()

    def _add(self, text: str) -> None:
        self._line.append(text)
        self.length += len(text)

    def _end(self) -> None:
        line = "".join(self._line)
        self._line = []
        if self._code:
            if line:
                self._lines.append(line.strip("\n"))
            return
        line = " ".join(line.split())
        if line and line not in EMPTY:
            self._lines.append(line)


EMPTY = frozenset(text.strip() for text in BEGINS.values())
