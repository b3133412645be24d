"""Why a server could not be asked what it has: what whoever runs the router can do about it.

an error of its listing    advice(…)        one sentence, or ""
what answers there         seen_there(…)    the same, where it answers as servers of another kind do
what it has                on_models(…)     the same, where the settings want others
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from backends.kinds import KINDS, recognise
from backends.kinds.kind import Kind
from backends.kinds.server import is_missing
from backends.wire.client import BackendClient
from core.config import EndpointConfig
from core.errors import APIError, BackendRefused
from core.hops import RouterLoop

PULL = "Pull one there, such as with `ollama pull llama3.2:1b`."
PLAIN_HTTP = "If it speaks plain HTTP, write its url with http://."
NO_MODELS = "Load a model there, or name those that it has in `models.names`."
MACHINE_OF_CONTAINER = "host.docker.internal"
_NAMES_SHOWN = 5
# Codes of answers that no server of the kind gives.
_STRANGE = frozenset({"backend_bad_answer", "backend_error"})


def advice(error: Exception, config: EndpointConfig, kind: Kind) -> str:
    """What to do about a listing that failed with `error`; empty where nothing is known but the error itself."""
    is_tls = urlsplit(config.url).scheme == "https"
    if is_tls and (isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError)):
        # It waits for the end of a head that a handshake has not got.
        return PLAIN_HTTP
    if not isinstance(error, APIError):
        return ""
    if error.code == RouterLoop.code:
        return "It is this router itself: name the servers that are to be behind it."
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "If it is your own, name the file of its authority in SSL_CERT_FILE before the router starts."
    if is_tls and isinstance(cause, ssl.SSLError | ConnectionResetError):
        return PLAIN_HTTP
    if isinstance(cause, socket.gaierror):
        return f"Is {urlsplit(config.url).hostname!r} in its url the name of that machine, as this one knows it?"
    if isinstance(cause, ConnectionRefusedError):
        start = "Start it (`ollama serve`)" if kind.speaks_ollama else "Start it"
        return sentences(f"{start}, or correct its url.", _of_container(config.url))
    if is_strange(error) and (kind.speaks_ollama or not kind.is_known) and config.url.rstrip("/").endswith("/api"):
        return "Its url ends in /api, which Ollama's paths begin with: leave that out."
    if is_missing(error) and isinstance(error, BackendRefused):  # Else its own words are of that.
        return "It has no list of models there: its url or kind is wrong."
    if error.code == "backend_authentication_failed":
        return "Give its key as `api_key` of the endpoint."
    if not is_tls and _may_want_tls(error):
        return "If it speaks TLS, write its url with https://."
    return ""


def is_in_container() -> bool:
    """Whether this process runs in a container of Docker's or Podman's."""
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


def _of_container(url: str) -> str:
    if urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1") or not is_in_container():
        return ""
    return f"In a container that is the container itself: its machine is {MACHINE_OF_CONTAINER}."


def _may_want_tls(error: APIError) -> bool:
    """Servers of TLS answer plain HTTP in words of theirs (Go, nginx), with a TLS alert, or by hanging up."""
    words = error.message.lower()
    return "https" in words or "no valid http" in words or isinstance(error.__cause__, ConnectionResetError)


def is_strange(error: Exception) -> bool:
    """Whether a server answered as none of its kind does."""
    return isinstance(error, APIError) and (is_missing(error) or error.code in _STRANGE)


async def seen_there(config: EndpointConfig, kind: Kind, timeout_s: float) -> str:
    """What to do about a server that does not answer as one of its kind, by what it is recognised as; empty where it
    is not."""
    root, base = KINDS["auto"].addresses(config.url.rstrip("/"))
    client = BackendClient(root, base, api_key=config.api_key, headers=config.headers, connect_timeout_s=timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            found = await recognise(lambda path: client.get_json(path, timeout_s), config.url)
    except (APIError, TimeoutError):
        return ""
    finally:
        await client.close()
    if not found.is_same(kind):
        return f"It answers as a server of another kind does: try `kind: {found.name}`, or `kind: auto`."
    return "" if kind.adds_v1 else "Its API seems to begin at /v1: end its url so."


def on_models(there: Collection[str], used: Collection[str], config: EndpointConfig, kind: Kind) -> str:
    """What to do about the models of a server, of which the settings use some; empty where nothing is to be done."""
    if not there:
        return PULL if kind.speaks_ollama else NO_MODELS
    if not used:
        return f"It has {len(there)}, and `models` in its settings leave out all of them."
    astray = [f"`{public}: {own}`" for public, own in config.aliases.items() if own not in used]
    if astray:
        return f"Its aliases {named(astray)} stand for models that it does not have, or that `models` leave out."
    return ""


def named(names: Collection[str]) -> str:
    """Names in a line, the first few of many."""
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def sentences(*parts: str | None) -> str:
    """One line of sentences, each with an end; what is empty is left out."""
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)
