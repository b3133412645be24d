"""What a server says of an error is read out of whatever it says it in, and nothing of ours is repeated with it."""

import time
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.wire.errors import ServerErrors
from backends.wire.reports import SHOWN_CHARS, masking, read_report, report_of
from core.errors import BackendError, BackendRefused, TooManyRequests
from tests.conftest import running_router
from tests.fake_backend import http_error, json_answer, sse, stream
from tests.turns import URL, assert_error, turn

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "code", "type", "param", "msg", "loc", "metadata", "raw", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)

# The body of an error, and the words in it.
BODIES: dict[str, tuple[Any, str]] = {
    "OpenAI": ({"error": {"message": "bad thing", "type": "invalid_request_error", "code": None}}, "bad thing"),
    "vLLM": ({"object": "error", "message": "bad thing", "type": "BadRequestError", "code": 400}, "bad thing"),
    "Anthropic": ({"type": "error", "error": {"type": "invalid_request_error", "message": "bad thing"}}, "bad thing"),
    "Ollama": ({"error": "model 'm' not found"}, "model 'm' not found"),
    "Ollama, of its runner": (
        {"error": {"message": '{"error":{"code":400,"message":"too long"}}', "type": "api_error"}},
        "too long",
    ),
    "Ollama's cloud": ({"StatusCode": 400, "Status": "400 Bad Request", "error": "prompt too long"}, "prompt too long"),
    "Gemini": ([{"error": {"code": 400, "message": "bad thing", "status": "INVALID_ARGUMENT"}}], "bad thing"),
    "FastAPI": ({"detail": "Not authenticated"}, "Not authenticated"),
    "FastAPI, fields": (
        {
            "detail": [
                {"loc": ["body", "messages"], "msg": "Field required", "type": "missing"},
                {"loc": ["body", "n"], "msg": "Input should be 1", "type": "literal_error"},
            ]
        },
        "messages: Field required; n: Input should be 1",
    ),
    "FastAPI, an object": ({"detail": {"error": "bad thing", "hint": "x"}}, "bad thing"),
    "Mistral": (
        {
            "object": "error",
            "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "x"], "msg": "Extra inputs"}]},
            "type": "invalid_request_error",
        },
        "x: Extra inputs",
    ),
    "MiniMax": ({"base_resp": {"status_code": 2013, "status_msg": "invalid params"}}, "invalid params"),
    "OpenRouter": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 400,
                "metadata": {"raw": '{"error":{"message":"bad thing"}}', "provider_name": "X"},
            }
        },
        "Provider returned error: bad thing",
    ),
    "OpenRouter, words twice": (
        {"error": {"message": "It failed: bad thing", "metadata": {"raw": "bad thing"}}},
        "It failed: bad thing",
    ),
    "Cloudflare": (
        {"success": False, "errors": [{"code": 7003, "message": "bad"}, {"message": "worse"}]},
        "bad; worse",
    ),
    "RFC 9457": ({"type": "about:blank", "title": "Bad Request", "status": 400, "detail": "bad thing"}, "bad thing"),
    "RFC 9457, no detail": ({"type": "about:blank", "title": "Bad Request", "status": 400}, "Bad Request"),
    "AWS": ({"__type": "ValidationException", "Message": "bad thing"}, "bad thing"),
    "Baidu": ({"error_code": 17, "error_msg": "bad thing"}, "bad thing"),
    "OAuth": ({"error": "", "error_description": "bad thing"}, "bad thing"),
    "text in JSON": ("bad thing", "bad thing"),
    "a text": (b"bad thing\n", "bad thing"),
    "a text of several lines": (b"bad\nthing", "bad\nthing"),
    "nginx": (
        b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502</h1><hr>nginx</body></html>",
        "502 Bad Gateway 502 nginx",
    ),
    "a page with a script": (
        b"<!DOCTYPE html><style>a{}</style><p>Sorry<script>alert('<p>')</script> about that",
        "Sorry about that",
    ),
    "an event": (b'event: error\r\ndata: {"error":{"message":"bad thing","code":400}}\r\n\r\n', "bad thing"),
    "an event without a name": (b'data: {"message":"bad thing"}\n\ndata: [DONE]\n\n', "bad thing"),
    "an event of a text": (b"data: bad thing\n\n", "bad thing"),
    "no UTF-8": (b"bad \xff thing", "bad � thing"),
    "nothing": (b"", ""),
    "null": (None, "null"),
    "an object of nothing": ({}, ""),
    "an object of something else": ({"ok": True}, ""),
}


