"""The chunks of a streamed chat completion, as the events of a response."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from core.errors import APIError
from core.json import decode_json
from requests.bounded_json import json_or_none
from requests.chat import DecodeError, decode_chunk, is_error, parse_chunk
from requests.chat_types import ChatChunk
from requests.emission import Output
from requests.endings import ending_of, ends_answer
from requests.open_items import OpenText
from requests.reads import MARK, NOTHING_LIKE_IT, Run, around_text, decode_read
from requests.sse import only_data
from requests.thoughts import thought_in
from requests.translator import Translator

# After so many deltas it is looked again what is around their texts, if they are not alike any more. Of some servers'
# no two are.
LESSONS_EVERY = 8

Piece = ChatChunk | Run


class ChatTranslator(Translator[Piece]):
    """The chunks of one answer."""

    _has_choices = False
    # What came in place of a chunk.
    _odd = b""

    def feed(self, received: bytes) -> Output:
        """What leaves of a network read. Nearly all reads of all streams are one chunk that is a plain delta, which
        becomes a frame."""
        builder = self._builder
        text = builder.text
        if text is not None and (frames := text.frames) is not None and self._decoder.is_between_events:
            number = builder.sequence_number
            frame = frames.relay(number, received, text.fragments) or self._parsed(text, number, received)
            if frame is not None:
                builder.sequence_number = number + 1
                return frame
        return self.take(*self._pieces_in(received))

    def settle(self) -> Output:
        """Closes what is open, unless the backend has given up its answer."""
        builder = self._builder
        return builder.emission.encode([] if ending_of(builder.finish_reason) == "failed" else builder.close())

    # ── from bytes to chunks ─────────────────────────────────────────────────────────────────────────────────────────

    def _pieces_in(self, received: bytes) -> tuple[list[Piece], APIError | None]:
        """All in one go, for a server that sends a hundred chunks at once; one by one where that cannot be."""
        read = decode_read(received) if self._decoder.is_between_events else None
        if read is None:
            return super()._pieces_in(received)
        chunks, is_end, self.is_done = read
        self.ended = self.ended or is_end
        self._has_choices = True
        if self.ended and not self.is_done and chunks:
            self.is_counted |= type(last := chunks[-1]) is ChatChunk and last.usage is not None
        return chunks, None

    def _piece(self, data: bytes, place: int) -> ChatChunk:
        try:
            chunk = decode_chunk(data)
        except DecodeError:
            if not _holds_nothing(data):
                raise self._errors.not_an_answer(data) from None
            chunk = ChatChunk()
        if is_error(chunk) or (not chunk.choices and self._decoder.name(place) == "error"):
            raise self._errors.inside(json_or_none(data))
        if chunk.choices:
            self._has_choices = True
            for choice in chunk.choices:
                if choice.finish_reason and ends_answer(choice.finish_reason):
                    self.ended = True
        elif not self._has_choices:
            self._odd = data
        if self.ended and chunk.usage is not None:
            self.is_counted = True
        return chunk

    def _matters(self, piece: Piece) -> bool:
        if isinstance(piece, Run):
            return True
        deltas = [choice.delta or choice.message for choice in piece.choices or ()]
        return any(
            delta and (delta.content or delta.refusal or delta.tool_calls or thought_in(delta)) for delta in deltas
        )

    def _cut(self) -> APIError:
        return self._errors.not_an_answer(self._odd) if self._odd and not self._has_choices else super()._cut()

    # ── from chunks to events ────────────────────────────────────────────────────────────────────────────────────────

    def _events_of(self, pieces: list[Piece]) -> list[Any]:
        """Mostly deltas: where frames are wanted, those that go on with a text are made as such, many at once."""
        builder = self._builder
        emitted: list[Any] = builder.begin()
        if not builder.emission.makes_frames:
            for chunk in _single(pieces):
                emitted += builder.chunk(chunk)
            return emitted if builder.emission.makes_events else []
        plain: list[str] = []
        for piece in pieces:
            if isinstance(piece, Run):
                self._emit_plain(emitted, plain)
                plain = []
                self._emit_run(emitted, piece)
            elif (delta := self._plain_delta(piece)) is not None:
                plain.append(delta)
            else:
                self._emit_plain(emitted, plain)
                plain = []
                emitted += builder.chunk(piece)
        self._emit_plain(emitted, plain)
        return emitted

    def _emit_plain(self, emitted: list[Any], deltas: list[str]) -> None:
        text = self._builder.text
        if not deltas or text is None:
            return
        try:
            spelled = [orjson.dumps(delta)[1:-1] for delta in deltas]
        except TypeError:  # Half a character is among them.
            for delta in deltas:
                text.grow(self._builder, emitted, text.part, delta, None)
        else:
            emitted.append(text.grow_plainly(self._builder, deltas, spelled))

    def _emit_run(self, emitted: list[Any], run: Run) -> None:
        builder = self._builder
        if builder.text is not None and self._plain_delta(run.pattern) == MARK:
            emitted.append(builder.text.grow_plainly(builder, run.texts, run.spelled))
            return
        for chunk in run.chunks():
            emitted += builder.chunk(chunk)

    # ── from a delta to its frame ────────────────────────────────────────────────────────────────────────────────────

    def _parsed(self, text: OpenText, number: int, received: bytes) -> bytes | None:
        """What `DeltaFrames.relay` gives, by parsing the chunk. Now and then it learns from one what it needs for the
        next."""
        frames = text.frames
        if frames is None or (delta := self._delta_in(received)) is None:
            return None
        if number >= frames.learns_at:
            frames.learns_at = number + LESSONS_EVERY
            around = around_text(received)
            if around is None or self._delta_in(around.with_text()) != MARK:
                around = NOTHING_LIKE_IT
            frames.around = around
        text.fragments.append(delta)
        return frames.one(number, delta)

    def _delta_in(self, received: bytes) -> str | None:
        if (data := only_data(received)) is None:
            return None
        try:
            chunk = parse_chunk(data)
        except DecodeError:
            return None
        return None if is_error(chunk) else self._plain_delta(chunk)

    def _plain_delta(self, chunk: ChatChunk) -> str | None:
        """The delta of a chunk that only goes on with the text or the thought that is open, as most do. None for any
        other."""
        choices = chunk.choices
        text = self._builder.text
        if text is None or text.frames is None or self._builder.thinking is not None:
            return None
        if chunk.usage is not None or choices is None or len(choices) != 1:
            return None
        choice = choices[0]
        delta = choice.delta
        if delta is None or choice.finish_reason or choice.index or choice.logprobs is not None:
            return None
        if delta.tool_calls or delta.refusal or delta.function_call or choice.message is not None:
            return None
        content = delta.content
        if thought := delta.reasoning_content or delta.reasoning or delta.thinking:
            return None if content or text.part != self._builder.thought[1] else thought
        if delta.thinking_blocks or delta.reasoning_details:
            return None
        return content if content and type(content) is str and text.part == "output_text" else None


def _single(pieces: list[Piece]) -> Iterable[ChatChunk]:
    """Each chunk by itself."""
    for piece in pieces:
        if isinstance(piece, Run):
            yield from piece.chunks()
        else:
            yield piece


def _holds_nothing(data: bytes) -> bool:
    """Whether it is JSON, but no object: there is nothing in it, and it is no reason to end an answer."""
    try:
        return not isinstance(decode_json(data), dict)
    except ValueError:
        return False
