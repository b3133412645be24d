"""Conversations for the tests of what clients carry for us: how the backend reads them, and a summary of them."""

from __future__ import annotations

from typing import Any

from requests.messages import SUMMARY
from tests.conftest import Running
from tests.fake_backend import FakeBackend, chat
from tests.turns import create

Json = dict[str, Any]

SECRET = "We named the ship Zeppelin."
TRIGGER = {"type": "compaction_trigger"}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def user(text: str) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def said(text: str) -> Json:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}


def messages(backend: FakeBackend) -> list[Json]:
    return backend.turns[-1].json["messages"]


def summary_in(backend: FakeBackend, at: int) -> str:
    """What the backend reads in place of the conversation."""
    message = messages(backend)[at]
    assert message["role"] == "user"
    assert message["content"].startswith(SUMMARY)
    return message["content"].removeprefix(SUMMARY).strip()


async def compacted(served: Running, backend: FakeBackend, **more: Any) -> Json:
    """The compaction item of a conversation."""
    backend.script(chat(SECRET))
    response = await create(served.http, input=[user("Hi"), TRIGGER], **more)
    (item,) = response["output"]
    return item
