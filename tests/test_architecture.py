"""The house stays as it was drawn: who may import whom, and no way to PyPI's `requests`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

import router

ROOT = Path(__file__).parents[1]

# Each part of the house, and the parts that it may import. Imports go one way. `core.state` says what the application holds, so it
# knows all that has a lifetime; `core.reloading` acts on it. A part with a dot is that module, and not of the folder's rule.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "core.state": {"backends", "cache", "cluster", "core", "db"},
    "core.reloading": {"core", "core.state"},
    "requests": {"core"},
    "stores": {"core"},
    "db": {"core", "stores"},
    "cache": {"core", "stores"},
    "cluster": {"core"},
    "backends": {"core", "requests"},
    "api": {"backends", "cache", "core", "core.state", "requests"},
    "router": {"api", "backends", "cache", "cluster", "core", "core.reloading", "core.state", "db", "requests"},
    "serve": {"cluster", "core"},
}
PARTS = {part.partition(".")[0] for part in MAY_IMPORT}
# What is in the repo and no part of the service.
OUTSIDE = {"benchmarks", "demo", "tests"}


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


def test_the_pure_half_does_nothing_to_the_world() -> None:
    world = {
        "aiohttp",
        "aiosqlite",
        "asyncio",
        "fastapi",
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


def test_the_service_imports_nothing_that_it_does_not_depend_on() -> None:
    known = {name.replace("-", "_").lower() for name, _ in runtime_distributions()} | {"yaml"}
    for part in MAY_IMPORT:
        for file in sources(part):
            foreign = imported(file) - PARTS - sys.stdlib_module_names
            assert foreign <= known, f"{file.relative_to(ROOT)} imports {sorted(foreign - known)}: not a dependency"


# ── one store ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_store_of_the_router_is_that_of_its_application() -> None:
    assert router.db is router.app.state.db


def test_the_store_is_not_the_module() -> None:
    for node in ast.walk(ast.parse((ROOT / "router.py").read_text())):
        names = [alias.asname or alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert "db" not in names, "`import db` in router.py: `router.db` is the store"


# ── the package called requests ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["get", "post", "Session", "exceptions"])
def test_who_takes_ours_for_pypis_requests_is_told(name: str) -> None:
    import requests

    with pytest.raises(AttributeError, match=rf"requests\.{name}.*not PyPI's.*aiohttp"):
        getattr(requests, name)
    assert not hasattr(requests, name)


def test_requests_is_ours_from_this_folder() -> None:
    where = "import requests; print(requests.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == ROOT / "requests" / "__init__.py"


def runtime_distributions() -> Iterator[tuple[str, Distribution]]:
    """What the service depends on, and all that they depend on, as it is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = list(project["dependencies"])
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")  # type: ignore[index]
        # What only an extra or another system needs may be missing here.
        if name in seen or re.search(r"\bextra\b", requirement):
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except ModuleNotFoundError:
            assert ";" in requirement, f"{name} is not installed"
            continue
        yield name, found
        waiting += found.requires or []


def test_no_runtime_dependency_imports_pypis_requests() -> None:
    installed = dict(runtime_distributions())
    assert {"aiohttp", "fastapi", "starlette", "uvicorn", "yarl"} <= installed.keys(), "the walk found too little"
    assert "requests" not in installed
    mentioned = re.compile(rb"\b(import|from) requests\b")
    for name, found in installed.items():
        for file in found.files or []:
            path = Path(str(file.locate()))
            # The text first: to parse all of them takes long, and some only speak of it.
            if file.suffix == ".py" and path.is_file() and mentioned.search(text := path.read_bytes()):
                assert "requests" not in imported_names(text, str(file)), f"{name} imports it in {file}"
