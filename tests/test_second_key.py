"""Somebody with a key of their own, who knows every id of another owner: whatever they ask, wherever they put an id,
they see what they would see of an id that never was, and change nothing.

What is asked is made of the table of routes, of the parameters that each describes, and of the messages of a WebSocket;
so that a new one is asked too, without being named here. That the questions are good ones is shown by a second key of
the same owner, who does see and change.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
import pytest
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect

import api.websocket
import router
from api.http.routes import ParameterRoute
from tests.conftest import Running
from tests.doors import DOORS
from tests.fake_backend import Answer, FakeBackend, chat, json_answer, native, reasoning, stall
from tests.keyed import as_key, key, keyed_router, secret_of, with_secret
from tests.turns import URL, Json, create, ended, retrieve, turn

# Of all that the owner asks and is answered.
MARK = "Rumpelstiltskin"
# Where an id of the owner's stands in a question, or one that never was; and one of what lies in that.
ID = "{AN ID}"
CHILD = "{A CHILD}"
NEVER = "resp_0123456789abcdef"
OTHER_LETTERS = str.maketrans("0123456789abcdefimn", "123456789abcdef0nim")
IDS = ("previous_response_id", "response_id", "id", "conversation", "prompt")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


# ── what belongs to the owner ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Belongings:
    """What the owner has stored and is running: ids, sealed texts, requests that have cached answers."""

    stored: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    # What every other front door makes that keeps things, each with something that lies in it: `conv_1|msg_1`.
    made: list[str] = field(default_factory=list)
    seals: list[Json] = field(default_factory=list)
    cached: list[Json] = field(default_factory=list)

    def ids_for(self, question: Question) -> list[str]:
        """Those to ask about: one of each kind where ids belong, else one."""
        if ID in question.path:
            return [self.stored[0], self.stored[-1], *self.running, self.items[0], *self.made]
        one_each = [self.stored[0], self.items[0], *self.made]
        return (one_each if question.is_for_ids else one_each[:1]) if question.has_id else [NEVER]


async def belongings_of(
    http: httpx2.AsyncClient, backend: FakeBackend, socket: ClientConnection, answer: Callable[..., Answer]
) -> Belongings:
    """A life of everything: conversations, items, a stream in the background, turns that run and that wait, on a socket
    too, reasoning and a conversation that were sealed, and a cached answer."""
    has = Belongings()
    backend.default = answer(reasoning(f"{MARK} thinks."), f"{MARK} says.")
    has.made = [made async for made in made_elsewhere(http)]
    asked = turn(input=[{"role": "user", "content": f"{MARK} asks.", "id": "msg_mine"}])
    first = await create(http, **asked, include=["reasoning.encrypted_content"])
    second = await create(http, previous_response_id=first["id"])
    streamed = await create(http, background=True, input=MARK)
    async with http.stream("POST", URL, json=turn(background=True, stream=True)) as reply:
        body = (await reply.aread()).decode()
    followed = re.search(r'"id":"(resp_\w+)"', body)
    assert followed
    has.stored = [first["id"], second["id"], streamed["id"], followed[1]]
    await ended(http, streamed["id"])
    has.items = ["msg_mine", *(item["id"] for response in (first, second) for item in response["output"])]
    sealed = [item["encrypted_content"] for item in first["output"] if item.get("encrypted_content")]
    has.seals = [{"type": "reasoning", "summary": [], "encrypted_content": seal} for seal in sealed]
    compacted = (await http.post(f"{URL}/compact", json=asked)).json()["output"]
    has.seals += [item for item in compacted if item["type"] == "compaction"]
    assert len(has.seals) == (2 if answer is chat else 0)  # A native server seals what is its own.
    cached = turn(input=f"{MARK} asks again.", nomyo={"cache": True})
    await create(http, **cached)
    has.cached = [cached]
    before = backend.in_flight
    backend.default = answer(f"{MARK} has half of it", then=stall())
    for number in (1, 2):  # One runs, and one waits.
        response = await create(http, background=True, input=f"{MARK} {number}")
        has.running.append(response["id"])
        await backend.wait_for(lambda b: b.in_flight == before + 1)
    await socket.send(orjson.dumps({"type": "response.create", "stream_id": "lane_mine", **turn(input=MARK)}))
    has.running.append(orjson.loads(await socket.recv())["response"]["id"])
    await backend.wait_for(lambda b: b.in_flight == before + 2)
    backend.default = answer("Nothing.")
    return has


async def made_elsewhere(http: httpx2.AsyncClient) -> AsyncIterator[str]:
    """What the other front doors keep that can be read again, made there, and something that lies in it."""
    kept = {route.path for route in routes() if "POST" in (route.methods or ()) and "{" not in route.path} - {URL}
    for path in sorted(kept):
        below = [
            route.path for route in routes() if "GET" in (route.methods or ()) and route.path.startswith(f"{path}/{{")
        ]
        if not below or (answer := await http.post(path, json=base_of(path))).status_code != 200:
            continue
        id = answer.json()["id"]
        seen = [(await http.get(re.sub(r"{\w+}", id, one))).text for one in below if one.count("{") == 1]
        children = set(re.findall(r'"id": ?"(\w+)"', "".join(seen))) - {id}
        yield f"{id}|{min(children, default=id)}"


async def seen_by_owner(http: httpx2.AsyncClient, has: Belongings) -> list[Any]:
    """All that the owner can see."""
    seen: list[Any] = []
    for response_id in has.stored:
        seen.append(await retrieve(http, response_id))
        seen.append((await http.get(f"{URL}/{response_id}/input_items")).json())
    seen += [(await retrieve(http, response_id))["status"] for response_id in has.running[:2]]
    seen.append((await http.get(f"{URL}/{has.stored[-1]}?stream=true")).text)
    reads = [question for question in QUESTIONS if question.method == "GET" and ID in question.path]
    seen += [await answered(http, question, made) for question in reads for made in has.made]
    return seen


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Question:
    route: str
    method: str
    path: str
    body: Any = None

    @property
    def has_id(self) -> bool:
        return ID in self.path or ID in str(self.body)

    @property
    def is_for_ids(self) -> bool:
        body = self.body or {}
        return any(ID in str(value) and (name in IDS or isinstance(value, list)) for name, value in body.items())


def routes() -> list[Route]:
    pages = [route for route in router.app.routes if isinstance(route, Route)]
    return [*pages, *(route for door in router.DOORS for route in door.routes if isinstance(route, Route))]


def schema_of(route: Route) -> Json | None:
    """That of the body that a route describes."""
    extra = getattr(route, "openapi_extra", None) or {}
    schema: Json | None = extra.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return schema


def base_of(path: str) -> Json:
    """A body that the routes of a path take, with the owner's words where there are items."""
    if path in DOORS:
        return DOORS[path]
    (schema, *_) = [schema for route in routes() if route.path == path and (schema := schema_of(route))] or [{}]
    plain: Json = {"object": {}, "array": [], "string": "x", "integer": 1, "number": 1, "boolean": False}
    properties = schema.get("properties", {})
    body: Json = {name: plain[kind_of(properties[name])] for name in schema.get("required", ())}
    if "items" in properties:
        body["items"] = [{"type": "message", "role": "user", "content": MARK}]
    return body


