"""MongoDB: how chunks are read, with what they lead to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bson.objectid import ObjectId

from forkpoint.caches import ENTRY_BYTES, Cache
from forkpoint.encoding.chunk import Chunk, Chunks
from forkpoint.mongodb.commands import IN_ONE_COMMAND, MongoCommands
from forkpoint.mongodb.documents import (
    Document,
    chunk_id,
    chunk_size,
    digest_of,
    family_of,
    refs_in,
    refs_of,
)
from forkpoint.storage import interface
from forkpoint.storage.shared import batches

_REF_BYTES = 90  # what it takes to remember a ref
_CHUNK = {"refs": 1, "content": 1}


class MongoChunks(interface.ChunkReads):
    """Reads chunks, and remembers to which others they refer.

    Args:
        commands: Those of the collection.
    """

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands
        self._trees: Cache[bytes, list[bytes]] = Cache(
            commands.budget, lambda _, below: ENTRY_BYTES + _REF_BYTES * len(below)
        )

    def get(
        self, family: Any, digests: Collection[bytes], *, follow: bool = True
    ) -> Mapping[bytes, Chunk]:
        return self.of_families({family: digests}, follow=follow)[family]

    def of_families(
        self, digests: Mapping[Any, Collection[bytes]], *, follow: bool = True
    ) -> dict[Any, dict[bytes, Chunk]]:
        ids = [chunk_id(family, digest) for family in digests for digest in digests[family]]
        families = {"$in": list(digests)}
        documents: list[Document] = []
        is_all = True
        if follow:
            ids, is_all = self._expanded(ids)
        if not is_all:
            documents = self._closure(families, ids) or []
        if not documents:  # too much for the server to follow, or the first one is missing
            for batch in batches(ids, IN_ONE_COMMAND):
                documents += self._commands.find(
                    {"_id": {"$in": batch}, "family": families}, _CHUNK
                )
        chunks: dict[bytes, dict[bytes, Chunk]] = {family.binary: {} for family in digests}
        for chunk in documents:
            id_ = chunk["_id"]
            chunks[family_of(id_)][digest_of(id_)] = refs_in(chunk), chunk["content"]
        if not is_all:
            for family in digests:
                self.remember(family, chunks[family.binary])
        return {family: chunks[family.binary] for family in digests}

    def sizes(self, family: Any, digests: Collection[bytes]) -> Mapping[bytes, int]:
        sizes: dict[bytes, int] = {}
        for batch in batches(digests, IN_ONE_COMMAND):
            ids = [chunk_id(family, digest) for digest in batch]
            match = {"$match": {"_id": {"$in": ids}, "family": family}}
            chunks = self._commands.aggregate([match, {"$project": {"size": chunk_size()}}])
            sizes.update((digest_of(chunk["_id"]), chunk["size"]) for chunk in chunks)
        return sizes

    def known_below(self, family: ObjectId, digests: Collection[bytes]) -> list[bytes]:
        """Return the ids of chunks, and of those that they are known to lead to."""
        return self._expanded([chunk_id(family, digest) for digest in digests])[0]

    def remember(self, family: ObjectId, chunks: Chunks) -> None:
        """Remember to which others chunks refer, so that all can be read by one query."""
        for digest, (refs, _) in chunks.items():
            self._trees.put(chunk_id(family, digest), refs_of(family, refs))

    def _expanded(self, ids: list[bytes]) -> tuple[list[bytes], bool]:
        """Return ids with those that they are known to lead to, and whether these are all."""
        ids_below = dict.fromkeys(ids)
        waiting = ids
        is_all = True
        while waiting:
            below = [self._trees.get(id_) for id_ in waiting]
            is_all = is_all and None not in below
            waiting = [ref for refs in below for ref in refs or () if ref not in ids_below]
            ids_below.update(dict.fromkeys(waiting))
        return list(ids_below), is_all

    def _closure(self, families: Document, ids: list[bytes]) -> list[Document] | None:
        """Return chunks with all that they lead to, in one round trip at any height."""
        follow = {
            "from": self._commands.name,
            "startWith": {"$literal": ids},
            "connectFromField": "refs",
            "connectToField": "_id",
            "restrictSearchWithMatch": {"family": families},
            "as": "chunk",
        }
        return self._commands.aggregate_if_it_fits(
            [
                {"$match": {"_id": ids[0], "family": families}},
                {"$project": {"_id": 1}},
                {"$graphLookup": follow},
                {"$unwind": "$chunk"},
                {"$replaceWith": "$chunk"},
                {"$project": _CHUNK},
            ]
        )
