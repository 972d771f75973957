"""Threads and checkpoints by name: as configs, as places within a thread, and in errors."""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig

from forkpoint import langgraph_rules
from forkpoint.errors import CheckpointNotFound, CorruptChunk, ThreadNotFound, UnreadableValue
from forkpoint.inputs import Address
from forkpoint.storage.interface import Session
from forkpoint.storage.plan import Place
from forkpoint.storage.row_checksums import metadata_of
from forkpoint.storage.rows import CheckpointRow, StoredCheckpoint, ThreadRef


def existing_thread(session: Session, thread_id: str) -> ThreadRef:
    """Return which thread an id means.

    Raises:
        ThreadNotFound: There is none.
    """
    thread = session.threads.find(thread_id)
    if thread is None:
        raise ThreadNotFound(f"there is no thread {thread_id!r}")
    return thread


def existing_checkpoint(session: Session, address: Address) -> StoredCheckpoint:
    """Return a checkpoint, or the newest of its namespace.

    Raises:
        ThreadNotFound: There is no such thread.
        CheckpointNotFound: It has no such checkpoint.
    """
    checkpoint = session.checkpoints.get(*address)
    if checkpoint is None:
        existing_thread(session, address.thread_id)
        raise CheckpointNotFound(
            f"thread {address.thread_id!r} has no checkpoint {address.checkpoint_id!r}"
        )
    return checkpoint


def thread_config(thread_id: str) -> RunnableConfig:
    """Return the config that names a thread, and no checkpoint: its newest is meant."""
    return {"configurable": {"thread_id": thread_id}}


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    """Return the config that names a checkpoint."""
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }


def place_of(row: CheckpointRow) -> Place:
    """Return the namespace and the id of a checkpoint, which name it within its thread."""
    return row.checkpoint_ns, row.checkpoint_id


def replay_bound(row: CheckpointRow) -> str:
    """Return the id before which a time travel to a checkpoint looks for subgraphs' states.

    It is the checkpoint's own id. Where the checkpoint is the outcome of an update, it is the id
    of its parent: the update was made after the subgraphs had run.
    """
    parent = row.parent_checkpoint_id
    is_update = langgraph_rules.is_update(metadata_of(row))
    return parent if is_update and parent is not None else row.checkpoint_id


class at_place:
    """Name the thread and the checkpoint in errors of reading it, which are raised within.

    Args:
        thread_id: The thread.
        checkpoint_ns: The namespace of the checkpoint.
        checkpoint_id: Its id.
    """

    def __init__(self, thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> None:
        self._place = thread_id, checkpoint_ns, checkpoint_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, (CorruptChunk, UnreadableValue)):
            thread_id, checkpoint_ns, checkpoint_id = self._place
            where = f"thread {thread_id!r}, checkpoint {checkpoint_id!r}"
            if checkpoint_ns:
                where += f" of namespace {checkpoint_ns!r}"
            raise type(error)(f"{where}: {error}") from error
