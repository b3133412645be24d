"""What a server was seen to refuse, so that the next request is changed before it is sent, and not refused first."""

from __future__ import annotations

from collections import OrderedDict

# As long as this it is believed: a server may be another after an upgrade.
BELIEVED_S = 3600.0
MOST = 256

# A change that every model of a server needs.
EVERY_MODEL = ""


class Learned:
    """The changes that the requests to a server need, by model: at most `MOST`, the ones that were needed longest ago
    go first."""

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, model: str, change: str, now: float) -> None:
        """A request to `model` (or `EVERY_MODEL`) was refused without this change."""
        self._until[model, change] = now + BELIEVED_S
        self._until.move_to_end((model, change))
        if len(self._until) > MOST:
            self._until.popitem(last=False)

    def changes(self, model: str, now: float) -> list[str]:
        """The changes that a request to `model` needs, in the order in which they were learned."""
        for key in [key for key, until in self._until.items() if until <= now]:
            del self._until[key]
        return [change for of, change in self._until if of in (EVERY_MODEL, model)]

    def forget(self) -> None:
        """The server may be another now."""
        self._until.clear()
