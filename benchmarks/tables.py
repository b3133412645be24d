"""What `make bench` prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version

from benchmarks.gateways import BOTH, Gateway, python_of, versions
from benchmarks.results import COLUMNS, COSTS, GAP, MEMORY, RATE, TIMES, Column, Results
from benchmarks.scenarios import BURST, CHAT, PLAIN, RESPONSES


def show_setting(gateways: list[Gateway], base: str | None) -> None:
    """Which versions run, and on what."""
    others = [versions(gateway) for gateway in gateways if gateway.packages]
    print(f"ours: {python_of(sys.executable)}, uvicorn {version('uvicorn')}. {len(os.sched_getaffinity(0))} CPUs.")
    if base is not None:
        print(f"Beside it: {base}, in an environment of its own.")
    print(f"Beside it: {', '.join(others)}." if others else "No other gateway runs.")


def show(results: Results, names: list[str]) -> None:
    """The figures of all gateways, and why some are missing."""
    ran = results.rows()
    rows = [row for name in names for path in BOTH if (row := f"{name} {path}") in ran]
    gateways = [row for row in rows if not row.startswith("direct")]
    notes: list[str] = []

    def cell(row: str, column: Column, shown: Callable[[float], str]) -> str:
        """A figure, or a dash and why there is none."""
        figure = results.middle(row, column)
        if figure is not None:
            return shown(figure)
        why = column.scenario and results.failures.get((row, column.scenario.name))
        if not column.scenario or why is None:
            return "–"
        note = f"{row}, {column.scenario.name}: {why}"
        if note not in notes:
            notes.append(note)
        return f"– [{notes.index(note) + 1}]"

    relay = f"codex-relay {RESPONSES}"
    print(f"\nCPU ms a request{' (in brackets: to codex-relay’s)' if relay in ran else ''}:\n")
    _head(column.name for column in COSTS)
    for row in gateways:
        _line(row, (cell(row, column, partial(beside, results.ratio(row, relay, column))) for column in COSTS))

    print("\nTimes in ms, p50; in brackets what the gateway adds to `direct`:\n")
    _head(column.name for column in (*TIMES, GAP, RATE, MEMORY))
    for row in rows:
        cells = [cell(row, column, partial(added, results.middle(f"direct {CHAT}", column))) for column in TIMES]
        cells += [cell(row, GAP, "{:.1f}".format), cell(row, RATE, "{:.0f}".format), cell(row, MEMORY, "{:.0f}".format)]
        _line(row, cells)

    for number, note in enumerate(notes, 1):
        print(f"\n[{number}] {note}")
    show_python(results)


def _head(names: Iterable[str]) -> None:
    columns = list(names)
    print(f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")


def _line(row: str, cells: Iterable[str]) -> None:
    print(f"| {row} | {' | '.join(cells)} |")


def beside(ratio: float | None, cost: float) -> str:
    return f"{cost:.3g}" if ratio is None else f"{cost:.3g} ({ratio:.3g})"


def added(without: float | None, time_ms: float) -> str:
    return f"{time_ms:.2f}" if without is None else f"{time_ms:.2f} (+{time_ms - without:.2f})"


def show_python(results: Results) -> None:
    """Ours to the other gateways in Python."""
    print()
    columns = {column.scenario: column for column in COSTS}
    for name in ("litellm", "ogx"):
        for path in BOTH:
            ratios = []
            for scenario, called in ((PLAIN, "plain"), (BURST, "burst")):
                ratio = results.ratio(f"{name} {path}", f"ours {path}", columns[scenario])
                if ratio is not None:
                    ratios.append(f"1/{ratio:.0f} {called}")
            if ratios:
                print(f"ours to {name}, {path}: {', '.join(ratios)}")


def show_base(results: Results, pairs: dict[str, str], base: str, percent: float, stored_percent: float) -> None:
    """Each row to its base's, column by column, and what got worse than is allowed."""
    print(f"\nOurs to {base}, the median of the ratios within each round (1.05: 5% more):\n")
    _head(column.name for column in COLUMNS)
    for row, other in pairs.items():
        ratios = (results.ratio(row, other, column) for column in COLUMNS)
        _line(row, ("–" if ratio is None else f"{ratio:.3f}" for ratio in ratios))
    print()
    worse = list(results.worse(pairs, percent, stored_percent))
    for found in worse:
        rounds = ", ".join(f"{ratio:.3f}" for ratio in found.ratios)
        what = f"{found.row}, {found.column.name} ({found.column.key})"
        print(f"WORSE by {found.percent:.1f}%: {what}; rounds: {rounds}; the best rounds: {found.best:.3f}")
    if not worse:
        print(f"No row is worse by more than {percent:g}%, stored {stored_percent:g}%.")
