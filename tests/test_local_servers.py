"""A router whose settings name no endpoints: it finds the servers of this machine at their usual ports."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

import backends.fleet.endpoint
import backends.fleet.endpoints
from backends.fleet import local
from core.config_checks import parse_config
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.site import reply, running_site
from tests.test_restart import free_port
from tests.turns import URL, assert_error, create, eventually, turn


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The usual ports, which are others here, and looked at quickly again."""
    ports = {free_port(): "Ollama", free_port(): "llama.cpp"}
    monkeypatch.setattr(local, "USUAL_PORTS", ports)
    monkeypatch.setattr(backends.fleet.endpoints, "LOOK_AGAIN_S", 0.02)
    return ports


@pytest.fixture
async def bare(ports: dict[int, str]) -> AsyncIterator[Running]:
    """A router without settings, when no server runs."""
    async with running_router() as running:
        yield running


def port_of(server: FakeBackend) -> int:
    return int(server.url.rpartition(":")[2])


@asynccontextmanager
async def started(port: int) -> AsyncIterator[None]:
    """A model server that appears at a port."""
    server = FakeBackend()
    await server.start(port)
    try:
        yield
    finally:
        await server.stop()


def tried(running: Running) -> dict[int, tuple[str | None, str]]:
    """What came of each port."""
    return {one.port: (one.kind, one.problem) for one in running.app.state.pool.endpoints.local.tried}


