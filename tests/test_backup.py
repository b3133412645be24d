"""`./nomyo backup FILE`: a copy of a SQLite database that is being written to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from db import CopyError, back_up, make_store
from tests.test_command import assert_one_line, nomyo, on_terminal


def ignored(left: int, pages: int) -> None:
    """No bar."""


async def fill(url: str, turns: int, length: int = 2000) -> None:
    store = make_store(url)
    await store.open()
    for number in range(turns):
        await store_turn(store, number, length)
    await store.close()


async def store_turn(store, number: int, length: int = 2000) -> None:  # type: ignore[no-untyped-def]
    item = {"type": "message", "id": f"msg_{number}", "role": "user", "content": os.urandom(length // 2).hex()}
    response = {"id": f"resp_{number}", "status": "completed", "output": [item]}
    await store.store_response(
        f"resp_{number}",
        previous_response_id=f"resp_{number - 1}" if number else None,
        model="m",
        status="completed",
        created_at=1000 + number,
        input_messages=[item],
        response=response,
    )


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def rows_of(path: Path) -> list[tuple[str, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT id, output FROM responses ORDER BY number").fetchall()


async def test_a_copy_holds_all_that_is_kept_and_is_one_private_file(tmp_path: Path) -> None:
    source, copy = tmp_path / "router.db", tmp_path / "copy.db"
    await fill(url_of(source), 30)
    before = rows_of(source)
    ran = nomyo("backup", copy, "--database", url_of(source))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{copy}: ")
    assert rows_of(copy) == before == rows_of(source)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert set(os.listdir(tmp_path)) <= {"router.db", "router.db-wal", "router.db-shm", "copy.db"}


async def test_a_copy_made_while_turns_are_stored_is_whole_and_loses_none_of_those_before(tmp_path: Path) -> None:
    source, copy = tmp_path / "router.db", tmp_path / "copy.db"
    await fill(url_of(source), 300, length=40_000)
    store = make_store(url_of(source))
    await store.open()
    stored = 300
    steps = []
    # Whoever copies is another process in real life, and another thread here: it must not begin anew at each commit.
    copying = asyncio.create_task(
        asyncio.to_thread(
            back_up, url_of(source), copy, replace=False, progress=lambda left, pages: steps.append(pages - left)
        )
    )
    while not copying.done():
        await store_turn(store, stored)
        stored += 1
    await copying
    await store.close()
    assert stored > 301, "nothing was stored meanwhile"
    assert steps == sorted(steps), "it began anew"
    rows = rows_of(copy)
    assert 300 <= len(rows) <= stored
    assert rows == rows_of(source)[: len(rows)]
    reopened = make_store(url_of(copy))
    await reopened.open()
    assert (await reopened.get_history("resp_299")).missing is None
    await reopened.close()


async def test_a_program_reads_what_was_copied_as_json(tmp_path: Path) -> None:
    await fill(url_of(tmp_path / "router.db"), 1)
    ran = nomyo("backup", tmp_path / "copy.db", "--database", url_of(tmp_path / "router.db"), "--json")
    printed = json.loads(ran.stdout)
    assert printed == {
        "file": str(tmp_path / "copy.db"),
        "bytes": (tmp_path / "copy.db").stat().st_size,
        "database": url_of(tmp_path / "router.db"),
    }


async def test_a_bar_is_drawn_on_a_terminal_alone(tmp_path: Path) -> None:
    await fill(url_of(tmp_path / "router.db"), 1)
    arguments = ("--database", url_of(tmp_path / "router.db"))
    assert "Copying" in on_terminal("backup", tmp_path / "a.db", *arguments)
    assert "Copying" not in nomyo("backup", tmp_path / "b.db", *arguments).stderr


async def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    source, copy = tmp_path / "router.db", tmp_path / "copy.db"
    await fill(url_of(source), 2)
    copy.write_text("mine")
    line = assert_one_line(nomyo("backup", copy, "--database", url_of(source)), 4)
    assert "--replace" in line
    assert copy.read_text() == "mine"
    assert nomyo("backup", copy, "--database", url_of(source), "--replace").returncode == 0
    assert len(rows_of(copy)) == 2


async def test_the_database_is_never_replaced_by_its_own_copy(tmp_path: Path) -> None:
    source = tmp_path / "router.db"
    await fill(url_of(source), 2)
    inode = source.stat().st_ino
    assert_one_line(nomyo("backup", source, "--database", url_of(source), "--replace"), 4)
    assert source.stat().st_ino == inode


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("sqlite:///{}/none.db", 3, "no such database"),
        ("sqlite:///{}/text.db", 3, "is no SQLite database"),
        ("sqlite://", 1, "memory"),
        ("postgresql://host/name", 1, "pg_dump"),
        ("nonsense", 1, "SQLite alone"),
    ],
)
def test_what_cannot_be_copied_is_one_line(url: str, status: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("A text that is long enough to be taken for a file of any kind. " * 20)
    before = {file.name for file in tmp_path.iterdir()}
    line = assert_one_line(nomyo("backup", tmp_path / "copy.db", "--database", url.format(tmp_path)), status)
    assert words in line
    assert {file.name for file in tmp_path.iterdir()} == before


async def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    await fill(url_of(tmp_path / "router.db"), 1)
    line = assert_one_line(
        nomyo("backup", tmp_path / "no" / "copy.db", "--database", url_of(tmp_path / "router.db")), 1
    )
    assert "No such file or directory" in line


async def test_a_damaged_database_makes_no_copy(tmp_path: Path) -> None:
    source, copy = tmp_path / "router.db", tmp_path / "copy.db"
    await fill(url_of(source), 50)
    with source.open("r+b") as file:
        for page in range(3, source.stat().st_size // 4096, 2):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with pytest.raises(CopyError, match="damaged"):
        back_up(url_of(source), copy, replace=False, progress=ignored)
    assert not {name for name in os.listdir(tmp_path) if not name.startswith("router.db")}
