"""`./nomyo`, as it is typed: its exit status, its one line about what is wrong, and what each command has in common."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import commands
from tests.turns import SOON_S

ROOT = Path(__file__).parents[1]
NAMES = commands.nomyo.list_commands(None)  # type: ignore[arg-type]


def nomyo(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """What a command prints, and its exit status."""
    given = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": SOON_S, **settings}
    return subprocess.run([ROOT / "nomyo", *arguments], **given)


def on_terminal(*arguments: str | Path, **environment: str) -> str:
    """What a command prints where stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [ROOT / "nomyo", *arguments], cwd=ROOT, stdout=theirs, stderr=theirs, env={**os.environ, **environment}
    ):
        os.close(theirs)
        printed = b""
        # Linux: reading of a terminal whose other end is closed is an error.
        while chunk := _read(ours):
            printed += chunk
    os.close(ours)
    return printed.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def assert_one_line(ran: subprocess.CompletedProcess[str], status: int) -> str:
    """The line on stderr of a command that failed with a status, and printed nothing else."""
    assert ran.returncode == status, ran.stderr
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("nomyo: ")
    return line


# ── all commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_lists_every_command_with_what_it_does() -> None:
    ran = nomyo("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    listed = dict(line.split(None, 1) for line in ran.stdout.partition("Commands:\n")[2].splitlines())
    assert [*listed] == NAMES
    assert {"serve", "backup"} <= listed.keys()
    assert all(line.endswith(".") for line in listed.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example(name: str) -> None:
    ran = nomyo(name, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"./nomyo {name} " in ran.stdout.partition("Example")[2]


def test_without_a_command_the_help_is_printed_and_nothing_is_done() -> None:
    ran = nomyo()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Commands:" in ran.stderr


@pytest.mark.parametrize("arguments", [["bakup"], ["backup"], ["backup", "--wrong"], ["backup", "a", "b"], ["--wrong"]])
def test_wrong_arguments_are_one_line_with_the_help_to_read(arguments: list[str]) -> None:
    assert "--help)" in assert_one_line(nomyo(*arguments), 2)


def test_a_settings_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "ROUTER_CONFIG": str(tmp_path / "none.yaml")}
    line = assert_one_line(nomyo("backup", tmp_path / "b.db", env=environment), 3)
    assert "ROUTER_CONFIG" in line


def test_an_error_is_red_on_a_terminal_alone() -> None:
    assert "\x1b[31m" in on_terminal("bakup")
    assert "\x1b" not in on_terminal("bakup", NO_COLOR="1")
    assert "\x1b" not in nomyo("bakup").stderr


def test_a_reader_that_leaves_early_is_no_error_of_ours() -> None:
    command = f"{ROOT}/nomyo --help | true"
    ran = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=SOON_S)
    assert ran.stderr == ""


# ── where it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_clean_clone_is_pointed_at_make_setup(tmp_path: Path) -> None:
    shutil.copy(ROOT / "nomyo", tmp_path)
    ran = subprocess.run([tmp_path / "nomyo", "--help"], capture_output=True, text=True, timeout=SOON_S)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert f"make -C {tmp_path} setup" in ran.stderr


def test_it_runs_from_any_folder_and_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(ROOT / "nomyo")
    ran = subprocess.run([tmp_path / "link", "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=SOON_S)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_service_imports_no_command() -> None:
    program = "import router, serve, sys; print([name for name in sys.modules if name.startswith('commands')])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SOON_S)
    assert ran.stdout == "[]\n", ran.stderr


# ── serve ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", [["serve"], ["--", "serve"]])  # as it is typed; as the list of commands has it
def test_serve_is_serve_py_in_the_very_process_that_was_started(command: list[str], tmp_path: Path) -> None:
    settings = {
        "endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    environment = {**os.environ, "ROUTER_CONFIG": str(tmp_path / "config.yaml")}
    arguments = [*command, "--port", "0"]
    with subprocess.Popen(
        [ROOT / "nomyo", *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        logged = []
        while not logged or "running on" not in logged[-1]:
            logged.append(process.stderr.readline())
            assert logged[-1], logged
        running = Path(f"/proc/{process.pid}/cmdline")
        if running.exists():
            assert str(ROOT / "serve.py") in running.read_text().split("\0")
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        # uvicorn raises the signal again that ended it.
        assert process.wait(SOON_S) in (0, -signal.SIGTERM)


def test_serve_refuses_what_serve_py_refuses() -> None:
    ran = nomyo("serve", "--workers", "3")
    assert ran.returncode == 2
    assert "config.yaml" in ran.stderr
