"""Compressed bodies: `Content-Encoding` undone, in pieces, so that a bomb stops at the limit and nobody waits for a
long body.

Content-Encoding: gzip, zstd      gzip was put on first, so zstd is taken off first
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Generator
from typing import Any

from core.errors import APIError, InvalidRequest

# So much goes in and comes out at once; other requests have their turn after so many pieces.
INPUT = 64 * 1024
OUTPUT = 256 * 1024
PIECES_A_TURN = 4
MAX_CODINGS = 8
MAX_MEMBERS = 1000
# A decoder needs to hold no more (RFC 9659): a frame that asks for more may be an attack on the memory.
ZSTD_WINDOW_LOG = 23

Decoder = Callable[[memoryview], Generator[bytes]]


class UnsupportedCoding(InvalidRequest):
    status = 415
    code = "unsupported_content_encoding"

    def __init__(self, name: str) -> None:
        super().__init__(f"The content coding '{name[:40]}' is not supported: use {', '.join(OFFERED)} or none.")

    def headers(self) -> dict[str, str]:
        return {"Accept-Encoding": ", ".join(OFFERED)}


class BrokenBody(InvalidRequest):
    code = "invalid_content_encoding"

    def __init__(self, coding: str, problem: str) -> None:
        super().__init__(f"The body cannot be decoded as {coding}: {problem}.")


async def decoded(body: bytes, codings: str, limit: float, too_large: APIError) -> bytes:
    """A body as it was before its `codings` were put on. Raises `too_large` past `limit` bytes, `UnsupportedCoding`,
    and `BrokenBody` for data that is not what the header names."""
    names = [name for coding in codings.split(",") if (name := coding.strip().lower()) not in ("", "identity")]
    for name in names:
        if name not in DECODERS:
            raise UnsupportedCoding(name)
    if len(names) > MAX_CODINGS:
        raise InvalidRequest(f"The body has {len(names)} content codings: {MAX_CODINGS} are the limit.")
    for name in reversed(names if body else []):
        pieces: list[bytes] = []
        length = 0
        for count, piece in enumerate(DECODERS[name](memoryview(body))):
            length += len(piece)
            if length > limit:
                raise too_large
            pieces.append(piece)
            if count % PIECES_A_TURN == PIECES_A_TURN - 1:
                await asyncio.sleep(0)
        body = b"".join(pieces)
    return body


def _gunzipped(body: memoryview) -> Generator[bytes]:
    """gzip: one member after the other (RFC 1952)."""
    for _ in range(MAX_MEMBERS):
        body = yield from _inflated(body, zlib.MAX_WBITS | 16, "gzip")
        if not body:
            return
    raise BrokenBody("gzip", f"it has more than {MAX_MEMBERS} members")


def _deflated(body: memoryview) -> Generator[bytes]:
    """deflate is zlib's format (RFC 9110); some send the bare stream that is in it. A header of zlib's can be no
    beginning of one."""
    has_header = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
    if (yield from _inflated(body, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, "deflate")):
        raise BrokenBody("deflate", "there is something behind its end")


def _inflated(body: memoryview, window_bits: int, coding: str) -> Generator[bytes, None, memoryview]:
    """The content of one stream of zlib's, and what lies behind it."""
    decoder = zlib.decompressobj(window_bits)
    try:
        for start in range(0, len(body), INPUT):
            given: Any = body[start : start + INPUT]
            while True:
                piece = decoder.decompress(given, OUTPUT)
                yield piece
                if decoder.eof:
                    return body[min(start + INPUT, len(body)) - len(decoder.unused_data) :]
                if len(piece) < OUTPUT:  # All that was given has come out.
                    break
                given = decoder.unconsumed_tail
    except zlib.error as error:
        raise BrokenBody(coding, str(error).rpartition(": ")[2]) from None
    raise BrokenBody(coding, "it ends too early")


def _unzstd(body: memoryview) -> Generator[bytes]:
    """zstd: one frame after the other (RFC 8878)."""
    zstd = _zstd()
    options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    try:
        for _ in range(MAX_MEMBERS):
            decoder = zstd.ZstdDecompressor(options=options)
            start = 0
            while not decoder.eof:
                if decoder.needs_input:
                    if start >= len(body):
                        raise BrokenBody("zstd", "it ends too early")
                    yield decoder.decompress(body[start : start + INPUT], OUTPUT)
                    start += INPUT
                else:
                    yield decoder.decompress(b"", OUTPUT)
            body = body[min(start, len(body)) - len(decoder.unused_data) :]
            if not body:
                return
    except zstd.ZstdError as error:
        raise BrokenBody("zstd", str(error).rpartition(": ")[2]) from None
    raise BrokenBody("zstd", f"it has more than {MAX_MEMBERS} frames")


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        from backports import zstd
    return zstd


def _unbrotli(body: memoryview) -> Generator[bytes]:
    import brotli  # type: ignore[import-untyped]

    decoder = brotli.Decompressor()
    try:
        for start in range(0, len(body), INPUT):
            piece = decoder.process(bytes(body[start : start + INPUT]), output_buffer_limit=OUTPUT)
            yield piece
            while piece or not decoder.can_accept_more_data():  # True while it still has something to give.
                piece = decoder.process(b"", output_buffer_limit=OUTPUT)
                yield piece
    except brotli.error:
        raise BrokenBody("br", "it is not what its header names") from None
    if not decoder.is_finished():
        raise BrokenBody("br", "it ends too early")


OFFERED = ("zstd", "gzip", "deflate", "br")
DECODERS: dict[str, Decoder] = {
    "zstd": _unzstd,
    "gzip": _gunzipped,
    "x-gzip": _gunzipped,
    "deflate": _deflated,
    "br": _unbrotli,
}
