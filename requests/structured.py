"""JSON formats for backends that cannot hold their model to one: described in the prompt, checked afterwards.

format_prompt   the messages, with the format described to the model
checked_json    the JSON in an answer, and what is wrong with it
repair_prompt   the messages that ask it again
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

import orjson

from core.errors import InvalidRequest
from core.json import Json, encode_json
from requests.messages import Message

Format = Json

FENCE = re.compile(r"```\w*[ \t]*\n(?P<inside>.*?)\s*```[ \t]*(?=\n|\Z)", re.DOTALL)
BRACKET = re.compile(r"[{\[]")
# Words may hold brackets too, but what has more before its JSON is no answer.
MAX_BRACKETS = 20
_decoder = json.JSONDecoder()


def format_prompt(messages: list[Message], format: Format) -> list[Message]:
    """The messages, with the format at the end of their leading system text."""
    if format["type"] == "json_schema":
        schema = encode_json(format["schema"]).decode()
        described = f" {format['description']}" if format.get("description") else ""
        prompt = f"Answer with JSON that this JSON Schema allows, and with nothing else.{described}\n{schema}"
    else:
        prompt = "Answer with one JSON object, and with nothing else."
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first["content"], str):
        return [{**first, "content": f"{first['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def repair_prompt(answer: str, problem: str) -> list[Message]:
    """The messages that follow an answer that does not fit: the answer itself, and a request to mend the problem."""
    return [
        {"role": "assistant", "content": answer},
        {
            "role": "user",
            "content": f"This is not what was asked for: {problem} Answer again, with the right JSON alone.",
        },
    ]


class Checker:
    """Checks answers against a format. Raises `InvalidRequest` for an invalid JSON Schema."""

    def __init__(self, format: Format) -> None:
        self._validator: Any = None
        if format["type"] != "json_schema":
            return
        import jsonschema_rs  # 15 MB, for the few who need it

        try:
            self._validator = jsonschema_rs.validator_for(format["schema"], retriever=_retrieve_nothing)
        except ValueError as error:
            problem = getattr(error, "message", str(error))[:500]
            raise InvalidRequest(f"The schema is no JSON Schema: {problem}.", param="text.format.schema") from None

    def check(self, answer: str) -> tuple[str, str | None]:
        """The JSON in an answer, and in a sentence what is wrong with it, or None if it fits."""
        text = _json_in(answer)
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return text, f"it is not JSON ({error})."
        if self._validator is None:
            return text, None if isinstance(value, dict) else "it is JSON, but no object."
        misfit = next(self._validator.iter_errors(value), None)
        if misfit is None:
            return text, None
        where = "".join(f"[{key!r}]" for key in misfit.instance_path)
        return text, f"{misfit.message[:500]}{f' at {where}' if where else ''}."


def _retrieve_nothing(uri: str) -> Any:
    """A schema is a client's, and must not make us fetch what it points to."""
    raise ValueError("schemas elsewhere are not fetched")


def _json_in(text: str) -> str:
    """The JSON in an answer's text: all of it, what is in a fence, or the longest value in brackets."""
    text = text.strip()
    if _is_json(text):
        return text
    if (fenced := FENCE.search(text)) and _is_json(inside := fenced["inside"].strip()):
        return inside
    found = ""
    for bracket in islice(BRACKET.finditer(text), MAX_BRACKETS):
        try:
            _, end = _decoder.raw_decode(text, bracket.start())
        except (ValueError, RecursionError):
            continue
        found = max(found, text[bracket.start() : end], key=len)
    return found or text


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
