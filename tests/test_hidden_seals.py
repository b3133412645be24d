"""A native backend seals its reasoning for us: whatever its stream is like, the client never sees a seal that it did
not ask for, the store keeps it, and the next turn has it."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.turns.native_answer import native_params
from api.turns.turn import TurnRequest
from core.errors import BackendError
from core.keys import Principal
from core.seals import Sealer
from requests.events import ResponseBuilder
from requests.hidden import drop, reveal
from requests.params import check_request
from requests.sse import frames
from tests.fake_backend import call, reasoning
from tests.stream_grammar import check_stream, parse_sse
from tests.streams import Json, builder
from tests.test_laws import law
from tests.test_native_streams import ENDINGS, stream_of
from tests.translated import listed, native_translator

SEAL = "gAAAA-seal"
KEY = "encrypted_content"
HIDDEN = "nomyo_encrypted_content"
sealer = Sealer("key")

STREAMS = {
    "a thought": (reasoning("Hm. So."), "Hello."),
    "two": (reasoning("Hm."), call("get", "{}"), reasoning("So."), "Hello."),
    "a thought alone": (reasoning("Hm."),),
    "one without words": (reasoning(""), "Hello."),
    "none": ("Hello.",),
}


def spelled(event: Json, *, odd: bool) -> bytes:
    """An event on the wire; `odd`: with the key in letters that JSON may have it in."""
    data = json.dumps(event)
    return (data.replace(f'"{KEY}"', '"encrypted\\u005fcontent"') if odd else data).encode()


def read(
    events: list[bytes], emits: str, cuts: list[int], *, hides: bool, breaks_off: bool
) -> tuple[ResponseBuilder, list[Any]]:
    """What becomes of a stream that arrives in reads which end behind these events."""
    made = builder(emits=emits)
    made.hides_seals = hides
    translator = native_translator(made)
    out: list[Any] = []
    ends = [*sorted({min(cut, len(events)) for cut in cuts}), len(events)]
    for start, end in zip([0, *ends], ends, strict=False):
        reads = [
            b"event: %b\ndata: %b\n\n" % (json.loads(event)["type"].encode(), event) for event in events[start:end]
        ]
        out += listed(translator.feed(b"".join(reads)))
        assert translator.failure is None, translator.failure
    if breaks_off and not made.ended:
        out += made.fail(BackendError("It broke off."))
    return made, [*out, made.end()]


def shown(out: list[Any]) -> list[Json]:
    """The events as their client has them, but for what a clock says."""
    events = [event for _, event in parse_sse(frames(out))]
    for event in events:
        event.get("response", {}).update(created_at=0, completed_at=0)
    return events


@st.composite
def sealed_streams(draw: st.DrawFn) -> tuple[list[bytes], list[int], bool]:
    """A stream whose reasoning has its seal at some of the places where servers show one; where its reads are cut; and
    whether it breaks off."""
    events = stream_of(*draw(st.sampled_from([*STREAMS.values()])))
    seals = st.sampled_from([SEAL, SEAL, None, "", ...])
    for event in events:
        for item in [event.get("item", {}), *event.get("response", {}).get("output", ())]:
            if item.get("type") == "reasoning" and (seal := draw(seals)) is not ...:
                item[KEY] = seal
    events[-1]["response"] = draw(st.sampled_from([*ENDINGS.values()]))(events[-1]["response"])
    for _ in range(draw(st.integers(0, 2))):
        unknown = {"type": "response.reasoning_seal.done", "output_index": 0, KEY: SEAL}
        events.insert(draw(st.integers(0, len(events) - 1)), unknown)
    for number, event in enumerate(events):
        event["sequence_number"] = number
    breaks_off = draw(st.booleans())
    if breaks_off:
        events = events[: draw(st.integers(1, len(events) - 1))]
    odd = draw(st.booleans())
    return [spelled(event, odd=odd) for event in events], draw(st.lists(st.integers(0, 60), max_size=5)), breaks_off


emissions = st.sampled_from(["frames", "events", "nothing"])


@law
@given(sealed_streams(), emissions)
def test_no_client_sees_a_seal_that_it_did_not_ask_for(drawn: tuple[list[bytes], list[int], bool], emits: str) -> None:
    events, cuts, breaks_off = drawn
    made, out = read(events, emits, cuts, hides=True, breaks_off=breaks_off)
    wire = frames(out)
    for secret in (SEAL, KEY, HIDDEN):
        assert secret not in json.dumps(shown(out)), secret
        assert secret.encode() not in wire, secret
        assert secret not in json.dumps(drop(made.response)), secret
    if emits != "nothing" and not any(b"reasoning_seal" in event for event in events):
        check_stream(shown(out), prefixes=False)


@law
@given(sealed_streams(), emissions)
def test_but_for_that_it_sees_what_it_would_have_seen(drawn: tuple[list[bytes], list[int], bool], emits: str) -> None:
    def without_seals(value: Any) -> Any:
        if isinstance(value, list):
            return [*map(without_seals, value)]
        if isinstance(value, dict):
            return {key: without_seals(inner) for key, inner in value.items() if key != KEY}
        return value

    events, cuts, breaks_off = drawn
    read_both = partial(read, events, emits, cuts, breaks_off=breaks_off)
    (hiding, out), (open_, others) = read_both(hides=True), read_both(hides=False)
    assert shown(out) == without_seals(shown(others))
    # The store keeps each seal that there is to be shown.
    kept = reveal(hiding.response["output"])
    assert [item.get(KEY) for item in kept] == [item.get(KEY) for item in open_.response["output"]]
    assert HIDDEN not in json.dumps(kept)


@law
@given(sealed_streams(), emissions)
def test_the_next_turn_replays_what_is_kept(drawn: tuple[list[bytes], list[int], bool], emits: str) -> None:
    events, cuts, breaks_off = drawn
    made, _ = read(events, emits, cuts, hides=True, breaks_off=breaks_off)
    history = reveal(json.loads(json.dumps(made.response["output"])))
    body: Json = {"model": "m", "input": "On"}
    request = TurnRequest(body, check_request(body), "m", history, [{"type": "message", "role": "user"}], Principal(""))
    sent = native_params(request, "m", sealer)["input"] if history else []
    assert [item[KEY] for item in sent if item["type"] == "reasoning"] == [
        item[KEY] for item in history if item["type"] == "reasoning" and item.get(KEY)
    ]
    assert HIDDEN not in json.dumps(sent)
