"""The command that serves a store over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli.stores import opened
from forkpoint.cli.terminal import fail
from forkpoint.errors import MissingLibrary


def serve(
    ctx: typer.Context,
    graph: Annotated[
        list[str] | None,
        typer.Option(
            help="A compiled graph: name=module:graph, or name=path.py:graph.", metavar="GRAPH"
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.", min=0, max=65535, metavar="PORT")] = 8765,
    keys: Annotated[
        Path | None,
        typer.Option(help='API keys in a JSON file: {"key": "identity"}.', metavar="FILE"),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Pages of this origin may use it from a browser.", metavar="ORIGIN"),
    ] = None,
) -> None:
    """Serve the threads over HTTP.

    It answers what the clients of LangGraph Platform ask. Without keys it answers this machine
    only. With them, each identity has threads of its own.
    """
    try:
        from forkpoint.server import serving
    except MissingLibrary as error:
        raise fail(str(error)) from None
    with opened(ctx) as store:
        serving.serve(
            store.catalog,
            graphs=graph or (),
            host=host,
            port=port,
            keys=keys,
            origins=origin or (),
        )


COMMANDS = (serve,)
