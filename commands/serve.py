"""`./nomyo serve`, for the list of commands: `nomyo` itself goes to serve.py at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

SERVE = Path(__file__).parents[1] / "serve.py"


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Start the service; all options of serve.py.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Becomes serve.py, with the same options."""
    os.execv(sys.executable, [sys.executable, str(SERVE), *options])


COMMAND = serve
