"""The one logic: what each operation does, for sync and async, on every backend.

Each function that takes a `Context` first is one operation in one piece. It blocks, and touches
the store only through `forkpoint.storage.interface.Session`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP, Checkpoint, CheckpointTuple, PendingWrite
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT

from forkpoint import inputs
from forkpoint.caches import CacheBudget
from forkpoint.encoding.codec import (
    Chunk,
    Chunks,
    Codec,
    Encoded,
    Entry,
    Manifest,
    Serialized,
    cipher_of,
    new_secret,
    open_secret,
    split_refs,
)
from forkpoint.encoding.hashing import new_salt
from forkpoint.errors import (
    CorruptChunk,
    StorageBusy,
    ThreadDeleted,
    ThreadNotFound,
    UnreadableValue,
)
from forkpoint.filters import stored_value_terms
from forkpoint.inputs import Address, Origin
from forkpoint.operations import resume as resuming
from forkpoint.operations.cache import Described, KnownManifest, Memories, Memory
from forkpoint.operations.run_metadata import merge_run, says
from forkpoint.outline import says_next
from forkpoint.previews import preview_of
from forkpoint.results import NOT_READ
from forkpoint.runtime.steps import Steps
from forkpoint.storage import plan as removal
from forkpoint.storage.confined import ConfinedStorage
from forkpoint.storage.interface import STORE_KEY_BYTES, HistoryChanged, Session, Stale, Storage
from forkpoint.storage.queries import CheckpointQuery
from forkpoint.storage.row_checksums import (
    checkpoint_receipt,
    checkpoint_with_checksum,
    metadata_of,
    open_checkpoint,
    open_write,
    settled,
    with_receipts,
    write_with_checksum,
)
from forkpoint.storage.rows import (
    CheckpointRow,
    Description,
    Expiry,
    PutRequest,
    RunStart,
    StoredCheckpoint,
    ThreadRef,
    WriteRow,
)
from forkpoint.storage.tombstones import is_deleted_since

PAGE_ROWS = 20
"""How many checkpoints a listing reads at once."""

_ATTEMPTS = 20  # to write to a thread whose family is collected again and again meanwhile

_Read = TypeVar("_Read")
_Loaded = TypeVar("_Loaded")


class Context:
    """A store, how values are written to it, and what is remembered of it."""

    def __init__(
        self,
        storage: Storage,
        serde: SerializerProtocol,
        memories: Memories | None = None,
        owner: str | None = None,
        expiry: Expiry | None = None,
        preview: Sequence[str] = (),
    ) -> None:
        self.storage = storage
        self.owner = owner
        self.preview = preview
        """The channels whose values are shown with a thread's record."""
        self.expiry = expiry or Expiry()
        """When threads expire that are made without saying so."""
        self._serde = serde
        self._memories = memories or Memories(CacheBudget())
        self._memory: Memory | None = None
        self._present: Context | None = None
        # Of one history of the store: that which is the key here.
        self._codecs: dict[int, Codec] = {}
        self._store_keys: dict[int, bytes] = {}

    def with_serde(self, serde: SerializerProtocol) -> Context:
        """Return a context for the same store with another serializer."""
        return Context(self.storage, serde, self._memories, self.owner, self.expiry, self.preview)

    def present(self) -> Context:
        """Return a context whose memory stays that of the store's present history.

        So what an operation has read or written is remembered of the store that it was in.
        """
        present, memory = self._present, self.memory
        if present is None or present._memory is not memory:
            present = self.with_serde(self._serde)
            present._codecs, present._store_keys = self._codecs, self._store_keys
            present._memory = memory
            self._present = present
        return present

    @property
    def memory(self) -> Memory:
        return self._memory or self._memories.of(self.storage.history)

    def of_owner(self, owner: str) -> Context:
        """Return a context in which there are the threads of one owner only."""
        storage, memories = ConfinedStorage(self.storage, owner), Memories(self._memories.budget)
        return Context(storage, self._serde, memories, owner, self.expiry, self.preview)

    @property
    def has_codec(self) -> bool:
        """Whether `codec` is there without reading the store."""
        return self.storage.history in self._codecs or cipher_of(self._serde) is None

    @property
    def codec(self) -> Codec:
        while True:
            history = self.storage.history
            codec = self._codecs.get(history)
            if codec is not None:
                return codec
            secret, budget = self._secret(), self._memories.budget
            same = (known for known in list(self._codecs.values()) if known.secret == secret)
            codec = next(same, None) or Codec(self._serde, secret, budget)
            if self.storage.history == history:  # else the secret may be that of another store
                self._codecs.clear()
                self._codecs[history] = codec

    def prepare(self) -> Codec:
        """Return `codec`, so that it is there in a session: the store may have to be read for it.

        Where there are transactions, there is one at a time.
        """
        return self.codec

    def codec_of(self, thread: ThreadRef) -> Codec:
        """Return the codec for what is stored of a thread.

        Raises:
            CorruptChunk: The thread's record says another id or owner than was written.
        """
        identity = thread.thread_id, thread.owner, thread.salt, thread.checksum
        return self.codec.of_thread(*identity)

    def codec_for_new(self, thread_id: str) -> Codec:
        """Return the codec for a thread that is to be made, as far as is known."""
        salts = self.memory.salts
        salt = salts.get(thread_id)
        if salt is None:
            salt = new_salt()
            salts.put(thread_id, salt)
        return self.codec.of_salt(salt)

    @property
    def store_key(self) -> bytes:
        """The random bytes by which the store knows again what it gave away, made if need be."""
        while True:
            history = self.storage.history
            if history in self._store_keys:
                return self._store_keys[history]
            with self.storage.reading() as session:
                key = session.secrets.store_key()
            if key is None:
                with self.storage.writing() as session:
                    session.secrets.add_store_key(os.urandom(STORE_KEY_BYTES))
            elif self.storage.history == history:
                self._store_keys.clear()
                self._store_keys[history] = key

    def _secret(self) -> bytes | None:
        """Return the store's key of digests for the serializer's cipher, made if need be."""
        cipher = cipher_of(self._serde)
        if cipher is None:
            return None

        def known(session: Session) -> bytes | None:
            opened = (open_secret(cipher, stored) for stored in session.secrets.all())
            return next((secret for secret in opened if secret is not None), None)

        with self.storage.reading() as session:
            secret = known(session)
        while secret is None:
            with self.storage.writing() as session:
                if known(session) is None:  # another process may have been faster
                    session.secrets.add(new_secret(cipher))
                secret = known(session)
        return secret


