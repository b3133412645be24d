"""What real clients send (Codex, the OpenAI SDKs, the Agents SDKs, the AI SDK, LangChain, Pydantic AI, opencode, llm) is
understood, or refused with the name of the parameter.

The recorded requests lie outside of this repo, in ../shared/fixtures/clients; CLIENT_FIXTURES names another folder.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai.types.responses import Response

from errors import InvalidRequest
from requests.messages import responses_input_to_messages
from requests.responses import chat_request, check_input, check_request, input_items, response_resource
from tests.stream_grammar import RESPONSE_KEYS

Json = dict[str, Any]

FOLDER = Path(os.environ.get("CLIENT_FIXTURES") or Path(__file__).parents[2] / "shared" / "fixtures" / "clients")

# What issue 2 does not promise: the parameter that is named, and why it cannot be otherwise yet.
REFUSED: dict[str, tuple[str, str]] = {
    "ai_sdk_openai-11": ("input[3]", "item_reference: refers to an item of a stored response"),
    "ai_sdk_openai-12": ("input[3]", "item_reference: refers to an item of a stored response"),
    "codex_codemode-1": ("input[0].type", "additional_tools: tools that are given as an input item"),
    "codex_freeform-2": ("input[4].type", "custom_tool_call: free-form tools"),
    "cx-ts3-2": ("input[4].type", "tool_search_call: tools that are searched for"),
    "oaipy-compact-2": ("input[2].type", "compaction: what /v1/responses/compact makes"),
    "oaipy-conversations-2": ("conversation", "conversations"),
    "oaipy-conversations-3": ("conversation", "conversations"),
    "oaipy-conversations-10": ("conversation", "conversations"),
    "oaipy-tooltypes-2": ("input[1].type", "custom_tool_call: free-form tools"),
    # Wrong on purpose: the client shows what an error looks like.
    "oaipy-core-13": ("input", "the input is a number"),
}


@cache
def recorded_requests() -> dict[str, Json]:
    """The bodies of POST /v1/responses, by the name of their file."""
    requests = [(file.stem, orjson.loads(file.read_bytes())) for file in sorted(FOLDER.glob("*.json"))]
    wanted = ("POST", "/v1/responses")
    return {name: request["body"] for name, request in requests if (request["method"], request["path"]) == wanted}


pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the recorded client requests are not at {FOLDER} (they lie outside of the repo)"
)
ACCEPTED = [name for name in recorded_requests() if name not in REFUSED]


def translated(body: Json) -> Json:
    """The chat request for a body, as a turn makes it."""
    params = check_request(body)
    items = input_items(params.input)
    if not params.previous_response_id:
        check_input(items, 0)
    messages = responses_input_to_messages(_with_their_calls(items), params.instructions)
    return chat_request(body, messages, model="m", stream=bool(params.stream))


def _with_their_calls(items: list[Json]) -> list[Json]:
    """The items, behind the calls of the previous response that their outputs answer."""
    called = {item["call_id"] for item in items if item["type"] == "function_call"}
    answered = [item["call_id"] for item in items if item["type"] == "function_call_output"]
    missing = [call_id for call_id in answered if call_id not in called]
    earlier = [{"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"} for call_id in missing]
    return [*earlier, *items]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_clients_request_becomes_a_chat_request(name: str) -> None:
    body = recorded_requests()[name]
    params = translated(body)
    roles = [message["role"] for message in params["messages"]]
    assert set(roles) <= {"system", "user", "assistant", "tool"}, f"roles that chat does not know: {set(roles)}"
    assert roles.count("system") == ("system" in roles[:1]), f"a system text that is not at the start: {roles}"
    offered = {tool["function"]["name"] for tool in params.get("tools", [])}
    functions = {tool["name"] for tool in body.get("tools") or [] if tool["type"] == "function"}
    assert offered == functions, "each function is offered"
    orjson.dumps(params)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_clients_request_is_echoed_in_a_response_that_the_sdk_reads(name: str) -> None:
    body = recorded_requests()[name]
    response = response_resource(body, response_id="resp_1", created_at=1, status="in_progress")
    wrong = {key: response[key] for key, types in RESPONSE_KEYS.items() if not isinstance(response[key], types)}
    assert not wrong, f"of another type than clients expect: {wrong}"
    Response.model_validate(response)


@pytest.mark.parametrize(("name", "param"), [(name, param) for name, (param, _) in REFUSED.items()])
def test_what_is_not_supported_yet_is_refused_by_name(name: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        translated(recorded_requests()[name])
    assert raised.value.param == param


def test_the_recordings_are_of_many_clients() -> None:
    clients = {name.rpartition("-")[0] for name in recorded_requests()}
    assert len(clients) >= 25, f"recordings of {len(clients)} clients alone: {sorted(clients)}"
    unknown = REFUSED.keys() - recorded_requests().keys()
    assert not unknown, f"refused, but not there: {unknown}"
