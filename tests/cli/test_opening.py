"""Which store a command is for, and what is said if it cannot be used."""

from __future__ import annotations

import functools
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver as OfficialSaver

from checking import encrypted_serde, put
from command_line import forkpoint, location
from forkpoint import SqliteSaver
from forkpoint.saver.saver import ForkpointSaver
from processes import run_program
from stores import MongoStore, Store

KEY = "0123456789abcdef"


def test_a_store_is_named_in_each_way(store: Store, saver: ForkpointSaver) -> None:
    put(saver, {"n": 1})
    place = location(store)
    names = [place] if isinstance(store, MongoStore) else [place, f"sqlite:///{place}"]
    for name in names:
        assert forkpoint("threads", "--count", store=name).out == "1\n"
        assert forkpoint("threads", "--count", FORKPOINT_STORE=name).out == "1\n"


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "mistyped.db"
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (n)")
    connection.close()
    text = tmp_path / "text"
    text.write_text("no database " * 1000)
    source = tmp_path / "source.db"
    assert forkpoint("migrate", "--create", store=str(source)).code == 0
    before = other.read_bytes()
    advice = "; `migrate --create` makes one"
    for path, reason in (
        (missing, f"there is no store at '{missing}'{advice}"),
        (other, f"there is no store at '{other}'{advice}"),
        (text, f"{text} is no SQLite database: file is not a database"),
        (tmp_path, f"{tmp_path} is a directory; give the path of a file in it"),
        (tmp_path / "no" / "directory.db", f"there is no directory {tmp_path / 'no'}"),
    ):
        assert forkpoint("threads", store=str(path)) == (3, "", f"Error: {reason}\n")
        imported = forkpoint("import", str(source), "--from", "forkpoint", store=str(path))
        assert (imported.code, imported.err[7:-1]) == (3, reason.replace(advice, "; pass --create"))
        importing = ("import", str(path), "--from", "forkpoint")
        refused = forkpoint(*importing, "--create", store=str(tmp_path / "target.db"))
        assert (refused.code, refused.err) == (3, f"Error: {reason.removesuffix(advice)}\n")
    assert not missing.exists()
    assert other.read_bytes() == before
    assert forkpoint("migrate", "--create", store=str(text)).code == 3


def test_the_store_of_langgraphs_own_saver_is_told_from_others(tmp_path: Path) -> None:
    path = str(tmp_path / "official.db")
    with OfficialSaver.from_conn_string(path) as official:
        official.setup()
    reads = "it is LangGraph's own saver's: `import --from langgraph-sqlite` reads it"
    refused = forkpoint("threads", store=path)
    assert refused == (3, "", f"Error: there is no store at {path!r}; {reads}\n")


def test_what_names_no_store_is_wrong_use() -> None:
    for name in (None, "", ":memory:", "postgresql://host/db", "mongodb://localhost/", "file:x"):
        outcome = forkpoint("threads", store=name)
        assert outcome.code == 2, name
        assert outcome.err.startswith("Error: ")
    assert forkpoint("--collection", "x", "threads", store="x.db").code == 2
    assert forkpoint("no-command", store="x.db").code == 2
    for option in ("--store", "--owner", "--collection", "--encrypted"):
        reason = f"{option} stands before the command: forkpoint {option} ..."
        assert forkpoint("threads", option, "x.db") == (2, "", f"Error: {reason} threads\n")
    assert forkpoint("threads", "--limit", "many", store="x.db").code == 2


