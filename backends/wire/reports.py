"""A server's own words for an error, whatever holds them: an error object of OpenAI's or anybody else's, a text, a
page, nothing.

    read_report(status, body, …)   of an answer's body
    report_of(status, value, …)    of an error inside of an answer

Pure. Specifications: OpenAI's error object, FastAPI's `detail`, RFC 9457 (problem details), RFC 9110 10.2.3
(Retry-After).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any

import orjson

from backends.kinds.words import place_of, problems_in
from backends.wire.python_errors import complaints, meant, without_places
from core.json import Json

# As much of an error's words is shown to a client, and so much of it is read.
SHOWN_CHARS = 1000
READ_CHARS = 8000
# Words in words (a proxy's error holds its server's as JSON, which holds …) are looked for no deeper.
DEPTH = 6

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# What of an error's headers is its client's to know, and as what: `x-request-id` is this router's own.
PASSED_ON = {"retry-after-ms": "retry-after-ms", "x-request-id": "x-nomyo-backend-request-id"}

Mask = Callable[[str], str]

# An error that answers a request for a stream may be an event.
_EVENT = re.compile(r"(?:(?:event|id):[^\n]*\n)*data:([^\n]*)")


@dataclass(frozen=True, slots=True)
class Report:
    """An error, as its server words it. `status` is that of HTTP, or what stands for it inside of an answer; `object`
    is what held the words, empty where it was a text or a page; `words` are not cut yet."""

    status: int
    object: Json
    words: str
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)

    @property
    def message(self) -> str:
        """Its own words, as a client gets them."""
        return self.words if len(self.words) <= SHOWN_CHARS else f"{self.words[: SHOWN_CHARS - 1]}…"

    @property
    def type(self) -> str | None:
        """OpenAI's `type`, where it is a text."""
        return _text(self.object.get("type"))

    @property
    def code(self) -> str | None:
        """OpenAI's `code`, where it is a text: a number is its status again, also as a text (LiteLLM)."""
        code = _text(self.object.get("code"))
        return None if code is not None and code.isdecimal() else code

    @property
    def param(self) -> str | None:
        """The parameter that it names."""
        return _text(self.object.get("param")) or next(
            filter(None, map(place_of, meant(problems_in(self.object)))), None
        )


def read_report(
    status: int, body: bytes, headers: Mapping[str, str] = NO_HEADERS, mask: Mask = str, now: datetime | None = None
) -> Report:
    """The error in the body of an answer. `mask` hides what nobody else may see; `now` is what a date in Retry-After
    counts from."""
    text = body.decode("utf-8", "replace").strip()
    if found := _EVENT.match(text):
        text = found[1].strip()
    value = _json(text)
    if value is None:
        value = _text_of_page(text) if text.startswith("<") else text
    report = report_of(status, value, mask)
    passed = {ours: mask(given) for theirs, ours in PASSED_ON.items() if (given := headers.get(theirs))}
    wait_s = _milliseconds(headers.get("retry-after-ms"))
    if wait_s is None:
        wait_s = _seconds(headers.get("retry-after"), now)
    return Report(report.status, report.object, report.words, wait_s, passed)


def report_of(status: Any, value: Any, mask: Mask = str) -> Report:
    """The error in a value: an error object, what holds one, a text. Without a `status` of HTTP its code stands for
    one."""
    holder = _holder(value)
    words = _words(value, DEPTH) or _words(holder, DEPTH)
    code = _status(status, holder)
    if found := complaints(words[:READ_CHARS]):
        # Whatever status the server gave them (llama-cpp-python: 500).
        holder, words, code = {**holder, "detail": found}, _words(found, DEPTH), 422 if code >= 500 else code
    return Report(code, _masked(holder, mask, DEPTH), mask(without_places(words))[:READ_CHARS])


def masking(secrets: Collection[str]) -> Mask:
    """Replaces each of the secrets, wherever it stands in a text."""
    known = sorted(set(filter(None, secrets)), key=len, reverse=True)
    if not known:
        return str
    pattern = re.compile("|".join(map(re.escape, known)))
    return lambda text: pattern.sub("***", text)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Where the words are, the richest first: OpenAI's and nearly everybody's, FastAPI's, Ollama's,
