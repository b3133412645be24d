"""The mistakes that a newcomer makes: each is answered with one line that says what to do, at the start, by
`./nomyo check`, or in reply to the request."""

from __future__ import annotations

import asyncio
import getpass
import os
import ssl
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from backends.fleet import local
from tests.commanding import SettingsFile, nomyo
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, http_error
from tests.test_newcomers import started
from tests.test_outbound import certified
from tests.test_restart import free_port
from tests.turns import URL, assert_error, turn


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsFile:
    monkeypatch.setattr(local, "USUAL_PORTS", {free_port(): "Ollama"})
    return SettingsFile(tmp_path, monkeypatch)


async def only_mistake() -> str:
    """The one line of `./nomyo check` about what is wrong."""
    ran = await nomyo("check")
    assert ran.status != 0
    (line,) = ran.wrong
    return line


def assert_named(line: str, *words: str) -> None:
    for word in words:
        assert word in line


# ── in the settings ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_01_a_wrong_port(settings: SettingsFile) -> None:
    settings.write(endpoints=[{"url": f"http://127.0.0.1:{free_port()}", "kind": "ollama"}])
    assert_named(await only_mistake(), "refused the connection", "Start it (`ollama serve`), or correct its url.")


async def test_02_a_servers_key_where_the_routers_belongs(settings: SettingsFile, backend: FakeBackend) -> None:
    backend.routes["GET /v1/models"] = http_error(401, "Incorrect API key")
    settings.write(endpoints=[{"url": backend.url, "kind": "vllm"}], api_key="sk-1")
    assert_named(await only_mistake(), "did not accept the router's key", "Give its key as `api_key` of the endpoint.")


async def test_03_a_typo(settings: SettingsFile) -> None:
    settings.write(endponts=[])
    assert_named(await only_mistake(), f"{settings.file}: unknown key 'endponts'; did you mean 'endpoints'?")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rpm": 3}, "unknown key 'rpm'; it is a key of keys[] and of owners[]"),
        ({"max_entries": 3}, "unknown key 'max_entries'; it is a key of cache"),
        ({"owners": [{"name": "a", "prices": 3}]}, "unknown key 'owners[0].prices'; it is a key of the top"),
        ({"owners": [{"name": "a", "zzz": "x"}]}, "unknown key 'owners[0].zzz'; known: rpm"),
    ],
)
async def test_a_key_one_level_too_high_or_too_low_is_named_with_its_place(
    given: dict[str, Any], words: str, settings: SettingsFile
) -> None:
    settings.write(**given)
    assert_named(await only_mistake(), words)


async def test_04_an_error_of_yaml(settings: SettingsFile) -> None:
    settings.file.write_text("endpoints:\n  - url: http://a\n kind: ollama\n")
    assert_named(await only_mistake(), "is not YAML", f'in "{settings.file}", line 3')


async def test_06_a_variable_that_is_missing(settings: SettingsFile) -> None:
    settings.write(endpoints=[{"url": "http://a", "api_key": "${GPUS_KEY}"}])
    assert_named(await only_mistake(), "endpoints[0].api_key", "GPUS_KEY is not set", "${GPUS_KEY:-…} gives a default")


@pytest.mark.parametrize(
    ("kind", "path", "advice"),
    [
        ("openai-chat", "", "end its url so"),
        ("openai-chat", "/v1", ""),
        ("vllm", "", ""),
        ("vllm", "/v1", ""),
        ("auto", "", ""),
        ("auto", "/v1", ""),
    ],
)
async def test_09_a_url_with_and_without_v1(
    settings: SettingsFile, backend: FakeBackend, kind: str, path: str, advice: str
) -> None:
    settings.write(endpoints=[{"url": backend.url + path, "kind": kind}])
    if advice:
        assert_named(await only_mistake(), "Its API seems to begin at /v1", advice)
    else:
        assert (await nomyo("check")).status == 0


