"""Digest text files with a LangGraph graph that survives being killed.

    python examples/quickstart.py                   digest the README, section by section
    python examples/quickstart.py --stop-after 2    the same, killed half-way (SIGKILL)
    python examples/quickstart.py --history         what was stored, step by step

Run a command again after its process was killed, and it goes on where it was. There is no model
in it, so it needs no key and no network: all it knows is frequent words and first sentences.
"""

from __future__ import annotations

import argparse
import operator
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Overwrite

from forkpoint import ForkpointError, SqliteSaver

README = Path(__file__).resolve().parent.parent / "README.md"


class Note(TypedDict):
    title: str
    key_words: list[str]
    summary: str


class State(TypedDict):
    """What a checkpoint holds. `notes` grows, the rest is replaced."""

    paths: list[str]
    document: str
    starts: list[int]  # where in the document each section starts
    notes: Annotated[list[Note], operator.add]
    digest: str


@dataclass(frozen=True)
class Pace:
    """What the nodes are told, and no checkpoint holds."""

    seconds_per_section: float


class InputError(Exception):
    """What the command line asks for cannot be done."""


# The graph: read, split, a note for each section, combine


def build_graph(saver: SqliteSaver) -> CompiledStateGraph[State, Pace, State, State]:
    graph = StateGraph(State, context_schema=Pace)
    for node in (read, split, note, combine):
        graph.add_node(node)
    graph.add_edge(START, "read")
    graph.add_edge("read", "split")
    graph.add_edge("split", "note")
    graph.add_conditional_edges("note", after_note)
    return graph.compile(checkpointer=saver)


def read(state: State) -> dict[str, Any]:
    document = "\n\n".join(read_text(path) for path in state["paths"])
    print(f"read     {len(document):,} characters")
    return {"document": document}


def split(state: State) -> dict[str, Any]:
    """Cut at the Markdown headings, or after every tenth paragraph if there are none."""
    document = state["document"]
    # Blocks of code are matched whole, as a comment in one looks like a heading.
    matches = re.finditer(r"(?ms)^```.*?^```|^(#{1,6}) ", document)
    headings = [match.start() for match in matches if match[1]]
    paragraphs = [match.end() for match in re.finditer(r"\n\s*\n", document)]
    starts = sorted({0, *(headings or paragraphs[9::10])})
    print(f"split    {len(starts)} sections")
    return {"starts": starts}


def note(state: State, runtime: Runtime[Pace]) -> dict[str, Any]:
    """Take a note of the first section that has none yet."""
    time.sleep(runtime.context.seconds_per_section)
    number = len(state["notes"])
    start, end = [*state["starts"], None][number : number + 2]
    text = state["document"][start:end]
    title = text.splitlines()[0].strip("# ")[:60]
    print(f"note     {number + 1} of {len(state['starts'])}: {title}")
    return {"notes": [Note(title=title, key_words=key_words(text), summary=summary(text))]}


def after_note(state: State) -> Literal["note", "combine"]:
    return "note" if len(state["notes"]) < len(state["starts"]) else "combine"


def combine(state: State) -> dict[str, Any]:
    lines = [f"Frequent in all: {', '.join(key_words(state['document']))}"]
    for number, taken in enumerate(state["notes"], start=1):
        lines.append(f"{number}. {taken['title']} [{', '.join(taken['key_words'])}]")
        if taken["summary"]:
            lines.append(f"   {taken['summary']}")
    print(f"combine  {len(state['notes'])} notes")
    return {"digest": "\n".join(lines)}


