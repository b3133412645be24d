"""A copy of a SQLite database while a router serves from it: its state at one moment, whole or not at all.

the database ──snapshot──▶ .FILE.….part ──checked, on disk──▶ FILE
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

from core.errors import StartError
from stores.copies import CopyError
from stores.files import CAUSES, opening

PAGES_AT_ONCE = 2000
# How many pages are left, of how many.
Progress = Callable[[int, int], None]


def copy_database(path: str, file: Path, *, replace: bool, progress: Progress) -> int:
    """Copies the database at `path` to `file`, which nobody but this user may read, and gives its length in bytes.
    Raises `StartError` where there is no such database, `FileExistsError` where `file` is there and is not to be
    replaced, and `CopyError`."""
    if not Path(path).is_file():
        raise StartError(f"{path}: there is no such database (database.url)")
    if file.exists() and (not replace or file.samefile(path)):
        raise FileExistsError(file)
    with _copying(file):
        descriptor, part = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
        os.close(descriptor)
        try:
            _copy(path, part, progress)
            _check(part)
            _settle(part)
            if replace:
                os.replace(part, file)
            else:
                os.link(part, file)  # Unlike a rename it takes the place of nobody who came meanwhile.
            _settle(file.parent)
        finally:
            for leftover in (part, f"{part}-journal", f"{part}-wal", f"{part}-shm"):
                Path(leftover).unlink(missing_ok=True)
        return file.stat().st_size


def _copy(path: str, part: str, progress: Progress) -> None:
    place = f"{Path(path).absolute().as_uri()}?mode=rw"
    with (
        contextlib.closing(sqlite3.connect(place, uri=True, isolation_level=None)) as source,
        contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy,
    ):
        with opening(path, "database.url"):
            # A snapshot: of a database that changes SQLite would begin its copy anew each time.
            source.execute("BEGIN")
            source.execute("SELECT 1 FROM sqlite_schema").fetchone()
        source.backup(copy, pages=PAGES_AT_ONCE, progress=lambda _, left, pages: progress(left, pages), sleep=0)
        # One file, with nothing beside it.
        copy.execute("PRAGMA journal_mode = DELETE")


def _check(part: str) -> None:
    with contextlib.closing(sqlite3.connect(part)) as copy:
        found = [row[0] for row in copy.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise CopyError(f"the copy is damaged, and so may be the database: {'; '.join(found)}")


def _settle(path: str | Path) -> None:
    """Has a file, or a folder's list of them, on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _copying(file: Path) -> Generator[None]:
    """Raises `CopyError`, in one line, where a copy to `file` fails."""
    try:
        yield
    except FileExistsError:
        raise
    except sqlite3.Error as error:
        unknown = (f"cannot be written: {error}", "try again, or give another file")
        what, advice = CAUSES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, unknown)
        raise CopyError(f"{file} {what}: {advice}") from error
    except OSError as error:
        raise CopyError(
            f"{file} cannot be written: {error.strerror}: give another file, or let this user write there"
        ) from error
