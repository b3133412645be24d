"""What backends' refusals mean: the words of each server, as its source or its users' reports have them."""

import json
import time
from pathlib import Path

import pytest

from backends.kinds import LEXICON
from backends.kinds.words import Overflow

RECORDED = Path(__file__).parent / "data" / "llama-server"

LLAMA = "request (9021 tokens) exceeds the available context size (8192 tokens), try increasing it"
OVERFLOWS = {
    "llama.cpp": (LLAMA, Overflow(8192, 9021)),
    "llama.cpp 2025": ("the request exceeds the available context size, try increasing it", Overflow()),
    "llama.cpp, answering": ("Context size has been exceeded.", Overflow()),
    "a gateway": ("Your input exceeds the model's context window.", Overflow()),
    "another gateway": ("The prompt is too long for the model's context window.", Overflow()),
    "llama.cpp, embeddings": (
        "input (5001 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
        Overflow(512, 5001),
    ),
    "vLLM 0.9": (
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4500 in the messages, "
        "500 in the completion). Please reduce the length of the messages or completion.",
        Overflow(4096, 4500),
    ),
    "vLLM 0.9, messages": (
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens in the messages, "
        "Please reduce the length of the messages.",
        Overflow(8192, 9000),
    ),
    "vLLM 0.11": (
        "This model's maximum context length is 8192 tokens. However, your request has 9000 input tokens. Please "
        "reduce the length of the input messages.",
        Overflow(8192, 9000),
    ),
    "vLLM 0.11, max_tokens": (
        "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 "
        "tokens and your request has 13 input tokens (5000 > 4096 - 13).",
        Overflow(4096, 13),
    ),
    "vLLM 0.16": (
        "You passed 7000 input tokens and requested 64 output tokens. However, the model's context length is only 4096 "
        "tokens, resulting in a maximum input length of 4032 tokens. Please reduce the length of the input prompt. "
        "(parameter=input_tokens, value=7000)",
        Overflow(4096, 7000),
    ),
    "vLLM 0.16, cut": (
        "You passed 4033 input tokens and requested 64 output tokens. However, the model's context length is only 4096 "
        "tokens, resulting in a maximum input length of 4032 tokens.",
        Overflow(4096, None),
    ),
    "vLLM 0.16, characters": (
        "You passed 99000 input characters and requested 64 output tokens. However, the model's context length is only "
        "4096 tokens, resulting in a maximum input length of 4032 tokens (at most 40320 characters).",
        Overflow(4096, None),
    ),
    "vLLM 0.25": (
        "This model's maximum context length is 8192 tokens. However, you requested 64 output tokens and your prompt "
        "contains 10000 input tokens, for a total of 10064 tokens.",
        Overflow(8192, 10000),
    ),
    "vLLM 0.25, cut": (
        "This model's maximum context length is 8192 tokens. However, you requested 64 output tokens and your prompt "
        "contains at least 8129 input tokens, for a total of at least 8193 tokens.",
        Overflow(8192, None),
    ),
    "vLLM 0.25, characters": (
        "This model's maximum context length is 8192 tokens. However, you requested 64 output tokens and your prompt "
        "contains 100000 characters (more than 81280 characters, which is the upper bound for 8128 input tokens).",
        Overflow(8192, None),
    ),
    "vLLM, engine": (
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        Overflow(4096, 5000),
    ),
    "vLLM, output": (
        "max_completion_tokens=131072 cannot be greater than max_model_len=max_total_tokens=65536. Please request "
        "fewer output tokens.",
        Overflow(65536, None),
    ),
    "vLLM 0.4": ("max_tokens must be at least 1, got -186.", Overflow()),
    "LM Studio": (
        "Trying to keep the first 111490 tokens when context the overflows. However, the model is loaded with context "
        "length of only 32768 tokens, which is not enough.",
        Overflow(32768, 111490),
    ),
    "LM Studio 0.4": (
        "The number of tokens to keep from the initial prompt is greater than the context length (n_keep: 13055>= "
        "n_ctx: 4096). Try to load the model with a larger context length, or provide a shorter input.",
        Overflow(4096, 13055),
    ),
    "LM Studio, answering": (
        "Reached context length of 4096 tokens with this model, but this model does not currently support "
        "mid-generation context overflow.",
        Overflow(4096, None),
    ),
    "Ollama 0.12": ("the input length exceeds the context length", Overflow()),
    "Ollama 0.34": (
        json.dumps({"error": {"code": 400, "message": LLAMA, "type": "exceed_context_size_error", "n_ctx": 8192}}),
        Overflow(8192, 9021),
    ),
    "Ollama 0.34, in short": (
        '{"error":{"type":"exceed_context_size_error","n_prompt_tokens":2622,"n_ctx":512}}',
        Overflow(512, 2622),
    ),
    "Ollama, embeddings": ("input length exceeds maximum context length", Overflow()),
    "SGLang": (
        "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
        Overflow(40960, 61709),
    ),
    "SGLang, total": (
        "Requested token count exceeds the model's maximum context length of 64000 tokens. You requested a total of "
        "71897 tokens: 7897 tokens from the input messages and 64000 tokens for the completion.",
        Overflow(64000, 7897),
    ),
    "SGLang, length": (
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
        Overflow(59862, 160062),
    ),
    "SGLang's router": (
        "Input length (265330) exceeds model's maximum context length (262144).",
        Overflow(262144, 265330),
    ),
    "TGI": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1000 `inputs` tokens and "
        "1024 `max_new_tokens`",
        Overflow(1512, 1000),
    ),
    "TGI, input": (
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 1872",
        Overflow(1024, 1872),
    ),
    "OpenAI": (
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 202868 tokens "
        "(202767 in the messages, 101 in the functions). Please reduce the length of the messages or functions.",
        Overflow(128000, 202868),
    ),
    "OpenAI, Responses": (
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        Overflow(),
    ),
    "OpenAI, embeddings": (
        "This model's maximum context length is 8192 tokens, however you requested 25701 tokens (25701 in your prompt; "
        "0 for the completion). Please reduce your prompt; or completion length.",
        Overflow(8192, 25701),
    ),
    "OpenRouter": (
        "This endpoint's maximum context length is 32768 tokens. However, you requested about 42832 tokens (42832 of "
        "text input). Please reduce the length of either one",
        Overflow(32768, 42832),
    ),
    "LiteLLM": (
        "litellm.ContextWindowExceededError: litellm.BadRequestError: Hosted_vllmException - This model's maximum "
        "context length is 65536 tokens. However, your request has 70000 input tokens.",
        Overflow(65536, 70000),
    ),
    "LiteLLM, alone": ("litellm.ContextWindowExceededError: the request is too long", Overflow()),
    "OpenAI's code, as text": ('{"error": {"code": "context_length_exceeded"}}', Overflow()),
    "Mistral": (
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        Overflow(32768, 40000),
    ),
    "Anthropic": ("prompt is too long: 213462 tokens > 200000 maximum", Overflow(200000, 213462)),
    "Gemini": (
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
        Overflow(1048575, 1196265),
    ),
    "xAI": (
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        Overflow(131072, 537812),
    ),
    "Ollama's cloud": ("prompt too long; exceeded max context length by 4021 tokens", Overflow()),
    "OpenAI, chat": (
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300001 tokens. Please "
        "reduce the length of the messages.",
        Overflow(272000, 300001),
    ),
    "OpenAI, more than a minute's": (
        "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, Requested 250011. "
        "The "
        "input or output tokens must be reduced in order to run successfully. Visit https://example.com to learn more.",
        Overflow(30000, 250011),
    ),
    "Groq": ("Please reduce the length of the messages or completion.", Overflow()),
    "Groq, more than a minute's": (
        "Request too large for model `m` in organization `org_1` service tier `on_demand` on tokens per minute (TPM): "
        "Limit 6000, Requested 9000, please reduce your message size and try again.",
        Overflow(6000, 9000),
    ),
    "Cerebras": (
        "Please reduce the length of the messages or completion. Current length is 10636 while limit is 8192",
        Overflow(8192, 10636),
    ),
    "Anthropic, with the answer": (
        "input length and `max_tokens` exceed context limit: 187254 + 20000 > 204798, decrease input length or "
        "`max_tokens` and try again",
        Overflow(204798, 187254),
    ),
    "Bedrock": ("Input is too long for requested model.", Overflow()),
    "Bedrock, Nova": (
        "The model returned the following errors: Input Tokens Exceeded: Number of input tokens exceeds maximum "
        "length. Please update the input to try again.",
        Overflow(),
    ),
    "Vertex AI": (
        "Unable to submit request because the input token count is 40000 but the model supports up to 32768. Reduce "
        "it.",
        Overflow(32768, 40000),
    ),
    "Moonshot": ("Invalid request: Your request exceeded model token limit: 131072", Overflow(131072, None)),
    "Moonshot, requested": (
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 310000)",
        Overflow(262144, 310000),
    ),
    "Moonshot, bytes": ("total message size 2306631 exceeds limit 2097152", Overflow()),
    "Z.ai": ("Prompt exceeds max length", Overflow()),
    "Z.ai, Chinese": ("Prompt 超长", Overflow()),
    "Z.ai, its reason to stop": ("model_context_window_exceeded", Overflow()),
    "DashScope": (
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 129024]",
        Overflow(129024, None),
    ),
    "MiniMax": ("invalid params, context window exceeds limit (2013)", Overflow()),
    "oMLX": ("Prompt too long: 41911 tokens exceeds max context window of 32768 tokens", Overflow(32768, 41911)),
    "DS4": (
        "400 Prompt has 256468 tokens, but the configured context size is 256000 tokens",
        Overflow(256000, 256468),
    ),
    "DS4, thousands": (
        "Prompt has 5,958,968 tokens, but the configured context size is 256,000 tokens",
        Overflow(256000, 5958968),
    ),
    "OpenRouter, Poolside": (
        "Provider returned error: Input length 131393 exceeds the maximum allowed input length of 131040 tokens.",
        Overflow(131040, 131393),
    ),
    "DeepInfra": ("Requested input length 39818 exceeds maximum input length 32767", Overflow(32767, 39818)),
    "GitHub Copilot": ("prompt token count of 202345 exceeds the limit of 128000", Overflow(128000, 202345)),
    "Together": (
        "Input (200000 tokens) is longer than the model's context length (131072 tokens).",
        Overflow(131072, 200000),
    ),
    "Cohere": (
        "too many tokens: size limit exceeded by 11326 tokens. Try using shorter or fewer inputs. The limit for this "
        "model is 288000 tokens.",
        Overflow(288000, None),
    ),
    "Doubao": ("Total tokens of image and text exceed max message tokens. Request id: 0217", Overflow()),
    "SiliconFlow": ("length of prompt_tokens (33000) must be less than max_seq_len (32768).", Overflow(32768, 33000)),
    "TabbyAPI": ("Prompt length 9010 is greater than max_seq_len 8192", Overflow(8192, 9010)),
    "Cohere, older": (
        "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 9010. Try using a shorter prompt.",
        Overflow(4081, None),
    ),
    "watsonx": (
        "the number of input tokens 9010 cannot exceed the total tokens limit 8192 for this model",
        Overflow(8192, 9010),
    ),
    "SambaNova": (
        "Requested generation length 1 is not possible! The provided prompt is 9010 tokens long, so generating 1 tokens "
        "requires a sequence length of 9011, but the maximum supported sequence length is just 8192!",
        Overflow(8192, 9010),
    ),
    "Cloudflare": (
        "The estimated number of input and maximum output tokens (9010) exceeded this model context window limit (8192).",
        Overflow(8192, None),
    ),
    "MLC": (
        "Request prompt has 9010 tokens in total, larger than the model input length limit 8192.",
        Overflow(8192, 9010),
    ),
    "TensorRT-LLM": (
        "The sum of prompt length (9010), query length (0) should not exceed max_num_tokens (8192)",
        Overflow(8192, 9010),
    ),
    "Qianfan": ("prompt tokens too long", Overflow()),
    "vLLM, pictures": (
        "The prompt (total length 9010) is too long to fit into the model (context length 8192). Make sure that it fits.",
        Overflow(8192, 9010),
    ),
    "some proxies": ("Context length exceeded", Overflow()),
    "llama-cpp-python": ("Requested tokens (9010) exceed context window of 4096", Overflow(4096, 9010)),
}

