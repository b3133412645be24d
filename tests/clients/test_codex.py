"""Codex itself (`codex exec`), with the router before a backend that says what the test scripts: what Codex does to the
files, what it reports, and what the model was sent.

    codex exec ──HTTP or WebSocket──▶ router ──chat completions──▶ FakeBackend(strict=True)

Every test runs over HTTP and over a WebSocket. `make clients` installs Codex.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import router
from commands.codex import INSTRUCTIONS
from requests.sse import frame
from tests.clients.codex import HTTP, KEY, REFUSED, WEBSOCKET, Codex, Heard, Json, Listener, Way, codex_binary
from tests.commanding import nomyo
from tests.conftest import running_router
from tests.fake_backend import (
    DONE,
    Answer,
    FakeBackend,
    Reply,
    call,
    chat,
    chat_usage,
    chunk,
    cut,
    http_error,
    json_answer,
    native,
    pause,
    reasoning,
    sse_error,
    stall,
    steps,
)
from tests.fake_backend.answers import event_stream
from tests.fake_backend.native_answers import native_events

pytestmark = pytest.mark.skipif(
    not codex_binary().exists(), reason=f"Codex is not at {codex_binary()}: `make clients` installs it"
)

PATCH = '*** Begin Patch\n*** Update File: greeting.txt\n@@\n-hello\n+héllo, "world" \\n\n*** End Patch\n'
PATCHED = 'héllo, "world" \\n\n'
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


@pytest.fixture(params=[HTTP, WEBSOCKET], ids=["http", "websocket"])
async def codex(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Codex]:
    way, heard = request.param, Heard()
    create_app = router.create_app

    def create_listening_app(config: Any) -> Any:
        app = create_app(config)
        app.add_middleware(Listener, heard=heard)
        return app

    async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        codex.strangers.append((await reader.readline()).decode().strip())
        writer.close()

    monkeypatch.setattr(router, "create_app", create_listening_app)
    async with (
        FakeBackend(strict=True) as backend,
        running_router(
            endpoints=[{"url": f"{backend.url}/v1", "kind": way.kind}], websockets=way.offered, api_key=KEY
        ) as served,
        await asyncio.start_server(turn_away, "127.0.0.1") as proxy,
    ):
        address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        codex = Codex(tmp_path, way, backend, served, heard, address)
        yield codex
        assert served.in_flight() == 0, "a slot was not given back"


def answering(choose: Callable[[Json], Answer]) -> Answer:
    """The answer that `choose` gives to the request."""

    async def answer(reply: Reply) -> None:
        await choose(reply.request.json)(reply)

    return answer


def tools_offered(turn: Json) -> set[str]:
    return {tool["function"]["name"] for tool in turn.get("tools", [])}


def last_tool_answer(turn: Json) -> str:
    """What a chat request says of the last call: text, or the text parts of it."""
    assert turn["messages"][-1]["role"] == "tool", turn["messages"][-1]
    content = turn["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


# ── a model that Codex does not know ─────────────────────────────────────────────────────────────────────────────────


async def test_a_command_runs_and_its_exit_code_reaches_the_model(codex: Codex) -> None:
    codex.backend.script(
        chat("I make it. ", call("exec_command", {"cmd": "echo some > made.txt; echo seen; exit 3"})), chat("Made.")
    )
    ran = await codex.succeeds("Make a file.")
    assert (codex.project / "made.txt").read_text() == "some\n"
    [command] = ran.of_type("command_execution")
    assert (command["exit_code"], command["aggregated_output"]) == (3, "seen\n")
    assert [item["text"] for item in ran.of_type("agent_message")] == ["I make it. ", "Made."]
    assert ran.answer == "Made."
    first, second = (turn.json for turn in codex.backend.turns)
    assert first["messages"][-1] == {"role": "user", "content": "Make a file."}
    assert second["messages"][-2]["content"] == "I make it. "
    assert "exited with code 3" in last_tool_answer(second)
    assert ran.events[-1]["usage"]["input_tokens"] == 14
    assert codex.heard.other_requests == []


async def test_two_calls_at_once_are_both_run(codex: Codex) -> None:
    codex.backend.script(
        chat(*(call("exec_command", {"cmd": f"echo {n} > {n}.txt"}) for n in ("one", "two"))), chat("Both.")
    )
    ran = await codex.succeeds("Make two files.")
    assert [(codex.project / f"{n}.txt").read_text() for n in ("one", "two")] == ["one\n", "two\n"]
    assert ran.answer == "Both."
    roles = [message["role"] for message in codex.backend.turns[1].json["messages"]]
    assert roles[-3:] == ["assistant", "tool", "tool"]


async def test_a_patch_in_a_shell_command_edits_the_file(codex: Codex) -> None:
    """With fallback metadata there is no tool for patches; Codex knows them in a command."""
    (codex.project / "greeting.txt").write_text("hello\n")
    command = f"apply_patch <<'EOF'\n{PATCH}EOF\n"
    codex.backend.script(chat(call("exec_command", {"cmd": command}, fragments=17)), chat("Patched."))
    ran = await codex.succeeds("Greet the world.")
    assert (codex.project / "greeting.txt").read_text() == PATCHED
    [change] = ran.of_type("file_change")
    assert change["status"] == "completed"
    assert [(Path(path["path"]).name, path["kind"]) for path in change["changes"]] == [("greeting.txt", "update")]
    assert "apply_patch" not in tools_offered(codex.backend.turns[0].json)
    assert "Success" in last_tool_answer(codex.backend.turns[1].json)


async def test_a_command_that_waits_is_talked_to(codex: Codex) -> None:
    waiting = {"cmd": "read name; echo hello $name > name.txt", "tty": True, "yield_time_ms": 250}

    def repeat_it(turn: Json) -> Answer:
        session = re.search(r"session ID (\d+)", last_tool_answer(turn))
        assert session, last_tool_answer(turn)
        return chat(call("write_stdin", {"session_id": int(session[1]), "chars": "Ada\n", "yield_time_ms": 5000}))

    codex.backend.script(chat(call("exec_command", waiting)), answering(repeat_it), chat("Done."))
    ran = await codex.succeeds("Say hello to Ada.")
    assert (codex.project / "name.txt").read_text() == "hello Ada\n"
    assert ran.answer == "Done."


async def test_a_call_that_is_not_json_is_reported_to_the_model(codex: Codex) -> None:
    codex.backend.script(chat(call("exec_command", '{"cmd": "echo')), chat("I was wrong."))
    ran = await codex.succeeds("Do something.")
    assert ran.answer == "I was wrong."
    assert "failed to parse" in last_tool_answer(codex.backend.turns[1].json)


async def test_the_web_is_searched_by_the_router(codex: Codex) -> None:
    page = "http://moss.example/"
    results = {"results": [{"url": page, "title": "Moss", "content": "It is green."}]}
    codex.backend.routes["GET /search"] = json_answer(results)
    codex.searches_at(codex.backend.url)
    codex.backend.script(chat(call("web_search", {"query": "moss"})), chat("It is green【1】."))
    ran = await codex.succeeds("Which colour has moss?")
    assert [item["query"] for item in ran.of_type("web_search")] == ["moss"]
    assert ran.answer == f"It is green ([moss.example]({page}))."
    [searched] = codex.heard.answered("web_search_call")
    assert (searched["status"], searched["action"]["query"]) == ("completed", "moss")
    assert "It is green." in last_tool_answer(codex.backend.turns[1].json)


async def test_an_image_is_shown_to_the_model(codex: Codex) -> None:
    (codex.project / "dot.png").write_bytes(PNG)
    codex.backend.script(chat(call("view_image", {"path": "dot.png"})), chat("Red."))
    ran = await codex.succeeds("Which colour?")
    assert ran.answer == "Red."
    assert "data:image/png;base64," in json.dumps(codex.backend.turns[1].json["messages"][-2:])


async def test_an_image_of_the_user_is_shown_to_the_model(codex: Codex) -> None:
    (codex.home / "dot.png").write_bytes(PNG)
    codex.backend.script(chat("Red."))
    ran = await codex.succeeds("Which colour?", f"--image={codex.home / 'dot.png'}")
    assert ran.answer == "Red."
    content = codex.backend.turns[0].json["messages"][-1]["content"]
    [image] = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert base64.b64decode(image.removeprefix("data:image/png;base64,")) == PNG
    assert content[-1] == {"type": "text", "text": "Which colour?"}


async def test_thoughts_come_back_to_the_model(codex: Codex) -> None:
    codex.backend.script(
        chat(reasoning("A plan."), call("exec_command", {"cmd": "true"})), chat(reasoning("It went well."), "Done.")
    )
    ran = await codex.succeeds("Do nothing.")
    assert ran.answer == "Done."
    assert codex.backend.turns[1].json["messages"][-2]["reasoning_content"] == "A plan."
    for thought in codex.heard.answered("reasoning"):
        assert "plan" not in thought["encrypted_content"]


# ── what ./nomyo codex prints ────────────────────────────────────────────────────────────────────────────────────────


async def test_codex_works_with_what_nomyo_codex_prints(codex: Codex) -> None:
    """It knows the model then: its instructions are the catalog's, and it asks for no more than the context has."""
    row = {"id": "test-model", "object": "model", "max_model_len": 20_000}
    codex.backend.routes["GET /v1/models"] = json_answer({"object": "list", "data": [row]})
    await codex.served.app.state.pool.endpoints.look()
    catalog = codex.home / "catalog.json"
    printed = await nomyo("codex", "--url", codex.served.url, "--key", KEY, "--catalog", catalog)
    assert printed.status == 0, printed.err
    codex.lines = printed.out
    codex.backend.script(chat(call("exec_command", {"cmd": "echo made > made.txt"})), chat("Made."))
    ran = await codex.succeeds("Make a file.")
    assert ran.answer == "Made."
    assert (codex.project / "made.txt").read_text() == "made\n"
    assert ran.of_type("error") == [], "nothing about metadata that are missing"
    assert INSTRUCTIONS.strip() in json.dumps(codex.heard.bodies[0], ensure_ascii=False).replace("\\n", "\n")


