"""What we depend on: declared, installed, and with no way to PyPI's `requests`, which ours hides. Extras are packages
that only some settings need."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core.errors import ConfigError
from core.extras import EXTRAS, need
from tests.test_architecture import MAY_IMPORT, PARTS, ROOT, imported, sources

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def distributions(requirements: list[str]) -> dict[str, Distribution]:
    """What these requirements bring, and all that they bring in turn, by name, as it is installed here."""
    # uv installs these for nobody.
    excluded = {canonicalize_name(name) for name in PYPROJECT["tool"]["uv"]["exclude-dependencies"]}
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    waiting = [requirement for requirement in waiting if not requirement.marker or requirement.marker.evaluate()]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name in excluded or (name, extra) in seen:
                continue
            seen.add((name, extra))
            found[name] = distribution(name)
            waiting += [
                inner
                for text in found[name].requires or []
                if not (inner := Requirement(text)).marker or inner.marker.evaluate({"extra": extra})
            ]
    return found


RUNTIME = distributions(PROJECT["dependencies"])
EVERYTHING = distributions([*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())])


# Where packages of extras are imported: in functions, or in modules that are imported where they are asked for.
OF_EXTRAS = {
    "core/valkey.py": {"hiredis"},
    "backends/mcp/program.py": {"anyio", "mcp", "mcp_types"},
    "backends/mcp/session.py": {"mcp"},
    "backends/mcp/tool_list.py": {"jsonschema"},  # With which the former reads schemas.
    "backends/web/readable.py": {"lxml"},
    "core/tracing.py": {"opentelemetry"},
    **{str(file.relative_to(ROOT)): {"psycopg"} for file in (ROOT / "stores").rglob("postgres*.py")},
}


def test_the_service_imports_nothing_that_it_does_not_depend_on() -> None:
    # `compression` is what Python 3.14 has instead of `backports`.
    known = {name.replace("-", "_") for name in RUNTIME} | {"yaml", "backports", "compression"}
    for part in MAY_IMPORT:
        for file in sources(part):
            foreign = imported(file) - PARTS - sys.stdlib_module_names
            foreign -= OF_EXTRAS.get(str(file.relative_to(ROOT)), set())
            assert foreign <= known, f"{file.relative_to(ROOT)} imports {sorted(foreign - known)}: not a dependency"


# ── extras ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_extra_is_known_with_the_modules_that_its_own_packages_bring() -> None:
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys()
    brought = packages_distributions()
    for extra, modules in EXTRAS.items():
        named = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"][extra]}
        named |= distributions(PROJECT["optional-dependencies"][extra]).keys()
        for module in modules:
            owners = {canonicalize_name(name) for name in brought[module.partition(".")[0]]}
            assert owners & named, f"{module} is of {owners}: the extra {extra} does not bring that"


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_setting_whose_extra_is_installed_is_let_through_and_nothing_is_imported(extra: str) -> None:
    program = f"""