NO_OVERFLOWS = (
    "",
    "Loading model",
    "max_tokens is too large: 100000. This model supports at most 16384 completion tokens.",
    "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, Requested 4000.",
    "Multimodal data provided, but model does not support multimodal requests.",
    "model 'llama3' not found",
    "You exceeded your current quota, please check your plan and billing details.",
    "Too many tokens, please wait before trying again.",  # Bedrock, throttling
    "Range of max_tokens should be [1, 8192]",  # DashScope
    "invalid params, media exceeds size limit: max 10485760 bytes (2013)",  # MiniMax
    "max_tokens exceeds the limit of 8192",
    "Request reached organization TPD rate limit, current: 1506556, limit: 1500000",
)

# What a template says of the roles, as its server hands it on.
LLAMA_CPP = (
    "\n------------\nWhile executing CallExpression at line {0}, column 32 in source:\n...== 0) %}}↵            {{{{- "
    "raise_exception('{1:.40}...\n                                           ^\nError: Jinja Exception: {1}"
)
MISTRAL = (
    "After the optional system message, conversation roles must alternate user and assistant roles "
    "except for tool calls"
)
ROLES = {
    "llama-cpp-python": ("messages.1.content: Input should be a valid string", "null"),
    "OpenAI, of a user's": ("Invalid value for 'content': expected a string, got null.", "null"),
    "who checks with zod": ("messages[1].content: Expected string, received null", "null"),
    "a server in Rust": ("messages[1].content: invalid type: null, expected a string at line 1 column 90", "null"),
    "Groq": (
        "'messages.1' : for 'role:assistant' the following must be satisfied[('messages.1.content' : value must be a "
        "string)]",
        "null",
    ),
    "Ollama 0.3": ("invalid message content type: <nil>", "null"),
    "a template that adds it": ('can only concatenate str (not "NoneType") to str', "null"),
    "vLLM, Qwen 3.5": ("jinja template rendering failed. System message must be at the beginning.", "system"),
    "llama.cpp, Qwen 3.5": (LLAMA_CPP.format(85, "System message must be at the beginning."), "system"),
    "Rapid-MLX": ("Chat template error: System message must be at the beginning.", "system"),
    "MiMo": ("system message must be the first message", "system"),
    "Gemma 2": ("System role not supported", "system"),
    "o1-mini": ("Unsupported value: 'messages[0].role' does not support 'system' messages with this model.", "system"),
    "Mistral's template": ("Only user, assistant and tool roles are supported, got system.", "system"),
    "Mistral 7B": ("Only user and assistant roles are supported!", "system"),
    "Mistral's API": ("Unexpected role 'system' after role 'assistant'", "system"),
    "Mistral's API, last": (
        "Expected last role User or Tool (or Assistant with prefix True) for serving but got system",
        "system",
    ),
    "Anthropic": (
        'messages: Unexpected role "system". The Messages API accepts a top-level `system` parameter, not "system" as '
        "an "
        "input message role.",
        "system",
    ),
    "MiniMax": ("invalid params, chat content has invalid message role: system (2013)", "system"),
    "Rust": ("messages[1].role: unknown variant `system`, expected `user` or `assistant`", "system"),
    "Gemini, of Gemma": ("Developer instruction is not enabled for models/gemma-3-27b-it", "system"),
    "Qwen 3.5, without a user": ("Jinja Exception: No user query found in messages.", "system"),
    "Llama 2": ("Conversation roles must alternate user/assistant/user/assistant/...", "order"),
    "llama.cpp, Gemma 3": (
        LLAMA_CPP.format(19, "Conversation roles must alternate user/assistant/user/assistant/..."),
        "order",
    ),
    "llama.cpp, Devstral": (LLAMA_CPP.format(189, MISTRAL), "order"),
    "Perplexity": ("After the (optional) system message(s), user and assistant roles should be alternating.", "order"),
    "Anthropic, order": (
        'messages: roles must alternate between "user" and "assistant", but found multiple "user" roles in a row',
        "order",
    ),
    "Bedrock": ("A conversation must alternate between user and assistant roles. Make sure it does.", "order"),
    "Bedrock, start": ("A conversation must start with a user message. Try again with one that does.", "order"),
    "DeepSeek": (
        "deepseek-reasoner does not support successive user or assistant messages (messages[1] and messages[2] in your "
        "input). You should interleave the user/assistant messages in the message sequence.",
        "order",
    ),
    "NIM": ("Unexpected role 'user' after role 'tool'", "order"),
}

