"""All mistakes in some settings: each is found, and mended as far as the next one can be found behind it."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from typing import Any

from core.config_checks import parse_config
from core.errors import ConfigError

MOST = 20
_PATH = re.compile(r"(?:unknown key '|missing key ')?([\w\[\].-]+?)(?:'|:|;|$)")


def mistakes_in(data: dict[str, Any], kinds: Collection[str] = ()) -> list[str]:
    """A line for each mistake in plain data, the first of many. `kinds`: as in `parse_config`."""
    data = copy.deepcopy(data)
    found: list[str] = []
    while len(found) < MOST:
        try:
            parse_config(data, kinds)
        except ConfigError as error:
            mistake = str(error)
            if mistake in found:
                break
            found.append(mistake)
            path = _PATH.match(mistake)
            if path is None or not _mended(data, path[1], len(found)):
                break
        else:
            break
    return found


def _mended(data: dict[str, Any], path: str, number: int) -> bool:
    """Puts something right in the place of a value, and whether it could: what must be there gets a stand-in, the rest
    is left out, with its section where the mistake is that something else is not there."""
    *steps, last = (int(step) if step.isdecimal() else step for step in re.findall(r"[\w-]+", path))
    at: Any = data
    try:
        for step in steps:
            at = at[step]
        row = _row(str(steps[0]) if steps else "", number)
        if isinstance(last, int):
            at[last] = row
        elif last in row:  # Of a row whose other mistakes shall be found.
            at[last] = row[last]
        else:
            del at[last]
    except (LookupError, TypeError):
        return data.pop(path.partition(".")[0].partition("[")[0], None) is not None
    return True


def _row(section: str, number: int) -> dict[str, Any]:
    """An entry of a list in which nothing is wrong; none of another section."""
    name, url = f"mistake-{number}", f"http://mistake-{number}.invalid"
    return {
        "endpoints": {"name": name, "url": url},
        "keys": {"name": name, "sha256": f"{number:064x}"},
        "owners": {"name": name},
        "mcp": {"url": url},
    }.get(section, {})
