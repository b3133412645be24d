"""What is counted, and how it is shown: names, sums over processes, Prometheus' text."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core import telemetry
from core.telemetry import COUNTED, Metric, Telemetry, added, exposition
from tests.conftest import Running
from tests.fake_backend import FakeBackend, chat, chat_usage, http_error
from tests.turns import URL, create, stream

METRICS = [*(value for value in vars(telemetry).values() if isinstance(value, Metric)), *COUNTED.values()]


def counts(**given: int) -> Telemetry:
    made = Telemetry()
    made.counts.update(given)
    return made


def test_every_metric_has_a_name_of_its_own() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names) == 13
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in METRICS)


numbers = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
def test_the_figures_of_processes_are_added(processes: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    total: Any = None
    for counted, tokens in processes:
        made = counts(**counted)
        for model, count in tokens.items():
            made.count_tokens(model, count, 2 * count)
        total = made.figures() if total is None else added(total, made.figures())
    for name in "abc":
        assert total["counts"].get(name, 0) == sum(counted.get(name, 0) for counted, _ in processes)
        sent = total["tokens"].get(name, {"input": 0, "output": 0})
        expected = sum(tokens.get(name, 0) for _, tokens in processes)
        assert (sent["input"], sent["output"]) == (expected, 2 * expected)


labels = st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=8), max_size=2)


@given(st.lists(st.tuples(labels, st.integers(0, 9) | st.floats(0, 9)), max_size=3))
def test_each_value_is_a_line_that_can_be_read_back(values: list[tuple[dict[str, str], float]]) -> None:
    head, kind, *lines = exposition([(Metric("x_total", "Xs."), values)]).removesuffix("\n").split("\n")
    assert (head, kind) == ("# HELP nomyo_x_total Xs.", "# TYPE nomyo_x_total counter")
    read = []
    for line in lines:
        found = re.fullmatch(r"nomyo_x_total(\{.*\})? (\S+)", line, re.DOTALL)
        assert found, line
        given_labels = re.findall(r'(\w)="((?:[^"\\]|\\.)*)"', found[1] or "", re.DOTALL)
        plain = {key: re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value) for key, value in given_labels}
        read.append((plain, float(found[2])))
    assert read == [(dict(given), float(value)) for given, value in values]


async def test_what_happens_is_counted_where_it_happens(
    served: Running, backend: FakeBackend, short_waits: None
) -> None:
    backend.script(chat("Hi", usage=chat_usage(3, 5)), http_error(503), chat("Hi", usage=chat_usage(2, 4)))
    await create(served.http)
    await stream(served.http)
    shown = (await served.http.get("/metrics")).text.splitlines()
    name = next(iter(served.app.state.pool.endpoints.values())).name
    for line in (
        'nomyo_tokens_total{model="test-model",direction="input"} 5',
        'nomyo_tokens_total{model="test-model",direction="output"} 9',
        f'nomyo_requests_total{{endpoint="{name}",outcome="answered"}} 2',
        f'nomyo_requests_total{{endpoint="{name}",outcome="failed"}} 1',
        "nomyo_failures_total 1",
        "nomyo_retries_total 1",
        "nomyo_queued_total 0",
    ):
        assert line in shown, f"{line} is not in {shown}"
    assert (await served.http.post(URL, json={})).status_code == 400
    assert (await served.http.get("/metrics")).text.splitlines() == shown, "what asks no backend counts nothing"
