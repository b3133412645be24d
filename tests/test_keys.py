"""Keys: who is let in, what each may do, and which models it may use, at every front door."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from api.peers import as_peer
from core.config_checks import parse_config
from core.keyring import Keyring
from core.keys import StoredKey
from tests.conftest import Running, running_router
from tests.doors import DOORS, is_ollamas
from tests.fake_backend import FakeBackend, json_answer
from tests.keyed import ADMIN, as_key, key, keyed_router, secret_of, with_secret
from tests.turns import URL, assert_error, create, retrieve, turn


@pytest.fixture
async def keyed(backend: FakeBackend) -> AsyncIterator[Running]:
    async with keyed_router(
        backend,
        "ann",
        key("ann2", owner="ann"),
        "bob",
        key("root", admin=True),
        key("old", expires="2020-01-31"),
        {"name": "hashed", "sha256": hashlib.sha256(b"nk-hashed").hexdigest()},
    ) as running:
        yield running


class TestWhoIsLetIn:
    @pytest.mark.parametrize("header", ["Authorization", "x-api-key", "api-key"])
    async def test_a_key_goes_in_any_of_the_headers_that_clients_have(self, keyed: Running, header: str) -> None:
        for secret in (secret_of("ann"), "nk-hashed", ADMIN):
            value = f"Bearer {secret}" if header == "Authorization" else secret
            async with httpx2.AsyncClient(base_url=keyed.url, headers={header: value}, verify=False) as http:
                assert (await create(http))["status"] == "completed"

    async def test_a_key_in_the_address_is_no_key(self, keyed: Running) -> None:
        async with httpx2.AsyncClient(base_url=keyed.url, verify=False) as http:
            for name in ("key", "api_key", "api-key", "x-api-key", "authorization", "access_token"):
                answer = await http.get(f"/v1/models?{name}={secret_of('ann')}")
                assert_error(answer, 401, code="invalid_api_key")

    async def test_which_key_is_wrong_how_is_in_the_log_alone(
        self, keyed: Running, caplog: pytest.LogCaptureFixture
    ) -> None:
        replies = []
        with caplog.at_level(logging.INFO, "nomyo.keys"):
            for secret in (secret_of("old"), "nk-unknown"):
                async with with_secret(keyed, secret) as http:
                    answer = await http.post(URL, json=turn())
                    assert_error(answer, 401, code="invalid_api_key")
                    replies.append(answer.text)
        assert replies[0] == replies[1]
        assert [record.getMessage() for record in caplog.records if record.name == "nomyo.keys"] == [
            "the key 'old' was refused: it has expired",
            "a key was refused: it is unknown",
        ]

    def test_a_key_that_was_revoked_is_known_as_that(self, caplog: pytest.LogCaptureFixture) -> None:
        keyring = Keyring(parse_config({"endpoints": [{"url": "http://x"}]}))
        assert not keyring.asks_for_keys
        digest = hashlib.sha256(b"nk-1").digest()
        valid = StoredKey(digest, "ann", "nk-1", b'{"name": "ann", "rpm": 5}', 1, change=1)
        keyring.take_stored([valid])
        principal = keyring.find(b"nk-1")
        assert principal is not None
        assert (principal.key, principal.owner, principal.limits.rpm) == ("ann", "ann", 5)
        keyring.take_stored([StoredKey(digest, "ann", "nk-1", b'{"name": "ann"}', 1, 2.0, "revoked", change=2)])
        assert keyring.find(b"nk-1") is None
        with caplog.at_level(logging.INFO, "nomyo.keys"):
            keyring.log_refusal(b"nk-1")
            keyring.log_refusal(b"nk-1")
        assert [record.getMessage() for record in caplog.records] == ["the key 'ann' was refused: it was revoked"]
        assert keyring.asks_for_keys, "whoever revokes the last key does not let everybody in"

    async def test_nobody_outside_asks_as_a_peer(self, keyed: Running) -> None:
        peer = as_peer(keyed.app.state, "ann")
        async with as_key(keyed, "ann") as ann, as_key(keyed, "bob") as bob:
            response = await create(ann)
            async with httpx2.AsyncClient(base_url=keyed.url, headers=peer, verify=False) as http:
                assert_error(await http.get(f"{URL}/{response['id']}"), 401, code="invalid_api_key")
            headers = {name: value for name, value in peer.items() if name != "authorization"}
            assert headers
            assert_error(await bob.get(f"{URL}/{response['id']}", headers=headers), 404)

    async def test_keys_alone_close_a_router_too(self, backend: FakeBackend) -> None:
        endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
        async with running_router(endpoints=endpoints, keys=[key("ann")]) as running:
            assert_error(await running.http.post(URL, json=turn()), 401, code="invalid_api_key")
            async with as_key(running, "ann") as ann:
                await create(ann)

    async def test_the_health_of_the_router_is_everybodys(self, keyed: Running) -> None:
        for secret in ("", "nk-unknown", secret_of("ann")):
            async with with_secret(keyed, secret) as http:
                assert (await http.get("/health")).status_code == 200


class TestOwners:
    async def test_keys_of_one_owner_share_what_they_make(self, keyed: Running) -> None:
        async with as_key(keyed, "ann") as ann, as_key(keyed, "ann2") as ann2:
            response = await create(ann)
            assert await retrieve(ann2, response["id"]) == response

    async def test_admins_share_what_was_there_before_there_were_owners(self, keyed: Running) -> None:
        async with as_key(keyed, "root") as root:
            response = await create(keyed.http)
            assert await retrieve(root, response["id"]) == response

    async def test_a_cached_answer_is_its_owners(self, keyed: Running, backend: FakeBackend) -> None:
        cached = {"nomyo": {"cache": True}}
        async with as_key(keyed, "ann") as ann, as_key(keyed, "ann2") as ann2, as_key(keyed, "bob") as bob:
            for client, hits in ((ann, None), (ann2, "hit"), (bob, None), (keyed.http, None)):
                answer = await client.post(URL, json=turn(**cached))
                assert answer.headers.get("x-nomyo-cache") == hits
        assert len(backend.turns) == 3

    async def test_what_was_sealed_for_one_opens_for_no_other(self, keyed: Running, backend: FakeBackend) -> None:
        async with as_key(keyed, "ann") as ann, as_key(keyed, "ann2") as ann2, as_key(keyed, "bob") as bob:
            compacted = (await ann.post(f"{URL}/compact", json=turn())).json()["output"]
            for client, status in ((ann, 200), (ann2, 200), (bob, 400), (keyed.http, 400)):
                answer = await client.post(URL, json=turn(input=[*compacted, {"role": "user", "content": "On."}]))
                assert answer.status_code == status, answer.text
            older = (await keyed.http.post(f"{URL}/compact", json=turn())).json()["output"]
            refused = await bob.post(URL, json=turn(input=[*older, {"role": "user", "content": "On."}]))
            assert_error(refused, 400, code="invalid_encrypted_content")
            assert (await keyed.http.post(URL, json=turn(input=[*older]))).status_code == 200


@pytest.mark.parametrize("path", [URL, "/v1/chat/completions"])
async def test_where_something_is_warm_shows_to_its_owner_alone(path: str, backends_: list[FakeBackend]) -> None:
    """By whichever name: an id, or the key of a cache. Chance alone leads to the same endpoint, not twenty times."""
    endpoints = [{"url": f"{one.url}/v1", "kind": "openai-chat"} for one in backends_]
    async with (
        keyed_router(backends_[0], "ann", "eve", endpoints=endpoints) as running,
        as_key(running, "ann") as ann,
        as_key(running, "eve") as eve,
    ):

        async def place(http: httpx2.AsyncClient, text: str, name: str) -> tuple[str, str]:
            asked = {"input": text} if path == URL else {"messages": [{"role": "user", "content": text}]}
            answer = await http.post(path, json={"model": "test-model", "prompt_cache_key": name, **asked})
            return answer.headers["x-nomyo-endpoint"], answer.json()["id"]

        for names_id in (False, True):
            same = 0
            for number in range(20):
                there, id = await place(ann, f"ann's {number}", f"key {number}")
                name = id if names_id else f"key {number}"
                same += (await place(eve, f"eve's {number} {name}", name))[0] == there
                assert (await place(ann, f"ann's again {number}", f"key {number}"))[0] == there
            assert same < 20


ADMINS = (
    ("GET", "/api/endpoints"),
    ("POST", "/api/endpoints/{name}/drain"),
    ("POST", "/api/endpoints/{name}/enable"),
    ("GET", "/api/cache/stats"),
    ("POST", "/api/cache/invalidate"),
    ("GET", "/metrics"),
)


class TestRights:
    @pytest.mark.parametrize(("method", "path"), ADMINS)
    async def test_what_admins_do_takes_their_right(self, keyed: Running, method: str, path: str) -> None:
        name = next(iter(keyed.app.state.pool.endpoints.values())).name
        path = path.format(name=name)
        async with as_key(keyed, "ann") as ann, as_key(keyed, "root") as root:
            error = assert_error(await ann.request(method, path), 403, code="insufficient_permissions")
            assert "'admin'" in error["message"]
            assert "'ann'" in error["message"]
            assert not any(endpoint.draining for endpoint in keyed.app.state.pool.endpoints.values())
            for admin in (root, keyed.http):
                assert (await admin.request(method, path)).status_code == 200

    async def test_metrics_can_be_everybodys(self, backend: FakeBackend) -> None:
        async with keyed_router(backend, "ann", metrics_open=True) as running, with_secret(running, "") as nobody:
            assert (await nobody.get("/metrics")).status_code == 200
            assert_error(await nobody.get("/api/endpoints"), 401)


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def models(backend: FakeBackend) -> AsyncIterator[Running]:
    """Models of which a key may use some: by their names, by one of their aliases, or by a name without its tag."""
    backend.routes |= {"POST /v1/embeddings": json_answer({"data": []}), "POST /v1/rerank": json_answer({})}
    async with FakeBackend() as other:
        for server, names in ((backend, ["qwen3:8b", "gpt-5"]), (other, ["claude"])):
            server.routes["GET /v1/models"] = json_answer({"data": [{"id": name} for name in names]})
        endpoints = [
            {"url": f"{backend.url}/v1", "kind": "openai-chat", "aliases": {"fast": "qwen3:8b", "smart": "gpt-5"}},
            {"url": f"{other.url}/v1", "kind": "openai-chat"},
        ]
        fallbacks = {"qwen3:8b": ["claude"], "absent": ["gpt-5"], "smart": ["qwen3:8b"]}
        keys = [key("ann", models=["qwen*"]), key("fast", models=["fast"]), key("none", models=[]), key("all")]
        async with keyed_router(backend, *keys, endpoints=endpoints, fallback_models=fallbacks) as running:
            yield running


async def listed(http: httpx2.AsyncClient) -> list[set[str]]:
    """The models of every front door that lists them."""
    openai = (await http.get("/v1/models")).json()["data"]
    ollama = (await http.get("/api/tags")).json()["models"]
    return [{model["id"] for model in openai}, {model["name"] for model in ollama}]


class TestModels:
    async def test_a_key_sees_those_that_it_may_use(self, models: Running) -> None:
        seen = {"ann": {"qwen3:8b", "fast"}, "fast": {"qwen3:8b", "fast"}, "none": set()}
        for name, expected in seen.items():
            async with as_key(models, name) as http:
                assert await listed(http) == [expected, expected]
                for model in ("qwen3:8b", "fast", "gpt-5", "smart", "claude"):
                    answer = await http.get(f"/v1/models/{model}")
                    assert answer.status_code == (200 if model in expected else 404)
        async with as_key(models, "all") as http:
            assert await listed(http) == [{"qwen3:8b", "fast", "gpt-5", "smart", "claude"}] * 2

    @pytest.mark.parametrize("path", [path for path in DOORS if path != "/api/cache/invalidate"])
    @pytest.mark.parametrize("model", ["gpt-5", "smart", "openai/gpt-5", "claude", "absent", "never"])
    async def test_another_model_does_not_exist(
        self, models: Running, backend: FakeBackend, path: str, model: str
    ) -> None:
        before = len(backend.turns)
        async with as_key(models, "ann") as ann, as_key(models, "none") as none:
            for http in (ann, none):
                if (http, model) == (ann, "smart"):
                    continue  # Its fallback is allowed.
                answer = await http.post(path, json={**DOORS[path], "model": model})
                # As OpenAI's Responses API puts it, and everything else.
                assert answer.status_code == (400 if path.startswith("/v1/responses") else 404), answer.text
                assert not any(other in answer.text.replace(model, "") for other in ("gpt", "claude", "smart"))
                if not is_ollamas(path):
                    assert_error(answer, answer.status_code, code="model_not_found")
        assert len(backend.turns) == before

    async def test_a_fallback_is_used_by_whoever_may_use_it(self, models: Running, backend: FakeBackend) -> None:
        async with as_key(models, "ann") as ann:
            response = await ann.post(URL, json=turn(model="smart"))
            assert (response.status_code, response.headers["x-nomyo-model"]) == (200, "qwen3:8b")
            await models.http.post("/api/endpoints/a/drain")
            for endpoint in models.app.state.pool.endpoints.values():
                endpoint.draining = "qwen3:8b" in endpoint.models
            models.app.state.pool.line.most = 0
            assert_error(await ann.post(URL, json=turn(model="qwen3:8b")), 429)
            answer = await models.http.post(URL, json=turn(model="qwen3:8b"))
            assert answer.headers["x-nomyo-model"] == "claude"

    async def test_an_alias_is_the_model_that_it_stands_for(self, models: Running) -> None:
        for name in ("ann", "fast"):
            async with as_key(models, name) as http:
                for model in ("fast", "qwen3:8b", "openai/fast"):
                    assert (await http.post(URL, json=turn(model=model))).status_code == 200

    async def test_a_socket_may_ask_for_no_other_either(self, models: Running) -> None:
        openai = models.openai.with_options(api_key=secret_of("ann"))
        async with openai.responses.connect() as connection:
            for model, kind in (("gpt-5", "error"), ("fast", "response.created")):
                await connection.response.create(**turn(model=model))
                event: Any = await connection.recv()
                assert event.type == kind
                if kind == "error":
                    assert event.error.code == "model_not_found"
