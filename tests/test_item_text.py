"""Items of hosted tools, as a chat server's model reads them: pictures and sealed texts are named, real text stays
whole, and a picture goes as one where the model takes them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.content import EVERY_PART
from requests.item_text import item_as_text
from requests.messages import ATTACHED, responses_input_to_messages
from requests.truncation import truncated
from tests.conftest import Running
from tests.fake_backend import FakeBackend
from tests.sdk import PIXEL
from tests.test_laws import json_values, law, texts
from tests.turns import create

Json = dict[str, Any]
PNG = PIXEL.partition(",")[2]
# As large as screenshots are.
LARGE = base64.b64encode(base64.b64decode(PNG) + b"\0" * 112_500).decode()
LARGE_URL = f"data:image/png;base64,{LARGE}"
NO_PICTURES = EVERY_PART - {"image"}


def shown(item: Json, carries: frozenset[str] = EVERY_PART) -> tuple[str, list[str]]:
    """What a model reads of an item, and the URLs of the pictures that it is shown."""
    first, *behind = responses_input_to_messages([item], carries=carries)
    assert first["role"] == "assistant"
    parts = [part for message in behind for part in message["content"]]
    assert {part["type"] for part in parts} <= {"image_url"}
    return first["content"], [part["image_url"]["url"] for part in parts]


PICTURES: dict[str, Json] = {
    "what code has drawn": {
        "type": "code_interpreter_call",
        "code": "plot()",
        "outputs": [{"type": "logs", "logs": "done"}, {"type": "image", "url": LARGE_URL}],
    },
    "a screenshot": {
        "type": "computer_call_output",
        "call_id": "c1",
        "output": {"type": "computer_screenshot", "image_url": LARGE_URL},
    },
    "an image that was made": {"type": "image_generation_call", "result": LARGE, "output_format": "png"},
    "an image that was made, which says nothing of its format": {"type": "image_generation_call", "result": LARGE},
    "what an MCP server answered": {
        "type": "mcp_call",
        "name": "shot",
        "output": json.dumps([{"type": "text", "text": "see"}, {"type": "image", "url": LARGE_URL}]),
    },
    "what an MCP server answered, as parts": {
        "type": "mcp_call",
        "name": "shot",
        "output": [{"type": "image", "data": LARGE, "mimeType": "image/png"}],
    },
    "in the middle of a text": {"type": "acme:note", "text": f"Look: ![]({LARGE_URL}) (that is it)"},
    "deep inside": {"type": "acme:note", "a": [{"b": {"c": [[LARGE_URL]]}}]},
}


@pytest.mark.parametrize("item", PICTURES.values(), ids=PICTURES)
def test_a_picture_goes_as_a_picture(item: Json) -> None:
    said, pictures = shown(item)
    assert pictures == [LARGE_URL]
    assert "image/png" in said
    assert said.endswith(ATTACHED)
    assert len(said) < 500


@pytest.mark.parametrize("item", PICTURES.values(), ids=PICTURES)
def test_a_picture_is_only_named_where_the_model_takes_none(item: Json) -> None:
    said, pictures = shown(item, NO_PICTURES)
    assert pictures == []
    assert "(image/png, " in said
    assert "not shown" in said
    assert len(said) < 500


NOT_SHOWN: dict[str, tuple[str, str]] = {
    "a picture that no model takes": ("data:image/svg+xml;base64,PHN2Zy8+", "image/svg+xml"),
    "a picture that is none": ("data:image/png;base64,AAAA", "image/png"),
    "a picture that was cut off": (f"data:image/png;base64,{PNG[:-3]}", "image/png"),
    "a picture over several lines": (
        f"data:image/png;base64,{LARGE[:76]}\n{LARGE[76:152]}\n{LARGE[152:228]}",
        "image/png",
    ),
    "a sound": ("data:audio/wav;base64,UklGRg==", "audio/wav"),
    "a file": ("data:application/pdf;base64,JVBERi0xLjQK", "application/pdf"),
    "one that is no base64": ("data:image/svg+xml,%3Csvg/%3E", "image/svg+xml"),
    "one with parameters": ("data:text/plain;charset=utf-8;base64,aGk=", "text/plain"),
}


@pytest.mark.parametrize(("url", "kind"), NOT_SHOWN.values(), ids=NOT_SHOWN)
def test_other_data_is_only_named(url: str, kind: str) -> None:
    said, pictures = shown({"type": "acme:note", "text": f"before {url} after"})
    assert pictures == []
    assert said.startswith(f'[acme:note: {{"text":"before ({kind}, ')
    assert said.endswith(' characters, not shown) after"}]')


def test_a_sealed_text_is_named_at_any_depth() -> None:
    sealed = "gAAAA" * 5000
    item = {"type": "context_compaction", "encrypted_content": sealed, "inner": [{"encrypted_content": sealed}]}
    said, _ = shown(item)
    assert said == '[context_compaction: {"encrypted_content":"(sealed)","inner":[{"encrypted_content":"(sealed)"}]}]'


REAL: dict[str, str] = {
    "a long answer": "It rained, and the river rose. " * 1000,
    "a genome": "ACGT" * 10_000,
    "speaks of data": "data: yes, data:no, data:image, metadata:a/b",
    "JSON": json.dumps({"rows": [[number, number * 2] for number in range(3000)]}),
}


@pytest.mark.parametrize("text", REAL.values(), ids=REAL)
def test_real_text_stays_whole(text: str) -> None:
    said, pictures = shown({"type": "mcp_call", "name": "f", "output": text})
    assert json.loads(said.removeprefix("[mcp_call: ").removesuffix("]")) == {"name": "f", "output": text}
    assert pictures == []


def test_text_that_says_it_is_data_stays_whole() -> None:
    given = {"type": "text", "data": "hello", "mimeType": "text/plain"}
    said, _ = shown({"type": "acme:note", "given": given})
    assert json.loads(said.removeprefix("[acme:note: ").removesuffix("]")) == {"given": given}


def test_pictures_of_an_item_between_calls_are_behind_their_outputs() -> None:
    items = [
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "image_generation_call", "result": PNG},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
    ]
    messages = responses_input_to_messages(items)
    assert [message["role"] for message in messages] == ["assistant", "tool", "user"]
    assert messages[2]["content"] == [{"type": "image_url", "image_url": {"url": PIXEL}}]


def test_pictures_go_with_their_turn_when_a_conversation_is_shortened() -> None:
    items = [
        {"role": "user", "content": "one"},
        {"type": "image_generation_call", "result": PNG},
        {"role": "user", "content": "two"},
    ]
    messages = responses_input_to_messages(items)
    assert truncated(messages, excess_tokens=1, tokens_of=lambda message: 1) == messages[-1:]


@law
@given(st.dictionaries(texts.filter(bool), json_values, max_size=4), st.booleans())
def test_whatever_an_item_holds_it_is_text(fields: Json, shows_pictures: bool) -> None:
    said, _ = item_as_text({"type": "acme:note"} | fields | {"type": "acme:note"}, shows_pictures=shows_pictures)
    assert said.startswith("[acme:note: {")


@law
@given(st.text("data:/,;base64pngAZ+= \n", max_size=80))
def test_no_data_url_is_left(text: str) -> None:
    said, _ = item_as_text({"type": "acme:note", "text": text}, shows_pictures=False)
    again, _ = item_as_text(
        {"type": "acme:note", "text": json.loads(said[12:-1]).get("text", "")}, shows_pictures=False
    )
    assert again == said, "a second look finds something to name"


async def test_a_picture_of_an_earlier_turn_reaches_the_next_model(served: Running, backend: FakeBackend) -> None:
    backend.strict = True
    given = [{"role": "user", "content": "draw"}, {"type": "image_generation_call", "id": "ig_1", "result": PNG}]
    await create(served.http, input=[*given, {"role": "user", "content": "and?"}])
    *_, picture, question = backend.turns[-1].json["messages"]
    assert picture == {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}
    assert question == {"role": "user", "content": "and?"}
