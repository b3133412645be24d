"""Hints and roles that a server refuses: changed at once, remembered, named to the client, and not sent again."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.turns.adapting import Adapting
from backends.fleet.learned import BELIEVED_S, EVERY_MODEL, MOST_MODELS, Learned
from backends.wire.errors import ServerErrors
from core.config import AdaptConfig
from core.errors import BackendRefused
from tests.conftest import running_router
from tests.fake_backend import Answer, FakeBackend, Reply, chat, http_error, json_answer, native, sse, stream
from tests.sdk import WEATHER_TOOL
from tests.test_adapting import ADAPTED, EVERYTHING, STREAMING, Json, ask, router_before, said
from tests.test_error_words import OVERFLOWS, ROLES, UNSUPPORTED
from tests.test_roles import TEMPLATES
from tests.turns import URL, assert_error, turn

pytestmark = pytest.mark.usefixtures("strict_backend")

# ── what a server does not know, and can do without ──────────────────────────

# What a client asks for, and what of it a chat server gets under that name.
HINTS: dict[str, tuple[Json, str, str]] = {
    "prompt_cache_key": ({"prompt_cache_key": "k"}, "prompt_cache_key", "prompt_cache_key"),
    "safety_identifier": ({"safety_identifier": "u"}, "safety_identifier", "safety_identifier"),
    "service_tier": ({"service_tier": "flex"}, "service_tier", "service_tier"),
    "user": ({"user": "u"}, "user", "user"),
    "parallel_tool_calls": (
        {"tools": [WEATHER_TOOL], "parallel_tool_calls": False},
        "parallel_tool_calls",
        "parallel_tool_calls",
    ),
    "stream_options": ({"stream": True}, "stream_options", "stream_options"),
    "verbosity": ({"text": {"verbosity": "low"}}, "verbosity", "text.verbosity"),
}


def refusing(name: str, answer: Callable[[str], Answer]) -> Answer:
    """A server that refuses a parameter wherever it finds it."""

    async def reply_to(reply: Reply) -> None:
        await (answer(name) if name in reply.request.json else chat("Fine."))(reply)

    return reply_to


HOW: dict[str, Callable[[str], Answer]] = {
    "OpenAI": lambda name: http_error(400, f"Unknown parameter: '{name}'.", code="unknown_parameter"),
    "Mistral": lambda name: json_answer(
        {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]},
        status=422,
    ),
    "NIM": lambda name: json_answer({"error": f"Validation: Unsupported parameter(s): `{name}`"}, status=400),
    "Groq": lambda name: http_error(400, f"property '{name}' is unsupported"),
    "a value": lambda name: json_answer(
        {"detail": [{"type": "literal_error", "loc": ["body", name], "msg": "Input should be 'x'"}]}, status=422
    ),
    "a stream": lambda name: stream(
        sse({"error": {"message": f"Unrecognized request argument supplied: {name}", "code": 400}})
    ),
}


class TestHints:
    @pytest.mark.parametrize("how", HOW)
    @pytest.mark.parametrize("hint", HINTS)
    async def test_are_left_out_and_not_sent_again(self, backend, hint, how):
        asked, name, _ = HINTS[hint]
        backend.default = refusing(name, HOW[how])
        asked = {"stream": True, **asked}
        async with router_before(backend) as running:
            for turns in (2, 3):
                answer = await ask(running, streaming=True, **{key: asked[key] for key in asked if key != "stream"})
                assert said(answer) == "Fine."
                assert name in answer.headers[ADAPTED].split(", ")
                assert len(backend.turns) == turns, "the second request was refused first"
            first, second, third = (request.json for request in backend.turns)
            assert second == third == {key: value for key, value in first.items() if key != name}

    @pytest.mark.parametrize("hint", HINTS)
    async def test_are_a_400_where_the_settings_say_so(self, backend, hint):
        asked, name, param = HINTS[hint]
        backend.default = refusing(name, HOW["OpenAI"])
        async with router_before(backend, adapt={"hints": False}) as running:
            answer = await ask(running, streaming=True, **{key: asked[key] for key in asked if key != "stream"})
            assert_error(answer, 400, code="unsupported_parameter", param=param)
        assert len(backend.turns) == 1

    async def test_all_of_them_one_after_the_other(self, backend):
        async def strict(reply: Reply) -> None:
            unknown = [name for _, name, _ in HINTS.values() if name in reply.request.json]
            await (HOW["Groq"](unknown[0]) if unknown else chat("Fine."))(reply)

        backend.default = strict
        asked = {key: value for params, *_ in HINTS.values() for key, value in params.items() if key != "stream"}
        async with router_before(backend) as running:
            answer = await ask(running, streaming=True, **asked)
            assert set(answer.headers[ADAPTED].split(", ")) == {name for _, name, _ in HINTS.values()}
            assert said(await ask(running, streaming=True, **asked)) == "Fine."
        assert len(backend.turns) == len(HINTS) + 2

    async def test_what_a_model_refuses_another_model_of_the_server_is_given(self, backend):
        async def strict(reply: Reply) -> None:
            request = reply.request.json
            refuses = request["model"] == "small" and "verbosity" in request
            words = "Unsupported parameter: 'verbosity' is not supported with this model."
            await (http_error(400, words) if refuses else chat("Fine."))(reply)

        backend.models, backend.default = ["small", "large"], strict
        async with router_before(backend) as running:
            for model, turns in (("small", 2), ("large", 3), ("small", 4)):
                assert said(await ask(running, model=model, text={"verbosity": "low"})) == "Fine."
                assert len(backend.turns) == turns
        assert ["verbosity" in request.json for request in backend.turns] == [True, False, True, False]

    async def test_what_a_server_refuses_none_of_its_models_is_given(self, backend):
        backend.models, backend.default = ["small", "large"], refusing("user", HOW["Groq"])
        async with router_before(backend) as running:
            for model, turns in (("small", 2), ("large", 3)):
                assert said(await ask(running, model=model, user="u")) == "Fine."
                assert len(backend.turns) == turns

    async def test_another_endpoint_is_given_what_one_refuses(self):
        async with FakeBackend() as first, FakeBackend() as second:
            first.script(HOW["OpenAI"]("user"), http_error(503))
            endpoints = [
                {"url": f"{first.url}/v1", "kind": "openai-chat"},
                {"url": f"{second.url}/v1", "kind": "openai-chat", "priority": 1},
            ]
            async with running_router(endpoints=endpoints) as running:
                answer = await ask(running, user="u")
            assert said(answer)
            assert ADAPTED not in answer.headers
            assert second.turns[0].json["user"] == "u"

    async def test_a_server_that_was_away_may_be_another_one(self, backend):
        backend.default = refusing("user", HOW["OpenAI"])
        async with router_before(backend) as running:
            (endpoint,) = running.app.state.pool.endpoints.values()
            await ask(running, user="u")
            backend.routes["GET /v1/models"] = http_error(500)
            await endpoint.look()
            del backend.routes["GET /v1/models"]
            await endpoint.look()
            backend.default = chat("Fine.")
            assert ADAPTED not in (await ask(running, user="u")).headers
        assert backend.turns[-1].json["user"] == "u"

    async def test_what_is_no_hint_is_not_left_out(self, backend):
        backend.default = refusing("seed", HOW["a value"])
        async with router_before(backend) as running:
            assert_error(await ask(running, seed=5), 400, param="seed")
        assert len(backend.turns) == 1


class TestTheLengthOfTheAnswer:
    WORDS = "Unsupported parameter: '{}' is not supported with this model. Use '{}' instead."

    @STREAMING
    @pytest.mark.parametrize(
        ("asked", "refused", "instead"),
        [
            ({"max_output_tokens": 7}, "max_tokens", "max_completion_tokens"),
            ({"max_completion_tokens": 7}, "max_completion_tokens", "max_tokens"),
        ],
    )
    async def test_has_the_name_that_a_server_knows(self, backend, streaming, asked, refused, instead):
        backend.default = refusing(refused, lambda _: http_error(400, self.WORDS.format(refused, instead)))
        async with router_before(backend) as running:
            for turns in (2, 3):
                answer = await ask(running, streaming=streaming, **asked)
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == f"{refused}={instead}"
                assert len(backend.turns) == turns
        first, second, third = (request.json for request in backend.turns)
        assert second == third
        assert second[instead] == first[refused] == 7
        assert refused not in second

    async def test_that_has_no_name_at_all_is_a_400(self, backend):
        async def strict(reply: Reply) -> None:
            name = "max_tokens" if "max_tokens" in reply.request.json else "max_completion_tokens"
            await http_error(400, self.WORDS.format(name, "nothing"))(reply)

        backend.default = strict
        async with router_before(backend) as running:
            answer = await ask(running, max_output_tokens=7)
            assert_error(answer, 400, code="unsupported_parameter", param="max_output_tokens")
        assert len(backend.turns) <= 3

    async def test_that_is_only_too_long_is_not_called_otherwise(self, backend):
        backend.default = http_error(400, "max_tokens is too large: 100000. This model supports at most 16384.")
        async with router_before(backend) as running:
            assert_error(await ask(running, max_output_tokens=100000), 400, says="too large")
        assert len(backend.turns) == 1


# ── roles ────────────────────────────────────────────────────────────────────

IN_THE_MIDDLE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
]


def strict_template(template: Callable[[list[Json]], str | None], status: int = 400, words: str = "{}") -> Answer:
    """A server whose model has this template."""

    async def answer(reply: Reply) -> None:
        problem = template(reply.request.json["messages"])
        await (http_error(status, words.format(problem)) if problem else chat("Fine."))(reply)

    return answer


JINJA = "\n------------\nWhile executing CallExpression at line 85 …\nError: Jinja Exception: {}"


class TestRoles:
    @STREAMING
    @pytest.mark.parametrize(("status", "words"), [(400, "{}"), (500, JINJA)], ids=["vLLM", "llama.cpp"])
    async def test_a_system_text_in_the_middle_stays_there_as_the_users(self, backend, status, words, streaming):
        backend.default = strict_template(TEMPLATES["qwen"], status, words)
        async with router_before(backend) as running:
            for turns in (2, 3):
                answer = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.", streaming=streaming)
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == "system_as_user"
                assert len(backend.turns) == turns, "the second request was refused first"
        first, second, third = (request.json["messages"] for request in backend.turns)
        assert second == third
        assert [message["role"] for message in second] == ["system", "user", "assistant", "user", "user"]
        assert second[3]["content"] == "<system>\nBe brief.\n</system>"
        assert [second[place] for place in (0, 1, 2, 4)] == [first[place] for place in (0, 1, 2, 4)]

    @pytest.mark.parametrize(
        ("template", "adapted"),
        [
            ("gemma", "system_as_user, roles_in_turns"),
            ("gemma_2", "system_as_user, all_system_as_user, roles_in_turns"),
            ("devstral", "system_as_user, roles_in_turns"),
            ("mistral", "system_as_user"),
        ],
    )
    async def test_each_strict_template_answers_in_the_end_and_then_at_once(self, backend, template, adapted):
        backend.default = strict_template(TEMPLATES[template])
        async with router_before(backend) as running:
            answer = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.")
            assert said(answer) == "Fine."
            assert set(answer.headers[ADAPTED].split(", ")) == set(adapted.split(", "))
            asked = len(backend.turns)
            again = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.")
            assert said(again) == "Fine."
            assert len(backend.turns) == asked + 1
            assert backend.turns[-1].json == backend.turns[-2].json

    async def test_a_tool_run_that_the_user_broke_off_goes_on(self, backend):
        """Denied, or stopped: the user speaks right behind a tool."""
        backend.default = strict_template(TEMPLATES["mistral"])
        asked = [
            {"role": "user", "content": "Delete it."},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "The user said no."},
            {"role": "user", "content": "Do something else."},
        ]
        async with router_before(backend) as running:
            answer = await ask(running, input=asked, tools=[WEATHER_TOOL])
        assert said(answer) == "Fine."
        assert answer.headers[ADAPTED] == "roles_in_turns"
        roles = [message["role"] for message in backend.turns[-1].json["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]

    async def test_the_prefix_stays_warm_while_the_conversation_goes_on(self, backend):
        backend.default = strict_template(TEMPLATES["qwen"])
        async with router_before(backend) as running:
            last, seen = None, []
            for said_now in ("Hi", "And?", "So?"):
                items = [{"role": "developer", "content": f"Note {said_now}"}, {"role": "user", "content": said_now}]
                body = turn(input=items, **({"previous_response_id": last} if last else {}))
                last = (await running.http.post(URL, json=body)).json()["id"]
                seen.append(backend.turns[-1].json["messages"])
        for before, after in pairwise(seen):
            assert after[: len(before)] == before

    async def test_a_conversation_of_system_texts_alone_is_the_users(self, backend):
        backend.default = strict_template(TEMPLATES["qwen"], 500, JINJA)
        async with router_before(backend) as running:
            answer = await ask(running, input=[{"role": "developer", "content": "Say hello."}])
        assert said(answer) == "Fine."
        assert answer.headers[ADAPTED] == "all_system_as_user"

    async def test_it_is_remembered_for_that_model_alone(self, backend):
        async def strict(reply: Reply) -> None:
            is_strict = reply.request.json["model"] == "strict"
            await (strict_template(TEMPLATES["qwen"]) if is_strict else chat("Fine."))(reply)

        backend.models, backend.default = ["strict", "mild"], strict
        async with router_before(backend) as running:
            assert said(await ask(running, model="strict", input=IN_THE_MIDDLE)) == "Fine."
            answer = await ask(running, model="mild", input=IN_THE_MIDDLE)
        assert ADAPTED not in answer.headers
        assert backend.turns[-1].json["messages"][2]["role"] == "system"

    async def test_a_request_that_needs_no_change_is_not_changed_later(self, backend):
        backend.default = strict_template(TEMPLATES["gemma"])
        async with router_before(backend) as running:
            await ask(running, input=IN_THE_MIDDLE)
            answer = await ask(running, input="Hi", instructions="You are X.")
        assert ADAPTED not in answer.headers
        assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["system", "user"]

    @STREAMING
    @pytest.mark.parametrize("template", ["qwen", "gemma"])
    async def test_it_is_the_servers_own_400_where_the_settings_say_so(self, backend, template, streaming):
        backend.default = strict_template(TEMPLATES[template], 500, JINJA)
        async with router_before(backend, adapt={"roles": False}) as running:
            answer = await ask(running, input=IN_THE_MIDDLE, streaming=streaming)
            assert_error(answer, 400, type="invalid_request_error", param="input", says="Jinja")
        assert len(backend.turns) == 1

    async def test_a_server_that_is_never_content_is_not_asked_for_ever(self, backend):
        backend.default = http_error(400, "Conversation roles must alternate user/assistant/user/assistant/...")
        async with router_before(backend) as running:
            answer = await ask(running, input=IN_THE_MIDDLE)
            assert_error(answer, 400, says="alternate")
        assert len(backend.turns) <= 3


class TestNative:
    """A backend that speaks Responses: it gets the same hints, and its model may have the same template."""

    HINTS: ClassVar[dict[str, Json]] = {
        "prompt_cache_key": {"prompt_cache_key": "k"},
        "safety_identifier": {"safety_identifier": "u"},
        "service_tier": {"service_tier": "flex"},
        "user": {"user": "u"},
        "metadata": {"metadata": {"a": "b"}},
        "parallel_tool_calls": {"parallel_tool_calls": False},
        "stream_options": {"stream_options": {"include_obfuscation": False}},
        "text.verbosity": {"text": {"verbosity": "low"}},
    }

    @pytest.mark.parametrize(
        ("hint", "streaming"),
        [(hint, streaming) for hint in HINTS for streaming in (False, True) if streaming or hint != "stream_options"],
    )
    async def test_hints_are_left_out_and_not_sent_again(self, backend, hint, streaming):
        holder, _, key = hint.rpartition(".")

        async def strict(reply: Reply) -> None:
            request = reply.request.json
            has_it = key in (request.get(holder) or {}) if holder else hint in request
            await (HOW["OpenAI"](hint) if has_it else native("Fine."))(reply)

        backend.default = strict
        async with router_before(backend, "openai") as running:
            for turns in (2, 3):
                answer = await ask(running, streaming=streaming, **self.HINTS[hint])
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == hint
                assert len(backend.turns) == turns

    @pytest.mark.parametrize(("status", "words"), [(400, "{}"), (500, JINJA)], ids=["vLLM", "llama.cpp"])
    async def test_a_developer_item_in_the_middle_stays_there_as_the_users(self, backend, status, words):
        async def strict(reply: Reply) -> None:
            request = reply.request.json
            begins = [{"role": "system"}] if request.get("instructions") else []
            items = [{**item, "role": item["role"].replace("developer", "system")} for item in request["input"]]
            problem = TEMPLATES["qwen"]([*begins, *items])
            await (http_error(status, words.format(problem)) if problem else native("Fine."))(reply)

        backend.default = strict
        async with router_before(backend, "openai") as running:
            for turns in (2, 3):
                answer = await ask(running, input=IN_THE_MIDDLE, instructions="You are X.")
                assert said(answer) == "Fine."
                assert answer.headers[ADAPTED] == "system_as_user"
                assert len(backend.turns) == turns
        texts = [part["text"] for part in backend.turns[-1].json["input"][2]["content"]]
        assert texts == ["<system>", "Be brief.", "</system>"]

    async def test_other_refusals_go_on_as_they_are(self, backend):
        backend.default = http_error(400, "Unknown parameter: 'top_k'.", code="unknown_parameter")
        async with router_before(backend, "openai", adapt=EVERYTHING) as running:
            assert_error(await ask(running, top_k=5, truncation="auto"), 400, code="unknown_parameter")
        assert len(backend.turns) == 1


class TestAnyServer:
    WORDS: ClassVar = [text for text, _ in (*OVERFLOWS.values(), *UNSUPPORTED.values(), *ROLES.values())]
    ASKED: ClassVar[Json] = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "assistant", "content": "A"},
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U" * 5000},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "U"},
        ],
        "max_tokens": 5,
        **dict.fromkeys(("user", "service_tier", "stream_options", "prompt_cache_key", "verbosity", "seed"), "x"),
    }

    @given(
        st.lists(st.sampled_from(WORDS) | st.text(max_size=20), min_size=60, max_size=60),
        st.booleans(),
        st.sampled_from([400, 500]),
    )
    async def test_whatever_it_refuses_it_is_not_asked_for_ever(self, words, everything, status):
        endpoint = SimpleNamespace(learned=Learned(), kind=SimpleNamespace(fetches_images=True), facts={})
        allowed = AdaptConfig(**(EVERYTHING if everything else {}))
        state: Any = SimpleNamespace(
            pool=SimpleNamespace(endpoints={"e": endpoint}), config=SimpleNamespace(adapt=allowed), images=None
        )
        asks: Any = SimpleNamespace(
            id="resp_1", headers={}, request=SimpleNamespace(params=SimpleNamespace(truncation="auto"))
        )
        attempt: Any = SimpleNamespace(endpoint="e", model="m")
        for _ in range(2):
            adapting = Adapting(asks, state, attempt)
            params = await adapting.prepared(self.ASKED)
            tries = 0
            for said_now in words:
                error = ServerErrors().of_answer(status, said_now.encode())
                before = params
                try:
                    if not isinstance(error, BackendRefused):
                        break
                    params = adapting.changed(params, error)
                except BackendRefused:
                    break
                tries += 1
                assert params != before, "it would be asked the same again"
                assert params["messages"]
                assert {"model", "messages"} <= params.keys()
            assert tries <= 20
        assert self.ASKED["messages"][2]["role"] == "system", "the request itself is left alone"


class TestLearned:
    """`Learned`, given the time."""

    def test_it_is_of_a_model_or_of_all(self):
        learned = Learned()
        assert not learned
        learned.add("m", "a", 0.0)
        learned.add(EVERY_MODEL, "b", 0.0)
        assert learned
        assert (learned.changes("m", 1.0), learned.changes("n", 1.0)) == (["a", "b"], ["b"])

    def test_it_is_believed_for_a_while(self):
        learned = Learned()
        learned.add("m", "a", 0.0)
        learned.add("m", "b", 10.0)
        assert learned.changes("m", BELIEVED_S - 1) == ["a", "b"]
        assert learned.changes("m", BELIEVED_S) == ["b"]
        assert learned.changes("m", BELIEVED_S + 10) == []
        assert not learned

    @given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=40))
    def test_it_is_bounded(self, pairs):
        learned = Learned()
        for number in range(20):
            for model, change in pairs:
                learned.add(f"{model}{number}", change, 0.0)
        assert len(learned._until) <= MOST_MODELS
        if pairs:
            assert pairs[-1][1] in learned.changes(f"{pairs[-1][0]}19", 0.0)

    def test_the_model_of_which_nothing_was_learned_for_longest_goes_first(self):
        learned = Learned()
        for number in range(MOST_MODELS):
            learned.add(f"m{number}", "a", 0.0)
        learned.add("m0", "b", 0.0)
        learned.add("another", "a", 0.0)
        assert (learned.changes("m0", 0.0), learned.changes("m1", 0.0)) == (["a", "b"], [])
