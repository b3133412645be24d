"""What a client sends again behind `previous_response_id` is left out, wherever it stands; what differs is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidRequest
from requests.items import check_input, input_items
from requests.repeats import may_repeat, without_repeats
from tests.conftest import Running
from tests.fake_backend import FakeBackend, call, chat, native, reasoning
from tests.test_websocket import connected
from tests.turns import assert_error, create, ended, stream

Json = dict[str, Any]

MANY = int(os.environ.get("LAW_EXAMPLES", "0"))
law = settings(max_examples=MANY or 150, derandomize=not MANY, database=None, deadline=None)


def user(text: str, **more: Any) -> Json:
    return {"type": "message", "role": "user", "content": text, **more}


def assistant(text: str, **more: Any) -> Json:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}], **more}


def called(call_id: str, arguments: str = '{"x": 1}', **more: Any) -> Json:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": arguments, **more}


def output(call_id: str, text: Any = "42") -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


HISTORY = [user("Hi", id="msg_u"), assistant("Let me.", id="msg_a"), called("c1", id="fc_1")]
ANSWERED = [*HISTORY, output("c1"), assistant("It is 42.", id="msg_b")]
# What was, what the client sends, and the places of what is new of it.
SENT: dict[str, tuple[list[Json], list[Json], list[int]]] = {
    "Open WebUI: the message, the call without its id, the output": (
        HISTORY,
        [assistant("Let me.", id="msg_a"), called("c1"), output("c1")],
        [2],
    ),
    "Open WebUI, whose message has lost its id": (HISTORY, [assistant("Let me."), called("c1"), output("c1")], [2]),
    "Open WebUI, a round later, without any ids": (
        [*HISTORY, output("c1"), assistant("Once more.", id="msg_c"), called("c2", id="fc_2")],
        [assistant("Let me."), called("c1"), output("c1"), assistant("Once more."), called("c2"), output("c2")],
        [5],
    ),
    "CAMEL: the call and the output": (HISTORY, [called("c1"), output("c1")], [1]),
    "Semantic Kernel: the user's message and the output": (HISTORY, [user("Hi"), output("c1")], [1]),
    "Semantic Kernel, a round later": (
        [*HISTORY, output("c1"), called("c2")],
        [user("Hi"), output("c1"), output("c2")],
        [2],
    ),
    "all of it": (ANSWERED, [*ANSWERED, user("And?")], [5]),
    "all of it without ids": (
        ANSWERED,
        [user("Hi"), assistant("Let me."), called("c1"), output("c1"), assistant("It is 42."), user("And?")],
        [5],
    ),
    "the answer alone": (ANSWERED, [assistant("It is 42."), user("And?")], [1]),
    "behind what is new": (HISTORY, [output("c1"), called("c1")], [0]),
    "arguments that were written anew": (HISTORY, [called("c1", '{"x":1}'), output("c1")], [1]),
    "an output as parts": (ANSWERED, [output("c1", [{"type": "input_text", "text": "42"}]), user("And?")], [1]),
    "reasoning by its id": (
        [{"type": "reasoning", "id": "rs_1", "summary": [], "content": []}, *HISTORY],
        [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"}, called("c1"), output("c1")],
        [2],
    ),
    "a custom tool's": (
        [{"type": "custom_tool_call", "call_id": "c1", "name": "f", "input": "x"}],
        [
            {"type": "custom_tool_call", "call_id": "c1", "name": "f", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "y"},
        ],
        [1],
    ),
    "a shell's": (
        [{"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"], "timeout_ms": None}}],
        [
            {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}},
            {"type": "shell_call_output", "call_id": "c1", "output": [{"stdout": "a"}]},
        ],
        [1],
    ),
    "a user who says a thing twice": (ANSWERED, [user("Hi")], [0]),
    "a user who says it behind an output": (HISTORY, [output("c1"), user("Hi")], [0, 1]),
    "the same answer in another conversation": (
        ANSWERED,
        [user("Else"), assistant("It is 42."), user("Hi")],
        [0, 1, 2],
    ),
    "an id that comes again, with another output": (ANSWERED, [called("c1"), output("c1", "43")], [0, 1]),
    "a message that was edited": (ANSWERED, [assistant("It is 43.", id="msg_b")], [0]),
}


@pytest.mark.parametrize(("history", "sent", "new"), SENT.values(), ids=SENT)
def test_what_is_sent_again_is_left_out(history: list[Json], sent: list[Json], new: list[int]) -> None:
    given_ = input_items(sent)
    items, places = without_repeats(input_items(history), given_)
    assert items == [given_[place] for place in new]
    assert places == (None if new == list(range(len(sent))) else new)
    assert may_repeat(input_items(history), sent) or places is None, "it is not looked at"
    check_input([*input_items(history), *items], len(history), places)


DIFFERENT: dict[str, tuple[list[Json], list[Json], str | None]] = {
    "another output": (ANSWERED, [user("Hi"), output("c1", "43")], "input[1].call_id"),
    "another output beside the same": (ANSWERED, [output("c1"), output("c1", "43")], "input[0].call_id"),
    "other arguments": (HISTORY, [called("c1", '{"x": 2}'), output("c1")], "input"),
    "another function": (HISTORY, [called("c1", name="g"), output("c1")], "input"),
    "an output of nothing behind what is left out": (ANSWERED, [called("c1"), output("c9")], "input[1].call_id"),
}


@pytest.mark.parametrize(("history", "sent", "param"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_refused_at_its_place(history: list[Json], sent: list[Json], param: str) -> None:
    items, places = without_repeats(input_items(history), input_items(sent))
    with pytest.raises(InvalidRequest) as refused:
        check_input([*input_items(history), *items], len(history), places)
    assert refused.value.param == param


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """A conversation of whole turns. The same is said in it again and again."""
    items: list[Json] = []
    for number in range(draw(st.integers(1, 4))):
        items.append(user(draw(st.sampled_from(["Hi", "Go on", ""]))))
        for again in range(draw(st.integers(0, 2))):
            ids = [f"c{number}.{again}.{place}" for place in range(draw(st.integers(1, 2)))]
            if draw(st.booleans()):
                items.append(assistant("Let me."))
            items += [called(call_id, draw(st.sampled_from(['{"x": 1}', "{}"]))) for call_id in ids]
            items += [output(call_id, draw(st.sampled_from(["42", ""]))) for call_id in ids]
        items.append(assistant(draw(st.sampled_from(["Yes", "It is so"]))))
    return items


@law
@given(conversations(), st.data())
def test_whatever_of_a_conversation_comes_again_only_what_is_new_is_left(
    items: list[Json], data: st.DataObject
) -> None:
    """The end of the history, from anywhere, with ids or without: calls and outputs are known, and messages before
    them; of what is new (the outputs of the last calls, or words), everything stays."""
    ends = [cut for cut in range(1, len(items) + 1) if items[cut - 1]["type"] != "function_call_output"]
    cut = data.draw(st.sampled_from([cut for cut in ends if items[cut - 1].get("role") != "user"]))
    while cut < len(items) and items[cut]["type"] == "function_call":
        cut += 1
    history = input_items(items[:cut])
    new = [user("And now?")]
    while cut < len(items) and items[cut]["type"] == "function_call_output":
        new.insert(-1, items[cut])
        cut += 1
    first = data.draw(st.integers(0, len(history)))
    keeps_ids = data.draw(st.booleans())
    again = [item if keeps_ids else {key: item[key] for key in item if key != "id"} for item in history[first:]]
    given_ = input_items([*again, *new])
    left, places = without_repeats(history, given_)
    assert [item["id"] for item in given_[len(again) :]] == [item["id"] for item in left[-len(new) :]]
    by_name = [item for item in left[: -len(new)] if keeps_ids or item["type"] != "message"]
    assert not by_name, "what has a name is known anywhere"
    check_input([*history, *left], len(history), places)


@law
@given(conversations(), conversations())
def test_of_another_conversation_nothing_is_left_out(items: list[Json], others: list[Json]) -> None:
    renamed = [item | {"call_id": f"other {item['call_id']}"} if "call_id" in item else item for item in others]
    given_ = input_items([user("Something else"), *renamed])
    assert without_repeats(input_items(items), given_) == (given_, None)


@pytest.mark.parametrize(
    "stored",
    [
        {"type": "function_call", "call_id": "c1"},
        {"type": "custom_tool_call", "call_id": "c1", "input": "x"},
        {"type": "shell_call", "call_id": "c1", "action": "ls"},
        {"type": "message", "content": None},
        {"type": "message", "role": "assistant", "content": [5, {"text": 5}]},
        {"type": "function_call_output", "call_id": ["c1"], "output": 5},
    ],
)
def test_what_a_server_has_left_out_of_its_items_is_no_failure(stored: Json) -> None:
    given_ = input_items([called("c1"), {"type": "custom_tool_call", "call_id": "c1", "name": "f"}, assistant("x")])
    assert without_repeats([{**stored, "id": "x"}], given_) == (given_, None)


@law
@given(conversations(), st.data())
def test_what_is_not_looked_at_has_no_repeats(items: list[Json], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(items)))
    history, sent = input_items(items[:cut]), data.draw(st.lists(st.sampled_from(items), max_size=3))
    if not may_repeat(history, sent):
        given_ = input_items(sent)
        assert without_repeats(history, given_) == (given_, None)


def test_many_of_one_kind_are_compared_once_each() -> None:
    """A history and an input of thousands that look alike take no time worth a name."""
    history = input_items([assistant("a") for _ in range(5000)])
    alike = [called("c") for _ in range(5000)] + [user("b") for _ in range(5000)]
    without_repeats([*history, *input_items([called("c", "{}") for _ in range(5000)])], input_items(alike))


# ── at every door and backend ────────────────────────────────────────────────────────────────────────────────────────

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def messages(backend: FakeBackend) -> list[Any]:
    """What the backend was sent last, of the conversation."""
    sent = backend.turns[-1].json
    return sent["messages"] if "messages" in sent else [item["type"] for item in map(_typed, sent["input"])]


def _typed(item: Json) -> Json:
    return {"type": "message"} | item


async def begun(running: Running, backend: FakeBackend, answer: Any) -> tuple[Json, list[Json]]:
    """A response with a call, and what a client sends behind it that repeats itself."""
    backend.script(answer("Let me.", call("f", {"x": 1})), answer("It is 42."))
    first = await create(running.http, input="Hi", tools=[TOOL])
    said, made = first["output"]
    lost_id = {key: made[key] for key in ("type", "call_id", "name", "arguments")}
    return first, [user("Hi"), said, lost_id, output(made["call_id"])]


CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Let me."},
    {"role": "tool", "content": "42"},
]


def check_sent(backend: FakeBackend) -> None:
    sent = messages(backend)
    if isinstance(sent[0], str):
        assert sent == ["message", "message", "function_call", "function_call_output"]
        return
    kept = [{key: message[key] for key in ("role", "content")} for message in sent]
    assert kept == CHAT


@pytest.mark.parametrize("way", ["json", "stream", "background"])
async def test_a_chat_backend_sees_the_conversation_once(served: Running, backend: FakeBackend, way: str) -> None:
    first, again = await begun(served, backend, chat)
    await _sent(served, way, first, again)
    check_sent(backend)


@pytest.mark.parametrize("way", ["json", "stream", "background"])
async def test_a_native_backend_sees_the_conversation_once(
    served_natively: Running, backend: FakeBackend, way: str
) -> None:
    first, again = await begun(served_natively, backend, native)
    await _sent(served_natively, way, first, again)
    check_sent(backend)


async def _sent(running: Running, way: str, first: Json, again: list[Json]) -> None:
    request = {"input": again, "tools": [TOOL], "previous_response_id": first["id"]}
    if way == "stream":
        assert (await stream(running.http, **request))[-1]["type"] == "response.completed"
        return
    response = await create(running.http, background=way == "background", **request)
    if way == "background":
        response = await ended(running.http, response["id"])
    assert response["status"] == "completed"
    listed = (await running.http.get(f"/v1/responses/{response['id']}/input_items", params={"order": "asc"})).json()
    types = [item["type"] for item in listed["data"]]
    assert types == ["message", "message", "function_call", "function_call_output"], "a repeat was stored"


async def test_reasoning_that_comes_again_is_left_out(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(native(reasoning("Hm."), call("f", {"x": 1})), native("It is 42."))
    first = await create(served_natively.http, input="Hi", tools=[TOOL])
    again = [*first["output"], output(first["output"][1]["call_id"])]
    await create(served_natively.http, input=again, tools=[TOOL], previous_response_id=first["id"])
    sent = messages(backend)
    assert sent.count("reasoning") <= 1
    assert sent.count("function_call") == sent.count("function_call_output") == 1


async def test_a_socket_knows_what_it_remembers(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Let me.", call("f", {"x": 1})), chat("It is 42."))
    async with connected(served) as lane:
        first = await lane.answer(tools=[TOOL], store=False)
        said, made = first["output"]
        again = [user("Hi"), said, {**made, "id": None}, output(made["call_id"])]
        second = await lane.answer(input=again, tools=[TOOL], store=False, previous_response_id=first["id"])
    assert second["status"] == "completed"
    check_sent(backend)


async def test_what_differs_is_a_400_that_names_its_place(served: Running, backend: FakeBackend) -> None:
    first, again = await begun(served, backend, chat)
    second = await create(served.http, input=again, tools=[TOOL], previous_response_id=first["id"])
    call_id = again[-1]["call_id"]
    for changed in (output(call_id, "43"), {**output(call_id), "output": [{"type": "input_text", "text": "43"}]}):
        request = {"input": [again[1], changed], "previous_response_id": second["id"], "model": "test-model"}
        answer = await served.http.post("/v1/responses", json=request)
        assert_error(answer, 400, param="input[1].call_id")
        assert "Duplicate output" in answer.text
