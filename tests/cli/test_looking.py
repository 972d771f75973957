"""The commands that look, on both backends: what they print for people and for machines."""

from __future__ import annotations

import functools
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from typer.main import get_command

from checking import encrypted_serde, id_of, put
from command_line import Outcome, forkpoint
from forkpoint import ThreadCatalog
from forkpoint.cli.app import app
from forkpoint.saver.saver import ForkpointSaver
from graphs import SHAPES
from stores import Store

EVIL = "evil\x1b[31m\nthread"


def config(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "user_id": "u1"}}


def ask(graph: Any, thread_id: str, text: str) -> None:
    graph.invoke({"messages": [HumanMessage(text, id=text)], "document": "d"}, config(thread_id))


@pytest.fixture
def ids(saver: ForkpointSaver) -> list[str]:
    """The ids of the checkpoints of thread `case-7`. It has a fork, `case-7b`, and a tag."""
    graph = SHAPES["chat"].build(saver)
    ask(graph, "case-7", "Hello")
    ask(graph, "case-7", "A refund, please")
    fork = saver.fork(saver.at("case-7", 2).config, new_thread_id="case-7b")
    ask(graph, fork["configurable"]["thread_id"], "An \x1b[2Jexchange")
    ThreadCatalog(saver).update("case-7", label="A refund", tags=["support", "money"])
    return [found.checkpoint["id"] for found in saver.history("case-7", values=False)]


@pytest.fixture
def run(store: Store) -> Any:
    return functools.partial(forkpoint, store=store)


def lines(outcome: Outcome) -> list[list[str]]:
    assert outcome.code == 0, outcome
    return [line.split() for line in outcome.out.splitlines()]


def test_threads_are_listed_and_found(ids: list[str], saver: ForkpointSaver, run: Any) -> None:
    ThreadCatalog(saver).create(EVIL, label="\x07bell")
    listed = run("threads", "--sort", "thread_id", "--ascending").out.splitlines()
    assert [line.split()[0] for line in listed] == [
        *("THREAD", "case-7", "case-7b", "evil\\x1b[31m\\nthread")
    ]
    assert listed[1].split()[:2] == ["case-7", "idle"]
    assert listed[1].endswith("6            A refund  money, support")
    assert "\\x07bell" in listed[3]
    assert lines(run("threads", "--tag", "support", "--metadata", "user_id=u1"))[1][0] == "case-7"
    assert run("threads", "--count", "--source", "case-7").out == "1\n"
    assert run("threads", "--count", "--status", "busy", "--json").json == {"count": 0}

    first = run("threads", "--limit", "1", "--sort", "thread_id", "--json").json
    assert [thread["thread_id"] for thread in first["threads"]] == [EVIL]
    cursor = first["next_cursor"]
    rest = run("threads", "--sort", "thread_id", "--cursor", cursor, "--json").json
    assert [thread["thread_id"] for thread in rest["threads"]] == ["case-7b", "case-7"]
    assert rest["threads"][1]["tags"] == ["money", "support"]
    assert rest["threads"][1]["metadata"] == {"user_id": "u1"}
    assert rest["next_cursor"] is None
    assert rest["damaged"] == []
    assert run("threads", "--limit", "1").out.splitlines()[-1].startswith("more: --cursor ")


def test_threads_are_found_by_their_times(ids: list[str], store: Store, run: Any) -> None:
    day = 86_400_000_000
    store.age("case-7", created_at=10 * day, updated_at=9 * day)
    now = datetime.now(timezone.utc)
    week_ago = now - timedelta(days=7)
    for when in ("7d", week_ago.isoformat(), f"{week_ago:%Y-%m-%dT%H:%MZ}", f"{week_ago:%Y-%m-%d}"):
        for option in ("created", "updated"):
            (old,) = run("threads", f"--{option}-before", when, "--json").json["threads"]
            (new,) = run("threads", f"--{option}-after", when, "--json").json["threads"]
            assert (old["thread_id"], new["thread_id"]) == ("case-7", "case-7b")
    assert run("threads", "--count", "--updated-after", f"{now:%Y}-01-01T00:00+14:00").code == 0
    for when in ("soon", "2026-02-30", "7", "-7d", "9" * 20 + "d", "999999999w", "999999999d"):
        outcome = run("threads", "--created-before", when)
        assert outcome.code == 2, when
        assert when in outcome.err


