"""What was counted, as Prometheus reads it: text 0.0.4, or OpenMetrics where that is asked for.

figures (of some processes, added) ──families──▶ prometheus-client's families ──▶ text
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from core.histograms import buckets, labels_of
from core.json import Json
from core.metric_names import (
    BACKGROUND,
    BREAKER_OPEN,
    BUILD_INFO,
    COUNTED,
    ENDPOINT_DRAINING,
    ENDPOINT_IN_FLIGHT,
    ENDPOINT_SLOTS,
    ENDPOINT_UP,
    HISTOGRAMS,
    PROCESSES,
    QUEUE_LONGEST_WAIT,
    QUEUE_WAIT,
    QUEUE_WAITING,
    REPLIES,
    REQUESTS,
    SOCKETS,
    STORE_UP,
    STREAMS,
    TOKENS,
    TOOL_CALLS,
    TURNS,
    USED,
    Metric,
)
from core.state import AppState
from core.version import VERSION

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text"

Sample = tuple[tuple[str, ...], float]
# The values of a metric by its labels; of a histogram the figures.
Values = list[Sample] | Json


def values(state: AppState, figures: Json, *, is_stored: bool) -> list[tuple[Metric, Values]]:
    """Every metric, with its values. How endpoints stand is as this process sees them."""
    endpoints = [endpoint for endpoint in state.pool.endpoints.values() if not endpoint.leaving]
    now = time.monotonic()
    tokens: dict[tuple[str, str], float] = {}
    used = [(labels_of(key), count) for key, count in figures["used"].items()]
    for (model, _, _, kind), count in used:
        if kind in ("input", "output"):
            tokens[model, kind] = tokens.get((model, kind), 0) + count
    return [
        (BUILD_INFO, [((VERSION, platform.python_version()), 1)]),
        (PROCESSES, [((), figures["processes"])]),
        (STORE_UP, [((), float(is_stored))]),
        (ENDPOINT_UP, [((endpoint.name,), float(endpoint.healthy)) for endpoint in endpoints]),
        (ENDPOINT_IN_FLIGHT, [((endpoint.name,), endpoint.busy) for endpoint in endpoints]),
        (ENDPOINT_SLOTS, [((endpoint.name,), endpoint.max_concurrent) for endpoint in endpoints]),
        (ENDPOINT_DRAINING, [((endpoint.name,), float(endpoint.draining)) for endpoint in endpoints]),
        (
            BREAKER_OPEN,
            [
                ((endpoint.name, model), float(breaker.state(now) != "closed"))
                for endpoint in endpoints
                for model, breaker in endpoint.breakers.items()
            ],
        ),
        (QUEUE_WAITING, [((), figures["waiting"])]),
        (QUEUE_LONGEST_WAIT, [((), figures["longest_wait_s"])]),
        (BACKGROUND, [((), figures["background"])]),
        (STREAMS, [((), figures["streams"])]),
        (SOCKETS, [((), figures["sockets"])]),
        (
            REQUESTS,
            [
                ((name, outcome), count)
                for name, outcomes in figures["outcomes"].items()
                for outcome, count in outcomes.items()
            ],
        ),
        (REPLIES, _labelled(figures["replies"])),
        (TURNS, _labelled(figures["turns"])),
        (QUEUE_WAIT, [((), figures["waited_s"])]),
        (TOKENS, list(tokens.items())),
        (USED, used),
        (TOOL_CALLS, _labelled(figures["tools"])),
        *((metric, [((), figures["counts"].get(name, 0))]) for name, metric in COUNTED.items()),
        *((metric, figures["histograms"][name]) for name, metric in HISTOGRAMS.items()),
    ]


def exposition(shown: Iterable[tuple[Metric, Values]], accept: str) -> tuple[bytes, str]:
    """Metrics as the header `Accept` wants them, and the content type. Loads prometheus-client: for a thread."""
    from prometheus_client.exposition import generate_latest
    from prometheus_client.openmetrics import exposition as openmetrics

    collected = Collected(list(families(shown)))
    if OPEN_METRICS in accept:
        text: bytes = openmetrics.generate_latest(collected)  # type: ignore[no-untyped-call]
        return text, f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
    return generate_latest(collected), TEXT


class Collected:
    """Stands for a registry whose collectors have been asked."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        """The families, as a registry gives them."""
        return self._families


def families(shown: Iterable[tuple[Metric, Values]]) -> Iterator[Family]:
    """prometheus-client's families of metrics."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for metric, values in shown:
        if isinstance(values, dict):
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for key, figures in values.items():
                filled, total = buckets(metric.bounds, figures)
                histogram.add_metric(labels_of(key), filled, total)
            yield histogram
            continue
        new_family = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
        family = new_family(metric.name, metric.help, labels=metric.labels)
        for labels, value in values:
            family.add_metric(labels, value)
        yield family


def _labelled(figures: Json) -> list[Sample]:
    return [(labels_of(key), count) for key, count in figures.items()]
