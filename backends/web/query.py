"""What is searched for: the same for every provider."""

from __future__ import annotations

from dataclasses import dataclass

from requests.web_search import UserLocation

ANYWHERE = UserLocation()


@dataclass(frozen=True, slots=True)
class Query:
    """A search: its words, how many results are wanted, the domains that they may lie in (all, where there are none)
    and may not, and about where the user is. Subdomains belong to a domain."""

    words: str
    count: int
    allowed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    place: UserLocation = ANYWHERE

    def permits(self, host: str) -> bool:
        """Whether a page of a host may be a result."""
        return permits(host, self.allowed, self.blocked)

    def with_sites(self) -> str:
        """The words with the domains as operators, which most engines know; without those where they are too many."""
        sites = [f"site:{domain}" for domain in self.allowed]
        named = " OR ".join(sites)
        within = f" ({named})" if len(sites) > 1 else f" {named}" if sites else ""
        without = "".join(f" -site:{domain}" for domain in self.blocked)
        operators = "".join(part for part in (within, without) if len(part) < MOST_OPERATORS)
        return self.words[: MOST_WORDS - len(operators)] + operators


# More than this of a page nobody reads.
MOST_TEXT = 200_000
# Engines take queries of some hundred characters.
MOST_WORDS, MOST_OPERATORS = 400, 150


class SearchFailed(Exception):
    """A provider or a page could not be had, for the reason in the message, which holds no credential."""


def permits(host: str, allowed: tuple[str, ...], blocked: tuple[str, ...]) -> bool:
    """Whether a host lies in domains that are `allowed` (any, where there are none), and in none that are `blocked`."""
    return (not allowed or _lies_in(host, allowed)) and not _lies_in(host, blocked)


def _lies_in(host: str, domains: tuple[str, ...]) -> bool:
    host = host.lower().rstrip(".")
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
