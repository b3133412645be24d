"""What the router costs, beside other gateways and beside an earlier commit in the same run: `make bench`.

    python -m benchmarks.bench [--rounds 3] [--scale 1.0] [--only ours codex-relay] [--python PATH] [--base COMMIT]

All gateways run at once, before one mock backend, and are loaded one after the other, round after round, each round in
another order; a figure is the median of its rounds. CPU is what the operating system has accounted to the gateway's
processes, per request. `direct` is the backend without a gateway: what a gateway adds to a time is the difference to
it. Other gateways are taken from `benchmarks/.gateways` (`make gateways` installs them there); one that is missing or
does not start is named and left out.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack

from benchmarks.base import Base, base_of
from benchmarks.gateways import DIRECT, OTHERS, OURS, ROOT, Gateway, direct, free_port, of_checkout, with_python
from benchmarks.results import Results, order_of
from benchmarks.running import Failed, Running, measure, serving, started
from benchmarks.scenarios import CHAT, RESPONSES, SCENARIOS, Scenario
from benchmarks.tables import show, show_base, show_setting


def main() -> None:
    given = arguments()
    # `timeout` ends a run by this one; what was started is then ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    base = base_of(given.base) if given.base else None
    twins: dict[str, str] = {}
    with ExitStack() as stack:
        backend = free_port()
        stack.enter_context(started(direct(backend, backend, ROOT), ROOT))
        fleet = []
        for gateway in measured(given.only, given.python, base, twins):
            try:
                fleet.append(stack.enter_context(serving(gateway, backend)))
            except FileNotFoundError:
                print(f"{gateway.name} is left out: not installed (make gateways)")
            except Failed as error:
                print(f"{gateway.name} is left out: {error}")
        results = all_rounds(fleet, given.rounds, given.scale)
    show_setting([running.gateway for running in fleet], str(base) if base else None)
    show(results, [running.gateway.name for running in fleet])
    if base:
        ran = results.rows()
        pairs = {f"{ours} {path}": f"{twin} {path}" for ours, twin in twins.items() for path in (RESPONSES, CHAT)}
        pairs = {ours: twin for ours, twin in pairs.items() if ours in ran and twin in ran}
        show_base(results, pairs, str(base), given.worse, given.worse_stored)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--only", nargs="*", default=[], help="these gateways, besides `direct`")
    parser.add_argument("--python", nargs="*", default=[], help="ours also with these, which have its packages")
    parser.add_argument("--base", help="ours also as it was at this commit, in an environment of its own")
    parser.add_argument(
        "--worse", type=float, default=3, metavar="PERCENT", help="name the rows that lost more to the base"
    )
    parser.add_argument(
        "--worse-stored", type=float, default=10, metavar="PERCENT", help="the same where turns are stored"
    )
    return parser.parse_args()


def measured(only: list[str], pythons: list[str], base: Base | None, twins: dict[str, str]) -> list[Gateway]:
    """The gateways of a run; `twins` gets the names of ours and of the same at the base. Each is followed by its
    twin."""
    gateways: list[Gateway] = []
    for gateway in (*OURS, *OTHERS, DIRECT):
        if only and gateway.name not in (*only, DIRECT.name):
            continue
        gateways.append(gateway)
        if base is not None and gateway in OURS:
            twin = of_checkout(gateway, base.checkout, base.python, base.name)
            twins[gateway.name] = twin.name
            gateways.append(twin)
    return [*gateways, *map(with_python, pythons)]


def all_rounds(fleet: list[Running], rounds: int, scale: float) -> Results:
    """Measures every row in every scenario, round after round, behind one round that warms up."""
    results = Results()
    rows = [(running, path) for path in (RESPONSES, CHAT) for running in fleet if path in running.gateway.paths]
    for number in range(rounds + 1):
        for scenario in SCENARIOS:
            for running, path in order_of(rows, number):
                if running.gateway.takes(scenario, path):
                    add(results, running, path, scenario, scale, is_warming_up=not number)
        print(f"round {number} of {rounds} is done", file=sys.stderr)
    return results


def add(
    results: Results, running: Running, path: str, scenario: Scenario, scale: float, *, is_warming_up: bool
) -> None:
    """Measures a row once. One that has failed is not asked again."""
    at = (f"{running.gateway.name} {path}", scenario.name)
    if at in results.failures:
        return
    try:
        figures = measure(running, path, scenario.warming_up() if is_warming_up else scenario, scale)
    except Failed as error:
        results.failures[at] = str(error)
        return
    if not is_warming_up:
        results.figures.setdefault(at, []).append(figures)


if __name__ == "__main__":
    main()
