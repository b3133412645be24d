"""The store in PostgreSQL under several services: whose a turn is, what the dead have left, and what others hear of."""

from __future__ import annotations

import asyncio

import pytest

import stores.migrations.postgres
import stores.postgres_database
import stores.postgres_pool
from core.errors import ServerError, TakenOver
from tests.stores.postgres import Opened, let_die, sql_of
from tests.stores.rows import row, said
from tests.turns import eventually, soon


async def test_what_a_living_service_works_on_is_left_alone(opened: Opened) -> None:
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"))
    assert await two.unfinished() == []
    assert await two.fail_orphaned_responses() == 0
    assert [response["id"] for response in await one.unfinished()] == ["r"]


async def test_what_a_dead_one_has_left_is_given_to_one_of_the_others(opened: Opened) -> None:
    dead, *others = [await opened(name) for name in ("dead", "a", "b", "c", "d")]
    for number in range(50):
        dead.store_response(f"r{number}", **row("queued"), request=b"sealed")
    await dead.store_response("ended", **row())
    let_die(opened.url, "dead")
    seen = await asyncio.gather(*(other.unfinished() for other in others))
    assert [len(rows) for rows in seen] == [50] * 4
    taken = await asyncio.gather(*(other.claim(rows) for other, rows in zip(others, seen, strict=True)))
    ids = [response["id"] for rows in taken for response in rows]
    assert sorted(ids) == sorted(f"r{number}" for number in range(50))
    for rows in taken:
        assert [response["request"] for response in rows] == [b"sealed"] * len(rows)


async def test_what_one_has_left_that_was_stopped_is_anybodys_at_once(opened: Opened) -> None:
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("queued"), request=b"sealed")
    await one.close()
    (left,) = await two.unfinished()
    assert left["id"] == "r"
    assert await two.claim([left]) == [left]
    assert await two.claim([left]) == [], "it is no longer the other's"


async def test_one_that_was_given_up_and_goes_on_changes_nothing_any_more(opened: Opened) -> None:
    """A process that stood still for long, and whose turn was failed meanwhile."""
    slow, other = await opened("slow"), await opened("other")
    await slow.store_response("r", **row("in_progress"))
    let_die(opened.url, "slow")
    assert await other.fail_orphaned_responses() == 1
    refused = slow.update_response("r", {"status": "completed", "output": []})
    others = [slow.store_response(f"r{number}", **row()) for number in range(3)]
    with pytest.raises(ServerError):  # Else whoever waits for it would take it for stored.
        await refused
    await asyncio.gather(*others)
    assert (await other.get_response("r"))["status"] == "failed"


async def test_what_is_deleted_while_it_runs_is_no_turn_of_anothers(opened: Opened) -> None:
    one, other = await opened("one"), await opened("other")
    await one.store_response("r", **row("in_progress"))
    assert await other.delete_response("r")
    await one.update_response("r", {"status": "completed", "output": []})
    assert await one.get_response("r") is None


async def test_nobody_is_taken_for_dead_because_the_database_was_away(opened: Opened) -> None:
    """Whoever is back first finds that nobody was seen lately."""
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"))
    two._database._seen_at -= 60
    await two._database._be_seen()
    let_die(opened.url, "one")
    assert await two.unfinished() == []
    two._database._steady_since -= 60
    assert len(await two.unfinished()) == 1


async def test_a_turn_that_was_claimed_is_its_new_processs(opened: Opened) -> None:
    slow, other = await opened("slow"), await opened("other")
    await slow.store_response("r", **row("queued"), request=b"sealed")
    let_die(opened.url, "slow")
    assert len(await other.claim(await other.unfinished())) == 1
    with pytest.raises(ServerError):
        await slow.update_response("r", {"status": "failed", "output": []})
    await other.update_response("r", {"status": "in_progress", "output": []})
    await other.update_response("r", {"status": "completed", "output": []})
    assert (await other.get_response("r"))["status"] == "completed"


