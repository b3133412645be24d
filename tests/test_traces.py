"""Traces: what a collector of OpenTelemetry is sent for each turn, over OTLP by gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from core.extras import EXTRAS
from core.tracing import OneLineExporter
from core.turn_record import ToolRun, Try
from tests.conftest import Running, running_router
from tests.engines.server import free_port
from tests.fake_backend import FakeBackend, chat, http_error, stall
from tests.test_telemetry import record_of
from tests.turns import URL, create, eventually, stream, turn

SECRET = "the prompt that nobody else shall see"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # gRPC's name
        self.metadata.append(dict(context.invocation_metadata()))
        for resource in request.resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def tree(self) -> tuple[Span, list[Span]]:
        """The one turn, and its children in their order."""
        (root,) = [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]
        children = [span for span in self.spans if span is not root]
        assert {span.parent_span_id for span in children} <= {root.span_id}
        assert {span.trace_id for span in self.spans} == {root.trace_id}
        return root, sorted(children, key=lambda span: span.start_time_unix_nano)


def attributes(given: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in given.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)
    made.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
    server.start()
    yield made
    server.stop(0).wait()


def traced(collector: Any, *backends: FakeBackend, **traces: Any) -> Any:
    endpoints = [
        {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": name, "priority": place}
        for place, (name, backend) in enumerate(zip(("one", "two"), backends, strict=False))
    ]
    return running_router(endpoints=endpoints, traces={"endpoint": collector.url, **traces})


async def test_a_turn_is_a_span_with_its_attempt_and_the_store_in_it(
    collector: Collector, backend: FakeBackend
) -> None:
    began_ns = time.time_ns()
    async with traced(collector, backend, headers={"Authorization": "Bearer collector"}) as running:
        response = await create(running.http)
    root, children = collector.tree()
    assert [span.name for span in children] == ["chat test-model", "store"]
    assert root.name == "chat test-model"
    assert not root.parent_span_id
    for span in (root, *children):
        assert began_ns <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    shown = attributes(root)
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "test-model",
        "gen_ai.response.id": response["id"],
        "gen_ai.usage.input_tokens": response["usage"]["input_tokens"],
        "gen_ai.usage.output_tokens": response["usage"]["output_tokens"],
        "nomyo.door": "responses",
        "nomyo.endpoint": "one",
        "nomyo.status": "completed",
    }.items() <= shown.items()
    assert children[0].kind == Span.SPAN_KIND_CLIENT
    assert attributes(children[0])["server.address"] == "one"
    # The server was asked within that span.
    assert backend.turns[-1].headers["traceparent"] == f"00-{root.trace_id.hex()}-{root.span_id.hex()}-01"
    assert collector.resources[0]["service.name"] == "nomyo-router"
    assert collector.metadata[0]["authorization"] == "Bearer collector"
    assert "gen_ai.input.messages" not in shown


async def test_an_attempt_that_failed_is_one_too(
    collector: Collector, backends_: list[FakeBackend], short_waits: None
) -> None:
    backends_[0].default = http_error(500)
    async with traced(collector, *backends_) as running:
        await stream(running.http)
    root, children = collector.tree()
    failed, answered = [span for span in children if span.kind == Span.SPAN_KIND_CLIENT]
    assert attributes(failed) | attributes(answered) == attributes(answered) | {"error.type": "backend_error"}
    assert (attributes(failed)["server.address"], attributes(answered)["server.address"]) == ("one", "two")
    assert (failed.status.code, answered.status.code, root.status.code) == (2, 0, 0)
    assert [event.name for event in root.events] == ["first output"]


async def test_who_waits_for_a_slot_has_a_span_of_that(collector: Collector, backend: FakeBackend) -> None:
    backend.script(stall())
    async with traced(collector, backend) as running:
        (endpoint,) = running.app.state.pool.endpoints.values()
        busy = asyncio.create_task(running.http.post(URL, json=turn()))
        await eventually(lambda: backend.in_flight == 1, "it runs")
        endpoint.config = type(endpoint.config)(url=endpoint.config.url, max_concurrent=1)
        waiting = asyncio.create_task(create(running.http))
        await eventually(lambda: len(running.app.state.pool.line) == 1, "one waits")
        busy.cancel()
        await waiting
    waits = [span for span in collector.spans if span.name == "wait for a slot"]
    assert len(waits) == 1
    assert waits[0].end_time_unix_nano > waits[0].start_time_unix_nano


async def test_a_trace_that_was_begun_goes_on(collector: Collector, backend: FakeBackend) -> None:
    async with traced(collector, backend) as running:
        for flags in ("01", "00"):
            given = {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-{flags}", "tracestate": "vendor=1"}
            assert (await running.http.post(URL, json=turn(store=False), headers=given)).status_code == 200
            assert backend.turns[-1].headers["traceparent"].startswith(f"00-{'a1' * 16}-")
            assert backend.turns[-1].headers["traceparent"].endswith(f"-{flags}")
            assert backend.turns[-1].headers["tracestate"] == "vendor=1"
    root, _ = collector.tree()  # Who does not want it sampled gets none.
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == ("a1" * 16, "b2" * 8)


@pytest.mark.parametrize("content", [False, True])
async def test_what_was_asked_and_answered_is_in_it_where_that_is_wanted(
    content: bool, collector: Collector, backend: FakeBackend
) -> None:
    backend.default = chat("An answer that is as private.")
    async with traced(collector, backend, content=content) as running:
        await create(running.http, input=SECRET)
        assert all(record.request.content is None for record in running.app.state.telemetry.recent)
    shown = str(collector.spans)
    assert (SECRET in shown) is ("as private" in shown) is content


async def test_a_background_turn_is_a_span_of_the_trace_of_its_request(
    collector: Collector, backend: FakeBackend
) -> None:
    async with traced(collector, backend) as running:
        given = {"traceparent": f"00-{'a1' * 16}-{'b2' * 8}-01"}
        answer = await running.http.post(URL, json=turn(background=True), headers=given)
        response_id = answer.json()["id"]

        async def has_ended() -> bool:
            return (await running.http.get(f"{URL}/{response_id}")).json()["status"] == "completed"

        await eventually(has_ended, "it has ended")
    root, _ = collector.tree()
    assert (root.trace_id.hex(), attributes(root)["nomyo.door"]) == ("a1" * 16, "background")


async def test_a_tool_that_the_router_ran_is_a_span(collector: Collector, backend: FakeBackend) -> None:
    async with traced(collector, backend) as running:
        record = record_of(
            tools=[ToolRun("mcp_call", "look", 100.5, 100.6, False), ToolRun("mcp_call", "find", 100.6, 100.7, True)],
            tries=[Try("one", 100.1, 100.4), Try("one", 100.7, 101.0)],
        )
        running.app.state.telemetry.end(record)
    _, children = collector.tree()
    assert [span.name for span in children if span.name.startswith("execute_tool")] == [
        "execute_tool look",
        "execute_tool find",
    ]
    assert [span.status.code for span in children] == [0, 0, 0, 2, 0]


async def test_a_collector_that_is_away_costs_a_line_and_no_request(
    backend: FakeBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    traces = {"endpoint": f"http://127.0.0.1:{free_port()}"}
    async with running_router(endpoints=[endpoint], traces=traces) as running:
        for _ in range(3):
            await create(running.http)
            running.app.state.telemetry.count()
        await eventually(lambda: "cannot be reached" in caplog.text, "it is logged")
        await create(running.http)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1, lines


def test_that_it_is_back_is_a_line_too(caplog: pytest.LogCaptureFixture) -> None:
    answers = [SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS]

    class Moody(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return answers.pop(0)

    caplog.set_level("INFO")
    exporter = OneLineExporter(Moody())
    for _ in range(3):
        exporter.export([])
    words = [record.getMessage() for record in caplog.records]
    assert ["cannot be reached" in words[0], "again" in words[1], len(words)] == [True, True, 2]


async def test_without_traces_nothing_of_opentelemetry_is_used(served: Running) -> None:
    await create(served.http)
    assert served.app.state.tracer is None
    (record,) = served.app.state.telemetry.recent
    assert record.request.span is None


async def test_opentelemetrys_own_variables_name_the_place_too(
    collector: Collector, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)  # type: ignore[attr-defined]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "the-gateway")
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
        await create(running.http)
    collector.tree()
    assert collector.resources[0]["service.name"] == "the-gateway"


OFF = {
    "a disabled SDK": {"OTEL_SDK_DISABLED": "true"},
    "no exporter": {"OTEL_TRACES_EXPORTER": "none"},
    "another protocol": {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
}


@pytest.mark.parametrize("why", [*OFF, "no extra"])
async def test_variables_that_are_for_others_stop_no_start(
    why: str, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, text in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **OFF.get(why, {})}.items():
        monkeypatch.setenv(name, text)
    if why == "no extra":
        monkeypatch.setitem(EXTRAS, "otel", ("no_such_package",))
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
        assert running.app.state.tracer is None
    logged = [record.getMessage() for record in caplog.records if "no traces are sent" in record.getMessage()]
    assert len(logged) == (why in ("another protocol", "no extra"))
