"""What a response was made from, as the official SDK lists it."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from requests.included import INCLUDABLE, SHORTENED, without_unasked
from tests.conftest import Running
from tests.fake_backend import FakeBackend, call, chat, reasoning, with_logprobs
from tests.sdk import MODEL, PIXEL, WEATHER_TOOL

OUTPUT = {"type": "function_call_output", "output": "rain"}


async def conversation(served: Running, backend: FakeBackend, turns: int) -> list[Any]:
    """The responses of a conversation with a tool call in it."""
    backend.script(chat(call("get_weather", {"city": "Oslo"})), *[chat(f"Answer {n}.") for n in range(1, turns)])
    responses: list[Any] = []
    for n in range(turns):
        given: Any = f"Question {n}."
        if n == 1:
            given = [{**OUTPUT, "call_id": responses[0].output[-1].call_id}]
        before = responses[-1].id if responses else None
        responses.append(
            await served.openai.responses.create(
                model=MODEL, input=given, previous_response_id=before, tools=[WEATHER_TOOL]
            )
        )
    return responses


def said(item: Any) -> Any:
    return item.content[0].text if item.type == "message" else item.type


async def test_a_chained_response_lists_the_whole_conversation(served: Running, backend: FakeBackend) -> None:
    responses = await conversation(served, backend, 4)
    expected = [
        *("Question 0.", "function_call", "function_call_output", "Answer 1."),
        *("Question 2.", "Answer 2.", "Question 3."),
    ]
    list_items = served.openai.responses.input_items.list
    for limit in (1, 3, 100):
        oldest_first = [item async for item in list_items(responses[-1].id, order="asc", limit=limit)]
        assert [said(item) for item in oldest_first] == expected
        latest_first = [item async for item in list_items(responses[-1].id, limit=limit)]
        assert latest_first == oldest_first[::-1]
    assert [item.id for item in oldest_first][1] == responses[0].output[0].id
    first = [item async for item in list_items(responses[0].id)]
    assert [said(item) for item in first] == ["Question 0."]


async def test_a_page_names_its_ends(served: Running, backend: FakeBackend) -> None:
    responses = await conversation(served, backend, 3)
    url = f"/v1/responses/{responses[-1].id}/input_items"
    page = (await served.http.get(url, params={"limit": 2, "order": "asc"})).json()
    assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [page["first_id"], page["last_id"]] == [item["id"] for item in page["data"]]


async def test_what_is_no_item_begins_no_page(served: Running, backend: FakeBackend) -> None:
    responses = await conversation(served, backend, 2)
    own = responses[-1].output[0].id
    for unknown in ("msg_unknown", own):
        with pytest.raises(BadRequestError) as refused:
            await served.openai.responses.input_items.list(responses[-1].id, after=unknown)
        assert refused.value.param == "after"
    with pytest.raises(NotFoundError):
        await served.openai.responses.input_items.list("resp_none")


async def test_what_include_does_not_ask_for_is_left_out(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), with_logprobs("Hello.")), chat("Again."))
    first = await served.openai.responses.create(
        model=MODEL,
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL, "detail": "auto"}]}],
    )
    second = await served.openai.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    url = f"/v1/responses/{second.id}/input_items"

    async def listed(*include: str) -> tuple[Any, Any, Any]:
        params = [("order", "asc"), *(("include[]", value) for value in include)]
        picture, thought, text, _ = (await served.http.get(url, params=params)).json()["data"]
        return picture["content"][0]["image_url"], thought.get("encrypted_content"), text["content"][0]["logprobs"]

    assert await listed() == (None, None, [])
    image, sealed, logprobs = await listed(
        "message.input_image.image_url", "reasoning.encrypted_content", "message.output_text.logprobs"
    )
    assert image == PIXEL
    assert sealed
    assert logprobs
    assert await listed("message.input_image.image_url") == (PIXEL, None, [])


async def test_an_include_that_nothing_comes_of_is_named(served: Running) -> None:
    created = await served.openai.responses.create(model=MODEL, input="Hi")
    url = f"/v1/responses/{created.id}/input_items"
    answer = await served.http.get(url, params={"include": ["message.moon", "reasoning.encrypted_content"]})
    assert answer.headers["x-nomyo-ignored"] == "include.message.moon"
    answer = await served.http.get(url.removesuffix("/input_items"), params={"include[]": ["a.b", "c"]})
    assert answer.headers["x-nomyo-ignored"] == "include.a.b, include.c"
    assert "x-nomyo-ignored" not in (await served.http.get(url)).headers


@pytest.mark.parametrize("kind", SHORTENED)
@pytest.mark.parametrize("value", [None, 7, "text", [], [7], {}, {"a": 1}])
def test_an_item_may_hold_anything(kind: str, value: Any) -> None:
    keys = ("content", "action", "output", "outputs", "results", "encrypted_content")
    item = {"type": kind, "id": "x", **dict.fromkeys(keys, value)}
    assert without_unasked(item, INCLUDABLE) == item
    assert without_unasked(item, ())["id"] == "x"
