"""One way for every request: its key is looked at, its endpoint found, its errors put in the words of its front
door."""

from __future__ import annotations

import inspect
import re
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import jsonschema_rs
import orjson
import pytest
from openai import AsyncAzureOpenAI
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import router
from api.http.dispatch import Application
from core.config_checks import parse_config
from core.keys import Principal
from tests.conftest import Running, running_router
from tests.doors import DOORS, every_door
from tests.fake_backend import FakeBackend, chat, http_error, json_answer
from tests.turns import assert_error, create

Json = dict[str, Any]
ASK: Json = {"model": "test-model", "input": "Hi", "store": False}
CHAT: Json = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
KEY = {"Authorization": "Bearer secret"}


class Listener:
    """A middleware: it notes what it sees."""

    def __init__(self, app: Any, seen: list[str]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            self.seen.append(f"{scope.get('method', 'WS')} {scope['path']}")
        await self.app(scope, receive, send)


def application(backend: FakeBackend, **settings: Any) -> Application:
    settings = {"database": {"url": "sqlite://"}, **settings}
    return router.create_app(
        parse_config({"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}], **settings})
    )


async def client_of(app: Application, stack: AsyncExitStack) -> httpx2.AsyncClient:
    await stack.enter_async_context(app.router.lifespan_context(app))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return await stack.enter_async_context(
        httpx2.AsyncClient(transport=transport, base_url="http://router", headers=KEY)
    )


@pytest.fixture
async def ways(backend: FakeBackend, stack: AsyncExitStack) -> list[Any]:
    """Ways to send one request that must not differ: its path as it is, spelled otherwise, and with a middleware before
    it."""
    app, behind = application(backend, api_key="secret"), application(backend, api_key="secret")
    behind.add_middleware(Listener, seen=[])
    plain, listened = await client_of(app, stack), await client_of(behind, stack)

    async def spelled_otherwise(path: str, **given: Any) -> httpx2.Response:
        return await plain.post(f"http://router//{path}/", **given)

    return [plain.post, spelled_otherwise, listened.post]


def bare(answer: httpx2.Response) -> tuple[int, dict[str, str], str]:
    """What is the same whichever way: all but ids and times."""
    assert answer.headers["x-request-id"]
    each_times = ("date", "x-nomyo-wait-ms", "x-request-id")
    headers = {name: value for name, value in answer.headers.items() if name not in each_times}
    text = re.sub(r"(resp|msg|chatcmpl)[_-]\w+", r"\1", answer.text)
    text = re.sub(r'"(created_at|completed_at|created)":\d+', r'"\1":0', text)
    headers.pop("content-length", None)
    return answer.status_code, headers, text


REQUESTS: dict[str, tuple[str, Any]] = {
    "a response": ("/v1/responses", ASK),
    "a stream": ("/v1/responses", ASK | {"stream": True}),
    "chat": ("/v1/chat/completions", CHAT),
    "a chat stream": ("/v1/chat/completions", CHAT | {"stream": True}),
    "no such model": ("/v1/responses", ASK | {"model": "nothing-like-it"}),
    "a wrong parameter": ("/v1/responses", ASK | {"temperature": 9}),
    "no JSON": ("/v1/responses", b"{"),
    "no model": ("/v1/embeddings", {"input": "Hi"}),
    "no such response": ("/v1/responses/resp_1/cancel", {}),
    "no such route": ("/v1/nothing", {}),
    "no such method": ("/v1/models", {}),
}


class TestEveryWay:
    @pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
    async def test_answers_the_same(self, path: str, body: Any, ways: list[Any], backend: FakeBackend) -> None:
        backend.default = chat("Hello there")
        given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
        first, *others = [bare(await way(path, **given)) for way in ways]
        assert others == [first] * 2

    @pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1/responses/resp_1/cancel"])
    async def test_asks_for_the_key(self, path: str, ways: list[Any], backend: FakeBackend) -> None:
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            first, *others = [bare(await way(path, json=ASK, headers=headers)) for way in ways]
            assert others == [first] * 2
            assert first[0] == 401
        assert not backend.turns, "somebody without the key got through"

    async def test_describes_a_failure_of_a_backend(self, ways: list[Any], backend: FakeBackend) -> None:
        backend.default = http_error(500, "boom")
        first, *others = [bare(await way("/v1/responses", json=ASK)) for way in ways]
        assert others == [first] * 2
        assert first[0] == 502

    async def test_hides_a_fault_of_ours_and_logs_it(
        self, ways: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(*_: Any) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr("api.responses.get_llm_cache", broken)
        asking = ASK | {"nomyo": {"cache": True}}
        first, *others = [bare(await way("/v1/responses", json=asking)) for way in ways]
        assert others == [first] * 2
        assert first[0] == 500
        assert "a fault of ours" not in first[2]
        assert "a fault of ours" in caplog.text, "its cause is not in the log"


def routes_of(app: Application) -> list[Route]:
    pages = [route for route in app.routes if isinstance(route, Route)]
    return [*pages, *(route for door in router.DOORS for route in door.routes if isinstance(route, Route))]


def test_every_route_is_found_and_leads_to_its_own_endpoint() -> None:
    app = router.app
    for route in routes_of(app):
        path = re.sub(r"{\w+(:path)?}", "x", route.path)
        for method in route.methods or ():
            asked = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
            scope, endpoint = app.table.find(asked)
            endpoint = inspect.unwrap(endpoint)  # Those for admins check the key first.
            fixed = app.table.endpoints.get((method, path))
            fixed = fixed and inspect.unwrap(fixed)
            if fixed is not None:
                assert fixed is route.endpoint is endpoint, f"{method} {path} leads elsewhere"
            else:
                assert getattr(endpoint, "__self__", None) is route or method == "HEAD", f"{method} {path} is not found"
            assert scope["path"] == path


def test_what_costs_next_to_nothing_needs_no_framework() -> None:
    """All that a client may ask often."""
    for path in ("responses", "chat/completions", "completions", "embeddings", "rerank", "responses/input_tokens"):
        assert ("POST", f"/v1/{path}") in router.app.table.endpoints
    assert ("POST", "/api/chat") in router.app.table.endpoints


async def test_the_page_of_the_api_describes_every_route(served: Running) -> None:
    described = (await served.http.get("/openapi.json")).json()["paths"]
    for door in router.DOORS:
        for route in door.routes:
            if isinstance(route, Route) and route.include_in_schema:
                path = route.path.replace(":path", "")
                assert {method.lower() for method in route.methods or ()} <= described[path].keys()


# What is asked by its path alone.
NO_BODY = {"/api/endpoints/{name}/drain", "/api/endpoints/{name}/enable", "/v1/responses/{response_id}/cancel"}


async def test_the_page_of_the_api_has_the_body_of_every_request(served: Running) -> None:
    described = (await served.http.get("/openapi.json")).json()["paths"]
    posted = {path: methods["post"] for path, methods in described.items() if "post" in methods}
    schemas = {
        path: post["requestBody"]["content"]["application/json"]["schema"]
        for path, post in posted.items()
        if "requestBody" in post
    }
    assert posted.keys() - schemas.keys() == NO_BODY
    assert "$ref" not in str(schemas), "the page would not find it"
    assert schemas.keys() >= DOORS.keys()
    for path, body in DOORS.items():
        check = jsonschema_rs.validator_for(schemas[path])
        assert check.is_valid(body), f"{path} takes it"
        assert check.is_valid({**body, "acme": [1]}), f"{path} takes what servers know"
        assert not check.is_valid({**body, "model": 5}), f"{path} refuses it"
        assert not check.is_valid([body]), f"{path} refuses it"
        refused = await served.http.post(path, json={**body, "model": 5})
        assert refused.status_code == 400, f"{path}: {refused.text}"


async def test_a_middleware_that_somebody_adds_sees_every_request(backend: FakeBackend, stack: AsyncExitStack) -> None:
    seen: list[str] = []
    app = application(backend)
    app.add_middleware(Listener, seen=seen)
    client = await client_of(app, stack)
    assert (await client.post("/v1/responses", json=ASK)).status_code == 200
    assert (await client.get("/v1/responses/resp_1")).status_code == 404
    assert (await client.head("/v1/models")).status_code == 200
    assert (await client.options("/v1//models")).status_code == 204
    assert seen == ["POST /v1/responses", "GET /v1/responses/resp_1", "HEAD /v1/models", "OPTIONS /v1//models"]


async def test_a_route_that_somebody_adds_is_served_too(backend: FakeBackend, stack: AsyncExitStack) -> None:
    app = application(backend, api_key="secret")

    @app.get("/added/{name}")
    async def added(name: str, count: int = 1) -> Json:
        return {name: count}

    client = await client_of(app, stack)
    assert (await client.get("/added/a?count=3")).json() == {"a": 3}
    assert_error(await client.get("/added/a?count=x"), 400, param="count")
    assert (await client.get("/added/a", headers={"Authorization": ""})).status_code == 401


class TestWhoAsks:
    async def test_is_known_at_every_route(self, backend: FakeBackend, stack: AsyncExitStack) -> None:
        found: list[Principal] = []

        class Looking(Listener):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await self.app(scope, receive, send)
                found.append(scope["principal"])

        app = application(backend)
        app.add_middleware(Looking, seen=[])
        client = await client_of(app, stack)
        for authorization in ("Bearer k", "bearer   k", "BEARER k "):
            await client.post("/v1/responses", json=ASK, headers={"Authorization": authorization})
            await client.get("/health", headers={"Authorization": authorization})
        assert len(set(found)) == 1
        assert found[0].is_admin
        assert found[0].owner == ""
        assert found[0].id

    async def test_is_no_admin_where_the_key_is_wrong(self, backend: FakeBackend, stack: AsyncExitStack) -> None:
        found: list[Principal] = []
        app = application(backend, api_key="secret")

        class Looking(Listener):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await self.app(scope, receive, send)
                found.append(scope["principal"])

        app.add_middleware(Looking, seen=[])
        client = await client_of(app, stack)
        await client.get("/health", headers={"Authorization": "Bearer wrong"})
        await client.get("/health")
        assert [principal.is_admin for principal in found] == [False, True]


class TestMethods:
    async def test_head_is_get_without_a_body_everywhere(self, served: Running) -> None:
        response_id = (await create(served.http))["id"]
        item = {"type": "message", "role": "user", "content": "Hi"}
        begun = (await served.http.post("/v1/conversations", json={"items": [item]})).json()
        listed = (await served.http.get(f"/v1/conversations/{begun['id']}/items")).json()
        in_conversation = (begun["id"], listed["data"][0]["id"])
        paths = {
            re.sub(r"{\w+(:path)?}", "{}", route.path) for route in routes_of(served.app) if "GET" in route.methods
        }
        paths -= {"/api/workers/figures", "/api/workers/page"}  # They are for other workers.
        paths -= {"/api/page/feed"}  # It has no end.
        assert len(paths) > 10
        for path in sorted(paths):
            ids = in_conversation if "conversations" in path else ["test-model" if "models" in path else response_id]
            path = path.format(*ids)
            got, head = await served.http.get(path), await served.http.head(path)
            assert (head.status_code, head.content) == (got.status_code, b"") == (200, b""), path
            assert head.headers["content-type"] == got.headers["content-type"]
            # What is counted is more the next time.
            assert path == "/metrics" or head.headers["content-length"] == got.headers["content-length"]

    async def test_head_of_a_stream_waits_for_no_end(self, served: Running, backend: FakeBackend) -> None:
        response_id = (await create(served.http))["id"]
        head = await served.http.head(f"/v1/responses/{response_id}?stream=true")
        assert head.status_code == 200
        assert head.headers["content-type"].startswith("text/event-stream")
        assert (await served.http.get("/health")).status_code == 200, "the connection is used again"

    async def test_head_of_what_is_not_there_is_an_error_without_a_body(self, served: Running) -> None:
        for path, status in (("/nothing", 404), ("/v1/responses", 405), ("/v1/responses/resp_1", 404)):
            head = await served.http.head(path)
            assert (head.status_code, head.content) == (status, b"")

    async def test_options_names_what_may_be_asked(self, served: Running) -> None:
        for path, allowed in (
            ("/v1/responses", "OPTIONS, POST"),
            ("/v1/responses/x", "DELETE, GET, HEAD, OPTIONS"),
            ("/v1/models", "GET, HEAD, OPTIONS"),
            ("/api/chat", "OPTIONS, POST"),
        ):
            answer = await served.http.options(path)
            assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")
        assert_error(await served.http.options("/nothing"), 404, code="unknown_url", says="OPTIONS")


class TestSpellings:
    @pytest.mark.parametrize(
        "path",
        [
            "/responses",
            "//v1/responses",
            "/v1//responses",
            "/v1/responses/",
            "/openai/v1/responses",
            "/openai/responses",
        ],
    )
    async def test_of_a_path_lead_to_the_same_endpoint(self, path: str, served: Running) -> None:
        answer = await served.http.post(f"{served.url}{path}?api-version=preview", json=ASK | {"store": True})
        assert answer.status_code == 200
        for follow_up in (f"{path}/{answer.json()['id']}", f"{path}/{answer.json()['id']}/input_items/"):
            assert (await served.http.get(served.url + follow_up)).status_code == 200

    async def test_every_front_door_below_v1_has_them(self, served: Running) -> None:
        table = served.app.table
        for route in routes_of(served.app):
            if route.path.startswith("/v1/"):
                for spelled in (
                    route.path[3:],
                    "/openai" + route.path,
                    route.path.replace("/", "//"),
                    route.path + "/",
                ):
                    assert table.spelled(spelled) == route.path
            else:
                assert table.spelled(route.path) == route.path
        for other in ("/", "/v1", "/v1/nothing", "/openai", "/openai/nothing", "/nothing/responses"):
            assert table.spelled(other) == other

    async def test_v1_twice_is_an_error_that_says_so(self, served: Running) -> None:
        answer = await served.http.post("/v1/v1/responses", json=ASK)
        assert_error(answer, 404, code="unknown_url", says="twice")
        assert "/v1/responses" in answer.json()["error"]["message"]
        assert "twice" not in (await served.http.post("/v1/v1/nothing")).text


class TestErrors:
    async def test_have_the_envelope_of_their_front_door(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, api_key="secret", max_body_mb=0.001) as running:
            big = b"x" * 2000
            for path, is_ollamas in (("/api/chat", True), ("/v1/chat/completions", False), ("/v1/responses", False)):
                answers = [
                    (401, await running.http.post(path, json=ASK, headers={"Authorization": ""})),
                    (405, await running.http.put(path)),
                    (413, await running.http.post(path, content=big)),
                    (400, await running.http.post(path, content=b"{")),
                ]
                for status, answer in answers:
                    if is_ollamas:
                        assert answer.status_code == status
                        assert list(answer.json()) == ["error"]
                        assert isinstance(answer.json()["error"], str)
                    else:
                        assert_error(answer, status)

    async def test_of_ours_are_hidden_and_logged_where_fastapi_reads_parameters(
        self, served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(served.app.state.db, "get_response", broken)
        answer = await served.http.get("/v1/responses/resp_1")
        assert_error(answer, 500, type="server_error")
        assert "a fault of ours" not in answer.text
        assert "a fault of ours" in caplog.text


class TestSockets:
    async def test_are_refused_without_the_key(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, api_key="secret") as running:
            url = running.url.replace("http", "ws")
            for path in ("/v1/responses", "/openai/v1/responses", "/nothing"):
                with pytest.raises(InvalidStatus) as raised:
                    await connect(url + path, proxy=None)
                assert raised.value.response.status_code == 401

    @pytest.mark.parametrize(
        "path", ["/v1/responses", "/responses", "/openai/v1/responses?api-version=v1", "/v1//responses"]
    )
    async def test_open_by_every_spelling_of_their_path(self, path: str, served: Running) -> None:
        async with connect(served.url.replace("http", "ws") + path, proxy=None) as socket:
            await socket.send('{"type": "response.create", "model": "test-model", "input": "Hi"}')
            assert "response.created" in str(await socket.recv())


async def test_it_may_stand_below_a_path_of_somebody_elses(backend: FakeBackend, stack: AsyncExitStack) -> None:
    app = application(backend)
    await stack.enter_async_context(app.router.lifespan_context(app))
    transport = httpx2.ASGITransport(app, root_path="/llm")
    async with httpx2.AsyncClient(transport=transport, base_url="http://router/llm/") as client:
        answer = await client.post("v1/responses", json=ASK | {"store": True})
        assert answer.status_code == 200, answer.text
        assert (await client.get(f"responses/{answer.json()['id']}")).status_code == 200
        assert (await client.head("health")).status_code == 200
        assert "/llm/openapi.json" in (await client.get("docs")).text
        assert_error(await client.get("http://router/llmv1/models"), 404, code="unknown_url")


class TestTheRoot:
    async def test_says_what_ollamas_clients_look_for_and_asks_for_no_key(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, api_key="secret") as running:
            running.http.headers["Authorization"] = ""
            answer = await running.http.get("/")
            assert (answer.status_code, answer.text) == (200, "Ollama is running")
            head = await running.http.head("/")
            assert (head.status_code, head.content) == (200, b"")


async def test_azures_clients_send_the_key_in_a_header_of_their_own(backend: FakeBackend) -> None:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, api_key="secret") as running:
        async with AsyncAzureOpenAI(
            base_url=f"{running.url}/openai/v1", api_key="secret", api_version="preview", max_retries=0
        ) as azure:
            assert (await azure.responses.create(model="test-model", input="Hi")).status == "completed"
        for header, status in ({"api-key": "secret"}, 200), ({"api-key": "wrong"}, 401):
            headers = {**header}
            async with httpx2.AsyncClient(base_url=running.url) as bare:
                assert (await bare.post("/openai/v1/responses", json=ASK, headers=headers)).status_code == status
                both = {**headers, "Authorization": "Bearer wrong"}
                assert (await bare.post("/v1/responses", json=ASK, headers=both)).status_code == 401


class TestDeployments:
    @pytest.mark.parametrize("azure_deployment", ["test-model", None], ids=["of the client", "of the request"])
    async def test_azures_client_finds_the_model_in_its_path(
        self, azure_deployment: str | None, served: Running, backend: FakeBackend
    ) -> None:
        async with AsyncAzureOpenAI(
            azure_endpoint=served.url,
            azure_deployment=azure_deployment,
            api_key="none",
            api_version="2025-04-01-preview",
            max_retries=0,
        ) as azure:
            model = "whatever" if azure_deployment else "test-model"
            chat = await azure.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
            assert chat.choices[0].message.content
            stream = await azure.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            assert [chunk async for chunk in stream]
            response = await azure.responses.create(model="test-model", input="Hi")
            assert response.status == "completed"
            assert (await azure.responses.retrieve(response.id)).id == response.id
            vectors = json_answer({"object": "list", "data": [{"embedding": [1.0], "index": 0}]})
            backend.routes["POST /v1/embeddings"] = vectors
            assert (await azure.embeddings.create(model=model, input="Hi")).data[0].embedding == [1.0]
        assert {sent.json["model"] for sent in backend.requests if sent.method == "POST"} == {"test-model"}

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("test-model/chat/completions", orjson.dumps({**CHAT, "model": "other"})),
            ("test-model/v1/chat/completions", orjson.dumps(CHAT)),
            ("test-model//chat/completions/", b'{"messages": [{"role": "user", "content": "Hi"}]}'),
            ("test-model/responses", b'{"input": "Hi", "model": 1}'),
            ("test-model/responses", "\ufeff".encode() + b'{"input": "Hi"}'),
            ("test-model/responses", b"input=Hi&model=other"),
            ("openai%2Ftest-model/responses", b'{"input": "Hi"}'),
        ],
    )
    async def test_the_name_in_the_path_counts(
        self, path: str, body: bytes, served: Running, backend: FakeBackend
    ) -> None:
        form = {"Content-Type": "application/x-www-form-urlencoded"} if body.startswith(b"input") else {}
        url = f"{served.url}/openai/deployments/{path}?api-version=1"
        answer = await served.http.post(url, content=body, headers=form)
        assert answer.status_code == 200, answer.text
        assert backend.turns[-1].json["model"] == "test-model"

    @pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"null", b"{", b'{"input": "\\ud83d"}', b"\xff"])
    async def test_what_is_no_request_is_refused_as_elsewhere(self, body: bytes, served: Running) -> None:
        for path in ("responses", "chat/completions", "nothing"):
            there = await served.http.post(f"/openai/deployments/nobody/{path}", content=body)
            assert there.status_code in (400, 404)
            assert_error(there, there.status_code)
        answer = await served.http.post("/openai/deployments/nobody/chat/completions", json=CHAT)
        assert_error(answer, 404, code="model_not_found", says="nobody")


