"""The kinds of backend: a row of facts each. Adding one is adding a row (and its name to `config.KindName`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from core.config import EndpointConfig
from requests.messages import EVERY_PART, THINK_TAGS


@dataclass(frozen=True)
class Kind:
    """What is true of every server of a kind."""

    name: str
    # Speaks the Responses API itself: requests go out as they came.
    native: bool = False
    # `/v1` is put behind the configured URL; other kinds are given with it, wherever their API begins.
    adds_v1: bool = False
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
    # The front doors that it does not have, as paths below /v1.
    lacks: frozenset[str] = frozenset()
    # It takes the URLs of images; others are given the images.
    fetches_images: bool = True


KINDS = {
    kind.name: kind
    for kind in (
        # Until it was asked: nothing is sent there.
        Kind("auto", adds_v1=True),
        Kind(
            "ollama",
            adds_v1=True,
            carries=frozenset({"image"}),
            reasoning_key="reasoning",
            efforts=("none", "low", "medium", "high"),
            think_tags=True,
            lacks=frozenset({"/rerank"}),
            fetches_images=False,
        ),
        Kind(
            "llama.cpp",
            adds_v1=True,
            carries=frozenset({"image", "audio"}),
            streams_always=True,
            count_path="/chat/completions/input_tokens",
        ),
        # A proxy before llama.cpp servers, which it starts when they are needed.
        Kind(
            "llama-swap",
            adds_v1=True,
            carries=frozenset({"image", "audio"}),
            streams_always=True,
            think_tags=True,
        ),
        Kind("vllm", adds_v1=True, carries=frozenset({"image", "audio"}), reasoning_key="reasoning", think_tags=True),
        Kind(
            "lmstudio",
            adds_v1=True,
            carries=frozenset({"image"}),
            think_tags=True,
            lacks=frozenset({"/rerank"}),
            fetches_images=False,
        ),
        Kind("openai-chat", think_tags=True),
        Kind("openai", native=True, count_path="/responses/input_tokens", lacks=frozenset({"/rerank"})),
    )
}


def kind_of(config: EndpointConfig, name: str | None = None) -> Kind:
    """The facts of an endpoint: those of its kind, but for what its settings say. `name` is the kind where they leave it open."""
    facts: dict[str, Any] = {}
    if config.reasoning_efforts is not None:
        facts["efforts"] = config.reasoning_efforts
    if config.reasoning_replay is not None:
        facts["reasoning_key"] = REPLAY_KEYS.get(config.reasoning_replay, config.reasoning_replay)
    if config.structured_outputs is not None:
        facts["structured_outputs"] = config.structured_outputs
    return replace(KINDS[name or config.kind], **facts)


REPLAY_KEYS = {"think_tags": THINK_TAGS, "none": None}
