"""A router behind a router, on real sockets: it is known as what it is, and none goes round and round."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from core.config import EndpointConfig, ModelsConfig
from core.config_checks import parse_config
from core.errors import ConfigError
from core.hops import HEADER, MOST_HOPS, RouterLoop, arrive, came_through, line_of_look, line_of_request
from serve import check_endpoints
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, json_answer
from tests.stream_grammar import parse_sse
from tests.turns import URL, assert_error, create, stream, turn

ROOT = Path(__file__).parents[1]
VIA = HEADER.decode()


def router_id(running: Running) -> str:
    return running.app.state.pool.endpoints.router_id


async def put_behind(running: Running, *urls: str, kind: str = "auto", names: tuple[str, ...] = ()) -> None:
    """The router gets these endpoints in place of its own, and has looked at them."""
    state = running.app.state
    endpoints = [EndpointConfig(url, kind=kind, models=ModelsConfig(names=names)) for url in urls]
    await state.pool.reconfigure(replace(state.config, endpoints=endpoints))
    await state.pool.endpoints.look()


@pytest.fixture
async def inner(backend: FakeBackend) -> AsyncIterator[Running]:
    """A router in front of a llama.cpp that counts."""
    backend.routes["POST /v1/chat/completions/input_tokens"] = json_answer({"input_tokens": 27})
    async with running_router(endpoints=[{"url": backend.url, "kind": "llama.cpp", "max_concurrent": 3}]) as running:
        yield running


@pytest.fixture
async def outer(inner: Running) -> AsyncIterator[Running]:
    """A router in front of that one, of which it knows nothing but the address."""
    async with running_router(endpoints=[{"url": inner.url}]) as running:
        yield running


class TestItIsKnown:
    async def test_by_its_list_of_models(self, outer: Running, inner: Running) -> None:
        (endpoint,) = outer.app.state.pool.endpoints.values()
        assert (endpoint.kind.name, endpoint.kind.native) == ("nomyo", True)
        assert endpoint.router == router_id(inner)
        assert endpoint.max_concurrent == 3, "its room is that of its fleet"

    async def test_clients_read_nothing_of_that(self, inner: Running) -> None:
        listing = (await inner.http.get("/v1/models")).json()
        assert listing.keys() == {"object", "data"}

    async def test_a_turn_goes_through_both(self, outer: Running, inner: Running, backend: FakeBackend) -> None:
        first = await create(outer.http, input="Hi")
        assert first["output"][0]["content"][0]["text"] == "Hello from the fake backend."
        events = await stream(outer.http, input="And?", previous_response_id=first["id"])
        assert events[-1]["response"]["previous_response_id"] == first["id"]
        assert [message["role"] for message in backend.turns[-1].json["messages"]] == ["user", "assistant", "user"]
        assert outer.in_flight() == inner.in_flight() == 0

    async def test_its_count_is_a_count(self, outer: Running) -> None:
        answer = await outer.http.post("/v1/responses/input_tokens", json=turn())
        assert answer.json()["input_tokens"] == 27
        assert "x-nomyo-estimated" not in answer.headers

    async def test_its_estimate_is_an_estimate(self, backend: FakeBackend) -> None:
        async with (
            running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as inner,
            running_router(endpoints=[{"url": inner.url}]) as outer,
        ):
            answer = await outer.http.post("/v1/responses/input_tokens", json=turn())
            assert answer.headers["x-nomyo-estimated"] == "true"

    @pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
    async def test_what_it_leaves_out_is_named(self, outer: Running, backend: FakeBackend, streamed: bool) -> None:
        """By the one of the two that knows it, and once."""
        backend.default = chat("It is sunny.")
        tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}, {"type": "web_search"}]
        body = turn(tools=tools, tool_choice="required", moderation={"model": "x"}, stream=streamed)
        answer = await outer.http.post(URL, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-nomyo-omitted-tools"] == "web_search"
        assert "moderation" in answer.headers["x-nomyo-ignored"]
        if streamed:
            last = parse_sse(answer.content)[-1][1]["response"]
            assert last["nomyo"]["ignored"] == "moderation, tool_choice"
        else:
            assert answer.headers["x-nomyo-ignored"] == "moderation, tool_choice"

    async def test_its_refusals_keep_their_words(self, outer: Running) -> None:
        refused = await outer.http.post(URL, json=turn(model="test-model", input=[{"type": "message", "role": "x"}]))
        assert refused.status_code == 400


class TestLoops:
    @pytest.mark.parametrize("kind", ["auto", "openai", "openai-chat", "llama.cpp", "vllm", "ollama", "nomyo"])
    async def test_an_endpoint_that_is_the_router_itself_is_an_error(self, inner: Running, kind: str) -> None:
        """Under a name that only shows it once it is asked, as behind a proxy."""
        url = inner.url.replace("127.0.0.1", "localhost")
        await put_behind(
            inner, url if kind in ("auto", "llama.cpp", "vllm", "ollama", "nomyo") else f"{url}/v1", kind=kind
        )
        shown = (await inner.http.get("/api/endpoints")).json()["endpoints"][0]
        assert shown["state"] == "down"
        assert "this router itself" in shown["advice"]
        answer = await inner.http.post(URL, json=turn())
        assert "this router itself" in answer.json()["error"]["message"]

    async def test_what_a_router_only_has_from_the_one_that_asks_is_not_offered_to_it(
        self, inner: Running, outer: Running, backend: FakeBackend
    ) -> None:
        await put_behind(inner, outer.url)
        await outer.app.state.pool.endpoints.look()
        assert not outer.app.state.pool.endpoints.models(), "each has it only from the other"
        assert_error(await outer.http.post(URL, json=turn()), 400, code="model_not_found", param="model")

    async def test_a_request_that_comes_back_is_refused_once(self, inner: Running, outer: Running) -> None:
        """Each takes the other to have the model."""
        await put_behind(inner, outer.url, kind="nomyo", names=("test-model",))
        (endpoint,) = outer.app.state.pool.endpoints.values()
        answer = await outer.http.post(URL, json=turn())
        assert_error(answer, 508, code="router_loop")
        assert endpoint.outcomes["failed"] == 0, "no fault of that server's"

    async def test_two_that_stand_in_for_each_other_go_on(self, stack: AsyncExitStack) -> None:
        """Each has a server of its own, and the other for when that is away."""
        one, two = [await stack.enter_async_context(FakeBackend()) for _ in range(2)]
        two.script(chat("From two."))
        first, second = [
            await stack.enter_async_context(running_router(endpoints=[{"url": f"{its.url}/v1"}])) for its in (one, two)
        ]
        await put_behind(first, f"{one.url}/v1", second.url)
        await put_behind(second, f"{two.url}/v1", first.url)
        await first.app.state.pool.endpoints.look()
        await one.stop()
        assert (await create(first.http))["output"][0]["content"][0]["text"] == "From two."

    async def test_a_chain_may_be_long_but_not_endless(self) -> None:
        arrive(b", ".join(b"%02x" % number for number in range(MOST_HOPS)), "own")
        assert len(came_through()) == MOST_HOPS
        assert line_of_look("own") == b"x-nomyo-via: own\r\n", "a look is nobody's but the router's own"
        assert line_of_request("own").endswith(b"0f, own\r\n")
        with pytest.raises(RouterLoop):
            arrive(b", ".join(b"%02x" % number for number in range(MOST_HOPS + 1)), "own")
        with pytest.raises(RouterLoop):
            arrive(b"a, own", "own")

    @pytest.mark.parametrize("given", ["", ",,,", "\xe4\xf6", "a" * 5000, "a b c", '"'])
    async def test_whatever_a_client_writes_there_is_no_failure(self, served: Running, given: str) -> None:
        answer = await served.http.post(URL, json=turn(), headers={VIA: given.encode("latin-1")})
        assert answer.status_code in (200, 508)


class TestTheStart:
    @pytest.mark.parametrize(
        ("host", "url", "is_itself"),
        [
            ("127.0.0.1", "http://127.0.0.1:12434", True),
            ("127.0.0.1", "http://127.0.0.1:12434/v1", True),
            ("127.0.0.1", "http://localhost:12434", True),
            ("localhost", "http://127.0.0.1:12434", True),
            ("127.0.0.1", "http://127.0.0.1:8080", False),
            ("127.0.0.1", "http://127.0.0.2:12434", False),
            ("0.0.0.0", "http://127.0.0.2:12434", True),
            ("", "http://localhost:12434", True),
            ("0.0.0.0", "http://192.0.2.1:12434", False),
            ("127.0.0.1", "http://no-such-host.invalid:12434", False),
        ],
    )
    def test_a_router_that_is_its_own_endpoint_does_not(self, host: str, url: str, is_itself: bool) -> None:
        settings = parse_config({"endpoints": [{"url": "http://127.0.0.1:9"}, {"url": url}]})
        if not is_itself:
            check_endpoints(host, 12434, settings)
            return
        with pytest.raises(ConfigError, match=r"endpoints\[1\]\.url: .* is this router itself"):
            check_endpoints(host, 12434, settings)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_it_prints_one_line_that_names_the_setting(self, tmp_path: Path, workers: int) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"endpoints: [{{url: 'http://localhost:12999'}}]\nworkers: {workers}\n"
            f"database: {{url: 'sqlite:///{tmp_path}/router.db'}}\n"
        )
        started = subprocess.run(
            [sys.executable, "serve.py", "--port", "12999"],
            cwd=ROOT,
            env={**os.environ, "ROUTER_CONFIG": str(config)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert started.returncode == 1
        assert started.stderr == (
            "nomyo-router cannot start: endpoints[0].url: http://localhost:12999 is this router itself; "
            "name a server that is to be behind it\n"
        )
