"""Remote images, fetched for backends that cannot: `https://…` in a chat message becomes a data URL.

    messages ──with_images_fetched──▶ messages    of this turn all, or an error; of others as many as have room

What counts is what the bytes are, not what their server calls them.
"""

from __future__ import annotations

import base64

from backends.fetching import Fetcher, fetch_in_order
from core.errors import InvalidRequest
from core.json import Json

Message = Json

# What a file is, by its first bytes.
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
# As much of a URL as names an image that is not shown.
SHOWN_URL = 200


class InvalidImage(InvalidRequest):
    """An image that cannot be used. `place` is which: the number of its message, and of its part in this."""

    code = "invalid_image_url"
    place: tuple[int, int] | None = None


class ImageFetcher(Fetcher):
    """Fetches images, within the limits of a `Fetcher`."""

    accept = "image/*"

    async def fetch(self, url: str) -> str:
        """The image at `url` as a data URL. Raises `InvalidImage`."""
        answer = await self.get(url)
        if isinstance(answer, str):
            raise _invalid(answer)
        kind = _type_of(answer.content)
        if kind is None:
            raise _invalid("it is no PNG, JPEG, GIF or WebP image")
        return f"data:{kind};base64,{base64.b64encode(answer.content).decode()}"


def _type_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)


def _invalid(why: str) -> InvalidImage:
    return InvalidImage(f"The image cannot be used: {why}.", param="input")


async def with_images_fetched(messages: list[Message], fetcher: ImageFetcher) -> list[Message]:
    """The messages, with each remote image as a data URL. Each URL is fetched once, those of this turn first, then the
    others from the latest on. Those of earlier turns (before the last answer) that are too many or too much are named
    and not shown. Raises the `InvalidImage` of the first that cannot be used, and for a turn that has too many by
    itself, before anything is fetched."""
    new, earlier = _remote_images(messages)
    if not new and not earlier:
        return messages
    if len(new) > fetcher.max_count:
        error = InvalidImage(
            f"A request may have {fetcher.max_count} images by URL, and this one has {len(new)}.",
            param="input",
            code="too_many_images",
        )
        error.place = list(new.values())[fetcher.max_count]
        raise error
    latest_first = [*new, *reversed(earlier)]
    found = await fetch_in_order(
        latest_first[: fetcher.max_count],
        lambda url: _fetched(fetcher, url),
        lambda found: _size(found) > fetcher.max_total_bytes,
    )
    for url, place in {**earlier, **new}.items():
        if isinstance(wrong := found.get(url), InvalidImage):
            wrong.place = place
            raise wrong
    images = _within(found, fetcher.max_total_bytes)
    for url, place in new.items():
        if url not in images:
            error = InvalidImage(
                f"The images of a request may have {fetcher.max_total_bytes / 1024 / 1024:g} MB together, and these "
                f"have more.",
                param="input",
                code="images_too_large",
            )
            error.place = place
            raise error
    return [
        {**message, "content": [_with_image(part, images) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def _remote_images(messages: list[Message]) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """The distinct URLs of remote images, with their first places: those of this turn, which nobody has answered yet,
    and the other ones, oldest first."""
    last_answer = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    new: dict[str, tuple[int, int]] = {}
    earlier: dict[str, tuple[int, int]] = {}
    for number, message in enumerate(messages):
        if isinstance(message["content"], list):
            for at, part in enumerate(message["content"]):
                if part["type"] == "image_url" and _is_remote(url := part["image_url"]["url"]):
                    if number > last_answer:
                        new.setdefault(url, earlier.pop(url, (number, at)))
                    else:
                        earlier.setdefault(url, (number, at))
    return new, earlier


def _is_remote(url: str) -> bool:
    return url[:5].lower() != "data:"


async def _fetched(fetcher: ImageFetcher, url: str) -> str | InvalidImage:
    try:
        return await fetcher.fetch(url)
    except InvalidImage as error:
        # Without the frames that it came through: they hold the messages.
        return error.with_traceback(None)


def _size(found: dict[str, str | InvalidImage]) -> int:
    """How many bytes the images have."""
    return sum(_bytes_in(image) for image in found.values() if isinstance(image, str))


def _bytes_in(data_url: str) -> int:
    return (len(data_url) - data_url.find(",") - 1) // 4 * 3 - data_url.endswith("=") - data_url.endswith("==")


def _within(found: dict[str, str | InvalidImage], max_bytes: int) -> dict[str, str]:
    """The images up to the one that is too much."""
    images: dict[str, str] = {}
    size = 0
    for url, image in found.items():
        if isinstance(image, str):
            size += _bytes_in(image)
            if size > max_bytes:
                break
            images[url] = image
    return images


def _with_image(part: Json, images: dict[str, str]) -> Json:
    if part["type"] != "image_url" or not _is_remote(url := part["image_url"]["url"]):
        return part
    if (image := images.get(url)) is None:
        return {"type": "text", "text": f"(An image of an earlier turn that is not shown any more: {url[:SHOWN_URL]})"}
    return {**part, "image_url": {**part["image_url"], "url": image}}
