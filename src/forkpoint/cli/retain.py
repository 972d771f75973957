"""Commands that keep a store as it should be: retain, sweep, migrate."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from forkpoint.catalog.retention import RetentionPolicy, RetentionResult
from forkpoint.cli.arguments import duration
from forkpoint.cli.groups import Selection
from forkpoint.cli.stores import opened
from forkpoint.cli.terminal import (
    FOUND,
    JsonFlag,
    Tell,
    YesFlag,
    complain,
    confirm,
    emit,
    ending_with,
    progress,
    say,
)
from forkpoint.errors import ForkpointError
from forkpoint.pictures.text import count_of, printable
from forkpoint.storage.interface import SCHEMA_VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ArchiveFile = Annotated[
    Path | None,
    typer.Option(
        "--archive", help="Append each thread to this file before it is deleted.", metavar="FILE"
    ),
]

_LONGEST_WAIT_SECONDS = 1.0
_DURATIONS = ("max_age", "max_idle", "max_checkpoint_age")


@dataclass(frozen=True)
class PolicyOptions:
    """The rules of a retention policy."""

    max_age: Annotated[
        str | None, typer.Option(help="Delete threads made longer ago.", metavar="LENGTH")
    ] = None
    max_idle: Annotated[
        str | None, typer.Option(help="Delete threads not active for longer.", metavar="LENGTH")
    ] = None
    max_checkpoints_per_thread: Annotated[
        int | None,
        typer.Option("--max-checkpoints", help="Keep so many of each namespace.", metavar="N"),
    ] = None
    max_checkpoint_age: Annotated[
        str | None, typer.Option(help="Remove checkpoints made longer ago.", metavar="LENGTH")
    ] = None
    expired: Annotated[bool, typer.Option("--expired", help="Do what a sweep does.")] = False
    keep_tags: Annotated[
        list[str] | None,
        typer.Option("--keep-tag", help="Leave threads with this tag alone.", metavar="TAG"),
    ] = None
    policy: Annotated[
        Path | None,
        typer.Option(
            help="A TOML file with these rules: max_idle = '90d', and so on.", metavar="FILE"
        ),
    ] = None

    def rules(self) -> RetentionPolicy:
        """Return the policy. What is typed counts more than what the file says.

        Raises:
            BadParameter: The file cannot be read, or says something else.
        """
        said = {} if self.policy is None else _read(self.policy)
        said |= {
            name: value
            for name in _NAMES
            if (value := getattr(self, name)) is not None and value is not False
        }
        for name in _DURATIONS:
            if name in said:
                said[name] = duration(str(said[name]))
        if not said.keys() - {"keep_tags"}:
            raise typer.BadParameter(
                "which threads? Pass --max-age, --max-idle, --max-checkpoints, "
                "--max-checkpoint-age or --expired, or name them in a --policy"
            )
        return RetentionPolicy(**said)


_NAMES = tuple(field.name for field in dataclasses.fields(RetentionPolicy))


def _read(path: Path) -> dict[str, Any]:
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(f"the policy {str(path)!r} cannot be read: {error}") from None
    unknown = sorted(said.keys() - set(_NAMES))
    if unknown:
        raise typer.BadParameter(
            f"the policy {str(path)!r} has {unknown[0]!r}; its keys are {', '.join(_NAMES)}"
        )
    return said


def retain(
    ctx: typer.Context,
    rules: PolicyOptions,
    selection: Selection,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    archive: ArchiveFile = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete and trim threads by a policy.

    Those that are busy stay. A LENGTH is such as 90d, 12h or 1d12h. The exit code is 1 if threads
    could not be archived.
    """
    policy, chosen = rules.rules(), selection.filter()
    with opened(ctx) as store:

        def apply(is_dry: bool) -> RetentionResult:
            with progress("looking" if is_dry else "retaining") as tell:
                return store.catalog.apply_retention(
                    policy,
                    chosen,
                    dry_run=is_dry,
                    archive=archive,
                    on_progress=_telling(tell),
                )

        asks = not (dry_run or yes)
        result = apply(dry_run or asks)
        if (result.deleted or result.trimmed) and asks:
            deleted, trimmed = len(result.deleted), len(result.trimmed)
            confirm(f"Delete {deleted} and trim {trimmed} threads?", yes)
            result = apply(False)
        _show_result(dataclasses.replace(result, dry_run=dry_run), as_json)


