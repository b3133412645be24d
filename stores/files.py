"""The files of databases: nobody else's to read, and one line about one that cannot be opened."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Generator
from pathlib import Path

from core.errors import StartError
from stores.writing import Outage

log = logging.getLogger("nomyo.db")

# SQLite's codes, what they mean, and what to do. The rest goes by its own words.
CAUSES = {
    sqlite3.SQLITE_NOTADB: ("is no SQLite database", "move it away, or give another"),
    sqlite3.SQLITE_CORRUPT: ("is damaged", "put a copy in its place, or give another"),
    sqlite3.SQLITE_FULL: ("finds no room on its disk", "make some"),
    sqlite3.SQLITE_READONLY: ("cannot be written", "let this user write it and its folder"),
    sqlite3.SQLITE_PERM: ("cannot be written", "let this user write it and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "let this user write it and its folder"),
    sqlite3.SQLITE_BUSY: ("is locked by another process", "end that one, and start again"),
    sqlite3.SQLITE_IOERR: ("cannot be read or written, by a fault of its disk", "look at the disk and its room"),
}


def make_private(path: str) -> None:
    """Makes the file at `path` and the folders that it lacks, which nobody but us may read. SQLite gives the files
    beside it the same permissions. A file that is there stays as it is, and the log names it if others may read it.
    Raises `OSError`."""
    file = Path(path)
    for folder in reversed(file.parents):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
    try:
        # Not opened if it is there: to close it would take SQLite's locks of this process away.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if file.is_dir():
            raise IsADirectoryError(f"{path} is a folder") from None
        if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning("%s can be read by other users, with what is kept in it: chmod 600 %s", path, path)


@contextlib.contextmanager
def opening(path: str, setting: str) -> Generator[None]:
    """Raises `StartError`, in one line, where the database at `path`, which `setting` names, cannot be opened here."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        what, advice = CAUSES.get(code, (f"cannot be opened: {error}", "give another"))
        raise StartError(f"{path} {what}: {advice} ({setting})") from error
    except IsADirectoryError as error:
        raise StartError(f"{path} is a folder: name a file in it ({setting})") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise StartError(
            f"{path} cannot be opened: {error.filename}: {why}: let the router write there, or give another ({setting})"
        ) from error


class Replaced(Exception):
    """Where the file was that is open, there is another one now."""


class OpenFile:
    """The file of a database that is open. SQLite goes on writing to one that was deleted, and does not notice at once
    that one was overwritten. To be closed after SQLite has closed it: else its locks are gone."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        self._is_damaged = False

    def check(self) -> None:
        """Raises `Outage` where the file is gone or is no database any more, and `Replaced` where one is back."""
        try:
            now = os.stat(self._path)
        except OSError as error:
            raise Outage(f"{self._path} is gone ({error.strerror}): put it back, or start again") from error
        if not os.path.samestat(now, os.fstat(self._file)):
            raise Replaced
        if os.pread(self._file, len(BEGINNING), 0) != BEGINNING:
            self._is_damaged = True
            raise Outage(f"{self._path} is no SQLite database any more: put a copy in its place")
        if self._is_damaged:
            raise Replaced

    def close(self) -> None:
        """Nothing looks at it any more."""
        os.close(self._file)


# Of a file of SQLite.
BEGINNING = b"SQLite format 3\0"
