"""What a waiting turn was asked is kept whole, and no credential in it can be read where it is kept or shown."""

from __future__ import annotations

import asyncio
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.turns.history import stored_items
from core.seals import Sealer
from requests.credentials import without_credentials
from requests.kept import KEY, SEALED, given_items, given_request, kept_items, kept_request, key_of_request
from requests.params import CreateParams
from tests.conftest import running_router
from tests.fake_backend import FakeBackend, chat, json_answer, stall, steps, until
from tests.test_laws import law, texts
from tests.turns import URL, Json, create, ended, retrieve

SEAL = partial(Sealer("a key").seal, purpose="request")
OPEN = partial(Sealer("a key").open, purpose="request")
SECRET = "Hippopotamonstrosesquippedalian"
MCP = {
    "type": "mcp",
    "server_label": "notes",
    "server_url": f"https://user:{SECRET}@notes.example:8443/{SECRET}?key={SECRET}",
    "authorization": SECRET,
    "headers": {"X-Api-Key": SECRET},
    "require_approval": "never",
}
SHELL = {
    "type": "shell",
    "environment": {
        "type": "container_auto",
        "network_policy": {"type": "allowlist", "domain_secrets": [{"domain": "a.b", "name": "K", "value": SECRET}]},
    },
}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"headers": {}}}}
BODY: Json = {
    "model": "test-model",
    "input": [
        {"role": "user", "content": "Hi"},
        {"type": "additional_tools", "role": "developer", "tools": [FUNCTION, MCP]},
    ],
    "tools": [
        FUNCTION,
        MCP,
        SHELL,
        {"type": "namespace", "name": "n", "tools": [FUNCTION, {"type": "custom", "name": "p"}]},
    ],
    "extra_headers": {"Cookie": SECRET},
    "metadata": {"a": "b"},
}

values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), texts
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["type", "tools", "headers", "server_url", SEALED]), texts), inner, max_size=4
        ),
    ),
    max_leaves=8,
)
kinds = st.sampled_from(["function", "custom", "namespace", "mcp", "shell", "web_search", "new"])
tools = st.one_of(
    st.fixed_dictionaries({"type": kinds}, optional={"tools": st.lists(values, max_size=2), "x": values}), values
)
items = st.one_of(values, st.fixed_dictionaries({"type": texts}, optional={"tools": st.lists(tools, max_size=2)}))
bodies = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.one_of(st.lists(tools, max_size=3), values),
        "input": st.one_of(st.lists(items, max_size=3), values),
        "metadata": values,
        "extra": values,
    },
)


@law
@given(bodies)
def test_what_is_kept_is_what_was_given(body: Json) -> None:
    body = orjson.loads(orjson.dumps(body))
    assert given_request(kept_request(body, SEAL), OPEN) == body


@law
@given(bodies, st.sampled_from(["", "ann"]), st.one_of(st.none(), values))
def test_the_key_of_a_request_is_kept_and_no_parameter_passes_for_one(body: Json, key: str, param: Json) -> None:
    body = orjson.loads(orjson.dumps({**body, KEY: param}))
    kept = kept_request(body, SEAL, key)
    assert key_of_request(kept) == key
    if key:
        del body[KEY]
    assert given_request(kept, OPEN) == body


@law
@given(bodies)
def test_nothing_is_kept_twice_sealed_or_left_out(body: Json) -> None:
    kept = orjson.loads(kept_request(body, lambda text: f"<{len(text)}>"))
    assert kept.keys() == body.keys()


def test_no_credential_can_be_read_in_what_is_kept() -> None:
    kept = kept_request(BODY, SEAL)
    assert SECRET.encode() not in kept
    assert b'"Hi"' in kept, "what is no credential is not sealed"
    assert orjson.dumps(FUNCTION) in kept
    assert given_request(kept, OPEN) == BODY