@pytest.mark.parametrize("server", BODIES)
def test_the_words_are_found(server: str) -> None:
    body, words = BODIES[server]
    report = read_report(400, body if isinstance(body, bytes) else orjson.dumps(body))
    assert report.words == report.message == words


@pytest.mark.parametrize(
    ("given", "shown"),
    [("x" * SHOWN_CHARS, "x" * SHOWN_CHARS), ("x" * (SHOWN_CHARS + 1), "x" * (SHOWN_CHARS - 1) + "…")],
)
def test_long_words_are_cut(given: str, shown: str) -> None:
    report = read_report(400, given.encode())
    assert report.message == shown
    assert report.words == given


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 503}, 503),
        ({"code": "429"}, 429),
        ({"status": 404, "code": "x"}, 404),
        ({"http_code": "400", "type": "bad_request_error"}, 400),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"code": "context_length_exceeded"}, 400),
        ({"type": "overloaded_error"}, 503),
        ({"code": True}, 500),
        ({"code": 7}, 500),
        ({"code": "1261"}, 500),
        ({}, 500),
    ],
)
def test_a_code_stands_for_a_status_where_there_is_none(error: Any, status: int) -> None:
    assert report_of(None, {"error": {**error, "message": "x"}}).status == status
    assert report_of(418, {"error": {**error, "message": "x"}}).status == 418


@pytest.mark.parametrize(
    ("error", "param"),
    [
        ({"error": {"message": "x", "param": "top_k"}}, "top_k"),
        ({"detail": [{"loc": ["body", "stream_options", "x"], "msg": "y"}]}, "stream_options.x"),
        ({"detail": [{"loc": "body", "msg": "y"}]}, None),
        ({"error": {"param": 5, "message": "x"}}, None),
    ],
)
def test_the_parameter_that_is_named(error: Any, param: str | None) -> None:
    assert report_of(400, error).param == param


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────────────────

NOW = datetime(2026, 10, 21, 7, 27, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"retry-after": "Wednesday, 21-Oct-26 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({}, None),
    ],
)
def test_when_to_come_back_is_seconds_or_a_date(headers: dict[str, str], wait_s: float | None) -> None:
    assert read_report(429, b"", headers, now=NOW).retry_after_s == wait_s


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

SECRET = "sk-secret-Zeppelin"


@given(JSON_VALUES, st.sampled_from([400, 401, 402, 403, 404, 413, 422, 429, 500, 503, 529]), st.booleans())
@example({"error": {"message": ""}}, 400, True)
def test_any_value_is_an_error_that_a_client_can_read(value: Any, status: int, passes_on: bool) -> None:
    errors = ServerErrors([SECRET], passes_on=passes_on)
    for error in (errors.of_answer(status, orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)), errors.inside(value)):
        assert isinstance(error, BackendError | TooManyRequests)
        assert error.message
        described = orjson.loads(orjson.dumps(error.to_dict()))
        assert {"message", "type", "param", "code"} <= described.keys()
        for key in ("code", "param"):
            assert described[key] is None or isinstance(described[key], str)
        assert isinstance(described["type"], str)
        assert 400 <= error.status < 600


@given(st.binary(max_size=300), st.sampled_from([400, 404, 500]))
def test_any_bytes_are_an_error_that_a_client_can_read(body: bytes, status: int) -> None:
    assert ServerErrors().of_answer(status, body).message


