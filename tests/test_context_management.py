"""Conversations that the router compacts by itself when they grow: `context_management`."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import ResponseCompactionItem

from api.turns.compaction import SUMMARIZE
from requests.messages import SUMMARY
from tests.carried import FUNCTION, SECRET, Json, said, user
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, chat_usage, http_error, reasoning, stall
from tests.sdk import wire_events
from tests.stream_grammar import check_stream
from tests.streams import judged
from tests.turns import URL, assert_error, create, ended, open_stream, text_of, turn

pytestmark = pytest.mark.usefixtures("strict_backend")

LONG = "All that we know of airships. " * 40  # about 300 tokens
TALK = [user("Hi"), said(LONG), user("Go on.")]
# What the backend reads of it, once it is compacted.
SHRUNK = [("system", "Be brief."), ("user", "Hi"), ("user", "Go on."), ("user", f"{SUMMARY}\n\n{SECRET}")]


def over(tokens: int | None = 100) -> list[Json]:
    return [{"type": "compaction", "compact_threshold": tokens}]


def contents(backend: FakeBackend, request: int = -1) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in backend.turns[request].json["messages"]]


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


async def test_a_stream_holds_the_summary_and_then_the_answer(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), SECRET), chat(reasoning("So."), "On."))
    events = await wire_events(served, input=TALK, context_management=over())
    judged(events)
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


async def test_a_summary_is_emitted_before_the_answer_begins(served: Running, backend: FakeBackend) -> None:
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
    """The calls before it are in the summary, those behind it as they are."""
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
    judged(events)
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["compaction", "message"]
    assert text_of({"output": events[-1]["response"]["output"][1:]}) == "{}"
    assert "JSON" not in str(contents(backend, 0)), "a summary is a free text"


async def test_a_native_backend_manages_its_context_by_itself(served_natively: Running, backend: FakeBackend) -> None:
    await create(served_natively.http, input=TALK, context_management=over())
    (request,) = backend.turns
    assert request.json["context_management"] == over()
    assert request.json["input"] == TALK