def test_a_thread_is_shown_with_who_runs_on_it(
    ids: list[str], saver: ForkpointSaver, run: Any
) -> None:
    shown = dict(line.split(maxsplit=1) for line in run("show", "case-7").out.splitlines())
    assert shown["thread"] == "case-7"
    assert shown["metadata"] == '{"user_id": "u1"}'
    assert shown["checkpoints"] == "6"
    assert "run" not in shown
    with ThreadCatalog(saver).run("case-7b"):
        assert "run by" in run("show", "case-7b").out
        said = run("show", "case-7b", "--json").json
    assert said["lease"]["holder"]
    assert said["thread"]["source_checkpoint_id"] == ids[2]
    assert run("show", "nobody") == (2, "", "Error: there is no thread 'nobody'\n")


def test_what_a_thread_waits_for_is_shown(saver: ForkpointSaver, run: Any) -> None:
    SHAPES["interrupts"].build(saver).invoke({"items": []}, config("asking"))
    assert "waits for" in run("show", "asking").out
    assert run("threads", "--status", "interrupted", "--count").out == "1\n"


def test_what_a_thread_waits_for_is_not_nothing_where_it_cannot_be_read(new_store: Any) -> None:
    store = new_store()
    with store.saver(serde=encrypted_serde(b"0123456789abcdef")) as saver:
        SHAPES["interrupts"].build(saver).invoke({"items": []}, config("asking"))
    shown = forkpoint("show", "asking", store=store).out.splitlines()[-1]
    assert shown == "waits for    (what cannot be read here)"


def test_the_namespaces_of_subgraphs_are_named_by_one_that_is_not_there(
    saver: ForkpointSaver, run: Any
) -> None:
    put(saver, {"n": 0})
    assert run("state", "thread", "--namespace", "?").err.endswith("in the namespace '?'\n")
    for number in range(12):
        put(saver, {"n": number}, ns=f"child:{number}")
    asked = run("state", "thread", "--namespace", "?")
    assert asked.code == 2
    assert "'?'; there are 'child:11', 'child:10', " in asked.err
    assert asked.err.endswith("'child:2', and 2 older ones\n")
    assert run("state", "thread", "--namespace", "child:7", "--json").json["values"] == {"n": 7}


def test_the_state_of_a_subgraph_is_shown_at_any_of_its_checkpoints(
    saver: ForkpointSaver, run: Any
) -> None:
    put(saver, {"n": "outer"})
    configs = [put(saver, {"n": number}, ns="child") for number in range(3)]
    places = {
        "thread": 2,
        "thread@0": 0,
        "thread@-2": 1,
        f"thread@{id_of(configs[1])}": 1,
    }
    for place, number in places.items():
        shown = run("state", place, "--namespace", "child", "--json")
        assert shown.json["values"] == {"n": number}, place
    for place in ("thread@3", "thread@-4", "thread@0"):
        namespace = "other" if place == "thread@0" else "child"
        assert run("state", place, "--namespace", namespace).code == 2
    assert run("state", "thread@0", "--namespace", "", "--json").json["values"] == {"n": "outer"}


def test_each_option_says_what_it_takes() -> None:
    command: Any = get_command(app)
    for name, each in [("", command), *command.commands.items()]:
        assert [option.name for option in each.params if not _says_what_it_takes(option)] == [], (
            name
        )


def _says_what_it_takes(option: Any) -> bool:
    return bool(option.metavar) or getattr(option, "is_flag", False) or "completion" in option.name


def test_a_place_that_is_not_there_is_named(saver: ForkpointSaver, run: Any) -> None:
    head = put(saver, {"n": 1})["configurable"]["checkpoint_id"]
    nowhere = f"thread@{head[:-12]}{'0' * 12}"
    for place, reason in (
        ("nobody", "thread 'nobody'"),
        ("thread@x", "thread 'thread@x'"),
        (nowhere, f"checkpoint at '{nowhere}'"),
    ):
        assert run("state", place) == (2, "", f"Error: there is no {reason}\n")


