"""The events of a server that speaks Responses, as ours: our id, our numbers, whatever is missing."""

from __future__ import annotations

from typing import Any

from core.errors import APIError
from core.json import decode_json_halves
from requests.bounded_json import has_too_many_values
from requests.chat import DecodeError, means_error
from requests.deltas import framed, renumbered
from requests.emission import Output
from requests.events import ResponseBuilder
from requests.hidden import may_show_seal
from requests.native_events import (
    ENDS,
    LIFECYCLE,
    WHOLE,
    Column,
    EventHead,
    NativeEvent,
    NativeRun,
    parse_head,
    pieces_in,
    place_of,
)
from requests.native_steps import STEPS, goes_on
from requests.sse import only_data
from requests.translator import Errors, Translator

Piece = NativeEvent | NativeRun


class NativeTranslator(Translator[Piece]):
    """The events of one answer."""

    def __init__(self, builder: ResponseBuilder, errors: Errors) -> None:
        super().__init__(builder, errors)
        self._makes_frames = builder.emission.makes_frames

    def feed(self, received: bytes) -> Output:
        """What leaves of a network read. Nearly all reads of all streams are one delta that goes on as it came: it is
        the frame already, where it has its name and the right number."""
        builder = self._builder
        if (flows := builder.flows) and self._decoder.is_between_events:
            data: bytes | None
            if received.startswith(b"event: ") and received.endswith(b"\n\n") and received.count(b"\n") == 3:
                name, _, data = received[7:-2].partition(b"\ndata: ")
            else:
                name, data = b"", only_data(received)
            if data:
                try:
                    head = parse_head(data)
                    flow = flows[place_of(head)]
                except (*DecodeError, KeyError):
                    return self.take(*self._pieces_in(received))
                number, delta = builder.sequence_number, head.delta
                if (
                    head.sequence_number == number
                    and flow.name == name
                    and head.logprobs == flow.logprobs
                    and delta is not None
                ):
                    flow.append(delta)
                    builder.sequence_number = number + 1
                    return received
                if (frame := self._relayed_alone(head, data)) is not None:
                    return frame
        return self.take(*self._pieces_in(received))

    def finish(self) -> Output:
        """What leaves at last. [DONE] is an end, too, where no item is in the middle."""
        builder = self._builder
        output = super().finish()
        if output or self.failure is not None or builder.ended or not (self.is_done and builder.is_between_items):
            return output
        return builder.emission.encode(builder.adopt({"type": WHOLE}))

    def wrong(self) -> APIError | None:
        """What is wrong with an answer whose bytes have ended, or that has failed."""
        return super().wrong() or (None if self._builder.ended else self._cut())

    # ── from bytes to pieces ─────────────────────────────────────────────────────────────────────────────────────────

    def _read(self, datas: list[bytes]) -> tuple[list[Piece], APIError | None]:
        """All in one go, where that can be."""
        pieces = pieces_in(datas) if len(datas) > 1 else None
        if pieces is None:
            return super()._read(datas)
        self.ended = self.is_done = pieces[-1].type in ENDS
        return pieces, None

    def _piece(self, data: bytes, place: int) -> NativeEvent:
        try:
            event = NativeEvent(parse_head(data), data)
        except DecodeError:
            event = self._odd_event(data, place)
        if event.type in ENDS:
            self.ended = self.is_done = True
        return event

    def _odd_event(self, data: bytes, place: int) -> NativeEvent:
        """An event that does not name itself, or is no JSON by the letter; or a whole response in place of events."""
        if has_too_many_values(data):
            raise self._errors.not_an_answer(data)
        try:
            value = decode_json_halves(data)
        except ValueError:
            raise self._errors.not_an_answer(data) from None
        if not isinstance(value, dict):
            value = {"type": "keepalive"}  # As empty as this one.
        if value.get("object") == "response":
            value = {"type": WHOLE, "response": value}
        elif not isinstance(value.get("type"), str):
            if means_error(value.get("error")):
                raise self._errors.inside(value)
            if not (name := self._decoder.name(place)):
                raise self._errors.not_an_answer(data)
            value = {**value, "type": name}
        return NativeEvent.of(value)

    def _matters(self, piece: Piece) -> bool:
        return piece.type not in LIFECYCLE

    # ── from pieces to events ────────────────────────────────────────────────────────────────────────────────────────

    def _events_of(self, pieces: list[Piece]) -> list[Any]:
        builder = self._builder
        events: list[Any] = []
        for piece in pieces:
            if type(piece) is NativeEvent and piece.type == "error" and not builder.ended:
                self.failure = self._errors.inside(piece.model_dump())
                break
            events += self._native(piece)
        return events

    def _native(self, piece: Piece) -> list[Any]:
        builder = self._builder
        if builder.ended:
            return []
        if isinstance(piece, NativeRun):
            frames = self._relayed(piece.heads[0], piece.datas, piece.deltas, piece.logprobs)
            return [event for one in piece.events() for event in self._native(one)] if frames is None else [frames]
        if self._makes_frames and piece.data and builder.sequence_number:
            head, data = piece.head, piece.data
            if head.delta is not None and (frame := self._relayed_alone(head, data)) is not None:
                return [frame]
            if head.type in STEPS and not (builder.hides_seals and may_show_seal(data)):
                frame = self._framed(head, [data])
                if frame is not None and goes_on(builder.items, builder, head.type, data):
                    builder.sequence_number += 1
                    return [frame]
        return builder.adopt(piece.model_dump())

    # ── what goes on as it came, but for its number ──────────────────────────────────────────────────────────────────

    def _relayed_alone(self, head: EventHead, data: bytes) -> bytes | None:
        return self._relayed(head, [data], (head.delta,), (head.logprobs,))

    def _relayed(self, first: EventHead, datas: list[bytes], deltas: Column, logprobs: Column) -> bytes | None:
        """What most events are: deltas that go on with one thing, as frames. None, and nothing has happened, for any
        others."""
        flow = self._builder.flows.get(place_of(first))
        if flow is None or (frames := self._framed(first, datas)) is None or not flow.take(deltas, logprobs):
            return None
        self._builder.sequence_number += len(datas)
        return frames

    def _framed(self, first: EventHead, datas: list[bytes]) -> bytes | None:
        """Events of one type as frames, with our numbers. None where they have none of their own."""
        ours = self._builder.sequence_number
        if first.sequence_number != ours:
            mended = [renumbered(data, ours + index) for index, data in enumerate(datas)]
            datas = [data for data in mended if data is not None]
            if len(datas) < len(mended):
                return None
        return framed(first.type, datas)
