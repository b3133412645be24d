"""Starts the service: `./nomyo serve [--host H] [--port P]`, or `python serve.py`, which is the same.

With `workers: 1` it runs in this process. With more, this process binds the socket, starts the workers, and starts anew
those that die; what they share lies in a folder (`cluster/workers.py`). `uvicorn router:app` runs a single worker too,
by plain ASGI.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import math
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from uvicorn.supervisors import Multiprocess

from backends.kinds import KINDS
from cluster.workers import FOLDER, Workers, new_folder
from core.config import Config
from core.config_file import load_config
from core.errors import ConfigError, StartError
from core.logs import LEVELS, logging_config

# What is interrupted is answered, and stored.
LAST_WORDS_S = 5
# uvicorn's exit status where an application does not start.
STARTUP_FAILURE = 3

OPTIONS: dict[str, Any] = {
    # Written below ASGI where that is safe; the server's own where it has other insides (api/http/server.py).
    "http": "api.http.protocol:Protocol",
    # Nothing here asks who the client is.
    "proxy_headers": False,
    "server_header": False,
}


def check_address(host: str, settings: Config) -> None:
    """Raises `ConfigError` where a router without a key would serve other machines without `allow_open`."""
    if settings.api_key or settings.keys or settings.allow_open:
        return
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host or "0.0.0.0", None)]
        is_loopback = all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
    except OSError:
        raise ConfigError(_no_address(host)) from None
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(
            f"--host {host}: other machines could use it without a key; set api_key (ROUTER_API_KEY), or "
            "allow_open: true (ROUTER_ALLOW_OPEN)"
        )


def check_port(host: str, port: int) -> None:
    """Raises `StartError` where nothing can listen at `port` of `host`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET  # as uvicorn takes it
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.EADDRINUSE:
            reason = (
                f"port {port} of {host} is in use: stop what listens there, which may be a router, or give another "
                "port (serve.py --port N, make serve PORT=N)"
            )
        elif code == errno.EACCES:
            reason = f"--port {port}: {os.strerror(errno.EACCES)}; those from 1024 on are open to every user"
        else:
            reason = _no_address(host)
        raise StartError(reason) from None


def _no_address(host: str) -> str:
    return f"--host {host}: this machine has no such address; 127.0.0.1 is for itself alone, 0.0.0.0 for all it has"


def check_endpoints(host: str, port: int, settings: Config) -> None:
    """Raises `ConfigError` for an endpoint that is this router itself, whatever name its url has for this machine."""
    for number, endpoint in enumerate(settings.endpoints):
        parts = urlsplit(endpoint.url)
        if (parts.port or (443 if parts.scheme == "https" else 80)) != port:
            continue
        if any(_is_served(address, host) for address in _resolved(parts.hostname or "")):
            raise ConfigError(
                f"endpoints[{number}].url: {endpoint.url} is this router itself; name a server that is to be behind it"
            )


def _resolved(host: str) -> list[tuple[int, str]]:
    """The addresses of a host, each with its family."""
    try:
        return [(entry[0], str(entry[4][0])) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)]
    except (OSError, UnicodeError):
        return []


def _is_served(address: tuple[int, str], host: str) -> bool:
    """Whether a router that listens at `host` is reached at an address."""
    family, name = address
    if host not in ("", "0.0.0.0", "::"):
        return address in _resolved(host)
    if host == "0.0.0.0" and family != socket.AF_INET:
        return False
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((name, 0))  # Only an address of this machine can be bound to.
        except OSError:
            return False
    return True


