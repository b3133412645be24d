"""How many retries the fleet can bear: a bucket of tokens, as gRPC and Finagle have it."""

from __future__ import annotations


class RetryBudget:
    """Each request adds `ratio` of a retry, each retry takes one. `RESERVE` are there from the start, for small
    traffic, and never more than `MOST`. Retries are at most `ratio` of the requests, and the reserve: a fleet that
    fails is not asked for twice the work."""

    RESERVE = 10.0
    MOST = 100.0

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._left = self.RESERVE if ratio else 0.0

    def request(self) -> None:
        """A request came."""
        self._left = min(self._left + self._ratio, self.MOST)

    def take(self) -> bool:
        """Whether a retry may be made. It counts as made."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
