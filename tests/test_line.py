"""The line of those who wait for a slot, on a clock of the test's own: no sleeps, no sockets."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fleet.line import PRIORITY_S, Effects, Line, Place, Rejection
from cluster.alone import OwnLine

GIVE_WAY_S = 0.002


@dataclass(eq=False)
class Wish:
    """What somebody waits for, and what it got."""

    name: str
    model: str = "m"
    got: str | Rejection | None = None
    is_leaving: bool = False
    place: Place[Wish] | None = None


@dataclass
class World(Effects[Wish, str]):
    """The slots that are free, by model, and all that the line did."""

    free: Counter[str] = field(default_factory=Counter)
    served: list[str] = field(default_factory=list)
    rejected: list[tuple[str, Rejection]] = field(default_factory=list)
    tried: int = 0

    def waits(self, wish: Wish) -> bool:
        return not wish.is_leaving

    def take(self, wish: Wish) -> str | None:
        self.tried += 1
        if not self.free[wish.model]:
            return None
        self.free[wish.model] -= 1
        return wish.model

    def hand(self, wish: Wish, slot: str) -> None:
        assert wish.got is None, f"{wish.name} has got {wish.got} already"
        wish.got = slot
        self.served.append(wish.name)

    def reject(self, wish: Wish, why: Rejection) -> None:
        assert wish.got is None, f"{wish.name} has got {wish.got} already"
        wish.got = why
        self.rejected.append((wish.name, why))


class Between(OwnLine):
    """A line among the lines of several processes: what it announces all see, and `wakes` are the wake-ups that are on
    their way."""

    give_way_s = GIVE_WAY_S

    def __init__(self, all_: dict[int, tuple[int, float]], number: int = 0) -> None:
        self.all = all_
        self.number = number
        self.wakes = 0

    def announce(self, waiting: int, since_s: float) -> None:
        self.all[self.number] = (waiting, since_s)

    def elsewhere(self) -> int:
        return sum(waiting for number, (waiting, _) in self.all.items() if number != self.number)

    def is_first(self) -> bool:
        since = {number: since for number, (waiting, since) in self.all.items() if waiting}
        return not since or min(since, key=since.__getitem__) == self.number

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def line(world: World) -> Line[Wish, str]:
    """Of a process that is alone."""
    return Line(world, OwnLine(), most=5, timeout_s=10)


@pytest.fixture
def others() -> Between:
    """The lines of the other processes, in which nobody waits yet."""
    return Between({})


@pytest.fixture
def shared(world: World, others: Between) -> Line[Wish, str]:
    """Of a process that is one of several."""
    return Line(world, others, most=5, timeout_s=10)


def arrive(line: Line[Wish, str], name: str, model: str = "m", at: float = 0.0) -> Wish:
    """`name` begins with that of the principal."""
    wish = Wish(name, model)
    wish.place = line.arrive(name[0], wish, model, at)
    return wish


class TestAlone:
    def test_a_slot_that_is_given_back_goes_to_the_first_of_the_principal_whose_turn_it_is(
        self, line: Line[Wish, str], world: World
    ) -> None:
        for name in ("a1", "a2", "b1", "a3"):
            arrive(line, name)
        for _ in range(4):
            world.free["m"] += 1
            line.given_back(1.0)
        assert world.served == ["a1", "b1", "a2", "a3"]
        assert len(line) == 0

    def test_who_comes_in_need_not_join_for_a_slot_that_nobody_wants(self, line: Line[Wish, str]) -> None:
        assert not line.must_be_joined
        arrive(line, "a", "other")
        assert not line.must_be_joined, "who waits waits for something else: each free slot was offered to him"

    def test_several_slots_go_to_several(self, line: Line[Wish, str], world: World) -> None:
        for name, model in (("a1", "m"), ("b1", "other"), ("c1", "m")):
            arrive(line, name, model)
        world.free += Counter(m=2, other=1)
        line.changed()
        assert world.served == ["a1", "b1", "c1"]

    def test_where_one_cannot_be_served_none_that_is_alike_is_tried(self, line: Line[Wish, str], world: World) -> None:
        for number in range(4):
            arrive(line, f"a{number}")
        line.given_back(1.0)
        assert world.tried == 1
        arrive(line, "b1", "other")
        world.free["other"] = 1
        line.given_back(1.0)
        assert (world.served, world.tried) == (["b1"], 4), "one of each kind, and one more behind what was served"

    def test_who_is_alike_to_nobody_is_tried_himself_and_blocks_nobody(
        self, line: Line[Wish, str], world: World
    ) -> None:
        line.arrive("a", Wish("a1", "elsewhere"), None, 0.0)
        line.arrive("a", Wish("a2"), None, 0.0)
        world.free["m"] = 1
        line.given_back(1.0)
        assert world.served == ["a2"]

    def test_who_comes_to_a_full_line_is_rejected_at_once(self, line: Line[Wish, str], world: World) -> None:
        for number in range(6):
            arrive(line, f"a{number}")
        assert world.rejected == [("a5", Rejection.FULL)]
        assert len(line) == 5

    def test_who_has_waited_too_long_is_rejected_then_and_not_before(self, line: Line[Wish, str], world: World) -> None:
        assert line.due == math.inf
        arrive(line, "a1", at=1.0)
        arrive(line, "b1", at=3.0)
        assert line.due == 11.0
        line.time_passes(10.9)
        assert world.rejected == []
        line.time_passes(11.0)
        assert (world.rejected, line.due) == ([("a1", Rejection.TIMEOUT)], 13.0)
        line.time_passes(20.0)
        assert (len(world.rejected), line.due, len(line)) == (2, math.inf, 0)

    def test_another_timeout_holds_for_those_who_come_from_now_on(self, line: Line[Wish, str], world: World) -> None:
        arrive(line, "a1", at=0.0)
        line.timeout_s = 1.0
        arrive(line, "b1", at=2.0)
        assert line.due == 3.0
        line.time_passes(5.0)
        assert world.rejected == [("b1", Rejection.TIMEOUT)]
        assert line.due == 10.0

    def test_who_leaves_gets_nothing_and_is_not_rejected(self, line: Line[Wish, str], world: World) -> None:
        first, second = arrive(line, "a1"), arrive(line, "a2")
        line.leave(first.place)
        world.free["m"] = 1
        line.given_back(1.0)
        line.time_passes(100.0)
        assert (world.served, world.rejected, first.got) == (["a2"], [], None)
        line.leave(second.place)  # as everybody does, also who was served
        assert len(line) == 0

    def test_who_is_about_to_leave_gets_no_slot_and_blocks_nobody(self, line: Line[Wish, str], world: World) -> None:
        arrive(line, "a1").is_leaving = True
        arrive(line, "a2")
        world.free["m"] = 1
        line.given_back(1.0)
        assert world.served == ["a2"]

    def test_who_comes_back_is_the_first_again_and_has_waited_all_along(
        self, line: Line[Wish, str], world: World
    ) -> None:
        first = arrive(line, "a1", at=1.0)
        for name in ("b1", "a2", "b2", "c1", "c2"):
            arrive(line, name, at=2.0)
        world.free["m"] = 1
        line.given_back(3.0)
        assert (world.served, len(line)) == (["a1"], 4)
        arrive(line, "d1", at=3.0)
        first.got = None
        line.come_back(first.place, 4.0)
        assert len(line) == 6, "a line that is full now does not reject who was in it before"
        assert line.due == 11.0
        world.free["m"] = 6
        line.changed()
        assert world.served == ["a1", "a1", "b1", "c1", "d1", "a2", "b2"]

    def test_what_waits_is_shown_in_its_order(self, line: Line[Wish, str]) -> None:
        for name in ("a1", "a2", "b1"):
            arrive(line, name)
        assert [place.wish.name for place in line] == ["a1", "a2", "b1"]
        assert [line.position(place) for place in line] == [0, 2, 1]
        assert line.counts() == {"a": 2, "b": 1}


class TestAmongOthers:
    def test_a_slot_is_left_to_whoever_has_waited_longer_elsewhere_for_a_moment(
        self, shared: Line[Wish, str], world: World, others: Between
    ) -> None:
        others.all[1] = (1, 1.0)
        arrive(shared, "a1", at=2.0)
        shared.time_passes(2.0 + GIVE_WAY_S)
        world.free["m"] = 1
        shared.given_back(3.0)
        assert (world.served, others.wakes, shared.due) == ([], 1, 3.0 + GIVE_WAY_S)
        shared.time_passes(3.0 + GIVE_WAY_S)
        assert world.served == ["a1"], "he waits for something else"
        assert shared.due == math.inf

    def test_whoever_has_waited_longest_gets_it_at_once(
        self, shared: Line[Wish, str], world: World, others: Between
    ) -> None:
        arrive(shared, "a1", at=1.0)
        others.all[1] = (1, 2.0)
        world.free["m"] = 1
        shared.woken(3.0)
        assert (world.served, others.wakes) == (["a1"], 1), "there may be another slot, for the next one elsewhere"
        shared.woken(3.0)
        assert others.wakes == 1, "there was none"

    def test_a_lower_priority_goes_before_whoever_has_waited_longer_here_or_elsewhere(
        self, shared: Line[Wish, str], world: World, others: Between
    ) -> None:
        for name, at, priority in (("a1", 1.0, 1), ("b1", 2.0, 0), ("c1", 3.0, -1)):
            wish = Wish(name, "m")
            wish.place = shared.arrive(name[0], wish, "m", at, priority)
        others.all[1] = (1, 0.5)
        world.free["m"] = 1
        shared.given_back(4.0)
        assert world.served == ["c1"], "none elsewhere has its priority"
        world.free["m"] = 1
        shared.given_back(4.0)
        assert world.served == ["c1"], "of the same priority one elsewhere has waited longer"
        others.all[1] = (1, 0.5 + PRIORITY_S)
        shared.given_back(4.0)
        assert world.served == ["c1", "b1"]

    def test_who_comes_in_joins_those_who_wait_anywhere(self, shared: Line[Wish, str], others: Between) -> None:
        assert not shared.must_be_joined
        others.all[1] = (1, 1.0)
        assert shared.must_be_joined
        del others.all[1]
        arrive(shared, "a1")
        assert shared.must_be_joined

    def test_a_slot_that_came_free_before_he_was_seen_to_wait_is_his(
        self, shared: Line[Wish, str], world: World
    ) -> None:
        world.free["m"] = 1
        assert arrive(shared, "a1").got == "m"

    def test_what_those_who_wait_leave_over_goes_to_one_for_whom_there_was_no_place(
        self, shared: Line[Wish, str], world: World, others: Between
    ) -> None:
        others.all[1] = (5, 1.0)
        lucky, unlucky = arrive(shared, "a1", at=2.0), arrive(shared, "b1", at=2.0)
        world.free["m"] = 1
        assert (lucky.got, len(shared), shared.due) == (None, 0, 2.0 + GIVE_WAY_S)
        shared.time_passes(2.0 + GIVE_WAY_S)
        assert (lucky.got, unlucky.got) == ("m", Rejection.FULL)
        gone = arrive(shared, "c1", at=3.0)
        shared.leave(gone.place)
        assert (shared.due, gone.got) == (math.inf, None)

    def test_what_waits_here_is_announced(self, shared: Line[Wish, str], world: World, others: Between) -> None:
        first = arrive(shared, "a1", at=1.0)
        arrive(shared, "b1", at=2.0)
        assert others.all[0] == (2, 1.0)
        shared.leave(first.place)
        assert others.all[0] == (1, 2.0)
        shared.time_passes(12.0)
        assert others.all[0] == (0, 0.0)
        arrive(shared, "c1", at=13.0)
        world.free["m"] = 1
        shared.given_back(14.0)
        assert others.all[0] == (0, 0.0)


# ── the laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Processes:
    """Several lines that share slots, driven as pools drive them; wake-ups arrive when the time is moved on."""

    def __init__(self, count: int, slots: dict[str, int]) -> None:
        self.now = 1.0
        self.slots = slots
        self.world = Ordered(self, Counter(slots))
        announced: dict[int, tuple[int, float]] = {}
        self.between = [Between(announced, number) for number in range(count)] if count > 1 else [OwnLine()]
        self.lines = [Line(self.world, between, most=4, timeout_s=0.05) for between in self.between]
        self.wishes: list[tuple[int, Wish]] = []
        self.left: set[str] = set()
        self.ended: set[str] = set()

    def come(self, number: int, principal: str, model: str) -> None:
        line, wish = self.lines[number], Wish(f"{principal}{len(self.wishes)}", model)
        self.wishes.append((number, wish))
        slot = None if line.must_be_joined else self.world.take(wish)
        if slot is not None:
            wish.got = slot
        else:
            wish.place = line.arrive(principal, wish, model, self.now)

    def waiting(self, number: int | None = None) -> list[Wish]:
        return [w for at, w in self.wishes if w.got is None and w.name not in self.left and number in (None, at)]

    def running(self) -> list[tuple[int, Wish]]:
        return [(at, wish) for at, wish in self.wishes if isinstance(wish.got, str) and wish.name not in self.ended]

    def end(self, pick: int) -> None:
        """A request that runs ends."""
        if running := self.running():
            number, wish = running[pick % len(running)]
            self.ended.add(wish.name)
            self.world.free[wish.model] += 1
            self.lines[number].given_back(self.now)

    def leave(self, pick: int) -> None:
        """Somebody who waits leaves."""
        if waiting := self.waiting():
            wish = waiting[pick % len(waiting)]
            self.left.add(wish.name)
            number = next(at for at, other in self.wishes if other is wish)
            self.lines[number].leave(wish.place)

    def pass_time(self, seconds: float) -> None:
        """Wake-ups arrive, and each line gets its time when it is due."""
        until = self.now + seconds
        while True:
            woken = [between for between in self.between if isinstance(between, Between) and between.wakes]
            for between in woken:
                between.wakes = 0
                for other in self.between:
                    if other is not between and other.all.get(other.number, (0, 0.0))[0]:
                        self.lines[other.number].woken(self.now)
            if woken:
                continue
            line = min(self.lines, key=lambda line: line.due)
            if line.due > until:
                break
            assert line.due >= self.now, "it was due before"
            self.now = line.due
            line.time_passes(self.now)
            assert line.due > self.now, "it never rests"
        self.now = until

    def check(self) -> None:
        used = Counter(wish.model for _, wish in self.running())
        for model, slots in self.slots.items():
            assert used[model] + self.world.free[model] == slots, "a slot was lost, or made"
        for number, line in enumerate(self.lines):
            in_line = [wish for wish in self.waiting(number) if wish.place and not wish.place.is_over]
            assert len(line) == len(in_line)
            assert sorted(map(id, (place.wish for place in line))) == sorted(map(id, in_line))
        assert sum(map(len, self.lines)) <= 4, "more wait than may"


@dataclass
class Ordered(World):
    """It knows who waits, and in which order he came."""

    def __init__(self, processes: Processes, free: Counter[str]) -> None:
        super().__init__(free)
        self._processes = processes

    def hand(self, wish: Wish, slot: str) -> None:
        number = next(at for at, other in self._processes.wishes if other is wish)
        alike = [w for w in self._processes.waiting(number) if (w.name[0], w.model) == (wish.name[0], wish.model)]
        in_line = [w for w in alike if w.place and not w.place.is_over and w is not wish]
        if wish.place and not wish.place.is_over:
            assert all(w.place.since >= wish.place.since for w in in_line), "a principal's own are served as they came"
        super().hand(wish, slot)


STEPS = st.lists(
    st.tuples(st.just("come"), st.integers(0, 2), st.sampled_from("abc"), st.sampled_from("mn"))
    | st.tuples(st.sampled_from(("end", "leave")), st.integers(0, 20))
    | st.tuples(st.just("pass_time"), st.sampled_from((0.0, 0.0004, 0.003, 0.03))),
    max_size=60,
)


@given(st.integers(1, 3), STEPS)
def test_no_slot_is_lost_or_given_twice_and_nobody_waits_for_one_that_is_free(
    count: int, steps: list[tuple[str, ...]]
) -> None:
    processes = Processes(count, {"m": 2, "n": 1})
    for name, *values in steps:
        if name == "come":
            values[0] %= count
        getattr(processes, name)(*values)
        processes.check()
        if count == 1:
            for wish in processes.waiting():
                assert not processes.world.free[wish.model], "alone, a free slot is never left to anybody"
    # Once all wake-ups have come and everybody has given way, whoever waits waits for something that is taken.
    processes.pass_time(3 * GIVE_WAY_S)
    processes.check()
    for wish in processes.waiting():
        assert not processes.world.free[wish.model], f"{wish.name} waits, and a slot is free"
    # In the end everybody has had his answer.
    processes.pass_time(0.1)
    assert processes.waiting() == []
    assert {line.due for line in processes.lines} == {math.inf}


def test_the_steps_go_every_way() -> None:
    """Otherwise the law above says little."""
    dice, ways = random.Random(3), Counter[str]()
    for _ in range(200):
        processes = Processes(dice.randrange(1, 4), {"m": 2, "n": 1})
        for _ in range(60):
            match dice.randrange(5):
                case 0 | 1:
                    processes.come(dice.randrange(len(processes.lines)), dice.choice("abc"), dice.choice("mn"))
                case 2:
                    processes.end(dice.randrange(20))
                case 3:
                    processes.leave(dice.randrange(20)) if dice.random() < 0.3 else processes.end(dice.randrange(20))
                case 4:
                    processes.pass_time(dice.choice((0.0, 0.0004, 0.003, 0.03)))
            processes.check()
        ways += Counter(str(wish.got) for _, wish in processes.wishes)
        ways["left"] += len(processes.left)
        ways["over"] += sum(bool(wish.place and wish.place.is_over and wish.got == "m") for _, wish in processes.wishes)
        ways["served"] += len(processes.world.served)
    assert all(ways[way] > 20 for way in ("m", "n", "left", "over", "served", *map(str, Rejection))), ways
