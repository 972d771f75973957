"""The example that newcomers run first, run as they run it: as a process, killed and resumed."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forkpoint import SqliteSaver
from processes import run_program
from servers import PATIENCE_SECONDS

PROJECT = Path(__file__).resolve().parents[2]
EXAMPLE = PROJECT / "examples" / "quickstart.py"
KILLED = signal.SIGTERM if sys.platform == "win32" else -signal.SIGKILL

TEXT = """\
# Lighthouse

The keeper climbs the tower. Nobody else does.

## Lantern

```sh
# trim the wick: a comment, and no heading
light --lantern
```

The lantern burns from evening. It burns until morning.

## Foghorn

The foghorn sounds whenever the lantern cannot be seen.

## Logbook

Every evening has an entry in the logbook.
"""
TITLES = ["Lighthouse", "Lantern", "Foghorn", "Logbook"]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "lighthouse.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def quickstart(
    directory: Path, *arguments: str | Path, example: Path = EXAMPLE
) -> subprocess.CompletedProcess[str]:
    return run_program(example, *arguments, directory=directory)


def titles_of(kind: str, output: str) -> list[str]:
    """Return the sections of the progress lines of one kind, in order."""
    return re.findall(rf"^{kind} +\d+ of \d+: (.+)$", output, re.MULTILINE)


def stored_state(database: Path, thread: str = "quickstart") -> dict[str, Any]:
    with SqliteSaver(database) as saver:
        found = saver.get_tuple({"configurable": {"thread_id": thread}})
    assert found is not None
    return found.checkpoint["channel_values"]


def kill_after_line(directory: Path, beginning: str, how: int, *arguments: str | Path) -> int:
    """Run the example until it prints a line, send it a signal, and return how it ended."""
    with subprocess.Popen(
        [sys.executable, EXAMPLE, *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        # Where the tests run in the background, an interrupt would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith(beginning) for line in process.stdout)
        process.send_signal(how)
        return process.wait(PATIENCE_SECONDS)


def test_a_run_prints_each_step_and_the_digest(tmp_path: Path, text_file: Path) -> None:
    done = quickstart(tmp_path, text_file)

    assert done.returncode == 0, done.stderr
    assert titles_of("note", done.stdout) == TITLES
    steps = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert steps[:8] == ["Thread", "read", "split", "note", "note", "note", "note", "combine"]
    digest = stored_state(tmp_path / "quickstart.db")["digest"]
    assert f"\n{digest}\n" in done.stdout
    assert "2. Lantern [lantern, comment, heading, evening]" in digest
    assert "The lantern burns from evening.\n" in digest


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, text_file: Path) -> None:
    killed = quickstart(tmp_path, text_file, "--stop-after", "2")
    resumed = quickstart(tmp_path, text_file)
    quickstart(tmp_path, text_file, "--db", "uninterrupted.db")

    assert killed.returncode == KILLED
    assert titles_of("note", killed.stdout) == TITLES[:2]
    assert resumed.returncode == 0, resumed.stderr
    assert "is unfinished" in resumed.stdout
    assert "\nread " not in resumed.stdout
    assert titles_of("stored", resumed.stdout) == TITLES[:2]
    assert titles_of("note", resumed.stdout) == TITLES[2:]
    uninterrupted = stored_state(tmp_path / "uninterrupted.db")
    assert stored_state(tmp_path / "quickstart.db") == uninterrupted
    assert uninterrupted["digest"] in resumed.stdout


def test_a_run_that_is_killed_after_every_section_gets_done(
    tmp_path: Path, text_file: Path
) -> None:
    runs = [quickstart(tmp_path, text_file, "--stop-after", "1") for _ in range(5)]

    assert [run.returncode for run in runs] == [KILLED] * 4 + [0]
    assert [titles_of("note", run.stdout) for run in runs] == [[t] for t in TITLES] + [[]]


def test_resuming_does_not_need_the_file(tmp_path: Path, text_file: Path) -> None:
    quickstart(tmp_path, text_file, "--stop-after", "1")
    text_file.unlink()

    resumed = quickstart(tmp_path)

    assert resumed.returncode == 0, resumed.stderr
    assert titles_of("note", resumed.stdout) == TITLES[1:]


BETWEEN_RESULT_AND_CHECKPOINT = """
import os, signal, sys, time
import quickstart

