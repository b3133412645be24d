"""A commit to compare with: its checkout and its environment, made once, below `benchmarks/.base`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateways import ROOT

BASES = ROOT / "benchmarks" / ".base"
UV = Path(sys.prefix) / "bin" / "uv"


@dataclass(frozen=True)
class Base:
    """A commit that is checked out: `name` is the short form of its id."""

    name: str
    subject: str
    checkout: Path

    @property
    def python(self) -> str:
        """That of its environment."""
        return str(self.checkout / ".venv" / "bin" / "python")

    def __str__(self) -> str:
        return f"{self.name} ({self.subject})"


def base_of(commit: str) -> Base:
    """A commit, a branch or a tag; its environment is what its own uv.lock names, on the Python that runs this. Exits
    with the reason if there is none."""
    found = _run(["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"], ROOT).strip()
    if not found:
        raise SystemExit(f"{commit!r} is no commit of this repository.")
    name, subject = _run(["git", "show", "--no-patch", "--format=%h%n%s", found], ROOT).splitlines()
    base = Base(name, subject, BASES / found)
    if not (base.checkout / "pyproject.toml").exists():
        # --force: it may have been removed without git.
        _run(["git", "worktree", "add", "--quiet", "--force", "--detach", str(base.checkout), found], ROOT)
    # Of what is there already nothing is installed again.
    _run([str(UV), "sync", "--quiet", "--frozen", "--no-default-groups"], base.checkout)
    return base


def _run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VIRTUAL_ENV", "GIT_"))}
    environment |= {"UV_PROJECT_ENVIRONMENT": ".venv", "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and done.stderr:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
