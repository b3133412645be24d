"""A router with keys, one a name, and clients that have them. The admin's is what its own clients send."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend

ADMIN = "nk-admin"


def secret_of(name: str) -> str:
    """The key of a name."""
    return f"nk-{name}-secret"


def key(name: str, **settings: Any) -> dict[str, Any]:
    """A row of `keys`."""
    return {"name": name, "key": secret_of(name), **settings}


def keyed_router(
    backend: FakeBackend, *keys: str | dict[str, Any], **settings: Any
) -> AbstractAsyncContextManager[Running]:
    """A router in front of `backend` with these keys, and `api_key`, which its clients send."""
    settings.setdefault("endpoints", [{"url": f"{backend.url}/v1", "kind": "openai-chat"}])
    rows = [key(one) if isinstance(one, str) else one for one in keys]
    return running_router(api_key=ADMIN, keys=rows, **settings)


def as_key(running: Running, name: str) -> httpx2.AsyncClient:
    """A client with the key of a name."""
    return with_secret(running, secret_of(name))


def with_secret(running: Running, secret: str) -> httpx2.AsyncClient:
    """A client with some key."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=None, verify=False)