# Writing


class NewCheckpoint(NamedTuple):
    """A checkpoint to be put, checked and with its metadata as JSON."""

    config: RunnableConfig
    address: Address
    origin: Origin
    checkpoint: Mapping[str, Any]
    metadata: str
    run_id: str | None
    new_versions: Mapping[str, Any]

    @property
    def place(self) -> tuple[str, str]:
        """The ids of the thread and of the checkpoint."""
        return self.address.thread_id, self.checkpoint["id"]


class NewWrites(NamedTuple):
    """Writes to be put, checked."""

    config: RunnableConfig
    address: Address
    origin: Origin
    place: removal.Place
    writes: Sequence[tuple[str, Any]]
    task_id: str
    task_path: str


class TakenCheckpoint(NamedTuple):
    """A checkpoint to be put, and its state as it was when it was given."""

    new: NewCheckpoint
    state: Serialized
    codec: Codec
    """That of the thread, or of one that is to be made."""
    thread: ThreadRef | None
    """The thread that it was taken for, as far as that is known without looking."""
    inherited: Mapping[str, Entry] | None
    """What it inherits there."""
    memory: Memory
    """What was remembered then."""
    preview: str | None
    """What is shown of the state, if the saver has chosen any of it."""


class TakenWrites(NamedTuple):
    """Writes to be put, as they were when they were given."""

    new: NewWrites
    encoded: Sequence[Encoded]
    rows: Sequence[WriteRow]
    codec: Codec
    """That of the thread, or of one that is to be made."""

    @property
    def chunks(self) -> Chunks:
        """All that they refer to."""
        return {name: one for each in self.encoded for name, one in each.chunks.items()}


