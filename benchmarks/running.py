"""Gateways that run, and what a load costs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from benchmarks.gateways import ROOT, Gateway, free_port
from benchmarks.scenarios import PLAIN, Scenario

START_S, RUN_S = 120, 120


class Failed(Exception):
    """A gateway did not do what was asked of it; the message is the reason."""


@dataclass
class Running:
    """A gateway's processes. `chains` holds the id of the last response of each chain that was begun there, by its
    length."""

    gateway: Gateway
    port: int
    process: subprocess.Popen[bytes]
    chains: dict[int, str] = field(default_factory=dict)

    def pids(self) -> Iterator[int]:
        """The gateway's process and all below it."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry.name))
        waiting = [self.process.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            waiting += children.get(pid, [])

    def cpu_ms(self) -> float:
        """What the scheduler has accounted to them, to the nanosecond: `/proc/PID/stat` would round to 10 ms."""
        return sum(time.clock_gettime_ns(cpu_clock(pid)) for pid in self.pids()) / 1e6

    def memory_mb(self) -> float:
        """What is resident of them."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_clock(pid: int) -> int:
    """The number of the clock that counts what a process computes, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2


@contextmanager
def started(
    command: list[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    output: Path | None = None,
    cwd: Path = ROOT,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all below it, in the background, until the end; its output goes to the file `output`, or
    nowhere."""
    known = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "NO_PROXY": "127.0.0.1", **(environment or {})}
    with open(output or os.devnull, "wb") as file:
        process = subprocess.Popen(command, cwd=cwd, env=known, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def serving(gateway: Gateway, backend: int) -> Iterator[Running]:
    """The gateway, in a folder of its own, when it answers. Raises `Failed` if it does not."""
    with tempfile.TemporaryDirectory(prefix="nomyo-bench-") as name:
        folder, port = Path(name), free_port()
        output = folder / "output"
        command = gateway.command(port, backend, folder)
        environment = {"HOME": name, **gateway.environment}
        with started(command, folder, environment, output, gateway.checkout) as process:
            running = Running(gateway, port, process)
            if not answers(running):
                raise Failed(f"does not start: {last_words(output.read_text(errors='replace'))}")
            yield running


def last_words(output: str) -> str:
    return " ".join(output.split())[-300:] or "it printed nothing"


def answers(running: Running) -> bool:
    path = running.gateway.paths[0]
    body = PLAIN.body(path, running.gateway.model)
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and running.process.poll() is None:
        with suppress(OSError, HTTPException):
            if post(running.port, path, body)[0] == 200:
                return True
        time.sleep(0.1)
    return False


def post(port: int, path: str, body: bytes, timeout_s: float = 10) -> tuple[int, bytes]:
    """One request over a connection of its own; gives the status and the body of its answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def measure(running: Running, path: str, scenario: Scenario, scale: float) -> dict[str, float]:
    """What `benchmarks.load` prints, and CPU ms a request (`cpu`) and resident MB (`memory`) of the gateway. Raises
    `Failed`."""
    requests = max(scenario.clients, int(scenario.requests * scale * running.gateway.share))
    body = scenario.body(path, running.gateway.model, previous_of(running, path, scenario))
    command = [sys.executable, "-m", "benchmarks.load", str(running.port), path, "--expected", scenario.expected]
    command += ["--token", scenario.token, "--clients", str(scenario.clients), "--requests", str(requests)]
    before = running.cpu_ms()
    try:
        done = subprocess.run(command, cwd=ROOT, input=body, capture_output=True, check=False, timeout=RUN_S)
    except subprocess.TimeoutExpired:
        raise Failed(f"{requests} requests were not answered within {RUN_S} s") from None
    if done.returncode:
        raise Failed(last_words(done.stderr.decode(errors="replace")))
    figures: dict[str, float] = json.loads(done.stdout)
    return figures | {"cpu": (running.cpu_ms() - before) / figures["requests"], "memory": running.memory_mb()}


def previous_of(running: Running, path: str, scenario: Scenario) -> str | None:
    """The id of the response that a scenario's requests follow: its chain is made when it is asked for first."""
    before = scenario.turn - 1
    if before and before not in running.chains:
        previous: str | None = None
        for number in range(before):
            try:
                status, answer = post(running.port, path, scenario.body(path, running.gateway.model, previous), RUN_S)
            except (OSError, HTTPException) as error:
                raise Failed(f"turn {number + 1} of a chain: {error!r}") from None
            if status != 200:
                raise Failed(f"turn {number + 1} of a chain: {status} {last_words(answer.decode(errors='replace'))}")
            previous = json.loads(answer)["id"]
        assert previous is not None
        running.chains[before] = previous
    return running.chains.get(before)
