"""Answers of backends that are streams, once their heads are there: `Relay` passes them on (relay.py)."""

from __future__ import annotations

from collections.abc import Mapping

from backends.wire.errors import ANY_SERVER, ServerErrors, raise_named
from backends.wire.http1 import Answer


class Stream:
    """A stream of events. `errors` names those that are in it, `begins` is what was read of it already."""

    def __init__(self, answer: Answer, errors: ServerErrors = ANY_SERVER, begins: bytes = b"") -> None:
        self.answer = answer
        self.errors = errors
        self.begins = begins

    @property
    def content_type(self) -> str:
        """What it is, by its head."""
        return self.answer.headers.get("content-type", "application/json")

    async def read(self) -> bytes:
        """All of it. Raises a `BackendError`."""
        try:
            return await self.answer.read()
        except Exception as error:
            raise_named(error, begun=self.answer.has_body)
        finally:
            self.answer.close()

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the answer, by their names in lower case."""
        return self.answer.headers
