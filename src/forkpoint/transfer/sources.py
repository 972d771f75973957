"""What threads are imported from. Nothing here writes to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, NamedTuple, get_args

from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint import inputs
from forkpoint.archive.parts import (
    CheckpointPart,
    EndPart,
    Numbering,
    Part,
    ThreadPart,
    WritePart,
)
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.entries import unpack, unpack_only_entry
from forkpoint.encoding.manifest import Manifest
from forkpoint.errors import ForkpointError, InvalidInput, SourceError, ThreadNotFound
from forkpoint.json_text import as_json
from forkpoint.langgraph_rules import (
    COUNTERS,
    is_text_version,
    made_at,
    status_of,
    version_number,
)
from forkpoint.operations.run_metadata import of_config
from forkpoint.storage.plan import Place
from forkpoint.storage.rows import Description, RecordTimes
from forkpoint.untrusted import mapping, shown

Kind = Literal["langgraph-sqlite", "langgraph-mongodb", "langgraph-postgres", "forkpoint", "saver"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What threads can be imported from."""

IsSelected = Callable[[str], bool]
"""Takes a thread id, and returns whether the thread is to be imported."""


class NamedThreads:
    """Select threads by their ids, and know which of these have not come.

    Args:
        ids: The ids.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._missing = dict.fromkeys(ids)
        self.ids = frozenset(self._missing)

    def __call__(self, thread_id: str) -> bool:
        self._missing.pop(thread_id, None)
        return thread_id in self.ids

    @staticmethod
    def missing(selected: IsSelected | None, where: str) -> dict[str, Exception]:
        """Return an error for each id that was named, and is not in a source or an archive."""
        return not_there(selected._missing if isinstance(selected, NamedThreads) else (), where)


def not_there(ids: Iterable[str], where: str) -> dict[str, Exception]:
    """Return an error for each id of a thread that is not in a source or an archive."""
    return {
        thread_id: ThreadNotFound(f"there is no thread {thread_id!r} in {where}")
        for thread_id in ids
    }


Places = Mapping[Place, Place | None]
"""The checkpoints of a thread, oldest first, each with its parent."""


def oldest_first(places: Iterable[tuple[str, str, str | None]]) -> Places:
    """Return checkpoints by place, given the namespace, the id and the parent's id of each."""
    return {
        (ns, checkpoint_id): (ns, parent_id) if isinstance(parent_id, str) else None
        for ns, checkpoint_id, parent_id in sorted(places, key=lambda each: (each[1], each[0]))
    }


class Source(ABC):
    """Threads to be imported."""

    name: str
    """What kind it is, which a thread that is not complete is marked with."""

    @abstractmethod
    def thread_ids(self) -> Iterator[str]:
        """Yield the ids of all threads that are to be imported, each before what was made of it."""

    @abstractmethod
    def count(self) -> int | None:
        """Return how many there are, unless that would take as long as reading them."""

    @abstractmethod
    def missing(self) -> Mapping[str, Exception]:
        """Return an error for each thread that is named and is not there, once all ids are read."""

    @abstractmethod
    def places(self, thread_id: str) -> Places:
        """Return the checkpoints of a thread, oldest first; none if there is no such thread."""

    @abstractmethod
    def parts(self, thread_id: str, needed: Collection[Place] | None = None) -> Iterator[Part]:
        """Yield a thread part by part.

        Args:
            thread_id: The thread.
            needed: The checkpoints that are needed; None for all. Those that are hidden come, too.
        """

    def close(self) -> object:
        """Close what the source opened itself."""
        return None


class StoredWrite(NamedTuple):
    """A write as another saver has it."""

    task_id: str
    idx: int
    task_path: str
    channel: str
    value: Any


class StoredState(NamedTuple):
    """A checkpoint as another saver has it."""

    checkpoint: Mapping[str, Any]
    metadata: Mapping[str, Any]
    parent_checkpoint_id: str | None
    writes: Sequence[StoredWrite]


