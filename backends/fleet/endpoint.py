"""One model server: its settings, what it was seen to have, and how it fares."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from backends.fleet.advice import advice, is_strange, named, on_models, seen_there, sentences
from backends.fleet.breaker import Breaker
from backends.fleet.choice import Candidate
from backends.fleet.learned import Learned
from backends.kinds import UNKNOWN, discover, kind_of, recognise
from backends.kinds.kind import Kind
from backends.kinds.server import Discovery, Memory, ModelFacts
from backends.wire.client import BackendClient
from backends.wire.relay import NOWHERE, Relay
from cluster.protocol import InFlight
from core.config import BreakerConfig, EndpointConfig, name_of
from core.errors import (
    APIError,
    BackendCut,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    TooManyRequests,
)
from core.json import encode_json
from requests.passing import PassedThrough

log = logging.getLogger("nomyo.backends")

LISTING_TIMEOUT_S = 5.0
DEFAULT_SLOTS = 16
# How often an endpoint that does not answer is asked again.
PROBE_S = 2.0
# Looks in a row that fail before those who wait for its first byte go elsewhere.
LOST_AFTER = 2


class Endpoint:
    """A model server. `models` are by the names that clients use: aliases applied, excluded ones left out. `on_change`
    is called when they are others than before, `on_lost` when it has not answered for a while. `running` are the
    requests at its address, of all processes; `router_id` is this router's own."""

    def __init__(
        self,
        config: EndpointConfig,
        breaker: BreakerConfig,
        on_change: Callable[[], None],
        on_lost: Callable[[Endpoint], None],
        running: InFlight,
        max_answer_mb: float = 256.0,
        router_id: str = "",
    ) -> None:
        self.config = config
        self._router_id = router_id
        self._max_answer_bytes = int(max_answer_mb * 1024 * 1024)
        self.name = name_of(config)
        self.url = self.key = config.url.rstrip("/")
        self.kind: Kind = kind_of(config)
        self.client = self._make_client()
        self.in_flight = 0
        self.running = running
        self.leaving = False
        self.models: dict[str, str] = {}
        self._allowed: dict[tuple[str, ...], frozenset[str]] = {}
        self.facts: dict[str, ModelFacts] = {}
        self.seen: Discovery | None = None
        self.loaded: set[str] = set()
        self.error: str | None = "not asked yet"
        # What whoever runs the router can do about the error, or about a server without models.
        self.advice = ""
        self.version: str | None = None
        self.last_error: str | None = None
        self.outcomes: Counter[str] = Counter()
        self._breaker_config = breaker
        self.breakers: dict[str, Breaker] = {}
        self._on_change = on_change
        self._on_lost = on_lost
        self._slots: int | None = None
        self._failed_looks = 0
        self._memory = Memory()
        self.learned = Learned()
        # Whether it was seen to count input tokens.
        self.counts = False

    @property
    def max_concurrent(self) -> int:
        """How many requests it gets at once."""
        return self.config.max_concurrent or self._slots or DEFAULT_SLOTS

    @property
    def router(self) -> str | None:
        """The id of the router that it is, if it is one."""
        return self.seen.router if self.seen else None

    @property
    def tools(self) -> frozenset[str] | None:
        """The types of hosted tools that it runs, where it is another router; None where nobody knows."""
        return self.seen.tools if self.seen else None

    @property
    def healthy(self) -> bool:
        """Whether it answered when it was last asked for its models."""
        return self.error is None

    def name_of(self, model: str) -> str | None:
        """What this endpoint calls `model`, or None if it does not serve it."""
        return self.models.get(model) or self.kind.name_in(self.facts, model)

    def models_of(self, allowed: tuple[str, ...] | None) -> dict[str, str]:
        """Those of its models of which a name matches one of the patterns `allowed`, by all of their names, as in
        `models`; with None all of them."""
        if allowed is None:
            return self.models
        used = self.allowed(allowed)
        return {name: there for name, there in self.models.items() if there in used}

    def allowed(self, patterns: tuple[str, ...]) -> frozenset[str]:
        """What this endpoint calls the models of which a name matches one of the patterns: also one whose name an alias
        has taken."""
        if (used := self._allowed.get(patterns)) is None:
            named = {there for name, there in self._named() if any(fnmatchcase(name, one) for one in patterns)}
            meant = {there for one in patterns if (there := self.name_of(one))}  # `llama3` is `llama3:latest`.
            used = self._allowed[patterns] = frozenset(named | meant)
        return used

    def _named(self) -> Iterator[tuple[str, str]]:
        """Every name of each of its models, and the model."""
        yield from self.models.items()
        for there, facts in self.facts.items():
            yield there, there
            yield from ((alias, there) for alias in facts.aliases)

    def reason(self) -> str:
        """Why it serves nothing, and what can be done about it."""
        return sentences(f"{self.name}: {self.error or 'it has no models.'}", self.advice)

    def breaker(self, model: str) -> Breaker:
        """The breaker of one of its models, by its own name."""
        breaker = self.breakers.get(model)
        if breaker is None:
            config = self._breaker_config
            breaker = self.breakers[model] = Breaker(config.failures, config.cooldown_s, config.max_cooldown_s)
        return breaker

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def candidate(self, model: str, now: float) -> Candidate:
        """How it stands for a request to one of its models, by its own name."""
        breaker = self.breakers.get(model)
        return Candidate(
            endpoint=self.key,
            model=model,
            priority=self.config.priority,
            weight=self.config.weight,
            max_concurrent=self.max_concurrent,
            in_flight=self.busy,
            loaded=self.has_loaded(model),
            healthy=self.healthy,
            allowed=breaker is None or breaker.allows(now),
            probe=breaker is not None and breaker.wants_probe(now),
        )

    def has_loaded(self, model: str) -> bool:
        """Whether a model is in memory, or soon is, as another process asks it. Where the server does not report it,
        all are taken to be."""
        facts = self.facts.get(model)
        is_loaded = facts is None or facts.loaded is None or model in self.loaded
        return is_loaded or self.running.elsewhere(model) > 0

    @property
    def draining(self) -> bool:
        """Whether somebody has taken it out of the choice."""
        return self.running.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self.running.draining = draining

    @property
    def busy(self) -> int:
        """How many requests run there, of all processes: `in_flight` are those that this one has sent to it."""
        return self.running.total()

    def give_back(self, model: str) -> None:
        """A request has ended."""
        self.in_flight -= 1
        self.running.end(model)

    def take(self, model: str, now: float) -> None:
        """A request is sent there."""
        self.in_flight += 1
        self.running.begin()
        if breaker := self.breakers.get(model):
            breaker.begin(now)

    def moved_away(self, model: str) -> None:
        """A request is sent to another endpoint instead, where it is counted."""
        self.in_flight -= 1
        self.abandoned(model)

    def moved_here(self, model: str, now: float) -> None:
        """A request is sent here that was to go elsewhere. It is counted."""
        self.in_flight += 1
        if breaker := self.breakers.get(model):
            breaker.begin(now)

    def not_sent(self, model: str) -> None:
        """A request is not sent there after all: it has no slot."""
        self.in_flight -= 1
        self.running.withdraw()
        self.abandoned(model)

    def succeeded(self, model: str, now: float) -> bool:
        """It answered a request. Gives whether its breaker had been open until then."""
        self.outcomes["answered"] += 1
        self.loaded.add(model)
        if (breaker := self.breakers.get(model)) is None:
            return False
        was_open = breaker.until is not None
        breaker.success()
        return was_open

    def failed(self, model: str, error: APIError, now: float) -> None:
        """It failed a request."""
        self.outcomes["failed"] += 1
        # Not its message: a backend may repeat the prompt in it.
        self.last_error = error.code
        self.breaker(model).failure(now, error.retry_after_s, hung=isinstance(error, BackendTimeout))

    def abandoned(self, model: str) -> None:
        """A request ended in a way from which nothing is learnt of it."""
        if breaker := self.breakers.get(model):
            breaker.abandoned()

    def set_breaker(self, config: BreakerConfig) -> None:
        """Other settings for its breakers: they begin anew."""
        if config != self._breaker_config:
            self._breaker_config = config
            self.breakers.clear()

    def take_over(self, before: Endpoint) -> None:
        """Begins with what is known of the same server under its earlier settings."""
        if not before.kind.is_known:
            return
        if not self.kind.is_known:
            self._become(before.kind)
        elif not self.kind.is_same(before.kind):
            return
        self.version = before.version
        self.learned = before.learned
        if before.seen is not None:
            self._take(before.seen)

    def forgive(self) -> None:
        """Its failures are forgotten."""
        self.breakers.clear()

    async def unload(self, model: str) -> None:
        """Takes one of its models, by its own name, out of memory. Raises an `APIError`, a 501 where the server cannot
        do that."""
        await self.kind.unload(model, self._get, self._post)
        self.loaded.discard(model)

    async def close(self) -> None:
        await self.client.close()

    # ── what it has ──────────────────────────────────────────────────────────────────────────────────────────────────

    def look_again_in(self, every_s: float) -> float:
        """Seconds until it is to be asked again: one that does not answer sooner."""
        return every_s if self.healthy else min(every_s, PROBE_S)

    async def look(self) -> None:
        """Asks what it has. One that does not answer keeps what it had, and waits behind the others."""
        try:
            async with asyncio.timeout(LISTING_TIMEOUT_S):
                if not self.kind.is_known:
                    self._become(await recognise(self._get, self.url))
                seen = await discover(self.kind, self._get, self._memory)
        except Exception as error:
            if not self._is_alive_and_declared(error):
                await self._failed_look(error)
                return
            if not self.kind.is_known:
                self._become(UNKNOWN)
            seen = Discovery(dict.fromkeys(self._declared(), ModelFacts()))
        self._take(seen)

    async def _get(self, path: str) -> Any:
        return await self.client.get_json(path, LISTING_TIMEOUT_S)

    async def _post(self, path: str, params: dict[str, Any]) -> None:
        stream = await self.client.forward(path, encode_json(params), below_root=True)
        await Relay(stream.answer, PassedThrough(), NOWHERE).run()

    def _become(self, found: Kind) -> None:
        """The kind is known now: the endpoint speaks as that kind does."""
        log.info("endpoint %s is a %s", self.name, found.name)
        self.kind = kind_of(self.config, found)
        old, self.client = self.client, self._make_client()
        # Nobody was sent there yet: it had no models.
        self._closing = asyncio.ensure_future(old.close())

    async def _failed_look(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            problem = f"no answer in {LISTING_TIMEOUT_S:g} s"
        else:
            problem = error.message if isinstance(error, APIError) else repr(error)
        if self.error != problem:
            self.advice = advice(error, self.config, self.kind)
            # Whoever asks meanwhile shall read the problem.
            self.error = problem
            if is_strange(error) and self.kind.is_known and not self.kind.is_found:
                self.advice = await seen_there(self.config, self.kind, LISTING_TIMEOUT_S) or self.advice
            log.warning("endpoint %s: %s", self.name, sentences(problem, self.advice))
        self.learned.forget()
        self.counts = False
        self._failed_looks += 1
        if self._failed_looks >= LOST_AFTER:
            self._on_lost(self)

    def _is_alive_and_declared(self, error: Exception) -> bool:
        """Whether it answered, though not with its models, and the settings name what it has."""
        is_away = isinstance(error, BackendUnreachable | BackendTimeout | BackendCut)
        if self.config.models.names:
            return isinstance(error, BackendError | TooManyRequests) and not is_away
        return isinstance(error, BackendRefused) and bool(self._declared())

    def _declared(self) -> list[str]:
        """The models that the settings name; a pattern that is a name is one."""
        wanted = self.config.models
        return [*wanted.names, *(name for name in wanted.include if not set(name) & set("*?["))]

    def _take(self, seen: Discovery) -> None:
        wanted = self.config.models
        there = {**dict.fromkeys(wanted.names, ModelFacts()), **seen.models}
        used = {
            name: facts
            for name, facts in there.items()
            if any(fnmatchcase(name, pattern) for pattern in wanted.include)
            and not any(fnmatchcase(name, pattern) for pattern in wanted.exclude)
        }
        models = {name: name for name in used} | {
            public: there for public, there in self.config.aliases.items() if there in used
        }
        before, self.advice = self.advice, on_models(there, used, self.config, self.kind)
        if self.error and models:
            log.info("endpoint %s serves %s", self.name, named(models))
        elif (self.error or self.models) and not models:
            log.warning("endpoint %s has no models. %s", self.name, self.advice)
        if models and self.advice and self.advice != before:
            log.warning("endpoint %s: %s", self.name, self.advice)
        self.seen = seen
        self.facts = used
        self.loaded = {name for name, facts in used.items() if facts.loaded}
        self._slots = seen.slots
        self.version = seen.version
        self._failed_looks = 0
        changed = models != self.models or self.error is not None
        self.models, self.error = models, None
        self._allowed.clear()
        if changed:
            self._on_change()

    def describe(self) -> dict[str, Any]:
        """How it stands, for whoever runs the router."""
        now = time.monotonic()
        return {
            "name": self.name,
            # Without a password that may be in it.
            "url": re.sub(r"//[^/]*@", "//", self.url),
            "kind": self.kind.name,
            "version": self.version,
            "state": "leaving" if self.leaving else "draining" if self.draining else "up" if self.healthy else "down",
            "error": self.error,
            "advice": self.advice or None,
            "last_error": self.last_error,
            "in_flight": self.busy,
            "max_concurrent": self.max_concurrent,
            "priority": self.config.priority,
            "weight": self.config.weight,
            "outcomes": dict(self.outcomes),
            "models": [
                {
                    "name": public,
                    "there": there,
                    "loaded": self.facts[there].loaded if there in self.facts else None,
                    "context": self.facts[there].context if there in self.facts else None,
                    "breaker": self.breakers[there].state(now) if there in self.breakers else "closed",
                }
                for public, there in sorted(self.models.items())
            ],
        }

    def _make_client(self) -> BackendClient:
        root, base = self.kind.addresses(self.url)
        config = self.config
        return BackendClient(
            root,
            base,
            api_key=config.api_key,
            headers=config.headers,
            connect_timeout_s=config.connect_timeout_s,
            first_byte_timeout_s=config.first_byte_timeout_s,
            read_timeout_s=config.read_timeout_s,
            max_answer_bytes=self._max_answer_bytes,
            passes_on_errors=self.kind.native,
            router_id=self._router_id,
            is_router=self.kind.is_router,
        )