def kind_of(schema: Json) -> str:
    """The type of a value, the first of several."""
    kind: str = schema["type"] if "type" in schema else kind_of(schema["anyOf"][0]) if "anyOf" in schema else "string"
    return kind if isinstance(kind, str) else kind[0]


def bodies_of(route: Route) -> Iterator[Any]:
    """Bodies for a route with an id in each of the places that it describes, and in those that any may have."""
    schema = schema_of(route)
    if schema is None or "{" in route.path:
        yield None if schema is None else orjson.loads(orjson.dumps(base_of(route.path)).replace(MARK.encode(), b"Hi."))
        return
    base = DOORS.get(route.path) or dict.fromkeys(schema.get("required", ()), "x")
    described = schema.get("properties", ())
    for name in dict.fromkeys([*described, *IDS]):
        yield {**base, name: ID}
        if name in IDS and name in described:
            yield {**base, name: {"id": ID}}
    if "input" in described:
        yield {**base, "input": [{"type": "item_reference", "id": ID}]}
        yield {**base, "input": [{"role": "user", "content": "Hi.", "id": ID}]}


def questions() -> Iterator[Question]:
    """Every route by every method, with an id wherever one may stand."""
    for route in routes():
        paths = [re.sub(r"{\w+(:path)?}", CHILD, re.sub(r"{\w+(:path)?}", ID, route.path, count=1))]
        if isinstance(route, ParameterRoute):
            paths += [f"{paths[0]}?{param.alias}={ID}" for param in route.dependant.query_params]
            paths += [f"{paths[0]}?stream=true", f"{paths[0]}?stream=true&starting_after=0"]
        for method in route.methods or METHODS:
            for path in paths:
                for body in bodies_of(route) if method in ("POST", "PUT", "PATCH") else (None,):
                    yield Question(f"{method} {route.path}", method, path, body)


