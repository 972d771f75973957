"""What is printed, and what is asked: on a terminal, into a pipe, and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from forkpoint.cli.json_values import json_value
from forkpoint.pictures.text import printable, truncate

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


def columns() -> int:
    """Return how many columns a line may take."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED


def say(text: str = "") -> None:
    """Print a line. What it has of a store must be printable."""
    print(text)


def say_lines(text: str) -> None:
    """Print lines that a picture made, each cut at the end of the terminal."""
    for line in text.splitlines():
        print(truncate(line, columns()))


def complain(text: str) -> None:
    """Print a line on the standard error stream."""
    print("\n".join(map(printable, text.splitlines())), file=sys.stderr)


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
    """Print rows under titles. On a terminal the first column is whole, and others may be cut."""
    console = Console(highlight=False, width=columns(), emoji=False, markup=False)
    header_style = "" if os.environ.get("NO_COLOR") else "bold"
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=header_style)
    for number, title in enumerate(titles):
        is_first = number == 0
        shown.add_column(title, overflow="fold" if is_first else "ellipsis", no_wrap=not is_first)
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    with console.capture() as captured:
        console.print(shown)
    for line in captured.get().splitlines():
        print(line.rstrip())


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
    """Show on a terminal that something goes on; what is yielded says how far it is."""
    console = Console(stderr=True, highlight=False)
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
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
