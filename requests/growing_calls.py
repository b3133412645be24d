"""The calls of an answer that are still open, and which of them a delta goes on with.

index 0, id a, name f, ""    ──▶ another call
index 0,             '{"x"'  ──▶ goes on
index 0, id a, name f, ":1}" ──▶ goes on: servers repeat ids and names in every chunk
index 0, id b, name f, "{"   ──▶ another call: new arguments begin behind whole ones

Clients take what comes for a part of the call that began last, so one call ends before the client sees the next: where
a backend writes several at once, those behind the first of the `_line` wait until its arguments are whole.
"""

from __future__ import annotations

from core.json import encode_json
from requests.chat_types import ToolCallDelta, called_function
from requests.open_items import MOST_ITEMS, Event, Ladder, OpenCall, too_many_items
from requests.tools import NO_BOOK, ToolBook, is_cut_off


class GrowingCalls:
    """Open calls by their index. Servers that give none, or 0 to every call, are understood by ids, names and
    arguments. `book` is what the backend was offered; of that only the `allowed` may be called, and `one_call` be
    made."""

    def __init__(self, book: ToolBook = NO_BOOK, allowed: frozenset[str] | None = None, one_call: bool = False) -> None:
        self._calls: dict[int, OpenCall] = {}
        self._last = 0
        # Those that have not ended, as they began; and the index of the only one, if it is open and goes on plainly.
        self._line: list[OpenCall] = []
        self._plain: int | None = None
        # It may be of another tool than it looks, or have other arguments.
        self._waiting: OpenCall | None = None
        self._book, self._allowed, self._one_call = book, allowed, one_call
        self._called = False
        # The backend's names of calls that the client had forbidden, and did not get.
        self.suppressed: list[str] = []

    @property
    def all(self) -> list[OpenCall]:
        """Those that have not ended."""
        return self._line

    def permits(self, name: str) -> bool:
        """Whether the client may know of a call. One that it may not is as if it had not been made."""
        if (self._allowed is not None and name not in self._allowed) or (self._one_call and self._called):
            self.suppressed.append(name)
            return False
        self._called = True
        return True

    def grow(self, ladder: Ladder, events: list[Event], deltas: list[ToolCallDelta]) -> None:
        """Goes on with the calls that these deltas of one chunk belong to, or begins others."""
        if len(deltas) == 1 and self._goes_on_plainly(ladder, events, deltas[0]):
            return
        # Several in one chunk are several calls, by their places if by nothing else.
        in_places = len(deltas) > 1 and not any(delta.id or delta.index is not None for delta in deltas)
        for place, delta in enumerate(deltas):
            self._grow(ladder, events, delta, place if in_places else delta.index)

    def _goes_on_plainly(self, ladder: Ladder, events: list[Event], delta: ToolCallDelta) -> bool:
        """The shortcut for nearly all deltas: a piece of the arguments of the call before, and nothing else."""
        function = delta.function
        if function is None or function.name or delta.id or delta.index is None or delta.index != self._plain:
            return False
        return self._calls[self._plain].goes_on(ladder, events, function.arguments)

    def _grow(self, ladder: Ladder, events: list[Event], delta: ToolCallDelta, index: int | None) -> None:
        function = called_function(delta)
        name = self._book.wire_name(function.name) if function.name else ""
        arguments = function.arguments or ""
        if isinstance(arguments, dict):
            arguments = encode_json(arguments).decode()
        key = self._key_of(index, delta.id, name, arguments)
        call = self._calls.get(key)
        if call is not None and self._is_another(call, delta.id, name, arguments):
            call.is_over = True
            call = None
        if call is None:
            if len(self._calls) >= MOST_ITEMS:
                raise too_many_items("calls")
            call = self._calls[key] = OpenCall(delta.id)
            self._line.append(call)
        self._last = key
        if self._waiting is not call:
            self.settle(ladder, events)
        if call.has_ended:
            return  # Nothing but blanks can follow.
        if name and call.call is None:
            call.spelled = call.spelled + name if self._goes_on(call, name) else call.spelled or name
        if call.spelled and call.call is None:
            self._name(call, is_whole=bool(arguments) or call.has_arguments)
        if not call.muted:
            events += ladder.close_text()
            self._advance(ladder, events)
            if not call.has_ended:  # It may have been whole, where another has begun.
                call.grow(ladder, events, arguments)
                self._waiting = call if call.waits else None
        if len(self._line) > 1:
            self._advance(ladder, events)
        self._plain = key if len(self._line) == 1 and self._line[0] is call else None

    def settle(self, ladder: Ladder, events: list[Event]) -> None:
        """Something else begins: no more of a name comes, and none of the arguments that may follow `{}`."""
        if (call := self._waiting) is not None:
            self._waiting = None
            if call.spelled and call.call is None:
                self._name(call, is_whole=True)
            if not call.muted:
                events += ladder.close_text()
                self._advance(ladder, events)
            call.settle(ladder, events)

    def give_way(self, ladder: Ladder, events: list[Event]) -> None:
        """Text begins: the call that is open ends, if it is whole."""
        self.settle(ladder, events)
        if self._line and self._line[0].call is not None and self._line[0].is_whole:
            self._line[0].is_over = True
            self._advance(ladder, events)

    def close(self, ladder: Ladder, events: list[Event], *, is_cut: bool) -> None:
        """The answer is whole, or was cut off: in the last call, and in any other that is not whole."""
        calls = [call for call in self._line if call.appears]
        for call in calls:
            was_cut = is_cut and (call is calls[-1] or is_cut_off(call.arguments))
            events += call.close(ladder, "incomplete" if was_cut else "completed")
        self._calls.clear()
        self._line.clear()
        self._plain = None

    def _advance(self, ladder: Ladder, events: list[Event]) -> None:
        """The first call opens, as far as it is known. It ends, and the next is the first, where that has begun and
        this one is whole or is over."""
        while self._line:
            first = self._line[0]
            if not first.muted:
                events += first.start(ladder)
                begun = len(self._line) > 1 and first.call is not None and first.is_whole
                if not (begun or first.is_over):
                    return
                if first.call is not None:
                    events += first.close(ladder, "completed")
            first.has_ended = True
            self._plain = None
            del self._line[0]

    def _name(self, call: OpenCall, *, is_whole: bool) -> None:
        """The call is of the tool that it names, unless more of the name may come."""
        if not is_whole and self._book.may_go_on(call.spelled):
            return
        if self.permits(call.spelled):
            call.call = self._book.call_of(call.spelled)
        else:
            call.mute()

    def _key_of(self, index: int | None, call_id: str | None, name: str, arguments: str) -> int:
        """Without an index, an id that is known is that call; a new one with a name is a new call; else it is the last
        one."""
        if index is not None:
            return index
        for key, call in self._calls.items():
            if call_id and call_id == call.backend_id:
                return key
        last = self._calls.get(self._last)
        if last is not None and (not (call_id and name) or self._is_noise(last, name, arguments)):
            return self._last
        return max(self._calls, default=-1) + 1

    def _is_another(self, call: OpenCall, call_id: str | None, name: str, arguments: str) -> bool:
        """Whether a delta with this id, name and arguments begins another call where this one is open."""
        is_its_own = not name or (bool(call_id) and call_id == call.backend_id)
        if is_its_own and call.repeats(arguments):
            return False
        if name and call.spelled and name != call.spelled:
            return not self._goes_on(call, name)
        if not arguments:
            return False
        if name and call_id and call.backend_id and call_id != call.backend_id and call.has_arguments:
            return not self._is_noise(call, name, arguments)
        return _begins_object(arguments) and call.is_whole

    def _is_noise(self, call: OpenCall, name: str, arguments: str) -> bool:
        """Whether a new id means nothing: some servers make one for each piece of a call."""
        return call.spelled == name and call.is_json and not call.is_whole and not _begins_object(arguments)

    def _goes_on(self, call: OpenCall, piece: str) -> bool:
        """Whether this is the next piece of a call's name."""
        return (
            call.call is None
            and not call.has_arguments
            and piece != call.spelled
            and self._book.begins(call.spelled + piece)
        )


def _begins_object(arguments: str) -> bool:
    return arguments.lstrip()[:1] == "{"
