"""Signing in to the live page: a cookie that stands for a key, for the router's own page alone."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http import sessions
from api.http.origins import is_own_page
from core.config import Config
from core.config_checks import parse_config
from core.errors import ConfigError
from core.seals import Sealer
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.keyed import ADMIN, key, keyed_router, secret_of, with_secret
from tests.turns import URL, assert_error, turn

SESSION = "/api/page/session"
ADMINS = "/api/endpoints"


def own(running: Running, **headers: str) -> dict[str, str]:
    """What a browser sends for a script of the router's own page."""
    return {"Origin": running.url, "Sec-Fetch-Site": "same-origin", **headers}


async def sign_in(http: httpx2.AsyncClient, running: Running, secret: str = ADMIN) -> str:
    """The cookie, as a browser sends it back. This client keeps none."""
    answer = await http.post(SESSION, json={"key": secret}, headers=own(running))
    assert answer.status_code == 200, answer.text
    http.cookies.clear()
    return answer.headers["set-cookie"].partition(";")[0]


class TestSigningIn:
    async def test_gives_a_cookie_that_no_script_reads_and_no_other_site_sends(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            assert (await http.get(SESSION)).json() == {"is_admin": False, "asks_for_keys": True, "key": None}
            answer = await http.post(SESSION, json={"key": f" {ADMIN} "}, headers=own(running))
            assert answer.json() == {"is_admin": True, "asks_for_keys": True, "key": "api_key"}
            value, *attributes = answer.headers["set-cookie"].split("; ")
            assert sorted(attributes) == ["HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict"]
            assert ADMIN not in value
            signed_in = await http.get(SESSION, headers={"Cookie": value})
            assert signed_in.json() == {"is_admin": True, "asks_for_keys": True, "key": "api_key"}
            assert (await http.get(ADMINS, headers={"Cookie": value})).status_code == 200
            answer = await http.post(URL, json=turn(), headers=own(running, Cookie=value))
            assert answer.status_code == 200, answer.text

    @pytest.mark.parametrize("given", ["wrong", "", "\ud800", "x" * 5000])
    async def test_takes_a_valid_key(self, given: str, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            body = b'{"key": "\\ud800"}' if given == "\ud800" else None
            sent: dict[str, Any] = {"content": body} if body else {"json": {"key": given}}
            answer = await http.post(SESSION, headers=own(running, **{"Content-Type": "application/json"}), **sent)
            assert_error(answer, 401)
            assert "set-cookie" not in answer.headers

    @pytest.mark.parametrize("body", [b"[]", b"{}", b'{"key": 1}', b'{"key": null}', b'"key"', b"{"])
    async def test_names_what_is_wrong_with_a_body(self, body: bytes, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            answer = await http.post(SESSION, content=body, headers=own(running))
            assert answer.status_code == 400, answer.text

    async def test_takes_the_right_of_an_admin(self, backend: FakeBackend) -> None:
        keys = "user", key("boss", admin=True)
        async with keyed_router(backend, *keys) as running, with_secret(running, "") as http:
            answer = await http.post(SESSION, json={"key": secret_of("user")}, headers=own(running))
            assert_error(answer, 403, code="insufficient_permissions")
            assert "set-cookie" not in answer.headers
            cookie = await sign_in(http, running, secret_of("boss"))
            assert (await http.get(SESSION, headers={"Cookie": cookie})).json()["key"] == "boss"

    async def test_without_keys_everybody_who_may_ask_is_an_admin(self, served: Running) -> None:
        known = {"is_admin": True, "asks_for_keys": False, "key": None}
        async with with_secret(served, "") as http:
            assert (await http.get(SESSION)).json() == known
            answer = await http.post(SESSION, json={"key": "any"}, headers=own(served))
            assert (answer.json(), "set-cookie" in answer.headers) == (known, False)

    async def test_out_ends_it_in_this_browser(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            cookie = await sign_in(http, running)
            answer = await http.delete(SESSION, headers=own(running, Cookie=cookie))
            assert answer.status_code == 204
            assert answer.headers["set-cookie"].startswith(f"{cookie.partition('=')[0]}=; Path=/; Max-Age=0; HttpOnly")


class TestACookie:
    async def test_is_gone_with_its_key(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            made = (await running.http.post("/api/keys", json={"name": "ann", "admin": True})).json()
            cookie = await sign_in(http, running, made["key"])
            assert (await http.get(ADMINS, headers={"Cookie": cookie})).status_code == 200
            made = (await running.http.post("/api/keys/ann/rotate", json={})).json()
            assert_error(await http.get(ADMINS, headers={"Cookie": cookie}), 401)
            assert not (await http.get(SESSION, headers={"Cookie": cookie})).json()["is_admin"]
            cookie = await sign_in(http, running, made["key"])
            assert (await running.http.delete("/api/keys/ann")).status_code == 200
            assert_error(await http.get(ADMINS, headers={"Cookie": cookie}), 401)

    async def test_ends_by_itself(self, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            cookie = await sign_in(http, running)
            now = time.time()
            monkeypatch.setattr(sessions.time, "time", lambda: now + sessions.LASTS_S + 1)
            assert_error(await http.get(ADMINS, headers={"Cookie": cookie}), 401)

    async def test_is_valid_on_every_replica_and_no_other_router(self, backend: FakeBackend) -> None:
        async with (
            keyed_router(backend, secret_key="shared") as one,
            keyed_router(backend, secret_key="shared") as other,
            keyed_router(backend, secret_key="of its own") as stranger,
            with_secret(one, "") as http,
        ):
            cookie = await sign_in(http, one)
            assert (await http.get(f"{other.url}{ADMINS}", headers={"Cookie": cookie})).status_code == 200
            assert_error(await http.get(f"{stranger.url}{ADMINS}", headers={"Cookie": cookie}), 401)
            renamed = cookie.replace(cookie.partition("=")[0], sessions.cookie_name(stranger.app.state))
            assert_error(await http.get(f"{stranger.url}{ADMINS}", headers={"Cookie": renamed}), 401)

    @pytest.mark.parametrize("changed", ["", "x", "nomyo_1_", "{}", "x{}", "{0:.90}", '"{}"', "x" * 50_000])
    async def test_that_is_not_ours_is_none(self, changed: str, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            name, _, value = (await sign_in(http, running)).partition("=")
            answer = await http.get(ADMINS, headers={"Cookie": f"{name}={changed.format(value)}"})
            assert answer.status_code == (200 if changed == "{}" else 401)

    async def test_stands_beside_others(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            cookie = await sign_in(http, running)
            answer = await http.get(ADMINS, headers={"Cookie": f"theme=dark; ;x;{cookie} ; a=b=c"})
            assert answer.status_code == 200

    async def test_what_was_sealed_for_something_else_is_none(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            sealer: Sealer = running.app.state.sealer
            name = sessions.cookie_name(running.app.state)
            words = f"{sha256(ADMIN.encode()).hexdigest()} 99999999999"
            for sealed in (
                # As all was before there were purposes: a model may have been made to say it then.
                sealer._fernet(sealer._key).encrypt(words.encode()).decode(),
                sealer.seal(words, "reasoning"),
                sealer.of("session").seal(words, "session"),
                sealer.seal("00 99999999999", "reasoning"),
                sealer.of("x").seal("00 99999999999", "session"),
            ):
                assert_error(await http.get(ADMINS, headers={"Cookie": f"{name}={sealed}"}), 401)

    async def test_does_not_stand_in_for_a_wrong_key(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "wrong") as http:
            cookie = await sign_in(http, running)
            assert_error(await http.get(ADMINS, headers={"Cookie": cookie}), 401)


class TestLaws:
    names = st.from_regex(r"[a-z]{1,8}\.(example|test)", fullmatch=True)

    @given(st.text(alphabet=st.characters(max_codepoint=255), max_size=200))
    def test_any_cookie_header_is_read(self, header: str) -> None:
        assert isinstance(sessions._cookie_in(header.encode("latin-1"), "nomyo_x"), str)

    @given(st.lists(st.tuples(st.sampled_from(["nomyo_x", "nomyo_y", "x"]), st.sampled_from(["", "1", "2=3"]))))
    def test_the_first_of_a_name_counts(self, pairs: list[tuple[str, str]]) -> None:
        header = "; ".join(f"{name}={value}" for name, value in pairs).encode()
        expected = next((value for name, value in pairs if name == "nomyo_x"), "")
        assert sessions._cookie_in(header, "nomyo_x") == expected

    @given(
        names, names, st.sampled_from(["http", "https"]), st.sampled_from(["", ":80", ":443", ":8080"]), st.booleans()
    )
    def test_a_page_is_the_routers_own_by_its_host_and_port_alone(
        self, host: str, other: str, scheme: str, port: str, is_post: bool
    ) -> None:
        config = Config()
        scope = {"type": "http", "method": "POST" if is_post else "GET"}
        of_page = f"{scheme}://{other}{port}".encode()
        headers = {b"host": f"{host}{port}".encode(), b"origin": of_page, b"sec-fetch-site": b"same-origin"}
        assert is_own_page(scope, headers, config) == (host == other)
        headers[b"host"] = f"{host}:1{port[1:]}".encode()
        assert not is_own_page(scope, headers, config)
        assert not is_own_page(scope, headers | {b"origin": b"null"}, config)


class TestPagesOfOthers:
    """A browser sends the cookie with what a page of another port of this host asks: `SameSite` knows no ports."""

    OTHERS = (
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": "app://-"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        # http://host and https://host are two origins, and a proxy in front of us may have taken off the TLS.
        {"Origin": "{}", "Sec-Fetch-Site": "same-site"},
        {"Origin": "{}", "Sec-Fetch-Site": "cross-site"},
    )

    @pytest.mark.parametrize("headers", OTHERS)
    async def test_can_do_nothing_with_it(self, headers: dict[str, str], backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            cookie = await sign_in(http, running)
            here = {name: value.format(running.url) for name, value in headers.items()}
            sent = {"Cookie": cookie, **here}
            assert_error(await http.get(ADMINS, headers=sent), 401)
            assert_error(await http.get("/api/page/responses", headers=sent), 401)
            assert_error(await http.post(URL, json=turn(), headers=sent), 401)
            assert_error(await http.post("/api/endpoints/x/drain", headers=sent), 401)
            assert_error(await http.post(SESSION, json={"key": ADMIN}, headers=sent), 403, code="foreign_origin")
            assert_error(await http.delete(SESSION, headers=sent), 403, code="foreign_origin")
            assert not backend.turns

    async def test_nor_can_what_names_no_page_but_reading(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as http:
            cookie = {"Cookie": await sign_in(http, running)}
            assert (await http.get(ADMINS, headers=cookie)).status_code == 200
            assert_error(await http.post(URL, json=turn(), headers=cookie), 401)
            assert_error(await http.post(SESSION, json={"key": ADMIN}), 403, code="foreign_origin")

    async def test_no_answer_lets_them_read_with_cookies(self, backend: FakeBackend) -> None:
        there = ["https://evil.example"]
        async with keyed_router(backend, cors_origins=there) as running, with_secret(running, "") as http:
            sent = {"Cookie": await sign_in(http, running), "Origin": there[0]}
            answer = await http.get("/", headers=sent)
            assert "access-control-allow-credentials" not in answer.headers


class TestBehindAProxy:
    PUBLIC = "https://router.example/llm"

    async def test_the_cookie_is_secure_and_for_its_path(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, public_url=self.PUBLIC) as running, with_secret(running, "") as http:
            there = {"Origin": "https://router.example", "Sec-Fetch-Site": "same-origin"}
            answer = await http.post(SESSION, json={"key": ADMIN}, headers=there)
            value, *attributes = answer.headers["set-cookie"].split("; ")
            assert sorted(attributes) == ["HttpOnly", "Max-Age=43200", "Path=/llm/", "SameSite=Strict", "Secure"]
            http.cookies.clear()
            answer = await http.post(URL, json=turn(), headers={**there, "Cookie": value})
            assert answer.status_code == 200, answer.text
            elsewhere = {"Cookie": value, "Origin": "https://router.example.evil.example"}
            assert_error(await http.post(URL, json=turn(), headers=elsewhere), 401)

    async def test_its_name_passes_where_no_key_is_asked_for(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, public_url=self.PUBLIC) as running:
            asked = {"Host": "router.example", "Origin": "https://router.example"}
            assert (await running.http.get(ADMINS, headers=asked)).status_code == 200
            asked["Host"] = "other.example"
            assert_error(await running.http.get(ADMINS, headers=asked), 403, code="foreign_host")

    @pytest.mark.parametrize(
        "url", ["router.example", "ftp://router.example", "https://", "https://a b", "https://a/?x"]
    )
    def test_an_address_that_is_none_stops_the_start(self, url: str) -> None:
        with pytest.raises(ConfigError, match="public_url: "):
            parse_config({"endpoints": [{"url": "http://a"}], "public_url": url})