class Reader(ABC):
    """Reads what another saver has stored."""

    @abstractmethod
    def thread_ids(self) -> Iterator[str]:
        """Yield the ids of all threads, in order."""

    @abstractmethod
    def places(self, thread_id: str) -> list[tuple[str, str, str | None]]:
        """Return the namespace, the id and the parent's id of each checkpoint, in any order."""

    @abstractmethod
    def state(self, thread_id: str, place: Place) -> StoredState | None:
        """Return a checkpoint with its writes, unless it was removed meanwhile."""

    def close(self) -> object:
        """Close what the reader opened itself."""
        return None


class ForeignSource(Source):
    """The threads of another saver.

    Args:
        name: The kind.
        reader: Reads them.
        serde: The serializer that the values are to be written with, without encryption.
        is_selected: Whether a thread is to be imported; None for all.
        since: Those alone that were active then or later.
    """

    def __init__(
        self,
        name: str,
        reader: Reader,
        serde: SerializerProtocol,
        is_selected: IsSelected | None,
        since: datetime | None,
    ) -> None:
        self.name = name
        self._reader = reader
        self._codec = Codec(serde)
        self._is_selected = is_selected
        self._since = None if since is None else inputs.moment(since, "since")

    def thread_ids(self) -> Iterator[str]:
        for thread_id in self._selected_ids():
            if self._since is None or self._is_active(thread_id, self._since):
                yield thread_id

    def _selected_ids(self) -> Iterator[str]:
        is_selected = self._is_selected
        for thread_id in self._reader.thread_ids():
            # One of another type than a string is none that anybody can have selected.
            if is_selected is None or (isinstance(thread_id, str) and is_selected(thread_id)):
                yield thread_id

    def _is_active(self, thread_id: str, since: int) -> bool:
        try:
            places = self.places(thread_id)
        except InvalidInput:
            return True  # whoever imports it is told
        times = [made_at(checkpoint_id) for _, checkpoint_id in list(places)[-1:]]
        return any(time is None or time >= since for time in times)

    def count(self) -> int | None:
        if self._since is not None:
            return None
        return sum(1 for _ in self._selected_ids())

    def missing(self) -> Mapping[str, Exception]:
        return NamedThreads.missing(self._is_selected, "the source")

    def places(self, thread_id: str) -> Places:
        return oldest_first(
            (
                inputs.text(ns, "checkpoint_ns"),
                inputs.identifier(checkpoint_id, "checkpoint_id"),
                parent_id,
            )
            for ns, checkpoint_id, parent_id in self._reader.places(thread_id)
        )

    def parts(self, thread_id: str, needed: Collection[Place] | None = None) -> Iterator[Part]:
        places = list(self.places(thread_id))
        heads = [place for place in places if place[0] == ""]
        head = self._state(thread_id, heads[-1]) if heads else None
        yield self._thread_part(thread_id, places, head)
        checkpoints = writes = 0
        numbering = Numbering()
        for place in places:
            if needed is not None and place not in needed:
                continue
            is_head = head is not None and place == heads[-1]
            state = head if is_head else self._state(thread_id, place)
            if state is None:
                continue
            numbering.begin_checkpoint()
            part = self._checkpoint_part(thread_id, place, state, numbering)
            yield from numbering.take()
            yield part
            checkpoints += 1
            writes += len(part.writes)
        yield EndPart(checkpoints, writes)

    def close(self) -> None:
        self._reader.close()

    def _state(self, thread_id: str, place: Place) -> StoredState | None:
        """Return a checkpoint of the shape that a saver is given."""
        with _at(thread_id, place):
            state = self._reader.state(thread_id, place)
            if state is None:
                return None
            metadata = mapping(state.metadata, "metadata")
            checkpoint = _comparable(inputs.checkpoint(state.checkpoint), metadata)
            return state._replace(checkpoint=checkpoint, metadata=metadata)

    def _thread_part(
        self, thread_id: str, places: Sequence[Place], head: StoredState | None
    ) -> ThreadPart:
        heads = [place for place in places if place[0] == ""]
        created = made_at(places[0][1]) if places else None
        updated = made_at(places[-1][1]) if places else None
        times = RecordTimes(0, 0, 0)
        if created and updated:
            times = RecordTimes(created, updated, (made_at(heads[-1][1]) or 0) if heads else 0)
        metadata = "{}" if head is None else _thread_metadata(head.metadata)
        writes = () if head is None else head.writes
        status = status_of({write.idx for write in writes})
        return ThreadPart(thread_id, None, Description(metadata=metadata), status, times)

    def _checkpoint_part(
        self, thread_id: str, place: Place, state: StoredState, numbering: Numbering
    ) -> CheckpointPart:
        codec = self._codec
        with _at(thread_id, place):
            metadata = as_json(state.metadata, "metadata")
            body, stored, chunks = codec.serialize(state.checkpoint)
            writes = []
            values = {
                name: numbering.value(entry, chunks.get(name, {}).__getitem__)
                for name, entry in Manifest(stored).items()
            }
            for write in sorted(state.writes, key=lambda each: (each[2], each[0], each[1])):
                encoded = codec.encode_write(write.channel, write.value)
                entry = unpack_only_entry(unpack(encoded.content, "a write"), encoded.refs)
                value = numbering.value(entry, encoded.chunks.__getitem__)
                writes.append(WritePart(*write[:4], value))
        return CheckpointPart(
            *place,
            state.parent_checkpoint_id,
            inputs.run_id(state.metadata),
            metadata,
            body,
            values,
            writes,
        )


