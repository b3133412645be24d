"""A tool that must be called, and tools that alone may be: also where a server calls any. No turn ends `completed` with
nothing, because all that came was suppressed."""

from __future__ import annotations

from typing import Any

import pytest

from backends.kinds import KINDS
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, chat_usage, cut, reasoning
from tests.test_tools import function
from tests.turns import assert_error, create, ended, stream

Json = dict[str, Any]

TOOLS = [function("f"), function("g"), {"type": "shell"}]
NAMED = {"type": "function", "name": "f"}
ANY = {"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}
MUST = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}
NONE: Json = {"type": "allowed_tools", "mode": "none", "tools": [NAMED]}
F, G, SHELL = call("f", {"x": 1}), call("g", {"x": 2}), call("shell", {"commands": ["ls"]})
WAYS = ["json", "stream", "background"]


def offered(backend: FakeBackend, turn: int = -1) -> list[str]:
    return [tool["function"]["name"] for tool in backend.turns[turn].json.get("tools", [])]


async def answered(running: Running, way: str, **request: Any) -> Json:
    """The response, however it went."""
    if way == "stream":
        return (await stream(running.http, **request))[-1]["response"]
    response = await create(running.http, background=way == "background", **request)
    return await ended(running.http, response["id"]) if way == "background" else response


def made(response: Json) -> list[str]:
    return [item.get("name", item["type"]) for item in response["output"]]


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_kinds_that_heed_no_name_are_known() -> None:
    assert {name for name, kind in KINDS.items() if not kind.chooses_by_name} == {
        "llama.cpp",
        "llama-swap",
        "lmstudio",
        "ollama",
    }


@pytest.mark.parametrize("kind", sorted(name for name, kind in KINDS.items() if not kind.native and name != "auto"))
@pytest.mark.parametrize("choice", [NAMED, MUST], ids=["named", "the only one that is allowed"])
async def test_a_tool_that_is_demanded_is_offered_alone_where_no_name_is_heeded(
    kind: str, choice: Json, backend: FakeBackend
) -> None:
    url = f"{backend.url}/v1" if kind == "openai-chat" else backend.url
    async with running_router(endpoints=[{"url": url, "kind": kind}]) as running:
        backend.script(chat(F))
        response = await answered(running, "json", tools=TOOLS, tool_choice=choice)
    sent = backend.turns[-1].json
    by_name = {"type": "function", "function": {"name": "f"}}
    assert sent["tool_choice"] == (by_name if KINDS[kind].chooses_by_name else "required")
    assert offered(backend) == (["f", "g", "shell"] if KINDS[kind].chooses_by_name else ["f"])
    assert (made(response), response["tool_choice"]) == (["f"], choice)


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("as_stream", [True, False], ids=["chunks", "whole"])
async def test_of_a_named_choice_only_the_named_call_reaches_the_client(
    way: str, as_stream: bool, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(G, F, SHELL, as_stream=as_stream))
    assert made(await answered(served, way, tools=TOOLS, tool_choice=NAMED)) == ["f"]
    assert len(backend.turns) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("as_stream", [True, False], ids=["chunks", "whole"])
@pytest.mark.parametrize(
    ("choice", "sent"), [(NAMED, "required"), (MUST, "required"), (ANY, "auto")], ids=["named", "required", "auto"]
)
async def test_a_model_that_called_nothing_but_others_is_asked_once_more(
    way: str, as_stream: bool, choice: Json, sent: str, served: Running, backend: FakeBackend
) -> None:
    usage = chat_usage(11, 4)
    wrong = chat(reasoning("Hm."), "\n\n", G, SHELL, as_stream=as_stream, usage=usage)
    backend.script(wrong, chat(F, as_stream=as_stream, usage=usage))
    response = await answered(served, way, tools=TOOLS, tool_choice=choice)
    assert response["status"] == "completed"
    assert made(response)[-1] == "f"
    if way == "stream" or not as_stream:  # A stream that was not asked for has no usage.
        assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (22, 8), "both were paid for"
    assert (backend.turns[-1].json["tool_choice"], offered(backend)) == (sent, ["f"])
    assert len(backend.turns) == 2


