"""A model server that is asked what it has: what any kind of server needs for that.

Server        asks, and remembers what need not be asked again (`Memory`)
Discovery     what it was seen to have, a row of `ModelFacts` a model
count, text_of, dict_of, rows_of   one value of an answer, or nothing where it is of another type
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from core.errors import APIError, BackendError, BackendRefused
from core.json import Json

# GET below the server's root: where `/v1` begins for the kinds that add it, else the configured URL. Raises an
# `APIError`.
GetJson = Callable[[str], Awaitable[Any]]
# POST there, with an object.
PostJson = Callable[[str, Json], Awaitable[Any]]
Row = Json

# The largest services list some thousands. More would be a burden to each who asks us for ours.
MOST_MODELS = 10_000
# How long the listing waits for the answers beside it.
GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a server lists of a model. None: nothing."""

    # In memory now. A model of another server, behind this one, is neither loaded nor unloaded.
    loaded: bool | None = None
    # The tokens that one request and its answer may have.
    context: int | None = None
    # Other names that the server knows it by.
    aliases: tuple[str, ...] = ()
    # What it lists of the model, as a row of Ollama's /api/tags has it, and, in memory, one of its /api/ps.
    row: Row = field(default_factory=dict, compare=False)
    run: Row = field(default_factory=dict, compare=False)
    # What the model can do, in Ollama's words.
    capabilities: tuple[str, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a server has."""

    # By the server's own names; those that embed, rank or speak are among them.
    models: dict[str, ModelFacts]
    # How many requests the server runs at once.
    slots: int | None = None
    version: str | None = None
    # Of another router, its id, and the types of hosted tools that it runs.
    router: str | None = None
    tools: frozenset[str] | None = None


@dataclass(slots=True)
class Memory:
    """What a server need not be asked again: the paths that it does not have, and its version. One an endpoint. A
    server that fails may come back as another, so it is forgotten then."""

    refused: set[str] = field(default_factory=set)
    version: str | None = None

    def forget(self) -> None:
        """All must be asked again."""
        self.refused.clear()
        self.version = None


class Server:
    """The server behind `get_json`. Nothing that is asked here may make it load, wake or keep a model."""

    def __init__(self, get_json: GetJson, memory: Memory | None = None) -> None:
        self._get_json = get_json
        self._memory = memory if memory is not None else Memory()

    async def listing(self, path: str, key: str, *beside: Coroutine[Any, Any, Any]) -> list[Any]:
        """The rows under `key` of the answer at `path`, then what the questions beside it gave, None for those that
        take too long. Raises an `APIError` where the answer is no listing."""
        tasks = [asyncio.create_task(question) for question in beside]
        try:
            rows = listed(await self._get_json(path), key)
            if tasks:
                await asyncio.wait(tasks, timeout=GRACE_S)
            return [rows, *(task.result() if task.done() else None for task in tasks)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, path: str) -> Any:
        """The answer at the path. Raises an `APIError`."""
        return await self._get_json(path)

    async def maybe(self, *paths: str) -> Row | None:
        """The first answer that one of the paths gives."""
        for path in paths:
            if path in self._memory.refused:
                continue
            try:
                answer = await self._get_json(path)
            except APIError as error:
                if is_missing(error):
                    self._memory.refused.add(path)
                continue
            if is_unexpected(answer):
                self._memory.refused.add(path)
            elif isinstance(answer, dict):
                return answer
        return None

    async def soon(self, path: str) -> Row | None:
        """The answer at the path, if it comes soon."""
        try:
            async with asyncio.timeout(GRACE_S):
                return await self.maybe(path)
        except TimeoutError:
            return None

    async def version(self, path: str) -> str | None:
        """The `version` in the answer at `path`; asked for once."""
        if self._memory.version is None:
            self._memory.version = text_of((await self.maybe(path) or {}).get("version"))
        return self._memory.version


# ── reading answers ──────────────────────────────────────────────────────────────────────────────────────────────────


def listed(answer: Any, key: str) -> list[Row]:
    """The rows of a listing: below `key`, where null is an empty one, or bare (Together). Raises if it is no
    listing."""
    rows = answer.get(key, answer) if isinstance(answer, dict) else answer
    if rows is None and isinstance(answer, dict):
        rows = []
    if not isinstance(rows, list):
        raise BackendError("The backend's answer is no list of models.", code="backend_bad_answer")
    if len(rows) > MOST_MODELS:
        raise BackendError(f"The backend lists more than {MOST_MODELS} models.", code="backend_bad_answer")
    return [row for row in rows if isinstance(row, dict)]


def rows_of(answer: Any, key: str) -> list[Row]:
    """The objects in the list under `key`."""
    rows = answer.get(key) if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def is_missing(error: APIError) -> bool:
    """Whether it is a 404, under either of the names that the client has for it."""
    return error.code == "backend_path_not_found" or (isinstance(error, BackendRefused) and error.status == 404)


def is_unexpected(answer: Any) -> bool:
    """Whether it is LM Studio's answer to a path that it does not know, a 200."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, str) and error.startswith("Unexpected endpoint or method")


def context_in(row: Row) -> int | None:
    """The context in a row of a `/models` listing: vLLM's and SGLang's word, OpenRouter's, Groq's, Mistral's,
    llama.cpp's."""
    for key in ("max_model_len", "context_length", "context_window", "max_context_length"):
        if length := count(row.get(key)):
            return length
    return count(dict_of(row.get("meta")).get("n_ctx"))


def count(value: Any) -> int | None:
    """A number of things, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def text_of(value: Any) -> str | None:
    """A text that is not empty, if it is one."""
    return value if isinstance(value, str) and value else None


def dict_of(value: Any) -> Row:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}
