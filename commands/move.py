"""`./nomyo move SOURCE TARGET`: all that is kept goes to another database.

    SOURCE ──rows: table by table, in the order of their keys──▶ TARGET ──read again──▶ equal?

What an interrupted run has left in the target is a beginning of each table. The next run compares it with the source's,
and goes on behind it; rows that are not the source's are another router's, and then nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager

import click
import msgspec

from commands import Failed, Refused, Stopped, json_option, print_json, print_line
from core.errors import StartError
from core.extras import need
from db import TABLES, CopiedRow, CopyError, Store, Table, has_database, make_store


class Digest:
    """The number of rows, and a hash over all of them in their order: equal for equal tables, in whatever database."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = hashlib.sha256()

    def add(self, rows: Iterable[CopiedRow]) -> None:
        """Counts rows behind those before."""
        for row in rows:
            # MessagePack has the length before each value: no two lists of rows have the same bytes.
            self._hash.update(_encode(row))
            self.rows += 1

    @property
    def hash(self) -> str:
        """The hash, in hexadecimal."""
        return self._hash.hexdigest()


_encode = msgspec.msgpack.Encoder().encode


class Move:
    """All tables on their way from a store to another one, both open. `advance` is given how many rows are done
    now."""

    def __init__(self, source: Store, target: Store, advance: Callable[[int], object]) -> None:
        self._source = source
        self._target = target
        self._advance = advance
        self._last: dict[str, CopiedRow | None] = {}
        self.digests = {table.name: Digest() for table in TABLES}
        self.copied = 0

    async def count(self) -> int:
        """How many rows there are to move."""
        return sum([await self._source.count_rows(table) for table in TABLES])

    async def run(self) -> None:
        """Moves what the target lacks. Raises `Refused` where that has rows of its own, and `Failed` where it does not
        have the source's rows in the end."""
        for table in TABLES:
            self._last[table.name] = await self._compare(table)
        for table in TABLES:
            await self._copy(table)
        for table in TABLES:
            await self._check(table)

    async def _compare(self, table: Table) -> CopiedRow | None:
        """The key of the last row that the target has, all of whose rows are a beginning of the source's."""
        last: CopiedRow | None = None
        while there := await self._target.read_rows(table, last):
            if there != await _read(self._source, table, last, len(there)):
                raise Refused(
                    f"the target has rows of its own in {table.name}, so another router uses it, or did: "
                    "give an empty database"
                )
            last = self._done(table, there)
        return last

    async def _copy(self, table: Table) -> None:
        last = self._last[table.name]
        while rows := await self._source.read_rows(table, last):
            await self._target.write_rows(table, rows)
            if await _read(self._target, table, last, len(rows)) != rows:
                raise Failed(f"the target gives other rows of {table.name} than were written: {START_AGAIN}")
            last = self._done(table, rows)
            self.copied += len(rows)

    def _done(self, table: Table, rows: list[CopiedRow]) -> CopiedRow:
        self.digests[table.name].add(rows)
        self._advance(len(rows))
        return table.key_of(rows[-1])

    async def _check(self, table: Table) -> None:
        counts = {await self._source.count_rows(table), await self._target.count_rows(table)}
        if counts != {self.digests[table.name].rows}:
            raise Failed(f"{table.name} was written to while it was moved: {START_AGAIN}")


async def _read(store: Store, table: Table, after: CopiedRow | None, count: int) -> list[CopiedRow]:
    """So many rows behind a key, or all that there are. Each database cuts them into pieces of its own."""
    found: list[CopiedRow] = []
    while len(found) < count and (rows := await store.read_rows(table, after)):
        found += rows
        after = table.key_of(rows[-1])
    return found[:count]


START_AGAIN = "end whatever uses the two databases, empty the target, and move again"


@asynccontextmanager
async def opened(source: str, target: str) -> AsyncGenerator[tuple[Store, Store]]:
    """The two stores, kept from every service meanwhile. Raises `Refused`, and `StartError` where one cannot be opened
    or is in use."""
    if source == target:
        raise Refused("the source is the target")
    for url in (source, target):
        if url.startswith("postgres"):
            need("postgres", setting=shown(url))
    found, _ = has_database(source), has_database(target)
    if not found:
        raise StartError(f"{shown(source)}: there is no such database to move")
    mover = f"move {secrets.token_hex(8)}"
    async with contextlib.AsyncExitStack() as stack:
        stores = []
        for url in (source, target):
            store = make_store(url, service=mover)
            await store.open()
            stack.push_async_callback(store.close)
            if routers := await store.other_services():
                raise Refused(
                    f"{shown(url)} is open in {routers} routers: end them first (one that was killed counts for half a "
                    "minute)"
                )
            stores.append(store)
        yield stores[0], stores[1]


async def move_store(source: str, target: str, bar: Callable[[int], Callable[[int], object]]) -> Move:
    """Moves a store; `bar` is given the number of rows, and gives what is called for each that is done."""
    async with opened(source, target) as stores:
        done: list[Callable[[int], object]] = []
        move = Move(*stores, lambda rows: done[0](rows))
        if not (rows := await move.count()):
            raise Refused(f"{shown(source)} is empty: nothing to move")
        done.append(bar(rows))
        await move.run()
        return move


def shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"//[^/@]*@", "//…@", url)


@click.command(short_help="Move all that is kept to another database.")
@click.argument("source")
@click.argument("target")
@json_option
def move(source: str, target: str, as_json: bool) -> None:
    """Copies all that is kept at SOURCE to the empty database TARGET, and checks each row. Both are URLs as
    database.url has them. End the router first; SOURCE stays as it is. After an interruption the same command goes on
    where it stopped. Then set database.url to TARGET.

    \b
    Example:
      ./nomyo move sqlite:///data/router.db postgresql://router@db.example/router
    """
    with contextlib.ExitStack() as stack:

        def bar(rows: int) -> Callable[[int], object]:
            if as_json or not sys.stderr.isatty():
                return lambda _: None
            return stack.enter_context(click.progressbar(length=rows, label="Moving", file=sys.stderr)).update

        try:
            moved = asyncio.run(move_store(source, target, bar))
        except CopyError as error:
            raise Failed(f"{error}; the same command goes on from here") from None
        except ValueError as error:  # a URL
            raise click.UsageError(str(error), click.get_current_context()) from None
        except KeyboardInterrupt:
            raise Stopped("interrupted; the same command goes on from here") from None
    tables = {name: {"rows": digest.rows, "sha256": digest.hash} for name, digest in moved.digests.items()}
    if as_json:
        print_json({"source": shown(source), "target": shown(target), "copied_rows": moved.copied, "tables": tables})
        return
    for name, digest in moved.digests.items():
        print_line(f"{name:<16} {digest.rows:>12,} rows  sha256 {digest.hash[:16]}…")
    print_line(f"All is there. Set database.url to {shown(target)}, and start the router.", fg="green")


COMMAND = move