# Cloudflare's, Baidu's, OAuth's, MiniMax's, RFC 9457's, AWS's, Apigee's.
_KEYS = (
    "message",
    "detail",
    "error",
    "errors",
    "msg",
    "error_message",
    "errorMessage",
    "error_msg",
    "error_description",
    "status_msg",
    "base_resp",
    "title",
    "description",
    "reason",
    "Message",
    "fault",
    "faultstring",
)


def _words(value: Any, depth: int) -> str:
    if isinstance(value, str):
        inner = _json(value) if depth else None
        return (_words(inner, depth - 1) if isinstance(inner, dict) else "") or value.strip()
    if not depth:
        return ""
    if isinstance(value, list):
        problems = meant(value) if value and all(isinstance(one, dict) and "loc" in one for one in value) else value
        found = [words for one in problems[:10] if (words := _words(one, depth - 1))]
        return "; ".join(dict.fromkeys(found))
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("msg"), str) and "loc" in value:
        return ": ".join(filter(None, [place_of(value), value["msg"]]))
    words = next((words for key in _KEYS if (words := _words(value.get(key), depth - 1))), "")
    # OpenRouter's "Provider returned error", and what the provider returned.
    metadata = value.get("metadata")
    raw = _words(metadata.get("raw"), depth - 1) if isinstance(metadata, dict) else ""
    return f"{words}: {raw}" if words and raw and raw not in words else words or raw


def _holder(value: Any) -> Json:
    """The innermost error object: what `error` holds, or MiniMax's `base_resp`, or JSON in a text."""
    for _ in range(DEPTH):
        if isinstance(value, list):
            value = next((one for one in value if isinstance(one, dict)), None)
        elif isinstance(value, str):
            value = _json(value)
        if not isinstance(value, dict):
            return {}
        inner = value.get("error") or value.get("base_resp")
        if not isinstance(inner, dict):
            inner = next((found for key in ("error", "message") if (found := _object_in(value.get(key)))), None)
        if not inner:
            return value
        value = inner
    return value if isinstance(value, dict) else {}


def _object_in(value: Any) -> Json | None:
    found = _json(value) if isinstance(value, str) else None
    return found if isinstance(found, dict) else None


def _json(text: str) -> Any:
    """What a text holds that is JSON. None where it is none, or only null."""
    if text[:1] not in ("{", "[", '"'):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _text_of_page(page: str) -> str:
    """What a reader of a page of HTML sees."""
    page = page[:READ_CHARS]
    for name in ("script", "style"):
        before, *rest = re.split(rf"<{name}\b", page, flags=re.IGNORECASE)
        page = before + "".join(part.partition(f"</{name}>")[2] for part in rest)
    return " ".join(re.sub(r"<[^>]*>?", " ", page).split())


def _masked(value: Any, mask: Mask, depth: int) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: _masked(inner, mask, depth - 1) for key, inner in value.items()} if depth else {}
    if isinstance(value, list):
        return [_masked(inner, mask, depth - 1) for inner in value] if depth else []
    return value


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# What the codes and types of an error inside of an answer would be as a status.
_STATUSES = {
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "invalid_prompt": 400,
    "invalid_request_error": 400,
    "insufficient_quota": 429,
    "model_not_found": 404,
    "overloaded_error": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
}


def _status(status: Any, error: Mapping[str, Any]) -> int:
    keys = ("status", "status_code", "http_code", "http_status", "code")
    for given in (status, *(error.get(key) for key in keys)):
        number = int(given) if isinstance(given, str) and re.fullmatch(r"[45]\d\d", given) else given
        if isinstance(number, int) and 400 <= number < 600:
            return number
    names = [name for key in ("code", "type") if isinstance(name := error.get(key), str)]
    return next((_STATUSES[name] for name in names if name in _STATUSES), 500)


def _milliseconds(given: str | None) -> float | None:
    wait = _number(given)
    return None if wait is None else wait / 1000


def _seconds(given: str | None, now: datetime | None) -> float | None:
    """Seconds from a Retry-After, which may be a date."""
    if given is None:
        return None
    if (wait := _number(given)) is not None:
        return wait
    try:
        date = parsedate_to_datetime(given)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _number(given: str | None) -> float | None:
    try:
        number = float(given or "")
    except ValueError:
        return None
    return max(0.0, number) if abs(number) < 1e9 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
