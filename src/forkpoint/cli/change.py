"""Commands that make threads or remove of them: fork, clone, rollback, trim, purge, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from forkpoint.catalog.arguments import UNCHANGED
from forkpoint.cli.arguments import PLACE, PLACE_HELP, config_at, pairs
from forkpoint.cli.groups import Selection
from forkpoint.cli.look import ThreadId, check_exists
from forkpoint.cli.stores import opened
from forkpoint.cli.terminal import (
    JsonFlag,
    YesFlag,
    confirm,
    emit,
    in_bytes,
    progress,
    say,
)
from forkpoint.pictures.text import count_of, printable
from forkpoint.results import PurgeReport

NewId = Annotated[str | None, typer.Option("--as", metavar="ID", help="The id of the new thread.")]


def fork(
    ctx: typer.Context,
    place: Annotated[str, typer.Argument(metavar=PLACE, help=PLACE_HELP)],
    new_id: NewId = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="CHANNEL=VALUE", help="Replace the value of a channel."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Say this of the new thread."),
    ] = None,
    path: Annotated[
        bool, typer.Option("--path", help="With the checkpoints that led there.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fork a thread at a checkpoint, and print the new id.

    The new thread goes on from there. No content is copied.
    """
    with opened(ctx) as store:
        config = store.saver.fork(
            config_at(store.saver, place),
            new_thread_id=new_id,
            values=pairs(values) or None,
            metadata=pairs(metadata) or None,
            history="path" if path else "head",
        )
        _show_id(config["configurable"]["thread_id"], as_json)


def clone(
    ctx: typer.Context,
    thread: ThreadId,
    new_id: NewId = None,
    label: Annotated[
        str | None, typer.Option(help="Its label, if not the same.", metavar="TEXT")
    ] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="Its tags, if not the same.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Say this of the new thread, too."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Copy a thread with its history, and print the new id.

    No content is copied.
    """
    with opened(ctx) as store:
        with progress("cloning"):
            made = store.catalog.clone(
                thread,
                new_id,
                label=UNCHANGED if label is None else label,
                tags=tags or UNCHANGED,
                metadata=pairs(metadata) or None,
            )
        _show_id(made.thread_id, as_json)


def _show_id(thread_id: str, as_json: bool) -> None:
    emit({"thread_id": thread_id}) if as_json else say(printable(thread_id))


def rollback(
    ctx: typer.Context,
    thread: ThreadId,
    steps: Annotated[int, typer.Option(help="How many checkpoints.", metavar="N")] = 1,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove the newest checkpoints of a thread.

    The one before becomes its newest, and the step after it runs again.
    """
    with opened(ctx) as store:
        check_exists(store, thread)
        confirm(f"Remove the newest {count_of(steps, 'checkpoint')} of thread {thread!r}?", yes)
        with progress("rolling back"):
            config = store.saver.rollback(thread, steps)
        newest = [] if config is None else store.saver.list(config, limit=1, values=False)
        head = next((item.checkpoint["id"] for item in newest), None)
        if as_json:
            emit({"thread_id": thread, "checkpoint_id": head})
        elif head is None:
            say("no checkpoint is left, and no thread")
        else:
            say(f"the newest checkpoint is {printable(head)}")


def trim(
    ctx: typer.Context,
    thread: ThreadId,
    keep: Annotated[
        int, typer.Option(help="How many checkpoints of each namespace stay.", metavar="N")
    ],
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove the old checkpoints of a thread.

    The state of those that stay is as it was.
    """
    with opened(ctx) as store:
        check_exists(store, thread)
        kept = count_of(keep, "checkpoint")
        confirm(f"Remove all but the newest {kept} of thread {thread!r}?", yes)
        with progress("trimming"):
            report = store.saver.trim(thread, keep)
        _show_report(report, as_json)


def purge(
    ctx: typer.Context, thread: ThreadId, yes: YesFlag = False, as_json: JsonFlag = False
) -> None:
    """Remove a thread with its whole history.

    Its forks and clones stay as they are.
    """
    with opened(ctx) as store:
        check_exists(store, thread)
        confirm(f"Remove thread {thread!r} with its whole history?", yes)
        with progress("purging"):
            report = store.saver.purge(thread)
        _show_report(report, as_json)


def delete(
    ctx: typer.Context,
    selection: Selection,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many threads there are.")
    ] = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete the threads that match, and say how many.

    Those that are busy stay. Some filter is needed.
    """
    chosen = selection.filter()
    if selection.is_empty:
        raise typer.BadParameter("which threads? Pass --id, --tag, --status or another filter")
    with opened(ctx) as store:
        matching = store.catalog.bulk_delete(chosen, dry_run=True)
        if dry_run:
            _show_count("matching", matching, as_json)
            return
        deleted = 0
        if matching:  # else nobody was asked: what matches from now on stays
            confirm(f"Delete {count_of(matching, 'thread')} with all their checkpoints?", yes)
            with progress("deleting"):
                deleted = store.catalog.bulk_delete(chosen)
        _show_count("deleted", deleted, as_json)


def _show_count(what: str, count: int, as_json: bool) -> None:
    emit({what: count}) if as_json else say(f"{count_of(count, 'thread')} {what}")


def _show_report(report: PurgeReport, as_json: bool) -> None:
    if as_json:
        emit(report)
        return
    say(
        f"removed {count_of(report.checkpoints, 'checkpoint')}, {count_of(report.writes, 'write')} "
        f"and {count_of(report.chunks, 'chunk')} of {in_bytes(report.bytes)}"
    )


COMMANDS = (fork, clone, rollback, trim, purge, delete)