def take(context: Context, new: NewCheckpoint) -> TakenCheckpoint:
    """Take the state of a checkpoint as it is now, without reading anything.

    The values are live: nothing that happens to them later may reach what is stored.
    """
    context = context.present()
    thread = context.memory.threads.get(new.address.thread_id)
    inherited = _inherited_if_known(context, thread, new)
    codec = _codec_to_take(context, new.address.thread_id, thread)
    state = codec.serialize(new.checkpoint, inherited or ())
    preview: str | None = None
    if context.preview and new.address.checkpoint_ns == "":
        preview = preview_of(new.checkpoint.get("channel_values", {}), context.preview)
    return TakenCheckpoint(new, state, codec, thread, inherited, context.memory, preview)


def _codec_to_take(context: Context, thread_id: str, thread: ThreadRef | None) -> Codec:
    return context.codec_for_new(thread_id) if thread is None else context.codec_of(thread)


def put(context: Context, taken: TakenCheckpoint) -> Steps[None]:
    """Store a checkpoint."""
    for _ in range(_ATTEMPTS):
        try:
            return (yield from _put(context.present(), taken))
        except HistoryChanged:
            continue  # with what is remembered of the store as it is now
    raise _restless()


def _restless() -> StorageBusy:
    return StorageBusy(f"the store was replaced {_ATTEMPTS} times while it was written to")


def _put(context: Context, taken: TakenCheckpoint) -> Steps[None]:
    new = taken.new
    thread_id, checkpoint_ns, parent_id = new.address
    checkpoint_id = new.checkpoint["id"]
    manifest: Manifest = {}
    packed_bytes = 0

    def prepare(thread: ThreadRef | None) -> tuple[PutRequest, Chunks]:
        nonlocal manifest, packed_bytes
        inherited = taken.inherited
        is_as_taken = thread == taken.thread and context.memory is taken.memory
        if inherited is None or not is_as_taken:
            inherited = _inherited(context, thread, new)
        codec = _codec_for(context, thread, taken.codec)
        state = taken.state if codec.is_kin(taken.codec) else taken.state.rehashed(codec)
        encoded, manifest = codec.join(new.checkpoint, state, inherited)
        packed_bytes = len(encoded.content) + len(encoded.refs)
        row = CheckpointRow(
            checkpoint_ns,
            checkpoint_id,
            parent_id,
            new.run_id,
            new.metadata,
            encoded.refs,
            codec.encrypt(encoded.content),
        )
        row = checkpoint_with_checksum(codec, row, encoded.content)
        status = "idle" if checkpoint_ns == "" else None
        writes = [checkpoint_receipt(codec, row, taken.preview)]
        chunks = encoded.chunks
        put = _prepared(context, new, thread, codec, chunks, row, writes, status)
        if taken.preview is not None:
            owner = context.owner if thread is None else thread.owner
            put = put._replace(value_terms=stored_value_terms(owner, writes[0].content))
        return put, chunks

    thread = yield from _write(context, thread_id, new.origin, prepare)
    versions = new.checkpoint.get("channel_versions", {})
    place = (checkpoint_ns, checkpoint_id)
    context.memory.add_manifest(thread, place, manifest, versions, packed_bytes)
    if checkpoint_ns == "":
        _describe_by_run(context, thread, new)


def _codec_for(context: Context, thread: ThreadRef | None, taken: Codec) -> Codec:
    """Return the codec for what is written to a thread, or to one that is made, as was taken."""
    if thread is not None:
        return context.codec_of(thread)
    return taken if taken.root is context.codec else context.codec.of_salt(taken.salt)


