"""The content of items as that of chat messages: texts, and the parts that a server takes."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from core.errors import Unsupported
from requests.compatibility import PARTS
from requests.foreign import hint_of_part

EVERY_PART = frozenset({"image", "file", "audio"})
# What holds no image: nothing, or a data URL without data.
EMPTY_URL = re.compile(r"\s*(?:data:[^,]{0,200},?\s*)?")
TEXT_PARTS = frozenset(name for name, row in PARTS.items() if row.is_text)


class Files:
    """Files that a request names by URL: `fetched` as data URLs, or None where they are not shown; `wanted` gets the
    others, each with its place in the request."""

    __slots__ = ("fetched", "wanted")

    def __init__(self, fetched: Mapping[str, str | None] | None = None) -> None:
        self.fetched = fetched or {}
        self.wanted: dict[str, str] = {}


class Content:
    """Translates contents for a server that `carries` some kinds of parts beside text. `ignored` gets the names of keys
    of which nothing comes. Without `files` none can be named by its URL."""

    def __init__(self, carries: frozenset[str], ignored: set[str], files: Files | None = None) -> None:
        self._carries = carries
        self._ignored = ignored
        self._files = files

    @property
    def carries_images(self) -> bool:
        """Whether the model takes images."""
        return "image" in self._carries

    def of(self, content: Any, where: str, *, between: str = "\n") -> Any:
        """The content of a message: one text, with `between` between its parts, or parts where some are no texts.
        `where` is its place in the request. Raises `Unsupported` for a part that the server cannot be given."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        if len(content) == 1 and content[0].get("type") in TEXT_PARTS and "prompt_cache_breakpoint" not in content[0]:
            return content[0].get("text") or ""  # As most are.
        parts = [self._part(part, f"{where}[{index}]") for index, part in enumerate(content)]
        if len(parts) == 1 and parts[0]["type"] == "text":
            return parts[0]["text"]
        if all(part["type"] == "text" for part in parts):
            # Hardly a server misreads a text; several take no list of them, or lose what stands beside it.
            return between.join([part["text"] for part in parts])
        return parts

    def _part(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        kind = part.get("type")
        if "prompt_cache_breakpoint" in part:
            self._ignored.add("input.prompt_cache_breakpoint")
        if kind in TEXT_PARTS:
            return {"type": "text", "text": part.get("text") or ""}
        if kind == "input_image":
            return self._image(part, where)
        if kind == "input_file":
            return self._file(part, where)
        if kind == "input_audio":
            self._must_carry("audio", where)
            return {"type": "input_audio", "input_audio": part.get("input_audio")}
        raise Unsupported(
            f"Content of type '{kind}' cannot be given to a chat-completions backend.{hint_of_part(kind)}",
            param=f"{where}.type",
        )

    def _image(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        self._must_carry("image", where)
        url = part.get("image_url")
        if not isinstance(url, str) or EMPTY_URL.fullmatch(url):
            given = "file_id" if part.get("file_id") else "image_url"
            raise Unsupported("An image must be given as 'image_url', a URL or a data URL.", param=f"{where}.{given}")
        image = {"url": url}
        if detail := part.get("detail"):
            image["detail"] = "high" if detail == "original" else detail
        return {"type": "image_url", "image_url": image}

    def _file(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        data = part.get("file_data")
        url = part.get("file_url")
        name = part.get("filename") or "file"
        given = "file_data"
        if not isinstance(data, str) and isinstance(url, str) and url and self._files is not None:
            if url not in self._files.fetched:
                # A place of this turn is kept: what it brings must be there.
                self._files.wanted[url] = f"{where}.file_url" if where[:1] != "." else EARLIER
                return {"type": "text", "text": url}
            data = self._files.fetched[url]
            if data is None:
                return {"type": "text", "text": f"(A file of an earlier turn that is not shown: {url[:SHOWN_URL]})"}
            given, name = "file_url", part.get("filename") or _name_in(url)
        if not isinstance(data, str):
            given = next((key for key in ("file_id", "file_url") if part.get(key)), "file_data")
            raise Unsupported("A file must be given as 'file_data', a data URL or base64.", param=f"{where}.{given}")
        if "file" in self._carries:
            return {"type": "file", "file": {"filename": name, "file_data": data}}
        text = _text_of_file(data)
        if text is None:
            raise Unsupported("The backend takes no files, and this one is not plain text.", param=f"{where}.{given}")
        return {"type": "text", "text": f"{name}:\n{text}"}

    def _must_carry(self, kind: str, where: str) -> None:
        if kind not in self._carries:
            raise Unsupported(f"The backend of this model takes no {kind} input.", param=f"{where}.type")


# The place of what an earlier turn brought, and as much of a URL as names what is not shown.
EARLIER = "previous_response_id"
SHOWN_URL = 200


def _name_in(url: str) -> str:
    """The name of a file by its URL."""
    try:
        return unquote(urlsplit(url).path).rpartition("/")[2] or "file"
    except ValueError:
        return "file"


def _text_of_file(data: str) -> str | None:
    """The text in a data URL or in base64, if it is text."""
    head, comma, payload = data.partition(",")
    if not (comma and head.startswith("data:")):
        head, payload = "data:;base64", data
    try:
        raw = base64.b64decode(payload, validate=True) if head.endswith(";base64") else unquote_to_bytes(payload)
        text = raw.decode()
    except ValueError:  # neither base64 nor UTF-8
        return None
    return None if "\0" in text else text
