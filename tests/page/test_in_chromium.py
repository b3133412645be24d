"""The live page in a real browser, driven by clicking: what it shows as it happens, what can be done there, and what
cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import DONE, FakeBackend, call, chat, chunk, http_error, reasoning, say, stall, steps, until
from tests.keyed import ADMIN, keyed_router, secret_of
from tests.page.chromium import Chromium, Tab
from tests.page.conftest import MUST_RUN
from tests.site import reply, running_site
from tests.test_restart import free_port, router_process
from tests.turns import URL, create, stream, turn

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(180)]

VIEWS = ("", "endpoints", "turns", "background", "stored", "stored/conversations", "keys", "playground")
# What runs the playground's code, and where openai for node is found.
NODE = Path(__file__).parents[1] / "clients" / "node"
PROGRAMS = {
    "curl": ("bash", "-c"),
    "Python": (sys.executable, "-I", "-c"),
    "node": ("node", "--input-type=module", "-e"),
}
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
LIVE = "document.querySelector('[data-live=live]') !== null"
# A server that goes away, and a session that ends, are errors to a browser, too.
GONE = ["Failed to load resource"]


def at(backend: FakeBackend, name: str = "gpu", **settings: Any) -> dict[str, Any]:
    return {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": name, **settings}


async def signed_in(browser: Chromium, running: Running, **window: Any) -> Tab:
    tab = await browser.open(f"{running.url}/", **window)
    tab.expects = GONE
    await tab.sees("Sign in")
    await tab.write("#key", ADMIN)
    await tab.click("Sign in")
    await tab.until(LIVE)
    return tab


async def state_of(running: Running, name: str = "gpu") -> str:
    endpoints = (await running.http.get("/api/endpoints")).json()["endpoints"]
    return next(endpoint["state"] for endpoint in endpoints if endpoint["name"] == name)


class TestWhatHappensIsSeen:
    async def test_a_stream_appears_as_it_runs(self, backend: FakeBackend, browser: Chromium) -> None:
        go_on = asyncio.Event()
        backend.script(chat("Hello", then=steps(until(go_on), chunk({"content": " you."}, finish_reason="stop"), DONE)))
        async with running_router(endpoints=[at(backend, max_concurrent=4)]) as running:
            tab = await browser.open(f"{running.url}/")
            await tab.sees("of 4 slots, none waits")
            await tab.sees("0 / 4")
            asking = asyncio.create_task(stream(running.http))
            await tab.sees("1 / 4")
            await tab.until("document.querySelector('.turns.running .model')?.innerText === 'test-model'")
            go_on.set()
            await asking
            await tab.sees("0 / 4")
            await tab.until("document.querySelector('.turns:not(.running) .turn')?.innerText.includes('completed')")
            await tab.click("test-model", "summary")
            await tab.sees("First output after")
            await tab.until("document.querySelector('.phase.streamed') !== null")

    async def test_a_server_dies_and_is_seen_dying_and_comes_back(
        self, backend: FakeBackend, browser: Chromium
    ) -> None:
        async with running_router(endpoints=[at(backend)], models_refresh_s=0.2) as running:
            tab = await browser.open(f"{running.url}/#/endpoints")
            await tab.until("document.querySelector('.endpoint .pill.good')?.innerText === 'up'")
            await backend.stop()
            await tab.until("document.querySelector('.endpoint .pill.bad')?.innerText === 'down'")
            assert "connect" in (await tab.text(".endpoint .why")).lower()
            await tab.sees("1 down")
            await tab.click("Overview")
            await tab.sees("No model server answers yet")

    async def test_a_router_that_goes_away_is_seen_to_be_gone(self, backend: FakeBackend, browser: Chromium) -> None:
        async with running_router(endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/")
            tab.expects = GONE
            await tab.until(LIVE)
            running.app.state.stopping.begin(set())
            await tab.sees("The router does not answer.")

    async def test_a_router_that_is_started_again_is_live_again_and_knows_who_looks(
        self, backend: FakeBackend, browser: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = free_port()
        monkeypatch.setattr("tests.test_restart.free_port", lambda: port)
        settings = {
            "endpoints": [at(backend)],
            "api_key": ADMIN,
            "database": {"url": f"sqlite:///{tmp_path}/router.db"},
            "background": {"drain_s": 0.1},
        }
        async with router_process(settings, tmp_path, "serve.py") as (http, process):
            tab = await browser.open(f"{http.base_url}")
            tab.expects += ["net::ERR", *GONE]
            await tab.write("#key", ADMIN)
            await tab.click("Sign in")
            await tab.until(LIVE)
            process.send_signal(signal.SIGTERM)
            await tab.sees("The router does not answer.")
        async with router_process(settings, tmp_path, "serve.py"):
            await tab.until(LIVE, 30)
            await tab.sees("Signed in with api_key")
            assert not await tab.value("document.body.innerText.includes('does not answer')")

    async def test_one_without_servers_names_the_ports_that_were_asked(self, browser: Chromium) -> None:
        async with running_router(endpoints=[]) as running:
            tab = await browser.open(f"{running.url}/")
            await tab.sees("No model server is known yet")
            await tab.sees("127.0.0.1:11434")
            await tab.resize(390, 844)
            assert await tab.value("document.documentElement.scrollWidth") <= 390
            await tab.click("llama.cpp", "[role=tab]")
            await tab.sees("llama-server -m model.gguf")

    async def test_who_waits_for_a_slot_is_seen_waiting(self, backend: FakeBackend, browser: Chromium) -> None:
        backend.script(chat("Hel", then=stall()))
        async with running_router(endpoints=[at(backend, max_concurrent=1)]) as running:
            for _ in range(3):
                await running.http.post(URL, json=turn(background=True))
            tab = await browser.open(f"{running.url}/#/turns")
            await tab.until("document.querySelectorAll('.waiting li').length === 2")
            await tab.sees("is next")
            await tab.sees("1 is before it")

    async def test_nothing_is_asked_of_another_host(self, backend: FakeBackend, browser: Chromium) -> None:
        async with running_router(endpoints=[at(backend)]) as running:
            await create(running.http)
            tab = await browser.open(f"{running.url}/")
            await tab.until(LIVE)
            for view in VIEWS:
                await tab.value(f"location.hash = '#/{view}'")
                await tab.until("document.querySelector('main h1') !== null")
            assert len(tab.requested) > 20
            assert all(url.startswith(f"{running.url}/") for url in tab.requested), tab.requested


class TestWhatCanBeDone:
    async def test_an_endpoint_is_drained_and_enabled(self, backend: FakeBackend, browser: Chromium) -> None:
        async with running_router(endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/")
            await tab.click("gpu", "a")
            await tab.click("Drain gpu")
            await tab.until("document.querySelector('.endpoint .pill')?.innerText === 'draining'")
            assert await state_of(running) == "draining"
            await tab.click("Enable gpu")
            await tab.until("document.querySelector('.endpoint .pill')?.innerText === 'up'")
            assert await state_of(running) == "up"

    async def test_a_background_turn_is_cancelled(self, backend: FakeBackend, browser: Chromium) -> None:
        backend.script(chat("Hel", then=stall()))
        async with running_router(endpoints=[at(backend)]) as running:
            made = (await running.http.post(URL, json=turn(background=True))).json()
            tab = await browser.open(f"{running.url}/#/background")
            await tab.sees(made["id"])
            await tab.click(f"Cancel {made['id']}")
            await tab.sees("No background turn waits or runs.")
            assert (await running.http.get(f"{URL}/{made['id']}")).json()["status"] == "cancelled"

    async def test_what_is_stored_can_be_looked_into(self, backend: FakeBackend, browser: Chromium) -> None:
        backend.script(chat(reasoning("Hm, a secret."), "It is green."))
        async with running_router(endpoints=[at(backend)]) as running:
            made = await create(running.http, input="What colour is it?")
            tab = await browser.open(f"{running.url}/#/stored")
            await tab.click(made["id"], "a")
            for words in ("What colour is it?", "It is green.", "Hm, a secret.", "test-model"):
                await tab.sees(words)

    async def test_a_cost_of_less_than_a_hundredth_is_not_nothing(
        self, backend: FakeBackend, browser: Chromium
    ) -> None:
        backend.script(chat("Hi"))
        async with keyed_router(backend, "user", prices={"test-model": {"input": 1, "output": 1}}) as running:
            await create(running.http)
            tab = await signed_in(browser, running)
            await tab.click("Keys")
            await tab.sees("cost below 0.01")

    async def test_the_colours_are_switched_and_remembered(self, served: Running, browser: Chromium) -> None:
        tab = await browser.open(f"{served.url}/")
        ground = "getComputedStyle(document.body).backgroundColor"
        await tab.until(LIVE)
        light = await tab.value(ground)
        await tab.click("Colours: system")
        assert await tab.value(ground) != light
        await tab.go(f"{served.url}/#/keys")
        await tab.click("Colours: dark")
        assert await tab.value(ground) == light


class TestThePlayground:
    async def test_streams_a_turn_with_a_tool_call_and_goes_on(self, backend: FakeBackend, browser: Chromium) -> None:
        answers = asyncio.Event()
        backend.script(
            chat(reasoning("I need the weather."), call("get_weather", {"place": "Rome"}, id="call_1")),
            chat("It is ", then=steps(until(answers), chunk({"content": "sunny."}, finish_reason="stop"), DONE)),
        )
        async with running_router(endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/#/playground")
            await tab.until("document.querySelector('#play-model').value === 'test-model'")
            await tab.click("Tools", "summary")
            await tab.click("Add: A function")
            await tab.write("#play-input", "How is the weather in Rome?")
            await tab.click("curl", "[role=tab]")
            await tab.sees("How is the weather in Rome?")
            await tab.click("Events", "[role=tab]")
            await tab.click("Send")
            await tab.sees("calls get_weather")
            await tab.sees("I need the weather.")
            await tab.sees("response.function_call_arguments.done")
            await tab.sees("Completed at gpu")
            await tab.write("#call-call_1", '{"weather": "sunny"}')
            await tab.click("Answer the call")
            await tab.sees("It is")
            assert "sunny." not in await tab.text(".play-talk .growing"), "it is shown as it comes"
            answers.set()
            await tab.sees("It is sunny.")
            tool = backend.turns[-1].json["messages"][-1]
            assert (tool["role"], tool["tool_call_id"], tool["content"]) == ("tool", "call_1", '{"weather": "sunny"}')

    async def test_a_failure_is_shown_as_the_router_words_it(self, backend: FakeBackend, browser: Chromium) -> None:
        backend.script(http_error(400, {"error": {"message": "temperature is too hot"}}))
        async with running_router(endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/#/playground")
            tab.expects = GONE
            await tab.until("document.querySelector('#play-model').value === 'test-model'")
            await tab.click("Send")
            await tab.until("document.activeElement.id === 'play-input'")  # Nothing is written yet: there it goes.
            await tab.write("#play-input", "Hi")
            await tab.click("Send")
            await tab.sees("temperature is too hot")
            await tab.sees("Failed with status 400.")

    async def test_a_turn_is_stopped_at_its_server(self, backend: FakeBackend, browser: Chromium) -> None:
        backend.script(chat("Once upon a time", then=stall()))
        async with running_router(endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/#/playground")
            await tab.until("document.querySelector('#play-model').value === 'test-model'")
            await tab.write("#play-input", "Tell me a story")
            await tab.click("Send")
            await tab.sees("Once upon a time")
            await tab.click("Stop")
            await tab.sees("the router has ended it at its server")
            await backend.wait_for(lambda b: b.aborts == 1)

    async def test_without_a_store_the_whole_conversation_is_sent(
        self, backend: FakeBackend, browser: Chromium
    ) -> None:
        backend.script(say("Four."), say("Eight."))
        async with running_router(endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/#/playground")
            await tab.until("document.querySelector('#play-model').value === 'test-model'")
            await tab.click("Store it", "label")
            await tab.write("#play-input", "Two and two?")
            await tab.click("Send")
            await tab.sees("Four.")
            await tab.sees("Completed")
            await tab.write("#play-input", "Twice that?")
            await tab.click("Send")
            await tab.sees("Eight.")
            texts = [message["content"] for message in backend.turns[-1].json["messages"]]
            assert texts == ["Two and two?", "Four.", "Twice that?"]

    @pytest.mark.parametrize("name", ["Python", "curl", "node"])
    async def test_the_same_request_can_be_made_elsewhere(
        self, name: str, backend: FakeBackend, browser: Chromium
    ) -> None:
        if name == "node" and not (NODE / "node_modules" / "openai").exists():
            pytest.skip("openai is not installed for node: make clients")
        backend.script(say("Here."), say("Elsewhere."))
        words = 'It\'s "quoted", with a $HOME, a \\ and two\nlines; ünï.'
        async with keyed_router(backend, endpoints=[at(backend)]) as running:
            tab = await signed_in(browser, running)
            await tab.value("location.hash = '#/playground'")
            await tab.until("document.querySelector('#play-model').value === 'test-model'")
            await tab.click("Tools", "summary")
            await tab.click("Add: A function")
            await tab.write("#play-input", words)
            await tab.click("Send")
            await tab.sees("Here.")
            await tab.sees("Completed")
            await tab.click(name, "[role=tab]")
            code = await tab.text("[role=tabpanel]:not([hidden]) code")
            environment = {**os.environ, "ROUTER_API_KEY": ADMIN}
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *PROGRAMS[name], code, env=environment, cwd=NODE, stdout=pipe, stderr=pipe
            )
            said, problem = await process.communicate()
            assert "Elsewhere." in said.decode() or b"Else" in said, problem.decode()
            here, elsewhere = (asked.json for asked in backend.turns)
            assert here == elsewhere
            assert here["messages"][-1]["content"] == words


class TestWhoLooks:
    async def test_signs_in_and_out(self, backend: FakeBackend, browser: Chromium) -> None:
        async with keyed_router(backend, "user") as running:
            tab = await browser.open(f"{running.url}/#/keys")
            tab.expects = GONE
            await tab.write("#key", "wrong")
            await tab.click("Sign in")
            await tab.sees("This key is not the router's")
            await tab.write("#key", secret_of("user"))
            await tab.click("Sign in")
            await tab.sees("has the right 'use'")
            await tab.write("#key", ADMIN)
            await tab.click("Sign in")
            await tab.sees("Signed in with api_key")
            assert ADMIN not in await tab.value(
                "document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage })"
            )
            await tab.go(f"{running.url}/#/endpoints")
            await tab.sees("in use")
            await tab.click("Sign out")
            await tab.sees("Give a key that has the right")
            assert "in use" not in await tab.value("document.body.innerText")
            assert (await tab.value("fetch('api/endpoints').then(({ status }) => status)")) == 401

    async def test_is_out_once_the_key_is_revoked(self, backend: FakeBackend, browser: Chromium) -> None:
        async with keyed_router(backend) as running:
            made = (await running.http.post("/api/keys", json={"name": "ann", "admin": True})).json()
            tab = await browser.open(f"{running.url}/")
            tab.expects = GONE
            await tab.write("#key", made["key"])
            await tab.click("Sign in")
            await tab.sees("Signed in with ann")
            assert (await running.http.delete("/api/keys/ann")).status_code == 200
            await tab.sees("Give a key that has the right")

    async def test_needs_no_mouse(self, backend: FakeBackend, browser: Chromium) -> None:
        async with keyed_router(backend, endpoints=[at(backend)]) as running:
            tab = await browser.open(f"{running.url}/")
            tab.expects = GONE
            await tab.until("document.activeElement.id === 'key'")
            await tab.type(ADMIN)
            await tab.press("Enter")
            await tab.sees("Signed in with api_key")
            await _tab_to(tab, "Endpoints")
            await tab.press("Enter")
            await tab.until("location.hash === '#/endpoints' && document.activeElement.id === 'main'")
            await _tab_to(tab, "Drain gpu")
            await tab.press("Enter")
            await tab.until("document.querySelector('.endpoint .pill')?.innerText === 'draining'")
            await tab.value("location.hash = '#/playground'")
            await tab.sees("Reasoning effort")
            await _tab_to(tab, "Events")
            await tab.press("ArrowRight")
            assert await tab.focused() == "curl"
            await tab.sees("curl -N")


async def _tab_to(tab: Tab, words: str) -> None:
    for _ in range(80):
        await tab.press("Tab")
        if await tab.focused() == words:
            seen = await tab.value("getComputedStyle(document.activeElement).outlineStyle")
            assert seen != "none", f"nobody sees that the keyboard is at {words}"
            return
    raise AssertionError(f"the keyboard never comes to {words}")


class TestEveryView:
    async def test_fits_a_phone(self, backend: FakeBackend, browser: Chromium) -> None:
        long = "a-model-with-a-name-that-is-much-longer-than-any-phone-is-wide:70b-instruct-q4_K_M"
        backend.models = ["test-model", long]
        async with running_router(
            endpoints=[at(backend, "a-server-with-quite-a-long-name.example.internal")]
        ) as running:
            await create(running.http)
            await running.http.post("/v1/conversations", json={})
            tab = await browser.open(f"{running.url}/", width=390, height=844)
            await tab.until(LIVE)
            for view in VIEWS:
                await tab.value(f"location.hash = '#/{view}'")
                await tab.until("document.querySelector('main h1') !== null")
                await asyncio.sleep(0.3)
                wide = await tab.value("document.documentElement.scrollWidth")
                assert wide <= 390, f"{view} is {wide} pixels wide"
            await tab.click("Endpoints", "nav a")
            await tab.click("Drain a-server-with-quite-a-long-name.example.internal")
            await tab.sees("draining")

    @pytest.mark.parametrize("dark", [False, True])
    async def test_has_nothing_that_axe_finds(self, dark: bool, backend: FakeBackend, browser: Chromium) -> None:
        if not AXE.exists():
            (pytest.fail if os.environ.get(MUST_RUN) else pytest.skip)(
                "axe-core is not installed: npm ci --prefix tests/page"
            )
        axe = await asyncio.to_thread(AXE.read_text)
        backend.script(http_error(500), chat(reasoning("Hm."), "Hello."), chat("Hel", then=stall()))
        keys: Any = {"name": "ann", "key": "nk-ann-secret", "rpm": 60, "budget": "1M/day"}
        endpoints = [at(backend), {"url": "http://127.0.0.1:9", "kind": "ollama", "name": "away"}]
        async with keyed_router(backend, keys, endpoints=endpoints) as running:
            await running.http.post(URL, json=turn())
            made = await create(running.http)
            await running.http.post(URL, json=turn(background=True))
            await running.http.post("/v1/conversations", json={})
            tab = await browser.open(f"{running.url}/", dark=dark)
            tab.expects = GONE
            await tab.sees("Sign in")
            # Not by the page, whose policy lets no script in that is not the router's.
            await _assert_clean(tab, axe, "sign in")
            await tab.write("#key", ADMIN)
            await tab.click("Sign in")
            await tab.until(LIVE)
            for view in (*VIEWS, f"stored/responses/{made['id']}/"):
                await tab.value(f"location.hash = '#/{view}'")
                await tab.until("document.querySelector('main h1') !== null")
                await asyncio.sleep(0.3)
                await _assert_clean(tab, axe, view)
            await tab.value("location.hash = '#/turns'")
            await tab.click("test-model", "summary")
            await _assert_clean(tab, axe, "a turn that is opened")
            backend.script(chat(reasoning("Hm."), "Well.", call("get_weather", {"place": "Rome"})))
            await tab.value("location.hash = '#/playground'")
            await tab.click("Tools", "summary")
            await tab.click("Add: A function")
            await tab.write("#play-input", "Hi")
            await tab.click("Send")
            await tab.sees("Answer the call")
            await tab.sees("Completed")
            for name in ("Events", "curl"):
                await tab.click(name, "[role=tab]")
                await _assert_clean(tab, axe, f"the playground, {name}")


async def _assert_clean(tab: Tab, axe: str, where: str) -> None:
    await tab.value(f"{axe}; null")
    found = await tab.value(
        "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map("
        "({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => html + failureSummary).join(' | ')}`))"
    )
    assert not found, f"{where}: {found}"


class TestAPageOfAnotherOrigin:
    ASKS = """<!doctype html><title>evil</title><script>
    (async () => {
      const results = {};
      const attempt = async (name, path, options = {}) => {
        try {
          const answer = await fetch(ROUTER + path, { credentials: "include", ...options });
          results[name] = answer.type === "opaque" ? "sent blindly" : `read with ${answer.status}`;
        } catch (error) { results[name] = "refused"; }
      };
      const json = { method: "POST", headers: { "content-type": "application/json" } };
      await attempt("read endpoints", "/api/endpoints");
      await attempt("read responses", "/api/page/responses");
      await attempt("drain", "/api/endpoints/gpu/drain", { method: "POST" });
      await attempt("drain blindly", "/api/endpoints/gpu/drain", { method: "POST", mode: "no-cors" });
      await attempt("turn", "/v1/responses", { ...json, body: TURN });
      await attempt("turn blindly", "/v1/responses", { method: "POST", mode: "no-cors", body: TURN });
      await attempt("sign out", "/api/page/session", { method: "DELETE" });
      const form = document.createElement("form");
      form.method = "post"; form.action = ROUTER + "/api/endpoints/gpu/drain"; form.target = "framed";
      const frame = document.createElement("iframe"); frame.name = "framed";
      document.body.append(form, frame); form.submit();
      await new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 1500); });
      const page = document.createElement("iframe"); page.src = ROUTER + "/";
      document.body.append(page);
      await new Promise((resolve) => { page.onload = resolve; setTimeout(resolve, 1500); });
      window.results = results;
    })();
    </script><body></body>"""

    async def test_can_do_nothing_though_somebody_is_signed_in(self, backend: FakeBackend, browser: Chromium) -> None:
        async with keyed_router(backend, endpoints=[at(backend)]) as running:
            page = self.ASKS.replace("ROUTER", json.dumps(running.url)).replace("TURN", json.dumps(json.dumps(turn())))
            async with running_site({"/": reply(page.encode(), content_type="text/html")}) as site:
                tab = await signed_in(browser, running)
                # The same host and another port: `SameSite` alone keeps nothing out.
                tab.expects = [""]
                await tab.go(site.url.replace("localhost", "127.0.0.1") + "/")
                results = await tab.until("window.results")
                assert "read with 200" not in results.values(), results
                assert {name for name, what in results.items() if what.startswith("read")} <= {"drain", "turn"}, results
                assert await state_of(running) == "up"
                assert not backend.turns
                await tab.go(f"{running.url}/")
                await tab.sees("Signed in with api_key")
