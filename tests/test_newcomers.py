"""What whoever starts it for the first time reads when something is wrong: in the log, as a client, and at
/api/endpoints."""

from __future__ import annotations

import asyncio
import logging
import os
import pty
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import jsonschema_rs
import pytest

import backends.fleet.advice
import backends.fleet.endpoint
from tests.clients.codex import documented_lines
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, http_error, json_answer
from tests.test_outbound import certified
from tests.test_restart import free_port
from tests.turns import URL, eventually, turn

ROOT = Path(__file__).parents[1]
HTTPS_WANTED = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


async def at(stack: AsyncExitStack, url: str, kind: str, **settings: object) -> Running:
    """A router in front of one server."""
    endpoint = {"url": url, "kind": kind, "name": "mine", **settings}
    return await stack.enter_async_context(running_router(endpoints=[endpoint]))


async def assert_advised(running: Running, caplog: pytest.LogCaptureFixture, *words: str) -> None:
    """The client, /api/endpoints and the log have the reason, and what can be done about it."""
    (endpoint,) = running.app.state.pool.endpoints.values()
    await eventually(lambda: all(word in caplog.text for word in words), f"the log says {words}")
    shown = (await running.http.get("/api/endpoints")).json()["endpoints"][0]
    answer = await running.http.post(URL, json=turn())
    assert answer.status_code >= 400
    for place in (f"{shown['error']} {shown['advice']}", answer.json()["error"]["message"], caplog.text):
        for word in words:
            assert word in place, f"{word!r} is not in {place!r}"
    assert endpoint.name in answer.json()["error"]["message"]


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nomyo")


