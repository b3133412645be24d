"""JSON schemas of the bodies that requests have, for the page of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from core.json import Json

NOTHING_MORE: Mapping[str, Json] = {}


def schema_of(
    kind: type[msgspec.Struct], *, required: Iterable[str] = (), more: Mapping[str, Json] = NOTHING_MORE
) -> Json:
    """The schema of a struct, without references. `required` are keys that it needs though they have a default, `more`
    the schemas of keys that are read elsewhere."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="{name}")

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(part) for part in value]
        if not isinstance(value, dict):
            return value
        return inlined(parts[value["$ref"]]) if "$ref" in value else {key: inlined(part) for key, part in value.items()}

    body: Json = inlined(schema)
    body["properties"] = {**body["properties"], **more}
    if needed := sorted({*body.get("required", ()), *required}):
        body["required"] = needed
    return body


def object_of(required: Iterable[str] = (), **properties: Json) -> Json:
    """The schema of an object with these keys, and any others."""
    return {"type": "object", "properties": properties, "required": [*required]}


ANYTHING: Json = {}
TEXT: Json = {"type": "string"}
TEXTS: Json = {"anyOf": [TEXT, {"type": "array", "items": TEXT}]}
FLAG: Json = {"type": ["boolean", "null"]}
OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
