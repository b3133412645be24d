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
        overflow=(
            "exceeds the context window",
            "input tokens exceed the configured limit",
            # More in one request than may be sent in a minute: no waiting helps.
            "tokens must be reduced in order to run successfully",
        ),
        limits=(r"configured limit of (\d{1,11})", r"\(tpm\): limit (\d{1,11}), requested"),
        prompts=(r"messages resulted in (\d{1,11}) tokens", r"\(tpm\): limit \d{1,11}, requested (\d{1,11})"),
        cannot=(("image_url is only supported by certain models", IMAGES),),
        parameters=(
            rf"unsupported (?:parameter|value): '{NAME}'",
            rf"unknown parameter: '{NAME}'",
            rf"unrecognized request argument supplied: {NAME}",  # chat completions
        ),
    ),
)
