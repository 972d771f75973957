"""The commands that make and remove threads, on both backends."""

from __future__ import annotations

import functools
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from checking import counts_of, put
from command_line import forkpoint
from forkpoint import ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from stores import Store


@pytest.fixture
def run(store: Store) -> Any:
    return functools.partial(forkpoint, store=store)


@pytest.fixture
def catalog(saver: ForkpointSaver) -> ThreadCatalog:
    """That of a store with threads `a`, `b` and `c`, of four checkpoints each."""
    for thread_id in "abc":
        head: Any = None
        for n in range(4):
            head = put(saver, {"n": n, "m": n}, parent=head, thread_id=thread_id)
    return ThreadCatalog(saver)


def test_a_thread_is_forked_at_any_checkpoint(catalog: ThreadCatalog, run: Any) -> None:
    assert run("fork", "a@1", "--as", "fork", "--metadata", "why=test").out == "fork\n"
    made = catalog.get("fork")
    assert made is not None
    assert (made.source_thread_id, made.metadata) == ("a", {"why": "test"})
    assert run("state", "fork", "--json").json["values"] == {"m": 1, "n": 1}
    named = run("fork", "a", "--path", "--set", "n=[1, 2]", "--json").json["thread_id"]
    assert run("state", named, "--json").json["values"] == {"m": 3, "n": [1, 2]}
    assert run("fork", "a", "--as", "b").code == 2
    assert run("fork", "a", "--set", "n").code == 2
    assert "'x'" in run("fork", "a", "--set", "x=1").err


def test_a_thread_is_cloned(catalog: ThreadCatalog, run: Any) -> None:
    catalog.update("a", label="first", tags=["t"])
    assert run("clone", "a", "--as", "copy", "--label", "second").out == "copy\n"
    made = catalog.get("copy")
    assert made is not None
    assert (made.label, made.tags, made.checkpoint_count) == ("second", ("t",), 4)
    assert run("clone", "a", "--tag", "u", "--json").json["thread_id"] != "copy"


def test_checkpoints_are_removed(saver: ForkpointSaver, catalog: ThreadCatalog, run: Any) -> None:
    assert run("rollback", "a", "--steps", "2", "--yes").out.startswith("the newest checkpoint is ")
    assert run("rollback", "a", "--steps", "2", "--yes", "--json").json == {
        "thread_id": "a",
        "checkpoint_id": None,
    }
    assert run("fork", "b", "--as", "a").code == 0
    assert run("rollback", "a", "--yes").out == "no checkpoint is left, and no thread\n"
    assert run("trim", "b", "--keep", "1", "--yes").out == (
        "removed 3 checkpoints, 0 writes and 0 chunks of 0 bytes\n"
    )
    assert run("purge", "c", "--yes", "--json").json == {
        "checkpoints": 4,
        "writes": 0,
        "chunks": 0,
        "bytes": 0,
    }
    assert counts_of(saver) == {"b": 1}


def test_nothing_is_removed_without_yes_where_nobody_can_be_asked(
    saver: ForkpointSaver, catalog: ThreadCatalog, run: Any
) -> None:
    for command in (
        *(["rollback", "a"], ["trim", "a", "--keep", "1"], ["purge", "a"]),
        *(["delete", "--id", "a"], ["retain", "--max-checkpoints", "1"], ["sweep"]),
    ):
        outcome = run(*command)
        assert outcome.code == 2, command
        assert "pass --yes" in outcome.err
    assert counts_of(saver) == {"a": 4, "b": 4, "c": 4}


def test_nobody_is_asked_where_there_is_nothing_to_remove(
    saver: ForkpointSaver, catalog: ThreadCatalog, run: Any
) -> None:
    assert run("delete", "--tag", "none").out == "0 threads deleted\n"
    assert run("retain", "--max-idle", "90d").out == "0 threads deleted, 0 trimmed\n"
    assert run("repair").out == "0 problems repaired, 0 left\n"
    named = run("retain", "--keep-tag", "t", "--yes")
    assert (named.code, "--max-idle" in named.err) == (2, True)


def test_threads_that_match_are_deleted(
    saver: ForkpointSaver, catalog: ThreadCatalog, run: Any
) -> None:
    catalog.update("a", tags=["old"])
    catalog.update("b", tags=["old"])
    assert run("delete", "--tag", "old", "--dry-run").out == "2 threads matching\n"
    assert run("delete", "--tag", "old", "--yes", "--json").json == {"deleted": 2}
    assert run("delete", "--yes").code == 2
    assert counts_of(saver) == {"c": 4}


