"""The command as a process: on a terminal, in a pipe, and stopped by signals."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import runpy
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import PIPE
from typing import IO

import pytest
import typer

from checking import counts_of, put
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.cli.app import main
from forkpoint.cli.stores import ending
from forkpoint.cli.terminal import in_bytes
from forkpoint.pictures.text import columns_taken
from forkpoint.transfer import archive_threads
from processes import environment, fork_server
from servers import wait_until

COLUMNS = 60
ESCAPE = "\x1b"


def _run(arguments: list[str], places: list[str], variables: dict[str, str]) -> None:
    """Be the command, with its three streams at these places."""
    os.setsid()  # so that the terminal sends its signals here
    for number, place in enumerate(places):
        os.dup2(os.open(place, os.O_RDWR if number == 0 else os.O_WRONLY), number)
    sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - open until the process ends
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115 - by the line, as Python has it
    os.environ.update(variables)
    sys.argv = ["forkpoint", *arguments]
    runpy.run_module("forkpoint", run_name="__main__")


class Terminal:
    """A terminal of 60 columns on which a command runs."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.place = os.ttyname(self._slave)
        self.seen = ""

    def read_until(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self._master, 4096).decode()

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_to_the_end(self, process: ForkServerProcess) -> str:
        """Return all that was shown when the command has ended, which waits for it to be read."""

        def mark_end() -> None:
            process.join()
            os.write(self._slave, b"END")

        marking = threading.Thread(target=mark_end)
        marking.start()
        self.read_until("END")
        marking.join()
        return self.seen.removesuffix("END")


def start(*arguments: str, places: list[str], **variables: str) -> ForkServerProcess:
    given = {"TERM": "xterm", "COLUMNS": "", "LINES": "", **variables}
    process = fork_server().Process(target=_run, args=(list(arguments), places, given))
    process.start()
    return process


def on_terminal(*arguments: str, **variables: str) -> tuple[Terminal, ForkServerProcess]:
    terminal = Terminal()
    return terminal, start(*arguments, places=[terminal.place] * 3, **variables)


@contextmanager
def piped(directory: Path, *arguments: str) -> Iterator[tuple[ForkServerProcess, IO[str], Path]]:
    """Start a command that writes into a pipe, and yield it, the pipe, and its other output."""
    pipe, errors = directory / "pipe", directory / "errors"
    os.mkfifo(pipe)
    errors.touch()
    process = start(*arguments, places=[os.devnull, str(pipe), str(errors)])
    with pipe.open() as reader:
        yield process, reader, errors
    process.join()


@pytest.fixture
def store(path: Path) -> Path:
    with SqliteSaver(path, durability="normal") as saver:
        for thread_id in ("a thread with a rather long id", "b"):
            head = None
            for n in range(3):
                metadata = {"source": "loop", "step": n, "long": "x" * 30_000}
                head = put(saver, {"n": n}, parent=head, thread_id=thread_id, metadata=metadata)
    return path


def test_a_narrow_terminal_is_kept_to_and_colors_are_left_out_if_asked(store: Path) -> None:
    arguments = ["--store", str(store)]
    terminal, process = on_terminal(*arguments, "history", "b")
    lines = terminal.read_to_the_end(process).splitlines()
    assert process.exitcode == 0
    assert len(lines) == 4
    assert max(map(len, lines)) == COLUMNS
    assert lines[0].endswith("…")

    terminal, process = on_terminal(*arguments, "threads")
    colored = terminal.read_to_the_end(process)
    terminal, process = on_terminal(*arguments, "threads", NO_COLOR="1")
    plain = terminal.read_to_the_end(process)
    assert ESCAPE in colored
    assert ESCAPE not in plain
    assert re.sub(r"\x1b\[\d*m", "", colored).split() == plain.split()
    lines = plain.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    ids = [re.split(r"  +", line)[0].strip() for line in lines[1:]]
    assert " ".join(ids) == "b a thread with a rather long id"  # whole, on several lines


def test_the_ids_of_threads_are_whole_beside_all_else_that_is_said(store: Path) -> None:
    owned = "1f1ebc87-14e2-6b61-9c85-7aed00bac13b"
    with SqliteSaver(store) as saver:
        catalog = ThreadCatalog(saver, owner="somebody")
        catalog.create(owned, label="a label " * 5, tags=["a-tag", "another"])
        ThreadCatalog(saver).create("世界" * 30)
    terminal, process = on_terminal("--store", str(store), "threads", NO_COLOR="1")
    lines = terminal.read_to_the_end(process).splitlines()
    assert max(map(columns_taken, lines)) <= COLUMNS
    assert lines[0].split()[:2] == ["THREAD", "STATUS"]
    start = next(number for number, line in enumerate(lines) if line.startswith(owned))
    assert re.fullmatch(rf"{owned} +idle +20.*…", lines[start])
    wide = "".join(line.partition(" ")[0] for line in lines[1:start])
    assert wide == "世界" * 30


