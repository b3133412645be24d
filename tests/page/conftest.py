"""A browser for the tests of the page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial

import pytest
import uvicorn

from tests.page.chromium import ABSENT, Chromium

# Where these tests must run (.ci/run), one that cannot is a failure.
MUST_RUN = "PAGE_TESTS_MUST_RUN"


@pytest.fixture(autouse=True)
def stops_as_the_service_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind uvicorn's reading of `X-Forwarded-…`, which serve.py leaves out, a stop does not come through to a page
    that is open."""
    monkeypatch.setattr("tests.conftest.uvicorn.Config", partial(uvicorn.Config, proxy_headers=False))


@pytest.fixture
async def browser() -> AsyncIterator[Chromium]:
    """A Chromium of the test's own. What its tabs complain of fails the test."""
    if ABSENT:
        (pytest.fail if os.environ.get(MUST_RUN) else pytest.skip)(ABSENT)
    async with Chromium() as browser:
        yield browser
        complaints = browser.complaints()
    assert not complaints, complaints