class SharedPort(socket.socket):
    """A bound port that nobody listens at. On its way to a worker it becomes a socket of the worker's own at the same
    port: Linux spreads connections evenly over these, while of one socket for all the quickest worker takes what it
    can."""

    @classmethod
    def of(cls, address: Any, family: int) -> SharedPort:
        """A port, bound to `address` as `getsockname` gives it. Raises `OSError` if it is taken."""
        shared = cls(family, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
        return shared

    def __reduce__(self) -> Any:
        return SharedPort.of, (self.getsockname(), self.family)


class Supervisor(Multiprocess):
    """uvicorn's, but that SIGHUP has the workers read their settings again, which loses no request, and that a service
    which could not start ends with an exit status of its own."""

    def run(self) -> None:
        """Runs until the service is stopped."""
        super().run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            sys.exit(STARTUP_FAILURE)

    def terminate_all(self) -> None:
        """Ends the workers."""
        # Else who comes while the workers end is let in, and waits for nobody.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()

    def handle_hup(self) -> None:
        """Sends SIGHUP on to the workers that live."""
        for process in self.processes:
            if process.pid is not None and process.process.is_alive():
                os.kill(process.pid, signal.SIGHUP)


def _override_log(given: argparse.Namespace) -> None:
    """What was given at the start holds for the workers too, which read the settings themselves."""
    if given.log_level is not None:
        os.environ["ROUTER_LOG__LEVEL"] = given.log_level
    if given.access_log is not None:
        os.environ["ROUTER_LOG__REQUESTS"] = str(given.access_log).lower()


def main() -> None:
    """Runs the service until it is stopped. Exits with the reason if it cannot start."""
    parser = argparse.ArgumentParser(
        description="Starts nomyo-router. Its settings: config.yaml, or what ROUTER_CONFIG names.",
        epilog="Example: ./nomyo serve --host 0.0.0.0 --port 8080",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=12434)
    parser.add_argument("--log-level", choices=LEVELS, help="in place of log.level")
    parser.add_argument(
        "--access-log",
        action=argparse.BooleanOptionalAction,
        help="log each request, or not: in place of log.requests",
    )
    parser.add_argument(
        "--one-socket",
        action="store_true",
        help="several workers: let all accept connections at one socket, where the quickest may take most of them",
    )
    given, unknown = parser.parse_known_args()
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)} (workers, keys and all else are settings: config.yaml)"
        )
    if not 0 <= given.port <= 65535:
        raise SystemExit(f"nomyo-router cannot start: --port {given.port} is no port: they are 0 (any) to 65535")
    try:
        _override_log(given)
        settings = load_config(kinds=KINDS)
        check_address(given.host, settings)
        check_endpoints(given.host, given.port, settings)
    except ConfigError as error:
        raise SystemExit(f"nomyo-router cannot start: {error}") from None
    try:
        check_port(given.host, given.port)
    except StartError as error:
        print(f"nomyo-router cannot start: {error}", file=sys.stderr)
        raise SystemExit(STARTUP_FAILURE) from None
    config = uvicorn.Config(
        "router:app",
        host=given.host,
        port=given.port,
        access_log=False,  # The line of a request is ours.
        log_config=logging_config(settings.log.format, settings.log.level),
        workers=settings.workers,
        # For what is interrupted then (core/stopping.py).
        timeout_graceful_shutdown=math.ceil(settings.background.drain_s) + LAST_WORDS_S,
        # Of a WebSocket message: as large as a body may be.
        ws_max_size=int(settings.max_body_mb * 1024 * 1024),
        **OPTIONS,
    )
    if settings.workers == 1:
        # The port first: a second start by mistake must not get as far as the turns that the first one runs.
        with config.bind_socket() as listener:
            uvicorn.Server(config).run(sockets=[listener])
        return
    with new_folder() as folder:
        Workers.prepare(Path(folder))
        os.environ[FOLDER] = folder
        with config.bind_socket() as listener:
            address, family = listener.getsockname(), listener.family
            # Elsewhere one of several sockets at a port may get all connections.
            if given.one_socket or sys.platform != "linux":
                Supervisor(config, sockets=[listener]).run()
                return
        with SharedPort.of(address, family) as port:
            Supervisor(config, sockets=[port]).run()


if __name__ == "__main__":
    # Ctrl-C: uvicorn has ended the service, and raises the signal again for whoever started it.
    with contextlib.suppress(KeyboardInterrupt):
        main()
