"""Compacted conversations: `compaction_trigger`, /v1/responses/compact, and what a summary stands for."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseCompactionItem, ResponseUsage

from api.turns.compaction import SUMMARIZE
from requests.items import check_input
from requests.messages import SUMMARY, UNREADABLE, responses_input_to_messages, without_superseded
from tests.carried import FUNCTION, SECRET, TRIGGER, Json, compacted, messages, said, summary_in, user
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, chat_usage, http_error, reasoning, strict_error
from tests.sdk import MODEL, strict_client, wire_events
from tests.streams import judged
from tests.turns import URL, assert_error, create, ended

OLD_SEAL = Fernet(Fernet.generate_key()).encrypt(SECRET.encode()).decode()

pytestmark = pytest.mark.usefixtures("strict_backend")

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
    judged(events)
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
    texts = [message["content"] for message in messages(backend)]
    assert texts[-1] == "Its name?"
    assert SECRET in texts[-2]
    assert SUMMARIZE not in texts, "that was our question, not the user's"


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


async def test_a_compaction_is_a_message_where_it_stands(served: Running, backend: FakeBackend) -> None:
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
    "sealed", ["gAAAAABforeign", "", OLD_SEAL], ids=["foreign", "empty", "another key, before they were marked"]
)
async def test_a_compaction_of_somebody_else_is_named_and_not_read(
    sealed: str, served: Running, backend: FakeBackend
) -> None:
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": sealed}
    response = await create(served.http, input=[item, user("Go on.")])
    assert response["status"] == "completed"
    assert summary_in(backend, 0) == UNREADABLE


async def test_one_that_cannot_be_read_hides_nothing(served: Running, backend: FakeBackend) -> None:
    """What was there before it can be read, and is all that there is."""
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAAABforeign"}
    await create(served.http, input=[user("Hi"), said("Yo"), item, user("Go on.")])
    assert [(message["role"], message["content"]) for message in messages(backend)] == [
        ("user", "Hi"),
        ("assistant", "Yo"),
        ("user", f"{SUMMARY}\n\n{UNREADABLE}"),
        ("user", "Go on."),
    ]


async def test_what_is_sealed_is_nowhere_in_the_open(served: Running, backend: FakeBackend) -> None:
    """Neither for who asks for the items, nor in the next response."""
    item = await compacted(served, backend)
    response = await create(served.http, input=[item, user("Its name?")])
    listed = await served.http.get(f"{URL}/{response['id']}/input_items")
    assert SECRET in str(messages(backend))
    assert SECRET not in listed.text
    assert SECRET not in str(response)
    assert item in listed.json()["data"], "it comes back as it was"


async def test_what_cannot_be_given_is_named_where_it_stands_in_the_input(
    served: Running, backend: FakeBackend
) -> None:
    item = await compacted(served, backend)
    picture = {"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}
    given = [user("Hi"), said("Yo"), item, picture]
    answer = await served.http.post(URL, json={"model": MODEL, "input": given})
    assert_error(answer, 400, param="input[3].content[0].file_id")


@pytest.mark.parametrize("stored", [True, False], ids=["previous_response_id", "the client's own history"])
async def test_a_native_backend_reads_a_summary_of_ours_and_gets_those_of_others(
    stored: bool, backend: FakeBackend
) -> None:
    foreign = {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAforeign"}
    native_url = f"{backend.url}/v1".replace("127.0.0.1", "localhost")
    chatting = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "a", "aliases": {"chatting": MODEL}}
    native = {"url": native_url, "kind": "openai", "name": "b", "aliases": {"native": MODEL}}
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
    given = [each for each in request.json["input"] if each["type"] != "compaction_trigger"]
    assert [each["type"] for each in given] == ["message", "message", "compaction", "message"]
    assert (given[1]["role"], given[1]["content"]) == ("user", f"{SUMMARY}\n\n{SECRET}")
    assert given[2] == foreign, "it is upstream's to open"
    assert "compaction_trigger" not in str(request.json), "that was answered long ago"


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
            assert items[index].get("role") != "assistant", "the model reads what the summary stands for"
            assert not items[index]["type"].endswith(("_output", "reasoning")), "the same, by its type"
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
