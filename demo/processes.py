"""Child processes that never outlive us.

    running("router", "serve", …)                         our side: start, wait, stop
      └── python -m demo.processes serve …                the child's side: ends when its standard input does

They log to a file, and one that fails shows the end of it.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
STOP_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 15

T = TypeVar("T")


class ChildFailed(RuntimeError):
    """A child ended, or was not ready in time. The message ends with the last lines of its log."""


@dataclass(frozen=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, ready: Callable[[], T | None], timeout_s: float) -> T:
        """What `ready` gives, as soon as that is not None."""
        deadline = time.monotonic() + timeout_s
        while (result := ready()) is None:
            if self.process.poll() is not None:
                raise self.failed(f"ended with status {self.process.returncode}")
            if time.monotonic() > deadline:
                raise self.failed(f"was not ready after {timeout_s:.0f} s")
            time.sleep(0.05)
        return result

    def failed(self, what: str) -> ChildFailed:
        tail = self.log_text().splitlines()[-LOG_TAIL_LINES:] or ["(empty)"]
        return ChildFailed("\n    ".join([f"the {self.name} {what}; its log ends with:", *tail]))

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def running(name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Child]:
    """Runs `python -m module arguments` beside us, in the project's folder, until the block is left. `environment`
    replaces ours."""
    with tempfile.TemporaryDirectory(prefix="nomyo-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "demo.processes", module, *arguments],
                cwd=ROOT,
                env=environment,
                # Held open and never written to: the kernel closes it when we are gone, even by SIGKILL.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for us; we then stop the children in order.
                start_new_session=True,
            )
        with process:
            try:
                yield Child(name, process, log)
            finally:
                stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_with_parent() -> None:
    # Not sys.stdin: its lock would be held by this thread when the interpreter shuts down.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
