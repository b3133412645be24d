"""What real servers answered, through the pure half: each stream, each completion, each error."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from backends.wire.errors import ANY_SERVER
from core.errors import BackendError, BackendRefused, BackendUnreachable
from requests.chat import as_chunk, as_plain, decode_chunk, decode_completion
from requests.events import Event
from requests.responses import chat_message_to_output_items, usage_chat_to_responses
from requests.sse import SSEDecoder
from tests.fixtures import Exchange, recorded, recordings
from tests.stream_grammar import check_stream, fold
from tests.streams import bare, builder, judged, said, shape, thought

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
CHAT_STREAMS = recordings(path=CHAT, status=200, stream=True)
COMPLETIONS = recordings(path=CHAT, status=200, stream=False)
NATIVE_STREAMS = recordings(path="/v1/responses", status=200, stream=True)
NATIVE_RESPONSES = recordings(path="/v1/responses", status=200, stream=False)
REFUSED = [name for name in recordings() if recorded(name).status >= 400]


def read(exchange: Exchange, size: int) -> list[bytes]:
    """The data of a recorded stream that arrives in reads of that size."""
    decoder = SSEDecoder()
    body = exchange.body
    data = [piece for start in range(0, len(body), size) for piece in decoder.feed(body[start : start + size])]
    return [piece for piece in [*data, *decoder.flush()] if piece != b"[DONE]"]


def streamed(name: str, size: int = 1 << 20) -> list[Event]:
    made = builder()
    events = made.start()
    for data in read(recorded(name), size):
        events += made.chunk(decode_chunk(data))
    return [*events, *made.finish(), made.end()]


def joined(name: str, key: str) -> str:
    """All that the deltas of the first choice say under a key, as the recording has it."""
    choices = [choice for chunk in recorded(name).chunks for choice in chunk["choices"] if choice["index"] == 0]
    return "".join(choice["delta"].get(key) or "" for choice in choices)


def call_deltas(name: str) -> list[Json]:
    chunks = recorded(name).chunks
    return [call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls") or []]


def texts(output: list[Json], kind: str) -> str:
    return "".join(part["text"] for item in output if item["type"] == kind for part in item["content"])


def test_there_are_recordings_of_every_kind() -> None:
    many = {
        "chat streams": (CHAT_STREAMS, 30),
        "completions": (COMPLETIONS, 45),
        "native streams": (NATIVE_STREAMS, 4),
        "native responses": (NATIVE_RESPONSES, 7),
        "errors": (REFUSED, 40),
    }
    few = {kind: len(names) for kind, (names, least) in many.items() if len(names) < least}
    assert not few, f"recordings got lost: {few}"


# ── chat streams ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CHAT_STREAMS)
def test_a_recorded_stream_becomes_a_whole_stream_that_says_the_same(name: str) -> None:
    output = judged(streamed(name))[-1]["response"]["output"]
    assert texts(output, "message") == joined(name, "content")
    assert texts(output, "reasoning") == joined(name, "reasoning_content")
    deltas = Counter[int]()
    arguments: dict[int, str] = {}
    for call in call_deltas(name):
        deltas[call["index"]] += 1
        arguments[call["index"]] = arguments.get(call["index"], "") + call["function"].get("arguments", "")
    made = [item for item in output if item["type"] == "function_call"]
    assert [item["arguments"] for item in made] == [*arguments.values()]
    first = {call["index"]: call for call in reversed(call_deltas(name))}
    assert [(item["call_id"], item["name"]) for item in made] == [
        (first[index]["id"], first[index]["function"]["name"]) for index in deltas
    ]


@pytest.mark.parametrize("name", CHAT_STREAMS)
def test_a_recorded_stream_ends_as_the_server_ended_it(name: str) -> None:
    chunks = recorded(name).chunks
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    response = streamed(name)[-1]["response"]
    assert response["status"] == ("incomplete" if "length" in reasons else "completed")
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    counted = response["usage"] or {}
    assert counted.get("total_tokens") == (usages[-1]["total_tokens"] if usages else None)
    if usages:
        cached = (usages[-1].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        assert counted["input_tokens_details"] == {"cached_tokens": cached, "cache_write_tokens": 0}


@pytest.mark.parametrize("name", CHAT_STREAMS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_recorded_stream_holds_the_same_however_it_is_cut(name: str, size: int) -> None:
    exchange = recorded(name)
    assert read(exchange, size) == read(exchange, len(exchange.body) or 1)


# A few in full, as a reader would check them.
SPELLED_OUT: dict[str, tuple[list[Json], str]] = {
    "02-chat-stream-usage": ([said("The capital of France is Paris.")], "completed"),
    "03-chat-length-stream": (
        [said("In the sleepy town of Ravensburg, a fox named", status="incomplete")],
        "incomplete",
    ),
    "07-reasoning-stream": (
        [
            thought("The user asks about the capital of France. I will answer in one short sentence.\n"),
            said("The capital of France is Paris."),
        ],
        "completed",
    ),
    "07-reasoning-length-stream": ([thought("The user asks about the capital of France")], "incomplete"),
    "08-n2-stream": ([said("The capital of France", status="incomplete")], "incomplete"),
    "08-sse-ping-stream": ([], "completed"),
    "llama-cpp-python/chat-stream-usage": ([said("The capital of France is Paris.")], "completed"),
}
SPELLED_OUT_CALLS: dict[str, list[tuple[str, str, str]]] = {
    "04-tool-auto-stream": [("get_weather", '{"city": "Paris"}', "completed")],
    "04-tool-parallel-two-calls-stream": [
        ("get_weather", '{"city": "Paris", "unit": "celsius"}', "completed"),
        ("get_weather", '{\n    "city": "Paris",\n    "unit": "celsius"\n  }', "completed"),
    ],
    "04-tool-truncated-stream": [("get_weather", "{", "incomplete")],
    "07-reasoning-tool-stream": [("get_weather", '{"city": "Paris"}', "completed")],
    "llama-cpp-python/tool-named-stream": [("get_weather", '{ "city": "Paris", "unit": "celsius"}', "completed")],
}


@pytest.mark.parametrize(("name", "expected"), SPELLED_OUT.items(), ids=SPELLED_OUT)
def test_some_streams_are_spelled_out(name: str, expected: tuple[list[Json], str]) -> None:
    response = streamed(name)[-1]["response"]
    assert (bare(response["output"]), response["status"]) == expected


@pytest.mark.parametrize(("name", "expected"), SPELLED_OUT_CALLS.items(), ids=SPELLED_OUT_CALLS)
def test_some_calls_are_spelled_out(name: str, expected: list[tuple[str, str, str]]) -> None:
    output = streamed(name)[-1]["response"]["output"]
    made = [item for item in output if item["type"] == "function_call"]
    assert [(item["name"], item["arguments"], item["status"]) for item in made] == expected


def test_log_probabilities_of_a_stream_are_those_of_the_server() -> None:
    choices = [choice for chunk in recorded("08-logprobs-stream").chunks for choice in chunk["choices"]]
    sent = [entry for choice in choices for entry in (choice.get("logprobs") or {}).get("content") or []]
    (part,) = streamed("08-logprobs-stream")[-1]["response"]["output"][0]["content"]
    assert sent, "the recording has none"
    assert [(entry["token"], entry["logprob"]) for entry in part["logprobs"]] == [
        (entry["token"], entry["logprob"]) for entry in sent
    ]
    assert [len(entry["top_logprobs"]) for entry in part["logprobs"]] == [len(entry["top_logprobs"]) for entry in sent]


@pytest.mark.parametrize("name", CHAT_STREAMS)
def test_the_sdks_chunks_can_stand_in_for_ours(name: str) -> None:
    made = builder()
    events = made.start()
    for chunk in recorded(name).chunks:
        events += made.chunk(as_chunk(ChatCompletionChunk.construct(**chunk)))
    events += [*made.finish(), made.end()]
    expected = streamed(name)
    assert shape(events) == shape(expected)
    ours, theirs = expected[-1]["response"], events[-1]["response"]
    assert (bare(theirs["output"]), theirs["usage"]) == (bare(ours["output"]), ours["usage"])


# ── completions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def completed(name: str) -> list[Event]:
    answer = decode_completion(recorded(name).body)
    choice = answer.choices[0]
    items = chat_message_to_output_items(choice.message.model_dump(), choice.logprobs and choice.logprobs.content)
    usage = answer.usage.model_dump() if answer.usage else None
    made = builder()
    events = made.start()
    return [*events, *made.completion(items, finish_reason=choice.finish_reason, usage=usage), made.end()]


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_recorded_completion_becomes_a_whole_stream_that_says_the_same(name: str) -> None:
    choice = recorded(name).json["choices"][0]
    message = choice["message"]
    response = judged(completed(name))[-1]["response"]
    output = response["output"]
    assert texts(output, "message") == (message.get("content") or "")
    assert texts(output, "reasoning") == (message.get("reasoning_content") or "")
    made = [(item["call_id"], item["name"], item["arguments"]) for item in output if item["type"] == "function_call"]
    assert made == [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or []
    ]
    assert response["status"] == ("incomplete" if choice["finish_reason"] == "length" else "completed")
    assert response["usage"]["total_tokens"] == recorded(name).json["usage"]["total_tokens"]


# The same request, streamed and not, with temperature 0: the same answer.
TWINS = [
    ("01-chat", "02-chat-stream-usage"),
    ("03-chat-length", "03-chat-length-stream"),
    ("04-tool-required", "04-tool-required-stream"),
    ("04-tool-truncated-by-max_tokens", "04-tool-truncated-stream"),
    ("05-tool-result", "05-tool-result-stream"),
    ("07-reasoning", "07-reasoning-stream"),
    ("07-reasoning-length", "07-reasoning-length-stream"),
    ("07-reasoning-tool", "07-reasoning-tool-stream"),
    ("93-context-filled-by-output", "93-context-filled-by-output-stream"),
    ("qwen2.5-coder-0.5b/chat", "qwen2.5-coder-0.5b/chat-stream"),
]


@pytest.mark.parametrize(("at_once", "in_pieces"), TWINS)
def test_a_recorded_answer_is_the_same_streamed_and_at_once(at_once: str, in_pieces: str) -> None:
    def said_in(events: list[Event]) -> Any:
        response = events[-1]["response"]
        output = [{key: value for key, value in item.items() if key != "call_id"} for item in bare(response["output"])]
        return output, response["status"]

    assert said_in(streamed(in_pieces)) == said_in(completed(at_once))


@pytest.mark.parametrize("name", COMPLETIONS)
def test_the_sdks_completions_can_stand_in_for_ours(name: str) -> None:
    theirs = ChatCompletion.construct(**recorded(name).json)
    ours = decode_completion(recorded(name).body)
    for read in (as_plain(theirs.choices[0].message), as_plain(ours.choices[0].message)):
        assert chat_message_to_output_items(read) == chat_message_to_output_items(
            recorded(name).json["choices"][0]["message"]
        )
    logprobs = [as_plain(answer.choices[0].logprobs) or {} for answer in (theirs, ours)]
    assert logprobs[0].get("content") == logprobs[1].get("content")
    counted = [usage_chat_to_responses(as_plain(answer.usage)) for answer in (theirs, ours)]
    assert counted[0] == counted[1]


def test_log_probabilities_of_a_completion_are_those_of_the_server() -> None:
    sent = recorded("08-logprobs").json["choices"][0]["logprobs"]["content"]
    (part,) = completed("08-logprobs")[-1]["response"]["output"][0]["content"]
    assert [entry["token"] for entry in part["logprobs"]] == [entry["token"] for entry in sent]


# ── native answers ───────────────────────────────────────────────────────────────────────────────────────────────────

OURS = ("response.created", "response.in_progress", "response.completed")


def holds(ours: Any, theirs: Any) -> bool:
    """Whether ours is theirs, with what it lacked."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(key in ours and holds(ours[key], value) for key, value in theirs.items())
    return bool(ours == theirs)