@contextmanager
def _at(thread_id: str, place: Place) -> Iterator[None]:
    """Name the checkpoint that cannot be read or stored, whatever is wrong with its rows.

    Raises:
        InvalidInput: It cannot be stored.
        SourceError: It is not of the shape that a saver writes.
    """
    where = f"thread {thread_id!r}, checkpoint {place[1]!r} of namespace {place[0]!r}"
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    except ForkpointError:
        raise
    except Exception as error:
        raise SourceError(f"{where}: it cannot be read: {shown(error)}") from error


def _comparable(checkpoint: Mapping[str, Any], metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a checkpoint whose graph can go on with versions of channels that forkpoint counts.

    For a `DeltaChannel` that has none, LangGraph asks the saver for a first version, and compares
    that with the others, which the official savers have as strings. A graph may get such channels
    later. Each of those strings begins with a higher number than the ones before it.
    """
    versions = checkpoint.get("channel_versions", {})
    texts = [version for version in versions.values() if isinstance(version, str)]
    if COUNTERS not in metadata and not (texts and all(map(is_text_version, texts))):
        return checkpoint
    seen = mapping(checkpoint.get("versions_seen") or {}, "checkpoint['versions_seen']")
    return {
        **checkpoint,
        "channel_versions": _numbers(versions),
        "versions_seen": {node: _numbers(of_node) for node, of_node in seen.items()},
    }


def _numbers(versions: Mapping[str, Any]) -> dict[str, Any]:
    """Return versions as numbers, where they are strings that count."""
    numbers = {}
    for name, version in versions.items():
        number = version_number(version) if isinstance(version, str) else None
        numbers[name] = version if number is None else number
    return numbers


def _thread_metadata(metadata: Mapping[str, Any]) -> str:
    """Return what the record of a thread says of the run that made a checkpoint, as JSON."""
    of_run = {name: value for name, value in metadata.items() if name not in _OF_CHECKPOINTS}
    return of_config({"metadata": of_run})


_OF_CHECKPOINTS = frozenset({"source", "step", "parents", "writes", "score", "run_id", COUNTERS})
"""Metadata that LangGraph gives to checkpoints, and not to runs."""
