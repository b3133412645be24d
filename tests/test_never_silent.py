"""What a client asks for is done, refused by name, or named as ignored; and what a turn does not need may be
anything."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.turns.backend import Backend
from api.turns.chat_request import prepare_chat
from api.turns.turn import TurnRequest
from backends.kinds import KINDS
from core.errors import InvalidRequest
from core.keys import Principal
from core.seals import Sealer
from requests.compatibility import ITEMS
from requests.items import check_input, input_items
from requests.params import check_request
from requests.tools import CALLS, OUTPUTS
from tests.conftest import Running
from tests.fake_backend import FakeBackend, call, chat
from tests.sdk import MODEL
from tests.test_laws import MANY, json_values, law
from tests.turns import URL, assert_error, create

Json = dict[str, Any]
USER: Json = {"role": "user", "content": "hi"}
FUNCTION: Json = {"type": "function", "name": "f", "description": "It does.", "parameters": {"type": "object"}}


async def sent(served: Running, backend: FakeBackend, **params: Any) -> Json:
    await create(served.http, **params)
    arrived: Json = backend.turns[-1].json
    return arrived


async def ignored(served: Running, **params: Any) -> list[str]:
    answer = await served.http.post(URL, json={"model": MODEL, "input": "hi", **params})
    assert answer.status_code == 200, answer.text
    return [name for name in answer.headers.get("x-nomyo-ignored", "").split(", ") if name]


# ── ignored, by name ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_all_that_is_ignored_is_named(served: Running) -> None:
    assert await ignored(
        served,
        moderation={},
        prompt_cache_options={"prewarm": True},
        background_options={"a": 1},
        include=["web_search_call.results", "acme.all", "reasoning.encrypted_content"],
        reasoning={"effort": "low", "mode": "fast", "acme": 1},
        tools=[FUNCTION | {"output_schema": {}}, FUNCTION | {"output_schema": {"type": "object"}, "acme": 1}],
    ) == [
        "background_options",
        "include.acme.all",
        "include.web_search_call.results",
        "moderation",
        "prompt_cache_options",
        "reasoning.acme",
        "reasoning.mode",
        "tools.acme",
        "tools.output_schema",
    ]


async def test_what_is_not_given_is_not_named(served: Running) -> None:
    given = {"moderation": None, "reasoning": {"mode": None}, "include": [], "tools": [FUNCTION | {"async": False}]}
    assert await ignored(served, **given) == []


async def test_a_stream_names_it_too(served: Running) -> None:
    assert await ignored(served, moderation={}, stream=True) == ["moderation"]


async def test_an_item_of_which_nothing_comes_is_named_in_the_turn_that_brings_it(served: Running) -> None:
    listed = {"type": "mcp_list_tools", "server_label": "s", "tools": []}
    assert await ignored(served, input=[USER, listed]) == ["input.mcp_list_tools"]
    first = await create(served.http, input=[USER, listed])
    assert await ignored(served, previous_response_id=first["id"]) == []


async def test_a_native_server_is_left_to_judge(served_natively: Running) -> None:
    assert await ignored(served_natively, moderation={}, reasoning={"effort": "acme"}, include=["acme.all"]) == []


async def test_names_are_a_clients_own_text_and_cannot_break_a_header(served: Running) -> None:
    (name,) = await ignored(served, include=["a\r\nx-evil: 1" + "é" * 5000])
    assert name.startswith("include.a??x-evil: 1?")
    assert len(name) <= 2048


# ── refused, by name ─────────────────────────────────────────────────────────────────────────────────────────────────

WRONG: dict[str, tuple[Json, str]] = {
    "an effort": ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
    "a verbosity": ({"text": {"verbosity": "chatty"}}, "text.verbosity"),
    "a service tier": ({"service_tier": "platinum"}, "service_tier"),
    "no input": ({"input": []}, "input"),
    "no input but instructions": ({"input": [], "instructions": "Be brief."}, "input"),
    "an input that says nothing": ({"input": [{"type": "additional_tools", "tools": []}]}, "input"),
    "an input that says nothing but instructions": (
        {"input": [{"type": "additional_tools", "tools": [FUNCTION]}], "instructions": "Be brief."},
        "input",
    ),
    "a function as chat completions has it": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        "tools[0].name",
    ),
    "an image without a URL": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": ""}]}]},
        "input[0].content[0].image_url",
    ),
    "an image whose URL is blank": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": " \n"}]}]},
        "input[0].content[0].image_url",
    ),
    "an image whose data is empty": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,"}]}]},
        "input[0].content[0].image_url",
    ),
    "parameters as a text": ({"tools": [FUNCTION | {"parameters": '{"type": "object"}'}]}, "tools[0].parameters"),
    "parameters that are a list": (
        {"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION | {"parameters": []}]}]},
        "tools[0].tools[0].parameters",
    ),
    "a function that is strict in words": ({"tools": [FUNCTION | {"strict": "yes"}]}, "tools[0].strict"),
    "skills that are none": (
        {"tools": [{"type": "shell", "environment": {"skills": ["pdf"]}}]},
        "tools[0].environment.skills",
    ),
    "a description that is none": ({"tools": [FUNCTION | {"description": 1}]}, "tools[0].description"),
    "a configuration that is none": (
        {"input": [USER, {"type": "configuration_update", "reasoning": "low"}]},
        "input[1].reasoning",
    ),
}


@pytest.mark.parametrize(("params", "param"), WRONG.values(), ids=WRONG)
async def test_a_wrong_value_is_refused_by_name(params: Json, param: str, served: Running) -> None:
    answer = await served.http.post(URL, json={"model": MODEL, "input": "hi", **params})
    assert_error(answer, 400, param=param)


async def test_no_input_is_fine_where_something_else_says_what_to_do(served: Running) -> None:
    first = await create(served.http)
    assert (await create(served.http, input=[], previous_response_id=first["id"]))["status"] == "completed"
    assert (await create(served.http, input=""))["status"] == "completed", "LM Studio's clients warm a model up so"


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
async def test_every_effort_of_openais_is_taken(effort: str, served: Running, backend: FakeBackend) -> None:
    assert (await sent(served, backend, reasoning={"effort": effort}))["reasoning_effort"] == effort


# ── done ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def update(effort: str | None = None, verbosity: str | None = None) -> Json:
    return {"type": "configuration_update", "reasoning": {"effort": effort}, "text": {"verbosity": verbosity}}


async def test_a_configuration_holds_until_the_next_one(served: Running, backend: FakeBackend) -> None:
    def configured() -> tuple[Any, Any]:
        arrived = backend.turns[-1].json
        return arrived.get("reasoning_effort"), arrived.get("verbosity")

    first = await create(served.http, input=[update("high", "low"), USER], reasoning={"effort": "low"})
    assert configured() == ("high", "low")
    assert len(backend.turns[-1].json["messages"]) == 1, "the model reads nothing of it"
    second = await create(served.http, previous_response_id=first["id"])
    assert configured() == ("high", "low"), "it holds in the turns behind it"
    third = await create(served.http, input=[update("minimal"), USER], previous_response_id=second["id"])
    assert configured() == ("minimal", "low"), "what the next one does not say stays"
    await create(served.http, previous_response_id=third["id"])
    assert configured() == ("minimal", "low")


async def test_a_configuration_holds_behind_a_summary(served: Running, backend: FakeBackend) -> None:
    summary = {"type": "compaction", "encrypted_content": served.app.state.sealer.seal("All is well.", "compaction")}
    arrived = await sent(served, backend, input=[update("high"), USER, summary, USER])
    assert arrived["reasoning_effort"] == "high"


async def test_a_shell_that_runs_at_openai_is_omitted(served: Running, backend: FakeBackend) -> None:
    tools = [{"type": "shell", "environment": {"type": "container_auto"}}, FUNCTION]
    answer = await served.http.post(URL, json={"model": MODEL, "input": "hi", "tools": tools})
    assert answer.headers["x-nomyo-omitted-tools"] == "shell:container_auto"
    assert [tool["function"]["name"] for tool in backend.turns[-1].json["tools"]] == ["f"]


async def test_a_shell_that_runs_with_the_client_has_its_skills_described(
    served: Running, backend: FakeBackend
) -> None:
    skill = {"name": "pdf", "description": "Reads PDFs.", "path": "/skills/pdf"}
    shell = {"type": "shell", "environment": {"type": "local", "skills": [skill]}}
    (offered,) = (await sent(served, backend, tools=[shell]))["tools"]
    assert "- pdf: Reads PDFs. (/skills/pdf)" in offered["function"]["description"]
    (plain,) = (await sent(served, backend, tools=[{"type": "shell"}]))["tools"]
    assert offered["function"]["description"].startswith(plain["function"]["description"])


async def test_a_namespace_says_what_it_is_once(served: Running, backend: FakeBackend) -> None:
    inner = [FUNCTION, {"type": "function", "name": "g"}]
    tools = [{"type": "namespace", "name": "n", "description": "All of n.", "tools": inner}]
    first, second = (await sent(served, backend, tools=tools))["tools"]
    assert first["function"]["description"] == "n: All of n.\n\nIt does."
    assert "description" not in second["function"]


async def test_no_tool_may_be_called_where_none_is_allowed(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Well.", call("f", {})))
    choice = {"type": "allowed_tools", "mode": "none", "tools": [{"type": "function", "name": "f"}]}
    response = await create(served.http, tools=[FUNCTION], tool_choice=choice)
    arrived = backend.turns[-1].json
    assert (arrived["tool_choice"], len(arrived["tools"])) == ("none", 1), "all tools stay visible"
    assert [item["type"] for item in response["output"]] == ["message"], "and a call of one is suppressed"


async def test_an_output_without_an_id_answers_the_function_that_it_names(
    served: Running, backend: FakeBackend, served_natively: Running
) -> None:
    backend.strict = True
    items = [
        USER,
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "name": "f", "output": "42"},
    ]
    *_, answered = (await sent(served, backend, input=items))["messages"]
    assert answered == {"role": "tool", "tool_call_id": "c1", "content": "42"}
    assert (await sent(served_natively, backend, input=items))["input"] == items


@pytest.mark.parametrize("call_id", [None, "tsc_1"])
async def test_a_hosted_search_needs_no_output(
    call_id: str | None, served: Running, served_natively: Running, backend: FakeBackend
) -> None:
    backend.strict = True
    search = {"type": "tool_search_call", "execution": "server", "call_id": call_id, "arguments": {"query": "rain"}}
    items = [USER, search, USER]
    _, described, _ = (await sent(served, backend, input=items))["messages"]
    assert described["role"] == "assistant"
    assert "rain" in described["content"]
    assert (await sent(served_natively, backend, input=items))["input"] == items


async def test_ids_that_come_again_are_paired_in_order(served: Running, backend: FakeBackend) -> None:
    backend.strict = True
    rounds = [
        [
            {"type": "function_call", "call_id": "call_0", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_0", "output": str(number)},
        ]
        for number in range(3)
    ]
    first = await create(served.http, input=[USER, *rounds[0]])
    arrived = await sent(served, backend, input=[*rounds[1], *rounds[2]], previous_response_id=first["id"])
    outputs = {m["tool_call_id"]: m["content"] for m in arrived["messages"] if m["role"] == "tool"}
    assert outputs == {"call_0": "0", "call_0_2": "1", "call_0_3": "2"}


# ── stored prompts ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stored_prompt_names_its_model_itself(served_natively: Running, backend: FakeBackend) -> None:
    answer = await served_natively.http.post(URL, json={"prompt": {"id": "pmpt_1"}})
    assert answer.status_code == 200, answer.text
    arrived = backend.turns[-1].json
    assert arrived["prompt"] == {"id": "pmpt_1"}
    assert "model" not in arrived


async def test_without_a_server_that_knows_prompts_a_model_is_missing(served: Running) -> None:
    assert_error(await served.http.post(URL, json={"prompt": {"id": "pmpt_1"}}), 400, param="model")
    given = {"prompt": {"id": "pmpt_1"}, "model": MODEL}
    assert_error(await served.http.post(URL, json=given), 400, param="prompt")


# ── whatever comes ───────────────────────────────────────────────────────────────────────────────────────────────────

BACKEND = Backend(MODEL, KINDS["openai-chat"], Sealer("k"), None)  # type: ignore[arg-type]
SEALED = Sealer("k").seal("They spoke of rain.", "compaction")


def prepared(body: Any) -> Json:
    """The chat request for a body, as the router makes it, without the history of a store."""
    params = check_request(body)
    items = input_items(params.input)
    check_input(items, 0)
    request = TurnRequest(body, params, params.model or "", [], items, Principal(""))
    return prepare_chat(BACKEND, request).params


# Integers of any size too.
any_json = json_values | st.integers()

# A turn that has everything, and keys of it that it does not need: any value there is as good as none.
TURN: Json = {
    "model": MODEL,
    "stream": True,
    "instructions": "Be brief.",
    "tools": [FUNCTION, {"type": "custom", "name": "c"}, {"type": "namespace", "name": "n", "tools": [FUNCTION]}],
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yo"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "c", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "y"},
        {"type": "shell_call", "call_id": "c3", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "c3", "output": [{"stdout": "a", "outcome": {"type": "exit"}}]},
        {"type": "compaction", "encrypted_content": SEALED},
        {"type": "message", "role": "user", "content": "go on"},
    ],
}
UNNEEDED: list[tuple[Any, ...]] = [
    ("moderation",),
    ("client_metadata",),
    ("prompt_cache_options",),
    ("background_options",),
    ("access_programs",),
    ("image",),
    ("generate",),
    ("messages",),
    ("reasoning", "context"),
    ("reasoning", "acme"),
    ("stream_options", "include_usage"),
    ("tools", 0, "output_schema"),
    ("tools", 0, "allowed_callers"),
    ("tools", 1, "defer_loading"),
    ("tools", 2, "acme"),
    *(
        ("input", place, key)
        for place in range(len(TURN["input"]))
        for key in ("status", "internal_chat", "created_by")
    ),
    ("input", 0, "content", 0, "annotations"),
    ("input", 2, "content", 0, "annotations"),
    ("input", 2, "content", 0, "logprobs"),
    ("input", 2, "phase"),
    ("input", 3, "caller"),
    ("input", 3, "async"),
    ("input", 1, "encrypted_content"),
]


def with_value(body: Json, path: tuple[Any, ...], value: Any) -> Json:
    changed = copy.deepcopy(body)
    holder: Any = changed
    for key in path[:-1]:
        holder = holder.setdefault(key, {}) if isinstance(key, str) else holder[key]
    holder[path[-1]] = value
    return changed


@settings(law, max_examples=MANY or 100)
@given(st.lists(st.tuples(st.sampled_from(UNNEEDED), any_json), min_size=1, max_size=4))
def test_any_value_in_a_key_that_the_turn_does_not_need_changes_nothing(
    values: list[tuple[tuple[Any, ...], Any]],
) -> None:
    body = TURN
    for path, value in values:
        body = with_value(body, path, value)
    assert prepared(body) == prepared(TURN)


keys_of_items = st.sampled_from(
    [
        *("type", "role", "content", "summary", "output", "call_id", "name", "namespace", "arguments", "input", "id"),
        *("status", "action", "operation", "tools", "execution", "encrypted_content", "reasoning", "text", "code"),
        *("outputs", "result", "output_format", "queries", "results", "error", "environment", "stdout", "path", "diff"),
    ]
)
objects = st.dictionaries(keys_of_items, any_json, max_size=3)
any_items = st.builds(
    lambda kind, keys, call_id: {"type": kind, "call_id": call_id, **keys},
    st.sampled_from(sorted({*ITEMS, *CALLS, *OUTPUTS} - {"*"})),
    st.dictionaries(keys_of_items, any_json | st.lists(objects, max_size=2), max_size=4),
    st.sampled_from(["c1", "c1", "c2", None]),
)
any_tools = st.builds(
    lambda kind, keys: {"type": kind, "name": "f", **keys},
    st.sampled_from(["function", "custom", "namespace", "shell", "local_shell", "apply_patch", "tool_search", "mcp"]),
    st.dictionaries(
        st.sampled_from(["name", "description", "parameters", "strict", "format", "environment", "tools", "execution"]),
        json_values | st.dictionaries(st.sampled_from(["type", "skills", "syntax", "definition"]), json_values),
        max_size=3,
    ),
)


@settings(law, max_examples=MANY or 150)
@given(st.lists(any_items, max_size=4), st.lists(any_tools, max_size=2))
def test_whatever_an_item_or_a_tool_holds_it_is_carried_or_refused_by_name(
    items: list[Json], tools: list[Json]
) -> None:
    refusal: InvalidRequest | None = None
    try:
        prepared({"model": MODEL, "input": [USER, *items], "tools": tools})
    except InvalidRequest as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and refusal.param), f"no parameter is named: {refusal}"