@pytest.mark.parametrize("name", NATIVE_STREAMS)
def test_a_native_stream_passes_untouched_but_for_its_id_its_numbers_and_what_it_lacks(name: str) -> None:
    sent = [orjson.loads(data) for data in read(recorded(name), 1000)]
    made = builder()
    events = [ours for event in sent for ours in made.adopt(event)]
    events.append(made.end())
    check_stream(events, prefixes=False)
    assert fold(events) == events[-1]["response"]
    put_in = iter(events)
    for theirs in sent:
        # In their order, and each with all that it said.
        ours = next(event for event in put_in if event["type"] == theirs["type"])
        if ours["type"] in OURS:
            assert ours["response"]["id"] == "resp_1", "an id that the client could not use"
        else:
            assert holds(ours | {"sequence_number": 0}, theirs | {"sequence_number": 0})
    last = sent[-1]["response"]
    assert holds(events[-1]["response"]["usage"], last["usage"])
    assert all(map(holds, events[-1]["response"]["output"], last["output"]))
    assert len(events[-1]["response"]["output"]) == len(last["output"])


@pytest.mark.parametrize("name", NATIVE_STREAMS)
def test_a_native_stream_that_breaks_off_keeps_what_was_done(name: str) -> None:
    sent = [orjson.loads(data) for data in read(recorded(name), 1000)][:-1]
    made = builder()
    for event in sent:
        made.adopt(event)
    made.fail(BackendError("The backend broke off its answer."))
    done = [event["item"] for event in sent if event["type"] == "response.output_item.done"]
    assert all(map(holds, made.response["output"], done))
    assert len(made.response["output"]) == len(done)


