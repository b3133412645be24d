"""A server of which only the address is known: its kind is asked for, and nothing is sent there until then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import urlsplit

from backends.kinds.kind import Kind
from backends.kinds.server import GetJson, Row, Server, dict_of, is_missing, is_unexpected, listed
from core.errors import APIError, BackendError, BackendRefused


class Auto(Kind):
    @property
    def is_known(self) -> bool:
        return False


KIND = Auto("auto", adds_v1=True)


async def recognise(kinds: Iterable[Kind], otherwise: Kind, get_json: GetJson, url: str = "") -> Kind:
    """Which of the kinds the server is whose API begins at `/v1` below the root of `get_json`; `url` is what was
    configured.

    One question is enough for most, two for those that others imitate; a server without models is asked for the mark of
    each kind. Raises an `APIError` when nothing can be known: the server is away, still loads, wants another key, or
    has no API there.
    """
    kinds = list(kinds)
    host = urlsplit(url).hostname
    for kind in kinds:
        if host in kind.hosts:
            return kind
    error: BackendError | None = None
    found: Kind | None
    try:
        listing = await get_json("/v1/models")
    except BackendError as its:
        if not is_missing(its) and not isinstance(its, BackendRefused):
            raise
        error = its
    else:
        if found := next((kind for kind in kinds if kind.is_listing(listing)), None):
            return found
        if not is_unexpected(listing) and (rows := listed(listing, "data")):
            return await _by_listing(kinds, rows, Server(get_json)) or otherwise
    found = await _by_marks(kinds, get_json)
    if found is None and error:
        raise error
    return found or otherwise


async def _by_listing(kinds: list[Kind], rows: list[Row], server: Server) -> Kind | None:
    for kind in kinds:
        if kind.lists(rows):
            proven = not kind.is_imitated or kind.is_mark(await server.maybe(*kind.marks) or {})
            return kind if proven else None
    return None


async def _by_marks(kinds: list[Kind], get_json: GetJson) -> Kind | None:
    marked = [kind for kind in kinds if kind.marks]
    answers = await asyncio.gather(*(_answer(get_json, kind.marks[0]) for kind in marked))
    return next((kind for kind, answer in zip(marked, answers, strict=True) if kind.is_mark(answer)), None)


async def _answer(get_json: GetJson, path: str) -> Row:
    try:
        return dict_of(await get_json(path))
    except APIError:
        return {}
