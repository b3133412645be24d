"""`./nomyo schema`: the JSON Schema of the settings, for an editor."""

from __future__ import annotations

import json

import click

from backends.kinds import KINDS
from core.config_schema import settings_schema


@click.command(short_help="Print the JSON Schema of the settings, for editors.")
def schema() -> None:
    """Prints the JSON Schema of the settings. An editor completes the keys of a config.yaml and underlines mistakes,
    if the first line is `# yaml-language-server: $schema=settings.schema.json`.

    \b
    Example:
      ./nomyo schema > settings.schema.json
    """
    click.echo(json.dumps(settings_schema(KINDS), indent=2, ensure_ascii=False))


COMMAND = schema
