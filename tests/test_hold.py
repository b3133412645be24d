"""`make hold` at a small scale: that it still runs, and that what it looks at holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.gateways import ROOT


@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_what_it_looks_at_holds() -> None:
    command = [sys.executable, "-m", "benchmarks.hold", "--only", "kills", "replicas", "memory", "queue"]
    command += ["--kills", "2", "--replica-kills", "6", "--replica-turns", "60", "--failures", "48", "--queued", "40"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = [line for line in ran.stdout.splitlines()[2:] if line.startswith("| ")]
    assert [row.endswith("| yes |") for row in rows] == [True] * 6, ran.stdout