def _describe_by_run(context: Context, thread: ThreadRef, new: NewCheckpoint) -> None:
    """Let the thread's metadata say what the run's config says; see `run_metadata`."""
    described, run = context.memory.described, new.origin.run
    known = described.get(thread.key)
    if known is not None and run is not None and known.run is run:
        return  # it has said so before
    metadata = inputs.thread_metadata(new.config)
    if metadata == "{}" and run is None:
        return
    if known is not None and says(known.metadata, metadata):
        merged = known.metadata
    else:
        hashing = context.codec.hashing
        merged = merge_run(context.storage, hashing, thread, metadata)
    described.put(thread.key, Described(run, merged))


def _inherited(
    context: Context, thread: ThreadRef | None, new: NewCheckpoint
) -> Mapping[str, Entry]:
    """Return the entries of the parent's manifest for the channels that did not change."""
    inherited = _inherited_if_known(context, thread, new)
    if inherited is not None:
        return inherited
    assert thread is not None
    with context.storage.reading() as session:
        found = session.checkpoints.get(*new.address)
    if found is None or found.thread != thread:
        return {}
    if found.metadata is not None:
        context.memory.described.put(thread.key, Described(None, found.metadata))
    body, manifest = open_checkpoint(context.codec_of(thread), found.row)
    known = KnownManifest(thread.epoch, manifest, body.get("channel_versions", {}), 0)
    return _unchanged(known, new)


def _inherited_if_known(
    context: Context, thread: ThreadRef | None, new: NewCheckpoint
) -> Mapping[str, Entry] | None:
    """Return what `_inherited` does, or None if the parent would have to be read for it.

    `new_versions` names the channels that changed. Where it is empty, all values count as they are
    given.
    """
    _, checkpoint_ns, parent_id = new.address
    if not new.new_versions or thread is None or parent_id is None:
        return {}
    known = context.memory.manifest(thread, (checkpoint_ns, parent_id))
    return None if known is None else _unchanged(known, new)


def _unchanged(known: KnownManifest, new: NewCheckpoint) -> Mapping[str, Entry]:
    versions = new.checkpoint.get("channel_versions", {})
    return {
        channel: entry
        for channel, entry in known.manifest.items()
        if channel not in new.new_versions
        and channel in known.versions
        and known.versions[channel] == versions.get(channel)
    }


def take_writes(context: Context, new: NewWrites) -> TakenWrites:
    """Take the values of writes as they are now, as `take` does."""
    context = context.present()
    thread = context.memory.threads.get(new.address.thread_id)
    codec = _codec_to_take(context, new.address.thread_id, thread)
    encoded = [codec.encode_write(channel, value) for channel, value in new.writes]
    return TakenWrites(new, encoded, _write_rows(codec, new, encoded), codec)


def _write_rows(codec: Codec, new: NewWrites, values: Sequence[Encoded]) -> list[WriteRow]:
    """Return the rows of writes, with their receipts."""
    rows = []
    for position, ((channel, _), encoded) in enumerate(zip(new.writes, values, strict=True)):
        row = WriteRow(
            *new.place,
            new.task_id,
            WRITES_IDX_MAP.get(channel, position),
            new.task_path,
            channel,
            encoded.refs,
            codec.encrypt(encoded.content),
        )
        rows.append(write_with_checksum(codec, row, encoded.content))
    return with_receipts(codec, rows) if rows else []


def put_writes(context: Context, taken: TakenWrites) -> Steps[None]:
    """Store the writes of a task."""
    for _ in range(_ATTEMPTS):
        try:
            return (yield from _put_writes(context.present(), taken))
        except HistoryChanged:
            continue
    raise _restless()