# ── a model that the catalog knows ───────────────────────────────────────────────────────────────────────────────────


async def test_a_patch_through_the_custom_tool_edits_the_file(codex: Codex) -> None:
    codex.knows_the_model(apply_patch_tool_type="freeform")
    (codex.project / "greeting.txt").write_text("hello\n")
    codex.backend.script(chat(call("apply_patch", {"input": PATCH}, fragments=17)), chat("Patched."))
    ran = await codex.succeeds("Greet the world.")
    assert (codex.project / "greeting.txt").read_text() == PATCHED
    assert [change["status"] for change in ran.of_type("file_change")] == ["completed"]
    [apply_patch] = [tool for tool in codex.heard.bodies[0]["tools"] if tool.get("name") == "apply_patch"]
    assert apply_patch["type"] == "custom"
    [offered] = [
        tool["function"] for tool in codex.backend.turns[0].json["tools"] if tool["function"]["name"] == "apply_patch"
    ]
    assert apply_patch["format"]["definition"] in offered["description"]
    assert [item["input"] for item in codex.heard.answered("custom_tool_call")] == [PATCH]
    assert "Success" in last_tool_answer(codex.backend.turns[1].json)


async def test_a_patch_that_does_not_fit_is_reported_to_the_model(codex: Codex) -> None:
    codex.knows_the_model(apply_patch_tool_type="freeform")
    (codex.project / "greeting.txt").write_text("something else\n")
    codex.backend.script(chat(call("apply_patch", {"input": PATCH})), chat("It does not fit."))
    ran = await codex.run("Greet the world.")
    assert (ran.code, ran.answer) == (0, "It does not fit.")
    assert (codex.project / "greeting.txt").read_text() == "something else\n"
    assert "greeting.txt" in last_tool_answer(codex.backend.turns[1].json)