async def test_what_waits_for_long_is_taken_by_its_priority_and_once(opened: Opened) -> None:
    full, *others = [await opened(name) for name in ("full", "a", "b")]
    for number in range(12):
        full.store_response(f"r{number:02}", **row("queued"), request=b"sealed", moves_at=-(number % 3))
    full.store_response("stays", **row("queued"), request=b"sealed")
    full.store_response("runs", **row("in_progress"), request=b"sealed", moves_at=0)
    await full.store_response("ended", **row(), moves_at=0)
    assert await others[0].take_waiting(100) == [], "they have only just begun to wait"
    sql_of(opened.url, "UPDATE responses SET waits_since = waits_since - interval '1 minute'")
    (first,) = await others[0].take_waiting(1)
    assert (first["id"], first["request"]) == ("r02", b"sealed")
    taken = await asyncio.gather(*(other.take_waiting(6) for other in others))
    ids = [response["id"] for rows in taken for response in rows]
    assert sorted(ids) == sorted({f"r{number:02}" for number in range(12)} - {"r02"})
    with pytest.raises(TakenOver):
        await full.update_response("r00", {"status": "in_progress", "output": []})
    assert {response["id"] for response in await full.unfinished()} == {"stays", "runs"}


def test_who_cancels_waits_for_less_than_a_second_also_where_nothing_is_heard() -> None:
    assert stores.postgres_database.UNWANTED_EVERY_S < 1


@pytest.mark.parametrize("hears", [True, False])
async def test_a_process_learns_what_others_were_asked_to_cancel(
    opened: Opened, hears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "UNWANTED_EVERY_S", 3600 if hears else 0.02)
    if not hears:
        monkeypatch.setattr(stores.postgres_listener.PostgresListener, "open", lambda self: None)
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **row("in_progress"), owner="ann")
    await one.store_response("ended", **row(), owner="ann")
    assert not await two.ask_to_cancel("ended", owner="ann")
    assert not await two.ask_to_cancel("r", owner="bob")
    assert await two.ask_to_cancel("r", owner="ann")
    async with soon():
        assert await anext(one.unwanted()) == ("ann", "r")


async def test_what_is_abandoned_is_noticed(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.postgres_database, "LOOK_FOR_ABANDONED_S", 0.01)
    one, two = await opened("one"), await opened("two")
    noticed = 0

    async def notice() -> None:
        nonlocal noticed
        async for _ in two.abandoned():
            noticed += 1

    noticing = asyncio.create_task(notice())
    await one.store_response("r", **row("queued"))
    await asyncio.sleep(0.1)
    assert not noticed
    let_die(opened.url, "one")
    await eventually(lambda: bool(noticed), "it is noticed")
    noticing.cancel()


async def test_one_that_works_is_seen_again_and_again(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.postgres_database, "SEEN_EVERY_S", 0.02)
    await opened("one")
    let_die(opened.url, "one")
    await eventually(
        lambda: bool(sql_of(opened.url, "SELECT 1 FROM processes WHERE seen_at > now() - interval '1 minute'")),
        "it is seen",
    )


@pytest.mark.parametrize("hears", [True, False])
async def test_what_another_service_deletes_is_in_no_memory(
    opened: Opened, hears: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores.postgres_database, "LOOK_EVERY_S", 3600 if hears else 0.02)
    if not hears:
        monkeypatch.setattr(stores.postgres_listener.PostgresListener, "open", lambda self: None)
    one, two = await opened("one"), await opened("two")
    await one.store_response("r", **said("hello"))
    assert len((await two.get_history("r")).items) == 2

    async def is_listening() -> bool:
        return not hears or bool(sql_of(opened.url, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%LISTEN%'"))

    await eventually(is_listening, "it listens")
    await one.delete_response("r")

    async def is_gone() -> bool:
        return (await two.get_history("r")).missing == "r"

    await eventually(is_gone, "it is gone")