# Each once.
QUESTIONS = [*{repr(question): question for question in questions()}.values()]
MESSAGES = (*api.websocket.MESSAGES, "response.create")
FIELDS = ("previous_response_id", "response_id", "id", "stream_id", "conversation", "item_id")


def messages() -> Iterator[Json]:
    """Every message of a WebSocket, with an id wherever one may stand."""
    for kind in MESSAGES:
        for name in FIELDS:
            yield {"type": kind, "input": "Hi.", "model": "test-model", name: ID}
    yield {"type": "response.create", "model": "test-model", "input": [{"type": "item_reference", "id": ID}]}


def normal(text: str, id: str) -> str:
    """What is answered, without what differs between any two answers, nor the id that was asked about."""
    for number, part in enumerate(id.split("|")):
        text = text.replace(part, f"ID {number}")
    text = re.sub(r"\b([a-z]+)_[0-9a-f]{16,}", r"\1_ID", text)
    text = re.sub(r"\bnomyo_1_[\w=-]+", "SEALED", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]+Z", "TIME", text)
    text = re.sub(r',"\w+_duration":\d+', "", text)
    return re.sub(r'("(?:created_at|completed_at)": ?)\d+', r"\1N", text)


def never_like(id: str) -> str:
    """An id of the same form that never was; of a child too."""
    parts = [part.partition("_") for part in id.split("|")]
    return "|".join(f"{prefix}{separator}{rest.translate(OTHER_LETTERS)}" for prefix, separator, rest in parts)


async def answered(http: httpx2.AsyncClient, question: Question, id: str) -> tuple[int, str, list[str]]:
    parent, _, child = id.partition("|")
    body = None if question.body is None else orjson.dumps(question.body).replace(ID.encode(), parent.encode())
    headers = {"Content-Type": "application/json"} if body else {}
    path = question.path.replace(ID, parent).replace(CHILD, child or parent)
    async with http.stream(question.method, path, content=body, headers=headers) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            said = await anext(answer.aiter_bytes(), b"")  # It may go on for ever.
        else:
            said = await answer.aread()
        return answer.status_code, normal(said.decode(errors="replace"), id), sorted(answer.headers.keys())


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def a_team(
    backend: FakeBackend, kind: str = "openai-chat"
) -> AsyncIterator[tuple[Running, httpx2.AsyncClient, Belongings]]:
    """A router with an owner who has everything, and the owner's client."""
    answer = chat
    if kind == "openai":
        answer = native
        backend.routes["POST /v1/chat/completions"] = chat("Nothing.")
    backend.routes |= {
        "POST /v1/completions": json_answer({"choices": [{"text": "Nothing."}]}),
        "POST /v1/embeddings": json_answer({"data": [{"embedding": [0.5], "index": 0}]}),
        "POST /v1/rerank": json_answer({"results": []}),
    }
    settings: Json = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": kind}],
        "background": {"max_concurrent": 1, "drain_s": 0},
        "max_body_mb": 1,
    }
    keys = ("ann", key("twin", owner="ann"), "eve")
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(keyed_router(backend, *keys, **settings))
        http = await stack.enter_async_context(as_key(running, "ann"))
        socket = await stack.enter_async_context(open_socket(running, secret_of("ann")))
        yield running, http, await belongings_of(http, backend, socket, answer)


@asynccontextmanager
async def open_socket(running: Running, secret: str) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {secret}"}
    url = running.url.replace("http", "ws") + URL
    async with connect(url, additional_headers=headers, proxy=None, max_size=None) as socket:
        yield socket