@pytest.mark.parametrize("lite", [False, True], ids=["tools", "additional_tools"])
async def test_code_mode_runs_a_command(codex: Codex, lite: bool) -> None:
    """`lite` metadata bring the tools in an input item, as a namespace."""
    codex.knows_the_model(tool_mode="code_mode_only", use_responses_lite=lite)
    name = "functions__exec" if lite else "exec"
    code = 'const ran = await tools.exec_command({cmd: `echo "made" > made.txt; cat made.txt`});\ntext(ran.output);'
    codex.backend.script(chat(call(name, {"input": code}, fragments=9)), chat("Made."))
    ran = await codex.succeeds("Make a file.")
    assert (codex.project / "made.txt").read_text() == "made\n"
    assert [item["exit_code"] for item in ran.of_type("command_execution")] == [0]
    assert ran.answer == "Made."
    assert bool(codex.heard.sent("additional_tools")) is lite
    assert name in tools_offered(codex.backend.turns[0].json)
    assert codex.heard.answered("custom_tool_call")[0]["input"] == code
    assert last_tool_answer(codex.backend.turns[1].json).endswith("made\n")


async def test_tool_search_finds_a_tool_that_is_then_called(codex: Codex) -> None:
    codex.knows_the_model(supports_search_tool=True)
    codex.has_the_weather_server()
    codex.backend.script(
        chat(call("tool_search", {"query": "weather forecast", "limit": 3})),
        chat(call("mcp__weather__forecast", {"city": "Oslo"}, id="call_forecast")),
        chat("Take an umbrella."),
    )
    ran = await codex.succeeds("How is the weather in Oslo?")
    [called] = ran.of_type("mcp_tool_call")
    assert (called["server"], called["tool"], called["status"]) == ("weather", "forecast", "completed")
    assert ran.answer == "Take an umbrella."
    before, found, after = (turn.json for turn in codex.backend.turns)
    assert "mcp__weather__forecast" not in tools_offered(before)
    assert "mcp__weather__forecast" in tools_offered(found)
    assert last_tool_answer(after).endswith("Rain in Oslo.")
    assert codex.heard.answered("tool_search_call")[0]["arguments"] == {"query": "weather forecast", "limit": 3}


