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
import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from core.errors import BackendError, InvalidRequest, Unsupported
from core.json import encode_json
from requests.bounded_json import TooDeep, mend
from requests.chat import DecodeError
from requests.open_items import Event
from requests.tools import Item, arguments_of

Json = dict[str, Any]

# Codex wants 0.13.4 or newer.
VERSION = "0.34.0"
NO_OUTPUT = "(no output)"
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
NO_NAMES: Mapping[str, str] = MappingProxyType({})


class Function(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | None = None


class ToolCall(msgspec.Struct):
    function: Function
    id: str | None = None


class OllamaMessage(msgspec.Struct):
    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Asked(msgspec.Struct, kw_only=True):
    """What chat and generate have in common."""

    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    truncate: bool | None = None
    keep_alive: Any = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in lines: unless it is asked not to."""
        return self.stream is not False

    @property
    def is_unload(self) -> bool:
        """Whether the model is to leave the memory."""
        return str(self.keep_alive).rstrip("hmsu") in ("0", "0.0")


class ChatAsked(Asked, kw_only=True):
    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None

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


def read_ollama(body: bytes, kind: type[T]) -> T:
    """A request of Ollama's. Raises `InvalidRequest`. What is to be translated is bounded in depth, what only goes on
    need not be: that is for `check_depth` to find."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise TooDeep from None
    except DecodeError as error:
        if (mended := mend(body)) is not None:
            return read_ollama(mended, kind)
        raise InvalidRequest(f"invalid request: {error}") from None


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def chat_ollama_to_responses(asked: ChatAsked, names: Mapping[str, str] = NO_NAMES) -> Json:
    """The Responses request for one of /api/chat. `names` are the server's own names for options. Raises
    `InvalidRequest`."""
    tools = [{**(tool.get("function") or {}), "type": tool.get("type") or "function"} for tool in asked.tools or ()]
    return {**_common(asked, names), "input": _items(asked.messages or []), **({"tools": tools} if tools else {})}


def generate_ollama_to_responses(asked: GenerateAsked, names: Mapping[str, str] = NO_NAMES) -> Json:
    """The Responses request for one of /api/generate. Raises `Unsupported` for what needs the model's own template."""
    for key in ("suffix", "template", "raw", "context"):
        if getattr(asked, key):
            raise Unsupported(f"'{key}' cannot be given to the server of this model, which takes chats only", param=key)
    messages = [OllamaMessage("user", asked.prompt, images=asked.images)]
    if asked.system:
        messages.insert(0, OllamaMessage("system", asked.system))
    return {**_common(asked, names), "input": _items(messages)}


def omitted_options(options: Mapping[str, Any] | None) -> list[str]:
    """The options that a chat server does not get."""
    return sorted((options or {}).keys() - {*OPTIONS, "num_predict"})


def _common(asked: Asked, names: Mapping[str, str]) -> Json:
    given = asked.options or {}
    request: Json = {names.get(key, key): given[key] for key in OPTIONS if given.get(key) not in (None, [])}
    request |= {
        "model": asked.model,
        "stream": asked.streams,
        "store": False,
        # Ollama leaves out the oldest messages of a chat that is too long.
        "truncation": "disabled" if asked.truncate is False else "auto",
    }
    limit = given.get("num_predict")
    if isinstance(limit, int) and limit > 0:  # -1 and -2: no limit
        request["max_output_tokens"] = limit
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
    """The input items of a chat. Calls get ids, which Ollama's have not always; a call that was never answered gets an
    output, because chat servers insist on one."""
    items: list[Item] = []
    open_calls: dict[str, str] = {}
    used: set[str] = set()
    given = {call.id for message in messages for call in message.tool_calls or ()}
    # Nine letters and digits: Mistral's templates take no other ids.
    made = (call_id for count in itertools.count(1) if (call_id := f"call{count:05}") not in given)

    def answer(call_id: str, output: Any) -> None:
        del open_calls[call_id]
        items.append({"type": "function_call_output", "call_id": call_id, "output": output})

    for index, message in enumerate(messages):
        content = _content(message, f"messages[{index}]")
        if message.role == "tool":
            answer(_answered_call(message, open_calls, index), content)
            continue
        for call_id in list(open_calls):
            answer(call_id, NO_OUTPUT)
        if message.thinking and message.role == "assistant":
            thought = {"type": "reasoning_text", "text": message.thinking}
            items.append({"type": "reasoning", "summary": [], "content": [thought]})
        if content or not message.tool_calls:
            items.append({"type": "message", "role": message.role, "content": content})
        for call in message.tool_calls or ():
            call_id = call.id if call.id and call.id not in used else next(made)
            used.add(call_id)
            open_calls[call_id] = call.function.name
            arguments = encode_json(call.function.arguments or {}).decode()
            items.append(
                {"type": "function_call", "call_id": call_id, "name": call.function.name, "arguments": arguments}
            )
    for call_id in list(open_calls):
        answer(call_id, NO_OUTPUT)
    return items


def _answered_call(message: OllamaMessage, open_calls: Mapping[str, str], index: int) -> str:
    """The call that a tool message answers: by its id, else the first of its name, else the first."""
    if message.tool_call_id and message.tool_call_id in open_calls:
        return message.tool_call_id
    named = [call_id for call_id, name in open_calls.items() if name == message.tool_name]
    for call_id in named or ([] if message.tool_name else open_calls):
        return call_id
    raise InvalidRequest(f"messages[{index}]: the assistant has made no call that this tool message answers")


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
    """A backend's answer, as Ollama encodes it: `feed` it the events, and take a `line` of what came since the last
    one; `last` is the end, and the whole answer where no lines were taken. `is_chat`: of /api/chat, else of
    /api/generate."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: list[Json] = []
        self._logprobs: list[Json] = []
        self._call_count = 0
        self._began_ns = time.monotonic_ns()
        self._first_ns: int | None = None

    def feed(self, events: Sequence[Event]) -> None:
        """Raises `BackendError` for a call that Ollama's format cannot hold."""
        for event in events:
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

    def line(self) -> Json | None:
        """What came since the last line, if anything did."""
        if not (self._text or self._thinking or self._calls):
            return None
        if self._first_ns is None:
            self._first_ns = time.monotonic_ns()
        return {"model": self._model, "created_at": _now(), **self._shown(), "done": False}

    def last(self, response: Json) -> Json:
        """The end. `response` is the finished response."""
        usage = response.get("usage") or {}
        reason = (response.get("incomplete_details") or {}).get("reason")
        ended_ns = time.monotonic_ns()
        first_ns = self._first_ns or self._began_ns  # A whole answer does not show when it began.
        return {
            "model": self._model,
            "created_at": _now(),
            **self._shown(),
            "done": True,
            "done_reason": {None: "stop", "max_output_tokens": "length"}.get(reason, reason),
            "total_duration": ended_ns - self._began_ns,
            "load_duration": 0,
            "prompt_eval_count": usage.get("input_tokens") or 0,
            "prompt_eval_duration": first_ns - self._began_ns,
            "eval_count": usage.get("output_tokens") or 0,
            "eval_duration": max(ended_ns - first_ns, 1),
        }

    def loaded(self, *, is_unload: bool) -> Json:
        """The answer to a request that asks nothing."""
        reason = "unload" if is_unload else "load"
        return {"model": self._model, "created_at": _now(), **self._shown(), "done": True, "done_reason": reason}

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


def embeddings_openai_to_ollama(answer: Any, count: int) -> tuple[list[list[float]], int]:
    """The vectors of `count` texts, in their order, and the tokens that they had. Raises `BackendError`."""
    try:
        given = msgspec.convert(answer, Embeddings)
    except msgspec.ValidationError:
        given = Embeddings([])
    if len(given.data) != count:
        raise BackendError("The backend's answer cannot be understood.", code="backend_bad_answer")
    rows = sorted(given.data, key=lambda row: row.index)
    return [row.embedding for row in rows], given.prompt_tokens


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LONG_AGO = "1970-01-01T00:00:00Z"
NEVER = "9999-12-31T23:59:59Z"


def listed_model(name: str) -> Json:
    """A row of /api/tags. What we do not know is empty; the digest is one of the name, because clients cut it without a
    look."""
    return {
        "name": name,
        "model": name,
        "modified_at": LONG_AGO,
        "size": 0,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _details(),
    }


def running_model(name: str, context: int | None) -> Json:
    """A row of /api/ps."""
    row = listed_model(name)
    del row["modified_at"]
    return {**row, "expires_at": NEVER, "size_vram": 0, "context_length": context or 0}


def shown_model(name: str, context: int | None) -> Json:
    """The answer of /api/show for a model that is not at an Ollama."""
    info: Json = {"general.architecture": "unknown", "general.basename": name}
    if context:
        info["unknown.context_length"] = context
    return {
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(),
        "model_info": info,
        "capabilities": ["completion", "tools"],
        "modified_at": LONG_AGO,
    }


def _details() -> Json:
    texts = ("parent_model", "format", "family", "parameter_size", "quantization_level")
    return {**dict.fromkeys(texts, ""), "families": []}