@given(
    JSON_VALUES.map(lambda value: orjson.loads(orjson.dumps(value).replace(b'"x"', b'"sk-secret-Zeppelin"'))),
    st.text(max_size=20),
    st.booleans(),
)
def test_a_secret_is_never_repeated(value: Any, beside: str, passes_on: bool) -> None:
    errors = ServerErrors([SECRET], passes_on=passes_on)
    bodies = [
        value,
        {"error": {"message": f"{beside}{SECRET}{beside}", "type": SECRET, "code": SECRET, "param": value}},
    ]
    for body in bodies:
        for error in (errors.of_answer(400, orjson.dumps(body)), errors.inside(body)):
            shown = {key: text for key, text in error.to_dict().items() if key in ("message", "type", "param", "code")}
            assert SECRET not in str(shown)
            assert SECRET not in str(error.to_response_error())


def test_a_secret_that_is_cut_off_is_not_half_repeated() -> None:
    error = ServerErrors([SECRET]).of_answer(400, ("x" * (SHOWN_CHARS - 5) + SECRET).encode())
    assert "sk-" not in error.message
    assert error.message.endswith("***")


def test_the_longest_secret_is_masked_first() -> None:
    assert masking(["sk-a", "sk-abc", ""])("sk-abc sk-a sk-") == "*** *** sk-"
    assert masking([])("sk-a") == "sk-a"


@pytest.mark.parametrize(
    "body",
    [
        b"<script" * 9000,
        b"<" * 64_000,
        b"<html>" + b"<style><script>" * 4000,
        b'{"error":' * 400 + b"1" + b"}" * 400,
        orjson.dumps({"error": {"message": "[" * 60_000}}),
        orjson.dumps([[["x" * 100] * 50] * 50] * 10),
    ],
    ids=lambda body: body[:20].decode(),
)
def test_no_body_takes_long(body: bytes) -> None:
    def took_s() -> float:
        began = time.process_time()
        ServerErrors([SECRET]).of_answer(400, body)
        return time.process_time() - began

    # What grows by its square takes seconds, each time.
    assert min(took_s() for _ in range(3)) < 0.5


# ── what it becomes ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "body", "kind", "ours", "code"),
    [
        (402, {"error": {"message": "Insufficient Balance"}}, BackendError, 402, "insufficient_quota"),
        (429, {"error": {"message": "x", "code": "insufficient_quota"}}, TooManyRequests, 429, "insufficient_quota"),
        (429, {"error": {"message": "x", "type": "insufficient_quota"}}, TooManyRequests, 429, "insufficient_quota"),
        (429, {"error": {"message": "x", "code": "other"}}, TooManyRequests, 429, "rate_limit_exceeded"),
        (
            529,
            {"error": {"type": "overloaded_error", "message": "Overloaded"}},
            BackendError,
            502,
            "backend_unreachable",
        ),
        (
            429,
            {
                "error": {
                    "message": "(TPM): Limit 1, Requested 2. The input or output tokens must be reduced in order to "
                    "run successfully.",
                    "code": "rate_limit_exceeded",
                }
            },
            BackendRefused,
            400,
            "context_length_exceeded",
        ),
        (403, {"error": {"message": "x", "code": "model_not_found"}}, BackendRefused, 403, "model_not_found"),
        (
            403,
            {"error": {"message": "Your project does not have access to model m"}},
            BackendRefused,
            403,
            "model_not_found",
        ),
        (403, {"error": {"message": "Your input was flagged"}}, BackendRefused, 403, None),
        (403, {"error": {"message": "No."}}, BackendError, 502, "backend_authentication_failed"),
        (404, {"error": {"code": "DeploymentNotFound", "message": "No."}}, BackendRefused, 404, "model_not_found"),
        (404, {"timestamp": 1, "status": 404, "error": "Not Found"}, BackendError, 502, "backend_path_not_found"),
        (400, {"error": {"message": "x", "code": 1214}}, BackendRefused, 400, None),
        (400, {"error": {"message": "x", "param": "top_k"}}, BackendRefused, 400, None),
        (500, {"error": {"message": "Jinja Exception: System role not supported"}}, BackendRefused, 400, None),
        (
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "user"]}]},
            BackendRefused,
            400,
            "unsupported_parameter",
        ),
    ],
)
def test_what_a_server_says_has_a_name_of_ours(status: int, body: Any, kind: type, ours: int, code: str | None) -> None:
    error = ServerErrors().of_answer(status, orjson.dumps(body))
    assert isinstance(error, kind)
    assert (error.status, error.code) == (ours, code)
    assert error.message


