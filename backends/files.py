"""Files by URL, fetched for backends that take none: what lies there is given as if the client had sent it
(`file_data`)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping

from backends.fetching import Fetched, Fetcher, fetch_in_order
from core.errors import InvalidRequest

TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*")


class FileFetcher(Fetcher):
    """Fetches files, within the limits of a `Fetcher`."""

    async def fetch_all(self, wanted: Mapping[str, str]) -> dict[str, str | None]:
        """Each file as a data URL, by its URL; `wanted` has the place of each in the request, oldest first. None for
        one of an earlier turn that is one too many, or is there no more. Raises `InvalidRequest` for one of this turn,
        before anything is fetched where they are too many."""
        new = [url for url, place in wanted.items() if place != EARLIER]
        if len(new) > self.max_count:
            raise _invalid(
                f"a request may have {self.max_count} by URL, and this one has {len(new)}", wanted[new[self.max_count]]
            )
        earlier = [url for url, place in wanted.items() if place == EARLIER]
        found = await fetch_in_order(
            [*new, *reversed(earlier)][: self.max_count],
            self.get,
            lambda found: _size(found) > self.max_total_bytes,
        )
        files: dict[str, str | None] = dict.fromkeys(wanted)
        room = self.max_total_bytes
        for url, fetched in found.items():
            why = fetched if isinstance(fetched, str) else ""
            if isinstance(fetched, Fetched):
                room -= len(fetched.content)
                if room >= 0:
                    files[url] = _data_url(fetched)
                    continue
                why = f"the files of a request may have {self.max_total_bytes / 1024 / 1024:g} MB together"
            if wanted[url] != EARLIER:
                raise _invalid(why, wanted[url])
        for url in new:
            if url not in found:
                raise _invalid("all together they are too large", wanted[url])
        return files


# The place of what an earlier turn brought.
EARLIER = "previous_response_id"


def _size(found: Mapping[str, Fetched | str]) -> int:
    return sum(len(fetched.content) for fetched in found.values() if isinstance(fetched, Fetched))


def _data_url(fetched: Fetched) -> str:
    content_type = fetched.content_type.partition(";")[0].strip().lower()
    if fetched.content.startswith(b"%PDF-"):
        content_type = "application/pdf"
    elif not TYPE.fullmatch(content_type):
        content_type = "application/octet-stream"
    return f"data:{content_type};base64,{base64.b64encode(fetched.content).decode()}"


def _invalid(why: str, place: str) -> InvalidRequest:
    return InvalidRequest(f"The file cannot be used: {why}.", param=place, code="invalid_file_url")
