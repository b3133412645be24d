"""Ollama's API, for backends that are none: its requests as Responses requests, and the events of the answer as its
lines.

    chat_ollama_to_responses, generate_ollama_to_responses    request → Responses request
    OllamaAnswer                                              events → NDJSON lines, or the one JSON answer
    embed_ollama_to_openai, embeddings_openai_to_ollama       request → POST /v1/embeddings, and back

Specification: ollama/ollama docs/api.md and api/types.go. Unknown keys are no error there, and none here.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from core.errors import BackendError, InvalidRequest, Unsupported
from core.json import Json, encode_json
from requests.bounded_json import TooDeep, mend
from requests.chat import DecodeError
from requests.events import ResponseBuilder, replay, unfinished
from requests.ollama_tools import OllamaMessage, ToolRounds
from requests.open_items import Event
from requests.tools import Item, arguments_of

NDJSON = "application/x-ndjson"
# Codex wants 0.13.4 or newer.
VERSION = "0.34.0"
THINK_LEVELS = ("low", "medium", "high", "max")
# Options that chat servers know by the same name. The others are about how Ollama loads a model, or unknown.
OPTIONS = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
# No server is as quick as this: what takes less came from a buffer.
QUICKEST_TOKEN_NS = 100_000
# A month: what is more is no duration.
MOST_MS = 30 * 86_400_000


class Asked(msgspec.Struct, kw_only=True):
    """What chat and generate have in common."""

    model: str = ""
    stream: bool | None = None
    format: str | Json | None = None
    options: Json | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in lines: unless it is asked not to."""
        return self.stream is not False


class OllamaTool(msgspec.Struct):
    """A tool as Ollama has them: only functions, by name, description and parameters."""

    type: str | None = None
    function: Json | None = None


