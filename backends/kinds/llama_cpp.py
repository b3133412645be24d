"""llama.cpp's llama-server: one model, or as a router several. ggml-org/llama.cpp tools/server: server-context.cpp
(get_props, get_models), server-models.cpp (get_router_models)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from backends.kinds.described import (
    EMBEDS,
    Capabilities,
    capabilities_of,
    listed_capabilities,
    parameter_size,
    row_of,
)
from backends.kinds.kind import Kind
from backends.kinds.server import (
    Discovery,
    GetJson,
    ModelFacts,
    PostJson,
    Row,
    Server,
    count,
    dict_of,
    is_missing,
    text_of,
)
from backends.kinds.words import AUDIO, IMAGES, TOOLS, Words
from core.errors import APIError


class LlamaCpp(Kind):
    async def discover(self, server: Server) -> Discovery:
        """/slots is not asked: /props has its numbers too, and answers while all slots are busy."""
        rows, props = await server.listing("/v1/models", "data", server.maybe("/props"))
        props = props or {}
        is_router = props.get("role") == "router" or any("status" in row for row in rows)
        models = {}
        for row in rows:
            status = text_of(dict_of(row.get("status")).get("value"))
            if not (name := text_of(row.get("id"))) or status == "downloading":
                continue
            known = _aliases(row)
            if not is_router and len(rows) == 1 and (file := text_of(props.get("model_path"))):
                known.append(re.split(r"[/\\]", file)[-1])
            models[name] = ModelFacts(
                # `sleeping`: the process lives, but its model is out of memory.
                loaded=(status == "loaded" if status else None) if is_router else not props.get("is_sleeping"),
                context=count(dict_of(row.get("meta")).get("n_ctx")) or (None if is_router else _n_ctx(props)),
                aliases=tuple(alias for alias in dict.fromkeys(known) if alias != name),
                row=_row(row),
                capabilities=_capabilities(row, {} if is_router else props),
            )
        version = text_of(props.get("build_info"))
        if not is_router:
            return Discovery(models, count(props.get("total_slots")), version)
        unknown = [name for name, facts in models.items() if facts.loaded and facts.context is None]
        # Without autoload: it may have been unloaded since.
        answers = await asyncio.gather(
            *(server.soon(f"/props?model={quote(name, safe='')}&autoload=false") for name in unknown)
        )
        for name, answer in zip(unknown, answers, strict=True):
            can = _capabilities(models[name].row, answer) if answer else models[name].capabilities
            models[name] = replace(models[name], context=_n_ctx(answer or {}), capabilities=can)
        return Discovery(models, version=version)

    async def unload(self, model: str, get_json: GetJson, post_json: PostJson) -> None:
        """Where it is a router: a server of one model keeps it."""
        try:
            await post_json("/models/unload", {"model": model})
        except APIError as error:
            raise (self.cannot_unload() if is_missing(error) else error) from None

    def is_mark(self, answer: Row) -> bool:
        return "default_generation_settings" in answer

    def name_in(self, models: Mapping[str, ModelFacts], wanted: str) -> str | None:
        """Also in another spelling."""
        if (found := super().name_in(models, wanted)) is not None:
            return found
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


def _aliases(row: Row) -> list[str]:
    aliases: Any = row.get("aliases")
    return [alias for alias in aliases if text_of(alias)] if isinstance(aliases, list) else []


def _row(row: Row) -> Row:
    meta = dict_of(row.get("meta"))
    size, quant = parameter_size(count(meta.get("n_params"))), text_of(meta.get("ftype"))
    return row_of(size=count(meta.get("size")), format="gguf", parameter_size=size, quantization_level=quant)


def _capabilities(row: Row, props: Row) -> Capabilities | None:
    """By /props, which has what the model's template can do; else by the listing."""
    modalities, caps = dict_of(props.get("modalities")), dict_of(props.get("chat_template_caps"))
    template = text_of(props.get("chat_template")) or ""
    tools = caps.get("supports_tools", True) is True
    thinking = caps.get("supports_reasoning_effort") is True or any(word in template for word in _THINKS)
    listed = listed_capabilities(row, tools=tools, thinking=thinking)
    if listed == EMBEDS or not modalities:
        return listed
    vision, audio = (modalities.get(what) is True for what in ("vision", "audio"))
    return capabilities_of(tools=tools, vision=vision, audio=audio, thinking=thinking)


# In the template of a model that thinks.
_THINKS = ("enable_thinking", "<think>")


def _n_ctx(props: Row) -> int | None:
    """The context of a slot."""
    return count(dict_of(props.get("default_generation_settings")).get("n_ctx"))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_QUANT = re.compile(
    r"[-._:](?:i1[-._])?(?:ud[-._])?("
    r"(?:i?q[1-8]|tq[12])(?:_[0-9a-z]{1,3}){0,3}|bf16|f16|f32|fp16|fp32|mxfp4(?:_moe)?|nvfp4"
    r")$"
)


@lru_cache(maxsize=4096)
def _split(name: str) -> tuple[str, str]:
    """A model's name without what llama-server's users write around it (folder or organisation, `GGUF`, quantisation,
    case), and the quantisation in it or "".

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


KIND = LlamaCpp(
    "llama.cpp",
    adds_v1=True,
    chooses_by_name=False,
    carries=frozenset({"image", "audio"}),
    streams_always=True,
    count_path="/chat/completions/input_tokens",
    owner="llamacpp",
    marks=("/props",),
    words=Words(
        overflow=(
            "exceed_context_size_error",  # also of Ollama 0.34 and newer, which hands it on as JSON in a text
            "exceeds the available context size",
            "context size has been exceeded",  # while it answers
            "is too large to process. increase the physical batch size",  # embeddings
        ),
        limits=(
            r"n_ctx\W{1,6}(\d{1,11})",  # its field, and LM Studio's text
            r"available context size \((\d{1,11})",
            r"current batch size: (\d{1,11})",
        ),
        prompts=(r"n_prompt_tokens\W{1,6}(\d{1,11})",),
        cannot=(
            ("tools param requires --jinja", TOOLS),
            ("tool_choice param requires --jinja", TOOLS),
            ("image input is not supported", IMAGES),
            ("audio input is not supported", AUDIO),
        ),
        parameters=(r"unsupported param: ([A-Za-z][\w.\[\]]{0,63})",),
    ),
)
