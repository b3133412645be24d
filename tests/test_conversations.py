"""Conversations, as the official SDK has them: made, read and changed by themselves, and as the history of turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from openai import BadRequestError, NotFoundError
from openai.types.conversations import Conversation, ConversationItemList
from websockets.asyncio.client import connect

from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, http_error, reasoning, stall, steps, until
from tests.sdk import MODEL, WEATHER_TOOL
from tests.turns import URL, Json, assert_error, create, ended, eventually, open_stream, retrieve, text_of, turn

CONVERSATIONS = "/v1/conversations"


def user(text: str, **more: Any) -> Json:
    return {"role": "user", "content": text, **more}


async def made(running: Running, *items: Json, **params: Any) -> str:
    return (await running.openai.conversations.create(items=list(items), **params)).id  # type: ignore[arg-type]


async def items_of(running: Running, conversation: str) -> list[Any]:
    """The items of a conversation, oldest first, over all pages."""
    return [item async for item in running.openai.conversations.items.list(conversation, order="asc", limit=3)]


def said(items: list[Any]) -> list[str]:
    return [item.content[0].text if item.type == "message" else item.type for item in items]


def asked(backend: FakeBackend) -> list[Any]:
    """What the backend was asked the last time."""
    return [message["content"] for message in backend.turns[-1].json["messages"]]


class TestByThemselves:
    async def test_the_sdk_makes_reads_changes_and_deletes_one(self, served: Running) -> None:
        conversations = served.openai.conversations
        made = await conversations.create(metadata={"topic": "rain"})
        assert made.id.startswith("conv_")
        assert await conversations.retrieve(made.id) == made
        Conversation.model_validate(made.model_dump(), strict=True)
        changed = await conversations.update(made.id, metadata={"topic": "snow"})
        assert changed.metadata == {"topic": "snow"}
        assert await conversations.retrieve(made.id) == changed
        assert (await conversations.update(made.id, metadata=None)).metadata == {}
        gone = await conversations.delete(made.id)
        assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
        with pytest.raises(NotFoundError):
            await conversations.retrieve(made.id)
        with pytest.raises(NotFoundError):
            await conversations.delete(made.id)

    async def test_one_may_be_made_without_a_body(self, served: Running) -> None:
        answer = await served.http.post(CONVERSATIONS)
        assert answer.json().keys() == {"id", "object", "created_at", "metadata"}
        assert answer.json()["metadata"] == {}

    async def test_the_sdk_adds_lists_reads_and_deletes_items(self, served: Running) -> None:
        items = served.openai.conversations.items
        conversation = await made(served, user("One."))
        added = await items.create(conversation, items=[user(f"{n}.") for n in range(2, 9)])  # type: ignore[misc]
        assert said(added.data) == [f"{n}." for n in range(2, 9)]
        assert (added.first_id, added.last_id) == (added.data[0].id, added.data[-1].id)
        ConversationItemList.model_validate(added.model_dump(), strict=True)
        everything = await items_of(served, conversation)
        assert said(everything) == ["One.", *(f"{n}." for n in range(2, 9))]
        assert [item async for item in items.list(conversation)] == everything[::-1]
        assert await items.retrieve(everything[3].id, conversation_id=conversation) == everything[3]
        assert (await items.delete(everything[3].id, conversation_id=conversation)).id == conversation
        assert await items_of(served, conversation) == everything[:3] + everything[4:]
        for method in (items.retrieve, items.delete):
            with pytest.raises(NotFoundError):
                await method(everything[3].id, conversation_id=conversation)

    async def test_an_empty_page_is_one_of_the_sdks_type(self, served: Running) -> None:
        conversation = await made(served)
        page = (await served.http.get(f"{CONVERSATIONS}/{conversation}/items")).json()
        assert ConversationItemList.model_validate(page, strict=True).data == []

    async def test_what_include_does_not_ask_for_is_left_out(self, served: Running) -> None:
        sealed = {"type": "reasoning", "summary": [], "encrypted_content": "foreign"}
        conversation = await made(served, sealed)
        url = f"{CONVERSATIONS}/{conversation}/items"
        (item,) = (await served.http.get(url)).json()["data"]
        assert "encrypted_content" not in item
        for path in (url, f"{url}/{item['id']}"):
            answer = await served.http.get(path, params={"include[]": ["reasoning.encrypted_content", "moon"]})
            assert answer.headers["x-nomyo-ignored"] == "include.moon"
            shown = answer.json()
            assert shown.get("data", [shown])[0]["encrypted_content"] == "foreign"

    async def test_credentials_of_tools_are_neither_shown_nor_stored_in_the_open(self, served: Running) -> None:
        tool = {"type": "mcp", "server_label": "s", "server_url": "https://s.example", "authorization": "secret"}
        conversation = await made(served, {"type": "additional_tools", "role": "developer", "tools": [tool]})
        answer = await served.http.get(f"{CONVERSATIONS}/{conversation}/items")
        assert "secret" not in answer.text
        page = await served.app.state.db.list_conversation_items(conversation)
        assert "secret" not in str(page.items)

    async def test_an_id_that_is_taken_becomes_another(self, served: Running) -> None:
        conversation = await made(served, user("One.", id="msg_1"))
        added = await served.openai.conversations.items.create(conversation, items=[user("Two.", id="msg_1")])  # type: ignore[list-item]
        assert added.data[0].id != "msg_1"
        assert [item.id for item in await items_of(served, conversation)] == ["msg_1", added.data[0].id]

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("", [], None),
            ("", {"metadata": {"a": 1}}, "metadata"),
            ("", {"metadata": {"a" * 65: "b"}}, "metadata." + "a" * 64),
            ("", {"items": "text"}, "items"),
            ("", {"items": [1]}, "items[0]"),
            ("", {"items": [user("Hi."), {"role": "tool"}]}, "items[1].role"),
            ("", {"items": [user("Hi."), {"type": "item_reference", "id": "msg_none"}]}, "items[1].id"),
            ("/{id}", {}, "metadata"),
            ("/{id}", {"metadata": "text"}, "metadata"),
            ("/{id}/items", {}, "items"),
            ("/{id}/items", {"items": []}, "items"),
            ("/{id}/items", {"items": [{"role": "user", "content": 5}]}, "items[0].content"),
        ],
    )
    async def test_bad_input_is_named(self, path: str, body: Any, param: str | None, served: Running) -> None:
        conversation = await made(served)
        answer = await served.http.post(CONVERSATIONS + path.format(id=conversation), json=body)
        assert_error(answer, 400, param=param)
        assert await items_of(served, conversation) == []

    async def test_no_more_items_are_taken_than_a_request_may_have(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, max_items=3) as running:
            answer = await running.http.post(CONVERSATIONS, json={"items": [user("Hi.")] * 4})
            assert_error(answer, 400, param="items", code="too_many_items")

    async def test_a_page_begins_behind_an_item_of_its_own(self, served: Running) -> None:
        conversation = await made(served, user("One."))
        other = await made(served, user("Two.", id="msg_2"))
        assert other != conversation
        answer = await served.http.get(f"{CONVERSATIONS}/{conversation}/items", params={"after": "msg_2"})
        assert_error(answer, 400, param="after")
        for params in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
            answer = await served.http.get(f"{CONVERSATIONS}/{conversation}/items", params=params)
            assert_error(answer, 400, param=next(iter(params)))

    @pytest.mark.parametrize("path", ["", "/items", "/items/msg_1"])
    async def test_what_never_was_is_a_404(self, path: str, served: Running) -> None:
        for method, body in (("GET", None), ("POST", {"metadata": {}, "items": [user("Hi.")]}), ("DELETE", None)):
            answer = await served.http.request(method, f"{CONVERSATIONS}/conv_none{path}", json=body)
            if answer.status_code != 405:
                assert_error(answer, 404, param="conversation_id", says="conv_none")


class TestTurns:
    @pytest.mark.parametrize("as_object", [False, True])
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("store", [None, False])
    async def test_a_turn_has_the_items_before_it_and_adds_its_own(
        self, store: bool | None, stream: bool, as_object: bool, served: Running, backend: FakeBackend
    ) -> None:
        backend.script(chat("One."), chat("Two."))
        conversation = await made(served, {"role": "developer", "content": "Count."})
        given: Any = {"id": conversation} if as_object else conversation
        for number in (1, 2):
            params = turn(input=f"Ask {number}.", conversation=given, store=store)
            if stream:
                async with open_stream(served.http, **params) as events:
                    response = (await events.until("response.completed"))["response"]
            else:
                response = await create(served.http, **params)
            assert response["conversation"] == {"id": conversation}
        assert asked(backend)[1:] == ["Ask 1.", "One.", "Ask 2."]
        items = await items_of(served, conversation)
        assert said(items) == ["Count.", "Ask 1.", "One.", "Ask 2.", "Two."]
        assert items[-1].id == response["output"][0]["id"]
        if store is None:
            assert (await retrieve(served.http, response["id"]))["conversation"] == {"id": conversation}
        else:
            assert_error(await served.http.get(f"{URL}/{response['id']}"), 404)

    async def test_a_call_goes_on_with_its_output_alone(self, served: Running, backend: FakeBackend) -> None:
        backend.script(chat(reasoning("Hm."), call("get_weather", {"city": "Oslo"})), chat("Rain."))
        conversation = await made(served)
        params: Any = {"model": MODEL, "conversation": conversation, "tools": [WEATHER_TOOL]}
        first = await served.openai.responses.create(input="The weather?", **params)
        output: Any = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "rain"}  # type: ignore[union-attr]
        await served.openai.responses.create(input=[output], **params)
        kinds = ["The weather?", "reasoning", "function_call", "function_call_output", "Rain."]
        assert said(await items_of(served, conversation)) == kinds
        page = (await served.http.get(f"{CONVERSATIONS}/{conversation}/items")).json()
        assert len(ConversationItemList.model_validate(page, strict=True).data) == 5

    async def test_a_turn_may_have_no_input_of_its_own(self, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Hello.")
        conversation = await made(served, user("Hi."))
        answer = await served.http.post(URL, json={"model": MODEL, "conversation": conversation})
        assert answer.status_code == 200
        assert said(await items_of(served, conversation)) == ["Hi.", "Hello."]
        empty = await made(served)
        answer = await served.http.post(URL, json={"model": MODEL, "conversation": empty})
        assert_error(answer, 400, param="input", code="missing_required_parameter")

    async def test_a_turn_that_fails_adds_nothing(self, served: Running, backend: FakeBackend) -> None:
        conversation = await made(served)
        backend.default = http_error(400, "No.")
        for stream in (False, True):
            answer = await served.http.post(URL, json=turn(conversation=conversation, stream=stream))
            assert answer.status_code == 400
        queued = await create(served.http, conversation=conversation, background=True)
        assert (await ended(served.http, queued["id"]))["status"] == "failed"
        assert await items_of(served, conversation) == []

    async def test_one_that_is_cancelled_or_left_adds_nothing(self, served: Running, backend: FakeBackend) -> None:
        conversation = await made(served)
        backend.default = chat("Half of it", then=stall())
        queued = await create(served.http, conversation=conversation, background=True)
        await backend.wait_for(lambda b: b.in_flight == 1)
        await served.http.post(f"{URL}/{queued['id']}/cancel")
        async with open_stream(served.http, conversation=conversation) as events:
            await events.until("response.output_text.delta")
        await backend.wait_for(lambda b: b.in_flight == 0)
        await eventually(lambda: served.in_flight() == 0, "the slot is free")
        assert await items_of(served, conversation) == []

    async def test_an_answer_that_was_cut_off_is_added(self, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Half", finish_reason="length")
        conversation = await made(served)
        assert (await create(served.http, conversation=conversation))["status"] == "incomplete"
        assert said(await items_of(served, conversation))[1:] == ["Half"]

    async def test_a_reference_finds_an_item_of_the_conversation(self, served: Running, backend: FakeBackend) -> None:
        conversation = await made(served, user("Hi.", id="msg_1"), user("Ho.", id="msg_2"))
        reference = {"type": "item_reference", "id": "msg_1"}
        await create(served.http, input=[reference], conversation=conversation)
        assert asked(backend) == ["Hi.", "Ho."], "what is there already is there once"
        answer = await served.http.post(f"{CONVERSATIONS}/{conversation}/items", json={"items": [reference]})
        assert answer.status_code == 200
        assert said(await items_of(served, conversation))[-1] == "Hi."
        other = await made(served)
        answer = await served.http.post(URL, json=turn(input=[reference], conversation=other))
        assert_error(answer, 400, param="input[0].id")

    async def test_turns_that_race_land_whole_in_the_order_of_their_ends(
        self, served: Running, backend: FakeBackend
    ) -> None:
        gates = [asyncio.Event() for _ in range(3)]
        backend.script(*(steps(until(gate), chat(f"Answer {n}.")) for n, gate in enumerate(gates)))
        conversation = await made(served)
        running = []
        for number in range(3):
            params = {"input": f"Ask {number}.", "conversation": conversation}
            running.append(asyncio.create_task(create(served.http, **params)))
            await backend.wait_for(lambda b, number=number: b.in_flight == number + 1)
        for number in (2, 0, 1):
            gates[number].set()
            await running[number]
        expected = [text for n in (2, 0, 1) for text in (f"Ask {n}.", f"Answer {n}.")]
        assert said(await items_of(served, conversation)) == expected

    async def test_a_deleted_conversation_ends_nothing_that_runs(self, served: Running, backend: FakeBackend) -> None:
        gate = asyncio.Event()
        backend.default = steps(until(gate), chat("Done."))
        conversation = await made(served)
        running = asyncio.create_task(create(served.http, conversation=conversation))
        await backend.wait_for(lambda b: b.in_flight == 1)
        await served.openai.conversations.delete(conversation)
        gate.set()
        assert text_of(await running) == "Done."
        answer = await served.http.get(f"{CONVERSATIONS}/{conversation}/items")
        assert_error(answer, 404)
        answer = await served.http.post(URL, json=turn(conversation=conversation))
        assert_error(answer, 404, param="conversation")

    async def test_a_deleted_response_leaves_its_items_there(self, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Hello.")
        conversation = await made(served)
        response = await create(served.http, input="Hi.", conversation=conversation)
        await served.http.delete(f"{URL}/{response['id']}")
        await create(served.http, input="And?", conversation=conversation)
        assert asked(backend) == ["Hi.", "Hello.", "And?"]

    @pytest.mark.parametrize("path", ["", "/input_tokens", "/compact"])
    @pytest.mark.parametrize(
        ("params", "status", "param"),
        [
            ({"conversation": "conv_none"}, 404, "conversation"),
            ({"conversation": {"id": "conv_none"}}, 404, "conversation"),
            ({"conversation": ""}, 400, "conversation"),
            ({"conversation": {}}, 400, "conversation.id"),
            ({"conversation": {"id": 5}}, 400, "conversation.id"),
            ({"conversation": 5}, 400, "conversation"),
            ({"conversation": "{id}", "previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ],
    )
    async def test_bad_ones_are_named(self, params: Json, status: int, param: str, path: str, served: Running) -> None:
        conversation = await made(served)
        given = {key: conversation if value == "{id}" else value for key, value in params.items()}
        assert_error(await served.http.post(f"{URL}{path}", json=turn(**given)), status, param=param)

    async def test_what_was_before_is_named_by_its_parameter(self, served: Running, backend: FakeBackend) -> None:
        orphan = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
        conversation = await made(served, orphan)
        assert_error(await served.http.post(URL, json=turn(conversation=conversation)), 400, param="conversation")
        image = user("", content=[{"type": "input_image", "image_url": 5}])
        conversation = await made(served, image)
        assert_error(await served.http.post(URL, json=turn(conversation=conversation)), 400, param="conversation")

    async def test_its_responses_are_no_chain(self, served: Running, backend: FakeBackend) -> None:
        """Else what the conversation had before would be lost in silence."""
        conversation = await made(served, user("Hi."))
        response = await create(served.http, conversation=conversation)
        answer = await served.http.post(URL, json=turn(previous_response_id=response["id"]))
        assert_error(answer, 400, param="previous_response_id", says=conversation)

    async def test_what_a_client_sends_again_is_there_once(self, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Hello.")
        conversation = await made(served)
        first = await create(served.http, input=[user("Hi.")], conversation=conversation)
        again = [user("Hi."), first["output"][0], user("And?")]
        await create(served.http, input=again, conversation=conversation)
        assert said(await items_of(served, conversation)) == ["Hi.", "Hello.", "And?", "Hello."]

    async def test_tokens_are_counted_with_the_conversation_which_stays_as_it_is(
        self, served: Running, backend: FakeBackend
    ) -> None:
        short, long = await made(served, user("Hi.")), await made(served, user("Hi. " * 100))
        counts = []
        for conversation in (short, long):
            answer = await served.openai.responses.input_tokens.count(
                model=MODEL, input="And?", conversation=conversation
            )
            counts.append(answer.input_tokens)
            assert len(await items_of(served, conversation)) == 1
        assert counts[1] > counts[0] + 50

    async def test_a_cached_answer_is_added_to_each_conversation(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, cache={"backend": "memory"}) as running:
            backend.default = chat("Hello.")
            conversations = [await made(running, user("Hi.")) for _ in range(2)]
            for conversation in conversations:
                params = turn(input="And?", nomyo={"cache": True}, conversation=conversation)
                response = await create(running.http, **params)
                assert response["conversation"] == {"id": conversation}
                assert said(await items_of(running, conversation)) == ["Hi.", "And?", "Hello."]
            assert len(backend.turns) == 1

    async def test_equal_turns_that_share_an_answer_each_add_it(self, backend: FakeBackend) -> None:
        gate = asyncio.Event()
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, cache={"backend": "memory"}) as running:
            backend.default = steps(until(gate), chat("Hello."))
            conversations = [await made(running, user("Hi.")) for _ in range(3)]
            params = turn(input="And?", nomyo={"cache": True})
            tasks = [asyncio.create_task(create(running.http, **params, conversation=one)) for one in conversations]
            await backend.wait_for(lambda b: b.in_flight == 1)
            gate.set()
            for conversation, task in zip(conversations, tasks, strict=True):
                assert (await task)["conversation"] == {"id": conversation}
                assert said(await items_of(running, conversation)) == ["Hi.", "And?", "Hello."]


class TestCompaction:
    async def test_a_summary_in_a_conversation_stands_for_what_was_before(
        self, served: Running, backend: FakeBackend
    ) -> None:
        backend.script(chat("A long answer."), chat("The summary."), chat("Go on."))
        conversation = await made(served)
        await create(served.http, input="Ask.", conversation=conversation)
        compacted = await create(served.http, input=[{"type": "compaction_trigger"}], conversation=conversation)
        assert [item["type"] for item in compacted["output"]] == ["compaction"]
        assert [item.type for item in await items_of(served, conversation)] == ["message", "message", "compaction"]
        await create(served.http, input="And?", conversation=conversation)
        sent = str(asked(backend))
        assert "The summary." in sent
        assert "A long answer." not in sent

    async def test_compact_reads_a_conversation_and_leaves_it_as_it_is(
        self, served: Running, backend: FakeBackend
    ) -> None:
        backend.default = chat("The summary.")
        conversation = await made(served, user("Ask."), {"role": "assistant", "content": "A long answer."})
        before = await items_of(served, conversation)
        answer = await served.http.post(f"{URL}/compact", json={"model": MODEL, "conversation": conversation})
        assert [item["type"] for item in answer.json()["output"]] == ["message", "compaction"]
        assert "A long answer." in str(asked(backend))
        assert await items_of(served, conversation) == before


class TestNatively:
    async def test_a_native_backend_is_given_the_items_and_no_conversation(
        self, served_natively: Running, backend: FakeBackend
    ) -> None:
        conversation = await made(served_natively, user("Hi."), {"role": "assistant", "content": "Hello."})
        response = await create(served_natively.http, input="And?", conversation=conversation)
        sent = backend.turns[-1].json
        assert "conversation" not in sent
        assert "conv_" not in str(sent)
        assert [item["role"] for item in sent["input"]] == ["user", "assistant", "user"]
        assert response["conversation"] == {"id": conversation}
        assert len(await items_of(served_natively, conversation)) == 3 + len(response["output"])

    async def test_so_is_one_that_compacts_and_counts_itself(
        self, served_natively: Running, backend: FakeBackend
    ) -> None:
        conversation = await made(served_natively, user("Hi."), {"role": "assistant", "content": "Hello."})
        before = await items_of(served_natively, conversation)
        for path in ("compact", "input_tokens"):
            await served_natively.http.post(f"{URL}/{path}", json={"model": MODEL, "conversation": conversation})
            assert str(conversation) not in str(backend.requests[-1].json)
            assert "Hello." in str(backend.requests[-1].json)
        assert await items_of(served_natively, conversation) == before


class TestInTheBackground:
    async def test_a_background_turn_adds_its_items_when_it_ends(self, served: Running, backend: FakeBackend) -> None:
        gate = asyncio.Event()
        backend.default = steps(until(gate), chat("Done."))
        conversation = await made(served, user("Hi."))
        queued = await create(served.http, input="Go.", conversation=conversation, background=True)
        assert queued["conversation"] == {"id": conversation}
        await backend.wait_for(lambda b: b.in_flight == 1)
        assert said(await items_of(served, conversation)) == ["Hi."]
        gate.set()
        assert (await ended(served.http, queued["id"]))["conversation"] == {"id": conversation}
        assert said(await items_of(served, conversation)) == ["Hi.", "Go.", "Done."]

    async def test_one_that_runs_after_a_restart_has_the_conversation_as_it_is_then(
        self, backend: FakeBackend, tmp_path: Path
    ) -> None:
        settings: Json = {
            "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
            "database": {"url": f"sqlite:///{tmp_path}/router.db"},
            "background": {"max_concurrent": 1, "drain_s": 0},
        }
        backend.default = stall()
        async with running_router(**settings) as running:
            conversation, lost = await made(running, user("Hi.")), await made(running, user("Hi."))
            await create(running.http, background=True)
            await backend.wait_for(lambda b: b.in_flight == 1)
            queued = await create(running.http, input="Go.", conversation={"id": conversation}, background=True)
            orphan = await create(running.http, input="Go.", conversation=lost, background=True)
            await running.openai.conversations.items.create(conversation, items=[user("More.")])  # type: ignore[list-item]
            await running.openai.conversations.delete(lost)
        backend.default = chat("Done.")
        async with running_router(**settings) as running:
            assert text_of(await ended(running.http, queued["id"])) == "Done."
            assert said(await items_of(running, conversation)) == ["Hi.", "More.", "Go.", "Done."]
            failed = await ended(running.http, orphan["id"])
            assert failed["status"] == "failed"
            assert lost in failed["error"]["message"]


class TestOverAWebSocket:
    @pytest.fixture
    async def socket(self, served: Running) -> AsyncIterator[Any]:
        async with connect(served.url.replace("http", "ws") + URL, proxy=None) as socket:
            yield socket

    async def last(self, socket: Any, **params: Any) -> Json:
        await socket.send(orjson.dumps({"type": "response.create", **turn(**params)}))
        while True:
            event: Json = orjson.loads(await socket.recv())
            if event["type"] in ("error", "response.completed", "response.failed"):
                return event

    async def test_turns_go_on_with_a_conversation(self, socket: Any, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Hello.")
        conversation = await made(served)
        for text in ("One.", "Two."):
            event = await self.last(socket, input=text, conversation=conversation, store=False)
            assert event["response"]["conversation"] == {"id": conversation}
        assert asked(backend) == ["One.", "Hello.", "Two."]
        assert said(await items_of(served, conversation)) == ["One.", "Hello.", "Two.", "Hello."]
        missing = await self.last(socket, conversation="conv_none")
        assert missing["error"]["param"] == "conversation"

    async def test_one_that_is_cancelled_adds_nothing(self, socket: Any, served: Running, backend: FakeBackend) -> None:
        backend.default = chat("Half of it", then=stall())
        conversation = await made(served)
        await socket.send(orjson.dumps({"type": "response.create", **turn(conversation=conversation)}))
        await backend.wait_for(lambda b: b.in_flight == 1)
        await socket.send(orjson.dumps({"type": "response.cancel"}))
        while orjson.loads(await socket.recv())["type"] != "response.failed":
            pass
        assert await items_of(served, conversation) == []


async def test_a_conversation_is_in_order_over_a_client_that_reads_and_asks_at_once(
    served: Running, backend: FakeBackend
) -> None:
    """Its last event leaves behind the commit: who asks then finds the items."""
    backend.default = chat("Hello.")
    conversation = await made(served)
    for number in range(5):
        async with open_stream(served.http, input=f"{number}", conversation=conversation) as events:
            await events.until("response.completed")
            assert said(await items_of(served, conversation))[-2:] == [f"{number}", "Hello."]


async def test_the_sdks_errors_are_its_own(served: Running) -> None:
    with pytest.raises(NotFoundError) as missing:
        await served.openai.responses.create(model=MODEL, input="Hi.", conversation="conv_none")
    assert missing.value.param == "conversation"
    with pytest.raises(BadRequestError):
        await served.openai.conversations.create(items=[{"role": "tool", "content": "no"}])  # type: ignore[list-item, typeddict-item]
