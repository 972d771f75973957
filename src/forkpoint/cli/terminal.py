"""What is printed, and what is asked: on a terminal, into a pipe, and as JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from forkpoint.cli.json_values import json_value
from forkpoint.pictures.text import columns_taken, folded, padded, printable, truncate

FOUND = 1
"""The exit code of a command that found something: a difference, or damage."""
WRONG_USE = 2
"""That of one that could not be understood, or named what is not there. Nothing was changed."""
NOT_REACHABLE = 3
"""That of one whose store cannot be reached, or cannot be used."""
INTERRUPTED = 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_UNLIMITED = 100_000
_WHOLE = 36
"""How many columns the first one of a table may take on any terminal: those of a UUID."""
_BESIDE = 30
"""How many columns a longer first one leaves to the others."""


def columns() -> int:
    """Return how many columns a line may take."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED


def prepare_streams() -> None:
    """Stand in for the standard streams that are closed, as `>&-` leaves them.

    What the encoding of the output does not have is escaped, as on the standard error stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_no_more(stream: TextIO) -> None:
    """Let nothing be written to a stream that failed, when the process ends either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_the_rest() -> None:
    """Print what is still to be printed, as far as anybody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        print_no_more(sys.stdout)


@contextmanager
def ending_with(code: int) -> Iterator[None]:
    """Print in the block, and end the command with an exit code other than 0.

    Also where whoever reads has seen enough: what was found is found.
    """
    try:
        yield
    except BrokenPipeError:
        if not code:
            raise
        print_no_more(sys.stdout)
    if code:
        raise typer.Exit(code)


def say(text: str = "") -> None:
    """Print a line. What it has of a store must be printable."""
    print(text)


def say_lines(text: str) -> None:
    """Print lines that a picture made, each cut at the end of the terminal."""
    for line in text.splitlines():
        print(truncate(line, columns()))


def complain(text: str) -> None:
    """Print lines on the standard error stream, if it takes any."""
    try:
        print("\n".join(map(printable, text.splitlines())), file=sys.stderr, flush=True)
    except OSError:
        print_no_more(sys.stderr)


def fail(text: str, code: int = WRONG_USE) -> typer.Exit:
    """Say why a command ends, and return what ends it."""
    complain(f"Error: {text}")
    return typer.Exit(code)


def emit(value: Any) -> None:
    """Print a value as JSON, in ASCII: nothing of it can control a terminal."""
    print(json.dumps(json_value(value), indent=2))


def emit_all(values: Iterable[Any]) -> None:
    """Print values as a JSON array, each as it comes, on a line of its own."""
    start = "["
    for value in values:
        print(f"{start}\n  {json.dumps(json_value(value))}", end="")
        start = ","
    print("[]" if start == "[" else "\n]")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under titles, each line cut at the end of the terminal.

    What is in the first column is whole: on several lines, if a narrow terminal needs it.
    """
    lines = [list(titles), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(columns_taken, column)) for column in zip(*lines, strict=True)]
    total = columns()
    widths[0] = min(widths[0], max(_WHOLE, total - _BESIDE))
    for number, (first, *others) in enumerate(lines):
        start, *rest = folded(first, min(widths[0], total))
        cells = zip([start, *others], widths, strict=True)
        line = "  ".join(padded(cell, width) for cell, width in cells).rstrip()
        _print_line(truncate(line, total), is_title=number == 0)
        for part in rest:
            print(part)


def _print_line(line: str, is_title: bool) -> None:
    if is_title and not os.environ.get("NO_COLOR"):
        console = Console(highlight=False, width=_UNLIMITED)
        console.print(Text(line, style="bold"), no_wrap=True)
    else:
        print(line)


def fields(pairs: Iterable[tuple[str, str | None]]) -> None:
    """Print names with values, one pair to a line, without those that have none."""
    given = [(name, value) for name, value in pairs if value]
    longest = max((len(name) for name, _ in given), default=0)
    for name, value in given:
        print(truncate(f"{name:<{longest}}  {printable(value)}", columns()))


def confirm(question: str, yes: bool) -> None:
    """Ask whether something is to be removed or changed, unless that was said.

    Raises:
        Exit: The answer is no, or there is no terminal to ask on.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise fail(f"{question} There is no terminal to ask on; pass --yes.")
    if not typer.confirm(printable(question), err=True):
        raise fail("nothing was changed")


class Tell(Protocol):
    """Says how far something is: in words and, where that is known, by numbers."""

    def __call__(self, text: str, done: int = 0, total: int | None = None) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[Tell]:
    """Show on a terminal that something goes on; what is yielded says how far it is.

    What comes of it is printed afterwards, when the line that shows it is gone.
    """
    console = Console(stderr=True, highlight=False)
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # It would print there what is meant for a file or a pipe.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bars:
        task = bars.add_task(printable(what), total=None)

        def tell(text: str, done: int = 0, total: int | None = None) -> None:
            description = printable(f"{what}: {text}")
            bars.update(task, description=description, completed=done, total=total)

        yield tell


def in_bytes(count: int) -> str:
    """Return a number of bytes for people."""
    if count < 1000:
        return f"{count} bytes"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.4g} TB"
