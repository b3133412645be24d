"""What a body may be: compressed, a form, chunked, with half a character in it. At every front door, and within the
limit."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

import brotli
import orjson
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from api.http.codings import DECODERS, BrokenBody, UnsupportedCoding, decoded
from core.errors import InvalidRequest, TooLarge
from requests.bounded_json import BOM, TooDeep, decode_bounded, mend
from tests.conftest import Running, running_router
from tests.doors import DOORS, doors_of, every_door, message_of
from tests.fake_backend import JSON_HEADERS, SSE_HEADERS, FakeBackend, Reply, call, chat
from tests.turns import URL, assert_error, ended

Json = dict[str, Any]


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(data) + made.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "zstd": ("zstd", zstd.compress),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without zlib's header": ("deflate", raw_deflate),
    "br": ("br", lambda data: brotli.compress(data, quality=2)),
    "identity": ("identity", lambda data: data),
}
TOO_LARGE = TooLarge("too large")
MB = 1024 * 1024


def undone(body: bytes, codings: str, limit: float = 10 * MB) -> bytes:
    return asyncio.run(decoded(body, codings, limit, TOO_LARGE))


# ── codings ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class TestCodings:
    @given(st.binary(max_size=2000), st.lists(st.sampled_from(sorted(ENCODERS)), max_size=5))
    def test_any_in_a_row_are_undone_in_turn(self, data: bytes, ways: list[str]) -> None:
        body = data
        for way in ways:
            body = ENCODERS[way][1](body)
        header = ", ".join(ENCODERS[way][0].upper() if way == "br" else ENCODERS[way][0] for way in ways)
        assert undone(body, header) == data

    @pytest.mark.parametrize("way", ENCODERS)
    def test_long_bodies_come_out_whole(self, way: str) -> None:
        name, encode = ENCODERS[way]
        for data in (os.urandom(700_000), b"x" * 3_000_000, b"", os.urandom(65536) * 20):
            assert undone(encode(data), name) == data

    @pytest.mark.parametrize("way", ["zstd", "gzip", "x-gzip"])
    def test_several_frames_or_members_are_one_body(self, way: str) -> None:
        name, encode = ENCODERS[way]
        assert undone(encode(b"one ") + encode(b"") + encode(b"two"), name) == b"one two"
        with pytest.raises(BrokenBody, match="more than 1000"):
            undone(encode(b"") * 1001, name)

    @given(st.binary(min_size=1, max_size=300), st.sampled_from(sorted(DECODERS)))
    def test_what_is_not_what_it_says_is_an_error_that_says_so(self, data: bytes, name: str) -> None:
        try:
            undone(data, name)
        except BrokenBody as broken:
            error = broken
        else:
            return
        assert error.status == 400
        assert name.removeprefix("x-") in error.message

    @pytest.mark.parametrize("way", [way for way in ENCODERS if way != "identity"])
    def test_what_is_cut_or_goes_on_behind_its_end_is_broken(self, way: str) -> None:
        name, encode = ENCODERS[way]
        body = encode(os.urandom(200_000))
        for broken in (body[: len(body) // 2], body[:-1], body + b"more"):
            with pytest.raises(BrokenBody):
                undone(broken, name)

    @pytest.mark.parametrize("way", [way for way in ENCODERS if way != "identity"])
    def test_a_bomb_stops_at_the_limit_before_it_takes_memory(self, way: str) -> None:
        name, encode = ENCODERS[way]
        bomb = encode(b"\0" * 100 * MB)
        for body, header in ((bomb, name), (encode(bomb), f"{name}, {name}")):
            undone(encode(b"loaded"), name)
            tracemalloc.start()
            with pytest.raises(TooLarge):
                undone(body, header, 1 * MB)
            assert tracemalloc.get_traced_memory()[1] < 4 * MB
            tracemalloc.stop()

    def test_the_limit_is_what_comes_out_to_the_byte(self) -> None:
        for way, (name, encode) in ENCODERS.items():
            if way != "identity":
                assert len(undone(encode(b"x" * 1000), name, 1000)) == 1000
                with pytest.raises(TooLarge):
                    undone(encode(b"x" * 1001), name, 1000)

    def test_a_frame_of_zstd_that_wants_a_large_window_is_refused(self) -> None:
        options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
        compressor = zstd.ZstdCompressor(options=options)
        with pytest.raises(BrokenBody, match="memory"):
            undone(compressor.compress(b"x") + compressor.flush(), "zstd")

    def test_unknown_ones_are_named_and_the_known_ones_offered(self) -> None:
        for codings in ("compress", "gzip, snappy", "exi, gzip", "*"):
            with pytest.raises(UnsupportedCoding) as raised:
                undone(b"x", codings)
            assert raised.value.status == 415
            assert raised.value.headers() == {"Accept-Encoding": "zstd, gzip, deflate, br"}
        with pytest.raises(InvalidRequest, match="9 content codings"):
            undone(b"x", "gzip," * 9)

    async def test_others_have_their_turn_while_a_long_body_is_decoded(self) -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await decoded(gzip.compress(b"\0" * 20 * MB), "gzip", 30 * MB, TOO_LARGE)
        task.cancel()
        assert turns > 10


class TestCompressedBodies:
    @pytest.mark.parametrize("kind", ["openai-chat", "ollama"])
    async def test_every_front_door_takes_them(self, kind: str) -> None:
        async with every_door(kind) as (running, backend):
            for path, asked in doors_of(kind).items():
                backend.requests.clear()
                await running.http.post(path, json=asked)
                plain = what_it_got(backend)
                for name, encode in ENCODERS.values():
                    backend.requests.clear()
                    answer = await running.http.post(
                        path, content=encode(orjson.dumps(asked)), headers={"Content-Encoding": name}
                    )
                    assert answer.status_code == 200, f"{path}, {name}: {answer.text}"
                    assert what_it_got(backend) == plain, f"{path} with {name} asks the backend something else"

    async def test_every_front_door_refuses_what_it_cannot_decode(self) -> None:
        async with every_door(max_body_mb=0.1) as (running, backend):
            for path, asked in DOORS.items():
                body = orjson.dumps(asked)
                for headers, content, status, says in (
                    ({"Content-Encoding": "lzma"}, body, 415, "lzma"),
                    ({"Content-Encoding": "gzip"}, body, 400, "gzip"),
                    ({"Content-Encoding": "zstd"}, zstd.compress(body)[:-3], 400, "zstd"),
                    ({"Content-Encoding": "gzip"}, gzip.compress(b" " * 200_000 + body), 413, "0.1 MB"),
                ):
                    answer = await running.http.post(path, content=content, headers=headers)
                    assert answer.status_code == status, f"{path}: {answer.text}"
                    assert says in message_of(answer, path)
                    assert ("accept-encoding" in answer.headers) == (status == 415)
            assert not backend.turns

    async def test_they_may_come_in_chunks_and_with_several_headers(self, served: Running) -> None:
        body = zstd.compress(gzip.compress(orjson.dumps(DOORS[URL])))

        async def pieces() -> AsyncIterator[bytes]:
            for byte in body:
                yield bytes([byte])

        headers = [("Content-Encoding", "gzip"), ("Content-Encoding", "identity"), ("Content-Encoding", "Zstd")]
        answer = await served.http.post(URL, content=pieces(), headers=headers)
        assert answer.status_code == 200, answer.text

    async def test_no_decoder_is_loaded_before_it_is_used(self) -> None:
        code = "import sys, router; print(sorted({'brotli', 'backports.zstd', 'compression'} & sys.modules.keys()))"
        import sys

        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert (await process.communicate())[0].strip() == b"[]"


def what_it_got(backend: FakeBackend) -> list[tuple[str, Json, str | None]]:
    """Of each request to the backend: its path, body and coding."""
    asked = [request for request in backend.requests if request.method == "POST"]
    assert all(int(request.headers["content-length"]) == len(request.body) for request in asked)
    return [(request.path, orjson.loads(request.body), request.headers.get("content-encoding")) for request in asked]


# ── forms ────────────────────────────────────────────────────────────────────────────────────────────────────────────

FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}


def form_of(asked: Json) -> bytes:
    return urlencode({k: v if isinstance(v, str) else orjson.dumps(v).decode() for k, v in asked.items()}).encode()


class TestForms:
    async def test_every_front_door_takes_them(self) -> None:
        async with every_door() as (running, backend):
            for path, asked in DOORS.items():
                backend.requests.clear()
                assert (await running.http.post(path, json=asked)).status_code == 200
                plain = what_it_got(backend)
                backend.requests.clear()
                answer = await running.http.post(path, content=form_of(asked), headers=FORM)
                assert answer.status_code == 200, f"{path}: {answer.text}"
                assert what_it_got(backend) == plain

    async def test_each_value_is_json_where_it_parses_else_text(self, served: Running, backend: FakeBackend) -> None:
        message = {"role": "user", "content": [{"type": "input_text", "text": "ä & = ?"}]}
        asked = {"model": "test-model", "input": [message], "temperature": 0.5, "store": False, "instructions": "{no"}
        answer = await served.http.post(URL, content=form_of(asked), headers=FORM)
        assert answer.status_code == 200, answer.text
        sent = backend.turns[-1].json
        assert sent["temperature"] == 0.5
        assert [m["content"] for m in sent["messages"]] == ["{no", "ä & = ?"]
        assert answer.json()["store"] is False

    async def test_what_is_json_stays_it_whatever_it_is_called(self, served: Running) -> None:
        """curl calls what it is given with -d a form."""
        for space in (b"", b"\n \t"):
            answer = await served.http.post(URL, content=space + orjson.dumps(DOORS[URL]), headers=FORM)
            assert answer.status_code == 200, answer.text

    async def test_what_is_neither_is_a_400(self, served: Running) -> None:
        for body, says in (
            (b"model", "neither"),
            (b"model=a&model=b", "twice"),
            (b"model=%ff", "neither"),
            (b"\xff=1", "neither"),
            (b"&".join(b"k%d=1" % n for n in range(300)), "neither"),
            (b"model=m&input=" + b"[" * 300 + b"]" * 300, "200 levels"),
        ):
            assert_error(await served.http.post(URL, content=body, headers=FORM), 400, says=says)
        assert_error(await served.http.post(URL, content=b"", headers=FORM), 400, says="empty")

    async def test_they_may_be_compressed(self, served: Running) -> None:
        headers = {**FORM, "Content-Encoding": "gzip"}
        answer = await served.http.post(URL, content=gzip.compress(form_of(DOORS[URL])), headers=headers)
        assert answer.status_code == 200, answer.text


# ── JSON that is nearly JSON ─────────────────────────────────────────────────────────────────────────────────────────

# A text of JSON, as its characters may be spelled, halves of pairs among them.
SPELLED = st.lists(
    st.sampled_from(
        ["a", "é", "🦙", r"\ud83e\udd99", r"\ud83e", r"\udd99", r"\\", r"\\ud83e", r"\n", r"\uD83E\uDD99", r"\u00e9"]
    )
).map("".join)


class TestHalvesOfCharacters:
    @given(SPELLED)
    def test_join_or_become_the_replacement_character_and_nothing_else_changes(self, spelled: str) -> None:
        body = f'{{"a": "{spelled}", "{spelled}": 1}}'.encode()
        # Python joins pairs, and leaves halves as they are.
        whole = json.loads(f'"{spelled}"').encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        assert decode_bounded(body) == {"a": whole, whole: 1} or whole == "a"

    @given(st.lists(st.sampled_from(["x", "\ud83e", "\udd99", "é", "🦙"])).map("".join))
    def test_also_where_they_are_spelled_as_bytes(self, text: str) -> None:
        body = f'"{text}"'.encode("utf-8", "surrogatepass")
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        assert decode_bounded(body) == whole

    @given(st.binary(max_size=60))
    def test_what_was_mended_needs_no_mending(self, body: bytes) -> None:
        mended = mend(body)
        for _ in range(20):  # Each takes a mark away, if nothing else.
            if mended is None:
                return
            mended = mend(mended)
        raise AssertionError("it never ends")

    async def test_no_front_door_refuses_them(self) -> None:
        async with every_door() as (running, _):
            for path, asked in DOORS.items():
                if path.startswith("/v1/") and not path.startswith("/v1/responses"):
                    continue  # What is passed on goes as it came.
                for half in (r"\ud83d", r"cut \ude00 here"):
                    body = orjson.dumps(asked).replace(b"Hi.", half.encode())
                    answer = await running.http.post(path, content=body)
                    assert answer.status_code == 200, f"{path}: {answer.text}"

    async def test_they_are_no_end_of_a_conversation(self, served: Running, backend: FakeBackend) -> None:
        body = b'{"model": "test-model", "input": "cut \\ud83d here"}'
        first = await served.http.post(URL, content=body)
        assert first.status_code == 200, first.text
        more = {"model": "test-model", "input": "Go on.", "previous_response_id": first.json()["id"]}
        assert (await served.http.post(URL, json=more)).status_code == 200
        assert backend.turns[-1].json["messages"][0]["content"] == "cut \ufffd here"


async def test_a_byte_order_mark_in_front_is_no_part_of_the_body() -> None:
    async with every_door() as (running, backend):
        for path, asked in DOORS.items():
            answer = await running.http.post(path, content=BOM + orjson.dumps(asked))
            assert answer.status_code == 200, f"{path}: {answer.text}"
        assert not any(request.body.startswith(BOM) for request in backend.requests)


async def test_no_front_door_takes_what_is_no_json_or_fails_with_it() -> None:
    bodies = (b"", b" ", b"{", b"NaN", b"\xff\xfe", b"{'a': 1}", b'"\xed\xa0"', b"\x00", b"[1,]", b'{"model": NaN}')
    async with every_door() as (running, backend):
        for path in DOORS:
            for body in bodies:
                if path == "/api/cache/invalidate" and not body:
                    continue  # It means all of it.
                answer = await running.http.post(path, content=body)
                assert answer.status_code == 400, f"{path}, {body!r}: {answer.text}"
                assert message_of(answer, path)
        assert not backend.turns


async def test_nul_in_a_text_is_a_character_like_others(served: Running, backend: FakeBackend) -> None:
    first = await served.http.post(URL, json={"model": "test-model", "input": "a\0b"})
    more = {"model": "test-model", "input": "c", "previous_response_id": first.json()["id"]}
    assert (await served.http.post(URL, json=more)).status_code == 200
    assert backend.turns[-1].json["messages"][0]["content"] == "a\0b"


async def test_of_a_key_that_is_there_twice_the_last_counts(served: Running) -> None:
    answer = await served.http.post(URL, content=b'{"model": "nobody", "input": "Hi", "model": "test-model"}')
    assert answer.status_code == 200, answer.text


LARGE = (2**64 + 1, -(2**63) - 1, 10**300)


@pytest.mark.parametrize("kind", ["openai-chat", "openai"])
@pytest.mark.parametrize("large", LARGE)
async def test_integers_of_any_size_stay_integers(large: int, kind: str) -> None:
    asked = {
        **DOORS[URL],
        "seed": large,
        "x_unknown": [large],
        "tools": [{"type": "function", "name": "f", "parameters": {"maximum": large}}],
        "text": {"format": {"type": "json_schema", "name": "f", "schema": {"type": "object", "maximum": large}}},
        "nomyo": {"cache": True},
    }
    async with every_door(kind) as (running, backend):
        for stream in (False, True):
            for _ in range(2):
                answer = await running.http.post(URL, content=json.dumps({**asked, "stream": stream}))
                assert answer.status_code == 200, answer.text
                assert kind == "openai" or str(large) in answer.text, "it is not echoed as it came"
        sent = json.loads(backend.turns[0].body)
        assert sent["seed"] == large
        assert sent["x_unknown"] == [large]
        for more in ({}, {"background": True}):
            response_id = (await running.http.post(URL, content=json.dumps({**asked, **more}))).json()["id"]
            await ended(running.http, response_id)
            kept = await running.http.get(f"{URL}/{response_id}")
            assert kind == "openai" or str(large) in kept.text, "it is not kept as it came"
            assert json.loads(backend.turns[-1].body)["seed"] == large
        for path in ("/v1/responses/compact", "/v1/responses/input_tokens"):
            answer = await running.http.post(path, content=json.dumps({**asked, **DOORS[path]}))
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("seed", [1.5, 1e300])
async def test_a_seed_is_an_integer(seed: float, served: Running) -> None:
    body = {"model": "test-model", "input": "Hi", "seed": seed}
    assert_error(await served.http.post(URL, json=body), 400, param="seed")


@pytest.mark.parametrize("brackets", [0, 300])
async def test_a_long_body_has_integers_of_any_size(brackets: int, served: Running, backend: FakeBackend) -> None:
    large = 2**64 + 1
    asked = {**DOORS[URL], "input": "Hi" * 10_000, "seed": large, "x_many": [[large]] * brackets}
    answer = await served.http.post(URL, content=json.dumps(asked))
    assert answer.status_code == 200, answer.text
    sent = json.loads(backend.turns[-1].body)
    assert (sent["seed"], sent["x_many"]) == (large, [[large]] * brackets)


@given(
    st.integers(min_value=10**18) | st.integers(max_value=-(10**18)),
    st.integers(0, 40),
    st.sampled_from(["", "4096 Nov 26 16:44 ", "0123456789" * 5]),
    st.booleans(),
)
def test_integers_stay_integers_wherever_they_stand(large: int, before: int, text: str, many: bool) -> None:
    value = ["x" * before, large, text * 500, [[1]] * 300 if many else [], "y" * before, [large]]
    for body in (json.dumps(value), json.dumps([large, *value]), json.dumps([*value, large])):
        read = decode_bounded(body.encode())
        assert read == json.loads(body)
        assert large in read


async def test_integers_of_any_size_stay_integers_at_ollamas_door() -> None:
    large = 2**70
    asked = {
        **DOORS["/api/chat"],
        "options": {"seed": large},
        "format": {"type": "object", "maximum": large},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"maximum": large}}}],
    }
    async with every_door() as (running, backend):
        answer = await running.http.post("/api/chat", content=json.dumps(asked))
        assert answer.status_code == 200, answer.text
        sent = json.loads(backend.turns[-1].body)
        assert sent["seed"] == large
        assert sent["response_format"]["json_schema"]["schema"]["maximum"] == large
        assert sent["tools"][0]["function"]["parameters"]["maximum"] == large


# ── depth ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def whole_answer(reply: Reply, headers: Json, body: bytes) -> None:
    await reply.start(200, headers, length=len(body))
    await reply.end(body)


def nested(levels: int, brackets: str = "[]") -> bytes:
    opened = '{"a":' if brackets == "{}" else "["
    return (opened * levels + "1" + brackets[1] * levels).encode()


def placed(asked: Json, where: str, deep: bytes) -> bytes:
    """A request with something deep in one of its places."""
    mark = b'"deep"'
    tool: Json = {"type": "function", "name": "f", "parameters": "deep"}
    chat_tool = {"type": "function", "function": {"name": "f", "parameters": "deep"}}
    format = {"type": "json_schema", "name": "f", "schema": {"a": "deep"}}
    places: dict[str, Json] = {
        "unknown": {"x_unknown": "deep"},
        "tool": {"tools": [tool]},
        "hosted tool": {"tools": [{"type": "file_search", "vector_store_ids": [], "filters": "deep"}]},
        "chat tool": {"tools": [chat_tool]},
        "schema": {"text": {"format": format}},
        "format": {"format": {"a": "deep"}},
        "options": {"options": {"stop": "deep"}},
        "item": {"input": [{"type": "message", "role": "user", "content": "Hi.", "x_unknown": "deep"}]},
        "unknown item": {"input": [{"role": "user", "content": "Hi."}, {"type": "x_unknown", "a": "deep"}]},
        "arguments": {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": {"a": "deep"}}}]}]},
    }  # fmt: skip
    return orjson.dumps({**asked, **places[where]}).replace(mark, deep)


PLACES = {
    "/v1/responses": ("unknown", "tool", "hosted tool", "schema", "item", "unknown item"),
    "/v1/responses/compact": ("unknown", "tool", "item", "unknown item"),
    "/v1/responses/input_tokens": ("unknown", "tool", "schema", "item"),
    "/api/chat": ("unknown", "chat tool", "format", "options", "arguments"),
    "/api/generate": ("unknown", "format", "options"),
}


class TestDepth:
    @given(st.integers(1, 2500), st.sampled_from(["[]", "{}"]), st.booleans(), st.binary(max_size=3).map(bytes.hex))
    def test_is_bounded_to_the_level(self, levels: int, brackets: str, long: bool, text: str) -> None:
        deep = nested(levels, brackets)
        body = b'{"a": %b, "text": "%b"}' % (deep, b"x" * 10_000 if long else text.encode())
        if levels + 1 <= 200:
            assert decode_bounded(body) == json.loads(body)
        else:
            with pytest.raises(InvalidRequest, match="200 levels are the limit"):
                decode_bounded(body)

    @pytest.mark.parametrize("inside", [b"{}", b"[]", b'{"a":1}', b"[1]", b"1"])
    @pytest.mark.parametrize("around", [b"[%b]", b'{"a":%b}', b'[1,{},%b,"x",[]]', b'{"b":[{}],"a":%b}'])
    def test_whatever_lies_at_the_bottom_counts(self, inside: bytes, around: bytes) -> None:
        def levels(value: object) -> int:
            inner = value if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else None
            return 0 if inner is None else 1 + max(map(levels, inner), default=0)

        text = inside
        while levels(json.loads(around % text)) <= 200:
            text = around % text
        long = b"%b\n%b" % (text, b" " * 10_000)
        for body in (text, long):
            assert decode_bounded(body) == json.loads(text)
        for body in (around % text, around % long):
            with pytest.raises(TooDeep):
                decode_bounded(body)

    def test_brackets_that_lie_side_by_side_are_not_deep(self) -> None:
        wide = [[{"a": [text]}] for text in ["[[{{", "]]}}"] * 2000]
        assert decode_bounded(orjson.dumps(wide)) == wide

    def test_what_is_wrong_is_said_of_the_body_as_it_came(self) -> None:
        wrong = b'[{"a": [[1]]}, %b 2 3]' % (b"[1]," * 3000)
        with pytest.raises(InvalidRequest) as raised:
            decode_bounded(wrong)
        assert "char 12" in raised.value.message

    @pytest.mark.parametrize("kind", ["openai-chat", "openai", "ollama"])
    async def test_is_no_fault_of_any_front_door(self, kind: str) -> None:
        async with every_door(kind) as (running, _):
            for path, asked in doors_of(kind).items():
                for where in PLACES.get(path, ("unknown",)):
                    for levels in (150, 199, 220, 246, 249, 250, 251, 252, 253, 254, 255, 900, 1100, 20_000):
                        answer = await running.http.post(path, content=placed(asked, where, nested(levels, "{}")))
                        at = f"{kind} {path} {where} {levels}: {answer.text[:300]}"
                        assert answer.status_code in (200, 400), at
                        if levels == 20_000:
                            assert answer.status_code == 400, at
                            assert "200 levels" in message_of(answer, path), at

    @pytest.mark.parametrize("kind", ["openai-chat", "openai"])
    async def test_that_may_be_is_kept_streamed_and_continued(self, kind: str) -> None:
        async with every_door(kind) as (running, _):
            for where in PLACES[URL]:
                body = placed({**DOORS[URL], "stream": True}, where, nested(190, "{}"))
                streamed = await running.http.post(URL, content=body)
                assert streamed.status_code == 200, f"{where}: {streamed.text[:300]}"
                last = orjson.loads(streamed.text.rpartition("data: ")[2])
                assert last["type"] == "response.completed", where
                response_id = last["response"]["id"]
                for again in ("", "?stream=true", "/input_items"):
                    assert (await running.http.get(f"{URL}/{response_id}{again}")).status_code == 200
                more = {"model": "test-model", "input": "Go on.", "previous_response_id": response_id}
                assert (await running.http.post(URL, json=more)).status_code == 200

    @pytest.mark.parametrize("levels", [150, 201, 251, 300, 1020, 5000])
    async def test_of_the_arguments_that_a_model_makes_is_bounded_too(self, levels: int) -> None:
        search = {"type": "tool_search", "execution": "client", "description": "x", "parameters": {}}
        function = {"type": "function", "function": {"name": "f", "parameters": {}}}
        deep = nested(levels, "{}").decode()
        async with every_door() as (running, backend):
            for stream in (False, True):
                backend.script(chat(call("tool_search", deep)), chat(call("f", deep)))
                searched = await running.http.post(URL, json={**DOORS[URL], "tools": [search], "stream": stream})
                assert searched.status_code == 200, searched.text[:300]
                chatting = {**DOORS["/api/chat"], "tools": [function], "stream": stream}
                answer = await running.http.post("/api/chat", json=chatting)
                assert answer.status_code == (200 if levels <= 200 else 502), answer.text[:300]

    @pytest.mark.parametrize("levels", [150, 250, 254, 300, 900, 1020, 5000])
    async def test_of_an_answer_is_no_fault_of_ours(self, levels: int) -> None:
        item: Json = {"type": "x_deep", "id": "x_1", "status": "completed", "a": "deep"}
        whole = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "output": [item]}
        begun = {**whole, "status": "in_progress", "output": []}
        events: list[Json] = [
            {"type": "response.created", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": whole},
        ]
        deep = nested(levels, "{}")
        async with every_door("openai") as (running, backend):
            json_body = orjson.dumps(whole).replace(b'"deep"', deep)
            sse_body = b"".join(
                b"data: %b\n\n" % orjson.dumps({**event, "sequence_number": number}).replace(b'"deep"', deep)
                for number, event in enumerate(events)
            )
            for headers, body in ((JSON_HEADERS, json_body), (SSE_HEADERS, sse_body)):
                backend.script(partial(whole_answer, headers=headers, body=body))
                asked = {**DOORS[URL], "stream": headers is SSE_HEADERS}
                answer = await running.http.post(URL, json=asked)
                at = f"{levels}: {answer.text[-300:]}"
                assert answer.status_code in (200, 502), at
                if answer.status_code == 502:
                    assert levels > 900, at
                    assert_error(answer, 502, says="answer")
                    continue
                found = answer.json() if headers is JSON_HEADERS else orjson.loads(answer.text.rpartition("data: ")[2])
                kept = await running.http.get(f"{URL}/{(found.get('response') or found)['id']}")
                assert (kept.status_code, kept.json()["status"]) == (200, "completed"), at

    async def test_of_a_message_on_a_socket_is_bounded_too(self, served: Running) -> None:
        async with connect(served.url.replace("http", "ws") + URL, proxy=None) as socket:
            for levels in (300, 5000):
                body = placed({**DOORS[URL], "type": "response.create"}, "tool", nested(levels))
                await socket.send(body.decode())
                error = orjson.loads(await socket.recv())
                assert (error["type"], error["status"]) == ("error", 400)
                assert "200 levels" in error["error"]["message"]


# ── what is for the router alone ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["openai-chat", "ollama"])
async def test_nomyo_reaches_no_server(kind: str) -> None:
    async with every_door(kind) as (running, backend):
        for path, asked in doors_of(kind).items():
            if path == "/api/cache/invalidate":
                continue
            answer = await running.http.post(path, json={**asked, "nomyo": {"cache": True}})
            assert answer.status_code == 200, f"{path}: {answer.text}"
            # What is a turn here has the cache; what goes through to an Ollama has not.
            is_turn = path.startswith("/v1/responses") or (kind != "ollama" and path in ("/api/chat", "/api/generate"))
            assert (answer.headers.get("x-nomyo-ignored") == "nomyo") == (not is_turn and path != "/api/show"), path
        assert any(request.method == "POST" for request in backend.requests)
        assert not any(b"nomyo" in request.body for request in backend.requests)


async def test_a_router_without_a_body_limit_in_sight_decodes_within_its_own(backend: FakeBackend) -> None:
    """`max_body_mb` holds for what comes out, not for what came in."""
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    async with running_router(endpoints=endpoints, max_body_mb=1) as running:
        bomb = zstd.compress(b" " * 200 * MB)
        assert len(bomb) < 100_000
        answer = await running.http.post(URL, content=bomb, headers={"Content-Encoding": "zstd"})
        assert_error(answer, 413, code="request_too_large", says="1 MB")
        assert not backend.turns
