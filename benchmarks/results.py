"""The figures of all rounds, and what is made of them: medians, and ratios between rows. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeVar

from benchmarks.scenarios import BURST_ALONE, PLAIN, PLAIN_ALONE, SCENARIOS, TRICKLE, Scenario

T = TypeVar("T")


def order_of(rows: Sequence[T], number: int) -> list[T]:
    """The rows in the order of a round. Of two rounds that follow each other one goes backwards, so that each of two
    rows is once before the other; every second round begins with another row, since who comes first finds everything
    else asleep."""
    first = number // 2 % len(rows)
    turned = [*rows[first:], *rows[:first]]
    return turned[::-1] if number % 2 else turned


@dataclass(frozen=True)
class Column:
    """A figure of a scenario, `key` of what `measure` gives. Memory is that of all scenarios: the most."""

    name: str
    key: str
    scenario: Scenario | None
    more_is_better: bool = False


COSTS = tuple(Column(scenario.name, "cpu", scenario) for scenario in SCENARIOS)
TIMES = (
    Column("plain, one client: first byte", "first_p50", PLAIN_ALONE),
    Column("burst, one client: first byte", "first_p50", BURST_ALONE),
    Column("first token", "token_p50", BURST_ALONE),
    Column("end", "total_p50", BURST_ALONE),
)
GAP = Column("trickle: gap p99", "gap_p99", TRICKLE)
RATE = Column("plain/s", "per_s", PLAIN, more_is_better=True)
MEMORY = Column("memory MB", "memory", None)
COLUMNS = (*COSTS, *TIMES, GAP, RATE, MEMORY)


@dataclass(frozen=True)
class Worse:
    """A row that got worse in a column: by so many percent, its ratio in each round, and that of the best rounds of the
    two. What disturbs a round makes it worse only: where the best are alike, it was the machine."""

    row: str
    column: Column
    percent: float
    ratios: list[float]
    best: float


@dataclass
class Results:
    """The figures of each row and scenario, round by round, or why there are none."""

    figures: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def rows(self) -> set[str]:
        return {row for row, _ in (*self.figures, *self.failures)}

    def rounds(self, row: str, column: Column) -> list[float]:
        """The figure in each round; nothing where a round failed."""
        if column.scenario is not None:
            at = (row, column.scenario.name)
            return [] if at in self.failures else [run[column.key] for run in self.figures.get(at, [])]
        whole = [
            runs for (of, scenario), runs in self.figures.items() if of == row and (of, scenario) not in self.failures
        ]
        return [max(run[column.key] for run in runs) for runs in zip(*whole, strict=True)]

    def middle(self, row: str, column: Column) -> float | None:
        return median(rounds) if (rounds := self.rounds(row, column)) else None

    def best(self, row: str, column: Column) -> float:
        """The best round of a row that has figures."""
        return (max if column.more_is_better else min)(self.rounds(row, column))

    def ratios(self, row: str, base: str, column: Column) -> list[float]:
        """Of one row to another, round by round: a machine that drifts is the same for both within a round."""
        mine, others = self.rounds(row, column), self.rounds(base, column)
        return [one / other for one, other in zip(mine, others, strict=True) if other] if mine and others else []

    def ratio(self, row: str, base: str, column: Column) -> float | None:
        """The median of the rounds' ratios."""
        return median(ratios) if (ratios := self.ratios(row, base, column)) else None

    def worse(self, pairs: dict[str, str], percent: float, stored_percent: float) -> Iterator[Worse]:
        """Where a row is worse than its base by more than so many percent; columns of what is stored have a limit of
        their own, since they wait for a disk."""
        for row, base in pairs.items():
            for column in COLUMNS:
                if not (ratios := self.ratios(row, base, column)):
                    continue
                ratio = median(ratios)
                lost = 100 * ((1 / ratio if column.more_is_better else ratio) - 1)
                is_stored = column.scenario is not None and column.scenario.store
                if lost > (stored_percent if is_stored else percent):
                    yield Worse(row, column, lost, ratios, self.best(row, column) / self.best(base, column))
