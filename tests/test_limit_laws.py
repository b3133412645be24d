"""Laws of limits and usage: whatever 20 keys do at once, whatever fails, whoever leaves, and whenever a process
dies."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.turns.tally import plan_of
from tests.conftest import Running
from tests.fake_backend import FakeBackend, Reply, chat, chat_usage, cut, http_error, pause, stall, steps
from tests.keyed import ADMIN, as_key, key, keyed_router, secret_of
from tests.test_restart import router_process
from tests.turns import URL, ended, eventually

Json = dict[str, Any]
NAMES = [f"key{number}" for number in range(20)]
CHAT = "/v1/chat/completions"
# Four letters: a token, where nobody counts.
WORD = "word"
# Of a stream of chat chunks those that hold no token.
FRAMES_BESIDE = 3


class Counting:
    """Answers as each request asks, by the words in it: NAME OUTCOME INPUT OUTPUT. Counts what it has answered of each
    key, and how many of its requests there were at once."""

    def __init__(self) -> None:
        self.input: Counter[str] = Counter()
        self.output: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    async def __call__(self, reply: Reply) -> None:
        text = reply.request.json["messages"][-1]["content"]
        name, outcome, given, written = text.split()
        self.now[name] += 1
        self.most[name] = max(self.most[name], self.now[name])
        try:
            match outcome:
                case "fails":
                    await http_error(400, "It does not like it.")(reply)
                case "cut":
                    self.cuts[name] += 1
                    self.cut[name] += int(written)
                    await chat(*[WORD] * int(written), usage=None, as_stream=True, then=cut())(reply)
                case "stall":
                    self.cuts[name] += 1
                    self.cut[name] += int(written)
                    await chat(*[WORD] * int(written), usage=None, as_stream=True, then=stall())(reply)
                case _:
                    await chat("Done.", usage=chat_usage(int(given), int(written)))(reply)
                    self.input[name] += int(given)
                    self.output[name] += int(written)
                    self.answered[name] += 1
        finally:
            self.now[name] -= 1


def asked(path: str, text: str, **more: Any) -> Json:
    if path == CHAT:
        with_usage = {"stream_options": {"include_usage": True}} if more.get("stream") else {}
        message = {"role": "user", "content": text}
        return {"model": "test-model", "messages": [message], "max_tokens": 50, **with_usage, **more}
    return {"model": "test-model", "input": text, "max_output_tokens": 50, **more}


async def is_free(running: Running) -> bool:
    """Whether no quota of so many at once has anything taken."""
    quotas = running.app.state.cluster.quotas
    for name in NAMES:
        plan = plan_of(running.app.state.keys.named(name))
        for bound in {*plan.turns, *plan.background}:
            if not bound.quota.period_s:
                left = (await quotas.take([(bound.quota, 0)])).left[0].amount
                if left != bound.quota.limit:
                    return False
    return True


@pytest.mark.parametrize(
    ("seed", "is_shared"),
    [(0, False), *(pytest.param(seed, False, marks=pytest.mark.heavy) for seed in (1, 2)), (3, True)],
)
async def test_counts_return_to_zero_windows_hold_and_usage_is_what_was_counted(
    request: pytest.FixtureRequest, backend: FakeBackend, clock: Any, seed: int, is_shared: bool
) -> None:
    """`is_shared`: counted at a Valkey. Its buckets end by a clock of its own: where one has, two more may come."""
    settings = {"cluster": {"url": request.getfixturevalue("valkey").url}} if is_shared else {}
    more_in_window = 2 if is_shared else 0
    clock.advance(61 - time.monotonic() % 60)  # To the beginning of a bucket: all happens in one.
    dice = random.Random(seed)
    backend.default = counting = Counting()
    limits = {
        name: {"rpm": dice.randrange(5, 40), "concurrent": dice.randrange(1, 4), "background": dice.randrange(1, 4)}
        for name in NAMES
    }
    keys = [key(name, owner=f"owner{number % 7}", **limits[name]) for number, name in enumerate(NAMES)]
    owners = [{"name": f"owner{number}", "rpm": 70, "concurrent": 6} for number in range(7)]
    refused: Counter[str] = Counter()
    admitted: Counter[str] = Counter()
    has_failed: Counter[str] = Counter()
    async with keyed_router(backend, *keys, owners=owners, **settings) as running, AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(as_key(running, name)) for name in NAMES}

        async def ask(name: str) -> None:
            outcome = dice.choice(["goes", "goes", "goes", "fails", "cut", "stall"])
            path = dice.choice([URL, CHAT])
            text = f"{name} {outcome} {dice.randrange(1, 500)} {dice.randrange(1, 60)}"
            more: Json = {"stream": outcome in ("cut", "stall") or dice.random() < 0.5}
            if path == URL:
                more["store"] = dice.random() < 0.5
                if outcome == "goes" and dice.random() < 0.3:
                    more |= {"background": True, "store": True, "stream": False}
            request = clients[name].build_request("POST", path, json=asked(path, text, **more))
            answer = await clients[name].send(request, stream=True)
            try:
                if answer.status_code == 429:
                    refused[name] += 1
                    return
                admitted[name] += 1
                if outcome == "stall":
                    async for line in answer.aiter_lines():
                        if WORD in line:
                            break
                else:
                    body = await answer.aread()
                    if more.get("background"):
                        await ended(clients[name], json.loads(body)["id"])
                has_failed[name] += outcome in ("fails", "cut")
            finally:
                await answer.aclose()

        for _ in range(4):
            await asyncio.gather(*(ask(dice.choice(NAMES)) for _ in range(100)))
            await eventually(lambda: running.in_flight() == 0, "the slots are free")
        await eventually(lambda: is_free(running), "nothing is taken")
        for name in NAMES:
            assert counting.most[name] <= limits[name]["concurrent"] + limits[name]["background"]
            assert admitted[name] <= limits[name]["rpm"] + more_in_window
        for number, owner in enumerate(owners):
            assert sum(admitted[name] for name in NAMES[number::7]) <= owner["rpm"] + more_in_window
        assert sum(refused.values()) > 50, "the limits were met"
        rows = {row["key"]: row for row in (await running.http.get("/api/usage")).json()["data"]}
    for name in NAMES:
        if not admitted[name]:
            assert name not in rows
            continue
        row = rows[name]
        assert row["requests"] == admitted[name]
        assert row["errors"] == has_failed[name]
        # What was whole counts as it was counted; of what was cut, no more than was sent.
        most = counting.output[name] + 1.1 * counting.cut[name] + FRAMES_BESIDE * counting.cuts[name]
        assert counting.output[name] <= row["output_tokens"] <= most
        assert row["input_tokens"] >= counting.input[name]


@pytest.mark.heavy
async def test_what_a_client_saw_finished_is_counted_though_the_process_is_killed(
    backend: FakeBackend, tmp_path: Path
) -> None:
    """Again and again, in the middle of stored turns of many keys. What a client did not see may be counted too."""
    backend.default = counting = Counting()
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 100}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "api_key": ADMIN,
        "keys": [key(name, budget="1M/day", concurrent=50) for name in NAMES],
    }
    dice = random.Random(7)
    seen: dict[str, Counter[str]] = defaultdict(Counter)

    async def ask_on(http: httpx2.AsyncClient, name: str) -> None:
        headers = {"Authorization": f"Bearer {secret_of(name)}"}
        while True:
            given, written = dice.randrange(1, 500), dice.randrange(1, 60)
            body = asked(URL, f"{name} goes {given} {written}", store=True, stream=dice.random() < 0.5)
            try:
                answer = await http.post(URL, json=body, headers=headers)
            except httpx2.HTTPError:
                return
            if answer.status_code == 200 and ('"status":"completed"' in answer.text.replace(" ", "")):
                seen[name].update(requests=1, input_tokens=given, output_tokens=written)

    for _ in range(6):
        async with router_process(settings, tmp_path) as (http, process):
            asking = [asyncio.create_task(ask_on(http, name)) for name in NAMES]
            so_far = sum(one["requests"] for one in seen.values())
            await eventually(
                lambda so_far=so_far: sum(one["requests"] for one in seen.values()) > so_far + dice.randrange(20, 120),
                "some are answered",
            )
            process.send_signal(signal.SIGKILL)
            await asyncio.gather(*asking)
    await backend.wait_for(lambda b: b.in_flight == 0)
    async with router_process(settings, tmp_path) as (http, process):
        answer = await http.get("/api/usage", headers={"Authorization": f"Bearer {ADMIN}"})
        rows = {row["key"]: row for row in answer.json()["data"]}
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        for count, least in seen[name].items():
            most = {"requests": counting.answered, "input_tokens": counting.input, "output_tokens": counting.output}
            assert least <= row[count] <= most[count][name], f"{name}: {count}"


def workers_of(pid: int) -> list[int]:
    """The workers of serve.py, by their process ids."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.heavy
