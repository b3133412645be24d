"""llama-swap: a proxy before llama.cpp servers, which it starts when they are needed. mostlygeek/llama-swap
internal/server/api.go: modelRecord, runningModel."""

from __future__ import annotations

from urllib.parse import quote

from backends.kinds.described import listed_capabilities
from backends.kinds.kind import Kind
from backends.kinds.server import (
    Discovery,
    GetJson,
    ModelFacts,
    PostJson,
    Row,
    Server,
    context_in,
    dict_of,
    is_missing,
    rows_of,
    text_of,
)
from core.errors import APIError


class LlamaSwap(Kind):
    async def discover(self, server: Server) -> Discovery:
        """Its models' own servers, below /upstream, are not asked: that would load them."""
        rows, running, version = await server.listing(
            "/v1/models", "data", server.maybe("/running"), server.version("/api/version")
        )
        ready = {text_of(row.get("model")) for row in rows_of(running, "running") if row.get("state") == "ready"}
        models = {}
        for row in rows:
            if name := text_of(row.get("id")):
                peer = dict_of(dict_of(row.get("meta")).get("llamaswap")).get("peerID")
                models[name] = ModelFacts(
                    None if running is None or peer else name in ready,
                    context_in(row),
                    capabilities=listed_capabilities(row),
                )
        return Discovery(models, version=version)

    async def unload(self, model: str, get_json: GetJson, post_json: PostJson) -> None:
        """Stops the model's server. Older versions can only stop all of them."""
        try:
            await post_json(f"/api/models/unload/{quote(model)}", {})
        except APIError as error:
            raise (self.cannot_unload() if is_missing(error) else error) from None

    def is_mark(self, answer: Row) -> bool:
        return isinstance(answer.get("running"), list)


KIND = LlamaSwap(
    "llama-swap",
    adds_v1=True,
    chooses_by_name=False,
    carries=frozenset({"image", "audio"}),
    streams_always=True,
    owner="llama-swap",
    marks=("/running",),
)
