"""The house stays as it was drawn: who may import whom."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pytest

import db
import router

ROOT = Path(__file__).parents[1]

# Each part of the house, and the parts that it may import. Imports go one way. `core.state` says what the application
# holds, so it knows all that has a lifetime; `core.reloading` acts on it. A part with a dot is that module, and not of
# the folder's rule.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "core.state": {"backends", "cache", "cluster.protocol", "core", "db"},
    "core.reloading": {"core", "core.state"},
    "requests": {"core"},
    "stores": {"core"},
    "db": {"core", "stores"},
    "cache": {"core", "stores"},
    # What is shared, and how, is known in there alone: all others know the protocol.
    "cluster": {"cluster.protocol", "core"},
    "cluster.protocol": {"core"},
    "backends": {"cluster.protocol", "core", "requests"},
    "api": {"backends", "cache", "cluster.protocol", "core", "core.state", "requests"},
    "router": {
        "api",
        "backends",
        "cache",
        "cluster",
        "cluster.protocol",
        "core",
        "core.reloading",
        "core.state",
        "db",
        "requests",
    },
    # What only the command line needs is imported by nothing else.
    "commands": {"backends", "cluster", "core", "db"},
    # Of `backends` the names of the kinds, which the settings are checked against.
    "serve": {"backends", "cluster", "core"},
}
PARTS = {part.partition(".")[0] for part in MAY_IMPORT}
# What is in the repo and no part of the service.
OUTSIDE = {"benchmarks", "demo", "docs", "tests"}


def sources(part: str) -> list[Path]:
    """The files of a part, without those that are a part of their own."""
    path = ROOT / part.replace(".", "/")
    if not path.is_dir():
        return [path.with_suffix(".py")]
    own = {ROOT / f"{other.replace('.', '/')}.py" for other in MAY_IMPORT if other.startswith(f"{part}.")}
    return sorted(set(path.rglob("*.py")) - own)


def imported(file: Path) -> set[str]:
    return imported_names(file.read_bytes(), str(file))


def imported_names(source: bytes, where: str) -> set[str]:
    """The top-level packages that a source imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source, where)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def imported_parts(file: Path) -> set[str]:
    """The parts of the house that a file imports: of `core.state` that one, of `core.config` all of `core`."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & MAY_IMPORT.keys()
            modules |= whole or {node.module or ""}
    return {module if module in MAY_IMPORT else module.partition(".")[0] for module in modules} & MAY_IMPORT.keys()


def test_every_part_of_the_house_is_drawn() -> None:
    files = {file.stem for file in ROOT.glob("*.py")}
    folders = {file.parent.name for file in ROOT.glob("[a-z]*/*.py")} - OUTSIDE
    assert files | folders == PARTS, "a part that the drawing does not know"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_go_one_way(part: str) -> None:
    for file in sources(part):
        wrong = imported_parts(file) - MAY_IMPORT[part] - {part}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_no_two_classes_have_one_name() -> None:
    where: dict[str, list[str]] = {}
    for part in MAY_IMPORT:
        for file in sources(part):
            for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    where.pop("Connection")  # Until the store stands on aiosqlite: it has one of its own.
    assert not {name: files for name, files in where.items() if len(files) > 1}


def test_memory_and_locks_are_shared_in_the_cluster_alone() -> None:
    shares = {"fcntl", "mmap", "multiprocessing"}
    # Between services, not between the processes of one.
    keeps_apart = ROOT / "stores" / "service_lock.py"
    for part in MAY_IMPORT.keys() - {"cluster"}:
        for file in sources(part):
            if file == keeps_apart:
                continue
            assert not imported(file) & shares, f"{file.relative_to(ROOT)} imports {sorted(imported(file) & shares)}"


def test_the_pure_half_does_nothing_to_the_world() -> None:
    world = {
        "aiosqlite",
        "asyncio",
        "fastapi",
        "httpx2",
        "io",
        "logging",
        "os",
        "pathlib",
        "socket",
        "sqlite3",
        "yaml",
    }
    for file in [*sources("requests"), ROOT / "core" / "errors.py"]:
        assert not imported(file) & world, f"{file.name} imports {sorted(imported(file) & world)}"


# Where HTTP goes out by a library, and whom it asks. Backends are asked by `backends/wire/http1.py`.
CLIENTS = {
    "backends/wire/outbound.py": "what a URL leads to that somebody else gave, each address checked",
    "commands/env.py": "the router that runs, by who types a command",
    "cluster/peers.py": "the other processes of this service, by Unix sockets or at addresses that they share",
}


def test_http_goes_out_in_few_places() -> None:
    asks = re.compile(
        r"\bhttp(x2|core2)\.\w*(Client|Transport|Pool|get|post|request|stream)\(|urllib\.request|http\.client\b"
    )
    files = [file for part in MAY_IMPORT for file in sources(part)]
    assert {str(file.relative_to(ROOT)) for file in files if asks.search(file.read_text())} == CLIENTS.keys()


# ── kinds of server ──────────────────────────────────────────────────────────────────────────────────────────────────


def asks_for_kinds(source: str) -> list[str]:
    """What in a source depends on which kind a server is: a comparison, a case or a key that is a kind's name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare():
                asked = [node.left, *node.comparators]
            case ast.Match():
                asked = [node.subject]
            case ast.Subscript():
                asked = [node.slice]
            case ast.Call(func=ast.Attribute(attr="get" | "startswith" | "endswith"), args=args):
                asked = [node.func, *args]
            case _:
                continue
        if any(re.search(r"\bkind(\.name|_name)\b|\.kind$", ast.unparse(one)) for one in asked):
            found.append(ast.unparse(node))
    return found


