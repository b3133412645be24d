"""Whatever goes wrong, a client gets the one envelope (`assert_error`), and the log gets neither keys nor prompts."""

import asyncio
import hmac
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import orjson
import pytest

import api.responses
from tests.conftest import Running, running_router
from tests.fake_backend import (
    Answer,
    FakeBackend,
    chat,
    cut,
    empty,
    http_error,
    json_answer,
    sse,
    sse_error,
    stall,
    stream,
)
from tests.stream_grammar import check_stream
from tests.turns import URL, assert_error, create, ended, open_stream, turn
from tests.turns import stream as stream_of

pytestmark = pytest.mark.usefixtures("short_waits")

KEY = "sk-router-Zeppelin"
LIMIT = 100_000


@pytest.fixture
async def guarded(backend: FakeBackend) -> AsyncIterator[Running]:
    """A router with a key, and a small limit for bodies."""
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, api_key=KEY, max_body_mb=LIMIT / 1024 / 1024) as running:
        yield running


class TestRequests:
    async def test_no_such_route(self, served):
        for method, path in (
            ("GET", "/v1/v1/responses"),
            ("POST", "/v1"),
            ("GET", "/v1/nothing"),
            ("POST", "/v1/images/generations"),
            ("GET", "/v1/responses/x/nothing"),
            ("DELETE", "/v1/responses/x/input_items/y"),
            ("GET", "/%00/%ff/../x"),
        ):
            answer = await served.http.request(method, path)
            assert_error(answer, 404, type="invalid_request_error", code="unknown_url", says=method)

    @pytest.mark.parametrize(
        ("method", "path", "says"),
        [
            ("POST", "/v1/response", "Did you mean /v1/responses?"),
            ("GET", "/v1/model", "Did you mean /v1/models?"),
            ("POST", "/v1/chat/completion", "Did you mean /v1/chat/completions?"),
            ("POST", "/v1/chat/completions/responses", "There is /v1/responses: does the base URL end in"),
            ("POST", "/v2/responses", "There is /v1/responses"),
            ("GET", "/llm/v1/models", "There is /v1/models"),
            ("GET", "/v1/v1/responses/resp_1/input_items", "twice? There is /v1/responses/resp_1/input_items."),
            ("POST", "/v1/threads", "/docs lists what there is."),
            ("POST", "/v1", "/docs lists what there is."),
            ("GET", "/" + "x/" * 5000, "/docs lists what there is."),
            ("GET", "/" + "v" * 5000, "/docs lists what there is."),
        ],
    )
    async def test_an_unknown_path_has_the_one_that_may_be_meant(self, served, method, path, says):
        answer = await served.http.request(method, path)
        assert_error(answer, 404, type="invalid_request_error", code="unknown_url", says=says)

    async def test_a_method_that_is_not_taken_has_those_that_are(self, served):
        assert_error(await served.http.get("/v1/responses"), 405, says="It takes POST.")
        assert_error(await served.http.put("/v1/responses/resp_1"), 405, says="It takes DELETE and GET.")
        twice = await served.http.post("/v1/responses/responses")
        assert_error(twice, 405, says="does the base URL end in /v1/responses? It is to end in /v1.")

    async def test_messages_for_input_are_those_of_another_api(self, served):
        body = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
        answer = await served.http.post("/v1/responses", json=body)
        assert_error(answer, 400, param="input", code="missing_required_parameter", says="'messages'")
        del body["messages"]
        assert "messages" not in (await served.http.post("/v1/responses", json=body)).text

    async def test_a_multipart_form_is_called_by_its_name(self, served):
        answer = await served.http.post("/v1/responses", files={"model": (None, "m"), "input": (None, "Hi")})
        assert_error(answer, 400, says="multipart")

    async def test_no_such_method(self, served):
        for method, path, allowed in (
            ("GET", "/v1/responses", {"POST"}),
            ("PUT", "/v1/responses/resp_1", {"GET", "DELETE"}),
            ("GET", "/v1/responses/resp_1/cancel", {"POST"}),
            ("POST", "/v1/responses/resp_1/input_items", {"GET"}),
            ("POST", "/v1/models", {"GET"}),
            ("DELETE", "/v1/models/org/model", {"GET"}),
            ("POST", "/health", {"GET"}),
            ("DELETE", "/api/cache/stats", {"GET"}),
            ("GET", "/api/cache/invalidate", {"POST"}),
        ):
            answer = await served.http.request(method, path)
            assert_error(answer, 405, type="invalid_request_error", says=method)
            given = {name.strip() for name in answer.headers["allow"].split(",")}
            assert given - {"HEAD"} == allowed, f"Allow of {path} is {given}"

    async def test_what_is_not_json(self, served, backend):
        for body in (
            b"",
            b" ",
            b"{",
            b"nul",
            b"\xff\xfe",
            b"{'a': 1}",
            b'{"a": NaN}',
            b"[" * 5000,
            b'"\\ud800',
            b"1 2",
        ):
            answer = await served.http.post(URL, content=body)
            assert_error(answer, 400, type="invalid_request_error", code="invalid_json")
        assert not backend.turns

    async def test_what_is_json_and_no_object(self, served):
        for body in (b"[]", b"5", b"1.5", b'"text"', b"null", b"true", b'[{"model": "m"}]'):
            answer = await served.http.post(URL, content=body)
            assert_error(answer, 400, type="invalid_request_error", says="object")

    async def test_a_body_that_is_too_large(self, guarded, backend):
        async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
            for start in range(0, len(body), 10_000):
                yield body[start : start + 10_000]

        frame = orjson.dumps(turn(input=""))
        fits = frame.replace(b'""', b'"' + b"x" * (LIMIT - len(frame)) + b'"')
        for body in (fits, in_pieces(fits)):
            assert (await guarded.http.post(URL, content=body)).status_code == 200
        one_more = fits.replace(b"xx", b"xxx", 1)
        for body in (one_more, in_pieces(one_more), b"x" * LIMIT * 30, in_pieces(b"x" * LIMIT * 2)):
            answer = await guarded.http.post(URL, content=body)
            assert_error(answer, 413, type="invalid_request_error", code="request_too_large", says="MB")
        answer = await guarded.http.post("/api/cache/invalidate", content=b"x" * LIMIT * 2)
        assert_error(answer, 413, code="request_too_large")
        assert len(backend.turns) == 2

    async def test_query_parameters(self, served):
        response_id = (await create(served.http))["id"]
        for path, param in (
            ("?stream=perhaps", "stream"),
            ("?stream=true&starting_after=abc", "starting_after"),
            ("?stream=true&starting_after=-2", "starting_after"),
            ("?stream=true&starting_after=1.5", "starting_after"),
            ("/input_items?limit=0", "limit"),
            ("/input_items?limit=101", "limit"),
            ("/input_items?limit=many", "limit"),
            ("/input_items?order=up", "order"),
            ("/input_items?after=msg_unknown", "after"),
        ):
            answer = await served.http.get(f"{URL}/{response_id}{path}")
            assert_error(answer, 400, type="invalid_request_error", param=param)

    async def test_ids_that_nobody_knows(self, served, backend):
        for response_id in ("resp_unknown", "x", "resp_%F0%9F%A6%99", "resp_'; DROP TABLE responses; --", "é" * 500):
            for method, path in (
                ("GET", ""),
                ("GET", "?stream=true"),
                ("DELETE", ""),
                ("POST", "/cancel"),
                ("GET", "/input_items"),
            ):
                answer = await served.http.request(method, f"{URL}/{response_id}{path}")
                assert_error(answer, 404, type="invalid_request_error")
        answer = await served.http.post(URL, json=turn(previous_response_id="resp_unknown"))
        assert_error(answer, 400, code="previous_response_not_found", param="previous_response_id", says="resp_unknown")
        assert not backend.turns

    async def test_parameters(self, served, backend):
        for params, param in (
            ({"model": None}, "model"),
            ({"model": ""}, "model"),
            ({"input": None}, "input"),
            ({"input": 5}, "input"),
            ({"temperature": 3}, "temperature"),
            ({"stream": "yes"}, "stream"),
            ({"nomyo": {"cash": True}}, "nomyo.cash"),
            ({"conversation": {"name": "conv_1"}}, "conversation.id"),
            ({"background": True, "store": False}, "store"),
        ):
            answer = await served.http.post(URL, json=turn(**params))
            assert_error(answer, 400, type="invalid_request_error", param=param)
        assert not backend.turns


