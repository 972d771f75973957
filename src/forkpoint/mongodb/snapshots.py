"""MongoDB: documents as they were at a moment, as far as the server keeps what was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Protocol, TypeVar

from bson.timestamp import Timestamp
from pymongo.collection import Collection
from pymongo.errors import CursorNotFound, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from forkpoint.mongodb.documents import Document
from forkpoint.mongodb.errors import is_transient, typed_error
from forkpoint.mongodb.identity import Identity
from forkpoint.storage.interface import Stale

_T = TypeVar("_T")


class _Retrying(Protocol):
    def __call__(self, command: Callable[[], _T]) -> _T: ...


class Snapshots:
    """Reads documents as they all were at one moment.

    Args:
        collection: With the concerns that it is to be read and written with.
        identity: Which store it is.
        retrying: Calls a function again while the server changes its primary.
    """

    def __init__(
        self,
        collection: Collection[Document],
        identity: Identity,
        retrying: _Retrying,
    ) -> None:
        self._collection = collection
        self._identity = identity
        self._retrying = retrying
        self._together = collection.with_options(read_concern=ReadConcern("snapshot"))
        self._keeps_moments = True

    def find_together(
        self, match: Document, fields: Mapping[str, int], limit: int
    ) -> list[Document]:
        """Return documents that a majority has, all of the same moment.

        There are none if the server does not keep it, or if they are more than the limit.
        """
        find = self._together.find

        def together() -> list[Document]:
            try:
                return find(match, fields, limit=limit + 1, batch_size=limit + 2).to_list()
            except OperationFailure as error:
                if error.code not in _NO_SNAPSHOT:
                    raise
                self._keeps_moments = error.code not in _NO_SNAPSHOTS
                return []

        documents = self._retrying(together) if self._keeps_moments else []
        return documents if len(documents) <= limit else []

    def open(self, match: Document, batch: int) -> Iterator[Document] | None:
        """Return a cursor over documents as they are now, for `read_on`.

        None if the server does not keep what was.
        """
        find = self._together.find

        def begin() -> Iterator[Document] | None:
            cursor = find(match, batch_size=batch)
            try:
                first = list(islice(cursor, 1))
            except OperationFailure as error:
                if error.code not in _NO_SNAPSHOT:
                    raise
                return None
            return chain(first, cursor)

        return self._retrying(begin)

    def read_on(self, opened: Iterator[Document], number: int) -> list[Document]:
        """Return the next documents of a cursor.

        Raises:
            Stale: The server does not keep that moment any more.
        """
        try:
            return list(islice(opened, number))
        except PyMongoError as error:
            code = error.code if isinstance(error, OperationFailure) else None
            if isinstance(error, CursorNotFound) or code in _NO_SNAPSHOT or is_transient(error):
                raise Stale from error
            raise typed_error(error) from error

    def find_at(
        self,
        moment: Timestamp | None,
        match: Document,
        fields: Mapping[str, int],
        sort: Mapping[str, int],
        limit: int,
    ) -> tuple[list[Document], Timestamp | None]:
        """Return documents as they were at a moment, or are now, and that moment.

        It is None if the server does not keep it, and then they are as they are.
        """
        command = {
            "find": self._collection.name,
            "filter": match,
            "projection": fields,
            "sort": sort,
            "limit": limit,
            "batchSize": limit,
            "singleBatch": True,
            **self._identity.uuid_option,
        }
        concern: Document = {"level": "snapshot"}
        if moment is not None:
            concern["atClusterTime"] = moment

        def find() -> tuple[list[Document], Timestamp | None]:
            try:
                reply = self._cursor({**command, "readConcern": concern})
                # A collection that is not there has no moments.
                return reply["firstBatch"], reply.get("atClusterTime")
            except OperationFailure as error:
                if error.code not in _NO_SNAPSHOT:
                    raise
                majority = {"level": "majority"}
                reply = self._cursor({**command, "readConcern": majority})
                return reply["firstBatch"], None

        return self._retrying(find)

    def _cursor(self, command: Document) -> Document:
        """Return the cursor that a command replies with."""
        options = self._collection.codec_options
        reply: Document = self._collection.database.command(command, codec_options=options)
        cursor: Document = reply["cursor"]
        return cursor


_NO_SNAPSHOTS = {
    72,  # InvalidOptions: a standalone server keeps no snapshots
    123,  # NotAReplicaSet
}
_NO_SNAPSHOT = {
    *_NO_SNAPSHOTS,
    239,  # SnapshotTooOld
    246,  # SnapshotUnavailable
}