@pytest.mark.parametrize(
    "store",
    [
        "postgresql://user:secret@host/db",
        "mysql://user:secret@host/db",
        "mongodb://user:sec[ret@127.0.0.1:1/db?serverSelectionTimeoutMS=1",
        "mongodb://user:sec/ret@host/db",
        "mongodb://user:secret@host/",
    ],
)
def test_no_error_has_the_password_that_names_a_store(store: str, path: Path) -> None:
    outcomes = [forkpoint("threads", store=store)]
    for kind in ("forkpoint", "langgraph-sqlite", "langgraph-postgres"):
        made = "import", store.replace("secret", "sec ret"), "--from", kind, "--create"
        outcomes.append(forkpoint(*made, store=str(path)))
    for outcome in outcomes:
        assert outcome.code in (2, 3)
        assert outcome.err.splitlines()[-1].startswith("Error: ")
        assert re.search(r"sec.?ret", outcome.err) is None, outcome.err


def test_a_server_that_is_not_there_has_its_own_code() -> None:
    uri = "mongodb://user:secret@127.0.0.1:1/db?serverSelectionTimeoutMS=1"
    outcome = forkpoint("threads", store=uri)
    assert outcome.code == 3
    reached = "(127.0.0.1:1: [Errno 111] Connection refused, Timeout: 0.001s)"
    assert f"no MongoDB primary can be reached {reached}; check " in outcome.err
    assert "secret" not in outcome.err


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("langgraph-mongodb", "mongodb://127.0.0.1:1/db?serverSelectionTimeoutMS=1"),
        ("langgraph-postgres", "postgresql://127.0.0.1:1/db"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(kind: str, source: str, path: Path) -> None:
    outcome = forkpoint("import", source, "--from", kind, "--create", store=str(path))
    assert outcome.code == 3
    assert outcome.err.endswith("Connection refused\n")
    assert outcome.err.count("\n") == 1
    assert not path.exists()


def test_a_collection_has_a_name(mongo_store: MongoStore) -> None:
    run = functools.partial(forkpoint, "--collection", "mine", store=mongo_store)
    assert run("threads").code == 3
    assert run("migrate", "--create").code == 0
    assert run("threads", "--count").out == "0\n"


def test_an_encrypted_store_needs_its_key(store: Store) -> None:
    with store.saver(serde=encrypted_serde(KEY.encode())) as saver:
        put(saver, {"text": "text"})
    run = functools.partial(forkpoint, store=store)
    said = run("--encrypted", "state", "thread", "--json", LANGGRAPH_AES_KEY=KEY)
    assert said.json["values"] == {"text": "text"}
    advice = "encrypted; pass --encrypted, with the key in LANGGRAPH_AES_KEY\n"
    for command in (["state", "thread"], ["check"], ["repair", "--yes"]):
        assert (without := run(*command)).code == 3
        assert without.err.endswith(advice)
        other = run("--encrypted", *command, LANGGRAPH_AES_KEY="another-key-0123")
        assert other.code == 3
        assert other.err.endswith("and --encrypted was passed with that in LANGGRAPH_AES_KEY\n")
        assert "serde" not in without.err + other.err
    assert run("--encrypted", "state", "thread", LANGGRAPH_AES_KEY="").code == 2
    assert run("--encrypted", "state", "thread", LANGGRAPH_AES_KEY="short").code == 2


def test_damage_has_its_own_code(store: Store, saver: ForkpointSaver) -> None:
    put(saver, {"text": "text " * 3000})
    (chunk,) = store.rows("chunks")
    taken = store.take("chunks", chunk.key)
    outcome = forkpoint("state", "thread", store=store)
    assert outcome.code == 1
    assert "thread 'thread'" in outcome.err
    assert forkpoint("history", "thread", store=store).code == 0  # it reads no value
    checked = forkpoint("check", store=store)
    assert checked.code == 1
    assert checked.out.splitlines()[0].startswith("thread 'thread', checkpoint '")
    assert checked.out.splitlines()[-1] == "1 thread, 1 checkpoint, 0 writes, 1 problem"
    (problem,) = forkpoint("check", "--json", store=store).json["problems"]
    assert (problem["thread_id"], problem["checkpoint_ns"]) == ("thread", "")
    store.give_back("chunks", taken)
    clean = "1 thread, 1 checkpoint, 0 writes, 0 problems\n"
    assert forkpoint("check", store=store) == (0, clean, "")


def test_beside_what_is_damaged_a_thread_is_shown_and_it_is_removed(
    store: Store, saver: ForkpointSaver
) -> None:
    parent = put(saver, {"n": 0})
    (row,) = store.rows("checkpoints")
    for number in (1, 2):
        parent = put(saver, {"n": number}, parent=parent)
    store.change("checkpoints", row.key, content=row.content[:-1])
    for order, indexes in (((), [1, 2]), (("--newest-first",), [-1, -2])):
        shown = forkpoint("history", "thread", *order, "--json", store=store)
        assert shown.code == 1
        assert [item["index"] for item in shown.json] == indexes
        assert shown.err.count("is not what was written") == 1
    assert forkpoint("rollback", "thread", "--yes", store=store).code == 0
    assert forkpoint("purge", "thread", "--yes", store=store).code == 0
    assert forkpoint("purge", "thread", "--yes", store=store).code == 2


def test_what_is_damaged_is_repaired_as_far_as_it_can_be_proved(
    store: Store, saver: ForkpointSaver, tmp_path: Path
) -> None:
    put(saver, {"text": "first " * 3000})
    before = {row.key for row in store.rows("chunks")}
    put(saver, {"text": "second " * 3000}, ns="inner:1")
    (chunk,) = [row for row in store.rows("chunks") if row.key not in before]
    store.take("chunks", chunk.key)
    run = functools.partial(forkpoint, store=store)
    assert run("check").code == 1
    left = run("repair", "--json")  # there is nothing that it could ask for
    assert (left.code, left.json["repaired"]) == (1, [])
    assert len(left.json["left"]) == 1
    *named, sums = run("repair").out.splitlines()
    assert [line.startswith("left  thread 'thread', checkpoint '") for line in named] == [True]
    assert " of namespace 'inner:1': " in named[0]
    assert sums == "0 problems repaired, 1 left"

    file = tmp_path / "quarantine.jsonl"
    asked = run("repair", "--quarantine", str(file))
    assert asked.code == 2
    assert "pass --yes" in asked.err
    planned = run("repair", "--quarantine", str(file), "--dry-run")
    assert planned.code == 1
    assert planned.out.startswith("would be repaired  thread 'thread', checkpoint '")
    assert not file.exists()
    done = run("repair", "--quarantine", str(file), "--yes")
    assert (done.code, done.out.splitlines()[-1]) == (0, "1 problem repaired, 0 left")
    assert file.read_text()
    assert run("check").code == 0
    assert run("state", "thread", "--channel", "text").out.startswith('"first first')


def test_the_key_of_a_store_is_changed(store: Store) -> None:
    keys = {"LANGGRAPH_AES_KEY": "another-key-0123", "FORKPOINT_OLD_AES_KEY": KEY}
    with store.saver(serde=encrypted_serde(KEY.encode())) as saver:
        put(saver, {"text": "first"})
    run = functools.partial(forkpoint, store=store)
    assert run("rekey", **keys).code == 2
    assert run("--encrypted", "rekey", LANGGRAPH_AES_KEY=KEY).code == 2
    short = run("--encrypted", "rekey", **{**keys, "FORKPOINT_OLD_AES_KEY": "short"})
    assert (short.code, "FORKPOINT_OLD_AES_KEY is no key" in short.err) == (2, True)
    assert run("--encrypted", "state", "thread", **keys).code == 0
    done = run("--encrypted", "rekey", **keys)
    assert done == (0, "1 content encrypted anew, 0 that neither key decrypts\n", "")
    again = run("--encrypted", "rekey", "--json", **keys)
    assert again.json == {"contents": 1, "rewritten": 0, "foreign": 0}
    new = run("--encrypted", "state", "thread", LANGGRAPH_AES_KEY=keys["LANGGRAPH_AES_KEY"])
    assert new.code == 0
    other = {"LANGGRAPH_AES_KEY": KEY, "FORKPOINT_OLD_AES_KEY": "a-third-key-0123"}
    assert run("--encrypted", "rekey", **other).code == 3
    (row,) = store.rows("checkpoints")
    store.change("checkpoints", row.key, content=b"damaged")
    assert run("--encrypted", "rekey", **keys).code == 1


def test_a_store_is_encrypted_and_no_longer(store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"text": "first"})
    run = functools.partial(forkpoint, store=store)
    to = {"LANGGRAPH_AES_KEY": KEY, "FORKPOINT_OLD_AES_KEY": "none"}
    done = run("--encrypted", "rekey", **to)
    assert done == (0, "1 content encrypted anew, 0 that neither key decrypts\n", "")
    assert run("state", "thread").code == 3
    assert run("--encrypted", "state", "thread", LANGGRAPH_AES_KEY=KEY).code == 0
    alone = run("--encrypted", "state", "thread", LANGGRAPH_AES_KEY="none")
    assert (alone.code, "must have the key" in alone.err) == (2, True)
    back = {"LANGGRAPH_AES_KEY": "none", "FORKPOINT_OLD_AES_KEY": KEY}
    assert run("--encrypted", "state", "thread", **back).code == 0
    done = run("--encrypted", "rekey", "--json", **back)
    assert done.json == {"contents": 2, "rewritten": 1, "foreign": 0}
    assert run("state", "thread").code == 0
    assert run("check").code == 0


