"""Any other server of chat completions: services, proxies and engines that have no kind of their own."""

from __future__ import annotations

from backends.kinds.kind import Kind
from backends.kinds.words import IMAGES, NAME, TOOLS, Words

KIND = Kind(
    "openai-chat",
    think_tags=True,
    words=Words(
        overflow=(
            "is longer than the model's context length",  # SGLang
            "exceeds the maximum allowed length",  # SGLang
            "exceed context window",  # llama-cpp-python
            "contextwindowexceedederror",  # LiteLLM
            "`inputs` tokens + `max_new_tokens` must be",  # TGI
            "`inputs` must have less than",  # TGI
            "maximum prompt length is",  # xAI
            "exceeds the maximum number of tokens allowed",  # Gemini
        ),
        limits=(
            r"context length \((\d{1,11})",  # SGLang
            r"maximum allowed length \((\d{1,11})",  # SGLang
            r"exceed context window of (\d{1,11})",  # llama-cpp-python
            r"`max_new_tokens` must be <= (\d{1,11})",  # TGI
            r"must have less than (\d{1,11})",  # TGI
            r"tokens > (\d{1,11}) maximum",  # Anthropic
            r"tokens allowed \((\d{1,11})",  # Gemini
        ),
        prompts=(
            r"(\d{1,11}) of text input",  # OpenRouter
            r"prompt contains (\d{1,11}) tokens",  # Mistral
            r"requested tokens \((\d{1,11})",  # llama-cpp-python
            r"given: (\d{1,11})",  # TGI
            r"prompt is too long: (\d{1,11}) tokens",  # Anthropic
            r"request contains (\d{1,11}) tokens",  # xAI
        ),
        cannot=(
            ("doesn't support tool", TOOLS),  # Bedrock
            ("does not support function calling", TOOLS),  # DeepSeek
            ("tool calling` is not supported", TOOLS),  # Groq
            ("no endpoints found that support tool use", TOOLS),  # OpenRouter
            ("no endpoints found that support image input", IMAGES),  # OpenRouter
            ("this response_format type is unavailable", "response_format"),  # DeepSeek
        ),
        parameters=(
            rf"does not support parameters: [\[{{]'{NAME}'",  # LiteLLM
            rf"doesn't support {NAME}=",  # LiteLLM
            rf"property '(?:body\.)?{NAME}' is unsupported",  # Groq, Cerebras
            rf"`{NAME}` is not supported with this model",  # Groq
            rf"argument not supported on this model: {NAME}",  # xAI
            rf"does not support parameter {NAME}",  # xAI
            rf"support the provided '{NAME}' value",  # OpenRouter
        ),
    ),
)
