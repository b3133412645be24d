"""LM Studio. lmstudio-ai/docs 1_developer: rest-api v0 (0.3.6 and newer), 2_rest/list.md for v1 (0.4 and newer)."""

from __future__ import annotations

from backends.kinds.kind import Kind
from backends.kinds.server import (
    Discovery,
    ModelFacts,
    Row,
    Server,
    count,
    dict_of,
    is_unexpected,
    rows_of,
    text_of,
)
from backends.kinds.words import Words


class LMStudio(Kind):
    async def discover(self, server: Server) -> Discovery:
        """/v1/models has what can be asked for: every model, or only the loaded ones where loading on demand is off."""
        rows, native = await server.listing("/v1/models", "data", server.maybe(*self.marks))
        facts: dict[str | None, ModelFacts] = {}
        for row in rows_of(native, "data"):
            loaded = row.get("state") == "loaded"
            facts[text_of(row.get("id"))] = ModelFacts(
                loaded, count(row.get("loaded_context_length")) if loaded else None
            )
        for row in rows_of(native, "models"):
            instances = rows_of(row, "loaded_instances")
            lengths = [count(dict_of(instance.get("config")).get("context_length")) for instance in instances]
            facts[text_of(row.get("key"))] = ModelFacts(bool(instances), min(filter(None, lengths), default=None))
            for instance, length in zip(instances, lengths, strict=True):
                facts.setdefault(text_of(instance.get("id")), ModelFacts(True, length))
        return Discovery({name: facts.get(name, ModelFacts()) for row in rows if (name := text_of(row.get("id")))})

    def is_mark(self, answer: Row) -> bool:
        return is_unexpected(answer) or "data" in answer or "models" in answer


KIND = LMStudio(
    "lmstudio",
    adds_v1=True,
    carries=frozenset({"image"}),
    think_tags=True,
    lacks=frozenset({"/rerank"}),
    fetches_images=False,
    owner="organization_owner",
    marks=("/api/v0/models", "/api/v1/models"),
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
