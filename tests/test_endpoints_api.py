"""/api/endpoints and /metrics: how the fleet stands, and taking endpoints out of it and back."""

from __future__ import annotations

import asyncio
import math
import re
import time
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from core.config_checks import parse_config
from tests.conftest import Running, running_router
from tests.fake_backend import CHAT, FakeBackend, chat, chat_usage, http_error, json_answer, say, stall, steps, until
from tests.test_pool import at, waiting
from tests.turns import URL, assert_error, create, eventually, open_stream, soon, turn


@pytest.fixture
async def two(stack: AsyncExitStack) -> list[FakeBackend]:
    return [await stack.enter_async_context(FakeBackend()) for _ in range(2)]


def named(backend: FakeBackend, name: str, **settings: Any) -> dict[str, Any]:
    return at(backend, name=name, **settings)


async def listed(running: Running) -> dict[str, Any]:
    """The endpoints, by name."""
    answer = await running.http.get("/api/endpoints")
    assert answer.status_code == 200, answer.text
    return {endpoint["name"]: endpoint for endpoint in answer.json()["endpoints"]}


async def steer(running: Running, name: str, verb: str) -> dict[str, Any]:
    answer = await running.http.post(f"/api/endpoints/{name}/{verb}")
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestListing:
    async def test_an_endpoint_is_described(self, backend):
        backend.routes["GET /props"] = json_answer(
            {"total_slots": 3, "default_generation_settings": {"n_ctx": 4096}, "build_info": "b1"}
        )
        endpoint = at(backend, "llama.cpp", name="gpu", priority=2, weight=0.5, aliases={"fast": "test-model"})
        async with running_router(endpoints=[endpoint]) as running:
            await create(running.http)
            assert (await running.http.get("/api/endpoints")).json() == {
                "endpoints": [
                    {
                        "name": "gpu",
                        "url": backend.url,
                        "kind": "llama.cpp",
                        "version": "b1",
                        "state": "up",
                        "error": None,
                        "advice": None,
                        "last_error": None,
                        "in_flight": 0,
                        "max_concurrent": 3,
                        "priority": 2,
                        "weight": 0.5,
                        "outcomes": {"answered": 1},
                        "models": [
                            {"name": name, "there": "test-model", "loaded": True, "context": 4096, "breaker": "closed"}
                            for name in ("fast", "test-model")
                        ],
                    }
                ],
                "queue": {"waiting": 0, "by_key": [], "first": []},
                "config_error": None,
                "local": None,
            }

    async def test_one_that_is_down_says_why(self, two):
        await two[1].stop()
        async with running_router(endpoints=[named(two[0], "a"), named(two[1], "b")]) as running:
            await eventually(lambda: running.app.state.pool.endpoints[f"{two[0].url}/v1"].healthy, "the first is known")
            endpoints = await listed(running)
            assert [endpoint["state"] for endpoint in endpoints.values()] == ["up", "down"]
            assert "could not be reached" in endpoints["b"]["error"]

    async def test_failures_and_breakers_are_shown(self, two):
        two[1].default = http_error(500, "What the prompt was.")
        endpoints = [named(two[0], "good"), named(two[1], "bad", priority=-1)]
        async with running_router(endpoints=endpoints) as running:
            for number in range(5):
                await create(running.http, input=str(number))
            shown = await listed(running)
            assert shown["bad"]["outcomes"] == {"failed": 3}
            assert shown["good"]["outcomes"] == {"answered": 5}
            assert shown["bad"]["models"][0]["breaker"] == "open"
            assert "backend_error" in shown["bad"]["last_error"]
            # Backends repeat prompts in their errors.
            assert "What the prompt was" not in str(shown), "an error's words are shown to everybody"

    async def test_who_runs_and_who_waits_is_shown(self, backend):
        backend.default = stall()
        async with running_router(endpoints=[named(backend, "a", max_concurrent=2)]) as running:
            asked = [asyncio.create_task(create(running.http)) for _ in range(4)]
            other = {"Authorization": "Bearer other"}
            asked.append(asyncio.create_task(running.http.post(URL, json=turn(), headers=other)))
            await waiting(running.app.state.pool, 3)
            assert (await listed(running))["a"]["in_flight"] == 2
            queue = (await running.http.get("/api/endpoints")).json()["queue"]
            assert (queue["waiting"], sorted(queue["by_key"])) == (3, [1, 2])
            assert "other" not in str(queue), "keys are nobody's business"
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await eventually(lambda: running.in_flight() == 0, "they are gone")

    async def test_keys_are_not_shown(self, two):
        with_key = named(two[0], "a", api_key="sk-secret", headers={"X-Key": "sk-other"})
        with_password = named(two[1], "b") | {"url": two[1].url.replace("://", "://me:sk-password@") + "/v1"}
        async with running_router(endpoints=[with_key, with_password]) as running:
            await create(running.http)
            for path in ("/api/endpoints", "/metrics"):
                assert "sk-" not in (await running.http.get(path)).text

    async def test_they_ask_for_the_routers_key(self, backend):
        async with running_router(endpoints=[named(backend, "a")], api_key="secret") as running:
            async with httpx2.AsyncClient(base_url=running.url) as nobody:
                for method, path in (
                    ("GET", "/api/endpoints"),
                    ("GET", "/metrics"),
                    ("POST", "/api/endpoints/a/drain"),
                    ("POST", "/api/endpoints/a/enable"),
                ):
                    assert_error(await nobody.request(method, path), 401, code="invalid_api_key")
            assert (await listed(running))["a"]["state"] == "up"


