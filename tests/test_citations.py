"""The marks of a model as links and annotations: the same ones however its text was cut, and each where it is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.chat import decode_chunk
from requests.citations import MOST_CITED, Marks, PageSource, Sources, cited, plain_url
from requests.emission import EMIT_EVENTS, EMIT_FRAMES, EMIT_NOTHING, Emission
from requests.events import ResponseBuilder
from requests.responses import chat_message_to_output_items, response_resource
from tests.fake_backend import chunk
from tests.stream_grammar import check_stream, fold, parse_sse

Json = dict[str, Any]
RAIN, SNOW = PageSource("https://example.org/rain", "Rain"), PageSource("https://www.snow.example/a?b=1", "Snow")


def sources() -> Sources:
    known = Sources()
    assert known.add(RAIN.url, RAIN) == 1
    assert known.add(SNOW.url, SNOW) == 2
    assert known.add(RAIN.url, RAIN) == 1, "a page has one number"
    return known


ONE, TWO = "([example.org](https://example.org/rain))", "([snow.example](https://www.snow.example/a?b=1))"


@pytest.mark.parametrize(
    ("text", "shown", "count"),
    [
        ("It rains 【1】.", f"It rains {ONE}.", 1),
        ("It rains【1】.", f"It rains {ONE}.", 1),
        ("It rains [1], and snows [2].", f"It rains {ONE}, and snows {TWO}.", 2),
        ("Both【1】【2】", f"Both {ONE} {TWO}", 2),
        ("Both [1][2].", f"Both {ONE} {TWO}.", 2),
        ("Both [1, 2].", f"Both {ONE} {TWO}.", 2),
        ("As gpt-oss writes it【2†L10-L12】.", f"As gpt-oss writes it {TWO}.", 1),
        ("[^1] as a footnote", f"{ONE} as a footnote", 1),
        ("([1])", f"({ONE})", 1),
        ("By [rain](https://example.org/rain) itself", "By [rain](https://example.org/rain) itself", 1),
        ("Of no source 【3】 [0] [99, 7].", "Of no source 【3】 [0] [99, 7].", 0),
        ("One of two [1, 9].", f"One of two {ONE}.", 1),
        ("A [link](https://else.example/) and [1](https://else.example/)", None, 0),
        ("[1]: https://else.example/", None, 0),
        ("`a[1]` and ``b[2] ` [1]``", None, 0),
        ("```py\na[1]\n\nb[2]\n```", None, 0),
        ("```py\na[1]\n```\nSo [1]", f"```py\na[1]\n```\nSo {ONE}", 1),
        ("An open ` of no code\n\nand [1]", f"An open ` of no code\n\nand {ONE}", 1),
        ("An open [ and 【 and [1", None, 0),
        ("[" * 300 + "1]", "[" * 299 + f"{ONE}", 1),
        ("x" * 50 + "【" + "y" * 300 + "】", None, 0),
    ],
)
def test_a_mark_becomes_a_link_with_its_annotation(text: str, shown: str | None, count: int) -> None:
    found, annotations = cited(text, sources())
    assert found == (text if shown is None else shown)
    assert len(annotations) == count
    _are_where_they_are(found, annotations)


def _are_where_they_are(text: str, annotations: list[Json]) -> None:
    last = 0
    for annotation in annotations:
        assert annotation["type"] == "url_citation"
        start, end = annotation["start_index"], annotation["end_index"]
        assert last <= start < end <= len(text)
        assert f"({annotation['url']})" in text[start:end]
        assert annotation["title"] in ("Rain", "Snow")
        last = end


PIECES = st.sampled_from(
    [
        *(
            "【1】",
            "【2†L1】",
            "[1]",
            "[2]",
            "[1, 2]",
            "[^1]",
            "[7]",
            "【",
            "】",
            "[",
            "]",
            "(",
            ")",
            "†",
            ",",
            "1",
            "2",
        ),
        *("[a](https://example.org/rain)", "[1](https://example.org/rain)", "[a](https://b.example/)", "https://"),
        *("`", "``", "```", "\n", "\n\n", " ", "word", "é", "☂", "😀", ":", "^", "x" * 170, "y" * 1015),
    ]
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=12))
def test_however_a_text_was_cut_what_comes_of_it_is_the_same(text: str, cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    marks = Marks(sources())
    shown, annotations = "", []
    deltas = [text[start:end] for start, end in pairwise(places)]
    for piece, source in [piece for delta in deltas for piece in marks.feed(delta)] + marks.flush():
        shown += piece
        if source is not None:
            annotations.append(source.annotation(len(shown) - len(piece), len(shown)))
    assert (shown, annotations) == cited(text, sources())
    _are_where_they_are(shown, annotations)


@pytest.mark.parametrize("mark", ["【1】", "[1, 2]", "[a](https://example.org/rain)"])
@pytest.mark.parametrize("size", [7, 5000, 10**6])
def test_an_answer_of_marks_alone_grows_no_more_than_may_be_cited(mark: str, size: int) -> None:
    text = mark * 3000
    shown, annotations = cited(text, sources())
    assert MOST_CITED <= len(annotations) < MOST_CITED + 10
    assert len(shown) < len(text) + (MOST_CITED + 10) * (len(TWO) + 1)
    assert shown.endswith(mark * 1000), "what is too much stays as it is"
    marks = Marks(sources())
    pieces = [piece for at in range(0, len(text), size) for piece in marks.feed(text[at : at + size])] + marks.flush()
    assert "".join(piece for piece, _ in pieces) == shown


@given(text=TEXTS)
def test_a_text_without_known_sources_stays_as_it_is(text: str) -> None:
    assert cited(text, Sources()) == (text, [])


def _builder(emission: Emission) -> ResponseBuilder:
    resource = response_resource({"model": "m"}, response_id="resp_1", created_at=1, status="in_progress")
    builder = ResponseBuilder(resource, emission)
    for number, source in enumerate((RAIN, SNOW), 1):
        builder.sources.put(number, source.url, source)
    return builder


def _streamed(deltas: list[Json], emission: Emission) -> tuple[list[Any], Json]:
    builder = _builder(emission)
    events = builder.begin()
    for delta in deltas:
        events += builder.chunk(decode_chunk(chunk(delta).removeprefix(b"data: ").strip()))
    events += builder.finish()
    return [*events, builder.end()], builder.response


@given(
    text=TEXTS.filter(bool),
    cuts=st.lists(st.integers(0, 400), max_size=12),
    refuses=st.booleans(),
)
def test_a_stream_folds_to_its_response_which_is_that_of_the_whole_answer(
    text: str, cuts: list[int], refuses: bool
) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    deltas: list[Json] = [{"content": text[start:end]} for start, end in pairwise(places)]
    if refuses:
        deltas.append({"refusal": "No."})
    events, response = _streamed(deltas, EMIT_EVENTS)
    check_stream(events)
    assert fold(events)["output"] == response["output"]
    part = response["output"][0]["content"][0]
    assert (part["text"], part["annotations"]) == cited(text, sources())
    _, silent = _streamed(deltas, EMIT_NOTHING)
    assert silent["output"][0]["content"] == response["output"][0]["content"]
    framed, _ = _streamed(deltas, EMIT_FRAMES)
    assert fold([event for _, event in parse_sse(EMIT_FRAMES.encode(framed))])["output"][0]["content"] == [
        *response["output"][0]["content"]
    ]
    builder = _builder(EMIT_EVENTS)
    message = {"content": text, "refusal": "No." if refuses else None}
    whole = builder.begin() + builder.completion(
        chat_message_to_output_items(message), finish_reason="stop", usage=None
    )
    check_stream([*whole, builder.end()])
    assert builder.response["output"][0]["content"] == response["output"][0]["content"]


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://en.wikipedia.org/wiki/Foo_(bar)", "https://en.wikipedia.org/wiki/Foo_%28bar%29"),
        ('https://a.example/"x y\\', "https://a.example/%22x%20y%5C"),
        ("https://münchen.example/straße?q=ä", "https://xn--mnchen-3ya.example/stra%C3%9Fe?q=%C3%A4"),
        ("https://a.example/%28x%29?a=b&c=[1]#top", "https://a.example/%28x%29?a=b&c=[1]#top"),
        ("https://a.example/\ud800", "https://a.example/?"),
    ],
)
def test_a_url_can_stand_in_a_link_and_in_json(url: str, plain: str) -> None:
    assert plain_url(url) == plain
    assert plain_url(plain) == plain
