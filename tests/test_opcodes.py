"""What a request and a token cost in opcodes: a number that no busy machine changes, and that nobody should raise
without knowing."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gateways import ROOT
from benchmarks.opcodes import counted

# About a tenth above what was counted in 2026-11 (benchmarks/README.md): a new feature may cost who uses it, and nobody
# else.
MOST = {
    "a plain request": 6050,
    "a burst of 64 tokens": 9400,
    "a token": 310,
    # With the line of each request in the log.
    "a plain request, native": 5100,
    "a burst of 64 tokens, native": 10600,
    "a token, native": 280,
    "a plain request, chat completions": 4200,
    "a token, chat completions": 222,
    # With what it used, in the same transaction.
    "a plain request, stored": 7750,
    "an agent's turn of 427 KB": 172_000,
}

Figures = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def figures() -> Figures:
    return counted(ROOT, sys.executable)


@pytest.mark.parametrize("name", MOST)
def test_the_fast_path_stays_as_short_as_it_is(name: str, figures: Figures) -> None:
    assert figures[name]["opcodes"] <= MOST[name], (
        f"{figures[name]}; `make opcodes BASE=main ARGS='--top 20'` shows where"
    )


def test_a_token_costs_less_alone_than_a_request_and_more_than_nothing(figures: Figures) -> None:
    for surface in ("", ", native", ", chat completions"):
        request, token = figures[f"a plain request{surface}"], figures[f"a token{surface}"]
        assert all(0 < token[column] < request[column] for column in request)


def test_the_same_code_counts_the_same_twice(figures: Figures) -> None:
    assert counted(ROOT, sys.executable) == figures
