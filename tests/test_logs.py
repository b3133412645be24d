"""The log: its lines can be read, as text and as JSON, and hold neither prompts nor keys, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

import api.turns.turn
from core.errors import BackendError
from core.keys import Principal
from core.logs import (
    JsonFormatter,
    RequestLog,
    TextFormatter,
    described_exception,
    described_turn,
    json_line,
    logging_config,
    text_line,
)
from core.tracing import attributes_of
from tests.conftest import Running, running_router
from tests.engines.server import free_port
from tests.fake_backend import FakeBackend, chat, chunk, cut, http_error, json_answer, stream
from tests.test_containers import ROOT
from tests.test_telemetry import record_of
from tests.turns import URL, create, eventually, turn

SECRET = "s3cr3t-7f3a"
MODEL = "test-model"


class Log:
    """What the service would write, in both formats."""

    def __init__(self) -> None:
        self.text, self.json = io.StringIO(), io.StringIO()
        self.handlers = [logging.StreamHandler(self.text), logging.StreamHandler(self.json)]
        for handler, formatter in zip(self.handlers, (TextFormatter(), JsonFormatter()), strict=True):
            handler.setFormatter(formatter)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.json.getvalue().splitlines()]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log()
    root = logging.getLogger()
    for handler in log.handlers:
        root.addHandler(handler)
    yield log
    for handler in log.handlers:
        root.removeHandler(handler)


# ── a line a request ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(), st.text(), st.text())
def test_a_line_of_a_turn_is_one_line_whatever_names_there_are(owner: str, model: str, endpoint: str) -> None:
    record = record_of(principal=Principal("", owner=owner), model=model, endpoint=endpoint)
    described = described_turn(record)
    text = text_line(described)
    assert len(text.splitlines()) == 1
    fields = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', text)
    read = {key: json.loads(value) if value.startswith('"') else value for key, value in fields}
    for key in ("owner", "model", "endpoint"):
        assert read.get(key, "") == described.get(key, "")
    try:
        line = json_line(described)
    except UnicodeEncodeError:
        return  # No name of anything is half a surrogate pair.
    assert json.loads(line)["output_tokens"] == 5
    assert "\n" not in line


@given(st.text(), st.sampled_from(["nomyo.backends", "nomyo", "nomyo.tools"]))
def test_a_line_of_ours_is_one_line_whatever_servers_call_things(text: str, name: str) -> None:
    record = logging.LogRecord(name, logging.INFO, "", 0, "endpoint %s serves m", (text,), None)
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert not text.isprintable() or f"endpoint {text} serves m" in line
    assert json.loads(JsonFormatter().format(record))["message"] == f"endpoint {text} serves m"


def test_a_line_has_what_an_operator_asks_for() -> None:
    assert {key: value for key, value in described_turn(record_of()).items() if key != "time"} == {
        "level": "info",
        "logger": "nomyo.requests",
        "request_id": "req_1",
        "response_id": "resp_1",
        "door": "responses",
        "owner": "ann",
        "key": "laptop",
        "model": MODEL,
        "endpoint": "one",
        "status": "completed",
        "input_tokens": 3,
        "cached_tokens": 1,
        "output_tokens": 5,
        "reasoning_tokens": 2,
        "took_s": 1.5,
        "waited_s": 0.02,
        "tries": 1,
        "first_output_s": 0.5,
    }


async def test_each_request_has_one_line(backend: FakeBackend, written: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one"}
    async with running_router(endpoints=[endpoint], log={"requests": True, "format": "json"}) as running:
        response = await create(running.http)
        await running.http.post(URL, json={})
        await running.http.get(f"/v1/models/{SECRET}", headers={"x-request-id": "mine"})
        async with connect(f"{running.url.replace('http', 'ws')}{URL}") as socket:
            assert socket.response is not None
            assert socket.response.headers["x-request-id"].startswith("req_")
            await socket.send(json.dumps({"type": "response.create", **turn()}))
            while json.loads(await socket.recv())["type"] != "response.completed":
                pass
        job = (await running.http.post(URL, json=turn(background=True))).json()["id"]
        recent = running.app.state.telemetry
        await eventually(lambda: job in [record.id for record in recent.recent], "it has ended")
    lines = [json.loads(one) for one in _lines_of(written)]
    assert sorted(f"{line['door']} {line['status']}" for line in lines) == [
        "background completed",
        "models 404",
        "responses 200",
        "responses 400",
        "responses completed",
        "websocket 101",
        "websocket completed",
    ]
    (ours,) = [line for line in lines if line.get("response_id") == response["id"]]
    assert (ours["model"], ours["endpoint"], ours["tries"]) == (MODEL, "one", 1)
    assert "mine" in {line["request_id"] for line in lines}
    assert SECRET not in str(lines)


async def test_who_may_ask_without_a_key_is_no_owner(backend: FakeBackend, written: Log) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one"}
    log = {"requests": True, "format": "json"}
    async with running_router(endpoints=[endpoint], api_key=SECRET, log=log) as running:
        assert (await running.http.get("/ready")).status_code == 200
        await eventually(lambda: _lines_of(written), "it is logged")
    (line,) = [json.loads(one) for one in _lines_of(written)]
    assert (line["door"], line["status"], line.get("owner")) == ("ready", 200, None)


def _lines_of(written: Log) -> list[str]:
    whole = written.text.getvalue() + written.json.getvalue()
    return [line for line in whole.split("\n") if '"nomyo.requests"' in line]


async def test_lines_of_requests_go_where_all_lines_go(served: Running) -> None:
    """Also where the stream of the log is another one."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    logging.getLogger().handlers.insert(0, handler)
    try:
        RequestLog("text").turns([record_of(), record_of()])
    finally:
        logging.getLogger().removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert dict(part.split("=", 1) for part in shlex.split(lines[0])[4:])["model"] == MODEL


