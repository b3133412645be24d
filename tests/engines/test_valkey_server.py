"""The tests' own Valkey is a real one, which they can empty, pause, kill and restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import hiredis
import pytest

from tests.engines.valkey import ValkeyServer

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
# Starts a server, prints its process and its folder, and waits.
STARTED = """
import time
from tests.engines.valkey import ValkeyServer

with ValkeyServer.started() as server:
    print(server._process.pid, server.folder, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("time", [1, 2])
def test_each_test_finds_it_empty(valkey: ValkeyServer, time: int) -> None:
    assert valkey.run("GET", "mine") is None
    valkey.run("SET", "mine", time)
    assert valkey.run("GET", "mine") == str(time).encode()


def test_it_is_a_valkey_of_the_version_that_was_chosen(valkey: ValkeyServer) -> None:
    assert b"valkey_version:9." in bytes(valkey.run("INFO", "server"))


def test_after_a_restart_it_is_where_it_was_and_empty(own_valkey: ValkeyServer) -> None:
    port = own_valkey.port
    own_valkey.run("SET", "mine", 1)
    own_valkey.kill()
    with pytest.raises(ConnectionRefusedError):
        own_valkey.run("PING")
    own_valkey.start()
    assert (own_valkey.port, own_valkey.run("GET", "mine")) == (port, None)


def test_one_that_is_paused_answers_when_it_goes_on(own_valkey: ValkeyServer) -> None:
    with socket.create_connection(("127.0.0.1", own_valkey.port)) as connection:
        own_valkey.pause()
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        own_valkey.resume()
        connection.settimeout(None)
        assert connection.recv(10) == b"+PONG\r\n"


def test_one_with_a_password_refuses_who_does_not_have_it() -> None:
    with ValkeyServer.started(password="secret") as server:
        assert server.run("PING") == b"PONG"
        server._password = "wrong"
        with pytest.raises(hiredis.ReplyError, match="NOAUTH"):
            server.run("PING")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_who_has_started_it() -> None:
    starting = subprocess.Popen([sys.executable, "-c", STARTED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starting.stdout is not None
    pid, folder = starting.stdout.readline().split()
    os.kill(int(pid), 0)
    starting.send_signal(signal.SIGKILL)
    starting.communicate()
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2:3]:
        time.sleep(0.01)
    (Path(folder) / "log").unlink()
    Path(folder).rmdir()
