"""`./nomyo usage`: what a router has counted, out of its database."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from pathlib import Path

import pytest

from core.usage import HOUR_S, Use
from db import make_store
from tests.test_command import assert_one_line, nomyo, on_terminal

# 2026-11-01, 10:00 UTC.
HOUR = 1_793_527_200 // HOUR_S


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The settings of a router whose keys have used something."""
    url = f"sqlite:///{tmp_path}/router.db"
    settings = {"endpoints": [{"url": "http://127.0.0.1:9", "kind": "openai-chat"}], "database": {"url": url}}
    (tmp_path / "config.yaml").write_text(json.dumps(settings))

    async def fill() -> None:
        store = make_store(url)
        await store.open()
        await store.count_usage(
            {
                ("team", HOUR, "ann", "m1", "e1"): Use(3, 1, 100, 40, 20, 5, 1.5, 1, 0.25),
                ("team", HOUR + 1, "ann", "m2", "e1"): Use(1, 0, 10, 0, 2, 0, 0.5, 0, 0.5),
                ("bob", HOUR + 30, "bob", "m1", "e1"): Use(2, 0, 7, 0, 3, 0, 0.25, 0, 0.0),
            }
        )
        await store.close()

    asyncio.run(fill())
    return {**os.environ, "ROUTER_CONFIG": str(tmp_path / "config.yaml")}


SINCE = ("--from", "2026-11-01", "--to", "2026-12-01")


def test_a_table_has_a_line_for_each_name(environment: dict[str, str]) -> None:
    ran = nomyo("usage", *SINCE, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    head, ann, bob = ran.stdout.splitlines()
    assert head.split()[:4] == ["KEY", "REQUESTS", "ERRORS", "INPUT"]
    assert ann.split() == ["ann", "4", "1", "110", "40", "22", "5", "2", "1", "0.75"]
    assert bob.split()[:2] == ["bob", "2"]
    assert "\x1b[1m" in on_terminal("usage", *SINCE, ROUTER_CONFIG=environment["ROUTER_CONFIG"])


def test_json_and_csv_have_all_of_it_by_step(environment: dict[str, str]) -> None:
    listed = json.loads(nomyo("usage", *SINCE, "--by", "model", "--step", "hour", "--json", env=environment).stdout)
    assert [(row["at"] // HOUR_S - HOUR, row["model"], row["requests"]) for row in listed["data"]] == [
        (0, "m1", 3),
        (1, "m2", 1),
        (30, "m1", 2),
    ]
    assert (listed["total"]["requests"], listed["total"]["cost"]) == (6, 0.75)
    ran = nomyo("usage", *SINCE, "--owner", "team", "--step", "day", "--csv", env=environment)
    (row,) = csv.DictReader(io.StringIO(ran.stdout))
    assert (row["at"], row["key"], row["requests"]) == ("2026-11-01T00:00Z", "ann", "4")


def test_where_nothing_was_used_it_is_empty(environment: dict[str, str]) -> None:
    nothing = ("--from", "2020-01-01", "--to", "2020-02-01")
    assert nomyo("usage", *nothing, env=environment).stdout == "Nothing was used in this time.\n"
    listed = json.loads(nomyo("usage", *nothing, "--json", env=environment).stdout)
    assert (listed["data"], listed["total"]["requests"]) == ([], 0)


@pytest.mark.parametrize(
    "wrong",
    [["--from", "yesterday"], ["--to", "2027-13-01"], ["--by", "day"], ["--from", "2026-12-01", "--to", "2026-11-01"]],
)
def test_wrong_values_are_one_line(environment: dict[str, str], wrong: list[str]) -> None:
    assert wrong[0] in assert_one_line(nomyo("usage", *wrong, env=environment), 2)
