"""What a server lists of a model, in the words that Ollama's clients read: what it leaves out is left out.

row_of(…)             as a row of Ollama's /api/tags
capabilities_of(…)    what the model can do: `completion`, `tools`, `vision`, …
listed_capabilities   the same, of a row of /v1/models
"""

from __future__ import annotations

from typing import Any

from backends.kinds.server import Row, dict_of, text_of

Capabilities = tuple[str, ...]


def row_of(*, size: int | None = None, **details: str | None) -> Row:
    """A row of /api/tags without its name; `details` are those that Ollama has: `format`, `family`, `parameter_size`,
    `quantization_level`."""
    known = {name: value for name, value in details.items() if value}
    return {**({"size": size} if size else {}), **({"details": known} if known else {})}


def capabilities_of(*, tools: bool, vision: bool = False, audio: bool = False, thinking: bool = False) -> Capabilities:
    """What a model that answers in text can do."""
    more = {"tools": tools, "vision": vision, "audio": audio, "thinking": thinking}
    return ("completion", *(name for name, can in more.items() if can))


EMBEDS: Capabilities = ("embedding",)


def listed_capabilities(row: Row, *, tools: bool = True, thinking: bool = False) -> Capabilities | None:
    """By the modalities in a row of /v1/models: llama.cpp's and OpenRouter's `architecture`, others' own. None: it has
    none."""
    within = [dict_of(row.get("architecture")), row, dict_of(row.get("modalities"))]
    inputs = next(filter(None, (_texts(its.get("input_modalities") or its.get("input")) for its in within)), None)
    outputs = next(filter(None, (_texts(its.get("output_modalities") or its.get("output")) for its in within)), None)
    if outputs and all(output.startswith("embedding") for output in outputs):
        return EMBEDS
    if inputs is None:
        return None
    named = row.get("supported_parameters")
    if isinstance(named, list):  # OpenRouter's.
        tools, thinking = "tools" in named, "reasoning" in named
    return capabilities_of(tools=tools, vision="image" in inputs, audio="audio" in inputs, thinking=thinking)


def parameter_size(count: int | None) -> str | None:
    """A number of parameters, as Ollama writes it: `134.52M`, `8.0B`."""
    if not count:
        return None
    return f"{count / 1e9:.1f}B" if count >= 10**9 else f"{count / 1e6:.2f}M"


def _texts(value: Any) -> list[str]:
    return [text for text in map(text_of, value) if text] if isinstance(value, list) else []
