"""What becomes of the events of a response: each an object for the builder that makes them.

EMIT_EVENTS       dicts: for a WebSocket, a background turn, another front door
EMIT_FRAMES       bytes of an SSE stream; most deltas are made as such, without an event in between (deltas.py)
EMIT_OBFUSCATED   the same, each delta with padding that hides its length
EMIT_NOTHING      no events are made: only the response at the end counts
"""

from __future__ import annotations

from typing import Any, Protocol

from requests.sse import frames, obfuscated

# What leaves: frames of SSE, or events.
Output = bytes | list[Any]


class Emission(Protocol):
    """What is made of events. `makes_events`: any are made; `makes_frames`: a delta may be made as its frame."""

    makes_events: bool
    makes_frames: bool

    def encode(self, events: list[Any]) -> Output:
        """Events, or frames among them, as they leave. Empty where nothing does."""
        ...


class Events:
    """Each event as a dict."""

    makes_events, makes_frames = True, False

    def encode(self, events: list[Any]) -> list[Any]:
        """The events."""
        return events


class Frames:
    """The frames of an SSE stream."""

    makes_events, makes_frames = True, True

    def encode(self, events: list[Any]) -> bytes:
        """The frames of the events, to leave in one write."""
        return frames(events)


class Obfuscated:
    """The frames of an SSE stream whose deltas hide how long they are."""

    makes_events, makes_frames = True, False

    def encode(self, events: list[Any]) -> bytes:
        """The frames of the events, padded."""
        return frames(obfuscated(events))


class Nothing:
    """Nobody reads events."""

    makes_events, makes_frames = False, False

    def encode(self, events: list[Any]) -> bytes:
        """Nothing."""
        return b""


EMIT_EVENTS, EMIT_FRAMES, EMIT_OBFUSCATED, EMIT_NOTHING = Events(), Frames(), Obfuscated(), Nothing()
