"""The commands that move threads, on both backends."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver as OfficialSaver
from langgraph.types import Command

from checking import counts_of, put, value_of
from command_line import forkpoint
from forkpoint import SqliteSaver, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES
from stores import Store


@pytest.fixture
def run(store: Store) -> Any:
    return functools.partial(forkpoint, store=store)


@pytest.fixture
def catalog(saver: ForkpointSaver) -> ThreadCatalog:
    for thread_id in "ab":
        head: Any = None
        for n in range(3):
            head = put(saver, {"n": n, "text": "text " * 1000}, parent=head, thread_id=thread_id)
    catalog = ThreadCatalog(saver)
    catalog.update("a", label="first", tags=["t"])
    return catalog


@pytest.mark.parametrize("name", ["archive.jsonl", "archive.jsonl.gz"])
def test_threads_are_archived_and_restored(
    name: str, saver: ForkpointSaver, catalog: ThreadCatalog, run: Any, tmp_path: Path
) -> None:
    file = str(tmp_path / name)
    assert run("archive", file, "--tag", "t").out == "1 thread archived, 3 checkpoints, 0 writes\n"
    said = run("archive", file, "--id", "b", "--json").json
    assert (said["threads"], said["checkpoints"], said["failed"]) == (1, 3, {})
    before = [value_of(found) for found in saver.history("a")]
    assert run("purge", "a", "--yes").code == 0

    refused = run("restore", file)
    assert refused.code == 1
    assert refused.out.splitlines()[0].startswith("not restored  b: there is a thread 'b'")
    assert [value_of(found) for found in saver.history("a")] == before
    restored = catalog.get("a")
    assert restored is not None
    assert (restored.label, restored.tags) == ("first", ("t",))
    renamed = run("restore", file, "--id", "b", "--rename", "b=c", "--json")
    assert (renamed.code, renamed.json["threads"]) == (0, 1)
    assert counts_of(saver) == {"a": 3, "b": 3, "c": 3}
    assert run("restore", file, "--rename", "b").code == 2
    assert run("restore", str(tmp_path / "nothing.jsonl")).code == 2


def test_what_is_damaged_in_an_archive_is_named(
    saver: ForkpointSaver, catalog: ThreadCatalog, run: Any, tmp_path: Path
) -> None:
    file = tmp_path / "archive.jsonl"
    assert run("archive", str(file), "--id", "a").code == 0
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:1], b"{" + lines[1][2:], *lines[2:]]))
    assert run("purge", "a", "--yes").code == 0
    outcome = run("restore", str(file))
    assert outcome.code == 1
    assert "damaged  line 2 of the archive" in outcome.out
    assert run("restore", str(file), "--rename", "a=c", "--json").json["damaged"]


def test_threads_are_imported_from_the_official_saver(
    saver: ForkpointSaver, run: Any, tmp_path: Path
) -> None:
    source = str(tmp_path / "official.db")
    config: Any = {"configurable": {"thread_id": "asking"}}
    with OfficialSaver.from_conn_string(source) as official:
        SHAPES["interrupts"].build(official).invoke({"items": []}, config)
        chat = SHAPES["chat"]
        chat.build(official).invoke(chat.inputs[0], {"configurable": {"thread_id": "chat"}})
    saver.setup()
    arguments = ["import", source, "--from", "langgraph-sqlite"]
    only = run(*arguments, "--id", "chat", "--verify")
    assert only.out == "1 thread imported, 3 checkpoints, 4 writes, 3 compared\n"
    said = run(*arguments, "--json").json
    assert (said["threads"], said["unchanged"]) == (1, 1)
    assert run(*arguments, "--since", "1s", "--tag", "x").code == 2
    graph = SHAPES["interrupts"].build(saver)
    assert graph.get_state(config).interrupts
    assert graph.invoke(Command(resume="one"), config)


def test_what_differs_from_the_source_is_named(
    saver: ForkpointSaver, run: Any, tmp_path: Path
) -> None:
    source = str(tmp_path / "source.db")
    saver.setup()
    with SqliteSaver(source) as other:
        head = put(other, {"n": 1}, thread_id="x")
        assert run("import", source, "--from", "forkpoint").code == 0
        put(other, {"n": 2}, thread_id="x", parent=head)
        assert run("import", source, "--from", "forkpoint").code == 0
        saver.trim("x", 1)
    compared = run("import", source, "--from", "forkpoint", "--verify")
    first = head["configurable"]["checkpoint_id"]
    assert compared.code == 1
    assert compared.out.splitlines() == [
        f"differs  x at {first}: it is missing",
        "0 threads imported, 1 there already, 0 checkpoints, 0 writes, 1 compared",
    ]


def test_threads_are_imported_from_another_store(
    saver: ForkpointSaver, run: Any, tmp_path: Path
) -> None:
    source = str(tmp_path / "source.db")
    with SqliteSaver(source) as other:
        for thread_id in "xyz":
            put(other, {"n": 1}, thread_id=thread_id)
        ThreadCatalog(other).update("x", tags=["t"])
        put(other.for_owner("acme"), {"n": 2}, thread_id="theirs")
    arguments = ["import", source, "--from", "forkpoint"]
    saver.setup()
    assert run(*arguments, "--label", "").code == 2  # such as of a variable that is not set
    assert run(*arguments, "--tag", "t").out.startswith("1 thread imported, 1 checkpoint")
    assert counts_of(saver) == {"x": 1}
    some = run(*arguments, "--id", "x", "--id", "mistyped")
    assert (some.code, "there is no thread 'mistyped'" in some.out) == (1, True)
    assert run("--owner", "acme", *arguments).code == 0
    assert counts_of(saver) == {"x": 1, "theirs": 1}
    assert run(*arguments).code == 0
    assert len(counts_of(saver)) == 4
    assert run("import", str(tmp_path / "no.db"), "--from", "forkpoint").code == 3


FACTORY = """
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver

