"""Another nomyo-router: it speaks Responses, and is asked for its models as one router asks another (core/hops.py)."""

from __future__ import annotations

from typing import Any

from backends.kinds.kind import Kind
from backends.kinds.server import Discovery, GetJson, ModelFacts, PostJson, Row, Server, count, dict_of, listed, text_of


class NomyoRouter(Kind):
    async def discover(self, server: Server) -> Discovery:
        """All is in one answer: its fleet's room for requests, and what it knows of each model."""
        answer = await server.answer("/v1/models")
        rows = listed(answer, "data")
        its = dict_of(dict_of(answer).get("nomyo"))
        known = dict_of(its.get("models"))
        names = [name for row in rows if (name := text_of(row.get("id")))]
        models = {name: _facts(dict_of(known.get(name))) for name in names}
        tools = its.get("tools")  # An older one leaves them out.
        return Discovery(
            models,
            count(its.get("max_concurrent")),
            router=text_of(its.get("router")),
            tools=frozenset(filter(None, map(text_of, tools))) if isinstance(tools, list) else None,
        )

    async def unload(self, model: str, get_json: GetJson, post_json: PostJson) -> None:
        """As Ollama's clients ask it to."""
        await post_json("/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def is_listing(self, answer: Any) -> bool:
        return isinstance(answer, dict) and isinstance(answer.get("nomyo"), dict)


def _facts(row: Row) -> ModelFacts:
    loaded, can = row.get("loaded"), row.get("capabilities")
    return ModelFacts(
        loaded if isinstance(loaded, bool) else None,
        count(row.get("context")),
        capabilities=tuple(name for name in can if text_of(name)) if isinstance(can, list) else None,
    )


KIND = NomyoRouter("nomyo", native=True, adds_v1=True, is_router=True, count_path="/responses/input_tokens")
