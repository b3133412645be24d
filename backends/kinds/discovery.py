"""What a model server has: asked in its own way, and answered in ours.

    probe(get_json)                  the kind of an unknown server, once
    discover(kind, get_json, memory) its models, which are loaded, their context, how much it runs at once
    name_in(models, wanted, kind)    what it calls a model that a client asked for

`get_json(path)` is GET below the server's root: where `/v1` begins for the local kinds, the configured URL for `openai` and
`openai-chat`. It raises an `APIError`. Nothing that is asked here makes a server load, wake or keep a model.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from core.errors import APIError, BackendError, BackendRefused

GetJson = Callable[[str], Awaitable[Any]]
Row = dict[str, Any]

# How long the listing waits for the answers beside it.
GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a server says of a model. None: it does not say."""

    # In memory now. A model of another server, behind this one, is neither loaded nor unloaded.
    loaded: bool | None = None
    # The tokens that one request and its answer may have.
    context: int | None = None
    # Other names that the server knows it by.
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Discovery:
    # By the server's own names; those that embed, rank or speak are among them.
    models: dict[str, ModelFacts]
    # How many requests the server runs at once.
    slots: int | None = None
    version: str | None = None


@dataclass(slots=True)
class Memory:
    """What a server need not be asked again: the paths that it does not have, and its version. One an endpoint. A server that
    fails may come back as another, so `discover` forgets it all then."""

    refused: set[str] = field(default_factory=set)
    version: str | None = None

    def forget(self) -> None:
        self.refused.clear()
        self.version = None


async def discover(kind_name: str, get_json: GetJson, memory: Memory | None = None) -> Discovery:
    """What a server of this kind has. A listing that fails raises an `APIError`; whatever else fails leaves a fact unknown."""
    memory = memory if memory is not None else Memory()
    try:
        return await _DISCOVERIES[kind_name](_Server(get_json, memory))
    except APIError:
        memory.forget()
        raise


