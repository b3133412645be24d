"""`./nomyo`: each command is a file here that ends in its `COMMAND`, and is found by the file's name.

    ./nomyo backup FILE ──▶ commands/backup.py ──▶ db, core       never imported by the service
    ./nomyo serve       ──▶ serve.py                              without a stop here

    Failed, Refused, StartError    one line on stderr, and the exit status of each
    print_json, print_line         what a command gives: stdout, colours only on a terminal (and without NO_COLOR)

Exit status: 0 done; 1 it was tried and failed; 2 the arguments are wrong; 3 what it needs is not there or cannot be
opened (settings, a database, a server); 4 refused, because it would harm what is there; 130 interrupted.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from core.errors import StartError
from core.json import encode_json

PROGRAM = "./nomyo"
FAILED, WRONG_ARGUMENTS, UNAVAILABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130


class Failed(click.ClickException):
    """It was tried, and failed: one line, with what to do."""

    exit_code = FAILED


class Refused(Failed):
    """It would harm what is there: one line, with the way out."""

    exit_code = REFUSED


class Stopped(Failed):
    """Somebody has ended it: one line about where it stands."""

    exit_code = INTERRUPTED


class Commands(click.Group):
    """All files of this folder. One is loaded when it is asked for, and all for the list of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(name.replace("_", "-") for _, name, _ in pkgutil.iter_modules(__path__) if name != "__main__")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, or None where there is no such file."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name.replace('-', '_')}").COMMAND
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def nomyo() -> None:
    """nomyo-router on the command line.

    \b
    Example:
      ./nomyo serve --port 8080
    """


json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, for programs."
)


def print_json(value: Any) -> None:
    """A value as one line of JSON."""
    click.echo(encode_json(value))


def print_line(text: str, **style: Any) -> None:
    """One line, whatever the text holds; `style` as click.style has it, left out where nobody sees colours."""
    click.secho(one_line(text), **style)


def one_line(text: str) -> str:
    """A text without what ends a line or moves a terminal: servers name their models as they like, and a shell may
    read what is printed."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the arguments name (those of the process, if None), and exits with its status."""
    # https://no-color.org
    color = False if os.environ.get("NO_COLOR") else None
    try:
        status = nomyo.main(arguments, PROGRAM, standalone_mode=False, color=color)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True, color=color)
        sys.exit(WRONG_ARGUMENTS)
    except click.ClickException as error:
        _print_error(error.format_message(), getattr(error, "ctx", None), color)
        sys.exit(error.exit_code)
    except StartError as error:
        _print_error(str(error), None, color)
        sys.exit(UNAVAILABLE)
    except (click.Abort, KeyboardInterrupt):
        _print_error("interrupted", None, color)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Who reads, as `head` does, has read enough. Python would complain of what is still to be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def _print_error(message: str, context: click.Context | None, color: bool | None) -> None:
    """One line on stderr; a wrong argument with the command whose help has the right ones."""
    words = " ".join(message.split())
    where = f" ({context.command_path} --help)" if context else ""
    click.echo(click.style("nomyo: ", fg="red") + one_line(words) + where, err=True, color=color)
