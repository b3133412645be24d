"""What a request asks of a maker of pictures, `{type: image_generation, …}`, checked; and what a model is offered of
it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from core.errors import InvalidRequest
from core.json import Json
from requests.hosted_calls import IMAGE
from requests.router_tools import RouterTool
from requests.tools import Item

KIND = "image_generation"
DESCRIPTION = "Makes a picture, which the user is shown. Describe all that shall be seen in it, and in which style."
PROMPT = {"type": "string", "description": "What is to be seen."}
EDIT = {"type": "boolean", "description": "True: the last picture of the conversation is changed so."}
# What of an entry is asked of whoever makes the picture; and what the item has of that.
ASKED = ("model", "size", "quality", "background", "output_format", "moderation", "input_fidelity")
SHOWN = ("size", "quality", "background", "output_format")
WORDS = {
    "action": ("generate", "edit", "auto"),
    "background": ("transparent", "opaque", "auto"),
    "input_fidelity": ("high", "low"),
    "moderation": ("auto", "low"),
    "output_format": ("png", "webp", "jpeg", "gif", "svg"),
    "quality": ("low", "medium", "high", "xhigh", "max", "auto"),
}
MOST_PARTIAL = 3
KNOWN = frozenset({"type", *ASKED, *WORDS, "partial_images", "output_compression"})


class ImageEntry(Struct, frozen=True):
    """A tool of the type `image_generation`. `asked` are the parameters of a picture, `shown` those that its item has;
    `ignored` are names of settings of which nothing comes."""

    asked: Json
    shown: Json
    partial_images: int
    may_edit: bool
    ignored: frozenset[str]


def image_entry(tool: Json, where: str) -> ImageEntry:
    """The entry that a tool is. `where` is its place in the request. Raises `InvalidRequest`."""
    for key in ("model", "size", *WORDS):
        value = tool.get(key)
        if value is not None and not (isinstance(value, str) and value):
            raise InvalidRequest(f"The {key} of a picture is a string.", param=f"{where}.{key}")
        if value is not None and value not in WORDS.get(key, (value,)):
            raise InvalidRequest(f"The {key} of a picture is one of {', '.join(WORDS[key])}.", param=f"{where}.{key}")
    partial = _number(tool, "partial_images", MOST_PARTIAL, 0, where)
    compression = _number(tool, "output_compression", 100, 100, where)
    asked: Json = {key: value for key in ASKED if (value := tool.get(key)) not in (None, "auto")}
    if compression != 100:
        asked["output_compression"] = compression
    if partial:
        asked["partial_images"] = partial
    return ImageEntry(
        asked,
        {key: asked[key] for key in SHOWN if key in asked},
        partial,
        tool.get("action") != "generate",
        frozenset(f"tools.{key}" for key in tool.keys() - KNOWN if tool[key]),
    )


def _number(tool: Json, key: str, most: int, usual: int, where: str) -> int:
    value = tool.get(key)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidRequest(f"The {key} of a picture is a number from 0 to {most}.", param=f"{where}.{key}")
    return value


def image_tool(*, may_edit: bool) -> RouterTool:
    """What a model is offered."""
    properties = {"prompt": PROMPT, "edit": EDIT} if may_edit else {"prompt": PROMPT}
    parameters = {"type": "object", "properties": properties, "required": ["prompt"], "additionalProperties": False}
    return RouterTool("", KIND, DESCRIPTION, parameters, kind=IMAGE)


_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,([A-Za-z0-9+/]+={0,2})")


def last_picture(items: Iterable[Item]) -> bytes | None:
    """The last picture of a conversation that is at hand: made in it, or given with a message."""
    found = None
    for item in items:
        if item.get("type") == IMAGE and item.get("result"):
            found = item["result"]
        content = item.get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") == "input_image" and (url := _DATA_URL.fullmatch(str(part.get("image_url")))):
                found = url[1]
    return _decoded(found)


def _decoded(data: Any) -> bytes | None:
    try:
        return base64.b64decode(data, validate=True) or None if isinstance(data, str) else None
    except ValueError:
        return None
