"""Limits of keys and owners: the same at every front door, and given back for what never ran."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, RateLimitError
from websockets.asyncio.client import connect

from api.turns.tally import duration
from tests.conftest import Running
from tests.doors import doors_of, every_door, is_ollamas
from tests.fake_backend import FakeBackend, chat, chat_usage, http_error, json_answer, stall, steps, until
from tests.keyed import ADMIN, as_key, key, keyed_router, secret_of
from tests.turns import URL, assert_error, create, ended, eventually, turn

Json = dict[str, Any]
# The front doors that ask a model.
NOT_ASKING = ("/api/show", "/api/cache/invalidate")
ASKING = {path: asked for path, asked in doors_of("openai-chat").items() if path not in NOT_ASKING}


@pytest.mark.parametrize("path", ASKING)
async def test_every_front_door_counts_requests_and_refuses_in_its_own_words(path: str) -> None:
    async with (
        every_door(api_key=ADMIN, keys=[key("ann", rpm=2), key("bob")]) as (running, backend),
        as_key(running, "ann") as ann,
        as_key(running, "bob") as bob,
    ):
        for left in (1, 0):
            answer = await ann.post(path, json=ASKING[path])
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
            assert re.fullmatch(DURATION, answer.headers["x-ratelimit-reset-requests"])
        asked = len(backend.requests)
        refused = await ann.post(path, json=ASKING[path])
        assert refused.status_code == 429
        error = refused.json()["error"]
        if is_ollamas(path):
            message = error
        else:
            assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
            message = error["message"]
        assert "the key 'ann'" in message
        assert re.search(rf"Limit 2, Used 2, Requested 1\. Please try again in {DURATION}\.$", message)
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(backend.requests) == asked, "what is refused asks no backend"
        other = await bob.post(path, json=ASKING[path])
        assert other.status_code == 200
        assert not [name for name in other.headers if name.startswith("x-ratelimit")]


DURATION = r"(?:\d+h\d+m\d+s|\d+m\d+s|\d+(?:\.\d+)?s|\d+ms)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0201, "21ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9996, "60s"),
        (360, "6m0s"),
        (3599.5, "1h0m0s"),
        (90061, "25h1m1s"),
    ],
)
def test_times_read_as_openais_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_every_time_is_one_that_clients_read_and_not_too_short(seconds: float) -> None:
    parts = {unit: float(number) for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", duration(seconds))}
    total = parts.get("h", 0) * 3600 + parts.get("m", 0) * 60 + parts.get("s", 0) + parts.get("ms", 0) / 1000
    assert re.fullmatch(DURATION, duration(seconds))
    assert seconds - 0.001 <= total <= seconds + 1


ASKED = [{"role": "user", "content": "x"}]


class TestTokens:
    async def test_they_are_reserved_by_an_estimate_and_settled_by_what_was_counted(self, backend: FakeBackend) -> None:
        goes_on = asyncio.Event()
        backend.default = steps(until(goes_on), chat("Hello.", usage=chat_usage(1234, 66)))
        async with keyed_router(backend, key("ann", tpm=8000)) as running, as_key(running, "ann") as ann:
            first = asyncio.create_task(ann.post(URL, json=turn(input="x" * 4000, max_output_tokens=3000)))
            await backend.wait_for(lambda b: b.in_flight == 1)
            refused = await ann.post(URL, json=turn(input="x" * 4000, max_output_tokens=6000))
            assert_error(refused, 429, code="rate_limit_exceeded")
            assert refused.json()["error"]["type"] == "tokens"
            assert 3900 <= int(refused.headers["x-ratelimit-remaining-tokens"]) <= 4000
            goes_on.set()
            assert (await first).status_code == 200
            answer = await ann.post(URL, json=turn(input="x", max_output_tokens=100))
            left = int(answer.headers["x-ratelimit-remaining-tokens"])
            assert 8000 - 1300 - 150 <= left <= 8000 - 1300 - 100

    async def test_what_is_longer_than_the_limit_is_refused_for_good(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, key("ann", tpm=1000)) as running, as_key(running, "ann") as ann:
            refused = await ann.post(URL, json=turn(input="x" * 8000))
            assert_error(refused, 429, code="rate_limit_exceeded")
            assert "Request too large" in refused.json()["error"]["message"]
            assert refused.headers["x-should-retry"] == "false"
            assert "retry-after" not in refused.headers
            answer = await ann.post(URL, json=turn(input="x" * 400, max_output_tokens=100_000))
            assert answer.status_code == 200, "what a client allows is no reason to refuse it"

    @pytest.mark.parametrize(
        ("path", "body", "most", "least"),
        [
            ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 1000}, 8000, 6900),
            ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 1000, "n": 5}, 3000, 2900),
            ("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 1000, "n": 2}, 4000, 1900),
            ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 1000}, 7000, 6900),
            ("/v1/completions", {"prompt": [[1, 2], [3]], "max_tokens": 1000}, 6000, 5900),
            ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 1000, "n": "5"}, 7000, 6900),
            ("/v1/embeddings", {"input": "a"}, 8000, 7900),
        ],
    )
    async def test_each_answer_that_is_asked_for_is_expected(
        self, backend: FakeBackend, path: str, body: dict[str, Any], most: int, least: int
    ) -> None:
        backend.routes[f"POST {path}"] = json_answer({"choices": []})
        async with keyed_router(backend, key("ann", tpm=8000)) as running, as_key(running, "ann") as ann:
            answer = await ann.post(path, json={"model": "test-model", **body})
            assert least <= int(answer.headers["x-ratelimit-remaining-tokens"]) <= most

    async def test_a_picture_is_no_text_of_its_length(self, backend: FakeBackend) -> None:
        url = "data:image/png;base64," + "iVBORw0KGgo" * 20_000
        async with keyed_router(backend, key("ann", tpm=10_000)) as running, as_key(running, "ann") as ann:
            message = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
            assert (await ann.post(URL, json=turn(input=[message]))).status_code == 200
            content = [{"type": "image_url", "image_url": {"url": url}}]
            body = {"model": "test-model", "messages": [{"role": "user", "content": content}]}
            assert (await ann.post("/v1/chat/completions", json=body)).status_code == 200


class TestWhatNeverRan:
    @pytest.mark.parametrize("path", [URL, "/v1/chat/completions", "/api/chat"])
    async def test_is_given_back(self, backend: FakeBackend, path: str) -> None:
        async with (
            keyed_router(backend, key("ann", rpm=3, tpm=5000, concurrent=1)) as running,
            as_key(running, "ann") as ann,
        ):
            for _ in range(4):
                unknown = await ann.post(path, json={**ASKING[path], "model": "nobody-has-it"})
                assert unknown.status_code in (400, 404)
            answer = await ann.post(path, json=ASKING[path])
            assert answer.headers["x-ratelimit-remaining-requests"] == "2"

    async def test_what_a_backend_refuses_was_a_request_without_tokens(self, backend: FakeBackend) -> None:
        backend.script(http_error(400, "no"))
        async with keyed_router(backend, key("ann", rpm=3, tpm=5000)) as running, as_key(running, "ann") as ann:
            assert (await ann.post(URL, json=turn())).status_code == 400
            answer = await ann.post(URL, json=turn(max_output_tokens=16))
            assert answer.headers["x-ratelimit-remaining-requests"] == "1"
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 4900


class TestAtOnce:
    @pytest.mark.parametrize("path", [URL, "/v1/chat/completions", "/api/chat"])
    async def test_no_more_turns_run_than_may_and_each_end_gives_one_back(
        self, backend: FakeBackend, path: str
    ) -> None:
        backend.default = stall()
        async with keyed_router(backend, key("ann", concurrent=2)) as running, as_key(running, "ann") as ann:
            body = {**ASKING[path], "stream": True}
            running_ones = [asyncio.create_task(ann.post(path, json=body)) for _ in range(2)]
            await backend.wait_for(lambda b: b.in_flight == 2)
            refused = await ann.post(path, json=body)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            for task in running_ones:  # Their clients leave.
                task.cancel()
            await asyncio.gather(*running_ones, return_exceptions=True)
            await eventually(lambda: running.in_flight() == 0, "the slots are free")
            backend.default = chat("Hello.")
            for _ in range(3):
                assert (await ann.post(path, json=ASKING[path])).status_code == 200

    async def test_keys_of_one_owner_share_what_the_owner_may(self, backend: FakeBackend) -> None:
        backend.default = stall()
        keys = [key("ann", owner="team", concurrent=2), key("bob", owner="team")]
        async with (
            keyed_router(backend, *keys, owners=[{"name": "team", "concurrent": 3, "rpm": 50}]) as running,
            as_key(running, "ann") as ann,
            as_key(running, "bob") as bob,
        ):
            tasks = [asyncio.create_task(one.post(URL, json=turn())) for one in (ann, ann, bob)]
            await backend.wait_for(lambda b: b.in_flight == 3)
            refused = await bob.post(URL, json=turn())
            assert_error(refused, 429, code="rate_limit_exceeded")
            assert "the owner 'team' on turns at once: Limit 3, Used 3" in refused.json()["error"]["message"]
            refused = await ann.post(URL, json=turn())
            assert "the key 'ann' on turns at once: Limit 2, Used 2" in refused.json()["error"]["message"]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def test_background_turns_that_wait_or_run_have_a_limit_of_their_own(self, backend: FakeBackend) -> None:
        goes_on = asyncio.Event()
        backend.default = steps(until(goes_on), chat("Hello."))
        limits = key("ann", background=3, concurrent=1)
        async with (
            keyed_router(backend, limits, background={"max_concurrent": 1}) as running,
            as_key(running, "ann") as ann,
        ):
            begun = [await create(ann, background=True) for _ in range(3)]
            refused = await ann.post(URL, json=turn(background=True))
            assert_error(refused, 429, code="rate_limit_exceeded")
            assert "background turns that wait or run: Limit 3, Used 3" in refused.json()["error"]["message"]
            await ann.post(f"{URL}/{begun[2]['id']}/cancel")
            begun.append(await create(ann, background=True))
            goes_on.set()
            for one in begun:
                await ended(ann, one["id"])
            for _ in range(3):
                assert (await create(ann, background=True))["status"] == "queued"

    async def test_keys_of_an_owner_share_its_limit_of_background_turns(self, backend: FakeBackend) -> None:
        backend.default = stall()
        keys = [key("ann", owner="team"), key("ben", owner="team"), key("eve")]
        settings = {"owners": [{"name": "team", "background": 2}], "background": {"max_concurrent": 1, "drain_s": 0}}
        async with (
            keyed_router(backend, *keys, **settings) as running,
            as_key(running, "ann") as ann,
            as_key(running, "ben") as ben,
            as_key(running, "eve") as eve,
        ):
            first, _ = await create(ann, background=True), await create(ben, background=True)
            for http in (ann, ben):
                refused = await http.post(URL, json=turn(background=True))
                assert_error(refused, 429, code="rate_limit_exceeded")
                words = "the owner 'team' on background turns that wait or run: Limit 2, Used 2"
                assert words in refused.json()["error"]["message"]
            await create(eve, background=True)
            await ann.post(f"{URL}/{first['id']}/cancel")
            await create(ben, background=True)

    async def test_of_background_turns_that_wait_those_of_a_lower_priority_go_first(self, backend: FakeBackend) -> None:
        goes_on = asyncio.Event()
        backend.default = steps(until(goes_on), chat("Hello."))
        keys = [key("ann", priority=5), key("ben", priority=-5)]
        async with (
            keyed_router(backend, *keys, background={"max_concurrent": 1}) as running,
            as_key(running, "ann") as ann,
            as_key(running, "ben") as ben,
        ):
            asked = [(ann, "ann 1"), (ann, "ann 2"), (ben, "ben 1"), (ann, "ann 3"), (ben, "ben 2")]
            begun = [(http, await create(http, background=True, input=said)) for http, said in asked]
            await backend.wait_for(lambda b: b.in_flight == 1)
            goes_on.set()
            for http, one in begun:
                await ended(http, one["id"])
        order = [request.json["messages"][-1]["content"] for request in backend.turns]
        assert order == ["ann 1", "ben 1", "ben 2", "ann 2", "ann 3"]

    async def test_those_that_were_admitted_run_after_a_restart_whatever_the_limits_are_then(
        self, backend: FakeBackend, tmp_path: Any
    ) -> None:
        settings = {
            "database": {"url": f"sqlite:///{tmp_path}/router.db"},
            "background": {"max_concurrent": 1, "drain_s": 0},
        }
        backend.default = stall()
        async with keyed_router(backend, "ann", **settings) as running, as_key(running, "ann") as ann:
            begun = [await create(ann, background=True) for _ in range(4)]
            await backend.wait_for(lambda b: b.in_flight == 1)
        goes_on = asyncio.Event()
        backend.default = steps(until(goes_on), chat("Hello."))
        limits = key("ann", background=2, rpm=10, budget="5/day")
        async with keyed_router(backend, limits, **settings) as running, as_key(running, "ann") as ann:
            await backend.wait_for(lambda b: b.in_flight == 1)
            goes_on.set()
            statuses = [(await ended(ann, one["id"]))["status"] for one in begun]
            assert statuses == ["failed", "completed", "completed", "completed"]
            assert (await used_of(ann)) == (4, 21, 9), "the one that was interrupted had run"
            assert_error(await ann.post(URL, json=turn(background=True)), 429, code="insufficient_quota")


async def used_of(http: httpx2.AsyncClient) -> tuple[int, int, int]:
    """The requests and the tokens of a key that has used one model."""
    (row,) = (await http.get("/api/usage")).json()["data"]
    return row["requests"], row["input_tokens"], row["output_tokens"]


class TestShared:
    async def test_one_answer_for_two_is_used_once_and_both_give_back_what_they_took(
        self, backend: FakeBackend
    ) -> None:
        goes_on = asyncio.Event()
        backend.default = steps(until(goes_on), chat("Hello.", usage=chat_usage(500, 20)))
        keys = [key("ann", owner="team", concurrent=1, rpm=5, tpm=8000), key("bob", owner="team", concurrent=1, rpm=7)]
        async with (
            keyed_router(backend, *keys) as running,
            as_key(running, "ann") as ann,
            as_key(running, "bob") as bob,
        ):
            body = turn(nomyo={"cache": True}, max_output_tokens=100)
            first = asyncio.create_task(ann.post(URL, json=body))
            await backend.wait_for(lambda b: b.in_flight == 1)
            second = asyncio.create_task(bob.post(URL, json=body))
            await eventually(lambda: _readers(running) == 2, "both follow it")
            goes_on.set()
            answers = [await first, await second]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["5", "7"]
            assert "x-ratelimit-limit-tokens" not in answers[1].headers, "it has no such limit"
            assert len(backend.turns) == 1
            backend.default = chat("Hello.")
            after = await ann.post(URL, json=turn(input="Another.", max_output_tokens=16))
            assert after.status_code == 200, "its place is free"
            assert 8000 - 520 - 80 <= int(after.headers["x-ratelimit-remaining-tokens"]) <= 8000 - 520 - 16
            rows = (await ann.get("/api/usage")).json()["data"]
            used = {row["key"]: (row["requests"], row["cache_hits"], row["input_tokens"]) for row in rows}
            assert used == {"ann": (2, 0, 507), "bob": (1, 1, 0)}
            assert (await bob.post(URL, json=turn())).status_code == 200

    async def test_who_begins_it_and_leaves_harms_nobody_and_pays_for_it(self, backend: FakeBackend) -> None:
        goes_on = asyncio.Event()
        backend.default = steps(until(goes_on), chat("Hello.", usage=chat_usage(500, 20)))
        keys = [key("ann", owner="team", concurrent=1, tpm=8000), key("bob", owner="team")]
        async with (
            keyed_router(backend, *keys) as running,
            as_key(running, "ann") as ann,
            as_key(running, "bob") as bob,
        ):
            body = turn(nomyo={"cache": True}, max_output_tokens=100)
            first = asyncio.create_task(ann.post(URL, json=body))
            await backend.wait_for(lambda b: b.in_flight == 1)
            second = asyncio.create_task(bob.post(URL, json=body))
            await eventually(lambda: _readers(running) == 2, "both follow it")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await eventually(lambda: _readers(running) == 1, "one has left")
            assert (await ann.post(URL, json=turn())).status_code == 429, "what it has begun still runs"
            goes_on.set()
            assert (await second).json()["status"] == "completed"
            backend.default = chat("Hello.")
            after = await ann.post(URL, json=turn(input="Another.", max_output_tokens=16))
            assert after.status_code == 200, "its place is free"
            assert int(after.headers["x-ratelimit-remaining-tokens"]) <= 8000 - 520 - 16


def _readers(running: Running) -> int:
    """How many turns follow the answers that are being made."""
    return sum(flight.readers for flight in running.app.state.flights._flights.values())


class TestBudgets:
    async def test_tokens_of_a_day_are_refused_when_they_are_used_also_after_a_restart(
        self, backend: FakeBackend, tmp_path: Any
    ) -> None:
        backend.default = chat("Hello.", usage=chat_usage(600, 100))
        settings = {"database": {"url": f"sqlite:///{tmp_path}/router.db"}}
        ann_key = key("ann", budget="2000/day")
        for served in (1, 1, 0):
            async with keyed_router(backend, ann_key, **settings) as running, as_key(running, "ann") as ann:
                for _ in range(served):
                    assert (await ann.post(URL, json=turn(store=False))).status_code == 200
        async with keyed_router(backend, ann_key, **settings) as running, as_key(running, "ann") as ann:
            assert (await ann.post(URL, json=turn(max_output_tokens=16))).status_code == 200
            refused = await ann.post(URL, json=turn(max_output_tokens=16))
            assert_error(refused, 429, code="insufficient_quota")
            error = refused.json()["error"]
            assert error["type"] == "insufficient_quota"
            assert "the key 'ann' may use 2000 tokens a day; 2100 are used" in error["message"]
            assert 0 < int(refused.headers["retry-after"]) <= 86_400
            assert refused.headers["x-should-retry"] == "false"

    async def test_a_cost_of_a_month_is_shared_by_the_keys_of_an_owner(self, backend: FakeBackend) -> None:
        backend.default = chat("Hello.", usage=chat_usage(1000, 1000))
        async with (
            keyed_router(
                backend,
                key("ann", owner="team"),
                key("bob", owner="team"),
                owners=[{"name": "team", "cost": "0.005/month"}],
                prices={"test-model": {"input": 1, "output": 2}},
            ) as running,
            as_key(running, "ann") as ann,
            as_key(running, "bob") as bob,
        ):
            for http in (ann, bob):
                await create(http)
            for http in (ann, bob):
                refused = await http.post(URL, json=turn())
                assert_error(refused, 429, code="insufficient_quota")
                assert "the owner 'team' may use a cost of 0.005 a month; 0.006 are used" in refused.text

    async def test_how_far_they_are_used_is_in_the_headers_that_codex_shows(self, backend: FakeBackend) -> None:
        backend.default = chat("Hello.", usage=chat_usage(700, 50))
        keys = [key("ann", owner="team", budget="3000/day, 10000/month")]
        async with (
            keyed_router(backend, *keys, owners=[{"name": "team", "budget": "1500/day"}]) as running,
            as_key(running, "ann") as ann,
        ):
            for percent, of_month in (("0.0", "0.0"), ("50.0", "7.5")):
                answer = await ann.post(URL, json=turn(max_output_tokens=16))
                assert answer.headers["x-codex-primary-used-percent"] == percent
                assert answer.headers["x-codex-primary-window-minutes"] == "1440"
                assert answer.headers["x-codex-secondary-used-percent"] == of_month
                left_s = int(answer.headers["x-codex-primary-reset-at"]) - time.time()
                assert 0 < left_s <= 86_400
            refused = await ann.post(URL, json=turn(max_output_tokens=16))
            assert (refused.status_code, refused.headers["x-codex-primary-used-percent"]) == (429, "100.0")

    async def test_what_runs_is_reserved(self, backend: FakeBackend) -> None:
        backend.default = stall()
        async with keyed_router(backend, key("ann", budget="1000/month")) as running, as_key(running, "ann") as ann:
            first = asyncio.create_task(ann.post(URL, json=turn(max_output_tokens=800)))
            await backend.wait_for(lambda b: b.in_flight == 1)
            assert_error(await ann.post(URL, json=turn(max_output_tokens=300)), 429, code="insufficient_quota")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            backend.default = chat("Hello.")
            await eventually(lambda: running.in_flight() == 0, "the slot is free")
            assert (await ann.post(URL, json=turn(max_output_tokens=300))).status_code == 200


class TestClients:
    async def test_the_sdk_waits_as_long_as_it_is_asked_to_and_gives_up_at_once_where_that_is_no_use(
        self, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, clock: Any
    ) -> None:
        clock.advance(90 - time.monotonic() % 60)  # To the middle of a bucket.
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
        keys = [key("ann", rpm=4), key("bob", budget="10/day"), key("eve", tpm=5)]
        async with keyed_router(backend, *keys) as running, AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(
                    AsyncOpenAI(base_url=f"{running.url}/v1", api_key=secret_of(name), max_retries=2)
                )
                for name in ("ann", "bob", "eve")
            }
            for _ in range(4):
                await clients["ann"].responses.create(model="test-model", input="Hi.")
            with pytest.raises(RateLimitError) as limited:
                await clients["ann"].responses.create(model="test-model", input="Hi.")
            assert limited.value.code == "rate_limit_exceeded"
            asked_s = float(limited.value.response.headers["retry-after-ms"]) / 1000
            assert 40 < asked_s < 46
            assert waits == pytest.approx([asked_s] * 2, abs=3)
            waits.clear()
            for name, code in (("bob", "insufficient_quota"), ("eve", "rate_limit_exceeded")):
                with pytest.raises(RateLimitError) as limited:
                    await clients[name].responses.create(model="test-model", input="Hi." * 30)
                assert limited.value.code == code
            assert waits == [], "no try could help"

    async def test_a_socket_gets_the_error_and_stays_open(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, key("ann", rpm=1)) as running:
            url = f"{running.url.replace('http', 'ws')}{URL}"
            async with connect(url, additional_headers={"Authorization": f"Bearer {secret_of('ann')}"}) as socket:
                create_it = json.dumps({"type": "response.create", "model": "test-model", "input": "Hi."})
                await socket.send(create_it)
                while (event := json.loads(await socket.recv()))["type"] != "response.completed":
                    pass
                assert event["response"]["nomyo"]["ratelimit_remaining_requests"] == "0"
                for _ in range(2):
                    await socket.send(create_it)
                    event = json.loads(await socket.recv())
                    assert (event["type"], event["status"]) == ("error", 429)
                    assert event["error"]["code"] == "rate_limit_exceeded"
                    assert int(event["headers"]["retry-after"]) >= 1
                    assert event["headers"]["x-ratelimit-limit-requests"] == "1"


async def test_a_lower_priority_waits_for_a_slot_before_the_others(backend: FakeBackend) -> None:
    goes_on = asyncio.Event()
    backend.default = steps(until(goes_on), chat("Hello."))
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 1}
    keys = [key("late", priority=5), key("usual"), key("first", priority=-5)]
    async with keyed_router(backend, *keys, endpoints=[endpoint]) as running, AsyncExitStack() as stack:
        clients = {one["name"]: await stack.enter_async_context(as_key(running, one["name"])) for one in keys}
        ended_as: list[str] = []

        async def ask(name: str) -> None:
            await create(clients[name])
            ended_as.append(name)

        tasks = [asyncio.create_task(ask("late"))]
        await backend.wait_for(lambda b: b.in_flight == 1)
        for waiting, name in enumerate(["late", "late", "usual", "first", "usual", "first"], 1):
            tasks.append(asyncio.create_task(ask(name)))
            await eventually(lambda waiting=waiting: len(running.app.state.pool.line) == waiting, "it waits")
        goes_on.set()
        await asyncio.gather(*tasks)
        assert ended_as == ["late", "first", "first", "usual", "usual", "late", "late"]
