"""The kinds of backend: a row of facts each. Adding one is adding a row (and its name to `config.KindName`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from config import EndpointConfig
from requests.messages import EVERY_PART, THINK_TAGS


@dataclass(frozen=True)
class Kind:
    """What is true of every server of a kind."""

    name: str
    # Speaks the Responses API itself: requests go out as they came.
    native: bool = False
    # `/v1` is put behind the configured URL; other kinds are given with it, wherever their API begins.
    adds_v1: bool = False
    # GET here, below the configured URL, lists the models: `{"data": [{"id"}]}` or Ollama's `{"models": [{"name"}]}`.
    models_path: str = "/models"
    # The content parts, other than text, that it can be given.
    carries: frozenset[str] = EVERY_PART
    # Where an assistant message of the history holds its reasoning.
    reasoning_key: str | None = "reasoning_content"
    # The words that it knows for how much to think, least first; None: all of them.
    efforts: tuple[str, ...] | None = None
    # What becomes of a JSON format: `native` (it can hold its model to one), `prompt` (the model is told, and its answer
    # checked) or `refuse`.
    structured_outputs: str = "native"
    # It may leave `<think>…</think>` at the start of its text.
    think_tags: bool = False
    # Asked to stream whether or not the client is: llama.cpp notices at once that nobody listens to a stream any more, but
    # to whole answers only when nothing else runs there.
    streams_always: bool = False
    # POST here, below the API's base, counts the input tokens of a request.
    count_path: str | None = None
    # `name` and `name:latest` are the same model.
    latest: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "ollama",
            adds_v1=True,
            models_path="/api/tags",
            carries=frozenset({"image"}),
            reasoning_key="reasoning",
            efforts=("none", "low", "medium", "high"),
            think_tags=True,
            latest=True,
        ),
        Kind(
            "llama.cpp",
            adds_v1=True,
            models_path="/v1/models",
            carries=frozenset({"image", "audio"}),
            streams_always=True,
            count_path="/chat/completions/input_tokens",
        ),
        Kind("openai-chat", think_tags=True),
        Kind("openai", native=True, count_path="/responses/input_tokens"),
    )
}


def kind_of(config: EndpointConfig) -> Kind:
    """The facts of an endpoint: those of its kind, but for what its settings say."""
    facts: dict[str, Any] = {}
    if config.reasoning_efforts is not None:
        facts["efforts"] = config.reasoning_efforts
    if config.reasoning_replay is not None:
        facts["reasoning_key"] = REPLAY_KEYS.get(config.reasoning_replay, config.reasoning_replay)
    if config.structured_outputs is not None:
        facts["structured_outputs"] = config.structured_outputs
    return replace(KINDS[config.kind], **facts)


REPLAY_KEYS = {"think_tags": THINK_TAGS, "none": None}


def models_of(kind: Kind, listing: Any) -> list[str]:
    """The model names in the answer to GET `models_path`, or none if it is no such answer."""
    if not isinstance(listing, dict):
        return []
    rows = listing.get("models" if kind.latest else "data")
    if not isinstance(rows, list):
        return []
    names = [row.get("name" if kind.latest else "id") for row in rows if isinstance(row, dict)]
    return [name for name in names if isinstance(name, str) and name]
