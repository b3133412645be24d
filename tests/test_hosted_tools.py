"""OpenAI's own tools on any model: code, files and images, by tools of a real server of MCP and a server of images
that the settings name. The official SDK's types are the judge of what clients see."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config_checks import parse_config
from core.errors import ConfigError
from requests.events import ResponseBuilder, replay, unfinished
from requests.tools import CODE_KEY, TextOfJSON, code_in
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat
from tests.fake_backend.answers import event_stream, http_error, json_answer, stall
from tests.keyed import as_key, keyed_router
from tests.mcp_server import PNG, Served, hosted_tools_of, mcp_server
from tests.sdk import EVENT_CLASSES
from tests.stream_grammar import check_stream, fold
from tests.streams import builder
from tests.test_laws import law
from tests.turns import URL, assert_error, create, eventually, open_stream, retrieve, stream, text_of

Json = dict[str, Any]

CODE: Json = {"type": "code_interpreter", "container": {"type": "auto"}}
FILES: Json = {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 3}
IMAGE: Json = {"type": "image_generation", "size": "1024x1024", "quality": "low"}
OUTPUTS, RESULTS = "code_interpreter_call.outputs", "file_search_call.results"
PICTURE = base64.b64encode(PNG).decode()


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with mcp_server(tools=hosted_tools_of) as served:
        yield served


@pytest.fixture
async def images() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as served:
        served.routes["POST /v1/images/generations"] = json_answer({"data": [{"b64_json": PICTURE}], "size": "512x512"})
        served.routes["POST /v1/images/edits"] = json_answer({"data": [{"b64_json": PICTURE}]})
        yield served


@asynccontextmanager
async def router(
    backend: FakeBackend, server: Served, images: FakeBackend | None = None, database: Json | None = None, **tools: Any
) -> AsyncIterator[Running]:
    drawn = {"url": f"{images.url}/v1", "api_key": "sk-images", "model": "painter"} if images else "mcp:hosted"
    kinds = {"code_interpreter": "mcp:hosted", "file_search": "mcp:hosted/search", "image_generation": drawn}
    async with running_router(
        endpoints=[{"url": backend.url, "kind": "vllm"}],
        mcp={"servers": {"hosted": {"url": server.url}}},
        tools=kinds | tools,
        **({"database": database} if database else {}),
    ) as running:
        yield running
        await eventually(lambda: running.app.state.mcp.sessions == 0, "no session is open")
        assert running.in_flight() == 0


async def seen(served: Running, **params: Any) -> tuple[list[str], Json]:
    """The types of the events of a stream, and its response; the SDK knows each of them, and the store the whole."""
    events = await stream(served.http, **params)
    check_stream(events)
    for event in events:
        assert EVENT_CLASSES[event["type"]].model_validate(event, strict=True).to_dict() == event
    response: Json = events[-1]["response"]
    assert fold(events) == response
    assert "nomyo_output" not in json.dumps(events)
    asked = {"include": params.get("include", [])}
    kept = (await served.http.get(f"{URL}/{response['id']}", params=asked)).json()
    assert kept["output"] == response["output"]
    return [event["type"] for event in events], response


def read_last(backend: FakeBackend) -> Any:
    return backend.turns[-1].json["messages"][-1]["content"]


# ── code ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_code_runs_and_the_model_reads_what_it_printed(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        backend.script(chat(call("code_interpreter", {"code": "print(1)\n"}, id="c")), chat("One."))
        types, response = await seen(served, tools=[CODE], include=[OUTPUTS])
        ran, _ = response["output"]
        assert (ran["type"], ran["status"], ran["code"]) == ("code_interpreter_call", "completed", "print(1)\n")
        assert ran["outputs"] == [{"type": "logs", "logs": "ran 9"}]
        assert server.called == [f"{ran['container_id']}: print(1)\n"]
        assert read_last(backend) == "ran 9"
        name = "response.code_interpreter_call"
        first = types.index(f"{name}.in_progress")
        assert types[first - 1] == "response.output_item.added"
        deltas = types.count(f"{name}_code.delta")
        assert deltas > 1, "code grows as the model writes it"
        assert types[first + 1 : first + deltas + 5] == [
            *[f"{name}_code.delta"] * deltas,
            f"{name}_code.done",
            f"{name}.interpreting",
            f"{name}.completed",
            "response.output_item.done",
        ]


async def test_outputs_are_shown_to_whoever_asks_and_read_by_the_model_in_any_case(
    backend: FakeBackend, server: Served
) -> None:
    async with router(backend, server) as served:
        backend.script(chat(call("code_interpreter", {"code": "plot()"}, id="c")), chat("See."))
        _, first = await seen(served, tools=[CODE])
        assert first["output"][0]["outputs"] is None
        url = f"data:image/png;base64,{PICTURE}"
        asked = (await served.http.get(f"{URL}/{first['id']}", params={"include[]": OUTPUTS})).json()
        assert asked["output"][0]["outputs"] == [{"type": "logs", "logs": "ran 6"}, {"type": "image", "url": url}]
        shown = backend.turns[-1].json["messages"][-1]["content"]
        assert shown[0]["image_url"]["url"] == url
        backend.script(chat("Again."))
        second = await create(served.http, tools=[CODE], previous_response_id=first["id"])
        tool = next(message for message in backend.turns[-1].json["messages"] if message["role"] == "tool")
        assert tool["content"].startswith("ran 6"), "in later turns, too"
        given = await served.http.get(f"{URL}/{second['id']}/input_items", params={"include[]": OUTPUTS})
        listed = next(item for item in given.json()["data"] if item["type"] == "code_interpreter_call")
        assert listed["outputs"] == asked["output"][0]["outputs"]
        assert "nomyo" not in given.text


async def test_a_container_is_its_owners_whatever_others_call_theirs(backend: FakeBackend, server: Served) -> None:
    settings: Json = {
        "mcp": {"servers": {"hosted": {"url": server.url}}},
        "tools": {"code_interpreter": "mcp:hosted"},
    }
    async with keyed_router(backend, "ann", "bob", **settings) as running:
        for name in ("ann", "bob", "ann"):
            backend.script(chat(call("code_interpreter", {"code": "x"}, id="c")), chat("So."))
            async with as_key(running, name) as client:
                response = await create(client, tools=[CODE | {"container": "mine"}])
            assert response["output"][0]["container_id"] == "mine"
        anns, bobs, again = server.called
        assert anns == again != bobs
        await eventually(lambda: running.app.state.mcp.sessions == 0, "no session is open")


async def test_a_container_goes_on_through_a_conversation(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        script = (chat(call("code_interpreter", {"code": "x"}, id="c")), chat("Ran."))
        backend.script(*script)
        first = await create(served.http, tools=[CODE])
        backend.script(*script)
        await create(served.http, tools=[CODE], previous_response_id=first["id"])
        backend.script(*script)
        await create(served.http, tools=[CODE | {"container": "cntr_mine"}])
        backend.script(*script)
        await create(served.http, tools=[CODE])
        one, same, mine, other = [called.partition(":")[0] for called in server.called]
        assert one == same == first["output"][0]["container_id"]
        assert mine == "cntr_mine"
        assert len({one, mine, other}) == 3


async def test_code_that_fails_is_an_item_that_has_failed(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        backend.script(chat(call("code_interpreter", {"code": "crash"}, id="c")), chat("It crashed."))
        _, response = await seen(served, tools=[CODE], include=[OUTPUTS])
        ran, _ = response["output"]
        assert ran["status"] == "failed"
        assert "NameError" in ran["outputs"][0]["logs"]
        assert "NameError" in read_last(backend)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_files_are_searched_and_the_passages_are_read(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        queries = ["moss", "fern"]
        backend.script(chat(call("file_search", {"queries": queries}, id="c")), chat("Moss."))
        types, response = await seen(served, tools=[FILES], include=[RESULTS])
        found, _ = response["output"]
        assert (found["type"], found["status"], found["queries"]) == ("file_search_call", "completed", queries)
        assert [(result["file_id"], result["text"]) for result in found["results"]] == [
            ("file-0", "moss in 0"),
            ("file-0", "fern in 0"),
            ("file-1", "moss in 1"),
        ]
        assert found["results"][0] | {"filename": "0.md", "score": 1.0, "attributes": {"n": 0}} == found["results"][0]
        assert sorted(server.called) == ["fern 3 ['vs_1']", "moss 3 ['vs_1']"]
        assert "moss in 0" in read_last(backend)
        name = "response.file_search_call"
        first = types.index(f"{name}.in_progress")
        assert types[first : first + 3] == [f"{name}.in_progress", f"{name}.searching", f"{name}.completed"]


async def test_results_are_shown_to_whoever_asks_for_them(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        backend.script(chat(call("file_search", {"queries": ["moss"]}, id="c")), chat("Moss."))
        _, response = await seen(served, tools=[FILES])
        assert response["output"][0]["results"] is None
        asked = (await served.http.get(f"{URL}/{response['id']}", params={"include": RESULTS})).json()
        assert len(asked["output"][0]["results"]) == 3


async def test_a_search_that_finds_nothing_ends_well(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        for arguments in ({"queries": ["nothing"]}, {"queries": []}, {}, {"queries": 5}):
            backend.script(chat(call("file_search", arguments, id="c")), chat("Nothing."))
            _, response = await seen(served, tools=[FILES])
            assert text_of(response) == "Nothing."


async def test_what_a_model_has_from_a_file_is_an_annotation(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        backend.script(
            chat(call("file_search", {"queries": ["moss"]}, id="c")), chat("It is ", "green 【1】", ", soft [2].")
        )
        _, first = await seen(served, tools=[FILES])
        (part,) = first["output"][-1]["content"]
        assert part["text"] == "It is green , soft ."
        assert part["annotations"] == [
            {"type": "file_citation", "file_id": "file-0", "filename": "0.md", "index": 12},
            {"type": "file_citation", "file_id": "file-1", "filename": "1.md", "index": 19},
        ]
        backend.script(chat("As was said 【2】."))
        _, second = await seen(served, tools=[FILES], previous_response_id=first["id"])
        assert second["output"][0]["content"][0]["annotations"][0]["file_id"] == "file-1", "also in later turns"


async def test_a_search_that_never_ends_is_given_up(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server, timeout_s=0.5) as served:
        backend.script(chat(call("file_search", {"queries": ["slow"]}, id="c")), chat("Too slow."))
        _, response = await seen(served, tools=[FILES])
        assert (response["output"][0]["status"], text_of(response)) == ("failed", "Too slow.")


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_picture_is_made_shown_and_seen(backend: FakeBackend, server: Served, images: FakeBackend) -> None:
    async with router(backend, server, images) as served:
        backend.script(chat(call("image_generation", {"prompt": "a cat"}, id="c")), chat("Here."))
        types, response = await seen(served, tools=[IMAGE])
        made, _ = response["output"]
        assert (made["type"], made["status"], made["result"]) == ("image_generation_call", "completed", PICTURE)
        assert (made["revised_prompt"], made["size"], made["quality"]) == ("a cat", "512x512", "low")
        asked = images.requests[-1]
        assert asked.headers["authorization"] == "Bearer sk-images"
        assert asked.json == {
            "model": "painter",
            "n": 1,
            "prompt": "a cat",
            "size": "1024x1024",
            "quality": "low",
            "response_format": "b64_json",
        }
        name = "response.image_generation_call"
        first = types.index(f"{name}.in_progress")
        assert types[first : first + 3] == [f"{name}.in_progress", f"{name}.generating", f"{name}.completed"]
        assert read_last(backend)[0]["image_url"]["url"] == f"data:image/png;base64,{PICTURE}"


async def test_the_model_of_the_settings_makes_it_whichever_is_asked_for(
    backend: FakeBackend, server: Served, images: FakeBackend
) -> None:
    async with router(backend, server, images) as served:
        backend.script(chat(call("image_generation", {"prompt": "a cat"}, id="c")), chat("Here."))
        body = {"model": "test-model", "input": "x", "tools": [IMAGE | {"model": "gpt-image-1", "svg": {}}]}
        answer = await served.http.post(URL, json=body)
        assert answer.headers["x-nomyo-ignored"] == "tools.model"
        assert images.requests[-1].json["model"] == "painter"


async def test_pieces_of_a_picture_are_shown_as_they_come(
    backend: FakeBackend, server: Served, images: FakeBackend
) -> None:
    pieces = [
        *({"type": "image_generation.partial_image", "b64_json": PICTURE, "partial_image_index": n} for n in range(2)),
        {"type": "image_generation.completed", "b64_json": PICTURE, "output_format": "webp"},
    ]
    images.routes["POST /v1/images/generations"] = event_stream(pieces)
    async with router(backend, server, images) as served:
        backend.script(chat(call("image_generation", {"prompt": "a cat"}, id="c")), chat("Here."))
        types, response = await seen(served, tools=[IMAGE | {"partial_images": 2}])
        assert types.count("response.image_generation_call.partial_image") == 2
        assert response["output"][0]["output_format"] == "webp"
        assert images.requests[-1].json["partial_images"] == 2


async def test_a_server_of_images_that_knows_less_is_asked_for_less(
    backend: FakeBackend, server: Served, images: FakeBackend
) -> None:
    made = json_answer({"data": [{"url": f"{images.url}/cat.png"}]})

    async def picky(reply: Any) -> None:
        for name in ("stream", "quality", "response_format"):
            if name in reply.request.json:
                await http_error(400, f"unknown parameter: {name}")(reply)
                return
        await made(reply)

    async def picture(reply: Any) -> None:
        await reply.start(200, {"Content-Type": "image/png"}, length=len(PNG))
        await reply.end(PNG)

    images.routes |= {"POST /v1/images/generations": picky, "GET /cat.png": picture}
    async with router(backend, server, images) as served:
        backend.script(chat(call("image_generation", {"prompt": "a cat"}, id="c")), chat("Here."))
        _, response = await seen(served, tools=[IMAGE | {"partial_images": 1}])
        assert response["output"][0]["result"] == PICTURE


async def test_the_last_picture_is_changed(backend: FakeBackend, server: Served, images: FakeBackend) -> None:
    async with router(backend, server, images) as served:
        url = {"type": "input_image", "image_url": f"data:image/png;base64,{PICTURE}"}
        question = {"role": "user", "content": [{"type": "input_text", "text": "A hat!"}, url]}
        backend.script(chat(call("image_generation", {"prompt": "a hat", "edit": True}, id="c")), chat("Here."))
        response = await create(served.http, tools=[IMAGE], input=[question])
        assert response["output"][0]["action"] == "edit"
        sent = images.requests[-1]
        assert sent.path == "/v1/images/edits"
        assert PNG in sent.body


NOT_MADE = [
    http_error(400, "the safety system has rejected it", code="moderation_blocked"),
    http_error(500, "oh"),
    json_answer({"data": []}),
    json_answer([1]),
    json_answer({"data": [{"url": "http://127.0.0.1:9/elsewhere.png"}]}),
    event_stream([{"type": "error", "error": {"message": "it broke"}}]),
    stall(),
]


async def test_a_picture_that_is_not_made_is_an_item_with_its_error(
    backend: FakeBackend, server: Served, images: FakeBackend
) -> None:
    async with router(backend, server, images, timeout_s=0.5) as served:
        for answer in NOT_MADE:
            images.routes["POST /v1/images/generations"] = answer
            backend.script(chat(call("image_generation", {"prompt": "a cat"}, id="c")), chat("Sorry."))
            _, response = await seen(served, tools=[IMAGE])
            made, _ = response["output"]
            assert (made["status"], made["result"]) == ("failed", "")
            assert made["error"]["message"]
            assert "sk-images" not in json.dumps(response)
            assert "failed" in read_last(backend)


async def test_a_tool_of_a_server_makes_pictures_too(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        for prompt, status in (("a cat", "completed"), ("words", "failed")):
            backend.script(chat(call("image_generation", {"prompt": prompt}, id="c")), chat("Here."))
            _, response = await seen(served, tools=[IMAGE])
            assert response["output"][0]["status"] == status
        assert server.called == ["a cat 1024x1024", "words 1024x1024"]


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_not_set_up_is_left_out_and_named(backend: FakeBackend) -> None:
    async with running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]) as served:
        answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [CODE, FILES, IMAGE]})
        assert answer.headers["x-nomyo-omitted-tools"] == "code_interpreter, file_search, image_generation"


async def test_a_tool_can_be_chosen(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        for kind in ("code_interpreter", "file_search", "image_generation"):
            await create(served.http, tools=[CODE, FILES, IMAGE], tool_choice={"type": kind})
            choice = backend.turns[-1].json["tool_choice"]
            assert choice == {"type": "function", "function": {"name": kind}}


async def test_whoever_leaves_while_a_tool_works_leaves_nothing(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        backend.script(chat(call("file_search", {"queries": ["slow"]}, id="c")))
        async with open_stream(served.http, tools=[FILES]) as events:
            begun = await events.until("response.file_search_call.searching")
            await eventually(lambda: bool(server.called), "it works")
        await eventually(lambda: served.app.state.mcp.sessions == 0, "no session is open")
        assert begun["item_id"]


async def test_a_picture_that_is_cut_off_is_one_that_has_failed(
    backend: FakeBackend, server: Served, images: FakeBackend
) -> None:
    images.routes["POST /v1/images/generations"] = stall()
    async with router(backend, server, images) as served:
        backend.script(chat(call("image_generation", {"prompt": "a cat"}, id="c")))
        begun = await create(served.http, tools=[IMAGE], background=True)
        await eventually(lambda: any("images" in request.path for request in images.requests), "it is drawn")
        await served.http.post(f"{URL}/{begun['id']}/cancel")
        (made,) = (await retrieve(served.http, begun["id"]))["output"]
        assert (made["type"], made["status"]) == ("image_generation_call", "failed")


async def test_a_long_story_of_ten_rounds_goes_on_after_a_restart(
    backend: FakeBackend, server: Served, tmp_path: Path
) -> None:
    """Code, searches and a tool of a server, side by side in each round; then one that waits for a yes."""
    database = {"url": f"sqlite:///{tmp_path}/router.db"}
    asks = {"type": "mcp", "server_label": "hosted", "require_approval": {"always": {"tool_names": ["run_python"]}}}
    tools = [CODE, FILES, asks]

    def calls(at: int) -> list[Any]:
        return [
            call("code_interpreter", {"code": f"{at}"}, id=f"code{at}"),
            call("file_search", {"queries": [f"{at}"]}, id=f"files{at}"),
            call("hosted__generate_image", {"prompt": f"{at}"}, id=f"image{at}"),
        ]

    async with router(backend, server, database=database) as served:
        backend.script(
            *(chat(f"Round {at}. ", *calls(at)) for at in range(10)), chat(call("hosted__run_python", {"code": "x"}))
        )
        _, asked = await seen(served, tools=tools)
        kinds = Counter(item["type"] for item in asked["output"])
        ran = ("code_interpreter_call", "file_search_call", "mcp_call", "message")
        assert kinds == {**dict.fromkeys(ran, 10), "mcp_list_tools": 1, "mcp_approval_request": 1}
        assert {item["status"] for item in asked["output"] if item["type"] in ran} == {"completed"}
        assert asked["usage"]["input_tokens"] == 11 * 7, "the tokens of all rounds"
        assert len(backend.turns[-1].json["messages"]) > 60
    approval = {"type": "mcp_approval_response", "approval_request_id": asked["output"][-1]["id"], "approve": True}
    before = len(server.called)
    async with router(backend, server, database=database) as served:
        backend.script(chat(*calls(10)), chat("The end."))
        _, done = await seen(served, tools=tools, input=[approval], previous_response_id=asked["id"])
        assert [item["type"] for item in done["output"]] == [
            "mcp_call",
            "code_interpreter_call",
            "file_search_call",
            "mcp_call",
            "message",
        ]
        assert len(server.called) == before + 4
        containers = {item["container_id"] for item in [*asked["output"], *done["output"]] if "container_id" in item}
        assert len(containers) == 1, "and one container all along"


WRONG: dict[str, tuple[Json, str]] = {
    "no container": ({"type": "code_interpreter"}, "container"),
    "a container that is none": (CODE | {"container": 5}, "container"),
    "another type of it": (CODE | {"container": {"type": "x"}}, "container.type"),
    "files in it": (CODE | {"container": {"type": "auto", "file_ids": ["file-1"]}}, "container.file_ids"),
    "no stores": ({"type": "file_search"}, "vector_store_ids"),
    "stores that are none": (FILES | {"vector_store_ids": [5]}, "vector_store_ids"),
    "too many results": (FILES | {"max_num_results": 51}, "max_num_results"),
    "results that are none": (FILES | {"max_num_results": True}, "max_num_results"),
    "filters that are none": (FILES | {"filters": [1]}, "filters"),
    "a threshold that is none": (
        FILES | {"ranking_options": {"score_threshold": "x"}},
        "ranking_options.score_threshold",
    ),
    "a size that is none": (IMAGE | {"size": 5}, "size"),
    "a quality that is none": (IMAGE | {"quality": "good"}, "quality"),
    "too many pieces": (IMAGE | {"partial_images": 4}, "partial_images"),
}


async def test_what_is_wrong_with_a_tool_is_named(backend: FakeBackend) -> None:
    async with router(backend, Served("http://127.0.0.1:9/mcp")) as served:
        for name, (tool, key) in WRONG.items():
            for streams in (False, True):
                body = {"model": "test-model", "input": name, "tools": [tool], "stream": streams}
                assert_error(await served.http.post(URL, json=body), 400, param=f"tools[0].{key}")
        body = {"model": "test-model", "input": "x", "tools": [CODE, CODE]}
        assert_error(await served.http.post(URL, json=body), 400, param="tools[1]")
        assert not backend.turns


async def test_a_server_that_is_down_is_an_item_that_has_failed(backend: FakeBackend) -> None:
    async with router(backend, Served("http://127.0.0.1:9/mcp")) as served:
        asked = (
            ("code_interpreter", {"code": "x"}),
            ("file_search", {"queries": ["x"]}),
            ("image_generation", {"prompt": "x"}),
        )
        backend.script(chat(*(call(name, arguments, id=name) for name, arguments in asked)), chat("Sorry."))
        _, response = await seen(served, tools=[CODE, FILES, IMAGE])
        assert [item.get("status") for item in response["output"]] == ["failed"] * 3 + ["completed"]
        backend.script(chat(call("code_interpreter", {"code": "x"}, id="c")), chat("Sorry."))
        answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [CODE]})
        assert answer.headers["x-nomyo-failed-tools"] == "code_interpreter"


async def test_calls_side_by_side_share_a_session(backend: FakeBackend, server: Served) -> None:
    async with router(backend, server) as served:
        calls = [call("code_interpreter", {"code": f"x{n}"}, id=f"c{n}") for n in range(3)]
        backend.script(chat(*calls), chat("Done."))
        running = asyncio.create_task(create(served.http, tools=[CODE]))
        most = 0
        while not running.done():
            most = max(most, served.app.state.mcp.sessions)
            await asyncio.sleep(0)
        assert (most, len(server.called)) == (1, 3)
        assert len((await running)["output"]) == 4


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = st.text(max_size=40)
LOGS = st.fixed_dictionaries({"type": st.just("logs"), "logs": TEXTS})
RESULT = st.fixed_dictionaries({"file_id": TEXTS, "filename": TEXTS, "score": st.floats(0, 1), "text": TEXTS})
HOSTED_ITEMS = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("code_interpreter_call"),
            "status": st.sampled_from(["completed", "failed", "incomplete"]),
            "code": TEXTS,
            "container_id": TEXTS,
            "outputs": st.none() | st.lists(LOGS, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("file_search_call"),
            "status": st.sampled_from(["completed", "failed", "incomplete"]),
            "queries": st.lists(TEXTS, max_size=3),
            "results": st.none() | st.lists(RESULT, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("image_generation_call"),
            "status": st.sampled_from(["completed", "failed"]),
            "result": TEXTS,
            "revised_prompt": TEXTS,
        }
    ),
)


@law
@given(items=st.lists(HOSTED_ITEMS, max_size=4), status=st.sampled_from(["completed", "failed", "cancelled"]))
def test_a_stored_call_is_replayed_with_all_its_events_and_folds_back(items: list[Json], status: str) -> None:
    output = [{"id": f"x_{number}", **item} for number, item in enumerate(items)]
    for item in output:
        if item["status"] == "incomplete":  # It was cut off before anything came of it, and its turn with it.
            item |= {key: None for key in ("outputs", "results") if key in item}
            item |= {"status": "completed"} if status == "completed" else {}
    response = builder().response | {"status": status, "output": output}
    if status == "failed":
        response["error"] = {"code": "server_error", "message": "x", "type": "server_error", "param": None}
    made = ResponseBuilder(unfinished(response))
    events = [*replay(made, response), made.end()]
    check_stream(events)
    for event in events:
        assert EVENT_CLASSES[event["type"]].model_validate(event).type == event["type"]
    assert fold(events) == events[-1]["response"] == response | {"output": output}


@law
@given(code=st.text(), cuts=st.lists(st.integers(0, 200)), is_ascii=st.booleans())
def test_code_grows_out_of_its_json_however_that_is_cut(code: str, cuts: list[int], is_ascii: bool) -> None:
    arguments = json.dumps({"code": code}, ensure_ascii=is_ascii)
    reader = TextOfJSON(CODE_KEY)
    ends = sorted({min(cut, len(arguments)) for cut in cuts} | {len(arguments)})
    pieces = [reader.feed(arguments[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    assert "".join(pieces) == code == code_in(arguments)


WRONG_SETTINGS: dict[str, tuple[Any, str]] = {
    "no server": ({"code_interpreter": "mcp:none"}, "tools.code_interpreter: 'none' is not among"),
    "no server of MCP": ({"file_search": "http://search"}, "tools.file_search: is mcp:NAME"),
    "one that asks for approval": ({"code_interpreter": "mcp:asks"}, "tools.code_interpreter: mcp.servers.asks asks"),
    "no URL": ({"image_generation": {"url": "images"}}, "tools.image_generation.url: "),
    "a key that is none": (
        {"image_generation": {"url": "http://x/v1", "api_key": "a\nb"}},
        "tools.image_generation.api_key: ",
    ),
    "another type": ({"image_generation": 5}, "tools.image_generation: "),
    "a key too many": ({"image_generation": {"url": "http://x/v1", "size": "x"}}, "'tools.image_generation.size'"),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_what_is_wrong_with_the_settings_is_named(name: str) -> None:
    tools, words = WRONG_SETTINGS[name]
    servers = {"asks": {"url": "http://x/mcp", "require_approval": "always"}}
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_config({"endpoints": [{"url": "http://x"}], "mcp": {"servers": servers}, "tools": tools})
