"""What the query of a GET asks for of items (`include`), and what of that nothing comes of."""

from __future__ import annotations

from starlette.requests import Request

from backends.fleet.routing import printable
from requests.included import INCLUDABLE

# Proxies take no longer ones.
LONGEST_HEADER = 1000


def included(request: Request) -> set[str]:
    """What a query asks for, under either name that clients give it."""
    asked = request.query_params
    return {value for key in ("include", "include[]") for value in asked.getlist(key)}


def ignored_includes(include: set[str]) -> dict[str, str] | None:
    """The header that names what of it nothing comes of."""
    ignored = ", ".join(f"include.{value}" for value in sorted(include - INCLUDABLE))
    return {"x-nomyo-ignored": printable(ignored)[:LONGEST_HEADER]} if ignored else None
