"""A program that is a server of MCP, spoken to over its standard input and output: a transport of the official client.

The client's own puts lines together in a way that takes a second of the loop for ten megabytes, and reads lines of any
length; and whoever cancels it while it ends its program leaves that behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

# How long a program has to end when it is asked to, and again when it is made to.
END_S = 2.0
LOOK_S = 0.02


@asynccontextmanager
async def program(command: Sequence[str], env: dict[str, str], most_bytes: int) -> AsyncIterator[tuple[Any, Any]]:
    """A program that runs meanwhile, as the streams of its messages: those that come and those that are to be sent. One
    of more than `most_bytes` ends what comes. Raises `OSError` where it cannot be started."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=env,
        limit=most_bytes,
        start_new_session=True,  # What it starts itself is ended with it.
    )
    give, come = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    send, given = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [asyncio.create_task(_read(process, give)), asyncio.create_task(_write(process, given, give))]
    try:
        yield come, send
    finally:
        try:
            await _end(process)
        finally:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
            for task in tasks:
                task.cancel()
            for stream in (give, come, send, given):
                stream.close()
            # Its pipes: nobody reads to the end what is too long, and asyncio has no other way to close them.
            process._transport.close()  # type: ignore[attr-defined]
    await asyncio.gather(*tasks, return_exceptions=True)


async def _read(process: asyncio.subprocess.Process, give: Any) -> None:
    assert process.stdout is not None
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with give:
            while line := await _line(process.stdout):
                message: SessionMessage | Exception
                try:
                    message = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                except ValueError as error:  # Something else that it prints: the client passes over it.
                    message = error
                await give.send(message)


async def _line(stdout: asyncio.StreamReader) -> bytes:
    """The next line; nothing at the end, and where it is too long."""
    try:
        return await stdout.readline()
    except ValueError:
        return b""


async def _write(process: asyncio.subprocess.Process, given: Any, give: Any) -> None:
    assert process.stdin is not None
    try:
        async for sent in given:
            data = sent.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(f"{data}\n".encode())
            await process.stdin.drain()
    except OSError:  # It reads no more: whoever waits for an answer shall not wait for ever.
        give.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a program: it is asked to, made to, and killed."""
    assert process.stdin is not None
    process.stdin.close()
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            _signal(process, number)
        for _ in range(int(END_S / LOOK_S)):
            if process.returncode is not None:
                return
            await asyncio.sleep(LOOK_S)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
