"""What the tests of the stores put into them."""

from __future__ import annotations

from typing import Any

from db import Store

Json = dict[str, Any]
ENDS = ("completed", "incomplete", "failed", "cancelled")


def item(text: str) -> Json:
    return {"type": "message", "role": "user", "content": text}


def with_id(item_id: str, text: str = "") -> Json:
    return {"id": item_id, **item(text or f"I am {item_id}")}


def row(status: str = "completed", *, after: str | None = None, at: int = 1000, **response: Any) -> Json:
    """What `store_response` is given for a turn."""
    return {
        "previous_response_id": after,
        "model": "m",
        "status": status,
        "created_at": at,
        "input_messages": [item("hi")],
        "response": {"status": status, "output": [], **response},
    }


def said(text: str, **values: Any) -> Json:
    """A turn with a text and an answer to it."""
    return row(output=[item(f"answer to {text}")], **values) | {"input_messages": [item(text)]}


async def said_in(store: Store, response_id: str, owner: str = "") -> list[str]:
    """The texts of a conversation."""
    return [item["content"] for item in (await store.get_history(response_id, owner=owner)).items]