class TestDraining:
    async def test_new_requests_go_elsewhere_and_running_ones_end(self, two):
        gate = asyncio.Event()
        two[0].script(steps(until(gate), chat("Hello")))
        async with running_router(endpoints=[named(two[0], "a", priority=-1), named(two[1], "b")]) as running:
            running_there = asyncio.create_task(create(running.http))
            await two[0].wait_for(lambda b: b.in_flight == 1)
            assert (await steer(running, "a", "drain"))["state"] == "draining"
            for number in range(3):
                await create(running.http, input=str(number))
            assert (len(two[0].turns), len(two[1].turns)) == (1, 3)
            assert (await listed(running))["a"]["in_flight"] == 1
            gate.set()
            assert (await running_there)["status"] == "completed"
            assert (await listed(running))["a"]["in_flight"] == 0
            assert (await steer(running, "a", "enable"))["state"] == "up"
            await create(running.http, input="Again.")
            assert len(two[0].turns) == 2

    async def test_when_all_are_drained_requests_wait_and_all_are_served_at_once_afterwards(self, backend):
        gate = asyncio.Event()
        backend.default = steps(until(gate), say("Hello"))
        async with running_router(endpoints=[named(backend, "a", max_concurrent=4)]) as running:
            await steer(running, "a", "drain")
            asked = [asyncio.create_task(create(running.http, input=str(number))) for number in range(4)]
            await waiting(running.app.state.pool, 4)
            await steer(running, "a", "enable")
            await backend.wait_for(lambda b: b.in_flight == 4)
            gate.set()
            await asyncio.gather(*asked)

    async def test_who_waited_in_vain_reads_which_are_drained(self, backend):
        queue = {"timeout_s": 0.1}
        async with running_router(endpoints=[named(backend, "a")], queue=queue) as running:
            await steer(running, "a", "drain")
            answer = await running.http.post(URL, json=turn())
            assert answer.status_code == 429
            assert answer.json()["error"]["message"].endswith("in 0.1 s. Taken out (drained): a.")

    async def test_a_retry_does_not_go_to_a_drained_one(self, two):
        two[0].default = http_error(500)
        async with running_router(endpoints=[named(two[0], "a"), named(two[1], "b")]) as running:
            await steer(running, "b", "drain")
            async with soon():
                assert_error(await running.http.post(URL, json=turn()), 502)
            assert len(two[1].turns) == 0

    async def test_enabling_forgives_failures(self, two):
        two[0].default = http_error(500)
        endpoints = [named(two[0], "a", priority=-1), named(two[1], "b")]
        async with running_router(endpoints=endpoints, breaker={"cooldown_s": 30}) as running:
            for number in range(4):
                await create(running.http, input=str(number))
            assert (await listed(running))["a"]["models"][0]["breaker"] == "open"
            two[0].default = say("Hello")
            await steer(running, "a", "enable")
            assert (await listed(running))["a"]["models"][0]["breaker"] == "closed"
            await create(running.http, input="Again.")
            assert len(two[0].turns) == 4

    async def test_names_that_there_are_not_are_a_404(self, backend):
        async with running_router(endpoints=[named(backend, "a")]) as running:
            for verb in ("drain", "enable"):
                assert_error(await running.http.post(f"/api/endpoints/b/{verb}"), 404, param="name", says="'b'")
            answer = await running.http.get("/api/endpoints/a/drain")
            assert_error(answer, 405)
            assert answer.headers["allow"] == "POST"

    async def test_a_default_name_can_be_steered(self, backend):
        async with running_router(endpoints=[at(backend)]) as running:
            assert (await steer(running, backend.url.removeprefix("http://"), "drain"))["state"] == "draining"