# ── how logging is set up ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("level", ["debug", "warning"])
def test_one_configuration_is_for_all_loggers(log_format: str, level: str) -> None:
    program = f"""
import logging, logging.config
from core.logs import logging_config
logging.config.dictConfig(logging_config({log_format!r}, {level!r}))
for name in ("nomyo.x", "uvicorn.error", "a_library"):
    for word in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), word)("%s of %s", word, name)
try:
    {{}}["the key of a dict"]
except KeyError:
    logging.getLogger("nomyo").exception("it failed")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = ran.stderr.splitlines()
    ours = ["debug", "info", "warning"] if level == "debug" else ["warning"]
    uvicorns = ["info", "warning"] if level == "debug" else ["warning"]
    expected = [*((word, "nomyo.x") for word in ours), *((word, "uvicorn.error") for word in uvicorns)]
    expected.append(("warning", "a_library"))
    if log_format == "json":
        read = [json.loads(line) for line in lines]
        assert [(line["level"], line["logger"]) for line in read[:-1]] == expected
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in read)
        assert read[-1]["traceback"].endswith("KeyError")
    else:
        found = [re.fullmatch(r"\S+ \S+ (\w+) (\S+): (\w+) of (\S+)", line) for line in lines[: len(expected)]]
        assert [(one[3], one[2]) for one in found if one] == expected
    assert "the key of a dict" not in ran.stderr.replace('{}["the key of a dict"]', "")


def test_an_exception_is_shown_without_what_it_may_hold() -> None:
    try:
        try:
            int(SECRET)
        except ValueError as error:
            raise OSError(28, "No space left on device") from error
    except OSError as error:
        shown = described_exception(error)
    group = described_exception(ExceptionGroup(SECRET, [error_of(BackendError(SECRET)), error_of(KeyError(SECRET))]))
    assert [line for line in group.splitlines() if line[:1] != " " and "race" not in line and line] == [
        "ExceptionGroup",
        "which came of this one:",
        "BackendError: backend_error",
        "which came of this one:",
        "KeyError",
    ]
    assert SECRET not in group
    assert "OSError: [Errno 28] No space left on device" in shown
    assert shown.endswith("ValueError")
    assert "test_logs.py" in shown
    assert SECRET not in shown.replace("int(SECRET)", "")


def error_of(error: Exception) -> Exception:
    """It, as it was raised and caught."""
    try:
        raise error
    except Exception as caught:
        return caught


# ── what is never in it ──────────────────────────────────────────────────────────────────────────────────────────────

TOLD = [{"role": "user", "content": [{"type": "input_text", "text": SECRET}]}]
EVERYWHERE: dict[str, Any] = {
    "model": MODEL,
    "input": TOLD,
    "instructions": SECRET,
    "metadata": {"key": SECRET},
    "user": SECRET,
    "prompt_cache_key": SECRET,
    "safety_identifier": SECRET,
    "tools": [
        {"type": "function", "name": "look", "description": SECRET, "parameters": {"description": SECRET}},
        {"type": "web_search", "user_location": {"type": "approximate", "city": SECRET}},
    ],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"title": SECRET, "type": "object"}}},
}
MESSAGES = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}], "user": SECRET}
REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", URL, EVERYWHERE),
    ("POST", URL, EVERYWHERE | {"stream": True, "store": False}),
    ("POST", URL, EVERYWHERE | {"background": True}),
    ("POST", URL, EVERYWHERE | {"tool_choice": {"type": "function", "name": SECRET}}),
    ("POST", URL, EVERYWHERE | {"model": SECRET}),
    ("POST", URL, EVERYWHERE | {"tools": [{"type": SECRET}]}),
    ("POST", URL, {"model": MODEL, "input": TOLD}),
    ("POST", URL, {"model": MODEL, "input": TOLD, "stream": True}),
    ("POST", URL, EVERYWHERE | {"previous_response_id": SECRET}),
    ("POST", URL, {"model": MODEL, "input": SECRET, "temperature": SECRET}),
    ("POST", URL, {"model": MODEL, "input": [{"type": "function_call_output", "call_id": SECRET, "output": SECRET}]}),
    ("POST", URL, {"model": MODEL, "input": "Hi", "nomyo": {"cache": True}, "conversation": SECRET}),
    ("POST", URL, f'{{"model": "{MODEL}", "input": {SECRET}'),
    ("POST", f"{URL}/compact", {"model": MODEL, "input": TOLD}),
    ("POST", f"{URL}/input_tokens", {"model": MODEL, "input": TOLD}),
    ("GET", f"{URL}/{SECRET}?secret={SECRET}", None),
    ("DELETE", f"{URL}/{SECRET}", None),
    ("POST", "/v1/conversations", {"metadata": {"key": SECRET}, "items": TOLD}),
    ("POST", "/v1/chat/completions", MESSAGES),
    ("POST", "/v1/chat/completions", MESSAGES | {"stream": True}),
    ("POST", "/v1/chat/completions", f'{{"model": {SECRET}'),
    ("POST", "/v1/completions", {"model": MODEL, "prompt": SECRET}),
    ("POST", "/v1/embeddings", {"model": MODEL, "input": SECRET}),
    ("POST", "/api/chat", MESSAGES),
    ("POST", "/api/generate", {"model": MODEL, "prompt": SECRET}),
    ("POST", f"/{SECRET}", {"secret": SECRET}),
    ("GET", f"/v1/models/{SECRET}", None),
    ("PATCH", URL, {"secret": SECRET}),
]
ERROR = {"error": {"message": SECRET, "type": "x", "param": SECRET}}
ANSWERS = {
    "an answer": chat(SECRET),
    "a refusal": json_answer(ERROR, status=400),
    "a failure": http_error(500, SECRET),
    "not ready": http_error(503, SECRET),
    "too many": http_error(429, SECRET),
    "no JSON": json_answer(SECRET),
    "broken off": stream(chunk({"content": SECRET}), cut()),
    "reset": stream(chunk({"content": SECRET}), cut(reset=True)),
    "an error in the stream": stream(b"data: " + json.dumps(ERROR).encode() + b"\n\n"),
}


@pytest.mark.parametrize("answer", ANSWERS)
async def test_neither_prompts_nor_keys_get_into_the_log_the_metrics_or_spans(
    answer: str, backend: FakeBackend, written: Log, short_waits: None
) -> None:
    backend.default = ANSWERS[answer]
    endpoint = {
        "url": f"{backend.url}/v1",
        "kind": "openai-chat",
        "name": "one",
        "api_key": SECRET,
        "headers": {"x-key": SECRET},
    }
    keys = [{"name": "laptop", "key": f"sk-{SECRET}-of-ann", "owner": "ann"}]
    async with running_router(endpoints=[endpoint], keys=keys, log={"requests": True}, retry={"max": 1}) as running:
        for method, path, body in REQUESTS:
            given = {"content": body} if isinstance(body, str) else {"json": body} if body is not None else {}
            for key in (f"Bearer sk-{SECRET}-of-ann", f"Bearer {SECRET}"):
                headers = {"Authorization": key, "x-secret": SECRET, "x-request-id": "req-1"}
                await running.http.request(method, path, headers=headers, **given)
        async with connect(
            f"{running.url.replace('http', 'ws')}{URL}",
            additional_headers={"Authorization": f"Bearer sk-{SECRET}-of-ann"},
        ) as socket:
            for message in (
                SECRET,
                json.dumps({"type": SECRET}),
                json.dumps({"type": "response.create", **EVERYWHERE}),
            ):
                await socket.send(message)
                await socket.recv()
        state = running.app.state
        await eventually(lambda: not state.tasks.ids(), "all is over")
        shown = written.text.getvalue() + written.json.getvalue() + str(state.telemetry.figures())
        shown += str([described_turn(record) for record in state.telemetry.recent])
        shown += str([attributes_of(record, "chat") for record in state.telemetry.recent])
    shown += written.text.getvalue() + written.json.getvalue()
    assert "door=websocket" in shown, "nothing was logged at all"
    assert len(backend.turns) > 10, "nobody was asked"
    assert SECRET not in shown, [line for line in shown.splitlines() if SECRET in line][:3]


async def test_a_fault_of_ours_is_logged_without_what_it_was_about(
    served: Running, written: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> None:
        raise ValueError(f"this cannot be: {SECRET}")

    monkeypatch.setattr(api.turns.turn, "affinity_of", fails)
    assert (await served.http.post(URL, json=turn(input=SECRET))).status_code == 500
    (line,) = [line for line in written.lines() if line["level"] == "error"]
    assert line["traceback"].rstrip().endswith("ValueError")
    assert line["request_id"].startswith("req_")
    assert SECRET not in written.text.getvalue() + written.json.getvalue()


async def test_what_asyncio_complains_of_is_shown_without_it_too(written: Log) -> None:
    async def fails() -> None:
        raise ValueError(SECRET)

    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    del task
    await eventually(lambda: "never retrieved" in written.text.getvalue(), "asyncio has complained")
    assert SECRET not in written.text.getvalue() + written.json.getvalue()


def test_libraries_do_not_log_what_they_send() -> None:
    for level in ("debug", "info"):
        config = logging_config("text", level)
        assert config["root"]["level"] == "WARNING"
        assert set(config["loggers"]) == {"nomyo", "uvicorn", "uvicorn.error"}
        assert config["loggers"]["uvicorn"]["level"] == "INFO"


@pytest.mark.heavy
@pytest.mark.parametrize("start", [["serve.py", "--access-log"], ["-m", "uvicorn", "router:app", "--no-access-log"]])
async def test_all_lines_of_the_service_are_in_one_format(
    start: list[str], backend: FakeBackend, tmp_path: Path
) -> None:
    port = free_port()
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one"}],
        "database": {"url": "sqlite://"},
        "log": {"format": "json", "requests": True},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    environment = {**os.environ, "ROUTER_CONFIG": str(tmp_path / "config.yaml")}
    command = (sys.executable, *start, "--port", str(port))
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=log, stdout=log)
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False) as http:

            async def is_there() -> bool:
                await asyncio.sleep(0.05)
                with contextlib.suppress(httpx2.TransportError):
                    return (await http.get("/ready")).status_code == 200
                return False

            await eventually(is_there, (tmp_path / "log").read_text())
            response = await create(http)
    finally:
        process.terminate()
        await process.wait()
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("INFO: ")]
    read = [json.loads(line) for line in lines]
    assert [line["door"] for line in read if line.get("response_id") == response["id"]] == ["responses"]
    assert "Application startup complete." in [line.get("message") for line in read]
    assert not [line for line in read if line["logger"] == "uvicorn.access"]