def _put_writes(context: Context, taken: TakenWrites) -> Steps[None]:
    new = taken.new

    def prepare(thread: ThreadRef | None) -> tuple[PutRequest, Chunks]:
        codec = _codec_for(context, thread, taken.codec)
        mine = taken
        if codec is not taken.codec:  # the thread, or the store, is another than was known
            encoded = taken.encoded
            if not codec.is_kin(taken.codec):
                encoded = [one.rehashed(codec) for one in encoded]
            mine = TakenWrites(new, encoded, _write_rows(codec, new, encoded), codec)
        status = _status(new.writes) if new.place[0] == "" else None
        chunks = mine.chunks
        return _prepared(context, new, thread, codec, chunks, None, mine.rows, status), chunks

    if taken.rows:
        yield from _write(context, new.address.thread_id, new.origin, prepare)


def _prepared(
    context: Context,
    new: NewCheckpoint | NewWrites,
    thread: ThreadRef | None,
    codec: Codec,
    chunks: Chunks,
    row: CheckpointRow | None,
    writes: Sequence[WriteRow],
    status: str | None,
) -> PutRequest:
    """Return a `PutRequest` where its writes belong, with the chunks that the store may lack."""
    memory = context.memory
    unknown = memory.unknown(thread, chunks)
    thread_id = new.address.thread_id
    ancestry, lease, run = new.origin
    began = memory.runs.beginning(thread_id, run)
    metadata, checksums = "{}", b""
    if thread is None:
        metadata = inputs.thread_metadata(new.config)
        described = Description(metadata=metadata, **context.expiry._asdict())
        identity = thread_id, context.owner, codec.salt
        checksums = codec.hashing.checksums(identity, described)
    return PutRequest(
        thread_id,
        thread,
        metadata,
        ancestry,
        writes[0].checkpoint_ns,
        writes[0].checkpoint_id,
        {digest: codec.encrypt_chunk(chunk) for digest, chunk in unknown.items()},
        row,
        writes,
        status,
        fence=None if lease is None else lease.fence,
        began=began,
        is_announced=began is None and memory.announced.has(thread_id, writes[0].checkpoint_id),
        history=memory.history,
        owner=context.owner,
        expiry=context.expiry,
        salt=codec.salt,
        checksums=checksums,
    )


def _deleted(thread_id: str) -> ThreadDeleted:
    return ThreadDeleted(
        f"thread {thread_id!r} was deleted while this run was going on; nothing of the run is "
        "stored any more, and a new run may use the id"
    )


def _status(writes: Sequence[tuple[str, Any]]) -> str | None:
    """Return the status of a thread after these writes to its graph, if they change it."""
    channels = {channel for channel, _ in writes}
    if INTERRUPT in channels:
        return "interrupted"
    return "error" if ERROR in channels else None


def _write(
    context: Context,
    thread_id: str,
    origin: Origin,
    prepare: Callable[[ThreadRef | None], tuple[PutRequest, Chunks]],
) -> Steps[ThreadRef]:
    """Prepare a write for the thread as it is known, and again if it turns out to have changed."""
    memory = context.memory
    for attempt in range(_ATTEMPTS):
        thread = _thread_of_run(context, thread_id, origin)
        try:
            prepared, chunks = prepare(thread)
            written = yield from context.storage.put(prepared)
        except HistoryChanged:
            raise
        except Stale:
            memory.forget(thread_id)
            time.sleep(0.001 * attempt)  # at once for the first time
            continue
        if written is None:
            memory.forget(thread_id)
            raise _deleted(thread_id)
        memory.missing.pop(thread_id)
        memory.salts.pop(thread_id)
        memory.threads.put(thread_id, written)
        if thread is None:
            memory.described.put(written.key, Described(None, prepared.metadata))
        if prepared.began is not None and prepared.began.key is None:
            made = prepared.began._replace(key=written.key)
            memory.runs.begin(thread_id, origin.run, made)
        if chunks:
            memory.add_chunks(written, chunks)
        return written
    raise StorageBusy(f"thread {thread_id!r} changed {_ATTEMPTS} times while it was written to")


