"""vLLM: vllm-project/vllm entrypoints/openai, ModelCard."""

from __future__ import annotations

from types import MappingProxyType

from backends.kinds.described import listed_capabilities
from backends.kinds.kind import Kind
from backends.kinds.server import Discovery, ModelFacts, Server, context_in, text_of
from backends.kinds.words import AUDIO, IMAGES, TOOLS, Words


class VLLM(Kind):
    async def discover(self, server: Server) -> Discovery:
        # A LoRA adapter names the model that it belongs to, and has no length.
        rows, version = await server.listing("/v1/models", "data", server.version("/version"))
        lengths = {row.get("id"): context_in(row) for row in rows if isinstance(row.get("id"), str)}
        models = {}
        for row in rows:
            if name := text_of(row.get("id")):
                models[name] = ModelFacts(
                    True,
                    lengths[name] or lengths.get(text_of(row.get("parent"))),
                    capabilities=listed_capabilities(row),
                )
        return Discovery(models, version=version)


KIND = VLLM(
    "vllm",
    adds_v1=True,
    carries=frozenset({"image", "audio"}),
    reasoning_key="reasoning",
    option_names=MappingProxyType({"repeat_penalty": "repetition_penalty"}),
    owner="vllm",
    words=Words(
        overflow=(
            "the model's context length is only",  # 0.16
            "longer than the maximum model length",  # its engine
            "max_tokens must be at least 1, got -",  # 0.4: what was left for the answer
            "cannot be greater than max_model_len",
            "too long to fit into the model",  # of several modalities
        ),
        limits=(
            r"max_model_len\D{0,30}(\d{1,11})",
            r"maximum model length of (\d{1,11})",
            r"context length (?:is only|of only|of) (\d{1,11})",  # LM Studio's, too
            r"\(context length (\d{1,11})",
        ),
        prompts=(r"\(total length (\d{1,11})",),
        # It cuts what it counts right behind what it could take.
        counted_up_to=(r"maximum input length of (\d{1,11}) tokens",),
        cannot=(
            ("tool choice requires --enable-auto-tool-choice", TOOLS),
            ("requires --tool-call-parser", TOOLS),
            ("is not a multimodal model", IMAGES),
            ("at most 0 image(s)", IMAGES),
            ("at most 0 audio(s)", AUDIO),
        ),
    ),
)
