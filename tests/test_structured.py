"""JSON formats for backends that cannot hold their model to one: the format is described to the model, its answer is
checked and repaired once."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import openai
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.errors import InvalidRequest
from requests.structured import Checker, format_prompt, repair_prompt
from tests.conftest import Running, running_router
from tests.fake_backend import (
    FakeBackend,
    call,
    chat,
    chat_usage,
    http_error,
    reasoning,
    refusal,
    strict_error,
    with_logprobs,
)
from tests.sdk import MODEL, WEATHER_TOOL, Person, strict_client, wire_events
from tests.stream_grammar import check_stream
from tests.streams import judged
from tests.turns import URL, assert_error, create, ended, retrieve, text_of, turn

Json = dict[str, Any]

SCHEMA: Json = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT: Json = {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}
OBJECT: Json = {"type": "json_object"}
FITS = '{"name": "Ada", "age": 36}'
MISFIT = '{"name": "Ada", "age": "old"}'


def schema(schema: Json, **more: Any) -> Json:
    return {"type": "json_schema", "name": "n", "schema": schema, **more}


def checked(said: str, format: Json = FORMAT) -> tuple[str, str | None]:
    return Checker(format).check(said)


# ── what the model reads ───────────────────────────────────────────────────────────────────────────────────────────

USER: Json = {"role": "user", "content": "Who?"}


def test_a_schema_is_described_behind_the_leading_system_text() -> None:
    given = [{"role": "system", "content": "Be brief."}, USER]
    first, *others = format_prompt(given, {**FORMAT, "description": "A person of note."})
    before, _, after = first["content"].partition("\n\n")
    assert (first["role"], before, others) == ("system", "Be brief.", [USER])
    assert orjson.dumps(SCHEMA).decode() in after
    assert "A person of note." in after
    assert given[0]["content"] == "Be brief.", "the messages that came in were changed"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER],
        [USER, {"role": "system", "content": "Late."}],
        [{"role": "system", "content": [{"type": "text", "text": "In parts."}]}, USER],
    ],
    ids=["none", "no system", "a late system", "a system of parts"],
)
def test_a_format_is_a_message_of_its_own_where_no_text_leads(messages: list[Json]) -> None:
    first, *others = format_prompt(messages, FORMAT)
    assert others == messages
    assert first["role"] == "system"
    assert orjson.dumps(SCHEMA).decode() in first["content"]


def test_json_without_a_schema_is_described_in_words_alone() -> None:
    (system, _) = format_prompt([USER], OBJECT)
    assert "JSON object" in system["content"]
    assert "{" not in system["content"]


def test_a_repair_shows_the_answer_and_what_is_wrong_with_it() -> None:
    answer, asked = repair_prompt("Nope", "it is not JSON.")
    assert answer == {"role": "assistant", "content": "Nope"}
    assert asked["role"] == "user"
    assert "it is not JSON." in asked["content"]
    assert strict_error({"messages": [USER, *repair_prompt("", "it is not JSON.")]}) is None


# ── what is taken for an answer ──────────────────────────────────────────────────────────────────────────────────────

AROUND: dict[str, str] = {
    "nothing": "%s",
    "white space": "\n  %s \n",
    "a fence": "```\n%s\n```",
    "a fence that names JSON": "\n```json\n%s\n```\n",
    "a fence that ends at once": "```json\n%s```",
    "words before": "Here you are: %s",
    "words behind": "%s\n\nI hope this helps!",
    "words around": "Here you are:\n%s\nI hope this helps!",
    "words around a fence": "Sure!\n\n```json\n%s\n```\n\nI hope this helps!",
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize(
    ("json", "format"),
    [
        (FITS, FORMAT),
        (FITS, OBJECT),
        ('{\n  "name": "{[```]}",\n  "age": 1\n}', FORMAT),
        ('[{"a": 1}, [2]]', schema({"type": "array"})),
        ("{}", OBJECT),
    ],
    ids=["a schema", "json_object", "brackets in a text", "an array", "an empty object"],
)
def test_json_is_found_in_what_stands_around_it(around: str, json: str, format: Json) -> None:
    assert checked(around % json, format) == (json, None)


@pytest.mark.parametrize("json", ['"use {x} or [y]"', '"a"', "5", "-0.5", "true", "null", '"```"'])
@pytest.mark.parametrize("around", ["%s", " %s\n", "```json\n%s\n```"], ids=["nothing", "space", "a fence"])
def test_json_need_be_no_object_where_the_schema_allows_it(around: str, json: str) -> None:
    assert checked(around % json, schema({"type": ["string", "number", "boolean", "null"]})) == (json, None)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
containers = st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3)
indented = st.sampled_from([0, orjson.OPT_INDENT_2])
# Prose without brackets and fences.
prose = st.text("abc ,.:!'é🙂\n", max_size=20)
fences = st.sampled_from(["%s", "```\n%s\n```", "```json\n%s\n```", "\n```JSON\n%s```\n"])
ANYTHING_FITS = Checker(schema({}))


@given(containers, indented, prose, prose, fences)
@example({"a": 1}, 0, "", " Bye!", "%s")
def test_json_that_fits_comes_back_as_it_was_whatever_is_around_it(
    value: Any, option: int, before: str, behind: str, fence: str
) -> None:
    json = orjson.dumps(value, option=option).decode()
    fenced = fence.replace("%s", json)
    if fence != "%s":
        before, behind = f"{before}\n", f"\n{behind}"
    assert ANYTHING_FITS.check(f"{before}{fenced}{behind}") == (json, None)


@given(values, indented, fences)
@example("use {x}", 0, "%s")
def test_any_json_that_fits_comes_back_as_it_was(value: Any, option: int, fence: str) -> None:
    json = orjson.dumps(value, option=option).decode()
    assert ANYTHING_FITS.check(fence.replace("%s", json)) == (json, None)


@given(st.text())
def test_whatever_a_model_says_is_checked(said: str) -> None:
    for checker in (ANYTHING_FITS, Checker(OBJECT)):
        text, problem = checker.check(said)
        assert text in said, "it says what was not said"
        if problem is None:
            orjson.loads(text)


# ── what is wrong with it ────────────────────────────────────────────────────────────────────────────────────────────

NESTED = schema(
    {
        "type": "object",
        "properties": {"people": {"type": "array", "items": {"$ref": "#/$defs/person"}}},
        "$defs": {"person": SCHEMA},
    }
)


@pytest.mark.parametrize(
    ("said", "format", "words"),
    [
        pytest.param("[" * 100_000, FORMAT, ["not JSON"], id="brackets without end"),
        pytest.param('{"a":' * 3000, OBJECT, ["not JSON"], id="objects without end"),
        ("Hello!", FORMAT, ["not JSON"]),
        ("", FORMAT, ["not JSON"]),
        ('{"name": "Ada", "age": 3', FORMAT, ["not JSON"]),
        ("{'name': 'Ada'}", OBJECT, ["not JSON"]),
        ('[{"a": 1}]', OBJECT, ["no object"]),
        ("5", OBJECT, ["no object"]),
        (MISFIT, FORMAT, ["integer", "['age']"]),
        ('{"name": "Ada"}', FORMAT, ["age", "required"]),
        ('{"name": "Ada", "age": 1, "x": 1}', FORMAT, ["x"]),
        (f'{{"people": [{FITS}, {{"name": 5, "age": 1}}]}}', NESTED, ["string", "['people'][1]['name']"]),
    ],
)
def test_a_misfit_is_described_with_its_place(said: str, format: Json, words: list[str]) -> None:
    _, problem = checked(said, format)
    assert problem is not None, f"{said!r} was taken"
    for word in words:
        assert word in problem, f"it does not say {word!r}: {problem}"


def test_a_long_misfit_is_described_in_few_words() -> None:
    _, problem = checked('{"name": "Ada", "age": "%s"}' % ("x" * 100_000), FORMAT)
    assert problem
    assert len(problem) < 1000


# ── schemas that are none ────────────────────────────────────────────────────────────────────────────────────────────

NO_SCHEMAS: dict[str, Json] = {
    "an unknown type": {"type": "strin"},
    "properties that are a list": {"properties": []},
    "a pattern that is none": {"pattern": "("},
    "a reference to nothing": {"$ref": "#/$defs/none"},
    "a schema of another world": {"$schema": "urn:none"},
}


@pytest.mark.parametrize("schema_", NO_SCHEMAS.values(), ids=NO_SCHEMAS)
def test_a_schema_that_is_none_is_named(schema_: Json) -> None:
    with pytest.raises(InvalidRequest) as raised:
        Checker(schema(schema_))
    assert raised.value.param == "text.format.schema"


@pytest.mark.parametrize("key", ["$ref", "$schema", "$dynamicRef", "$id"])
def test_nothing_is_fetched_for_a_schema(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/schema.json"
        named: Json = {"$id": url, "$ref": "other.json"} if key == "$id" else {key: url}
        with pytest.raises(InvalidRequest) as raised:
            Checker(schema({"properties": {"a": named}} if key != "$schema" else named))
        assert raised.value.param == "text.format.schema"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("schema_", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}], ids=["itself", "all of itself"])
def test_a_schema_that_means_itself_comes_to_an_end(schema_: Json) -> None:
    assert checked(FITS, schema(schema_)) == (FITS, None)


# ── through the router ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["openai-chat", "llama.cpp"])
async def prompted(request: pytest.FixtureRequest, backend: FakeBackend) -> AsyncIterator[Running]:
    """A router in front of a backend whose model must read the format. llama.cpp's is asked for a stream, whatever the
    client wants."""
    backend.strict = True
    endpoint = {"url": f"{backend.url}/v1", "kind": request.param, "structured_outputs": "prompt"}
    async with running_router(endpoints=[endpoint]) as running:
        yield running


def asked(**more: Any) -> Json:
    return {"input": "Who?", "text": {"format": FORMAT}, **more}


def sent(backend: FakeBackend) -> list[list[Json]]:
    """The messages of each request to the backend."""
    for request in backend.turns:
        assert "response_format" not in request.json, "the backend knows no formats"
    return [request.json["messages"] for request in backend.turns]


def output_types(response: Json) -> list[str]:
    return [item["type"] for item in response["output"]]


@pytest.mark.parametrize("said", [FITS, f"Sure:\n```json\n{FITS}\n```"], ids=["bare", "in words"])
async def test_an_answer_that_fits_is_taken_at_once(said: str, prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm."), said, usage=chat_usage(20, 5)))
    response = await create(prompted.http, **asked(instructions="Be brief."))
    assert (text_of({"output": response["output"][1:]}), response["status"]) == (FITS, "completed")
    assert output_types(response) == ["reasoning", "message"]
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (20, 5)
    assert response["text"]["format"]["schema"] == SCHEMA
    ((system, question),) = sent(backend)
    assert system["content"].startswith("Be brief.\n\n")
    assert orjson.dumps(SCHEMA).decode() in system["content"]
    assert question == USER


async def test_json_objects_are_described_and_checked_too(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat("[]"), chat("{}"))
    response = await create(prompted.http, **asked(text={"format": OBJECT}))
    assert text_of(response) == "{}"
    first, second = sent(backend)
    assert "JSON object" in first[0]["content"]
    assert "no object" in second[-1]["content"]


async def test_texts_are_asked_for_as_ever(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello"), chat("Hello"))
    for text in (None, {"format": {"type": "text"}}):
        assert text_of(await create(prompted.http, **asked(text=text))) == "Hello"
    assert sent(backend) == [[USER], [USER]]


async def test_a_misfit_is_repaired_once(prompted: Running, backend: FakeBackend) -> None:
    usages = [chat_usage(20, 5, cached=4, reasoning=1), chat_usage(30, 6, cached=20)]
    backend.script(chat(reasoning("Hm."), MISFIT, usage=usages[0]), chat(FITS, usage=usages[1]))
    response = await create(prompted.http, **asked())
    assert output_types(response) == ["message"], "only the answer that fits is passed on"
    assert text_of(response) == FITS
    assert response["usage"] == {
        "input_tokens": 50,
        "output_tokens": 11,
        "total_tokens": 61,
        "input_tokens_details": {"cached_tokens": 24, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    first, second = sent(backend)
    assert second[: len(first)] == first
    assert second[len(first)] == {"role": "assistant", "content": MISFIT}
    problem = second[len(first) + 1]
    assert (problem["role"], len(second)) == ("user", len(first) + 2)
    assert "['age']" in problem["content"]


async def test_a_thought_without_an_answer_is_repaired(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(reasoning("Hm.")), chat(FITS))
    assert text_of(await create(prompted.http, **asked())) == FITS


async def test_an_answer_without_counts_is_counted_by_the_other_one(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(MISFIT, usage=None), chat(FITS, usage=chat_usage(30, 6)))
    assert (await create(prompted.http, **asked()))["usage"]["total_tokens"] == 36


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_second_misfit_is_an_error_and_the_last_try(
    stream: bool, prompted: Running, backend: FakeBackend
) -> None:
    backend.script(chat(MISFIT), chat("No."))
    answer = await prompted.http.post(URL, json=turn(**asked(stream=stream)))
    assert_error(answer, 502, code="invalid_structured_output", says="not JSON")
    assert len(backend.turns) == 2, "the answer is repaired once"
    assert prompted.in_flight() == 0


async def test_a_client_that_asks_for_the_impossible_harms_nobody_else(prompted: Running, backend: FakeBackend) -> None:
    """The server is well, whatever its model said."""
    for _ in range(4):
        answer = await prompted.http.post(URL, json=turn(**asked(text={"format": schema({"not": {}})})))
        assert_error(answer, 502, code="invalid_structured_output")
    (endpoint,) = prompted.app.state.pool.endpoints.values()
    assert endpoint.breaker(MODEL).until is None, "the server is left alone for what a client asked"


async def test_another_server_is_not_asked_for_what_a_model_could_not_say(backend: FakeBackend) -> None:
    urls = [f"{backend.url}/v1", f"{backend.url.replace('127.0.0.1', 'localhost')}/v1"]
    endpoints = [{"url": url, "kind": "openai-chat", "structured_outputs": "prompt"} for url in urls]
    async with running_router(endpoints=endpoints) as running:
        answer = await running.http.post(URL, json=turn(**asked()))
        assert_error(answer, 502, code="invalid_structured_output")
    assert len(backend.turns) == 2


async def test_a_stream_is_emitted_when_the_answer_fits(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(MISFIT), chat(reasoning("Hm."), f"```\n{FITS}\n```"))
    events = await wire_events(prompted, **asked())
    judged(events)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == FITS
    assert output_types(events[-1]["response"]) == ["reasoning", "message"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("repairs", [False, True], ids=["at first", "at the repair"])
async def test_a_backend_that_refuses_is_an_http_error(
    stream: bool, repairs: bool, prompted: Running, backend: FakeBackend
) -> None:
    backend.script(*([chat(MISFIT)] if repairs else []), http_error(400, "No."))
    assert_error(await prompted.http.post(URL, json=turn(**asked(stream=stream))), 400, says="No.")


NOT_REPAIRED: dict[str, Any] = {
    "a call": (chat(call("get_weather", {"city": "Paris"}, id="c1")), "completed", ["function_call"]),
    "words and a call": (chat("Wait.", call("get_weather", id="c1")), "completed", ["message", "function_call"]),
    "a refusal": (chat(refusal("I will not.")), "completed", ["message"]),
    "cut off": (chat('{"name": "A', finish_reason="length"), "incomplete", ["message"]),
    "filtered": (chat("", finish_reason="content_filter"), "incomplete", None),
}


@pytest.mark.parametrize(("answer", "status", "types"), NOT_REPAIRED.values(), ids=NOT_REPAIRED)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_is_no_answer_yet_is_not_repaired(
    stream: bool, answer: Any, status: str, types: list[str] | None, prompted: Running, backend: FakeBackend
) -> None:
    backend.script(answer)
    given = asked(tools=[WEATHER_TOOL])
    if stream:
        events = await wire_events(prompted, **given)
        check_stream(events)
        response = events[-1]["response"]
    else:
        response = await create(prompted.http, **given)
    assert len(backend.turns) == 1
    assert response["status"] == status
    if types is not None:
        assert output_types(response) == types


async def test_tools_and_a_schema_go_together(prompted: Running, backend: FakeBackend) -> None:
    custom = {"type": "custom", "name": "grep"}
    backend.script(
        chat(reasoning("Hm."), call("get_weather", {"city": "Paris"}, id="c1"), call("grep", {"input": "x"}, id="c2")),
        chat(MISFIT),
        chat(FITS),
    )
    first = await create(prompted.http, **asked(tools=[WEATHER_TOOL, custom]))
    assert output_types(first) == ["reasoning", "function_call", "custom_tool_call"]
    assert first["output"][2]["input"] == "x"
    outputs = [
        {"type": "function_call_output", "call_id": "c1", "output": "Rain"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "none"},
    ]
    more = {"input": outputs, "tools": [WEATHER_TOOL, custom], "previous_response_id": first["id"]}
    second = await create(prompted.http, **asked(**more))
    assert text_of(second) == FITS
    offered = [[tool["function"]["name"] for tool in request.json["tools"]] for request in backend.turns]
    assert offered == [["get_weather", "grep"]] * 3
    roles = [message["role"] for message in sent(backend)[-1]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]


async def test_log_probabilities_are_those_of_what_is_passed_on(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(with_logprobs(FITS)), chat(with_logprobs(f"Sure: {FITS}")))
    for tokens in (4, 0):
        response = await create(prompted.http, **asked(include=["message.output_text.logprobs"]))
        ((part,),) = [item["content"] for item in response["output"]]
        assert (part["text"], len(part["logprobs"])) == (FITS, tokens)


async def test_the_sdk_parses_the_answer(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(f"Sure: {FITS}"), chat(MISFIT), chat(FITS), chat(MISFIT), chat(FITS))
    client = strict_client(prompted)
    for _ in range(2):
        parsed = await client.responses.parse(model=MODEL, input="Who?", text_format=Person)
        assert parsed.output_parsed == Person(name="Ada", age=36)
    async with client.responses.stream(model=MODEL, input="Who?", text_format=Person) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Person(name="Ada", age=36)
    assert backend.unused == 0


async def test_a_background_turn_is_repaired_too(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(MISFIT), chat(FITS), chat(MISFIT), chat(MISFIT))
    responses = []
    for _ in range(2):
        queued = await create(prompted.http, **asked(background=True))
        responses.append(await ended(prompted.http, queued["id"]))
    assert [response["status"] for response in responses] == ["completed", "failed"]
    assert text_of(responses[0]) == FITS
    assert responses[1]["error"]["code"] in ("invalid_structured_output", "server_error")
    assert responses[1]["output"] == []


async def test_a_conversation_goes_on_behind_a_repair_that_nobody_saw(prompted: Running, backend: FakeBackend) -> None:
    backend.script(chat(MISFIT), chat(FITS), chat("Yes."))
    first = await create(prompted.http, **asked())
    assert text_of(await retrieve(prompted.http, first["id"])) == FITS
    await create(prompted.http, input="Sure?", previous_response_id=first["id"])
    assert sent(backend)[-1] == [
        USER,
        {"role": "assistant", "content": FITS},
        {"role": "user", "content": "Sure?"},
    ]


async def test_a_schema_that_is_none_is_a_400_before_anybody_is_asked(prompted: Running, backend: FakeBackend) -> None:
    for stream in (False, True):
        body = turn(**asked(text={"format": schema({"type": "strin"})}, stream=stream))
        assert_error(await prompted.http.post(URL, json=body), 400, param="text.format.schema")
    assert not backend.turns


# ── the other two settings ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format", [FORMAT, OBJECT], ids=["a schema", "json_object"])
async def test_a_backend_may_refuse_formats(format: Json, backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "structured_outputs": "refuse"}
    async with running_router(endpoints=[endpoint]) as running:
        for stream in (False, True):
            answer = await running.http.post(URL, json=turn(**asked(text={"format": format}, stream=stream)))
            assert_error(answer, 400, type="invalid_request_error", param="text.format")
        assert not backend.turns
        await create(running.http, text={"format": {"type": "text"}})
        with pytest.raises(openai.BadRequestError) as raised:
            await running.openai.responses.parse(model=MODEL, input="Who?", text_format=Person)
        assert raised.value.param == "text.format"


async def test_a_native_format_is_not_looked_at(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(f"Sure: {MISFIT}"))
    response = await create(served.http, **asked())
    assert text_of(response) == f"Sure: {MISFIT}"
    (request,) = backend.turns
    assert request.json["response_format"]["json_schema"]["schema"] == SCHEMA
    assert request.json["messages"] == [USER]