def _thread_of_run(context: Context, thread_id: str, origin: Origin) -> ThreadRef | None:
    """Return the thread that a run writes to, as it is known, or None if the run may make it.

    Raises:
        ThreadDeleted: It was deleted since the run began.
    """
    memory, lease = context.memory, origin.lease
    began = None if origin.run is None else memory.runs.beginning(thread_id, origin.run)
    key = began.key if began is not None else None

    def is_its(thread: ThreadRef | None) -> bool:
        if thread is None:
            return key is None and lease is None
        return key in (None, thread.key) and (lease is None or str(thread.key) == lease.key)

    thread = memory.threads.get(thread_id)
    if thread is None:
        if is_its(None) and memory.missing.get(thread_id):
            return None
    elif is_its(thread) and (began is None or key is not None):
        return thread
    with context.storage.reading() as session:
        thread = session.threads.find(thread_id)
        if not is_its(thread):
            raise _deleted(thread_id)
        # Somebody else may have made it, before or after it was deleted.
        if (
            began is not None
            and key is None
            and is_deleted_since(began.deletion, session.threads.deletions(thread_id))
        ):
            raise _deleted(thread_id)
    return thread


# Reading


def get_tuple(
    context: Context, address: Address, config: RunnableConfig, run: object = None
) -> CheckpointTuple | None:
    """Return a checkpoint, or the newest of its namespace.

    Args:
        context: The store.
        address: The checkpoint, or the thread and namespace.
        config: What named it.
        run: The run that begins with this look for its thread.
    """
    context = context.present()
    memory = context.memory
    thread_id = address.thread_id

    def read(session: Session) -> tuple[StoredCheckpoint | None, Chunks, RunStart | None]:
        found = session.checkpoints.get(*address)
        if found is not None:
            chunks = gather_rows(session, [found])[found.thread.family]
            return found, chunks, RunStart(found.thread.key, None)
        if run is None or address.checkpoint_id is not None:
            return None, {}, None
        thread = session.threads.find(thread_id)
        deletion = session.threads.deletions(thread_id)
        return None, {}, RunStart(thread and thread.key, deletion)

    def load(
        read: tuple[StoredCheckpoint | None, Chunks, RunStart | None],
    ) -> tuple[CheckpointTuple | None, RunStart | None]:
        found, stored, beginning = read
        if found is None:
            memory.missing.put(thread_id, True)
            return None, beginning
        loaded = _load(context, found, stored)
        memory.threads.put(thread_id, found.thread)
        if found.metadata is not None:
            memory.described.put(found.thread.key, Described(None, found.metadata))
        memory.add_chunks(found.thread, stored)
        is_named = address.checkpoint_id is not None
        if found.row.restarts and not is_named:
            resuming.apply_input(address, config)
        return (loaded._replace(config=config) if is_named else loaded), beginning

    loaded, beginning = consistently(context, read, load)
    if run is not None:
        if beginning is None:
            memory.runs.forget(thread_id, run)
        else:
            memory.runs.begin(thread_id, run, beginning)
    return loaded


Item = CheckpointTuple | CorruptChunk | UnreadableValue
"""A checkpoint of a page, or why it cannot be read."""


def page(context: Context, query: CheckpointQuery) -> tuple[list[Item], CheckpointQuery | None]:
    """Return a page of checkpoints, newest first, and what to ask for next.

    A checkpoint that cannot be read does not keep the others from being read: the error is in its
    place.
    """
    try:
        return _page(context, query)
    except CorruptChunk as error:  # the store itself cannot read one of the rows
        if query.limit > 1:
            items, following = page(context, query._replace(limit=1))
            return items, following and following._replace(limit=query.limit)
        return [error], query._replace(offset=query.offset + 1)


