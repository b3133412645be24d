"""Pages that a model opens: fetched through the guard, cut to what there is to read, and remembered for an hour. Each
is at the URL where it was found in the end."""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections import OrderedDict

from backends.fetching import Fetched, Fetcher
from backends.web.query import MOST_TEXT, SearchFailed
from core.config import WebSearchConfig
from requests.web_search import Found

MB = 1024 * 1024
# So long, so many, and so many characters of them all.
KEPT_S = 3600.0
MOST_PAGES = 500
MOST_KEPT = 20_000_000

HTML = frozenset({"text/html", "application/xhtml+xml"})
TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|yaml|javascript)")
# Where a page names its own encoding.
CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset=["']?([\w:-]{1,40})""", re.IGNORECASE)

# Those that pages have. Python knows others, of which some take hours, and some are no encodings of texts.
ENCODINGS = re.compile(r"utf-(8|16|32)(-[bl]e)?|ascii|iso8859-\d+|cp\d+|(gb|big5|euc_|shift_|iso2022_|koi8-|mac-)\w+")


class Pages(Fetcher):
    """Fetches pages, at addresses that are public unless the settings allow others. `close()` when it is over."""

    accept = "text/html, application/xhtml+xml, text/plain;q=0.9, */*;q=0.5"

    def __init__(self, config: WebSearchConfig) -> None:
        super().__init__(max_bytes=4 * MB, timeout_s=config.timeout_s, allow_private=config.allow_private)
        self._kept: OrderedDict[str, tuple[float, Found]] = OrderedDict()
        self._size = 0

    async def page(self, url: str) -> Found:
        """What lies at a URL. Raises `SearchFailed`."""
        if (page := self.known(url)) is not None:
            return page
        fetched = await self.get(url)
        if isinstance(fetched, str):
            raise SearchFailed(f"The page cannot be opened: {fetched}.")
        page = await asyncio.to_thread(_read, fetched, url)
        self._keep(url, page)
        return page

    def known(self, url: str) -> Found | None:
        """The page, where it was opened lately."""
        at, page = self._kept.get(url, (0.0, None))
        return page if time.monotonic() - at < KEPT_S else None

    def _keep(self, url: str, page: Found) -> None:
        self._forget(url)
        self._kept[url] = time.monotonic(), page
        self._size += len(page.text)
        while self._size > MOST_KEPT or len(self._kept) > MOST_PAGES:
            self._forget(next(iter(self._kept)))

    def _forget(self, url: str) -> None:
        if url in self._kept:
            self._size -= len(self._kept.pop(url)[1].text)


def _read(fetched: Fetched, url: str) -> Found:
    """The page in what was fetched. Raises `SearchFailed` where there is none."""
    kind, _, parameters = fetched.content_type.lower().partition(";")
    kind, found = kind.strip(), fetched.url or url
    begins = fetched.content[:2048]
    if kind in HTML or (not kind and b"<" in begins[:200]):
        from backends.web.readable import readable

        title, text = readable(_decoded(fetched.content, parameters or _charset(begins)))
        return Found(found, title or found, text)
    if b"\0" in begins or not TEXT.fullmatch(kind or "text/plain"):
        raise SearchFailed(f"The page cannot be opened: it is no text ({kind[:60] or 'unknown'}).")
    return Found(found, found, _decoded(fetched.content, parameters)[:MOST_TEXT])


def _charset(begins: bytes) -> str:
    named = CHARSET.search(begins)
    return f"charset={named[1].decode()}" if named else ""


def _decoded(content: bytes, parameters: str) -> str:
    named = re.search(r"charset=[\"']?([\w:-]+)", parameters)
    try:
        codec = codecs.lookup(named[1]).name if named else "utf-8"
    except LookupError:
        codec = "utf-8"
    return content.decode(codec if ENCODINGS.fullmatch(codec) else "utf-8", errors="replace")
