"""The bytes of a backend's answer, as what leaves to the client.

    out = translator.feed(data)      …      out = translator.finish()

    ChatTranslator     chat chunks, as the events of a response       chat_translator.py
    NativeTranslator   a Responses server's events, as ours           native_translator.py

Nobody outside knows which way an answer takes inside: most reads of a stream are a single delta that becomes a frame
(deltas.py), those of a quick server a hundred at once (reads.py), and all others are read event by event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from core.errors import APIError, BackendCut, BackendError, TooManyRequests
from requests.emission import Output
from requests.events import ResponseBuilder
from requests.sse import SSEDecoder

T = TypeVar("T")

# What ends a stream of chat chunks.
DONE = b"[DONE]"

Failure = BackendError | TooManyRequests


class Errors(Protocol):
    """Our names for what a server reports inside of an answer."""

    def inside(self, value: Any) -> Failure:
        """Of an error object."""
        ...

    def not_an_answer(self, body: bytes) -> Failure:
        """Of what is no answer."""
        ...


class Translator(ABC, Generic[T]):
    """One answer, whose events `builder` makes. `errors` names those that are in it.

    `ended`: the answer is whole, though its usage may still come; `is_done`: nothing more of it does; `is_counted`:
    nothing but its end is missing. `failure` is what is wrong with it. `is_over`: it has ended or failed."""

    ended = is_done = is_counted = is_over = False
    failure: APIError | None = None
    # Whether a client has got, or would get, anything of it.
    begun = False

    def __init__(self, builder: ResponseBuilder, errors: Errors) -> None:
        self._builder = builder
        self._errors = errors
        self._decoder = SSEDecoder()

    def feed(self, received: bytes) -> Output:
        """What leaves of a network read."""
        return self.take(*self._pieces_in(received))

    def finish(self) -> Output:
        """What leaves at last, when nothing more comes, or nothing that matters."""
        is_read = self.is_done or self.failure is not None
        return self.take(*([], None) if is_read else self._read(self._decoder.flush()))

    def take(self, pieces: list[T], failure: APIError | None = None) -> Output:
        """What leaves of the pieces of a read, and what is wrong behind them."""
        events: list[Any] = []
        # Of an answer that fails before anything came of it nobody gets anything: another server may be asked.
        if pieces and (failure is None or self.begun or any(map(self._matters, pieces))):
            self.begun = True
            events = self._events_of(pieces)
        if failure is not None:
            self.failure = self.failure or failure
        self.is_over = self.ended or self.failure is not None
        return self._builder.emission.encode(events)

    def settle(self) -> Output:
        """What leaves a moment behind the end of the answer, though its usage may still come."""
        return self._builder.emission.encode([])

    def wrong(self) -> APIError | None:
        """What is wrong with an answer whose bytes have ended, or that has failed."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            return failure
        if not self.begun:
            return BackendError("The backend's answer is empty.", code="backend_empty_answer")
        return None if self.ended else self._cut()

    def _cut(self) -> APIError:
        """What is wrong with an answer that has no end."""
        return BackendCut("The backend ended its answer in the middle.")

    def _pieces_in(self, received: bytes) -> tuple[list[T], APIError | None]:
        """The pieces in a network read, and what is wrong behind them. Notes if they are the last."""
        return self._read(self._decoder.feed(received))

    def _read(self, datas: list[bytes]) -> tuple[list[T], APIError | None]:
        """The same in the data of some events."""
        pieces: list[T] = []
        for place, data in enumerate(datas):
            if data[:1] == b"[" and data.strip() == DONE:
                self.ended = self.is_done = True
                break
            try:
                pieces.append(self._piece(data, place))
            except (BackendError, TooManyRequests) as error:
                if not self.ended:
                    return pieces, error
                self.is_done = True  # An end stays an end, whatever comes behind it.
            if self.is_done:
                break
        return pieces, None

    @abstractmethod
    def _matters(self, piece: T) -> bool:
        """Whether a client gets anything of a piece but that the answer has begun."""

    @abstractmethod
    def _piece(self, data: bytes, place: int) -> T:
        """The piece in `data`, which has this place in the read. Notes in `ended` whether the answer is whole with it.
        Raises when it is an error."""

    @abstractmethod
    def _events_of(self, pieces: list[T]) -> list[Any]:
        """The events, or frames of them."""
