"""Commands that move threads: archive, restore, import."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from langgraph.checkpoint.base import BaseCheckpointSaver

from forkpoint.cli.arguments import moment
from forkpoint.cli.groups import Selection
from forkpoint.cli.stores import as_typed, opened, saver_of
from forkpoint.cli.terminal import FOUND, JsonFlag, Tell, emit, ending_with, progress, say
from forkpoint.errors import SourceError
from forkpoint.pictures.text import count_of, printable
from forkpoint.transfer import (
    KINDS,
    TransferProgress,
    TransferReport,
    archive_threads,
    import_threads,
    restore_threads,
)
from forkpoint.transfer.opening import Threads
from forkpoint.transfer.sources import Kind
from forkpoint.untrusted import shown

ArchivePath = Annotated[
    Path, typer.Argument(metavar="FILE", help="The archive; compressed if named .gz or .zst.")
]
SourceName = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A path, a connection string, a store as --store takes it, or module:factory.",
    ),
]
CreateFlag = Annotated[bool, typer.Option("--create", help="Make the store if there is none.")]


def archive(
    ctx: typer.Context, file: ArchivePath, selection: Selection, as_json: JsonFlag = False
) -> None:
    """Append threads to an archive.

    They stay in the store. The values are archived as they are stored: encrypted if they are. The
    exit code is 1 if a thread could not be archived.
    """
    chosen = selection.filter()
    with opened(ctx) as store:
        with progress("archiving") as tell:
            report = archive_threads(store.catalog, file, chosen, on_progress=_telling(tell))
        _show_report("archived", report, as_json)


def restore(
    ctx: typer.Context,
    file: ArchivePath,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Only this thread, or these.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="ID=NEW-ID", help="Restore a thread under another id."),
    ] = None,
    create: CreateFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Restore threads from an archive, as they were.

    A thread whose id is taken is left out, and so is what is damaged: then the exit code is 1.
    """
    rename = dict(map(_renamed, names or ()))
    with opened(ctx, may_make=create) as store:
        with progress("restoring") as tell:
            report = restore_threads(
                store.catalog, file, threads=ids, rename=rename, on_progress=_telling(tell)
            )
        _show_report("restored", report, as_json)


def import_(
    ctx: typer.Context,
    source: SourceName,
    kind: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="KIND",
            help=f"What SOURCE is: {', '.join(KINDS)}.",
            autocompletion=lambda: list(KINDS),
        ),
    ],
    selection: Selection,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only threads active then or later.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare what was imported, state by state.")
    ] = False,
    create: CreateFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Import threads from another saver, or another store.

    Nothing is written to the source. An import that was stopped goes on where it was. The exit code
    is 1 if something could not be imported, or differs. Only a store of forkpoint's own can be
    filtered by more than --id and --since.
    """
    start = None if since is None else moment(since)
    with opened(ctx, may_make=create) as store, _source(ctx, source, kind) as given:
        with progress("importing") as tell:
            report = import_threads(
                given,
                store.catalog,
                kind=cast(Kind, kind),
                threads=_threads(selection, kind),
                since=start,
                verify=verify,
                on_progress=_telling(tell),
            )
        _show_report("imported", report, as_json)


@contextmanager
def _source(ctx: typer.Context, source: str, kind: str) -> Iterator[Any]:
    """Yield what threads are imported from, and close it if it was made here."""
    if kind == "forkpoint":
        with saver_of(ctx.obj, source) as saver:
            yield saver if ctx.obj.owner is None else saver.for_owner(ctx.obj.owner)
    elif kind == "saver":
        yield _made_by(source)
    else:
        yield source


def _made_by(name: str) -> BaseCheckpointSaver[Any]:
    """Return what a factory makes, that is named `module:factory`."""
    module, colon, factory = name.partition(":")
    if not colon:
        raise typer.BadParameter(f"{name!r} is not of the form module:factory")
    sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        made = getattr(importlib.import_module(module), factory)
    except Exception as error:  # noqa: BLE001 - a module of anyone's may raise anything
        raise typer.BadParameter(f"{name!r} cannot be imported: {shown(error)}") from None
    if isinstance(made, BaseCheckpointSaver):
        return made
    if not callable(made):
        raise typer.BadParameter(f"{name!r} is neither a saver nor a function that makes one")
    try:
        return made()  # type: ignore[no-any-return]
    except Exception as error:
        raise SourceError(f"{name!r} makes no saver: {shown(error)}") from error


def _threads(selection: Selection, kind: str) -> Threads:
    if selection.is_of_ids_only:
        return selection.ids or None
    if kind != "forkpoint":
        raise typer.BadParameter("another saver's threads are filtered by --id and --since only")
    return selection.filter()


def _renamed(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not of the form ID=NEW-ID")
    return old, new


def _telling(tell: Tell) -> Callable[[TransferProgress], None]:
    def progressed(far: TransferProgress) -> None:
        what = "compared" if far.is_verifying else "read"
        tell(f"{count_of(far.checkpoints, 'checkpoint')} {what}", far.threads, far.total)

    return progressed


def _show_report(what: str, report: TransferReport, as_json: bool) -> None:
    """Print what came of moving threads.

    Raises:
        Exit: Something failed, was damaged or differs.
    """
    with ending_with(0 if report.is_complete else FOUND):
        _print_report(what, report, as_json)


def _print_report(what: str, report: TransferReport, as_json: bool) -> None:
    failed = {thread_id: as_typed(str(error)) for thread_id, error in report.failed.items()}
    damaged = [str(error) for error in report.damaged]
    if as_json:
        emit({**vars(report), "failed": failed, "damaged": damaged})
    else:
        for thread_id, reason in failed.items():
            say(f"not {what}  {printable(thread_id)}: {printable(reason)}")
        for reason in damaged:
            say(f"damaged  {printable(reason)}")
        for found in report.differences:
            place = ", ".join(filter(None, (found.checkpoint_ns, found.checkpoint_id)))
            say(f"differs  {printable(f'{found.thread_id} at {place}: {found.what}')}")
        parts = [f"{count_of(report.threads, 'thread')} {what}"]
        parts += [f"{report.unchanged} there already"] * bool(report.unchanged)
        parts.append(count_of(report.checkpoints, "checkpoint"))
        parts.append(count_of(report.writes, "write"))
        parts += [f"{report.verified} compared"] * bool(report.verified)
        say(", ".join(parts))


COMMANDS = (archive, restore, import_)
