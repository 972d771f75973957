"""Time travel, fork, lineage and purge: each method checks its input and runs one operation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from forkpoint import inputs
from forkpoint.errors import CheckpointNotFound
from forkpoint.operations import listing, remove
from forkpoint.operations.channel_value import channel_value
from forkpoint.operations.context import Context
from forkpoint.operations.diff import diff
from forkpoint.operations.find_message import find_message
from forkpoint.operations.fork import fork
from forkpoint.operations.lineage import family, lineage
from forkpoint.operations.listing import AsyncCheckpoints, CheckpointPage, Checkpoints
from forkpoint.pictures.shown import FamilyTree, StateDiff
from forkpoint.results import LineageEntry, MessageOrigin, PurgeReport
from forkpoint.runtime.runner import Runner
from forkpoint.saver import arguments
from forkpoint.saver.maintenance import Maintenance
from forkpoint.storage.queries import CheckpointQuery


class TimeTravel(Maintenance):
    """What forkpoint's savers can do beyond the contract of a checkpointer."""

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
        return self._pages_of(arguments.history_query(thread_id, values), inputs.limit(limit))

    def ahistory(
        self, thread_id: str, *, limit: int | None = None, values: bool = True
    ) -> AsyncIterator[CheckpointTuple]:
        """Do what `history` does."""
        return self._apages_of(arguments.history_query(thread_id, values), inputs.limit(limit))

    def at(self, thread_id: str, index: int, *, values: bool = True) -> CheckpointTuple:
        """Return a checkpoint of a thread's graph by its position.

        Args:
            thread_id: The thread.
            index: 0 is the oldest, -1 the newest.
            values: Whether to read the values; see `history`.

        Raises:
            ThreadNotFound: There is no such thread.
            CheckpointNotFound: It has not as many checkpoints.
        """
        query = arguments.at_query(thread_id, index, values)
        return _only(self._runner.run(listing.page, self._context, query), query)

    async def aat(self, thread_id: str, index: int, *, values: bool = True) -> CheckpointTuple:
        """Do what `at` does."""
        query = arguments.at_query(thread_id, index, values)
        return _only(await self._runner.arun(listing.page, self._context, query), query)

    def value(self, source: str | RunnableConfig, channel: str) -> Any:
        """Return the value of one channel of a checkpoint, and read nothing of the others.

        It is what `get_tuple` has under `channel_values`.

        Args:
            source: The config of a checkpoint, or a thread id for the newest of a thread.
            channel: The channel.

        Raises:
            ThreadNotFound: There is no such thread.
            CheckpointNotFound: There is no such checkpoint.
            InvalidInput: It has no value of this channel; or the value is rebuilt from writes
                (`DeltaChannel`), by the graph only.
        """
        checked = arguments.channel(source, channel)
        return self._runner.run(channel_value, self._context, *checked)

    async def avalue(self, source: str | RunnableConfig, channel: str) -> Any:
        """Do what `value` does."""
        checked = arguments.channel(source, channel)
        return await self._runner.arun(channel_value, self._context, *checked)

    def latest(self, metadata: Mapping[str, Any]) -> CheckpointTuple | None:
        """Return the newest checkpoint, of any thread, whose metadata contain this, or None.

        Args:
            metadata: As `list` takes it for its filter, such as `{"graph_id": "support"}`.
        """
        page = self._runner.run(listing.page, self._context, arguments.latest_query(metadata))
        return listing.checkpoint_of(page.items[0]) if page.items else None

    async def alatest(self, metadata: Mapping[str, Any]) -> CheckpointTuple | None:
        """Do what `latest` does."""
        page = await self._runner.arun(
            listing.page, self._context, arguments.latest_query(metadata)
        )
        return listing.checkpoint_of(page.items[0]) if page.items else None

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
        checked = arguments.message(thread_id, message_id, channel)
        return self._runner.run(find_message, self._context, *checked)

    async def afind_message(
        self, thread_id: str, message_id: str, *, channel: str = "messages"
    ) -> MessageOrigin | None:
        """Do what `find_message` does."""
        checked = arguments.message(thread_id, message_id, channel)
        return await self._runner.arun(find_message, self._context, *checked)

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
        return self._runner.run(diff, self._context, inputs.source(a), inputs.source(b))

    async def adiff(self, a: str | RunnableConfig, b: str | RunnableConfig) -> StateDiff:
        """Do what `diff` does."""
        first, second = inputs.source(a), inputs.source(b)
        return await self._runner.arun(diff, self._context, first, second)

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
        new = arguments.new_fork(
            source, new_thread_id, values, metadata, history, self.get_next_version
        )
        return self._runner.run(fork, self._context, new)

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
        new = arguments.new_fork(
            source, new_thread_id, values, metadata, history, self.get_next_version
        )
        return await self._runner.arun(fork, self._context, new)

    def lineage(self, thread_id: str) -> list[LineageEntry]:
        """Return where a thread came from: itself first, the root of its family last.

        Ancestors that were purged are in it, as threads that do not exist any more.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(lineage, self._context, checked)

    async def alineage(self, thread_id: str) -> list[LineageEntry]:
        """Do what `lineage` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(lineage, self._context, checked)

    def family(self, thread_id: str) -> FamilyTree:
        """Return the tree of all threads that forks and clones join to one.

        It prints as text, renders as Mermaid and SVG, and shows itself in a notebook.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(family, self._context, checked)

    async def afamily(self, thread_id: str) -> FamilyTree:
        """Do what `family` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(family, self._context, checked)

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
        return self._runner.run(remove.rollback, self._context, *checked)

    async def arollback(self, thread_id: str, steps: int = 1) -> RunnableConfig | None:
        """Do what `rollback` does."""
        checked = inputs.identifier(thread_id, "thread_id"), inputs.count(steps, "steps", 1)
        return await self._runner.arun(remove.rollback, self._context, *checked)

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
        checked = inputs.identifier(thread_id, "thread_id"), arguments.kept(keep)
        return self._runner.run(remove.trim, self._context, *checked)

    async def atrim(self, thread_id: str, keep: int) -> PurgeReport:
        """Do what `trim` does."""
        checked = inputs.identifier(thread_id, "thread_id"), arguments.kept(keep)
        return await self._runner.arun(remove.trim, self._context, *checked)

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
        checked = arguments.prune(thread_ids, strategy, keep_last)
        self._runner.run(remove.prune, self._context, *checked)

    async def aprune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int | None = None,
    ) -> None:
        """Do what `prune` does."""
        checked = arguments.prune(thread_ids, strategy, keep_last)
        await self._runner.arun(remove.prune, self._context, *checked)

    def purge(self, thread_id: str) -> PurgeReport:
        """Remove a thread with its whole history. Its forks and clones stay as they are.

        Raises:
            ThreadNotFound: There is no such thread.
        """
        checked = inputs.identifier(thread_id, "thread_id")
        return self._runner.run(remove.purge, self._context, checked)

    async def apurge(self, thread_id: str) -> PurgeReport:
        """Do what `purge` does."""
        checked = inputs.identifier(thread_id, "thread_id")
        return await self._runner.arun(remove.purge, self._context, checked)

    # Pages

    def _pages_of(self, query: CheckpointQuery, limit: int | None) -> Iterator[CheckpointTuple]:
        return Checkpoints(self._runner, self._context, query, limit)

    def _apages_of(
        self, query: CheckpointQuery, limit: int | None
    ) -> AsyncIterator[CheckpointTuple]:
        return AsyncCheckpoints(self._runner, self._context, query, limit)


def _only(page: CheckpointPage, query: CheckpointQuery) -> CheckpointTuple:
    """Return the only checkpoint of a page.

    Raises:
        CheckpointNotFound: The page is empty.
    """
    if not page.items:
        index = query.offset if query.oldest_first else -1 - query.offset
        raise CheckpointNotFound(
            f"index {index} is out of range: thread {query.thread_id!r} has not as many checkpoints"
        )
    return listing.checkpoint_of(page.items[0])


class SaverParts(NamedTuple):
    """What a saver runs its operations with."""

    context: Context
    runner: Runner


def parts_of(saver: TimeTravel) -> SaverParts:
    """Return what a saver runs its operations with, for those that are no methods of it."""
    return SaverParts(saver._context, saver._runner)
