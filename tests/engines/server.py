"""A server that tests start as a process of its own: it ends with the process that has started it, however that one
ends."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

START_S = 60.0
PR_SET_PDEATHSIG = 1


class Server(ABC):
    """One with its files in `folder`, on a port that it keeps."""

    # What it is called where it does not start, and the signal that it gets when its parent ends.
    name: str
    ends_by = signal.SIGKILL
    # How often it is looked whether it is ready.
    look_s = 0.002

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """Starts it, and waits until it answers."""

    def log(self) -> str:
        """What the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether it answers."""

    def _start(self, command: Sequence[str | Path], **options: Any) -> None:
        """Starts a process with these options of `Popen`, and waits until the server is ready."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_ending_with_parent(self.ends_by) if sys.platform == "linux" else None,
                **options,
            )
        give_up_at = time.time() + START_S
        while not self._is_ready():
            assert self._process.poll() is None, f"{self.name} does not start:\n{self.log()}"
            assert time.time() < give_up_at, f"{self.name} is not ready:\n{self.log()}"
            time.sleep(self.look_s)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _ending_with_parent(signal_: signal.Signals) -> Callable[[], None]:
    """In the child, as whom it runs (which would forget it): it gets a signal when the thread ends that has started
    it."""

    def end_with_parent() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_)

    return end_with_parent