UNSUPPORTED = {
    "transformers serve": ("Unexpected fields in the request: {'ignore_eos'}", "ignore_eos"),
    "Ollama, tools": ("registry.ollama.ai/library/gemma3:4b does not support tools", "tools"),
    "Ollama, thinking": ('"llama3.1:8b" does not support thinking', "thinking"),
    "Ollama, effort": ('think value "medium" is not supported for this model', "thinking"),
    "Ollama, image": ("this model is missing data required for image input", "images"),
    "Ollama 0.34, image": (
        '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests."}}',
        "images",
    ),
    "Ollama's cloud, image": ("this model does not support image input (ref: b8bd630e)", "images"),
    "llama.cpp, image": (
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "images",
    ),
    "llama.cpp, audio": (
        "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "audio",
    ),
    "llama.cpp, tools": ("tools param requires --jinja flag", "tools"),
    "llama.cpp, parameter": ("Unsupported param: suffix", "suffix"),
    "llama.cpp, choice of a tool": ("tool_choice param requires --jinja flag", "tools"),
    "vLLM, no audio": ("At most 0 audio(s) may be provided in one prompt.", "audio"),
    "vLLM, a tool": ('tool_choice="required" requires --tool-call-parser to be set', "tools"),
    "vLLM, image": ("facebook/opt-125m is not a multimodal model None", "images"),
    "vLLM, no image": ("At most 0 image(s) may be provided in one prompt.", "images"),
    "vLLM, tools": (
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "tools",
    ),
    "Ollama, vision": ('"llama3.1:8b" does not support vision', "images"),
    "Ollama, audio": ("model does not support audio input", "audio"),
    "Bedrock": ("This model doesn't support tool use.", "tools"),
    "LM Studio, image": ("Model does not support images. Please use a model that does.", "images"),
    "LM Studio, format": ("'response_format.type' must be 'json_schema' or 'text'", "response_format"),
    "OpenAI": ("Unsupported parameter: 'temperature' is not supported with this model.", "temperature"),
    "OpenAI, value": (
        "Unsupported value: 'temperature' does not support 0.1 with this model. Only the default (1) value is "
        "supported.",
        "temperature",
    ),
    "OpenAI, reasoning": ("Unsupported parameter: 'reasoning.effort' is not supported with this model.", "thinking"),
    "OpenAI, image": ("Invalid content type. image_url is only supported by certain models.", "images"),
    "OpenAI, argument": ("Unrecognized request argument supplied: min_p", "min_p"),
    "OpenRouter, tools": ('No endpoints found that support tool use. Try disabling "question".', "tools"),
    "OpenRouter, image": ("No endpoints found that support image input", "images"),
    "OpenRouter, choice": ("No endpoints found that support the provided 'tool_choice' value.", "tool_choice"),
    "LiteLLM": (
        "litellm.UnsupportedParamsError: openai does not support parameters: ['reasoning_effort'], for model=m.",
        "thinking",
    ),
    "LiteLLM, tools": (
        "litellm.UnsupportedParamsError: m does not support parameters: ['tools'], for model=m",
        "tools",
    ),
    "LiteLLM, value": (
        "litellm.UnsupportedParamsError: gpt-5-nano doesn't support temperature=0.1 while reasoning is active.",
        "temperature",
    ),
    "Groq, tools": ("`tool calling` is not supported with this model", "tools"),
    "Groq, effort": ("`reasoning_effort` is not supported with this model", "thinking"),
    "OpenAI, unknown": ("Unknown parameter: 'verbosity'.", "verbosity"),
    "DeepSeek, format": ("This response_format type is unavailable now", "response_format"),
    "Groq": ("property 'store' is unsupported, did you mean 'stop'?", "store"),
    "Cerebras": ("body.thinking: property 'body.thinking' is unsupported", "thinking"),
    "xAI": ("Argument not supported on this model: frequencyPenalty", "frequency_penalty"),
    "xAI, effort": ("Model grok-4 does not support parameter reasoningEffort.", "thinking"),
    "DeepSeek": ("deepseek-reasoner does not support Function Calling", "tools"),
    "NIM": ("Validation: Unsupported parameter(s): `prompt_cache_key`", "prompt_cache_key"),
    "NIM, two": ("Unsupported parameter(s): `safety_identifier`, `user`", "safety_identifier"),
    "NIM, repr": (
        "[{'type': 'extra_forbidden', 'loc': ('body', 'prompt_cache_key'), 'msg': 'Extra inputs are not permitted', "
        "'input': 'main'}]",
        "prompt_cache_key",
    ),
    "Mistral, as text": (
        '{"detail":[{"type":"extra_forbidden","loc":["body","max_completion_tokens"],"msg":"…"}]}',
        "max_completion_tokens",
    ),
    "Fireworks": ("Extra inputs are not permitted, field: 'prompt_cache_key', value: 'ses_5'", "prompt_cache_key"),
    "Cerebras, hint": (
        "body.prompt_cache_key: property 'body.prompt_cache_key' is unsupported",
        "prompt_cache_key",
    ),
    "Gemini": (
        'Invalid JSON payload received. Unknown name "prompt_cache_key": Cannot find field.',
        "prompt_cache_key",
    ),
    "Cohere": ("unknown field: parameter 'store' is not a valid field", "store"),
    "Databricks": ('Bad request: json: unknown field "parallel_tool_calls"', "parallel_tool_calls"),
    "joi": ('"stream_options" is not allowed', "stream_options"),
    "zod": ("Unrecognized key(s) in object: 'safety_identifier'", "safety_identifier"),
    "JSON Schema": ("Additional properties are not allowed ('verbosity' was unexpected)", "verbosity"),
    "Python": ("create() got an unexpected keyword argument 'parallel_tool_calls'", "parallel_tool_calls"),
    "loosely": ("The stream_options parameter is not supported by this deployment", "stream_options"),
    "loosely, verb": ("This model does not support parallel_tool_calls.", "parallel_tool_calls"),
    "loosely, quoted": ("Parameter 'verbosity' is not supported.", "verbosity"),
    "OpenAI, stream": (
        "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        "stream_options",
    ),
    "OpenAI, length": (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens",
    ),
    "pydantic": ("top_k: Extra inputs are not permitted", "top_k"),
    "serde": ("unknown field `chat_template_kwargs`, expected one of `model`, `messages`", "chat_template_kwargs"),
}

