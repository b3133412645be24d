"""What is logged, and how: as text or as JSON, at one level, without prompts and keys.

    a logger of ours, uvicorn's, a library's ──▶ the handler of `logging_config` ──▶ stderr
    a turn ends, a request without one ──▶ RequestLog ──a batch of lines──────────────┘

A line of text has the time, the level, the logger and the message; one of JSON the same as keys. That of a request has
what is known of it as `key=value`, or as keys. No message of an exception is shown that may repeat what a client sent.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
import traceback
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType

import orjson

from core.errors import APIError, StartError
from core.json import Json
from core.request_context import RequestContext, current_request
from core.turn_record import TurnRecord, door_of

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
REQUESTS = "nomyo.requests"
# Exceptions whose texts are the system's, Python's or for whoever starts the router, and repeat nothing of a request.
SPEAKING = (OSError, ImportError, NameError, AttributeError, RecursionError, MemoryError, StartError)
# Of such a text.
MOST_OF_TEXT = 500

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def logging_config(log_format: str, level: str) -> Json:
    """The configuration of `logging` for the service and all that it uses. `level` is that of our own lines; libraries
    are at `warning`, whatever it is: some log what they send."""
    ours = level.upper()
    uvicorns = max("INFO", ours, key=logging.getLevelName)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"()": f"core.logs.{'JsonFormatter' if log_format == 'json' else 'TextFormatter'}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "nomyo": {"level": ours},
            # It has handlers of its own where it has configured itself; without a level it would look for a lower one.
            "uvicorn": {"level": uvicorns, "propagate": True},
            "uvicorn.error": {"level": uvicorns},
        },
    }


def log_to_stderr(log_format: str, level: str) -> None:
    """Configures `logging`, unless whoever runs us has done so. Whether uvicorn logs requests too stays as it is."""
    if logging.getLogger().handlers:
        return
    access = logging.getLogger("uvicorn.access")
    is_wanted = access.hasHandlers()
    logging.config.dictConfig(logging_config(log_format, level))
    access.propagate = is_wanted


class TextFormatter(logging.Formatter):
    """`2026-11-26 23:15:02,120 WARNING nomyo.backends: …`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        record.exc_text = None  # As another formatter may have put it.
        line = super().format(record)
        record.exc_text = None
        return _without_values(line) if record.name == "asyncio" else line

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        """The line without what follows it. What servers call themselves and their models ends none of ours, and moves
        no terminal."""
        line = super().formatMessage(record)
        if line.isprintable() or not record.name.startswith("nomyo"):
            return line
        return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)

    def formatException(self, ei: ExcInfo) -> str:  # logging's name
        """The traceback, with the texts of those exceptions alone that repeat nothing of a request."""
        return described_exception(ei[1])


class JsonFormatter(TextFormatter):
    """One object a line: `time`, `level`, `logger`, `message`, `request_id` within a request, `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": time_of(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _without_values(record.getMessage()) if record.name == "asyncio" else record.getMessage(),
        }
        if (request := current_request()) is not None:
            line["request_id"] = request.id.decode()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _without_values(text: str) -> str:
    """A text of asyncio's, which shows exceptions and tasks as Python does: without what they hold."""
    return re.sub(r"(exception=\w+)\(.*\)", r"\1(…)", text, flags=re.DOTALL)


def described_exception(error: BaseException | None) -> str:
    """A traceback, and those that led to it."""
    shown: list[str] = []
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        stack = "".join(traceback.format_tb(one.__traceback__))
        shown.append(f"Traceback (most recent call last):\n{stack}{type(one).__qualname__}{_text_of(one)}")
        waiting.append(one.__cause__ or (None if one.__suppress_context__ else one.__context__))
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return "\n\nwhich came of this one:\n\n".join(shown)


def _text_of(error: BaseException) -> str:
    if isinstance(error, APIError):
        return f": {error.code}"  # Its message is for its client, and may repeat a prompt.
    return f": {str(error)[:MOST_OF_TEXT]}" if isinstance(error, SPEAKING) else ""


