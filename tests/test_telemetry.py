"""What is counted, and how it is shown: names, sums over processes, Prometheus' text and OpenMetrics."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from api.admin.exposition import OPEN_METRICS, TEXT, exposition
from backends.fleet.routing import Routing
from core import telemetry as core_telemetry
from core.histograms import Histogram, as_key, buckets, labels_of
from core.keys import Principal
from core.metric_names import ALL, HISTOGRAMS, Metric
from core.request_context import RequestContext
from core.telemetry import Telemetry, added
from core.turn_record import DOORS, Try, TurnRecord, door_of
from core.version import VERSION
from requests.usage import Tokens
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, chat_usage, http_error
from tests.test_architecture import ROOT
from tests.turns import URL, create, stream, turn

MODEL = "test-model"
COUNTS = {"input": 3, "cached": 1, "output": 5, "reasoning": 2}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def record_of(**given: Any) -> TurnRecord:
    """A turn that has ended, as most do."""
    fields: dict[str, Any] = {
        "id": "resp_1",
        "request": RequestContext(b"req_1", "/v1/responses", began_s=100.0),
        "principal": Principal("", owner="ann", key="laptop"),
        "model": MODEL,
        "way": Routing(
            endpoint=given.pop("endpoint", "one"),
            waited_s=given.pop("waited_s", 0.02),
            tries=given.pop("tries", [Try("one", 100.1, 101.0)]),
        ),
        "tokens": Tokens(*(given.pop(kind, count) for kind, count in COUNTS.items())),
        "status": "completed",
        "error": "",
        "is_estimated": False,
        "from_cache": False,
        "first_s": 100.5,
        "tools": [],
        "ended_s": 101.5,
        "ended_at": 1_700_000_000.0,
    }
    return TurnRecord(**{**fields, **given})


def counted(*records: TurnRecord) -> Telemetry:
    made = Telemetry()
    for record in records:
        made.end(record)
    return made


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_metric_has_a_name_of_its_own_and_its_kind_shows_in_it() -> None:
    names = [metric.shown for metric in ALL]
    assert len(set(names)) == len(names)
    # OpenMetrics knows a counter by its name without the ending.
    families = [metric.name for metric in ALL]
    assert len(set(families)) == len(families)
    for metric in ALL:
        assert metric.shown.endswith("_total") == (metric.type == "counter")
        assert bool(metric.bounds) == (metric.type == "histogram")
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert metric.help.endswith(".")
    assert set(Telemetry().histograms) == set(HISTOGRAMS)


def test_the_names_that_were_there_before_are_there_still() -> None:
    """Dashboards are made of them."""
    assert {
        *("nomyo_endpoint_up", "nomyo_endpoint_in_flight", "nomyo_endpoint_slots", "nomyo_requests_total"),
        *("nomyo_queue_waiting", "nomyo_queue_longest_wait_seconds", "nomyo_queue_wait_seconds_total"),
        *("nomyo_tokens_total", "nomyo_queued_total", "nomyo_queue_full_total", "nomyo_queue_timeout_total"),
        *("nomyo_retries_total", "nomyo_failures_total"),
    } <= {metric.shown for metric in ALL}


@given(st.text() | st.sampled_from([*DOORS, "/v1/responses/x/cancel", "/api/keys", "/metrics", "/v1/models/x"]))
def test_no_client_can_make_up_a_front_door(path: str) -> None:
    doors = {*DOORS.values(), "responses", "conversations", "models", "api", "other"}
    assert door_of(path) in doors | {"metrics", "health", "ready", "docs", "openapi.json"}


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────

amounts = st.integers(0, 2**40)
labels = st.sampled_from(["", "a", "b"])
records = st.builds(
    record_of,
    model=labels,
    endpoint=labels,
    principal=st.builds(Principal, st.just(""), owner=labels),
    status=st.sampled_from(["completed", "incomplete", "failed", "cancelled"]),
    error=labels,
    input=amounts,
    cached=amounts,
    output=amounts,
    reasoning=amounts,
    is_estimated=st.booleans(),
    from_cache=st.booleans(),
    waited_s=st.floats(0, 100),
    first_s=st.sampled_from([0.0, 100.0, 101.0]),
    tries=st.lists(st.builds(Try, labels, st.just(100.0), st.floats(100, 102), labels), max_size=3),
)


def is_near(one: Any, other: Any) -> bool:
    """Whether figures are equal, but for what adding floats in another order does."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_near(value, other[key]) for key, value in one.items())
    return bool(one == pytest.approx(other))