import sys
from core.extras import EXTRAS, need
need({extra!r}, setting="some.setting")
print([module for module in EXTRAS[{extra!r}] if module in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


@pytest.mark.parametrize("absent", ["no_such_package", "no_such_package.inside", "sys.inside", "json.no_such_module"])
def test_a_setting_whose_extra_is_missing_is_one_line_with_the_command_to_type(
    absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXTRAS, "valkey", ("hiredis", absent))
    with pytest.raises(ConfigError) as raised:
        need("valkey", setting="cluster.url")
    assert str(raised.value) == (
        f"cluster.url: needs the package {absent}, which is not installed; type: "
        "uv sync --locked --inexact --extra valkey"
    )


def test_setup_and_the_image_install_every_extra() -> None:
    for file in ("Makefile", "Dockerfile"):
        (command,) = re.findall(r"\buv sync --locked .*", (ROOT / file).read_text())
        assert "--all-extras" in command.split(), f"{file}: {command}"


# ── the package called requests ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["get", "post", "Session", "exceptions"])
def test_who_takes_ours_for_pypis_requests_gets_an_error_that_names_it(name: str) -> None:
    import requests

    with pytest.raises(AttributeError, match=rf"requests\.{name}.*not PyPI's.*httpx2"):
        getattr(requests, name)
    assert not hasattr(requests, name)


def test_requests_is_ours_from_this_folder() -> None:
    where = "import requests; print(requests.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == ROOT / "requests" / "__init__.py"


def test_what_imports_pypis_requests_is_tried_in_an_environment_of_its_own() -> None:
    fuzz = tomllib.loads((ROOT / "tests" / "fuzz" / "pyproject.toml").read_text())
    assert [Requirement(text).name for text in fuzz["project"]["dependencies"]] == ["schemathesis"]
    lock = (ROOT / "uv.lock").read_text()
    for name in ("schemathesis", "requests"):
        assert f'name = "{name}"' not in lock
        assert f'name = "{name}"' in (ROOT / "tests" / "fuzz" / "uv.lock").read_text()


# Where something that we depend on imports PyPI's `requests`, and why we never come there. A file alone: the file is
# never imported; with a function: it is never called.
NEVER_REACHED = {
    "truststore/_api.py: inject_into_ssl": "replaces the TLS contexts of the whole process; ours are our own",
    "jsonschema/validators.py: _RefResolver.resolve_remote": "of RefResolver, which jsonschema keeps for who names it; "
    "mcp does not",
}


def imports_of_requests(source: bytes, where: str) -> Iterator[str]:
    """Where a source imports `requests`: `where`, and the function that it stands in, if any."""

    def walk(node: ast.AST, names: tuple[str, ...], in_function: bool) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            imports = isinstance(child, ast.Import) and any(
                alias.name.partition(".")[0] == "requests" for alias in child.names
            )
            if imports or (
                isinstance(child, ast.ImportFrom)
                and not child.level
                and (child.module or "").partition(".")[0] == "requests"
            ):
                yield f"{where}: {'.'.join(names)}" if in_function else where
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, (*names, child.name), True)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, (*names, child.name), in_function)
            else:
                yield from walk(child, names, in_function)

    yield from walk(ast.parse(source, where), (), False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import requests", ["f.py"]),
        ("import os, requests.adapters as a", ["f.py"]),
        ("try:\n    from requests import get\nexcept ImportError:\n    pass", ["f.py"]),
        ("class A:\n    import requests", ["f.py"]),
        ("def f():\n    import requests", ["f.py: f"]),
        ("class A:\n    async def f():\n        if x:\n            from requests.api import get", ["f.py: A.f"]),
        ("from . import requests\nfrom .requests import x\nimport requests_oauth\n'import requests'", []),
    ],
)
def test_imports_of_requests_are_found_wherever_they_stand(source: str, expected: list[str]) -> None:
    assert list(imports_of_requests(source.encode(), "f.py")) == expected


def test_nothing_that_we_depend_on_imports_pypis_requests_where_we_come() -> None:
    assert {"fastapi", "starlette", "uvicorn", "httpcore2", "truststore"} <= RUNTIME.keys(), "the walk found too little"
    brought = {"psycopg-binary", "hiredis", "jsonschema", "opentelemetry-sdk", "grpcio"}
    assert brought <= EVERYTHING.keys() - RUNTIME.keys(), "the walk found too little of the extras"
    assert "requests" not in EVERYTHING
    mentioned = re.compile(rb"\b(import|from) requests\b")
    found = set()
    for installed in EVERYTHING.values():
        for file in installed.files or []:
            path = Path(str(file.locate()))
            # The text first: to parse all of them takes long, and some only speak of it.
            if file.suffix == ".py" and path.is_file() and mentioned.search(text := path.read_bytes()):
                found |= set(imports_of_requests(text, file.as_posix()))
    assert found - NEVER_REACHED.keys() == set(), "imports PyPI's `requests`"
    assert NEVER_REACHED.keys() - found == set(), "is listed, and no longer there"


# What a setting that switches an extra on imports of it.
IN_USE = {
    "postgres": ["psycopg"],
    "valkey": ["hiredis"],
    "tools": ["mcp", "mcp.client.streamable_http", "mcp.client.stdio", "mcp.client.sse", "jsonschema"],
    "search": ["lxml", "lxml.etree"],
    "docs": [],  # Its files alone.
    "otel": [
        "opentelemetry.sdk.trace.export",
        "opentelemetry.sdk.metrics.export",
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "opentelemetry.exporter.otlp.proto.grpc.metric_exporter",
    ],
    "": ["httpx2", "httpcore2", "truststore"],
}

# Imports the modules that it is given, and prints who looked for `requests` meanwhile. It runs outside this folder,
# where that name stands for nothing: ours would answer the second import before any finder is asked.
LOOK = """
import importlib, json, sys, traceback

looked = []

class Watch:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "requests":
            looked.append([frame.filename for frame in traceback.extract_stack() if not frame.filename.startswith("<")])

sys.meta_path.insert(0, Watch)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps({"looked": looked, "files": [getattr(module, "__file__", None) for module in sys.modules.values()]}))
"""


def test_with_every_extra_in_use_nobody_looks_for_pypis_requests(tmp_path: Path) -> None:
    assert IN_USE.keys() - {""} == EXTRAS.keys()
    names = chain(*IN_USE.values())
    ran = subprocess.run(
        [sys.executable, "-I", "-c", LOOK, *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seen: dict[str, Any] = json.loads(ran.stdout)
    assert seen["looked"] == []
    never = [place for place in NEVER_REACHED if ": " not in place]
    loaded = [place for place in never if any(file and file.endswith(f"/{place}") for file in seen["files"])]
    assert loaded == [], "is imported in use, and imports PyPI's `requests`"