async def test_10_a_certificate_of_ones_own(settings: SettingsFile, stack: AsyncExitStack, tmp_path: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certified(tmp_path, "site.example"))
    server = await stack.enter_async_context(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=tls))
    settings.write(endpoints=[{"url": f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", "kind": "vllm"}])
    assert_named(await only_mistake(), "certificate is not accepted", "name the file of its authority in SSL_CERT_FILE")


async def test_11_one_name_twice(settings: SettingsFile) -> None:
    settings.write(endpoints=[{"url": "http://a", "name": "gpu"}, {"url": "http://b", "name": "gpu"}])
    assert_named(await only_mistake(), "endpoints[1].name: 'gpu' is there twice")


async def test_12_a_wrong_kind(settings: SettingsFile, backend: FakeBackend) -> None:
    settings.write(endpoints=[{"url": backend.url, "kind": "llama-cpp"}])
    assert_named(await only_mistake(), "endpoints[0].kind: 'llama-cpp' is not known; did you mean 'llama.cpp'?")
    del backend.routes["GET /api/tags"]
    settings.write(endpoints=[{"url": backend.url, "kind": "ollama"}])
    assert_named(await only_mistake(), "It answers as a server of another kind does: try `kind: ", "`kind: auto`")


async def test_13_a_negative_number(settings: SettingsFile) -> None:
    settings.write(endpoints=[{"url": "http://a", "max_concurrent": -4}])
    assert_named(await only_mistake(), "endpoints[0].max_concurrent: expected a whole number >= 1")


def nobody() -> str:
    raise KeyError("getpwuid(): uid not found: 10001")


async def test_14_a_folder_that_is_not_writable(
    settings: SettingsFile, backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Any] = {"endpoints": [{"url": backend.url, "kind": "vllm"}]}
    (tmp_path / "file").touch()
    settings.write(**served, database={"url": f"sqlite:///{tmp_path}/file/router.db"})
    assert_named(await only_mistake(), f"database: {tmp_path}/file is no folder: correct database.url")
    if sys.platform != "linux":
        return
    # /proc takes no files of anybody's, not even of root's. A container's user may have no name.
    monkeypatch.setattr(getpass, "getuser", nobody)
    settings.write(**served, database={"url": "sqlite:////proc/router/router.db"})
    assert_named(
        await only_mistake(), "database: /proc: cannot be written: ", f"give it to user {os.getuid()} (chown), or "
    )
    ended = await asyncio.to_thread(started, settings.file, f"--port={free_port()}")
    assert ended.returncode == 3
    (line,) = [line for line in ended.stderr.splitlines() if "cannot start" in line]
    assert_named(line, "database.url")


async def test_15_the_settings_of_the_earlier_nomyo_router(settings: SettingsFile) -> None:
    settings.file.write_text(
        """
endpoints:
  - http://192.168.0.50:11434
  - https://api.openai.com/v1
llama_server_endpoints: [http://192.168.0.60:8080/v1]
max_concurrent_connections: 2
nomyo-router-api-key: secret
api_keys:
  "https://api.openai.com/v1": "${OPENAI_KEY:-}"
"""
    )
    ran = await nomyo("check")
    assert ran.status == 3
    assert [line.partition(f"{settings.file}: ")[2] for line in ran.wrong] == [
        "endpoints[0]: expected keys and values, got text, as in `- url: http://…`",
        "endpoints[1]: expected keys and values, got text, as in `- url: http://…`",
        "unknown key 'llama_server_endpoints', of the earlier nomyo-router; now it is entries of `endpoints` with "
        "`kind: llama.cpp`",
        "unknown key 'max_concurrent_connections', of the earlier nomyo-router; now it is `max_concurrent` of each "
        "endpoint",
        "unknown key 'nomyo-router-api-key', of the earlier nomyo-router; now it is `api_key`",
        "unknown key 'api_keys', of the earlier nomyo-router; now it is `api_key` of each endpoint",
    ]


# ── at the start ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_05_a_port_in_use(settings: SettingsFile, backend: FakeBackend) -> None:
    port = backend.url.rpartition(":")[2]
    ended = await asyncio.to_thread(started, settings.file, f"--port={port}")
    assert ended.returncode == 3
    (line,) = ended.stderr.splitlines()
    assert_named(line, f"port {port} of 127.0.0.1 is in use", "give another port (serve.py --port N")


# ── in a request ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def locked(stack: AsyncExitStack, backend: FakeBackend) -> Running:
    endpoint = {"url": backend.url, "kind": "vllm"}
    return await stack.enter_async_context(running_router(endpoints=[endpoint], api_key="secret"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("", "No key was given"),
        ("secret", "does not begin with 'Bearer '"),
        ("Bearer wrong", "is not the router's"),
    ],
)
async def test_07_a_wrong_key(locked: Running, header: str, words: str) -> None:
    answer = await locked.http.post(URL, json=turn(), headers={"Authorization": header})
    assert_named(assert_error(answer, 401, code="invalid_api_key")["message"], words)


async def test_08_an_unknown_model(locked: Running) -> None:
    answer = await locked.http.post(URL, json=turn(model="tset-model"))
    error = assert_error(answer, 400, code="model_not_found", param="model")
    assert_named(error["message"], "'tset-model' does not exist", "The nearest are: test-model.")
