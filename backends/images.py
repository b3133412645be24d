"""Remote images, fetched for backends that cannot: `https://…` in a chat message becomes a data URL.

The address is a client's, so all of it goes through the guarded client (`wire/outbound.py`): only public addresses are
connected to, and limits hold for size and time. What counts is what the bytes are, not what their server calls them.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

from core.errors import InvalidRequest

if TYPE_CHECKING:
    import httpx2

    from backends.wire.outbound import Resolve

Message = dict[str, Any]

MAX_REDIRECTS = 5
# What the first bytes of a file say that it is.
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


class InvalidImage(InvalidRequest):
    """An image that cannot be used. `place` says which: the number of its message, and of its part in this."""

    code = "invalid_image_url"
    place: tuple[int, int] | None = None


class ImageFetcher:
    """Fetches images: at most `max_bytes` each, as it comes and decoded, in `timeout_s`, from public addresses, with
    `allow_private` also from others. `resolve` stands in for the system's name service. `close()` when it is over."""

    def __init__(
        self,
        *,
        max_bytes: int = 20 * 1024 * 1024,
        timeout_s: float = 10.0,
        allow_private: bool = False,
        resolve: Resolve | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._resolve = resolve
        self._client: httpx2.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def fetch(self, url: str) -> str:
        """The image at `url` as a data URL. Raises `InvalidImage`."""
        answer = await self._get(url)
        if isinstance(answer, str):
            raise _invalid(answer)
        kind = _type_of(answer)
        if kind is None:
            raise _invalid("it is no PNG, JPEG, GIF or WebP image")
        return f"data:{kind};base64,{base64.b64encode(answer).decode()}"

    async def _get(self, url: str) -> bytes | str:
        """What lies at `url`, or why it cannot be used. Not an exception: its frames hold what was read."""
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self._make_client)
        import httpx2

        from backends.wire import outbound

        try:
            answer = await self._client.get(url)
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
            return "it could not be fetched"
        return answer.content if answer.status_code == 200 else "it could not be fetched"

    def _make_client(self) -> httpx2.AsyncClient:
        # A third of a start, and the certificates of the world, for the few who need it: in a thread.
        from backends.wire.outbound import guarded_client

        return guarded_client(
            max_bytes=self._max_bytes,
            timeout_s=self._timeout_s,
            allow_private=self._allow_private,
            max_redirects=MAX_REDIRECTS,
            headers={"Accept": "image/*"},
            resolve=self._resolve,
        )


def _type_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


def _invalid(why: str) -> InvalidImage:
    return InvalidImage(f"The image cannot be used: {why}.", param="input")


async def with_images_fetched(messages: list[Message], fetcher: ImageFetcher) -> list[Message]:
    """The messages, with each remote image as a data URL. Each URL is fetched once, all at the same time. Raises the
    `InvalidImage` of the first that cannot be used."""
    places: dict[str, tuple[int, int]] = {}
    for number, message in enumerate(messages):
        if isinstance(message["content"], list):
            for at, part in enumerate(message["content"]):
                if part["type"] == "image_url" and part["image_url"]["url"][:5].lower() != "data:":
                    places.setdefault(part["image_url"]["url"], (number, at))
    if not places:
        return messages
    async with asyncio.TaskGroup() as group:
        fetches = {url: group.create_task(_fetched(fetcher, url)) for url in places}
    images: dict[str, str] = {}
    for url, fetch in fetches.items():
        image = fetch.result()
        if isinstance(image, InvalidImage):
            image.place = places[url]
            raise image
        images[url] = image
    return [
        {**message, "content": [_with_image(part, images) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


async def _fetched(fetcher: ImageFetcher, url: str) -> str | InvalidImage:
    try:
        return await fetcher.fetch(url)
    except InvalidImage as error:
        return error


def _with_image(part: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    if part["type"] != "image_url" or (image := images.get(part["image_url"]["url"])) is None:
        return part
    return {**part, "image_url": {**part["image_url"], "url": image}}
