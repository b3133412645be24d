"""LM Studio. lmstudio-ai/docs 1_developer: rest-api v0 (0.3.6 and newer), 2_rest/list.md for v1 (0.4 and newer)."""

from __future__ import annotations

from dataclasses import replace

from backends.kinds.described import EMBEDS, Capabilities, capabilities_of, row_of
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
    is_unexpected,
    rows_of,
    text_of,
)
from backends.kinds.words import Words
from core.errors import APIError

V0, V1 = "/api/v0/models", "/api/v1/models"


class LMStudio(Kind):
    async def discover(self, server: Server) -> Discovery:
        """/v1/models has what can be asked for: every model, or only the loaded ones where loading on demand is off."""
        rows, native = await server.listing("/v1/models", "data", server.maybe(V1, V0))
        facts: dict[str | None, ModelFacts] = {}
        for row in rows_of(native, "data"):
            loaded = row.get("state") == "loaded"
            facts[text_of(row.get("id"))] = ModelFacts(
                loaded,
                count(row.get("loaded_context_length")) if loaded else None,
                row=row_of(
                    format=text_of(row.get("compatibility_type")),
                    family=text_of(row.get("arch")),
                    quantization_level=text_of(row.get("quantization")),
                ),
                capabilities=_capabilities_v0(row),
            )
        for row in rows_of(native, "models"):
            instances = rows_of(row, "loaded_instances")
            lengths = [count(dict_of(instance.get("config")).get("context_length")) for instance in instances]
            of_model = ModelFacts(
                bool(instances),
                min(filter(None, lengths), default=None),
                row=row_of(
                    size=count(row.get("size_bytes")),
                    format=text_of(row.get("format")),
                    family=text_of(row.get("architecture")),
                    parameter_size=text_of(row.get("params_string")),
                    quantization_level=text_of(dict_of(row.get("quantization")).get("name")),
                ),
                capabilities=_capabilities_v1(row),
            )
            facts[text_of(row.get("key"))] = of_model
            for instance, length in zip(instances, lengths, strict=True):
                facts.setdefault(text_of(instance.get("id")), replace(of_model, loaded=True, context=length))
        return Discovery({name: facts.get(name, ModelFacts()) for row in rows if (name := text_of(row.get("id")))})

    async def unload(self, model: str, get_json: GetJson, post_json: PostJson) -> None:
        """All instances of the model, or the one of that name. Needs 0.4."""
        try:
            answer = await get_json(V1)
        except APIError as error:
            raise (self.cannot_unload() if is_missing(error) else error) from None
        if is_unexpected(answer):
            raise self.cannot_unload()
        for row in rows_of(answer, "models"):
            for instance in rows_of(row, "loaded_instances"):
                if (id := text_of(instance.get("id"))) and model in (id, row.get("key")):
                    await post_json(f"{V1}/unload", {"instance_id": id})

    def is_mark(self, answer: Row) -> bool:
        return is_unexpected(answer) or "data" in answer or "models" in answer


def _capabilities_v0(row: Row) -> Capabilities | None:
    type, can = row.get("type"), row.get("capabilities")
    if type == "embeddings":
        return EMBEDS
    tools = not isinstance(can, list) or "tool_use" in can
    return capabilities_of(tools=tools, vision=type == "vlm") if text_of(type) else None


def _capabilities_v1(row: Row) -> Capabilities | None:
    type, can = row.get("type"), dict_of(row.get("capabilities"))
    if type == "embedding":
        return EMBEDS
    if not text_of(type):
        return None
    tools = can.get("trained_for_tool_use", True) is True
    return capabilities_of(tools=tools, vision=can.get("vision") is True, thinking=bool(can.get("reasoning")))


KIND = LMStudio(
    "lmstudio",
    adds_v1=True,
    chooses_by_name=False,
    carries=frozenset({"image"}),
    lacks=frozenset({"/rerank"}),
    fetches_images=False,
    owner="organization_owner",
    marks=(V0, V1),
    is_imitated=True,
    words=Words(
        overflow=(
            "context length of only",
            "is greater than the context length",
            "reached context length of",
        ),
        prompts=(
            r"keep the first (\d{1,11}) tokens",
            r"n_keep: (\d{1,11})",
        ),
        cannot=(("'response_format.type' must be", "response_format"),),
    ),
)
