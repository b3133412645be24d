"""Ollama: api/types.go and middleware/openai.go of ollama/ollama."""

from __future__ import annotations

from collections.abc import Mapping

from backends.kinds.kind import Kind
from backends.kinds.server import Discovery, GetJson, ModelFacts, PostJson, Row, Server, count, rows_of, text_of
from backends.kinds.words import AUDIO, IMAGES, THINKING, Words


class Ollama(Kind):
    async def discover(self, server: Server) -> Discovery:
        """A model's context is known when it is loaded."""
        # ListResponse, ProcessModelResponse.
        rows, ps, version = await server.listing(
            "/api/tags", "models", server.maybe("/api/ps"), server.version("/api/version")
        )
        running = {name: row for row in rows_of(ps, "models") if (name := _name(row))}
        models = {}
        for row in rows:
            if not (name := _name(row)):
                continue
            run = running.get(name)
            # ollama.com runs its cloud models.
            elsewhere = ps is None or row.get("remote_host") or row.get("remote_model")
            models[name] = ModelFacts(
                loaded=None if elsewhere else run is not None,
                context=count(run.get("context_length")) if run else None,
                row=row,
                run=run or {},
            )
        return Discovery(models, version=version)

    async def unload(self, model: str, get_json: GetJson, post_json: PostJson) -> None:
        """By a request that asks nothing, and keeps nothing."""
        await post_json("/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def lists(self, rows: list[Row]) -> bool:
        return all(map(_is_ollamas, rows))

    def is_mark(self, answer: Row) -> bool:
        # llama-server had an /api/tags of its own for a while, with `data` beside the models.
        return "models" in answer and "data" not in answer

    def name_in(self, models: Mapping[str, ModelFacts], wanted: str) -> str | None:
        """Also in another case, and without the tag that it adds itself."""
        if (found := super().name_in(models, wanted)) is not None:
            return found
        tagged = wanted if ":" in wanted else f"{wanted}:latest"
        if tagged in models:
            return tagged
        alike = [name for name in models if name.casefold() in (wanted.casefold(), tagged.casefold())]
        return alike[0] if len(alike) == 1 else None


def _name(row: Row) -> str | None:
    return text_of(row.get("name")) or text_of(row.get("model"))


def _is_ollamas(row: Row) -> bool:
    """Ollama's names end in a tag, and their owner is the namespace in them: `llama3:8b` is `library`'s."""
    name, _, tag = (text_of(row.get("id")) or "").rpartition(":")
    return bool(tag) and "/" not in tag and row.get("owned_by") == (["library", *name.split("/")[:-1]])[-1]


KIND = Ollama(
    "ollama",
    speaks_ollama=True,
    adds_v1=True,
    chooses_by_name=False,
    carries=frozenset({"image"}),
    reasoning_key="reasoning",
    efforts=("none", "low", "medium", "high"),
    lacks=frozenset({"/rerank"}),
    fetches_images=False,
    marks=("/api/tags",),
    is_imitated=True,
    words=Words(
        overflow=(
            "input length exceeds the context length",
            "input length exceeds maximum context length",  # embeddings
            "exceeded max context length",  # its cloud
        ),
        cannot=(
            ("missing data required for image input", IMAGES),
            ("does not support vision", IMAGES),
            ("does not support audio", AUDIO),
            ("does not support thinking", THINKING),
        ),
        # think
        parameters=(r"^([A-Za-z]\w{0,63}) value \"\w{1,32}\" is not supported",),
    ),
)