async def test_a_name_of_a_model_may_have_openai_in_front(served: Running, backend: FakeBackend) -> None:
    for path, asked in (("/v1/responses", ASK), ("/v1/chat/completions", CHAT)):
        answer = await served.http.post(path, json=asked | {"model": "openai/test-model"})
        assert answer.status_code == 200, answer.text
        assert backend.turns[-1].json["model"] == "test-model"
    assert_error(await served.http.post("/v1/responses", json=ASK | {"model": "openai/x"}), 400, says="openai/x")


class TestUnknownModels:
    async def test_are_a_400_for_responses_and_a_404_elsewhere(self) -> None:
        async with every_door() as (running, backend):
            for path, asked in DOORS.items():
                if path.startswith("/api/cache"):
                    continue
                answer = await running.http.post(path, json={**asked, "model": "nobody"})
                assert answer.status_code == (400 if path.startswith("/v1/responses") else 404), answer.text
                if path.startswith("/v1/"):
                    assert_error(answer, answer.status_code, param="model", code="model_not_found", says="nobody")
            for odd in ("m😀\r\nX: y", "\0"):
                answer = await running.http.post("/v1/responses", json={**ASK, "model": odd})
                assert_error(answer, 404, param="model", code="model_not_found")
            stream = await running.http.post("/v1/responses", json={**ASK, "model": "nobody", "stream": True})
            assert_error(stream, 400, param="model", code="model_not_found")
            assert not backend.turns


async def test_only_background_responses_can_be_cancelled(served: Running) -> None:
    response_id = (await create(served.http))["id"]
    answer = await served.http.post(f"/v1/responses/{response_id}/cancel")
    assert_error(answer, 400, type="invalid_request_error", says="Cannot cancel a synchronous response")


async def test_what_was_deleted_is_described_as_at_openai(served: Running) -> None:
    response_id = (await create(served.http))["id"]
    answer = await served.http.delete(f"/v1/responses/{response_id}")
    assert answer.json() == {"id": response_id, "object": "response.deleted", "deleted": True}
