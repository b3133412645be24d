"""web_search on any model: what a provider finds, and what a page has, is read by the model, and its marks become
citations. The provider and the pages are a site of the tests' own."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response as SDKResponse

from core.errors import ConfigError, InvalidRequest
from requests.events import ResponseBuilder, replay, unfinished
from requests.web_search import MOST_URL, web_search_entry
from tests.conftest import Running, running_router
from tests.fake_backend import Call, FakeBackend, call, chat, http_error, native
from tests.mcp_server import mcp_server
from tests.sdk import EVENT_CLASSES
from tests.site import Asked, Site, never, reply, running_site
from tests.stream_grammar import check_stream, fold
from tests.turns import URL, assert_error, create, ended, eventually, open_stream, rejoin, retrieve, stream, text_of

Json = dict[str, Any]
SEARCH: Json = {"type": "web_search"}
RAIN = b"""<!doctype html><html><head><title>Rain in Oslo</title><style>p {}</style></head><body>
<nav>Home News Contact</nav><main><h1>Rain</h1><p>It rains in <b>Oslo</b> today.</p>
<ul><li>Monday: rain<li>Tuesday: more rain</ul><script>alert(1)</script></main><footer>Imprint</footer></body></html>"""


def results(site: Site, *paths: str) -> bytes:
    rows = [
        {"url": f"{site.url}{path}", "title": f"Page {path}", "content": f"About <b>{path}</b>.", "engine": "recorded"}
        for path in paths
    ]
    return reply(json.dumps({"query": "x", "results": rows}).encode(), content_type="application/json")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site({}) as site:
        site.answers |= {
            "/search": results(site, "/rain", "/snow"),
            "/rain": reply(RAIN, content_type="text/html; charset=utf-8"),
            "/snow": reply(b"Snow falls.\nSNOW stays.", content_type="text/plain"),
            "/gone": reply(status="404 Not Found"),
            "/picture": reply(b"\x89PNG\r\n\x1a\n\0", content_type="image/png"),
            "/slow": never,
        }
        yield site


@asynccontextmanager
async def router(backend: FakeBackend, site: Site, **settings: Any) -> AsyncIterator[Running]:
    search = {"provider": "searxng", "url": site.url, "allow_private": True} | settings.pop("web_search", {})
    endpoints = [{"url": f"{backend.url}/v1", "kind": settings.pop("kind", "vllm")}]
    async with running_router(endpoints=endpoints, web_search=search, **settings) as running:
        yield running
        await eventually(lambda: running.in_flight() == 0, "no slot is held")


@pytest.fixture
async def served(backend: FakeBackend, site: Site) -> AsyncIterator[Running]:
    async with router(backend, site) as running:
        yield running


def uses(name: str, id: str = "call_1", **arguments: Any) -> Call:
    return call(name, arguments, id=id)


def searches(words: str = "rain oslo") -> Call:
    return uses("web_search", query=words)


async def both(served: Running, backend: FakeBackend, *script: Any, **params: Any) -> list[Json]:
    """The response, asked for at once and as a stream, which passes every check."""
    params = {"tools": [SEARCH]} | params
    backend.script(*script)
    whole = await create(served.http, **params)
    backend.script(*script)
    events = await stream(served.http, **params)
    check_stream(events)
    for event in events:
        assert EVENT_CLASSES[event["type"]].model_validate(event, strict=True).to_dict() == event
    response = events[-1]["response"]
    assert fold(events) == response
    stored = await retrieve(served.http, response["id"])
    assert stored["output"] == response["output"], "what is hidden in the store is shown to no client"
    builder = ResponseBuilder(unfinished(response))
    assert fold([*replay(builder, response), builder.end()]) == response
    SDKResponse.model_validate(whole)
    return [whole, response]


def read(backend: FakeBackend, turn: int = -1) -> str:
    """What the model has read of its last tool."""
    return [message["content"] for message in backend.turns[turn].json["messages"] if message["role"] == "tool"][-1]


def names(backend: FakeBackend) -> list[str]:
    return [tool["function"]["name"] for tool in backend.turns[-1].json.get("tools") or ()]


# ── search ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_found_is_read_and_cited(served: Running, backend: FakeBackend, site: Site) -> None:
    for response in await both(served, backend, chat(searches()), chat("It ", "rains 【", "1】 and snows [2].")):
        called, message = response["output"]
        action = {"type": "search", "query": "rain oslo", "queries": ["rain oslo"]}
        assert called == {"type": "web_search_call", "id": called["id"], "status": "completed", "action": action}
        part = message["content"][0]
        host = "127.0.0.1"
        assert part["text"] == f"It rains ([{host}]({site.url}/rain)) and snows ([{host}]({site.url}/snow))."
        assert [
            (part["text"][note["start_index"] : note["end_index"]], note["url"], note["title"])
            for note in part["annotations"]
        ] == [(f"([{host}]({site.url}{path}))", f"{site.url}{path}", f"Page {path}") for path in ("/rain", "/snow")]
    assert names(backend) == ["web_search", "open_page", "find_in_page"]
    text = read(backend)
    assert text.startswith("What follows is data from the web")
    assert f"【1】 Page /rain\n{site.url}/rain\nAbout /rain." in text
    assert site.requests[-1].query == {"q": "rain oslo", "format": "json"}


async def test_the_events_of_a_search_come_in_their_order(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(searches()), chat("Rain 【1】."))
    events = await stream(served.http, tools=[SEARCH])
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[2:7] == [
        "output_item.added",
        "web_search_call.in_progress",
        "web_search_call.searching",
        "web_search_call.completed",
        "output_item.done",
    ]
    assert "output_text.annotation.added" in kinds
    assert events[2]["item"]["action"]["query"] == "rain oslo"


async def test_sources_and_results_are_shown_to_who_asks(served: Running, backend: FakeBackend, site: Site) -> None:
    include = ["web_search_call.action.sources", "web_search_call.results"]
    for response in await both(served, backend, chat(searches()), chat("Rain."), include=include):
        called = response["output"][0]
        assert called["action"]["sources"] == [
            {"type": "url", "url": f"{site.url}{path}"} for path in ("/rain", "/snow")
        ]
        assert called["results"][0] == {"url": f"{site.url}/rain", "title": "Page /rain", "text": "About /rain."}
    backend.script(chat(searches()), chat("Rain."))
    plain = await create(served.http, tools=[SEARCH])
    assert plain["output"][0].keys() == {"type", "id", "status", "action"}
    query = "&".join(f"include[]={value}" for value in include)
    later = (await served.http.get(f"{URL}/{plain['id']}?{query}")).json()["output"][0]
    assert later == called | {"id": later["id"]}, "also later"
    backend.script(chat(searches()), chat("Rain."))
    body = {"model": "test-model", "input": "x", "tools": [SEARCH], "include": [*include, "acme.all"]}
    answer = await served.http.post(URL, json=body)
    assert answer.headers["x-nomyo-ignored"] == "include.acme.all"


async def test_a_later_turn_reads_what_was_found_and_goes_on_counting(
    served: Running, backend: FakeBackend, site: Site
) -> None:
    backend.script(chat(searches()), chat("Rain 【1】."))
    first = await create(served.http, tools=[SEARCH])
    site.answers["/search"] = results(site, "/snow", "/hail")
    backend.script(chat(searches("hail")), chat("As before 【1】, and 【3】."))
    second = await create(served.http, input="And?", previous_response_id=first["id"], tools=[SEARCH])
    tools = [message["content"] for message in backend.turns[-1].json["messages"] if message["role"] == "tool"]
    assert "【1】 Page /rain" in tools[0]
    assert "【2】 Page /snow" in tools[1]
    assert "【3】 Page /hail" in tools[1]
    assert [note["url"] for note in second["output"][-1]["content"][0]["annotations"]] == [
        f"{site.url}/rain",
        f"{site.url}/hail",
    ]
    backend.script(chat("Well."))
    await create(served.http, input="So?", previous_response_id=second["id"])
    calls = [call for message in backend.turns[-1].json["messages"] for call in message.get("tool_calls") or ()]
    assert [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("web_search", {"query": "rain oslo"}),
        ("web_search", {"query": "hail"}),
    ], "also where nothing is searched any more"
    listed = (await served.http.get(f"{URL}/{second['id']}/input_items")).json()["data"]
    assert not any("nomyo_output" in item for item in listed)


async def test_a_client_that_brings_its_items_along_is_understood(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(searches()), chat("Rain 【1】."))
    first = await create(served.http, tools=[SEARCH], store=False, include=["web_search_call.action.sources"])
    backend.script(chat("Yes."))
    await create(served.http, tools=[SEARCH], input=[*first["output"], {"role": "user", "content": "Sure?"}])
    said = json.dumps(backend.turns[-1].json["messages"])
    assert "web_search_call" in said
    assert "/rain" in said


@pytest.mark.parametrize(
    "odd",
    [
        {"nomyo_output": 5},
        {"nomyo_output": "text", "action": None},
        {"nomyo_output": {"text": 5, "sources": 5, "kept": 5}},
        {"nomyo_output": {"text": "t", "sources": [[1, "http://[", "x"], [True, "u", "t"], [1.5], "x", [0, "u", "t"]]}},
        {"nomyo_output": {"text": "t", "kept": {"action.sources": 5, "results": 5, ".": 1, "": 1}}, "action": "x"},
        {"nomyo_output": [], "id": None},
        {"action": {"type": ["search"], "query": {}}, "nomyo_output": "t"},
        {"action": {"type": "find_in_page", "url": 5}, "nomyo_output": "t", "status": {"a": 1}},
    ],
    ids=str,
)
async def test_an_earlier_search_of_any_shape_is_read(served: Running, backend: FakeBackend, odd: Json) -> None:
    item = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}} | odd
    backend.script(chat("Well 【1】 [2]."))
    params: Json = {"input": [item, {"role": "user", "content": "So?"}], "tools": [SEARCH]}
    events = await stream(served.http, **params)
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    assert events[-1]["response"]["status"] == "completed"
    for include in ("", "?include[]=web_search_call.results"):
        listed = await served.http.get(f"{URL}/{events[-1]['response']['id']}/input_items{include}")
        assert listed.status_code == 200


async def test_what_is_sent_again_behind_its_response_is_there_once(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(searches()), chat("Rain."))
    first = await create(served.http, tools=[SEARCH])
    backend.script(chat("Yes."))
    again = [*first["output"], {"role": "user", "content": "Sure?"}]
    await create(served.http, input=again, previous_response_id=first["id"], tools=[SEARCH])
    roles = [message["role"] for message in backend.turns[-1].json["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_page_is_opened_by_its_number_and_read(served: Running, backend: FakeBackend, site: Site) -> None:
    script = (chat(searches()), chat(uses("open_page", url="1")), chat("It does 【1】."))
    for response in await both(served, backend, *script):
        assert [item["type"] for item in response["output"]] == ["web_search_call"] * 2 + ["message"]
        assert response["output"][1]["action"] == {"type": "open_page", "url": f"{site.url}/rain"}
    assert "# Rain\n\nIt rains in Oslo today.\n\n- Monday: rain\n- Tuesday: more rain" in read(backend)
    assert not {"alert", "Imprint", "Contact"} & set(read(backend).replace("(", " ").split())
    assert site.asked.count("/rain") == 1, "it is remembered"


async def test_words_are_found_in_a_page(served: Running, backend: FakeBackend, site: Site) -> None:
    script = (chat(uses("find_in_page", url=f"{site.url}/snow", pattern="snow")), chat("It does 【1】."))
    for response in await both(served, backend, *script):
        action = {"type": "find_in_page", "url": f"{site.url}/snow", "pattern": "snow"}
        assert response["output"][0]["action"] == action
        assert "SNOW stays" in read(backend)
    backend.script(chat(uses("find_in_page", url=f"{site.url}/snow", pattern="sun")), chat("No."))
    response = await create(served.http, tools=[SEARCH])
    assert response["output"][0]["status"] == "completed"
    assert read(backend) == "These words are not in the page."


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("open_page", {"url": "{site}/gone"}, "could not be fetched"),
        ("open_page", {"url": "{site}/picture"}, "no text (image/png)"),
        ("open_page", {"url": "7"}, "no source with this number"),
        ("open_page", {"url": "http://["}, "no such URL"),
        ("open_page", {"url": "{site}/long"}, "no such URL"),
        ("open_page", {"url": "file:///etc/passwd"}, "no such URL"),
        ("open_page", {"url": ["x"]}, "no such URL"),
        ("open_page", {}, "no such URL"),
        ("find_in_page", {"url": "ftp://a.example/x", "pattern": "x"}, "must begin with http"),
        ("web_search", {"query": ""}, "needs a 'query'"),
        ("web_search", {"query": {"a": 1}}, "needs a 'query'"),
    ],
)
async def test_what_cannot_be_had_is_an_item_that_failed_and_is_read(
    served: Running, backend: FakeBackend, site: Site, name: str, arguments: Json, why: str
) -> None:
    arguments = json.loads(json.dumps(arguments).replace("{site}", site.url))
    far = f"/{'x' * MOST_URL}"
    site.answers |= {
        "/long": reply(status="302 Found", location=far),
        far: reply(b"A page.", content_type="text/plain"),
    }
    backend.script(chat(uses(name, **arguments)), chat("Sorry."))
    answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [SEARCH]})
    response = answer.json()
    assert [item.get("status") for item in response["output"]] == ["failed", "completed"]
    assert read(backend).startswith("The tool failed: ")
    assert why in read(backend)
    assert answer.headers["x-nomyo-failed-tools"] == "web_search"


async def test_arguments_that_are_no_object_are_answered(served: Running, backend: FakeBackend) -> None:
    for response in await both(served, backend, chat(call("web_search", "rain", id="c")), chat("Sorry.")):
        assert response["output"][0]["status"] == "failed"


async def test_a_page_of_a_private_address_is_not_opened(backend: FakeBackend, site: Site) -> None:
    async with router(backend, site, web_search={"allow_private": False}) as served:
        backend.script(chat(uses("open_page", url=f"{site.url}/rain")), chat("Sorry."))
        response = await create(served.http, tools=[SEARCH])
        assert response["output"][0]["status"] == "failed"
        assert site.asked == []


# ── what a request asks for ──────────────────────────────────────────────────────────────────────────────────────────


async def test_only_permitted_domains_are_found_and_opened(served: Running, backend: FakeBackend, site: Site) -> None:
    rows = [{"url": f"https://{host}/", "title": host} for host in ("a.example", "b.a.example", "xa.example", "c.test")]
    site.answers["/search"] = reply(json.dumps({"results": rows}).encode())
    tool = SEARCH | {"filters": {"allowed_domains": ["https://a.example/", "c.test"], "blocked_domains": ["c.test"]}}
    opens = uses("open_page", id="call_2", url="https://c.test/")
    backend.script(chat(searches("x"), opens), chat("Done."))
    response = await create(served.http, tools=[tool])
    assert site.requests[-1].query["q"] == "x (site:a.example OR site:c.test) -site:c.test"
    tools = [message["content"] for message in backend.turns[-1].json["messages"] if message["role"] == "tool"]
    assert ("https://a.example/" in tools[0], "https://b.a.example/" in tools[0]) == (True, True)
    assert ("xa.example" in tools[0], "c.test" in tools[0]) == (False, False)
    assert "does not allow pages of this domain" in tools[1]
    assert [item.get("status") for item in response["output"]] == ["completed", "failed", "completed"]


def test_a_domain_is_known_however_it_is_written() -> None:
    given = ["https://www.A.example/path?x", "münchen.example", "b.example."]
    entry = web_search_entry(SEARCH | {"filters": {"allowed_domains": given}}, "tools[0]")
    assert entry.allowed == ("a.example", "xn--mnchen-3ya.example", "b.example")


async def test_a_page_that_leads_to_a_forbidden_domain_is_not_read(
    served: Running, backend: FakeBackend, site: Site
) -> None:
    there = f"http://localhost:{site.port}/rain"
    site.answers["/away"] = reply(status="302 Found", location=there)
    tool = SEARCH | {"filters": {"allowed_domains": ["127.0.0.1"]}}
    backend.script(chat(uses("open_page", url=f"{site.url}/away")), chat("No."))
    response = await create(served.http, tools=[tool])
    assert response["output"][0]["status"] == "failed"
    assert "Oslo" not in read(backend)


async def test_the_size_of_the_context_is_heeded(served: Running, backend: FakeBackend, site: Site) -> None:
    site.answers["/search"] = results(site, *(f"/{number}" for number in range(30)))
    counts = []
    for size in ("low", None, "high"):
        backend.script(chat(searches()), chat("Done."))
        await create(served.http, tools=[SEARCH | {"search_context_size": size}])
        counts.append(read(backend).count("About"))
    assert counts == [4, 8, 12]


async def test_where_the_user_is_and_what_is_allowed_is_described_to_the_model(
    served: Running, backend: FakeBackend
) -> None:
    location = {"type": "approximate", "city": "Oslo", "country": "NO", "region": None}
    tool = SEARCH | {"user_location": location, "filters": {"allowed_domains": ["yr.no"]}}
    backend.script(chat("Hi"))
    await create(served.http, tools=[tool])
    about = backend.turns[-1].json["tools"][0]["function"]["description"]
    assert "near Oslo, NO" in about
    assert "yr.no" in about


async def test_without_access_to_the_web_pages_are_found_and_not_opened(
    served: Running, backend: FakeBackend, site: Site
) -> None:
    backend.script(chat(searches()), chat(uses("open_page", url=f"{site.url}/rain")))
    response = await create(served.http, tools=[SEARCH | {"external_web_access": False}])
    assert names(backend) == ["web_search"]
    assert [item["type"] for item in response["output"]] == ["web_search_call", "function_call"]
    assert site.asked == ["/search"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"filters": []}, ""),
        ({"filters": [1]}, ".filters"),
        ({"filters": {"allowed_domains": "a.example"}}, ".filters.allowed_domains"),
        ({"filters": {"allowed_domains": ["a b"]}}, ".filters.allowed_domains"),
        ({"filters": {"allowed_domains": ["a.example"] * 101}}, ".filters.allowed_domains"),
        ({"filters": {"blocked_domains": [1]}}, ".filters.blocked_domains"),
        ({"search_context_size": "huge"}, ".search_context_size"),
        ({"search_context_size": []}, ""),
        ({"search_context_size": ["low"]}, ".search_context_size"),
        ({"external_web_access": "yes"}, ".external_web_access"),
        ({"user_location": "Oslo"}, ".user_location"),
        ({"user_location": {"country": "Norway"}}, ".user_location.country"),
        ({"user_location": {"city": 5}}, ".user_location.city"),
    ],
)
async def test_a_setting_that_is_wrong_is_named(served: Running, more: Json, param: str) -> None:
    if not param:
        assert web_search_entry(SEARCH | more, "tools[0]")
        return
    with pytest.raises(InvalidRequest) as raised:
        web_search_entry(SEARCH | more, "tools[1]")
    assert raised.value.param == f"tools[1]{param}"
    body = {"model": "test-model", "input": "x", "tools": [SEARCH | more]}
    assert_error(await served.http.post(URL, json=body), 400, param=f"tools[0]{param}")


@pytest.mark.parametrize(
    "type", ["web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"]
)
async def test_every_version_of_the_tool_can_be_had_and_demanded(
    served: Running, backend: FakeBackend, type: str
) -> None:
    choice = {"type": type} if type in ("web_search_preview", "web_search_preview_2025_03_11") else "required"
    backend.script(chat(searches()), chat("Rain."))
    response = await create(served.http, tools=[{"type": type}], tool_choice=choice)
    assert response["output"][0]["type"] == "web_search_call"
    first, second = [turn.json.get("tool_choice") for turn in backend.turns[-2:]]
    assert (first, second) == ("required", "auto")


async def test_two_searches_in_one_request_are_refused(served: Running) -> None:
    body = {"model": "test-model", "input": "x", "tools": [SEARCH, {"type": "web_search_preview"}]}
    assert_error(await served.http.post(URL, json=body), 400, param="tools[1]")


async def test_a_name_that_the_client_has_is_the_clients(served: Running, backend: FakeBackend) -> None:
    mine = {"type": "function", "name": "web_search", "parameters": {"type": "object"}}
    backend.script(chat("Hi"))
    await create(served.http, tools=[SEARCH, mine])
    ours = [name for name in names(backend) if name.startswith("web_search_")]
    assert ("web_search" in names(backend), len(ours)) == (True, 1)
    backend.script(chat(call(ours[0], {"query": "x"}, id="a"), call("web_search", {}, id="b")))
    response = await create(served.http, tools=[SEARCH, mine])
    assert [item["type"] for item in response["output"]] == ["web_search_call", "function_call"]
    assert response["output"][1]["name"] == "web_search"


# ── who searches ─────────────────────────────────────────────────────────────────────────────────────────────────────

FOUND = {"url": "https://a.example/", "title": "A", "text": "Words."}
PROVIDERS: dict[str, tuple[str, Json, Json, Json]] = {
    # What it is asked at, its answer, and what it was asked with: query or body, and headers.
    "searxng": (
        "/search",
        {"results": [FOUND | {"content": "Words."}]},
        {"q": "x site:a.example -site:b.example", "format": "json"},
        {},
    ),
    "brave": (
        "/res/v1/web/search",
        {"web": {"results": [FOUND | {"description": "<strong>Words.</strong>"}]}},
        {"q": "x site:a.example -site:b.example", "count": "8", "extra_snippets": "true"},
        {"x-subscription-token": "s3cret", "x-loc-city": "Oslo", "x-loc-country": "NO"},
    ),
    "tavily": (
        "/search",
        {"results": [FOUND | {"content": "Words."}]},
        {
            "query": "x",
            "max_results": 8,
            "search_depth": "basic",
            "include_domains": ["a.example"],
            "exclude_domains": ["b.example"],
        },
        {"authorization": "Bearer s3cret"},
    ),
    "exa": (
        "/search",
        {"results": [FOUND]},
        {
            "query": "x",
            "numResults": 8,
            "type": "auto",
            "contents": {"text": {"maxCharacters": 1000}},
            "includeDomains": ["a.example"],
            "userLocation": "NO",
        },
        {"x-api-key": "s3cret"},
    ),
}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_each_provider_is_asked_in_its_way(backend: FakeBackend, site: Site, provider: str) -> None:
    path, answer, asked, headers = PROVIDERS[provider]
    site.answers = {path: reply(json.dumps(answer).encode(), content_type="application/json")}
    tool = SEARCH | {
        "filters": {"allowed_domains": ["a.example"], "blocked_domains": ["b.example"]},
        "user_location": {"type": "approximate", "city": "Oslo", "country": "no"},
    }
    async with router(backend, site, web_search={"provider": provider, "api_key": "s3cret"}) as served:
        backend.script(chat(searches("x")), chat("Done."))
        response = await create(served.http, tools=[tool])
        assert response["output"][0]["status"] == "completed"
        assert read(backend).endswith("【1】 A\nhttps://a.example/\nWords.")
    (request,) = site.requests
    assert (json.loads(request.body) if request.body else request.query) == asked
    assert {name: request.headers[name] for name in headers} == headers


async def test_searches_that_come_too_fast_are_made_one_by_one(
    served: Running, backend: FakeBackend, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.web.searches.AGAIN_S", 0.01)
    found, asked = site.answers["/search"], 0

    async def limited(request: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(reply(status="429 Too Many Requests") if asked <= 3 else found)

    site.answers["/search"] = limited
    backend.script(chat(*(uses("web_search", id=f"call_{word}", query=word) for word in "abc")), chat("Done."))
    response = await create(served.http, tools=[SEARCH])
    assert [item["status"] for item in response["output"]] == ["completed"] * 4
    assert asked == 6


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (reply(status="403 Forbidden"), "json among search.formats"),
        (reply(status="429 Too Many Requests"), "too many searches"),
        (reply(status="500 Internal Server Error"), "answered 500"),
        (reply(status="302 Found", location="http://127.0.0.1:9/"), "answered 302"),
        (reply(b"<html>"), "not answered with JSON"),
        (reply(b"x" * 20, length=10**9), "larger than"),
        (never, "took too long"),
    ],
)
async def test_a_provider_that_fails_is_an_item_a_header_and_a_line(
    backend: FakeBackend,
    site: Site,
    answer: Any,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backends.web.searches.AGAIN_S", 0.01)
    site.answers["/search"] = answer
    async with router(backend, site, web_search={"timeout_s": 0.2, "api_key": "s3cret"}) as served:
        backend.script(chat(searches()), chat("Sorry."))
        with caplog.at_level(logging.WARNING, "nomyo.tools"):
            got = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [SEARCH]})
        assert got.status_code == 200
        assert got.json()["output"][0]["status"] == "failed"
        assert got.headers["x-nomyo-failed-tools"] == "web_search"
        assert why in read(backend)
        assert "a web search has failed" in caplog.text
        assert "s3cret" not in caplog.text + read(backend)
        assert "rain oslo" not in caplog.text, "what somebody looks for is theirs"


@pytest.mark.parametrize(
    "body",
    [
        *(
            "[]",
            "null",
            '{"results":{}}',
            '{"results":[1,{"url":5},{"url":"x"},{}]}',
            '{"results":[{"url":"http://["}]}',
        ),
        # It would stand in the answer wherever a model names it.
        *(f'{{"results":[{{"url":"http://a.example/{text}"}}]}}' for text in ("x" * MOST_URL, "é" * (MOST_URL // 2))),
    ],
)
async def test_an_answer_of_any_shape_is_no_result(
    served: Running, backend: FakeBackend, site: Site, body: str
) -> None:
    site.answers["/search"] = reply(body.encode())
    backend.script(chat(searches()), chat("None."))
    response = await create(served.http, tools=[SEARCH])
    assert response["output"][0]["status"] == "completed"
    assert read(backend) == "Nothing was found."


async def test_a_server_of_mcp_searches(backend: FakeBackend, site: Site) -> None:
    async with mcp_server() as server:
        settings: Json = {
            "web_search": {"provider": "mcp:finder", "url": ""},
            "mcp": {"servers": {"finder": {"url": server.url}}},
        }
        async with router(backend, site, **settings) as served:
            for response in await both(served, backend, chat(searches("x")), chat("It is 【2】.")):
                assert response["output"][0]["action"]["query"] == "x"
                assert response["output"][-1]["content"][0]["annotations"][0]["url"] == "https://b.example/"
                assert "【1】 Of x\nhttps://a.example/\nWords." in read(backend)
            await eventually(lambda: served.app.state.mcp.sessions == 0, "no session is open")


async def test_a_tool_that_takes_too_long_is_given_up(backend: FakeBackend, site: Site) -> None:
    site.answers["/search"] = never
    async with router(backend, site, tools={"timeout_s": 0.1}) as served:
        for response in await both(served, backend, chat(searches()), chat("Sorry.")):
            assert response["output"][0]["status"] == "failed"
            assert "within 0.1 s" in read(backend)


async def test_a_client_that_leaves_while_it_is_searched_leaves_nothing(
    served: Running, backend: FakeBackend, site: Site
) -> None:
    site.answers["/search"] = never
    backend.script(chat(searches()))
    async with open_stream(served.http, tools=[SEARCH]) as events:
        await events.until("response.web_search_call.searching")
        await eventually(lambda: site.asked == ["/search"], "it is searched")
    await site.is_left()
    await eventually(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "tool"], "no task is left")


async def test_servers_that_speak_responses_search_themselves(backend: FakeBackend, site: Site) -> None:
    async with router(backend, site, kind="openai") as served:
        backend.script(native("Rain."))
        await create(served.http, tools=[SEARCH])
        assert backend.turns[-1].json["tools"] == [SEARCH]
        assert site.asked == []


async def test_a_native_server_reads_an_earlier_search_as_its_client_has_seen_it(
    backend: FakeBackend, site: Site, stack: AsyncExitStack
) -> None:
    other = await stack.enter_async_context(FakeBackend())
    other.models = ["native-model"]
    endpoints = [
        {"url": f"{backend.url}/v1", "kind": "vllm"},
        {"url": f"{other.url}/v1", "kind": "openai"},
    ]
    search = {"provider": "searxng", "url": site.url}
    async with running_router(endpoints=endpoints, web_search=search) as served:
        backend.script(chat(searches()), chat("Rain 【1】."))
        first = await create(served.http, tools=[SEARCH])
        other.script(native("Yes."))
        await create(served.http, model="native-model", previous_response_id=first["id"], tools=[SEARCH])
        given = other.turns[-1].json["input"]
        assert given[1:3] == first["output"]
        other.script(native("Yes."))
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await create(served.http, model="native-model", input=[reference], tools=[SEARCH])
        assert other.turns[-1].json["input"] == first["output"][:1]


@pytest.mark.parametrize("inner_searches", [False, True])
async def test_of_two_routers_the_first_that_has_a_provider_searches(
    backend: FakeBackend, site: Site, inner_searches: bool
) -> None:
    search = {"web_search": {"provider": "searxng", "url": site.url}}
    endpoints = [{"url": f"{backend.url}/v1", "kind": "vllm"}]
    async with (
        running_router(endpoints=endpoints, **(search if inner_searches else {})) as inner,
        running_router(endpoints=[{"url": inner.url}], **search) as outer,
    ):
        backend.script(chat(searches()), chat("Rain 【1】."))
        response = await create(outer.http, tools=[SEARCH])
        assert [item["type"] for item in response["output"]] == ["web_search_call", "message"]
        assert len(response["output"][1]["content"][0]["annotations"]) == 1
        assert site.asked == ["/search"]
        ran = [
            [run.kind for record in one.app.state.telemetry.recent for run in record.tools] for one in (outer, inner)
        ]
        assert ran == ([[], ["web_search_call"]] if inner_searches else [["web_search_call"], []])


async def test_in_a_conversation_what_was_found_is_kept_and_shown_to_no_client(
    served: Running, backend: FakeBackend
) -> None:
    made = (await served.http.post("/v1/conversations", json={})).json()["id"]
    backend.script(chat(searches()), chat("Rain 【1】."))
    await create(served.http, tools=[SEARCH], conversation=made)
    listed = (await served.http.get(f"/v1/conversations/{made}/items")).json()["data"]
    assert "web_search_call" in [item["type"] for item in listed]
    assert not any("nomyo_output" in item for item in listed)
    backend.script(chat("Again 【1】."))
    response = await create(served.http, input="Again?", tools=[SEARCH], conversation=made)
    assert "About /rain." in read(backend)
    assert len(response["output"][0]["content"][0]["annotations"]) == 1


async def test_in_the_background_it_is_searched_too(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(searches()), chat("Rain 【1】."))
    begun = await create(served.http, tools=[SEARCH], background=True, stream=False)
    response = await ended(served.http, begun["id"])
    assert [item["type"] for item in response["output"]] == ["web_search_call", "message"]
    events = await rejoin(served.http, begun["id"])
    check_stream(events)
    assert fold(events)["output"] == response["output"]


async def test_over_a_websocket_a_later_turn_reads_what_was_found(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(searches()), chat("Rain 【1】."), chat("Still 【1】."))
    before = None
    async with served.openai.responses.connect() as connection:
        for _ in range(2):
            tools: Any = [SEARCH]
            await connection.response.create(
                model="test-model", input="Hi", tools=tools, store=False, previous_response_id=before
            )
            async for event in connection:
                assert "nomyo_output" not in event.to_json()
                if event.type in ("response.completed", "response.failed", "error"):
                    break
            before = event.response.id
    assert "About /rain." in read(backend)
    assert len(event.response.output[0].content[0].annotations) == 1


async def test_an_answer_out_of_the_cache_is_the_same(served: Running, backend: FakeBackend, site: Site) -> None:
    def lasting(response: Json) -> list[Json]:
        return [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]

    params: Json = {"tools": [SEARCH], "nomyo": {"cache": True}}
    backend.script(chat(searches()), chat("Rain 【1】."))
    first = await create(served.http, **params)
    events = await stream(served.http, **params)
    check_stream(events)
    assert fold(events) == events[-1]["response"]
    assert lasting(events[-1]["response"]) == lasting(first)
    assert len(first["output"][1]["content"][0]["annotations"]) == 1
    assert site.asked == ["/search"]


async def test_a_search_may_be_the_only_tool_that_is_allowed(served: Running, backend: FakeBackend) -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}
    backend.script(chat(uses("mine"), searches()), chat("Rain."))
    response = await create(served.http, tools=[MINE, SEARCH], tool_choice=choice)
    assert [item["type"] for item in response["output"]] == ["web_search_call", "message"]
    (first, second) = backend.turns[-2:]
    assert "mine" not in [tool["function"]["name"] for tool in first.json["tools"]]
    assert second.json["tool_choice"] == "auto"


async def test_a_search_that_is_cancelled_is_incomplete(served: Running, backend: FakeBackend, site: Site) -> None:
    site.answers["/search"] = never
    backend.script(chat(searches()))
    begun = await create(served.http, tools=[SEARCH], background=True)
    await eventually(lambda: site.asked == ["/search"], "it is searched")
    await served.http.post(f"{URL}/{begun['id']}/cancel")
    response = await ended(served.http, begun["id"])
    assert [(item["type"], item["status"]) for item in response["output"]] == [("web_search_call", "incomplete")]


async def test_marks_in_json_leave_it_json(served: Running, backend: FakeBackend, site: Site) -> None:
    rows = [{"url": 'https://a.example/"x\\y', "title": 'A "b"'}]
    site.answers["/search"] = reply(json.dumps({"results": rows}).encode())
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    format = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    for response in await both(
        served, backend, chat(searches()), chat('{"answer": "Rain 【1】"}'), text={"format": format}
    ):
        url = "https://a.example/%22x%5Cy"
        assert json.loads(text_of(response)) == {"answer": f"Rain ([a.example]({url}))"}


async def test_servers_of_mcp_and_searches_are_used_in_one_turn(backend: FakeBackend, site: Site) -> None:
    async with mcp_server() as server, router(backend, site) as served:
        weather = {"type": "mcp", "server_label": "w", "server_url": server.url, "require_approval": "never"}
        script = (chat(searches(), call("w__plan", {"city": "Rome"}, id="call_2")), chat("Go 【1】."))
        for response in await both(served, backend, *script, tools=[weather, SEARCH]):
            kinds = [item["type"] for item in response["output"]]
            assert kinds == ["mcp_list_tools", "web_search_call", "mcp_call", "message"]
            assert response["output"][2]["output"] == "Go to Rome."
        await eventually(lambda: served.app.state.mcp.sessions == 0, "no session is open")


async def test_no_more_is_searched_than_the_request_allows(served: Running, backend: FakeBackend, site: Site) -> None:
    calls = chat(searches("a"), uses("web_search", id="call_2", query="b"))
    for response in await both(served, backend, calls, chat("Done."), max_tool_calls=1):
        assert [item.get("status") for item in response["output"]] == ["completed", "failed", "completed"]
        assert "max_tool_calls" in read(backend)
    assert site.asked == ["/search"] * 2


async def test_settings_of_which_nothing_comes_are_named(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hi"))
    tool = SEARCH | {"search_content_types": ["text", "image"], "return_token_budget": "unlimited", "filters": {"x": 1}}
    answer = await served.http.post(URL, json={"model": "test-model", "input": "x", "tools": [tool]})
    named = answer.headers["x-nomyo-ignored"]
    assert named == "tools.filters.x, tools.return_token_budget, tools.search_content_types"


async def test_a_stream_names_what_has_failed_at_its_end(served: Running, backend: FakeBackend, site: Site) -> None:
    site.answers["/search"] = reply(status="500 Internal Server Error")
    backend.script(chat(searches()), chat("Sorry."))
    events = await stream(served.http, tools=[SEARCH])
    assert events[-1]["response"]["nomyo"]["failed_tools"] == "web_search"


async def test_calls_are_counted_by_their_kind_and_how_they_ended(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(searches(), uses("open_page", id="call_2", url="9")), chat("Done."))
    response = await create(served.http, tools=[SEARCH])
    record = next(one for one in served.app.state.telemetry.recent if one.id == response["id"])
    assert {(run.kind, run.name, run.has_failed) for run in record.tools} == {
        ("web_search_call", "web_search", False),
        ("web_search_call", "open_page", True),
    }


async def test_the_sdk_reads_a_search_as_it_streams(served: Running, backend: FakeBackend, site: Site) -> None:
    backend.script(chat(searches()), chat("Rain 【1】."))
    tool: Any = {"type": "web_search", "search_context_size": "low"}
    async with served.openai.responses.stream(model="test-model", input="Rain?", tools=[tool]) as events:
        kinds = [event.type async for event in events]
        response = await events.get_final_response()
    assert "response.output_text.annotation.added" in kinds
    called, message = response.output
    assert (called.type, called.status, called.action.type) == ("web_search_call", "completed", "search")
    note = message.content[0].annotations[0]
    assert response.output_text[note.start_index : note.end_index].endswith(f"({site.url}/rain))")


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────────────────

WHAT = {
    "search": ("web_search", {"query": "rain"}),
    "open": ("open_page", {"url": "{site}/rain"}),
    "number": ("open_page", {"url": "2"}),
    "gone": ("open_page", {"url": "{site}/gone"}),
    "find": ("find_in_page", {"url": "1", "pattern": "snow"}),
    "odd": ("web_search", "no object"),
    "mine": ("mine", {}),
}
ROUNDS = st.lists(st.lists(st.sampled_from([*WHAT]), min_size=1, max_size=3), max_size=3)
MINE: Json = {"type": "function", "name": "mine", "parameters": {"type": "object"}}


@given(rounds=ROUNDS.filter(bool), ends=st.sampled_from(["answer", "fail", "leave"]), after=st.integers(0, 12))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_called_leaves_nothing_and_the_stream_is_what_is_stored(
    rounds: list[list[str]], ends: str, after: int
) -> None:
    asyncio.run(_goes_well(rounds, ends, after))


async def _goes_well(rounds: list[list[str]], ends: str, after: int) -> None:
    answers: dict[str, Any] = {"/rain": reply(RAIN, content_type="text/html")}
    async with FakeBackend() as backend, running_site(answers) as site, router(backend, site) as served:
        site.answers["/search"] = results(site, "/rain", "/snow")
        script = []
        for names in rounds:
            calls = [(WHAT[name], f"call_{place}") for place, name in enumerate(names)]
            given = [(name, json.loads(json.dumps(what).replace("{site}", site.url)), id) for (name, what), id in calls]
            script.append(chat("Looking [1].", *(call(name, what, id=id) for name, what, id in given)))
        backend.script(*script, http_error(400) if ends == "fail" else chat("It is 【1】[2], ", "`[1]` [", "9]."))
        async with open_stream(served.http, tools=[SEARCH, MINE]) as events:
            if ends == "leave":
                for _ in range(after):  # May have left before it has begun.
                    if await events.next() is None:
                        break
            else:
                seen = await events.rest()
                check_stream(seen)
                response = seen[-1]["response"]
                assert fold(seen) == response
                assert (await retrieve(served.http, response["id"]))["output"] == response["output"]
                builder = ResponseBuilder(unfinished(response))
                assert fold([*replay(builder, response), builder.end()]) == response
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == "tool"]
        await eventually(lambda: all(task.done() for task in tasks), "no task is left")


async def test_without_settings_it_is_left_out_and_named(served: Running, backend: FakeBackend) -> None:
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "vllm"}]) as plain:
        backend.script(chat("Hi"))
        answer = await plain.http.post(URL, json={"model": "test-model", "input": "x", "tools": [SEARCH]})
        assert answer.headers["x-nomyo-omitted-tools"] == "web_search"


@pytest.mark.parametrize(
    ("search", "problem"),
    [
        ({"url": "http://x"}, "web_search.provider: is missing"),
        ({"provider": "searx"}, "did you mean 'searxng'?"),
        ({"provider": "searxng"}, "web_search.url: is missing"),
        ({"provider": "searxng", "url": "x"}, "web_search.url: is not an http"),
        ({"provider": "brave"}, "web_search.api_key: brave needs one"),
        ({"provider": "mcp:x"}, "'x' is not among mcp.servers"),
        ({"provider": "mcp:asks"}, "web_search.provider: mcp.servers.asks asks for approval"),
        ({"provider": "exa", "api_key": "a\nb"}, "web_search.api_key:"),
    ],
)
def test_settings_that_are_wrong_are_named(search: Json, problem: str) -> None:
    from core.config_checks import parse_config

    servers = {"asks": {"url": "http://x/mcp", "require_approval": "always"}}
    with pytest.raises(ConfigError) as raised:
        parse_config({"endpoints": [{"url": "http://a"}], "web_search": search, "mcp": {"servers": servers}})
    assert problem in str(raised.value)
