"""`./nomyo keys`: the keys of the database, beside a router that runs. What changes here reaches it within 2 s.

add, rotate ──▶ core.key_changes ──▶ Store.put_keys        the key itself is printed once, and kept nowhere
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from commands import Failed, Refused, json_option, print_json, print_line
from core.config import Config
from core.config_file import load_config
from core.json import Json
from core.key_changes import (
    CannotChange,
    Change,
    NewKey,
    change_keys,
    described,
    expiry_from,
    new_key,
    replaced,
    revoked,
    seconds_of,
    settings_of,
)
from core.key_settings import EVERY_MODEL, KeyConfig, owner_in, wrong_with_key
from core.keys import StoredKey
from db import Store, make_store

C = TypeVar("C", bound=Change)


@click.group(short_help="Make, list, replace and revoke keys of clients.")
def keys() -> None:
    """The keys of clients that are kept in the database, beside those of the settings. A router that runs takes what
    changes within 2 s.

    \b
    Example:
      ./nomyo keys add ann --models 'qwen*' --rpm 60 --expires 90d
      docker compose exec router ./nomyo keys list
    """


@keys.command(short_help="Make a key.")
@click.argument("name")
@click.option(
    "--owner",
    metavar="OWNER",
    default="",
    help="Whose everything is that it makes. Default: the name; of an admin, all admins.",
)
@click.option("--admin", is_flag=True, help="It may see and change the fleet, the cache, keys and metrics.")
@click.option(
    "--models",
    metavar="PATTERN",
    multiple=True,
    help="A model that it may use, as 'qwen*'; several with commas between. Default: all.",
)
@click.option("--rpm", type=click.IntRange(1), metavar="N", help="Requests a minute.")
@click.option("--tpm", type=click.IntRange(1), metavar="N", help="Tokens a minute.")
@click.option("--concurrent", type=click.IntRange(1), metavar="N", help="Turns at once.")
@click.option("--background", type=click.IntRange(1), metavar="N", help="Background turns that wait or run.")
@click.option(
    "--budget", metavar="N/day", default="", help="Tokens a day or month: 1000000/day, or '1M/day, 20M/month'."
)
@click.option(
    "--cost", metavar="N/month", default="", help="What it may cost a day or month, by the prices of the settings."
)
@click.option("--priority", type=int, default=0, metavar="N", help="Its place in the queue: lower ones come first.")
@click.option(
    "--expires", metavar="WHEN", default="", help="When it ends: 90d, 12h, or a day (2027-01-31). Default: never."
)
@json_option
def add(name: str, as_json: bool, models: tuple[str, ...], expires: str, **settings: Any) -> None:
    """Makes a key called NAME, and prints it. It is printed this once: only its SHA-256 is kept.

    \b
    Example:
      ./nomyo keys add ann --models 'qwen*' --rpm 60 --budget 1M/day --expires 90d
    """
    at = time.time()
    config = load_config()
    if any(key.name == name for key in config.keys):
        raise Refused(f"name: '{name}' is a key of the settings: a name is in one place; give another")
    patterns = tuple(pattern.strip() for given in models for pattern in given.split(","))
    wanted = KeyConfig(name=name, models=patterns or EVERY_MODEL, expires=_when(expires, at), **settings)
    if wrong := wrong_with_key(wanted):
        raise click.UsageError(wrong)
    before: list[StoredKey] = []

    def change(kept: Sequence[StoredKey]) -> NewKey:
        before[:] = kept
        return new_key(kept, wanted, at)

    made = _changed(config, change)
    _print_new(made, as_json)
    with contextlib.suppress(CannotChange):  # Of another key: that is not this one's matter.
        _warn(config, before, made.stored, at)


@keys.command(name="list", short_help="Show the keys, and what each may do.")
@click.option("--all", "shows_all", is_flag=True, help="Those that have ended too.")
@json_option
def list_keys(shows_all: bool, as_json: bool) -> None:
    """Shows the keys of the database, the oldest first; those of the settings stand there.

    \b
    Example:
      ./nomyo keys list --json
    """
    at = time.time()
    kept = with_store(load_config(), lambda store: store.list_keys())
    shown = [key for key in kept if shows_all or key.ends_at is None or key.ends_at > at]
    rows = [described(key, at) for key in sorted(shown, key=lambda key: (key.created_at, key.change))]
    if as_json:
        print_json({"keys": rows})
    elif rows:
        _print_table(rows)
    else:
        print_line(
            "There are no keys in the database."
            if shows_all or not kept
            else "No key is valid (--all shows the others)."
        )


@keys.command(short_help="Make a key in place of another one.")
@click.argument("name")
@click.option(
    "--grace",
    metavar="WHILE",
    default="0",
    help="How long the earlier one stays valid: 30m, 12h, 7d. Default: not at all.",
)
@click.option(
    "--expires", metavar="WHEN", help="When the new one ends: 90d, or a day. Default: when the earlier one does."
)
@json_option
def rotate(name: str, grace: str, expires: str | None, as_json: bool) -> None:
    """Makes a new key called NAME with the settings of the one that there is, and prints it.

    \b
    Example:
      ./nomyo keys rotate ann --grace 7d
    """
    at = time.time()
    try:
        grace_s = seconds_of(grace)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--grace") from None
    until = None if expires is None else _when(expires, at)
    made = _changed(load_config(), lambda kept: replaced(kept, name, at, grace_s=grace_s, expires=until))
    _print_new(made, as_json)


@keys.command(short_help="End a key.")
@click.argument("name")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """Ends the key NAME, and the earlier ones of that name whose grace still runs. What belongs to its owner stays.

    \b
    Example:
      ./nomyo keys revoke ann
    """
    at = time.time()
    ended = _changed(load_config(), lambda kept: revoked(kept, name, at))
    if as_json:
        print_json({"revoked": [described(key, at) for key in ended.changed]})
    else:
        print_line(f"'{name}' is revoked: running routers take it no more within 2 s.", fg="green")


COMMAND = keys


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────────────


def with_store(config: Config, act: Callable[[Store], Any]) -> Any:
    """What `act` gives of the store of the settings, opened beside whoever runs on it."""
    if config.database.url == "sqlite://":
        raise Failed("database.url is sqlite://: a database in memory keeps nothing that a command could see or change")

    async def opened() -> Any:
        store = make_store(config.database.url, settings=config.database)
        await store.open()
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(opened())


def _changed(config: Config, change: Callable[[Sequence[StoredKey]], C]) -> C:
    """What `change` makes of the keys that there are, put into the database."""

    try:
        made: C = with_store(config, lambda store: change_keys(store, change))
    except CannotChange as error:
        raise Refused(str(error)) from None
    return made


def _when(text: str, at: float) -> str:
    try:
        return expiry_from(text, at) if text else ""
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────────


def _print_new(made: NewKey, as_json: bool) -> None:
    at = time.time()
    if as_json:
        print_json({**described(made.stored, at), "key": made.secret})
        return
    # Alone on stdout: for $(./nomyo keys add …).
    click.echo(made.secret)
    ends = f", until {_day(made.stored.ends_at)}" if made.stored.ends_at is not None else ""
    lines = [f"The key of '{made.stored.name}'{ends}. It is shown this once; running routers take it within 2 s."]
    for key in made.others:
        is_over = key.ends_at is not None and key.ends_at <= at
        lines.append(f"The earlier one ({key.shown}…) {'has ended' if is_over else f'ends {_day(key.ends_at)}'}.")
    for line in lines:
        click.secho(line, fg="green", file=sys.stderr)


def _warn(config: Config, before: Sequence[StoredKey], made: StoredKey, at: float) -> None:
    """What whoever makes a key may not have thought of."""
    settings = settings_of(made)
    owner = owner_in(settings)
    if owner and any(owner_in(settings_of(key)) == owner for key in before if key.ends_at and key.ends_at <= at):
        click.secho(f"What earlier keys of '{owner}' have stored is this one's too.", fg="yellow", err=True)
    is_there = [key.admin for key in config.keys]
    is_there += [settings_of(key).admin for key in before if key.ends_at is None or key.ends_at > at]
    if not (settings.admin or config.api_key or any(is_there)):
        click.secho(
            "There is no admin's key: the fleet, the cache and the metrics are out of reach (keys add NAME --admin).",
            fg="yellow",
            err=True,
        )


def _print_table(rows: Sequence[Json]) -> None:
    shown = [("NAME", "KEY", "OWNER", "STATE", "MADE", "ENDS", "")]
    shown += [
        (
            row["name"],
            row["key"],
            "?" if row["owner"] is None else row["owner"] or "(admins)",
            row["state"],
            _day(row["created_at"]),
            _day(row["ends_at"]),
            _rest(row),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in shown) for column in range(6)]
    for number, line in enumerate(shown):
        text = "  ".join(value.ljust(width) for value, width in zip(line, [*widths, 0], strict=True)).rstrip()
        print_line(text, bold=number == 0)


def _rest(row: Json) -> str:
    """What a key may do, in one column."""
    known = ("name", "key", "owner", "state", "created_at", "ends_at")
    words = []
    for name, value in row.items():
        if name not in known:
            words.append(
                name if value is True else f"{name}={','.join(value) if isinstance(value, tuple | list) else value}"
            )
    return " ".join(words)


def _day(at: float | None) -> str:
    return "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"
