"""Commands that only look: threads, show, history, state, diff, family."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Annotated, Any

import typer
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from forkpoint.catalog.threads import LeaseHolder, Thread
from forkpoint.cli.arguments import PLACE, PLACE_HELP, config_at
from forkpoint.cli.groups import Selection
from forkpoint.cli.json_values import json_value
from forkpoint.cli.stores import OpenStore, opened
from forkpoint.cli.terminal import (
    FOUND,
    JsonFlag,
    columns,
    emit,
    emit_all,
    ending_with,
    fail,
    fields,
    say,
    say_lines,
    table,
)
from forkpoint.errors import CorruptChunk, UnreadableValue
from forkpoint.langgraph_rules import is_internal
from forkpoint.outline import changed_channels, next_nodes
from forkpoint.pictures.family import time_text
from forkpoint.pictures.text import count_of, printable, short, truncate
from forkpoint.pictures.values import one_line

ThreadId = Annotated[str, typer.Argument(metavar="THREAD", help="The id of the thread.")]

_ELEMENTS = 20
"""How many elements of a list or a dict are shown."""

_LABEL = 40
_NAMESPACES = 10
"""How many namespaces are named."""


@dataclass(frozen=True)
class PageOptions:
    """Which part of a list of threads is shown, and in which order."""

    sort: Annotated[
        str,
        typer.Option(
            help="updated_at, state_updated_at, created_at, thread_id or status.", metavar="KEY"
        ),
    ] = "updated_at"
    ascending: Annotated[
        bool, typer.Option("--ascending", help="The oldest, or the first, comes first.")
    ] = False
    limit: Annotated[int, typer.Option(help="How many, 1,000 at most.", metavar="N")] = 50
    cursor: Annotated[
        str | None, typer.Option(help="What the page before said to go on with.", metavar="CURSOR")
    ] = None


def threads(
    ctx: typer.Context,
    selection: Selection,
    page: PageOptions,
    counts: Annotated[bool, typer.Option("--count", help="Only say how many there are.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List threads, the last active first."""
    chosen = selection.filter()
    with opened(ctx) as store:
        if counts:
            number = store.catalog.count(chosen)
            emit({"count": number}) if as_json else say(str(number))
            return
        found = store.catalog.search(
            chosen,
            sort_by=page.sort,
            descending=not page.ascending,
            limit=page.limit,
            cursor=page.cursor,
        )
        damaged = [str(error) for error in found.damaged]
        if as_json:
            emit({"threads": found.items, "next_cursor": found.next_cursor, "damaged": damaged})
        else:
            _show_threads(found.items)
            if found.next_cursor:
                say(f"more: --cursor {found.next_cursor}")
        if damaged:
            raise fail("\n".join(damaged), FOUND)


def _show_threads(found: Sequence[Thread]) -> None:
    has_owners = any(thread.owner for thread in found)
    titles = ["THREAD", "STATUS", "UPDATED (UTC)", "CHECKPOINTS", "LABEL", "TAGS"]
    table(
        titles + ["OWNER"] * has_owners,
        [
            [
                thread.thread_id,
                thread.status,
                time_text(thread.updated_at),
                str(thread.checkpoint_count),
                short(thread.label or "", _LABEL),
                ", ".join(thread.tags),
                *([thread.owner or ""] if has_owners else []),
            ]
            for thread in found
        ],
    )


def show(ctx: typer.Context, thread: ThreadId, as_json: JsonFlag = False) -> None:
    """Show the record of a thread, and who runs on it."""
    with opened(ctx) as store:
        found = store.catalog.get(thread)
        if found is None:
            raise fail(f"there is no thread {thread!r}")
        lease = store.catalog.lease(thread)
        if as_json:
            emit({"thread": found, "lease": lease})
        else:
            fields(_of_thread(found, lease))


def _of_thread(thread: Thread, lease: LeaseHolder | None) -> Iterator[tuple[str, str | None]]:
    yield "thread", thread.thread_id
    yield "label", thread.label
    yield "status", thread.status
    yield "owner", thread.owner
    yield "tags", ", ".join(thread.tags)
    yield "metadata", _as_text(thread.metadata)
    yield "values", _as_text(thread.values)
    yield "checkpoints", str(thread.checkpoint_count)
    yield "created", time_of(thread.created_at)
    yield "updated", time_of(thread.updated_at)
    yield "expires", time_of(thread.expires_at)
    yield "on expiry", thread.on_expiry.replace("_", " ") if thread.expires_at else None
    source = thread.source_checkpoint_id
    yield (
        "made from",
        thread.source_thread_id
        and (f"{thread.source_thread_id}{f' at {source}' if source else ''}"),
    )
    for interrupt in thread.interrupts:
        is_read = interrupt.value is not None or interrupt.id is not None
        yield "waits for", one_line(interrupt.value) if is_read else "(what cannot be read here)"
    yield "error", thread.error
    if lease is not None:
        yield "run by", f"{lease.holder} until {time_of(lease.until)}"