def test_a_policy_comes_from_flags_or_a_file(
    saver: ForkpointSaver, catalog: ThreadCatalog, run: Any, tmp_path: Path
) -> None:
    catalog.update("a", tags=["keep"])
    policy = tmp_path / "policy.toml"
    policy.write_text('max_checkpoints_per_thread = 2\nmax_age = "52w"\nkeep_tags = ["keep"]\n')
    planned = run("retain", "--policy", str(policy), "--dry-run").out.splitlines()
    assert planned[-1] == "0 threads would be deleted, 2 would be trimmed"
    assert counts_of(saver) == {"a": 4, "b": 4, "c": 4}
    done = run("retain", "--policy", str(policy), "--id", "b", "--yes", "--json").json
    assert done == {"deleted": [], "trimmed": ["b"], "busy": [], "failed": {}, "dry_run": False}
    assert run("retain", "--policy", str(policy), "--max-checkpoints", "1", "--yes").code == 0
    assert counts_of(saver) == {"a": 4, "b": 1, "c": 1}
    for text in (
        "max_ages = '1d'",
        "max_age = 'soon'",
        "max_age",
        'max_checkpoints_per_thread = "1"',
    ):
        policy.write_text(text)
        assert run("retain", "--policy", str(policy), "--dry-run").code == 2, text
    assert run("retain", "--dry-run").code == 2


def test_a_sweep_deletes_what_has_expired(
    saver: ForkpointSaver, catalog: ThreadCatalog, store: Store, run: Any, tmp_path: Path
) -> None:
    catalog.update("a", ttl=timedelta(hours=1))
    catalog.update("b", ttl=timedelta(hours=1), on_expiry="keep_latest")
    for thread_id in "ab":
        store.age(thread_id, updated_at=2 * 3_600_000_000)
    archive = tmp_path / "archive.jsonl"
    swept = run("sweep", "--yes", "--archive", str(archive)).out.splitlines()
    assert swept == ["deleted  a", "trimmed  b", "1 thread deleted, 1 trimmed"]
    assert counts_of(saver) == {"b": 1, "c": 4}
    restored = run("restore", str(archive), "--json").json
    assert (restored["threads"], restored["checkpoints"]) == (1, 4)


def test_what_cannot_be_archived_stays_and_is_named(
    saver: ForkpointSaver, catalog: ThreadCatalog, store: Store, run: Any, tmp_path: Path
) -> None:
    key = store.thread("a").key
    for row in store.rows("checkpoints"):
        if row.thread == key:
            store.change("checkpoints", row.key, content=b"damaged")
    store.be_old("updated_at")
    policy = ["--max-idle", "1d", "--archive", str(tmp_path / "archive.jsonl"), "--yes"]
    done = run("retain", *policy)
    assert done.code == 1
    *deleted, failed, sums = done.out.splitlines()
    assert sorted(deleted) == ["deleted  b", "deleted  c"]
    assert failed.startswith("failed  a: ")
    assert sums == "2 threads deleted, 0 trimmed"
    assert catalog.count() == 1
    assert run("retain", *policy, "--json").json["failed"].keys() == {"a"}


def test_sweeps_are_some_time_apart(catalog: ThreadCatalog, run: Any) -> None:
    for every in ("0s", "0d0h", "soon"):
        assert run("sweep", "--every", every, "--yes").code == 2


def test_an_archive_that_cannot_be_written_to_is_refused(
    saver: ForkpointSaver, catalog: ThreadCatalog, run: Any
) -> None:
    outcome = run("retain", "--max-checkpoints", "1", "--archive", "/dev/full", "--yes")
    assert outcome.code == 2
    assert "/dev/full" in outcome.err
    assert counts_of(saver) == {"a": 4, "b": 4, "c": 4}


def test_migrate_makes_a_store_where_that_was_meant(new_store: Any, tmp_path: Path) -> None:
    store = new_store()
    for command in (["threads"], ["migrate"], ["purge", "a", "--yes"]):
        outcome = forkpoint(*command, store=store)
        assert outcome.code == 3, command
        assert "there is no store" in outcome.err
    assert forkpoint("migrate", "--create", store=store).out == (
        "the store is ready; its schema has version 1\n"
    )
    assert forkpoint("migrate", "--json", store=store).json == {"schema_version": 1}
    assert forkpoint("threads", "--json", store=store).json["threads"] == []
