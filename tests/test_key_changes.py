"""Keys of the database, from the command to the routers that run on it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import router
from core import keyring as keyring_module
from core.config_checks import parse_config
from core.config_file import load_config
from core.errors import ConfigError
from core.key_changes import CannotChange, described, expiry_from, new_key, replaced, revoked, settings_of, state_of
from core.key_settings import KeyConfig
from core.keyring import Keyring
from core.keys import StoredKey
from core.reloading import reload
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.keyed import key, keyed_router, with_secret
from tests.test_command import assert_one_line, nomyo
from tests.turns import URL, assert_error, create, eventually, turn

ENDPOINTS = [{"url": "http://127.0.0.1:9", "kind": "ollama"}]
NAMES = ("ann", "bob")
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "rotate", "revoke", "wait"]), st.sampled_from(NAMES), st.sampled_from([0.0, 5.0, 50.0])
    ),
    max_size=25,
)


def keyring(*keys: StoredKey) -> Keyring:
    made = Keyring(parse_config({"endpoints": ENDPOINTS}))
    made.take_stored(keys)
    return made


@given(steps)
def test_a_key_is_valid_from_its_making_to_its_end_however_they_change(taken: list[tuple[str, str, float]]) -> None:
    """Beside a model of which keys are valid: a router that has seen every change, and one that has just started."""
    now, change = 1_000_000.0, 0
    kept: dict[bytes, StoredKey] = {}
    ends: dict[str, tuple[str, float]] = {}
    follower = keyring()
    for step, name, seconds in taken:
        valid = {secret for secret, (owner, end) in ends.items() if owner == name and end > now}
        changed: list[StoredKey] = []
        try:
            if step == "add":
                made = new_key(kept.values(), KeyConfig(name=name), now)
                assert not valid
                changed, ends[made.secret] = made.changed, (name, float("inf"))
            elif step == "rotate":
                made = replaced(kept.values(), name, now, grace_s=seconds)
                assert valid
                ends |= {secret: (name, min(ends[secret][1], now + seconds)) for secret in valid}
                changed, ends[made.secret] = made.changed, (name, float("inf"))
            elif step == "revoke":
                changed = [*revoked(kept.values(), name, now).changed]
                assert valid
                ends |= dict.fromkeys(valid, (name, now))
            else:
                now += seconds
        except CannotChange:
            assert bool(valid) == (step == "add")
        if changed:
            change += 1
            changed = [replace(key, change=change) for key in changed]
            kept |= {key.digest: key for key in changed}
            follower.take_stored(changed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keyring_module.time, "time", lambda at=now: at)
            for process in (follower, keyring(*kept.values())):
                for secret, (owner, end) in ends.items():
                    principal = process.find(secret.encode())
                    assert (principal.key if principal else None) == (owner if end > now else None)
                assert process.asks_for_keys == bool(kept)
                assert process.seen == change


def test_a_key_is_256_bits_of_which_only_a_digest_and_the_first_letters_are_kept() -> None:
    made = new_key([], KeyConfig(name="ann", rpm=5, models=("qwen*",)), 5.5)
    assert re.fullmatch(r"nk-[\w-]{43}", made.secret)
    assert made.stored.digest == hashlib.sha256(made.secret.encode()).digest()
    assert made.secret.startswith(made.stored.shown)
    assert len(made.stored.shown) == 9
    assert made.secret[9:].encode() not in repr(made.stored).encode()
    assert settings_of(made.stored) == KeyConfig(name="ann", rpm=5, models=("qwen*",))
    assert new_key([], KeyConfig(name="ann"), 5.5).secret != made.secret


def test_what_a_later_version_has_of_a_key_is_not_taken_for_less(caplog: pytest.LogCaptureFixture) -> None:
    made = new_key([], KeyConfig(name="ann"), 5)
    process = keyring(replace(made.stored, settings=b'{"name": "ann", "may_only": "sleep"}'))
    assert process.find(made.secret.encode()) is None
    assert process.asks_for_keys
    assert "'ann'" in caplog.text
    later = replace(made.stored, settings=b'{"name": "ann", "may_only": "sleep"}')
    assert described(later, 6)["state"] == "unknown"
    with pytest.raises(CannotChange, match="does not know"):
        replaced([later], "ann", 6)
    assert revoked([later], "ann", 6).changed, "whatever it is, it can be ended"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("90d", "1970-04-01T00:00:00+00:00"),
        ("12h", "1970-01-01T12:00:00+00:00"),
        ("30m", "1970-01-01T00:30:00+00:00"),
        ("2w", "1970-01-15T00:00:00+00:00"),
        ("2027-01-31", "2027-01-31"),
    ],
)
def test_an_end_is_a_day_or_so_much_from_now(text: str, end: str) -> None:
    assert expiry_from(text, 0.0) == end


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "1y", "999999999w", "1969-01-01", "2027-02-30", "soon"])
def test_an_end_that_is_none_is_a_line(text: str) -> None:
    if text:
        with pytest.raises(ValueError, match=re.escape(f"'{text}'")):
            expiry_from(text, 0.0)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a router with a database in a file, as the command finds them."""
    settings = {"endpoints": ENDPOINTS, "database": {"url": f"sqlite:///{tmp_path}/router.db"}}
    write(settings, tmp_path)
    monkeypatch.setenv("ROUTER_CONFIG", str(tmp_path / "config.yaml"))
    return settings


