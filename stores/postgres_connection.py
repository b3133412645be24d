"""A connection to PostgreSQL: statements go out together and their results come back together, in one round trip and
one transaction.

    statements ──▶ Bind, Execute, Bind, Execute, …, Sync ──▶ PostgreSQL        libpq in pipeline mode, by psycopg
    rows       ◀── results, …, ready ◀──┘                                      all of it, or nothing of it

psycopg makes the connection (URLs, PG* variables, TLS, passwords, several hosts). Statements go to its libpq directly:
its cursors cost three times as much a query. No state is left in the session, so that a pooler that gives each
transaction to another session (PgBouncer) may stand in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from core.errors import StartError
from stores.postgres_values import Parameter, encode_parameters
from stores.writing import Outage

FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)
READY, ABORTED = pq.ExecStatus.PIPELINE_SYNC, pq.ExecStatus.PIPELINE_ABORTED
BINARY = 1
# How long a connection may take to be made.
CONNECT_S = 5
# A server that has not read what was sent for as long is gone: TCP alone waits for minutes.
UNACKNOWLEDGED_MS = 20_000
# How much longer than the server's own limit an answer is waited for.
GRACE_S = 1.0

# The values of a row, as they came: see `stores/postgres_values.py`.
ResultRow = list[bytes | None]


class Statement(NamedTuple):
    """SQL with `$1::text`, `$2::bytea[]` and so on, and the values for them."""

    sql: str
    values: Sequence[Parameter] = ()


class ConnectionLost(Exception):
    """The connection broke. Whether the statements that were on their way were committed is not known."""


class StatementLimits(NamedTuple):
    """How long, in seconds, a statement may run, and wait for a lock."""

    statement_s: float
    lock_s: float

    def options(self) -> str:
        """As options of a connection."""
        return (
            f"-c statement_timeout={self.statement_s * 1000:.0f} -c lock_timeout={self.lock_s * 1000:.0f} "
            f"-c idle_in_transaction_session_timeout={self.statement_s * 2000:.0f}"
        )

    def statement(self) -> Statement:
        """As a statement that holds for its transaction, for poolers that take no options."""
        values = (f"{self.statement_s * 1000:.0f}", f"{self.lock_s * 1000:.0f}")
        return Statement(
            "SELECT set_config('statement_timeout', $1::text, true), set_config('lock_timeout', $2::text, true)", values
        )


class PostgresConnection:
    """One that is open until `close`, or until it breaks. It does one thing at a time: who calls `run` waits for its
    end before the next."""

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], limits: StatementLimits, *, takes_options: bool
    ) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._limits = limits
        # A pooler takes none, and a session is nobody's for long.
        self.takes_options = takes_options
        self._before = () if takes_options else (limits.statement(),)
        self._loop = asyncio.get_running_loop()
        self._socket = self._pg.socket
        self._results: list[pq.abc.PGresult] = []
        self._answer: asyncio.Future[list[pq.abc.PGresult]] | None = None
        # What hears of notifications: channel and payload.
        self.on_notify: Callable[[str, str], object] | None = None
        self.on_close: Callable[[], object] | None = None
        self.is_open = True
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        self._loop.add_reader(self._socket, self._read)

    @classmethod
    async def open(cls, url: str, limits: StatementLimits) -> PostgresConnection:
        """A connection to the database at `url`. Raises `psycopg.Error`."""
        try:
            return cls(await _connect(url, limits.options()), limits, takes_options=True)
        except psycopg.OperationalError as error:
            # PgBouncer's words.
            if "unsupported startup parameter" not in str(error):
                raise
        return cls(await _connect(url, ""), limits, takes_options=False)

    async def run(self, statements: Sequence[Statement]) -> list[list[ResultRow]]:
        """The rows of each statement; all of them are one transaction. Raises `psycopg.Error` where one failed, and
        then nothing is done; `ConnectionLost`; and `TimeoutError` where nothing came back, which closes it."""
        if not self.is_open:
            raise ConnectionLost("it is closed")
        encoded = [(sql.encode(), encode_parameters(sql, values)) for sql, values in (*self._before, *statements)]
        self._answer = self._loop.create_future()
        timer = self._loop.call_later(self._limits.statement_s + GRACE_S, self._give_up)
        try:
            for sql, values in encoded:
                self._pg.send_query_params(sql, values, None, [BINARY] * len(values), BINARY)
            self._pg.pipeline_sync()
            self._write()
            results = await self._answer
        except psycopg.OperationalError as error:
            self._break(ConnectionLost(str(error)))
            raise ConnectionLost(str(error)) from error
        except asyncio.CancelledError:
            # Its answer is on its way, and nobody waits for it.
            self.close()
            raise
        finally:
            timer.cancel()
            self._answer = None
        for result in results:
            if result.status in FAILED:
                raise psycopg.errors.error_from_result(result)
        return [_rows_of(result) for result in results[len(self._before) :]]

    def close(self) -> None:
        """Closes it at once."""
        self._break(ConnectionLost("it is closed"))

    def _read(self) -> None:
        try:
            self._pg.consume_input()
            while not self._pg.is_busy():
                result = self._pg.get_result()
                if result is None:
                    if self._answer is None or self._answer.done():
                        break
                elif result.status == READY:
                    results, self._results = self._results, []
                    if self._answer is not None and not self._answer.done():
                        self._answer.set_result(results)
                elif result.status != ABORTED:  # by the failure of one before it
                    self._results.append(result)
            while notification := self._pg.notifies():
                if self.on_notify is not None:
                    self.on_notify(notification.relname.decode(), notification.extra.decode())
        except psycopg.OperationalError as error:
            # The server's last words are in a result, where it had some.
            words = [result.error_message.decode(errors="replace") for result in self._results]
            self._break(ConnectionLost(" ".join([*words, str(error)])))
        else:
            if self._pg.status == pq.ConnStatus.BAD:
                self._break(ConnectionLost("the server has closed it"))

    def _write(self) -> None:
        """Sends what is not sent yet, as far as the socket takes it."""
        try:
            is_left = self._pg.flush() == 1
        except psycopg.OperationalError as error:
            self._break(ConnectionLost(str(error)))
            return
        if is_left:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)

    def _give_up(self) -> None:
        self._break(TimeoutError("the database does not answer"))

    def _break(self, reason: Exception) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._pg.finish()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(reason)
        if self.on_close is not None:
            self.on_close()


async def _connect(url: str, options: str) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(conninfo_of(url, options), autocommit=True, prepare_threshold=None)


def conninfo_of(url: str, options: str = "") -> str:
    """What libpq is given: the URL, and what it leaves open. Raises `StartError` where it is wrong."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise StartError(f"database.url: {one_line(str(error))}") from None
    ours: dict[str, Any] = {
        "application_name": "nomyo-router",
        "connect_timeout": CONNECT_S,
        "tcp_user_timeout": UNACKNOWLEDGED_MS,
    }
    # What the URL has comes later, and counts.
    options = f"{options} {given.pop('options', '')}".strip()
    return psycopg.conninfo.make_conninfo("", **{**ours, **given, **({"options": options} if options else {})})


def one_line(words: str) -> str:
    """The first line of what PostgreSQL has to remark."""
    return " ".join(words.split("\n")[0].split())


def _rows_of(result: pq.abc.PGresult) -> list[ResultRow]:
    columns = range(result.nfields)
    return [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]


# Where the database cannot be written for now, and how it has to be put right, by the class of an SQLSTATE.
OUTAGES = ("08", "25006", "53", "55P03", "57", "58")
# Two transactions stood in each other's way: one of them goes again.
AGAIN = ("40001", "40P01")


def is_outage(error: psycopg.Error) -> bool:
    """Whether it is the database's state that a statement failed for, and nothing in the statement."""
    return error.sqlstate is not None and error.sqlstate.startswith(OUTAGES)


def outage_of(name: str, error: Exception) -> Outage:
    """What is wrong with the database called `name`, in a line."""
    return Outage(f"{name}: {one_line(str(error)) or type(error).__name__}")