INTRUDERS = {"another key": secret_of("eve"), "an admin's key": "nk-admin", "no key": ""}


@pytest.mark.parametrize(
    ("kind", "intruder"),
    [
        ("openai-chat", "another key"),
        ("openai-chat", "no key"),
        pytest.param("openai-chat", "an admin's key", marks=pytest.mark.heavy),
        pytest.param("openai", "another key", marks=pytest.mark.heavy),
    ],
)
async def test_whatever_a_second_key_asks_it_sees_and_changes_nothing(
    kind: str, intruder: str, backend: FakeBackend
) -> None:
    async with a_team(backend, kind) as (running, ann, has), with_secret(running, INTRUDERS[intruder]) as http:
        before, asked = await seen_by_owner(ann, has), len(backend.turns)
        assert MARK in str(before)
        for question in QUESTIONS:
            if intruder == "an admin's key" and question.path.startswith(("/api/", "/metrics")):
                continue  # Where admins may see and change; and counts of all that is asked meanwhile.
            if intruder == "no key" and ID not in question.path and question.has_id:
                continue  # Nobody reads the body.
            for id in has.ids_for(question):
                mine, never = [await answered(http, question, one) for one in (id, never_like(id))]
                assert mine == never, f"{question} about {id}"
                assert MARK not in mine[1], question
        for body in [*has.cached, *(turn(input=[seal, {"role": "user", "content": "Go on."}]) for seal in has.seals)]:
            answer = await http.post(URL, json=body)
            assert answer.headers.get("x-nomyo-cache") is None
            said = re.sub(rf"{MARK} asks again\.", "", answer.text)
            assert MARK not in said
        if intruder != "no key":
            await ask_over_a_socket(running, INTRUDERS[intruder], has)
        sent = [request for request in backend.turns[asked:] if MARK in str(request.json)]
        assert all(f"{MARK} asks again." in str(request.json) for request in sent), "the intruder's own words alone"
        assert await seen_by_owner(ann, has) == before
        owners = [request.outcome for request in backend.turns[:asked]]
        assert "aborted" not in owners, "what runs goes on"
        assert owners.count("open") == 2


async def ask_over_a_socket(running: Running, secret: str, has: Belongings) -> None:
    for message in messages():
        made = [one.partition("|")[0] for one in has.made]
        for id in (has.stored[0], *has.running, has.items[0], "lane_mine", *made):
            replies = []
            for one in (id, never_like(id)):
                async with open_socket(running, secret) as socket:
                    await socket.send(orjson.dumps(message).replace(ID.encode(), one.encode()))
                    replies.append([normal(text, one) async for text in events(socket)])
            assert replies[0] == replies[1], f"{message} about {id}"
            assert MARK not in str(replies[0])


async def events(socket: ClientConnection) -> AsyncIterator[str]:
    """What is sent until a turn has ended, or an error."""
    while True:
        text = str(await socket.recv())
        yield text
        kind = orjson.loads(text)["type"]
        if kind in ("error", "response.completed", "response.failed", "response.incomplete") or kind.startswith(
            "steer"
        ):
            return
        if kind.startswith("response.steer"):
            return


async def test_a_second_key_of_the_same_owner_sees_and_changes_all_that_is_asked_for(backend: FakeBackend) -> None:
    """So the questions are such that an answer would show what is there."""
    async with a_team(backend) as (running, _, has), as_key(running, "twin") as twin:
        shown = set[str]()
        for question in sorted(QUESTIONS, key=lambda one: (one.method == "DELETE", -one.path.count("{"))):
            if not question.has_id:
                continue
            for id in (has.stored[0], has.running[1], *has.made):
                mine, never = [await answered(twin, question, one) for one in (id, never_like(id))]
                if mine != never:
                    shown.add(question.route)
        for_admins = {one.path for door in router.DOORS if door.for_admins for one in door.routes}  # type: ignore[attr-defined]
        with_ids = {
            f"{method} {one.path}"
            for one in routes()
            if "_id}" in one.path and one.path not in for_admins
            for method in one.methods or ()
        }
        assert with_ids <= shown
        assert {f"POST {URL}", f"POST {URL}/compact", f"POST {URL}/input_tokens"} <= shown
