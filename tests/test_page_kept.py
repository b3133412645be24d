"""What the live page shows of what is kept: that it is there, of all owners; and what is in it, where that is
allowed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Running
from tests.fake_backend import FakeBackend, chat, say, stall
from tests.keyed import as_key, key, keyed_router
from tests.turns import assert_error, create, ended, turn

RESPONSES, CONVERSATIONS, BACKGROUND = (f"/api/page/{name}" for name in ("responses", "conversations", "background"))


async def listed(running: Running, path: str, **params: Any) -> list[dict[str, Any]]:
    answer = await running.http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


class TestResponses:
    async def test_are_listed_of_all_owners_in_pages(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, "ann") as running, as_key(running, "ann") as ann:
            mine = await create(running.http, input="mine")
            hers = [(await create(ann, input=f"hers {n}"))["id"] for n in range(2)]
            rows = await listed(running, RESPONSES)
            assert [(row["id"], row["owner"]) for row in rows] == [(hers[1], "ann"), (hers[0], "ann"), (mine["id"], "")]
            answer = (await running.http.get(RESPONSES, params={"limit": 1})).json()
            assert (answer["data"], answer["has_more"]) == (rows[:1], True)
            answer = (await running.http.get(RESPONSES, params={"before": rows[0]["number"]})).json()
            assert (answer["data"], answer["has_more"]) == (rows[1:], False)
            assert "hers" not in (await running.http.get(RESPONSES)).text

    @pytest.mark.parametrize("allowed", [False, True])
    async def test_of_others_show_what_is_in_them_where_that_is_allowed(
        self, allowed: bool, backend: FakeBackend
    ) -> None:
        backend.script(say("a secret answer"))
        page = {"content": allowed}
        async with keyed_router(backend, "ann", page=page) as running, as_key(running, "ann") as ann:
            hers = await create(ann, input="a secret question")
            answer = await running.http.get(f"{RESPONSES}/{hers['id']}", params={"owner": "ann"})
            found = answer.json()
            assert (found["owner"], found["status"], found["usage"]) == ("ann", "completed", hers["usage"])
            if allowed:
                assert found["content"]["input"][0]["content"] == [{"type": "input_text", "text": "a secret question"}]
                assert found["content"]["output"][0]["content"][0]["text"] == "a secret answer"
            else:
                assert "secret" not in answer.text
                assert "page: {content: true}" in found["why"]

    async def test_of_ones_own_show_what_is_in_them(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, key("boss", admin=True, owner="team")) as running:
            async with as_key(running, "boss") as boss:
                mine = await create(boss, input="a question")
                answer = await boss.get(f"{RESPONSES}/{mine['id']}", params={"owner": "team"})
                assert answer.json()["content"]["input"][0]["content"] == [{"type": "input_text", "text": "a question"}]
                # To another admin they are another's.
                answer = await running.http.get(f"{RESPONSES}/{mine['id']}", params={"owner": "team"})
                assert "question" not in answer.text
            assert_error(await running.http.get(f"{RESPONSES}/{mine['id']}"), 404, param="response_id")

    async def test_are_for_admins(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, "ann") as running, as_key(running, "ann") as ann:
            for path in (RESPONSES, CONVERSATIONS, BACKGROUND, f"{RESPONSES}/x", f"{CONVERSATIONS}/x"):
                assert_error(await ann.get(path), 403, code="insufficient_permissions")
            assert_error(await ann.post(f"{RESPONSES}/x/cancel"), 403, code="insufficient_permissions")

    @pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"before": -1}, {"before": "x"}])
    async def test_name_a_parameter_that_is_wrong(self, params: dict[str, Any], served: Running) -> None:
        for path in (RESPONSES, CONVERSATIONS):
            assert_error(await served.http.get(path, params=params), 400, param=next(iter(params)))


class TestConversations:
    @pytest.mark.parametrize("allowed", [False, True])
    async def test_of_others_show_what_is_in_them_where_that_is_allowed(
        self, allowed: bool, backend: FakeBackend
    ) -> None:
        page = {"content": allowed}
        async with keyed_router(backend, "ann", page=page) as running, as_key(running, "ann") as ann:
            items = [{"role": "user", "content": "a secret"}]
            made = (await ann.post("/v1/conversations", json={"items": items, "metadata": {"topic": "secret"}})).json()
            ((row),) = await listed(running, CONVERSATIONS)
            assert (row["id"], row["owner"], row["items"]) == (made["id"], "ann", 1)
            answer = await running.http.get(f"{CONVERSATIONS}/{made['id']}", params={"owner": "ann"})
            assert ("secret" in answer.text) == allowed
            assert answer.json()["owner"] == "ann"
            assert_error(await running.http.get(f"{CONVERSATIONS}/{made['id']}"), 404, param="conversation_id")


class TestBackground:
    async def test_turns_of_all_owners_are_listed_and_cancelled(self, backend: FakeBackend) -> None:
        backend.script(chat("Hel", then=stall()))
        background = {"max_concurrent": 1, "drain_s": 0.2}
        async with keyed_router(backend, "ann", background=background) as running, as_key(running, "ann") as ann:
            runs = (await ann.post("/v1/responses", json=turn(background=True))).json()
            await backend.wait_for(lambda b: b.turns)
            waits = (await running.http.post("/v1/responses", json=turn(background=True))).json()
            rows = await listed(running, BACKGROUND)
            assert [(row["id"], row["owner"], row["status"]) for row in rows] == [
                (waits["id"], "", "queued"),
                (runs["id"], "ann", "in_progress"),
            ]
            answer = await running.http.post(f"{RESPONSES}/{waits['id']}/cancel")
            assert answer.json() == {"id": waits["id"], "status": "cancelled"}
            # Another's id alone is nobody's.
            assert_error(await running.http.post(f"{RESPONSES}/{runs['id']}/cancel"), 404)
            answer = await running.http.post(f"{RESPONSES}/{runs['id']}/cancel", params={"owner": "ann"})
            assert answer.json() == {"id": runs["id"], "status": "cancelled"}
            await backend.wait_for(lambda b: b.aborts == 1)
            assert await listed(running, BACKGROUND) == []
            assert (await ended(ann, runs["id"]))["status"] == "cancelled"

    async def test_one_with_a_client_is_not_cancelled_so(self, served: Running) -> None:
        done = await create(served.http)
        assert_error(await served.http.post(f"{RESPONSES}/{done['id']}/cancel"), 400, param="response_id")
