"""What servers in Python put where their words for an error should be: an exception's text, with all that it complains
of, each member of a union, and where in their own files it was raised.

    complaints(text)       what FastAPI and pydantic complain of in a text, as FastAPI's `detail` has it
    without_places(text)   a text without the server's files and lines

Pure.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.kinds.words import is_tag
from core.json import Json

# str() of FastAPI's RequestValidationError: a dict a line, as Python shows one.
_SHOWN = re.compile(
    r"^ *\{'type': '(\w{1,64})', 'loc': (\([^\n]{0,600}?\)), 'msg': ('|\")(.{0,600}?)\3, 'input': ", re.MULTILINE
)
# str() of pydantic's ValidationError: the place on a line, what is wrong on the next.
_TITLE = re.compile(r"^\d{1,6} validation errors? for ([^\n]{1,200})$", re.MULTILINE)
_WRITTEN = re.compile(r"^([^\s{][^\n]{0,300})\n  ([^\n]{1,600}?) \[type=(\w{1,64}), input_value=", re.MULTILINE)
# Whose fault is it? FastAPI names where the value was, pydantic the name of its model.
_OF_REQUEST = frozenset({"body", "query", "path", "header", "cookie"})
_REQUEST_NAME = re.compile(r"request|params|input|message", re.IGNORECASE)
_ANSWER_NAME = re.compile(r"respon|answer|result|output|setting|config", re.IGNORECASE)

# By these a value shows which member of a union it is.
_SHOWS_WHICH = frozenset({"role", "type"})

_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\s*")
_FRAME = re.compile(r"^ *File \"[^\"\n]*\", line \d+[^\n]*(?:\n {2,}[^\n]*)?\n?", re.MULTILINE)


def complaints(text: str) -> list[Json]:
    """What FastAPI or pydantic complain of in the text of an exception, each `{type, loc, msg}`, where the fault is the
    request's; else nothing."""
    found: list[Json] = []
    for kind, place, _, words in _SHOWN.findall(text):
        found.append({"type": kind, "loc": _tuple(place), "msg": words})
    if found:
        return found if all(its["loc"][:1] and its["loc"][0] in _OF_REQUEST for its in found) else []
    title = _TITLE.search(text)
    if title is None or _ANSWER_NAME.search(title[1]) or not _REQUEST_NAME.search(title[1]):
        return []
    return [{"type": kind, "loc": place.split("."), "msg": words} for place, words, kind in _WRITTEN.findall(text)]


def _tuple(shown: str) -> tuple[Any, ...]:
    try:
        place = ast.literal_eval(shown)
    except (ValueError, SyntaxError):
        return ()
    return place if isinstance(place, tuple) else ()


def meant(problems: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The problems of those members of a union that the value is meant for: where one of them knows its `role` or
    `type`, those that do not are left out, and where none does, all that is wrong is that."""
    strangers: dict[tuple[Any, ...], set[Any]] = {}
    members: dict[tuple[Any, ...], set[Any]] = {}
    for problem in problems:
        if (union := _union(problem)) is not None:
            members.setdefault(union[0], set()).add(union[1])
            if _is_about_which(problem):
                strangers.setdefault(union[0], set()).add(union[1])
    kept = []
    for problem in problems:
        union = _union(problem)
        unknown = strangers.get(union[0], set()) if union else set()
        if union is None or not unknown:
            kept.append(problem)
        elif unknown == members[union[0]]:
            if _is_about_which(problem):
                kept.append(problem)
        elif union[1] not in unknown:
            kept.append(problem)
    return kept


def _union(problem: Mapping[str, Any]) -> tuple[tuple[Any, ...], str] | None:
    """The place of the value of a union that a problem is about, and which of its members complains."""
    place = problem.get("loc")
    if not isinstance(place, list | tuple):
        return None
    at = next((at for at, part in enumerate(place) if is_tag(part)), None)
    return None if at is None else (tuple(map(str, place[:at])), str(place[at]))


def _is_about_which(problem: Mapping[str, Any]) -> bool:
    return problem.get("type") == "literal_error" and problem["loc"][-1] in _SHOWS_WHICH


def without_places(text: str) -> str:
    """A text without the files and lines of the program that wrote it: of a traceback its last line alone."""
    if found := _TRACEBACK.search(text):
        lines = [line for line in text[found.end() :].splitlines() if line.strip()]
        text = text[: found.start()] + (lines[-1].strip() if lines else "")
    return _FRAME.sub("", text).strip() if 'File "' in text else text
