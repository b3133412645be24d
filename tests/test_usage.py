"""What was used: counted at every front door, as the backend counted it, and listed for whoever may see it."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ServerError
from core.usage import PriceConfig, Spent, UsageLog, Use
from tests.conftest import Running, running_router
from tests.doors import DOORS, every_door
from tests.fake_backend import FakeBackend, chat, chat_usage, cut, http_error, stall
from tests.keyed import ADMIN, as_key, key, keyed_router, with_secret
from tests.turns import URL, assert_error, create, ended, eventually, open_stream, turn

Json = dict[str, Any]


async def usage(http: httpx2.AsyncClient, **params: str) -> Json:
    answer = await http.get("/api/usage", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def used_by(http: httpx2.AsyncClient, by: str = "key") -> dict[str, Json]:
    """What was used, by name."""
    data = (await usage(http, by=by))["data"]
    return {row[by]: row for row in data}


class TestWhatIsCounted:
    async def test_of_a_turn_its_tokens_as_the_backend_counted_them(self, backend: FakeBackend) -> None:
        backend.default = chat("Hello.", usage=chat_usage(100, 20, cached=60, reasoning=5))
        prices = {"test-model": {"input": 2.0, "cached": 0.5, "output": 10.0}}
        async with keyed_router(backend, key("ann", owner="team"), prices=prices) as running:
            async with as_key(running, "ann") as ann:
                for stream, store in ((False, False), (False, True), (True, False), (True, True)):
                    answer = await ann.post(URL, json=turn(stream=stream, store=store))
                    assert answer.status_code == 200
                (row,) = (await usage(ann))["data"]
            assert row["key"] == "ann"
            counts = {"requests": 4, "errors": 0, "input_tokens": 400, "cached_tokens": 240, "output_tokens": 80}
            assert row.items() >= {**counts, "reasoning_tokens": 20, "cache_hits": 0}.items()
            assert row["cost"] == pytest.approx(4 * (40 * 2.0 + 60 * 0.5 + 20 * 10.0) / 1e6)
            assert 0 < row["slot_s"] < 10
            assert list(await used_by(running.http, "owner")) == ["team"]
            assert list(await used_by(running.http, "model")) == ["test-model"]
            (endpoint,) = await used_by(running.http, "endpoint")
            assert endpoint == next(iter(running.app.state.pool.endpoints.values())).name

    @pytest.mark.parametrize("path", [path for path in DOORS if path not in ("/api/show", "/api/cache/invalidate")])
    @pytest.mark.parametrize("kind", ["openai-chat", "ollama"])
    async def test_every_front_door_counts(self, path: str, kind: str) -> None:
        if kind == "ollama" and path == "/v1/rerank":
            return  # It has no such path.
        async with every_door(kind, api_key=ADMIN, keys=[key("ann")]) as (running, _):
            async with as_key(running, "ann") as ann:
                assert (await ann.post(path, json=DOORS[path])).status_code == 200
            rows = await used_by(running.http)
            assert rows["ann"]["requests"] == 1
            assert rows["ann"]["errors"] == 0

    async def test_what_passes_through_is_counted_by_its_usage_or_by_what_came(self, backend: FakeBackend) -> None:
        backend.script(
            chat("Hello.", usage=chat_usage(30, 4, cached=20)),
            chat("Hello.", usage=chat_usage(30, 4), as_stream=True),
            chat(*["four"] * 10, usage=None, as_stream=True),
        )
        async with keyed_router(backend, "a", "b", "c") as running:
            for name, stream in (("a", False), ("b", True), ("c", True)):
                body = {"model": "test-model", "messages": [{"role": "user", "content": "x" * 400}], "stream": stream}
                if name == "b":
                    body["stream_options"] = {"include_usage": True}
                async with as_key(running, name) as http:
                    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
            rows = await used_by(running.http)
        counts = ("input_tokens", "cached_tokens", "output_tokens")
        assert [rows["a"][count] for count in counts] == [30, 20, 4]
        assert [rows["b"][count] for count in counts] == [30, 0, 4]
        assert 100 <= rows["c"]["input_tokens"] <= 150
        assert 10 <= rows["c"]["output_tokens"] <= 14, "a frame a token, and what is around them"

    async def test_a_cache_hit_costs_no_tokens_and_no_slot(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, "ann") as running, as_key(running, "ann") as ann:
            for _ in range(2):
                await create(ann, nomyo={"cache": True})
            rows = (await usage(ann, by="endpoint"))["data"]
            assert sorted((row["requests"], row["cache_hits"], row["input_tokens"]) for row in rows) == [
                (1, 0, 7),
                (1, 1, 0),
            ]

    async def test_failures_are_errors_and_what_never_ran_is_no_request(self, backend: FakeBackend) -> None:
        backend.script(http_error(400, "no"), http_error(400, "no"))
        async with keyed_router(backend, key("ann", models=["test-*"]), queue={"max": 1}) as running:
            async with as_key(running, "ann") as ann:
                for body in (turn(), turn(stream=True), turn(model="unknown-1"), turn(model="unknown-2")):
                    assert (await ann.post(URL, json=body)).status_code in (400, 404)
                await ann.post(URL, json={"model": 3})
            rows = await used_by(running.http, "model")
            assert (rows["test-model"]["requests"], rows["test-model"]["errors"]) == (2, 2)
            assert rows.get("", {"requests": 2})["requests"] == 2, "names that nobody serves are none"
            assert set(rows) <= {"test-model", ""}

    async def test_a_stream_that_is_cut_counts_what_came(self, backend: FakeBackend) -> None:
        backend.script(chat(*["four"] * 25, usage=None, as_stream=True, then=cut()))
        async with keyed_router(backend, "ann") as running, as_key(running, "ann") as ann:
            await ann.post(URL, json=turn(stream=True, input="x" * 400))
            row = (await used_by(ann))["ann"]
            assert (row["requests"], row["errors"]) == (1, 1)
            assert 20 <= row["output_tokens"] <= 30
            assert 100 <= row["input_tokens"] <= 150

    @pytest.mark.parametrize("store", [False, True])
    async def test_a_stream_whose_client_leaves_counts_what_came(self, backend: FakeBackend, store: bool) -> None:
        backend.script(chat(*["four"] * 25, usage=None, as_stream=True, then=stall()))
        async with keyed_router(backend, "ann") as running, as_key(running, "ann") as ann:
            async with open_stream(ann, store=store) as events:
                for _ in range(25):
                    await events.until("response.output_text.delta")
            await eventually(lambda: running.in_flight() == 0, "the slot is free")
            await eventually(lambda: _has(running, "ann"), "it is counted")
            row = (await used_by(ann))["ann"]
            assert (row["requests"], row["errors"]) == (1, 0)
            assert row["output_tokens"] == 25

    async def test_a_background_turn_counts_when_it_ends_or_is_cancelled(self, backend: FakeBackend) -> None:
        backend.script(chat("Hello."), chat(*["four"] * 8, usage=None, as_stream=True, then=stall()))
        async with keyed_router(backend, "ann") as running, as_key(running, "ann") as ann:
            first = await create(ann, background=True)
            await ended(ann, first["id"])
            assert (await used_by(ann))["ann"]["input_tokens"] == 7
            second = await create(ann, background=True)
            await backend.wait_for(lambda b: b.in_flight == 1)
            await ann.post(f"{URL}/{second['id']}/cancel")
            row = (await used_by(ann))["ann"]
            assert (row["requests"], row["errors"]) == (2, 0)


async def _has(running: Running, name: str) -> bool:
    return name in await used_by(running.http)


class TestWhoSeesIt:
    async def test_ones_own_and_admins_all(self, backend: FakeBackend) -> None:
        async with keyed_router(
            backend, key("ann", owner="x"), key("amy", owner="x"), "bob", key("root", admin=True)
        ) as r:
            for name in ("ann", "amy", "bob"):
                async with as_key(r, name) as http:
                    await create(http)
            seen = {}
            for name in ("ann", "bob", "root"):
                async with as_key(r, name) as http:
                    seen[name] = set(await used_by(http))
            assert seen == {"ann": {"ann", "amy"}, "bob": {"bob"}, "root": {"ann", "amy", "bob"}}
            async with with_secret(r, "nk-none") as http:
                assert_error(await http.get("/api/usage"), 401, code="invalid_api_key")

    async def test_a_router_without_keys_shows_all_of_it(self, backend: FakeBackend) -> None:
        async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
            await create(running.http)
            assert (await used_by(running.http))[""]["input_tokens"] == 7


class TestTheList:
    async def test_it_is_json_or_csv(self, backend: FakeBackend) -> None:
        async with (
            keyed_router(backend, "ann", prices={"test-model": {"output": 1.0}}) as running,
            as_key(running, "ann") as ann,
        ):
            await create(ann)
            listed = await usage(ann, step="hour", by="model")
            assert (listed["object"], listed["by"], listed["step"]) == ("usage", "model", "hour")
            assert listed["from"] < listed["data"][0]["at"] <= listed["to"]
            assert listed["data"][0]["at"] % 3600 == 0
            counts = {key: value for key, value in listed["data"][0].items() if key not in ("at", "model")}
            assert listed["total"] == counts
            for answer in (
                await ann.get("/api/usage?format=csv&by=model"),
                await ann.get("/api/usage?by=model", headers={"Accept": "text/csv"}),
            ):
                assert answer.headers["content-type"] == "text/csv; charset=utf-8"
                (row,) = csv.DictReader(io.StringIO(answer.text))
                assert {name: row[name] for name in ("model", "requests", "input_tokens", "output_tokens")} == {
                    "model": "test-model",
                    "requests": "1",
                    "input_tokens": "7",
                    "output_tokens": "3",
                }
                assert float(row["cost"]) == pytest.approx(3e-6)
            assert (await usage(ann, **{"from": "2020-01-01", "to": "2020-02-01T00:00:00Z"}))["data"] == []
            assert len((await usage(ann, **{"from": "1600000000"}))["data"]) == 1

    @pytest.mark.parametrize(
        ("query", "param"),
        [
            ("from=yesterday", "from"),
            ("to=2027-13-01", "to"),
            ("from=99999999999999999999", "from"),
            ("from=1600000000&to=1500000000", "from"),
            ("by=day", "by"),
            ("step=week", "step"),
            ("format=xml", "format"),
        ],
    )
    async def test_what_is_wrong_is_named(self, served: Running, query: str, param: str) -> None:
        assert_error(await served.http.get(f"/api/usage?{query}"), 400, param=param)


class Failing:
    """A store that fails when it should."""

    def __init__(self) -> None:
        self.fails = True
        self.sums: dict[Any, Use] = {}

    def count_usage(self, used: Any, failed: Any = None) -> Any:
        async def written() -> None:
            if self.fails:
                failed()
                raise ServerError("full")
            for where, more in used.items():
                self.sums[where] = self.sums.get(where, Use()).plus(more)

        return written()

    async def spent(self, since: int, *, owner: str, key: str | None = None) -> Spent:
        return Spent(sum(used.input_tokens + used.output_tokens for used in self.sums.values()))


async def test_what_could_not_be_written_is_written_later_once() -> None:
    store = Failing()
    log = UsageLog(store)
    where = ("o", 1, "k", "m", "e")
    for fails in (True, True, False, False):
        store.fails = fails
        log.add(where, Use(1, input_tokens=10))
        written = log.flush()
        assert written is not None
        await asyncio.gather(written, return_exceptions=True)
    assert store.sums == {where: Use(4, input_tokens=40)}
    assert log.flush() is None


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 100), st.floats(0, 100))
def test_what_is_cached_costs_its_own_price_and_never_more_than_all(
    fresh: int, cached: int, output: int, price: float, share: float
) -> None:
    plain = PriceConfig(input=price, output=share)
    cheap = PriceConfig(input=price, cached=price / 2, output=share)
    assert cheap.cost(fresh + cached, cached, output) <= plain.cost(fresh + cached, cached, output) * (1 + 1e-9) + 1e-9
    assert plain.cost(fresh + cached, cached, output) == pytest.approx(
        ((fresh + cached) * price + output * share) / 1e6
    )
