"""A server of MCP over stdio, started as a process, whose answers are not what it says they are, nor its schemas.
`wildly`: its list is none. `dearly`: what it
says takes long to check. `for ever`: it does not end when it is asked to."""

from __future__ import annotations

import json
import signal
import sys
import time
from typing import Any

Json = dict[str, Any]

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOLS: list[Json] = [
    {"name": "number", "inputSchema": {"type": "object"}, "outputSchema": NUMBER},
    {"name": "none", "inputSchema": {"type": "object"}, "outputSchema": NUMBER},
    {"name": "large", "inputSchema": {"type": "object"}},
    {"name": "typed", "inputSchema": {"type": "object", "properties": {"a": {"type": ["string", 5]}}}},
    {"name": "nested", "inputSchema": {"type": "object", "properties": {"a": {"type": "strin"}}}},
    {"name": "number", "inputSchema": {"type": "object"}, "outputSchema": NUMBER},
]
WILD: Json = {"name": "unsound", "inputSchema": {"type": "object", "properties": ["city"], "required": "city"}}
DEAR: list[Json] = [
    {"name": "many", "inputSchema": {"type": "object", "properties": {f"p{n}": True for n in range(30_000)}}},
    {
        "name": "pattern",
        "inputSchema": {"type": "object"},
        "outputSchema": {"type": "object", "properties": {"n": {"type": "string", "pattern": "^(a+)+$"}}},
    },
]
NO_MATCH = "a" * 24 + "!"


def answer(method: str, params: Json) -> Json:
    match method:
        case "initialize":
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "liar", "version": "1"},
            }
        case "tools/list":
            if "dearly" in sys.argv:
                return {"tools": DEAR}
            return {"tools": [*TOOLS, WILD] if "wildly" in sys.argv else TOOLS}
        case "tools/call" if params["name"] == "large":
            return {"content": [{"type": "text", "text": "x" * (params["arguments"]["megabytes"] << 20)}]}
        case "tools/call" if params["name"] == "number":
            return {"content": [], "structuredContent": {"n": "secret-1"}}
        case "tools/call" if params["name"] == "pattern":
            return {"content": [], "structuredContent": {"n": NO_MATCH}}
        case "tools/call":
            return {"content": [{"type": "text", "text": params["name"]}]}
        case _:
            return {}


if __name__ == "__main__":
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            result = answer(message["method"], message.get("params") or {})
            print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
    if "for ever" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
