"""The pure half of the router: Responses to chat completions and back, the stream of events, SSE frames.

This is not PyPI's `requests`, and it hides that package for everything started from this folder. For HTTP, use httpx2.
"""

from typing import Never


def __getattr__(name: str) -> Never:
    raise AttributeError(
        f"'requests.{name}': this is nomyo-router's own package `requests`, not PyPI's. Use httpx2 for HTTP, "
        "and depend on nothing that imports PyPI's `requests`."
    )
