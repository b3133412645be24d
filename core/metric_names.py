"""The metrics of /metrics: their names, what they mean, and their labels. Those of `gen_ai_…` are OpenTelemetry's
conventions for generative AI, as Prometheus spells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# The bounds that OpenTelemetry's conventions for generative AI give.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_OUTPUT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKEN_COUNTS = tuple(4.0**power for power in range(14))
# And ours.
WAIT_S = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STORE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metric(NamedTuple):
    """One metric; the names of counters end in `_total` where they are shown. `bounds` are those of a histogram's
    buckets."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    type: str = "counter"
    bounds: Sequence[float] = ()

    @property
    def shown(self) -> str:
        """Its name in /metrics, without the endings that its type adds (`_bucket`, `_sum`)."""
        return f"{self.name}_total" if self.type == "counter" else self.name


def gauge(name: str, help: str, *labels: str) -> Metric:
    """A value that rises and falls."""
    return Metric(name, help, labels, "gauge")


def histogram(name: str, help: str, bounds: Sequence[float], *labels: str) -> Metric:
    """How values are spread."""
    return Metric(name, help, labels, "histogram", bounds)


# What each process knows of the fleet; how an endpoint stands is as the process sees it that was asked.
BUILD_INFO = gauge("nomyo_build_info", "Always 1; its labels are the version and Python's.", "version", "python")
ENDPOINT_UP = gauge("nomyo_endpoint_up", "Answers when it is asked.", "endpoint")
ENDPOINT_IN_FLIGHT = gauge("nomyo_endpoint_in_flight", "Requests that run there.", "endpoint")
ENDPOINT_SLOTS = gauge("nomyo_endpoint_slots", "Requests it may run.", "endpoint")
ENDPOINT_DRAINING = gauge("nomyo_endpoint_draining", "Gets no new requests.", "endpoint")
BREAKER_OPEN = gauge("nomyo_breaker_open", "A model of an endpoint is left alone for a while.", "endpoint", "model")
STORE_UP = gauge("nomyo_store_up", "Responses can be stored.")
QUEUE_WAITING = gauge("nomyo_queue_waiting", "Requests that wait for a slot.")
QUEUE_LONGEST_WAIT = gauge("nomyo_queue_longest_wait_seconds", "How long the first of them has waited.")
BACKGROUND = gauge("nomyo_background_turns", "Background turns that wait or run.")
STREAMS = gauge("nomyo_streams_open", "Streamed answers that are under way.")
SOCKETS = gauge("nomyo_websockets_open", "WebSockets that are open.")
PROCESSES = gauge("nomyo_processes", "Processes of the service whose figures these are.")

# What is counted.
REQUESTS = Metric("nomyo_requests", "Requests to endpoints by how they ended.", ("endpoint", "outcome"))
REPLIES = Metric("nomyo_http_requests", "Requests of clients by front door and HTTP status.", ("door", "status"))
TURNS = Metric("nomyo_turns", "Turns by front door, how they ended, and the error's code.", ("door", "status", "error"))
QUEUE_WAIT = Metric("nomyo_queue_wait_seconds", "Seconds that requests have waited.")
TOKENS = Metric("nomyo_tokens", "Tokens that backends have counted.", ("model", "direction"))
USED = Metric(
    "nomyo_used_tokens",
    "The same by endpoint, owner and kind: cached ones are a part of the input, reasoning of the output.",
    ("model", "endpoint", "owner", "kind"),
)
TOOL_CALLS = Metric("nomyo_tool_calls", "Calls of tools that the router ran.", ("tool", "outcome"))
# What `Telemetry.counts` holds.
COUNTED = {
    "queued": Metric("nomyo_queued", "Requests that had to wait for a slot."),
    "queue_full": Metric("nomyo_queue_full", "Requests refused because too many waited."),
    "queue_timeout": Metric("nomyo_queue_timeout", "Requests that waited too long."),
    "retries": Metric("nomyo_retries", "Requests tried again after a failure."),
    "failovers": Metric("nomyo_failovers", "Turns that were answered after an attempt that failed."),
    "failures": Metric("nomyo_failures", "Failures of backends."),
    "cache_lookups": Metric("nomyo_cache_lookups", "Turns that asked the cache."),
    "cache_hits": Metric("nomyo_cache_hits", "Turns that were answered from the cache, or with another one."),
}

GEN_AI = ("gen_ai_operation_name", "gen_ai_request_model", "nomyo_endpoint")
# What `Telemetry.histograms` holds.
HISTOGRAMS = {
    "turn": histogram("nomyo_turn_duration_seconds", "How long turns take, to their end.", DURATION_S, "door"),
    "operation": histogram(
        "gen_ai_client_operation_duration_seconds",
        "How long backends take, from the slot to the end of the answer.",
        DURATION_S,
        *(*GEN_AI, "error_type"),
    ),
    "first_output": histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "From the request to the first output of a stream.",
        FIRST_OUTPUT_S,
        *GEN_AI,
    ),
    "output_token": histogram(
        "gen_ai_server_time_per_output_token_seconds",
        "For each token of a stream behind the first.",
        OUTPUT_TOKEN_S,
        *GEN_AI,
    ),
    "usage": histogram("gen_ai_client_token_usage", "Tokens of a turn.", TOKEN_COUNTS, *GEN_AI, "gen_ai_token_type"),
    "wait": histogram("nomyo_slot_wait_seconds", "How long requests wait for a slot.", WAIT_S, "endpoint"),
    "store": histogram("nomyo_store_write_seconds", "How long a batch of writes takes the store.", STORE_S),
    "loop_lag": histogram("nomyo_event_loop_lag_seconds", "How late the event loop comes round.", LAG_S),
}

ALL: tuple[Metric, ...] = (
    *(BUILD_INFO, ENDPOINT_UP, ENDPOINT_IN_FLIGHT, ENDPOINT_SLOTS, ENDPOINT_DRAINING, BREAKER_OPEN, STORE_UP),
    *(QUEUE_WAITING, QUEUE_LONGEST_WAIT, BACKGROUND, STREAMS, SOCKETS, PROCESSES),
    *(REQUESTS, REPLIES, TURNS, QUEUE_WAIT, TOKENS, USED, TOOL_CALLS),
    *COUNTED.values(),
    *HISTOGRAMS.values(),
)
