"""Changing a request so that a chat backend takes it. Each change is named to the client (`x-nomyo-adapted`) and in the log,
and can be switched off (`adapt` in the settings).

    fetch_images   the backend cannot fetch images: it is given them           before it is asked
    truncation     the conversation is too long, and the client allows to shorten it (`truncation: auto`)
    tools, images, parameters   the backend refused them: left out             off, unless the settings say otherwise
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from api.turns.turn import Turn
from backends.fleet.failover import Attempt
from backends.images import ImageFetcher, with_images_fetched
from backends.kinds.kind import Kind
from backends.wire.streams import BackendStream
from core.config import AdaptConfig
from core.errors import BackendRefused
from core.state import AppState
from requests.messages import Message
from requests.tokens import estimated_tokens, message_tokens
from requests.truncation import truncated

log = logging.getLogger("nomyo.responses")

# A request is changed no more often than this.
MAX_CHANGES = 4
# What is left for the answer where the client names no limit.
ANSWER_TOKENS = 256
UNSEEN = {"type": "text", "text": "(An image that this model cannot see.)"}


Create = Callable[[dict[str, Any]], Awaitable[Any]]


def adapted(create: Create, turn: Turn, kind: Kind, state: AppState, attempt: Attempt) -> Create:
    """`create` for a turn, with the changes that its backend needs; as it is, where nothing might be changed."""
    allowed = state.config.adapt
    fetcher = state.images if allowed.fetch_images and not kind.fetches_images else None
    could_change = turn.request.params.truncation == "auto" or allowed.tools or allowed.images or allowed.parameters
    if fetcher is None and not could_change:
        return create
    context = state.pool.endpoints.context(attempt.endpoint, attempt.model)
    return Adapting(create, turn, allowed, fetcher, context, could_change=could_change)


class Adapting:
    """`create`, with the changes. `context` is how many tokens the backend takes, if it says."""

    def __init__(
        self,
        create: Create,
        turn: Turn,
        allowed: AdaptConfig,
        fetcher: ImageFetcher | None,
        context: int | None,
        *,
        could_change: bool,
    ) -> None:
        self._create = create
        self._turn = turn
        self._allowed = allowed
        self._fetcher = fetcher
        self._context = context
        self._could_change = could_change

    async def __call__(self, params: dict[str, Any]) -> Any:
        if self._fetcher is not None:
            messages = await with_images_fetched(params["messages"], self._fetcher)
            if messages is not params["messages"]:
                self._tell("fetched_images")
                params = {**params, "messages": messages}
        for _ in range(MAX_CHANGES):
            try:
                return await self._begun(params)
            except BackendRefused as error:
                params = self._changed(params, error)
        return await self._begun(params)

    async def _begun(self, params: dict[str, Any]) -> Any:
        """The answer; where something could be changed, a stream not before its first piece: some servers refuse in there."""
        answer = await self._create(params)
        if self._could_change and isinstance(answer, BackendStream):
            await answer.prime()
        return answer

    def _changed(self, params: dict[str, Any], error: BackendRefused) -> dict[str, Any]:
        """The request as the backend may take it. Raises its refusal, if nothing can or may be done."""
        if error.code == "context_length_exceeded":
            messages = self._shortened(params, error)
            self._tell(f"truncated={len(params['messages']) - len(messages)}")
            return {**params, "messages": messages}
        match error.unsupported:
            case "tools" if self._allowed.tools and "tools" in params:
                self._tell("tools")
                return {key: value for key, value in params.items() if key not in TOOL_PARAMS}
            case "images" if self._allowed.images and _has_images(params["messages"]):
                self._tell("images")
                return {**params, "messages": [_without_images(message) for message in params["messages"]]}
            case str(name) if self._allowed.parameters and name in params and name not in NEEDED:
                self._tell(name)
                return {key: value for key, value in params.items() if key != name}
        raise error

    def _shortened(self, params: dict[str, Any], error: BackendRefused) -> list[Message]:
        """The messages without the oldest turns, so that the rest and an answer fit."""
        if self._turn.request.params.truncation != "auto" or not self._allowed.truncation:
            raise error
        estimate = estimated_tokens(params)
        overflow = error.overflow
        limit = (overflow and overflow.limit) or self._context
        prompt = (overflow and overflow.prompt) or estimate
        # Not knowing the limit: a quarter less, again and again.
        wanted = limit - min(params.get("max_tokens") or ANSWER_TOKENS, limit // 4) if limit else prompt * 3 // 4
        # In the backend's tokens, which are more or fewer than we estimate.
        scale = prompt / max(estimate, 1)
        left = truncated(
            params["messages"],
            excess_tokens=max(prompt - wanted, 1),
            tokens_of=lambda message: int(message_tokens(message) * scale),
        )
        if left is None:
            raise error
        return left

    def _tell(self, change: str) -> None:
        turn = self._turn
        told = turn.headers.get("x-nomyo-adapted")
        turn.headers["x-nomyo-adapted"] = f"{told}, {change}" if told else change
        log.info("%s: adapted for its backend: %s", turn.id, change)


TOOL_PARAMS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
# Without these a request is none; tools have a setting of their own.
NEEDED = frozenset({"model", "messages", "stream", "tools"})


def _has_images(messages: list[Message]) -> bool:
    return any(
        part["type"] == "image_url"
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
    )


def _without_images(message: Message) -> Message:
    if not isinstance(message["content"], list):
        return message
    return {**message, "content": [UNSEEN if part["type"] == "image_url" else part for part in message["content"]]}
