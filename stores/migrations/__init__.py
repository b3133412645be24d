"""How databases of earlier versions become today's: numbered steps, forward only, a version kept in the database."""

from __future__ import annotations

from core.errors import StartError


class NewerDatabase(StartError):
    """A database that a later version of the router has made: what it keeps is not understood here."""

    def __init__(self, database: str, its: int, ours: int) -> None:
        super().__init__(
            f"{database} is a database of version {its}, and this router knows versions up to {ours}: "
            "start the newer router, or give another database.url"
        )
