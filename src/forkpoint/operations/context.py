"""The store that operations work on, its keys, and what is remembered of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol

from forkpoint.caches import CacheBudget
from forkpoint.encoding.codec import Codec
from forkpoint.encoding.encryption import cipher_of, new_secret, open_secret
from forkpoint.encoding.hashing import new_salt
from forkpoint.operations.cache import Memories, Memory
from forkpoint.storage.confined import ConfinedStorage
from forkpoint.storage.interface import STORE_KEY_BYTES, HistoryChanged, Session, Storage
from forkpoint.storage.rows import Expiry, ThreadRef


class Context:
    """What each operation takes first: a store, how values are encoded for it, and its caches.

    Args:
        storage: The store.
        serde: The serializer of values.
        memories: The caches; new ones by default.
        owner: The only owner whose threads exist in this context; None for those of all.
        expiry: When threads expire that are made without an expiry of their own.
        preview: The channels whose values are shown with a thread's record.
    """

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
        self.expiry = expiry or Expiry()
        self.serde = serde
        self._memories = memories or Memories(CacheBudget())
        self._memory: Memory | None = None
        self._present: Context | None = None
        # Each by the store's history that it belongs to: there is one entry at most.
        self._codecs: dict[int, Codec] = {}
        self._store_keys: dict[int, bytes] = {}

    def with_serde(self, serde: SerializerProtocol) -> Context:
        """Return a context for the same store with another serializer."""
        return Context(self.storage, serde, self._memories, self.owner, self.expiry, self.preview)

    def of_owner(self, owner: str) -> Context:
        """Return a context in which only the threads of one owner exist."""
        storage, memories = ConfinedStorage(self.storage, owner), Memories(self._memories.budget)
        return Context(storage, self.serde, memories, owner, self.expiry, self.preview)

    def for_present_history(self) -> Context:
        """Return a context whose memory is that of the store's present history for good.

        If the store is replaced during an operation, what the operation has read or written is
        remembered of the store before, and not of its successor.
        """
        present, memory = self._present, self.memory
        if present is None or present._memory is not memory:
            present = self.with_serde(self.serde)
            present._codecs, present._store_keys = self._codecs, self._store_keys
            present._memory = memory
            self._present = present
        return present

    @property
    def memory(self) -> Memory:
        """What is remembered of the store."""
        return self._memory or self._memories.of(self.storage.history)

    @property
    def cached_bytes(self) -> int:
        """How many bytes the caches take, by their own account."""
        return self._memories.budget.held_bytes

    @property
    def has_codec(self) -> bool:
        """Whether `codec` can be had without reading the store, and can write."""
        codec = self._codecs.get(self.storage.history)
        return codec is not None and codec.secret is not None

    @property
    def codec(self) -> Codec:
        """The codec of the store. Its secret may have to be read first."""
        return self._codecs.get(self.storage.history) or self._load_codec()

    def prepare(self) -> Codec:
        """Return `codec`, and be sure that it can be had in a session that is opened afterwards.

        An SQLite store has one session at a time: the secret cannot be read in another. If it
        could not be opened before, it is read again: the store may be encrypted otherwise now.
        """
        self.storage.look()
        return self.codec_to_write

    @property
    def codec_to_write(self) -> Codec:
        """What `prepare` returns, for what finds out by itself whether the store is another one."""
        return self.codec if self.has_codec else self._load_codec()

    def _load_codec(self) -> Codec:
        while True:
            history = self.storage.history
            secret, budget = self._secret(), self._memories.budget
            same = (codec for codec in list(self._codecs.values()) if codec.secret == secret)
            codec = next(same, None) or Codec(self.serde, secret, budget)
            if self.storage.history == history:  # else the secret may be that of another store
                self._codecs.clear()
                self._codecs[history] = codec
                return codec

    def _reading(self) -> AbstractContextManager[Session]:
        """Return a context in which to read a key: the session that this thread is in, if any.

        The store's history may have changed as that began, by a process fork for example.
        """
        session = self.storage.open_session
        return self.storage.reading() if session is None else nullcontext(session)

    def _leave_session(self, known: dict[int, Any]) -> None:
        """Be sure that a session can be opened, to make a key in a store that has none.

        Raises:
            HistoryChanged: The session of this thread turned out to be that of another store.
        """
        if known and self.storage.open_session is not None:
            known.clear()
            raise HistoryChanged

    def codec_of(self, thread: ThreadRef) -> Codec:
        """Return the codec for what is stored of a thread.

        Raises:
            CorruptChunk: The thread's record has another id or owner than was written.
        """
        identity = thread.thread_id, thread.owner, thread.salt, thread.checksum
        return self.codec.of_thread(*identity)

    def codec_to_capture(self, thread_id: str, thread: ThreadRef | None) -> Codec:
        """Return a codec to serialize with, without reading the store: an event loop may wait.

        If the store's secret is not known yet, what it makes is hashed again when it is put.

        Args:
            thread_id: The thread's id.
            thread: The thread, if it is known; else it may have to be made.
        """
        if not self.has_codec:
            codec = Codec(self.serde, b"", self._memories.budget)
            return codec.of_salt(self._salt_for_new(thread_id) if thread is None else thread.salt)
        if thread is not None:
            return self.codec_of(thread)
        return self.codec.of_salt(self._salt_for_new(thread_id))

    def _salt_for_new(self, thread_id: str) -> bytes:
        salts = self.memory.salts
        salt = salts.get(thread_id)
        if salt is None:
            salt = new_salt()
            salts.put(thread_id, salt)
        return salt

    @property
    def store_key(self) -> bytes:
        """Random bytes that belong to the store, with which it signs cursors and tombstones.

        They are made if the store has none.
        """
        return self._store_keys.get(self.storage.history) or self._load_store_key()

    def _load_store_key(self) -> bytes:
        while True:
            history = self.storage.history
            with self._reading() as session:
                key = session.secrets.store_key()
            if key is None:
                self._leave_session(self._store_keys)
                with self.storage.writing() as session:
                    session.secrets.add_store_key(os.urandom(STORE_KEY_BYTES))
            elif self.storage.history == history:
                self._store_keys.clear()
                self._store_keys[history] = key
                return key

    def _secret(self) -> bytes | None:
        """Return the store's key of digests, or None if the serializer cannot open it.

        It is made if the store has none. There is no second one: what is written with the wrong
        key, nobody else could read.
        """
        cipher = cipher_of(self.serde)
        with self._reading() as session:
            stored = session.secrets.all()
        while not stored:
            self._leave_session(self._codecs)
            with self.storage.writing() as session:
                session.secrets.add(new_secret(cipher), stored)
                stored = session.secrets.all()  # another process may have been faster
        secrets = (open_secret(cipher, secret) for secret in stored)
        return next((secret for secret in secrets if secret is not None), None)

    def setup(self) -> None:
        """Make the store's tables, its key, and the secret of its digests."""
        self.storage.setup()
        self._load_store_key()
        self._load_codec()
