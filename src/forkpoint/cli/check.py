"""Commands for all that is in a store: check, repair, rekey."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from forkpoint.cli.stores import opened
from forkpoint.cli.terminal import (
    FOUND,
    JsonFlag,
    YesFlag,
    confirm,
    emit,
    ending_with,
    fail,
    progress,
    say,
)
from forkpoint.opening import OLD_KEY_VARIABLE
from forkpoint.pictures.text import count_of, printable
from forkpoint.results import CheckReport, Problem, RekeyReport, RepairReport


def check(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Check that all that is stored is as it was written.

    Every record, row, chunk and index is compared, while others go on writing. The exit code is 1
    if something is not as it was written; a line names it, with the thread and the checkpoint.
    """
    with opened(ctx) as store:
        with progress("checking") as tell:
            report = store.saver.check(on_progress=lambda far: tell(_summary(far)))
        with ending_with(0 if report.is_clean else FOUND):
            if as_json:
                emit(report)
            else:
                for problem in report.problems:
                    say(_line(problem))
                say(_summary(report))


def repair(
    ctx: typer.Context,
    quarantine: Annotated[
        Path | None,
        typer.Option(
            help="Remove unreadable checkpoints, and append what they have to this file.",
            metavar="FILE",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be repaired.")
    ] = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Repair what can be proved.

    Counts, statuses and indexes are made anew from the rows. A checkpoint that cannot be read is
    removed if --quarantine is given, so that the newest readable one is the head. All that can be
    read stays as it is. The exit code is 1 if problems are left, or would be repaired.
    """
    with opened(ctx) as store:

        def apply(is_dry: bool) -> RepairReport:
            with progress("checking" if is_dry else "repairing") as tell:
                return store.saver.repair(
                    quarantine=quarantine,
                    dry_run=is_dry,
                    on_progress=lambda far: tell(_summary(far)),
                )

        asks = not (dry_run or yes)
        report = apply(dry_run or asks)
        if report.repaired and asks:
            repairable, left = count_of(len(report.repaired), "problem"), len(report.left)
            confirm(f"Repair {repairable}, and leave {left}?", yes)
            report = apply(False)
        with ending_with(FOUND if report.left or (dry_run and report.repaired) else 0):
            if as_json:
                emit(report)
            else:
                _show_repair(report, dry_run)


def _show_repair(report: RepairReport, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for problem in report.repaired:
        say(f"{would}repaired  {_line(problem)}")
    for problem in report.left:
        say(f"left  {_line(problem)}")
    repaired = count_of(len(report.repaired), "problem")
    say(f"{repaired} {would}repaired, {len(report.left)} left")


def _summary(report: CheckReport) -> str:
    parts = [
        count_of(report.threads, "thread"),
        count_of(report.checkpoints, "checkpoint"),
        count_of(report.writes, "write"),
        count_of(len(report.problems), "problem"),
    ]
    return ", ".join(parts)


def _line(problem: Problem) -> str:
    where = [f"thread {problem.thread_id!r}"]
    if problem.checkpoint_id is not None:
        where.append(f"checkpoint {problem.checkpoint_id!r}")
    if problem.checkpoint_ns:
        where.append(f"of namespace {problem.checkpoint_ns!r}")
    return printable(f"{', '.join(where)}: {problem.reason}")


def rekey(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Change the key of a store, add one to it, or remove it.

    LANGGRAPH_AES_KEY has the new key, and FORKPOINT_OLD_AES_KEY the one from before; either may be
    the word none: not encrypted. Others go on reading and writing, if they have both, too. If it
    is stopped, it is called again. The exit code is 1 if there is something that neither key
    decrypts, which stays as it is.
    """
    with opened(ctx) as store:
        if not os.environ.get(OLD_KEY_VARIABLE):
            raise fail(f"rekey needs --encrypted, and the old key in {OLD_KEY_VARIABLE}")
        with progress("encrypting") as tell:
            report = store.saver.rekey(on_progress=lambda far: tell(_encrypted(far)))
        with ending_with(FOUND if report.foreign else 0):
            if as_json:
                emit(report)
            else:
                say(_encrypted(report))


def _encrypted(report: RekeyReport) -> str:
    rewritten = count_of(report.rewritten, "content")
    return f"{rewritten} encrypted anew, {report.foreign} that neither key decrypts"


COMMANDS = (check, repair, rekey)
