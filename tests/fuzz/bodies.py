"""Bodies that nobody would send on purpose: those of every front door, changed at random, as JSON and as bytes."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

Json = dict[str, Any]

MODELS = ("chat-model", "native-model", "ollama-model")
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
PARAMETERS: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Json = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": False}
CALL: Json = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Paris"}'}
RESPONSES: Json = {
    "model": "",
    "instructions": "Be brief.",
    "input": [
        {"role": "developer", "content": "Speak French."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": PIXEL, "detail": "low"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        CALL,
        {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "grep", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "y"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Salut", "annotations": []}],
        },
    ],
    "tools": [FUNCTION, {"type": "custom", "name": "grep"}, {"type": "web_search"}, {"type": "local_shell"}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "answer", "schema": PARAMETERS}, "verbosity": "low"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "store": True,
    "stream": True,
    "background": False,
    "temperature": 0.5,
    "top_p": 0.9,
    "max_output_tokens": 100,
    "truncation": "auto",
    "context_management": [{"type": "compaction", "compact_threshold": 5000}],
    "prompt_cache_key": "key",
    "stream_options": {"include_obfuscation": True},
    "nomyo": {"cache": True},
    "previous_response_id": None,
}
CHAT: Json = {
    "model": "",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
        },
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
OLLAMA: Json = {
    "model": "",
    "messages": [{"role": "user", "content": "Hi", "images": [PIXEL.partition(",")[2]]}],
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}],
    "format": PARAMETERS,
    "options": {"temperature": 0.5, "num_ctx": 4096, "stop": ["a"]},
    "keep_alive": "5m",
    "think": True,
}
SEEDS: list[tuple[str, Json]] = [
    ("/v1/responses", RESPONSES),
    ("/v1/responses", RESPONSES | {"stream": False}),
    ("/v1/responses", {"model": "", "input": "Hi"}),
    ("/v1/responses", {"model": "", "input": "Hi", "background": True}),
    ("/v1/responses/compact", {"model": "", "input": RESPONSES["input"]}),
    ("/v1/responses/input_tokens", RESPONSES),
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"model": "", "prompt": "Once", "max_tokens": 5, "stream": False}),
    ("/v1/embeddings", {"model": "", "input": ["a", "b"], "encoding_format": "base64"}),
    ("/v1/rerank", {"model": "", "query": "a", "documents": ["b", "c"]}),
    ("/api/chat", OLLAMA),
    ("/api/chat", {"model": "", "messages": [], "keep_alive": 0}),
    ("/api/generate", {"model": "", "prompt": "Hi", "system": "x", "suffix": "y", "raw": False, "context": [1, 2]}),
    ("/api/generate", {"model": "", "prompt": "Hi", "system": "x", "stream": False, "think": False}),
    ("/api/embed", {"model": "", "input": "Hi", "truncate": True}),
    ("/api/embeddings", {"model": "", "prompt": "Hi"}),
    ("/api/show", {"model": "", "verbose": True}),
    ("/api/cache/invalidate", {"model": ""}),
]
# In place of anything.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1e308, -0.0, 0.1, "", "a", "1", "null"),
    *([], {}, [[]], [None], {"": None}, {"type": None}, {"type": []}, [{}], "\ud800", "\0", "x" * 5000, "\u202e\ufeff"),
    *("data:image/png;base64,!!!", "data:,", "http://127.0.0.1:9/x.png", "file:///etc/passwd", "http://[", "resp_1"),
    *({"type": "input_text", "text": "a"}, {"type": "item_reference", "id": "msg_1"}, {"type": "compaction_trigger"}),
    *({"$ref": "#"}, {"type": "compaction", "encrypted_content": "nomyo"}, ["user"], 1.5, "stop", "response.failed"),
]
# In place of a piece of bytes.
BYTES = (
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"{",
    b"[",
    b'"',
    b"\\",
    b"\\u",
    b"\\ud800",
    b"1e999",
    b"NaN",
    b"-",
    b",",
    b"\n",
)
CONTENT_TYPES = (
    *("application/json", "application/json; charset=utf-16", "text/plain", "application/x-www-form-urlencoded"),
    *("multipart/form-data; boundary=x", "multipart/form-data", "application/octet-stream", ""),
)
ENCODINGS = ("gzip", "zstd", "br", "deflate", "gzip, gzip", "nonsense")


class Fuzzed(NamedTuple):
    """A request: its path, its body, and the headers that go with that."""

    path: str
    body: bytes
    headers: dict[str, str]


def fuzzed(dice: random.Random) -> Fuzzed:
    """One of all that may come."""
    path, seed = dice.choice(SEEDS)
    value: Any = json.loads(json.dumps(seed | {"model": dice.choice(MODELS)}))
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3, 8))):
        value = _changed(value, dice)
    body = json.dumps(value).encode()
    headers = {"content-type": "application/json"}
    if dice.random() < 0.3:
        for _ in range(dice.choice((1, 1, 2, 5))):
            body = _broken(body, dice)
    if dice.random() < 0.05:
        headers["content-type"] = dice.choice(CONTENT_TYPES)
    if dice.random() < 0.05:
        headers["content-encoding"] = dice.choice(ENCODINGS)
        if dice.random() < 0.5:
            body = gzip.compress(body)[: dice.choice((None, 20, -5))]
    return Fuzzed(path, body, headers)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in a value, as what it is in and its key there."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def _changed(value: Any, dice: random.Random) -> Any:
    places = list(_places(value))
    if not places or dice.random() < 0.02:
        return deepcopy(dice.choice(VALUES))
    holder, key = dice.choice(places)
    match dice.randrange(7):
        case 0 | 1:
            holder[key] = deepcopy(dice.choice(VALUES))
        case 2:
            del holder[key]
        case 3:
            other, where = dice.choice(places)
            holder[key] = json.loads(json.dumps(other[where])) if isinstance(other, dict) and where in other else None
        case 4 if isinstance(holder, list):
            holder *= dice.choice((2, 20))
        case 5 if isinstance(holder, dict):
            holder[dice.choice(("", "type", "id", "\ud800", "x" * 300, "__proto__"))] = deepcopy(dice.choice(VALUES))
        case _:
            for _ in range(dice.choice((1, 5, 100))):
                holder[key] = dice.choice(([holder[key]], {"a": holder[key]}))
    return value


def _broken(body: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(body) + 1)
    match dice.randrange(5):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + dice.choice(BYTES) + body[at:]
        case 2:
            return body[:at] + dice.randbytes(dice.choice((1, 4, 50))) + body[at + 1 :]
        case 3:
            return body[:at] + body[dice.randrange(len(body) + 1) :]
        case _:
            return body[at:]