def time_of(moment: datetime | None) -> str | None:
    """Return a time for people."""
    return None if moment is None else f"{time_text(moment)} UTC"


def _as_text(value: Mapping[str, Any]) -> str | None:
    return json.dumps(json_value(value), ensure_ascii=False) if value else None


def check_exists(store: OpenStore, thread: str) -> None:
    """Raise if there is no such thread, before anything is printed or asked.

    Raises:
        ThreadNotFound: There is none.
    """
    with suppress(CorruptChunk):  # a thread that is damaged may be removed, too
        next(store.saver.history(thread, limit=1, values=False), None)


def history(
    ctx: typer.Context,
    thread: ThreadId,
    limit: Annotated[
        int | None, typer.Option(help="How many checkpoints at most.", metavar="N")
    ] = None,
    newest_first: Annotated[
        bool, typer.Option("--newest-first", help="Begin with the newest, which has the index -1.")
    ] = False,
    values: Annotated[
        bool, typer.Option("--values", help="Show the state of each, too, which has to be read.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the checkpoints of a thread, oldest first.

    There is a line for each of the graph itself: the index, the id, the step, what made it, which
    nodes run next, and which channels changed. No values are read, unless --values is given. The
    exit code is 1 if some are damaged, or cannot be read.
    """
    damaged: list[str] = []
    with opened(ctx) as store:
        check_exists(store, thread)
        if newest_first:
            config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
            found = store.saver.list(config, limit=limit, values=values)
            numbered = _numbered(found, count(-1, -1), damaged)
        else:
            found = store.saver.history(thread, limit=limit, values=values)
            numbered = _numbered(found, count(), damaged)
        if as_json:
            emit_all(_checkpoint(item, index, values) for index, item in numbered)
        else:
            _show_history(numbered, values)
        if damaged:
            raise fail("\n".join(damaged), FOUND)


def _numbered(
    found: Iterator[CheckpointTuple], numbers: Iterator[int], damaged: list[str]
) -> Iterator[tuple[int, CheckpointTuple]]:
    """Yield checkpoints with their numbers, and note those that cannot be read."""
    for number in numbers:
        try:
            item = next(found)
        except StopIteration:
            return
        except (CorruptChunk, UnreadableValue) as error:
            damaged.append(str(error))
        else:
            yield number, item


def _show_history(numbered: Iterable[tuple[int, CheckpointTuple]], values: bool) -> None:
    width, titles = columns(), ("INDEX", "CHECKPOINT", "STEP", "SOURCE", "NEXT", "CHANGED")
    for number, (index, item) in enumerate(numbered):
        if number == 0:
            say(truncate(_line(*titles), width))
        metadata = item.metadata
        step, source = metadata.get("step", ""), metadata.get("source", "")
        following, changed = ", ".join(next_nodes(item)), ", ".join(changed_channels(item))
        said = (str(index), item.checkpoint["id"], str(step), str(source), following, changed)
        say(truncate(_line(*map(printable, said)), width))
        if values:
            for line in _state_lines(_state_of(item)):
                say(truncate(f"       {line}", width))


def _line(index: str, id: str, step: str, source: str, following: str, changed: str) -> str:
    return f"{index:>5}  {id:<36}  {step:>4}  {source:<6}  {following:<16}  {changed}".rstrip()


def _checkpoint(item: CheckpointTuple, index: int | None, values: bool) -> dict[str, Any]:
    """Return what is said of a checkpoint as JSON."""
    configurable = item.config["configurable"]
    parent = item.parent_config
    said = {
        "thread_id": configurable["thread_id"],
        "checkpoint_id": configurable["checkpoint_id"],
        "parent_checkpoint_id": parent and parent["configurable"]["checkpoint_id"],
        "created_at": item.checkpoint.get("ts"),
        "step": item.metadata.get("step"),
        "source": item.metadata.get("source"),
        "next": next_nodes(item),
        "changed": changed_channels(item),
        "metadata": item.metadata,
    }
    if index is not None:
        said = {"index": index, **said}
    if values:
        said["values"] = _state_of(item)
        said["writes"] = [
            {"task_id": task_id, "channel": channel, "value": value}
            for task_id, channel, value in item.pending_writes or ()
        ]
    return said


def _state_of(item: CheckpointTuple) -> dict[str, Any]:
    values = item.checkpoint["channel_values"]
    return {channel: values[channel] for channel in sorted(values) if not is_internal(channel)}


def state(
    ctx: typer.Context,
    place: Annotated[str, typer.Argument(metavar=PLACE, help=PLACE_HELP)],
    channel: Annotated[
        list[str] | None,
        typer.Option(help="Show this channel, or these, whole.", metavar="CHANNEL"),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            help="The state of a subgraph, by its namespace, whose checkpoints PLACE then counts; "
            "? names those that there are.",
            metavar="NAMESPACE",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the state at a checkpoint, channel by channel.

    Objects whose classes are not there are shown by their fields. A DeltaChannel that the
    checkpoint does not store is known to the graph only.
    """
    with opened(ctx) as store:
        config = _config_at(store, place, namespace)
        if channel and not as_json:
            for value in [store.saver.value(config, name) for name in channel]:
                text = json.dumps(json_value(value), indent=2, ensure_ascii=False)
                say("\n".join(map(printable, text.splitlines())))
            return
        item = _item_at(store, config, place, namespace)
        shown = _state_of(item)
        missing = [name for name in channel or () if name not in shown]
        if missing:
            raise fail(f"there is no channel {missing[0]!r}; there are {sorted(shown)}")
        if as_json:
            said = _checkpoint(item, None, True)
            said["values"] = {name: shown[name] for name in channel} if channel else shown
            emit(said)
        else:
            _show_state(item, shown)


def _config_at(store: OpenStore, place: str, namespace: str | None) -> RunnableConfig:
    at = config_at(store.saver, place, namespace or "")
    if not isinstance(at, str):
        return at
    return {"configurable": {"thread_id": at, "checkpoint_ns": namespace or ""}}


def _item_at(
    store: OpenStore, config: RunnableConfig, place: str, namespace: str | None
) -> CheckpointTuple:
    item = store.saver.get_tuple(config)
    if item is None:
        check_exists(store, config["configurable"]["thread_id"])
        inside = f" in the namespace {namespace!r}" if namespace else ""
        others = _namespaces(store, config) if namespace else ""
        raise fail(f"there is no checkpoint at {place!r}{inside}{others}")
    return item


def _namespaces(store: OpenStore, config: RunnableConfig) -> str:
    """Return in words which namespaces of subgraphs a thread has, the last used first."""
    thread: RunnableConfig = {"configurable": {"thread_id": config["configurable"]["thread_id"]}}
    found = (
        item.config["configurable"]["checkpoint_ns"]
        for item in store.saver.list(thread, values=False)
    )
    names = [repr(name) for name in dict.fromkeys(found) if name]
    more = f", and {len(names) - _NAMESPACES} older ones" if len(names) > _NAMESPACES else ""
    return f"; there are {', '.join(names[:_NAMESPACES])}{more}" if names else ""


def _show_state(item: CheckpointTuple, shown: Mapping[str, Any]) -> None:
    fields(
        [
            ("checkpoint", item.checkpoint["id"]),
            ("step", str(item.metadata.get("step", ""))),
            ("source", str(item.metadata.get("source", ""))),
            ("made", item.checkpoint.get("ts")),
            ("next", ", ".join(next_nodes(item))),
        ]
    )
    for line in _state_lines(shown):
        say(truncate(line, columns()))
    for _, channel, value in item.pending_writes or ():
        if not is_internal(channel):
            say(truncate(f"write to {short(channel, _LABEL)}: {one_line(value)}", columns()))


def _state_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Return lines that show a state: of long lists and dicts the last elements."""
    for channel, value in values.items():
        name = short(channel, _LABEL)
        if type(value) is not list or not value:
            yield f"{name}: {one_line(value)}"
            continue
        yield f"{name}: {count_of(len(value), 'element')}"
        if len(value) > _ELEMENTS:
            yield f"  … {len(value) - _ELEMENTS} before"
        yield from (f"  {one_line(element)}" for element in value[-_ELEMENTS:])


def diff(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar=PLACE, help=PLACE_HELP)],
    b: Annotated[str, typer.Argument(metavar=PLACE, help="The other one.")],
    as_json: JsonFlag = False,
) -> None:
    """Compare the states at two checkpoints.

    They may be of any threads. The exit code is 1 if the states differ.
    """
    with opened(ctx) as store:
        found = store.saver.diff(config_at(store.saver, a), config_at(store.saver, b))
        with ending_with(FOUND if found else 0):
            if as_json:
                emit(found)
            else:
                say_lines(str(found))


def family(
    ctx: typer.Context,
    thread: ThreadId,
    svg: Annotated[bool, typer.Option("--svg", help="Print a picture, an SVG document.")] = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the tree of forks and clones of a thread."""
    if svg + mermaid + as_json > 1:
        raise typer.BadParameter("only one of --svg, --mermaid and --json")
    with opened(ctx) as store:
        tree = store.saver.family(thread)
        if as_json:
            emit([{**json_value(node.entry), "is_current": node.is_current} for node in tree])
        elif svg:
            say(tree.svg())
        elif mermaid:
            say(tree.mermaid())
        else:
            say_lines(tree.text())


COMMANDS = (threads, show, history, state, diff, family)