@pytest.mark.parametrize("name", NATIVE_RESPONSES)
def test_a_native_response_becomes_a_whole_stream(name: str) -> None:
    sent = recorded(name).json
    made = builder()
    events = [*made.adopt_whole(sent), made.end()]
    response = events[-1]["response"]
    check_stream(events, prefixes=False)
    assert shape(events)[:2] == ["created", "in_progress"]
    assert (response["id"], response["status"]) == ("resp_1", sent["status"])
    assert holds(response["usage"], sent["usage"])
    assert [item["id"] for item in response["output"]] == [item["id"] for item in sent["output"]]
    assert texts(response["output"], "message") == texts(sent["output"], "message")


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────

CONTEXT = (BackendRefused, 400, "context_length_exceeded", "input")
WRONG_KEY = (BackendError, 502, "backend_authentication_failed", None)
LOADING = (BackendUnreachable, 502, "backend_unreachable", None)
# By the status that the backend gave: what the client gets.
BY_STATUS = {
    400: (BackendRefused, 400, None, None),
    401: WRONG_KEY,
    404: (BackendRefused, 404, "model_not_found", "model"),
    500: (BackendError, 502, "backend_error", None),
    501: (BackendRefused, 501, "not_supported", None),
    503: LOADING,
}
# A 404 that means the address: the endpoint's url or kind is wrong, and no model is missing.
NO_PATH = (BackendError, 502, "backend_path_not_found", None)
PATHS = {"90-err-404", "90-err-404-get", "90-err-get-on-post", "90-err-method-delete"} | {
    f"llama-cpp-python/{name}" for name in ("health", "props", "responses-native")
}
IMAGES = {"90-err-image-unsupported"}
NO_IMAGES = (BackendRefused, 400, "unsupported_parameter", "input")
# What llama-cpp-python complains of in a request, as a 500.
COMPLAINTS = {
    f"llama-cpp-python/{name}": (BackendRefused, 400, None, param)
    for name, param in (
        ("err-temperature-string", "temperature"),
        ("err-null-content", "input"),
        ("json-schema", "text"),
    )
}
TOO_LONG = {name for name in REFUSED if "too-long" in name}


