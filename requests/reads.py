"""All chat chunks of one network read at once: a server that is fast sends a hundred of them in one.

    decode_read(received)   ChatChunks, and a Run of those that differ in nothing but a piece of text
    around_text(spelled)    what such chunks have around their text: the next one need not be parsed

What is not regular is left to whoever reads event by event (`requests/sse.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import msgspec

from requests.chat import DecodeError, count_usage, decode_chunk, is_error
from requests.chat_types import ChatChunk
from requests.endings import ends_answer

_BETWEEN = b"\n\ndata: "
_DONE = b"[DONE]"
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|thinking)": ?"')
# What stands for the text in a pattern.
MARK = "\N{NULL}a text"
_MARK = rb"\u0000a text"
# Fewer chunks are as quickly decoded.
SHORTEST_RUN = 8

_chunks = msgspec.json.Decoder(list[ChatChunk])
_texts = msgspec.json.Decoder(list[str])


class Around(NamedTuple):
    """What chunks that differ in nothing but a piece of text have around it, as they are spelled, with its quotes."""

    head: bytes
    tail: bytes

    def with_text(self, text: bytes = _MARK) -> bytes:
        """The chunk that has this text, which is spelled as JSON has it."""
        return b"%b%b%b" % (self.head, text, self.tail)


# No read begins like this.
NOTHING_LIKE_IT = Around(b"\0", b"\0")


def around_text(spelled: bytes) -> Around | None:
    """What is around the text in a chunk, if there is one without a quote in it. That may be the text of something
    else: the chunk with the `MARK` in its place shows."""
    if (found := _TEXT.search(spelled)) is None:
        return None
    return Around(spelled[: found.end()], spelled[spelled.find(b'"', found.end()) :])


class Run(msgspec.Struct, gc=False):
    """Chunks like `pattern`, but each with one of the `texts` in the place of its `MARK`. `spelled` are the texts as
    JSON has them, without their quotes. None is empty."""

    pattern: ChatChunk
    around: Around
    spelled: list[bytes]
    texts: list[str]

    def chunks(self) -> Iterator[ChatChunk]:
        """Each as a chunk of its own."""
        return map(decode_chunk, map(self.around.with_text, self.spelled))


class Read(NamedTuple):
    """What a read holds; whether that ends the answer; and whether `[DONE]` comes behind it."""

    chunks: list[ChatChunk | Run]
    is_end: bool
    is_done: bool


def decode_read(received: bytes) -> Read | None:
    """A read that holds whole events and nothing else. None for any other, and where one of them is no chunk, or an
    error."""
    if not received.startswith(b"data: ") or not received.endswith(b"\n\n"):
        return None
    datas = received[6:-2].split(_BETWEEN)
    is_done = datas[-1] == _DONE
    if is_done:
        datas.pop()
    run, begin = None, 0
    if len(datas) > SHORTEST_RUN and (found := _run_in(datas)) is not None:
        run, begin, end = found
        del datas[begin:end]
    array = b"[%b]" % b",".join(datas)
    if b"\n" in array or b"\r" in array:  # In JSON they are no part of a text, so these are other lines.
        return None
    try:
        chunks = _chunks.decode(array)
    except DecodeError:
        return None
    is_end = is_done
    for chunk in chunks:
        if is_error(chunk):
            return None
        if chunk.usage is not None or chunk.x_groq is not None:
            count_usage(chunk)
        for choice in chunk.choices or ():
            if choice.finish_reason and ends_answer(choice.finish_reason):
                is_end = True
                if choice.usage is not None:
                    count_usage(chunk)
    return Read([*chunks[:begin], run, *chunks[begin:]] if run is not None else [*chunks], is_end, is_done)


def _run_in(datas: list[bytes]) -> tuple[Run, int, int] | None:
    """The run around the middle of some chunks, and where it begins and ends. The one before it is left out: it may be
    the first of a text, and has more in it."""
    sample = datas[len(datas) // 2]
    if b"\n" in sample or b"\r" in sample or (around := around_text(sample)) is None:
        return None
    head, tail = around

    def is_alike(index: int) -> bool:
        return datas[index].startswith(head) and datas[index].endswith(tail)

    begin = next(index for index in range(len(datas)) if is_alike(index)) + 1
    end = next(index for index in reversed(range(len(datas))) if is_alike(index)) + 1
    spelled = [*map(itemgetter(slice(len(head), -len(tail))), datas[begin:end])]
    if len(spelled) < SHORTEST_RUN:
        return None
    # What was cut out of each in the same place was between a head and a tail.
    if (tail + head).join([b"", *spelled, b""]) != b"".join([tail, *datas[begin:end], head]):
        return None
    strings = b'["%b"]' % b'","'.join(spelled)
    try:
        pattern = decode_chunk(around.with_text())
        texts = _texts.decode(strings)
    except DecodeError:
        return None
    # As many quotes as so many strings have around them: there is none inside of a text, so each ends where we have
    # cut.
    if len(texts) != len(spelled) or strings.count(b'"') != 2 * len(spelled) or "" in texts:
        return None
    return Run(pattern, around, spelled, texts), begin, end
