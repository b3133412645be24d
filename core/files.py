"""How many files and sockets this process may have open."""

from __future__ import annotations

import sys

if sys.platform == "win32":

    def file_limit() -> int:
        """As many as there are handles."""
        return 2**24

    def raise_file_limit() -> None:
        """There is nothing to raise."""

else:
    import resource

    # What "without a limit" counts as.
    MOST = 2**20

    def file_limit() -> int:
        """The limit that the system holds this process to."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return MOST if soft == resource.RLIM_INFINITY else soft

    def raise_file_limit() -> None:
        """Raises the limit as far as the system lets anybody: a router has two sockets for each request that
        runs."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
