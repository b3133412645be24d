"""What a coding agent sends late in its session: the whole conversation and all its tools, again with every turn.

Nine tasks, in each of which it thought, called and read 13 times: 361 items, 22 tools, about 427 KB of JSON. Every run
makes the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

TASKS, STEPS = 9, 12
TOOLS = 22
# Of what a call printed, in words: of these a session mostly consists.
PRINTED = 441
_WORDS = """
    the build result index cache path value return import module class self error line queue socket token request
    response header buffer parser state event loop future await async yield raise except finally while test assert
    config default limit size count offset name type list dict tuple string bytes int float none true false
"""


def agent_request(path: str, model: str) -> dict[str, Any]:
    """The body of the turn: of `/v1/responses`, or the same session as `/v1/chat/completions` takes it."""
    if path.endswith("/responses"):
        tools = [{"type": "function", "strict": False, **tool} for tool in _tools()]
        session: dict[str, Any] = {"instructions": _INSTRUCTIONS, "input": list(_items()), "store": False}
    else:
        tools = [{"type": "function", "function": tool} for tool in _tools()]
        session = {"messages": [{"role": "system", "content": _INSTRUCTIONS}, *_messages()]}
    return {"model": model, **session, "tools": tools, "tool_choice": "auto", "stream": True}


def encoded(body: dict[str, Any]) -> bytes:
    """As agents write it: without spaces, in UTF-8."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _text(words: int, seed: str) -> str:
    """So many words, a line for every dozen; the same for the same seed."""
    chosen = random.Random(seed).choices(_WORDS.split(), k=words)
    return "\n".join(" ".join(chosen[at : at + 12]) for at in range(0, words, 12))


_INSTRUCTIONS = "You are a coding agent in a terminal.\n" + _text(1500, "instructions")


def _message(role: str, text: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def _items() -> Iterator[dict[str, Any]]:
    for task in range(TASKS):
        yield _message("user", f"Task {task}: {_text(60, f'task {task}')}")
        for step in range(STEPS):
            seed = f"step {task}.{step}"
            summary = [{"type": "summary_text", "text": _text(25, f"thought of {seed}")}]
            # OGX takes no thought without an id.
            yield {"id": _id("rs", seed), "type": "reasoning", "summary": summary}
            yield from _call(seed)
        # One more call, which was not thought about.
        yield from _call(f"last step {task}")
        yield _message("assistant", f"Task {task} is done. {_text(90, f'answer {task}')}")
    yield _message("user", "Say what is left to do.")


def _id(prefix: str, seed: str) -> str:
    return f"{prefix}_{random.Random(seed).randbytes(12).hex()}"


def _call(seed: str) -> Iterator[dict[str, Any]]:
    call_id = _id("call", seed)
    arguments = encoded({"command": ["bash", "-lc", f"grep -n {_text(4, seed)!r} *.py"], "workdir": "/src"}).decode()
    printed = f"exit status 0\n{_text(PRINTED, f'printed by {seed}')}"
    yield {"type": "function_call", "call_id": call_id, "name": "tool_0", "arguments": arguments}
    yield {"type": "function_call_output", "call_id": call_id, "output": printed}


def _messages() -> Iterator[dict[str, Any]]:
    """The items as chat messages, without what was thought: chat completions have no place for it."""
    for item in _items():
        match item["type"]:
            case "message":
                yield {"role": item["role"], "content": item["content"][0]["text"]}
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                yield {"role": "assistant", "content": None, "tool_calls": [call]}
            case "function_call_output":
                yield {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}


def _tools() -> Iterator[dict[str, Any]]:
    """Functions, each with a description and parameters of several types."""
    for number in range(TOOLS):
        properties: dict[str, Any] = {
            "command": {"type": "array", "items": {"type": "string"}, "description": _text(24, f"command {number}")},
            "workdir": {"type": "string", "description": _text(12, f"workdir {number}")},
            "timeout_ms": {"type": "number", "description": _text(12, f"timeout {number}")},
            "mode": {"type": "string", "enum": ["read", "write", "ask"], "description": _text(12, f"mode {number}")},
        }
        parameters = {
            "type": "object",
            "properties": properties,
            "required": ["command"],
            "additionalProperties": False,
        }
        yield {"name": f"tool_{number}", "description": _text(60, f"tool {number}"), "parameters": parameters}
