"""Finding the checkpoint in which a message first appears, by a binary search."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph.checkpoint.base import CheckpointTuple

from forkpoint import langgraph_rules, untrusted
from forkpoint.encoding.chunk import Chunk, Chunks, gather
from forkpoint.encoding.entries import Entry
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
    """Return where a message came into the state of a thread; None if no checkpoint has it.

    Args:
        context: The store.
        thread_id: The thread.
        message_id: The `id` of the message.
        channel: The channel whose value is the list of messages.

    Raises:
        ThreadNotFound: There is no such thread.
    """
    context.prepare()

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
        before = -1 if first is None else _before(path.rows, first)
        if before < 0 and path.rows:
            _check_oldest(context, thread_id, path.rows[0])
        if first is None:
            return None
        found = [
            _checkpoint(context, thread_id, path.rows[number].checkpoint_id)
            for number in (first, before)
            if number >= 0
        ]
        return MessageOrigin(found[0], found[1] if before >= 0 else None)

    return consistently(context, read, load)


def _before(rows: Sequence[CheckpointRow], first: int) -> int:
    """Return the number of the last state without the message; -1 if there is none."""
    before = first - 1
    # A checkpoint that holds the input of the next step holds the message already.
    if before >= 0 and langgraph_rules.is_input(metadata_of(rows[before])):
        before -= 1
    return before


def _check_oldest(context: Context, thread_id: str, oldest: CheckpointRow) -> None:
    """Check that nothing is lost that led to the oldest checkpoint.

    Raises:
        CorruptChunk: Its parent was stored, as a receipt says, and is missing.
    """
    if oldest.parent_checkpoint_id is not None:
        with context.storage.reading() as session:
            session.checkpoints.get(thread_id, "", oldest.parent_checkpoint_id)


def _checkpoint(context: Context, thread_id: str, checkpoint_id: str) -> CheckpointTuple:
    address = Address(thread_id, "", checkpoint_id)
    checkpoint = get_tuple(context, address, config_of(thread_id, "", checkpoint_id))
    if checkpoint is None:
        raise CorruptChunk(f"checkpoint {checkpoint_id!r} was removed meanwhile")
    return checkpoint


class _Search:
    """A search for a message in the states of a path. It reads each state and each chunk once."""

    def __init__(
        self, context: Context, thread_id: str, path: _Path, message_id: str, channel: str
    ) -> None:
        self._context = context
        self._thread_id = thread_id
        self._path = path
        self._message_id = message_id
        self._channel = channel
        self._chunks: Chunks = {}

    def first(self) -> int | None:
        """Return the number of a state that has the message, where the one before it does not."""
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
        row = self._path.rows[number]
        with at_place(self._thread_id, *place_of(row)):
            return self._is_in(row)

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
        """Return the chunks that an entry refers to. Those of another state are not read again."""
        family = self._path.thread.family
        with self._context.storage.reading() as session:

            def chunks(digests: Collection[bytes]) -> Mapping[bytes, Chunk]:
                missing = [digest for digest in digests if digest not in self._chunks]
                if missing:
                    self._chunks |= session.chunks.get(family, missing, follow=False)
                return {
                    digest: self._chunks[digest] for digest in digests if digest in self._chunks
                }

            return gather([entry.refs], chunks)


def is_left(message_id: str, values: Iterable[Any]) -> bool:
    """Return whether a channel has a message after these values and writes, applied in order."""
    is_present = False
    for value in values:
        replaced = _replacement(value)
        if replaced is not None:
            is_present = False
        messages = value if replaced is None else replaced
        for message in messages if isinstance(messages, (list, tuple)) else [messages]:
            kind, id_ = untrusted.field(message, "type"), untrusted.field(message, "id")
            if not isinstance(id_, str):
                continue
            if isinstance(kind, str) and kind == "remove":
                gone = message_id, langgraph_rules.REMOVE_ALL_MESSAGES
                is_present = is_present and id_ not in gone
            elif id_ == message_id:
                is_present = True
    return is_present


def _replacement(value: Any) -> Any:
    """Return the value of a snapshot or an `Overwrite`, which replaces what was; else None."""
    if isinstance(value, Mapping):
        return value.get(langgraph_rules.OVERWRITE)
    try:
        is_message = hasattr(value, "id")
    except Exception:  # noqa: BLE001 - a class of anyone's may raise anything
        return None
    return None if is_message else untrusted.attribute(value, "value")
