"""`./nomyo usage`: what was used, out of the database, beside a router that runs: it is there within a second."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from commands import json_option, print_json, print_line
from commands.keys import with_store
from core.config_file import load_config
from core.key_changes import seconds_of
from core.usage import DAY_S, HOUR_S, By, UsageRow, Use, time_of

STEPS = {"hour": HOUR_S, "day": DAY_S}
COLUMNS = (
    *("REQUESTS", "ERRORS", "INPUT", "CACHED", "OUTPUT", "REASONING", "SLOT S", "CACHE HITS", "COST"),
)  # as `Use` has them


@click.command(short_help="Show who has used what, and what it cost.")
@click.option("--from", "begin", metavar="WHEN", default="7d", help="A day, a time, or how long ago. Default: 7d.")
@click.option("--to", "end", metavar="WHEN", default="", help="The same. Default: now.")
@click.option(
    "--by", type=click.Choice(["key", "model", "endpoint", "owner"]), default="key", help="Whose it was. Default: key."
)
@click.option("--step", type=click.Choice([*STEPS]), help="A line for each hour or day (UTC). Default: for all of it.")
@click.option("--owner", metavar="OWNER", help="That of one owner alone. Default: all.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for tables.")
@json_option
def usage(begin: str, end: str, by: By, step: str | None, owner: str | None, as_csv: bool, as_json: bool) -> None:
    """Shows what was used: requests, errors, tokens, seconds of slots of servers, cache hits, and their cost by the
    prices of the settings.

    \b
    Example:
      ./nomyo usage --from 30d --by model
      ./nomyo usage --from 2027-01-01 --to 2027-02-01 --step day --csv
    """
    now = time.time()
    from_s, to_s = _when(begin, now, "--from"), _when(end, now, "--to") if end else int(now) + 1
    if from_s > to_s:
        raise click.BadParameter("it lies behind --to", param_hint="--from")
    every = STEPS[step] if step else DAY_S
    rows: list[UsageRow] = with_store(
        load_config(), lambda store: store.list_usage(from_s, to_s, by=by, step=every, owner=owner)
    )
    if step is None:
        rows = _summed(rows, from_s)
    if as_json:
        data = [{"at": row.at, by: row.name, **row.used._asdict()} for row in rows]
        total = _summed([row._replace(name="") for row in rows], from_s)
        print_json(
            {"from": from_s, "to": to_s, "by": by, "data": data, "total": (total or [NOTHING])[0].used._asdict()}
        )
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("at", by, *Use._fields))
        writer.writerows((_time(row.at), row.name, *_rounded(row.used)) for row in rows)
    elif rows:
        _print_table(by, rows, shows_times=step is not None)
    else:
        print_line("Nothing was used in this time.")


COMMAND = usage
NOTHING = UsageRow(0, "", Use())


def _when(text: str, now: float, option: str) -> int:
    """Unix seconds of a day, a time, or how long ago."""
    try:
        return max(int(now - seconds_of(text)), 0)
    except ValueError:
        pass
    try:
        return time_of(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or 7d for how long ago", param_hint=option) from None


def _summed(rows: Sequence[UsageRow], at: int) -> list[UsageRow]:
    sums: dict[str, Use] = {}
    for row in rows:
        sums[row.name] = sums.get(row.name, Use()).plus(row.used)
    return [UsageRow(at, name, used) for name, used in sorted(sums.items())]


def _print_table(by: By, rows: Sequence[UsageRow], *, shows_times: bool) -> None:
    shown: list[tuple[str, ...]] = [("FROM (UTC)", by.upper(), *COLUMNS)]
    shown += [(_time(row.at), row.name or "(none)", *map(_shown, _rounded(row.used))) for row in rows]
    if not shows_times:
        shown = [line[1:] for line in shown]
    first = 2 if shows_times else 1
    widths = [max(len(line[column]) for line in shown) for column in range(len(shown[0]))]
    for number, line in enumerate(shown):
        cells = [
            value.ljust(width) if column < first else value.rjust(width)
            for column, (value, width) in enumerate(zip(line, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip(), bold=number == 0)


def _rounded(used: Use) -> Use:
    return used._replace(slot_s=round(used.slot_s, 3), cost=round(used.cost, 9))


def _shown(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _time(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%MZ}"