def _page(context: Context, query: CheckpointQuery) -> tuple[list[Item], CheckpointQuery | None]:
    context = context.present()

    def read(session: Session) -> tuple[list[StoredCheckpoint], dict[Any, Chunks]]:
        rows = session.checkpoints.page(query)
        if not rows and query.must_exist and query.thread_id is not None:
            existing_thread(session, query.thread_id)
        is_all = query.after is None and query.before is None and not query.filter
        if not rows and is_all and query.thread_id is not None and query.checkpoint_ns is not None:
            session.checkpoints.get(query.thread_id, query.checkpoint_ns, query.checkpoint_id)
        return rows, gather_rows(session, rows) if query.values else {}

    def load(found: StoredCheckpoint, stored: Mapping[Any, Chunks]) -> Item:
        try:
            if not query.values:
                return _load_without_values(context, found)
            return _load(context, found, stored[found.thread.family])
        except (CorruptChunk, UnreadableValue) as error:
            return error

    items: list[Item] = []
    following: CheckpointQuery | None = None
    for rows, stored in _readings(context, read):
        items = [load(found, stored) for found in rows]
        following = _following(query, rows)
        if not any(isinstance(item, CorruptChunk) for item in items):
            break
    return items, following


def _following(query: CheckpointQuery, rows: Sequence[StoredCheckpoint]) -> CheckpointQuery | None:
    """Return the query of the page after this one, if there may be one."""
    if len(rows) < query.limit:
        return None
    last = rows[-1]
    place = (last.row.checkpoint_id, last.thread.key, last.row.checkpoint_ns)
    return query._replace(after=place, offset=0)


def checkpoint_of(item: Item) -> CheckpointTuple:
    """Return the checkpoint that an item of a page is, or raise why it cannot be read."""
    if isinstance(item, CheckpointTuple):
        return item
    raise item


def consistently(
    context: Context, read: Callable[[Session], _Read], load: Callable[[_Read], _Loaded]
) -> _Loaded:
    """Load what was read, and read again if somebody removed some of it in the middle."""
    damage: CorruptChunk | None = None
    for reading in _readings(context, read):
        try:
            return load(reading)
        except CorruptChunk as error:
            damage = error
    assert damage is not None
    raise damage


def _readings(context: Context, read: Callable[[Session], _Read]) -> Iterator[_Read]:
    """Yield what is read, again and again, until it is the same twice.

    Where there are no transactions, what somebody removed in the middle looks like damage, until
    it is read a second time.
    """
    before: _Read | None = None
    while True:
        with context.storage.reading() as session:
            try:
                reading = read(session)
            except Stale:
                continue
        yield reading
        if reading == before:
            return
        before = reading


def gather_rows(session: Session, rows: Sequence[StoredCheckpoint]) -> dict[Any, Chunks]:
    """Read the chunks of checkpoints and their writes, level by level, of all families together."""
    found: dict[Any, Chunks] = {one.thread.family: {} for one in rows}
    if not any(one.row.refs or any(write.refs for write in one.writes) for one in rows):
        return found
    wanted: dict[Any, set[bytes]] = {family: set() for family in found}
    for one in rows:
        for refs in (one.row.refs, *(write.refs for write in one.writes)):
            wanted[one.thread.family].update(split_refs(refs))
    while wanted := {family: digests for family, digests in wanted.items() if digests}:
        for family, chunks in session.chunks.of_families(wanted).items():
            found[family].update(chunks)
            below = {digest for refs, _ in chunks.values() for digest in split_refs(refs)}
            wanted[family] = below - found[family].keys()
    return found


def _load(
    context: Context, found: StoredCheckpoint, stored: Mapping[bytes, Chunk]
) -> CheckpointTuple:
    thread_id, thread, row, writes, _ = found
    with at_place(thread_id, row.checkpoint_ns, row.checkpoint_id):
        codec = context.codec_of(thread)
        body, manifest, metadata = _opened(codec, row)
        values = {channel: codec.decode_entry(entry, stored) for channel, entry in manifest.items()}
        kept = settled(codec, writes)
        pending = [load_write(codec, write, stored) for write in sorted(kept, key=order_of)]
    versions = body.get("channel_versions", {})
    packed_bytes = len(row.content) + len(row.refs)
    context.memory.add_manifest(thread, place_of(row), manifest, versions, packed_bytes)
    return _tuple_of(found, {**body, "channel_values": values}, metadata, pending)


