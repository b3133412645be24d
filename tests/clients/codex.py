"""Codex itself (`codex exec`), run in a home and a project of its own, and what passes between it and the router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from core.config import WebSearchConfig
from tests.conftest import Running
from tests.fake_backend import FakeBackend

Json = dict[str, Any]

HERE = Path(__file__).parent
TIMEOUT_S = 20
KEY = "the router's key"
# What a model is that Codex has no metadata of, without what a test asks for. Codex refuses an entry with fewer keys.
CATALOG_ENTRY: Json = {
    "slug": "test-model",
    "display_name": "Test model",
    "base_instructions": "You are a coding agent.",
    "context_window": 100_000,
    "supported_reasoning_levels": [],
    "support_verbosity": False,
    "shell_type": "unified_exec",
    "truncation_policy": {"mode": "tokens", "limit": 10_000},
    "experimental_supported_tools": [],
    "visibility": "list",
    "supported_in_api": True,
    "priority": 1,
}


def documented_lines() -> str:
    """The lines of docs/clients.md for Codex' `config.toml`: those at the top, a blank line, and the table of the
    provider."""
    block = re.search(r"```toml\n(.+?)```", (HERE.parents[1] / "docs" / "clients.md").read_text(), re.DOTALL)
    assert block, "docs/clients.md has lines for Codex"
    return block[1].strip()


def with_values(lines: str, **values: str) -> str:
    """The lines with other values for some of their keys."""
    for key, value in values.items():
        lines, count = re.subn(rf"^{key} = .*$", f"{key} = {json.dumps(value)}", lines, flags=re.MULTILINE)
        assert count == 1, f"{key} is set {count} times"
    return lines


def codex_binary() -> Path:
    """Where `make clients` puts it; CODEX_BINARY names another one."""
    return Path(os.environ.get("CODEX_BINARY") or HERE / "node" / "node_modules" / ".bin" / "codex")


@dataclass(frozen=True)
class Way:
    """How Codex reaches the model: whether it tries a WebSocket, whether the router has them, and what the backend
    speaks."""

    asks: bool
    offered: bool = True
    kind: str = "openai-chat"

    @property
    def transport(self) -> str:
        return "websocket" if self.asks and self.offered else "http"


HTTP, WEBSOCKET, REFUSED = Way(asks=False), Way(asks=True), Way(asks=True, offered=False)


@dataclass
class Heard:
    """What arrived at the router, before it did anything with it, and the output items that it answered with."""

    bodies: list[Json] = field(default_factory=list)
    output: list[Json] = field(default_factory=list)
    transports: set[str] = field(default_factory=set)
    refused_upgrades: list[int] = field(default_factory=list)
    other_requests: list[str] = field(default_factory=list)

    def sent(self, type: str) -> list[Json]:
        """The input items of one type, over all requests."""
        return [item for body in self.bodies for item in body["input"] if item["type"] == type]

    def answered(self, type: str) -> list[Json]:
        """The finished output items of one type, over all answers."""
        return [item for item in self.output if item["type"] == type]


class Listener:
    """ASGI middleware that keeps what passes in `heard`."""

    def __init__(self, app: Any, heard: Heard) -> None:
        self.app = app
        self.heard = heard

    async def __call__(self, scope: Json, receive: Callable[[], Awaitable[Json]], send: Callable[..., Any]) -> None:
        body, answer = bytearray(), bytearray()

        async def receiving() -> Json:
            message = await receive()
            if message["type"] == "http.request":
                body.extend(message["body"])
                if not message.get("more_body"):
                    self._note(scope, "http", bytes(body))
            elif message["type"] == "websocket.receive":
                self._note(scope, "websocket", message.get("text") or message["bytes"])
            return message

        async def sending(message: Json) -> None:
            if message["type"] == "websocket.http.response.start":
                self.heard.refused_upgrades.append(message["status"])
            elif message["type"] == "websocket.send":
                self._note_event(message["text"])
            elif message["type"] == "http.response.body":
                answer.extend(message.get("body", b""))
                while (end := answer.find(b"\n\n")) >= 0:
                    for data in re.findall(rb"^data: (\{.*)", answer[:end], re.MULTILINE):
                        self._note_event(data)
                    del answer[: end + 2]
            await send(message)

        await self.app(scope, receiving, sending)

    def _note(self, scope: Json, transport: str, body: str | bytes) -> None:
        if scope["path"] == "/v1/responses" and body:
            self.heard.transports.add(transport)
            self.heard.bodies.append(orjson.loads(body))
        else:
            self.heard.other_requests.append(scope["path"])

    def _note_event(self, data: str | bytes) -> None:
        event = orjson.loads(data)
        if event["type"] == "response.output_item.done":
            self.heard.output.append(event["item"])


@dataclass
class Ran:
    """What one run of Codex printed."""

    code: int
    events: list[Json]

    @property
    def items(self) -> list[Json]:
        return [event["item"] for event in self.events if event["type"] == "item.completed"]

    def of_type(self, type: str) -> list[Json]:
        return [item for item in self.items if item["type"] == type]

    @property
    def answer(self) -> str | None:
        """The model's last message, if nothing came after it."""
        last = self.items[-1]
        return last["text"] if last["type"] == "agent_message" else None

    @property
    def errors(self) -> list[str]:
        """What went wrong. That a model is unknown to Codex is no error."""
        messages = [item["message"] for item in self.of_type("error")]
        messages += [event["message"] for event in self.events if event["type"] == "error"]
        messages += [event["error"]["message"] for event in self.events if event["type"] == "turn.failed"]
        return [message for message in messages if not message.startswith("Model metadata for")]


