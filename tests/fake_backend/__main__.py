"""The fake backend by itself: `python -m tests.fake_backend 8001`."""

import asyncio
import sys

from tests.fake_backend import FakeBackend


async def serve(port: int) -> None:
    backend = FakeBackend()
    await backend.start(port)
    print(f"the fake backend listens on {backend.url}")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8001))
