"""Tools of MCP servers that stand for OpenAI's own: which tool of a server it is, what it is given, and what its answer
is as that of OpenAI's.

    code_interpreter   code     ──▶ outputs: logs, images
    file_search        queries  ──▶ results: text, filename, file_id, score, attributes
    image_generation   prompt   ──▶ an image
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from core.json import Json, decode_json, encode_json


class Likeness(Struct, frozen=True):
    """How a tool is known that stands for one of OpenAI's: by one of these `names`, where its server has several; and
    the argument of it that matters."""

    names: tuple[str, ...]
    arguments: tuple[str, ...]


STAND_INS = {
    "code_interpreter": Likeness(
        ("code_interpreter", "run_python_code", "run_python", "execute_python", "run_code", "execute_code", "python"),
        ("code", "python_code", "source", "script", "python"),
    ),
    "file_search": Likeness(
        ("file_search", "search", "search_documents", "search_files", "semantic_search", "query", "retrieve"),
        ("query", "queries", "q", "question", "text", "input"),
    ),
    "image_generation": Likeness(
        ("image_generation", "generate_image", "create_image", "text_to_image", "image"),
        ("prompt", "description", "text"),
    ),
}
# What a search may call the most results that it shall give.
LIMITS = ("max_num_results", "max_results", "top_k", "limit", "n_results", "k")


def tool_of(kind: str, tools: Sequence[Json], named: str) -> Json | None:
    """The tool of a server that stands for one of OpenAI's: the `named` one, or its only one, or that of a usual
    name."""
    if named:
        return next((tool for tool in tools if tool["name"] == named), None)
    if len(tools) == 1:
        return tools[0]
    by_name = {tool["name"].lower().replace("-", "_"): tool for tool in tools}
    return next((by_name[name] for name in STAND_INS[kind].names if name in by_name), None)


def argument_of(kind: str, tool: Json) -> str | None:
    """The argument of a tool that takes the code, the query or the prompt: that of a usual name, or the only one that
    it needs."""
    properties = _properties(tool)
    for name in STAND_INS[kind].arguments:
        if name in properties:
            return name
    required = tool["input_schema"].get("required") or []
    only = required if len(required) == 1 else [*properties]
    return only[0] if len(only) == 1 else None


def takes_list(tool: Json, argument: str) -> bool:
    """Whether an argument of a tool is a list."""
    return bool(_properties(tool).get(argument, {}).get("type") == "array")


def taken_of(tool: Json, given: Json) -> Json:
    """Those of the values that a tool takes, by their names."""
    properties = _properties(tool)
    return {name: value for name, value in given.items() if name in properties and value is not None}


def limit_of(tool: Json) -> str | None:
    """The argument of a search for the most results."""
    properties = _properties(tool)
    return next((name for name in LIMITS if name in properties), None)


def _properties(tool: Json) -> Json:
    properties = tool["input_schema"].get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: schema if isinstance(schema, dict) else {} for name, schema in properties.items()}


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def outputs_of(blocks: Iterable[Json], structured: Any) -> list[Json]:
    """What a server has answered, as the outputs of code: logs and images."""
    outputs = [_output_of(block) for block in blocks]
    if not outputs and structured is not None:
        return [logs(encode_json(structured).decode())]
    return [output for output in outputs if output.get("logs") != ""]


def logs(text: str) -> Json:
    """An output of code that is text."""
    return {"type": "logs", "logs": text}


def _output_of(block: Json) -> Json:
    if (image := _image_in(block)) is not None:
        kind, data = image
        return {"type": "image", "url": f"data:{kind};base64,{data}"}
    if isinstance(text := block.get("text"), str):
        return logs(text)
    resource = block.get("resource")
    if isinstance(resource, dict) and isinstance(text := resource.get("text"), str):
        return logs(text)
    return logs(encode_json(block).decode())


def image_of(blocks: Iterable[Json]) -> tuple[str, str] | None:
    """The first image that a server has answered: its format (`png`), and its data in base64."""
    for block in blocks:
        if (image := _image_in(block)) is not None:
            kind, data = image
            return kind.removeprefix("image/").partition("+")[0], data
    return None


def _image_in(block: Json) -> tuple[str, str] | None:
    holder = block.get("resource") if block.get("type") == "resource" else block
    if not isinstance(holder, dict):
        return None
    kind, data = holder.get("mimeType"), holder.get("data", holder.get("blob"))
    if isinstance(kind, str) and isinstance(data, str) and kind.startswith("image/") and data:
        return kind, data
    return None


def results_of(blocks: Sequence[Json], structured: Any) -> list[Json]:
    """What a server has answered, as the results of a search of files, the best first: those of a list in its
    structured answer or its JSON, or else each text by itself."""
    found = _rows(structured)
    texts = [text for block in blocks if isinstance(text := _text_in(block), str) and text.strip()]
    if found is None and len(texts) == 1:
        found = _rows(_decoded(texts[0]))
    if found is None:
        found = [_decoded(text) or text for text in texts]
    return [result for row in found if (result := _result(row)) is not None]


def _text_in(block: Json) -> Any:
    resource = block.get("resource")
    return resource.get("text") if isinstance(resource, dict) else block.get("text")


ROWS = ("results", "documents", "chunks", "hits", "matches", "data", "items", "result")


def _rows(value: Any) -> list[Any] | None:
    if isinstance(value, dict):
        return next((rows for name in ROWS if isinstance(rows := value.get(name), list)), None)
    return value if isinstance(value, list) else None


def _decoded(text: str) -> Any:
    try:
        value = decode_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


TEXTS = ("text", "content", "page_content", "snippet", "chunk", "document", "body", "summary")
FILENAMES = ("filename", "file_name", "title", "name", "path", "source", "url", "uri")
IDS = ("file_id", "id", "document_id", "url", "uri", "path")
# Wherever a model names a file, both stand in the answer.
MOST_NAME = 1000
SCORES = ("score", "similarity", "relevance", "relevance_score")


def _result(row: Any) -> Json | None:
    """A row of an answer, with all that clients read of one: they take no null. A score that is not known is 0."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        return None
    metadata = row.get("attributes", row.get("metadata"))
    metadata = metadata if isinstance(metadata, dict) else {}
    text = _first(row, TEXTS, str) or ""
    filename = _first(row, FILENAMES, str) or _first(metadata, FILENAMES, str)
    if not text and not filename:
        return None
    file_id = _first(row, IDS, str) or _first(metadata, IDS, str)
    if file_id is None:
        file_id = f"file-{hashlib.sha256((filename or text).encode()).hexdigest()[:24]}"
    return {
        "file_id": file_id[:MOST_NAME],
        "filename": (filename or file_id)[:MOST_NAME],
        "score": float(_first(row, SCORES, int | float) or 0.0),
        "text": text,
        "attributes": {name: value for name, value in metadata.items() if isinstance(value, str | int | float | bool)},
    }


def _first(row: Json, names: Iterable[str], kind: Any) -> Any:
    return next((value for name in names if isinstance(value := row.get(name), kind) and value), None)
