"""The live page's files: who gets the page at `/`, and what its browser may do with it."""

from __future__ import annotations

import re

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.page.files import FILES, FOLDER, _wants_page
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.keyed import ADMIN, keyed_router, with_secret
from tests.turns import assert_error

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
HTML = {"Accept": CHROME}
WORDS = "Ollama is running"
# Of a page of another site, in any way that a browser sends it.
EVIL = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}


class TestTheRoot:
    async def test_is_the_page_for_a_browser(self, served: Running) -> None:
        page = await served.http.get("/", headers=HTML)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["vary"] == "Accept"
        assert page.content == (FOLDER / "index.html").read_bytes()

    @pytest.mark.parametrize(
        "accept", [None, "*/*", "application/json", "text/plain, */*;q=0.1", "text/html;q=0", "text/html; q=0.0, */*"]
    )
    async def test_has_ollamas_words_for_all_others(self, accept: str | None, served: Running) -> None:
        answer = await served.http.get("/", headers={"Accept": accept} if accept else {})
        assert (answer.status_code, answer.text, answer.headers["vary"]) == (200, WORDS, "Accept")

    @pytest.mark.parametrize("headers", [{}, HTML])
    async def test_has_ollamas_words_for_a_head_whatever_it_accepts(
        self, headers: dict[str, str], served: Running
    ) -> None:
        answer = await served.http.head("/", headers=headers)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["content-length"] == str(len(WORDS))

    async def test_and_all_files_ask_for_no_key(self, backend: FakeBackend) -> None:
        async with keyed_router(backend) as running, with_secret(running, "") as nobody:
            assert (await nobody.get("/", headers=HTML)).status_code == 200
            for name in FILES:
                if name != "index.html":
                    assert (await nobody.get(f"/page/{name}")).status_code == 200, name
            assert_error(await nobody.get("/page/nothing.js"), 404)
            assert_error(await nobody.get("/api/endpoints"), 401)

    @given(st.text())
    def test_any_accept_is_read(self, accept: str) -> None:
        assert _wants_page(accept) in (True, False)
        assert _wants_page(f"{accept},text/html") or "text/html" in accept.lower()


class TestFiles:
    async def test_are_kept_by_a_browser_and_asked_about(self, served: Running) -> None:
        first = await served.http.get("/page/app.js")
        assert first.headers["cache-control"] == "no-cache"
        assert first.headers["content-type"] == "text/javascript; charset=utf-8"
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}'):
            again = await served.http.get("/page/app.js", headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await served.http.get("/page/app.js", headers={"If-None-Match": '"other"'})).content == first.content
        page = await served.http.get("/", headers=HTML)
        assert page.headers["etag"] != tag
        again = await served.http.get("/", headers=HTML | {"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.headers["vary"]) == (304, "Accept")

    async def test_outside_of_the_folder_are_nobodys(self, served: Running) -> None:
        for path in ("/page/../router.py", "/page/%2e%2e/router.py", "/page/index.html", "/page/", "/page"):
            assert (await served.http.get(path)).status_code == 404, path

    def test_load_and_ask_nothing_of_another_host(self) -> None:
        for name in FILES:
            text = (FOLDER / name).read_text()
            text = re.sub(r'"http://www.w3.org/2000/svg"', "", text)
            assert not re.search(r"""(?:src|href|from|import|fetch|EventSource|url\()\W{1,4}(?:https?:)?//""", text), (
                name
            )

    async def test_hold_no_script_or_style_in_their_markup(self, served: Running) -> None:
        text = (FOLDER / "index.html").read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
        for path in re.findall(r"""(?:href|src)="(page/[^"]*)\"""", text):
            assert (await served.http.get(f"/{path}")).status_code == 200, path

    def test_make_no_markup_out_of_text(self) -> None:
        for name in FILES:
            if name.endswith(".js"):
                text = (FOLDER / name).read_text()
                assert not re.search(
                    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
                )


class TestThePolicy:
    async def test_lets_the_page_load_and_ask_this_router_alone(self, served: Running) -> None:
        for path in ("/", "/page/app.js", "/page/style.css", "/page/icon.svg"):
            headers = (await served.http.get(path, headers=HTML)).headers
            policy = {
                name: values for name, *values in (p.split() for p in headers["content-security-policy"].split(";"))
            }
            assert policy.pop("trusted-types") == ["'none'"]
            assert policy.pop("require-trusted-types-for") == ["'script'"]
            assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
            assert {value for values in policy.values() for value in values} == {"'none'", "'self'"}
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"


async def test_a_link_from_another_site_may_lead_to_the_page_and_nothing_else(served: Running) -> None:
    link = {**HTML, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await served.http.get("/", headers=link)).status_code == 200
    framed = link | {"Sec-Fetch-Dest": "iframe"}
    assert_error(await served.http.get("/", headers=framed), 403, code="foreign_origin")
    assert_error(await served.http.get("/", headers=HTML | EVIL), 403, code="foreign_origin")


async def test_the_page_is_there_below_a_prefix(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints) as running:
        transport = httpx2.ASGITransport(running.app, root_path="/llm")
        async with httpx2.AsyncClient(transport=transport, base_url="http://router/llm/") as client:
            page = await client.get("", headers=HTML)
            assert page.headers["content-type"].startswith("text/html")
            for path in re.findall(r"""(?:href|src)="(page/[^"]*)\"""", page.text):
                assert (await client.get(path)).status_code == 200, path


async def test_an_admin_key_still_works_as_a_header_beside_the_page(backend: FakeBackend) -> None:
    async with keyed_router(backend) as running, with_secret(running, ADMIN) as admin:
        assert (await admin.get("/api/endpoints", headers={"Cookie": "nomyo=x"})).status_code == 200
