"""The LangGraph façade: each method checks its input and runs one operation."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint import inputs, langgraph_rules
from forkpoint.caches import CacheBudget
from forkpoint.encoding.serializer import SafeSerializer
from forkpoint.errors import ForkpointError, InvalidInput
from forkpoint.operations import remove
from forkpoint.operations.cache import Memories
from forkpoint.operations.context import Context
from forkpoint.operations.copy import copy_thread
from forkpoint.operations.delta_channels import delta_channel_history
from forkpoint.operations.places import config_of
from forkpoint.operations.put import (
    CapturedCheckpoint,
    CapturedWrites,
    NewCheckpoint,
    announce,
    capture_checkpoint,
    capture_writes,
    end_announcement,
    put_checkpoint,
    put_writes,
)
from forkpoint.operations.read import get_tuple
from forkpoint.runtime.runner import Runner
from forkpoint.runtime.telemetry import observed
from forkpoint.saver import arguments
from forkpoint.saver.history import TimeTravel
from forkpoint.storage.interface import Storage
from forkpoint.storage.rows import Expiry

if TYPE_CHECKING:
    from langgraph.checkpoint.base import DeltaChannelHistory
    from typing_extensions import Self


class ForkpointSaver(TimeTravel):
    """What the savers of all backends have in common; construct one of these.

    Every method may be called from any thread and any event loop. Each method that does I/O has
    an async twin, prefixed with `a`, that takes the same arguments and does the same.

    Args:
        storage: The store.
        runner: Runs operations in the sync and in the async world.
        serde: The serializer of values; a `SafeSerializer` by default.
        expiry: When threads expire that are made without an expiry of their own.
        budget: How many bytes the caches may take.
        preview: The channels whose values are shown with a thread's record.
    """

    _database_system = "other"
    """What traces and metrics call the database."""
    _store_name = ""
    """Which store it is, for people. Nothing secret is in it."""

    def __init__(
        self,
        storage: Storage,
        runner: Runner,
        serde: SerializerProtocol | None,
        *,
        expiry: Expiry | None = None,
        budget: CacheBudget | None = None,
        preview: Sequence[str] = (),
    ) -> None:
        super().__init__(serde=SafeSerializer() if serde is None else inputs.serializer(serde))
        self._runner = observed(runner, self._database_system)
        memories = Memories(budget or CacheBudget())
        channels = arguments.preview(preview, self.serde)
        self._context = Context(storage, self.serde, memories, None, expiry, channels)

    def __repr__(self) -> str:
        owner = self._context.owner
        confined = "" if owner is None else f".for_owner({owner!r})"
        return f"{type(self).__name__}({self._store_name}){confined}"

    def __copy__(self) -> Self:
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can be neither pickled nor copied deeply, since it has connections and "
            "threads; make a saver of the same store where it is needed, in each process"
        )

    # Lifecycle

    def setup(self) -> None:
        """Make the tables or indexes that are missing. The first use of a saver does it too.

        Raises:
            SchemaVersionError: The store was written by a newer forkpoint.
        """
        self._runner.run(self._context.setup)

    async def asetup(self) -> None:
        """Do what `setup` does."""
        await self._runner.arun(self._context.setup)

    def close(self) -> None:
        """Close what the saver opened itself. A connection that was passed stays open."""
        try:
            self._runner.run(self._context.storage.close)
        finally:
            self._runner.close()

    async def aclose(self) -> None:
        """Do what `close` does."""
        try:
            await self._runner.arun(self._context.storage.close)
        finally:
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> Self:
        """Return a saver for the same store that restores these types too.

        Args:
            extra_allowlist: `(module, name)` of each type.

        Raises:
            InvalidInput: That is not what it is.
        """
        derived = super().with_allowlist(inputs.allowlist(extra_allowlist))
        if derived is self:
            return self
        clone = copy.copy(self)
        clone.serde = derived.serde
        clone._context = self._context.with_serde(clone.serde)
        return clone

    def for_owner(self, owner: str) -> Self:
        """Return a saver for the same store that knows the threads of one owner only.

        Those of others do not exist for it, whatever id it is given. What it makes is the owner's.

        Raises:
            InvalidInput: This saver is confined to another owner already.
        """
        checked = inputs.identifier(owner, "owner")
        if self._context.owner == checked:
            return self
        if self._context.owner is not None:
            raise InvalidInput(
                f"the saver is confined to owner {self._context.owner!r}, and cannot be to "
                f"{checked!r}"
            )
        clone = copy.copy(self)
        clone._context = self._context.of_owner(checked)
        return clone

    # Reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that a config names, or the newest of its thread and namespace.

        Returns:
            The checkpoint with its pending writes, or None if there is none.

        Raises:
            InvalidInput: The config names no thread, or not properly.
            CorruptChunk: What is stored is not what was written.
            UnreadableValue: A value is of a type that may not, or cannot, be restored.
        """
        address = inputs.address(config)
        run = inputs.beginning_run(config, address)
        return self._runner.run(get_tuple, self._context, address, config, run)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do what `get_tuple` does."""
        address = inputs.address(config)
        run = inputs.beginning_run(config, address)
        return await self._runner.arun(get_tuple, self._context, address, config, run)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
        values: bool = True,
    ) -> Iterator[CheckpointTuple]:
        """Return checkpoints, newest first. They are read in pages, as the iterator goes on.

        Args:
            config: The thread, and the namespace or the checkpoint if it names one; None for all
                threads.
            filter: What the metadata must contain. Values match exactly and by type, nested ones
                by containment; a key with dots in it is one key.
            before: Only checkpoints that are older than the one this config names. A checkpoint
                as LangGraph's server has it, or an id, does as well.
            limit: How many checkpoints to return at most.
            values: Whether to read the values; see `history`.

        Raises:
            InvalidInput: An argument is of the wrong type; at once, not on the first iteration.
            CorruptChunk: On the iteration that comes to a checkpoint that is not what was written.
                The iterator goes on: the next item is the checkpoint after it.
            UnreadableValue: In the same way, for one with a value that cannot be restored.
        """
        return self._pages_of(
            arguments.list_query(config, filter, before, values), inputs.limit(limit)
        )

    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
        values: bool = True,
    ) -> AsyncIterator[CheckpointTuple]:
        """Do what `list` does."""
        return self._apages_of(
            arguments.list_query(config, filter, before, values), inputs.limit(limit)
        )

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Return what the value of each `DeltaChannel` is rebuilt from.

        Args:
            config: The checkpoint, or the thread and namespace of which the newest is meant.
            channels: The channels.

        Returns:
            For each channel its `writes` since it was last stored, oldest first, and as `seed`
            what was stored then, if it ever was.
        """
        return self._runner.run(
            delta_channel_history,  # type: ignore[arg-type]
            self._context,
            inputs.address(config),
            inputs.channels(channels),
        )

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Do what `get_delta_channel_history` does."""
        return await self._runner.arun(
            delta_channel_history,  # type: ignore[arg-type]
            self._context,
            inputs.address(config),
            inputs.channels(channels),
        )

    # Writing

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        Args:
            config: The thread and the namespace, and the parent as `checkpoint_id`.
            checkpoint: The checkpoint. One of the same id is replaced.
            metadata: JSON values.
            new_versions: The channels that changed. The others share what the parent stores for
                them, where their versions are the same, also if no values are given for them. If
                it is empty, all values are stored as given, but for those that a fork (the
                `source` of the metadata) has of its parent.

        Returns:
            The config that names the checkpoint.

        Raises:
            InvalidInput: An argument is of the wrong type, or a value cannot be serialized.
            ThreadDeleted: The thread that the run began on was deleted, or the one of the
                checkpoint that `config` names.
        """
        capture = self._capture(config, checkpoint, metadata, new_versions)
        try:
            announce(self._context, capture)
            self._runner.run(put_checkpoint, self._context, capture)
        finally:
            end_announcement(self._context, capture)
        return _config(capture.new)

    def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Coroutine[Any, Any, RunnableConfig]:
        """Do what `put` does, with the state at the call: what follows may change the values."""
        try:
            capture = self._capture(config, checkpoint, metadata, new_versions)
        except ForkpointError as error:
            return _failing(error)
        return self._aput(capture)

    async def _aput(self, capture: CapturedCheckpoint) -> RunnableConfig:
        try:
            announce(self._context, capture)
            await self._runner.arun(put_checkpoint, self._context, capture)
        finally:
            end_announcement(self._context, capture)
        return _config(capture.new)

    def _capture(self, *new: Any) -> CapturedCheckpoint:
        return capture_checkpoint(self._context, arguments.new_checkpoint(*new))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store the writes of a task.

        A task's writes are stored once: those that are there already stay as they are. Its error,
        interrupt and resume replace the ones before.

        Args:
            config: The checkpoint that the task started from.
            writes: Pairs of channel and value.
            task_id: The task.
            task_path: The path of the task; reading returns the writes in the order of paths.

        Raises:
            InvalidInput: An argument is of the wrong type, or a value cannot be serialized.
            ThreadDeleted: The thread that the run began on was deleted, or the one of the
                checkpoint that `config` names.
        """
        capture = self._capture_writes(config, writes, task_id, task_path)
        self._runner.run(put_writes, self._context, capture)

    def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> Coroutine[Any, Any, None]:
        """Do what `put_writes` does, with the values at the call, as `aput` does."""
        try:
            capture = self._capture_writes(config, writes, task_id, task_path)
        except ForkpointError as error:
            return _failing(error)
        return self._runner.arun(put_writes, self._context, capture)

    def _capture_writes(self, *new: Any) -> CapturedWrites:
        return capture_writes(self._context, arguments.new_writes(*new))

    def get_next_version(self, current: Any, channel: None) -> Any:
        """Return the version of a channel that follows `current`.

        Versions are integers, counted from 1. Those of a thread that another saver began as
        strings go on as strings.
        """
        if current is None:
            return 1
        if isinstance(current, (int, float)):
            return current + 1
        return langgraph_rules.text_version(inputs.version_number(current) + 1)

    # Removing and copying

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread with all it stores. One that does not exist is no error."""
        thread_id = inputs.identifier(thread_id, "thread_id")
        self._runner.run(remove.delete_thread, self._context, thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """Do what `delete_thread` does."""
        thread_id = inputs.identifier(thread_id, "thread_id")
        await self._runner.arun(remove.delete_thread, self._context, thread_id)

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that runs made, with their writes.

        What the `DeltaChannel` of a surviving checkpoint is rebuilt from is kept, out of sight.
        Copies that were made by `copy_thread` stay.

        Args:
            run_ids: As the checkpoints' metadata have them under `run_id`.
        """
        checked = inputs.identifiers(run_ids, "run_id")
        self._runner.run(remove.delete_for_runs, self._context, checked)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `delete_for_runs` does."""
        checked = inputs.identifiers(run_ids, "run_id")
        await self._runner.arun(remove.delete_for_runs, self._context, checked)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Make a new thread with all checkpoints and writes of another.

        Raises:
            ThreadNotFound: There is no source.
            ThreadExists: There is a target already.
        """
        source = inputs.identifier(source_thread_id, "source_thread_id")
        target = inputs.identifier(target_thread_id, "target_thread_id")
        self._runner.run(copy_thread, self._context, source, target)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do what `copy_thread` does."""
        source = inputs.identifier(source_thread_id, "source_thread_id")
        target = inputs.identifier(target_thread_id, "target_thread_id")
        await self._runner.arun(copy_thread, self._context, source, target)


async def _failing(error: ForkpointError) -> Any:
    """Raise an error where the call is awaited."""
    raise error


def _config(new: NewCheckpoint) -> RunnableConfig:
    thread_id, checkpoint_ns, _ = new.address
    return config_of(thread_id, checkpoint_ns, new.checkpoint["id"])