def refusal(name: str) -> Any:
    """Our error for a recorded one, made as the client of the backends makes it."""
    exchange = recorded(name)
    return ANY_SERVER.of_answer(exchange.status, exchange.body, exchange.headers)


@pytest.mark.parametrize("name", REFUSED)
def test_a_recorded_error_is_passed_on_in_our_words_and_statuses(name: str) -> None:
    error = refusal(name)
    expected = (
        CONTEXT
        if name in TOO_LONG
        else NO_PATH
        if name in PATHS
        else NO_IMAGES
        if name in IMAGES
        else COMPLAINTS[name]
        if name in COMPLAINTS
        else BY_STATUS[recorded(name).status]
    )
    assert (type(error), error.status, error.code, error.param) == expected
    assert error.message, "an error without words"


def test_a_context_that_is_too_long_is_recognized_at_every_server() -> None:
    servers = {name.rpartition("/")[0] for name in TOO_LONG}
    assert servers == {"", "llama-cpp-python"}, "the recordings of both"
    assert {refusal(name).to_response_error()["code"] for name in TOO_LONG} == {"context_length_exceeded"}


@pytest.mark.parametrize("name", [name for name in REFUSED if recorded(name).status == 400])
def test_what_the_client_did_wrong_is_said_in_the_words_of_the_backend(name: str) -> None:
    assert refusal(name).message == recorded(name).json["error"]["message"]


@pytest.mark.parametrize("name", [name for name in REFUSED if recorded(name).status == 401])
def test_a_wrong_key_of_the_router_is_not_the_clients(name: str) -> None:
    error = refusal(name)
    assert error.type == "server_error"
    assert "Invalid API Key" not in error.message, "the client would look at its own key"
