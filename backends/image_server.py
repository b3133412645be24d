"""A server of images that the settings name, which speaks OpenAI's API: `POST /images/generations`, or `/images/edits`
where there are images to be changed.

    asked ──make──▶ MadeImage      on_partial(image) as pieces come, where the server streams them
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from core.config import ImageServerConfig
from core.json import Json, decode_json
from requests.sse import SSEDecoder

if TYPE_CHECKING:
    import httpx2

    from backends.wire.outbound import GuardedTransport

# Of one answer: an image of some 40 MB, in base64, and the partial ones before it.
MOST_BYTES = 128 * 1024 * 1024
# What a server may add to its image.
FACTS = ("size", "quality", "background", "output_format")


class MadeImage(Struct, frozen=True):
    """An image in base64, with its `facts` (`FACTS`, `revised_prompt`) as its server has them. `place`: which of the
    partial ones it is."""

    data: str
    facts: Json
    place: int = 0


class ImageFailed(Exception):
    """An image could not be made, for the reason in `error`: `{type, code, message}`."""

    def __init__(self, type: str, code: str | None, message: str) -> None:
        super().__init__(message)
        self.error: Json = {"type": type, "code": code, "message": message}


class ImageServer:
    """Asks servers of images. Its connections are made at the first use."""

    def __init__(self) -> None:
        self._transport: asyncio.Task[GuardedTransport] | None = None

    async def make(
        self,
        server: ImageServerConfig,
        asked: Json,
        picture: bytes | None = None,
        *,
        on_partial: Callable[[MadeImage], None] | None = None,
    ) -> MadeImage:
        """An image, by the parameters `asked`; or a `picture`, changed so. With `on_partial` the server is asked to
        stream: one that cannot is asked again without. Raises `ImageFailed`."""
        import httpx2

        params = {"n": 1, **asked}
        if not str(params.get("model", "")).startswith(NATIVE_MODELS):
            params["response_format"] = "b64_json"
        if on_partial is None:
            params.pop("partial_images", None)
        else:
            params["stream"] = True
        try:
            async with await self._client(server) as client:
                while True:
                    async with client.stream("POST", **_request(server, params, picture)) as answer:
                        if answer.status_code != 200:
                            refused = decoded(await answer.aread())
                            if (left := _without_refused(params, answer.status_code, refused)) is not None:
                                params = left
                                continue
                            raise _refusal(answer.status_code, refused, server)
                        return await self._made(client, server, answer, on_partial)
        except httpx2.TimeoutException:
            raise ImageFailed("server_error", "timeout", "The image server has not answered in time.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
            raise ImageFailed("server_error", "unreachable", "The image server cannot be reached.") from None

    async def close(self) -> None:
        """Closes its connections."""
        if self._transport is not None:
            await (await self._transport).aclose()

    async def _client(self, server: ImageServerConfig) -> httpx2.AsyncClient:
        def made() -> GuardedTransport:
            from backends.wire.outbound import GuardedTransport

            return GuardedTransport(max_bytes=MOST_BYTES, timeout_s=None, allow_private=True)

        if self._transport is None:
            self._transport = asyncio.create_task(asyncio.to_thread(made))
        transport = await asyncio.shield(self._transport)
        from backends.wire.outbound import over

        return over(transport, {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {})

    async def _made(
        self,
        client: httpx2.AsyncClient,
        server: ImageServerConfig,
        answer: httpx2.Response,
        on_partial: Callable[[MadeImage], None] | None,
    ) -> MadeImage:
        if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            return await _streamed(answer, on_partial)
        body = decoded(await answer.aread())
        found = body.get("data")
        image = found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}
        facts = _facts(body) | _facts(image)
        if isinstance(data := image.get("b64_json"), str) and data:
            return MadeImage(data, facts)
        if isinstance(url := image.get("url"), str) and url:
            return MadeImage(await _fetched(client, server, url), facts)
        raise _no_image()


# OpenAI's own models answer in base64, and refuse to be asked for it.
NATIVE_MODELS = ("gpt-image", "chatgpt-image")


def _request(server: ImageServerConfig, params: Json, picture: bytes | None) -> Json:
    base = server.url.rstrip("/")
    if picture is None:
        return {"url": f"{base}/images/generations", "json": params}
    fields = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in params.items()}
    return {"url": f"{base}/images/edits", "data": fields, "files": {"image": ("image.png", picture, "image/png")}}


async def _streamed(answer: httpx2.Response, on_partial: Callable[[MadeImage], None] | None) -> MadeImage:
    decoder, place = SSEDecoder(), 0
    async for piece in answer.aiter_bytes():
        for data in decoder.feed(piece):
            event = decoded(data)
            kind, image = str(event.get("type")), event.get("b64_json")
            if event.get("error") or kind == "error":
                raise _refusal(200, event)
            if not isinstance(image, str) or not image:
                continue
            if kind.endswith(".completed"):
                return MadeImage(image, _facts(event))
            if kind.endswith(".partial_image") and on_partial is not None:
                given = event.get("partial_image_index")
                on_partial(MadeImage(image, _facts(event), given if isinstance(given, int) else place))
                place += 1
    raise _no_image()


async def _fetched(client: httpx2.AsyncClient, server: ImageServerConfig, url: str) -> str:
    """The image that a server names by URL, in base64. Only what it has itself is fetched: its URL is the operator's,
    and that of another is not."""
    import httpx2

    if url.startswith("data:"):
        return url.partition(",")[2]
    whole = httpx2.URL(server.url).join(url)
    if (whole.scheme, whole.host, whole.port) != _origin(httpx2.URL(server.url)):
        raise ImageFailed("server_error", "bad_answer", "The image server names an image at another server.")
    answer = await client.get(whole)
    if answer.status_code != 200 or not answer.content:
        raise _no_image()
    return base64.b64encode(answer.content).decode()


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _facts(answer: Json) -> Json:
    return {name: value for name in (*FACTS, "revised_prompt") if isinstance(value := answer.get(name), str)}


def decoded(data: bytes) -> Json:
    """A JSON object; an empty one for anything else."""
    try:
        value: Any = decode_json(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _without_refused(params: Json, status: int, body: Json) -> Json | None:
    """The parameters less the one that a server does not know; None where it refuses for something else."""
    if status not in (400, 404, 422):
        return None
    words = str(body).lower()
    for name in OPTIONAL:
        if name in params and name in words:
            left = {key: value for key, value in params.items() if key != name}
            if name == "stream":
                left.pop("partial_images", None)
            return left
    return None


# What servers of other models than OpenAI's may not know; the image is an image without it. In the order in which
# they are looked for: a name that holds another comes first.
OPTIONAL = (
    "partial_images",
    "response_format",
    "output_format",
    "output_compression",
    "input_fidelity",
    "moderation",
    "background",
    "quality",
    "stream",
)


def _refusal(status: int, body: Json, server: ImageServerConfig | None = None) -> ImageFailed:
    """The error of a server, in its words where it refuses what was asked for."""
    error = body.get("error")
    given = error if isinstance(error, dict) else {}
    message = given.get("message") or (error if isinstance(error, str) else None)
    if status >= 500 or not isinstance(message, str):
        return ImageFailed("server_error", str(status), f"The image server answered {status}.")
    if server is not None and server.api_key:
        message = message.replace(server.api_key, "…")
    code, kind = given.get("code"), given.get("type")
    return ImageFailed(
        kind if isinstance(kind, str) else "image_generation_error",
        code if isinstance(code, str) else None,
        message[:1000],
    )


def _no_image() -> ImageFailed:
    return ImageFailed("server_error", "bad_answer", "The image server has answered without an image.")
