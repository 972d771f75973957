"""Finding the checkpoint in which a message came, without reading all of a long thread."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from forkpoint import langgraph_rules
from forkpoint.encoding.codec import Chunk, Chunks, Entry, gather
from forkpoint.errors import CorruptChunk
from forkpoint.inputs import Address
from forkpoint.operations.context import Context
from forkpoint.operations.delta_channels import delta_channel_history
from forkpoint.operations.places import at_place, config_of, existing_thread, place_of
from forkpoint.operations.read import consistently, get_tuple
from forkpoint.results import MessageOrigin
from forkpoint.storage.interface import Session
from forkpoint.storage.row_checksums import metadata_of, open_checkpoint
from forkpoint.storage.rows import CheckpointRow, ThreadRef


class _Path(NamedTuple):
    """The checkpoints of a thread that lead to its newest, oldest first."""

    thread: ThreadRef
    rows: Sequence[CheckpointRow]


def find_message(
    context: Context, thread_id: str, message_id: str, channel: str
) -> MessageOrigin | None:
    """Return where a message came into the state of a thread, or None if it is in none."""

    def read(session: Session) -> _Path:
        thread = existing_thread(session, thread_id)
        head = session.checkpoints.get(thread_id, "", None)
        rows: dict[str, CheckpointRow] = {}
        ancestors = head and session.checkpoints.ancestors(thread, "", head.row.checkpoint_id)
        for row in ancestors or ():
            if row.hidden or row.checkpoint_id in rows:
                break
            rows[row.checkpoint_id] = row
        return _Path(thread, list(rows.values())[::-1])

    def load(path: _Path) -> MessageOrigin | None:
        search = _Search(context, thread_id, path, message_id, channel)
        first = search.first()
        return None if first is None else _origin(context, thread_id, path.rows, first)

    return consistently(context, read, load)


def _origin(
    context: Context, thread_id: str, rows: Sequence[CheckpointRow], first: int
) -> MessageOrigin:
    before = first - 1
    # A checkpoint that holds the input of the next step holds the message already.
    if before >= 0 and langgraph_rules.is_input(metadata_of(rows[before])):
        before -= 1
    found = []
    for row in (rows[first], *rows[max(before, 0) : before + 1]):
        address = Address(thread_id, "", row.checkpoint_id)
        one = get_tuple(context, address, config_of(thread_id, "", row.checkpoint_id))
        if one is None:
            raise CorruptChunk(f"checkpoint {row.checkpoint_id!r} was removed meanwhile")
        found.append(one)
    return MessageOrigin(found[0], found[1] if before >= 0 else None)


class _Search:
    """Looks for a message in the states of a path. Each state is read once, each chunk too."""

    def __init__(
        self, context: Context, thread_id: str, path: _Path, message_id: str, channel: str
    ) -> None:
        self._context = context
        self._thread_id = thread_id
        self._path = path
        self._message_id = message_id
        self._channel = channel
        self._known: dict[int, bool] = {}
        self._chunks: Chunks = {}

    def first(self) -> int | None:
        """Return a state that has the message, while the one before it does not."""
        low, high = -1, len(self._path.rows) - 1
        while high >= 0 and not self._has(high):  # it was removed, or never was
            high -= 1
        if high < 0:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._has(middle) else (middle, high)
        return high

    def _has(self, number: int) -> bool:
        if number not in self._known:
            row = self._path.rows[number]
            with at_place(self._thread_id, *place_of(row)):
                self._known[number] = self._is_in(row)
        return self._known[number]

    def _is_in(self, row: CheckpointRow) -> bool:
        codec = self._context.codec_of(self._path.thread)
        body, manifest = open_checkpoint(codec, row)
        entry = manifest.get(self._channel)
        if entry is not None:
            value = codec.decode_entry(entry, self._read(entry))
            return is_left(self._message_id, [value])
        metadata, versions = metadata_of(row), body.get("channel_versions", {})
        if self._channel not in langgraph_rules.rebuilt_channels(metadata, versions, manifest):
            return False
        address = Address(self._thread_id, "", row.checkpoint_id)
        history = delta_channel_history(self._context, address, [self._channel])[self._channel]
        writes = (value for _, _, value in history["writes"])
        return is_left(self._message_id, [history.get("seed"), *writes])

    def _read(self, entry: Entry) -> Chunks:
        """Return what an entry leads to. What another checkpoint shares is not read again."""
        family = self._path.thread.family
        with self._context.storage.reading() as session:

            def chunks(digests: Collection[bytes]) -> Mapping[bytes, Chunk]:
                missing = [digest for digest in digests if digest not in self._chunks]
                if missing:
                    self._chunks |= session.chunks.get(family, missing, follow=False)
                return {one: self._chunks[one] for one in digests if one in self._chunks}

            return gather([entry.refs], chunks)


def is_left(message_id: str, values: Iterable[Any]) -> bool:
    """Return whether a message is left after values of a channel and writes to it, in order."""
    is_there = False
    for value in values:
        replaced = _replacement(value)
        if replaced is not None:
            is_there = False
        messages = value if replaced is None else replaced
        for message in messages if isinstance(messages, (list, tuple)) else [messages]:
            fields = message if isinstance(message, Mapping) else getattr(message, "__dict__", {})
            if fields.get("type") == "remove":
                is_there = is_there and fields.get("id") not in (
                    message_id,
                    langgraph_rules.REMOVE_ALL_MESSAGES,
                )
            elif fields.get("id") == message_id:
                is_there = True
    return is_there


def _replacement(value: Any) -> Any:
    """Return what a snapshot or an `Overwrite` has, which replaces all before; None for others."""
    if isinstance(value, Mapping):
        return value.get(langgraph_rules.OVERWRITE)
    is_message = hasattr(value, "id")
    return None if is_message else getattr(value, "value", None)
