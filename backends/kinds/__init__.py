"""The kinds of model server, a file each. Adding one is adding its file, which ends in its `KIND`.

KINDS             all of them, by name
kind_of(config)   the kind of an endpoint, with what its settings change
recognise(…)      the kind of a server of which only the address is known
discover(…)       what a server has
LEXICON           what the errors of all of them mean
"""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from importlib import import_module

from backends.kinds import auto
from backends.kinds.kind import Kind
from backends.kinds.server import Discovery, GetJson, Memory, Server
from backends.kinds.words import COMMON, Lexicon
from core.config import EndpointConfig
from core.errors import APIError
from core.json import Json
from requests.messages import THINK_TAGS

_MODULES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]

KINDS: dict[str, Kind] = {kind.name: kind for module in _MODULES if (kind := getattr(module, "KIND", None))}
# Whatever nobody recognises speaks chat completions.
UNKNOWN = KINDS["openai-chat"]
LEXICON = Lexicon(*(kind.words for kind in KINDS.values()), COMMON)

_REPLAY_KEYS = {"think_tags": THINK_TAGS, "none": None}


def kind_of(config: EndpointConfig, found: Kind | None = None) -> Kind:
    """The kind of an endpoint: its facts, but for what its settings change. `found` is what the server was seen to be,
    where they leave that open."""
    facts: Json = {"is_found": found is not None}
    if config.reasoning_efforts is not None:
        facts["efforts"] = config.reasoning_efforts
    if config.reasoning_replay is not None:
        facts["reasoning_key"] = _REPLAY_KEYS.get(config.reasoning_replay, config.reasoning_replay)
    if config.structured_outputs is not None:
        facts["structured_outputs"] = config.structured_outputs
    if not isinstance(config.think_tags, bool):
        facts["think_tags"] = config.think_tags
    elif not config.think_tags:
        facts["think_tags"] = "off"
    return replace(KINDS[found.name if found else config.kind], **facts)


async def recognise(get_json: GetJson, url: str = "") -> Kind:
    """The kind of the server behind `get_json`; `url` is what was configured. Raises an `APIError` when it cannot be
    known yet."""
    return await auto.recognise(KINDS.values(), UNKNOWN, get_json, url)


async def discover(kind: Kind, get_json: GetJson, memory: Memory | None = None) -> Discovery:
    """What a server of this kind has. A listing that fails raises an `APIError`; whatever else fails leaves a fact
    unknown."""
    memory = memory if memory is not None else Memory()
    try:
        return await kind.discover(Server(get_json, memory))
    except APIError:
        memory.forget()
        raise
