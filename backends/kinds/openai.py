"""OpenAI itself, and every other server that speaks the Responses API."""

from __future__ import annotations

from backends.kinds.kind import Kind
from backends.kinds.words import IMAGES, NAME, Words

KIND = Kind(
    "openai",
    native=True,
    count_path="/responses/input_tokens",
    lacks=frozenset({"/rerank"}),
    hosts=frozenset({"api.openai.com"}),
    words=Words(
        overflow=("exceeds the context window",),
        prompts=(r"messages resulted in (\d{1,11}) tokens",),
        cannot=(("image_url is only supported by certain models", IMAGES),),
        parameters=(
            rf"unsupported (?:parameter|value): '{NAME}'",
            rf"unknown parameter: '{NAME}'",
            rf"unrecognized request argument supplied: {NAME}",  # chat completions
        ),
    ),
)