def test_a_history_has_a_line_for_each_checkpoint(ids: list[str], run: Any) -> None:
    assert lines(run("history", "case-7")) == [
        ["INDEX", "CHECKPOINT", "STEP", "SOURCE", "NEXT", "CHANGED"],
        ["0", ids[0], "-1", "input", "__start__"],
        ["1", ids[1], "0", "loop", "answer", "document,", "messages"],
        ["2", ids[2], "1", "loop", "messages"],
        ["3", ids[3], "2", "input", "__start__"],
        ["4", ids[4], "3", "loop", "answer", "document,", "messages"],
        ["5", ids[5], "4", "loop", "messages"],
    ]
    newest = lines(run("history", "case-7", "--newest-first", "--limit", "2"))
    assert [line[:2] for line in newest[1:]] == [["-1", ids[5]], ["-2", ids[4]]]
    said = run("history", "case-7", "--limit", "2", "--json").json
    assert [one["index"] for one in said] == [0, 1]
    assert said[1]["next"] == ["answer"]
    assert said[1]["changed"] == ["document", "messages"]
    assert said[1]["parent_checkpoint_id"] == ids[0]
    assert "values" not in said[1]
    whole = run("history", "case-7", "--values", "--newest-first", "--json").json
    assert [message["content"] for message in whole[0]["values"]["messages"]][2] == (
        "A refund, please"
    )
    assert "  human: Hello" in run("history", "case-7", "--values").out
    assert run("history", "nobody", "--newest-first").code == 2
    assert run("history", "case-7", "--limit", "0", "--json").json == []


def test_a_state_is_shown_at_any_checkpoint(ids: list[str], run: Any) -> None:
    text = run("state", "case-7b").out
    assert "messages: 4 elements\n  human: Hello\n" in text
    assert "human: An \\x1b[2Jexchange" in text
    assert "document: 'd'" in text
    for place in ("case-7@2", f"case-7@{ids[2]}", "case-7@-4"):
        said = run("state", place, "--json").json
        assert said["checkpoint_id"] == ids[2]
        assert [one["type"] for one in said["values"]["messages"]] == ["human", "ai"]
    assert run("state", "case-7", "--channel", "document").out == '"d"\n'
    assert run("state", "case-7", "--channel", "document", "--json").json["values"] == {
        "document": "d"
    }
    assert run("state", "case-7@1").out.count("write to messages") == 1
    assert run("state", "case-7", "--channel", "x").code == 2
    missing = run("state", "case-7", "--channel", "x", "--json")
    assert (missing.code, "there are ['document', 'messages']" in missing.err) == (2, True)
    assert run("state", "case-7@99").code == 2
    assert run("state", "case-7", "--namespace", "nothing").code == 2


def test_of_a_long_list_the_end_is_shown_and_of_writes_those_of_nodes(
    saver: ForkpointSaver, run: Any
) -> None:
    head = put(saver, {"items": [f"item {number}" for number in range(25)]})
    writes = [("branch:to:node", None), ("items", "next"), ("__interrupt__", "why?")]
    saver.put_writes(head, writes, "task")
    shown = run("state", "thread").out.splitlines()
    assert shown[-24:-21] == ["items: 25 elements", "  … 5 before", "  'item 5'"]
    assert shown[-2:] == ["write to __interrupt__: 'why?'", "write to items: 'next'"]


def test_threads_that_are_damaged_are_named(
    ids: list[str], store: Store, saver: ForkpointSaver, run: Any
) -> None:
    store.change("threads", store.thread("case-7").key, label="another")
    listed = run("threads")
    assert listed.code == 1
    assert "case-7b" in listed.out
    assert "'case-7'" in listed.err
    said = run("threads", "--json")
    assert (said.code, len(said.json["damaged"])) == (1, 1)


