"""What `verify` says of a copy that is not as its source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checking import id_of, put
from forkpoint import SqliteSaver, ThreadBusy
from forkpoint.archive.parts import Numbering
from forkpoint.transfer import TransferProgress, TransferReport, import_threads
from officials import official
from transferring import checkpoint_in, messages, tuples


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(tmp_path / "source.db") as saver:
        yield saver


@pytest.fixture
def copy(path: Path) -> Iterator[SqliteSaver]:
    with SqliteSaver(path) as saver:
        yield saver


def test_checkpoints_that_only_one_side_has_are_named(
    source: SqliteSaver, copy: SqliteSaver
) -> None:
    parent: Any = None
    for number in range(3):
        parent = put(source, {"n": number}, parent=parent, metadata={"run_id": f"run {number}"})
    assert import_threads(source, copy, kind="forkpoint", verify=True).is_complete
    copy.delete_for_runs(["run 1"])
    source.delete_for_runs(["run 0"])
    head = put(source, {"n": 4}, parent=tuples(source)[0].config)

    def write(_: TransferProgress) -> None:
        if id_of(tuples(copy)[0]) == id_of(head):
            put(copy, {"n": 5}, parent=head)

    oldest, middle = id_of(tuples(copy)[-1]), id_of(tuples(source)[-1])
    report = import_threads(source, copy, kind="forkpoint", verify=True, on_progress=write)
    assert (report.threads, report.checkpoints, report.verified) == (1, 1, 2)
    assert told(report) == [
        (oldest, "the source does not have it"),
        (middle, "it is missing"),
        (id_of(tuples(copy)[0]), "the source does not have it"),
    ]


def told(report: TransferReport) -> list[tuple[str, str]]:
    return [(difference.checkpoint_id, difference.what) for difference in report.differences]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("INSERT INTO writes SELECT thread_id, checkpoint_ns, checkpoint_id, 'late', task_path,"
         " idx, channel, type, value FROM writes WHERE task_id = 't1'",
         ["the write 0 of task 'late' to 'a' is missing"]),
        ("DELETE FROM writes WHERE task_id = 't2'",
         ["the write 0 of task 't2' to 'b' is not in the source"]),
        ("UPDATE writes SET task_path = '~path, 3' WHERE task_id = 't1'",
         ["the write 0 of task 't1' to 'a'", "the order of the writes"]),
    ],
)  # fmt: skip
def test_writes_that_differ_are_named(
    change: str, expected: list[str], copy: SqliteSaver, tmp_path: Path
) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        made = checkpoint_in(theirs)
        theirs.put_writes(made, [("a", 1)], "t1", "~path, 1")
        theirs.put_writes(made, [("b", 2)], "t2", "~path, 2")
        checkpoint_in(theirs)  # what is older than the newest one is not imported again
        assert import_threads(source, copy, kind="langgraph-sqlite", verify=True).is_complete
        theirs.conn.execute(change)
        theirs.conn.commit()
        report = import_threads(source, copy, kind="langgraph-sqlite", verify=True)
    assert report.unchanged == 1
    assert told(report) == [(id_of(made), what) for what in expected]


def test_of_many_differences_a_thousand_are_named(copy: SqliteSaver, tmp_path: Path) -> None:
    with official("langgraph-sqlite", tmp_path, str) as (theirs, source):
        made = checkpoint_in(theirs, **{f"c{n}": n for n in range(1001)})
        assert import_threads(source, copy, kind="langgraph-sqlite").is_complete
        changed = {**theirs.get(made), "channel_values": {f"c{n}": -n for n in range(1, 1001)}}
        theirs.put({"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}, changed, {}, {})
        report = import_threads(source, copy, kind="langgraph-sqlite", verify=True)
    assert len(report.differences) == 1000
    assert report.verified == 1


def test_copies_are_compared_after_chunks_were_forgotten(
    source: SqliteSaver, copy: SqliteSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages(source, "thread", 45)
    monkeypatch.setattr(Numbering.__init__, "__defaults__", (3,))
    assert import_threads(source, copy, kind="forkpoint", verify=True).is_complete
    assert tuples(copy) == tuples(source)


def test_a_thread_that_is_written_to_while_it_is_compared_fails_and_no_other(
    source: SqliteSaver, copy: SqliteSaver
) -> None:
    for name in ("changed", "deleted", "replaced", "steady"):
        messages(source, name, 22)
    assert import_threads(source, copy, kind="forkpoint").is_complete
    changes = {
        "changed": lambda: messages(source, "changed", 1),
        "deleted": lambda: copy.delete_thread("deleted"),
        "replaced": lambda: (copy.delete_thread("replaced"), messages(copy, "replaced", 1)),
    }

    def change(progress: TransferProgress) -> None:
        if progress.is_verifying:
            changes.pop(progress.thread_id, lambda: None)()

    report = import_threads(source, copy, kind="forkpoint", verify=True, on_progress=change)
    assert {name: type(error) for name, error in report.failed.items()} == {
        "changed": ThreadBusy,
        "replaced": ThreadBusy,
    }
    differing = {difference.thread_id for difference in report.differences}
    assert "deleted" in differing
    assert "steady" not in differing