class _Server:
    def __init__(self, get_json: GetJson, memory: Memory) -> None:
        self._get_json = get_json
        self._memory = memory

    async def listing(self, path: str, key: str, *beside: Coroutine[Any, Any, Any]) -> list[Any]:
        """The rows under `key` of the answer at `path`, then what the questions beside it gave, None for those that take too
        long."""
        tasks = [asyncio.create_task(question) for question in beside]
        try:
            rows = _listed(await self._get_json(path), key)
            if tasks:
                await asyncio.wait(tasks, timeout=GRACE_S)
            return [rows, *(task.result() if task.done() else None for task in tasks)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def maybe(self, *paths: str) -> Row | None:
        """The first answer that one of the paths gives."""
        for path in paths:
            if path in self._memory.refused:
                continue
            try:
                answer = await self._get_json(path)
            except APIError as error:
                if _is_missing(error):
                    self._memory.refused.add(path)
                continue
            if _is_unexpected(answer):
                self._memory.refused.add(path)
            elif isinstance(answer, dict):
                return answer
        return None

    async def version(self, path: str) -> str | None:
        if self._memory.version is None:
            self._memory.version = _text((await self.maybe(path) or {}).get("version"))
        return self._memory.version


# ── the kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _ollama(server: _Server) -> Discovery:
    # ollama/ollama api/types.go: ListResponse, ProcessModelResponse. A model's context is known when it is loaded.
    rows, ps, version = await server.listing(
        "/api/tags", "models", server.maybe("/api/ps"), server.version("/api/version")
    )
    running = {name: row for row in _rows(ps, "models") if (name := _text(row.get("name")) or _text(row.get("model")))}
    models = {}
    for row in rows:
        if not (name := _text(row.get("name")) or _text(row.get("model"))):
            continue
        run = running.get(name)
        elsewhere = ps is None or row.get("remote_host") or row.get("remote_model")  # ollama.com runs its cloud models
        models[name] = ModelFacts(
            loaded=None if elsewhere else run is not None,
            context=_count(run.get("context_length")) if run else None,
        )
    return Discovery(models, version=version)


async def _llama_cpp(server: _Server) -> Discovery:
    """llama-server: one model, or as a router several, each with its status.

    /slots is not asked: /props has its numbers too, and answers while all slots are busy.
    """
    # ggml-org/llama.cpp tools/server: server-context.cpp (get_props, get_models), server-models.cpp (get_router_models).
    rows, props = await server.listing("/v1/models", "data", server.maybe("/props"))
    props = props or {}
    router = props.get("role") == "router" or any("status" in row for row in rows)
    models = {}
    for row in rows:
        status = _text(_dict(row.get("status")).get("value"))
        if not (name := _text(row.get("id"))) or status == "downloading":
            continue
        aliases = row.get("aliases")
        known = [alias for alias in aliases if _text(alias)] if isinstance(aliases, list) else []
        if not router and len(rows) == 1 and (file := _text(props.get("model_path"))):
            known.append(re.split(r"[/\\]", file)[-1])
        models[name] = ModelFacts(
            # `sleeping`: the process lives, but its model is out of memory.
            loaded=(status == "loaded" if status else None) if router else not props.get("is_sleeping"),
            context=_count(_dict(row.get("meta")).get("n_ctx")) or (None if router else _n_ctx(props)),
            aliases=tuple(alias for alias in dict.fromkeys(known) if alias != name),
        )
    version = _text(props.get("build_info"))
    if not router:
        return Discovery(models, _count(props.get("total_slots")), version)
    unknown = [name for name, facts in models.items() if facts.loaded and facts.context is None]
    answers = await asyncio.gather(*(_props_of(server, name) for name in unknown))
    for name, answer in zip(unknown, answers, strict=True):
        models[name] = ModelFacts(True, _n_ctx(answer or {}), models[name].aliases)
    return Discovery(models, version=version)


async def _props_of(server: _Server, model: str) -> Row | None:
    # Without autoload: it may have been unloaded since.
    try:
        async with asyncio.timeout(GRACE_S):
            return await server.maybe(f"/props?model={quote(model, safe='')}&autoload=false")
    except TimeoutError:
        return None


def _n_ctx(props: Row) -> int | None:
    """The context of a slot."""
    return _count(_dict(props.get("default_generation_settings")).get("n_ctx"))


async def _llama_swap(server: _Server) -> Discovery:
    """Its models' own servers, below /upstream, are not asked: that would load them."""
    # mostlygeek/llama-swap internal/server/api.go: modelRecord, runningModel.
    rows, running, version = await server.listing(
        "/v1/models", "data", server.maybe("/running"), server.version("/api/version")
    )
    ready = {_text(row.get("model")) for row in _rows(running, "running") if row.get("state") == "ready"}
    models = {}
    for row in rows:
        if name := _text(row.get("id")):
            peer = _dict(_dict(row.get("meta")).get("llamaswap")).get("peerID")
            models[name] = ModelFacts(None if running is None or peer else name in ready, _context(row))
    return Discovery(models, version=version)


async def _vllm(server: _Server) -> Discovery:
    # vllm-project/vllm entrypoints/openai: ModelCard. A LoRA adapter names the model that it belongs to, and has no length.
    rows, version = await server.listing("/v1/models", "data", server.version("/version"))
    lengths = {row.get("id"): _context(row) for row in rows if isinstance(row.get("id"), str)}
    models = {}
    for row in rows:
        if name := _text(row.get("id")):
            models[name] = ModelFacts(True, lengths[name] or lengths.get(_text(row.get("parent"))))
    return Discovery(models, version=version)


async def _lmstudio(server: _Server) -> Discovery:
    """/v1/models has what can be asked for: every model, or only the loaded ones where loading on demand is off."""
    # lmstudio-ai/docs 1_developer: rest-api v0 (0.3.6 and newer), 2_rest/list.md for v1 (0.4 and newer).
    rows, native = await server.listing("/v1/models", "data", server.maybe("/api/v0/models", "/api/v1/models"))
    facts: dict[str | None, ModelFacts] = {}
    for row in _rows(native, "data"):
        loaded = row.get("state") == "loaded"
        facts[_text(row.get("id"))] = ModelFacts(loaded, _count(row.get("loaded_context_length")) if loaded else None)
    for row in _rows(native, "models"):
        instances = _rows(row, "loaded_instances")
        lengths = [_count(_dict(instance.get("config")).get("context_length")) for instance in instances]
        facts[_text(row.get("key"))] = ModelFacts(bool(instances), min(filter(None, lengths), default=None))
        for instance, length in zip(instances, lengths, strict=True):
            facts.setdefault(_text(instance.get("id")), ModelFacts(True, length))
    return Discovery({name: facts.get(name, ModelFacts()) for row in rows if (name := _text(row.get("id")))})


async def _openai(server: _Server) -> Discovery:
    (rows,) = await server.listing("/models", "data")
    return Discovery({name: ModelFacts(context=_context(row)) for row in rows if (name := _text(row.get("id")))})


_DISCOVERIES: dict[str, Callable[[_Server], Awaitable[Discovery]]] = {
    "ollama": _ollama,
    "llama.cpp": _llama_cpp,
    "llama-swap": _llama_swap,
    "vllm": _vllm,
    "lmstudio": _lmstudio,
    "openai": _openai,
    "openai-chat": _openai,
}


# ── an unknown server ────────────────────────────────────────────────────────────────────────────────────────────────

# Who owns every model of the listing at /v1/models, in these servers' words.
_OWNERS = {"llamacpp": "llama.cpp", "llama-swap": "llama-swap", "vllm": "vllm"}


async def probe(get_json: GetJson, url: str = "") -> str:
    """The kind of the server whose API begins at `/v1` below the root of `get_json`; `url` is what was configured.

    One question is enough for most, two for Ollama and LM Studio; a server without models is asked four more. Raises an
    `APIError` when nothing can be said: the server is away, still loads, wants another key, or has no API there.
    """
    if urlsplit(url).hostname == "api.openai.com":
        return "openai"
    server = _Server(get_json, Memory())
    refusal: BackendError | None = None
    listing: Any = None
    try:
        listing = await get_json("/v1/models")
    except BackendError as error:
        if not _is_missing(error) and not isinstance(error, BackendRefused):
            raise
        refusal = error
    if refusal is None and not _is_unexpected(listing):
        rows = _listed(listing, "data")
        owners = {_text(row.get("owned_by")) for row in rows}
        if len(owners) == 1 and (kind := _OWNERS.get(owners.pop() or "")):
            return kind
        if rows and all(_is_ollamas(row) for row in rows):
            # A proxy may let nothing but /v1 through.
            return "ollama" if "models" in (await server.maybe("/api/tags") or {}) else "openai-chat"
        if rows and all(row.get("owned_by") == "organization_owner" for row in rows):
            native = await server.maybe("/api/v0/models", "/api/v1/models") or {}
            return "lmstudio" if "data" in native or "models" in native else "openai-chat"
        if rows:
            return "openai-chat"
    kind = await _kind_by_paths(get_json)
    if kind is None and refusal:
        raise refusal
    return kind or "openai-chat"


async def _kind_by_paths(get_json: GetJson) -> str | None:
    """The kind of a server that lists nothing, by the paths that only it has."""
    running, props, tags, native = await asyncio.gather(
        *(_answer(get_json, path) for path in ("/running", "/props", "/api/tags", "/api/v0/models"))
    )
    if _is_unexpected(running):
        return "lmstudio"
    if isinstance(running.get("running"), list):
        return "llama-swap"
    if "default_generation_settings" in props:
        return "llama.cpp"
    # llama-server had an /api/tags of its own for a while, with `data` beside the models.
    if "models" in tags and "data" not in tags:
        return "ollama"
    return "lmstudio" if "data" in native else None


async def _answer(get_json: GetJson, path: str) -> Row:
    try:
        return _dict(await get_json(path))
    except APIError:
        return {}


def _is_ollamas(row: Row) -> bool:
    """Ollama's names end in a tag, and their owner is the namespace in them: `llama3:8b` is `library`'s."""
    name, _, tag = (_text(row.get("id")) or "").rpartition(":")
    return bool(tag) and "/" not in tag and row.get("owned_by") == (["library", *name.split("/")[:-1]])[-1]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_QUANT = re.compile(
    r"[-._:](?:i1[-._])?(?:ud[-._])?("
    r"(?:i?q[1-8]|tq[12])(?:_[0-9a-z]{1,3}){0,3}|bf16|f16|f32|fp16|fp32|mxfp4(?:_moe)?|nvfp4"
    r")$"
)


def name_in(models: Mapping[str, ModelFacts], wanted: str, kind_name: str) -> str | None:
    """The server's name for the model that a client calls `wanted`, or None if it has none, or more than one that it could be."""
    if wanted in models:
        return wanted
    if kind_name == "ollama":
        name, colon, tag = wanted.partition(":")
        other = f"{name}:latest" if not colon else name if tag == "latest" else wanted
        return other if other in models else None
    named = [name for name, facts in models.items() if wanted in facts.aliases]
    if kind_name != "llama.cpp" or len(named) == 1:
        return named[0] if len(named) == 1 else None
    stem, quant = _split(wanted)
    alike: dict[str, str] = {}
    for name, facts in models.items():
        for known in (name, *facts.aliases):
            its_stem, its_quant = _split(known)
            if its_stem == stem:
                alike[name] = alike.get(name) or its_quant
    same = [name for name, its_quant in alike.items() if its_quant == quant]
    # Two quantisations are two models; one that is not named may be any.
    near = same or [name for name, its_quant in alike.items() if not its_quant or not quant]
    return near[0] if len(near) == 1 else None


@lru_cache(maxsize=4096)
def _split(name: str) -> tuple[str, str]:
    """A model's name without what llama-server's users write around it (folder or organisation, `GGUF`, quantisation, case), and
    the quantisation in it or "".

    `ggml-org/gemma-3-4b-it-GGUF:Q4_K_M`, `/models/gemma-3-4b-it-Q4_K_M.gguf` and `gemma-3-4b-it` have one name.
    """
    stem = name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
    stem = _SHARD.sub("", stem.removesuffix(":latest").removesuffix(".gguf"))
    # llama.cpp's old cache: the repository's name, then the file's.
    stem = stem.rpartition("-gguf_")[2]
    quant = ""
    if found := _QUANT.search(stem):
        stem, quant = stem[: found.start()], found[1]
    stem = stem.removesuffix(".gguf").removesuffix("-gguf").removesuffix("_gguf")
    if not quant and (found := _QUANT.search(stem)):
        stem, quant = stem[: found.start()], found[1]
    return stem, quant


# ── reading answers ──────────────────────────────────────────────────────────────────────────────────────────────────


def _listed(answer: Any, key: str) -> list[Row]:
    """The rows of a listing: below `key`, where null is an empty one, or bare (Together). Raises if it is no listing."""
    rows = answer.get(key, answer) if isinstance(answer, dict) else answer
    if rows is None and isinstance(answer, dict):
        rows = []
    if not isinstance(rows, list):
        raise BackendError("The backend's answer is no list of models.", code="backend_bad_answer")
    return [row for row in rows if isinstance(row, dict)]


def _rows(answer: Any, key: str) -> list[Row]:
    rows = answer.get(key) if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _is_missing(error: APIError) -> bool:
    """A 404, under either of the names that the client has for it."""
    return error.code == "backend_path_not_found" or (isinstance(error, BackendRefused) and error.status == 404)


def _is_unexpected(answer: Any) -> bool:
    """LM Studio's answer to a path that it does not know, a 200."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, str) and error.startswith("Unexpected endpoint or method")


def _context(row: Row) -> int | None:
    """The context in a row of a `/models` listing: vLLM's and SGLang's word, OpenRouter's, Groq's, Mistral's, llama.cpp's."""
    for key in ("max_model_len", "context_length", "context_window", "max_context_length"):
        if length := _count(row.get(key)):
            return length
    return _count(_dict(row.get("meta")).get("n_ctx"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _dict(value: Any) -> Row:
    return value if isinstance(value, dict) else {}
