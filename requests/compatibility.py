"""What becomes of everything that the Responses API knows, by what answers a request: one table, which the translators
read.

    PARAMETERS  INCLUDES  ITEMS  PARTS  TOOLS  CHOICES  EVENTS        name ──▶ Row(chat, native)

`chat` is a server that speaks chat completions, `native` one that speaks Responses. A name with a dot is a key of an
object; `*` stands for whatever else there may be. Specification: OpenAI's Responses API (SDK 3.54) and Open Responses
2026-04-24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Way = Literal["carried", "adapted", "run here", "ignored", "refused", "never"]

# It reaches the server as it was given.
CARRIED: Way = "carried"
# It reaches the server in another form: under another name, as a function, as text.
ADAPTED: Way = "adapted"
# It is the router that does what was asked.
RUN_HERE: Way = "run here"
# Nothing comes of it; the client reads its name in `x-nomyo-ignored`, of a tool in `x-nomyo-omitted-tools`.
IGNORED: Way = "ignored"
# A 400 that names it.
REFUSED: Way = "refused"
# Of events: nothing makes one.
NEVER: Way = "never"


@dataclass(frozen=True, slots=True)
class Row:
    """What becomes of one thing, at each kind of endpoint."""

    chat: Way
    native: Way = CARRIED
    note: str = ""


@dataclass(frozen=True, slots=True)
class ItemRow(Row):
    """Of an item also: how its ids begin, and what it is in a conversation."""

    prefix: str = "item"
    is_call: bool = False
    is_output: bool = False
    brings_tools: bool = False
    is_setting: bool = False


@dataclass(frozen=True, slots=True)
class PartRow(Row):
    """Of a content part also: whether it is a text."""

    is_text: bool = False


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────────────────

PARAMETERS: Mapping[str, Row] = {
    "access_programs": Row(IGNORED),
    "background": Row(RUN_HERE, RUN_HERE),
    "background_options": Row(IGNORED),
    "client_metadata": Row(IGNORED, note="of Codex"),
    "context_management": Row(RUN_HERE),
    "conversation": Row(RUN_HERE, RUN_HERE, note="its items are the history"),
    "frequency_penalty": Row(CARRIED),
    "generate": Row(IGNORED, note="over a WebSocket it is run here"),
    "image": Row(IGNORED),
    "include": Row(RUN_HERE, note="see includes"),
    "input": Row(ADAPTED, note="messages; see items and parts"),
    "instructions": Row(ADAPTED, note="a leading system message"),
    "max_output_tokens": Row(ADAPTED, note="max_tokens"),
    "max_tool_calls": Row(IGNORED, note="of tools that the router runs it is held"),
    "messages": Row(IGNORED, note="of chat completions"),
    "metadata": Row(RUN_HERE, note="kept with the response"),
    "model": Row(ADAPTED, ADAPTED, note="the model's name at that endpoint"),
    "moderation": Row(IGNORED),
    "multi_agent": Row(IGNORED, note="beta"),
    "nomyo": Row(RUN_HERE, RUN_HERE),
    "parallel_tool_calls": Row(CARRIED, note="where there are tools; false is also seen to here"),
    "presence_penalty": Row(CARRIED),
    "previous_response_id": Row(RUN_HERE, RUN_HERE),
    "prompt": Row(REFUSED),
    "prompt_cache_key": Row(CARRIED, note="it also chooses the endpoint"),
    "prompt_cache_options": Row(IGNORED),
    "prompt_cache_retention": Row(IGNORED),
    "reasoning": Row(ADAPTED),
    "reasoning.context": Row(IGNORED),
    "reasoning.effort": Row(ADAPTED, note="reasoning_effort, in the server's nearest word"),
    "reasoning.generate_summary": Row(RUN_HERE, note="what summary was called once"),
    "reasoning.mode": Row(IGNORED),
    "reasoning.summary": Row(RUN_HERE, note="thoughts are shown as a summary"),
    "safety_identifier": Row(CARRIED),
    "service_tier": Row(CARRIED),
    "store": Row(RUN_HERE, RUN_HERE, note="a server is always asked not to"),
    "stream": Row(CARRIED),
    "stream_id": Row(IGNORED, note="over a WebSocket it is run here"),
    "stream_options": Row(RUN_HERE),
    "stream_options.include_obfuscation": Row(RUN_HERE),
    "stream_options.include_usage": Row(RUN_HERE, note="usage is always there"),
    "temperature": Row(CARRIED),
    "text": Row(ADAPTED),
    "text.format": Row(ADAPTED, note="response_format: text, json_object, json_schema"),
    "text.verbosity": Row(ADAPTED, note="verbosity"),
    "tool_choice": Row(ADAPTED, note="see choices"),
    "tools": Row(ADAPTED, note="see tools"),
    "tools.allowed_callers": Row(IGNORED),
    "tools.async": Row(IGNORED),
    "tools.defer_loading": Row(IGNORED, note="all tools are offered at once"),
    "tools.output_schema": Row(IGNORED),
    "top_logprobs": Row(CARRIED, note="with logprobs"),
    "top_p": Row(CARRIED),
    "truncation": Row(RUN_HERE),
    "user": Row(CARRIED),
    # `seed`, `top_k`, `chat_template_kwargs`, … of servers that know more than OpenAI.
    "*": Row(CARRIED),
}

INCLUDES: Mapping[str, Row] = {
    "code_interpreter_call.outputs": Row(IGNORED, note="but where the router runs the code"),
    "computer_call_output.output.image_url": Row(RUN_HERE, note="in input_items; always there in a response"),
    "file_search_call.results": Row(IGNORED, note="but where the router searches"),
    "message.input_image.image_url": Row(RUN_HERE, note="in input_items"),
    "message.output_text.logprobs": Row(ADAPTED, note="logprobs"),
    "reasoning.encrypted_content": Row(RUN_HERE),
    "web_search_call.action.sources": Row(IGNORED, note="but where the router searches"),
    "web_search_call.results": Row(IGNORED, note="but where the router searches"),
    "*": Row(IGNORED),
}

ITEMS: Mapping[str, ItemRow] = {
    "additional_tools": ItemRow(ADAPTED, prefix="at", brings_tools=True),
    "agent_message": ItemRow(ADAPTED, note="beta; a user message"),
    "apply_patch_call": ItemRow(ADAPTED, prefix="apc", is_call=True),
    "apply_patch_call_output": ItemRow(ADAPTED, prefix="apco", is_output=True),
    "code_interpreter_call": ItemRow(ADAPTED, note="of the router, a call and its output; else text", prefix="ci"),
    "compaction": ItemRow(ADAPTED, ADAPTED, note="the summary in it, where it is ours", prefix="cmp"),
    "compaction_trigger": ItemRow(RUN_HERE),
    "computer_call": ItemRow(ADAPTED, note="text"),
    "computer_call_output": ItemRow(ADAPTED, note="text"),
    "configuration_update": ItemRow(ADAPTED, note="effort and verbosity, until the next one", is_setting=True),
    "custom_tool_call": ItemRow(ADAPTED, prefix="ctc", is_call=True),
    "custom_tool_call_output": ItemRow(CARRIED, prefix="ctco", is_output=True),
    "file_search_call": ItemRow(ADAPTED, note="of the router, a call and its output; else text", prefix="fs"),
    "function_call": ItemRow(CARRIED, prefix="fc", is_call=True),
    "function_call_output": ItemRow(CARRIED, prefix="fco", is_output=True),
    "image_generation_call": ItemRow(ADAPTED, note="of the router, a call and its output; else text", prefix="ig"),
    "item_reference": ItemRow(RUN_HERE, RUN_HERE),
    "local_shell_call": ItemRow(ADAPTED, prefix="lsh", is_call=True),
    "local_shell_call_output": ItemRow(ADAPTED, prefix="lsho", is_output=True),
    "mcp_approval_request": ItemRow(ADAPTED, note="with its response a call and its output, else text", prefix="mcpr"),
    "mcp_approval_response": ItemRow(ADAPTED, note="of what it answers, else text", prefix="mcpa"),
    "mcp_call": ItemRow(ADAPTED, note="a call and its output", prefix="mcp"),
    "mcp_list_tools": ItemRow(IGNORED, prefix="mcpl", note="its server is asked itself"),
    "message": ItemRow(CARRIED, note="developer is system", prefix="msg"),
    "multi_agent_call": ItemRow(ADAPTED, note="beta; text"),
    "program": ItemRow(ADAPTED, note="text"),
    "program_output": ItemRow(ADAPTED, note="text"),
    "reasoning": ItemRow(
        ADAPTED, note="where the server reads it: a key of the message, <think> or nowhere", prefix="rs"
    ),
    "shell_call": ItemRow(ADAPTED, prefix="sh", is_call=True),
    "shell_call_output": ItemRow(ADAPTED, prefix="sho", is_output=True),
    "tool_search_call": ItemRow(ADAPTED, prefix="tsc", is_call=True),
    "tool_search_output": ItemRow(ADAPTED, prefix="tso", is_output=True, brings_tools=True),
    "web_search_call": ItemRow(ADAPTED, note="of the router, a call and its output; else text", prefix="ws"),
    # Of other services, or newer than this table.
    "*": ItemRow(ADAPTED, note="text"),
}

PARTS: Mapping[str, PartRow] = {
    "computer_screenshot": PartRow(REFUSED),
    "image_url": PartRow(REFUSED, note="of chat completions"),
    "input_audio": PartRow(CARRIED, note="refused by servers that take none"),
    "input_file.file_data": PartRow(CARRIED, note="plain text as text where a server takes no files"),
    "input_file.file_id": PartRow(REFUSED),
    "input_file.file_url": PartRow(CARRIED, note="fetched"),
    "input_image.file_id": PartRow(REFUSED),
    "input_image.image_url": PartRow(CARRIED, note="refused by servers that take none"),
    "input_text": PartRow(CARRIED, is_text=True),
    "input_video": PartRow(REFUSED),
    "output_text": PartRow(CARRIED, is_text=True),
    "reasoning_text": PartRow(CARRIED, is_text=True),
    "refusal": PartRow(CARRIED),
    "summary_text": PartRow(CARRIED, is_text=True),
    "text": PartRow(CARRIED, is_text=True),
    # A key that any part may have.
    "*.prompt_cache_breakpoint": PartRow(IGNORED),
    "*": PartRow(REFUSED),
}

TOOLS: Mapping[str, Row] = {
    "apply_patch": Row(ADAPTED, note="a function"),
    "code_interpreter": Row(RUN_HERE, note="where the settings have a tool for it; else left out"),
    "computer": Row(IGNORED),
    "computer_use_preview": Row(IGNORED),
    "custom": Row(ADAPTED, note="a function with one text"),
    "file_search": Row(RUN_HERE, note="the same"),
    "function": Row(CARRIED),
    "image_generation": Row(RUN_HERE, note="the same, or a server of images"),
    "local_shell": Row(ADAPTED, note="a function"),
    "mcp": Row(RUN_HERE, note="where the settings let it be; else left out"),
    "namespace": Row(ADAPTED, note="its tools, with the namespace in front of their names"),
    "namespace.description": Row(ADAPTED, note="in front of the description of its first tool"),
    "programmatic_tool_calling": Row(IGNORED),
    "shell": Row(ADAPTED, note="a function"),
    "shell.container_auto": Row(IGNORED, note="it runs at OpenAI"),
    "shell.container_reference": Row(IGNORED, note="it runs at OpenAI"),
    "shell.skills": Row(ADAPTED, note="in its description"),
    "tool_search": Row(IGNORED),
    "tool_search.client": Row(ADAPTED, note="a function"),
    "web_search": Row(RUN_HERE, note="where the settings have web_search; else left out"),
    "web_search_2025_08_26": Row(RUN_HERE, note="the same"),
    "web_search_preview": Row(RUN_HERE, note="the same"),
    "web_search_preview_2025_03_11": Row(RUN_HERE, note="the same"),
    # Of other services, or newer than this table.
    "*": Row(IGNORED),
}

# A `tool_choice`: a word, or the type of an object.
CHOICES: Mapping[str, Row] = {
    "allowed_tools": Row(
        ADAPTED, note="auto, and calls of others are suppressed; required, and only these are offered"
    ),
    "apply_patch": Row(ADAPTED, note="the function"),
    "auto": Row(CARRIED),
    "code_interpreter": Row(REFUSED, note="but where the router runs it"),
    "computer": Row(REFUSED),
    "computer_use_preview": Row(REFUSED),
    "custom": Row(ADAPTED, note="the function"),
    "file_search": Row(REFUSED, note="but where the router runs it"),
    "function": Row(CARRIED, note="alone and required, where no name is heeded; calls of others are suppressed"),
    "image_generation": Row(REFUSED, note="but where the router runs it"),
    "mcp": Row(REFUSED, note="but for tools of servers that are asked here"),
    "none": Row(CARRIED),
    "programmatic_tool_calling": Row(REFUSED),
    "required": Row(CARRIED),
    "shell": Row(ADAPTED, note="the function"),
    "web_search_preview": Row(REFUSED, note="but where the router searches"),
    "*": Row(REFUSED),
}

# ── the answer ───────────────────────────────────────────────────────────────────────────────────────────────────────

_MADE = Row(ADAPTED, note="made of what a chat server streams")
_OURS = Row(ADAPTED, ADAPTED, note="it holds the response, which is ours")
_HOSTED = Row(NEVER)
_RUN = Row(RUN_HERE)

EVENTS: Mapping[str, Row] = {
    "error": _OURS,
    "response.audio.delta": _HOSTED,
    "response.audio.done": _HOSTED,
    "response.audio.transcript.delta": _HOSTED,
    "response.audio.transcript.done": _HOSTED,
    "response.code_interpreter_call.completed": _RUN,
    "response.code_interpreter_call.in_progress": _RUN,
    "response.code_interpreter_call.interpreting": _RUN,
    "response.code_interpreter_call_code.delta": _RUN,
    "response.code_interpreter_call_code.done": _RUN,
    "response.compaction.compacting": Row(ADAPTED, note="made here"),
    "response.completed": _OURS,
    "response.content_part.added": _MADE,
    "response.content_part.done": _MADE,
    "response.created": _OURS,
    "response.custom_tool_call_input.delta": _MADE,
    "response.custom_tool_call_input.done": _MADE,
    "response.failed": _OURS,
    "response.file_search_call.completed": _RUN,
    "response.file_search_call.in_progress": _RUN,
    "response.file_search_call.searching": _RUN,
    "response.function_call_arguments.delta": _MADE,
    "response.function_call_arguments.done": _MADE,
    "response.image_generation_call.completed": _RUN,
    "response.image_generation_call.generating": _RUN,
    "response.image_generation_call.in_progress": _RUN,
    "response.image_generation_call.partial_image": _RUN,
    "response.in_progress": _OURS,
    "response.incomplete": _OURS,
    "response.mcp_call.completed": _RUN,
    "response.mcp_call.failed": _RUN,
    "response.mcp_call.in_progress": _RUN,
    "response.mcp_call_arguments.delta": _RUN,
    "response.mcp_call_arguments.done": _RUN,
    "response.mcp_list_tools.completed": _RUN,
    "response.mcp_list_tools.failed": _RUN,
    "response.mcp_list_tools.in_progress": _RUN,
    "response.output_item.added": _MADE,
    "response.output_item.done": _MADE,
    "response.output_text.annotation.added": Row(RUN_HERE, note="of the marks of sources that the router has found"),
    "response.output_text.delta": _MADE,
    "response.output_text.done": _MADE,
    "response.queued": Row(RUN_HERE, RUN_HERE, note="of a background turn"),
    "response.reasoning_summary_part.added": _MADE,
    "response.reasoning_summary_part.done": _MADE,
    "response.reasoning_summary_text.delta": _MADE,
    "response.reasoning_summary_text.done": _MADE,
    "response.reasoning_text.delta": _MADE,
    "response.reasoning_text.done": _MADE,
    "response.refusal.delta": _MADE,
    "response.refusal.done": _MADE,
    "response.shell_call_command.added": _HOSTED,
    "response.shell_call_command.delta": _HOSTED,
    "response.shell_call_command.done": _HOSTED,
    "response.shell_call_output_content.delta": _HOSTED,
    "response.shell_call_output_content.done": _HOSTED,
    "response.web_search_call.completed": _RUN,
    "response.web_search_call.in_progress": _RUN,
    "response.web_search_call.searching": _RUN,
}

# ── how it is read ───────────────────────────────────────────────────────────────────────────────────────────────────

TABLES: Mapping[str, Mapping[str, Row]] = {
    "parameters": PARAMETERS,
    "includes": INCLUDES,
    "items": ITEMS,
    "parts": PARTS,
    "tools": TOOLS,
    "choices": CHOICES,
    "events": EVENTS,
}


def chat_names(table: Mapping[str, Row], *ways: Way) -> frozenset[str]:
    """The names of what goes one of these ways at a chat server."""
    return frozenset(name for name, row in table.items() if row.chat in ways)


def chat_keys(holder: str, *ways: Way) -> frozenset[str]:
    """The same, of the keys of a parameter that is an object."""
    names = chat_names(PARAMETERS, *ways)
    return frozenset(name.removeprefix(f"{holder}.") for name in names if name.startswith(f"{holder}."))


def compatibility() -> dict[str, dict[str, dict[str, str]]]:
    """All tables as plain data: table ▶ name ▶ `{chat, native}`, and a `note` where there is one."""
    return {
        title: {
            name: {"chat": row.chat, "native": row.native} | ({"note": row.note} if row.note else {})
            for name, row in table.items()
        }
        for title, table in TABLES.items()
    }
