"""What clients carry for us: compacted conversations, sealed reasoning, and references to what we keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseCompactionItem, ResponseUsage

from api.turn import SUMMARIZE
from requests.messages import SUMMARY, UNREADABLE, responses_input_to_messages, without_superseded
from requests.params import check_input
from seals import Sealer
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, chat_usage, http_error, reasoning, stall, strict_error
from tests.sdk import EVENT_CLASSES, MODEL, strict_client, wire_events
from tests.stream_grammar import check_stream, fold
from tests.turns import URL, assert_error, create, ended, open_stream, text_of, turn

Json = dict[str, Any]

SECRET = "We named the ship Zeppelin."
TRIGGER = {"type": "compaction_trigger"}
SEALED = ["reasoning.encrypted_content"]
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


@pytest.fixture(autouse=True)
def _strict_server(backend: FakeBackend) -> None:
    backend.strict = True


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def said(text: str) -> Json:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


def messages(backend: FakeBackend) -> list[Json]:
    return backend.turns[-1].json["messages"]


def summary_in(backend: FakeBackend, at: int) -> str:
    """What the backend is told in place of the conversation."""
    message = messages(backend)[at]
    assert message["role"] == "user"
    assert message["content"].startswith(SUMMARY)
    return message["content"].removeprefix(SUMMARY).strip()


async def compacted(served: Running, backend: FakeBackend, **more: Any) -> Json:
    """The compaction item of a conversation."""
    backend.script(chat(SECRET))
    response = await create(served.http, input=[user("Hi"), TRIGGER], **more)
    (item,) = response["output"]
    return item


# ── compaction_trigger ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_trigger_makes_one_compaction_item(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), SECRET, usage=chat_usage(20, 5, cached=4, reasoning=1)))
    response = await create(served.http, input=[user("Hi"), said("Yo"), TRIGGER], instructions="Be brief.")
    (item,) = response["output"]
    assert sorted(item) == ["encrypted_content", "id", "type"]
    assert (item["type"], item["id"][:4]) == ("compaction", "cmp_")
    ResponseCompactionItem.model_validate(item, strict=True)
    assert SECRET not in str(response)
    assert (response["status"], response["output_text"]) == ("completed", "")
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (20, 5)
    *conversation, asked = messages(backend)
    assert conversation == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
    ]
    assert asked == {"role": "user", "content": SUMMARIZE}


async def test_a_trigger_in_a_stream_is_answered_by_one_item(served: Running, backend: FakeBackend) -> None:
    """Codex takes nothing but exactly one."""
    backend.script(chat(reasoning("Hm."), SECRET))
    events = await wire_events(served, input=[user("Hi"), TRIGGER])
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    for event in events:
        EVENT_CLASSES[event["type"]].model_validate(event, strict=True)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "compaction.compacting",
        "output_item.done",
        "completed",
    ]
    assert SECRET not in str(events)
    kept = (await served.http.get(f"{URL}/{events[-1]['response']['id']}")).json()
    assert kept["output"] == events[-1]["response"]["output"]


async def test_a_trigger_in_the_background_is_answered_too(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(SECRET))
    queued = await create(served.http, input=[user("Hi"), TRIGGER], background=True)
    response = await ended(served.http, queued["id"])
    assert [item["type"] for item in response["output"]] == ["compaction"]


async def test_a_trigger_compacts_the_turns_before_it(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Yo"), chat(SECRET), chat("Zeppelin."))
    first = await create(served.http, input="Hi")
    second = await create(served.http, input=[TRIGGER], previous_response_id=first["id"])
    assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", SUMMARIZE]
    await create(served.http, input="Its name?", previous_response_id=second["id"])
    told = [message["content"] for message in messages(backend)]
    assert told[-1] == "Its name?"
    assert SECRET in told[-2]
    assert SUMMARIZE not in told, "that was our question, not the user's"


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [FUNCTION], "tool_choice": "required"},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f"}},
        {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": False},
        {"text": {"format": {"type": "json_object"}}},
        {"max_output_tokens": 16},
        {"input": [{"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}, user("Hi"), TRIGGER]},
    ],
    ids=["required", "a function", "tools", "json_object", "max_output_tokens", "additional_tools"],
)
async def test_a_summary_is_a_free_text_whatever_the_turns_are_held_to(
    more: Json, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(SECRET))
    response = await create(served.http, **{"input": [user("Hi"), TRIGGER], **more})
    assert [item["type"] for item in response["output"]] == ["compaction"]
    asked = backend.turns[-1].json
    given = [key for key in ("tools", "tool_choice", "response_format", "max_tokens") if key in asked]
    assert not given, f"the model that sums up is given {given}"


async def test_no_summary_is_a_failure(served: Running, backend: FakeBackend) -> None:
    for stream in (False, True):
        backend.script(chat(" \n"), http_error(400, "No."))
        for status in (502, 400):
            answer = await served.http.post(
                URL, json={"model": MODEL, "input": [user("Hi"), TRIGGER], "stream": stream}
            )
            assert_error(answer, status)


# ── its way back ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_compaction_is_told_where_it_stands(served: Running, backend: FakeBackend) -> None:
    item = await compacted(served, backend, store=False)
    first, last = user("Before."), user("After.")
    for items, at in (([item, last], 0), ([first, item, last], 1), ([first, last, item], 2)):
        await create(served.http, input=items)
        assert summary_in(backend, at) == SECRET
        others = [message["content"] for number, message in enumerate(messages(backend)) if number != at]
        assert others == [part["content"][0]["text"] for part in items if part is not item]


async def test_clients_may_leave_out_the_id_of_a_compaction(served: Running, backend: FakeBackend) -> None:
    item = await compacted(served, backend)
    await create(served.http, input=[{**item, "id": None}, user("Its name?")])
    assert summary_in(backend, 0) == SECRET


async def test_a_compacted_conversation_is_compacted_again(served: Running, backend: FakeBackend) -> None:
    item = await compacted(served, backend)
    backend.script(chat("Still Zeppelin."))
    again = await create(served.http, input=[item, user("Go on."), TRIGGER])
    assert summary_in(backend, 0) == SECRET
    await create(served.http, input=[*again["output"], user("Its name?")])
    assert summary_in(backend, 0) == "Still Zeppelin."


@pytest.mark.parametrize(
    "sealed", ["gAAAAABforeign", "", Sealer("another key").seal(SECRET)], ids=["foreign", "empty", "another key"]
)
async def test_a_compaction_of_somebody_else_is_named_and_not_read(
    sealed: str, served: Running, backend: FakeBackend
) -> None:
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": sealed}
    response = await create(served.http, input=[item, user("Go on.")])
    assert response["status"] == "completed"
    assert summary_in(backend, 0) == UNREADABLE


async def test_what_is_sealed_is_nowhere_in_the_open(served: Running, backend: FakeBackend) -> None:
    """Neither for who asks for the items, nor in the next response."""
    item = await compacted(served, backend)
    response = await create(served.http, input=[item, user("Its name?")])
    listed = await served.http.get(f"{URL}/{response['id']}/input_items")
    assert SECRET in str(messages(backend))
    assert SECRET not in listed.text
    assert SECRET not in str(response)
    assert item in listed.json()["data"], "it comes back as it was"


# ── /v1/responses/compact ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_sdk_compacts_a_conversation_and_goes_on_with_it(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), SECRET, usage=chat_usage(20, 5)), chat("Zeppelin."))
    given: Any = [user("Hi"), said("Yo"), user("Name the ship.")]
    window = await served.openai.responses.compact(model=MODEL, input=given, instructions="Be brief.")
    assert (window.object, window.id[:5]) == ("response.compaction", "resp_")
    assert isinstance(window.created_at, int)
    ResponseUsage.model_validate(window.usage.to_dict(), strict=True)
    assert (window.usage.input_tokens, window.usage.output_tokens, window.usage.total_tokens) == (20, 5, 25)
    # The SDK's type has messages of the assistant alone here, and warns of the user's, OpenAI's own too.
    output = [item.to_dict(warnings=False) for item in window.output]
    assert [(item["type"], item.get("role")) for item in output] == [
        ("message", "user"),
        ("message", "user"),
        ("compaction", None),
    ]
    assert [item["content"][0]["text"] for item in output[:2]] == ["Hi", "Name the ship."]
    assert all(item["id"] for item in output)
    assert messages(backend)[0] == {"role": "system", "content": "Be brief."}
    strict = strict_client(served)
    again: Any = [*output, user("Its name?")]
    response = await strict.responses.create(model=MODEL, input=again)
    assert response.output_text == "Zeppelin."
    assert summary_in(backend, 2) == SECRET


async def test_a_text_and_earlier_turns_can_be_compacted(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Yo"), chat(SECRET), chat(SECRET))
    first = await create(served.http, input="Hi")
    alone = await served.openai.responses.compact(model=MODEL, input="Hi")
    assert [item.type for item in alone.output] == ["message", "compaction"]
    window = await served.openai.responses.compact(model=MODEL, previous_response_id=first["id"])
    assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", SUMMARIZE]
    assert [item.type for item in window.output] == ["message", "compaction"]


async def test_a_compaction_window_is_no_response_that_could_be_asked_for(
    served: Running, backend: FakeBackend
) -> None:
    window = await served.openai.responses.compact(model=MODEL, input="Hi")
    assert_error(await served.http.get(f"{URL}/{window.id}"), 404)
    answer = await served.http.post(URL, json={"model": MODEL, "input": "Hi", "previous_response_id": window.id})
    assert_error(answer, 400, code="previous_response_not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "Hi"}, "model"),
        ({"model": MODEL}, "input"),
        ({"model": MODEL, "input": 5}, "input"),
        ({"model": MODEL, "input": [5]}, None),
        ({"model": MODEL, "input": "Hi", "previous_response_id": "resp_unknown"}, "previous_response_id"),
        ([], None),
    ],
    ids=["no model", "nothing to compact", "a number", "a list of numbers", "an unknown response", "no object"],
)
async def test_what_cannot_be_compacted_is_named(
    body: Any, param: str | None, served: Running, backend: FakeBackend
) -> None:
    answer = await served.http.post(f"{URL}/compact", json=body)
    error = assert_error(answer, 400, type="invalid_request_error")
    assert param is None or error["param"] == param
    assert not backend.turns


async def test_a_backend_that_fails_to_sum_up_is_an_http_error(served: Running, backend: FakeBackend) -> None:
    backend.script(http_error(400, "Too long.", code="context_length_exceeded"), chat(""))
    for status in (400, 502):
        answer = await served.http.post(f"{URL}/compact", json={"model": MODEL, "input": "Hi", "stream": True})
        assert_error(answer, status)
    assert served.in_flight() == 0


# ── sealed reasoning ─────────────────────────────────────────────────────────────────────────────────────────────────


def carried(output: list[Json]) -> list[Json]:
    """The items as a client keeps them that stores nothing here: what is sealed instead of what was thought."""
    return [
        {"type": "reasoning", "id": item["id"], "summary": [], "encrypted_content": item["encrypted_content"]}
        if item["type"] == "reasoning"
        else item
        for item in output
    ]


def thoughts(backend: FakeBackend) -> list[str | None]:
    return [message.get("reasoning_content") for message in messages(backend) if message["role"] == "assistant"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_sealed_reasoning_comes_back_to_the_backend(stream: bool, served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("It rhymes."), call("f", id="c")), chat("Done."))
    asked: Json = {"input": [user("Hi")], "tools": [FUNCTION], "store": False, "include": SEALED}
    if stream:
        events = await wire_events(served, **asked)
        check_stream(events)
        first = events[-1]["response"]
        (added,) = [e["item"] for e in events if e["type"] == "response.output_item.added" and e["output_index"] == 0]
        assert "encrypted_content" not in added
    else:
        first = await create(served.http, **asked)
    thought = first["output"][0]
    assert "rhymes" not in thought["encrypted_content"]
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    await create(served.http, input=[user("Hi"), *carried(first["output"]), output], tools=[FUNCTION], store=False)
    assert thoughts(backend) == ["It rhymes."]


async def test_nothing_is_sealed_unless_the_client_asks(served: Running, backend: FakeBackend) -> None:
    backend.script(*[chat(reasoning("Hm."), "Hi")] * 3)
    for more in ({}, {"include": []}, {"include": None}):
        response = await create(served.http, **more)
        assert "encrypted_content" not in response["output"][0]
    response = await create(served.http, include=SEALED)
    assert [item["type"] for item in response["output"]] == ["message"], "and without a thought there is none"


async def test_reasoning_that_we_cannot_open_is_left_out(served: Running, backend: FakeBackend) -> None:
    for sealed in ("gAAAAABforeign", Sealer("another key").seal("Hm."), None):
        thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
        await create(served.http, input=[user("Hi"), thought, said("Yo"), user("Well?")])
        assert thoughts(backend) == [None]
    open_thought = {**thought, "encrypted_content": "gAAA", "content": [{"type": "reasoning_text", "text": "So."}]}
    await create(served.http, input=[user("Hi"), open_thought, said("Yo"), user("Well?")])
    assert thoughts(backend) == ["So."]


async def test_what_was_sealed_is_opened_after_a_restart(backend: FakeBackend, tmp_path: Path) -> None:
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    backend.script(chat(reasoning("It rhymes."), "Yo"), chat(SECRET))
    async with running_router(**settings) as running:
        first = await create(running.http, input=[user("Hi")], store=False, include=SEALED)
        (item,) = (await create(running.http, input=[user("Hi"), TRIGGER], store=False))["output"]
    async with running_router(**settings) as running:
        await create(running.http, input=[item, *carried(first["output"]), user("Well?")])
        assert summary_in(backend, 0) == SECRET
        assert thoughts(backend) == ["It rhymes."]


@pytest.mark.parametrize(("keys", "opens"), [(("one", "one"), True), (("one", "two"), False), (("", ""), False)])
async def test_routers_share_what_is_sealed_if_they_share_the_key(
    keys: tuple[str, str], opens: bool, backend: FakeBackend
) -> None:
    backend.script(chat(SECRET))
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, secret_key=keys[0]) as running:
        (item,) = (await create(running.http, input=[user("Hi"), TRIGGER]))["output"]
    async with running_router(endpoints=endpoints, secret_key=keys[1]) as running:
        await create(running.http, input=[item, user("Well?")])
    assert summary_in(backend, 0) == (SECRET if opens else UNREADABLE)


# ── references ───────────────────────────────────────────────────────────────────────────────────────────────────────


def reference(item_id: str) -> Json:
    return {"type": "item_reference", "id": item_id}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_each_item_that_we_gave_can_be_referred_to(stream: bool, served: Running, backend: FakeBackend) -> None:
    custom = {"type": "custom", "name": "p"}
    tools = [FUNCTION, custom, {"type": "shell"}]
    calls = [call("f", {"x": 1}), call("p", {"input": "ls"}), call("shell", {"commands": ["ls"]})]
    backend.script(chat(reasoning("Hm."), "Yo", *calls), chat("Done."), chat("Done."))
    if stream:
        first = (await wire_events(served, input=[user("Hi")], tools=tools))[-1]["response"]
    else:
        first = await create(served.http, input=[user("Hi")], tools=tools)
    outputs = [
        {"type": kind, "call_id": item["call_id"], "output": [] if kind == "shell_call_output" else "1"}
        for item in first["output"][2:]
        for kind in [f"{item['type']}_output"]
    ]
    await create(served.http, input=[user("Hi"), *first["output"], *outputs], tools=tools)
    whole = messages(backend)
    references = [reference(item["id"]) for item in first["output"]]
    second = await create(served.http, input=[user("Hi"), *references, *outputs], tools=tools)
    assert messages(backend) == whole
    listed = (await served.http.get(f"{URL}/{second['id']}/input_items", params={"order": "asc"})).json()["data"]
    assert listed[1:6] == first["output"], "what was meant is kept, not the reference"


async def test_a_reference_needs_no_type_and_may_stand_anywhere(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Yo"))
    (item,) = (await create(served.http, input="Hi"))["output"]
    for form in ({"id": item["id"]}, {"type": None, "id": item["id"]}, reference(item["id"])):
        await create(served.http, input=[user("Hi"), form, user("Well?")])
        assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", "Well?"]
        await create(served.http, input=[form])
        assert [message["content"] for message in messages(backend)] == ["Yo"]


async def test_what_a_client_gave_can_be_referred_to_by_its_id(served: Running, backend: FakeBackend) -> None:
    first = await create(served.http, input=[{**user("Hi"), "id": "msg_mine"}, user("There")])
    await create(served.http, input=[reference("msg_mine"), user("Well?")])
    assert [message["content"] for message in messages(backend)] == ["Hi", "Well?"]
    for item in (await served.http.get(f"{URL}/{first['id']}/input_items")).json()["data"]:
        await create(served.http, input=[reference(item["id"])])
        assert messages(backend)[0]["content"] == item["content"][0]["text"]


async def test_a_compaction_can_be_referred_to(served: Running, backend: FakeBackend) -> None:
    item = await compacted(served, backend)
    await create(served.http, input=[reference(item["id"]), user("Its name?")])
    assert summary_in(backend, 0) == SECRET


async def test_a_conversation_goes_on_behind_a_turn_with_references(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Yo"), chat("Well."), chat("Bye."))
    (item,) = (await create(served.http, input="Hi"))["output"]
    second = await create(served.http, input=[user("Hi"), reference(item["id"]), user("Well?")])
    third = await create(served.http, input="Bye", previous_response_id=second["id"])
    assert text_of(third) == "Bye."
    assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", "Well?", "Well.", "Bye"]


async def test_what_we_do_not_keep_cannot_be_referred_to(served: Running, backend: FakeBackend) -> None:
    (unkept,) = (await create(served.http, store=False))["output"]
    kept = await create(served.http)
    (item,) = kept["output"]
    assert (await served.http.delete(f"{URL}/{kept['id']}")).status_code == 200
    turns = len(backend.turns)
    for item_id in ("msg_unknown", unkept["id"], item["id"]):
        for stream in (False, True):
            body = {"model": MODEL, "input": [user("Hi"), reference(item_id)], "stream": stream}
            error = assert_error(
                await served.http.post(URL, json=body), 400, type="invalid_request_error", says=item_id
            )
            assert error["param"].startswith("input[1]")
    assert len(backend.turns) == turns


@pytest.mark.parametrize("form", [{"type": "item_reference"}, {"type": "item_reference", "id": ""}, {}, {"id": 5}])
async def test_a_reference_to_nothing_is_named(form: Json, served: Running, backend: FakeBackend) -> None:
    answer = await served.http.post(URL, json={"model": MODEL, "input": [form]})
    assert_error(answer, 400, type="invalid_request_error", param="input[0].id")


async def test_references_survive_a_restart(backend: FakeBackend, tmp_path: Path) -> None:
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    backend.script(chat("Yo"))
    async with running_router(**settings) as running:
        (item,) = (await create(running.http, input="Hi"))["output"]
    async with running_router(**settings) as running:
        await create(running.http, input=[user("Hi"), reference(item["id"]), user("Well?")])
    assert [message["content"] for message in messages(backend)] == ["Hi", "Yo", "Well?"]


# ── context_management ───────────────────────────────────────────────────────────────────────────────────────────────

LONG = "All that we know of airships. " * 40  # about 300 tokens
TALK = [user("Hi"), said(LONG), user("Go on.")]


def over(tokens: int | None = 100) -> list[Json]:
    return [{"type": "compaction", "compact_threshold": tokens}]


def contents(backend: FakeBackend, request: int = -1) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in backend.turns[request].json["messages"]]


TOLD = f"{SUMMARY}\n\n{SECRET}"
SHRUNK = [("system", "Be brief."), ("user", "Hi"), ("user", "Go on."), ("user", TOLD)]


@pytest.mark.parametrize(
    "management",
    [None, [], over(None), over(100_000), [{"type": "compaction"}], [*over(None), *over(100_000)]],
    ids=["null", "none", "no threshold", "a high one", "an entry alone", "two"],
)
async def test_nothing_happens_below_the_threshold(management: Any, served: Running, backend: FakeBackend) -> None:
    backend.script(chat("On."))
    response = await create(served.http, input=TALK, context_management=management)
    assert [item["type"] for item in response["output"]] == ["message"]
    assert contents(backend) == [("user", "Hi"), ("assistant", LONG), ("user", "Go on.")]
    assert len(backend.turns) == 1
    assert "context_management" not in backend.turns[0].json


@pytest.mark.parametrize("management", [over(), [*over(100_000), *over()]], ids=["one", "the lowest of two"])
async def test_a_long_context_is_compacted_before_the_answer(
    management: Any, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(reasoning("Hm."), SECRET), chat("On.", usage=chat_usage(20, 5)))
    response = await create(served.http, input=TALK, instructions="Be brief.", context_management=management)
    summary, answer = response["output"]
    ResponseCompactionItem.model_validate(summary, strict=True)
    assert sorted(summary) == ["encrypted_content", "id", "type"]
    assert text_of({"output": [answer]}) == "On."
    assert (response["status"], response["output_text"]) == ("completed", "On.")
    assert SECRET not in str(response)
    assert contents(backend, 0)[:-1] == [SHRUNK[0], ("user", "Hi"), ("assistant", LONG), ("user", "Go on.")]
    assert contents(backend, 0)[-1] == ("user", SUMMARIZE)
    assert contents(backend, 1) == SHRUNK
    assert len(backend.turns) == 2


@pytest.mark.parametrize("stored", [True, False], ids=["previous_response_id", "the client's own history"])
async def test_a_compacted_context_stays_short(stored: bool, served: Running, backend: FakeBackend) -> None:
    backend.script(chat(SECRET), chat(reasoning("Hm."), "On."), chat("More."), chat("Still."))
    more: Json = {"instructions": "Be brief.", "context_management": over(), "store": stored}
    conversation, last = list(TALK), await create(served.http, input=TALK, **more)
    for question in ("And?", "Then?"):
        conversation += [*last["output"], user(question)]
        shown: Json = {"input": question, "previous_response_id": last["id"]} if stored else {"input": conversation}
        last = await create(served.http, **more | shown)
    assert len(backend.turns) == 4, "what was compacted counts no longer"
    on = [("assistant", "On."), ("user", "And?")]
    assert contents(backend, 2) == [*SHRUNK, *on]
    assert contents(backend, 3) == [*SHRUNK, *on, ("assistant", "More."), ("user", "Then?")]


async def test_a_context_that_grows_again_is_compacted_again(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(SECRET), chat(LONG), chat("Still Zeppelin."), chat("Done."))
    more: Json = {"instructions": "Be brief.", "context_management": over()}
    first = await create(served.http, input=TALK, **more)
    second = await create(served.http, input="And?", previous_response_id=first["id"], **more)
    assert [item["type"] for item in second["output"]] == ["compaction", "message"]
    assert contents(backend, 2) == [*SHRUNK, ("assistant", LONG), ("user", "And?"), ("user", SUMMARIZE)]
    again = ("user", f"{SUMMARY}\n\nStill Zeppelin.")
    assert contents(backend, 3) == [*SHRUNK[:-1], ("user", "And?"), again], "one summary stands for all"


async def test_a_stream_tells_of_the_summary_and_then_of_the_answer(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), SECRET), chat(reasoning("So."), "On."))
    events = await wire_events(served, input=TALK, context_management=over())
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    for event in events:
        EVENT_CLASSES[event["type"]].model_validate(event, strict=True)
    assert [event["type"].removeprefix("response.") for event in events][:6] == [
        "created",
        "in_progress",
        "output_item.added",
        "compaction.compacting",
        "output_item.done",
        "output_item.added",
    ]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["compaction", "reasoning", "message"]
    assert SECRET not in str(events)
    kept = (await served.http.get(f"{URL}/{events[-1]['response']['id']}")).json()
    assert kept["output"] == events[-1]["response"]["output"]
    replayed = await served.http.get(f"{URL}/{kept['id']}", params={"stream": "true"})
    assert "response.compaction.compacting" in replayed.text


async def test_a_summary_is_told_before_the_answer_begins(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(SECRET), stall())
    async with open_stream(served.http, input=TALK, context_management=over()) as events:
        await events.until("response.compaction.compacting")
    await backend.wait_for(lambda b: b.aborts == 1)


async def test_a_background_turn_is_compacted_too(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(SECRET), chat("On."))
    queued = await create(served.http, input=TALK, context_management=over(), background=True)
    response = await ended(served.http, queued["id"])
    assert [item["type"] for item in response["output"]] == ["compaction", "message"]


@pytest.mark.parametrize("stored", [True, False], ids=["previous_response_id", "the client's own history"])
async def test_a_round_of_tools_goes_on_behind_a_summary(stored: bool, served: Running, backend: FakeBackend) -> None:
    """The calls before it are told in the summary, those behind it as they are."""
    backend.script(
        chat(call("f", id="c"), call("f", id="d")), chat(SECRET), chat("Hm.", call("f", id="e")), chat("Done.")
    )
    more: Json = {"tools": [FUNCTION], "context_management": over(200), "store": stored}
    conversation, last = [user("Hi")], await create(served.http, input=[user("Hi")], **more)
    for output in (LONG, "1"):
        calls = [item for item in last["output"] if item["type"] == "function_call"]
        outputs = [{"type": "function_call_output", "call_id": item["call_id"], "output": output} for item in calls]
        conversation += [*last["output"], *outputs]
        shown: Json = {"input": outputs, "previous_response_id": last["id"]} if stored else {"input": conversation}
        last = await create(served.http, **more | shown)
    assert text_of(last) == "Done."
    roles = [[role for role, _ in contents(backend, number)] for number in range(4)]
    assert roles == [
        ["user"],
        ["user", "assistant", "tool", "tool", "user"],
        ["user", "user"],
        ["user", "user", "assistant", "tool"],
    ]
    assert [("tools" in request.json) for request in backend.turns] == [True, False, True, True]


async def test_tools_that_a_conversation_brought_stay_behind_a_summary(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(SECRET), chat(call("f", id="c")))
    tools = {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]}
    response = await create(served.http, input=[tools, *TALK], context_management=over())
    assert [item["type"] for item in response["output"]] == ["compaction", "function_call"]
    assert [tool["function"]["name"] for tool in backend.turns[-1].json["tools"]] == ["f"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_summary_that_fails_is_an_http_error(stream: bool, served: Running, backend: FakeBackend) -> None:
    backend.script(http_error(400, "No."), chat(""))
    for status in (400, 502):
        body = turn(input=TALK, context_management=over(), stream=stream)
        assert_error(await served.http.post(URL, json=body), status)
    assert served.in_flight() == 0


async def test_an_answer_that_fails_behind_its_summary_is_a_failure(served: Running, backend: FakeBackend) -> None:
    backend.script(*[chat(SECRET), http_error(400, "No.")] * 2)
    asked: Json = {"input": TALK, "context_management": over()}
    assert_error(await served.http.post(URL, json=turn(**asked)), 400, says="No.")
    events = await wire_events(served, **asked)
    check_stream(events)
    assert events[-1]["type"] == "response.failed"
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["compaction"]
    assert served.in_flight() == 0


async def test_a_json_format_is_held_to_behind_a_summary(backend: FakeBackend) -> None:
    backend.script(chat(SECRET), chat("No."), chat("{}"))
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "structured_outputs": "prompt"}
    async with running_router(endpoints=[endpoint]) as running:
        asked: Json = {"input": TALK, "context_management": over(), "text": {"format": {"type": "json_object"}}}
        events = await wire_events(running, **asked)
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["compaction", "message"]
    assert text_of({"output": events[-1]["response"]["output"][1:]}) == "{}"
    assert "JSON" not in str(contents(backend, 0)), "a summary is a free text"


async def test_what_cannot_be_given_is_named_where_it_stands_in_the_input(
    served: Running, backend: FakeBackend
) -> None:
    item = await compacted(served, backend)
    picture = {"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}
    given = [user("Hi"), said("Yo"), item, picture]
    answer = await served.http.post(URL, json={"model": MODEL, "input": given})
    assert_error(answer, 400, param="input[3].content[0].file_id")


async def test_a_native_backend_manages_its_context_by_itself(served_natively: Running, backend: FakeBackend) -> None:
    backend.strict = False
    await create(served_natively.http, input=TALK, context_management=over())
    (request,) = backend.turns
    assert request.json["context_management"] == over()
    assert request.json["input"] == TALK


@pytest.mark.parametrize("stored", [True, False], ids=["previous_response_id", "the client's own history"])
async def test_a_native_backend_is_told_a_summary_of_ours_and_given_those_of_others(
    stored: bool, served: Running, backend: FakeBackend
) -> None:
    backend.strict = False
    foreign = {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAforeign"}
    chatting = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "a", "aliases": {"chatting": MODEL}}
    native = {"url": f"{backend.url}/v1/", "kind": "openai", "name": "b", "aliases": {"native": MODEL}}
    native["url"] = native["url"].replace("127.0.0.1", "localhost")
    backend.script(chat(SECRET))
    async with running_router(endpoints=[chatting, native]) as running:
        first = await create(running.http, model="chatting", input=[user("Hi"), TRIGGER])
        (item,) = first["output"]
        if stored:
            given: Json = {"input": [foreign, user("Well?")], "previous_response_id": first["id"]}
        else:
            given = {"input": [user("Hi"), item, foreign, user("Well?")]}
        await create(running.http, model="native", **given)
    request = backend.turns[-1]
    assert request.path == URL
    told = [each for each in request.json["input"] if each["type"] != "compaction_trigger"]
    assert [each["type"] for each in told] == ["message", "message", "compaction", "message"]
    assert (told[1]["role"], told[1]["content"]) == ("user", TOLD)
    assert told[2] == foreign, "it is upstream's to open"
    assert "compaction_trigger" not in str(request.json), "that was answered long ago"


# ── what a summary stands for ────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Items in an order that a client may send: each output behind its call."""
    items: list[Json] = []
    waiting: list[Json] = []
    kinds = ["user", "system", "developer", "assistant", "call", "output", "thought", "compaction", "agent", "tools"]
    for number, kind in enumerate(draw(st.lists(st.sampled_from(kinds), max_size=14))):
        match kind:
            case "call":
                made = draw(st.sampled_from([("function_call", "function_call_output"), ("custom_tool_call",) * 2]))
                items.append({"type": made[0], "call_id": f"c{number}", "name": "f", "arguments": "{}", "input": ""})
                waiting.append({"type": f"{made[0]}_output", "call_id": f"c{number}", "output": "1"})
            case "output":
                if waiting:
                    items.append(waiting.pop(draw(st.integers(0, len(waiting) - 1))))
            case "thought":
                items.append({"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]})
            case "compaction":
                items.append({"type": "compaction", "summary": f"{number}"})
            case "agent":
                items.append({"type": "agent_message", "content": "Psst."})
            case "tools":
                items.append({"type": "additional_tools", "role": "developer", "tools": [FUNCTION]})
            case role:
                items.append({"type": "message", "role": role, "content": f"{number}"})
    return [*items, *waiting]


@given(conversations())
def test_a_summary_stands_for_all_before_it_but_what_people_said(items: list[Json]) -> None:
    kept = without_superseded(items)
    places = [index for one in kept for index, item in enumerate(items) if item is one]
    assert len(places) == len(kept), "something is there twice, or was not there before"
    assert places == sorted(places), "the order is another one"
    last = max((index for index, item in enumerate(items) if item["type"] == "compaction"), default=0)
    assert places[len(places) - len(items) + last :] == [*range(last, len(items))], "what is new was left out"
    for index, item in enumerate(items):
        if item.get("role") in ("user", "system", "developer"):
            assert index in places, f"what a {item['role']} said was left out"
    for index in places:
        if index < last:
            assert items[index].get("role") != "assistant", "the model is told what the summary stands for"
            assert not items[index]["type"].endswith(("_output", "reasoning")), "likewise"
    if last:
        assert [item["type"] for item in kept].count("compaction") == 1, "one summary stands for all"
    assert without_superseded(kept) == kept, "a second look finds more"


@given(conversations())
def test_what_a_summary_leaves_is_a_whole_conversation(items: list[Json]) -> None:
    check_input(items, 0)
    kept = without_superseded(items)
    check_input(kept, 0)
    messages = responses_input_to_messages(kept)
    if messages:
        assert strict_error({"messages": messages}) is None