NOT_UNSUPPORTED = (
    "",
    "Loading model",
    LLAMA,
    "At most 1 image(s) may be provided in one request.",
    "messages.2.assistant.reasoning_content: property 'messages.2.assistant.reasoning_content' is unsupported",
    '"nomic-embed-text" does not support chat',
    "model 'llama3' not found",
    "'max_tokens' or 'max_completion_tokens' is too large: 5000.",
    "The user is not allowed to use this model.",
)


class TestRoles:
    @pytest.mark.parametrize("server", ROLES)
    def test_the_words_of_a_template_are_known(self, server):
        message, expected = ROLES[server]
        assert LEXICON.roles(message) == expected

    @pytest.mark.parametrize("message", [*NO_OVERFLOWS, *NOT_UNSUPPORTED, *(text for text, _ in OVERFLOWS.values())])
    def test_other_errors_are_not_about_roles(self, message):
        assert LEXICON.roles(message) is None

    @pytest.mark.parametrize("message", [text for text, _ in UNSUPPORTED.values()])
    def test_nor_are_those_about_a_parameter(self, message):
        assert LEXICON.roles(message) is None


class TestOverflow:
    @pytest.mark.parametrize("server", OVERFLOWS)
    def test_the_words_of_a_server_give_its_numbers(self, server):
        message, expected = OVERFLOWS[server]
        assert LEXICON.overflow(message) == expected

    @pytest.mark.parametrize("message", NO_OVERFLOWS)
    def test_other_refusals_are_no_overflow(self, message):
        assert LEXICON.overflow(message, {"type": "invalid_request_error", "code": 400}) is None

    @pytest.mark.parametrize(
        ("file", "expected"),
        [
            ("90-err-context-too-long.response.json", Overflow(8192, 9021)),
            ("20-native-responses-err-too-long.response.json", Overflow(8192, 9021)),
            ("llama-cpp-python/err-too-long.response.json", Overflow(4096, 9010)),
            ("90-err-image-unsupported.response.json", None),
            ("90-err-max_tokens-string.response.json", None),
        ],
    )
    def test_recorded_answers(self, file, expected):
        error = json.loads((RECORDED / file).read_bytes())["error"]
        assert LEXICON.overflow(error["message"], error) == expected

    @pytest.mark.parametrize("code", ["code", "type"])
    def test_a_code_is_enough(self, code):
        assert LEXICON.overflow("No.", {code: "context_length_exceeded"}) == Overflow()

    def test_fields_are_believed_before_words(self):
        error = {"type": "exceed_context_size_error", "n_ctx": 100, "n_prompt_tokens": 200}
        assert LEXICON.overflow(LLAMA, error) == Overflow(100, 200)

    @pytest.mark.parametrize("value", [True, -1, 0, "8192", None, 1.5])
    def test_a_field_that_is_no_count_is_passed_over(self, value):
        assert LEXICON.overflow(LLAMA, {"n_ctx": value, "n_prompt_tokens": value}) == Overflow(8192, 9021)


