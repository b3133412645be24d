"""Whether pieces of text are a whole JSON object yet: each is read once, however many come."""

from __future__ import annotations

import re


class WholeJSON:
    """Follows the brackets of a JSON text through its pieces. `is_closed`: the first bracket has found its end, and
    nothing but blanks came behind it. Whether it is JSON in between is another question, worth asking then alone."""

    __slots__ = ("_depth", "_has_end", "_in_text", "_is_escaped", "_is_spoiled")

    # In a text only its end and escapes count; an escape may be cut in two.
    _TOKEN = re.compile(r'["{}\[\]]|\\.?', re.DOTALL)

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self._has_end = False
        self._is_spoiled = False

    @property
    def is_closed(self) -> bool:
        """Whether it may be whole."""
        return self._has_end and not self._is_spoiled

    def feed(self, piece: str) -> None:
        """Reads the next piece."""
        if self._has_end:
            self._is_spoiled = self._is_spoiled or bool(piece.strip())
            return
        start = 1 if self._is_escaped and piece else 0
        self._is_escaped = self._is_escaped and not piece
        for found in self._TOKEN.finditer(piece, start):
            token = found[0]
            if token[0] == "\\":
                self._is_escaped = len(token) == 1
            elif token == '"':
                self._in_text = not self._in_text
            elif not self._in_text:
                self._depth += 1 if token in "{[" else -1
                if self._depth <= 0:
                    self._has_end = True
                    self._is_spoiled = bool(piece[found.end() :].strip())
                    return
