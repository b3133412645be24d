"""An MCP server over stdio with one tool: `forecast` gives the weather of a city. Codex starts it as a process."""

from __future__ import annotations

import json
import sys
from typing import Any

Json = dict[str, Any]

FORECAST = {
    "name": "forecast",
    "description": "Gives the weather of a city.",
    "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def answer(method: str, params: Json) -> Json:
    match method:
        case "initialize":
            return {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "weather", "version": "1"},
            }
        case "tools/list":
            return {"tools": [FORECAST]}
        case "tools/call":
            return {"content": [{"type": "text", "text": f"Rain in {params['arguments']['city']}."}]}
        case _:
            return {}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:  # a notification has none, and wants no answer
        result = answer(message["method"], message.get("params") or {})
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
