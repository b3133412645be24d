"""Traces: a span for each turn, by OpenTelemetry's conventions for generative AI, sent by OTLP over gRPC.

    begin(request)         its span gets its ids: what is asked of backends names them as the parent
    turns(records)         a turn that has ended ──▶ its span, and in it those of its waiting, its attempts, its tools
                           and the store ──▶ a thread that sends them

Nothing of a turn waits for this: spans are made of the times in its record. The environment's OTEL_* hold where the
settings name nothing else: the endpoint, its headers, the sampler, the names of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from core.config import TracesConfig
from core.json import Json
from core.request_context import RequestContext
from core.telemetry import OPERATIONS
from core.turn_record import TurnRecord
from core.version import VERSION

log = logging.getLogger("nomyo.traces")

SCOPE = InstrumentationScope("nomyo-router", VERSION)
# What was asked, or answered, in a span.
MOST_CONTENT = 64 * 1024
# So long a stop waits for the last spans to be sent.
LAST_SPANS_S = 2.0


class SpanIds(NamedTuple):
    """A span before it is made: where it stands. `parent` is the one of whoever asked."""

    context: SpanContext
    parent: SpanContext | None


class Tracer:
    """Makes spans of turns and sends them by `exporter`. `close()` sends the last."""

    def __init__(self, exporter: SpanExporter, *, with_content: bool = False) -> None:
        self.with_content = with_content
        self._provider = TracerProvider(resource=Resource.create({"service.name": service_name()}))
        self._processor = BatchSpanProcessor(OneLineExporter(exporter))

    @classmethod
    def of(cls, config: TracesConfig) -> Tracer:
        """The tracer of some settings."""
        exporter = OTLPSpanExporter(
            endpoint=config.endpoint or None,
            headers={name.lower(): value for name, value in config.headers.items()} or None,
        )
        return cls(exporter, with_content=config.content)

    def begin(self, request: RequestContext) -> None:
        """Gives the turn of a request its span."""
        parent = _parent_of(request)
        trace_id = parent.trace_id if parent is not None else random.getrandbits(128) or 1
        if parent is not None and parent.trace_flags.sampled:
            sampled = True
        else:
            within = None if parent is None else set_span_in_context(NonRecordingSpan(parent))
            sampled = self._provider.sampler.should_sample(within, trace_id, "turn").decision.is_sampled()  # type: ignore[no-untyped-call]
        state = parent.trace_state if parent is not None else TraceState()
        flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        context = SpanContext(trace_id, random.getrandbits(64) or 1, False, flags, state)
        request.span = SpanIds(context, parent)
        request.traceparent = b"00-%032x-%016x-%02x" % (trace_id, context.span_id, flags)

    def turns(self, records: Sequence[TurnRecord]) -> None:
        """Sends the spans of turns that have ended."""
        for record in records:
            if record.request.span is None:  # Of a turn that runs again.
                self.begin(record.request)
            if record.request.span.context.trace_flags.sampled:
                for span in self._spans(record):
                    self._processor.on_end(span)
            record.request.content = None  # It may be megabytes, and the record is kept.

    async def close(self) -> None:
        """Sends what is left, if it can be sent soon."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def end() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):  # The loop has not waited.
                loop.call_soon_threadsafe(ended.set)

        # No thread of the pool: at its end the process would wait for that.
        threading.Thread(target=end, name="last spans", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), LAST_SPANS_S)

    # ── the spans of a turn ──────────────────────────────────────────────────────────────────────────────────────────

    def _spans(self, record: TurnRecord) -> list[ReadableSpan]:
        ids: SpanIds = record.request.span
        operation = OPERATIONS.get(record.door, "chat")
        since = record.ended_at - record.ended_s

        def ns(seconds: float) -> int:
            return int((since + seconds) * 1e9)

        def span(
            name: str,
            began_s: float,
            ended_s: float,
            attributes: Mapping[str, Any],
            error: str = "",
            kind: SpanKind = SpanKind.INTERNAL,
        ) -> ReadableSpan:
            return ReadableSpan(
                name,
                context=SpanContext(
                    ids.context.trace_id,
                    random.getrandbits(64) or 1,
                    False,
                    ids.context.trace_flags,
                    ids.context.trace_state,
                ),
                parent=ids.context,
                resource=self._provider.resource,
                attributes={**attributes, **({"error.type": error} if error else {})},
                kind=kind,
                status=Status(StatusCode.ERROR if error else StatusCode.UNSET),
                start_time=ns(began_s),
                end_time=max(ns(ended_s), ns(began_s)),
                instrumentation_scope=SCOPE,
            )

        children: list[ReadableSpan] = []
        if record.waited_s and record.tries:
            asked_s = record.tries[0].asked_s
            children.append(span("wait for a slot", asked_s - record.waited_s, asked_s, {}))
        for one in record.tries:
            attributes = {
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": record.model,
                "server.address": one.endpoint,
            }
            name = f"{operation} {record.model}"
            children.append(span(name, one.asked_s, one.ended_s, attributes, one.error, SpanKind.CLIENT))
        for tool in record.tools:
            name = tool.name or tool.kind
            attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name}
            error = "tool_error" if tool.has_failed else ""
            children.append(span(f"execute_tool {name}", tool.began_s, tool.ended_s, attributes, error))
        if record.stored_s:
            children.append(span("store", record.ended_s, record.stored_s, {}))
        ended_s = max(record.ended_s, record.stored_s)
        first = [Event("first output", timestamp=ns(record.first_s))] if record.first_s else []
        root = ReadableSpan(
            f"{operation} {record.model}",
            context=ids.context,
            parent=ids.parent,
            resource=self._provider.resource,
            attributes=attributes_of(record, operation),
            events=first,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if record.status == "failed" else StatusCode.UNSET),
            start_time=ns(record.began_s),
            end_time=ns(ended_s),
            instrumentation_scope=SCOPE,
        )
        return [*children, root]


