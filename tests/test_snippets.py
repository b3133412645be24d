"""What the documentation has one paste works: settings, Python, shell, curl."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shlex
import tomllib
from contextlib import AsyncExitStack
from pathlib import Path

import click
import httpx2
import jsonschema_rs
import pytest
from ollama import Client
from openai import OpenAI

import commands
from backends.kinds import KINDS
from core.config_file import load_config
from core.config_schema import settings_schema
from core.yaml import read_yaml
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend
from tests.snippets import ROUTER, Snippet, imports, models, snippets

CHECK = jsonschema_rs.validator_for(settings_schema(KINDS))
# Of other Python: tests/clients/test_documented.py.
HERE = {"openai", "ollama", "time"}


def place(snippet: Snippet) -> str:
    return snippet.place


@pytest.fixture
async def documented(stack: AsyncExitStack, backend: FakeBackend) -> Running:
    """A router that serves every model that the documentation names."""
    backend.models = sorted({name for snippet in snippets("python", "js", "sh") for name in models(snippet)})
    assert "llama3.2:1b" in backend.models
    backend.models += ["gpt-oss:20b", "qwen3:32b"]
    return await stack.enter_async_context(running_router(endpoints=[{"url": backend.url, "kind": "vllm"}]))


@pytest.mark.parametrize("snippet", snippets("yaml"), ids=place)
def test_settings_are_right_for_the_router_and_for_an_editor(snippet: Snippet, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(snippet.text)
    variables = {name: f"secret-{name}" for name in re.findall(r"\$\{(\w+)", snippet.text)}
    load_config(tmp_path / "config.yaml", variables, KINDS)
    assert list(CHECK.iter_errors(read_yaml(snippet.text))) == []


@pytest.mark.parametrize("snippet", snippets("toml"), ids=place)
def test_toml_is_toml(snippet: Snippet) -> None:
    assert tomllib.loads(snippet.text)


@pytest.mark.parametrize("snippet", [one for one in snippets("python") if imports(one) <= HERE], ids=place)
async def test_python_runs_as_it_stands(snippet: Snippet, documented: Running, backend: FakeBackend) -> None:
    assert ROUTER in snippet.text
    program = compile(snippet.text.replace(ROUTER, documented.url), snippet.place, "exec")

    def run() -> str:
        names: dict[str, object] = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, names)
        for client in names.values():
            if isinstance(client, OpenAI | Client):
                client.close()
        return printed.getvalue()

    assert await asyncio.to_thread(run)
    assert backend.turns


def lines(start: str) -> list[str]:
    """The commands in all snippets of the shell that begin so, without what goes before or behind them."""
    written = [line for snippet in snippets("sh") for line in snippet.text.replace("\\\n", " ").splitlines()]
    found = [
        re.split(r"\)\"|\s[|>#]|;|,\s[a-z]", line[line.index(start) :])[0].strip() for line in written if start in line
    ]
    assert found
    return sorted(set(found))


@pytest.mark.parametrize("line", lines("./nomyo"))
def test_commands_take_these_arguments(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command: click.Command | None = commands.nomyo
    context = click.Context(commands.nomyo)
    if name == "serve":
        return  # serve.py has its own.
    while isinstance(command, click.Group):
        command = command.get_command(context, name)
        assert command is not None, name
        if isinstance(command, click.Group):
            if not arguments:
                return
            name, *arguments = arguments
    command.make_context(name, [argument for argument in arguments if argument != "…"])


@pytest.mark.parametrize("line", [line for line in lines("curl ") if ROUTER in line and "/v1/" in line])
async def test_curl_gets_an_answer(line: str, documented: Running) -> None:
    words = shlex.split(line)
    url = next(word for word in words if word.startswith(ROUTER)).replace(ROUTER, documented.url)
    body = json.loads(words[words.index("-d") + 1])
    async with httpx2.AsyncClient(verify=False) as client:
        answer = await client.post(url, json=body)
    assert answer.status_code == 200, answer.text
