"""The tests' own PostgreSQL is a real one, which they can stop, kill and restart."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.engines.postgres import PostgresServer

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
# Starts a server, prints its process and its folder, and waits.
STARTED = """
import time
from tests.engines.postgres import PostgresServer

with PostgresServer.started() as server:
    print(server._pid, server.folder, flush=True)
    time.sleep(600)
"""


def test_each_database_is_an_empty_one(postgres: PostgresServer) -> None:
    urls = [postgres.new_database() for _ in range(2)]
    with psycopg.connect(urls[0]) as connection:
        connection.execute("CREATE TABLE mine ()")
    with psycopg.connect(urls[1]) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT FROM mine")
    with psycopg.connect(urls[0]) as connection:
        for url in urls:
            postgres.give_back(url)
        with pytest.raises(psycopg.OperationalError, match="terminating connection"):
            connection.execute("SELECT 1")
    assert {postgres.new_database() for _ in range(2)} == set(urls)
    with psycopg.connect(urls[0]) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT FROM mine")
    for url in urls:
        postgres.give_back(url)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_committed_is_there_after_its_end(own_postgres: PostgresServer, end: str) -> None:
    url = own_postgres.new_database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE mine AS SELECT 5 AS number")
    port = own_postgres.port
    getattr(own_postgres, end)()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    own_postgres.start()
    assert own_postgres.port == port
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT number FROM mine").fetchall() == [(5,)]


def test_one_that_is_paused_answers_when_it_goes_on(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.url()) as connection:
        own_postgres.pause()
        connection.pgconn.send_query(b"SELECT 1")
        connection.pgconn.flush()
        assert connection.pgconn.is_busy()
        own_postgres.resume()
        assert connection.pgconn.get_result() is not None
        assert connection.pgconn.get_result() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_who_has_started_it() -> None:
    starting = subprocess.Popen([sys.executable, "-c", STARTED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starting.stdout is not None
    pid, folder = starting.stdout.readline().split()
    os.kill(int(pid), 0)
    starting.send_signal(signal.SIGKILL)
    starting.communicate()
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)
    shutil.rmtree(folder)
