"""A router without a key, and who may use it: programs of any kind, and web pages of its own machine, but no page of
another site."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from starlette.routing import Route
from starlette.testclient import TestClient
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import router
from cluster import peers
from core.config_checks import parse_config
from core.errors import ConfigError
from serve import check_address
from tests.conftest import Running, running_router
from tests.doors import DOORS, every_door, is_ollamas
from tests.fake_backend import FakeBackend
from tests.turns import assert_error, create

ROOT = Path(__file__).parents[1]
ASK = {"model": "test-model", "input": "Hi"}
EVIL = "https://evil.example"
HOSTS_THAT_PASS = (
    "127.0.0.1:12434",
    "192.168.1.7",
    "8.8.8.8:80",
    "[::1]:12434",
    "[fe80::1]",
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "router",
    "router:12434",
    "ollama.localhost",
    "printer.local:80",
    "host.docker.internal:12434",
    "router.internal.",
)
HOSTS_THAT_DO_NOT = (
    "evil.example",
    "evil.example:12434",
    "EVIL.example.",
    "127.0.0.1.evil.example",
    "localhost.evil.example:80",
    "evil.local.example",
    "evil-internal.example",
    "notlocal.com",
    "127.0.0.1@evil.example",
    "router/evil.example",
    "router evil",
    "router:80:80",
    "[evil.example]",
    "127.1",
    "1.2.3.4.5",
)


def settings(backend: FakeBackend, **more: Any) -> dict[str, Any]:
    return {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}], **more}


class TestHosts:
    @pytest.mark.parametrize("host", HOSTS_THAT_PASS)
    async def test_that_no_site_can_have_pass(self, host: str, served: Running) -> None:
        answer = await served.http.post("/v1/responses", json=ASK, headers={"Host": host})
        assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize("host", HOSTS_THAT_DO_NOT)
    async def test_that_a_site_may_own_are_refused(self, host: str, served: Running, backend: FakeBackend) -> None:
        answer = await served.http.post("/v1/responses", json=ASK, headers={"Host": host})
        assert_error(answer, 403, code="foreign_host")
        assert "allowed_hosts" in answer.json()["error"]["message"]
        assert not backend.turns

    async def test_that_the_settings_name_pass_with_any_port(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, allowed_hosts=["Router.example", "*.team.example"])) as running:
            for host in ("router.example", "ROUTER.example:8080", "a.team.example", "router.example."):
                assert (await running.http.get("/v1/models", headers={"Host": host})).status_code == 200, host
            for host in ("router.example.evil", "team.example", "evil.example"):
                assert (await running.http.get("/v1/models", headers={"Host": host})).status_code == 403, host

    async def test_are_not_looked_at_where_there_is_a_key(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, api_key="secret")) as running:
            for host in (*HOSTS_THAT_PASS, *HOSTS_THAT_DO_NOT):
                assert (await running.http.get("/v1/models", headers={"Host": host})).status_code == 200, host

    @given(
        st.from_regex(r"[a-z0-9-]{1,10}(\.[a-z0-9-]{1,10}){1,3}\.(com|org|example|dev)(:[0-9]{1,5})?", fullmatch=True)
    )
    def test_no_public_name_passes(self, host: str) -> None:
        client = TestClient(router.create_app(parse_config({"endpoints": [{"url": "http://127.0.0.1:9"}]})))
        assert client.get("/health", headers={"Host": host}).status_code == 403

    @pytest.mark.parametrize("host", ["https://router.example", "router.example:80", "", "a b", "a/b"])
    def test_that_are_none_stop_the_start(self, host: str) -> None:
        with pytest.raises(ConfigError, match=r"allowed_hosts\[0\]"):
            parse_config({"endpoints": [{"url": "http://a"}], "allowed_hosts": [host]})


class TestPages:
    @pytest.mark.parametrize(
        "origin",
        ["http://localhost:3000", "http://127.0.0.1", "app://-", "file://", "tauri://localhost", "vscode-webview://1"],
    )
    async def test_of_this_machine_and_of_apps_may_whatever_the_browser_calls_the_site(
        self, origin: str, served: Running
    ) -> None:
        for site in ("cross-site", "same-site", "none"):
            headers = {"Origin": origin, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
            assert (await served.http.post("/v1/responses", json=ASK, headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        ("host", "origin", "status"),
        [
            ("router:8080", "http://router:8080", 200),
            ("router", "http://router", 200),
            ("router", "http://router:80", 200),
            ("ROUTER", "http://router", 200),
            ("router.internal", "https://router.internal", 200),  # TLS ends in front of us
            ("192.168.1.7:12434", "http://192.168.1.7:12434", 200),
            ("router:8080", "http://router:8081", 403),
            ("router", "ftp://router", 403),
            ("router", "http://", 403),
            ("router", "router", 403),
            ("192.168.1.7", "http://192.168.1.8", 403),
        ],
    )
    async def test_of_the_router_itself_may(self, host: str, origin: str, status: int, served: Running) -> None:
        answer = await served.http.post("/v1/responses", json=ASK, headers={"Host": host, "Origin": origin})
        assert answer.status_code == status, answer.text

    @pytest.mark.parametrize("origin", [EVIL, "null", "", "http://localhost.evil.example"])
    async def test_of_other_sites_get_403_at_every_front_door_in_its_own_words(self, origin: str) -> None:
        async with every_door() as (running, backend):
            for path, asked in DOORS.items():
                # What a form or `fetch` without a preflight can send.
                headers = {"Origin": origin, "Content-Type": "text/plain"}
                answer = await running.http.post(path, json=asked, headers=headers)
                assert answer.status_code == 403, path
                error = answer.json()["error"]
                text = error if is_ollamas(path) else error["message"]
                assert "cors_origins" in text
                if not is_ollamas(path):
                    assert error["code"] == "foreign_origin"
            assert not backend.turns

    async def test_of_other_sites_get_403_on_every_route(self, served: Running) -> None:
        asked = 0
        for door in router.DOORS:
            for route in door.routes:
                for method in (route.methods or ()) if isinstance(route, Route) else ():
                    for headers in ({"Origin": EVIL}, {"Host": "evil.example"}):
                        answer = await served.http.request(method, route.path, headers=headers)
                        assert answer.status_code == 403, f"{method} {route.path}"
                        asked += 1
        assert asked > 40
        for path in ("/docs", "/openapi.json", "/nothing", "/v1/nothing"):
            for method in ("GET", "HEAD", "OPTIONS", "POST"):
                for headers in ({"Origin": EVIL}, {"Host": "evil.example"}):
                    assert (await served.http.request(method, path, headers=headers)).status_code == 403

    async def test_cannot_drain_an_endpoint(self, served: Running) -> None:
        (name,) = served.app.state.pool.endpoints
        answer = await served.http.post(
            f"/api/endpoints/{name}/drain", headers={"Origin": EVIL, "Content-Type": "text/plain"}
        )
        assert answer.status_code == 403
        assert (await create(served.http))["status"] == "completed"

    async def test_that_send_no_origin_are_known_by_their_site(self, served: Running) -> None:
        image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        frame = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        for headers in (image, frame, {"Sec-Fetch-Site": "cross-site"}):
            assert_error(await served.http.get("/v1/models", headers=headers), 403, code="foreign_origin")
        assert (await served.http.get("/docs", headers=link)).status_code == 200
        assert (await served.http.head("/docs", headers=link)).status_code == 200
        assert (await served.http.post("/v1/responses", json=ASK, headers=link)).status_code == 403
        for site in ("same-origin", "same-site", "none"):
            assert (await served.http.get("/v1/models", headers={**image, "Sec-Fetch-Site": site})).status_code == 200

    async def test_that_the_settings_name_may(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, cors_origins=[EVIL])) as running:
            headers = {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}
            assert (await running.http.post("/v1/responses", json=ASK, headers=headers)).status_code == 200

    async def test_that_have_the_key_may(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, api_key="secret")) as running:
            headers = {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}
            assert (await running.http.post("/v1/responses", json=ASK, headers=headers)).status_code == 200
            answer = await running.http.post("/v1/responses", json=ASK, headers={**headers, "Authorization": ""})
            assert answer.status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({"Origin": "http://localhost:3000"}, None),
        ({"Origin": "vscode-webview://1a"}, None),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, None),
    ],
)
async def test_the_same_holds_for_websockets(headers: dict[str, str], status: int | None, served: Running) -> None:
    url = served.url.replace("http", "ws") + "/v1/responses"
    if status is None:
        async with connect(url, additional_headers=headers, proxy=None):
            return
    with pytest.raises(InvalidStatus) as raised:
        await connect(url, additional_headers=headers, proxy=None)
    assert raised.value.response.status_code == status
    assert b"foreign_origin" in raised.value.response.body


async def test_no_site_opens_a_websocket_by_a_name_that_leads_here(served: Running) -> None:
    port = served.url.rpartition(":")[2]
    with pytest.raises(InvalidStatus) as raised:
        await connect("ws://evil.example/v1/responses", host="127.0.0.1", port=int(port), proxy=None)
    assert raised.value.response.status_code == 403
    assert b"foreign_host" in raised.value.response.body


class TestWhoNoticesNothing:
    @pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
    async def test_curl(self, served: Running) -> None:
        import asyncio

        for url in (served.url, served.url.replace("127.0.0.1", "localhost")):
            process = await asyncio.create_subprocess_exec(
                "curl", "--silent", "--noproxy", "*", "--fail-with-body", f"{url}/v1/responses",
                "-H", "Content-Type: application/json", "-d", '{"model": "test-model", "input": "Hi"}',
                stdout=subprocess.PIPE,
            )  # fmt: skip
            output, _ = await process.communicate()
            assert process.returncode == 0, output

    async def test_the_official_sdk(self, served: Running) -> None:
        assert (await served.openai.responses.create(model="test-model", input="Hi")).output_text
        async with AsyncOpenAI(
            base_url=f"{served.url.replace('127.0.0.1', 'localhost')}/v1", api_key="none", max_retries=0
        ) as client:
            assert (await client.responses.create(model="test-model", input="Hi")).output_text

    async def test_the_services_of_a_compose_file(self, served: Running) -> None:
        for host in ("router:12434", "nomyo-router", "host.docker.internal:12434"):
            assert (await served.http.post("/v1/responses", json=ASK, headers={"Host": host})).status_code == 200

    async def test_a_reverse_proxy_that_passes_on_the_host_or_does_not(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, allowed_hosts=["llm.example"])) as running:
            own = {"Host": "llm.example", "Origin": "https://llm.example", "Sec-Fetch-Site": "same-origin"}
            for headers in (
                own,
                {"Host": "llm.example"},
                {"Host": "127.0.0.1:12434", "X-Forwarded-Host": "llm.example"},
            ):
                answer = await running.http.post("/v1/responses", json=ASK, headers=headers)
                assert answer.status_code == 200, answer.text

    async def test_peers_at_their_unix_sockets(self, served: Running, short_path: Path) -> None:
        from api.http.protocol import Protocol

        socket = short_path / "peer"
        async with peers.answering(served.app, Protocol, socket):
            # A page may ask what another process answers: its headers go along.
            for headers in ({}, {"origin": EVIL}, {"host": "evil.example", "sec-fetch-site": "cross-site"}):
                answer = await peers.AnswerByHTTP.of(peers.Peer.at(socket), "GET", "/v1/models", headers)
                assert answer.status == 200
                await answer.aclose()

    async def test_clients_in_the_same_process(self, client: httpx2.AsyncClient) -> None:
        assert (await client.get("/health")).status_code == 200
        with TestClient(
            router.create_app(
                parse_config({"endpoints": [{"url": "http://127.0.0.1:9"}], "database": {"url": "sqlite://"}})
            )
        ) as sync:
            assert sync.get("/health").status_code == 200


class TestOpenByMistake:
    """What `serve.py` does not start, and what an application under another server refuses."""

    @pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::", ""])
    def test_serve_stops_where_other_machines_could_use_it(self, address: str, tmp_path: Path) -> None:
        started = started_at(address, tmp_path)
        assert started.returncode != 0
        (line,) = started.stderr.splitlines()
        assert "api_key" in line
        assert "allow_open: true" in line

    @pytest.mark.parametrize(
        "more",
        [{}, {"api_key": "nk-1"}, {"keys": [{"name": "ann", "key": "nk-1"}]}, {"allow_open": True}],
        ids=["nothing", "api_key", "keys", "allow_open"],
    )
    def test_a_key_of_the_settings_opens_it_to_other_machines(self, more: dict[str, Any]) -> None:
        settings = parse_config({"endpoints": [{"url": "http://localhost:1"}], **more})
        with contextlib.nullcontext() if more else pytest.raises(ConfigError):
            check_address("0.0.0.0", settings)

    @pytest.mark.parametrize(
        ("server", "more", "status"),
        [
            (("127.0.0.1", 80), {}, 200),
            (["127.0.0.1", 80], {}, 200),
            (("127.9.9.9", 80), {}, 200),
            (("::1", 80), {}, 200),
            (("::ffff:127.0.0.1", 80), {}, 200),
            (("/run/router.sock", None), {}, 200),
            (("router", None), {}, 200),
            (None, {}, 200),
            (("192.168.1.7", 80), {}, 403),
            (["192.168.1.7", 80], {}, 403),
            (("::ffff:10.0.0.1", 80), {}, 403),
            (("fe80::1%eth0", 80), {}, 403),
            (("8.8.8.8", 80), {}, 403),
            (("192.168.1.7", 80), {"allow_open": True}, 200),
            (("192.168.1.7", 80), {"api_key": "secret"}, 200),
        ],
    )
    async def test_under_another_server_only_loopback_is_served(
        self, server: Any, more: dict[str, Any], status: int
    ) -> None:
        settings = {"endpoints": [{"url": "http://127.0.0.1:9"}], "database": {"url": "sqlite://"}, **more}
        app = router.create_app(parse_config(settings))

        async def with_server(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "server": server}, receive, send)

        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(with_server),
                base_url="http://router",
                headers={"Authorization": "Bearer secret"},
            ) as client,
        ):
            answer = await client.get("/health")
            assert answer.status_code == status
            if status == 403:
                assert "api_key" in answer.text
                assert "allow_open: true" in answer.text


def started_at(address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text("endpoints: [{url: 'http://127.0.0.1:9'}]\ndatabase: {url: 'sqlite://'}\n")
    return subprocess.run(
        [sys.executable, "serve.py", "--host", address, "--port", "0"],
        cwd=ROOT,
        env={"ROUTER_CONFIG": str(folder / "config.yaml")},
        capture_output=True,
        text=True,
        check=False,
    )
