"""The commands that a saver sends to MongoDB: all of them, and what each must say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

from checking import Api, checkpoint, config
from forkpoint import NewThread, RetentionPolicy, ThreadFilter
from forkpoint.mongodb.thread_documents import VISIBLE

Document = Mapping[str, Any]

EVERYWHERE: dict[str, Callable[[Document], bool]] = {
    "a page of all threads: whoever asks for it has no thread in mind": (
        lambda wanted: wanted.get("kind") == "checkpoint" and "thread" not in wanted
    ),
    "the threads of runs: a run may have been in any thread": (
        lambda wanted: wanted.keys() == {"run_id"}
    ),
}
"""What may read without naming a family, and so asks all shards, and why."""

SEARCHES: dict[str, Callable[[Document], bool]] = {
    "a search of the catalog: whoever asks for it does not know where the threads are": (
        lambda wanted: any("terms" in part for part in wanted.get("$and", ()))
    ),
    "what changed since the last search: it may be any thread": (
        lambda wanted: wanted.get("unlisted") is True
    ),
    "the leases that ran out: they may be of any thread": (
        lambda wanted: wanted.get("listed_status") == "busy"
    ),
    "the threads whose time is up": lambda wanted: "ttl" in wanted and "_id" not in wanted,
    "what was removed by a process that ended: it may be in any family": (
        lambda wanted: "removed_at" in wanted
    ),
    "names with old tombstones": lambda wanted: "tombstones.made_at" in wanted,
    "whether there is any thread, when a store is to get its secret": (
        lambda wanted: wanted == VISIBLE
    ),
    "the threads that have grown too long": lambda wanted: "checkpoint_count" in wanted,
}
"""What may be read or changed without naming a family, and why."""

REKEYING: dict[str, Callable[[Document], bool]] = {
    "all that is encrypted, to be encrypted with another key": (
        lambda wanted: (
            wanted.keys() == {"_id"}
            and isinstance(wanted["_id"], dict)
            and isinstance(wanted["_id"].get("$gt"), bytes)
        )
    ),
}
"""What a change of the key reads without naming a family, and why."""

_DATA = {"insert", "update", "delete", "find", "aggregate", "findAndModify", "count", "distinct"}
"""The commands that read or write documents, but for the rest of what a cursor finds."""


class Started(CommandListener):
    """Calls a function with each command that is about to be sent."""

    def __init__(self, seen: Callable[[CommandStartedEvent], None]) -> None:
        self._seen = seen

    def started(self, event: CommandStartedEvent) -> None:
        self._seen(event)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        pass

    def failed(self, event: CommandFailedEvent) -> None:
        pass


class Commands(Started):
    """Keeps all commands."""

    def __init__(self) -> None:
        self.sent: list[CommandStartedEvent] = []
        super().__init__(self.sent.append)

    @property
    def names(self) -> list[str]:
        return [event.command_name for event in self.sent]

    def clear(self) -> None:
        self.sent.clear()

    def statements(self, *operators: str) -> list[Document]:
        """Return the updates that were sent, or those of them that have one of these operators."""
        return [
            update
            for event in self.sent
            if event.command_name == "update"
            for update in event.command["updates"]
            if not operators or any(operator in update["u"] for operator in operators)
        ]

    def chunks(self) -> int:
        """Return how many chunks were sent: only their names are 12 and 32 bytes long."""
        names = [update["q"].get("_id") for update in self.statements()]
        for event in self.sent:
            names += [document["_id"] for document in event.command.get("documents", ())]
        return sum(isinstance(name, bytes) and len(name) == 12 + 32 for name in names)


def filters_of(event: CommandStartedEvent) -> Iterator[Document]:
    """Yield what the parts of a command look for."""
    command = event.command
    yield from (update["q"] for update in command.get("updates", ()))
    yield from (stage["$match"] for stage in command.get("pipeline", ()) if "$match" in stage)
    yield command.get("filter", command.get("query", {}))


def untargeted(event: CommandStartedEvent, *, is_sharded: bool = False) -> Iterator[str]:
    """Yield the parts of a command for which a sharded cluster would have to ask all shards.

    Where there is none, a document may be stored by nothing but its `_id`, if it says its family.
    """
    name, command = event.command_name, event.command
    if name == "insert":
        wanted = [("document", document) for document in command["documents"]]
    elif name == "update":
        wanted = [
            ("statement", update["q"])
            for update in command["updates"]
            if is_sharded or not _says_family(update)
        ]
        for update in command["updates"]:
            if not update.get("multi") and isinstance(update["q"].get("family"), Mapping):
                yield f"update of one document, in one family or another: {update['q']!r:.300}"
    elif name == "delete":
        wanted = [("statement", delete["q"]) for delete in command["deletes"]]
    elif name == "aggregate":
        wanted = list(_stages(command["pipeline"]))
    elif name in _DATA:
        wanted = [("filter", command.get("filter", command.get("query", {})))]
    else:
        return  # it is about the collection, the connection, or a cursor that is open
    for part, document in wanted:
        is_search = any(searches(document) for searches in {**SEARCHES, **REKEYING}.values())
        if not _names_family(document) and not is_search:
            yield f"{name}, {part}: {document!r:.300}"


def _stages(pipeline: Sequence[Document]) -> Iterator[tuple[str, Document]]:
    first = pipeline[0].get("$match", {})
    if not any(is_allowed(first) for is_allowed in EVERYWHERE.values()):
        yield "first stage", first
    yield from _joins(pipeline)


def _joins(pipeline: Sequence[Document]) -> Iterator[tuple[str, Document]]:
    for stage in pipeline:
        if "$lookup" in stage:
            inner = stage["$lookup"]["pipeline"]
            yield "$lookup", inner[0].get("$match", {})
            yield from _joins(inner)
        elif "$unionWith" in stage:
            inner = stage["$unionWith"]["pipeline"]
            yield "$unionWith", inner[0].get("$match", {})
            yield from _joins(inner)
        elif "$graphLookup" in stage:
            yield "$graphLookup", stage["$graphLookup"].get("restrictSearchWithMatch", {})


def _says_family(update: Document) -> bool:
    """Return whether a statement stores a document of some `_id`, and with it its family."""
    if update["q"].keys() != {"_id"} or not update.get("upsert"):
        return False
    change = update["u"]
    return _names_family({**change, **change.get("$set", {}), **change.get("$setOnInsert", {})})


def _names_family(document: Document) -> bool:
    """Return whether a filter asks for some families only, or a document is of one."""
    family = document.get("family")
    if isinstance(family, Mapping):
        return family.keys() == {"$in"}
    return family is not None or _compares_family(document.get("$expr", {}))


def _compares_family(expression: Document) -> bool:
    if "$and" in expression:
        return any(_compares_family(part) for part in expression["$and"])
    return "$family" in expression.get("$eq", ())


async def use_the_catalog(catalog: Api) -> None:
    """Call every method of a catalog, in every way in which it sends other commands."""
    saver = catalog.saver.saver
    await catalog.create("made", label="L", tags=["a"], metadata={"k": [1]}, ttl=timedelta(days=1))
    await catalog.create("made", if_exists="do_nothing")
    many = [NewThread("made"), NewThread("many 1"), NewThread("many 2")]
    await catalog.create_many(many[1:])
    await catalog.create_many(many, if_exists="do_nothing")
    long = [f"{n} " * 300 for n in range(30)]
    for thread_id in ("made", "ran", "ran"):
        saver.put(config(thread_id), checkpoint({"long": long}), {}, {"long": 1})
    await catalog.get("ran")
    await catalog.update("ran", label="x", metadata={"k": 2}, ttl=timedelta(microseconds=1))
    for wanted in (
        None,
        ThreadFilter(ids=["ran"], label="x"),
        ThreadFilter(tags=["a"], any_tags=["a", "b"], metadata={"k": [1]}, status="idle"),
        ThreadFilter(created_after=datetime(2020, 1, 1, tzinfo=timezone.utc), owner="acme"),
        ThreadFilter(updated_before=datetime(2020, 1, 1, tzinfo=timezone.utc)),
    ):
        for sort_by in ("updated_at", "created_at", "thread_id", "status"):
            page = await catalog.search(wanted, sort_by=sort_by, limit=1)
            if page.next_cursor is not None:
                await catalog.search(wanted, sort_by=sort_by, cursor=page.next_cursor)
        await catalog.count(wanted)
    await catalog.clone("ran", "clone", tags=["c"], ttl=None)
    await catalog.clone("ran", "empty", checkpoints=False)
    await catalog.rollover("ran", "next", channels=["long"])
    await catalog.stats("ran")
    async with catalog.saver.run("made") as lease:
        await catalog.lease("made")
        await catalog.is_busy("made")
        named = {**lease.config["configurable"], "checkpoint_ns": ""}
        saver.put({"configurable": named}, checkpoint({"long": [*long, 1]}), {}, {"long": 2})
        async with catalog.saver.run("made", if_busy="cancel"):
            pass
    await catalog.sweep()
    trims = RetentionPolicy(max_checkpoints_per_thread=1)
    await catalog.apply_retention(trims, dry_run=True)
    await catalog.apply_retention(trims)
    idle = RetentionPolicy(max_age=timedelta(days=1), max_idle=timedelta(microseconds=1))
    await catalog.apply_retention(idle, ThreadFilter(ids=["next"]), archive=lambda *_: None)
    assert await catalog.bulk_delete(ThreadFilter(tags=["c"])) == 1
    await catalog.delete("made")


async def use_everything(api: Api) -> None:
    """Call every method, in every way in which it sends other commands."""
    await api.setup()
    await api.put_writes(config(checkpoint_id="before"), [("c", 1)], "task")
    parent = config()
    for n in range(25):
        values = {"text": f"{n} " * 500, "list": [f"{m} " * 300 for m in range(n)], "n": n}
        metadata = {"n": n, "run_id": f"run-{n % 3}"}
        parent = await api.put(parent, checkpoint(values), metadata, dict.fromkeys(values, n))
        await api.put_writes(parent, [("c", n), ("d", f"{n} " * 900)], "task", "~1")
        await api.put_writes(parent, [("__error__", "again"), ("c", n)], "task", "~1")
    replaced = {**checkpoint({"text": "replaced " * 500}), "id": "before"}
    await api.put(config(), replaced, {}, {"text": 1})
    await api.put(config(), replaced, {}, {"text": 1})
    await api.put(config(ns="child"), checkpoint({"n": 1}), {}, {"n": 1})
    await api.put(config("other", ns="child"), checkpoint({"n": 1}), {"run_id": "run-1"}, {"n": 1})

    without_namespace = {"configurable": {"thread_id": "thread"}}
    for one in (config(), parent, config(checkpoint_id="nothing"), config("nobody")):
        await api.get_tuple(one)
    for one in (config(), parent, without_namespace, config("nobody"), None):
        await api.list(one)
        await api.list(one, limit=3)
        await api.list(one, filter={"n": 7})
        await api.list(one, before=parent, filter={"n": 7, "run_id": "run-1"}, limit=3)
    await api.get_delta_channel_history(config=parent, channels=["text", "c", "nothing"])
    assert len(list(api.saver.history("thread"))) > 20
    assert len([one async for one in api.saver.ahistory("thread", limit=3)]) == 3
    await api.at("thread", 3)
    await api.at("thread", -3)
    await api.latest({"n": 7})
    await api.find_message("thread", "m", channel="text")
    await api.value("thread", "text")

    await api.copy_thread("thread", "copy")
    await api.fork("thread", new_thread_id="fork")
    await api.fork(parent, new_thread_id="path", values={"n": "x" * 900}, history="path")
    await api.fork("fork", new_thread_id="grandchild")
    await api.lineage("grandchild")
    await api.family("thread")
    await api.diff(parent, "path")
    await api.rollback("path", 2)
    await api.trim("path", 3)
    await api.purge("fork")
    await api.delete_for_runs(["run-1", "no such run"])
    await api.prune(["thread", "nobody"])
    await api.prune(["copy", "path"], strategy="delete")
    await api.prune(["other", "nobody"], strategy="delete_all")
    for thread_id in ("grandchild", "thread", "thread"):
        await api.delete_thread(thread_id)
    for thread_id in ("thread", "copy"):  # once more, under ids that were used before
        await api.put(config(thread_id), checkpoint({"text": "new " * 500}), {}, {"text": 1})
    await api.delete_thread("copy")
    await api.copy_thread("thread", "copy")
