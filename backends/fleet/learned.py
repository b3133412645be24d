"""What a server was seen to refuse, so that the next request is changed before it is sent, and not refused first."""

from __future__ import annotations

from collections.abc import Iterable

# As long as this it is believed: a server may be another after an upgrade.
BELIEVED_S = 3600.0
MOST_MODELS = 256
MOST_SEALS = 4096

# A change that every model of a server needs.
EVERY_MODEL = ""


class Learned:
    """The changes that the requests to a server need, by model: of at most `MOST_MODELS`, and the one of which nothing
    was learned for longest goes first. So it is with `MOST_SEALS` texts that others have sealed and it cannot open."""

    def __init__(self) -> None:
        # For each model its changes, and until when they are believed.
        self._until: dict[str, dict[str, float]] = {}
        # Of each seal, which may be long, its hash.
        self._seals_until: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._until or self._seals_until)

    def add(self, model: str, change: str, now: float) -> None:
        """A request to `model` (or `EVERY_MODEL`) was refused without this change."""
        known = self._until.pop(model, {})
        known[change] = now + BELIEVED_S
        self._until[model] = known
        if len(self._until) > MOST_MODELS:
            del self._until[next(iter(self._until))]

    def changes(self, model: str, now: float) -> list[str]:
        """The changes that a request to `model` needs, in the order in which they were learned, then those of all
        models."""
        return [change for of in (model, EVERY_MODEL) if of in self._until for change in self._believed(of, now)]

    def add_seals(self, seals: Iterable[str], now: float) -> None:
        """The server could not open one of these."""
        for seal in map(hash, seals):
            self._seals_until.pop(seal, None)
            self._seals_until[seal] = now + BELIEVED_S
        while len(self._seals_until) > MOST_SEALS:
            del self._seals_until[next(iter(self._seals_until))]

    def refused_seals(self, seals: Iterable[str], now: float) -> set[str]:
        """Those of the seals that the server could not open."""
        until = self._seals_until
        return {seal for seal in seals if until.get(hash(seal), now) > now} if until else set()

    def _believed(self, model: str, now: float) -> list[str]:
        known = self._until[model]
        for change in [change for change, until in known.items() if until <= now]:
            del known[change]
        if not known:
            del self._until[model]
        return list(known)

    def forget(self) -> None:
        """The server may be another now."""
        self._until.clear()
        self._seals_until.clear()