def test_a_parameter_that_is_named_stays_named() -> None:
    error = ServerErrors().of_answer(400, b'{"error": {"message": "Too small.", "param": "top_k"}}')
    assert error.param == "top_k"
    error = ServerErrors().of_answer(422, b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "user"]}]}')
    assert (error.param, error.message) == ("user", "The backend refused 'user'.")


# ── through the router ───────────────────────────────────────────────────────────────────────────────────────────────

SAID = "The fairies are on strike."
HELD_IN = {
    "a text": http_error(400, body=SAID.encode()),
    "a page": http_error(400, body=f"<html><body><p>{SAID}</p></body></html>".encode()),
    "detail": json_answer({"detail": SAID}, status=422),
    "details": json_answer({"detail": [{"loc": ["body", "n"], "msg": SAID, "type": "missing"}]}, status=422),
    "Ollama's": json_answer({"error": SAID}, status=400),
    "a list": json_answer([{"error": {"message": SAID}}], status=400),
    "a number for a code": json_answer({"error": {"message": SAID, "code": 1214}}, status=400),
    "a stream": stream(sse({"error": {"message": SAID, "code": 400}})),
    "a stream, an event": stream(
        b"event: error\ndata: " + orjson.dumps({"error": {"message": SAID, "code": 400}}) + b"\n\n"
    ),
    "a 200": json_answer({"base_resp": {"status_code": 2013, "status_msg": SAID, "code": 400}}),
    "a 200 with a code": json_answer({"code": 400, "msg": SAID, "success": False}),
    "a 200 with a text": json_answer({"status": 400, "message": SAID, "data": None}),
    "a fault": json_answer({"fault": {"faultstring": SAID, "detail": {"errorcode": "x"}}}, status=400),
}


@pytest.mark.parametrize("kind", ["openai-chat", "vllm", "ollama"])
@pytest.mark.parametrize("held_in", HELD_IN)
async def test_a_client_gets_a_servers_own_words(backend: Any, held_in: str, kind: str) -> None:
    url = f"{backend.url}/v1" if kind == "openai-chat" else backend.url
    async with running_router(endpoints=[{"url": url, "kind": kind}]) as running:
        for streaming in (False, True):
            backend.script(HELD_IN[held_in])
            answer = await running.http.post(URL, json=turn(stream=streaming))
            assert_error(answer, 400, type="invalid_request_error", says=SAID)


@pytest.mark.parametrize("kind", ["openai-chat", "openai"])
async def test_keys_of_ours_are_masked_wherever_a_server_repeats_them(backend: Any, kind: str) -> None:
    settings = {
        "url": f"{backend.url}/v1",
        "kind": kind,
        "api_key": "sk-Zeppelin",
        "headers": {"X-Team": "Bearer t0psecret"},
    }
    said = "Key sk-Zeppelin of team t0psecret has no access."
    async with running_router(endpoints=[settings]) as running:
        for trouble in (
            http_error(400, said, code="sk-Zeppelin"),
            http_error(403, said),
            http_error(404, said),
            http_error(429, said),
            http_error(500, said),
            http_error(400, body=said.encode()),
            stream(sse({"type": "error", "error": {"message": said, "code": 400}})),
        ):
            for streaming in (False, True):
                backend.default = trouble
                answer = await running.http.post(URL, json=turn(stream=streaming))
                assert answer.status_code >= 400
                assert "Zeppelin" not in answer.text
                assert "t0psecret" not in answer.text


@pytest.mark.parametrize("passes_on", [False, True])
def test_a_status_that_is_spelled_as_a_code_is_none(passes_on: bool) -> None:
    """LiteLLM's Responses."""
    words = (
        "litellm.ContextWindowExceededError: OpenAIException - request (9021 tokens) exceeds the available context size"
    )
    body = orjson.dumps({"error": {"message": words, "type": "invalid_request_error", "param": None, "code": "400"}})
    error = ServerErrors(passes_on=passes_on).of_answer(400, body)
    assert isinstance(error, BackendRefused)
    assert (error.code, error.param) == ("context_length_exceeded", "input")
    assert error.to_dict()["code"] == "context_length_exceeded"