async def test_a_tool_of_an_mcp_server_is_called(codex: Codex) -> None:
    """Without a search the tools of a server are offered at once, as a namespace."""
    codex.has_the_weather_server()
    codex.backend.script(chat(call("mcp__weather__forecast", {"city": "Oslo"})), chat("Take an umbrella."))
    ran = await codex.succeeds("How is the weather in Oslo?")
    assert [item["status"] for item in ran.of_type("mcp_tool_call")] == ["completed"]
    assert last_tool_answer(codex.backend.turns[1].json).endswith("Rain in Oslo.")


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_sub_agent_does_its_task(codex: Codex, version: str) -> None:
    """The model starts an agent, which asks the same model; v2 brings what agents write to each other as items of its
    own."""
    codex.knows_the_model(multi_agent_version=version)
    codex.settings.append("features.multi_agent_v2=" + json.dumps(version == "v2"))

    def as_parent_or_child(turn: Json) -> Answer:
        last, talk = turn["messages"][-1], json.dumps(turn["messages"])
        tools = {name.split("__")[-1]: name for name in tools_offered(turn)}
        if last.get("tool_call_id") == "call_write":
            return chat("It is written.")
        if "It is written." in talk:
            return chat("My agent has written it.")
        if last.get("tool_call_id") in ("call_start", "call_wait"):
            targets = {"targets": [json.loads(last["content"])["agent_id"]]} if version == "v1" else {}
            return chat(call(tools["wait_agent"], {**targets, "timeout_ms": 10_000}, id="call_wait"))
        if "Write it down." in json.dumps(last):
            return chat(call("exec_command", {"cmd": "echo it > it.txt"}, id="call_write"))
        task = {"message": "Write it down."} | ({"task_name": "writer"} if version == "v2" else {})
        return chat(call(tools["spawn_agent"], task, id="call_start"))

    codex.backend.default = answering(as_parent_or_child)
    ran = await codex.succeeds("Have it written.")
    assert ran.answer == "My agent has written it."
    assert (codex.project / "it.txt").read_text() == "it\n"
    asked_by = {turn.json["messages"][-1]["role"] for turn in codex.backend.turns}
    assert asked_by == {"user", "tool"}, "what an agent is asked must not look as if it had answered it"
    assert bool(codex.heard.sent("agent_message")) is (version == "v2")


# ── over HTTP and WebSockets ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("codex", [HTTP, WEBSOCKET, REFUSED], ids=["http", "websocket", "refused"], indirect=True)
async def test_codex_comes_over_what_the_router_offers(codex: Codex) -> None:
    codex.backend.script(chat(call("exec_command", {"cmd": "true"})), chat("Hello."))
    ran = await codex.succeeds("Say hello.")
    assert ran.answer == "Hello."
    assert codex.heard.refused_upgrades == ([426] if codex.way == REFUSED else [])
    continued = [body for body in codex.heard.bodies if body.get("previous_response_id")]
    if codex.way.transport == "websocket":
        assert codex.heard.bodies[0]["generate"] is False
        assert len(continued) == 2, "Codex began again: it could not continue what it had warmed up"
    else:
        assert continued == []
    assert len(codex.backend.turns) == 2, "a warm-up must not ask the model"


