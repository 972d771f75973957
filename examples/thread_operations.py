"""A support desk's morning: what a catalog of threads is for.

    python examples/thread_operations.py              on a database in memory
    python examples/thread_operations.py desk.db      on a file, to look at afterwards

A graph answers what customers ask; a refund waits for a person. There is one thread per user (what
is known of them), one per session (a visit), and one per topic (a case), told apart by tags and
metadata. In the morning the desk looks for cases that wait for an answer, tries an answer in a
sandbox, gives it, and archives what is old. There is no model in it, so it needs no key.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from forkpoint import (
    RetentionPolicy,
    SqliteSaver,
    StaleLease,
    ThreadBusy,
    ThreadCatalog,
    ThreadFilter,
)


class Case(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    facts: list[str]


def answer(case: Case) -> dict[str, Any]:
    """Answer what can be answered, and ask a person about money."""
    question = str(case["messages"][-1].content)
    if "refund" in question:
        decision = interrupt(f"May this be paid? {question}")
        return {"messages": [AIMessage(f"Your refund is {decision}.")]}
    return {"messages": [AIMessage(f"Thank you for {question!r}; it is noted.")]}


def learn(case: Case) -> dict[str, Any]:
    """Keep what was said in short: it is all that a successor of the thread needs."""
    said = [str(one.content) for one in case["messages"] if isinstance(one, HumanMessage)]
    return {"facts": [*case.get("facts", []), said[-1]]}


def main(database: str) -> None:
    saver = SqliteSaver(database)
    builder = StateGraph(Case)
    builder.add_node(answer)
    builder.add_node(learn)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", "learn")

    # What belongs to a customer of the desk is out of the reach of all others.
    desk = ThreadCatalog(saver, owner="acme")
    graph = builder.compile(checkpointer=desk.saver)

    yesterday(desk, graph)
    overview(desk)
    morning(desk, graph)
    runs_do_not_meet(desk, graph)
    roll_over(desk, graph)
    tidy_up(desk)
    overview(desk)
    saver.close()


def yesterday(desk: ThreadCatalog, graph: Any) -> None:
    """Fill the desk: what customers wrote while nobody was there."""
    heading("Yesterday")
    for user in ("ann", "ben"):
        desk.get_or_create(f"user-{user}", label=user.title(), tags=["user"])
        session = desk.create(tags=["session"], metadata={"user": user}, ttl=timedelta(minutes=30))
        say(graph, session.thread_id, "where is my order?")
    for number, (user, question) in enumerate(
        [("ann", "a refund of 20"), ("ben", "a refund of 900"), ("ben", "a manual for my kettle")]
    ):
        # A thread that a graph runs on is in the catalog without being made.
        config = {"configurable": {"thread_id": f"case-{number}", "user": user}}
        graph.invoke({"messages": [HumanMessage(question)]}, config)
        desk.update(f"case-{number}", label=question, tags=["case"])
    print(f"{desk.count()} threads, of which {desk.count(ThreadFilter(tags={'case'}))} are cases")


def morning(desk: ThreadCatalog, graph: Any) -> None:
    heading("Cases that wait for an answer, the oldest first")
    waiting = ThreadFilter(tags={"case"}, status="interrupted")
    for case in desk.walk(waiting, sort_by="created_at", descending=False):
        print(f"{case.thread_id}: {case.label} ({case.metadata['user']})")

    heading("Try an answer in a sandbox first")
    sandbox = desk.clone("case-1", "case-1-sandbox", tags=["sandbox"])
    print("in the sandbox:", resume(graph, sandbox.thread_id, "refused, it is too much"))
    assert desk.get("case-1").status == "interrupted"  # type: ignore[union-attr]
    desk.delete(sandbox.thread_id)

    heading("Answer them")
    for case in list(desk.walk(waiting)):
        print(f"{case.thread_id}:", resume(graph, case.thread_id, "on its way"))
    assert desk.count(waiting) == 0


def runs_do_not_meet(desk: ThreadCatalog, graph: Any) -> None:
    heading("One run at a time on a thread")
    with desk.run("case-2") as mine:
        try:
            with desk.run("case-2"):
                raise AssertionError("two runs at once")
        except ThreadBusy as busy:
            print(busy)
        with desk.run("case-2", if_busy="cancel") as theirs:
            say(graph, "case-2", "is it printed?", theirs.config)
            try:
                say(graph, "case-2", "hello?", mine.config)
            except StaleLease as stale:
                print(stale)


def roll_over(desk: ThreadCatalog, graph: Any) -> None:
    heading("A thread that has grown too long gets a successor")
    before = desk.stats("case-2")
    desk.rollover("case-2", "case-2-next", channels=["facts"])
    say(graph, "case-2-next", "thanks")
    state = graph.get_state({"configurable": {"thread_id": "case-2-next"}}).values
    print(f"{before.checkpoints} checkpoints before; it knows {state['facts']}")
    print(desk.saver.family("case-2"))


def tidy_up(desk: ThreadCatalog) -> None:
    heading("Archive and delete what is old, and keep the cases")
    old = RetentionPolicy(max_idle=timedelta(microseconds=1), keep_tags={"case", "user"})
    would = desk.apply_retention(old, dry_run=True)
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "archive.jsonl"
        result = desk.apply_retention(old, archive=archive)
        lines = [json.loads(line) for line in archive.read_text().splitlines()]
    assert result.deleted == would.deleted
    for line in lines:
        if "thread" in line:
            thread = line["thread"]
            print(f"{', '.join(thread['tags'])} of {thread['metadata'].get('user')}: ", end="")
        if "end" in line:
            print(f"{line['end']['checkpoints']} checkpoints archived")

    trimmed = desk.apply_retention(RetentionPolicy(max_checkpoints_per_thread=1)).trimmed
    print(f"trimmed: {', '.join(sorted(trimmed))}")
    print(f"expired: {len(desk.sweep().deleted)}")


def say(graph: Any, thread_id: str, text: str, config: Any = None) -> None:
    config = config or {"configurable": {"thread_id": thread_id}}
    graph.invoke({"messages": [HumanMessage(text)]}, config)


def resume(graph: Any, thread_id: str, decision: str) -> str:
    done = graph.invoke(Command(resume=decision), {"configurable": {"thread_id": thread_id}})
    return str(done["messages"][-1].content)


def overview(desk: ThreadCatalog) -> None:
    heading("The desk")
    for thread in desk.walk(sort_by="thread_id", descending=False):
        name = thread.label or thread.thread_id[-12:]
        print(
            f"{name:24} {','.join(thread.tags):10} {thread.status:12}"
            f"{thread.checkpoint_count:3} checkpoint{'s' * (thread.checkpoint_count != 1)}"
        )


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [":memory:"]))