@law
@given(tool=st.fixed_dictionaries({"type": kinds}, optional={"x": values}), where=texts)
def test_what_we_do_not_know_of_a_tool_is_sealed(tool: Json, where: str) -> None:
    body = {
        "tools": [{**tool, f"key {where}": SECRET}],
        f"parameter {where}": SECRET,
        "input": [{"tools": [{**tool, "y": SECRET}]}],
    }
    assert SECRET.encode() not in kept_request(body, SEAL)  # fmt: skip


def test_a_request_without_credentials_is_not_sealed_at_all() -> None:
    """So it costs neither the sealing nor the library for it."""
    body = dict.fromkeys(CreateParams.__struct_fields__) | {"tools": [FUNCTION], "input": [{"role": "user"}]}
    assert orjson.loads(kept_request(body, lambda text: pytest.fail(f"sealed {text}"))) == body


def test_what_was_sealed_with_another_key_is_none() -> None:
    assert given_request(kept_request(BODY, SEAL), partial(Sealer("another").open, purpose="request")) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://mcp.example", "https://mcp.example"),
        ("https://mcp.example/", "https://mcp.example/"),
        ("https://mcp.example/mcp", "https://mcp.example/<redacted>"),
        ("https://mcp.example?key=1", "https://mcp.example/<redacted>"),
        ("http://user:key@mcp.example:80", "http://mcp.example:80/<redacted>"),
        ("https://mcp.example/#key", "https://mcp.example/<redacted>"),
        ("https://[oops/mcp", "<redacted>"),
    ],
)
def test_of_a_server_no_more_is_shown_than_its_host(url: str, shown: str) -> None:
    tool = {"type": "mcp", "server_label": "l", "server_url": url, "headers": {"a": "b"}, "authorization": "c"}
    assert without_credentials(tool) == {"type": "mcp", "server_label": "l", "server_url": shown, "headers": None}


def test_the_tools_that_the_client_runs_are_shown_as_they_are() -> None:
    assert without_credentials(FUNCTION) == FUNCTION


# ── through the router ───────────────────────────────────────────────────────────────────────────────────────────────


def kept_in(file: Path) -> dict[str, Any]:
    """The requests in the rows of a file."""
    connection = sqlite3.connect(file)
    try:
        return dict(connection.execute("SELECT id, request FROM responses").fetchall())
    finally:
        connection.close()


def bytes_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir() if file.name.startswith("router.db"))


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled", "stopped"])
async def test_a_queued_turn_keeps_its_request_until_it_ends(ending: str, backend: FakeBackend, tmp_path: Path) -> None:
    body = {**BODY, "input": BODY["input"][:1]}
    gate, file = asyncio.Event(), tmp_path / "router.db"
    backend.script(steps(until(gate), chat("One")), json_answer({"oops": 1}) if ending == "failed" else chat("Two"))
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": f"sqlite:///{file}"},
        "background": {"max_concurrent": 1, "drain_s": 0},
    }
    async with running_router(**settings) as running:
        first = await create(running.http, background=True)
        queued = await create(running.http, **body, background=True)
        assert queued["status"] == "queued"
        kept = kept_in(file)[queued["id"]]
        assert given_request(kept, partial(running.app.state.sealer.open, purpose="request")) == {
            **body,
            "background": True,
        }
        if ending == "cancelled":
            await running.http.post(f"{URL}/{queued['id']}/cancel")
        if ending != "stopped":
            gate.set()
            for response_id in (first["id"], queued["id"]):
                await ended(running.http, response_id)
            assert (await retrieve(running.http, queued["id"]))["status"] == ending
        assert SECRET.encode() not in bytes_in(tmp_path)
    # What waited at the stop runs after the next start.
    assert kept_in(file) == {first["id"]: None, queued["id"]: kept if ending == "stopped" else None}


