"""What is wrong with settings, in the words of whoever writes YAML: the key first, and the nearest known one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import msgspec

from core.config import CHOICES, SECTIONS, Config

# What is no setting: what to do instead.
AT_THE_START = {
    "port": "the port is given at the start: serve.py --port N, or make serve PORT=N",
    "host": "the address is given at the start: serve.py --host H, or make serve HOST=H",
}

# Keys of the earlier nomyo-router, and what has taken their place.
OF_OLD = {
    "max_concurrent_connections": "`max_concurrent` of each endpoint",
    "api_keys": "`api_key` of each endpoint",
    "llama_server_endpoints": "entries of `endpoints` with `kind: llama.cpp`",
    "nomyo-router-api-key": "`api_key`",
    "db_path": "`database.url`, as in sqlite:///data/router.db",
    "cache_enabled": "`backend` of `cache`",
    "cache_backend": "`backend` of `cache`",
    "cache_ttl": "`max_age_s` of `cache`",
    "cache_db_path": "`path` of `cache`",
}
# msgspec's words for types, as who writes YAML calls them.
TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "keys and values",
    "null": "nothing",
}


def explained(problem: str) -> str:
    """msgspec's words as ours: the key first, and the nearest known one."""
    what, _, path = problem.partition(" - at `$")
    where = path.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", what):
        section = SECTIONS.get(re.sub(r"\[\d+\]", "[]", re.sub(r"\[\.\.\.\]", "[]", where)), Config)
        key = f"{where}.{unknown[1]}".lstrip(".")
        if not where and unknown[1] in AT_THE_START:
            return f"unknown key '{key}'; {AT_THE_START[unknown[1]]}"
        if not where and unknown[1] in OF_OLD:
            return f"unknown key '{key}', of the earlier nomyo-router; now it is {OF_OLD[unknown[1]]}"
        return f"unknown key '{key}'{_meant(unknown[1], section)}"
    if missing := re.search(r"missing required field `(.*)`", what):
        return f"missing key '{f'{where}.{missing[1]}'.lstrip('.')}'"
    if invalid := re.search(r"Invalid enum value '(.*)'", what):
        key = re.sub(r"(\[[^\]]*\])+$", "", where).rpartition(".")[2]
        return f"{where}: '{invalid[1]}' is not known{nearest(invalid[1], CHOICES[key])}"
    if key_of := re.search(r" - at `key` in `\$\.?(.*)`", problem):
        return f"{key_of[1] or 'settings'}: each key must be text: put it in quotes"
    expected = re.match(r"Expected `([^`]*)`(.*?)(?:, got `(\w+)`)?$", what)
    if not expected:
        return f"{where or 'settings'}: {what[0].lower()}{what[1:]}"
    wanted = " or ".join(TYPES.get(name, name) for name in expected[1].split(" | ") if name != "null")
    line = f"{where or 'settings'}: expected {wanted}{expected[2]}"
    if given := expected[3]:
        line += f", got {TYPES.get(given, given)}"
        if wanted == "text" and given in ("int", "float", "bool"):
            line += ": put it in quotes"
        if re.fullmatch(r"endpoints\[\d+\]", where) and given == "str":
            line += ", as in `- url: http://…`"
    return line


MOST_PLACES = 3


def _meant(name: str, section: type[msgspec.Struct]) -> str:
    """The end of a line about a key that its section does not know: what it is all but written as there, else where it
    belongs, else what is nearest there."""
    known = section.__struct_fields__
    places = [place or "the top" for place, kind in SECTIONS.items() if name in kind.__struct_fields__]
    if 1 <= len(places) <= MOST_PLACES and not difflib.get_close_matches(name, known, n=1, cutoff=0.8):
        return f"; it is a key of {' and of '.join(places)}"
    return nearest(name, known)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a line about a name that is not known: the nearest that is, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}" if known else ""
