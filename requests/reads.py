"""All chat chunks of one network read at once: a server that is fast sends a hundred of them in one.

    decode_read(received)   ChatChunks, and a Run of those that differ in nothing but a piece of text

What is not regular is left to whoever reads event by event (`requests/sse.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from requests.chat import ChatChunk, DecodeError, decode_chunk, name_details

_BETWEEN = b"\n\ndata: "
_DONE = b"[DONE]"
_TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning)": ?"')
# What stands for the text in the pattern of a run.
MARK = "\N{NULL}a text"
_MARK = rb'"\u0000a text"'
# Fewer chunks are as quickly decoded.
SHORTEST_RUN = 8

_chunks = msgspec.json.Decoder(list[ChatChunk])
_texts = msgspec.json.Decoder(list[str])


class Run(msgspec.Struct, gc=False):
    """Chunks like `pattern`, but each with one of the `texts` in the place of its `MARK`. `jsons` are the texts as they came. None is
    empty."""

    pattern: ChatChunk
    head: bytes
    jsons: list[bytes]
    tail: bytes
    texts: list[str]

    def chunks(self) -> Iterator[ChatChunk]:
        """Each as a chunk of its own."""
        for text in self.jsons:
            yield decode_chunk(b"%b%b%b" % (self.head, text, self.tail))


class Read(NamedTuple):
    """What a read holds; whether that ends the answer; and whether `[DONE]` comes behind it."""

    chunks: list[ChatChunk | Run]
    is_end: bool
    is_done: bool


def decode_read(received: bytes) -> Read | None:
    """A read that holds whole events and nothing else. None for any other, and where one of them is no chunk, or an error."""
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
        if chunk.error is not None or chunk.object == "error":
            return None
        if chunk.usage is not None:
            name_details(chunk.usage)
        for choice in chunk.choices or ():
            if choice.finish_reason:
                is_end = True
    return Read([*chunks[:begin], run, *chunks[begin:]] if run is not None else [*chunks], is_end, is_done)


def _run_in(datas: list[bytes]) -> tuple[Run, int, int] | None:
    """The run around the middle of some chunks, and where it begins and ends. The one before it is left out: it may be the first of a
    text, and has more to tell."""
    sample = datas[len(datas) // 2]
    if b"\n" in sample or b"\r" in sample or (found := _TEXT.search(sample)) is None:
        return None
    at = found.end() - 1
    head, tail = sample[:at], sample[sample.find(b'"', at + 1) + 1 :]

    def is_alike(index: int) -> bool:
        return datas[index].startswith(head) and datas[index].endswith(tail)

    begin = next(index for index in range(len(datas)) if is_alike(index)) + 1
    end = next(index for index in reversed(range(len(datas))) if is_alike(index)) + 1
    jsons = [data[at : -len(tail)] for data in datas[begin:end]]
    if len(jsons) < SHORTEST_RUN or (tail + head).join([b"", *jsons, b""]) != b"".join([tail, *datas[begin:end], head]):
        return None
    strings = b"[%b]" % b",".join(jsons)
    try:
        pattern = decode_chunk(b"%b%b%b" % (head, _MARK, tail))
        texts = _texts.decode(strings)
    except DecodeError:
        return None
    # As many quotes as so many strings have around them: there is none inside of a text, so each ends where we have cut.
    if len(texts) != len(jsons) or strings.count(b'"') != 2 * len(jsons) or "" in texts:
        return None
    return Run(pattern, head, jsons, tail, texts), begin, end
