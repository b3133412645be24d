"""The answer of a backend that cannot hold its model to a JSON format: it is shown the format, and its answer is
checked. That of one that can is only checked."""

from __future__ import annotations

import logging

from api.turns.backend import Backend
from api.turns.chat_events import whole_answer
from api.turns.turn import Turn
from core.errors import ModelFailed, Unsupported
from core.json import Json
from requests.responses import output_text
from requests.structured import Checker, format_prompt, repair_prompt
from requests.tools import Item
from requests.usage import summed_usage

log = logging.getLogger("nomyo.responses")


def is_verified(backend: Backend, turn: Turn) -> bool:
    """Whether an answer is checked although its server holds the model to the format: it is strict, and the settings
    want it."""
    text = turn.request.params.text
    wants = backend.adapting is not None and backend.adapting.verifies
    return wants and text is not None and text.format is not None and text.format.get("strict") is True


async def structured(backend: Backend, turn: Turn, params: Json) -> None:
    """The answer of a backend that cannot hold its model to a JSON format: the format is described to the model, its
    answer is checked, and it gets one try to repair what is wrong. Raises `ModelFailed` if that fails, `Unsupported`
    where the settings refuse."""
    if backend.kind.structured_outputs == "refuse":
        raise Unsupported("The backend of this model cannot be held to a JSON format.", param="text.format")
    assert turn.request.params.text is not None
    assert turn.request.params.text.format is not None
    format = turn.request.params.text.format
    checker = Checker(format)
    if backend.kind.structured_outputs != "native":
        del params["response_format"]
        params["messages"] = format_prompt(params["messages"], format)
    usage: Json | None = None
    for is_repair in (False, True):
        inner = await whole_answer(backend, params)
        output = inner.response["output"]
        usage = summed_usage(usage, inner.chat_usage)
        answer = output_text(output)
        if inner.response["status"] != "completed" or not _is_text(output):
            break  # Cut off, refused, or not the answer yet.
        text, problem = checker.check(answer)
        if problem is None:
            _set_text(output, text)
            break
        log.info("%s: the answer does not fit its format%s", turn.id, ", not repaired" if is_repair else "")
        if is_repair:
            raise ModelFailed(f"The model did not answer in the format that was asked for: {problem}")
        params["messages"] = [*params["messages"], *repair_prompt(answer, problem)]
    builder = turn.builder
    turn.emit(builder.begin() + builder.whole(output, finish_reason=inner.finish_reason, usage=usage))


def _is_text(output: list[Item]) -> bool:
    """Whether the model has answered with text, and neither called a tool nor refused."""
    parts = [part["type"] for item in output if item["type"] == "message" for part in item["content"]]
    return "refusal" not in parts and not any(item["type"] == "function_call" for item in output)


def _set_text(output: list[Item], text: str) -> None:
    """Makes `text` all of the output. Log probabilities belong to the model's own text, which may be longer."""
    messages = [item for item in output if item["type"] == "message"]
    for message in messages[1:]:
        output.remove(message)
    first = messages[0]["content"][0]
    messages[0]["content"] = [first if first["text"] == text else {**first, "text": text, "logprobs": []}]