async def test_two_workers_keep_the_limits_together_also_when_one_is_killed(
    backend: FakeBackend, tmp_path: Path
) -> None:
    now = most = 0

    async def answer(reply: Reply) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await steps(pause(0.05), chat("Done."))(reply)
        finally:
            now -= 1

    backend.default = answer
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 100}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "workers": 2,
        "keys": [key("many", concurrent=3), key("few", rpm=25)],
    }

    async def ask(url: str, name: str, **more: Any) -> int:
        headers = {"Authorization": f"Bearer {secret_of(name)}"}
        # Over a connection of its own: to whichever worker takes it.
        async with httpx2.AsyncClient(base_url=url, timeout=None, headers=headers) as http:
            try:
                return (await http.post(URL, json=asked(URL, "Hi.", store=False, **more))).status_code
            except httpx2.HTTPError:
                return 0

    async with router_process(settings, tmp_path, "serve.py") as (http, process):
        url = str(http.base_url)
        statuses = Counter(await asyncio.gather(*(ask(url, "few") for _ in range(80))))
        assert statuses == {200: 25, 429: 55}
        most = 0
        statuses = Counter([s for _ in range(5) for s in await asyncio.gather(*(ask(url, "many") for _ in range(20)))])
        assert set(statuses) == {200, 429}
        assert most == 3
        # Of a worker that dies in the middle of its turns, their places are free again.
        backend.default = stall()
        stalled = [asyncio.create_task(ask(url, "many", stream=True)) for _ in range(3)]
        await backend.wait_for(lambda b: b.in_flight == 3)
        assert await ask(url, "many") == 429
        for pid in workers_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        assert set(await asyncio.gather(*stalled)) == {0}
        backend.default = chat("Done.")

        async def all_may_run() -> bool:
            return await asyncio.gather(*(ask(url, "many") for _ in range(3))) == [200] * 3

        await eventually(all_may_run, "the places of the dead are free")
        process.send_signal(signal.SIGTERM)
        await process.wait()