def time_of(seconds: float) -> str:
    """Unix seconds as `2026-11-26T23:15:02.120Z`."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


# ── a line a request ─────────────────────────────────────────────────────────────────────────────────────────────────


class RequestLog:
    """Logs a line for each turn and for each request that was none. The lines of turns that ended together are one
    write; where somebody else has set up logging, each is a record of the logger `nomyo.requests`."""

    def __init__(self, log_format: str) -> None:
        self._line = json_line if log_format == "json" else text_line
        self._log = logging.getLogger(REQUESTS)

    def turns(self, records: Sequence[TurnRecord]) -> None:
        """Logs turns that have ended."""
        self._write([self._line(described_turn(record)) for record in records])

    def request(self, request: RequestContext, method: str, status: int, owner: str) -> None:
        """Logs a request that was no turn."""
        self._write([self._line(described_request(request, method, status, owner))])

    def _write(self, lines: list[str]) -> None:
        handler = next((one for one in logging.getLogger().handlers if isinstance(one.formatter, TextFormatter)), None)
        if isinstance(handler, logging.StreamHandler):
            handler.acquire()
            try:
                handler.stream.write("".join(f"{line}\n" for line in lines))
                handler.flush()
            finally:
                handler.release()
            return
        for line in lines:
            self._log.info("%s", line)


def described_turn(record: TurnRecord) -> Json:
    """A turn, as the log has it. Times are in seconds."""
    line: Json = {
        "time": record.ended_at,
        "level": "info",
        "logger": REQUESTS,
        "request_id": record.request.id.decode(),
        "response_id": record.id,
        "door": record.door,
        "owner": record.principal.owner,
        "key": record.principal.key,
        "model": record.model,
        "endpoint": record.endpoint,
        "status": record.status,
        "error": record.error,
        "input_tokens": record.tokens.input,
        "cached_tokens": record.tokens.cached,
        "output_tokens": record.tokens.output,
        "reasoning_tokens": record.tokens.reasoning,
        "took_s": round(record.took_s, 3),
        "waited_s": round(record.waited_s, 3),
        "tries": len(record.tries),
    }
    if (first_s := record.first_output_s) is not None:
        line["first_output_s"] = round(first_s, 3)
    if record.tools:
        line["tools"] = len(record.tools)
    if record.from_cache:
        line["from_cache"] = True
    return {key: value for key, value in line.items() if value not in ("", None)}


def described_request(request: RequestContext, method: str, status: int, owner: str) -> Json:
    """A request that was no turn, as the log has it: not its path, of which clients may write anything."""
    line = {
        "time": time.time(),
        "level": "info",
        "logger": REQUESTS,
        "request_id": request.id.decode(),
        "method": method if method in METHODS else "other",
        "door": request.door or door_of(request.path),
        "owner": owner,
        "status": status,
        "took_s": round(time.monotonic() - request.began_s, 3),
    }
    return {key: value for key, value in line.items() if value != ""}


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def json_line(line: Json) -> str:
    """A line as JSON."""
    return orjson.dumps({**line, "time": time_of(line["time"])}).decode()


def text_line(line: Json) -> str:
    """A line as text: what every line begins with, and the rest as `key=value`."""
    at: float = line["time"]
    fields = [f"{key}={value if type(value) in NUMBERS else _value(value)}" for key, value in line.items()]
    return " ".join((f"{_second(int(at))},{int(at % 1 * 1000):03d} INFO {REQUESTS}:", *fields[3:]))


NUMBERS = (int, float)


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    """Unix seconds as `logging` has them."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


_PLAIN = re.compile(r"[^\s\"=\\]+")


@lru_cache(maxsize=1024, typed=True)  # Else 1.0 would be true.
def _value(value: str | float | bool) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() and _PLAIN.fullmatch(text) else json.dumps(text)
