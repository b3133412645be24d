"""One word, one meaning: the words that the service's code does without; and what is public is
described."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from cache import Cache
from db import Store

ROOT = Path(__file__).parents[1]

# Each hides several: an event is emitted or encoded, a line logged, a row marked, a waiter notified, a client replied
# to, a problem described. And a metaphor has a name of the field: shared counters, a wake-up, a peer.
FORBIDDEN = {"tell", "tells", "telling", "told", "say", "says", "saying", "said"}
FORBIDDEN |= {"bell", "board", "likewise", "sibling", "siblings"}
PHRASES = ("what is none", "a circle")
SERVICE = ("api", "backends", "cache.py", "cluster", "commands", "core", "db.py", "requests", "router.py", "serve.py")
SERVICE += ("stores",)
# What implements one of these is described there.
PROTOCOLS = (Cache, Store)


def service_files() -> list[Path]:
    """All files of the service."""
    paths = [ROOT / part for part in SERVICE]
    return sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))


def words(text: str) -> set[str]:
    """All words of a source, those within names too: `is_told`, `NotTold`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}


def test_no_word_hides_several_meanings() -> None:
    for file in service_files():
        for number, line in enumerate(file.read_text().splitlines(), 1):
            found = words(line) & FORBIDDEN | {phrase for phrase in PHRASES if phrase in line}
            assert not found, f"{file.relative_to(ROOT)}:{number}: {sorted(found)}"


def test_the_words_within_names_are_found() -> None:
    assert words("    self._is_told(NotTold, BOARD_SIZE)  # Likewise.") >= {"told", "board", "likewise", "not", "size"}
    assert not words("    saidst = retold, boards, stelling") & FORBIDDEN


def undescribed(file: Path) -> Iterator[str]:
    """The public functions and methods of a module that have no docstring, of their own or of what they override. Those
    of a `Protocol` are described with their class."""
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing) and not inspect.getdoc(thing):
            yield name
        if inspect.isclass(thing):
            yield from (f"{name}.{method}" for method in undescribed_methods(thing))


def undescribed_methods(owner: type) -> Iterator[str]:
    for name, method in vars(owner).items():
        is_method = inspect.isfunction(method) or isinstance(method, (staticmethod, classmethod, property))
        if is_method and not name.startswith("_") and not getattr(owner, "_is_protocol", False):
            overridden = [vars(base)[name] for base in (*owner.__mro__, *PROTOCOLS) if name in vars(base)]
            is_field = any(name in inspect.get_annotations(base) for base in owner.__mro__)
            if not is_field and not any(map(inspect.getdoc, overridden)):
                yield name


def test_what_is_public_is_described() -> None:
    missing = {str(file.relative_to(ROOT)): found for file in service_files() if (found := list(undescribed(file)))}
    assert not missing
