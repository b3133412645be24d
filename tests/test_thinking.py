"""`<think>…</think>` at the start of a text is parted from it, however the tags are cut. What backends read of
thoughts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from requests.thinking import CLOSING, OPENING, ThinkSplitter, split_thinking, with_thoughts_apart
from tests import fake_backend as fake
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.stream_grammar import check_stream
from tests.streams import bare, builder, call, called, calls, decoded, ends, judged, said, says, thinks, thought
from tests.turns import create, stream

# Texts that are made of what matters here: tags, whole and broken, and what may stand around them.
pieces = st.sampled_from([OPENING, CLOSING, "<", ">", "</", "think", "<thin", "</think", " ", "\n", "a", "Hm. ", "é🙂"])
texts = st.lists(pieces, max_size=8).map("".join)


def split_at(text: str, cuts: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(borders)]


def split(fragments: list[str]) -> tuple[str, str]:
    splitter = ThinkSplitter()
    pieces = [piece for fragment in fragments for piece in splitter.feed(fragment)] + splitter.flush()
    assert all(text for _, text in pieces), f"an empty piece: {pieces}"
    kinds = [is_thought for is_thought, _ in pieces]
    assert kinds == sorted(kinds, reverse=True), "a thought behind the text"
    return "".join(text for is_thought, text in pieces if is_thought), "".join(
        text for is_thought, text in pieces if not is_thought
    )


@given(texts, st.lists(st.integers(0, 99), max_size=9))
@example("<think>a</think>b", [])
def test_any_cut_gives_the_same(text: str, cuts: list[int]) -> None:
    assert split(split_at(text, cuts)) == split([text]) == split_thinking(text)


@given(texts)
def test_single_characters_give_the_same(text: str) -> None:
    assert split(list(text)) == split([text])


@given(texts)
def test_a_text_that_does_not_begin_with_the_tag_is_left_as_it_is(text: str) -> None:
    if not text.lstrip().startswith(OPENING):
        assert split_thinking(text) == ("", text)


@given(texts, texts)
def test_nothing_is_lost_but_the_tags_and_the_space_around_them(inner: str, answer: str) -> None:
    if CLOSING not in inner:
        assert split_thinking(f"{OPENING}{inner}{CLOSING}{answer}") == (inner.lstrip(), answer.lstrip())


SPLIT: dict[str, tuple[str, tuple[str, str]]] = {
    "a thought and a text": ("<think>\nHm.\n</think>\n\nHello", ("Hm.\n", "Hello")),
    "behind white space": ("\n <think>Hm.</think>Hello", ("Hm.", "Hello")),
    "an empty thought": ("<think>\n\n</think>\n\nHello", ("", "Hello")),
    "a thought that does not end": ("<think>Hm. I", ("Hm. I", "")),
    "a thought cut in its closing tag": ("<think>Hm.</thi", ("Hm.</thi", "")),
    "a tag alone": ("<think>", ("", "")),
    "a tag and white space alone": ("<think>\n ", ("", "")),
    "half a tag": ("<thi", ("", "<thi")),
    "no text behind the thought": ("<think>Hm.</think>\n", ("Hm.", "")),
    "later tags are text": ("<think>a</think>b <think>c</think>", ("a", "b <think>c</think>")),
    "a tag in the middle is text": ("I write <think>x</think>", ("", "I write <think>x</think>")),
    "a closing tag alone is text": ("Hm.</think>Hello", ("", "Hm.</think>Hello")),
    "another tag is text": ("<thinking>Hm.</thinking>", ("", "<thinking>Hm.</thinking>")),
    "tags have small letters": ("<THINK>Hm.</THINK>", ("", "<THINK>Hm.</THINK>")),
    "an opening tag in the thought": ("<think>a <think> b</think>c", ("a <think> b", "c")),
    "white space alone": (" \n", ("", " \n")),
    "nothing": ("", ("", "")),
}


@pytest.mark.parametrize(("text", "expected"), SPLIT.values(), ids=SPLIT)
def test_tags_at_the_start_alone_hold_a_thought(text: str, expected: tuple[str, str]) -> None:
    assert split_thinking(text) == expected
    assert split(list(text)) == expected


def test_text_is_not_held_back_longer_than_it_may_be_a_tag() -> None:
    splitter = ThinkSplitter()
    assert splitter.feed("<th") == []
    assert splitter.feed("e") == [(False, "<the")]
    assert splitter.feed(" <think>") == [(False, " <think>")]
    splitter = ThinkSplitter()
    assert splitter.feed("<think>Hm") == [(True, "Hm")]
    assert splitter.feed(" </th") == [(True, " ")]
    assert splitter.feed("e") == [(True, "</the")]
    assert splitter.feed("</think>\n") == []
    assert splitter.feed("Hello") == [(False, "Hello")]


@pytest.mark.parametrize(("text", "expected"), SPLIT.values(), ids=SPLIT)
def test_a_whole_message_is_split_as_a_stream_is(text: str, expected: tuple[str, str]) -> None:
    message = with_thoughts_apart({"role": "assistant", "content": text})
    assert (message.get("reasoning_content") or "", message["content"]) == expected


def test_a_message_without_thoughts_is_left_as_it_is() -> None:
    for message in ({"content": None}, {"content": [{"type": "text", "text": "<think>a</think>"}]}, {}):
        assert with_thoughts_apart(message) == message


def streamed(*chunks: dict) -> list[dict]:
    """The output of a stream of a backend that leaves the tags in."""
    made = builder()
    made.expect_think_tags()
    events = made.start()
    for chunk in decoded(*chunks):
        events += made.chunk(chunk)
    events = judged([*events, *made.finish(), made.end()])
    return bare(events[-1]["response"]["output"])


def test_what_was_held_back_comes_before_what_begins_next() -> None:
    begun = call(0, "c1", "f", "{}")
    for held in ("\n\n", "<thi"):
        assert streamed(says(held), calls(begun), ends("tool_calls")) == [said(held), called("c1")]
    assert streamed(says("<think>Hm.</thi"), calls(begun), ends("tool_calls")) == [thought("Hm.</thi"), called("c1")]


def test_half_a_call_is_not_whole_because_white_space_was_held_back() -> None:
    for held in ("\n\n", "<thi", "<think>Hm.</thi"):
        *_, last = streamed(says(held), calls(call(0, "c1", "f", '{"cmd": "rm')), ends("length"))
        assert last == called("c1", arguments='{"cmd": "rm', status="incomplete")


def test_a_thought_is_parted_from_a_text_in_a_stream() -> None:
    assert streamed(*map(says, "<think>\nHm.</think>\n\nHello"), ends()) == [thought("Hm."), said("Hello")]
    assert streamed(says("<think>Hm."), ends("length")) == [thought("Hm.")]
    assert streamed(says("<think>\n\n</think>\n\nHello"), ends()) == [said("Hello")]
    assert streamed(says("<thi"), ends("length")) == [said("<thi", status="incomplete")]


def test_a_thought_of_its_own_and_one_in_the_text_are_both_thoughts() -> None:
    output = streamed(thinks("Hm."), says("<think>So.</think>Hello"), ends())
    assert [item["type"] for item in output] == ["reasoning", "message"]
    assert "".join(part["text"] for part in output[0]["content"]) == "Hm.So."
    assert output[1] == said("Hello")


# What the templates of a server have opened, the model only closes.
OPENED = {
    "a thought and a text": ("I add.\n</think>\n\nFour.", ("I add.\n", "Four.")),
    "the tag all the same": ("<think>\nI add.\n</think>\n\nFour.", ("I add.\n", "Four.")),
    "an empty thought": ("\n</think>\n\nFour.", ("", "Four.")),
    "a thought that never ends": ("I add.", ("I add.", "")),
    "another tag behind it": ("I add.</think>a</think>b", ("I add.", "a</think>b")),
    "nothing": ("", ("", "")),
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize(("text", "expected"), OPENED.values(), ids=OPENED)
def test_a_tag_that_a_template_has_opened_is_closed_by_the_model(
    text: str, expected: tuple[str, str], size: int
) -> None:
    splitter = ThinkSplitter(is_open=True)
    pieces = [piece for at in range(0, len(text), size) for piece in splitter.feed(text[at : at + size])]
    pieces += splitter.flush()
    assert (
        tuple("".join(piece for is_thought, piece in pieces if is_thought is kind) for kind in (True, False))
        == expected
    )
    message = with_thoughts_apart({"content": text}, are_open=True)
    assert (message["reasoning_content"], message["content"]) == expected


TAGGED: dict[tuple[str, Any], list[tuple[str, str]]] = {
    ("<think>Hm.</think>Yo", None): [("reasoning", "Hm."), ("message", "Yo")],
    ("<think>Hm.</think>Yo", "auto"): [("reasoning", "Hm."), ("message", "Yo")],
    ("<think>Hm.</think>Yo", "off"): [("message", "<think>Hm.</think>Yo")],
    # As YAML reads `off`.
    ("<think>Hm.</think>Yo", False): [("message", "<think>Hm.</think>Yo")],
    ("Hm.</think>Yo", "auto"): [("message", "Hm.</think>Yo")],
    ("Hm.</think>Yo", "opened"): [("reasoning", "Hm."), ("message", "Yo")],
}


@pytest.mark.parametrize("as_stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["llama.cpp", "vllm", "openai-chat", "ollama", "lmstudio"])
@pytest.mark.parametrize(("sent", "expected"), TAGGED.items(), ids=map(str, TAGGED))
async def test_the_tags_are_read_as_the_settings_say(
    kind: str, sent: tuple[str, Any], expected: list[tuple[str, str]], as_stream: bool, backend: FakeBackend
) -> None:
    text, setting = sent
    settings = {} if setting is None else {"think_tags": setting}
    url = f"{backend.url}/v1" if kind == "openai-chat" else backend.url
    async with running_router(endpoints=[{"url": url, "kind": kind, **settings}]) as running:
        backend.default = fake.chat(text, as_stream=as_stream)
        for response in (await create(running.http), (await stream(running.http))[-1]["response"]):
            said_ = [(item["type"], item["content"][0]["text"]) for item in response["output"]]
            assert said_ == expected


@pytest.mark.parametrize("as_stream", [True, False], ids=["stream", "whole"])
async def test_a_server_that_takes_its_thoughts_out_by_itself_may_be_called_opened(
    as_stream: bool, backend: FakeBackend
) -> None:
    endpoint = {"url": backend.url, "kind": "vllm", "think_tags": "opened"}
    async with running_router(endpoints=[endpoint]) as running:
        backend.script(fake.chat(fake.reasoning("Hm."), "Yo", as_stream=as_stream))
        response = await create(running.http)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][1]["content"][0]["text"] == "Yo"


# ── what a backend reads: earlier thoughts, and how much to think ──────────────────────────────────────────────────

REPLAYED: dict[str, dict[str, Any]] = {
    "reasoning_content": {"reasoning_content": "Hm."},
    "reasoning": {"reasoning": "Hm."},
    "think_tags": {},
    "none": {},
}
BY_KIND = {
    "openai-chat": "reasoning_content",
    "llama.cpp": "reasoning_content",
    "ollama": "reasoning",
    "vllm": "reasoning",
}


@pytest.mark.parametrize(
    ("kind", "setting", "replay"),
    [*(("openai-chat", setting, setting) for setting in REPLAYED), *((kind, None, by) for kind, by in BY_KIND.items())],
)
async def test_earlier_thoughts_are_where_the_backend_reads_them(
    kind: str, setting: str | None, replay: str, backend: FakeBackend
) -> None:
    backend.strict = True
    endpoint = {"url": backend.url if kind != "openai-chat" else f"{backend.url}/v1", "kind": kind}
    async with running_router(endpoints=[endpoint | ({"reasoning_replay": setting} if setting else {})]) as running:
        tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
        backend.script(
            fake.chat(fake.reasoning("Hm."), "Yo"),
            fake.chat(fake.reasoning("Hm."), fake.call("f", id="c")),
            fake.chat("So."),
        )
        first = await create(running.http, input="Hi")
        second = await create(running.http, input="Well?", previous_response_id=first["id"], tools=tools)
        output = {"type": "function_call_output", "call_id": "c", "output": "1"}
        third = await create(running.http, input=[output], previous_response_id=second["id"], tools=tools)
    assert third["status"] == "completed"
    texts, others = ("Yo", None), REPLAYED[replay]
    if replay == "think_tags":
        texts = ("<think>\nHm.\n</think>\n\nYo", "<think>\nHm.\n</think>")
    asked, answered, again, called_, output_ = backend.turns[-1].json["messages"]
    assert [asked["content"], again["content"], output_["content"]] == ["Hi", "Well?", "1"]
    assert answered == {"role": "assistant", "content": texts[0], **others}
    function = {"name": "f", "arguments": "{}"}
    assert called_.pop("tool_calls") == [{"id": "c", "type": "function", "function": function}]
    assert called_ == {"role": "assistant", "content": texts[1], **others}


EFFORTS_SENT: list[tuple[dict[str, Any], dict[str, str | None]]] = [
    ({"kind": "ollama"}, {"xhigh": "high", "max": "high", "minimal": "low", "medium": "medium", "none": "none"}),
    ({"kind": "openai-chat"}, {"xhigh": "xhigh", "minimal": "minimal", "none": "none"}),
    ({"kind": "ollama", "reasoning_efforts": []}, {"xhigh": None, "none": None, "low": None}),
    ({"kind": "openai-chat", "reasoning_efforts": ["low", "high"]}, {"none": "low", "medium": "low", "max": "high"}),
]


@pytest.mark.parametrize(("settings", "sent"), EFFORTS_SENT)
async def test_an_effort_is_sent_in_the_words_of_the_backend_and_echoed_in_the_clients(
    settings: dict[str, Any], sent: dict[str, str | None], backend: FakeBackend
) -> None:
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", **settings}]) as running:
        for effort, word in sent.items():
            response = await create(running.http, reasoning={"effort": effort})
            assert backend.turns[-1].json.get("reasoning_effort") == word, f"for {effort}"
            assert response["reasoning"]["effort"] == effort
        await create(running.http)
        assert "reasoning_effort" not in backend.turns[-1].json


@pytest.mark.parametrize("asked", [{"summary": "auto"}, {"generate_summary": "concise", "summary": None}], ids=str)
@pytest.mark.parametrize("as_stream", [True, False], ids=["stream", "whole"])
async def test_who_asks_for_a_summary_is_shown_the_thoughts_as_one(
    as_stream: bool, asked: dict[str, Any], served: Running, backend: FakeBackend
) -> None:
    """The AI SDK, LangChain and Codex show nothing else."""
    backend.script(fake.chat(fake.reasoning("Hm. So."), "Yo", as_stream=as_stream), fake.say("And?"))
    include = ["reasoning.encrypted_content"]
    events = await stream(served.http, reasoning=asked, include=include)
    check_stream(events)
    thought_item, message = events[-1]["response"]["output"]
    assert thought_item["summary"] == [{"type": "summary_text", "text": "Hm. So."}]
    assert not thought_item.get("content")
    assert served.app.state.sealer.open(thought_item["encrypted_content"], "reasoning") == "Hm. So."
    assert message["content"][0]["text"] == "Yo"
    types = [event["type"] for event in events]
    assert "response.reasoning_summary_part.added" in types
    assert "response.reasoning_summary_text.delta" in types
    assert not [type for type in types if type.startswith("response.reasoning_text")]
    await create(served.http, previous_response_id=events[-1]["response"]["id"])
    assert backend.turns[-1].json["messages"][1]["reasoning_content"] == "Hm. So.", "the backend knows its thoughts"
