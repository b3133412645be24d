"""What real clients send (Codex, the OpenAI SDKs, the Agents SDKs, the AI SDK, LangChain, Pydantic AI, opencode, llm)
is understood, or refused with the name of the parameter.

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

from core.errors import InvalidRequest
from requests.chat_params import chat_request
from requests.items import check_input, input_items
from requests.messages import responses_input_to_messages
from requests.params import check_request
from requests.responses import response_resource
from requests.tool_choice import tool_choice_responses_to_chat
from requests.tools import CALLS, OUTPUTS, ToolBook, call_id_of
from tests.fake_backend import strict_error
from tests.response_grammar import RESPONSE_KEYS

Json = dict[str, Any]

FOLDER = Path(os.environ.get("CLIENT_FIXTURES") or Path(__file__).parents[2] / "shared" / "fixtures" / "clients")

# What is refused: the parameter that is named, and why.
REFUSED: dict[str, tuple[str, str]] = {
    # Both at once, as its example of an error.
    "oaipy-conversations-10": ("previous_response_id", "a conversation is given too"),
    # Wrong on purpose: the client shows what an error looks like.
    "oaipy-core-13": ("input", "the input is a number"),
}
# What no chat backend runs.
HOSTED = {"web_search", "web_search_preview", "file_search", "computer", "code_interpreter", "image_generation", "mcp"}


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


def wanted_tools(body: Json) -> set[tuple[str | None, str]]:
    """The tools that a client runs itself, as namespace and name, those included that its items bring."""
    brought = [tool for item in _items(body) for tool in item.get("tools") or []]
    wanted: set[tuple[str | None, str]] = set()
    for tool in [*(body.get("tools") or []), *brought]:
        if tool["type"] == "namespace":
            wanted |= {(tool["name"], inner["name"]) for inner in tool["tools"]}
        elif tool["type"] not in HOSTED:
            wanted.add((None, tool.get("name") or tool["type"]))
    return wanted


def _items(body: Json) -> list[Json]:
    return body["input"] if isinstance(body["input"], list) else []


def translated(body: Json) -> tuple[Json, ToolBook]:
    """The chat request for a body, and its tools, as a turn makes them."""
    params = check_request(body)
    # Which item a reference means, only the store knows.
    items = [item for item in input_items(params.input) if item["type"] != "item_reference"]
    if not params.previous_response_id:
        check_input(items, 0)
    book = ToolBook.of(body.get("tools"), items)
    messages = responses_input_to_messages(_with_their_calls(items), params.instructions, book=book)
    choice = tool_choice_responses_to_chat(params.tool_choice, book)
    return chat_request(body, messages, model="m", stream=bool(params.stream), choice=choice), book


def _with_their_calls(items: list[Json]) -> list[Json]:
    """The items, behind the calls of the previous response that their outputs answer."""
    called = {item["call_id"] for item in items if item["type"] in CALLS}
    answered = [call_id for item in items if item["type"] in OUTPUTS and (call_id := call_id_of(item))]
    missing = [call_id for call_id in answered if call_id not in called]
    earlier = [{"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"} for call_id in missing]
    return [*earlier, *items]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_clients_request_becomes_a_chat_request(name: str) -> None:
    body = recorded_requests()[name]
    params, book = translated(body)
    roles = [message["role"] for message in params["messages"]]
    assert set(roles) <= {"system", "user", "assistant", "tool"}, f"roles that chat does not know: {set(roles)}"
    offered = [tool["function"]["name"] for tool in params.get("tools", [])]
    assert len(offered) == len(set(offered)), f"names that are taken: {offered}"
    known = {(call.namespace, call.name) for call in map(book.call_of, offered)}
    assert known == wanted_tools(body), "each tool that the client runs is offered, and found again"
    assert {name.partition(":")[0] for name in book.omitted} <= HOSTED, book.omitted
    problem = strict_error(params)
    assert problem is None, f"a strict server refuses it: {problem}"
    orjson.dumps(params)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_clients_request_is_echoed_in_a_response_that_the_sdk_reads(name: str) -> None:
    body = recorded_requests()[name]
    response = response_resource(body, response_id="resp_1", created_at=1, status="in_progress")
    wrong = {key: response[key] for key, types in RESPONSE_KEYS.items() if not isinstance(response[key], types)}
    assert not wrong, f"of another type than clients expect: {wrong}"
    Response.model_validate(response)


@pytest.mark.parametrize(("name", "param"), [(name, param) for name, (param, _) in REFUSED.items()])
def test_what_is_not_supported_is_refused_by_name(name: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        translated(recorded_requests()[name])
    assert raised.value.param == param


def test_the_recordings_are_of_many_clients() -> None:
    clients = {name.rpartition("-")[0] for name in recorded_requests()}
    assert len(clients) >= 25, f"recordings of {len(clients)} clients alone: {sorted(clients)}"
    unknown = REFUSED.keys() - recorded_requests().keys()
    assert not unknown, f"refused, but not there: {unknown}"