PROGRAM = """
import sys
from dataclasses import dataclass
from langgraph.checkpoint.base import empty_checkpoint
from forkpoint import SqliteSaver

@dataclass
class Order:
    number: int
    paid: bool

with SqliteSaver(sys.argv[1]) as saver:
    config = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
    values = {"order": Order(7, True), "orders": [Order(8, False)]}
    checkpoint = {**empty_checkpoint(), "channel_values": values}
    saver.put(config, checkpoint, {}, dict.fromkeys(values, 1))
"""


def test_objects_of_an_application_that_is_not_there_are_shown(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "application.py"
    program.write_text(PROGRAM)
    assert run_program(program, path, directory=tmp_path).returncode == 0
    shown = forkpoint("state", "thread", store=str(path))
    assert shown.err == ""  # no advice of what to import
    text = shown.out
    assert "order: <stored __main__.Order: number=7, paid=True>" in text
    said = forkpoint("state", "thread", "--json", store=str(path)).json["values"]
    assert said["order"] == {"type": "__main__.Order", "fields": {"number": 7, "paid": True}}
    forked = forkpoint("fork", "thread", "--as", "fork", store=str(path))
    assert forked.out == "fork\n"
    assert forkpoint("diff", "thread", "fork", store=str(path)).code == 0


@dataclass
class Odd:
    values: Any


def test_a_value_that_is_no_json_is_shown_as_text(path: Path) -> None:
    odd = Odd({(1, 2): {3}, "nan": float("nan"), "bytes": b"\x00\x01", "text": "\x1b\ud800"})
    with SqliteSaver(path) as saver:
        put(saver, {"odd": odd, "deep": deep(150)})
    said = forkpoint("state", "thread", "--json", store=str(path)).json["values"]
    assert said["odd"] == {
        "values": {"(1, 2)": [3], "nan": "nan", "bytes": "AAE=", "text": "\x1b\ud800"}
    }
    text = forkpoint("state", "thread", "--channel", "odd", store=str(path)).out
    assert text.replace("\n", "").isprintable()


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=pytest.mark.slow)])
def test_a_shell_completes_commands(shell: str) -> None:
    asked = {
        "_FORKPOINT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "forkpoint hi",
        "COMP_WORDS": "forkpoint hi",
        "COMP_CWORD": "1",
    }
    assert "history" in forkpoint(**asked).out