def attributes_of(record: TurnRecord, operation: str) -> Json:
    """What is known of a turn, by the names of OpenTelemetry's conventions, and under `nomyo.` by ours."""
    attributes: Json = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "nomyo",
        "gen_ai.request.model": record.model,
        "gen_ai.response.id": record.id,
        "gen_ai.usage.input_tokens": record.tokens.input,
        "gen_ai.usage.output_tokens": record.tokens.output,
        "gen_ai.usage.cache_read.input_tokens": record.tokens.cached,
        "error.type": record.error,
        "nomyo.door": record.door,
        "nomyo.endpoint": record.endpoint,
        "nomyo.owner": record.principal.owner,
        "nomyo.key": record.principal.key,
        "nomyo.request_id": record.request.id.decode(),
        "nomyo.status": record.status,
        "nomyo.tries": len(record.tries),
        "nomyo.from_cache": record.from_cache,
    }
    if record.request.content is not None:
        given, made = record.request.content
        attributes["gen_ai.input.messages"] = _text_of(given)
        attributes["gen_ai.output.messages"] = _text_of(made)
    return {name: value for name, value in attributes.items() if value not in ("", None)}


def service_name() -> str:
    """What the service is called in traces."""
    return os.environ.get("OTEL_SERVICE_NAME") or "nomyo-router"


def _text_of(content: Any) -> str:
    return orjson.dumps(content, default=str).decode()[:MOST_CONTENT]


def _parent_of(request: RequestContext) -> SpanContext | None:
    """The span of whoever asked."""
    if not request.traceparent:
        return None
    _, trace_id, span_id, flags = request.traceparent.decode().split("-")[:4]
    state = TraceState.from_header([request.tracestate.decode()]) if request.tracestate else TraceState()
    return SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)), state)


class OneLineExporter(SpanExporter):
    """An exporter whose failures are a line of the log, and the end of them another one: a collector that is down is
    nobody's other concern. What it logs by itself is not shown."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._is_down = False
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans."""
        result = self._inner.export(spans)
        is_down = result is not SpanExportResult.SUCCESS
        if is_down and not self._is_down:
            log.warning("the collector of traces cannot be reached: their spans are dropped, until it can")
        elif self._is_down and not is_down:
            log.info("the collector of traces takes spans again")
        self._is_down = is_down
        return result

    def shutdown(self) -> None:
        """Ends it."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Waits until all is sent."""
        return self._inner.force_flush(timeout_millis)
