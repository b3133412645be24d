"""Numbers in the query of every route: what is none, or more than a database can count, is named as such."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
from fastapi.routing import APIRoute

import router
from tests.conftest import Running
from tests.turns import assert_error


def numbers() -> Iterator[tuple[str, str]]:
    """The paths that are read with a whole number in the query, and its name."""
    for door in router.DOORS:
        for route in door.routes:
            if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
                for param in route.dependant.query_params:
                    kind = param.field_info.annotation
                    if int in (kind, *get_args(kind)):
                        yield route.path.replace("{", "").replace("}", ""), param.alias


@pytest.mark.parametrize("number", [2**63, 10**30, -(10**30)])
async def test_a_number_that_no_database_has_is_named(number: int, served: Running) -> None:
    found = list(numbers())
    assert len(found) >= 6
    for path, name in found:
        assert_error(await served.http.get(path, params={name: number}), 400, param=name)
