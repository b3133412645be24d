"""A pooler of transactions, as PgBouncer is with `pool_mode = transaction`: each transaction of a client goes to the
session whose turn it is, so that nobody finds again what it has left in one.

    client ──messages──▶ Pooler ──those up to Sync──▶ the next of some sessions ──▶ PostgreSQL
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from struct import pack, unpack

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
# What is of no session, and whatever else is refused, in PgBouncer's words.
PARAMETERS = {"user", "database", "client_encoding", "application_name"}


class Session:
    """A session of the server's, and what it has announced of itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.announced = b""

    @classmethod
    async def begun(cls, port: int, database: str) -> Session:
        session = cls(*await asyncio.open_connection("127.0.0.1", port))
        parameters = b"user\0postgres\0database\0%b\0\0" % database.encode()
        session.writer.write(pack("!ii", len(parameters) + 8, 196608) + parameters)
        while (message := await read_message(session.reader))[:1] != b"Z":
            assert message[:1] != b"E", message
            if message[:1] in (b"S", b"K"):
                session.announced += message
        return session


class Pooler:
    """`port` is where clients come to; `transactions` counts those of each session."""

    def __init__(self, sessions: list[Session], tls: ssl.SSLContext | None) -> None:
        self.port = 0
        self._tls = tls
        self.transactions = [0] * len(sessions)
        self._sessions = sessions
        self._free = deque(enumerate(sessions))
        self._freed = asyncio.Condition()
        self.clients: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def before(
        cls, port: int, database: str, sessions: int = 3, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[Pooler]:
        """One before a database of the server at `port`. With `tls` clients come by it, or not at all."""
        begun = [await Session.begun(port, database) for _ in range(sessions)]
        pooler = cls(begun, tls)
        server = await asyncio.start_server(pooler._serve, "127.0.0.1", 0)
        pooler.port = server.sockets[0].getsockname()[1]
        try:
            yield pooler
        finally:
            server.close()
            for client in pooler.clients:
                client.cancel()
            await asyncio.gather(*pooler.clients, return_exceptions=True)
            for session in begun:
                session.writer.close()
                with contextlib.suppress(OSError):
                    await session.writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.clients.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                if await self._is_welcome(reader, writer):
                    while True:
                        await self._transaction(await read_message(reader), reader, writer)
        finally:
            self.clients.discard(task)
            writer.close()

    async def _is_welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            (length,) = unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(length - 4)
            (code,) = unpack("!i", body[:4])
            if code not in (SSL_REQUEST, GSS_REQUEST):
                break
            is_tls = code == SSL_REQUEST and self._tls is not None
            writer.write(b"S" if is_tls else b"N")
            if is_tls:
                await writer.start_tls(self._tls)
        if self._tls is not None and writer.get_extra_info("ssl_object") is None:
            return False
        if code == CANCEL_REQUEST:
            return False
        words = body[4:].split(b"\0")
        foreign = [name.decode() for name in words[:-2:2] if name.decode() not in PARAMETERS]
        if foreign:
            error = f"SFATAL\0C08P01\0Munsupported startup parameter: {foreign[0]}\0\0".encode()
            writer.write(b"E" + pack("!i", len(error) + 4) + error)
            return False
        writer.write(b"R" + pack("!ii", 8, 0) + self._sessions[0].announced + b"Z" + pack("!i", 5) + b"I")
        return True

    async def _transaction(self, message: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if message[:1] == b"X":
            raise ConnectionError("the client has gone")
        async with self._freed:
            await self._freed.wait_for(lambda: bool(self._free))
            number, session = self._free.popleft()
        self.transactions[number] += 1
        status = b""
        while status != b"I":
            # All up to what asks for an answer.
            while message[:1] not in (b"S", b"Q"):
                session.writer.write(message)
                message = await read_message(reader)
            session.writer.write(message)
            while (answer := await read_message(session.reader))[:1] != b"Z":
                writer.write(answer)
            writer.write(answer)
            if (status := answer[5:6]) != b"I":
                message = await read_message(reader)
        async with self._freed:
            self._free.append((number, session))
            self._freed.notify()


async def read_message(reader: asyncio.StreamReader) -> bytes:
    """A message of the protocol, with its type and length."""
    head = await reader.readexactly(5)
    (length,) = unpack("!i", head[1:])
    return head + await reader.readexactly(length - 4)


def certificate_for(host: str, folder: Path) -> Path:
    """A certificate for a name, which signs itself, with its key behind it in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = folder / f"{host}.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + secret)
    return file
