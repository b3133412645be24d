"""Changing a request so that its backend takes it. Each change is named to the client (`x-nomyo-adapted`) and in the
log, and can be switched off (`adapt` in the settings).

    fetch_images   the backend cannot fetch images: it is given them           before it is asked
    truncation     the conversation is too long, and the client allows to shorten it (`truncation: auto`)
    hints          what an answer does without, and the name of its length, where the backend does not know them
    roles          system texts and neighbours of one role, where the model's template does not take them; a text that
                   is empty beside tool calls, where the server does not take null
    tools, images, parameters   the backend refused them: left out             off, unless the settings allow it

A backend that speaks Responses gets changes of hints and roles alone: it truncates itself. What a server refused of
hints and roles it is not asked for again (`backends/fleet/learned.py`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any

from api.turns.turn import Turn, seals_for_us
from backends.fleet.failover import Attempt
from backends.fleet.learned import EVERY_MODEL, Learned
from backends.images import ImageFetcher, with_images_fetched
from backends.kinds.words import NULL, SYSTEM
from core.config import AdaptConfig
from core.errors import BackendRefused
from core.state import AppState
from requests.included import SEALED_REASONING
from requests.messages import Message
from requests.roles import in_turns, system_as_user, system_items_as_user
from requests.tokens import estimated_tokens, message_tokens
from requests.truncation import truncated

log = logging.getLogger("nomyo.responses")

# A request is changed no more often than this, but for what can be changed only once.
MAX_CHANGES = 4
# What is left for the answer where the client names no limit.
ANSWER_TOKENS = 256
UNSEEN = {"type": "text", "text": "(An image that this model cannot see.)"}

Params = dict[str, Any]

# What shapes neither the answer nor its form.
HINTS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream_options",
        "user",
        "verbosity",
    }
)
# The two names of the longest answer.
LENGTHS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
SYSTEM_AS_USER, LEADING_TOO, IN_TURNS = "system_as_user", "all_system_as_user", "roles_in_turns"
# Not always: templates find a call by its content that is null (DeepSeek's).
EMPTY_CONTENT = "empty_content"


def change_of(name: str) -> Callable[[Params], Params]:
    """A change that can be learned, by its name in the header. It gives the params themselves where there is nothing to
    change."""
    if name == SEALED_REASONING:
        return _without_seals
    if name == EMPTY_CONTENT:
        return _with_contents
    if name in ROLE_CHANGES:
        return lambda params: _with_roles(params, name)
    old, _, new = name.partition("=")
    if new:
        return lambda params: _renamed(params, old, new) if old in params and new not in params else params
    return lambda params: _without(params, name)


ROLE_CHANGES = frozenset({SYSTEM_AS_USER, LEADING_TOO, IN_TURNS, EMPTY_CONTENT})


def _with_contents(params: Params) -> Params:
    """The messages of a chat request, each with a text."""
    messages = params.get("messages")
    if not messages or all(message["content"] is not None for message in messages):
        return params
    filled = [message if message["content"] is not None else {**message, "content": ""} for message in messages]
    return {**params, "messages": filled}


def _with_roles(params: Params, name: str) -> Params:
    """The messages of a chat request, or the items of a native one, with other roles."""
    key = "messages" if "messages" in params else "input"
    given = params.get(key)
    if not isinstance(given, list):
        return params
    if name == IN_TURNS:
        changed = in_turns(given) if key == "messages" else given
    elif key == "messages":
        changed = system_as_user(given, also_leading=name == LEADING_TOO)
    else:
        # Instructions are a system message before all others.
        changed = system_items_as_user(given, also_leading=name == LEADING_TOO or bool(params.get("instructions")))
    return params if changed is given else {**params, key: changed}


def _without_seals(params: Params) -> Params:
    """The params of a request that does not ask for sealed reasoning."""
    given = params.get("include") or []
    if SEALED_REASONING not in given:
        return params
    left = [value for value in given if value != SEALED_REASONING]
    return {**params, "include": left} if left else _without(params, "include")


def _without_sealed_items(params: Params, seals: set[str]) -> Params:
    """The params without the reasoning that has one of these seals."""
    given = params.get("input")
    if not seals or not isinstance(given, list):
        return params
    left = [item for item in given if item.get("type") != "reasoning" or item.get("encrypted_content") not in seals]
    return {**params, "input": left} if len(left) < len(given) else params


def _renamed(params: Params, old: str, new: str) -> Params:
    return {new if key == old else key: value for key, value in params.items()}


def _without(params: Params, name: str) -> Params:
    """The params without one, which may be a part of another: `text.verbosity`."""
    holder, _, key = name.rpartition(".")
    if not holder:
        return {key: value for key, value in params.items() if key != name} if name in params else params
    inner = params.get(holder)
    if not isinstance(inner, dict) or key not in inner:
        return params
    left = _without(inner, key)
    return {**params, holder: left} if left else _without(params, holder)


class Adapting:
    """The changes to the requests of a turn at one endpoint: `prepared` before it is asked, `changed` where it has
    refused."""

    _fetcher: ImageFetcher | None = None
    _changes = 0

    def __init__(self, turn: Turn, state: AppState, attempt: Attempt) -> None:
        endpoint = state.pool.endpoints.get(attempt.endpoint)
        self._turn = turn
        self._allowed: AdaptConfig = state.config.adapt
        self._model = attempt.model
        self._learned = endpoint.learned if endpoint else Learned()
        self._endpoint = endpoint
        if endpoint and self._allowed.fetch_images and not endpoint.kind.fetches_images:
            self._fetcher = state.images
        self._made: set[str] = set()

    async def prepared(self, params: Params) -> Params:
        """The request, with what its endpoint is known to need. Raises `InvalidRequest` for images that cannot be
        had."""
        if self._fetcher is not None:
            messages = await with_images_fetched(params["messages"], self._fetcher)
            changed = params if messages is params["messages"] else {**params, "messages": messages}
            params = self._noted(params, changed, "fetched_images")
        if self._learned:
            now = time.monotonic()
            for name in self._learned.changes(self._model, now):
                if self._may(name):
                    params = self._noted(params, change_of(name)(params), name)
            if "messages" not in params and (seals := self._learned.refused_seals(self._earlier_seals(), now)):
                params = self._noted(params, _without_sealed_items(params, seals), "earlier_reasoning")
        return params

    def changed(self, params: Params, error: BackendRefused) -> Params:
        """The request as the backend may take it after this refusal. Raises it, if nothing can or may be done."""
        if error.roles is not None and self._allowed.roles:
            return self._with_roles(params, error)
        if self._allowed.hints and (name := _hint_of(error, params)):
            # Some take it from other models.
            of = self._model if "model" in error.message.lower() else EVERY_MODEL
            return self._learn(params, f"{name}={LENGTHS[name]}" if name in LENGTHS else name, of, error)
        if "messages" not in params and (left := self._unsealed(params, error)) is not None:
            return left
        self._changes += 1
        if "messages" not in params or self._changes > MAX_CHANGES:
            raise error
        return (
            self._shortened(params, error) if error.code == "context_length_exceeded" else self._left_out(params, error)
        )

    @property
    def verifies(self) -> bool:
        """Whether an answer is checked against a strict schema, whoever was asked for it."""
        return self._allowed.verify

    def _may(self, name: str) -> bool:
        if name == SEALED_REASONING:
            return seals_for_us(self._turn.request)
        return self._allowed.roles if name in ROLE_CHANGES else self._allowed.hints

    # ── learned ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _learn(self, params: Params, name: str, model: str, error: BackendRefused) -> Params:
        """The request with a change that the endpoint will need again. Raises the refusal where it changes nothing."""
        changed = change_of(name)(params)
        if changed is params or name in self._made:
            raise error
        self._learned.add(model, name, time.monotonic())
        return self._noted(params, changed, name)

    def _with_roles(self, params: Params, error: BackendRefused) -> Params:
        if error.roles == NULL:
            return self._learn(params, EMPTY_CONTENT, self._model, error)
        has_later = change_of(SYSTEM_AS_USER)(params) is not params
        if error.roles == SYSTEM:
            return self._learn(params, SYSTEM_AS_USER if has_later else LEADING_TOO, self._model, error)
        if has_later:
            params = self._learn(params, SYSTEM_AS_USER, self._model, error)
            if change_of(IN_TURNS)(params) is params:
                return params
        return self._learn(params, IN_TURNS, self._model, error)

    def _unsealed(self, params: Params, error: BackendRefused) -> Params | None:
        """The request without the sealed reasoning that only we ask for or send, and no client would miss. None where
        the refusal is about something else."""
        words = f"{error.param} {error.unsupported} {error.code} {error.message}".lower()
        is_about_seals = re.search(r"encrypted[ _]content", words) is not None
        names_include = re.search(r"\binclude\b", words) is not None and not self._turn.request.params.include
        may_ask_without = (is_about_seals or names_include) and error.code != "invalid_encrypted_content"
        if may_ask_without and seals_for_us(self._turn.request) and (changed := _without_seals(params)) is not params:
            self._learned.add(self._model, SEALED_REASONING, time.monotonic())
            return changed
        if is_about_seals:
            seals = self._earlier_seals()
            if (changed := _without_sealed_items(params, seals)) is not params:
                self._learned.add_seals(seals, time.monotonic())
                return self._noted(params, changed, "earlier_reasoning")
        return None

    def _earlier_seals(self) -> set[str]:
        """Those of the turns before this one, which no client sends."""
        seals = (item.get("encrypted_content") for item in self._turn.request.history if item["type"] == "reasoning")
        return {seal for seal in seals if isinstance(seal, str) and seal}

    # ── for this once ────────────────────────────────────────────────────────────────────────────────────────────────

    def _left_out(self, params: Params, error: BackendRefused) -> Params:
        """The request without what the backend cannot do."""
        match error.unsupported:
            case "tools" if self._allowed.tools and "tools" in params:
                changed = {key: value for key, value in params.items() if key not in TOOL_PARAMS}
                return self._noted(params, changed, "tools")
            case "images" if self._allowed.images and _has_images(params["messages"]):
                seen = [_without_images(message) for message in params["messages"]]
                return self._noted(params, {**params, "messages": seen}, "images")
            case str(name) if self._allowed.parameters and name in params and name not in NEEDED:
                return self._noted(params, _without(params, name), name)
        raise error

    def _shortened(self, params: Params, error: BackendRefused) -> Params:
        """The request without the oldest turns, so that the rest and an answer fit."""
        if self._turn.request.params.truncation != "auto" or not self._allowed.truncation:
            raise error
        estimate = estimated_tokens(params)
        overflow = error.overflow
        facts = self._endpoint.facts.get(self._model) if self._endpoint else None
        limit = (overflow and overflow.limit) or (facts and facts.context)
        prompt = (overflow and overflow.prompt) or estimate
        answer = params.get("max_tokens") or params.get("max_completion_tokens") or ANSWER_TOKENS
        # Not knowing the limit: a quarter less, again and again.
        wanted = limit - min(answer, limit // 4) if limit else prompt * 3 // 4
        # In the backend's tokens, which are more or fewer than we estimate.
        scale = prompt / max(estimate, 1)
        left = truncated(
            params["messages"],
            excess_tokens=max(prompt - wanted, 1),
            tokens_of=lambda message: int(message_tokens(message) * scale),
        )
        if left is None:
            raise error
        self._made.discard(name := f"truncated={len(params['messages']) - len(left)}")  # As often as it must be.
        return self._noted(params, {**params, "messages": left}, name)

    def _noted(self, params: Params, changed: Params, name: str) -> Params:
        """The changed request. The client and the log get to know of the change."""
        if changed is not params and name != SEALED_REASONING and name not in self._made:
            turn = self._turn
            before = turn.headers.get("x-nomyo-adapted")
            turn.headers["x-nomyo-adapted"] = f"{before}, {name}" if before else name
            log.info("%s: adapted for its backend: %s", turn.id, name)
            self._made.add(name)
        return changed


TOOL_PARAMS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
# Without these a request is none; tools have a setting of their own.
NEEDED = frozenset({"model", "messages", "stream", "tools"})


def _hint_of(error: BackendRefused, params: Params) -> str | None:
    """What a refusal is about that can be left out or called otherwise."""
    if error.unsupported in LENGTHS and error.unsupported in params:
        return error.unsupported
    # A value that a chat server does not know is the router's to spare it; what speaks Responses knows what is wrong
    # with it.
    for named in (error.unsupported, error.param if error.original is None else None):
        name = (named or "").removeprefix("text.")
        if name in HINTS and name in params:
            return name
        if name == "verbosity" and "verbosity" in (params.get("text") or ()):
            return "text.verbosity"
    return None


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
