"""`./nomyo backup FILE`: a copy of the SQLite database while the router serves."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from commands import Failed, Refused, json_option, print_json, print_line
from core.config_file import load_config
from db import CopyError, back_up


@click.command(short_help="Copy the SQLite database while the router serves.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--database", metavar="URL", help="The database to copy. Default: database.url of the settings.")
@click.option("--replace", is_flag=True, help="Replace FILE, if it is there, once the copy is whole.")
@json_option
def backup(file: Path, database: str | None, replace: bool, as_json: bool) -> None:
    """Copies the SQLite database to FILE, as it is at one moment. The router may go on serving meanwhile. FILE appears
    when the copy is whole and was found sound; to go back to it, put it in the place of the database of a router that
    is stopped, and remove what lies beside that (-wal, -shm).

    \b
    Example:
      ./nomyo backup data/backup.db
      docker compose exec router ./nomyo backup data/backup.db
    """
    url = database or load_config().database.url
    shows_bar = sys.stderr.isatty() and not as_json
    with (
        click.progressbar(length=1, label="Copying", file=sys.stderr) if shows_bar else contextlib.nullcontext() as bar
    ):

        def progress(left: int, pages: int) -> None:
            if bar is not None:
                bar.length = max(pages, 1)
                bar.update(pages - left - bar.pos)

        try:
            length = back_up(url, file, replace=replace, progress=progress)
        except FileExistsError:
            raise Refused(f"{file} is there already: give another file, or --replace") from None
        except (CopyError, ValueError) as error:
            raise Failed(str(error)) from None
    if as_json:
        print_json({"file": str(file), "bytes": length, "database": url})
    else:
        print_line(f"{file}: {length:,} bytes, found sound", fg="green")


COMMAND = backup
