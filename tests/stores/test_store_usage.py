"""Every store adds up what was used, by owner, key, model, endpoint and hour, and forgets none of it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import ServerError
from core.usage import DAY_S, HOUR_S, By, Spent, Use
from db import Store, make_store
from stores.writing import Outage
from tests.stores.databases import shared
from tests.stores.rows import row

# 2026-11-01, 00:00 UTC.
START = 1_793_491_200
HOUR = START // HOUR_S
BYS: tuple[By, ...] = ("owner", "key", "model", "endpoint")


class Where(NamedTuple):
    """A `core.usage.Where` by the names of its places."""

    owner: str
    hour: int
    key: str
    model: str
    endpoint: str


counts = st.integers(0, 2**40)
used = st.builds(
    Use, *[counts] * 6, st.floats(0, 1e6, width=32), counts, st.integers(0, 10**6).map(lambda cents: cents / 64)
)
where = st.builds(
    Where,
    st.sampled_from(["", "a", "b"]),
    st.integers(0, 70).map(lambda hour: HOUR + hour),
    *[st.sampled_from(["", "a", "b"])] * 2,
    st.sampled_from(["http://one", "http://two"]),
)
batches = st.lists(st.dictionaries(where, used, max_size=6), max_size=5)


def summed(batches: list[dict[Where, Use]], by: By, step: int, owner: str | None = None) -> dict[tuple[int, str], Use]:
    sums: dict[tuple[int, str], Use] = defaultdict(Use)
    for batch in batches:
        for at, more in batch.items():
            name = (at.hour * HOUR_S // step * step, getattr(at, by))
            sums[name] = sums[name].plus(more)
    return dict(sorted(sums.items()))


async def listed(store: Store, by: By, step: int, **which: Any) -> dict[tuple[int, str], Use]:
    rows = await store.list_usage(**{"begin": START, "end": START + 100 * DAY_S, **which}, by=by, step=step)
    return {(row.at, row.name): row.used for row in rows}


def approximately(sums: dict[tuple[int, str], Use]) -> dict[tuple[int, str], Any]:
    return {name: pytest.approx(tuple(used)) for name, used in sums.items()}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches, st.integers(0, 3))
async def test_what_is_listed_is_what_was_counted_also_when_it_is_old(
    database: Any, batches: list[dict[Where, Use]], days: int
) -> None:
    store = make_store("sqlite://" if not database.is_shared else database.url)
    await store.open()
    try:
        before = {by: await listed(store, by, DAY_S) for by in BYS}
        for batch in batches:
            await store.count_usage(batch)
        await store.roll_up_usage(START + days * DAY_S)
        await store.roll_up_usage(START + days * DAY_S)
        for by in BYS:
            expected = summed(batches, by, DAY_S)
            for name, counted in before[by].items():  # What the examples before have left.
                expected[name] = expected.get(name, Use()).plus(counted)
            assert await listed(store, by, DAY_S) == approximately(expected)
    finally:
        await store.close()


async def test_hours_stay_hours_until_they_are_rolled_up(store: Store) -> None:
    one, two = (Where("o", HOUR + hour, "k", "m", "e") for hour in (5, 30))
    await store.count_usage({one: Use(1, input_tokens=10), two: Use(2, input_tokens=20)})
    assert [at for at, _ in await listed(store, "key", HOUR_S)] == [one.hour * HOUR_S, two.hour * HOUR_S]
    await store.roll_up_usage(START + DAY_S)
    assert await listed(store, "key", HOUR_S) == {
        (START, "k"): Use(1, input_tokens=10),
        (two.hour * HOUR_S, "k"): Use(2, input_tokens=20),
    }
    late = {one: Use(3, output_tokens=7)}
    await store.count_usage(late)
    await store.roll_up_usage(START + DAY_S)
    assert (await listed(store, "key", HOUR_S))[START, "k"] == Use(4, input_tokens=10, output_tokens=7)


async def test_of_one_owner_nothing_of_another_is_listed_or_spent(store: Store) -> None:
    await store.count_usage(
        {
            Where("one", HOUR, "key 1", "m", "e"): Use(1, input_tokens=10, output_tokens=5, cost=0.5),
            Where("one", HOUR, "key 2", "m", "e"): Use(1, input_tokens=20, cost=0.25),
            Where("two", HOUR, "key 3", "m", "e"): Use(1, input_tokens=40),
            Where("one", HOUR - 1, "key 1", "m", "e"): Use(1, input_tokens=80, cost=8),
        }
    )
    assert [name for _, name in await listed(store, "key", HOUR_S, owner="one")] == ["key 1", "key 2"]
    assert await listed(store, "key", HOUR_S, owner="nobody") == {}
    assert await store.spent(START, owner="one") == Spent(35, 0.75)
    assert await store.spent(START, owner="one", key="key 1") == Spent(15, 0.5)
    assert await store.spent(0, owner="one", key="key 1") == Spent(95, 8.5)
    assert await store.spent(START, owner="two", key="key 1") == Spent(0, 0.0)


async def test_only_what_lies_in_the_time_is_listed(store: Store) -> None:
    hours = {Where("o", HOUR + hour, "k", "m", "e"): Use(1) for hour in range(10)}
    await store.count_usage(hours)
    rows = await listed(store, "model", HOUR_S, begin=START + 2 * HOUR_S, end=START + 5 * HOUR_S)
    assert [at for at, _ in rows] == [START + hour * HOUR_S for hour in (2, 3, 4)]


async def test_what_is_counted_before_a_turn_is_stored_is_committed_with_it(store: Store, database: Any) -> None:
    commits = await database.commits(store)
    counted = store.count_usage({Where("", HOUR, "", "m", "e"): Use(1, input_tokens=3)})
    await store.store_response("resp_1", **row())
    assert counted.done()
    assert len(commits) == 1


async def test_what_many_turns_used_is_added_up_in_one_commit(store: Store, database: Any) -> None:
    commits = await database.commits(store)

    async def turn(number: int) -> None:
        store.count_usage({Where("o", HOUR, f"k{number % 3}", "m", "e"): Use(1, output_tokens=number)})
        await store.store_response(f"resp_{number}", **row())

    await asyncio.gather(*map(turn, range(120)))
    assert len(commits) <= 3
    sums = await listed(store, "owner", DAY_S)
    assert sums == {(START, "o"): Use(120, output_tokens=sum(range(120)))}


async def test_who_counts_hears_of_what_could_not_be_written(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []

    async def full(writes: Any) -> None:
        raise Outage("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store._queue, "_run", full)
        written = store.count_usage({Where("", HOUR, "", "m", "e"): Use(1)}, failed=lambda: failures.append("once"))
        with pytest.raises(ServerError):
            await written
    await store.count_usage({Where("", HOUR, "", "m", "e"): Use(1)}, failed=lambda: failures.append("never"))
    assert failures == ["once"]


@shared
async def test_what_several_processes_count_is_added(store: Store, other: Store) -> None:
    at = Where("o", HOUR, "k", "m", "e")
    await asyncio.gather(*(one.count_usage({at: Use(1, slot_s=0.5)}) for one in (store, other) for _ in range(20)))
    assert await listed(other, "key", DAY_S) == {(START, "k"): Use(40, slot_s=20.0)}
