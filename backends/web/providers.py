"""Providers of searches: how each is asked, and what it answers.

Query ──Provider.request──▶ an HTTP request          answer ──Provider.found──▶ Found, …

searxng  https://docs.searxng.org/dev/search_api.html       brave  https://api.search.brave.com/app/documentation
tavily   https://docs.tavily.com/documentation/api-reference/endpoint/search   exa  https://docs.exa.ai/reference/search
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import unescape
from typing import Any

from backends.web.query import Query
from core.json import Json
from requests.web_search import Found

# Of a result, for a provider that is asked how much it shall give.
SNIPPET = 1000


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A request to a provider: a GET with `query`, or a POST of `body`."""

    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: Json | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Provider:
    """One that is asked by HTTP. `url` is where it is, empty where each has its own; `request` is given a query and the
    key, `found` the answer. `hint` has what most often is wrong, by the status of the answer."""

    url: str
    request: Callable[[Query, str], SearchRequest]
    found: Callable[[Any], Iterable[Found]]
    needs_key: bool = True
    hint: dict[int, str] = field(default_factory=dict)


def _searxng(query: Query, key: str) -> SearchRequest:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return SearchRequest("/search", {"q": query.with_sites(), "format": "json"}, headers=headers)


def _brave(query: Query, key: str) -> SearchRequest:
    place, country = query.place, query.place.country.upper()
    asked = {"q": query.with_sites(), "count": str(min(query.count, 20)), "extra_snippets": "true"}
    near = {"City": place.city, "State-Name": place.region, "Country": country, "Timezone": place.timezone}
    headers = {f"X-Loc-{name}": value for name, value in near.items() if value and value.isascii()}
    return SearchRequest("/res/v1/web/search", asked, headers={"X-Subscription-Token": key, **headers})


def _tavily(query: Query, key: str) -> SearchRequest:
    body: Json = {"query": query.words, "max_results": min(query.count, 20), "search_depth": "basic"}
    if query.allowed:
        body["include_domains"] = [*query.allowed]
    if query.blocked:
        body["exclude_domains"] = [*query.blocked]
    return SearchRequest("/search", body=body, headers={"Authorization": f"Bearer {key}"})


def _exa(query: Query, key: str) -> SearchRequest:
    body: Json = {
        "query": query.words,
        "numResults": query.count,
        "type": "auto",
        "contents": {"text": {"maxCharacters": SNIPPET}},
    }
    if query.allowed:
        body["includeDomains"] = [*query.allowed]
    elif query.blocked:  # It takes one of them; what it finds is looked through anyway.
        body["excludeDomains"] = [*query.blocked]
    if query.place.country:
        body["userLocation"] = query.place.country.upper()
    return SearchRequest("/search", body=body, headers={"x-api-key": key})


def _rows(answer: Any, *path: str) -> Iterable[Json]:
    """The objects in a list of the answer."""
    for key in path:
        answer = answer.get(key) if isinstance(answer, dict) else None
    return (row for row in answer if isinstance(row, dict)) if isinstance(answer, list) else ()


def _text(row: Json, *keys: str) -> str:
    """The first text among the values of these keys, without the marks of HTML that some put into it."""
    value = next((row[key] for key in keys if isinstance(row.get(key), str) and row[key]), "")
    return " ".join(unescape(_TAG.sub("", value)).split())


_TAG = re.compile(r"</?(?:strong|b|em|mark)>")


def found_in(rows: Iterable[Json], text: Callable[[Json], str], *dates: str) -> Iterable[Found]:
    """Results of rows that have a URL."""
    for row in rows:
        url = row.get("url")
        if isinstance(url, str) and url.startswith(("http://", "https://")):
            yield Found(url, _text(row, "title") or url, text(row), _text(row, *dates))


def _brave_text(row: Json) -> str:
    more = row.get("extra_snippets")
    texts = [text for text in more if isinstance(text, str)] if isinstance(more, list) else []
    return " … ".join([_text(row, "description"), *(_text({"text": text}, "text") for text in texts)])


PROVIDERS: dict[str, Provider] = {
    "searxng": Provider(
        "",
        _searxng,
        lambda answer: found_in(_rows(answer, "results"), lambda row: _text(row, "content"), "publishedDate"),
        needs_key=False,
        hint={403: "its settings.yml must have json among search.formats"},
    ),
    "brave": Provider(
        "https://api.search.brave.com",
        _brave,
        lambda answer: found_in(_rows(answer, "web", "results"), _brave_text, "page_age", "age"),
    ),
    "tavily": Provider(
        "https://api.tavily.com",
        _tavily,
        lambda answer: found_in(_rows(answer, "results"), lambda row: _text(row, "content"), "published_date"),
    ),
    "exa": Provider(
        "https://api.exa.ai",
        _exa,
        lambda answer: found_in(_rows(answer, "results"), lambda row: _text(row, "text", "summary"), "publishedDate"),
    ),
}
