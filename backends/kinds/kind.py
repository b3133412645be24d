"""What is true of every server of a kind. A kind is a file here that ends in its `KIND`; `__init__.py` finds them all.

facts           what it carries, knows and lacks             fields
discover        what a server of it has                      a method, asked of a `Server`
unload          takes a model out of memory                  a method
recognition     how `kind: auto` knows it                    `hosts`, `lists`, `marks`
names           what it calls a model that a client asked for
words           how it words its errors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from backends.kinds.described import listed_capabilities
from backends.kinds.server import Discovery, GetJson, ModelFacts, PostJson, Row, Server, context_in, text_of
from backends.kinds.words import NO_WORDS, Words
from core.errors import Unsupported
from requests.content import EVERY_PART


@dataclass(frozen=True)
class Kind:
    """A kind of server. `name` is what the settings call it. A kind that asks or names in its own way is a subclass."""

    name: str
    # Speaks the Responses API itself: requests go out as they came.
    native: bool = False
    # Another router of ours: it learns which routers a request came through.
    is_router: bool = False
    # Speaks Ollama's API too: requests of Ollama's clients go out as they came, and Ollama's names for options are its
    # own.
    speaks_ollama: bool = False
    # `/v1` is put behind the configured URL; other kinds are given with it, wherever their API begins.
    adds_v1: bool = False
    # The content parts, other than text, that it can be given.
    carries: frozenset[str] = EVERY_PART
    # Where an assistant message of the history holds its reasoning.
    reasoning_key: str | None = "reasoning_content"
    # The words that it knows for how much to think, least first; None: all of them.
    efforts: tuple[str, ...] | None = None
    # What becomes of a JSON format: `native` (it can hold its model to one), `prompt` (the model is asked for it, and
    # its answer checked) or `refuse`.
    structured_outputs: str = "native"
    # Whether it may leave `<think>…</think>` at the start of its text: `auto`; `opened` where its templates open the
    # tag, so that only `</think>` is in there; or `off`.
    think_tags: str = "auto"
    # Heeds a tool choice that names a function; others call any, or refuse it, and are offered that one alone.
    chooses_by_name: bool = True
    # Asked to stream whether or not the client is: llama.cpp notices at once that nobody listens to a stream any more,
    # but to whole answers only when nothing else runs there.
    streams_always: bool = False
    # POST here, below the API's base, counts the input tokens of a request.
    count_path: str | None = None
    # The front doors that it does not have, as paths below /v1.
    lacks: frozenset[str] = frozenset()
    # It takes the URLs of images; others are given the images.
    fetches_images: bool = True
    # Its names for what Ollama's clients call otherwise.
    option_names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    # Where its servers are, if that is enough to know them.
    hosts: frozenset[str] = frozenset()
    # Who owns each model in its listing at /v1/models (`owned_by`).
    owner: str | None = None
    # Paths that only it has, the usual one first; `is_mark` knows the answer.
    marks: tuple[str, ...] = ()
    # Others name that owner too: only a mark is proof.
    is_imitated: bool = False
    # Found by asking, and not named in the settings.
    is_found: bool = False
    words: Words = NO_WORDS

    @property
    def is_known(self) -> bool:
        """Whether requests can be sent there."""
        return True

    def is_same(self, other: Kind) -> bool:
        """Whether it is the same kind, whatever the settings of an endpoint have changed in it."""
        return self.name == other.name

    def addresses(self, url: str) -> tuple[str, str]:
        """Where the server's root is, for an endpoint of this URL, and where its API begins."""
        if self.adds_v1:
            root = url.removesuffix("/v1")
            return root, f"{root}/v1"
        # Whoever leaves the kind open may leave out the path, too.
        base = f"{url.removesuffix('/v1')}/v1" if self.is_found else url
        return base, base

    async def discover(self, server: Server) -> Discovery:
        """What a server of this kind has. A listing that fails raises an `APIError`; whatever else fails leaves a fact
        unknown."""
        (rows,) = await server.listing("/models", "data")
        return Discovery(
            {
                name: ModelFacts(context=context_in(row), capabilities=listed_capabilities(row))
                for row in rows
                if (name := text_of(row.get("id")))
            }
        )

    async def unload(self, model: str, get_json: GetJson, post_json: PostJson) -> None:
        """Takes one of its models out of memory. Raises `Unsupported`, a 501, where the server cannot do that."""
        raise self.cannot_unload()

    def cannot_unload(self) -> Unsupported:
        """The error for a server that keeps its models."""
        words = f"the server of this model ({self.name}) cannot take it out of memory when it is asked to"
        return Unsupported(words, param="keep_alive", status=501)

    def lists(self, rows: list[Row]) -> bool:
        """Whether the models at /v1/models, at least one, are listed as this kind does it."""
        return self.owner is not None and all(row.get("owned_by") == self.owner for row in rows)

    def is_listing(self, answer: Any) -> bool:
        """Whether the whole answer at /v1/models is one that only this kind gives."""
        return False

    def is_mark(self, answer: Row) -> bool:
        """Whether the answer at one of its `marks` is one that only this kind gives."""
        return False

    def name_in(self, models: Mapping[str, ModelFacts], wanted: str) -> str | None:
        """The server's name for the model that a client calls `wanted`, or None if it has none, or more than one that
        it could be."""
        if wanted in models:
            return wanted
        named = [name for name, facts in models.items() if wanted in facts.aliases]
        if named:
            return named[0] if len(named) == 1 else None
        # Ollama's clients write the tag out; a name has one.
        bare = wanted.removesuffix(":latest")
        return bare if bare in models and ":" not in bare.rpartition("/")[2] else None
