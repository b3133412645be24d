"""What the documentation names is there: pages, headings, commands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from commands import nomyo

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "tests/servers/README.md",
]
# [text](target), and images.
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = ("*.py", *(f"{part}/**/*.py" for part in ("api", "backends", "commands", "core", "requests", "stores")))
ELSEWHERE = ("http://", "https://", "mailto:")


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links_of(text: str) -> Iterator[str]:
    """Where a page leads within the project."""
    for target in LINK.findall(without_code(text)):
        if not target.startswith(ELSEWHERE):
            yield target


def without_code(text: str) -> str:
    """Without fenced blocks and what stands in backticks."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors_of(page: Path) -> set[str]:
    """The headings of a page, as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower())) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_leads_to_what_is_there(page: Path) -> None:
    for target in links_of(page.read_text()):
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors_of(there), target


def test_a_page_of_the_site_leads_to_none_that_it_lacks() -> None:
    for page in DOCS.rglob("*.md"):
        for target in links_of(page.read_text()):
            there = (page.parent / target.partition("#")[0]).resolve()
            assert there.is_relative_to(DOCS), f"{page.name}: {target}"


def test_each_page_is_in_the_sites_contents_once() -> None:
    def pages(entries: list[object]) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, dict):
                for value in entry.values():
                    yield from pages(value) if isinstance(value, list) else [value]
            else:
                yield str(entry)

    contents = list(pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert sorted(contents) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_each_command_is_there() -> None:
    commands = nomyo.list_commands(click.Context(nomyo))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        for made in re.findall(r"(?:^    |`|\$ )make ([a-z-]+)", text, flags=re.MULTILINE):
            assert made in targets, f"{page.name}: make {made}"
        for name in re.findall(r"\./nomyo ([a-z]+)", text):
            assert name in commands, f"{page.name}: ./nomyo {name}"


def test_what_is_to_be_read_in_an_error_is_what_the_code_has() -> None:
    code = "".join(file.read_text() for part in CODE for file in sorted(ROOT.glob(part)))
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert len(quoted) > 15
    for words in quoted:
        # What the code puts in stands in braces there, and in quotes of its own.
        for piece in re.split(r"[…{}']+", words):
            assert piece.strip(" ;?") in code, f"{words!r}: nothing has {piece!r}"


@pytest.mark.heavy
@pytest.mark.skipif(find_spec("zensical") is None, reason="`make docs` installs zensical")
def test_the_site_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs")
    build = [sys.executable, "-I", "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    made = list((tmp_path / "site").rglob("*.html"))
    assert len(made) > len(list(DOCS.glob("*.md")))
    for page in made:
        loaded = re.findall(r"<(?:link|script|img|iframe)[^>]*(?:href|src)=[\"']?(https?:[^\s\"'>]*)", page.read_text())
        assert loaded == [], page.name
    assert not list((tmp_path / "site").rglob("*.py"))
