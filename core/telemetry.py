"""What this process has counted, and under which names it is shown.

counted where it happens        telemetry.counts["retries"] += 1
figures()                       plain data: those of several processes are added (`added`)
exposition(samples)             Prometheus' text format, version 0.0.4
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class Telemetry:
    """The counts of one process, since it started. Each is one addition: nothing here costs a request more. How
    requests end at an endpoint is counted with that (`Endpoint.outcomes`), and forgotten with it."""

    __slots__ = ("counts", "tokens", "waited_s")

    def __init__(self) -> None:
        # By the names in `COUNTED`.
        self.counts: Counter[str] = Counter()
        # By model, and `input` or `output`.
        self.tokens: Counter[tuple[str, str]] = Counter()
        # How long requests have waited for a slot, all together.
        self.waited_s = 0.0

    def count_tokens(self, model: str, input: int, output: int) -> None:
        """Tokens that a backend has counted."""
        self.tokens[model, "input"] += input
        self.tokens[model, "output"] += output

    def figures(self) -> dict[str, object]:
        """All of it, as plain data."""
        return {
            "counts": dict(self.counts),
            "tokens": {
                model: {way: self.tokens[model, way] for way in ("input", "output")} for model, _ in self.tokens
            },
            "waited_s": self.waited_s,
        }


def added(first: object, second: Any) -> Any:
    """The figures of two processes as one: numbers and lists are added, key by key."""
    if isinstance(first, dict):
        both = first.keys() & second.keys()
        return {**first, **second, **{key: added(first[key], second[key]) for key in both}}
    return first + second


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of /metrics, without the `nomyo_` in front of its name."""

    name: str
    help: str
    kind: str = "counter"


ENDPOINT_UP = Metric("endpoint_up", "Answers when it is asked.", "gauge")
ENDPOINT_IN_FLIGHT = Metric("endpoint_in_flight", "Requests that run there.", "gauge")
ENDPOINT_SLOTS = Metric("endpoint_slots", "Requests it may run.", "gauge")
REQUESTS = Metric("requests_total", "Requests by how they ended.")
QUEUE_WAITING = Metric("queue_waiting", "Requests that wait for a slot.", "gauge")
QUEUE_LONGEST_WAIT = Metric("queue_longest_wait_seconds", "How long the first of them has waited.", "gauge")
QUEUE_WAIT = Metric("queue_wait_seconds_total", "Seconds that requests have waited.")
TOKENS = Metric("tokens_total", "Tokens that backends have counted.")
# What `Telemetry.counts` holds.
COUNTED = {
    "queued": Metric("queued_total", "Requests that had to wait for a slot."),
    "queue_full": Metric("queue_full_total", "Requests refused because too many waited."),
    "queue_timeout": Metric("queue_timeout_total", "Requests that waited too long."),
    "retries": Metric("retries_total", "Requests tried again after a failure."),
    "failures": Metric("failures_total", "Failures of backends."),
}

Labels = dict[str, str]
Samples = list[tuple[Labels, float]]


def exposition(samples: Iterable[tuple[Metric, Samples]]) -> str:
    """The values of metrics, each with its labels, in Prometheus' text format."""
    lines: list[str] = []
    for metric, values in samples:
        lines.append(f"# HELP nomyo_{metric.name} {metric.help}")
        lines.append(f"# TYPE nomyo_{metric.name} {metric.kind}")
        for labels, value in values:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"nomyo_{metric.name}{{{shown}}} {value!r}" if shown else f"nomyo_{metric.name} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
