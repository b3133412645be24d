"""Items that no chat server knows, as a text: a model reads what was done in an earlier turn. Files and sealed texts
are only named in it; pictures can be shown beside it."""

from __future__ import annotations

import base64
import re
from typing import Any

from core.json import Json, decode_json, encode_json
from requests.tools import Item

# The type of the data, its parameters, and the data: up to what ends a URL in a text, or over lines as base64 is often
# broken.
DATA_URL = re.compile(
    r"""data:([\w.+-]+/[\w.+-]+)((?:;[\w.=+-]+)*),([^\s"'<>()\[\]{}\\]*(?:\r?\n[A-Za-z0-9+/=]{60,})*)"""
)
# Pictures that models can look at, and how they begin. Others would be refused, again in every turn.
PICTURE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP", re.DOTALL)
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
LEFT_OUT = frozenset({"type", "id", "status", "call_id", "fingerprint"})
TYPE_KEYS = ("mimeType", "mime_type", "media_type")
IS_FILE = re.compile(r"(image|audio|video)/.|application/(pdf|octet-stream)")


def item_as_text(item: Item, *, shows_pictures: bool) -> tuple[str, list[str]]:
    """An item as a text, and the URLs of the pictures in it that are to be shown behind it."""
    text = _Text(shows_pictures)
    shown = {
        key: text.value(value, key, item)
        for key, value in item.items()
        if key not in LEFT_OUT and value not in (None, "", [])
    }
    return f"[{item['type']}: {encode_json(shown).decode()}]", text.pictures


def output_as_text(item: Item, *, shows_pictures: bool) -> tuple[str, list[str]]:
    """What came of a call that the router has run, as a text, and the URLs of the pictures in it: its output, or its
    error."""
    text = _Text(shows_pictures)
    if error := item.get("error"):
        shown = error.get("content", error.get("message")) if isinstance(error, dict) else error
        failed = text.value(shown, "content", item)
        return f"The tool failed: {failed if isinstance(failed, str) else encode_json(failed).decode()}", text.pictures
    output = item.get("output")
    if isinstance(output, str) and (parts := _parts_in(output)) is not None:
        output = parts
    value = text.value("" if output is None else output, "output", item)
    return value if isinstance(value, str) else encode_json(value).decode(), text.pictures


def _parts_in(output: str) -> list[Any] | None:
    """The parts of an output that is more than text, as servers of MCP have them."""
    if not output.startswith('[{"type":"'):
        return None
    try:
        parts = decode_json(output)
    except ValueError:
        return None
    return parts if all(isinstance(part, dict) for part in parts) else None


class _Text:
    def __init__(self, shows_pictures: bool) -> None:
        self.pictures: list[str] = []
        self._shows_pictures = shows_pictures

    def value(self, value: object, key: str, holder: Json) -> Any:
        """A value at `key` of an object, as the model reads it."""
        if isinstance(value, str):
            if key == "encrypted_content":
                return "(sealed)"
            text = _as_url(value, key, holder)
            return DATA_URL.sub(self._name, text) if "data:" in text else text
        if isinstance(value, dict):
            return {inner: self.value(each, inner, value) for inner, each in value.items()}
        if isinstance(value, list):
            return [self.value(each, key, holder) for each in value]
        return value

    def _name(self, found: re.Match[str]) -> str:
        kind, parameters, data = found.groups()
        is_shown = self._shows_pictures and parameters.endswith(";base64") and _is_picture(data)
        if is_shown:
            self.pictures.append(found[0])
        return f"({kind}, {len(data)} characters, {'shown below' if is_shown else 'not shown'})"


def _as_url(text: str, key: str, holder: Json) -> str:
    """A file that is known as one, as a data URL: an image that was made, and what MCP servers answer."""
    kind = None
    if key == "result" and holder.get("type") == "image_generation_call":
        given = holder.get("output_format")
        kind = f"image/{given if isinstance(given, str) else 'png'}"
    elif key == "data":
        kind = next((holder[name] for name in TYPE_KEYS if isinstance(holder.get(name), str)), "")
    if kind and IS_FILE.match(kind) and BASE64.fullmatch(text):
        return f"data:{kind};base64,{text}"
    return text


def _is_picture(data: str) -> bool:
    return bool(BASE64.fullmatch(data)) and len(data) % 4 == 0 and bool(PICTURE.match(base64.b64decode(data[:32])))
