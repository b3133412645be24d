"""Strict chat templates in a real llama.cpp server: it refuses in its own words, and the router answers all the
same."""

from pathlib import Path

import httpx2
import pytest

from demo.model_server import MODEL, running_model_server
from tests.conftest import running_router
from tests.turns import URL

pytestmark = pytest.mark.live

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
IN_THE_MIDDLE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Say hello."},
]


@pytest.mark.parametrize(
    ("template", "words", "adapted"),
    [
        ("system_first", "System message must be at the beginning", {"system_as_user"}),
        ("in_turns", "roles must alternate", {"system_as_user", "roles_in_turns"}),
        # llama.cpp itself puts the first into the user's message where a template takes none.
        ("no_system", "roles are supported, got system", {"system_as_user"}),
    ],
)
async def test_a_strict_template_answers(template: str, words: str, adapted: set[str]) -> None:
    with running_model_server(template=TEMPLATES / f"{template}.jinja") as url:
        messages = [{**item, "role": item["role"].replace("developer", "system")} for item in IN_THE_MIDDLE]
        asked = {"model": MODEL, "messages": [{"role": "system", "content": "You are X."}, *messages], "max_tokens": 4}
        async with httpx2.AsyncClient(base_url=url, timeout=30) as behind:
            refused = await behind.post("/v1/chat/completions", json=asked)
        assert refused.status_code >= 400
        assert words in refused.text
        async with running_router(endpoints=[{"url": url, "kind": "llama.cpp"}]) as running:
            for streaming in (False, True, False):
                body = {
                    "model": MODEL,
                    "instructions": "You are X.",
                    "input": IN_THE_MIDDLE,
                    "max_output_tokens": 4,
                    "stream": streaming,
                }
                answer = await running.http.post(URL, json=body, timeout=30)
                assert answer.status_code == 200, answer.text
                assert set(answer.headers["x-nomyo-adapted"].split(", ")) == adapted
