"""Responses, as a backend gives them that speaks the Responses API itself."""

from dataclasses import dataclass, field
from typing import Any

from tests.fake_backend.answers import event_stream, json_answer
from tests.fake_backend.parts import Call, Part, Text, flattened, fragments_of, logprob_of, number_calls, tokens
from tests.fake_backend.reply import CREATED, Answer, Json, Reply, Step


def responses_usage(input: int = 7, output: int = 3, *, cached: int = 0, reasoning: int = 0) -> Json:
    return {
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input + output,
    }


def native(
    *parts: Part,
    incomplete: str | None = None,
    usage: Json | None = responses_usage(),  # noqa: B008 (only read)
    delay_s: float = 0.0,
    then: Step | None = None,
    as_stream: bool | None = None,
) -> Answer:
    """A Responses answer, as OpenAI gives it: events when the request asks for a stream, one JSON body when not.

    `incomplete` is the reason for a response that ended early; `then` happens after the last delta.
    """

    async def answer(reply: Reply) -> None:
        request = reply.request.json
        events = native_events(*parts, request=request, incomplete=incomplete, usage=usage)
        if request.get("stream") if as_stream is None else as_stream:
            if then is not None:
                last = max(i for i, event in enumerate(events) if event["type"].endswith(".delta"))
                events = events[: last + 1]
            await event_stream(events, delay_s=delay_s, then=then)(reply)
        else:
            await json_answer(events[-1]["response"], then=then)(reply)

    return answer


def native_events(
    *parts: Part,
    request: Json | None = None,
    response_id: str = "resp_native",
    incomplete: str | None = None,
    usage: Json | None = responses_usage(),  # noqa: B008 (only read)
) -> list[Json]:
    """The events of a whole response: one output item a part, one after another."""
    emit = _Events(response_id, request or {})
    emit.lifecycle("response.created", "in_progress")
    emit.lifecycle("response.in_progress", "in_progress")
    flat = flattened(number_calls(parts))
    for part in flat:
        status = "incomplete" if incomplete and part is flat[-1] else "completed"
        if isinstance(part, Call):
            emit.call(part, status)
        elif part.key in ("content", "refusal"):
            emit.message(part, status)
        else:
            emit.reasoning(part)
    if incomplete:
        emit.lifecycle("response.incomplete", "incomplete", usage, incomplete_details={"reason": incomplete})
    else:
        emit.lifecycle("response.completed", "completed", usage, completed_at=CREATED + 1)
    return emit.events


@dataclass(slots=True)
class _Events:
    """Writes events down, each with its number."""

    response_id: str
    request: Json
    events: list[Json] = field(default_factory=list)
    output: list[Json] = field(default_factory=list)

    def lifecycle(self, type: str, status: str, usage: Json | None = None, **fields: Any) -> None:
        echo = {key: self.request[key] for key in _ECHO if self.request.get(key) is not None}
        response = {**_ECHO, **echo, "id": self.response_id, "object": "response", "created_at": CREATED}
        response |= {"status": status, "completed_at": None, "error": None, "incomplete_details": None}
        response |= {"output": list(self.output), "usage": usage, **fields}
        self._emit(type, response=response)

    def message(self, said: Text, status: str) -> None:
        kind, key = ("refusal", "refusal") if said.key == "refusal" else ("output_text", "text")
        item: Json = {"id": self._id("msg"), "type": "message", "role": "assistant", "content": []}
        zero: Json = {"type": kind, key: ""} | ({"annotations": [], "logprobs": []} if key == "text" else {})
        logprobs = [logprob_of(token) for token in tokens(said.text)] if said.logprobs else []
        part = zero | {key: said.text} | ({"logprobs": logprobs} if key == "text" else {})
        self._added(item | {"status": "in_progress"})
        at = {"item_id": item["id"], "output_index": len(self.output), "content_index": 0}
        self._emit("response.content_part.added", **at, part=zero)
        for n, token in enumerate(tokens(said.text)):
            extra = {"logprobs": logprobs[n : n + 1]} if key == "text" else {}
            self._emit(f"response.{kind}.delta", **at, delta=token, **extra)
        extra = {"logprobs": logprobs} if key == "text" else {}
        self._emit(f"response.{kind}.done", **at, **{key: said.text}, **extra)
        self._emit("response.content_part.done", **at, part=part)
        self._done(item | {"status": status, "content": [part]})

    def reasoning(self, thought: Text) -> None:
        item: Json = {"id": self._id("rs"), "type": "reasoning", "summary": []}
        part = {"type": "reasoning_text", "text": thought.text}
        self._added(item | {"content": []})
        at = {"item_id": item["id"], "output_index": len(self.output), "content_index": 0}
        self._emit("response.content_part.added", **at, part=part | {"text": ""})
        for token in tokens(thought.text):
            self._emit("response.reasoning_text.delta", **at, delta=token)
        self._emit("response.reasoning_text.done", **at, text=thought.text)
        self._emit("response.content_part.done", **at, part=part)
        self._done(item | {"content": [part]})

    def call(self, part: Call, status: str) -> None:
        item = {"id": self._id("fc"), "type": "function_call", "call_id": part.id, "name": part.name}
        self._added(item | {"arguments": "", "status": "in_progress"})
        at = {"item_id": item["id"], "output_index": len(self.output)}
        for fragment in fragments_of(part) or [part.arguments]:
            self._emit("response.function_call_arguments.delta", **at, delta=fragment)
        self._emit("response.function_call_arguments.done", **at, arguments=part.arguments)
        self._done(item | {"arguments": part.arguments, "status": status})

    def _id(self, prefix: str) -> str:
        return f"{prefix}_native{len(self.output)}"

    def _added(self, item: Json) -> None:
        self._emit("response.output_item.added", output_index=len(self.output), item=item)

    def _done(self, item: Json) -> None:
        self._emit("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)

    def _emit(self, type: str, **fields: Any) -> None:
        self.events.append({"type": type, "sequence_number": len(self.events), **fields})


_ECHO: Json = {
    "model": "test-model",
    "previous_response_id": None,
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "temperature": 1.0,
    "reasoning": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "store": True,
    "background": False,
    "service_tier": "default",
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}
