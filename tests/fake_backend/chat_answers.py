"""Chat completions, as chat servers give them."""

from itertools import zip_longest
from typing import Any

from tests.fake_backend.answers import SSE_HEADERS, json_answer, sse, stream
from tests.fake_backend.parts import (
    Call,
    Interleaved,
    Part,
    Text,
    flattened,
    fragments_of,
    logprob_of,
    number_calls,
    tokens,
)
from tests.fake_backend.reply import CREATED, Answer, Json, Reply, Step

DONE = b"data: [DONE]\n\n"


def chat_usage(
    prompt: int = 7, completion: int = 3, *, cached: int | None = None, reasoning: int | None = None
) -> Json:
    """A chat usage; a detail object is in it when its number is given."""
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def chat(
    *parts: Part,
    finish_reason: str | None = None,
    usage: Json | None = chat_usage(),  # noqa: B008 (only read)
    delay_s: float = 0.0,
    then: Step | None = None,
    as_stream: bool | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """A chat completion: chunks when the request asks for a stream, one JSON body when not.

    finish_reason   tool_calls or stop, if it is not given
    usage           in a stream it is sent when the request includes it; None sends it never
    then            happens after the last delta, instead of finish_reason, usage and [DONE]
    as_stream       True or False to answer in that form whatever the request asked for
    """
    numbered = list(number_calls(parts))
    finish = finish_reason or ("tool_calls" if any(isinstance(p, Call) for p in flattened(numbered)) else "stop")

    async def answer(reply: Reply) -> None:
        request = reply.request.json
        model = request.get("model") or "test-model"
        if not (request.get("stream") if as_stream is None else as_stream):
            body = _completion(flattened(numbered), model, finish, usage)
            await json_answer(body, headers=headers, then=then)(reply)
            return
        opening = chunk({"role": "assistant", "content": ""}, model=model)
        said = [chunk(delta, model=model, logprobs=lp) for part in numbered for delta, lp in _deltas(part)]
        ending: list[Step] = [chunk({}, model=model, finish_reason=finish)]
        if usage and (request.get("stream_options") or {}).get("include_usage"):
            ending.append(chunk(model=model, usage=usage))
        ending.append(DONE)
        writes = [opening, *said, *(ending if then is None else [then])]
        await stream(*writes, delay_s=delay_s, headers=SSE_HEADERS | (headers or {}))(reply)

    return answer


def chunk(delta: Json | None = None, *, model: str = "test-model", **choice_or_top: Any) -> bytes:
    """One chat chunk as a frame; finish_reason and logprobs go into its choice, the rest (usage) beside it.

    Without a delta there is no choice, as in the chunk that carries the usage.
    """
    choice = {"index": 0, "delta": delta, "finish_reason": choice_or_top.pop("finish_reason", None)}
    if (logprobs := choice_or_top.pop("logprobs", None)) is not None:
        choice["logprobs"] = logprobs
    return sse(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": model,
            "choices": [] if delta is None else [choice],
            **choice_or_top,
        }
    )


def _deltas(part: Part) -> list[tuple[Json, Json | None]]:
    """(delta, logprobs) for each chunk that the part makes."""
    if isinstance(part, Interleaved):
        rounds = zip_longest(*(_deltas(inner) for inner in part.parts))
        return [delta for round_ in rounds for delta in round_ if delta is not None]
    if isinstance(part, Text):
        return [
            ({part.key: token}, {"content": [logprob_of(token)], "refusal": None} if part.logprobs else None)
            for token in tokens(part.text)
        ]
    assert isinstance(part, Call)
    function = {"name": part.name, "arguments": "" if part.fragments else part.arguments}
    first = {"index": part.index, "id": part.id, "type": "function", "function": function}
    rest = [{"index": part.index, "function": {"arguments": piece}} for piece in fragments_of(part)]
    return [({"tool_calls": [delta]}, None) for delta in (first, *rest)]


def _completion(parts: list[Text | Call], model: str, finish_reason: str, usage: Json | None) -> Json:
    message: Json = {"role": "assistant", "content": None}
    logprobs: list[Json] = []
    for part in parts:
        if isinstance(part, Text):
            message[part.key] = (message.get(part.key) or "") + part.text
            logprobs += [logprob_of(token) for token in tokens(part.text)] if part.logprobs else []
        else:
            function = {"name": part.name, "arguments": part.arguments}
            calls = message.setdefault("tool_calls", [])
            calls.append({"id": part.id, "type": "function", "function": function})
    choice: Json = {"index": 0, "message": message, "finish_reason": finish_reason}
    if logprobs:
        choice["logprobs"] = {"content": logprobs, "refusal": None}
    completion = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
    }
    return completion if usage is None else completion | {"usage": usage}