class TestHeaders:
    @pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
    @pytest.mark.parametrize("path", [URL, CHAT])
    async def test_an_answer_says_where_it_was_made_and_how_long_it_waited(self, backend, path, streaming, clock):
        gate = asyncio.Event()
        backend.script(steps(until(gate), chat("Hello")))
        endpoint = named(backend, "gpu", max_concurrent=1, aliases={"fast": "test-model"})
        fields = {"input": "Hi"} if path == URL else {"messages": [{"role": "user", "content": "Hi"}]}
        async with running_router(endpoints=[endpoint]) as running:
            body = {"model": "fast", "stream": streaming, **fields}
            first = asyncio.create_task(running.http.post(path, json=body))
            await backend.wait_for(lambda b: b.in_flight == 1)
            began = time.monotonic()
            second = asyncio.create_task(running.http.post(path, json=body))
            await waiting(running.app.state.pool, 1)
            clock.advance(10)  # Less than `stream_start_s`: the head still waits.
            gate.set()
            for answer in (await first, await second):
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-nomyo-endpoint"] == "gpu"
                assert answer.headers["x-nomyo-model"] == "test-model"
            assert (await first).headers["x-nomyo-wait-ms"] == "0"
            assert 10_000 <= int((await second).headers["x-nomyo-wait-ms"]) <= (time.monotonic() - began) * 1000
            assert backend.turns[-1].json["model"] == "test-model", "the alias went to the server"

    async def test_names_in_any_letters(self, backend):
        backend.models = ["模型"]
        async with running_router(endpoints=[named(backend, "服务器")]) as running:
            for streaming in (False, True):
                answer = await running.http.post(URL, json=turn(model="模型", stream=streaming))
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-nomyo-model"] == "??"
            assert "服务器" in await listed(running)
            assert (await steer(running, "服务器", "drain"))["state"] == "draining"


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)="(?P<text>(?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


def read_metrics(text: str) -> Samples:
    """The samples of Prometheus' text format 0.0.4, read as strictly as its specification is written: each family has
    its HELP and TYPE once and before its samples, its samples stand together, and no series is there twice."""
    assert text.endswith("\n"), "the last line does not end"
    samples: Samples = {}
    helped: set[str] = set()
    types: dict[str, str] = {}
    family = ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        at = f"line {number}: {line!r}"
        if line.startswith("#"):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE"), at
            if word == "HELP":
                assert name not in helped, f"a second HELP, {at}"
                helped.add(name)
            else:
                assert name not in types, f"a second TYPE, {at}"
                assert name in helped, f"TYPE without HELP, {at}"
                assert rest in ("counter", "gauge", "histogram"), at
                assert (rest == "counter") == name.endswith("_total"), f"a counter is called …_total, {at}"
                types[name] = rest
                family = name
            continue
        found = _SAMPLE.fullmatch(line)
        assert found, f"no sample, {at}"
        endings = ("_bucket", "_sum", "_count") if types.get(family) == "histogram" else ("",)
        assert found["name"] in [family + ending for ending in endings], f"it does not stand with its family, {at}"
        labels = _labels(found["labels"] or "", at)
        key = (found["name"], frozenset(labels.items()))
        assert key not in samples, f"the series is there twice, {at}"
        samples[key] = float(found["value"])
        assert math.isfinite(samples[key]), at
        assert samples[key] >= 0 or types[family] == "gauge", f"a counter below zero, {at}"
    return samples


def _labels(text: str, at: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    end = 0
    for found in _LABEL.finditer(text):
        assert found.start() == end, f"no label at {text[end:]!r}, {at}"
        assert found["name"] not in labels, f"a label twice, {at}"
        labels[found["name"]] = re.sub(r"\\(.)", lambda match: _ESCAPES[match[1]], found["text"])
        end = found.end()
    assert end == len(text), f"no label at {text[end:]!r}, {at}"
    return labels


async def scraped(running: Running) -> Samples:
    answer = await running.http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read_metrics(answer.text)


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"nomyo_{name}", frozenset(labels.items())))