class TestUnsupported:
    @pytest.mark.parametrize("server", UNSUPPORTED)
    def test_the_words_of_a_server_name_what_it_cannot(self, server):
        message, expected = UNSUPPORTED[server]
        assert LEXICON.unsupported(message) == expected

    @pytest.mark.parametrize("message", NOT_UNSUPPORTED)
    def test_other_refusals_name_nothing(self, message):
        assert LEXICON.unsupported(message, {"type": "invalid_request_error", "code": 400, "param": "model"}) is None

    @pytest.mark.parametrize("code", ["unsupported_parameter", "unsupported_value", "unknown_parameter"])
    def test_openais_codes_name_the_parameter(self, code):
        assert LEXICON.unsupported("No.", {"code": code, "param": "top_logprobs"}) == "top_logprobs"

    def test_a_part_of_a_message_is_no_parameter(self):
        error = {"code": "unsupported_value", "param": "messages[0].role"}
        assert LEXICON.unsupported("Unsupported value: 'messages[0].role' does not support 'system'", error) is None

    @pytest.mark.parametrize(
        "error",
        [
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "min_p"], "msg": "…"}]},
            {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "min_p"]}]}},
        ],
    )
    def test_the_field_in_a_422_of_fastapi(self, error):
        assert LEXICON.unsupported("", error) == "min_p"

    @pytest.mark.parametrize(
        "detail", [None, "no", [1], [{"type": "extra_forbidden"}], [{"type": "missing", "loc": ["a"]}]]
    )
    def test_other_details_name_nothing(self, detail):
        assert LEXICON.unsupported("", {"detail": detail}) is None

    def test_what_is_named_is_a_name(self):
        assert LEXICON.unsupported("No.", {"code": "unsupported_parameter", "param": "the prompt: secret"}) is None

    def test_a_recorded_answer(self):
        error = json.loads((RECORDED / "90-err-image-unsupported.response.json").read_bytes())["error"]
        assert LEXICON.unsupported(error["message"], error) == "images"


@pytest.mark.parametrize(
    "text", ["9" * 100_000, "a" * 100_000, "input (" * 20_000, "a.b[0]" * 20_000, "does not support " * 9000]
)
def test_no_text_takes_long(text):
    text = f"maximum context length {text}"
    LEXICON.overflow(text)
    began = time.process_time()
    LEXICON.overflow(text)
    LEXICON.unsupported(text)
    LEXICON.roles(text)
    assert time.process_time() - began < 0.1