def test_none_outside_of_the_kinds_asks_which_kind_it_is() -> None:
    # `requests` knows no servers, and `core.config_checks` looks up the name that the settings have.
    for part in MAY_IMPORT.keys() - {"requests"}:
        for file in sources(part):
            if file.parent != ROOT / "backends" / "kinds" and file != ROOT / "core" / "config_checks.py":
                asks = asks_for_kinds(file.read_text())
                assert not asks, f"{file.relative_to(ROOT)} asks for a kind: {asks}"


@pytest.mark.parametrize(
    "source",
    [
        "endpoint.kind.name == 'ollama'",
        "config.kind != 'auto'",
        "NAMES.get(kind.name)",
        "NAMES[endpoint.kind.name]",
        "match kind.name:\n    case 'vllm': pass",
        "kind_name in ('a', 'b')",
    ],
)
def test_who_asks_for_a_kind_is_found(source: str) -> None:
    assert asks_for_kinds(source)


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────────────────────────

SQL = re.compile(
    r"(SELECT|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM|(CREATE|DROP|ALTER) (UNIQUE )?(TABLE|INDEX)"
    r"|WITH( RECURSIVE)? \w+ (\(.*\) )?AS|PRAGMA|BEGIN|VACUUM)\b"
)
DRIVERS = {"aiosqlite", "asyncpg", "hiredis", "psycopg", "redis", "sqlite3", "valkey"}


def test_no_module_outside_stores_holds_sql() -> None:
    found = {file: sorted(_sql_in(file)) for part in MAY_IMPORT if part != "stores" for file in sources(part)}
    assert len(list(_sql_in(ROOT / "stores" / "sqlite.py"))) > 10, "this test sees no SQL"
    assert not {str(file.relative_to(ROOT)): sql for file, sql in found.items() if sql}


def _sql_in(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        # By itself it is a command of Valkey's.
        if SQL.match(node.value.strip()) and node.value != "SELECT":
            yield node.value


def test_no_module_outside_stores_knows_a_database() -> None:
    for part in MAY_IMPORT.keys() - {"stores"}:
        for file in sources(part):
            known = imported(file) & DRIVERS
            # Workers and replicas of one service are no database; nor is Valkey, whose connection is there for all.
            is_allowed = part == "cluster" or (file == ROOT / "core" / "valkey.py" and known == {"hiredis"})
            assert not known or is_allowed, f"{file.relative_to(ROOT)} imports {sorted(known)}"


def test_every_verb_of_the_store_is_given_an_owner() -> None:
    """The default is for those who have one owner: a route that leaves it out would answer one owner with what is
    another's."""
    verbs = {name for name, verb in vars(db.Store).items() if callable(verb) and "owner" in signature(verb).parameters}
    assert {"store_response", "get_response", "get_history", "get_items", "delete_response"} <= verbs
    calls = 0
    for part in ("api", "router", "core", "core.state"):
        for file in sources(part):
            for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in verbs:
                    calls += 1
                    given = {keyword.arg for keyword in node.keywords}
                    assert "owner" in given, f"{file.relative_to(ROOT)}:{node.lineno} gives no owner"
    assert calls > 5, "this test sees no calls"


# ── one store ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_store_of_the_router_is_that_of_its_application() -> None:
    assert router.db is router.app.state.db


def test_the_store_is_not_the_module() -> None:
    for node in ast.walk(ast.parse((ROOT / "router.py").read_text())):
        names = [alias.asname or alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "db" not in names, "`import db` in router.py: `router.db` is the store"


# ── tests ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def hurries(source: str) -> list[str]:
    """Where a test gives up, or fails, because something took long: on a busy machine everything does."""

    def is_call(node: ast.AST, *names: str) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(names)

    found = []
    for node in ast.walk(ast.parse(source)):
        if is_call(node, "asyncio.timeout", "asyncio.wait_for"):
            assert isinstance(node, ast.Call)
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(value, ast.Constant) and isinstance(value.value, int | float) for value in given):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for (left, right), way in zip(pairwise(sides), node.ops, strict=True):
                took, limit = (left, right) if isinstance(way, ast.Lt | ast.LtE) else (right, left)
                measured = any(
                    is_call(part, ".monotonic", ".perf_counter", "loop.time", "loop().time") for part in ast.walk(took)
                )
                if measured and isinstance(limit, ast.Constant):
                    found.append(ast.unparse(node))
    return found


def test_no_test_fails_because_something_took_long() -> None:
    """`soon()` and `eventually()` of tests/turns.py wait for what must come; the fixture `clock` jumps over what must
    pass."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "clients" not in file.parts:
            assert not hurries(file.read_text()), f"{file.relative_to(ROOT)}: {hurries(file.read_text())}"


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("async with asyncio.timeout(2): pass", True),
        ("await asyncio.wait_for(x, timeout=0.5)", True),
        ("assert time.monotonic() - began < 0.5", True),
        ("assert 0.1 <= time.perf_counter() - began <= 3", True),
        ("assert 3 > asyncio.get_running_loop().time() - began", True),
        ("async with asyncio.timeout(dice.random()): pass", False),
        ("async with soon(): pass", False),
        ("await asyncio.wait_for(x, SOON_S)", False),
        ("assert time.monotonic() - began >= 0.3", False),
        ("assert waited <= time.monotonic() - began", False),
    ],
)
def test_tests_in_a_hurry_are_found(source: str, is_found: bool) -> None:
    assert bool(hurries(source)) is is_found
