"""Files that a request names by URL, fetched for a chat server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.files import EARLIER, FileFetcher
from core.errors import InvalidRequest
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.site import Site, redirect_as_asked, reply, running_site
from tests.turns import URL, Json, assert_error, create, turn

PDF = b"%PDF-1.7 x\xff\0"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    answers = {
        "/a.txt": reply(b"Hello", content_type="text/plain; charset=utf-8"),
        "/report%20one.pdf": reply(PDF, content_type="application/octet-stream"),
        "/large": reply(b"x" * 3_000_000),
        "/to/": redirect_as_asked,
        **{f"/{number}": reply(b"x" * 100) for number in range(6)},
    }
    async with running_site(answers) as site:
        yield site


async def routed(backend: FakeBackend, kind: str, **files: Any) -> Any:
    return running_router(
        endpoints=[{"url": f"{backend.url}/v1", "kind": kind}], files={"allow_private": True, "max_mb": 1, **files}
    )


@pytest.fixture
async def served(backend: FakeBackend) -> AsyncIterator[Running]:
    async with await routed(backend, "openai-chat") as running:
        yield running


def said(url: str, **more: Any) -> list[Json]:
    return [{"role": "user", "content": [{"type": "input_file", "file_url": url, **more}]}]


async def test_a_file_by_url_is_given_as_if_the_client_had_sent_it(
    served: Running, backend: FakeBackend, site: Site
) -> None:
    first = await create(served.http, input=said(f"{site.url}/report%20one.pdf"))
    given = {"filename": "report one.pdf", "file_data": f"data:application/pdf;base64,{base64.b64encode(PDF).decode()}"}
    assert backend.turns[-1].json["messages"] == [{"role": "user", "content": [{"type": "file", "file": given}]}]
    # What is kept is what the client said.
    kept = await served.http.get(f"{URL}/{first['id']}/input_items")
    assert kept.json()["data"][0]["content"][0]["file_url"] == f"{site.url}/report%20one.pdf"
    answer = await served.http.post(URL, json=turn(input=said(f"{site.url}/a.txt", filename="b.txt")))
    assert answer.headers["x-nomyo-adapted"] == "fetched_files"
    assert backend.turns[-1].json["messages"][0]["content"][0]["file"]["filename"] == "b.txt"


async def test_a_server_that_takes_no_files_is_given_their_text(backend: FakeBackend, site: Site) -> None:
    async with await routed(backend, "llama.cpp") as running:
        await create(running.http, input=said(f"{site.url}/a.txt"))
        assert backend.turns[-1].json["messages"] == [{"role": "user", "content": "a.txt:\nHello"}]
        answer = await running.http.post(URL, json=turn(input=said(f"{site.url}/report%20one.pdf")))
        assert_error(answer, 400, param="input[0].content[0].file_url")


async def test_a_file_in_the_output_of_a_tool_is_fetched_too(served: Running, backend: FakeBackend, site: Site) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": said(f"{site.url}/a.txt")[0]["content"]}
    await create(served.http, input=[call, output])
    file = backend.turns[-1].json["messages"][-1]["content"][0]["file"]
    assert file == {"filename": "a.txt", "file_data": f"data:text/plain;base64,{base64.b64encode(b'Hello').decode()}"}


async def test_a_native_server_gets_the_url(backend: FakeBackend, site: Site) -> None:
    async with await routed(backend, "openai") as running:
        await create(running.http, input=said(f"{site.url}/a.txt"))
    assert backend.turns[-1].json["input"][0]["content"][0]["file_url"] == f"{site.url}/a.txt"
    assert site.asked == []


BAD = {
    "file:///etc/passwd": "must begin",
    "ftp://example.com/a": "must begin",
    "x.pdf": "must begin",
    "{site}/nothing": "could not be fetched",
    "{site}/large": "larger than 1 MB",
    "{site}/to/?at=file:///etc/passwd": "must begin",
    "http://u:p@example.com/": "no name and password",
}


@pytest.mark.parametrize(("url", "why"), BAD.items())
async def test_a_file_that_cannot_be_had_is_a_400_that_names_it(
    served: Running, backend: FakeBackend, site: Site, url: str, why: str
) -> None:
    for streams in (False, True):
        answer = await served.http.post(URL, json=turn(input=said(url.format(site=site.url)), stream=streams))
        assert_error(answer, 400, param="input[0].content[0].file_url", code="invalid_file_url", says=why)
    assert not backend.turns
    assert served.in_flight() == 0


async def test_no_file_is_fetched_from_inside(backend: FakeBackend, site: Site) -> None:
    async with await routed(backend, "openai-chat", allow_private=False) as running:
        answer = await running.http.post(URL, json=turn(input=said(f"{site.url}/a.txt")))
        assert_error(answer, 400, param="input[0].content[0].file_url", says="could not be fetched")
    assert site.asked == []


async def test_a_file_of_an_earlier_turn_that_is_gone_does_not_end_the_conversation(
    served: Running, backend: FakeBackend, site: Site
) -> None:
    first = await create(served.http, input=said(f"{site.url}/a.txt"))
    site.answers.clear()
    await create(served.http, input="And?", previous_response_id=first["id"])
    assert "not shown" in str(backend.turns[-1].json["messages"][0]["content"])


async def test_files_are_counted_and_older_ones_give_way(site: Site) -> None:
    fetcher = FileFetcher(max_count=3, max_total_bytes=250, allow_private=True)
    urls = [f"{site.url}/{number}" for number in range(6)]
    with pytest.raises(InvalidRequest) as raised:
        await fetcher.fetch_all({url: f"input[{number}]" for number, url in enumerate(urls)})
    assert (raised.value.param, site.asked) == ("input[3]", [])
    files = await fetcher.fetch_all({**dict.fromkeys(urls[:5], EARLIER), urls[5]: "input[0]"})
    assert [bool(files[url]) for url in urls] == [False, False, False, False, True, True]
    with pytest.raises(InvalidRequest) as raised:
        await fetcher.fetch_all({url: f"input[{number}]" for number, url in enumerate(urls[:3])})
    assert raised.value.param == "input[2]"
    await fetcher.close()
