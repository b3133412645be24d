"""What the router costs, beside other gateways in the same run: `make bench`.

    python -m benchmarks.bench [--rounds 3] [--scale 1.0] [--only ours codex-relay]

All gateways run at once, before one mock backend, and are loaded one after the other, round after round; a figure is the median of its
rounds. CPU is what the operating system has accounted to the gateway's processes, per request. Other gateways are taken from
`benchmarks/.gateways/NAME/bin` (`make gateways` installs them there).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
GATEWAYS = ROOT / "benchmarks" / ".gateways"
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
HELLO, SLOWLY = "Say hello.", "Say hello slowly."
TICKS_PER_MS = os.sysconf("SC_CLK_TCK") / 1000


@dataclass(frozen=True)
class Scenario:
    name: str
    stream: bool
    prompt: str
    clients: int
    requests: int
    store: bool = False


SCENARIOS = (
    Scenario("plain, 32 at once", False, HELLO, 32, 3000),
    Scenario("burst, 32 at once", True, HELLO, 32, 2000),
    Scenario("trickle, 200 at once", True, SLOWLY, 200, 600),
    Scenario("plain, one client", False, HELLO, 1, 400),
    Scenario("plain, stored", False, HELLO, 32, 2000, store=True),
)


@dataclass(frozen=True)
class Gateway:
    """A gateway and how it is started: `command(port, backend)`. `paths` are the front doors that it is measured at."""

    name: str
    command: Callable[[int, int, Path], list[str] | None]
    paths: tuple[str, ...] = (RESPONSES,)


def ours(port: int, backend: int, folder: Path) -> list[str]:
    (folder / "config.yaml").write_text(
        json.dumps(
            {
                "endpoints": [{"url": f"http://127.0.0.1:{backend}/v1", "kind": "openai-chat", "max_concurrent": 4096}],
                "database": {"url": f"sqlite:///{folder}/router.db"},
            }
        )
    )
    return [
        sys.executable,
        "-m",
        "uvicorn",
        "router:app",
        "--port",
        str(port),
        "--no-access-log",
        "--log-level",
        "error",
    ]


def codex_relay(port: int, backend: int, folder: Path) -> list[str] | None:
    binary = GATEWAYS / "codex-relay" / "bin" / "codex-relay"
    arguments = ["--port", str(port), "--upstream", f"http://127.0.0.1:{backend}/v1", "--api-key", "none"]
    return [str(binary), *arguments] if binary.exists() else None


def smg(port: int, backend: int, folder: Path) -> list[str] | None:
    binary = GATEWAYS / "smg" / "bin" / "smg"
    arguments = ["launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}"]
    arguments += ["--prometheus-port", str(free_port())]
    return [str(binary), *arguments] if binary.exists() else None


ALL = (
    Gateway("ours", ours, (RESPONSES, CHAT)),
    Gateway("codex-relay", codex_relay),
    Gateway("smg", smg, (CHAT,)),
)


@dataclass
class Running:
    gateway: Gateway
    port: int
    process: subprocess.Popen[bytes]

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
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids()]
        return sum(int(field[11]) + int(field[12]) for field in fields) / TICKS_PER_MS

    def memory_mb(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml")}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def body_of(path: str, scenario: Scenario) -> str:
    said: dict[str, Any] = {"model": "mock", "stream": scenario.stream}
    if path == RESPONSES:
        return json.dumps(said | {"input": scenario.prompt, "store": scenario.store})
    return json.dumps(said | {"messages": [{"role": "user", "content": scenario.prompt}]})


def wait_until_it_answers(running: Running) -> None:
    path = running.gateway.paths[0]
    body = body_of(path, SCENARIOS[0]).encode()
    for _ in range(200):
        connection = HTTPConnection("127.0.0.1", running.port, timeout=5)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise SystemExit(f"{running.gateway.name} does not answer")


def measure(running: Running, path: str, scenario: Scenario, scale: float) -> dict[str, float]:
    requests = max(scenario.clients, int(scenario.requests * scale))
    command = [sys.executable, "-m", "benchmarks.load", str(running.port), path, body_of(path, scenario)]
    command += ["--clients", str(scenario.clients), "--requests", str(requests)]
    before = running.cpu_ms()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{running.gateway.name}, {path}, {scenario.name}: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures | {"cpu": (running.cpu_ms() - before) / figures["requests"], "memory": running.memory_mb()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--only", nargs="*", help="these gateways")
    given = parser.parse_args()
    figures: dict[tuple[str, str], list[dict[str, float]]] = {}
    with ExitStack() as stack:
        backend = free_port()
        mock = [sys.executable, "-m", "benchmarks.mock_backend", str(backend)]
        stack.enter_context(started(mock, ROOT))
        fleet: list[Running] = []
        for gateway in ALL:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nomyo-bench-")))
            port = free_port()
            command = gateway.command(port, backend, folder)
            if command is None or (given.only and gateway.name not in given.only):
                continue
            fleet.append(Running(gateway, port, stack.enter_context(started(command, folder))))
        for running in fleet:
            wait_until_it_answers(running)
        for number in range(given.rounds + 1):  # the first warms up
            for scenario in SCENARIOS:
                for running in fleet:
                    if scenario.store and running.gateway.name != "ours":
                        continue
                    for path in running.gateway.paths:
                        if scenario.store and path == CHAT:
                            continue
                        result = measure(running, path, scenario, given.scale * (0.2 if number == 0 else 1))
                        if number:
                            figures.setdefault((f"{running.gateway.name} {path}", scenario.name), []).append(result)
    show(figures)


def show(figures: dict[tuple[str, str], list[dict[str, float]]]) -> None:
    def middle(row: str, scenario: str, key: str) -> float | None:
        runs = figures.get((row, scenario))
        return median(run[key] for run in runs) if runs else None

    rows = list(dict.fromkeys(row for row, _ in figures))
    base = next((row for row in rows if row.startswith("codex-relay")), None)
    print(
        f"CPU ms a request (in brackets: to codex-relay's). Python {sys.version.split()[0]}, uvicorn {version('uvicorn')}."
    )
    names = [scenario.name for scenario in SCENARIOS]
    print(f"\n| | {' | '.join(names)} | first byte, one client, p50 ms | gap p99 ms, trickle | memory MB |")
    print(f"|---{'|---' * (len(names) + 3)}|")
    for row in rows:
        cells = []
        for name in names:
            cost, other = middle(row, name, "cpu"), middle(base, name, "cpu") if base else None
            ratio = f" ({cost / other:.2f})" if cost is not None and other else ""
            cells.append("–" if cost is None else f"{cost:.3f}{ratio}")
        first = middle(row, "plain, one client", "first_p50")
        gap = middle(row, "trickle, 200 at once", "gap_p99")
        memory = max(run["memory"] for (at, _), runs in figures.items() if at == row for run in runs)
        print(f"| {row} | {' | '.join(cells)} | {first} | {gap} | {memory:.0f} |")


if __name__ == "__main__":
    main()