@given(st.lists(st.lists(records, max_size=4), min_size=1, max_size=3))
def test_the_figures_of_processes_are_added_as_if_one_had_counted_all(processes: list[list[TurnRecord]]) -> None:
    one = counted(*(record for each in processes for record in each)).figures()
    total: Any = None
    for each in processes:
        figures = json.loads(json.dumps(counted(*each).figures()))  # As a peer gives them.
        total = figures if total is None else added(total, figures)
    assert is_near(total, {**one, "processes": len(processes)})


@given(st.lists(st.floats(0, 1000), max_size=20))
def test_a_histogram_holds_each_value_once(values: list[float]) -> None:
    histogram = Histogram(HISTOGRAMS["turn"].bounds)
    for value in values:
        histogram.observe(("a",), value)
    for figures in histogram.figures().values():
        filled, total = buckets(histogram.bounds, figures)
        assert total == pytest.approx(sum(values))
        for bound, count in filled:
            assert count == sum(value <= float(bound) for value in values)


def test_of_too_many_labels_the_newest_are_counted_as_one() -> None:
    histogram = Histogram((1.0,), most=2)
    for name in ("a", "b", "c", "d", "a"):
        histogram.observe((name, "x"), 0.5)
    assert {labels_of(key): sum(buckets((1.0,), value)[0][0][1:]) for key, value in histogram.figures().items()} == {
        ("a", "x"): 2,
        ("b", "x"): 1,
        ("other", "other"): 2,
    }


def test_owners_and_models_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_telemetry, "MOST_OWNERS", 2)
    monkeypatch.setattr(core_telemetry, "MOST_USED", 8)
    made = counted(
        *(record_of(principal=Principal("", owner=f"owner {number}")) for number in range(5)),
        *(record_of(model=f"model {number}") for number in range(9)),
    )
    used = {labels_of(key): count for key, count in made.figures()["used"].items()}
    assert {owner for _, _, owner, _ in used} == {"owner 0", "owner 1", "other"}
    assert len(used) <= 8 + 2 * 4
    assert sum(count for labels, count in used.items() if labels[3] == "input") == 14 * 3, "nothing is lost"


def test_the_errors_of_backends_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_telemetry, "MOST_ENDS", 3)
    turns = counted(*(record_of(status="failed", error=f"code {number}") for number in range(6))).figures()["turns"]
    assert sum(turns.values()) == 6
    assert len(turns) == 4


def test_whoever_listens_gets_each_turn_once_and_one_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    made = Telemetry()
    heard: list[TurnRecord] = []

    def fails(records: object) -> None:
        raise ValueError

    made.listen(fails)
    made.listen(heard.extend)
    given = [record_of(id=str(number)) for number in range(3)]
    made._uncounted += given
    made.count()
    made.count()
    assert heard == given == made.recent
    assert "has failed" in caplog.text


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def samples_of(text: str, *, is_open: bool = False) -> Samples:
    """The samples, as Prometheus' own parser reads them."""
    parse: Any = parse_openmetrics if is_open else parse_text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


texts = st.text(max_size=8)


@given(st.lists(st.tuples(st.tuples(texts, texts), st.integers(0, 9) | st.floats(0, 9)), max_size=3), st.booleans())
def test_each_value_can_be_read_back(values: list[tuple[tuple[str, str], float]], is_open: bool) -> None:
    unique = dict(values)
    shown = [(Metric("nomyo_x", "Xs.", ("a", "b")), list(unique.items()))]
    text, content_type = exposition(shown, OPEN_METRICS if is_open else "")
    assert content_type.startswith(OPEN_METRICS) if is_open else content_type == TEXT
    try:
        written = text.decode()
        expected = {
            ("nomyo_x_total", frozenset({("a", a), ("b", b)})): float(value) for (a, b), value in unique.items()
        }
    except UnicodeEncodeError:
        return
    assert samples_of(written, is_open=is_open) == expected


