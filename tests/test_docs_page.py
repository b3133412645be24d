"""/docs: Swagger UI, whose files come from the router itself."""

from __future__ import annotations

import re
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

import api.docs
from tests.conftest import Running
from tests.turns import assert_error


async def test_the_page_loads_nothing_from_another_host(served: Running) -> None:
    page = await served.http.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"""["'(](https?:)?//""", page.text), "an address of another host"
    loaded = re.findall(r"""(?:href|src)="(.*?)\"""", page.text)
    assert len(loaded) == 3
    for path in loaded:
        file = await served.http.get(path)
        assert file.status_code == 200
        assert len(file.content) == int(file.headers["content-length"]) > 500
        assert file.headers["content-type"].partition(";")[0] == api.docs.MEDIA_TYPES[path.rpartition("/")[2]]
        if path.endswith(".css"):
            assert not re.search(rb"@import|url\((?!data:|\"data:|'data:|#)", file.content)
    (document,) = re.findall(r"url: '(.*?)'", page.text)
    assert (await served.http.get(document)).json()["paths"]["/v1/responses"]


async def test_a_browser_would_not_let_the_page_ask_another_host(served: Running) -> None:
    policy = (await served.http.get("/docs")).headers["content-security-policy"]
    directives = {name: values for name, *values in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == ["'none'"]
    assert directives["frame-ancestors"] == ["'none'"]
    for values in directives.values():
        assert set(values) <= {"'none'", "'self'", "'unsafe-inline'", "data:"}


async def test_the_page_and_its_files_are_not_in_the_document(served: Running) -> None:
    paths = (await served.http.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path.startswith("/docs")]


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui-bundle.js"])
async def test_without_the_extra_the_page_names_it(path: str, served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.docs, "PACKAGE", "no_such_package")
    answer = await served.http.get(path)
    assert_error(answer, 404, code="docs_not_installed")
    assert "--extra docs" in answer.text
    assert (await served.http.get("/openapi.json")).status_code == 200


async def test_other_files_of_the_package_are_nobodys(served: Running) -> None:
    for path in (
        "/docs/main.py",
        "/docs/../main.py",
        "/docs/%2e%2e/main.py",
        "/docs/__init__.py",
        "/docs/oauth2-redirect",
    ):
        assert (await served.http.get(path)).status_code == 404


def test_the_package_brings_nothing_that_the_service_has_not() -> None:
    assert {Requirement(text).name for text in requires("fastapi-swagger") or ()} == {"fastapi"}
