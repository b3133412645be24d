"""Translators in tests: what leaves of bytes, as a list of events and frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends.wire.errors import ANY_SERVER
from backends.wire.relay import Relay
from backends.wire.streams import Stream
from requests.chat_translator import ChatTranslator
from requests.emission import EMIT_EVENTS, EMIT_FRAMES, EMIT_NOTHING, EMIT_OBFUSCATED, Emission, Output
from requests.events import ResponseBuilder
from requests.native_translator import NativeTranslator

EMISSIONS: dict[str, Emission] = {
    "events": EMIT_EVENTS,
    "frames": EMIT_FRAMES,
    "obfuscated": EMIT_OBFUSCATED,
    "nothing": EMIT_NOTHING,
}


def listed(output: Output) -> list[Any]:
    """What leaves, as a list: frames are one of its elements."""
    if isinstance(output, bytes):
        return [output] if output else []
    return output


def chat_translator(made: ResponseBuilder) -> ChatTranslator:
    return ChatTranslator(made, ANY_SERVER)


def native_translator(made: ResponseBuilder) -> NativeTranslator:
    return NativeTranslator(made, ANY_SERVER)


class _LeftOver(Exception):
    """The shortcut has left a read to others."""


def alone(translator: ChatTranslator | NativeTranslator, received: bytes) -> bytes | None:
    """What leaves of a read by the shortcut for single deltas. None where it leaves the read to others."""

    def take(*_: object) -> Output:
        raise _LeftOver

    translator.take = take  # type: ignore[method-assign]
    try:
        output = translator.feed(received)
        assert isinstance(output, bytes)
        return output
    except _LeftOver:
        return None
    finally:
        del translator.take  # type: ignore[method-assign]


class Written(list[Any]):
    """An `Out` that keeps each write. It is full where `room` says so."""

    def __init__(self, on_write: Callable[[Any], object] = lambda output: None) -> None:
        super().__init__()
        self.on_write = on_write
        self.has_room = True
        self.drained: Callable[[], None] | None = None

    def write(self, output: Any) -> bool:
        self.append(output)
        self.on_write(output)
        return self.has_room

    def when_drained(self, call: Callable[[], None]) -> None:
        self.drained = call

    def drain(self) -> None:
        """There is room again."""
        self.has_room = True
        assert self.drained is not None
        call, self.drained = self.drained, None
        call()

    @property
    def deltas(self) -> list[str]:
        return [event["delta"] for events in self for event in events if event["type"] == "response.output_text.delta"]


async def relayed(stream: Stream, made: ResponseBuilder, out: Written) -> Written:
    """What leaves of a stream of chat chunks."""
    translator = ChatTranslator(made, stream.errors)
    await Relay(stream.answer, translator, out, stream.begins).run()
    return out
