"""The settings as JSON Schema, for editors: made from the sections of core/config.py, and what is checked besides.

Numbers and truth values may also be text there, as they are in the environment: `${VAR}`, or the value in quotes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import msgspec

from core.config import SECTIONS, Config
from core.config_help import HELP

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "nomyo-router's settings"
VARIABLE = r"\$\{\w+(:-[^}]*)?\}"
# What text is read as a value of a type, where it holds no variable: numbers as JSON has them.
READ_AS = {
    "integer": r"(0|[1-9]\d*)(\.0+)?([eE]\+?\d+)?",
    "number": r"(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?",
    "boolean": "[tT][rR][uU][eE]|[fF][aA][lL][sS][eE]|0|1",
    "null": "[nN][uU][lL][lL]",
}
NOT_ZERO, MAYBE_MINUS = r"(?!0(\.0+)?([eE]|$))", "-?"
_URL = (
    r"^(?!.*/(chat/completions|api/(chat|generate|tags))/*$)[hH][tT][tT][pP][sS]?://([^\s?#/@]*@)?"
    r"(\[[^\s\]]+\]|[^\s?#/:@\[\]]+)(:(?!0+(/|$))0*(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5]))?(/[^\s?#]*)?$"
)
_SECRET = r"^(\S([^\x00-\x1f\x7f]*\S)?)?$"
_SENT = r"^([!-~\x80-\xff]([ -~\x80-\xff]*[!-~\x80-\xff])?)?$"
# Python's \w has the letters of all languages, that of an editor may not: what is no letter of ASCII's is let pass.
_WORD = r"[^\x00-/:-@\[-^`{-\xa9]"
_NAME = rf"^{_WORD}([+.@-]|{_WORD}){{0,63}}$"
_AMOUNTS = r"^\s*(\d+(\.\d+)?\s*[kM]?\s*/\s*(day|month)\s*(,\s*\d+(\.\d+)?\s*[kM]?\s*/\s*(day|month)\s*)*)?$"
# What must be true of a text, or of those in a list or behind names, as far as a pattern can express it: the whole is
# in core/config_checks.py and core/key_settings.py.
PATTERNS = {
    "api_key": _SECRET,
    "endpoints[].url": _URL,
    "endpoints[].api_key": _SENT,
    "endpoints[].headers": _SENT,
    "keys[].name": _NAME,
    "keys[].key": _SECRET,
    "keys[].sha256": "^([0-9a-fA-F]{64})?$",
    "keys[].owner": rf"{_NAME}|^$",
    "keys[].models": r"^\S(.*\S)?$",
    "keys[].budget": _AMOUNTS,
    "keys[].cost": _AMOUNTS,
    "keys[].expires": r"^(\d{4}.*)?$",
    "owners[].name": _NAME,
    "owners[].budget": _AMOUNTS,
    "owners[].cost": _AMOUNTS,
    "cors_origins": r"^(\*|null|[A-Za-z*][A-Za-z0-9+.*-]*://[^/\s]+/?)$",
    "allowed_hosts": r"^[^\s:/?#@\[\]]+$",
    "public_url": rf"^$|{_URL}",
    "database.url": r"^(sqlite://(/(?!~)|$)|postgres(ql)?://)",
    "database.direct_url": "^(postgres(ql)?://.*)?$",
    "cache.path": "^(?!~)",
    "cluster.name": rf"^([.:-]|{_WORD}){{1,100}}$",
    "mcp.servers[].headers": _SENT,
    "tools.code_interpreter": "^(mcp:.+)?$",
    "tools.file_search": "^(mcp:.+)?$",
    "tools.image_generation.url": _URL,
    "tools.image_generation.api_key": _SENT,
    "web_search.provider": "^(searxng|brave|tavily|exa|mcp:.*)?$",
    "web_search.url": f"{_URL}|^$",
    "web_search.api_key": _SENT,
}
_HEADER = "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
# The same of the names behind which values stand.
NAME_PATTERNS = {"endpoints[].headers": _HEADER, "mcp.servers[].headers": _HEADER}
# Of which two keys a section has one.
EITHER = {"keys[]": ("key", "sha256"), "mcp.servers[]": ("url", "command")}
KIND = "endpoints[].kind"


class Key(NamedTuple):
    """A key of the settings: its default (`msgspec.NODEFAULT` where it must be given), and what it is for."""

    path: str
    default: Any
    help: str


def every_key() -> Iterator[Key]:
    """All keys, a section after the other."""
    for section, struct in SECTIONS.items():
        for field in msgspec.structs.fields(struct):
            path = f"{section}.{field.name}".lstrip(".")
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            yield Key(path, default, HELP[path])


def settings_schema(kinds: Collection[str]) -> Schema:
    """The schema of a settings' file. `kinds`: the kinds of server that there are."""
    _, parts = msgspec.json.schema_components([Config], ref_template="#/$defs/{name}")
    for section, struct in SECTIONS.items():
        part = parts[struct.__name__]
        del part["title"]
        part.pop("description", None)
        for name, value in part["properties"].items():
            path = f"{section}.{name}".lstrip(".")
            if path == KIND:
                value |= {"enum": [*kinds]}
            if path in NAME_PATTERNS:
                value["propertyNames"] = {"pattern": NAME_PATTERNS[path]}
            part["properties"][name] = {"description": HELP[path], **_as_written(value, PATTERNS.get(path, ""))}
        if section in EITHER:
            part["oneOf"] = [{"required": [key], "properties": {key: _GIVEN}} for key in EITHER[section]]
    whole = parts.pop(Config.__name__)
    return {"$schema": DIALECT, "title": TITLE, **whole, "$defs": dict(sorted(parts.items()))}


_GIVEN = {"minLength": 1, "minItems": 1}


def _as_written(value: Schema, pattern: str = "") -> Schema:
    """The schema of a value as a file may have it: a variable in place of a text, or text in place of other types."""
    if "anyOf" in value:
        return value | {"anyOf": [_as_written(one) for one in value["anyOf"]]}
    kind = value.get("type")
    if kind == "array":
        return value | {"items": _as_written(value["items"], pattern)}
    if kind == "object":
        return value | {"additionalProperties": _as_written(value["additionalProperties"], pattern)}
    text: Schema = {"type": "string"}
    if kind in READ_AS:
        choices: list[Schema] = [text | {"pattern": rf"^({_sign(value)}{READ_AS[kind]})$|{VARIABLE}"}]
        if kind == "boolean":
            choices.append({"type": "integer", "enum": [0, 1]})
    elif "enum" in value or pattern:
        choices = [text | {"pattern": VARIABLE}]
    else:
        return value
    more = {"default": value.pop("default")} if "default" in value else {}
    return {"anyOf": [value | ({"pattern": pattern} if pattern else {}), *choices], **more}


def _sign(value: Schema) -> str:
    """What the text of a number within these bounds may begin with."""
    if "exclusiveMinimum" in value or value.get("minimum", 0) > 0:
        return NOT_ZERO
    is_negative = value["type"] in ("integer", "number") and value.get("minimum", -1) < 0
    return MAYBE_MINUS if is_negative else ""