class Saver(quickstart.SqliteSaver):
    def put(self, config, checkpoint, *rest):
        if len(checkpoint["channel_values"].get("notes", ())) == 2:
            while not self.get_tuple(config).pending_writes:
                time.sleep(0.01)
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return super().put(config, checkpoint, *rest)

quickstart.SqliteSaver = Saver
sys.exit(quickstart.main())
"""


def test_a_run_that_is_killed_between_a_result_and_its_checkpoint_goes_on(
    tmp_path: Path, text_file: Path
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(EXAMPLE.parent)!r})")
    with script.open("a") as file:
        file.write(BETWEEN_RESULT_AND_CHECKPOINT)

    killed = quickstart(tmp_path, text_file, example=script)
    resumed = quickstart(tmp_path, text_file)

    assert killed.returncode == KILLED, killed.stderr
    assert resumed.returncode == 0, resumed.stderr
    assert titles_of("stored", resumed.stdout) == TITLES[:2]
    assert titles_of("note", resumed.stdout) == TITLES[2:]
    assert len(stored_state(tmp_path / "quickstart.db")["notes"]) == len(TITLES)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("name", "ending"), [pytest.param("SIGKILL", -9, marks=pytest.mark.slow), ("SIGINT", 130)]
)
def test_a_run_that_is_stopped_within_a_step_goes_on(
    tmp_path: Path, text_file: Path, name: str, ending: int
) -> None:
    how = getattr(signal, name)
    for pause in ("0.5", "5", "50"):
        options = ["--thread", pause, text_file]
        # The second section is noted, so the checkpoint of the first is stored.
        ended = kill_after_line(tmp_path, "note     2 of", how, "--slow", pause, *options)
        resumed = quickstart(tmp_path, *options)
        if "is finished" not in resumed.stdout:
            break  # or else it was done before the signal came

    assert ended == ending
    stored = titles_of("stored", resumed.stdout)
    assert stored[:1] == TITLES[:1]
    assert stored + titles_of("note", resumed.stdout) == TITLES


def test_a_finished_thread_is_not_run_again(tmp_path: Path, text_file: Path) -> None:
    quickstart(tmp_path, text_file)

    second = quickstart(tmp_path, text_file)

    assert second.returncode == 0
    assert "is finished" in second.stdout
    assert "--again" in second.stdout
    assert "--thread other" in second.stdout
    assert titles_of("note", second.stdout) == []


@pytest.mark.parametrize("first", [(), ("--stop-after", "2")])
def test_again_starts_over_on_the_same_thread(
    tmp_path: Path, text_file: Path, first: tuple[str, ...]
) -> None:
    quickstart(tmp_path, text_file, *first)

    again = quickstart(tmp_path, text_file, "--again")

    assert again.returncode == 0, again.stderr
    assert titles_of("note", again.stdout) == TITLES
    assert len(stored_state(tmp_path / "quickstart.db")["notes"]) == len(TITLES)


def test_threads_of_one_database_are_apart(tmp_path: Path, text_file: Path) -> None:
    quickstart(tmp_path, text_file, "--stop-after", "2")

    other = quickstart(tmp_path, text_file, "--thread", "other")

    assert titles_of("note", other.stdout) == TITLES
    assert len(stored_state(tmp_path / "quickstart.db")["notes"]) == 2


def test_history_lists_the_checkpoints_newest_first(tmp_path: Path, text_file: Path) -> None:
    quickstart(tmp_path, text_file, "--stop-after", "2")
    quickstart(tmp_path, text_file)

    history = quickstart(tmp_path, "--history")

    assert history.returncode == 0, history.stderr
    heading, *lines = history.stdout.splitlines()
    assert re.split(" {2,}", heading) == [
        "step",
        "time (UTC)",
        "next",
        "sections done",
        "checkpoint",
    ]
    rows = [line.split() for line in lines]
    assert [int(row[0]) for row in rows] == list(range(7, -2, -1))
    following = ["-", "combine", "note", "note", "note", "note", "split", "read", "__start__"]
    assert [row[3] for row in rows] == following
    assert [int(row[4]) for row in rows] == [4, 4, 3, 2, 1, 0, 0, 0, 0]
    with SqliteSaver(tmp_path / "quickstart.db") as saver:
        ids = [each.checkpoint["id"] for each in saver.list(None)]
    assert [row[5] for row in rows] == [f"...{each[-12:]}" for each in ids]


def test_the_history_of_no_thread_is_an_error(tmp_path: Path) -> None:
    history = quickstart(tmp_path, "--history", "--thread", "nobody")

    assert history.returncode == 2
    assert "nobody" in history.stderr


def test_the_example_reports_the_bytes_that_are_stored(tmp_path: Path) -> None:
    large = tmp_path / "large.md"
    large.write_text("".join(f"# Part {n}\n\n{TEXT[14:60] * 40}\n\n" for n in range(20)))

    done = quickstart(tmp_path, large, "--db", "large.db")

    report = re.search(
        r"large\.db: (\d+) checkpoints, ([\d,]+) bytes.*\n.*: ([\d,]+) bytes", done.stdout
    )
    assert report is not None
    checkpoints, size, whole = (int(number.replace(",", "")) for number in report.groups())
    assert size == (tmp_path / "large.db").stat().st_size
    with SqliteSaver(tmp_path / "large.db") as saver:
        sizes = [len(saver.serde.dumps_typed(each.checkpoint)[1]) for each in saver.list(None)]
    assert (checkpoints, whole) == (len(sizes), sum(sizes))
    assert size < whole


def test_the_suggested_commands_work(tmp_path: Path, text_file: Path) -> None:
    done = quickstart(tmp_path, text_file)
    commands = re.findall(r"^  python .+$", done.stdout, re.MULTILINE)

    codes = [quickstart(tmp_path, *shlex.split(each)[2:]).returncode for each in commands]

    assert codes == [0, 0, KILLED, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfe\x00", "is no text"),
        (b"binary\0data", "is no text"),
    ],
)
def test_a_file_that_cannot_be_digested_is_an_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)

    failed = quickstart(tmp_path, path)

    assert failed.returncode == 2
    assert f"{message} {path}" in failed.stderr or f"{path} {message}" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert quickstart(tmp_path, "--history").returncode == 2


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path, text_file: Path) -> None:
    failed = quickstart(tmp_path, text_file, "--db", text_file)

    assert failed.returncode == 2
    assert "no SQLite database" in failed.stderr
    assert text_file.read_text(encoding="utf-8") == TEXT


def test_a_thread_is_not_resumed_with_other_files(tmp_path: Path, text_file: Path) -> None:
    quickstart(tmp_path, text_file, "--stop-after", "1")
    other = tmp_path / "other.md"
    other.write_text("Another text.")

    failed = quickstart(tmp_path, other)

    assert failed.returncode == 2
    assert "other files" in failed.stderr


def test_several_files_make_one_digest(tmp_path: Path, text_file: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# Harbour\n\nShips anchor here.")

    done = quickstart(tmp_path, text_file, other)

    assert titles_of("note", done.stdout) == [*TITLES, "Harbour"]


def test_a_text_without_headings_is_cut_after_every_tenth_paragraph(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join(f"Paragraph {'I' * number}." for number in range(1, 26)))

    done = quickstart(tmp_path, plain)

    titles = [f"Paragraph {'I' * number}." for number in (1, 11, 21)]
    assert titles_of("note", done.stdout) == titles


@pytest.mark.parametrize(("readme", "ending"), [(TEXT, 0), ("", 2)])
def test_the_default_is_the_readme_next_to_the_examples(
    tmp_path: Path, readme: str, ending: int
) -> None:
    examples, elsewhere = tmp_path / "project" / "examples", tmp_path / "elsewhere"
    examples.mkdir(parents=True)
    elsewhere.mkdir()
    shutil.copy(EXAMPLE, examples)
    (tmp_path / "project" / "README.md").write_text(readme, encoding="utf-8")
    (elsewhere / "README.md").write_text("# The wrong one", encoding="utf-8")

    done = quickstart(elsewhere, example=examples / "quickstart.py")

    assert done.returncode == ending, done.stderr
    assert titles_of("note", done.stdout) == (TITLES if readme else [])
    assert ("is empty" in done.stderr) == (not readme)


def test_the_default_is_the_readme_of_this_project(tmp_path: Path) -> None:
    is_empty = not (PROJECT / "README.md").read_text(encoding="utf-8").strip()

    done = quickstart(tmp_path)

    assert done.returncode == (2 if is_empty else 0), done.stderr
    assert str(PROJECT / "README.md") in done.stdout + done.stderr
