"""Searches at the provider of the settings, where that is asked by HTTP: one that the operator has named, so it may lie
at any address."""

from __future__ import annotations

import asyncio
from functools import partial
from urllib.parse import urlsplit

from backends.fetching import Fetched, Fetcher
from backends.web.providers import PROVIDERS
from backends.web.query import Query, SearchFailed
from core.config import WebSearchConfig
from core.json import decode_json
from requests.web_search import Found, is_short

MB = 1024 * 1024
TOO_MANY, AGAIN_S = 429, 1.1


class Searches(Fetcher):
    """Asks the provider. `close()` when it is over."""

    accept = "application/json"
    # Its key is for it alone.
    max_redirects = 0

    def __init__(self, config: WebSearchConfig) -> None:
        super().__init__(max_bytes=4 * MB, timeout_s=config.timeout_s, allow_private=True)
        self._config = config
        # Many plans allow one search a second, and a model makes several at once.
        self._one_by_one = asyncio.Lock()

    def take_settings(self, config: WebSearchConfig) -> None:
        """Goes by another provider from now on."""
        self._config = config
        self.take_limits(timeout_s=config.timeout_s, allow_private=True)

    async def find(self, query: Query) -> list[Found]:
        """What the provider finds, no more than is wanted, each page once. Raises `SearchFailed`."""
        config = self._config
        provider = PROVIDERS[config.provider]
        asked = provider.request(query, config.api_key)
        url = (config.url or provider.url).rstrip("/").removesuffix(asked.path) + asked.path
        ask = partial(self.answered, url, query=asked.query, body=asked.body, headers=asked.headers)
        answer = await ask()
        if isinstance(answer, Fetched) and answer.status == TOO_MANY:
            async with self._one_by_one:
                await asyncio.sleep(AGAIN_S)
                answer = await ask()
        if isinstance(answer, str):
            raise SearchFailed(f"The search cannot be made: {answer}.")
        if answer.status != 200:
            hint = provider.hint.get(answer.status) or HINTS.get(answer.status, "")
            raise SearchFailed(f"The search provider answered {answer.status}{f': {hint}' if hint else ''}.")
        try:
            results = [*provider.found(decode_json(answer.content))]
        except ValueError:
            raise SearchFailed("The search provider has not answered with JSON.") from None
        return chosen(results, query)


HINTS = {401: "its api_key is not accepted", 403: "its api_key is not accepted", TOO_MANY: "too many searches"}


def chosen(results: list[Found], query: Query) -> list[Found]:
    """Those of the results that are permitted, each page once, no more than are wanted."""
    pages: dict[str, Found] = {}
    for found in results:
        try:
            host = urlsplit(found.url).hostname or ""
        except ValueError:
            continue
        if query.permits(host) and is_short(found.url):
            pages.setdefault(found.url, found)
    return [*pages.values()][: query.count]
