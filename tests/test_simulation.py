"""The chooser against simpler ones, in the simulator of the benchmarks: by ratios that hold for every seed."""

from __future__ import annotations

import pytest

from benchmarks.simulate import Result, simulate


def run(policy: str, *, outages: bool, seed: int) -> Result:
    return simulate(policy, 10, 0.15, outages, seed, seconds=300)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("outages", [False, True])
@pytest.mark.parametrize("other", ["random", "round robin"])
def test_ours_waits_less_swaps_less_and_finds_more_that_is_warm(other: str, outages: bool, seed: int) -> None:
    p50, p99, errors, _, swaps, warm = run("ours", outages=outages, seed=seed).row()
    its_p50, its_p99, its_errors, _, its_swaps, its_warm = run(other, outages=outages, seed=seed).row()
    assert p50 < its_p50 / 2, "the median wait"
    assert p99 <= its_p99, "the longest waits"
    assert errors <= its_errors
    assert swaps < its_swaps / 3
    assert warm > its_warm * 2


@pytest.mark.parametrize("outages", [False, True])
def test_affinity_finds_more_that_is_warm(outages: bool) -> None:
    ours, without = (
        sum(run(policy, outages=outages, seed=seed).hits for seed in range(6))
        for policy in ("ours", "ours, no affinity")
    )
    assert ours > without * 1.2


def test_the_same_seed_gives_the_same_run() -> None:
    assert run("ours", outages=True, seed=7).waits == run("ours", outages=True, seed=7).waits