class TestServers:
    async def test_an_ollama_without_models(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        backend.models = []
        running = await at(stack, backend.url, "ollama")
        answer = await running.http.post(URL, json=turn())
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_found")
        for place in (answer.json()["error"]["message"], (await running.http.get("/api/endpoints")).text, caplog.text):
            assert "`ollama pull" in place
        assert "mine: it has no models." in answer.json()["error"]["message"]

    async def test_an_ollama_that_is_down(self, stack: AsyncExitStack, caplog) -> None:
        running = await at(stack, f"http://127.0.0.1:{free_port()}", "ollama")
        await assert_advised(running, caplog, "refused the connection", "`ollama serve`")

    async def test_another_server_that_is_down(self, stack: AsyncExitStack, caplog) -> None:
        running = await at(stack, f"http://127.0.0.1:{free_port()}/v1", "openai-chat")
        await assert_advised(running, caplog, "refused the connection", "Start it, or correct its url.")

    async def test_a_server_of_this_machine_asked_for_in_a_container(self, stack, caplog, monkeypatch) -> None:
        monkeypatch.setattr(backends.fleet.advice, "is_in_container", lambda: True)
        running = await at(stack, f"http://localhost:{free_port()}", "ollama")
        await assert_advised(running, caplog, "or correct its url. In a container", "host.docker.internal")

    async def test_a_host_that_has_no_address(self, stack: AsyncExitStack, caplog) -> None:
        running = await at(stack, "http://no-such-host.invalid:11434", "ollama")
        await assert_advised(running, caplog, "could not be resolved", "'no-such-host.invalid'")

    async def test_the_wrong_kind(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        missing = json_answer(
            {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, status=404
        )
        backend.routes |= {f"GET {path}": missing for path in ("/api/tags", "/api/ps")}
        rows = [{"id": "test-model", "owned_by": "llamacpp"}]
        backend.routes["GET /v1/models"] = json_answer({"object": "list", "data": rows})
        running = await at(stack, backend.url, "ollama")
        await assert_advised(running, caplog, "its url or kind is wrong", "`kind: llama.cpp`", "`kind: auto`")

    async def test_a_url_without_its_v1(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        running = await at(stack, backend.url, "openai-chat")
        await assert_advised(running, caplog, "begin at /v1")

    async def test_the_wrong_key(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        backend.routes["GET /v1/models"] = http_error(401, "no")
        running = await at(stack, backend.url, "vllm")
        await assert_advised(running, caplog, "did not accept the router's key", "`api_key`")

    async def test_a_certificate_of_ones_own(self, stack: AsyncExitStack, tmp_path: Path, caplog) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certified(tmp_path, "site.example"))
        server = await stack.enter_async_context(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=tls))
        port = server.sockets[0].getsockname()[1]
        running = await at(stack, f"https://127.0.0.1:{port}", "ollama")
        await assert_advised(running, caplog, "certificate is not accepted", "SSL_CERT_FILE")

    @pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["words", "end"])
    async def test_https_for_http(self, stack: AsyncExitStack, caplog, answer: bytes) -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(answer)
            writer.close()

        server = await stack.enter_async_context(await asyncio.start_server(refuse, "127.0.0.1", 0))
        running = await at(stack, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", "ollama")
        await assert_advised(running, caplog, "http://")

    @pytest.mark.parametrize(
        "answer", [HTTPS_WANTED, b"\x15\x03\x01\x00\x02\x02\x46", b""], ids=["words", "alert", "end"]
    )
    async def test_http_for_https(self, stack: AsyncExitStack, caplog, answer: bytes) -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await stack.enter_async_context(await asyncio.start_server(refuse, "127.0.0.1", 0))
        running = await at(stack, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "vllm")
        await assert_advised(running, caplog, "https://")

    async def test_https_for_http_that_waits_for_more(self, stack: AsyncExitStack, caplog, monkeypatch) -> None:
        monkeypatch.setattr(backends.fleet.endpoint, "LISTING_TIMEOUT_S", 0.2)

        async def read_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await stack.enter_async_context(await asyncio.start_server(read_on, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        for limit in (0.05, 5.0):
            caplog.clear()
            running = await at(stack, f"https://127.0.0.1:{port}", "llama.cpp", connect_timeout_s=limit)
            await assert_advised(running, caplog, "http://")

    async def test_words_and_advice_are_sentences(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        backend.routes |= {f"GET {path}": http_error(404, "File Not Found") for path in ("/api/tags", "/api/ps")}
        running = await at(stack, backend.url, "ollama")
        await assert_advised(running, caplog, "File Not Found", "`kind: ")
        answer = await running.http.post(URL, json=turn())
        for place in (caplog.text, answer.json()["error"]["message"]):
            assert "File Not Found. It answers" in place

    async def test_patterns_that_leave_out_all(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        running = await at(stack, backend.url, "vllm", models={"include": ["qwen*"]})
        await assert_advised(running, caplog, "`models` in its settings leave out all of them")
        assert "Load a model" not in caplog.text

    async def test_an_alias_for_nothing_is_in_the_log_once(self, stack: AsyncExitStack, backend, caplog) -> None:
        running = await at(stack, backend.url, "vllm", aliases={"fast": "tset-model", "good": "test-model"})
        (endpoint,) = running.app.state.pool.endpoints.values()
        await endpoint.look()
        assert caplog.text.count("`fast: tset-model`") == 1
        assert "good" not in (await running.http.get("/api/endpoints")).json()["endpoints"][0]["advice"]
        assert (await running.http.post(URL, json=turn(model="good"))).status_code == 200

    async def test_the_log_names_the_first_models(self, stack: AsyncExitStack, backend: FakeBackend, caplog) -> None:
        backend.models = [f"model-{number}" for number in range(8)]
        await at(stack, backend.url, "vllm")
        assert "serves model-0, model-1, model-2, model-3, model-4 and 3 more" in caplog.text

    @pytest.mark.parametrize("kind", ["ollama", "auto"])
    async def test_an_ollama_with_the_path_of_its_calls(self, stack, backend: FakeBackend, caplog, kind: str) -> None:
        running = await at(stack, f"{backend.url}/api/", kind)
        await assert_advised(running, caplog, "ends in /api", "leave that out")


class TestKeys:
    async def test_a_missing_key_and_a_wrong_one_read_differently(self, stack: AsyncExitStack, backend) -> None:
        endpoint = {"url": backend.url, "kind": "vllm"}
        running = await stack.enter_async_context(running_router(endpoints=[endpoint], api_key="secret"))
        words = []
        for given in ("", "Bearer wrong"):
            answer = await running.http.post(URL, json=turn(), headers={"Authorization": given})
            assert answer.status_code == 401
            words.append(answer.json()["error"]["message"])
        for bare in ("secret", "Basic c2VjcmV0", "Token secret"):
            answer = await running.http.post(URL, json=turn(), headers={"Authorization": bare})
            assert answer.status_code == 401
            assert "does not begin with 'Bearer '" in answer.json()["error"]["message"]
            assert bare not in answer.text
        assert "No key was given." in words[0]
        assert "is not the router's" in words[1]
        assert "wrong" not in words[1]


class TestLog:
    async def test_a_line_a_turn_has_model_endpoint_tokens_and_time(self, stack, backend, caplog) -> None:
        caplog.set_level("INFO")
        endpoint = {"url": backend.url, "kind": "vllm", "name": "mine"}
        running = await stack.enter_async_context(running_router(endpoints=[endpoint], log={"requests": True}))
        identity = (await running.http.post(URL, json=turn())).json()["id"]
        running.app.state.telemetry.count()
        (line,) = [record.getMessage() for record in caplog.records if identity in record.getMessage()]
        for field in ("door=responses", "model=test-model", "endpoint=mine", "status=completed", "input_tokens=7"):
            assert f" {field} " in line
        assert re.search(r" output_tokens=\d+ .* took_s=\d+\.\d+ waited_s=0\.0 tries=1$", line)

    async def test_a_failure_has_them_too(self, stack, backend, caplog) -> None:
        running = await at(stack, backend.url, "vllm")
        backend.default = http_error(500, "the prompt of somebody")
        await running.http.post(URL, json=turn())
        assert re.search(r"resp_\w+: backend_error: test-model at mine, \d+\.\d\d s", caplog.text)
        assert "the prompt of somebody" not in caplog.text


async def test_the_page_of_the_api_has_the_body_of_a_request(stack, backend) -> None:
    running = await at(stack, backend.url, "vllm")
    described = (await running.http.get("/openapi.json")).json()["paths"][URL]["post"]["requestBody"]
    schema = described["content"]["application/json"]["schema"]
    check = jsonschema_rs.validator_for(schema)
    assert "$ref" not in str(schema)
    assert check.is_valid({"model": "m", "input": [{"role": "user", "content": "Hi."}], "stream": True, "more": 1})
    assert not check.is_valid({"model": "m", "input": 5})
    assert {"model", "input", "tools", "previous_response_id", "reasoning"} <= schema["properties"].keys()


def test_the_documented_lines_for_codex_lead_to_the_router_that_make_serve_starts() -> None:
    # tests/clients/codex.py runs Codex with these very lines.
    lines = tomllib.loads(documented_lines())
    provider = lines["model_providers"][lines["model_provider"]]
    makefile = (ROOT / "Makefile").read_text()
    port = re.search(r"^PORT \??= (\d+)", makefile, re.MULTILINE)
    assert port
    assert provider == {
        "name": "nomyo-router",
        "base_url": f"http://127.0.0.1:{port[1]}/v1",
        "wire_api": "responses",
    }
    assert (ROOT / "README.md").read_text().index("./nomyo codex") < 5000, "near its top"


# ── the start, under a terminal and without one ──────────────────────────────────────────────────────────────────────


def settings(folder: Path, text: str = "", workers: int = 1) -> Path:
    file = folder / "config.yaml"
    served = f"endpoints: [{{url: 'http://127.0.0.1:9', kind: ollama}}]\nworkers: {workers}\n"
    file.write_text(text or f"{served}database: {{url: 'sqlite:///{folder}/router.db'}}\n")
    return file


def started(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "serve.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "ROUTER_CONFIG": str(file)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("port", ["99999", "65536", "-1"])
def test_a_port_that_is_none_is_a_line(tmp_path: Path, port: str) -> None:
    ended = started(settings(tmp_path), f"--port={port}")
    assert ended.returncode != 0
    assert ended.stderr == f"nomyo-router cannot start: --port {port} is no port: they are 0 (any) to 65535\n"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("NOMYO_FOO", "1", "there is no such variable; docs/settings.md has all of them"),
        ("ROUTER_API_KYE", "k", "there is no such variable; did you mean 'ROUTER_API_KEY'?"),
        ("ROUTER_WORKERS", "two", "workers: expected a whole number, got text"),
    ],
)
def test_a_wrong_variable_is_one_line_that_begins_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, why: str
) -> None:
    monkeypatch.setenv(name, text)
    ended = started(settings(tmp_path))
    assert ended.returncode != 0
    assert ended.stderr == f"nomyo-router cannot start: {name}: {why}\n"


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "http://127.0.0.1", "203.0.113.5", "a" * 70, "::ffff:203.0.113.5"]
)
@pytest.mark.parametrize("key", ["", "api_key: secret"])
def test_an_address_that_is_not_this_machines_is_a_line(tmp_path: Path, host: str, key: str) -> None:
    file = settings(tmp_path)
    file.write_text(f"{file.read_text()}{key}\n")
    ended = started(file, f"--host={host}", "--port=0")
    assert ended.returncode != 0
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"nomyo-router cannot start: --host {host}: ")
    assert "no such address" in line or not key


@pytest.mark.parametrize("option", ["--workers=4", "--config=other.yaml", "router:app"])
def test_an_option_that_is_none_is_a_line_that_leads_to_the_settings(tmp_path: Path, option: str) -> None:
    ended = started(settings(tmp_path), option)
    assert ended.returncode == 2
    assert option in ended.stderr.splitlines()[-1]
    assert "config.yaml" in ended.stderr.splitlines()[-1]


def test_a_port_that_is_in_use_is_a_line_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = started(settings(tmp_path), f"--port={port}")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert f"port {port} of 127.0.0.1 is in use" in line
    assert "--port N" in line


def test_the_wrong_file_names_the_right_one() -> None:
    ended = subprocess.run([sys.executable, "router.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "serve.py" in ended.stderr


def test_an_error_of_yaml_names_its_file(tmp_path: Path) -> None:
    file = settings(tmp_path, "endpoints: [\n  a: b: c\n")
    ended = started(file)
    assert ended.returncode != 0
    assert f'in "{file}", line 2' in ended.stderr
    assert "unicode string" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def under_a_terminal(command: list[str], environment: dict[str, str], until: Callable[[str], bool]) -> tuple[str, int]:
    """Runs a command under a terminal of its own, presses Ctrl-C there once it has printed what `until` waits for, and
    gives all that it printed and how it ended."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe(command[0], command, environment)
    printed, is_pressed, ends_at = "", False, time.time() + 300
    try:
        while time.time() < ends_at:
            if select.select([terminal], [], [], 0.05)[0]:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # It has closed its terminal: it has ended.
                    break
                printed += data.decode(errors="replace")
            if not is_pressed and until(printed):
                os.write(terminal, b"\x03")
                is_pressed = True
        else:
            os.killpg(pid, signal.SIGKILL)
        return printed, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(terminal)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_it_quietly(tmp_path: Path, workers: int) -> None:
    environment = {**os.environ, "ROUTER_CONFIG": str(settings(tmp_path, workers=workers))}
    command = [sys.executable, "serve.py", "--port", str(free_port())]
    is_up = re.compile("startup complete")
    printed, code = under_a_terminal(command, environment, lambda text: len(is_up.findall(text)) == workers)
    assert code == 0, printed
    assert "Traceback" not in printed, printed
    assert "KeyboardInterrupt" not in printed
    lines = re.sub(r"\x1b\[[0-9;]*m|\^C", "", printed).splitlines()
    without_time = [line for line in lines if line.strip() and not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line)]
    assert without_time == [], "each line of the log has its time"
