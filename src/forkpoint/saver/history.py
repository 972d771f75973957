"""Time travel, fork, lineage and purge: each method checks its input and runs one operation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.base.id import uuid6

from forkpoint import inputs
from forkpoint.errors import CheckpointNotFound, InvalidInput
from forkpoint.operations import diff as diffing
from forkpoint.operations import find_message as finding
from forkpoint.operations import fork as forking
from forkpoint.operations import operations
from forkpoint.operations import remove as removing
from forkpoint.operations.fork import NewFork
from forkpoint.operations.listing import AsyncCheckpoints, Checkpoints
from forkpoint.operations.operations import Context
from forkpoint.pictures.shown import FamilyTree, StateDiff
from forkpoint.results import LineageEntry, MessageOrigin, PurgeReport
from forkpoint.runtime.runner import Runner
from forkpoint.storage.plan import Kept
from forkpoint.storage.queries import CheckpointQuery


class TimeTravel(BaseCheckpointSaver[Any]):
    """What forkpoint's savers can do beyond the contract of a checkpointer."""

    _runner: Runner
    _context: Context

    # Looking back

    def history(
        self, thread_id: str, *, limit: int | None = None, values: bool = True
    ) -> Iterator[CheckpointTuple]:
        """Return the checkpoints of a thread's graph, oldest first, read in pages.

        Args:
            thread_id: The thread.
            limit: How many checkpoints to return at most.
            values: Whether to read the values. Without, `NOT_READ` stands for each channel and each
                write, and a page costs the same however large the state is.

        Raises:
            InvalidInput: An argument is of the wrong type; at once.
            ThreadNotFound: There is no such thread; on the first iteration.
        """
        query = _oldest_first(thread_id, inputs.flag(values, "values"))
        return self._pages_of(query, inputs.limit(limit))

    def ahistory(
        self, thread_id: str, *, limit: int | None = None, values: bool = True
    ) -> AsyncIterator[CheckpointTuple]:
        """Do what `history` does."""
        query = _oldest_first(thread_id, inputs.flag(values, "values"))
        return self._apages_of(query, inputs.limit(limit))

    def at(self, thread_id: str, index: int) -> CheckpointTuple:
        """Return a checkpoint of a thread's graph by its position.

        Args:
            thread_id: The thread.
            index: 0 is the oldest, -1 the newest.

        Raises:
            ThreadNotFound: There is no such thread.
            CheckpointNotFound: It has not as many checkpoints.
        """
        query = _at(thread_id, index)
        return _only(self._runner.run(operations.page, self._context, query), query)

    async def aat(self, thread_id: str, index: int) -> CheckpointTuple:
        """Do what `at` does."""
        query = _at(thread_id, index)
        return _only(await self._runner.arun(operations.page, self._context, query), query)

    def latest(self, metadata: Mapping[str, Any]) -> CheckpointTuple | None:
        """Return the newest checkpoint, of any thread, whose metadata contain this, or None.

        Args:
            metadata: As `list` takes it for its filter, such as `{"graph_id": "support"}`.
        """
        found, _ = self._runner.run(operations.page, self._context, _latest(metadata))
        return operations.checkpoint_of(found[0]) if found else None

    async def alatest(self, metadata: Mapping[str, Any]) -> CheckpointTuple | None:
        """Do what `latest` does."""
        found, _ = await self._runner.arun(operations.page, self._context, _latest(metadata))
        return operations.checkpoint_of(found[0]) if found else None

    def find_message(
        self, thread_id: str, message_id: str, *, channel: str = "messages"
    ) -> MessageOrigin | None:
        """Return where a message came into the state of a thread, such as to fork there.

        A person's message is edited in a fork of `before` that is given the new message, and an
        answer is made anew in a fork of `before` that is given None:
        `graph.invoke(None, saver.fork(origin.before.config))`.

        Of the checkpoints that lead to the thread's newest, it reads as many as a binary search
        takes. For a message that the newest does not have, it may read them all.

        Args:
            thread_id: The thread.
            message_id: The `id` of the message.
            channel: The channel whose value is the list of messages.

        Returns:
            The first checkpoint that has the message, and the one before it; None if no checkpoint
            has it. If the message was removed and came back, one of the times that it came.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = _message(thread_id, message_id, channel)
        return self._runner.run(finding.find_message, self._context, *checked)

    async def afind_message(
        self, thread_id: str, message_id: str, *, channel: str = "messages"
    ) -> MessageOrigin | None:
        """Do what `find_message` does."""
        checked = _message(thread_id, message_id, channel)
        return await self._runner.arun(finding.find_message, self._context, *checked)

    def diff(self, a: str | RunnableConfig, b: str | RunnableConfig) -> StateDiff:
        """Return how the state differs between two checkpoints, of any threads.

        Only the chunks that differ are read.

        Args:
            a: The first: the config of a checkpoint, or a thread id for the newest of a thread.
            b: The second.

        Raises:
            ThreadNotFound: There is no such thread.
            CheckpointNotFound: There is no such checkpoint.
        """
        return self._runner.run(diffing.diff, self._context, inputs.source(a), inputs.source(b))

    async def adiff(self, a: str | RunnableConfig, b: str | RunnableConfig) -> StateDiff:
        """Do what `diff` does."""
        first, second = inputs.source(a), inputs.source(b)
        return await self._runner.arun(diffing.diff, self._context, first, second)

    # Forking

    def fork(
        self,
        source: str | RunnableConfig,
        *,
        new_thread_id: str | None = None,
        values: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        history: str = "head",
    ) -> RunnableConfig:
        """Make a thread that begins at a checkpoint of another. No chunk is copied.

        A fork of a thread's newest checkpoint goes on as the thread would: an interrupt still
        waits, and what had finished of the step is not run again. A fork of an older checkpoint
        goes on as LangGraph's time travel would: the step runs again, and an interrupt can be
        answered differently. Subgraphs that keep their state (`checkpointer=True`) go on from that
        of the moment, and are given their input again. The source stays as it is.

        Args:
            source: A thread id, or the config of a checkpoint.
            new_thread_id: The id of the fork; a new UUID by default.
            values: Values by channel that replace those of the checkpoint, as they stand, in a new
                checkpoint on top, from which the step runs again. For reducers, call
                `graph.update_state` with what this returns.
            metadata: Merged into the thread's metadata.
            history: With `"head"` the fork has the one checkpoint, with `"path"` its ancestors too.

        Returns:
            The config of the new thread. It names no checkpoint, so using it again goes on.

        Raises:
            ThreadNotFound: There is no source.
            CheckpointNotFound: It has no such checkpoint.
            ThreadExists: There is a thread `new_thread_id` already.
            InvalidInput: `values` names an unknown channel, or an argument is of the wrong type.
        """
        new = self._new_fork(source, new_thread_id, values, metadata, history)
        return self._runner.run(forking.fork, self._context, new)

    async def afork(
        self,
        source: str | RunnableConfig,
        *,
        new_thread_id: str | None = None,
        values: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        history: str = "head",
    ) -> RunnableConfig:
        """Do what `fork` does."""
        new = self._new_fork(source, new_thread_id, values, metadata, history)
        return await self._runner.arun(forking.fork, self._context, new)

    def _new_fork(
        self,
        source: object,
        new_thread_id: object,
        values: object,
        metadata: object,
        history: object,
    ) -> NewFork:
        choice = inputs.choice(history, "history", ("head", "path"))
        target = str(uuid6()) if new_thread_id is None else new_thread_id
        merged = inputs.named_values(metadata, "metadata")
        inputs.as_json(merged, "metadata")
        return NewFork(
            inputs.source(source),
            inputs.identifier(target, "new_thread_id"),
            inputs.named_values(values, "values"),
            merged,
            choice == "path",
            self.get_next_version,
        )

    def lineage(self, thread_id: str) -> list[LineageEntry]:
        """Return where a thread came from: itself first, the root of its family last.

        Ancestors that were purged are in it, as threads that do not exist any more.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(forking.lineage, self._context, checked)

    async def alineage(self, thread_id: str) -> list[LineageEntry]:
        """Do what `lineage` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(forking.lineage, self._context, checked)

    def family(self, thread_id: str) -> FamilyTree:
        """Return the tree of all threads that forks and clones join to one.

        It prints as text, renders as Mermaid and SVG, and shows itself in a notebook.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(forking.family, self._context, checked)

    async def afamily(self, thread_id: str) -> FamilyTree:
        """Do what `family` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(forking.family, self._context, checked)

    # Removing

    def rollback(self, thread_id: str, steps: int = 1) -> RunnableConfig | None:
        """Remove the newest checkpoints of a thread's graph; the one before becomes the head.

        What its tasks did is dropped, so the step after it runs again, and an interrupt can be
        answered differently. What subgraphs stored since goes too.

        Args:
            thread_id: The thread.
            steps: How many checkpoints.

        Returns:
            The config of the thread, or None if no checkpoint is left, and with it no thread.

        Raises:
            ThreadNotFound: There is no such thread.
            CheckpointNotFound: It has fewer checkpoints.
        """
        checked = inputs.identifier(thread_id, "thread_id"), inputs.count(steps, "steps", 1)
        return self._runner.run(removing.rollback, self._context, *checked)

    async def arollback(self, thread_id: str, steps: int = 1) -> RunnableConfig | None:
        """Do what `rollback` does."""
        checked = inputs.identifier(thread_id, "thread_id"), inputs.count(steps, "steps", 1)
        return await self._runner.arun(removing.rollback, self._context, *checked)

    def trim(self, thread_id: str, keep: int) -> PurgeReport:
        """Remove all checkpoints of a thread but the newest of each namespace.

        The state of those that stay is as it was. In the namespaces of subgraphs that keep their
        state, those stay as well that a time travel to one of them goes back to.

        Args:
            thread_id: The thread.
            keep: How many checkpoints of each namespace stay.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id"), _kept(keep)
        return self._runner.run(removing.trim, self._context, *checked)

    async def atrim(self, thread_id: str, keep: int) -> PurgeReport:
        """Do what `trim` does."""
        checked = inputs.identifier(thread_id, "thread_id"), _kept(keep)
        return await self._runner.arun(removing.trim, self._context, *checked)

    def prune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
    ) -> None:
        """Remove old checkpoints of threads.

        Args:
            thread_ids: The threads. Those that do not exist are no error.
            strategy: `"keep_latest"` keeps the newest checkpoint of each namespace, and out of
                sight what its `DeltaChannel`s are rebuilt from. `"delete"`, or `"delete_all"`,
                removes the threads.
            keep_last: How many checkpoints of each namespace `"keep_latest"` keeps, as `trim` does.

        Raises:
            InvalidInput: `strategy` is none of these, or does not go with `keep_last`.
        """
        checked = _pruned(thread_ids, strategy, keep_last)
        self._runner.run(removing.prune, self._context, *checked)

    async def aprune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
    ) -> None:
        """Do what `prune` does."""
        checked = _pruned(thread_ids, strategy, keep_last)
        await self._runner.arun(removing.prune, self._context, *checked)

    def purge(self, thread_id: str) -> PurgeReport:
        """Remove a thread with its whole history. Its forks and clones stay as they are.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(removing.purge, self._context, checked)

    async def apurge(self, thread_id: str) -> PurgeReport:
        """Do what `purge` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(removing.purge, self._context, checked)

    # Pages

    def _pages_of(self, query: CheckpointQuery, limit: int | None) -> Iterator[CheckpointTuple]:
        return Checkpoints(self._runner, self._context, query, limit)

    def _apages_of(
        self, query: CheckpointQuery, limit: int | None
    ) -> AsyncIterator[CheckpointTuple]:
        return AsyncCheckpoints(self._runner, self._context, query, limit)