def sweep(
    ctx: typer.Context,
    every: Annotated[
        str | None,
        typer.Option(metavar="LENGTH", help="Sweep again and again, until the command is stopped."),
    ] = None,
    archive: ArchiveFile = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete the threads that have expired.

    Those with `on_expiry="keep_latest"` are trimmed instead. With --every, as in `--every 1h`, each
    sweep prints what it did, and one that fails is followed by the next. SIGINT or SIGTERM ends the
    command after the sweep that is going on.
    """
    interval = None if every is None else duration(every).total_seconds()
    if interval == 0:
        raise typer.BadParameter("--every must be longer than no time at all")
    with opened(ctx) as store:
        confirm("Delete or trim the threads that have expired?", yes)

        def once() -> None:
            with progress("sweeping") as tell:
                result = store.catalog.sweep(archive=archive, on_progress=_telling(tell))
            _show_result(result, as_json)

        if interval is None:
            once()
            return
        with _stopped_by_signals() as stopped:
            while not stopped.is_set():
                try:
                    once()
                except ForkpointError as error:
                    complain(f"the sweep failed, and the next one will try again: {error}")
                except typer.Exit:
                    pass  # what could not be archived, trimmed or deleted stays, and was named
                sys.stdout.flush()
                _wait(stopped, interval)


def _wait(stopped: threading.Event, seconds: float) -> None:
    """Wait until a time has passed, or a signal came.

    In short waits: one that comes just before a wait begins does not end it.
    """
    end = time.monotonic() + seconds
    while not stopped.is_set() and (left := end - time.monotonic()) > 0:
        stopped.wait(min(left, _LONGEST_WAIT_SECONDS))


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set, as long as the block lasts."""
    stopped = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in signals]
    try:
        yield stopped
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _telling(tell: Tell) -> Callable[[RetentionResult], None]:
    def progressed(done: RetentionResult) -> None:
        tell(f"{len(done.deleted)} deleted, {len(done.trimmed)} trimmed")

    return progressed


def _show_result(result: RetentionResult, as_json: bool) -> None:
    """Print what was done with which thread.

    Raises:
        Exit: Some could not be archived, trimmed or deleted.
    """
    with ending_with(FOUND if result.failed else 0):
        _print_result(result, as_json)


def _print_result(result: RetentionResult, as_json: bool) -> None:
    if as_json:
        emit({**vars(result), "failed": {k: str(error) for k, error in result.failed.items()}})
    else:
        would = "would be " if result.dry_run else ""
        for what in ("deleted", "trimmed", "busy"):
            for thread_id in getattr(result, what):
                say(f"{'' if what == 'busy' else would}{what}  {printable(thread_id)}")
        for thread_id, error in result.failed.items():
            say(f"failed  {printable(thread_id)}: {printable(str(error))}")
        deleted, trimmed = len(result.deleted), len(result.trimmed)
        say(f"{count_of(deleted, 'thread')} {would}deleted, {trimmed} {would}trimmed")


def migrate(
    ctx: typer.Context,
    create: Annotated[
        bool, typer.Option("--create", help="Make the store if there is none.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make the store ready for this forkpoint.

    It makes the tables or indexes that are missing. It checks the version of the schema first, and
    leaves a store alone that a newer forkpoint wrote (exit code 3). Nothing that is stored changes,
    and other tables in the same database stay as they are. A saver does the same on its first use;
    to do it beforehand spares that use the time, and the right to make tables.
    """
    with opened(ctx, may_make=create) as store:
        with progress("making the store ready"):
            store.saver.setup()
        if as_json:
            emit({"schema_version": SCHEMA_VERSION})
        else:
            say(f"the store is ready; its schema has version {SCHEMA_VERSION}")


COMMANDS = (retain, sweep, migrate)
