"""Why an answer ended, in the words of all servers."""

from __future__ import annotations

from typing import Literal

Ending = Literal["completed", "failed", "max_output_tokens", "content_filter"]

COMPLETED = "stop stop_sequence eos eos_token end_turn tool_calls tool_call tool_use function_call"
LIMITS = """length max_tokens max_output_tokens max_new_tokens max_completion_tokens model_length max_length token_limit
    length_limit context_length context_length_exceeded model_context_window_exceeded"""
FILTERED = """content_filter content_filtered content_filtering filtered safety image_safety sensitive moderation
    recitation blocklist prohibited_content spii guardrail_intervened refusal"""
FAILED = """error failed abort aborted cancel cancelled canceled timeout network_error insufficient_system_resource
    server_error internal_error engine_error unavailable malformed_function_call unexpected_tool_call"""
# Servers that write "null" as a text mean that the answer goes on.
GOES_ON = frozenset({"", "null", "none", "undefined", "not_finished", "finish_reason_unspecified"})

ENDINGS: dict[str | None, Ending] = {
    # An answer without a reason has completed.
    **dict.fromkeys((None, ""), "completed"),
    **dict.fromkeys(COMPLETED.split(), "completed"),
    **dict.fromkeys(LIMITS.split(), "max_output_tokens"),
    **dict.fromkeys(FILTERED.split(), "content_filter"),
    **dict.fromkeys(FAILED.split(), "failed"),
}


# Nearly all answers end so.
USUAL = frozenset({None, "", "stop", "tool_calls"})
INCOMPLETE = ("max_output_tokens", "content_filter")


def ending_of(finish_reason: str | None) -> Ending | None:
    """What a finish reason means; None for one that nobody knows."""
    return ENDINGS.get(finish_reason) or ENDINGS.get(_plain(finish_reason or ""))


def ends_answer(finish_reason: str) -> bool:
    """Whether that is a reason at all."""
    return finish_reason in ENDINGS or _plain(finish_reason) not in GOES_ON


def incomplete_reason(finish_reason: str | None) -> str | None:
    """The reason of an incomplete response. None if it is whole, or failed."""
    ending = ENDINGS.get(finish_reason) or ending_of(finish_reason)
    return ending if ending in INCOMPLETE else None


def _plain(reason: str) -> str:
    """`FinishReason.MAX_TOKENS` and `max-tokens` are `max_tokens`."""
    return reason.strip().lower().rpartition(".")[2].replace("-", "_").replace(" ", "_")
