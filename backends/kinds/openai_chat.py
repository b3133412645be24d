"""Any other server of chat completions: services, proxies and engines that have no kind of their own."""

from __future__ import annotations

from backends.kinds.kind import Kind
from backends.kinds.words import IMAGES, NAME, TOOLS, Words

KIND = Kind(
    "openai-chat",
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
            "but the model supports up to",  # Vertex AI
            "exceeded model token limit",  # Moonshot
            "total message size",  # Moonshot, in bytes
            "prompt exceeds max length",  # Z.ai
            "prompt 超长",  # Z.ai
            "range of input length should be",  # DashScope
            "context window exceeds limit",  # MiniMax
            "input is too long for requested model",  # Bedrock
            "number of input tokens exceeds maximum length",  # Bedrock's Nova
            "exceed context limit",  # Anthropic
            "prompt too long",  # oMLX
            "reduce the length of the messages",  # Groq, Cerebras
            "please reduce your message size",  # Groq: more than may be sent in a minute
            "but the configured context size is",  # DS4
            "exceeds the maximum allowed input length",  # OpenRouter
            "exceeds maximum input length",  # DeepInfra
            "prompt token count of",  # GitHub Copilot
            "size limit exceeded by",  # Cohere
            "exceed max message tokens",  # Doubao
            "must be less than max_seq_len",  # SiliconFlow
            "is greater than max_seq_len",  # TabbyAPI
            "tokens in the prompt cannot exceed",  # Cohere
            "cannot exceed the total tokens limit",  # watsonx
            "the maximum supported sequence length is",  # SambaNova
            "exceeded this model context window limit",  # Cloudflare
            "larger than the model input length limit",  # MLC
            "should not exceed max_num_tokens",  # TensorRT-LLM
            "prompt tokens too long",  # Qianfan
            "context length exceeded",
            "exceeds the model's context window",
            "too long for the model's context window",
        ),
        limits=(
            r"context length \((\d{1,11})",  # SGLang
            r"maximum allowed length \((\d{1,11})",  # SGLang
            r"exceed context window of (\d{1,11})",  # llama-cpp-python
            r"`max_new_tokens` must be <= (\d{1,11})",  # TGI
            r"must have less than (\d{1,11})",  # TGI
            r"tokens > (\d{1,11}) maximum",  # Anthropic
            r"tokens allowed \((\d{1,11})",  # Gemini
            r"model supports up to (\d{1,11})",  # Vertex AI
            r"model token limit: (\d{1,11})",  # Moonshot
            r"range of input length should be \[\d{1,11}, (\d{1,11})",  # DashScope
            r"context limit: \d{1,11} \+ \d{1,11} > (\d{1,11})",  # Anthropic
            r"max context window of (\d{1,11})",  # oMLX
            r"while limit is (\d{1,11})",  # Cerebras
            r"configured context size is (\d{1,11})",  # DS4
            r"maximum allowed input length of (\d{1,11})",  # OpenRouter
            r"maximum input length (\d{1,11})",  # DeepInfra
            r"exceeds the limit of (\d{1,11})",  # GitHub Copilot
            r"limit for this model is (\d{1,11})",  # Cohere
            r"max_seq_len \(?(\d{1,11})",  # SiliconFlow, TabbyAPI
            r"prompt cannot exceed (\d{1,11})",  # Cohere
            r"total tokens limit (\d{1,11})",  # watsonx
            r"supported sequence length is (?:just )?(\d{1,11})",  # SambaNova
            r"context window limit \((\d{1,11})",  # Cloudflare
            r"input length limit (\d{1,11})",  # MLC
            r"max_num_tokens \((\d{1,11})",  # TensorRT-LLM
        ),
        prompts=(
            r"(\d{1,11}) of text input",  # OpenRouter
            r"prompt contains (\d{1,11}) tokens",  # Mistral
            r"requested tokens \((\d{1,11})",  # llama-cpp-python
            r"given: (\d{1,11})",  # TGI
            r"prompt is too long: (\d{1,11}) tokens",  # Anthropic
            r"request contains (\d{1,11}) tokens",  # xAI
            r"input token count is (\d{1,11})",  # Vertex AI
            r"\(requested: (\d{1,11})\)",  # Moonshot
            r"context limit: (\d{1,11})",  # Anthropic
            r"prompt too long: (\d{1,11}) tokens",  # oMLX
            r"current length is (\d{1,11})",  # Cerebras
            r"prompt has (\d{1,11}) tokens",  # DS4
            r"prompt_tokens \((\d{1,11})",  # SiliconFlow
            r"prompt length (\d{1,11}) is",  # TabbyAPI
            r"number of input tokens (\d{1,11})",  # watsonx
            r"provided prompt is (\d{1,11}) tokens",  # SambaNova
            r"sum of prompt length \((\d{1,11})",  # TensorRT-LLM
        ),
        system=(
            r"invalid (?:message )?role: (?:system|developer)",  # MiniMax
            r"role: unknown variant `(?:system|developer)`",  # servers in Rust
            r"developer instruction is not enabled",  # Gemini, of Gemma
        ),
        order=(r"does not support successive user or assistant messages",),  # DeepSeek
        cannot=(
            ("doesn't support tool", TOOLS),  # Bedrock
            ("does not support function calling", TOOLS),  # DeepSeek
            ("tool calling` is not supported", TOOLS),  # Groq
            ("no endpoints found that support tool use", TOOLS),  # OpenRouter
            ("no endpoints found that support image input", IMAGES),  # OpenRouter
            ("this response_format type is unavailable", "response_format"),  # DeepSeek
        ),
        parameters=(
            rf"unsupported parameter\(s\): [\"'`]?{NAME}",  # NIM
            rf"unexpected fields in the request: [\[{{]'{NAME}'",  # transformers serve
            rf"unknown name \"{NAME}\"",  # Gemini
            rf"unknown field: parameter '{NAME}'",  # Cohere
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
