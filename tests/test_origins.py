"""Web pages: who of them may use the router, and which headers a browser needs for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

import router
from api.http.origins import may_ask
from core.config_checks import parse_config
from core.errors import ConfigError
from tests.conftest import Running, running_router
from tests.doors import DOORS, every_door
from tests.fake_backend import FakeBackend, chat, cut, http_error
from tests.turns import URL

Json = dict[str, Any]

HERE = "http://localhost:3000"
ELSEWHERE = "https://elsewhere.example"
MAY = (
    "http://localhost",
    "https://localhost:5173",
    "http://LOCALHOST:3000",
    "http://127.0.0.1:8080",
    "http://127.9.9.9",
    "http://[::1]:3000",
    "https://0.0.0.0:443",
    "http://tauri.localhost",
    "app://obsidian.md",
    "app://-",
    "file://",
    "tauri://localhost",
    "vscode-webview://1a2b3c",
    "vscode-file://vscode-app",
)
MAY_NOT = (
    ELSEWHERE,
    "null",
    "",
    "localhost",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://evil.example/localhost",
    "http://192.168.1.5",
    "http://[::1",
    "http://user@evil.example:localhost",
    "ftp://localhost",
    "chrome-extension://abcdef",
    "javascript://localhost",
)


def settings(backend: FakeBackend, **more: Any) -> Json:
    return {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}], **more}


def config_with(*origins: str) -> Any:
    return parse_config({"endpoints": [{"url": "http://a"}], "cors_origins": list(origins)})


def cors_of(answer: Any) -> Json:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


class TestWhoMayAsk:
    def test_pages_of_this_machine_and_of_apps(self) -> None:
        for origin in MAY:
            assert may_ask(origin.encode(), config_with()), origin
        for origin in MAY_NOT:
            assert not may_ask(origin.encode(), config_with()), origin

    def test_and_those_that_the_settings_add(self) -> None:
        config = config_with(
            "https://chat.example", "https://*.team.example", "chrome-extension://*", "http://10.0.0.*:3000/", "null"
        )
        for origin in (
            "https://chat.example",
            "https://a.team.example",
            "chrome-extension://abcdef",
            "http://10.0.0.7:3000",
            "null",
            *MAY,
        ):
            assert may_ask(origin.encode(), config), origin
        for origin in (
            "https://chat.example.evil",
            "http://chat.example",
            "https://teamXexample",
            "http://10.0.0.7",
            ELSEWHERE,
        ):
            assert not may_ask(origin.encode(), config), origin

    @given(st.text(st.characters(codec="ascii"), max_size=40))
    def test_a_star_is_everybody_who_has_a_name(self, origin: str) -> None:
        assert may_ask(origin.encode(), config_with("*")) == origin.isprintable()

    @given(st.binary(max_size=60))
    def test_no_origin_is_too_odd_to_be_looked_at(self, origin: bytes) -> None:
        may_ask(origin, config_with("https://a.example"))

    @pytest.mark.parametrize("origin", ["chat.example", "https://", "https://a/b", "https://a b", "", "//a"])
    def test_what_is_no_origin_stops_the_start(self, origin: str) -> None:
        with pytest.raises(ConfigError, match=r"cors_origins\[0\]"):
            config_with(origin)


class TestAnswers:
    async def test_of_every_front_door_can_be_read_by_a_page_that_may_ask_and_by_no_other(self) -> None:
        async with every_door() as (running, _):
            for path, asked in DOORS.items():
                for body, status in ((asked, 200), ({**asked, "model": 5}, 400)):
                    mine = await running.http.post(path, json=body, headers={"Origin": HERE})
                    assert mine.status_code == status, mine.text
                    assert mine.headers["access-control-allow-origin"] == HERE
                    assert mine.headers["vary"] == "Origin"
                    for headers in ({"Origin": ELSEWHERE}, {"Origin": "null"}, {}):
                        other = await running.http.post(path, json=body, headers=headers)
                        assert cors_of(other) == {}, "who may not ask learns of it"
                        assert "vary" not in other.headers

    async def test_of_every_route_that_can_be_got(self, served: Running) -> None:
        for door in router.DOORS:
            for route in door.routes:
                if isinstance(route, Route) and "GET" in (route.methods or ()):
                    for method in ("GET", "HEAD"):
                        # Its head alone: the feed of the page has no end.
                        async with served.http.stream(method, route.path, headers={"Origin": HERE}) as answer:
                            assert answer.headers["access-control-allow-origin"] == HERE
        for path in ("/docs", "/openapi.json", "/nothing", "/v1/responses"):
            assert cors_of(await served.http.get(path, headers={"Origin": HERE}))

    async def test_as_streams_and_with_what_the_page_may_read_of_them(
        self, served: Running, backend: FakeBackend
    ) -> None:
        chatting = {**DOORS["/v1/chat/completions"], "stream": True}
        for path, body in ((URL, {**DOORS[URL], "stream": True}), ("/v1/chat/completions", chatting)):
            backend.script(chat("Hello there"))
            answer = await served.http.post(path, json=body, headers={"Origin": HERE})
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["access-control-allow-origin"] == HERE
            exposed = set(answer.headers["access-control-expose-headers"].split(", "))
            ours = {name for name in answer.headers if name.startswith("x-nomyo-")}
            assert ours
            assert exposed == {*ours, "x-request-id"}

    async def test_of_a_refusal_say_when_to_come_back(self, served: Running, backend: FakeBackend) -> None:
        backend.default = http_error(429, "busy", headers={"Retry-After": "7"})
        answer = await served.http.post(URL, json=DOORS[URL], headers={"Origin": HERE})
        assert answer.status_code == 429
        assert "retry-after" in answer.headers["access-control-expose-headers"]

    async def test_without_the_key_can_be_read_too(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, api_key="secret")) as running:
            headers = {"Origin": HERE, "Authorization": "Bearer wrong"}
            answer = await running.http.post(URL, json=DOORS[URL], headers=headers)
            assert answer.status_code == 401
            assert answer.headers["access-control-allow-origin"] == HERE

    async def test_that_break_off_have_them_since_their_beginning(self, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Hello", then=cut())
        answer = await served.http.post(URL, json={**DOORS[URL], "stream": True}, headers={"Origin": HERE})
        assert answer.headers["access-control-allow-origin"] == HERE
        assert "response.failed" in answer.text


PREFLIGHT = {
    "Origin": HERE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


class TestPreflights:
    async def test_pass_without_a_key_everywhere(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, api_key="secret")) as running:
            del running.http.headers["Authorization"]
            for path in (
                *DOORS,
                "/v1/responses/resp_1",
                "/responses",
                "/openai/v1/models",
                "/nothing",
                "/",
                "/metrics",
            ):
                answer = await running.http.options(path, headers=PREFLIGHT)
                assert (answer.status_code, answer.content) == (204, b""), path
                assert answer.headers["access-control-allow-origin"] == HERE
                assert answer.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
                assert {"POST", "GET", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
                assert int(answer.headers["access-control-max-age"]) > 0
                assert "access-control-allow-private-network" not in answer.headers
        assert not backend.turns

    async def test_of_other_pages_get_nothing(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, api_key="secret")) as running:
            answer = await running.http.options(
                URL, headers={**PREFLIGHT, "Origin": ELSEWHERE, "Authorization": "Bearer wrong"}
            )
            assert answer.status_code == 401
            assert cors_of(answer) == {}

    async def test_for_a_machine_in_a_private_network(self, backend: FakeBackend) -> None:
        headers = {**PREFLIGHT, "Origin": ELSEWHERE, "Access-Control-Request-Private-Network": "true"}
        async with running_router(**settings(backend, cors_origins=[ELSEWHERE])) as running:
            answer = await running.http.options(URL, headers=headers)
            assert answer.headers["access-control-allow-private-network"] == "true"

    async def test_options_that_no_browser_sends_ask_for_the_key(self, backend: FakeBackend) -> None:
        async with running_router(**settings(backend, api_key="secret")) as running:
            for headers in ({}, {"Origin": HERE}, {"Access-Control-Request-Method": "POST"}):
                answer = await running.http.options(URL, headers={**headers, "Authorization": ""})
                assert answer.status_code == 401


async def test_new_settings_hold_for_the_next_page(served: Running) -> None:
    assert cors_of(await served.http.get("/health", headers={"Origin": ELSEWHERE})) == {}
    served.app.state.config = parse_config({"endpoints": [{"url": "http://a"}], "cors_origins": [ELSEWHERE]})
    assert cors_of(await served.http.get("/health", headers={"Origin": ELSEWHERE}))
