"""`./nomyo move SOURCE TARGET`: all that is kept, from any database to any other one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands import Refused
from commands.move import Move, move_store, shown
from core.errors import StartError
from core.extras import EXTRAS
from db import TABLES, CopiedRow, CopyError, Store, make_store
from stores.service_lock import ServiceLock
from tests.stores.databases import DATABASES, SHARED, SQLiteFile
from tests.stores.test_store_copies import all_rows, fill
from tests.test_backup import fill as fill_with_turns
from tests.test_command import ROOT, assert_one_line, nomyo, on_terminal
from tests.test_laws import MANY
from tests.turns import SOON_S

names = count()
PAIRS = [(source, target) for source in SHARED for target in SHARED]


async def filled(url: str) -> dict[str, list[CopiedRow]]:
    """All rows of a store that has some of every kind; it is closed."""
    store = make_store(url)
    await store.open()
    await fill(store)
    rows = await rows_of(store)
    await store.close()
    return rows


async def rows_of(store: Store) -> dict[str, list[CopiedRow]]:
    return {table.name: await all_rows(store, table) for table in TABLES}


async def rows_at(url: str) -> dict[str, list[CopiedRow]]:
    store = make_store(url)
    await store.open()
    rows = await rows_of(store)
    await store.close()
    return rows


# As processes; every other pair is moved in this one, below.
@pytest.mark.parametrize(("source", "target"), [("sqlite-file", "postgres"), ("postgres", "sqlite-file")])
async def test_a_store_is_moved_whole_and_stays_where_it_was(source: str, target: str, tmp_path: Path) -> None:
    here, there = DATABASES[source](tmp_path / "a").url, DATABASES[target](tmp_path / "b").url
    rows = await filled(here)
    ran = nomyo("move", here, there)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert await rows_at(there) == rows == await rows_at(here)
    # Once more: nothing is left to do.
    ran = nomyo("move", here, there, "--json")
    printed = json.loads(ran.stdout)
    assert printed["copied_rows"] == 0
    assert {name: table["rows"] for name, table in printed["tables"].items()} == {
        name: len(found) for name, found in rows.items()
    }


async def test_the_same_rows_have_the_same_hash_and_others_another(tmp_path: Path) -> None:
    urls = [SQLiteFile(tmp_path / name).url for name in "abc"]
    await filled(urls[0])
    first = json.loads(nomyo("move", urls[0], urls[1], "--json").stdout)["tables"]
    assert json.loads(nomyo("move", urls[1], urls[2], "--json").stdout)["tables"] == first
    store = make_store(urls[2])
    await store.open()
    await store.delete_response("r0")
    await store.close()
    fewer = json.loads(nomyo("move", urls[2], SQLiteFile(tmp_path / "d").url, "--json").stdout)["tables"]
    assert fewer["responses"]["sha256"] != first["responses"]["sha256"]
    assert fewer["settings"] == first["settings"]


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_databases_may_cut_rows_into_pieces_of_their_own(source: str, target: str, tmp_path: Path) -> None:
    stores = make_store(DATABASES[source](tmp_path / "a").url), make_store(DATABASES[target](tmp_path / "b").url)
    for number, store in enumerate(stores):
        await store.open()
        monkeypatch_pieces(store, number + 2)
    await fill(stores[0])
    for _ in range(2):
        move = Move(*stores, lambda _: None)
        await move.run()
        assert await rows_of(stores[1]) == await rows_of(stores[0])
    assert move.copied == 0
    for store in stores:
        await store.close()


def monkeypatch_pieces(store: Any, rows: int) -> None:
    """A store gives so many rows at once."""
    read = store.read_rows

    async def some(*arguments: Any) -> list[CopiedRow]:
        return (await read(*arguments))[:rows]

    store.read_rows = some


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────────


class Interruption(Exception):
    """Whoever moves is gone."""


class StoppingStore:
    """A store that takes so many pieces, and no more."""

    def __init__(self, store: Store, pieces: int) -> None:
        self._store = store
        self._left = pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write_rows(self, *arguments: Any) -> None:
        if not self._left:
            raise Interruption
        self._left -= 1
        await self._store.write_rows(*arguments)


@pytest.mark.parametrize(("source", "target"), PAIRS)
async def test_wherever_it_was_interrupted_the_next_run_goes_on(
    source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.copies.COPIED_BYTES", 300)
    here, there = DATABASES[source](tmp_path / "a").url, DATABASES[target](tmp_path / "b").url
    rows = await filled(here)
    stores = make_store(here), make_store(there)
    for store in stores:
        await store.open()
    copied, runs = 0, 0
    while True:
        done: list[int] = []
        move = Move(stores[0], StoppingStore(stores[1], pieces=1 + runs % 2), done.append)  # type: ignore[arg-type]
        runs += 1
        try:
            await move.run()
            break
        except Interruption:
            assert move.copied > 0
        finally:
            copied += move.copied
    assert runs > 5, "it was not interrupted"
    assert copied == sum(map(len, rows.values())) == sum(done), "what was there was copied again"
    assert await rows_of(stores[1]) == rows
    for store in stores:
        await store.close()


@pytest.mark.heavy
def test_a_move_that_is_killed_again_and_again_ends_whole(tmp_path: Path) -> None:
    here, there = SQLiteFile(tmp_path / "a").url, SQLiteFile(tmp_path / "b").url
    asyncio.run(fill_with_turns(here, 2000, length=100_000))
    for kill in range(1, 6):
        with subprocess.Popen([ROOT / "nomyo", "move", here, there], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while _length_at(there) < kill * 30_000_000:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.002)
            process.kill()
    assert nomyo("move", here, there).returncode == 0
    assert asyncio.run(rows_at(there)) == asyncio.run(rows_at(here))


def _length_at(url: str) -> int:
    """How many bytes lie in the files of a database."""
    file = Path(url.removeprefix("sqlite:///"))
    return sum(part.stat().st_size for part in (file, Path(f"{file}-wal")) if part.exists())


def test_ctrl_c_is_one_line_that_names_the_way_on(tmp_path: Path) -> None:
    here = SQLiteFile(tmp_path / "a").url
    asyncio.run(filled(here))
    # It waits for the lock of the source for a second.
    lock = ServiceLock(here.removeprefix("sqlite:///"), "router")
    asyncio.run(lock.take())
    command = [ROOT / "nomyo", "move", here, SQLiteFile(tmp_path / "b").url]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not any(name.endswith("router.db.lock") for name in _open_files(process.pid)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=SOON_S)
    lock.close()
    assert (process.returncode, len(stderr.splitlines())) == (130, 1)
    assert "goes on from here" in stderr


def _open_files(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    except OSError:
        return set()


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

settings_of_store = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("xy"), max_size=6)


@settings(
    max_examples=MANY or 60,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ours=settings_of_store, theirs=settings_of_store, length=st.integers(1, 40))
async def test_a_target_is_a_beginning_of_the_source_or_it_is_left_alone(
    ours: dict[str, str], theirs: dict[str, str], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.copies.COPIED_BYTES", length)
    stores = make_store("sqlite://"), make_store("sqlite://")
    for store, values in zip(stores, (ours, theirs), strict=True):
        await store.open()
        for name, value in values.items():
            await store.get_setting(name, value)
    before = await rows_of(stores[1])
    move = Move(*stores, lambda _: None)
    if sorted(ours.items())[: len(theirs)] == sorted(theirs.items()):
        await move.run()
        assert await rows_of(stores[1]) == await rows_of(stores[0])
        assert move.copied == len(ours) - len(theirs)
    else:
        with pytest.raises(Refused):
            await move.run()
        assert await rows_of(stores[1]) == before
    for store in stores:
        await store.close()


async def test_a_target_with_rows_of_its_own_in_any_table_stays_as_it_is(tmp_path: Path) -> None:
    here, there = SQLiteFile(tmp_path / "a").url, SQLiteFile(tmp_path / "b").url
    await filled(here)
    store = make_store(there)
    await store.open()
    await store.store_response(
        "mine", previous_response_id=None, model="m", status="completed", created_at=1, input_messages=[]
    )
    await store.close()
    before = await rows_at(there)
    assert "responses" in assert_one_line(nomyo("move", here, there), 4)
    assert await rows_at(there) == before


@pytest.mark.parametrize("used", ["source", "target"])
async def test_a_database_in_use_is_refused(used: str, tmp_path: Path) -> None:
    urls = {name: SQLiteFile(tmp_path / name).url for name in ("source", "target")}
    await filled(urls["source"])
    store = make_store(urls[used], service="a router")
    await store.open()
    try:
        line = assert_one_line(await asyncio.to_thread(nomyo, "move", urls["source"], urls["target"]), 3)
    finally:
        await store.close()
    assert f"{used}/deep/router.db is used by another router" in line


async def test_a_postgresql_in_use_is_refused(tmp_path: Path) -> None:
    urls = {"source": SQLiteFile(tmp_path / "a").url, "target": DATABASES["postgres"](tmp_path).url}
    await filled(urls["source"])
    store = make_store(urls["target"], service="a router")
    await store.open()
    try:
        line = assert_one_line(await asyncio.to_thread(nomyo, "move", urls["source"], urls["target"]), 4)
    finally:
        await store.close()
    assert "is open in 1 routers" in line
    assert (await asyncio.to_thread(nomyo, "move", urls["source"], urls["target"])).returncode == 0


async def test_rows_that_are_written_meanwhile_are_noticed(tmp_path: Path) -> None:
    stores = make_store(SQLiteFile(tmp_path / "a").url), make_store(SQLiteFile(tmp_path / "b").url)
    for store in stores:
        await store.open()
    await fill(stores[0])
    write = stores[1].write_rows

    async def overtaken(*arguments: Any) -> None:
        await write(*arguments)
        await stores[0].get_setting(f"new {next(names)}", "x")

    stores[1].write_rows = overtaken  # type: ignore[method-assign]
    with pytest.raises(Exception, match="written to while it was moved"):
        await Move(*stores, lambda _: None).run()
    for store in stores:
        await store.close()


@pytest.mark.parametrize(
    ("source", "target", "status", "words"),
    [
        ("sqlite:///{}/none.db", "sqlite:///{}/b.db", 3, "no such database"),
        ("sqlite:///{}/a.db", "sqlite:///{}/a.db", 4, "the source is the target"),
        ("sqlite:///{}/a.db", "sqlite://", 2, "memory"),
        ("sqlite://", "sqlite:///{}/a.db", 2, "memory"),
        ("mysql://host/name", "sqlite:///{}/a.db", 2, "no store for mysql"),
        ("nonsense", "sqlite:///{}/a.db", 2, "is a URL: sqlite:///relative/path"),
        ("{}/a.db", "sqlite:///{}/b.db", 2, "is a URL: sqlite:///relative/path"),
        ("sqlite:///{}/empty.db", "sqlite:///{}/b.db", 4, "nothing to move"),
        ("sqlite:///{}/text", "sqlite:///{}/b.db", 3, "is no SQLite database"),
        ("sqlite:///{}/a.db", "sqlite:///{}", 3, "is a folder"),
    ],
)
async def test_what_cannot_be_moved_is_one_line(
    source: str, target: str, status: int, words: str, tmp_path: Path
) -> None:
    await filled(f"sqlite:///{tmp_path}/a.db")
    empty = make_store(f"sqlite:///{tmp_path}/empty.db")
    await empty.open()
    await empty.close()
    (tmp_path / "text").write_text("A text that is long enough to be taken for a file of any kind. " * 20)
    (tmp_path / "text").chmod(0o600)
    assert words in assert_one_line(nomyo("move", source.format(tmp_path), target.format(tmp_path)), status)


async def test_a_bar_is_drawn_on_a_terminal_alone(tmp_path: Path) -> None:
    here = SQLiteFile(tmp_path / "a").url
    await filled(here)
    assert "Moving" in on_terminal("move", here, SQLiteFile(tmp_path / "b").url)
    assert "Moving" not in on_terminal("move", here, SQLiteFile(tmp_path / "c").url, "--json")


async def test_a_driver_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = SQLiteFile(tmp_path).url
    await filled(url)
    monkeypatch.setitem(EXTRAS, "postgres", ("no_such_package",))
    with pytest.raises(StartError, match=r"no_such_package.*uv sync"):
        await move_store(url, "postgresql://host/name", lambda _: lambda _: None)


def test_no_password_is_printed() -> None:
    assert shown("postgresql://me:secret@host:1/name") == "postgresql://…@host:1/name"
    assert shown("sqlite:///a/b@c.db") == "sqlite:///a/b@c.db"


async def test_a_disk_that_is_full_is_one_error_that_names_the_table(tmp_path: Path) -> None:
    store = make_store(SQLiteFile(tmp_path).url)
    await store.open()
    await store._database.run_writing(lambda sqlite: sqlite.execute("PRAGMA max_page_count = 20"))  # type: ignore[attr-defined]
    rows: list[CopiedRow] = [(f"name {number}", "x" * 1000) for number in range(1000)]
    with pytest.raises(CopyError, match=r"settings cannot be written: .*full"):
        await store.write_rows(TABLES[0], rows)
    assert await store.count_rows(TABLES[0]) == 0
    await store.close()