def write(settings: dict[str, Any], folder: Path) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def keys(*arguments: str) -> str:
    """What `./nomyo keys …` prints."""
    ran = nomyo("keys", *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def listed(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(keys("list", "--json", *arguments))["keys"]
    return found


def test_a_key_is_printed_alone_and_once(configured: dict[str, Any]) -> None:
    ran = nomyo(
        "keys", "add", "ann", "--models", "qwen*,llama*", "--models", "gpt-5", "--rpm", "60", "--budget", "1M/day"
    )
    secret = ran.stdout.removesuffix("\n")
    assert re.fullmatch(r"nk-[\w-]{43}", secret)
    assert "'ann'" in ran.stderr
    (row,) = listed()
    assert row | {"created_at": 0} == {
        "name": "ann",
        "key": f"{secret[:9]}…",
        "owner": "ann",
        "state": "valid",
        "created_at": 0,
        "ends_at": None,
        "models": ["qwen*", "llama*", "gpt-5"],
        "rpm": 60,
        "budget": "1M/day",
    }
    assert secret not in keys("list")
    made = json.loads(keys("add", "root", "--admin", "--json"))
    assert (made["owner"], made["admin"]) == ("", True)
    assert re.fullmatch(r"nk-[\w-]{43}", made["key"])


def test_whoever_makes_a_key_hears_what_it_may_not_have_thought_of(configured: dict[str, Any]) -> None:
    assert "no admin's key" in nomyo("keys", "add", "ann").stderr
    keys("revoke", "ann")
    assert "no admin's key" not in nomyo("keys", "add", "root", "--admin").stderr
    again = nomyo("keys", "add", "ann").stderr
    assert "earlier keys of 'ann'" in again
    assert "no admin's key" not in again
    assert "earlier keys" not in nomyo("keys", "add", "bob").stderr


def test_keys_are_listed_for_people_too(configured: dict[str, Any]) -> None:
    assert keys("list") == "There are no keys in the database."
    keys("add", "ann", "--owner", "team", "--models", "qwen*", "--expires", "90d")
    head, row = keys("list").splitlines()
    assert head.split() == ["NAME", "KEY", "OWNER", "STATE", "MADE", "ENDS"]
    assert row.split()[0] == "ann"
    assert row.split()[2:4] == ["team", "valid"]
    assert row.endswith("models=qwen*")
    keys("revoke", "ann")
    assert keys("list") == "No key is valid (--all shows the others)."
    assert "revoked" in keys("list", "--all")


WRONG = (
    (("add", "ann", "--rpm", "0"), 2, "--rpm"),
    (("add", "ann", "--expires", "soon"), 2, "'soon'"),
    (("add", "ann", "--expires", "2020-01-01"), 2, "is over"),
    (("add", "ann", "--budget", "5"), 2, "'5' is no amount"),
    (("add", "a b"), 2, "'a b' is no name"),
    (("add", "ann", "--models", ","), 2, "models"),
    (("add", "ann", "--owner", "\n"), 2, "owner"),
    (("add", "there"), 4, "there is a key 'there'"),
    (("add", "settled"), 4, "a key of the settings"),
    (("rotate", "there", "--grace", "long"), 2, "'long'"),
    (("rotate", "absent"), 4, "no key 'absent'"),
    (("revoke", "absent"), 4, "no key 'absent'"),
    (("revoke",), 2, "NAME"),
)


def test_what_cannot_be_is_a_line_that_names_it(configured: dict[str, Any], tmp_path: Path) -> None:
    write({**configured, "keys": [{"name": "settled", "key": "nk-settled"}]}, tmp_path)
    keys("add", "there")
    for arguments, status, says in WRONG:
        assert says in assert_one_line(nomyo("keys", *arguments), status)
    assert len(listed("--all")) == 1
    write({**configured, "database": {"url": "sqlite://"}}, tmp_path)
    assert "memory" in assert_one_line(nomyo("keys", "list"), 1)


@pytest.mark.parametrize("command", ["add", "list", "rotate", "revoke"])
def test_each_command_has_help_with_an_example(command: str) -> None:
    assert f"./nomyo keys {command}" in nomyo("keys", command, "--help").stdout.partition("Example")[2]


# ── /api/keys ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def administered(backend: FakeBackend) -> AsyncIterator[Running]:
    async with keyed_router(backend, key("settled", models=["test*"])) as running:
        yield running


async def test_admins_make_list_replace_and_revoke_keys(administered: Running) -> None:
    http = administered.http
    made = (await http.post("/api/keys", json={"name": "ann", "rpm": 5, "models": ["test*"], "expires": "90d"})).json()
    assert re.fullmatch(r"nk-[\w-]{43}", made["key"])
    assert (made["owner"], made["state"], made["rpm"]) == ("ann", "valid", 5)
    assert await answers(administered, made["key"], 200), "at once, where it was made"
    listed = (await http.get("/api/keys")).json()["keys"]
    assert made["key"] not in str(listed)
    assert [(row["name"], row["place"], row.get("rpm")) for row in listed] == [
        ("ann", "database", 5),
        ("settled", "settings", None),
    ]
    after = (await http.post("/api/keys/ann/rotate", json={"grace": "1h"})).json()
    assert after["ends_at"] == made["ends_at"]
    for secret in (made["key"], after["key"]):
        assert await answers(administered, secret, 200)
    revoked = (await http.delete("/api/keys/ann")).json()["revoked"]
    assert [row["state"] for row in revoked] == ["revoked", "revoked"]
    for secret in (made["key"], after["key"]):
        assert await answers(administered, secret, 401)
    assert len((await http.get("/api/keys")).json()["keys"]) == 1
    assert len((await http.get("/api/keys?all=true")).json()["keys"]) == 3


async def test_the_first_key_is_not_made_by_whoever_finds_an_open_router(served: Running) -> None:
    assert_error(await served.http.post("/api/keys", json={"name": "ann"}), 403, code="no_keys")
    assert (await served.http.get("/api/keys")).json() == {"keys": []}
    await create(served.http)


BAD: tuple[tuple[Any, str | None], ...] = (
    ({}, "name"),
    ([], None),
    ({"name": "a b"}, "name"),
    ({"name": 5}, "name"),
    ({"name": "settled"}, "name"),
    ({"name": "there"}, "name"),
    ({"name": "a", "key": "nk-1"}, "key"),
    ({"name": "a", "rpm": 0}, "rpm"),
    ({"name": "a", "rpm": "5"}, "rpm"),
    ({"name": "a", "models": "x"}, "models"),
    ({"name": "a", "models": [""]}, "models"),
    ({"name": "a", "budget": "5"}, "budget"),
    ({"name": "a", "expires": "soon"}, "expires"),
    ({"name": "a", "expires": 5}, "expires"),
    ({"name": "a", "owner": "\n"}, "owner"),
)


async def test_what_cannot_be_is_a_400_that_names_it(administered: Running) -> None:
    http = administered.http
    await http.post("/api/keys", json={"name": "there"})
    for body, param in BAD:
        assert_error(await http.post("/api/keys", json=body), 400, param=param)
    for body, param in (({"grace": 5}, "grace"), ({"grace": "x"}, "grace"), ({"name": "x"}, "name"), ([], None)):
        assert_error(await http.post("/api/keys/there/rotate", json=body), 400, param=param)
    for name in ("absent", "settled"):
        assert_error(await http.post(f"/api/keys/{name}/rotate"), 404, param="name")
        assert_error(await http.delete(f"/api/keys/{name}"), 404, param="name")
    assert len((await http.get("/api/keys")).json()["keys"]) == 2


# ── while a router runs ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.heavy
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_what_changes_reaches_routers_that_run(
    database: str, request: pytest.FixtureRequest, configured: dict[str, Any], tmp_path: Path, backend: FakeBackend
) -> None:
    if database == "postgres":
        configured["database"] = {"url": request.getfixturevalue("postgres").new_database()}
        write(configured, tmp_path)
    settings = configured | {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]}
    async with running_router(**settings) as running:
        await create(running.http)
        secret = keys("add", "ann")
        await eventually(lambda: answers(running, "none", 401), "the router is closed")
        await eventually(lambda: answers(running, secret, 200), "the key is taken")
        after = keys("rotate", "ann", "--grace", "1h")
        await eventually(lambda: answers(running, after, 200), "the new key is taken")
        assert await answers(running, secret, 200)
        keys("revoke", "ann")
        await eventually(lambda: answers(running, after, 401), "the key is refused")
        assert await answers(running, secret, 401)
        assert await answers(running, "none", 401), "the last key does not open the router"
    async with running_router(**settings) as running:
        assert await answers(running, after, 401)
        assert await answers(running, "none", 401)


async def test_keys_of_the_settings_come_and_go_while_it_runs(
    configured: dict[str, Any], tmp_path: Path, backend: FakeBackend
) -> None:
    settings = configured | {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]}
    kept = keys("add", "kept")
    write(settings, tmp_path)
    app = router.create_app(load_config(tmp_path / "config.yaml"), tmp_path / "config.yaml")
    async with app.router.lifespan_context(app):
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://router")

        async def status(secret: str) -> int:
            return (await http.post(URL, json=turn(), headers={"x-api-key": secret})).status_code

        write(settings | {"keys": [{"name": "ann", "key": "nk-1", "models": ["test*"]}]}, tmp_path)
        await reload(app.state)
        assert (await status("nk-1"), await status(kept), await status("nk-2")) == (200, 200, 401)
        write(settings | {"keys": [{"name": "ann", "key": "nk-2", "models": []}]}, tmp_path)
        await reload(app.state)
        assert (await status("nk-1"), await status("nk-2")) == (401, 400)
        write(settings | {"keys": [{"name": "kept", "key": "nk-1"}]}, tmp_path)
        await reload(app.state)
        assert "'kept' is a key of the database too" in app.state.config_error
        assert (await status("nk-1"), await status("nk-2")) == (401, 400), "the settings stay as they were"
        write(settings, tmp_path)
        await reload(app.state)
        assert (await status("nk-2"), await status(kept)) == (401, 200)
        await http.aclose()


