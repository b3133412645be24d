"""The queue of those who wait: first come, first served within a principal, the principals in turn, nobody blocked by
who cannot be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.fair_queue import FairQueue


@dataclass(eq=False)
class Entry:
    """A place in the queue: of a principal, for a model."""

    principal: str
    model: str
    priority: int = 0


def push(queue: FairQueue[Entry], principal: str, model: str, priority: int = 0) -> Entry:
    entry = Entry(principal, model, priority)
    queue.push(entry)
    return entry


def queue_of(*waiting: str) -> FairQueue[Entry]:
    """A queue of such entries: `a1` is of principal `a`, for model `1`."""
    queue: FairQueue[Entry] = FairQueue()
    for principal, model in waiting:
        push(queue, principal, model)
    return queue


def serve(queue: FairQueue[Entry], can: Callable[[str], bool] = lambda model: True) -> str:
    """Serves the first that can be served, and says who; empty if nobody can."""
    for entry in queue:
        if can(entry.model):
            queue.remove(entry, served=True)
            return entry.principal + entry.model
    return ""


def served(queue: FairQueue[Entry]) -> list[str]:
    return [serve(queue) for _ in range(len(queue))]


def test_one_principal_is_served_as_it_came() -> None:
    assert served(queue_of("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_the_principals_are_served_in_turn_however_many_wait_of_each() -> None:
    assert served(queue_of("a1", "a2", "a3", "a4", "b1", "c1", "b2")) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_principal_that_comes_back_waits_behind_the_others() -> None:
    queue = queue_of("a1", "b1", "b2")
    assert serve(queue) == "a1"
    push(queue, "a", "2")
    assert served(queue) == ["b1", "a2", "b2"]


def test_who_cannot_be_served_blocks_nobody_and_keeps_its_place() -> None:
    queue = queue_of("a1", "a2", "b2", "b2")
    assert [serve(queue, lambda model: model == "2") for _ in range(2)] == ["a2", "b2"]
    assert served(queue) == ["a1", "b2"]


def test_a_principal_whose_first_entry_cannot_be_served_gets_its_turn_with_the_next() -> None:
    """Another principal that always has somebody waiting would starve it."""
    queue, got = queue_of("b1", "b2", "a2"), []
    for _ in range(3):
        push(queue, "a", "2")
        got.append(serve(queue, lambda model: model == "2"))
    assert got == ["b2", "a2", "a2"]


def test_who_gives_up_costs_its_principal_no_turn() -> None:
    queue = queue_of("a1", "b1")
    first = next(iter(queue))
    second = push(queue, "a", "2")
    queue.remove(first)
    assert queue.position(second) == 0
    assert served(queue) == ["a2", "b1"]


def test_to_remove_twice_is_to_remove_once() -> None:
    queue = queue_of("a1", "a2", "b1")
    first = next(iter(queue))
    queue.remove(first, served=True)
    queue.remove(first, served=True)
    assert len(queue) == 2
    assert served(queue) == ["b1", "a2"], "the second time is nobody's turn"


def test_an_entry_that_is_served_may_be_removed_while_one_looks() -> None:
    queue = queue_of("a1", "b1", "a2")
    for entry in queue:
        queue.remove(entry, served=True)
    assert not len(queue)


def test_it_knows_how_many_wait() -> None:
    queue = queue_of("a1", "b1", "a2")
    assert (len(queue), queue.counts()) == (3, {"a": 2, "b": 1})
    served(queue)
    assert (len(queue), queue.counts(), list(queue)) == (0, {}, [])


def test_lower_priorities_come_first_and_in_each_of_them_the_principals_in_turn() -> None:
    queue: FairQueue[Entry] = FairQueue()
    for name, priority in (("a1", 5), ("b1", 0), ("c1", -2), ("b2", 0), ("d1", 0), ("a2", 5), ("c2", -2)):
        push(queue, name[0], name[1], priority)
    assert served(queue) == ["c1", "c2", "b1", "d1", "b2", "a1", "a2"]


def test_who_comes_back_is_the_first_of_its_priority() -> None:
    queue: FairQueue[Entry] = FairQueue()
    push(queue, "a", "1", 1)
    push(queue, "b", "1", 0)
    queue.push(Entry("c", "1", 1), first=True)
    assert served(queue) == ["b1", "c1", "a1"]


# ── the laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────

WAITING = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12")), max_size=30)
# Who comes (principal, model), or which model has a slot now.
STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12")) | st.sampled_from("12"), max_size=60)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("12"), st.integers(-2, 2)), max_size=30))
def test_a_position_says_when_it_is_its_turn(waiting: list[tuple[str, str, int]]) -> None:
    queue: FairQueue[Entry] = FairQueue()
    entries = [push(queue, *one) for one in waiting]
    positions = {entry: queue.position(entry) for entry in entries}
    order: list[Entry] = []
    while len(queue):
        order.append(first := next(iter(queue)))
        queue.remove(first, served=True)
    assert positions == {entry: place for place, entry in enumerate(order)}
    assert [entry.priority for entry in order] == sorted(entry.priority for entry in entries)


@given(STEPS)
def test_nobody_is_lost_overtaken_or_starved(steps: list[tuple[str, str] | str]) -> None:
    queue: FairQueue[Entry] = FairQueue()
    waiting: list[Entry] = []
    # Who could have been served with a model, and the principals that were, since it came or its principal was last
    # served.
    served_since: dict[tuple[str, str], list[str]] = {}
    for step in steps:
        if isinstance(step, tuple):
            waiting.append(push(queue, *step))
            served_since.setdefault(step, [])
        else:
            first = next((entry for entry in queue if entry.model == step), None)
            able = [entry for entry in waiting if entry.model == step]
            assert (first is None) == (not able), "who can be served is served, whoever waits before it"
            if first is None:
                continue
            assert first is next(entry for entry in able if entry.principal == first.principal), (
                "within a principal: as they came"
            )
            queue.remove(first, served=True)
            waiting.remove(first)
            for (principal, model), others in list(served_since.items()):
                if principal == first.principal:
                    served_since[principal, model] = []
                elif model == step:
                    others.append(first.principal)
            if not any((entry.principal, entry.model) == (first.principal, step) for entry in waiting):
                del served_since[first.principal, step]
        assert len(queue) == len(waiting)
        assert sorted(map(id, queue)) == sorted(map(id, waiting))
        for (principal, model), others in served_since.items():
            assert len(others) == len(set(others)), f"{principal} waits for {model}, and {others} were served before it"


@given(WAITING, st.sampled_from("abcd"))
def test_between_two_turns_of_a_principal_every_other_that_waits_has_one(
    waiting: list[tuple[str, str]], principal: str
) -> None:
    queue: FairQueue[Entry] = FairQueue()
    for one in waiting:
        push(queue, *one)
    can_wait = set(queue.counts())
    since: set[str] = set()
    while len(queue):
        first = next(iter(queue))
        if first.principal == principal and since:
            assert since >= can_wait - {principal}, f"{principal} again, and {can_wait - since} still wait"
        since = {principal} if first.principal == principal else since | {first.principal} if since else since
        queue.remove(first, served=True)
        can_wait = set(queue.counts())
