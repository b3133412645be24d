"""What the scripts of this folder share: how they are called, and what they do with it. The same as
../node/scenarios.mjs.

python openai_python.py http://127.0.0.1:8000/v1 text stream …
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

BASE_URL = sys.argv[1]
WEATHER = {"Paris": "sunny", "Oslo": "rain"}
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
# A server of MCP with a tool `plan`, as clients name it; what it is asked for is run by the router.
TRIPS: Json = {
    "type": "mcp",
    "server_label": "trips",
    "server_url": os.environ.get("MCP_URL", ""),
    "allowed_tools": ["plan"],
    "require_approval": "never",
}
# Tools that OpenAI runs else.
CODE: Json = {"type": "code_interpreter", "container": {"type": "auto"}}
FILES: Json = {"type": "file_search", "vector_store_ids": ["vs_1"]}
PICTURE: Json = {"type": "image_generation"}
WEB: Json = {"type": "web_search"}
OUTPUTS, RESULTS = "code_interpreter_call.outputs", "file_search_call.results"
PNG_BEGINS = "iVBORw0KGgo"
LIMIT_S = 20


def run(scenarios: Mapping[str, Any]) -> None:
    """Runs those that the command line names, one after the other."""
    asyncio.run(_run(scenarios))


async def _run(scenarios: Mapping[str, Any]) -> None:
    for name in sys.argv[2:]:
        try:
            async with asyncio.timeout(LIMIT_S):
                outcome = {"result": await scenarios[name](name)}
        except Exception:
            outcome = {"error": traceback.format_exc()}
        print(json.dumps({"scenario": name, **outcome}), flush=True)