class Codex:
    """Codex with a home and a project of its own. It can reach the router; what else it tries to reach is
    `strangers`."""

    def __init__(self, home: Path, way: Way, backend: FakeBackend, served: Running, heard: Heard, proxy: str) -> None:
        self.home = home
        self.project = home / "project"
        self.way = way
        self.backend = backend
        self.served = served
        self.heard = heard
        self.strangers: list[str] = []
        self._proxy = proxy
        self.settings: list[str] = []
        self.provider = "router"
        self.retries = 0
        self.key = KEY
        self.lines = documented_lines()
        (home / ".codex").mkdir()
        subprocess.run(["git", "init", "--quiet", self.project], check=True, env={**os.environ, "HOME": str(home)})

    def knows_the_model(self, **entry: Any) -> None:
        """Gives the model a catalog entry; without one Codex falls back to metadata for any model."""
        catalog = self.home / "catalog.json"
        catalog.write_text(json.dumps({"models": [{**CATALOG_ENTRY, **entry}]}))
        self.settings.append(f"model_catalog_json={json.dumps(str(catalog))}")

    def has_the_weather_server(self) -> None:
        server = json.dumps([str(HERE / "codex_mcp.py")])
        self.settings += [
            f"mcp_servers.weather.command={json.dumps(sys.executable)}",
            f"mcp_servers.weather.args={server}",
        ]

    def searches_at(self, url: str) -> None:
        """Has the router search the web, at a SearXNG."""
        state, search = self.served.app.state, WebSearchConfig(provider="searxng", url=url)
        state.config = msgspec.structs.replace(state.config, web_search=search)
        state.searches.take_settings(search)

    async def run(self, prompt: str, *args: str) -> Ran:
        """Runs to the end; kills it when it takes too long."""
        self._configure()
        command = [str(codex_binary()), "exec", *args, "--json", "--skip-git-repo-check"]
        command += [part for setting in self.settings for part in ("-c", setting)]
        process = await asyncio.create_subprocess_exec(
            *command,
            prompt,
            cwd=self.project,
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        except TimeoutError:
            pytest.fail(f"Codex did not end in {TIMEOUT_S} s: {self.backend!r}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        lines = out.decode().splitlines()
        assert lines, f"Codex printed nothing, and this on stderr:\n{err.decode()}"
        assert not self.strangers, f"Codex called somebody else: {self.strangers}"
        return Ran(process.returncode or 0, [json.loads(line) for line in lines])

    async def succeeds(self, prompt: str, *args: str) -> Ran:
        """As `run`, where nothing may go wrong on the way."""
        ran = await self.run(prompt, *args)
        assert (ran.code, ran.errors) == (0, []), f"Codex failed: {ran.events}"
        assert ran.events[-1]["type"] == "turn.completed"
        assert self.heard.transports == {self.way.transport}, f"Codex came over {self.heard.transports}"
        assert self.backend.unused == 0, f"{self.backend.unused} scripted answers were not asked for: {ran.events}"
        return ran

    def _configure(self) -> None:
        top, provider = self.lines.strip().split("\n\n")
        provider = re.sub("^env_key = .*\n?", "", provider, flags=re.MULTILINE)
        top = with_values(top, model="test-model")
        provider = with_values(provider, name=self.provider, base_url=f"{self.served.url}/v1")
        (self.home / ".codex" / "config.toml").write_text(
            f"""
{top}
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[features]
apps = false
plugins = false
{provider}
env_key = "ROUTER_KEY"
request_max_retries = {self.retries}
stream_max_retries = {self.retries}
supports_websockets = {json.dumps(self.way.asks)}
"""
        )

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "CODEX_HOME": str(self.home / ".codex"),
            "ROUTER_KEY": self.key,
            "HTTP_PROXY": self._proxy,
            "HTTPS_PROXY": self._proxy,
            "NO_PROXY": "127.0.0.1",
        }
