"""What a request demands of the form of its answer, and whether the answer has it: servers take a tool choice or a
schema and ignore it.

    ignored_demands(params, response)    the parameters of which nothing came

Only what is plain to see is looked at: a call that is not there, a text that is no JSON, or lacks what its schema
requires."""

from __future__ import annotations

import orjson

from core.json import Json
from requests.params import CreateParams
from requests.responses import output_text

TOOL_CHOICE, FORMAT = "tool_choice", "text.format"


def demands(params: CreateParams) -> list[str]:
    """The parameters that an answer must heed."""
    return [
        *([TOOL_CHOICE] if _forces_call(params.tool_choice) else []),
        *([FORMAT] if _schema(params) is not None else []),
    ]


def ignored_demands(params: CreateParams, response: Json) -> list[str]:
    """Those of them that a completed response does not heed. A model that refuses has a right to."""
    demanded = demands(params)
    output = response["output"]
    if not demanded or response["status"] != "completed" or _refuses(output):
        return []
    has_call = any(str(item["type"]).endswith("_call") for item in output)
    ignored = []
    if TOOL_CHOICE in demanded and not has_call:
        ignored.append(TOOL_CHOICE)
    # A call comes first, the text in a later turn.
    if FORMAT in demanded and not has_call and not _fits(output_text(output), _schema(params) or {}):
        ignored.append(FORMAT)
    return ignored


def _forces_call(choice: str | Json | None) -> bool:
    if isinstance(choice, dict):
        return bool(choice.get("type") != "allowed_tools" or choice.get("mode") == "required")
    return choice == "required"


def _schema(params: CreateParams) -> Json | None:
    """The schema that a text is held to; an empty one where it is to be any object."""
    format = params.text.format if params.text is not None else None
    if format is None or format["type"] == "text":
        return None
    if format["type"] == "json_object":
        return {"type": "object"}
    schema = format.get("schema")
    return schema if format.get("strict") is True and isinstance(schema, dict) else None


def _refuses(output: list[Json]) -> bool:
    parts = (part for item in output if item["type"] == "message" for part in item.get("content") or ())
    return any(part.get("type") == "refusal" for part in parts)


def _fits(text: str, schema: Json) -> bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    if schema.get("type") != "object":
        return True
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    return isinstance(value, dict) and all(name in value for name in names if isinstance(name, str))