def test_an_id_with_an_at_sign_is_one_unless_it_ends_like_a_place(
    saver: ForkpointSaver, run: Any
) -> None:
    graph = SHAPES["chat"].build(saver)
    for thread_id in ("bob@example.com", "bob@1"):
        ask(graph, thread_id, thread_id)
    for place, thread_id in (
        ("bob@example.com", "bob@example.com"),
        ("bob@example.com@0", "bob@example.com"),
        ("bob@1@", "bob@1"),
        ("bob@1@-1", "bob@1"),
    ):
        assert run("state", place, "--json").json["thread_id"] == thread_id
    assert run("state", "bob@1").code == 2  # the second checkpoint of bob


def test_states_are_compared(ids: list[str], run: Any) -> None:
    differing = run("diff", "case-7", "case-7b")
    assert differing.code == 1
    assert "- human: A refund, please" in differing.out
    assert "+ human: An \\x1b[2Jexchange" in differing.out
    said = run("diff", "case-7", "case-7b", "--json")
    assert said.code == 1
    assert said.json["channels"]["document"]["status"] == "unchanged"
    assert said.json["channels"]["messages"]["removed"][0]["content"] == "A refund, please"
    same = run("diff", "case-7@2", f"case-7@{ids[2]}")
    assert same == (0, "2 channels unchanged: document, messages\n", "")


def test_a_family_is_drawn(ids: list[str], run: Any) -> None:
    text = run("family", "case-7b").out.splitlines()
    assert text[0] == "case-7  (6 checkpoints)"
    assert text[1].startswith("└─ case-7b ← this thread  forked at step 1")
    assert run("family", "case-7", "--svg").out.startswith("<svg")
    assert run("family", "case-7", "--mermaid").out.startswith("flowchart")
    said = run("family", "case-7", "--json").json
    assert [(one["thread_id"], one["edge"], one["is_current"]) for one in said] == [
        ("case-7", None, True),
        ("case-7b", "fork", False),
    ]
    assert run("family", "case-7", "--svg", "--json").code == 2


def test_what_a_thread_takes_is_said(ids: list[str], run: Any) -> None:
    said = run("stats", "case-7", "--json").json
    assert said["checkpoints"] == 6
    assert said["bytes_shared"] <= said["bytes_stored"]
    text = dict(line.rsplit(maxsplit=1) for line in run("stats", "case-7").out.splitlines()[:2])
    assert text["checkpoints"] == "6"
    whole = run("stats", "--json").json
    assert (whole["threads"], whole["checkpoints"]) == (2, 10)
    assert whole["bytes_unshared"] >= whole["bytes_stored"] >= said["bytes_stored"]
    assert run("stats", "--tag", "support", "--json").json["checkpoints"] == 6
    assert "saved by sharing  " in run("stats").out
    assert run("stats", "case-7", "--tag", "support").code == 2


def test_an_owner_confines_every_command(saver: ForkpointSaver, run: Any) -> None:
    for owner in ("acme", "other"):
        ask(SHAPES["chat"].build(saver.for_owner(owner)), f"{owner}-1", "Hello")
    assert lines(run("--owner", "acme", "threads"))[1][0] == "acme-1"
    assert len(run("--owner", "acme", "threads").out.splitlines()) == 2
    for command in (
        *(["show", "other-1"], ["history", "other-1"], ["state", "other-1"]),
        *(["diff", "acme-1", "other-1"], ["family", "other-1"], ["stats", "other-1"]),
        *(["fork", "other-1"], ["clone", "other-1"], ["rollback", "other-1", "--yes"]),
        *(["trim", "other-1", "--keep", "1", "--yes"], ["purge", "other-1", "--yes"]),
    ):
        assert run("--owner", "acme", *command).code == 2, command
    assert run("--owner", "acme", "delete", "--id", "other-1", "--yes").out == "0 threads deleted\n"
    assert run("--owner", "acme", "retain", "--max-checkpoints", "1", "--yes").out.splitlines() == [
        "trimmed  acme-1",
        "0 threads deleted, 1 trimmed",
    ]
    assert run("stats", "other-1", "--json").json["checkpoints"] == 3
