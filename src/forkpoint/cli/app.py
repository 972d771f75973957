"""The command `forkpoint` and the options that come before the name of a command."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from forkpoint.cli import change, check, look, measure, move, retain, serve
from forkpoint.cli.groups import with_options
from forkpoint.cli.stores import StoreOptions
from forkpoint.cli.terminal import fail, prepare_streams
from forkpoint.opening import KEY_VARIABLE

_HELP = f"""Look into a store of LangGraph checkpoints, and operate it.

STORE is a path, sqlite:///path, or mongodb://host/database, and may come from FORKPOINT_STORE. The
classes of the application that wrote it need not be there. An encrypted store needs --encrypted,
and its key in {KEY_VARIABLE}.

Exit codes: 0 done; 1 found something: a difference, or damage; 2 wrong use, or no such thread; 3
the store cannot be reached or used. What removes asks first, or needs --yes.
"""

app = typer.Typer(
    name="forkpoint",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"forkpoint {metadata.version('forkpoint')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            help="The store.", metavar="STORE", envvar="FORKPOINT_STORE", show_envvar=True
        ),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(help="Whose threads alone there are for the command.", metavar="OWNER"),
    ] = None,
    encrypted: Annotated[
        bool, typer.Option("--encrypted", help="The values in the store are encrypted.")
    ] = False,
    collection: Annotated[
        str | None,
        typer.Option(
            help="The collection of a store in MongoDB, if not the default.", metavar="NAME"
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    ctx.obj = StoreOptions(store, owner, encrypted, collection)


class _Command(TyperCommand):
    """A command that says of an option of the store where it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)
            if name in _BEFORE:
                raise fail(
                    f"{name} stands before the command: forkpoint {name} ... {ctx.info_name}"
                ) from None
            raise


_BEFORE = ("--store", "--owner", "--encrypted", "--collection")
_COMMANDS = (look, measure, change, retain, move, check, serve)
for command in (command for group in _COMMANDS for command in group.COMMANDS):
    app.command(command.__name__.rstrip("_"), cls=_Command)(with_options(command))


def main() -> None:
    """Run the command that was typed, and end the process with its exit code."""
    prepare_streams()
    app(prog_name="forkpoint")