@pytest.mark.parametrize(
    "codex", [Way(asks, kind="openai") for asks in (False, True)], ids=["http", "websocket"], indirect=True
)
async def test_a_backend_that_speaks_responses_itself_is_reached(codex: Codex) -> None:
    codex.backend.script(native("I make it.", call("exec_command", {"cmd": "echo some > made.txt"})), native("Made."))
    ran = await codex.succeeds("Make a file.")
    assert (codex.project / "made.txt").read_text() == "some\n"
    assert ran.answer == "Made."
    first, second = (turn.json for turn in codex.backend.turns)
    assert second["input"][-1]["type"] == "function_call_output"
    assert [item["type"] for item in second["input"][: len(first["input"])]] == [i["type"] for i in first["input"]]
    assert "previous_response_id" not in second, "the backend does not know our ids"
    assert second["tools"] == first["tools"] == codex.heard.bodies[0]["tools"]


@pytest.mark.parametrize(
    "codex",
    [Way(asks, kind=kind) for asks in (False, True) for kind in ("openai-chat", "openai")],
    ids=["http-chat", "http-native", "websocket-chat", "websocket-native"],
    indirect=True,
)
@pytest.mark.parametrize("silent", ["before it begins", "in the middle"])
async def test_codex_waits_for_a_backend_that_is_silent(
    codex: Codex, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """For longer than its patience, 3 s here. An event counts for it, an SSE comment does not."""
    monkeypatch.setattr("api.http.silence.KEEPALIVE_S", 0.7)
    state = codex.served.app.state
    monkeypatch.setattr(state, "config", msgspec.structs.replace(state.config, stream_start_s=0.7))
    codex.settings.append("model_providers.nomyo.stream_idle_timeout_ms=3000")
    if silent == "before it begins":
        say = native if codex.way.kind == "openai" else chat
        codex.backend.script(steps(pause(6), say("I am here.")))
    elif codex.way.kind == "openai":
        codex.backend.script(paused_natively(6, "I am here."))
    else:
        ending = steps(pause(6), chunk({}, finish_reason="stop"), DONE)
        codex.backend.script(chat("I am here.", then=ending))
    ran = await codex.succeeds("Say something.")
    assert ran.answer == "I am here."
    assert len(codex.backend.turns) == 1, "it asked again"


def paused_natively(seconds: float, text: str) -> Answer:
    """The whole answer, with a pause behind its last delta."""

    async def answer(reply: Reply) -> None:
        events = native_events(text, request=reply.request.json)
        last = max(n for n, event in enumerate(events) if event["type"].endswith(".delta"))
        await event_stream(events[: last + 1], then=steps(pause(seconds), *map(frame, events[last + 1 :])))(reply)

    return answer


# ── long conversations, and later ones ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["local", "remote"])
async def test_codex_compacts_and_goes_on(codex: Codex, place: str) -> None:
    """Codex asks the model for a summary itself, or, of a provider that it takes for OpenAI, the server for a sealed
    one."""
    codex.settings.append("model_auto_compact_token_limit=20000")
    codex.provider = "OpenAI" if place == "remote" else "router"
    codex.backend.script(
        chat(call("exec_command", {"cmd": "echo 1 > one.txt"}, id="call_one"), usage=chat_usage(50_000, 10)),
        chat(reasoning("Shorter."), "SUMMARY: one.txt is there."),
        chat(call("exec_command", {"cmd": "echo 2 > two.txt"}, id="call_two")),
        chat("Both are there."),
    )
    ran = await codex.succeeds("Make two files.")
    assert [(codex.project / f"{n}.txt").read_text() for n in ("one", "two")] == ["1\n", "2\n"]
    assert ran.answer == "Both are there."
    whole, summing_up, shortened, last = (turn.json for turn in codex.backend.turns)
    assert tools_offered(summing_up) == set()
    assert "call_one" in json.dumps(summing_up["messages"])
    assert tools_offered(shortened) == tools_offered(whole)
    for turn in (shortened, last):
        talk = json.dumps(turn["messages"])
        assert "SUMMARY: one.txt is there." in talk
        assert "Make two files." in talk
        assert "call_one" not in talk
    assert bool(codex.heard.sent("compaction_trigger")) is (place == "remote")
    if place == "remote":
        assert "SUMMARY" not in json.dumps(codex.heard.bodies), "a sealed summary is not for the client to read"

    codex.backend.script(chat("Still there."))
    assert (await codex.succeeds("Are they?", "resume", "--last")).answer == "Still there."
    resumed = codex.backend.turns[-1].json["messages"]
    assert "SUMMARY: one.txt is there." in json.dumps(resumed)
    assert resumed[-1] == {"role": "user", "content": "Are they?"}


async def test_a_conversation_is_resumed(codex: Codex) -> None:
    codex.backend.script(chat(call("exec_command", {"cmd": "echo 7"})), chat("The number is seven."))
    first = await codex.succeeds("Remember the number.")
    codex.backend.script(chat("Seven, as I said."))
    second = await codex.succeeds("Which number?", "resume", "--last")
    assert second.answer == "Seven, as I said."
    assert second.events[0]["thread_id"] == first.events[0]["thread_id"]
    messages = codex.backend.turns[-1].json["messages"]
    assert [message["role"] for message in messages[-5:]] == ["user", "assistant", "tool", "assistant", "user"]
    assert messages[-2]["content"] == "The number is seven."
    assert messages[-1]["content"] == "Which number?"


async def test_an_answer_fits_the_schema(codex: Codex) -> None:
    schema = {
        "type": "object",
        "properties": {"files": {"type": "integer"}},
        "required": ["files"],
        "additionalProperties": False,
    }
    (codex.home / "schema.json").write_text(json.dumps(schema))
    codex.backend.script(chat(call("exec_command", {"cmd": "ls -A"})), chat('{"files": 1}'))
    answer = codex.home / "answer.json"
    ran = await codex.succeeds(
        "How many?", "--output-schema", str(codex.home / "schema.json"), "--output-last-message", str(answer)
    )
    assert json.loads(ran.answer or "") == {"files": 1}
    assert json.loads(answer.read_text()) == {"files": 1}
    for turn in codex.backend.turns:
        format = turn.json["response_format"]
        assert format["type"] == "json_schema"
        assert format["json_schema"]["schema"] == schema


# ── when it goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "message", "is_final"),
    [
        (http_error(400, "the prompt is odd"), "the prompt is odd", True),
        (http_error(400, "too long", code="context_length_exceeded"), "ran out of room", True),
        (chat("I begin ", finish_reason="length"), "max_output_tokens", True),
        (http_error(500, "out of memory"), "out of memory", False),
        (chat("I begin ", then=sse_error("the model broke")), "the model broke", False),
    ],
    ids=["refused", "too long", "cut off", "broken", "breaks later"],
)
async def test_a_failed_turn_names_its_reason(codex: Codex, answer: Answer, message: str, is_final: bool) -> None:
    """What is not final Codex tries once more, over HTTP, when it had come over a WebSocket."""
    tries = 1 if is_final or codex.way.transport == "http" else 2
    codex.backend.script(*[answer] * tries)
    ran = await codex.run("Say something.")
    assert ran.code == 1, ran.events
    assert ran.events[-1]["type"] == "turn.failed"
    assert message in ran.errors[-1]
    assert len(codex.backend.turns) == tries


