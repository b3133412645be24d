"""What lies at URLs that a client named: the images and files of a request, a few at a time.

All of it goes through the guarded client (`wire/outbound.py`): only public addresses are connected to, and limits hold
for size and time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from core.json import Json

if TYPE_CHECKING:
    import httpx2

    from backends.wire.outbound import Resolve

T = TypeVar("T")

UNFETCHED = "it could not be fetched"

# For one request, as many URLs are fetched at once.
AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes that lie at a URL, what its server calls them, and the URL that they were found at in the end."""

    content: bytes
    content_type: str = ""
    status: int = 200
    url: str = ""


class Fetcher:
    """Fetches what lies at URLs: at most `max_bytes` each, as it comes and decoded, in `timeout_s`, from public
    addresses, with `allow_private` also from others; for one request no more than `max_count` URLs and
    `max_total_bytes`. `resolve` stands in for the system's name service. `close()` when it is over."""

    accept = "*/*"
    max_redirects = 5

    def __init__(
        self,
        *,
        max_bytes: int = 20 * 1024 * 1024,
        timeout_s: float = 10.0,
        allow_private: bool = False,
        max_count: int = 100,
        max_total_bytes: int = 100 * 1024 * 1024,
        resolve: Resolve | None = None,
    ) -> None:
        self.max_count = max_count
        self.max_total_bytes = max_total_bytes
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._resolve = resolve
        self._client: httpx2.AsyncClient | None = None
        # Those with other limits, of which something may be under way.
        self._earlier: list[httpx2.AsyncClient] = []
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        for client in (*self._earlier, self._client):
            if client is not None:
                await client.aclose()

    def take_limits(self, *, timeout_s: float, allow_private: bool) -> None:
        """Has other limits from now on; what is under way keeps those that it has begun with."""
        if (timeout_s, allow_private) == (self._timeout_s, self._allow_private):
            return
        self._timeout_s, self._allow_private = timeout_s, allow_private
        if self._client is not None:
            self._earlier.append(self._client)
            self._client = None

    async def get(self, url: str) -> Fetched | str:
        """What lies at `url`, or why it cannot be used. Not an exception: its frames hold what was read."""
        fetched = await self.answered(url)
        if isinstance(fetched, Fetched) and fetched.status != 200:
            return UNFETCHED
        return fetched

    async def answered(
        self,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Fetched | str:
        """The answer of a URL, whatever its status, or why there is none. A `body` is posted as JSON."""
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self._make_client)
        import httpx2

        from backends.wire import outbound

        method = "GET" if body is None else "POST"
        try:
            answer = await self._client.request(
                method, url, params=query or None, json=body, headers=dict(headers or {})
            )
        except outbound.ForbiddenURL as error:
            return str(error)
        except outbound.AnswerTooLarge:
            return f"it is larger than {self._max_bytes / 1024 / 1024:g} MB"
        except outbound.AnswerTooSlow:
            return "it took too long"
        except httpx2.TooManyRedirects:
            return "it is redirected too often"
        except (httpx2.RequestError, httpx2.InvalidURL):
            # Not the reason: it would show a client what there is inside our network.
            return UNFETCHED
        return Fetched(answer.content, answer.headers.get("content-type", ""), answer.status_code, str(answer.url))

    def _make_client(self) -> httpx2.AsyncClient:
        # A third of a start, and the certificates of the world, for the few who need it: in a thread.
        from backends.wire.outbound import guarded_client

        return guarded_client(
            max_bytes=self._max_bytes,
            timeout_s=self._timeout_s,
            allow_private=self._allow_private,
            max_redirects=self.max_redirects,
            headers={"Accept": self.accept},
            resolve=self._resolve,
        )


async def fetch_in_order(
    urls: Iterable[str], fetch: Callable[[str], Awaitable[T]], is_enough: Callable[[dict[str, T]], bool]
) -> dict[str, T]:
    """What `fetch` gives for each of the URLs, in their order, `AT_ONCE` at the same time. Once `is_enough` of what is
    there, no other is begun."""
    left = list(urls)
    order = list(left)
    left.reverse()
    found: dict[str, T] = {}

    async def work() -> None:
        while left and not is_enough(found):
            url = left.pop()
            found[url] = await fetch(url)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, len(left))):
            group.create_task(work())
    return {url: found[url] for url in order if url in found}
