"""A backend that speaks the Responses API itself: the request goes out as it came, and the answer comes back under our
id."""

from typing import Any

import openai
import pytest

from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    call,
    event_stream,
    json_answer,
    native,
    native_events,
    reasoning,
    refusal,
    responses_usage,
    stall,
    with_logprobs,
)
from tests.sdk import (
    MODEL,
    WEATHER_TOOL,
    bare,
    check_types,
    collected,
    ended,
    stored_events,
    strict_client,
    wire_events,
)
from tests.stream_grammar import check_stream
from tests.turns import assert_error, create

# What each turn that is stored asks for: upstream stores nothing, and the next turn needs it.
SEALED_REASONING = ["reasoning.encrypted_content"]
OURS = ("id", "created_at", "store", "background", "previous_response_id")
# The SDK's types want `cache_write_tokens`; what a native backend leaves out stays out, so strict clients get this.
WHOLE_USAGE = responses_usage()
WHOLE_USAGE["input_tokens_details"]["cache_write_tokens"] = 0

ANSWERS: dict[str, Answer] = {
    "text": native("Hello there.", usage=WHOLE_USAGE),
    "reasoning, then text": native(reasoning("Hm."), "Hello.", usage=WHOLE_USAGE),
    "calls": native(call("get_weather", {"city": "Paris"}), call("now", "{}"), usage=WHOLE_USAGE),
    "a refusal": native(refusal("I will not."), usage=WHOLE_USAGE),
    "logprobs": native(with_logprobs("Hello there."), usage=WHOLE_USAGE),
    "cut at the token limit": native("Once upon", incomplete="max_output_tokens", usage=WHOLE_USAGE),
    "no usage": native("Hello.", usage=None),
    "whole where a stream was asked for": native(reasoning("Hm."), "Hello.", usage=WHOLE_USAGE, as_stream=False),
    "streamed where it was not asked for": native(reasoning("Hm."), "Hello.", usage=WHOLE_USAGE, as_stream=True),
}
answers = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())


