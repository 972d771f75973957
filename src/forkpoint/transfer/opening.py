"""Opening what threads are imported from, once the arguments are checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint import inputs
from forkpoint.catalog.catalog import ThreadCatalog
from forkpoint.catalog.threads import ThreadFilter
from forkpoint.encoding.encryption import cipher_of
from forkpoint.errors import InvalidInput
from forkpoint.saver import ForkpointSaver, parts_of
from forkpoint.transfer.foreign import MongoReader, PostgresReader, SaverReader, SqliteReader
from forkpoint.transfer.own import OwnSource, filter_of
from forkpoint.transfer.sources import (
    KINDS,
    ForeignSource,
    IsSelected,
    NamedThreads,
    Reader,
    Source,
)

Threads = ThreadFilter | Collection[str] | Callable[[str], bool] | None
"""Which threads are meant: ids, or what tells of an id whether it is; None for all. Of a store of
forkpoint's own, a filter too."""

_READERS: Mapping[str, Callable[[str, SerializerProtocol], Reader]] = {
    "langgraph-sqlite": SqliteReader,
    "langgraph-mongodb": MongoReader,
    "langgraph-postgres": PostgresReader,
}


class SourceArguments(NamedTuple):
    """What a caller says of a source; see `import_threads`."""

    source: Any
    kind: object
    threads: Any
    since: datetime | None
    serde: object


def source_opener(arguments: SourceArguments, target: ForkpointSaver) -> Callable[[], Source]:
    """Return what opens a source.

    Args:
        arguments: What a caller says of it.
        target: Where the threads are to go.

    Raises:
        InvalidInput: An argument is of the wrong type.
    """
    kind = inputs.choice(arguments.kind, "kind", KINDS)
    if arguments.since is not None:
        inputs.moment(arguments.since, "since")
    if kind == "forkpoint":
        return _own(arguments)
    if isinstance(arguments.threads, ThreadFilter):
        raise InvalidInput(f"a ThreadFilter is for kind 'forkpoint', not {kind!r}: pass ids")
    is_selected = selection_of(arguments.threads)
    writing = _unencrypted(target.serde)
    serde = writing if arguments.serde is None else inputs.serializer(arguments.serde)
    reader = _reader(arguments.source, kind, serde)
    return lambda: ForeignSource(kind, reader(), writing, is_selected, arguments.since)


def _own(arguments: SourceArguments) -> Callable[[], Source]:
    filter = arguments.threads if isinstance(arguments.threads, ThreadFilter) else None
    is_selected = selection_of(arguments.threads) if filter is None else None
    if isinstance(is_selected, NamedThreads) and 0 < len(is_selected.ids) <= inputs.IDS:
        filter = ThreadFilter(ids=[*is_selected.ids])  # which finds them without the others
    catalog = ThreadCatalog(saver_of(arguments.source, "source"))
    criteria = filter_of(catalog, filter, arguments.since)
    return lambda: OwnSource(*parts_of(catalog.saver), criteria, is_selected)


def _reader(source: Any, kind: str, serde: SerializerProtocol) -> Callable[[], Reader]:
    if kind == "saver":
        if not isinstance(source, BaseCheckpointSaver):
            raise InvalidInput(f"source must be a saver, not {type(source).__name__}")
        return lambda: SaverReader(source)
    name = inputs.text(os.fspath(source) if isinstance(source, os.PathLike) else source, "source")
    return lambda: _READERS[kind](name, serde)


def _unencrypted(serde: SerializerProtocol) -> SerializerProtocol:
    is_encrypting = isinstance(serde, EncryptedSerializer) and cipher_of(serde) is not None
    return serde.serde if is_encrypting else serde  # type: ignore[attr-defined]


def saver_of(value: object, what: str) -> ForkpointSaver:
    """Return a saver, or that of a catalog.

    Raises:
        InvalidInput: It is neither.
    """
    if isinstance(value, ThreadCatalog):
        return value.saver
    if isinstance(value, ForkpointSaver):
        return value
    raise InvalidInput(
        f"{what} must be a saver of forkpoint or a ThreadCatalog, not {type(value).__name__}"
    )


def selection_of(threads: Any) -> IsSelected | None:
    """Return what tells of an id whether its thread is meant; None if all are.

    Raises:
        InvalidInput: It is neither a collection of ids nor a function.
    """
    if threads is None:
        return None
    if callable(threads):
        inputs.callback(threads, "threads")  # what an async one returns is always true
        return threads  # type: ignore[no-any-return]
    if isinstance(threads, (str, bytes)) or not isinstance(threads, Collection):
        raise InvalidInput(f"threads must be a collection of ids, not {type(threads).__name__}")
    return NamedThreads(inputs.identifiers(list(threads), "thread_id"))