async def test_tokens_are_counted_once_each(served: Running, backend: FakeBackend) -> None:
    usage = chat_usage(11, 4)
    ask = {"tools": TOOLS, "tool_choice": ANY}
    backend.script(chat(G, usage=usage), chat(F, usage=None))
    assert (await answered(served, "stream", **ask))["usage"]["output_tokens"] == 4, "the second has none"
    backend.script(chat(G, usage=None), chat(F, usage=usage))
    assert (await answered(served, "stream", **ask))["usage"]["output_tokens"] == 4, "the first has none"
    backend.script(chat(G, usage=usage), chat(F, then=cut()))
    failed = await answered(served, "stream", **ask)
    assert (failed["status"], failed["usage"]["output_tokens"]) == ("failed", 4)


async def test_that_it_was_asked_again_is_named(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(G), chat(F))
    body = {"model": "test-model", "input": "Hi", "tools": TOOLS, "tool_choice": ANY}
    answer = await served.http.post("/v1/responses", json=body)
    assert answer.headers["x-nomyo-adapted"] == "tools=allowed"


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_closes_its_connection_between_is_asked_once_more(
    way: str, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(G), cut(reset=True), chat(F))
    response = await answered(served, way, tools=TOOLS, tool_choice=ANY)
    assert (response["status"], made(response), len(backend.turns)) == ("completed", ["f"], 3)


async def test_words_are_an_answer(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Well.", G))
    assert made(await answered(served, "json", tools=TOOLS, tool_choice=ANY)) == ["message"]
    backend.script(chat(G), chat("No."))
    assert made(await answered(served, "json", tools=TOOLS, tool_choice=ANY)) == ["message"]


async def test_where_nothing_may_be_called_no_tool_is_shown_the_second_time(
    served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(G), chat("Well."))
    assert made(await answered(served, "json", tools=TOOLS, tool_choice=NONE, parallel_tool_calls=True)) == ["message"]
    assert not backend.turns[-1].json.keys() & {"tools", "tool_choice", "parallel_tool_calls"}


async def test_what_was_cut_off_is_not_asked_again(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(G, finish_reason="length"))
    response = await answered(served, "json", tools=TOOLS, tool_choice=ANY)
    assert (response["status"], len(backend.turns)) == ("incomplete", 1)


@pytest.mark.parametrize("choice", [NAMED, MUST, ANY, NONE], ids=["named", "required", "auto", "none"])
@pytest.mark.parametrize("as_stream", [True, False], ids=["chunks", "whole"])
async def test_a_model_that_never_does_what_it_may_fails_by_name(
    choice: Json, as_stream: bool, served: Running, backend: FakeBackend
) -> None:
    backend.default = chat(reasoning("Hm."), G, as_stream=as_stream)
    body = {"model": "test-model", "input": "Hi", "tools": TOOLS, "tool_choice": choice}
    error = assert_error(await served.http.post("/v1/responses", json=body), 502, code="forbidden_call")
    assert "'g'" in error["message"]
    for way in ("stream", "background"):
        response = await answered(served, way, tools=TOOLS, tool_choice=choice)
        assert response["status"] == "failed"
        assert "'g'" in response["error"]["message"]
    assert len(backend.turns) == 6
    assert served.in_flight() == 0


async def test_a_described_format_is_held_to_the_same(backend: FakeBackend) -> None:
    """A server that is asked for JSON in words, beside tools."""
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "structured_outputs": "prompt"}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    text = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    async with running_router(endpoints=[endpoint]) as running:
        backend.script(chat(G), chat(F))
        response = await answered(running, "json", tools=TOOLS, tool_choice=ANY, text=text)
        assert made(response) == ["f"]
        backend.script(chat(G), chat('{"a": 1}'))
        response = await answered(running, "json", tools=TOOLS, tool_choice=ANY, text=text)
        assert made(response) == ["message"]


@pytest.mark.parametrize("as_stream", [True, False], ids=["chunks", "whole"])
async def test_the_one_call_of_a_turn_that_nobody_can_run_is_no_answer(
    as_stream: bool, served: Running, backend: FakeBackend
) -> None:
    """A call that is an object never appears without its arguments, and the calls behind it are one too many."""
    backend.default = chat(call("shell", "ls -l"), F, as_stream=as_stream)
    body = {"model": "test-model", "input": "Hi", "tools": TOOLS, "parallel_tool_calls": False}
    error = assert_error(await served.http.post("/v1/responses", json=body), 502, code="forbidden_call")
    assert "'f'" in error["message"]
    for way in ("stream", "background"):
        response = await answered(served, way, tools=TOOLS, parallel_tool_calls=False)
        assert (response["status"], response["output"]) == ("failed", [])
    assert served.in_flight() == 0