def theirs(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what is ours to say."""
    return {key: value for key, value in response.items() if key not in OURS}


# ── the request ──────────────────────────────────────────────────────────────

REQUESTS: dict[str, dict[str, Any]] = {
    "a string": {"input": "Hi"},
    "every parameter": {
        "input": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        ],
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.75,
        "max_output_tokens": 100,
        "tools": [WEATHER_TOOL, {"type": "web_search"}, {"type": "custom", "name": "grep"}],
        "tool_choice": {"type": "web_search"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["reasoning.encrypted_content"],
        "metadata": {"a": "b"},
        "truncation": "auto",
        "service_tier": "flex",
        "prompt_cache_key": "key",
    },
    "items that only the backend knows": {
        "input": [
            {"type": "compaction", "encrypted_content": "gAAA"},
            {"role": "user", "content": [{"type": "input_image", "file_id": "file_1", "detail": "auto"}]},
        ]
    },
    "parameters that nobody knows": {"input": "Hi", "extra_body": {"seed": 7, "vendor": {"deep": [1, None]}}},
    "nulls": {"input": "Hi", "instructions": None, "tools": None, "metadata": None},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_the_request_goes_out_as_it_came(
    served_natively: Running, backend: FakeBackend, request_: dict[str, Any], stream: bool
) -> None:
    answer: Any = await served_natively.openai.responses.create(model=MODEL, stream=stream, **request_)
    if stream:
        await collected(answer)
    given = {key: value for key, value in request_.items() if key != "extra_body"} | request_.get("extra_body", {})
    (turn,) = backend.turns
    assert turn.path == "/v1/responses"
    assert turn.json == given | {
        "model": MODEL,
        "stream": stream,
        "store": False,
        "include": SEALED_REASONING,
    }


async def test_the_client_decides_what_is_stored_here_and_upstream_stores_nothing(
    served_natively: Running, backend: FakeBackend
) -> None:
    create = served_natively.openai.responses.create
    kept = await create(model=MODEL, input="Hi", store=True)
    dropped = await create(model=MODEL, input="Hi", store=False)
    assert [turn.json["store"] for turn in backend.turns] == [False, False]
    assert [response.to_dict()["store"] for response in (kept, dropped)] == [True, False]
    assert (await served_natively.openai.responses.retrieve(kept.id)).output == kept.output
    with pytest.raises(openai.NotFoundError):
        await served_natively.openai.responses.retrieve(dropped.id)


async def test_our_key_for_the_backend_is_sent_and_the_clients_is_not(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai", "api_key": "upstream-key"}
    async with running_router(endpoints=[endpoint], api_key="client-key") as served:
        await served.openai.responses.create(model=MODEL, input="Hi")
    (turn,) = backend.turns
    assert turn.headers["authorization"] == "Bearer upstream-key"
    assert "client-key" not in str(turn.headers)


# ── the history ──────────────────────────────────────────────────────────────


async def test_the_history_is_expanded_into_the_input(served_natively: Running, backend: FakeBackend) -> None:
    create = served_natively.openai.responses.create
    backend.script(native("One."), native("Two."), native("Three."))
    first = await create(model=MODEL, input="1", instructions="Be brief.")
    second = await create(model=MODEL, input="2", previous_response_id=first.id)
    third = await create(model=MODEL, input=[{"role": "user", "content": "3"}], previous_response_id=second.id)
    assert (second.previous_response_id, third.previous_response_id) == (first.id, second.id)
    sent = backend.turns[-1].json
    assert "previous_response_id" not in sent, "upstream knows none of our ids"
    assert "instructions" not in sent, "instructions hold for their own turn alone"
    said = [
        (item["role"], item["content"] if isinstance(item["content"], str) else item["content"][0]["text"])
        for item in sent["input"]
    ]
    assert said == [("user", "1"), ("assistant", "One."), ("user", "2"), ("assistant", "Two."), ("user", "3")]


async def test_a_function_call_makes_a_round_trip(served_natively: Running, backend: FakeBackend) -> None:
    create = served_natively.openai.responses.create
    backend.script(native(call("get_weather", {"city": "Paris"}, id="call_a")), native("It rains."))
    first = await create(model=MODEL, input="Weather?", tools=[WEATHER_TOOL])
    output = {
        "type": "function_call_output",
        "call_id": "call_a",
        "output": [{"type": "input_text", "text": "rain"}],
    }
    second = await create(model=MODEL, input=[output], tools=[WEATHER_TOOL], previous_response_id=first.id)
    assert second.output_text == "It rains."
    question, asked, answered = backend.turns[-1].json["input"]
    assert question["content"][0]["text"] == "Weather?"
    assert (asked["type"], asked["call_id"], asked["arguments"]) == ("function_call", "call_a", '{"city":"Paris"}')
    assert answered == output, "the new input is not as it came"


async def test_items_keep_the_ids_by_which_others_name_them(served_natively: Running, backend: FakeBackend) -> None:
    whole = native_events("Hello.")[-1]["response"]
    request = {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "s", "name": "f", "arguments": "{}"}
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    backend.script(json_answer(whole | {"output": [request, search]}), native("Done."))
    telegram = {"type": "acme:telegram", "text": "stop"}
    first = await create(served_natively.http, input=[{"role": "user", "content": "Hi"}, telegram])
    approval = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    await create(served_natively.http, input=[approval], previous_response_id=first["id"])
    _, vendor, *sent = backend.turns[-1].json["input"]
    assert sent == [request, search, approval]
    assert vendor == telegram, "the id that we made for it is none that upstream could know"


async def test_reasoning_is_replayed_where_upstream_can_open_it_again(
    served_natively: Running, backend: FakeBackend
) -> None:
    sealed = {"type": "reasoning", "id": "rs_sealed", "summary": [], "encrypted_content": "gAAA"}
    whole = native_events("Hello.")[-1]["response"]
    open_one = {"type": "reasoning", "id": "rs_open", "summary": [{"type": "summary_text", "text": "Hm."}]}
    backend.script(json_answer(whole | {"output": [sealed, open_one, *whole["output"]]}))
    first = await served_natively.openai.responses.create(
        model=MODEL, input="Hi", include=["reasoning.encrypted_content"]
    )
    assert [item.type for item in first.output] == ["reasoning", "reasoning", "message"]
    await served_natively.openai.responses.create(model=MODEL, input="On", previous_response_id=first.id)
    replayed = [item for item in backend.turns[-1].json["input"] if item.get("type") == "reasoning"]
    assert [item["encrypted_content"] for item in replayed] == ["gAAA"]
    assert "id" not in replayed[0], "Azure would look it up"


async def test_what_cannot_be_found_cannot_be_continued(served_natively: Running, backend: FakeBackend) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await served_natively.openai.responses.create(model=MODEL, input="Hi", previous_response_id="resp_unknown")
    assert (raised.value.code, raised.value.param) == ("previous_response_not_found", "previous_response_id")
    assert not backend.turns, "upstream was asked"


# ── the answer ───────────────────────────────────────────────────────────────


@answers
async def test_every_answer_is_read_strictly_in_every_form(
    served_natively: Running, backend: FakeBackend, answer: Answer
) -> None:
    backend.script(answer, answer, answer)
    strict = strict_client(served_natively)
    body = await strict.responses.create(model=MODEL, input="Hi")
    events = await collected(await strict.responses.create(model=MODEL, input="Hi", stream=True))
    check_types(events)
    final = events[-1].response
    assert final.output == body.output
    assert (final.status, final.usage) == (body.status, body.usage)
    for response in (body, final):
        again = await strict.responses.retrieve(response.id)
        assert (again.output, again.status) == (response.output, response.status)
    async with served_natively.openai.responses.stream(model=MODEL, input="Hi") as stream:
        helped = await collected(stream)
    final = helped[-1].response
    assert [item.type for item in final.output] == [item.type for item in body.output]
    assert final.output_text == body.output_text


@answers
async def test_our_id_is_in_every_event_and_in_the_body(
    served_natively: Running, backend: FakeBackend, answer: Answer
) -> None:
    backend.script(answer, answer)
    events = await wire_events(served_natively)
    check_stream(events, prefixes=False)
    ids = {event["response"]["id"] for event in events if "response" in event}
    assert len(ids) == 1, f"the id changes: {ids}"
    assert ids.pop().startswith("resp_")
    assert "resp_native" not in str(events), "upstream's id is somewhere else"
    body = await served_natively.openai.responses.create(model=MODEL, input="Hi")
    assert body.id != "resp_native"
    assert body.created_at != native_events()[0]["response"]["created_at"], "the time is upstream's"


async def test_the_events_are_upstreams_but_for_our_id_and_numbers(
    served_natively: Running, backend: FakeBackend
) -> None:
    sent = native_events(reasoning("Hm."), with_logprobs("Hello."), call("now", "{}"), usage=WHOLE_USAGE)
    backend.script(event_stream(sent))
    given = await wire_events(served_natively)
    assert [event["type"] for event in given] == [event["type"] for event in sent]
    for ours, event in zip(given, sent, strict=True):
        if "response" in event:
            assert theirs(event["response"]).items() <= theirs(ours["response"]).items(), event["type"]
        else:
            assert ours == event


async def test_what_nobody_knows_passes_untouched(served_natively: Running, backend: FakeBackend) -> None:
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
    vendor = {"type": "acme:telemetry", "id": "x_1", "deep": {"list": [1, None, "ü"]}, "nothing": None}
    sent = native_events("Hello.", response_id="resp_native")
    created, in_progress, *ladder, end = sent
    strange = [
        {"type": "response.output_item.added", "output_index": 0, "item": search | {"status": "in_progress"}},
        {"type": "response.web_search_call.searching", "output_index": 0, "item_id": "ws_1"},
        {"type": "response.output_item.done", "output_index": 0, "item": search},
        {"type": "acme:progress", "percent": 50, "note": None},
        {"type": "response.output_item.added", "output_index": 1, "item": vendor},
        {"type": "response.output_item.done", "output_index": 1, "item": vendor},
    ]
    ladder = [event | ({"output_index": 2} if "output_index" in event else {}) for event in ladder]
    end["response"] |= {"output": [search, vendor, *end["response"]["output"]], "acme": {"cost": 0.5}}
    backend.script(event_stream([created, in_progress, *strange, *ladder, end]))
    given = await wire_events(served_natively)
    assert [event["sequence_number"] for event in given] == list(range(len(given)))
    bare_events = [{key: value for key, value in event.items() if key != "sequence_number"} for event in given]
    assert bare_events[2:8] == strange
    final = given[-1]["response"]
    assert final["output"] == end["response"]["output"]
    assert final["acme"] == {"cost": 0.5}
    stored = (await served_natively.http.get(f"/v1/responses/{final['id']}")).json()
    assert stored["output"] == final["output"]
    assert stored["acme"] == {"cost": 0.5}
    assert (await stored_events(served_natively, final["id"]))[-1]["response"] == final
    # They go back in the next turn as they came.
    await served_natively.openai.responses.create(model=MODEL, input="On", previous_response_id=final["id"])
    sent = backend.turns[-1].json["input"]
    assert [item["type"] for item in sent[1:3]] == ["web_search_call", "acme:telemetry"]


async def test_unknown_items_pass_untouched_in_a_json_body(served_natively: Running, backend: FakeBackend) -> None:
    whole = native_events("Hello.")[-1]["response"]
    vendor = {"type": "acme:telemetry", "id": "x_1", "deep": {"list": [1, None]}, "nothing": None}
    image = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBO"}
    whole |= {"output": [vendor, image, *whole["output"]], "acme": {"cost": 0.5}}
    backend.script(json_answer(whole), json_answer(whole))
    body = (await served_natively.http.post("/v1/responses", json={"model": MODEL, "input": "Hi"})).json()
    assert body["output"] == whole["output"]
    assert body["acme"] == {"cost": 0.5}
    events = await wire_events(served_natively)
    check_stream(events, prefixes=False)
    assert events[-1]["response"]["output"] == whole["output"]


async def test_what_a_sparse_upstream_leaves_out_is_filled_in(served_natively: Running, backend: FakeBackend) -> None:
    sent = native_events("Hello.", usage=None)
    for event in sent:
        event["sequence_number"] = 0
        if "response" in event:
            event["response"] = {key: event["response"][key] for key in ("id", "object", "status", "output")}
    backend.script(event_stream(sent), json_answer(sent[-1]["response"]), event_stream(sent))
    check_stream(await wire_events(served_natively), prefixes=False)
    strict = strict_client(served_natively)
    body = await strict.responses.create(model=MODEL, input="Hi", temperature=0.5)
    assert (body.output_text, body.temperature, body.model) == ("Hello.", 0.5, MODEL)
    check_types(await collected(await strict.responses.create(model=MODEL, input="Hi", stream=True)))


async def test_the_usage_is_upstreams_and_whole(served_natively: Running, backend: FakeBackend) -> None:
    usage = responses_usage(100, 20, cached=64, reasoning=8) | {"acme_tokens": 3}
    backend.script(native("Hello.", usage=usage), native("Hello.", usage=usage))
    body = await served_natively.openai.responses.create(model=MODEL, input="Hi")
    whole = usage | {"input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0}}
    assert body.to_dict()["usage"] == whole
    assert (await wire_events(served_natively))[-1]["response"]["usage"] == whole


# ── background and cache ─────────────────────────────────────────────────────


async def test_a_background_response_runs_here_and_not_upstream(served_natively: Running, backend: FakeBackend) -> None:
    responses = served_natively.openai.responses
    backend.script(native("Hello."))
    created = await responses.create(model=MODEL, input="Hi", background=True)
    assert (created.status, created.background) == ("queued", True)
    response = await ended(served_natively.openai, created.id)
    assert (response.status, response.output_text, response.background) == ("completed", "Hello.", True)
    assert "background" not in backend.turns[-1].json
    assert backend.turns[-1].json["store"] is False


async def test_a_background_stream_can_be_joined_again(served_natively: Running, backend: FakeBackend) -> None:
    responses = served_natively.openai.responses
    backend.script(native(reasoning("Hm."), "Hello there."))
    live = await collected(await responses.create(model=MODEL, input="Hi", background=True, stream=True))
    assert [event.type for event in live[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event.sequence_number for event in live] == list(range(len(live)))
    check_stream(await stored_events(served_natively, live[0].response.id), prefixes=False)
    later = await collected(await responses.retrieve(live[0].response.id, stream=True, starting_after=4))
    assert later == live[5:]


@pytest.mark.parametrize("whole", [False, True], ids=["upstream streams", "upstream does not care"])
async def test_a_background_stream_begins_once(served_natively: Running, backend: FakeBackend, whole: bool) -> None:
    backend.script(native("Hello.", as_stream=not whole))
    check_stream(await wire_events(served_natively, background=True), prefixes=False)


async def test_cancelling_in_the_background_aborts_upstream(served_natively: Running, backend: FakeBackend) -> None:
    responses = served_natively.openai.responses
    backend.script(stall())
    created = await responses.create(model=MODEL, input="Hi", background=True)
    await backend.wait_for(lambda b: b.in_flight == 1)
    assert (await responses.cancel(created.id)).status == "cancelled"
    await backend.wait_for(lambda b: b.aborts == 1)
    assert served_natively.in_flight() == 0


async def test_a_cached_answer_is_a_response_of_its_own(served_natively: Running, backend: FakeBackend) -> None:
    ask: Any = {"model": MODEL, "input": "Hi", "extra_body": {"nomyo": {"cache": True}}}
    backend.script(native(reasoning("Hm."), "Hello."))
    create = served_natively.openai.responses.create
    first = (await collected(await create(stream=True, **ask)))[-1].response
    second = await create(**ask)
    third = await wire_events(served_natively, nomyo={"cache": True})
    assert len(backend.turns) == 1, "upstream was asked again"
    assert "nomyo" not in backend.turns[0].json, "upstream got our option"
    check_stream(third, prefixes=False)
    assert len({first.id, second.id, third[-1]["response"]["id"]}) == 3
    assert bare(second.output) == bare(first.output)
    chained = await create(model=MODEL, input="On", previous_response_id=second.id)
    assert chained.status == "completed"


# ── prompts that OpenAI keeps ────────────────────────────────────────────────

PROMPT: dict[str, Any] = {"id": "pmpt_1", "version": "2", "variables": {"city": "Paris"}}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("given", [{}, {"input": "Hi"}], ids=["alone", "with input"])
async def test_a_prompt_goes_out_as_it_came(
    served_natively: Running, backend: FakeBackend, given: dict[str, Any], stream: bool
) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "stream": stream, **given}
    answer = await served_natively.http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert backend.turns[-1].json == body | {"store": False, "include": SEALED_REASONING}


async def test_a_conversation_that_began_with_a_prompt_goes_on(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(native("Rain."), native("Still rain."))
    create = served_natively.openai.responses.create
    first = await create(model=MODEL, prompt=PROMPT)
    second = await create(model=MODEL, prompt=PROMPT, previous_response_id=first.id)
    assert second.output_text == "Still rain."
    (item,) = backend.turns[-1].json["input"]
    assert item["content"][0]["text"] == "Rain."
    listed = await served_natively.openai.responses.input_items.list(first.id)
    assert listed.data == []


@pytest.mark.parametrize("given", [{}, {"input": "Hi"}, {"input": "Hi", "stream": True}])
async def test_a_chat_backend_knows_no_prompts(served: Running, backend: FakeBackend, given: dict[str, Any]) -> None:
    answer = await served.http.post("/v1/responses", json={"model": MODEL, "prompt": PROMPT, **given})
    assert_error(answer, 400, type="invalid_request_error", param="prompt")
    assert not backend.turns


# What real servers leave out of an answer that was cut off, or write otherwise (LiteLLM, OGX, transformers, vLLM).
CUT_ANSWERS = {
    "chat's reason": lambda event: with_details(event, {"reason": "length"}),
    "an engine's reason": lambda event: with_details(event, {"reason": "max_new_tokens"}),
    "no reason": lambda event: with_details(event, {}),
    "null details": lambda event: with_details(event, None),
    "a usage with null details": lambda event: with_usage(
        event, {"input_tokens_details": None, "output_tokens_details": None}
    ),
    "a usage without details": lambda event: with_usage(event, {}),
    "no end of the text": lambda event: [] if event["type"] == "response.output_text.done" else [event],
    "no ends at all": lambda event: [] if event["type"].endswith(".done") else [event],
}


def with_details(event: dict[str, Any], details: Any) -> list[dict[str, Any]]:
    if event["type"] == "response.incomplete":
        event = event | {"response": event["response"] | {"incomplete_details": details}}
    return [event]


def with_usage(event: dict[str, Any], details: dict[str, Any]) -> list[dict[str, Any]]:
    if event["type"] == "response.incomplete":
        usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10, **details}
        event = event | {"response": event["response"] | {"usage": usage}}
    return [event]


@pytest.mark.parametrize("as_stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("made", CUT_ANSWERS)
async def test_an_answer_that_was_cut_off_is_whole_for_a_strict_client(
    served_natively: Running, backend: FakeBackend, made: str, as_stream: bool
) -> None:
    events = [
        other
        for event in native_events("Once upon", incomplete="max_output_tokens", usage=WHOLE_USAGE)
        for other in CUT_ANSWERS[made](event)
    ]
    backend.script(event_stream(events) if as_stream else json_answer(events[-1]["response"]))
    strict = strict_client(served_natively)
    if as_stream:
        answered = await collected(await strict.responses.create(model=MODEL, input="Hi", stream=True))
        check_types(answered)
        response = answered[-1].response
    else:
        response = await strict.responses.create(model=MODEL, input="Hi")
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.total_tokens == 10
    assert response.output_text == "Once upon"