@given(st.lists(texts, max_size=4))
def test_labels_are_keys_of_json(given_labels: list[str]) -> None:
    assert labels_of(as_key(tuple(given_labels))) == tuple(given_labels)


# ── a router ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def value(samples: Samples, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sum of the samples that have these labels."""
    wanted = set((labels or {}).items())
    return sum(value for (found, has), value in samples.items() if found == name and wanted <= has)


async def scraped(http: httpx2.AsyncClient, *, is_open: bool = False) -> Samples:
    answer = await http.get(
        "/metrics", headers={"Accept": f"{OPEN_METRICS};version=1.0.0,*/*;q=0.1"} if is_open else {}
    )
    assert answer.headers["content-type"].startswith(OPEN_METRICS if is_open else TEXT)
    return samples_of(answer.text, is_open=is_open)


async def test_what_happens_is_counted_where_it_happens(
    served: Running, backend: FakeBackend, short_waits: None
) -> None:
    backend.script(chat("Hi", usage=chat_usage(3, 5)), http_error(503), chat("Hi", usage=chat_usage(2, 4)))
    await create(served.http)
    await stream(served.http)
    shown = await scraped(served.http)
    name = next(iter(served.app.state.pool.endpoints.values())).name
    where = {"gen_ai_request_model": MODEL, "gen_ai_operation_name": "chat", "nomyo_endpoint": name}
    for metric, labels, expected in (
        ("nomyo_tokens_total", {"model": MODEL, "direction": "input"}, 5),
        ("nomyo_tokens_total", {"model": MODEL, "direction": "output"}, 9),
        ("nomyo_used_tokens_total", {"endpoint": name, "kind": "output", "owner": ""}, 9),
        ("nomyo_requests_total", {"endpoint": name, "outcome": "answered"}, 2),
        ("nomyo_requests_total", {"endpoint": name, "outcome": "failed"}, 1),
        ("nomyo_http_requests_total", {"door": "responses", "status": "200"}, 2),
        ("nomyo_turns_total", {"door": "responses", "status": "completed", "error": ""}, 2),
        ("nomyo_failures_total", {}, 1),
        ("nomyo_retries_total", {}, 1),
        ("nomyo_failovers_total", {}, 1),
        ("nomyo_queued_total", {}, 0),
        ("nomyo_turn_duration_seconds_count", {"door": "responses"}, 2),
        ("gen_ai_client_operation_duration_seconds_count", {**where, "error_type": ""}, 2),
        ("gen_ai_client_operation_duration_seconds_count", {**where, "error_type": "backend_unreachable"}, 1),
        ("gen_ai_server_time_to_first_token_seconds_count", where, 1),
        ("gen_ai_server_time_per_output_token_seconds_count", where, 1),
        ("gen_ai_client_token_usage_sum", {**where, "gen_ai_token_type": "input"}, 5),
        ("nomyo_slot_wait_seconds_count", {"endpoint": name}, 2),
        ("nomyo_processes", {}, 1),
        ("nomyo_store_up", {}, 1),
        ("nomyo_streams_open", {}, 0),
    ):
        assert value(shown, metric, labels) == expected, (metric, labels, shown)
    assert value(shown, "nomyo_store_write_seconds_count") >= 2
    assert (await served.http.post(URL, json={})).status_code == 400
    after = await scraped(served.http)
    changed = {name for name, _ in {*shown.items() ^ after.items()} for name in name[:1]}
    assert changed <= {
        *("nomyo_http_requests_total", "nomyo_event_loop_lag_seconds_bucket", "nomyo_event_loop_lag_seconds_sum"),
        *("nomyo_event_loop_lag_seconds_count", "nomyo_store_write_seconds_bucket", "nomyo_store_write_seconds_sum"),
        "nomyo_store_write_seconds_count",
    }, "what asks no backend counts as a request and nothing else"
    assert value(after, "nomyo_http_requests_total", {"door": "responses", "status": "400"}) == 1


async def test_prometheus_and_openmetrics_read_the_same(served: Running) -> None:
    await create(served.http)
    text, opened = await scraped(served.http), await scraped(served.http, is_open=True)
    assert {name for name, _ in text} == {name for name, _ in opened}
    for metric in ALL:
        ending = {"histogram": "_count"}.get(metric.type, "")
        if metric.name in ("nomyo_tool_calls", "nomyo_breaker_open", "nomyo_event_loop_lag_seconds"):
            continue
        if metric.name.startswith("gen_ai_server"):
            continue  # Of streams.
        assert any(name == metric.shown + ending for name, _ in text), f"{metric.shown} is not in /metrics"