async def test_a_server_at_a_usual_port_is_found_at_the_start_and_used(
    ports: dict[int, str], backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nomyo")
    ports[port_of(backend)] = "vLLM"
    async with running_router() as running:
        assert list(running.app.state.pool.endpoints) == [backend.url], "before the first request"
        await create(running.http)
        assert tried(running)[port_of(backend)] == ("openai-chat", "")
        shown = (await running.http.get("/api/endpoints")).json()
    assert [row["kind"] for row in shown["local"]] == [None, None, "openai-chat"]
    assert f"found at port {port_of(backend)} of this machine: a server of the kind openai-chat" in caplog.text


async def test_while_there_is_none_the_reason_names_the_ports_and_what_to_do(
    bare: Running, ports: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    answer = await bare.http.post(URL, json=turn())
    message = assert_error(answer, 502, code="backend_unreachable")["message"]
    assert answer.headers["retry-after"]
    logged = "\n".join(record.getMessage() for record in caplog.get_records("setup"))
    for place in (message, logged):
        assert "No model server answers at the usual ports of 127.0.0.1" in place
        assert all(f"{port} ({usual})" in place for port, usual in ports.items())
        assert "`ollama serve`" in place
        assert "config.yaml" in place
    assert tried(bare) == dict.fromkeys(ports, (None, ""))
    await bare.app.state.pool.endpoints.look()
    assert "No model server answers" not in caplog.text, "looking again is no news"


def test_in_a_container_the_reason_names_how_its_machine_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "is_in_container", lambda: True)
    assert "OLLAMA_URL=http://host.docker.internal:11434" in local.LocalServers("").reason()
    monkeypatch.setattr(local, "is_in_container", lambda: False)
    assert "docker" not in local.LocalServers("").reason()


async def test_it_looks_again_while_there_is_none(bare: Running, ports: dict[int, str]) -> None:
    port = next(iter(ports))
    async with started(port):
        await eventually(lambda: tried(bare)[port][0], "the server is found")
        await create(bare.http)


async def test_a_request_looks_again_at_once(ports: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.fleet.endpoints, "LOOK_AGAIN_S", 3600)
    async with running_router() as running, started(next(iter(ports))):
        await create(running.http)


async def test_while_one_answers_it_looks_no_more_and_when_it_is_gone_another_is_found(
    stack: AsyncExitStack, backend: FakeBackend, ports: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.fleet.endpoint, "PROBE_S", 0.02)
    first = await stack.enter_async_context(FakeBackend())
    ports |= {port_of(first): "vLLM", port_of(backend): "LM Studio"}
    await backend.stop()
    running = await stack.enter_async_context(running_router(models_refresh_s=0.02))
    endpoints = running.app.state.pool.endpoints
    assert list(endpoints) == [first.url]
    await backend.start()
    asked = len(first.requests)
    await first.wait_for(lambda server: len(server.requests) > asked + 2)
    assert list(endpoints) == [first.url], "nobody is looked for while one answers"
    await first.stop()
    await eventually(lambda: backend.url in endpoints, "the other one is found")
    await create(running.http)
    assert list(endpoints) == [first.url, backend.url], "the first one may come back"
    assert [config.url for config in endpoints.local.found] == [first.url, backend.url]


OTHERS: dict[str, tuple[Any, str]] = {
    "a web site": (reply(b"<html>", content_type="text/html"), "no model server"),
    "a site of JSON": (reply(b"{}", content_type="application/json"), "no model server"),
    "a server that asks for a key": (reply(b"{}", status="401 Unauthorized"), "asks for a key"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "no model server"),
}


@pytest.mark.parametrize(("answer", "problem"), OTHERS.values(), ids=OTHERS)
async def test_who_is_no_model_server_is_named_and_not_used(ports: dict[int, str], answer: bytes, problem: str) -> None:
    async with running_site({"/v1/models": answer, "/api/tags": answer}) as site:
        ports[site.port] = "vLLM"
        async with running_router() as running:
            await eventually(lambda: tried(running)[site.port][1], "it was asked")
            kind, said = tried(running)[site.port]
            assert kind is None
            assert problem in said
            assert not running.app.state.pool.endpoints
            asked = len(site.asked)
            for _ in range(3):
                await running.app.state.pool.endpoints.look()
            assert len(site.asked) == asked, "its log is not filled"


async def test_it_never_finds_itself_though_it_asks_for_a_key(ports: dict[int, str]) -> None:
    async with running_router(api_key="secret") as running:
        found = local.LocalServers(running.app.state.pool.endpoints.router_id)
        found.tried = [local.Tried(int(running.url.rpartition(":")[2]), "vLLM")]
        await found.look()
    assert [one.problem for one in found.tried] == ["this router answers"]


async def test_it_never_finds_itself_nor_another_router(
    bare: Running, ports: dict[int, str], stack: AsyncExitStack
) -> None:
    other = await stack.enter_async_context(running_router(endpoints=[{"url": "http://127.0.0.1:9"}]))
    own, others = (int(running.url.rpartition(":")[2]) for running in (bare, other))
    found = local.LocalServers(bare.app.state.pool.endpoints.router_id)
    found.tried = [local.Tried(own, "vLLM"), local.Tried(others, "vLLM")]
    await found.look()
    assert found.found == ()
    assert [one.problem for one in found.tried] == ["this router answers", "another router answers"]


async def test_settings_that_name_one_replace_what_was_found_and_back(
    ports: dict[int, str], backend: FakeBackend, stack: AsyncExitStack
) -> None:
    ports[port_of(backend)] = "vLLM"
    running = await stack.enter_async_context(running_router())
    pool, config = running.app.state.pool, running.app.state.config
    named = await stack.enter_async_context(FakeBackend())
    await pool.reconfigure(replace_endpoints(config, named.url))
    assert [list(pool.endpoints), pool.endpoints.local] == [[named.url], None]
    await pool.reconfigure(config)
    await eventually(lambda: list(pool.endpoints) == [backend.url], "the server of this machine is found again")
    await pool.reconfigure(config)
    assert list(pool.endpoints) == [backend.url], "settings that have not changed change nothing"


def replace_endpoints(config: Any, url: str) -> Any:
    named = parse_config({"endpoints": [{"url": url, "kind": "openai-chat"}]})
    return msgspec.structs.replace(config, endpoints=named.endpoints)