def _oldest_first(thread_id: object, values: bool = True) -> CheckpointQuery:
    return CheckpointQuery(
        inputs.identifier(thread_id, "thread_id"),
        checkpoint_ns="",
        checkpoint_id=None,
        before=None,
        filter=None,
        after=None,
        limit=operations.PAGE_ROWS,
        oldest_first=True,
        must_exist=True,
        values=values,
    )


def _at(thread_id: object, index: object) -> CheckpointQuery:
    position = inputs.index(index)
    offset = position if position >= 0 else -1 - position
    return _oldest_first(thread_id)._replace(limit=1, offset=offset, oldest_first=position >= 0)


def _only(
    page: tuple[list[operations.Item], CheckpointQuery | None], query: CheckpointQuery
) -> CheckpointTuple:
    if not page[0]:
        index = query.offset if query.oldest_first else -1 - query.offset
        raise CheckpointNotFound(
            f"index {index} is out of range: thread {query.thread_id!r} has not as many checkpoints"
        )
    return operations.checkpoint_of(page[0][0])


def _message(thread_id: object, message_id: object, channel: object) -> tuple[str, str, str]:
    return (
        inputs.identifier(thread_id, "thread_id"),
        inputs.identifier(message_id, "message_id"),
        inputs.identifier(channel, "channel"),
    )


def _latest(metadata: object) -> CheckpointQuery:
    wanted = inputs.metadata_filter({} if metadata is None else metadata)
    return CheckpointQuery(None, None, None, None, wanted, None, 1)


def _pruned(
    thread_ids: object, strategy: object, keep_last: object
) -> tuple[list[str], str, int | None]:
    checked = inputs.identifiers(thread_ids, "thread_id")
    choice = inputs.choice(strategy, "strategy", ("keep_latest", "delete", "delete_all"))
    if keep_last is None:
        return checked, choice, None
    if choice != "keep_latest":
        raise InvalidInput(f"keep_last goes with strategy 'keep_latest', not {choice!r}")
    return checked, "keep_latest", inputs.count(keep_last, "keep_last", 1)


def _kept(keep: object) -> Kept:
    return Kept(inputs.count(keep, "keep", 1))