class ChatAsked(Asked, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: list[OllamaTool] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it only wants the model loaded."""
        return not self.messages


class GenerateAsked(Asked, kw_only=True):
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None
    suffix: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[int] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it only loads the model, or unloads it."""
        return not self.prompt


class EmbedAsked(msgspec.Struct):
    """/api/embed has `input`, the older /api/embeddings `prompt`."""

    input: str | list[str] | None = None
    prompt: str | None = None
    dimensions: int | None = None

    @property
    def texts(self) -> list[str]:
        """The texts to embed, under either name."""
        given = self.prompt if self.input is None else self.input
        return list(given) if isinstance(given, list) else [given] if given else []


T = TypeVar("T")


def is_no_time(keep_alive: object) -> bool:
    """Whether a `keep_alive` has the model leave the memory at once: zero, in any unit."""
    return str(keep_alive).rstrip("hmnsuµ") in ("0", "0.0")


def read_ollama(body: bytes, kind: type[T]) -> T:
    """A request of Ollama's. Raises `InvalidRequest`. What is to be translated is bounded in depth, what only goes on
    need not be: that is for `check_bounds` to find."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise TooDeep from None
    except DecodeError as error:
        if (mended := mend(body)) is not None:
            return read_ollama(mended, kind)
        raise InvalidRequest(f"invalid request: {error}") from None


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def chat_ollama_to_responses(asked: ChatAsked) -> Json:
    """The Responses request for one of /api/chat. Raises `InvalidRequest`."""
    tools = [{**(tool.function or {}), "type": tool.type or "function"} for tool in asked.tools or ()]
    return {**_common(asked), "input": _items(asked.messages or []), **({"tools": tools} if tools else {})}


def generate_ollama_to_responses(asked: GenerateAsked) -> Json:
    """The Responses request for one of /api/generate. Raises `Unsupported` for what needs the model's own template."""
    for key in ("suffix", "template", "raw", "context"):
        if getattr(asked, key):
            raise Unsupported(f"'{key}' cannot be given to the server of this model, which takes chats only", param=key)
    messages = [OllamaMessage("user", asked.prompt, images=asked.images)]
    if asked.system:
        messages.insert(0, OllamaMessage("system", asked.system))
    return {**_common(asked), "input": _items(messages)}


def omitted_options(options: Mapping[str, object] | None) -> list[str]:
    """The options that a chat server does not get."""
    return sorted((options or {}).keys() - {*OPTIONS, "num_predict"})


def _common(asked: Asked) -> Json:
    given = asked.options or {}
    request: Json = {key: given[key] for key in OPTIONS if given.get(key) not in (None, [])}
    request |= {
        "model": asked.model,
        "stream": asked.streams,
        "store": False,
        # Ollama leaves out the oldest messages of a chat that is too long.
        "truncation": "disabled" if asked.truncate is False else "auto",
    }
    if (limit := given.get("num_predict")) is not None:
        if isinstance(limit, bool | str | list | dict) or limit != int(limit):
            raise InvalidRequest('option "num_predict" must be of type integer', param="options.num_predict")
        if limit > 0:  # -1 and -2: no limit
            request["max_output_tokens"] = int(limit)
    if format := _format(asked.format):
        request["text"] = {"format": format}
    if effort := _effort(asked.think):
        request["reasoning"] = {"effort": effort}
    if asked.logprobs:
        request["include"] = ["message.output_text.logprobs"]
        request["top_logprobs"] = asked.top_logprobs
    return request


def _format(format: str | Json | None) -> Json | None:
    if not format:
        return None
    if isinstance(format, dict):
        return {"type": "json_schema", "name": "answer", "schema": format}
    if format == "json":
        return {"type": "json_object"}
    raise InvalidRequest(f'invalid format: "{format}"; expected "json" or a valid JSON Schema object', param="format")


def _effort(think: bool | str | None) -> str | None:
    if isinstance(think, str) and think not in THINK_LEVELS:
        raise InvalidRequest(f'invalid think value: "{think}" (must be true, false, {", ".join(THINK_LEVELS)})')
    return {True: "medium", False: "none"}.get(think) if isinstance(think, bool) else think


def _items(messages: Sequence[OllamaMessage]) -> list[Item]:
    """The input items of a chat, as `ToolRounds` pairs its calls and their outputs."""
    rounds = ToolRounds({call.id for message in messages for call in message.tool_calls or () if call.id})
    for index, message in enumerate(messages):
        content = _content(message, f"messages[{index}]")
        if message.role == "tool":
            rounds.answer(message, content)
            continue
        rounds.begin(message.role)
        if message.thinking and message.role == "assistant":
            thought = {"type": "reasoning_text", "text": message.thinking}
            rounds.add({"type": "reasoning", "summary": [], "content": [thought]})
        if content or not message.tool_calls:
            rounds.add({"type": "message", "role": message.role, "content": content})
        for call in message.tool_calls or ():
            rounds.call(call.function, call.id)
    return rounds.items()


def _content(message: OllamaMessage, where: str) -> str | list[Json]:
    text = message.content or ""
    if not message.images:
        return text
    parts = [{"type": "input_text", "text": text}] if text else []
    return parts + [_image(image, f"{where}.images[{index}]") for index, image in enumerate(message.images)]


def _image(image: str, where: str) -> Json:
    if not image.startswith("data:"):
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"{where}: illegal base64 data") from None
        kind = next((kind for begins, kind in IMAGES.items() if image.startswith(begins)), "png")
        image = f"data:image/{kind};base64,{image}"
    return {"type": "input_image", "image_url": image}


