"""What a hosted tool is: one that OpenAI runs for its models, and the router for any, where the settings have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from api.turns.turn import Turn
from core.json import Json
from core.state import AppState
from requests.router_tools import RouterTool
from requests.tools import Item


class HostedRunner(Protocol):
    """A hosted tool during one turn. `tools` are the functions that a model is offered for it, each of the `kind` of
    its calls; `heeded` are names in `x-nomyo-ignored` of what something comes of because of it (`include.…`),
    `ignored` of settings of it of which nothing comes (`tools.…`)."""

    @property
    def tools(self) -> Sequence[RouterTool]: ...
    @property
    def heeded(self) -> frozenset[str]: ...
    @property
    def ignored(self) -> frozenset[str]: ...

    def begin(self, turn: Turn) -> None:
        """Before the model is asked for the first time."""
        ...

    async def run(self, call: Item) -> Item:
        """The call with what was answered (`with_output`), or its error (`with_error`), which names the tool to the
        client, too. What is not there in `tools.timeout_s` is given up; an exception is logged, and ends this call
        alone."""
        ...

    def close(self) -> None:
        """Nothing more is called."""
        ...


class HostedTool(Struct, frozen=True):
    """A hosted tool. `types` are those of it in a request, `call` is that of its items (`requests/hosted_calls.py` has
    what these look like); `is_set_up`: the settings have it for an owner, else it is left out and named to the
    client. `runner` is given the entry of the request that it is asked for by, behind its place there, and raises
    `InvalidRequest` for one that is wrong."""

    call: str
    types: tuple[str, ...]
    is_set_up: Callable[[AppState, str], bool]
    runner: Callable[[AppState, Turn, str, Json], HostedRunner]
