"""What one owner has stored or is running is nothing that another can read, go on from, follow, cancel or delete."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Running
from tests.fake_backend import FakeBackend, chat, stall
from tests.keyed import as_key, keyed_router
from tests.turns import URL, Json, assert_error, create, eventually, retrieve, turn


@pytest.fixture
async def owners(backend: FakeBackend) -> AsyncIterator[Running]:
    async with keyed_router(backend, "alice", "bob") as running:
        yield running


def requests_for(response: Json) -> list[tuple[str, str]]:
    path = f"{URL}/{response['id']}"
    return [
        ("GET", path),
        ("GET", f"{path}?stream=true"),
        ("GET", f"{path}/input_items"),
        ("POST", f"{path}/cancel"),
        ("DELETE", path),
    ]


async def test_a_stored_response_is_its_owners(owners: Running) -> None:
    async with as_key(owners, "alice") as alice, as_key(owners, "bob") as bob:
        response = await create(alice, input=[{"role": "user", "content": "Hi", "id": "msg_mine"}])
        for stranger in (bob, owners.http):
            for method, path in requests_for(response):
                assert_error(await stranger.request(method, path), 404)
            after = await stranger.post(URL, json=turn(previous_response_id=response["id"]))
            assert_error(after, 400, param="previous_response_id", code="previous_response_not_found")
            for item_id in ("msg_mine", response["output"][0]["id"]):
                reference = turn(input=[{"type": "item_reference", "id": item_id}])
                assert_error(await stranger.post(URL, json=reference), 400, says=f"'{item_id}' not found")
        assert await retrieve(alice, response["id"]) == response
        await create(alice, previous_response_id=response["id"])
        assert (await alice.delete(f"{URL}/{response['id']}")).status_code == 200


async def test_what_others_may_not_have_reads_as_what_never_was(owners: Running) -> None:
    async with as_key(owners, "alice") as alice, as_key(owners, "bob") as bob:
        response = await create(alice)
        for method, path in requests_for(response):
            anothers = await bob.request(method, path)
            unknown = await bob.request(method, path.replace(response["id"], "resp_none"))
            assert anothers.text.replace(response["id"], "resp_none") == unknown.text


async def test_a_background_response_is_its_owners_while_it_runs(owners: Running, backend: FakeBackend) -> None:
    backend.script(chat("Half", then=stall()))
    async with as_key(owners, "alice") as alice, as_key(owners, "bob") as bob:
        response = await create(alice, background=True)
        await backend.wait_for(lambda b: b.in_flight == 1)
        for method, path in requests_for(response):
            assert_error(await bob.request(method, path), 404)
        assert (await retrieve(alice, response["id"]))["status"] == "in_progress"
        assert backend.aborts == 0
        assert (await alice.post(f"{URL}/{response['id']}/cancel")).json()["status"] == "cancelled"
        await eventually(lambda: owners.in_flight() == 0, "the slot is free")
