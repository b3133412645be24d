"""What this process has counted, and the turns that have ended lately.

a failure, a retry …            telemetry.counts["retries"] += 1
a turn ends ──▶ end(record)     kept as it is: a turn waits for nothing here
                    └─ some turns later, or when somebody asks ──▶ counted, kept in `recent`, given to who listens
figures()                       plain data: those of several processes are added (`added`)
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from core.histograms import OTHER, Histogram, as_key
from core.json import Json
from core.metric_names import HISTOGRAMS
from core.turn_record import TurnRecord

log = logging.getLogger("nomyo")

# So many turns are known one by one.
MOST_RECENT = 500
# So many turns, and writes, may wait to be counted, and so long where somebody listens.
MOST_UNCOUNTED = 100
MOST_WRITES = 1000
SOON_S = 0.2
# So often the event loop is looked at.
LOOK_S = 0.5
# Owners and models beyond these are counted as one: `other`.
MOST_OWNERS = 200
MOST_USED = 2000
# So are ways to end: servers have codes of their own for their errors.
MOST_ENDS = 500

Listener = Callable[[Sequence[TurnRecord]], object]


class Telemetry:
    """The counts of one process, since it started. How requests end at an endpoint is counted with that
    (`Endpoint.outcomes`), and forgotten with it."""

    def __init__(self) -> None:
        # By the names in `metric_names.COUNTED`.
        self.counts: Counter[str] = Counter()
        # Replies by front door and HTTP status.
        self.replies: Counter[tuple[str, int]] = Counter()
        # How long requests have waited for a slot, all together.
        self.waited_s = 0.0
        # What is open now: streams, and WebSockets.
        self.streams = 0
        self.sockets = 0
        # By the names in `metric_names.HISTOGRAMS`.
        self.histograms = {name: Histogram(metric.bounds) for name, metric in HISTOGRAMS.items()}
        # How long batches of writes have taken the store, until they are counted.
        self.writes_s: deque[float] = deque(maxlen=MOST_WRITES)
        self._listeners: list[Listener] = []
        # So many turns wait to be counted without anybody being asked to.
        self._most = MOST_UNCOUNTED
        self._recent: deque[TurnRecord] = deque(maxlen=MOST_RECENT)
        self._uncounted: list[TurnRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        # By model, endpoint, owner, and `input`, `cached`, `output` or `reasoning`.
        self._used: Counter[tuple[str, str, str, str]] = Counter()
        self._owners: set[str] = set()
        # Turns by front door, how they ended, and the code of what they failed with.
        self._turns: Counter[tuple[str, str, str]] = Counter()
        # Calls of tools that the router ran, by the type of their items, and whether they failed.
        self._tools: Counter[tuple[str, str]] = Counter()

    # ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def end(self, record: TurnRecord) -> None:
        """A turn has ended."""
        uncounted = self._uncounted
        uncounted.append(record)
        if len(uncounted) >= self._most:
            self._count_soon()

    def listen(self, listener: Listener) -> None:
        """From now on `listener` is called with the turns that have ended, some at a time, within `SOON_S`."""
        self._listeners.append(listener)
        self._most = 1

    def _count_soon(self) -> None:
        if len(self._uncounted) >= MOST_UNCOUNTED:
            self.count()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self.count)

    def count(self) -> None:
        """Counts the turns that have ended since it was last called, and gives them to those who listen."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        observe = self.histograms["store"].observe
        while self.writes_s:
            observe((), self.writes_s.popleft())
        if not (ended := self._uncounted):
            return
        self._uncounted = []
        self._recent.extend(ended)
        for record in ended:
            self._count(record)
        for listener in list(self._listeners):
            try:
                listener(ended)
            except Exception:
                log.exception("what reads the turns that have ended has failed")

    @property
    def recent(self) -> list[TurnRecord]:
        """The turns that have ended lately, the last one at the end."""
        self.count()
        return list(self._recent)

    @property
    def tokens(self) -> Counter[tuple[str, str]]:
        """Tokens that backends have counted, by model, and `input` or `output`."""
        self.count()
        counted: Counter[tuple[str, str]] = Counter()
        for (model, _, _, kind), count in self._used.items():
            if kind in ("input", "output"):
                counted[model, kind] += count
        return counted

    def _count(self, record: TurnRecord) -> None:
        door = record.door
        if record.status == "completed" and not record.request.door:
            self.replies[door, 200] += 1  # The others are counted as they are replied to.
        ended = (door, record.status, record.error)
        self._turns[ended if ended in self._turns or len(self._turns) < MOST_ENDS else (*ended[:2], OTHER)] += 1
        histograms = self.histograms
        where = (OPERATIONS.get(door, "chat"), record.model, record.endpoint)
        histograms["turn"].observe((door,), record.took_s)
        if record.from_cache:
            self.counts["cache_hits"] += 1
            return
        for one in record.tries:
            histograms["operation"].observe((*where[:2], one.endpoint, one.error), one.ended_s - one.asked_s)
        if record.tries:
            histograms["wait"].observe(where[2:], record.waited_s)
        if (first_output_s := record.first_output_s) is not None:
            histograms["first_output"].observe(where, first_output_s)
            if (output_token_s := record.output_token_s) is not None:
                histograms["output_token"].observe(where, output_token_s)
        if not record.is_estimated and (record.tokens.input or record.tokens.output):
            histograms["usage"].observe((*where, "input"), record.tokens.input)
            histograms["usage"].observe((*where, "output"), record.tokens.output)
            self._count_tokens(record)
        if record.has_failed_over:
            self.counts["failovers"] += 1
        for tool in record.tools:
            self._tools[tool.kind, "failed" if tool.has_failed else "completed"] += 1

    def _count_tokens(self, record: TurnRecord) -> None:
        owner = record.principal.owner
        if owner not in self._owners:
            if len(self._owners) < MOST_OWNERS:
                self._owners.add(owner)
            else:
                owner = OTHER
        used, model, endpoint = self._used, record.model, record.endpoint
        if len(used) >= MOST_USED and (model, endpoint, owner, "input") not in used:
            model = endpoint = owner = OTHER
        used[model, endpoint, owner, "input"] += record.tokens.input
        used[model, endpoint, owner, "output"] += record.tokens.output
        if record.tokens.cached:
            used[model, endpoint, owner, "cached"] += record.tokens.cached
        if record.tokens.reasoning:
            used[model, endpoint, owner, "reasoning"] += record.tokens.reasoning

    async def watch_loop(self) -> None:
        """Counts, for ever, how much later than it asked for it comes round in the event loop."""
        observe, loop = self.histograms["loop_lag"].observe, asyncio.get_running_loop()
        while True:
            asked_s = loop.time() + LOOK_S
            await asyncio.sleep(LOOK_S)
            observe((), max(loop.time() - asked_s, 0.0))

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def figures(self) -> Json:
        """All of it, as plain data."""
        self.count()
        return {
            "counts": dict(self.counts),
            "replies": {as_key((door, str(status))): count for (door, status), count in self.replies.items()},
            "turns": {as_key(labels): count for labels, count in self._turns.items()},
            "used": {as_key(labels): count for labels, count in self._used.items()},
            "tools": {as_key(labels): count for labels, count in self._tools.items()},
            "histograms": {name: histogram.figures() for name, histogram in self.histograms.items()},
            "processes": 1,
            "waited_s": self.waited_s,
            "streams": self.streams,
            "sockets": self.sockets,
        }


# What a front door does, by OpenTelemetry's names; the others' turns are chats.
OPERATIONS = {
    "completions": "text_completion",
    "ollama.generate": "text_completion",
    "embeddings": "embeddings",
    "ollama.embed": "embeddings",
    "rerank": "rerank",
}


def added(first: object, second: Any) -> Any:
    """The figures of two processes as one: numbers and lists are added, key by key."""
    if isinstance(first, dict):
        both = first.keys() & second.keys()
        return {**first, **second, **{key: added(first[key], second[key]) for key in both}}
    return first + second