def test_what_is_printed_goes_where_it_is_sent_while_a_terminal_shows_that_it_goes_on(
    store: Path, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    for arguments, expected in ((["stats"], "threads "), (["clone", "b", "--as", "c"], "c\n")):
        said.touch()
        terminal = Terminal()
        places = [terminal.place, str(said), terminal.place]
        process = start("--store", str(store), *arguments, places=places)
        shown = terminal.read_to_the_end(process)
        assert process.exitcode == 0, shown
        assert said.read_text().startswith(expected)
        said.unlink()


@pytest.mark.parametrize(
    "command",
    [
        "threads",
        pytest.param("history b", marks=pytest.mark.slow),
        pytest.param("stats", marks=pytest.mark.slow),
        "fork b --json",
        "diff b@0 b",
    ],
)
def test_an_output_that_cannot_be_written_ends_a_command(store: Path, command: str) -> None:
    given = [sys.executable, "-m", "forkpoint", "--store", str(store), *command.split()]
    with open("/dev/full", "w") as full:
        run = subprocess.run(given, env=environment(), stdout=full, stderr=PIPE, text=True)
    assert (run.returncode, run.stderr) == (3, "Error: [Errno 28] No space left on device\n")
    closed = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *given]
    found = 1 if command.startswith("diff") else 0
    assert subprocess.run(closed, env=environment()).returncode == found


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_encoding_of_the_output_does_not_have_is_escaped(
    encoding: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SqliteSaver(store) as saver:
        saver.fork("b", new_thread_id="c \N{SNOWMAN}")
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["forkpoint", "--store", str(store), "family", "b"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    first, second = output.getvalue().splitlines()
    assert first == b"b \\u2190 this thread  (3 checkpoints)"
    assert b"c \\u2603" in second


def test_the_exit_code_is_the_same_where_no_error_can_be_written(store: Path) -> None:
    given = [sys.executable, "-m", "forkpoint", "--store", str(store), "show", "nobody"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(given, env=environment(), stderr=full).returncode == 2


def test_a_policy_is_read_as_toml_whatever_the_locale(store: Path, tmp_path: Path) -> None:
    with SqliteSaver(store) as saver:
        ThreadCatalog(saver).update("b", tags=["gehört"])
    policy = tmp_path / "policy.toml"
    policy.write_bytes('max_checkpoints_per_thread = 1\nkeep_tags = ["gehört"]\n'.encode())
    given = ["--store", str(store), "retain", "--policy", str(policy), "--dry-run", "--json"]
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "forkpoint", *given],
        env={**environment(), **old},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["trimmed"] == ["a thread with a rather long id"]


def test_a_question_is_asked_on_a_terminal(store: Path) -> None:
    arguments = ["--store", str(store), "purge", "b"]
    # The second is Ctrl-D: Python may miss a Ctrl-C that comes as it is about to read.
    for answer, code in (("n\n", 2), ("\x04", 130), ("y\n", 0)):
        with SqliteSaver(store) as saver:
            assert counts_of(saver)["b"] == 3
        terminal, process = on_terminal(*arguments)
        terminal.read_until("Remove thread 'b' with its whole history? [y/N]: ")
        terminal.write(answer)
        text = terminal.read_to_the_end(process)
        assert process.exitcode == code, text
    assert "removed 3 checkpoints" in text
    with SqliteSaver(store) as saver:
        assert counts_of(saver) == {"a thread with a rather long id": 3}


@pytest.mark.parametrize(
    ("command", "question", "done"),
    [
        ("retain --max-checkpoints 1", "Delete 0 and trim 2 threads?", "2 trimmed"),
        ("repair", "Repair 1 problem, and leave 0?", "1 problem repaired, 0 left"),
    ],
)
def test_a_question_says_what_is_about_to_be_done(
    command: str, question: str, done: str, store: Path
) -> None:
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("UPDATE forkpoint_threads SET checkpoint_count = 5 WHERE key = 1")
    terminal, process = on_terminal("--store", str(store), *command.split())
    terminal.read_until(f"{question} [y/N]: ")
    terminal.write("y\n")
    assert done in terminal.read_to_the_end(process)
    assert process.exitcode == 0


def test_an_interrupt_ends_a_command_with_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, ending():
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


def test_a_reader_that_has_seen_enough_is_no_error(store: Path, tmp_path: Path) -> None:
    arguments = ["--store", str(store), "history", "b", "--json"]
    with piped(tmp_path, *arguments) as (process, reader, errors):
        assert reader.readline() == "[\n"
    assert process.exitcode == 0
    assert errors.read_text() == ""


@pytest.mark.parametrize(
    "command",
    [
        "diff b@0 b",
        pytest.param("diff b@0 b --json", marks=pytest.mark.slow),
        pytest.param("check", marks=pytest.mark.slow),
        pytest.param("repair --dry-run", marks=pytest.mark.slow),
        pytest.param("restore archive.jsonl", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("buffering", ["by the block", "none"])
def test_what_was_found_is_in_the_exit_code_though_nobody_reads(
    buffering: str, command: str, store: Path
) -> None:
    with SqliteSaver(store) as saver:
        archive_threads(saver, store.parent / "archive.jsonl")
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("UPDATE forkpoint_threads SET checkpoint_count = 5 WHERE key = 1")
    reader, writer = os.pipe()
    os.close(reader)
    variables = {**environment(), "PYTHONUNBUFFERED": "1" if buffering == "none" else ""}
    given = [sys.executable, "-m", "forkpoint", "--store", str(store), *command.split()]
    run = subprocess.run(
        given, env=variables, stdout=writer, stderr=PIPE, text=True, cwd=store.parent
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_sweeps_go_on_until_a_signal_comes(
    store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ["--store", str(store), "sweep", "--every", "1h", "--yes"]
    with piped(tmp_path, *arguments) as (process, reader, errors):
        assert reader.readline() == "0 threads deleted, 0 trimmed\n"
        assert process.pid is not None
        os.kill(process.pid, number)
        assert reader.read() == ""
    assert process.exitcode == 0
    assert errors.read_text() == ""


def test_sweeps_go_on_where_one_could_not_archive_a_thread(store: Path, tmp_path: Path) -> None:
    with SqliteSaver(store) as saver:
        ThreadCatalog(saver).update("b", ttl=timedelta(microseconds=1))
    with closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("UPDATE forkpoint_checkpoints SET checksum = x'00'")
    archive = ["--archive", str(tmp_path / "archive.jsonl")]
    arguments = ["--store", str(store), "sweep", "--every", "1s", *archive, "--yes"]
    with piped(tmp_path, *arguments) as (process, reader, _):
        for _ in range(2):
            assert reader.readline().startswith("failed  b: ")
            assert reader.readline() == "0 threads deleted, 0 trimmed\n"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        reader.read()
    assert process.exitcode == 0


def test_a_sweep_that_fails_is_followed_by_the_next(store: Path, tmp_path: Path) -> None:
    directory, moved = tmp_path / "archives", tmp_path / "moved"
    directory.mkdir()
    archive = ["--archive", str(directory / "archive.jsonl")]
    arguments = ["--store", str(store), "sweep", "--every", "1s", *archive, "--yes"]
    with piped(tmp_path, *arguments) as (process, reader, errors):
        assert reader.readline() == "0 threads deleted, 0 trimmed\n"
        directory.rename(moved)
        wait_until(lambda: "the next one will try again" in errors.read_text(), "an error")
        moved.rename(directory)
        with SqliteSaver(store) as saver:
            ThreadCatalog(saver).update("b", ttl=timedelta(microseconds=1))
        while (line := reader.readline()) != "deleted  b\n":
            assert line == "0 threads deleted, 0 trimmed\n"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        reader.read()
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (7_150_000_000, "7.15 GB"),
        (999_500_000_000, "0.9995 TB"),
        (12_345_678_000_000, "12.35 TB"),
    ],
)
def test_numbers_of_bytes_are_short(count: int, shown: str) -> None:
    assert in_bytes(count) == shown


def test_the_package_is_a_command(store: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forkpoint", "threads", "--count"],
        env={**environment(), "FORKPOINT_STORE": f"sqlite:///{store}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_an_interrupt_while_the_command_is_loaded_has_the_same_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "forkpoint.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "forkpoint.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("forkpoint.__main__")
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Error: interrupted\n"


def test_it_is_said_what_the_command_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("forkpoint.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"pip install 'forkpoint\[cli\]'"):
        runpy.run_module("forkpoint.__main__")