class TestMetrics:
    @pytest.mark.parametrize(
        "text",
        [
            "# HELP a_total A.\n# TYPE a_total counter\na_total 1",
            "a_total 1\n",
            "# HELP a A.\n# TYPE a counter\na 1\n",
            "# HELP a A.\n# TYPE a gauge\na 1\na 2\n",
            '# HELP a A.\n# TYPE a gauge\na{x="1"} 1\na{x="1"} 2\n',
            '# HELP a A.\n# TYPE a gauge\na{x="1} 1\n',
            "# HELP a A.\n# TYPE a gauge\n# HELP b B.\n# TYPE b gauge\na 1\n",
            "# HELP a A.\n# TYPE a gauge\na one\n",
            "# HELP a A.\n# HELP a A.\n# TYPE a gauge\na 1\n",
        ],
    )
    def test_the_reader_is_strict(self, text):
        with pytest.raises((AssertionError, ValueError)):
            read_metrics(text)

    async def test_the_numbers_are_right(self, two):
        two[1].default = http_error(500)
        two[0].default = chat("Hello", usage=chat_usage(1_234_567, 3))
        endpoints = [named(two[0], "good", max_concurrent=5), named(two[1], "bad", priority=-1)]
        async with running_router(endpoints=endpoints) as running:
            for number in range(4):
                await create(running.http, input=str(number))
            async with open_stream(running.http) as events:
                await events.rest()
            asked = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
            assert (await running.http.post(CHAT, json=asked)).status_code == 200
            samples = await scraped(running)
            assert value(samples, "endpoint_up", endpoint="good") == 1
            assert value(samples, "endpoint_slots", endpoint="good") == 5
            assert value(samples, "endpoint_slots", endpoint="bad") == 16
            assert value(samples, "endpoint_in_flight", endpoint="good") == 0
            assert value(samples, "requests_total", endpoint="good", outcome="answered") == 6
            assert value(samples, "requests_total", endpoint="bad", outcome="failed") == 3
            assert value(samples, "retries_total") == value(samples, "failures_total") == 3
            assert value(samples, "queued_total") == 0
            tokens = [value(samples, "tokens_total", model="test-model", direction=way) for way in ("input", "output")]
            assert tokens == [6 * 1_234_567, 18]

    async def test_the_queue_is_in_them(self, backend, clock):
        backend.script(stall())
        endpoint = named(backend, "a", max_concurrent=1)
        async with running_router(endpoints=[endpoint], queue={"max": 1, "timeout_s": 60}) as running:
            busy = asyncio.create_task(running.http.post(URL, json=turn()))
            await backend.wait_for(lambda b: b.in_flight == 1)
            late = asyncio.create_task(running.http.post(URL, json=turn()))
            began = time.monotonic()
            await waiting(running.app.state.pool, 1)
            clock.advance(20)
            assert_error(await running.http.post(URL, json=turn()), 429)
            samples = await scraped(running)
            assert value(samples, "endpoint_in_flight", endpoint="a") == 1
            assert value(samples, "queue_waiting") == 1
            assert 20 <= (value(samples, "queue_longest_wait_seconds") or 0) < 60
            clock.advance(40)
            assert_error(await late, 429)
            samples = await scraped(running)
            assert value(samples, "queue_waiting") == value(samples, "queue_longest_wait_seconds") == 0
            assert [value(samples, f"{name}_total") for name in ("queued", "queue_full", "queue_timeout")] == [1, 1, 1]
            assert 60 <= (value(samples, "queue_wait_seconds_total") or 0) <= time.monotonic() - began + 1
            busy.cancel()

    async def test_names_are_escaped(self, backend):
        name = 'a "b" \\ c{d="e"}'
        backend.models = [name]
        async with running_router(endpoints=[named(backend, name)]) as running:
            asked = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
            assert (await running.http.post(CHAT, json=asked)).status_code == 200
            samples = await scraped(running)
            assert value(samples, "endpoint_up", endpoint=name) == 1
            assert value(samples, "tokens_total", model=name, direction="output") == 3

    async def test_no_series_is_there_twice_while_an_endpoint_is_replaced(self, backend):
        gate = asyncio.Event()
        backend.script(steps(until(gate), chat("Hello")))
        async with running_router(endpoints=[named(backend, "a")]) as running:
            busy = asyncio.create_task(create(running.http))
            await backend.wait_for(lambda b: b.in_flight == 1)
            changed = parse_config({"endpoints": [named(backend, "a", max_concurrent=3)]})
            await running.app.state.pool.reconfigure(changed)
            assert value(await scraped(running), "endpoint_slots", endpoint="a") == 3
            gate.set()
            await busy

    async def test_a_client_cannot_make_series(self, backend):
        """A name that nobody serves is the client's own text."""
        async with running_router(endpoints=[named(backend, "a")]) as running:
            for path in (URL, CHAT):
                answer = await running.http.post(path, json={**turn(model="made-up"), "messages": []})
                assert_error(answer, 400 if path == URL else 404, code="model_not_found")
            assert "made-up" not in (await running.http.get("/metrics")).text


async def test_who_waits_sees_its_place(backend: FakeBackend) -> None:
    backend.default = stall()
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
    async with running_router(endpoints=[endpoint]) as running:
        asking = [asyncio.create_task(running.http.post(URL, json=turn())) for _ in range(3)]
        pool = running.app.state.pool
        await eventually(lambda: len(pool.line) == 2, "two wait")
        first, second = (await running.http.get("/api/endpoints")).json()["queue"]["first"]
        assert [first["position"], second["position"]] == [0, 1]
        assert {first["model"], second["model"]} == {"test-model"}
        assert 0 <= second["waited_s"] <= first["waited_s"] < 5
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await eventually(lambda: running.in_flight() == 0, "all is over")