@pytest.mark.parametrize("params", [{}, {"stream": True}])
async def test_a_turn_that_does_not_wait_keeps_no_request(params: Json, backend: FakeBackend, tmp_path: Path) -> None:
    file = tmp_path / "router.db"
    backend.script(chat("Half", then=stall()))
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint], database={"url": f"sqlite:///{file}"}) as running:
        asking = asyncio.create_task(running.http.post(URL, json={**BODY, "input": "Hi", **params}))
        await backend.wait_for(lambda b: b.in_flight == 1)
        assert set(kept_in(file).values()) <= {None}
        asking.cancel()
        await asyncio.wait([asking])
    assert set(kept_in(file).values()) <= {None}


@pytest.mark.parametrize("stream", [False, True])
async def test_no_response_shows_a_credential(stream: bool, backend: FakeBackend) -> None:
    """Nor does the one of a server that repeats it."""
    echoing = {"id": "r", "object": "response", "status": "completed", "output": [], "tools": [MCP, SHELL, FUNCTION]}
    for kind in ("openai-chat", "openai"):
        if kind == "openai" and stream:
            continue  # the scripted answer is a whole one
        backend.script(json_answer(echoing) if kind == "openai" else chat("Yo"))
        async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": kind}]) as running:
            answer = await running.http.post(URL, json={**BODY, "input": "Hi", "stream": stream})
            assert answer.status_code == 200, answer.text
            assert SECRET not in answer.text
            if not stream:
                stored = await running.http.get(f"{URL}/{answer.json()['id']}")
                assert SECRET not in stored.text
                (shown,) = [tool for tool in stored.json()["tools"] if tool["type"] == "mcp"]
                assert shown["server_url"] == "https://notes.example:8443/<redacted>"


# ── the items that bring tools along ─────────────────────────────────────────────────────────────────────────────────

bringing = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("additional_tools"), "id": texts},
        optional={"tools": st.one_of(st.lists(tools, max_size=3), values)},
    ),
    max_size=3,
)


@law
@given(bringing)
def test_items_that_are_stored_are_those_that_were_given(items: list[Json]) -> None:
    items = orjson.loads(orjson.dumps(items))
    kept = kept_items(items, SEAL)
    assert [item["id"] for item in kept] == [item["id"] for item in items]
    assert given_items(orjson.loads(orjson.dumps(kept)), OPEN) == items


def test_a_tool_that_cannot_be_opened_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    items = [{"type": "additional_tools", "id": "a", "tools": [FUNCTION, MCP]}]
    kept = kept_items(items, partial(Sealer("another").seal, purpose="request"))
    assert stored_items(Sealer("a key"), kept) == [{**items[0], "tools": [FUNCTION]}]
    assert "left out" in caplog.text


async def test_tools_of_an_item_are_stored_sealed_shown_without_credentials_and_used_again(
    backend: FakeBackend, tmp_path: Path
) -> None:
    bringing = {"type": "additional_tools", "role": "developer", "tools": [FUNCTION, MCP]}
    answered = {"id": "r", "object": "response", "status": "completed", "output": []}
    backend.default = json_answer(answered)
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai"}
    url = f"sqlite:///{tmp_path}/router.db"
    async with running_router(endpoints=[endpoint], database={"url": url}) as running:
        first = await create(running.http, input=[bringing, {"role": "user", "content": "Hi"}])
        listed = await running.http.get(f"{URL}/{first['id']}/input_items?order=asc")
        assert SECRET not in listed.text
        item = listed.json()["data"][0]
        assert item["tools"][0] == FUNCTION
        assert item["tools"][1]["server_label"] == "notes"
        await create(running.http, input="Go on.", previous_response_id=first["id"])
        assert backend.turns[-1].json["input"][0]["tools"] == [FUNCTION, MCP]
        await create(
            running.http, input=[{"type": "item_reference", "id": item["id"]}, {"role": "user", "content": "?"}]
        )
        assert backend.turns[-1].json["input"][0]["tools"] == [FUNCTION, MCP]
        assert SECRET.encode() not in bytes_in(tmp_path)