DOORS_ASKED: Iterable[tuple[str, dict[str, Any], str]] = [
    (URL, turn(), "responses"),
    ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}, "chat.completions"),
    ("/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}, "ollama.chat"),
    ("/api/generate", {"model": MODEL, "prompt": "Hi"}, "ollama.generate"),
    (f"{URL}/input_tokens", turn(), "input_tokens"),
]


@pytest.mark.parametrize(("path", "body", "door"), DOORS_ASKED)
async def test_every_front_door_keeps_a_record_of_its_turns(
    path: str, body: dict[str, Any], door: str, served: Running, backend: FakeBackend
) -> None:
    answer = await served.http.post(path, json=body, headers={"x-request-id": "mine-1"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "mine-1"
    (record,) = served.app.state.telemetry.recent
    assert (record.door, record.model, record.status, record.error) == (door, MODEL, "completed", "")
    assert record.request.id == b"mine-1"
    assert [one.endpoint for one in record.tries] == [record.endpoint] != [""]
    assert record.began_s <= record.tries[0].asked_s <= record.tries[0].ended_s <= record.ended_s
    assert all(asked.headers["x-request-id"] == "mine-1" for asked in backend.turns)
    assert len(backend.turns) == (door != "input_tokens")


@pytest.mark.parametrize("given_id", ["", "a b", "x" * 200, "ü"])
async def test_an_id_that_is_none_is_replaced(given_id: str, served: Running) -> None:
    answer = await served.http.get("/health", headers={"x-request-id": given_id.encode()})
    assert answer.headers["x-request-id"].startswith("req_")


async def test_two_requests_have_two_ids_and_errors_have_theirs(served: Running) -> None:
    answers = [await served.http.get(path) for path in ("/health", "/nowhere", "/v1/models")]
    answers.append(await served.http.head("/health"))
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


async def test_openais_sdk_finds_the_id_where_it_looks_for_it(served: Running) -> None:
    response = await served.openai.responses.create(model=MODEL, input="Hi")
    assert str(response._request_id).startswith("req_")


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


async def test_a_trace_is_passed_on_and_one_that_is_none_is_not(served: Running, backend: FakeBackend) -> None:
    given = {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01", "tracestate": "vendor=1"}
    assert (await served.http.post(URL, json=turn(), headers=given)).status_code == 200
    assert {name: backend.turns[-1].headers[name] for name in given} == given
    wrong = {"traceparent": f"00-{'0' * 32}-{'b2' * 8}-01", "tracestate": "vendor=1"}
    assert (await served.http.post(URL, json=turn(), headers=wrong)).status_code == 200
    assert not {"traceparent", "tracestate"} & set(backend.turns[-1].headers)


async def test_a_failed_turn_has_the_code_of_its_error(backend: FakeBackend) -> None:
    backend.default = http_error(500)
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint], retry={"max": 0}) as running:
        await running.http.post(URL, json=turn())
        (record,) = running.app.state.telemetry.recent
        assert (record.status, record.error) == ("failed", "backend_error")
        assert [one.error for one in record.tries] == ["backend_error"]
        assert value(await scraped(running.http), "nomyo_turns_total", {"status": "failed"}) == 1


async def test_of_the_words_of_a_client_little_is_kept(served: Running) -> None:
    key = "k" * 1_000_000
    assert (await served.http.post(URL, json=turn(prompt_cache_key=key))).status_code == 200
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "prompt_cache_key": key}
    assert (await served.http.post("/v1/chat/completions", json=asked)).status_code == 200
    remembered = served.app.state.pool.slots.affinity._places
    assert len(remembered) >= 2
    assert all(len(name) < 1000 for name in remembered)


async def test_counted_names_are_of_the_fleet(served: Running) -> None:
    await served.http.post(URL, json=turn(model="made up by a client"))
    (record,) = served.app.state.telemetry.recent
    assert (record.model, record.error) == ("other", "model_not_found")
