"""A server that takes a tool choice or a schema and ignores it: the client reads which."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.heeded import demands, ignored_demands
from requests.params import check_request
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, native, refusal
from tests.sdk import WEATHER_TOOL
from tests.stream_grammar import check_stream
from tests.turns import URL, assert_error, stream, turn

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
STRICT = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": SCHEMA}}
NAMED = {"type": "function", "name": "get_weather"}
IGNORED = "x-nomyo-ignored"
Json = dict[str, Any]

FORCED: list[Json] = [
    {"tool_choice": "required"},
    {"tool_choice": NAMED},
    {"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}},
]
NATIVE_TOO = pytest.mark.parametrize("natively", [False, True], ids=["chat", "native"])


@pytest.fixture
def at(served: Running, served_natively: Running) -> dict[bool, Running]:
    return {False: served, True: served_natively}


class TestAJsonAnswer:
    @NATIVE_TOO
    @pytest.mark.parametrize("choice", FORCED, ids=["required", "named", "allowed"])
    async def test_names_a_tool_choice_that_was_ignored(
        self, at: dict[bool, Running], backend: FakeBackend, natively: bool, choice: Json
    ) -> None:
        backend.default = (native if natively else chat)("It is sunny.")
        answer = await at[natively].http.post(URL, json=turn(tools=[WEATHER_TOOL], **choice))
        assert answer.headers[IGNORED] == "tool_choice"
        assert answer.json()["status"] == "completed"

    @NATIVE_TOO
    @pytest.mark.parametrize("text", ["Ada.", "[1]", '{"age": 3}', "7"])
    async def test_names_a_schema_that_was_ignored(
        self, at: dict[bool, Running], backend: FakeBackend, natively: bool, text: str
    ) -> None:
        backend.default = (native if natively else chat)(text)
        answer = await at[natively].http.post(URL, json=turn(text=STRICT))
        assert answer.headers[IGNORED] == "text.format"

    @NATIVE_TOO
    async def test_names_nothing_that_was_heeded(
        self, at: dict[bool, Running], backend: FakeBackend, natively: bool
    ) -> None:
        made = native if natively else chat
        for answer, params in (
            (
                made(call("get_weather", {"city": "Paris"})),
                {"tools": [WEATHER_TOOL], "tool_choice": NAMED, "text": STRICT},
            ),
            (made('{"name": "Ada"}'), {"text": STRICT}),
            (made("{}"), {"text": {"format": {"type": "json_object"}}}),
            (made("Ada."), {"tools": [WEATHER_TOOL], "tool_choice": "auto", "text": {"verbosity": "low"}}),
            (made(refusal("I will not.")), {"text": STRICT}),
        ):
            backend.script(answer)
            assert IGNORED not in (await at[natively].http.post(URL, json=turn(**params))).headers


@NATIVE_TOO
async def test_the_last_response_of_a_stream_names_it(
    at: dict[bool, Running], backend: FakeBackend, natively: bool
) -> None:
    backend.default = (native if natively else chat)("It is sunny.")
    events = await stream(at[natively].http, tools=[WEATHER_TOOL], tool_choice="required", text=STRICT)
    check_stream(events)
    assert events[-1]["response"]["nomyo"]["ignored"] == "tool_choice, text.format"
    backend.default = (native if natively else chat)(call("get_weather", {"city": "Paris"}))
    events = await stream(at[natively].http, tools=[WEATHER_TOOL], tool_choice="required", text=STRICT)
    assert "nomyo" not in events[-1]["response"]


class TestVerify:
    """`adapt.verify`: also where the server holds its model to the format."""

    @pytest.fixture
    async def verifying(self, backend: FakeBackend) -> Any:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat", "structured_outputs": "native"}]
        async with running_router(endpoints=endpoints, adapt={"verify": True}) as running:
            yield running

    async def test_an_answer_that_fits_is_asked_for_once_and_as_ever(
        self, verifying: Running, backend: FakeBackend
    ) -> None:
        backend.default = chat('{"name": "Ada"}')
        answer = await verifying.http.post(URL, json=turn(text=STRICT))
        assert answer.json()["output"][0]["content"][0]["text"] == '{"name": "Ada"}'
        (asked,) = backend.turns
        assert asked.json["response_format"]["json_schema"]["schema"] == SCHEMA
        assert [message["role"] for message in asked.json["messages"]] == ["user"], "nothing is described to the model"

    async def test_one_that_does_not_is_repaired_by_the_same_server(
        self, verifying: Running, backend: FakeBackend
    ) -> None:
        backend.script(chat('{"age": 3}'), chat('{"name": "Ada"}'))
        events = await stream(verifying.http, text=STRICT)
        check_stream(events)
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == '{"name": "Ada"}'
        assert all("response_format" in asked.json for asked in backend.turns)
        assert len(backend.turns) == 2

    async def test_one_that_never_does_is_a_failure_that_names_it(
        self, verifying: Running, backend: FakeBackend
    ) -> None:
        backend.default = chat('{"name": 7}')
        assert_error(await verifying.http.post(URL, json=turn(text=STRICT)), 502, code="invalid_structured_output")

    async def test_a_schema_that_is_not_strict_is_not_checked(self, verifying: Running, backend: FakeBackend) -> None:
        backend.default = chat("Ada.")
        lax = {"format": STRICT["format"] | {"strict": False}}
        assert (await verifying.http.post(URL, json=turn(text=lax))).status_code == 200


CHOICES = st.sampled_from(["auto", "none", None, "required", NAMED])
ITEMS = st.lists(
    st.sampled_from(
        [
            {"type": "function_call", "name": "get_weather", "arguments": "{}"},
            {"type": "web_search_call"},
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": '{"name": "Ada"}'}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Ada"}]},
            {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]},
        ]
    ),
    max_size=3,
)


@given(CHOICES, st.booleans(), ITEMS, st.sampled_from(["completed", "incomplete", "failed"]))
def test_only_what_was_demanded_is_ever_named(choice: Any, has_format: bool, items: list[Json], status: str) -> None:
    body: Json = {"model": "m", "input": "Hi", "tools": [WEATHER_TOOL]}
    body |= {"tool_choice": choice} if choice else {}
    body |= {"text": STRICT} if has_format else {}
    params = check_request(body)
    named = ignored_demands(params, {"status": status, "output": items})
    assert set(named) <= set(demands(params))
    if status != "completed" or any(item["type"].endswith("_call") for item in items):
        assert not named
