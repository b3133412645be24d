"""The keys that a store has: put all or none, and read since a change."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from core.keys import StoredKey
from db import Store
from tests.stores.databases import shared


def stored(name: str, digest: bytes = b"", **more: object) -> StoredKey:
    key = StoredKey(digest or name.encode().ljust(32, b"\0"), name, f"nk-{name}", b'{"name": "%b"}' % name.encode(), 5)
    return replace(key, **more)


async def test_a_store_begins_without_keys(store: Store) -> None:
    assert await store.list_keys() == []


async def test_what_was_put_comes_back_with_its_change(store: Store) -> None:
    ann, bob = stored("ann", digest=bytes(range(32))), stored("bob", ends_at=7.5, ended_by="revoked")
    assert await store.put_keys([ann], 0)
    assert await store.put_keys([bob], 1)
    assert await store.list_keys() == [replace(ann, change=1), replace(bob, change=2)]
    assert await store.list_keys(1) == [replace(bob, change=2)]
    assert await store.list_keys(2) == []


async def test_a_key_that_is_there_is_changed(store: Store) -> None:
    ann, other = stored("ann"), stored("ann", digest=b"x" * 32)
    assert await store.put_keys([ann, stored("bob")], 0)
    ended = replace(ann, ends_at=9.0, ended_by="replaced")
    assert await store.put_keys([ended, other], 1)
    assert await store.list_keys(1) == sorted(
        [replace(ended, change=2), replace(other, change=2)], key=lambda key: (key.created_at, key.name)
    )
    assert len(await store.list_keys()) == 3


async def test_whoever_has_not_seen_the_last_change_changes_nothing(store: Store) -> None:
    assert await store.put_keys([stored("ann")], 0)
    assert not await store.put_keys([stored("bob")], 0)
    assert not await store.put_keys([stored("bob")], 2)
    assert [key.name for key in await store.list_keys()] == ["ann"]


@shared
async def test_of_two_processes_one_at_a_time_changes_keys(store: Store, other: Store) -> None:
    done = await asyncio.gather(*(one.put_keys([stored(name)], 0) for one, name in ((store, "ann"), (other, "bob"))))
    assert sorted(done) == [False, True]
    assert await store.list_keys() == await other.list_keys()
    assert len(await store.list_keys()) == 1