def _load_without_values(context: Context, found: StoredCheckpoint) -> CheckpointTuple:
    """Return a checkpoint with `NOT_READ` for each value, but for what says which nodes are next.

    That is in the row itself, unless it takes much, and no part of the state.
    """
    thread_id, thread, row, writes, _ = found
    with at_place(thread_id, row.checkpoint_ns, row.checkpoint_id):
        codec = context.codec_of(thread)
        body, manifest, metadata = _opened(codec, row)
        values = {
            channel: codec.decode_entry(entry, {})
            if says_next(channel) and not entry.refs
            else NOT_READ
            for channel, entry in manifest.items()
        }
        kept = sorted(settled(codec, writes), key=order_of)
    pending: list[PendingWrite] = [(write.task_id, write.channel, NOT_READ) for write in kept]
    return _tuple_of(found, {**body, "channel_values": values}, metadata, pending)


def _opened(codec: Codec, row: CheckpointRow) -> tuple[dict[str, Any], Manifest, Any]:
    """Return the body, the manifest and the metadata of a checkpoint, verified."""
    body, manifest = open_checkpoint(codec, row)
    metadata = metadata_of(row)
    if row.run_id not in (None, inputs.run_id(metadata)):
        raise CorruptChunk("the run of the checkpoint is not that which was written")
    return body, manifest, metadata


def _tuple_of(
    found: StoredCheckpoint,
    checkpoint: dict[str, Any],
    metadata: Any,
    pending: list[PendingWrite],
) -> CheckpointTuple:
    row = found.row
    parent = row.parent_checkpoint_id
    return CheckpointTuple(
        config=config_of(found.thread_id, row.checkpoint_ns, row.checkpoint_id),
        checkpoint=cast(Checkpoint, checkpoint),
        metadata=metadata,
        parent_config=config_of(found.thread_id, row.checkpoint_ns, parent) if parent else None,
        pending_writes=pending,
    )


def load_write(codec: Codec, row: WriteRow, stored: Mapping[bytes, Chunk]) -> PendingWrite:
    """Return a write that was read."""
    content = open_write(codec, row)
    return row.task_id, row.channel, codec.decode_write(content, row.refs, stored)


def order_of(row: WriteRow) -> tuple[str, str, int]:
    """The order in which a run applies the writes of one step."""
    return row.task_path, row.task_id, row.idx


def place_of(row: CheckpointRow) -> removal.Place:
    return row.checkpoint_ns, row.checkpoint_id


def replays_before(row: CheckpointRow) -> str:
    """Return the id that a time travel to a checkpoint looks for the state of subgraphs before.

    It is its own, or its parent's where it is the outcome of an update: that was made after the
    subgraphs had run.
    """
    is_update = metadata_of(row).get("source") in ("update", "fork")
    parent = row.parent_checkpoint_id
    return parent if is_update and parent is not None else row.checkpoint_id


def existing_thread(session: Session, thread_id: str) -> ThreadRef:
    """Return which thread an id means.

    Raises:
        ThreadNotFound: There is none.
    """
    thread = session.threads.find(thread_id)
    if thread is None:
        raise ThreadNotFound(f"there is no thread {thread_id!r}")
    return thread


def thread_config(thread_id: str) -> RunnableConfig:
    """Return the config that names a thread, at whatever is its newest checkpoint."""
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


class at_place:
    """Say in errors which checkpoint could not be read."""

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


def setup(context: Context) -> None:
    """Make the store ready, with its key, and the secret of an encrypting serializer."""
    context.storage.setup()
    assert context.store_key
    assert context.codec is not None