class TestTheKey:
    ROUTES = (
        ("POST", URL),
        ("GET", f"{URL}/resp_1"),
        ("DELETE", f"{URL}/resp_1"),
        ("POST", f"{URL}/resp_1/cancel"),
        ("GET", f"{URL}/resp_1/input_items"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/m"),
        ("GET", "/api/cache/stats"),
        ("POST", "/api/cache/invalidate"),
        ("GET", "/nothing"),
        ("GET", "/openapi.json"),
    )

    async def test_without_it_every_route_is_closed_but_health(self, guarded, backend):
        del guarded.http.headers["Authorization"]
        for method, path in self.ROUTES:
            answer = await guarded.http.request(method, path, content=orjson.dumps(turn()))
            assert_error(answer, 401, type="invalid_request_error", code="invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await guarded.http.get("/health")).json()["status"] == "ok"
        assert not backend.turns

    async def test_no_other_key_opens(self, guarded, backend):
        for given in (
            "",
            "Bearer",
            KEY,
            f"Basic {KEY}",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY}x",
            f"Bearer x{KEY}",
            f"Bearer {KEY.upper()}",
            f"Bearer {KEY} {KEY}",
            f"Bearer {KEY}, Bearer {KEY}",
        ):
            answer = await guarded.http.post(URL, json=turn(), headers={"Authorization": given.encode()})
            error = assert_error(answer, 401, code="invalid_api_key")
            assert "Zeppelin" not in error["message"], "the message repeats the key"
        assert not backend.turns
        assert (await create(guarded.http))["status"] == "completed"

    async def test_it_is_compared_in_constant_time(self, guarded, monkeypatch):
        compared: list[bytes] = []
        compare = hmac.compare_digest

        def noted(given: bytes, expected: bytes) -> bool:
            compared.append(given)
            return compare(given, expected)

        monkeypatch.setattr(hmac, "compare_digest", noted)
        for key in ("sk-wrong", KEY):
            await guarded.http.get("/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
        assert len(compared) == 2

    async def test_where_none_is_set_none_is_asked_for(self, served):
        del served.http.headers["Authorization"]
        assert (await served.http.get("/v1/models")).status_code == 200


OVERFLOW = {"message": "too many tokens", "type": "exceed_context_size_error", "code": 400, "n_ctx": 8}
REFUSALS: tuple[tuple[Answer, int, str, str | None], ...] = (
    (http_error(400, "bad temperature"), 400, "invalid_request_error", None),
    (http_error(400, code="invalid_value"), 400, "invalid_request_error", "invalid_value"),
    (json_answer({"error": OVERFLOW}, status=400), 400, "invalid_request_error", "context_length_exceeded"),
    (stream(sse({"error": OVERFLOW})), 400, "invalid_request_error", "context_length_exceeded"),
    (http_error(401), 502, "server_error", "backend_authentication_failed"),
    (http_error(403), 502, "server_error", "backend_authentication_failed"),
    (http_error(404, "no such model"), 404, "invalid_request_error", "model_not_found"),
    (http_error(413), 413, "invalid_request_error", None),
    (http_error(422), 400, "invalid_request_error", None),
    (http_error(429, headers={"Retry-After": "7"}), 429, "rate_limit_error", "rate_limit_exceeded"),
    (stream(sse_error(code=429)), 429, "rate_limit_error", "rate_limit_exceeded"),
    (http_error(500), 502, "server_error", "backend_error"),
    (http_error(502), 502, "server_error", "backend_error"),
    (http_error(504), 504, "server_error", "backend_timeout"),
    (stream(sse_error()), 502, "server_error", "backend_error"),
    (stream(), 502, "server_error", "backend_empty_answer"),
    (empty(), 502, "server_error", "backend_empty_answer"),
    (http_error(200, body=b"<html>"), 502, "server_error", "backend_bad_answer"),
    (json_answer({"choices": [{"message": {"content": {"a": 1}}}]}), 502, "server_error", None),
    (json_answer({"choices": [{"message": {"reasoning_content": 5}}]}), 502, "server_error", None),
    (json_answer({"choices": [{"message": {"tool_calls": ["f"]}}]}), 502, "server_error", None),
)


class TestBackends:
    @pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
    async def test_a_failure_before_the_first_event_is_an_http_error(self, served, backend, streaming):
        for answer, status, type_, code in REFUSALS:
            backend.script(answer)
            refused = await served.http.post(URL, json=turn(stream=streaming))
            error = assert_error(refused, status, type=type_)
            assert code is None or error["code"] == code, error
            assert served.in_flight() == 0, "the slot is not free"
            if answer is REFUSALS[9][0]:
                assert refused.headers["retry-after"] == "7"
        assert backend.unused == 0

    @pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
    async def test_a_backend_that_sends_nothing_is_a_504(self, backend, streaming):
        endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "read_timeout_s": 0.05}
        async with running_router(endpoints=[endpoint]) as running:
            backend.script(stall())
            answer = await running.http.post(URL, json=turn(stream=streaming))
            assert_error(answer, 504, type="server_error", code="backend_timeout")
            assert running.in_flight() == 0

    async def test_a_backend_that_is_down_is_a_502(self, served, backend):
        await create(served.http)
        await backend.stop()
        for streaming in (False, True):
            answer = await served.http.post(URL, json=turn(stream=streaming))
            assert_error(answer, 502, type="server_error", code="backend_unreachable")
        assert served.in_flight() == 0

    async def test_a_failure_after_the_first_event_is_the_end_of_the_stream(self, served, backend):
        for ending, code, kept in (
            (cut(), "server_error", "backend_disconnected"),
            (cut(reset=True), "server_error", "backend_disconnected"),
            (sse_error(), "server_error", "backend_error"),
            (sse_error(code=400, message="no"), "invalid_prompt", None),
            (sse_error(code=429), "rate_limit_exceeded", "rate_limit_exceeded"),
            (sse({"error": OVERFLOW}), "context_length_exceeded", "context_length_exceeded"),
            (b"data: garbage\n\n", "server_error", "backend_bad_answer"),
        ):
            backend.script(chat("Hello there", then=ending))
            events = await stream_of(served.http)
            check_stream(events)
            error, last = events[-2:]
            assert (error["type"], error["code"]) == ("error", kept)
            assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
            assert last["response"]["error"]["code"] == code
            (item,) = last["response"]["output"]
            assert (item["status"], item["content"][0]["text"]) == ("incomplete", "Hello there")
            stored = (await served.http.get(f"{URL}/{last['response']['id']}")).json()
            assert {key: value for key, value in stored.items() if key != "output_text"} == last["response"]
            assert served.in_flight() == 0, "the slot is not free"

    async def test_a_failure_in_the_middle_of_json_is_an_http_error(self, served, backend):
        for answer in (chat("Hello", then=cut()), chat("Hello", then=sse_error(), as_stream=True)):
            backend.script(answer)
            assert_error(await served.http.post(URL, json=turn()), 502, type="server_error")
        assert served.in_flight() == 0


class TestFaultsOfOurs:
    SEAMS = (
        "choose_endpoint",
        "is_ext_openai_endpoint",
        "_make_openai_client",
        "get_llm_cache",
        "create_chat_with_retries",
    )

    @pytest.mark.parametrize("streaming", [False, True], ids=["json", "stream"])
    async def test_it_is_a_500_whose_cause_is_in_the_log_alone(self, served, monkeypatch, caplog, streaming):
        def broken(*args: Any) -> Any:
            raise RuntimeError("the flux capacitor is empty")

        for seam in self.SEAMS:
            caplog.clear()
            with monkeypatch.context() as patched:
                patched.setattr(api.responses, seam, broken)
                answer = await served.http.post(URL, json=turn(stream=streaming, nomyo={"cache": True}, input=seam))
            error = assert_error(answer, 500, type="server_error", code="internal_error")
            assert "flux" not in error["message"]
            assert "the flux capacitor is empty" in caplog.text, f"the cause is not logged: {seam}"
            assert served.in_flight() == 0, f"the slot is not free: {seam}"
        await create(served.http)

    async def test_in_the_background_it_is_a_failed_response(self, served, monkeypatch, caplog):
        def broken(*args: Any) -> Any:
            raise RuntimeError("the flux capacitor is empty")

        monkeypatch.setattr(api.responses, "create_chat_with_retries", broken)
        response = await ended(served.http, (await create(served.http, background=True))["id"])
        assert response["status"] == "failed"
        assert "flux" not in response["error"]["message"]
        assert "the flux capacitor is empty" in caplog.text
        assert served.in_flight() == 0

    async def test_a_route_that_breaks_is_a_500_too(self, served, caplog):
        with _logged(caplog, "uvicorn.error"):
            await served.app.state.db.close()
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                answer = await served.http.request(method, f"{URL}/resp_1{path}")
                assert_error(answer, 500, type="server_error", code="internal_error")
            assert "the store is not open" in caplog.text
        await served.app.state.db.open()

    async def test_what_cannot_be_stored_is_an_error_and_holds_no_slot(self, served, backend, caplog):
        connector = served.app.state.db._database
        await connector.write([("ALTER TABLE responses RENAME TO hidden", ())])
        answer = await served.http.post(URL, json=turn())
        assert_error(answer, 500, type="server_error", code="storage_error")
        answer = await served.http.post(URL, json=turn(background=True))
        assert_error(answer, 500, type="server_error", code="storage_error")
        backend.script(chat("Hello there"))
        events = await stream_of(served.http)
        check_stream(events)
        assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
        assert events[-2]["code"] == "storage_error"
        assert (await create(served.http, store=False))["status"] == "completed"
        assert served.in_flight() == 0
        await connector.write([("ALTER TABLE hidden RENAME TO responses", ())])
        await create(served.http)


@contextmanager
def _logged(caplog: pytest.LogCaptureFixture, name: str) -> Iterator[None]:
    """uvicorn's loggers give nothing on to the root."""
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


MARKER = "Hippopotamonstrosesquippedalian"
# The clients in this test log too, and what they send is theirs to log.
OF_THE_TEST = ("httpx", "httpcore", "openai", "hypothesis", "asyncio")


@pytest.mark.heavy
async def test_neither_keys_nor_prompts_reach_the_log(backend, tmp_path, caplog):
    settings: dict[str, Any] = {
        "endpoints": [
            {"url": f"{backend.url}/v1", "kind": "openai-chat", "api_key": f"sk-up-{MARKER}", "read_timeout_s": 0.1}
        ],
        "api_key": f"sk-router-{MARKER}",
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
        "cache": {"backend": "sqlite", "path": f"{tmp_path}/cache.db"},
    }
    said = f"I cannot answer '{MARKER}'"
    answers: list[Answer] = [
        chat(said),
        *(http_error(status, said) for status in (400, 401, 404, 413, 422, 429, 500, 502, 504)),
        *(http_error(status, body=said.encode()) for status in (400, 500, 200)),
        *(http_error(503, said) for _ in range(3)),
        chat(said, then=cut()),
        chat(said, then=sse_error(said)),
        chat(said, then=f"data: {said}\n\n".encode()),
        stream(sse_error(said)),
        stream(f"data: {said}\n\n".encode()),
        stream(f"error: {said}\n\n".encode()),
        json_answer({"error": {"message": said}}),
        json_answer({"choices": said}),
        json_answer({"choices": [{"message": {"content": {"a": said}}}]}),
        _not_http(said),
        _not_http(said),
        _not_http(said),
        stall(),
        empty(),
    ]
    caplog.set_level(logging.DEBUG)
    with _logged(caplog, "uvicorn"):
        async with running_router(**settings) as running:
            secret = {"input": f"Say {MARKER}", "instructions": MARKER, "nomyo": {"cache": True}, "user": MARKER}
            fresh = itertools.count()
            for params in ({}, {"stream": True}, {"background": True}, {"background": True, "stream": True}):
                backend.script(*answers)
                while backend.unused:
                    answer = await running.http.post(URL, json=turn(**secret, **params, seed=next(fresh)))
                    if params == {"background": True}:
                        await ended(running.http, answer.json()["id"])
            await _ask_wrongly(running.http)
            async with open_stream(running.http, **secret) as events:
                await events.next()
            connector = running.app.state.db._database
            await connector.write([("ALTER TABLE responses RENAME TO hidden", ())])
            await running.http.post(URL, json=turn(**secret))
            await connector.write([("ALTER TABLE hidden RENAME TO responses", ())])
        await backend.stop()
        async with running_router(**settings) as running:
            await running.http.post(URL, json=turn(**secret))
    ours = [record for record in caplog.records if not record.name.startswith(OF_THE_TEST)]
    assert len(ours) > 50, "this test looks in the wrong place"
    lines = [f"{r.name} {r.levelname} {r.getMessage()[:300]} {r.exc_text or ''}" for r in ours]
    leaks = [line for line in lines if MARKER in line]
    assert not leaks, f"{len(leaks)} of {len(lines)} lines, the first: {leaks[0]}"


def _not_http(said: str) -> Answer:
    async def answer(reply: Any) -> None:
        await reply.raw(f"HTTP/1.1 {said}\r\n\r\n".encode())
        reply.cut()

    return answer


async def _ask_wrongly(http: httpx2.AsyncClient) -> None:
    bodies: list[Any] = [
        {"model": MARKER, "input": MARKER},
        {"model": "test-model", "input": [{"role": MARKER, "content": MARKER}]},
        {"model": "test-model", "input": [{"role": "user", "content": [{"type": MARKER, "text": MARKER}]}]},
        {"model": "test-model", "input": MARKER, "temperature": MARKER},
        {"model": "test-model", "input": MARKER, "previous_response_id": MARKER},
        [MARKER],
    ]
    for body in bodies:
        assert (await http.post(URL, json=body)).status_code in (200, 400, 404)
    await http.post(URL, content=f'{{"model": "{MARKER}')
    for headers in ({"Authorization": f"Bearer sk-wrong-{MARKER}"}, {"Authorization": MARKER}):
        assert (await http.post(URL, json=turn(input=MARKER), headers=headers)).status_code == 401
    await asyncio.gather(*(http.get(f"{URL}/{MARKER}{path}") for path in ("", "?stream=true", "/input_items")))