async def answers(running: Running, secret: str, status: int) -> bool:
    async with with_secret(running, secret) as http:
        answer = await http.post(URL, json=turn())
        if answer.status_code == 401:
            assert_error(answer, 401, code="invalid_api_key")
        return answer.status_code == status


async def test_a_socket_of_a_key_that_was_revoked_is_answered_no_more(
    configured: dict[str, Any], backend: FakeBackend
) -> None:
    settings = configured | {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]}
    secret = keys("add", "ann")
    async with (
        running_router(**settings) as running,
        running.openai.with_options(api_key=secret).responses.connect() as connection,
    ):
        await connection.response.create(**turn())
        while (await connection.recv()).type != "response.completed":
            pass
        keys("revoke", "ann")
        await eventually(lambda: answers(running, secret, 401), "the key is refused")
        before = len(backend.turns)
        await connection.response.create(**turn())
        event: Any = await connection.recv()
        assert (event.type, event.error.code) == ("error", "invalid_api_key")
        assert len(backend.turns) == before


async def test_a_name_in_both_places_stops_the_start(configured: dict[str, Any]) -> None:
    keys("add", "ann")
    app = router.create_app(parse_config({**configured, "keys": [{"name": "ann", "key": "nk-1"}]}))
    with pytest.raises(ConfigError, match="'ann' is a key of the database too"):
        async with app.router.lifespan_context(app):
            pass
    keys("revoke", "ann")
    async with app.router.lifespan_context(app):
        assert app.state.keys.find(b"nk-1")


def test_the_state_of_a_key_is_a_word() -> None:
    now = time.time()
    key = new_key([], KeyConfig(name="ann"), now).stored
    assert state_of(key, now) == "valid"
    assert state_of(replace(key, ends_at=now - 1), now) == "expired"
    assert state_of(replace(key, ends_at=now + 1, ended_by="replaced"), now) == "ending"
    assert state_of(replace(key, ends_at=now - 1, ended_by="replaced"), now) == "replaced"
    assert state_of(replace(key, ends_at=now, ended_by="revoked"), now) == "revoked"
