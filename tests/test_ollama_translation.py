"""Ollama's API for servers that are none: the pure half, in tables and in laws."""

import os
import re
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BackendError, InvalidRequest, Unsupported
from requests.chat import decode_chunk, decode_completion
from requests.chat_params import chat_request
from requests.emission import EMIT_EVENTS, EMIT_NOTHING
from requests.events import ResponseBuilder
from requests.items import check_input, input_items
from requests.messages import responses_input_to_messages
from requests.ollama import (
    ChatAsked,
    EmbedAsked,
    GenerateAsked,
    OllamaAnswer,
    chat_ollama_to_responses,
    embed_ollama_to_openai,
    embeddings_openai_to_ollama,
    generate_ollama_to_responses,
    is_no_time,
    omitted_options,
    read_ollama,
)
from requests.ollama_models import listed_model, running_model, shown_model
from requests.ollama_tools import NO_OUTPUT
from requests.params import check_request
from requests.responses import chat_message_to_output_items, response_resource
from requests.sse import SSEDecoder
from tests.fake_backend import chunk, strict_error

Json = dict[str, Any]

MANY = int(os.environ.get("LAW_EXAMPLES", "0"))
law = settings(max_examples=MANY or 100, derandomize=not MANY, database=None, deadline=None)

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def as_chat(**request: Any) -> Json:
    """The chat request that a request to /api/chat becomes, as a server that takes everything gets it."""
    return _to_chat(chat_ollama_to_responses(read_ollama(_body({"model": "m", **request}), ChatAsked)))


def as_chat_of_generate(**request: Any) -> Json:
    return _to_chat(generate_ollama_to_responses(read_ollama(_body({"model": "m", **request}), GenerateAsked)))


def _to_chat(request: Json) -> Json:
    params = check_request(request)
    items = input_items(params.input)
    check_input(items, 0)
    chat = chat_request(request, responses_input_to_messages(items), model="m", stream=bool(params.stream))
    assert strict_error(chat) is None, f"a strict server refuses it: {strict_error(chat)}"
    return chat


def _body(request: Json) -> bytes:
    return orjson.dumps(request)


def messages_of(*messages: Json) -> list[Json]:
    return as_chat(messages=list(messages))["messages"]


USER = {"role": "user", "content": "Hi."}


def made(name: str, arguments: Json | None = None, **more: Any) -> Json:
    return {"function": {"name": name, "arguments": arguments or {}}, **more}


