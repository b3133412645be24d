"""Pages of the web as a text to read: what stands on them, without what is around it, whatever the HTML."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fetching import Fetched
from backends.web import pages as pages_module
from backends.web.of_mcp import found_in_output, search_arguments, search_tool
from backends.web.pages import Pages
from backends.web.query import MOST_TEXT, Query, SearchFailed
from backends.web.readable import readable
from core.config import WebSearchConfig
from requests.web_search import Found, places_in
from tests.site import Site, reply, running_site


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One<p>Two", "One\n\nTwo"),
        ("<div>One<div>Two</div>Three</div>", "One\nTwo\n\nThree"),
        ("Plain <b>bold</b>\n  and\ttab", "Plain bold and tab"),
        ("<h1>A</h1><h3>B</h3>c", "# A\n\n### B\n\nc"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>", "- a\n- b\n- c"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", "a | b\n1 | 2"),
        ("<pre>a\n  b\n</pre>", "```\na\n  b\n```"),
        ("a<br>b", "a\nb"),
        ("<script>x</script><style>y</style><nav>z</nav><noscript>n</noscript><!-- c -->text", "text"),
        ("<p hidden>x</p><p aria-hidden=true>y</p><div role=navigation>z</div>w", "w"),
        ("<nav>menu</nav><main><p>" + "word " * 20 + "</p></main><div>around</div>", ("word " * 20).strip()),
        ("<article>short</article><p>" + "long " * 50 + "</p>", "short\n\n" + ("long " * 50).strip()),
        ("&lt;b&gt; &amp; &eacute;", "<b> & é"),
        ("", ""),
        ("<html>", ""),
    ],
)
def test_a_page_is_read_as_it_is_seen(html: str, text: str) -> None:
    assert readable(html)[1] == text


def test_a_page_has_the_title_that_it_names() -> None:
    assert readable("<title> A\n b </title><h1>C</h1>")[0] == "A b"
    assert readable("<h1>C</h1>x")[0] == "C"
    assert readable("x")[0] == ""


TAGS = st.sampled_from(["div", "p", "li", "ul", "pre", "table", "td", "tr", "main", "article", "svg", "nav", "h2", "b"])
PIECES = st.one_of(
    TAGS.map("<{}>".format),
    TAGS.map("</{}>".format),
    st.text(max_size=20),
    st.sampled_from(["<", "&", "<!--", "<![CDATA["]),
)


@given(html=st.lists(PIECES, max_size=60).map("".join))
def test_any_html_is_read(html: str) -> None:
    title, text = readable(html)
    assert len(text) <= 2 * len(html) + 20
    assert title.strip() == title


# What has made a parser that builds trees take hours, or gigabytes.
HOSTILE = {
    "depth": "<div>" * 100_000 + "x",
    "depth in tables": "<div><table></div></table>" * 40_000,
    "formatting": "".join(f"<b a={number}>" for number in range(1000)) + "<p>x" * 100_000,
    "ends of nothing": "<path>" * 50_000 + "</foo>" * 50_000,
    "deep ends of nothing": "<path>" * 499 + "</foo>" * 200_000,
    "attributes": "<a " + " ".join(f"a{number}=1" for number in range(100_000)) + ">x",
    "articles": "<article>x" * 100_000,
    "comments": "<!--" * 250_000,
    "half tags": "<a" * 300_000,
    "a long text": "word " * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_that_is_made_to_be_slow_is_read_in_time(name: str) -> None:
    begun = time.process_time()
    assert len(readable(HOSTILE[name])[1]) <= MOST_TEXT
    assert time.process_time() - begun < 3, "each takes a quarter of a second, or takes an hour"


@pytest.fixture
def config() -> WebSearchConfig:
    return WebSearchConfig(allow_private=True)


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("é".encode("latin-1"), "text/plain; charset=latin-1", "é"),
        (b"<meta charset=latin-1><p>\xe9", "text/html", "é"),
        (b"<p>\xe9", "text/html; charset=no-such", "\ufffd"),
        ("<p>é".encode(), "", "é"),
        (b'{"a":1}', "application/ld+json", '{"a":1}'),
        (b"<p>\xe9", "text/html; charset=hex", "\ufffd"),
        (b"a-b", "text/plain; charset=punycode", "a-b"),
        (b"a-b", "text/plain; charset=unicode_escape", "a-b"),
        ("日本".encode("shift_jis"), "text/plain; charset=Shift_JIS", "日本"),
        ("中文".encode("gb18030"), "text/plain; charset=GB18030", "中文"),
        ("№".encode("cp1251"), "text/plain; charset=windows-1251", "№"),
    ],
)
async def test_a_page_is_decoded_as_it_declares(
    config: WebSearchConfig, body: bytes, content_type: str, text: str
) -> None:
    async with running_site({"/a": reply(body, **({"content_type": content_type} if content_type else {}))}) as site:
        pages = Pages(config)
        assert (await pages.page(f"{site.url}/a")).text == text
        await pages.close()


async def test_pages_are_kept_for_an_hour_and_no_more_than_there_is_room_for(
    config: WebSearchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    async def get(self: Pages, url: str) -> Fetched:
        fetched.append(url)
        return Fetched(b"x" * 600, "text/plain")

    monkeypatch.setattr(Pages, "get", get)
    monkeypatch.setattr(pages_module, "MOST_KEPT", 1500)
    pages = Pages(config)
    for url in ("http://a", "http://b", "http://a", "http://c", "http://b", "http://a"):
        await pages.page(url)
    assert fetched == ["http://a", "http://b", "http://c", "http://a"], "the oldest went when the third came"
    now = time.monotonic()
    monkeypatch.setattr("backends.web.pages.time.monotonic", lambda: now + pages_module.KEPT_S + 1)
    assert pages.known("http://a") is None


async def test_a_page_knows_where_it_was_found(config: WebSearchConfig) -> None:
    async with running_site({"/b": reply(b"x", content_type="text/plain")}) as site:
        site.answers["/a"] = reply(status="302 Found", location=f"{site.url}/b")
        pages = Pages(config)
        assert await pages.page(f"{site.url}/a") == Found(f"{site.url}/b", f"{site.url}/b", "x")
        await pages.close()


async def test_what_is_too_large_or_no_text_is_no_page(config: WebSearchConfig) -> None:
    async def is_refused(site: Site, path: str, why: str) -> None:
        with pytest.raises(SearchFailed, match=why):
            await pages.page(f"{site.url}{path}")

    answers = {
        "/large": reply(b"x", length=10**8),
        "/zip": reply(b"PK\0", content_type="application/zip"),
        "/liar": reply(b"PK\0", content_type="text/plain"),
    }
    async with running_site({**answers}) as site:
        pages = Pages(config)
        await is_refused(site, "/large", "larger than 4 MB")
        await is_refused(site, "/zip", "application/zip")
        await is_refused(site, "/liar", "no text")
        await pages.close()


def test_words_are_found_with_what_is_around_them() -> None:
    text = "The first  Snow\nfalls here." + " word" * 200 + " SNOW FALLS there."
    assert places_in(text, "snow falls").count("---") == 1
    assert places_in(text, "rain") == ""
    assert places_in(text, " ") == ""
    assert len(places_in("a" * 100_000, "a")) < 10_000


def test_a_pattern_that_is_made_to_be_slow_is_looked_for_in_time() -> None:
    begun = time.process_time()
    assert places_in("x " * (MOST_TEXT // 2), "x " * 49 + "y") == ""
    assert places_in("x\n" * (MOST_TEXT // 2) + "y", "x " * 20 + "y")
    assert time.process_time() - begun < 3, "it stops all others meanwhile"


# ── what a server of MCP answers to a search ─────────────────────────────────────────────────────────────────────────

A = Found("https://a.example/", "A", "Words.")


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ('[{"url":"https://a.example/","title":"A","snippet":"Words."}]', [A]),
        ('{"results":{"web":[{"link":"https://a.example/","name":"A","content":"Words."},{"url":5}]}}', [A]),
        (
            '[{"type":"text","text":"{\\"url\\":\\"https://a.example/\\",\\"title\\":\\"A\\",\\"text\\":\\"Words.\\"}"}]',
            [A],
        ),
        ("Title: A\nURL: https://a.example/\nDescription: Words.", [A]),
        ("1. A\n   https://a.example/\n   Words.\n\nB\nhttps://b.example/.", None),
        ("nothing", []),
        ("", []),
        (None, []),
        ("[" * 50 + "]" * 50, []),
    ],
)
def test_results_are_found_in_what_a_tool_answers(output: str | None, found: list[Found] | None) -> None:
    got = found_in_output(output)
    if found is None:
        assert [each.url for each in got] == ["https://a.example/", "https://b.example/"]
    else:
        assert got == found


@given(
    output=st.recursive(
        st.none() | st.text(max_size=10), lambda each: st.lists(each) | st.dictionaries(st.text(), each)
    )
)
def test_whatever_a_tool_answers_is_read(output: Any) -> None:
    import orjson

    assert isinstance(found_in_output(orjson.dumps(output).decode()), list)
    assert isinstance(found_in_output(str(output)), list)


def test_the_tool_that_searches_is_found_among_others() -> None:
    def tool(name: str, **properties: Any) -> dict[str, Any]:
        return {"name": name, "input_schema": {"properties": properties}}

    query = Query("rain", 5)
    tools = [
        tool("fetch", url={}),
        tool("news_search", query={}),
        tool("web_search", query={"type": "string"}, count={}),
    ]
    found = search_tool(tools)
    assert found is tools[2]
    assert search_arguments(found, query) == {"query": "rain", "count": 5}
    assert search_arguments(tool("s", queries={"type": "array"}), query) == {"queries": ["rain"]}
    assert search_tool([tools[0], {"name": "x", "input_schema": {}}]) is None
