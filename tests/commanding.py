"""`./nomyo` inside the test's process, beside a router in the same loop."""

from __future__ import annotations

import asyncio
import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import commands


class Ran(NamedTuple):
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def wrong(self) -> list[str]:
        """The lines of `./nomyo check` about what is wrong, without the word for it."""
        return [line.removeprefix("WRONG  ") for line in self.out.splitlines() if line.startswith("WRONG")]


async def nomyo(*arguments: str | Path) -> Ran:
    """Runs a command in a thread: the loop goes on."""

    def run() -> Ran:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                commands.main([str(argument) for argument in arguments])
            except SystemExit as end:
                status = end.code
        assert isinstance(status, int | None)
        for printed in (out, err):
            printed.seek(0)
        return Ran(status or 0, out.read(), err.read())

    return await asyncio.to_thread(run)


class SettingsFile:
    """The file that ROUTER_CONFIG names for the commands of a test; what is kept is in memory unless it says else."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "config.yaml"
        monkeypatch.setenv("ROUTER_CONFIG", str(self.file))
        self.write()

    def write(self, **settings: object) -> None:
        """Writes these settings, and no others."""
        self.file.write_text(yaml.safe_dump({"database": {"url": "sqlite://"}, **settings}))