# How files begin, in base64.
IMAGES = {"iVBORw0KGgo": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class OllamaAnswer:
    """A backend's answer, as Ollama encodes it: in lines where it `streams`, else as one JSON object. `is_chat`: of
    /api/chat, else of /api/generate."""

    def __init__(self, model: str, *, streams: bool, is_chat: bool) -> None:
        self.content_type = NDJSON if streams else "application/json; charset=utf-8"
        self._model = model
        self._is_chat = is_chat
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Json] = []
        self._logprobs: list[Json] = []
        self._call_count = 0
        self._began_ns = time.monotonic_ns()
        self._first_ns: int | None = None

    def encode(self, events: Sequence[Event]) -> bytes:
        """A line of what some events bring, if they bring anything. Raises `BackendError` for a call that Ollama's
        format cannot hold."""
        self._feed(events)
        if not (self._text or self._thinking or self._calls):
            return b""
        return _line({"model": self._model, "created_at": _now(), **self._shown(), "done": False})

    def end(self, builder: ResponseBuilder) -> bytes:
        """The last line; the whole answer, where nobody was given events of it."""
        response = builder.response
        if not builder.emission.makes_events:
            self._feed(replay(ResponseBuilder(unfinished(response)), response))
        return _line(self._last(response, builder.timings))

    def error(self, error: Json) -> bytes:
        """The line of an error."""
        return _line({"error": error["message"]})

    def _feed(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._first_ns is None and event["type"] == "response.output_item.added":
                self._first_ns = time.monotonic_ns()
            match event["type"]:
                case "response.output_text.delta":
                    self._text.append(event["delta"])
                    self._logprobs += event.get("logprobs") or ()
                case "response.refusal.delta":
                    self._text.append(event["delta"])
                case "response.reasoning_text.delta":
                    self._thinking.append(event["delta"])
                case "response.output_item.done":
                    self._call(event["item"])

    def _last(self, response: Json, timings: object) -> Json:
        # `timings` are llama.cpp's own.
        usage = response.get("usage") or {}
        reason = (response.get("incomplete_details") or {}).get("reason")
        count = usage.get("output_tokens") or 0
        return {
            "model": self._model,
            "created_at": _now(),
            **self._shown(),
            "done": True,
            "done_reason": {None: "stop", "max_output_tokens": "length"}.get(reason, reason),
            "prompt_eval_count": usage.get("input_tokens") or 0,
            "eval_count": count,
            **self._durations(count, timings),
        }

    def _durations(self, count: int, timings: object) -> Json:
        """In nanoseconds; those that nobody knows are left out, as a real Ollama leaves out its zeros."""
        total_ns = max(time.monotonic_ns() - self._began_ns, 1)
        known = timings if isinstance(timings, dict) else {}
        prompt_ns, eval_ns = (_ns_of_ms(known.get(key)) for key in ("prompt_ms", "predicted_ms"))
        if eval_ns is None:
            prompt_ns = (self._first_ns or self._began_ns) - self._began_ns
            eval_ns = total_ns - prompt_ns
            if eval_ns < count * QUICKEST_TOKEN_NS:
                # It came all at once: when it was begun is not to be seen.
                prompt_ns, eval_ns = None, total_ns
        durations = {"prompt_eval_duration": prompt_ns, "eval_duration": eval_ns}
        return {"total_duration": total_ns, **{name: took for name, took in durations.items() if took}}

    def loaded(self, *, is_unload: bool) -> bytes:
        """The answer to a request that asks nothing."""
        reason = "unload" if is_unload else "load"
        return _line({"model": self._model, "created_at": _now(), **self._shown(), "done": True, "done_reason": reason})

    def _shown(self) -> Json:
        message: Json = {"role": "assistant"} if self._is_chat else {}
        message["content" if self._is_chat else "response"] = "".join(self._text)
        if self._thinking:
            message["thinking"] = "".join(self._thinking)
        if self._calls:
            message["tool_calls"] = self._calls
        shown: Json = {"message": message} if self._is_chat else message
        if self._logprobs:
            shown["logprobs"] = self._logprobs
        self._text, self._thinking, self._calls, self._logprobs = [], [], [], []
        return shown

    def _call(self, item: Item) -> None:
        if item["type"] != "function_call" or item["status"] == "incomplete":
            return  # Cut off: no client could run it.
        arguments = arguments_of(item["arguments"])
        if arguments is None:
            raise BackendError(
                f"The model called '{item['name']}' with arguments that are no JSON object.", code="backend_bad_answer"
            )
        function = {"index": self._call_count, "name": item["name"], "arguments": arguments}
        self._call_count += 1
        self._calls.append({"id": item["call_id"], "function": function})


def _line(line: Json) -> bytes:
    return encode_json(line) + b"\n"


def _ns_of_ms(value: Any) -> int | None:
    return int(value * 1e6) if type(value) in (int, float) and 0 < value < MOST_MS else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int | None = 0


class Embeddings(msgspec.Struct):
    """What POST /v1/embeddings answers."""

    data: list[Vector]
    usage: EmbeddingUsage | None = None

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all texts; 0 where the server does not count them."""
        return (self.usage and self.usage.prompt_tokens) or 0


def embed_ollama_to_openai(asked: EmbedAsked, model: str) -> Json:
    """The parameters of POST /v1/embeddings for a request that has texts."""
    params: Json = {"model": model, "input": asked.texts}
    return {**params, "dimensions": asked.dimensions} if asked.dimensions else params


def embeddings_openai_to_ollama(answer: object, count: int) -> tuple[list[list[float]], int]:
    """The vectors of `count` texts, in their order, and the tokens that they had. Raises `BackendError`."""
    try:
        given = msgspec.convert(answer, Embeddings)
    except msgspec.ValidationError:
        given = Embeddings([])
    if len(given.data) != count:
        raise BackendError("The backend's answer cannot be understood.", code="backend_bad_answer")
    rows = sorted(given.data, key=lambda row: row.index)
    return [row.embedding for row in rows], given.prompt_tokens
