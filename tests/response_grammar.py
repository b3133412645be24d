"""What a response object must hold, at each of the events that bring one."""

from typing import Any

Json = dict[str, Any]

STATUS = {
    "response.created": ("in_progress", "queued"),
    "response.queued": ("queued",),
    "response.in_progress": ("in_progress",),
    "response.completed": ("completed",),
    "response.incomplete": ("incomplete",),
    "response.failed": ("failed", "cancelled"),
}

# Every required key of Open Responses' ResponseResource, and the types that it may have.
_number = (int, float)
_null = type(None)
RESPONSE_KEYS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "object": (str,),
    "created_at": (int,),
    "completed_at": (int, _null),
    "status": (str,),
    "incomplete_details": (dict, _null),
    "model": (str,),
    "previous_response_id": (str, _null),
    # A list where a stored prompt brings them: OpenAI alone does that.
    "instructions": (str, list, _null),
    "output": (list,),
    "error": (dict, _null),
    "tools": (list,),
    "tool_choice": (str, dict),
    "truncation": (str,),
    "parallel_tool_calls": (bool,),
    "text": (dict,),
    "top_p": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "top_logprobs": (int,),
    "temperature": _number,
    "reasoning": (dict, _null),
    "usage": (dict, _null),
    "max_output_tokens": (int, _null),
    "max_tool_calls": (int, _null),
    "store": (bool,),
    "background": (bool,),
    "service_tier": (str,),
    "metadata": (object,),
    "safety_identifier": (str, _null),
    "prompt_cache_key": (str, _null),
}


def check_response(type_: str, response: Json) -> None:
    """Raise AssertionError unless this is a whole response, as the event of that type brings it."""
    missing = [key for key in RESPONSE_KEYS if key not in response]
    assert not missing, f"the response misses {missing}"
    for key, types in RESPONSE_KEYS.items():
        assert _fits(response[key], types), f"response.{key} is {response[key]!r}"
    assert response["object"] == "response", f"response.object is {response['object']!r}"
    assert response["id"], "response.id is empty"
    assert "type" in (response["text"].get("format") or {}), "response.text has no format"
    status = response["status"]
    assert status in STATUS[type_], f"response.status is {status!r}"
    _check_reasons(type_, response)
    if response["usage"] is not None:
        _check_usage(response["usage"])


def _check_reasons(type_: str, response: Json) -> None:
    details, error = response["incomplete_details"], response["error"]
    if type_ == "response.incomplete":
        reason = (details or {}).get("reason")
        named = isinstance(reason, str) and reason
        assert named, f"incomplete_details is {details!r}"
    else:
        assert details is None, f"incomplete_details is {details!r}"
    if response["status"] == "failed":
        fits = error and isinstance(error.get("code"), str) and isinstance(error.get("message"), str)
        assert fits, f"response.error is {error!r}"
    elif response["status"] != "cancelled":
        assert error is None, f"response.error is {error!r}"


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    # A bool is an int to Python, and not to JSON.
    return isinstance(value, types) and (not isinstance(value, bool) or bool in types or object in types)


def _check_usage(usage: Json) -> None:
    """The three counts alone, or with both detail objects."""
    details = [key for key in ("input_tokens_details", "output_tokens_details") if key in usage]
    assert len(details) != 1, f"usage has {details[0]} and not the other one"
    counts = {key: usage.get(key) for key in ("input_tokens", "output_tokens", "total_tokens")}
    if details:
        counts["cached_tokens"] = (usage["input_tokens_details"] or {}).get("cached_tokens")
        counts["reasoning_tokens"] = (usage["output_tokens_details"] or {}).get("reasoning_tokens")
    for key, count in counts.items():
        assert type(count) is int, f"usage: {key} is {count!r}"