def read_text(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{path} is no text in UTF-8")
    if not text:
        raise InputError(f"{path} is empty: there is nothing to digest")
    return text


def key_words(text: str) -> list[str]:
    """Return the most frequent words. Short ones are left out: they are mostly grammar."""
    return [word for word, _ in Counter(re.findall(r"[^\W\d_]{6,}", text.lower())).most_common(4)]


def summary(text: str) -> str:
    """Return the first sentence of the first paragraph that begins with a letter."""
    prose = re.search(r"(?:^|\n\s*\n)([^\W\d_].*?)(?:\n\s*\n|$)", text, re.DOTALL)
    return re.split(r"(?<=[.!?])\s", prose[1])[0].replace("\n", " ") if prose else ""


# The command


def main() -> int:
    arguments = parse_arguments()
    config: RunnableConfig = {
        "configurable": {"thread_id": arguments.thread},
        "recursion_limit": 100_000,  # each section is a step, and there may be many
    }
    try:
        with SqliteSaver(arguments.db.absolute()) as saver:
            graph = build_graph(saver)
            if arguments.history:
                print_history(graph, config)
                return 0
            run(graph, config, arguments)
            whole = [len(saver.serde.dumps_typed(each.checkpoint)[1]) for each in saver.list(None)]
    except (InputError, ForkpointError) as error:
        print(f"quickstart.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        return 130
    size = arguments.db.stat().st_size
    print(f"\n{arguments.db}: {len(whole)} checkpoints, {size:,} bytes with all tables and indexes")
    print(f"The same checkpoints, each serialized whole: {sum(whole):,} bytes without any")
    print_suggestions(arguments)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Digest text files, section by section.")
    parser.add_argument("files", nargs="*", type=Path, help="text files (default: the README)")
    parser.add_argument("--db", type=Path, default="quickstart.db", help="default: %(default)s")
    parser.add_argument("--thread", default="quickstart", help="default: %(default)s")
    parser.add_argument("--slow", type=float, default=0, metavar="SECONDS", help="for each section")
    parser.add_argument("--stop-after", type=int, metavar="N", help="sections before a SIGKILL")
    parser.add_argument("--again", action="store_true", help="start a new run on the thread")
    parser.add_argument("--history", action="store_true", help="print what the thread stored")
    return parser.parse_args()


def run(graph: Any, config: RunnableConfig, arguments: argparse.Namespace) -> None:
    """Start the thread, or go on with it where it is unfinished."""
    paths = [str(path.resolve()) for path in arguments.files or [README]]
    stored = graph.get_state(config)
    new_input: dict[str, Any] | None = None
    if stored.created_at is None or arguments.again:
        for path in paths:
            read_text(path)  # what cannot be read is reported before anything is stored
        new_input = {"paths": paths, "notes": Overwrite([])}
        print(f"Thread {arguments.thread!r} starts: {', '.join(paths)}")
    elif arguments.files and paths != stored.values.get("paths"):
        raise InputError(f"thread {arguments.thread!r} has other files: --again, or --thread other")
    elif not stored.tasks:  # `next` leaves out a task with a result that no checkpoint has yet
        print(f"Thread {arguments.thread!r} is finished: {', '.join(stored.values['paths'])}")
        print("--again runs it once more; --thread other starts another one.")
        return
    else:
        print(f"Thread {arguments.thread!r} is unfinished, and goes on. Not done again:")
        for number, done in enumerate(stored.values.get("notes", []), start=1):
            print(f"stored   {number} of {len(stored.values['starts'])}: {done['title']}")

    sections = 0
    for kind, event in graph.stream(
        new_input,
        config,
        context=Pace(arguments.slow),
        stream_mode=["updates", "checkpoints"],
        durability="sync",  # a step begins when the checkpoint of the one before it is stored
    ):
        sections += kind == "updates" and "note" in event
        if kind == "checkpoints" and sections == arguments.stop_after:
            print("Killed. Run the same command again to go on.")
            # Windows has no SIGKILL; any signal ends a process at once there.
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    print(f"\n{graph.get_state(config).values['digest']}")


def print_history(graph: Any, config: RunnableConfig) -> None:
    states = list(graph.get_state_history(config))
    if not states:
        raise InputError(f"there is no thread {config['configurable']['thread_id']!r} yet")
    print("step  time (UTC)           next       sections done  checkpoint")
    for state in states:
        moment = state.created_at[:19].replace("T", " ")
        done = len(state.values.get("notes", []))
        checkpoint_id = state.config["configurable"]["checkpoint_id"]
        print(
            f"{state.metadata['step']:>4}  {moment}  {', '.join(state.next) or '-':<9}"
            f"  {done:>13}  ...{checkpoint_id[-12:]}"
        )


def print_suggestions(arguments: argparse.Namespace) -> None:
    files = map(str, arguments.files)
    options = ["--db", str(arguments.db), "--thread", arguments.thread]
    command = shlex.join(["python", sys.argv[0], *files, *options])
    print("\nTry next:")
    for ending in (" --history", " --again", "-2 --stop-after 2", "-2"):
        print(f"  {command}{ending}")


if __name__ == "__main__":
    # Lines must be out before the process may be killed, and on any terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
