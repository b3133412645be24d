"""The pieces of code in the documentation, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:    .+\n|\n(?=    ))+")
ROUTER = "http://127.0.0.1:12434"


class Snippet(NamedTuple):
    """A piece of code in a language, and where it begins."""

    place: str
    language: str
    text: str


def snippets(*languages: str) -> list[Snippet]:
    """All of some languages: what is fenced, and, as `sh`, what is indented."""
    found = []
    for page in PAGES:
        text = page.read_text()
        pieces = [(match.start(), match[1], match[2]) for match in FENCED.finditer(text)]
        bare = FENCED.sub(lambda match: "\n" * match[0].count("\n"), text)
        pieces += [(match.start(), "sh", match[0]) for match in INDENTED.finditer(bare)]
        found += [
            Snippet(f"{page.name}:{text[:start].count(chr(10)) + 1}", language, piece)
            for start, language, piece in pieces
            if language in languages
        ]
    return found


def imports(snippet: Snippet) -> set[str]:
    """The packages that a piece of Python imports."""
    return set(re.findall(r"^(?:from|import) (\w+)", snippet.text, re.MULTILINE))


def models(snippet: Snippet) -> list[str]:
    """The models that it names."""
    return re.findall(r'(?:model[=:] ?|Model\(|responses\()"([^"]+)"', snippet.text)