class TestRequests:
    def test_a_plain_chat_streams_unless_it_says_otherwise(self):
        chat = as_chat(messages=[{"role": "system", "content": "Be brief."}, USER], tools=[])
        assert chat == {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, USER],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert "stream" not in as_chat(messages=[USER], stream=False)
        assert as_chat(messages=[USER], stream=None)["stream"] is True

    def test_images_become_data_urls(self):
        (message,) = messages_of({"role": "user", "content": "What is it?", "images": [PNG, "/9j/4AAQ", "AAAA"]})
        text, *images = message["content"]
        assert text == {"type": "text", "text": "What is it?"}
        assert [image["image_url"]["url"] for image in images] == [
            f"data:image/png;base64,{PNG}",
            "data:image/jpeg;base64,/9j/4AAQ",
            "data:image/png;base64,AAAA",
        ]

    def test_an_image_that_is_no_base64_is_refused(self):
        with pytest.raises(InvalidRequest, match=re.escape("messages[0].images[0]: illegal base64 data")):
            messages_of({"role": "user", "images": ["no base64!"]})

    def test_calls_get_ids_and_their_outputs_the_same(self):
        _, first, *outputs = messages_of(
            USER,
            {"role": "assistant", "tool_calls": [made("f", {"x": 1}), made("g"), made("f", {"x": 2})]},
            {"role": "tool", "tool_name": "g", "content": "of g"},
            {"role": "tool", "tool_name": "f", "content": "of 1"},
            {"role": "tool", "tool_name": "f", "content": "of 2"},
        )
        called = {call["id"]: call["function"] for call in first["tool_calls"]}
        assert first["content"] is None
        assert {output["content"]: called[output["tool_call_id"]]["arguments"] for output in outputs} == {
            "of g": "{}",
            "of 1": '{"x":1}',
            "of 2": '{"x":2}',
        }
        assert all(re.fullmatch("[a-zA-Z0-9]{9}", call_id) for call_id in called), f"Mistral refuses {list(called)}"

    def test_ids_of_the_client_are_kept_and_repeated_ones_are_not(self):
        turn = [
            {"role": "assistant", "tool_calls": [made("f", id="call_a")]},
            {"role": "tool", "tool_call_id": "call_a", "content": "out"},
        ]
        messages = messages_of(USER, *turn, USER, *turn)
        ids = [message["tool_calls"][0]["id"] for message in messages if message.get("tool_calls")]
        assert ids == ["call_a", "call00001"]
        assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == ids

    def test_outputs_are_found_by_id_before_name(self):
        messages = messages_of(
            USER,
            {"role": "assistant", "tool_calls": [made("f", id="a"), made("f", id="b")]},
            {"role": "tool", "tool_name": "f", "tool_call_id": "b", "content": "of b"},
            {"role": "tool", "content": "of a"},
        )
        outputs = {message["tool_call_id"]: message["content"] for message in messages[2:]}
        assert outputs == {"b": "of b", "a": "of a"}

    def test_a_call_that_nobody_answered_gets_an_output(self):
        messages = messages_of(USER, {"role": "assistant", "content": "Wait.", "tool_calls": [made("f")]}, USER)
        assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
        assert messages[2]["content"] == NO_OUTPUT
        assert messages_of(USER, {"role": "assistant", "tool_calls": [made("f")]})[-1]["content"] == NO_OUTPUT

    def test_an_output_without_a_call_keeps_its_place_and_gets_the_call_that_it_must_have_had(self):
        messages = messages_of(USER, {"role": "tool", "tool_name": "f", "content": "out"}, USER)
        assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
        assert (messages[1]["tool_calls"][0]["function"]["name"], messages[2]["content"]) == ("f", "out")
        unnamed = messages_of(USER, {"role": "tool", "content": "out"})
        assert [message["role"] for message in unnamed] == ["user", "assistant", "tool"]

    def test_an_output_of_another_tool_answers_no_call(self):
        called = {"role": "assistant", "tool_calls": [made("f")]}
        messages = messages_of(USER, called, {"role": "tool", "tool_name": "g", "content": "of g"})
        outputs = {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"}
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        assert {call["function"]["name"]: outputs[call["id"]] for call in calls} == {"f": NO_OUTPUT, "g": "of g"}

    @pytest.mark.parametrize("ids", [("a", "b"), (None, None), ("same", "same")])
    def test_two_assistant_messages_with_calls_and_then_both_results(self, ids):
        # Strands sends them so.
        said = [
            {"role": "assistant", "content": f"{x}", "tool_calls": [made("f", {"x": x}, **({"id": id} if id else {}))]}
            for x, id in enumerate(ids)
        ]
        results = [{"role": "tool", "tool_name": "f", "content": f"of {x}"} for x in range(2)]
        messages = messages_of(USER, *said, *results)
        assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool"]
        assert [message["content"] for message in messages[1:]] == ["0", "of 0", "1", "of 1"]

    def test_an_output_that_comes_late_goes_to_its_call(self):
        called = {"role": "assistant", "tool_calls": [made("f", id="a")]}
        messages = messages_of(USER, called, USER, {"role": "tool", "tool_call_id": "a", "content": "out"})
        assert [message["role"] for message in messages] == ["user", "assistant", "tool", "user"]
        assert messages[2]["content"] == "out"

    def test_thinking_goes_back_where_the_server_reads_it(self):
        said = {"role": "assistant", "content": "Four.", "thinking": "2+2"}
        assert messages_of(USER, said, USER)[1] == {
            "role": "assistant",
            "content": "Four.",
            "reasoning_content": "2+2",
        }

    def test_tools_keep_their_schemas(self):
        function = {"name": "f", "description": "It does.", "parameters": {"type": "object", "$defs": {"a": {}}}}
        tools = [{"type": "function", "function": function}, {"function": {"name": "g"}}]
        assert as_chat(messages=[USER], tools=tools)["tools"] == [
            {"type": "function", "function": function},
            {"type": "function", "function": {"name": "g"}},
        ]

    def test_formats(self):
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
        assert as_chat(messages=[USER], format="json")["response_format"] == {"type": "json_object"}
        assert as_chat(messages=[USER], format=schema)["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        }
        assert "response_format" not in as_chat(messages=[USER], format="")
        with pytest.raises(InvalidRequest, match='invalid format: "xml"'):
            as_chat(messages=[USER], format="xml")

    def test_options(self):
        options = {"temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 0, "stop": ["a", "b"]}
        chat = as_chat(
            messages=[USER], options={**options, "num_predict": 12, "num_ctx": 8192, "presence_penalty": None}
        )
        assert {key: chat[key] for key in options} == options
        assert chat["max_tokens"] == 12
        assert not chat.keys() & {"num_ctx", "num_predict", "presence_penalty", "keep_alive"}
        assert omitted_options({**options, "num_predict": 12, "num_ctx": 8192, "numa": True}) == ["num_ctx", "numa"]

    @pytest.mark.parametrize("limit", [-1, -2, 0, None])
    def test_no_limit_is_no_limit(self, limit):
        assert "max_tokens" not in as_chat(messages=[USER], options={"num_predict": limit, "stop": []})

    @pytest.mark.parametrize("limit", ["5", 1.5, True, [5], {}])
    def test_a_limit_is_an_integer(self, limit):
        with pytest.raises(InvalidRequest, match='option "num_predict" must be of type integer'):
            as_chat(messages=[USER], options={"num_predict": limit})
        assert as_chat(messages=[USER], options={"num_predict": 5.0})["max_tokens"] == 5

    def test_options_keep_their_names_for_a_server_to_have_its_own(self):
        asked = ChatAsked(model="m", options={"repeat_penalty": 1.1})
        assert chat_ollama_to_responses(asked)["repeat_penalty"] == 1.1

    @pytest.mark.parametrize(
        ("think", "effort"), [(True, "medium"), (False, "none"), ("low", "low"), ("max", "max"), (None, None)]
    )
    def test_think(self, think, effort):
        assert as_chat(messages=[USER], think=think).get("reasoning_effort") == effort

    def test_an_unknown_level_of_thinking_is_refused(self):
        with pytest.raises(InvalidRequest, match='invalid think value: "hard"'):
            as_chat(messages=[USER], think="hard")

    def test_the_oldest_messages_may_be_left_out_unless_the_client_says_no(self):
        assert chat_ollama_to_responses(ChatAsked())["truncation"] == "auto"
        assert chat_ollama_to_responses(ChatAsked(truncate=False))["truncation"] == "disabled"

    def test_logprobs(self):
        chat = as_chat(messages=[USER], logprobs=True, top_logprobs=3)
        assert (chat["logprobs"], chat["top_logprobs"]) == (True, 3)
        assert "logprobs" not in as_chat(messages=[USER], logprobs=False, top_logprobs=3)

    def test_a_prompt_is_a_chat(self):
        chat = as_chat_of_generate(prompt="Say.", system="Be brief.", images=[PNG], context=[], raw=False, suffix="")
        system, user = chat["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert [part["type"] for part in user["content"]] == ["text", "image_url"]

    @pytest.mark.parametrize(
        ("key", "value"), [("suffix", "}"), ("template", "{{ .Prompt }}"), ("raw", True), ("context", [1, 2])]
    )
    def test_what_needs_the_template_of_the_model_is_refused_by_name(self, key, value):
        with pytest.raises(Unsupported, match=f"'{key}'"):
            as_chat_of_generate(prompt="Say.", **{key: value})

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b'{"messages": "hi"}',
            b'{"messages": [{"content": "hi"}]}',
            b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
            b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}',
            b'{"options": []}',
            b'{"tools": ["f"]}',
            b'{"tools": [{"function": "f"}]}',
            b'{"tools": [{"type": {}}]}',
            b'{"messages": [{"role": "user", "content": "\xe9"}]}',
        ],
    )
    def test_what_is_no_request_is_refused(self, body):
        with pytest.raises(InvalidRequest, match="invalid request"):
            read_ollama(body, ChatAsked)

    @pytest.mark.parametrize(
        ("keep_alive", "unloads"), [(0, True), ("0", True), ("0s", True), (-1, False), ("5m", False), (None, False)]
    )
    def test_a_keep_alive_of_zero_unloads(self, keep_alive, unloads):
        assert is_no_time(keep_alive) is unloads


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def builder(*, in_lines: bool = True) -> ResponseBuilder:
    resource = response_resource({}, response_id="resp_1", created_at=0, status="in_progress")
    return ResponseBuilder(resource, EMIT_EVENTS if in_lines else EMIT_NOTHING)


def answer_of(*, streams: bool = True, is_chat: bool = True) -> OllamaAnswer:
    return OllamaAnswer("m", streams=streams, is_chat=is_chat)


def answered(chunks: list[bytes], *, is_chat: bool = True, in_lines: bool = True) -> list[Json]:
    """What a client gets of a streamed answer: lines, or the one answer."""
    building, answer = builder(in_lines=in_lines), answer_of(streams=in_lines, is_chat=is_chat)
    body = b""
    for data in SSEDecoder().feed(b"".join(chunks)):
        events = building.begin() + building.chunk(decode_chunk(data))
        body += answer.encode(events) if in_lines else b""
    body += answer.encode(building.finish()) + answer.end(building)
    return [orjson.loads(line) for line in body.splitlines()]


def fold(lines: list[Json]) -> Json:
    """What was said in all lines together, as Ollama's clients put it together."""
    messages = [line["message"] for line in lines]
    return {
        "content": "".join(message["content"] for message in messages),
        "thinking": "".join(message.get("thinking", "") for message in messages),
        "tool_calls": [call["function"] for message in messages for call in message.get("tool_calls", [])],
    }


def tool_delta(index: int, name: str | None = None, arguments: str = "") -> bytes:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return chunk({"tool_calls": [{"index": index, **({"id": f"c{index}"} if name else {}), "function": function}]})


class TestAnswers:
    def test_a_stream(self, monkeypatch):
        monkeypatch.setattr("time.monotonic_ns", lambda: 10**12)
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        deltas = [{"role": "assistant", "content": ""}, {"reasoning": "Hm."}, {"content": "Fo"}, {"content": "ur"}]
        lines = answered([*map(chunk, deltas), chunk({}, finish_reason="stop"), chunk(usage=usage)])
        assert [line["message"] for line in lines] == [
            {"role": "assistant", "content": "", "thinking": "Hm."},
            {"role": "assistant", "content": "Fo"},
            {"role": "assistant", "content": "ur"},
            {"role": "assistant", "content": ""},
        ]
        assert [line["done"] for line in lines] == [False, False, False, True]
        last = lines[-1]
        assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 7, 3)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["created_at"]) for line in lines)
        assert last["total_duration"] == last["eval_duration"] > 0, "it came all at once: nobody knows when it began"
        assert "prompt_eval_duration" not in last

    def test_durations_are_the_servers_own_where_it_gives_them(self):
        building, answer = builder(), answer_of()
        answer.encode(building.begin())
        timings = {"prompt_n": 1, "prompt_ms": 3046.452, "predicted_n": 8, "predicted_ms": 768.051}
        usage = {"prompt_tokens": 5, "completion_tokens": 8}
        for made_of in ({"delta": {"content": "A"}}, {"delta": {}, "finish_reason": "stop"}):
            answer.encode(building.chunk(decode_chunk(_body({"choices": [made_of]}))))
        answer.encode(building.chunk(decode_chunk(_body({"choices": [], "usage": usage, "timings": timings}))))
        answer.encode(building.finish())
        last = orjson.loads(answer.end(building))
        assert (last["prompt_eval_duration"], last["eval_duration"]) == (3_046_452_000, 768_051_000)

    @pytest.mark.parametrize(
        "timings", [None, [], {}, {"predicted_ms": "1"}, {"predicted_ms": -1}, {"predicted_ms": 1e300}]
    )
    def test_odd_timings_are_left(self, timings):
        last = answer_of()._last({"usage": {"output_tokens": 24}}, timings)
        assert last["eval_duration"] == last["total_duration"] > 0

    def test_durations_by_the_routers_own_clock(self, monkeypatch):
        now_ns = 10**12
        monkeypatch.setattr("time.monotonic_ns", lambda: now_ns)
        building, answer = builder(), answer_of()
        answer.encode(building.begin())
        now_ns += 2 * 10**9
        answer.encode(building.chunk(decode_chunk(_body({"choices": [{"delta": {"content": "A"}}]}))))
        now_ns += 3 * 10**9
        answer.encode(building.finish())
        last = answer._last({"usage": {"output_tokens": 24}}, None)
        taken = [last[f"{what}_duration"] // 10**9 for what in ("prompt_eval", "eval", "total")]
        assert taken == [2, 3, 5]

    def test_a_prompts_answer(self):
        lines = answered([chunk({"reasoning_content": "Hm."}), chunk({"content": "Four"})], is_chat=False)
        assert [(line.get("thinking"), line["response"]) for line in lines] == [("Hm.", ""), (None, "Four"), (None, "")]

    def test_calls_are_whole_and_their_arguments_objects(self):
        arguments = ['{"a"', ": 1}"]
        chunks = [tool_delta(0, "f"), *(tool_delta(0, arguments=text) for text in arguments), tool_delta(1, "g")]
        *_, one, two, last = answered([*chunks, chunk({}, finish_reason="tool_calls")])
        assert [call["function"] for line in (one, two) for call in line["message"]["tool_calls"]] == [
            {"index": 0, "name": "f", "arguments": {"a": 1}},
            {"index": 1, "name": "g", "arguments": {}},
        ]
        assert last["done_reason"] == "stop", "Ollama's own word for it"

    def test_a_call_that_was_cut_off_is_left_out(self):
        lines = answered([tool_delta(0, "f", '{"a": '), chunk({}, finish_reason="length")])
        assert [line.get("done_reason") for line in lines] == ["length"]
        assert "tool_calls" not in lines[-1]["message"]

    @pytest.mark.parametrize("arguments", ["[1]", "{", '"text"'])
    def test_arguments_that_are_no_object_are_the_backends_fault(self, arguments):
        with pytest.raises(BackendError, match="'f'"):
            answered([tool_delta(0, "f", arguments), chunk({}, finish_reason="tool_calls")])

    def test_refusals_are_text(self):
        assert fold(answered([chunk({"refusal": "No."})]))["content"] == "No."

    def test_logprobs_come_with_their_text(self):
        logprob = {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": []}
        line, last = answered([chunk({"content": "A"}, logprobs={"content": [logprob]})])
        assert line["logprobs"] == [logprob]
        assert "logprobs" not in last

    def test_without_usage_the_counts_are_zero(self):
        last = answered([chunk({"content": "A"}, finish_reason="stop")])[-1]
        assert (last["prompt_eval_count"], last["eval_count"]) == (0, 0)

    def test_a_request_that_asks_nothing(self):
        answer = answer_of()
        assert orjson.loads(answer.loaded(is_unload=False))["done_reason"] == "load"
        unloaded = orjson.loads(answer.loaded(is_unload=True))
        assert (unloaded["done"], unloaded["done_reason"], unloaded["message"]["content"]) == (True, "unload", "")


class TestEmbeddings:
    def test_texts_of_both_routes(self):
        assert embed_ollama_to_openai(EmbedAsked(input=["a", "b"], dimensions=2), "x") == {
            "model": "x",
            "input": ["a", "b"],
            "dimensions": 2,
        }
        assert embed_ollama_to_openai(EmbedAsked(input="a"), "x") == {"model": "x", "input": ["a"]}
        assert EmbedAsked(prompt="a").texts == ["a"]
        assert EmbedAsked(input="").texts == EmbedAsked(input=[]).texts == EmbedAsked().texts == []

    def test_vectors_come_in_the_order_of_the_texts(self):
        rows = [{"index": 1, "embedding": [2, 3]}, {"index": 0, "embedding": [0.5, 1]}]
        answer = {"data": rows, "usage": {"prompt_tokens": 4}}
        assert embeddings_openai_to_ollama(answer, 2) == ([[0.5, 1], [2, 3]], 4)
        assert embeddings_openai_to_ollama({"data": rows[1:], "usage": None}, 1) == ([[0.5, 1]], 0)

    @pytest.mark.parametrize("answer", [{}, [], {"data": []}, {"data": [{"embedding": "AAAA"}]}, {"data": [{}]}])
    def test_what_is_no_answer_is_the_backends_fault(self, answer):
        with pytest.raises(BackendError):
            embeddings_openai_to_ollama(answer, 1)


def test_a_digest_can_be_cut_as_clients_cut_it():
    rows = [listed_model("a", {}), running_model("a", {}, {}, None), listed_model("b", {})]
    assert [len(row["digest"]) for row in rows] == [64, 64, 64]
    assert rows[0]["digest"] == rows[1]["digest"] != rows[2]["digest"]


def test_what_nobody_knows_of_a_model_is_left_out():
    assert listed_model("a", {}).keys() == {"name", "model", "digest", "details"}
    assert running_model("a", {"size": 5}, {}, 9).items() >= {"size": 5, "context_length": 9}.items()
    assert running_model("a", {}, {}, None).keys() == {"name", "model", "digest", "details"}


def test_an_ollamas_rows_are_its_own_but_for_the_name():
    row = {
        "name": "a:1b",
        "model": "a:1b",
        "size": 5,
        "digest": "abc",
        "odd": [1],
        "modified_at": "2026-01-01T00:00:00Z",
    }
    run = {"name": "a:1b", "model": "a:1b", "size": 7, "size_vram": 6, "expires_at": "2026-01-01T00:05:00Z"}
    assert listed_model("b", row) == {**row, "name": "b", "model": "b", "details": {}}
    running = running_model("b", row, {**run, "context_length": 4}, 9)
    assert running.items() >= {**run, "name": "b", "model": "b", "context_length": 4, "digest": "abc"}.items()


def test_the_context_of_a_model_is_where_clients_look_for_it():
    info = shown_model("m", {}, 4096, None)["model_info"]
    assert info[f"{info['general.architecture']}.context_length"] == 4096
    assert "unknown.context_length" not in shown_model("m", {}, None, None)["model_info"]
    assert shown_model("m", {"details": {"family": "qwen3"}}, 8, None)["model_info"]["qwen3.context_length"] == 8


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
arguments = st.dictionaries(texts, st.one_of(st.integers(-9, 9), texts, st.none()), max_size=3)
names = st.sampled_from(["f", "g"])
ids = st.one_of(st.none(), st.sampled_from(["a", "b", "call00001"]))


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Chats as Ollama's clients keep them: calls with ids, with the same ids again, or with none, of one message or of
    several that stand together, answered in any order, or not; and outputs of calls that are not there."""
    messages: list[Json] = []
    for role in draw(
        st.lists(
            st.sampled_from(["system", "user", "assistant", "caller", "callers", "orphan"]), min_size=1, max_size=8
        )
    ):
        if role == "orphan":
            messages.append({"role": "tool", "tool_name": "of_nobody", "content": draw(texts)})
            continue
        if role in ("system", "user", "assistant"):
            messages.append({"role": role, "content": draw(texts)})
            continue
        made_calls: list[Json] = []
        for _ in range(2 if role == "callers" else 1):
            calls = draw(st.lists(st.tuples(names, arguments, ids), min_size=1, max_size=3))
            tool_calls = [made(name, given, **({"id": id} if id else {})) for name, given, id in calls]
            messages.append({"role": "assistant", "content": draw(texts), "tool_calls": tool_calls})
            made_calls += tool_calls
        answered = draw(st.permutations(made_calls))[: draw(st.integers(0, len(made_calls)))]
        named = [call["function"]["name"] for call in answered]
        messages += [{"role": "tool", "tool_name": name, "content": draw(texts)} for name in named]
    return messages


@law
@given(conversations())
def test_law_every_conversation_becomes_one_that_strict_servers_take(messages):
    chat = as_chat(messages=messages)["messages"]

    def said(message: Json, role: str) -> str:
        return message["content"] if message["role"] == role and message["content"] else ""

    for role in ("user", "assistant"):
        assert "".join(said(m, role) for m in chat) == "".join(said(m, role) for m in messages), f"what the {role} says"
    called = [call["function"]["name"] for message in messages for call in message.get("tool_calls", [])]
    orphans = ["of_nobody"] * sum(message.get("tool_name") == "of_nobody" for message in messages)
    sent = [call for message in chat for call in message.get("tool_calls", [])]
    assert sorted(call["function"]["name"] for call in sent) == sorted([*called, *orphans])
    assert len({call["id"] for call in sent}) == len(sent), "two calls have one id"
    outputs = sorted(message["content"] for message in messages if message["role"] == "tool")
    missing = [NO_OUTPUT] * (len(called) + len(orphans) - len(outputs))
    assert sorted(message["content"] for message in chat if message["role"] == "tool") == sorted([*outputs, *missing])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], Json]:
    """The chunks of an answer, and the whole message that they are."""
    thinking, content = draw(st.lists(texts, max_size=3)), draw(st.lists(texts, max_size=3))
    calls = draw(st.lists(st.tuples(names, arguments), max_size=2))
    chunks = [chunk({"reasoning_content": text}) for text in thinking] + [chunk({"content": text}) for text in content]
    message: Json = {"role": "assistant", "reasoning_content": "".join(thinking), "content": "".join(content)}
    for index, (name, value) in enumerate(calls):
        text = _body(value).decode()
        cut = draw(st.integers(0, len(text)))
        chunks += [tool_delta(index, name, text[:cut]), tool_delta(index, arguments=text[cut:])]
        call = {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": text}}
        message.setdefault("tool_calls", []).append(call)
    return [*chunks, chunk({}, finish_reason="stop")], message


@law
@given(answers())
def test_law_lines_and_the_one_answer_say_the_same_as_the_message(given_answer):
    chunks, message = given_answer
    building, answer = builder(in_lines=False), answer_of(streams=False)
    body = _body({"choices": [{"message": message, "finish_reason": "stop"}]})
    items = chat_message_to_output_items(decode_completion(body).choices[0].message)
    building.completion(items, finish_reason="stop", usage=None)
    whole = fold([orjson.loads(answer.end(building))])
    assert fold(answered(chunks)) == whole, "a stream in lines"
    assert fold(answered(chunks, in_lines=False)) == whole, "a stream as one answer"
    assert (whole["content"], whole["thinking"]) == (message["content"], message["reasoning_content"])


@law
@given(answers())
def test_law_an_answer_that_comes_back_is_what_the_model_said(given_answer):
    chunks, message = given_answer
    (answer,) = answered(chunks, in_lines=False)
    back = messages_of(USER, answer["message"])[1]
    assert (back["content"] or "") == message["content"]
    assert back.get("reasoning_content", "") == message["reasoning_content"]
    assert back.get("tool_calls", []) == message.get("tool_calls", [])
