"""`./nomyo codex`: Codex's config.toml for this router, and a catalog of the models behind it.

Without a catalog Codex takes every model that it does not know for one of a large context: it compacts a conversation
too late, and its instructions alone fill a small one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from commands import Failed, json_option, print_json, print_line
from commands.env import KEY_VARIABLE, Model, Served, ask_router, router_options

CATALOG = "nomyo-models.json"
# Codex's own fill 4,000 tokens, and are written for its own models.
INSTRUCTIONS = """\
You are a coding agent in a terminal, working in the user's project. Do all that the user asks before you answer.

How to work:
- Look before you change: read the files that matter (rg, ls, sed -n), and follow the instructions of AGENTS.md files.
- Run commands with the tools that you are given. Call one when you need it; never write a call as text.
- Change files with small, exact edits, in the style that is there. Change nothing that was not asked for.
- Check what you did: run the tests or the program. When something fails, read the error and mend it.
- Never delete files, discard changes or commit unless the user asks for it.

How to answer: briefly, in plain text. What you did, in which files, how you checked it, and what is left.
"""
EFFORTS = {
    "low": "Quick answers with little thought",
    "medium": "Some thought",
    "high": "Much thought, for what is hard",
}
# Codex's tools and what it has read take some thousand tokens before the first answer.
ENOUGH = 32768
# Of what a command prints: this share of the context, and no more than Codex gives its own models.
OUTPUT_SHARE, MOST_OUTPUT = 8, 10_000


@click.command(short_help="Print Codex's config.toml, and write a catalog of the models.")
@router_options
@click.option("--model", metavar="MODEL", help="The model to begin with. Default: the one with the largest context.")
@click.option(
    "--catalog",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where the catalog is written. Default: {CATALOG} in Codex's folder (~/.codex, or CODEX_HOME).",
)
@json_option
def codex(url: str | None, key: str | None, model: str | None, catalog: Path | None, as_json: bool) -> None:
    """Prints the lines for Codex's config.toml, and writes a catalog of the models that the router serves: how long a
    context each has, whether it sees images, how much it can think. Again, when other models are there.

    \b
    Example:
      ./nomyo codex --model gpt-oss:20b
    """
    served = ask_router(url, key)
    models = [one for one in served.models if one.answers]
    if not models:
        raise Failed(f"the router at {served.url} has no models: ./nomyo check has the reason")
    chosen = _chosen(models, model)
    file = _place(catalog)
    entries = [_entry(one, priority) for priority, one in enumerate(sorted(models, key=lambda one: one != chosen), 1)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"models": entries}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Failed(f"{file}: cannot be written: {error.strerror}; give another place (--catalog)") from None
    if as_json:
        print_json({"catalog": str(file), "model": chosen.name, "models": [one._asdict() for one in models]})
    else:
        for line in config_toml(served, chosen, file):
            print_line(line)


def _chosen(models: list[Model], name: str | None) -> Model:
    """The model of a name, else the one with the largest context that can call tools. Raises `Failed`."""
    if name is None:
        return max(models, key=lambda one: (one.capabilities is None or one.can("tools"), one.context or 0))
    found = next((one for one in models if one.name == name), None)
    if found is None:
        raise Failed(f"there is no model '{name}'; there are: {', '.join(one.name for one in models)}")
    return found


def _place(catalog: Path | None) -> Path:
    """Where the catalog is written. Raises `Failed`."""
    file = catalog or Path(os.environ.get("CODEX_HOME") or "~/.codex") / CATALOG
    try:
        return file.expanduser().absolute()
    except RuntimeError:  # There is no home.
        raise Failed(f"{file}: there is no such home; give a place (--catalog)") from None


def config_toml(served: Served, model: Model, catalog: Path) -> list[str]:
    """The lines for ~/.codex/config.toml."""
    lines = [
        f"model = {_text(model.name)}",
        'model_provider = "nomyo"',
        f"model_catalog_json = {_text(str(catalog))}",
    ]
    if model.context is None:
        lines[:0] = [
            f"# Nobody knows yet how long a context {model.name} has: Ollama shows it once the model is loaded",
            f"# (`ollama run`; OLLAMA_CONTEXT_LENGTH sets it: Codex wants {ENOUGH} or more). Then run this again.",
        ]
    elif model.context < ENOUGH:
        lines[:0] = [
            f"# {model.name} has a context of {model.context} tokens, and Codex wants {ENOUGH} or more: its server",
            "# sets it (OLLAMA_CONTEXT_LENGTH, --ctx-size, --max-model-len). Then run this again.",
        ]
    lines += [
        "",
        "[model_providers.nomyo]",
        'name = "nomyo-router"',
        f"base_url = {_text(f'{served.url}/v1')}",
        'wire_api = "responses"',
    ]
    if served.asks_for_key:
        lines.append(f"env_key = {_text(KEY_VARIABLE)}    # the variable with a key of the router")
    return lines


def _text(value: str) -> str:
    """A basic string of TOML, which escapes as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _entry(model: Model, priority: int) -> dict[str, Any]:
    """A model as Codex's catalog has it."""
    thinks = model.can("thinking")
    output = min(MOST_OUTPUT, model.context // OUTPUT_SHARE) if model.context else MOST_OUTPUT
    return {
        "slug": model.name,
        "display_name": model.name,
        "description": "By nomyo-router",
        "base_instructions": INSTRUCTIONS,
        "context_window": model.context,
        "default_reasoning_level": "medium" if thinks else None,
        "supported_reasoning_levels": [
            {"effort": effort, "description": text} for effort, text in EFFORTS.items() if thinks
        ],
        "supports_reasoning_summaries": thinks,
        "support_verbosity": False,
        "input_modalities": ["text", "image"] if model.can("vision") else ["text"],
        "shell_type": "unified_exec",
        "truncation_policy": {"mode": "tokens", "limit": output},
        "experimental_supported_tools": [],
        "visibility": "list",
        "supported_in_api": True,
        "priority": priority,
    }


COMMAND = codex
