"""Server-Sent Events frames, in and out (WHATWG HTML, section 9.2).

bytes of any size ──SSEDecoder.feed──▶ the data of each whole event
event             ──frame────────────▶ b"event: …\\ndata: …\\n\\n"
"""

from __future__ import annotations

from secrets import token_urlsafe
from typing import Any

from core.errors import BackendError
from core.json import encode_json

KEEPALIVE = b": ping\n\n"


def frame(event: dict[str, Any]) -> bytes:
    """One event as one frame. `event:` is the body's `type`, line ends are LF: strict clients need both."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encode_json(event))


def frames(events: list[Any]) -> bytes:
    """The events of one network read, to leave in one write. Those that are frames already stay as they are."""
    return b"".join([event if type(event) is bytes else frame(event) for event in events])


def obfuscated(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, with random characters that hide from whoever watches the wire how long each text delta is."""
    return [
        {**event, "obfuscation": token_urlsafe(OBFUSCATED_TO)[: OBFUSCATED_TO - len(event["delta"]) % OBFUSCATED_TO]}
        if isinstance(event.get("delta"), str)
        else event
        for event in events
    ]


# Deltas are padded to a multiple of this many characters.
OBFUSCATED_TO = 16


def _plain_datas(received: bytes) -> list[bytes] | None:
    """The data of whole events, each a line of data, or each with its name before it; None for any other read."""
    if not received.endswith(b"\n\n") or b"\r" in received:
        return None
    lines = received[:-2].split(b"\n")
    named = received.startswith(b"event: ")
    datas, ends = (lines[1::3], lines[2::3]) if named else (lines[::2], lines[1::2])
    if any(ends) or (named and _behind(b"event: ", lines[::3]) is None):
        return None
    return _behind(b"data: ", datas)


def _behind(start: bytes, lines: list[bytes]) -> list[bytes] | None:
    """What is behind the same start in all lines. None if one does not have it, or nothing behind it."""
    nothing, *behind = b"\n".join([b"", *lines]).split(b"\n" + start)
    return behind if not nothing and len(behind) == len(lines) and all(behind) else None


def only_data(received: bytes) -> bytes | None:
    """The data of a read that holds one event and nothing else, as most reads of a stream do: a line of data, at most
    one with the event's name before it. None for any other."""
    if not received.endswith(b"\n\n") or b"\r" in received:
        return None
    start = received.find(b"\n") + 1 if received.startswith(b"event: ") else 0
    if not received.startswith(b"data: ", start) or received.find(b"\n", start) != len(received) - 2:
        return None
    return received[start + 6 : -2]


FIELDS = (b"data:", b"event:", b"id:", b"retry:", b"error:", b":")
BOM = b"\xef\xbb\xbf"


def looks_like_sse(begins: bytes) -> bool | None:
    """Whether a body that begins so is an event stream, whatever its header is. None where that is too little to
    know."""
    begun = begins.removeprefix(BOM).lstrip()
    if begun.startswith(FIELDS):
        return True
    is_part = (BOM.startswith(begins) and len(begins) < 3) or any(field.startswith(begun) for field in FIELDS)
    return None if is_part else False


MOST_LINE = 32 * 1024 * 1024


class SSEDecoder:
    """Cuts a byte stream into the data of its events, however the network cut it.

    Comments, `id:` and `retry:` are passed over; `event:` is kept for data that does not name its event (`name`). A
    line `error: {…}`, which llama.cpp has sent in place of data, becomes the data `{"error": {…}}`. A stream that is no
    SSE, but JSON or a JSON value a line, is understood as well: its values are the data.
    """

    __slots__ = ("_data", "_event", "_is_json", "_names", "_plain", "_started", "_tail", "is_between_events")

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._event = b""
        self._names: list[bytes] = []
        # The last read, where it was plain: its names are looked for when they are wanted.
        self._plain = b""
        self._started = self._is_json = False
        self.is_between_events = True

    def feed(self, received: bytes) -> list[bytes]:
        """The data of each event that `received` completes, in order."""
        if self.is_between_events and (datas := _plain_datas(received)) is not None:
            self._started = True
            self._plain = received
            return datas
        self._plain, self._names = b"", []
        if len(self._tail) > MOST_LINE:
            raise BackendError(
                f"The backend's answer was refused: a line has more than {MOST_LINE // 1024 // 1024} MB.",
                code="backend_answer_too_large",
            )
        text = self._tail + received if self._tail else received
        if not self._started:
            if len(text) < 3 and BOM.startswith(text):
                self._tail = text
                self.is_between_events = False
                return []
            self._started = True
            text = text.removeprefix(BOM)
            self._is_json = text.lstrip()[:1] == b"{"
        if self._is_json:
            return self._values(text)
        lines = text.splitlines(keepends=True)
        # The last line waits for its end; a bare CR waits too, because an LF may follow in the next read.
        self._tail = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        events: list[bytes] = []
        for line in lines:
            self._line(line.rstrip(b"\r\n"), events)
        self.is_between_events = not self._tail and not self._data
        return events

    def flush(self) -> list[bytes]:
        """What is left when the stream ended. Servers that forget the last blank line are forgiven."""
        tail, self._tail = self._tail, b""
        self._plain, self._names = b"", []
        if self._is_json:
            return [tail] if tail.strip() else []
        events: list[bytes] = []
        for line in (tail.rstrip(b"\r\n"), b""):
            self._line(line, events)
        return events

    def name(self, index: int) -> str:
        """What the event with this place in the last `feed` or `flush` was called, outside of its data. Mostly
        nothing."""
        if self._plain.startswith(b"event: "):
            return self._plain.split(b"\n")[3 * index][7:].decode(errors="replace")
        return self._names[index].decode(errors="replace") if index < len(self._names) else ""

    def _line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if data := b"\n".join(self._data):
                events.append(data)
                self._names.append(self._event)
            self._data, self._event = [], b""
        elif line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        elif line.startswith(b"error:"):
            self._data.append(b'{"error":%b}' % line[6:].strip())

    def _values(self, text: bytes) -> list[bytes]:
        """The lines that have ended, if each is a JSON value. A value of several lines ends with the stream."""
        self.is_between_events = False
        whole, _, rest = text.rpartition(b"\n")
        lines = [line for line in whole.splitlines() if line.strip()]
        if not all(line.rstrip().endswith(b"}") and line.lstrip().startswith(b"{") for line in lines):
            self._tail = text
            return []
        self._tail = rest
        return lines
