"""`./nomyo env`, `./nomyo codex` and `./nomyo check`, beside a router that runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import tomllib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from backends.fleet import local
from tests.commanding import SettingsFile, nomyo
from tests.conftest import Running, running_router
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import FakeBackend, json_answer
from tests.mcp_server import mcp_server
from tests.site import reply, running_site
from tests.test_restart import ROOT, free_port
from tests.turns import eventually


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsFile:
    monkeypatch.setattr(local, "USUAL_PORTS", {free_port(): "Ollama"})
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    return SettingsFile(tmp_path, monkeypatch)


@pytest.fixture
async def vllm(backend: FakeBackend, stack: AsyncExitStack) -> Running:
    """A router in front of a server that names the context of its models."""
    rows = [
        {"id": "small", "owned_by": "vllm", "max_model_len": 8192},
        {"id": 'qwen3:"32b"', "owned_by": "vllm", "max_model_len": 131072},
    ]
    backend.routes["GET /v1/models"] = json_answer({"object": "list", "data": rows})
    return await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]))


# ── env ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_env_prints_what_openais_sdk_finds_the_router_by(
    vllm: Running, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = await nomyo("env", "--url", vllm.url)
    assert ran.status == 0, ran.err
    comment, *exports = ran.out.splitlines()
    assert comment == '# models: qwen3:"32b", small'
    for line in exports:
        (assignment,) = shlex.split(line.removeprefix("export "))
        monkeypatch.setenv(*assignment.split("=", 1))
    async with AsyncOpenAI() as client:
        response = await client.responses.create(model="small", input="Hi.")
    assert response.output_text == "Hello from the fake backend."
    assert json.loads((await nomyo("env", "--url", f"{vllm.url}/v1/", "--json")).out) == {
        "OPENAI_BASE_URL": f"{vllm.url}/v1",
        "OPENAI_API_KEY": "none",
    }


@pytest.mark.parametrize("place", ["--key", "ROUTER_API_KEY", "the settings"])
async def test_where_a_router_asks_for_a_key_env_has_it(
    place: str, backend: FakeBackend, settings: SettingsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}], api_key="it's secret") as running:
        given: list[str] = []
        if place == "--key":
            given = ["--key", "it's secret"]
        elif place == "the settings":
            settings.write(api_key="it's secret")
        else:
            monkeypatch.setenv(place, "it's secret")
        ran = await nomyo("env", "--url", running.url, *given)
        assert shlex.split(ran.out.splitlines()[-1]) == ["export", "OPENAI_API_KEY=it's secret"]


async def test_behind_a_proxy_the_public_url_of_the_settings_is_taken(vllm: Running, settings: SettingsFile) -> None:
    settings.write(public_url=vllm.url)
    assert json.loads((await nomyo("env", "--json")).out)["OPENAI_BASE_URL"] == f"{vllm.url}/v1"


async def test_an_owner_that_is_not_among_the_owners_is_shown(backend: FakeBackend, settings: SettingsFile) -> None:
    settings.write(
        endpoints=[{"url": backend.url, "kind": "vllm"}],
        keys=[{"name": "ann", "key": "k1", "owner": "reserch"}, {"name": "bob", "key": "k2", "owner": "research"}],
        owners=[{"name": "research", "rpm": 3}],
    )
    found = json.loads((await nomyo("check", "--json")).out)["found"]
    assert [one["line"] for one in found if one["what"] == "owners"] == [
        "'reserch' of the key 'ann' is not one of them: research"
    ]


async def test_what_keeps_a_command_from_the_router_is_one_line(backend: FakeBackend, vllm: Running) -> None:
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}], api_key="secret") as locked:
        nobody = f"http://127.0.0.1:{free_port()}"
        expected = {
            ("--url", nobody): "./nomyo serve",
            ("--url", "nowhere"): "begins with http:// or https:// (--url http://nowhere)",
            ("--url", backend.url): "no nomyo-router",
            ("--url", locked.url): "asks for a key",
            ("--url", locked.url, "--key", "wrong"): "does not take this key",
        }
        for arguments, words in expected.items():
            ran = await nomyo("env", *arguments)
            assert (ran.status, ran.out) == (1, "")
            (line,) = ran.err.splitlines()
            assert words in line


@pytest.mark.parametrize("ending", ["\n", "\r", "\x0b", "\x1b]0;", "\x85", "\u2028", "\x9b2J"])
async def test_what_a_server_calls_its_models_is_neither_run_nor_read_as_settings(
    ending: str, backend: FakeBackend, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    name = f"small{ending}touch {ran}{ending}notify = ['sh']"
    rows = [{"id": name, "owned_by": "vllm", "max_model_len": 8192}]
    backend.routes["GET /v1/models"] = json_answer({"object": "list", "data": rows})
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]) as running:
        variables = await nomyo("env", "--url", running.url)
        assert len(variables.out.splitlines()) == 3
        shell = await asyncio.create_subprocess_exec("bash", "-c", 'eval "$1"', "bash", variables.out)
        assert (await shell.wait(), ran.exists()) == (0, False)
        codex = await nomyo("codex", "--url", running.url)
        assert "notify" not in tomllib.loads(codex.out)
        unknown = await nomyo("codex", "--url", running.url, "--model", "other")
        printed = variables.out + codex.out + unknown.err
        assert "small" in printed
        assert printed.replace("\n", "").isprintable(), "nothing of it moves a terminal"


def entries_in(catalog: str | Path) -> list[dict[str, Any]]:
    return json.loads(Path(catalog).read_text())["models"]


# ── codex ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_codex_gets_the_router_and_a_catalog_with_the_contexts_that_the_servers_name(
    vllm: Running, tmp_path: Path
) -> None:
    ran = await nomyo("codex", "--url", vllm.url)
    assert ran.status == 0, ran.err
    lines = tomllib.loads(ran.out)
    assert lines == {
        "model": 'qwen3:"32b"',
        "model_provider": "nomyo",
        "model_catalog_json": str(tmp_path / "codex" / "nomyo-models.json"),
        "model_providers": {
            "nomyo": {"name": "nomyo-router", "base_url": f"{vllm.url}/v1", "wire_api": "responses"},
        },
    }
    entries = entries_in(lines["model_catalog_json"])
    assert [(one["slug"], one["context_window"]) for one in entries] == [('qwen3:"32b"', 131072), ("small", 8192)]
    assert entries[1]["truncation_policy"]["limit"] == 1024, "one command must not fill a small context"
    small = await nomyo("codex", "--url", vllm.url, "--model", "small")
    assert small.out.startswith("# small has a context of 8192 tokens, and Codex wants 32768 or more")
    assert all(one["base_instructions"] for one in entries)


async def test_codex_takes_another_model_another_place_and_a_key(backend: FakeBackend, tmp_path: Path) -> None:
    backend.models = ["a", "b"]
    file = tmp_path / "new" / "catalog.json"
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}], api_key="secret") as running:
        ran = await nomyo("codex", "--url", running.url, "--key", "secret", "--model", "b", "--catalog", file)
        lines = tomllib.loads(ran.out)
        assert (lines["model"], lines["model_catalog_json"]) == ("b", str(file))
        assert lines["model_providers"]["nomyo"]["env_key"] == "ROUTER_API_KEY"
        assert "secret" not in ran.out
        assert entries_in(file)[0]["slug"] == "b"
        wrong = await nomyo("codex", "--url", running.url, "--key", "secret", "--model", "c")
        assert "there is no model 'c'; there are: a, b" in wrong.err


async def test_a_catalog_that_has_no_place_is_one_line(vllm: Running, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in {
        "~nobody-has-this-name/c.json": "no such home",
        tmp_path / "file" / "c.json": "written",
    }.items():
        ran = await nomyo("codex", "--url", vllm.url, "--catalog", place)
        assert (ran.status, ran.out) == (1, "")
        assert words in ran.err
        assert "(--catalog)" in ran.err


async def test_a_model_of_ollamas_that_is_not_loaded_has_no_context_yet_and_codex_is_shown_what_to_do(
    backend: FakeBackend, tmp_path: Path
) -> None:
    async with running_router(endpoints=[{"url": backend.url, "kind": "ollama"}]) as running:
        ran = await nomyo("codex", "--url", running.url)
    assert "OLLAMA_CONTEXT_LENGTH" in ran.out
    assert tomllib.loads(ran.out)["model"] == "test-model"
    (entry,) = entries_in(tmp_path / "codex" / "nomyo-models.json")
    assert entry["context_window"] is None


@pytest.mark.parametrize(
    ("can", "expected"),
    [
        (["completion"], {"input_modalities": ["text"], "supported_reasoning_levels": []}),
        (["completion", "vision"], {"input_modalities": ["text", "image"]}),
        (["completion", "thinking"], {"default_reasoning_level": "medium", "supports_reasoning_summaries": True}),
    ],
)
async def test_the_catalog_has_what_a_model_can_do(
    stack: AsyncExitStack, backend: FakeBackend, tmp_path: Path, can: list[str], expected: dict[str, Any]
) -> None:
    facts = {"models": {"test-model": {"context": 4096, "capabilities": can}, "bert": {"capabilities": ["embedding"]}}}
    rows = [{"id": "test-model"}, {"id": "bert"}]
    backend.routes["GET /v1/models"] = json_answer({"object": "list", "data": rows, "nomyo": facts})
    ran = await nomyo("codex", "--url", backend.url)
    assert ran.status == 0, ran.err
    (entry,) = entries_in(tmp_path / "codex" / "nomyo-models.json")
    assert entry | expected == entry


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_check_of_what_is_right_ends_with_0(settings: SettingsFile, backend: FakeBackend) -> None:
    settings.write(endpoints=[{"url": backend.url, "kind": "vllm", "name": "gpu"}])
    ran = await nomyo("check")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"ok     settings: {settings.file}",
        "ok     access: no key in the settings: this machine alone is served",
        "ok     database: in memory: gone when the router stops",
        f"ok     gpu ({backend.url}): vllm, 1 model",
    ]
    as_json = json.loads((await nomyo("check", "--json")).out)
    assert as_json["ok"] is True
    assert [one["what"] for one in as_json["found"]] == ["settings", "access", "database", f"gpu ({backend.url})"]


async def test_check_finds_every_mistake_in_the_settings_at_once(settings: SettingsFile) -> None:
    settings.write(
        endpoints=[{"url": "x"}, {"url": "http://b", "kind": "olama", "wieght": 2}, "http://c"],
        keys=[{"name": "ann"}],
        queue={"max": -1},
        databse={},
        web_search={"url": "http://search"},
        cache={"backend": "valkey"},
    )
    ran = await nomyo("check")
    assert ran.status == 3
    for words in (
        "'x' is not",
        "'olama' is not",
        "'weight'",
        "endpoints[2]",
        "keys[0]",
        "queue.max",
        "'database'",
        "web_search",
        "cache.backend",
    ):
        assert len([line for line in ran.wrong if words in line]) == 1, f"{words}: {ran.out}"
    assert len(ran.wrong) == 9


async def test_without_servers_check_looks_at_the_usual_ports(settings: SettingsFile, backend: FakeBackend) -> None:
    ran = await nomyo("check")
    assert ran.status == 1
    assert "No model server answers at the usual ports" in ran.wrong[0]
    local.USUAL_PORTS[int(backend.url.rpartition(":")[2])] = "vLLM"
    ran = await nomyo("check")
    assert ran.status == 0
    assert "openai-chat, 1 model" in ran.out


async def test_where_a_server_does_not_answer_check_names_another_one_of_this_machine(
    settings: SettingsFile, backend: FakeBackend
) -> None:
    local.USUAL_PORTS[int(backend.url.rpartition(":")[2])] = "vLLM"
    settings.write(endpoints=[{"url": f"http://127.0.0.1:{free_port()}", "kind": "vllm"}])
    ran = await nomyo("check")
    assert ran.status == 1
    assert "refused the connection. Start it, or correct its url." in ran.wrong[0]
    assert f"`- url: {backend.url}`" in ran.out


async def test_check_finds_names_of_models_that_lead_nowhere(settings: SettingsFile, backend: FakeBackend) -> None:
    settings.write(
        endpoints=[{"url": backend.url, "kind": "vllm", "aliases": {"fast": "tset"}}],
        fallback_models={"gpt-5": ["test-model", "nobody"]},
        keys=[{"name": "ann", "key": "k", "models": ["test*", "qwen*"]}],
    )
    wrong = (await nomyo("check")).wrong
    assert len(wrong) == 3
    assert "`fast: tset`" in wrong[0]
    assert "no server has 'nobody'" in wrong[1]
    assert "'qwen*'" in wrong[2]


async def test_check_asks_what_replicas_share(
    settings: SettingsFile, backend: FakeBackend, valkey: ValkeyServer
) -> None:
    served = {"endpoints": [{"url": backend.url, "kind": "vllm"}]}
    settings.write(**served, cluster={"url": valkey.url})
    ran = await nomyo("check")
    assert (ran.status, ran.wrong) == (0, []), ran.out
    assert "Valkey (127.0.0.1:" in ran.out
    settings.write(**served, cluster={"url": f"valkey://127.0.0.1:{free_port()}"})
    (line,) = (await nomyo("check")).wrong
    assert line.startswith("Valkey (127.0.0.1:")
    assert line.endswith("start it, or correct cluster.url")


async def test_check_asks_the_servers_of_mcp(settings: SettingsFile, backend: FakeBackend) -> None:
    async with mcp_server() as weather:
        away = f"http://127.0.0.1:{free_port()}/mcp"
        settings.write(
            endpoints=[{"url": backend.url, "kind": "vllm"}],
            mcp={"servers": {"weather": {"url": weather.url}, "away": {"url": away}}},
        )
        ran = await nomyo("check")
    assert "ok     mcp.servers.weather: " in ran.out
    (line,) = ran.wrong
    assert line.startswith("mcp.servers.away: ")
    assert line.endswith("start it, or correct its settings")


async def test_check_makes_a_web_search(settings: SettingsFile, backend: FakeBackend) -> None:
    rows = b'{"results":[{"url":"https://a.example/","title":"A"}]}'
    async with running_site({"/search": reply(rows)}) as site:
        search = {"provider": "searxng", "url": site.url}
        settings.write(endpoints=[{"url": backend.url, "kind": "vllm"}], web_search=search)
        assert "ok     web_search (searxng): 1 results" in (await nomyo("check")).out
        site.answers["/search"] = reply(status="403 Forbidden")
        (line,) = (await nomyo("check")).wrong
        assert "json among search.formats" in line
        site.answers["/search"] = reply(b'{"results":[]}')
        (line,) = (await nomyo("check")).wrong
        assert "finds nothing" in line


# ── without settings ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.heavy
async def test_a_start_in_an_empty_folder_needs_no_settings(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    port, folder = free_port(), tmp_path / "empty"
    folder.mkdir()
    process = await asyncio.create_subprocess_exec(
        ROOT / "nomyo", "serve", f"--port={port}", cwd=folder, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", verify=False) as http:

            async def answers() -> bool:
                with contextlib.suppress(httpx2.TransportError):
                    return (await http.get("/health")).json()["status"] == "ok"
                return False

            await eventually(answers, "the router answers")
            assert (await http.get("/api/endpoints")).json()["local"]
    finally:
        process.terminate()
        _, log = await process.communicate()
    assert f"there is no {folder}/config.yaml: every setting has its default" in log.decode()
    assert (folder / "data" / "router.db").exists()
