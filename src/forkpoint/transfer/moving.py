"""Importing, archiving and restoring threads: the functions to call, with their async twins."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint import inputs
from forkpoint.archive.file import ArchiveFile
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.runtime.runner import completed
from forkpoint.saver import ForkpointSaver, parts_of
from forkpoint.transfer.archiving import archive_all
from forkpoint.transfer.importing import Done, Stopped, Target, import_all
from forkpoint.transfer.opening import (
    SourceArguments,
    Threads,
    saver_of,
    selection_of,
    source_opener,
)
from forkpoint.transfer.own import OwnSource, filter_of
from forkpoint.transfer.reports import OnProgress, TransferReport
from forkpoint.transfer.restoring import Rename, restore_all
from forkpoint.transfer.sources import Kind

_T = TypeVar("_T")


def import_threads(
    source: str | os.PathLike[str] | ForkpointSaver | ThreadCatalog | BaseCheckpointSaver[Any],
    target: ForkpointSaver | ThreadCatalog,
    *,
    kind: Kind,
    threads: Threads = None,
    since: datetime | None = None,
    serde: SerializerProtocol | None = None,
    verify: bool = False,
    on_progress: OnProgress | None = None,
) -> TransferReport:
    """Import threads from another saver, or from another store.

    Checkpoints come with their ids, parents, namespaces and metadata, and with the writes of their
    tasks, so that a graph goes on where it stopped. The source is not written to. What is there
    already is not written again: an import that was stopped goes on where it was, and one that is
    repeated brings what is new. Threads that are in use in the source are imported as they are.

    Args:
        source: The path of the official SQLite saver's database; the connection string of the
            official MongoDB or Postgres saver's; or a saver or catalog.
        target: Where to. A saver or catalog of one owner makes all threads the owner's.
        kind: What the source is: `"langgraph-sqlite"`, `"langgraph-mongodb"`,
            `"langgraph-postgres"`, `"forkpoint"` for a saver or catalog of forkpoint's own, whose
            records come along (label, tags, metadata, owner, time to live, times, lineage), or
            `"saver"` for any other saver.
        threads: Which threads: their ids, or what is called with an id. With `"forkpoint"`, a
            `ThreadFilter` too. An id that is not there is among the `failed`.
        since: Only threads that were active then or later.
        serde: The serializer that values of another saver's database were written with; by
            default, one that reads what the official savers write unless they were given another.
        verify: Whether to read both once more, and compare them state by state.
        on_progress: Is called after each checkpoint and after each thread.

    Returns:
        What was imported, and what was not, and why: one thread that cannot be imported does not
        keep the others from it.

    Raises:
        InvalidInput: An argument is of the wrong type.
        SourceError: The source cannot be read, or is of another kind.
        MissingLibrary: The driver of its database is not installed.
    """
    arguments = SourceArguments(source, kind, threads, since, serde)
    return _importing(arguments, target, verify, on_progress)(threading.Event())


async def aimport_threads(
    source: str | os.PathLike[str] | ForkpointSaver | ThreadCatalog | BaseCheckpointSaver[Any],
    target: ForkpointSaver | ThreadCatalog,
    *,
    kind: Kind,
    threads: Threads = None,
    since: datetime | None = None,
    serde: SerializerProtocol | None = None,
    verify: bool = False,
    on_progress: OnProgress | None = None,
) -> TransferReport:
    """Do what `import_threads` does. The callbacks are called on another thread.

    If the call is cancelled, it ends after the next checkpoint.
    """
    arguments = SourceArguments(source, kind, threads, since, serde)
    return await _apart(_importing(arguments, target, verify, on_progress))


def _importing(
    arguments: SourceArguments, target: object, verify: object, on_progress: object
) -> Callable[[threading.Event], TransferReport]:
    saver = saver_of(target, "target")
    open_source = source_opener(arguments, saver)
    is_verified, progress = inputs.flag(verify, "verify"), _callback(on_progress)

    def run(stop: threading.Event) -> TransferReport:
        source = open_source()
        try:
            done = Done(source.count(), progress, stop)
            return import_all(source, Target(*parts_of(saver)), done, verify=is_verified)
        finally:
            source.close()

    return run


# Archives


def archive_threads(
    store: ForkpointSaver | ThreadCatalog,
    path: str | os.PathLike[str],
    filter: ThreadFilter | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> TransferReport:
    """Append threads to an archive. They stay where they are.

    Values are archived as they are stored, so that no class of the application is needed; where the
    serializer encrypts, they are encrypted in the archive.

    Args:
        store: The saver or catalog.
        path: The file, of lines of JSON; compressed if its name ends in `.gz` or `.zst`. It is made
            if it is not there.
        filter: Which threads; all by default, those that have expired too.
        on_progress: Is called after each checkpoint and after each thread.

    Returns:
        How many were archived, and which were not, and why.

    Raises:
        InvalidInput: The path leads to something that is no archive, or an argument is of the wrong
            type.
        MissingLibrary: There is nothing to compress it with.
    """
    return _archiving(store, path, filter, on_progress)(threading.Event())


async def aarchive_threads(
    store: ForkpointSaver | ThreadCatalog,
    path: str | os.PathLike[str],
    filter: ThreadFilter | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> TransferReport:
    """Do what `archive_threads` does. The callback is called on another thread.

    If the call is cancelled, it ends after the next checkpoint.
    """
    return await _apart(_archiving(store, path, filter, on_progress))


def _archiving(
    store: object, path: str | os.PathLike[str], filter: ThreadFilter | None, on_progress: object
) -> Callable[[threading.Event], TransferReport]:
    saver = saver_of(store, "store")
    catalog = ThreadCatalog(saver)
    checked = filter_of(catalog, filter, None)
    progress = _callback(on_progress)
    name = inputs.path(path, "path")

    def run(stop: threading.Event) -> TransferReport:
        source, file = OwnSource(*parts_of(saver), checked), ArchiveFile(name)
        return archive_all(source, file, Done(source.count(), progress, stop))

    return run


def restore_threads(
    target: ForkpointSaver | ThreadCatalog,
    path: str | os.PathLike[str],
    *,
    threads: Collection[str] | Callable[[str], bool] | None = None,
    rename: Mapping[str, str] | Callable[[str], str] | None = None,
    on_progress: OnProgress | None = None,
) -> TransferReport:
    """Restore threads from an archive, as they were.

    It takes what `archive_threads` and retention (`apply_retention(archive=...)`) have written. Of
    a thread that was archived several times, the last time counts. A thread is in the lineage that
    it had as far as those are there that it was made from. A line that is damaged is skipped, and
    named in the report, and so is what depends on it.

    Args:
        target: Where to, of either backend. A saver or catalog of one owner makes all threads the
            owner's. If the threads were encrypted, its serializer must know the key.
        path: The file, compressed or not.
        threads: Which threads: their ids in the archive, or what is called with an id. An id that
            is not there is among the `failed`.
        rename: The ids that threads get, by those that they had, or what is called with an id. An
            id that is named and not there is among the `failed`.
        on_progress: Is called after each checkpoint and after each thread.

    Returns:
        What was restored, and what was not, and why. A thread whose id is taken is not: that is a
        `ThreadExists` among the `failed`, by the id in the archive.

    Raises:
        InvalidInput: There is no such file, or an argument is of the wrong type.
        MissingLibrary: There is nothing to decompress it with.
    """
    return _restoring(target, path, threads, rename, on_progress)(threading.Event())


async def arestore_threads(
    target: ForkpointSaver | ThreadCatalog,
    path: str | os.PathLike[str],
    *,
    threads: Collection[str] | Callable[[str], bool] | None = None,
    rename: Mapping[str, str] | Callable[[str], str] | None = None,
    on_progress: OnProgress | None = None,
) -> TransferReport:
    """Do what `restore_threads` does. The callbacks are called on another thread.

    If the call is cancelled, it ends after the next checkpoint.
    """
    return await _apart(_restoring(target, path, threads, rename, on_progress))


def _restoring(
    target: object, path: str | os.PathLike[str], threads: Any, rename: Any, on_progress: object
) -> Callable[[threading.Event], TransferReport]:
    saver = saver_of(target, "target")
    is_selected, renamed, progress = selection_of(threads), _renamed(rename), _callback(on_progress)
    name = inputs.path(path, "path")

    def run(stop: threading.Event) -> TransferReport:
        done = Done(None, progress, stop)
        return restore_all(name, Target(*parts_of(saver)), is_selected, renamed, done)

    return run


# Arguments


def _renamed(rename: Any) -> Rename:
    if rename is None or isinstance(rename, Mapping):
        return {
            inputs.identifier(old, "a thread id of rename"): inputs.identifier(new, "a new id")
            for old, new in (rename or {}).items()
        }
    inputs.callback(rename, "rename")
    return lambda thread_id: inputs.identifier(rename(thread_id), "the id that rename returns")


def _callback(on_progress: Any) -> OnProgress | None:
    if on_progress is not None:
        inputs.callback(on_progress, "on_progress")
    return on_progress  # type: ignore[no-any-return]


async def _apart(run: Callable[[threading.Event], _T]) -> _T:
    """Run something on another thread, and stop it if the call is cancelled."""
    stop = threading.Event()

    def until_stopped() -> _T | None:
        try:
            return run(stop)
        except Stopped:
            return None

    done = await completed(asyncio.to_thread(until_stopped), stop.set)
    assert done is not None
    return done
