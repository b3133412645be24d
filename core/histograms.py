"""Histograms: how often a value was at most so much, by labels, as plain data that processes can add."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import orjson

from core.json import Json

Labels = tuple[str, ...]
OTHER = "other"


class Histogram:
    """Counts values in the buckets that end with each of `bounds`, and one behind the last. Of more than `most` sets of
    labels the newest are counted as one, whose labels are `other`."""

    __slots__ = ("bounds", "most", "series")

    def __init__(self, bounds: Sequence[float], most: int = 200) -> None:
        self.bounds = bounds
        self.most = most
        # Of each set of labels: the counts by bucket, and behind them the sum of the values.
        self.series: dict[Labels, list[float]] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Counts a value."""
        series = self.series.get(labels)
        if series is None:
            series = self._new(labels)
        series[bisect_left(self.bounds, value)] += 1
        series[-1] += value

    def _new(self, labels: Labels) -> list[float]:
        if len(self.series) >= self.most:
            labels = (OTHER,) * len(labels)
        return self.series.setdefault(labels, [0] * (len(self.bounds) + 2))

    def figures(self) -> Json:
        """By labels (as JSON) the counts by the index of their bucket, and `sum`: only what is not 0."""
        return {
            as_key(labels): {**{str(at): count for at, count in enumerate(series[:-1]) if count}, "sum": series[-1]}
            for labels, series in self.series.items()
        }


def as_key(labels: Labels) -> str:
    """Labels as a key of JSON; `labels_of` reads it."""
    return orjson.dumps(labels).decode()


def labels_of(key: str) -> Labels:
    """The labels that `as_key` has made a key of."""
    return tuple(orjson.loads(key))


def buckets(bounds: Sequence[float], figures: Json) -> tuple[list[tuple[str, float]], float]:
    """Of some figures the buckets as Prometheus has them, each with all that is in those before it, and the sum."""
    total = 0
    found: list[tuple[str, float]] = []
    for at, bound in enumerate(bounds):
        total += figures.get(str(at), 0)
        found.append((repr(float(bound)), total))
    found.append(("+Inf", total + figures.get(str(len(bounds)), 0)))
    return found, figures["sum"]
