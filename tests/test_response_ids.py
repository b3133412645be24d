"""Ids sort by their time, and nobody can guess them."""

import re

from requests.responses import new_id


def test_they_sort_by_the_second_in_which_they_were_made(monkeypatch):
    now = 0x7FFFFF00
    monkeypatch.setattr("requests.responses.time.time", lambda: now)
    made = []
    for _ in range(600):
        now += 0.9  # also past 2038
        made.append((int(now), new_id("resp")))
    assert [second for second, _ in sorted(made, key=lambda one: one[1])] == [second for second, _ in made]


def test_they_are_as_long_as_ever_and_nobody_can_guess_them():
    ids = [new_id("msg") for _ in range(3000)]
    assert all(re.fullmatch("msg_[0-9a-f]{32}", id_) for id_ in ids)
    parts = [int(id_[12:], 16) for id_ in ids]
    assert len(set(parts)) == 3000
    ones = [sum(part >> bit & 1 for part in parts) for bit in range(96)]
    assert all(1200 < count < 1800 for count in ones), "a bit that is hardly random"