def make():
    saver = InMemorySaver()
    config = {"configurable": {"thread_id": "made", "checkpoint_ns": ""}}
    saver.put(config, {**empty_checkpoint(), "channel_values": {}}, {}, {})
    return saver

kept = make()
number = 7

def failing():
    raise ConnectionError("nobody answers")

def choosing(which):
    return saver
"""


def test_threads_are_imported_from_what_a_factory_makes(
    saver: ForkpointSaver, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "sources_of_mine", raising=False)
    (tmp_path / "sources_of_mine.py").write_text(FACTORY)
    saver.setup()
    for name in ("make", "kept"):
        outcome = run("import", f"sources_of_mine:{name}", "--from", "saver")
        assert outcome.out.startswith("1 thread imported, 1 checkpoint")
        assert run("purge", "made", "--yes").code == 0
    (tmp_path / "failing_module_of_mine.py").write_text("1 / 0")
    for name in (
        "sources_of_mine",
        "sources_of_mine:nothing",
        "sources_of_mine:number",
        "no_module_of_mine:make",
        "failing_module_of_mine:make",
        ":make",
    ):
        assert run("import", name, "--from", "saver").code == 2
    failed = run("import", "sources_of_mine:failing", "--from", "saver")
    assert failed.code == 3
    assert "nobody answers" in failed.err
    assert run("import", "sources_of_mine:choosing", "--from", "saver").code == 3
    assert run("import", "x", "--from", "nowhere").code == 2
    assert run("import", str(tmp_path / "no.db"), "--from", "langgraph-sqlite").code == 3


def test_a_store_is_made_to_import_into_where_that_was_meant(
    new_store: Any, tmp_path: Path
) -> None:
    with SqliteSaver(tmp_path / "source.db") as source:
        put(source, {"n": 1}, thread_id="x")
    store, file = new_store(), str(tmp_path / "archive.jsonl")
    assert forkpoint("archive", file, store=str(tmp_path / "source.db")).code == 0
    assert forkpoint("restore", file, store=store).code == 3
    assert forkpoint("restore", file, "--create", store=store).code == 0
    assert forkpoint("threads", "--count", store=store).out == "1\n"
