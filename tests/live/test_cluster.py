"""`make cluster ONCE=1`: three real replicas over real engines, killed and stopped, in front of a real model."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
@pytest.mark.live
@pytest.mark.timeout(400)
def test_the_cluster_does_what_it_is_there_to_show() -> None:
    command = [sys.executable, "-u", "-m", "demo.cluster", "--once", "--port", "0", "--turns", "30"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=390)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "30 have ended, each once" in ran.stdout
    assert "none missing and none twice" in ran.stdout


@pytest.mark.heavy
@pytest.mark.live
@pytest.mark.timeout(120)
def test_it_stays_up_and_ends_with_ctrl_c() -> None:
    command = [sys.executable, "-u", "-m", "demo.cluster", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = ""
        while "stays up" not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line
        process.send_signal(signal.SIGINT)
        assert "Stopped." in process.stdout.read()
    assert process.returncode == 0
    for name in ("store", "shared", "model", "A", "B", "C", "nginx"):
        assert f"  {name} " in shown