async def test_a_wrong_key_is_named(codex: Codex) -> None:
    codex.key = "another key"
    ran = await codex.run("Say something.")
    assert ran.code == 1
    assert "401" in ran.errors[-1]
    assert "Authorization: Bearer" in ran.errors[-1]
    assert codex.backend.turns == []


async def test_a_call_of_an_answer_that_breaks_is_run_once(codex: Codex) -> None:
    codex.retries = 1
    write = call("exec_command", {"cmd": "echo again >> log.txt"})
    codex.backend.script(chat("I write. ", write, then=cut()), chat(write), chat("Written."))
    ran = await codex.run("Write one line.")
    assert (ran.code, ran.answer) == (0, "Written.")
    assert (codex.project / "log.txt").read_text() == "again\n"
    assert len(codex.backend.turns) == 3


async def test_a_failed_conversation_can_be_resumed(codex: Codex) -> None:
    codex.backend.script(http_error(400, "not now"))
    assert (await codex.run("Say hello.")).code == 1
    codex.backend.script(chat("Hello."))
    assert (await codex.succeeds("Please.", "resume", "--last")).answer == "Hello."


async def test_a_codex_that_is_killed_leaves_no_work_behind(codex: Codex) -> None:
    codex.backend.script(chat("I begin ", then=stall()))
    running = asyncio.create_task(codex.run("Say something."))
    await codex.backend.wait_for(lambda backend: backend.in_flight == 1, 10)
    running.cancel()
    await asyncio.wait([running])
    await codex.backend.wait_for(lambda backend: backend.aborts == 1)
