"""Encryption: nothing of a value is stored in clear text, and who has no key reads nothing.

This part is for savers that take a serializer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint.encoding.encryption import key_ring
from forkpoint.encoding.serializer import SafeSerializer
from forkpoint.errors import CorruptChunk
from forkpoint.saver import parts_of
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, config, put, value_of
from forkpoint.testing.invariants import problems

SECRET = "what nobody else may read"
LONG = [{"id": str(n), "text": f"{SECRET} {n} " * 40} for n in range(100)]


class Inverting(CipherProtocol):
    """A cipher without any strength: it shows whether a backend stores what it was given."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "inverting", bytes(255 - byte for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes(255 - byte for byte in ciphertext)


class Marking(CipherProtocol):
    """A cipher without any strength: it shows in the store's bytes what was encrypted with it."""

    def __init__(self, key: bytes) -> None:
        self._mark = key

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "marking", self._mark + bytes(255 - byte for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        if not ciphertext.startswith(self._mark):
            raise ValueError("encrypted with another key")
        return bytes(255 - byte for byte in ciphertext[len(self._mark) :])


class EncryptionContract(Contract):
    """With an encrypting serializer values are stored encrypted, and chunks are shared.

    A subclass has a fixture `saver` whose saver has the serializer `encrypting()`, and a fixture
    `peer` with another saver for the same store that has none.
    """

    @pytest.fixture
    def peer(self, saver: ForkpointSaver) -> Iterator[ForkpointSaver]:
        raise NotImplementedError("a subclass opens the store without the serializer")

    def test_values_come_back_and_are_not_stored_in_clear_text(
        self, api: Api, peer: ForkpointSaver
    ) -> None:
        stored = put(api.saver, {"long": LONG, "n": 1})
        put(api.saver, {"long": [*LONG, SECRET], "n": 2}, parent=stored)
        api.put_writes(stored, [("c", SECRET)], "task")
        api.fork(stored, new_thread_id="fork")
        assert value_of(api.get_tuple(config("fork"))) == {"long": LONG, "n": 1}
        assert api.get_tuple(stored).pending_writes == [("task", "c", SECRET)]
        assert not any(SECRET.encode() in content for content in contents(api.saver))
        assert problems(api.saver) == []
        for thread_id in ("thread", "fork"):
            with pytest.raises(CorruptChunk):
                peer.get_tuple(config(thread_id))
        assert problems(api.saver) == []

    def test_all_is_encrypted_with_another_key(self, saver: ForkpointSaver) -> None:
        keys = b"the old key", b"the new key"
        old, new = (EncryptedSerializer(Marking(key), SafeSerializer()) for key in keys)
        writer = _with_serde(saver, old)
        stored = put(writer, {"long": LONG, "n": 1})
        writer.put_writes(stored, [("c", SECRET), ("d", LONG)], "task")
        writer.put_writes(stored, [("__error__", SECRET)], "task")
        writer.fork(stored, new_thread_id="fork")
        before = repr(writer.get_tuple(stored))
        encrypted = [content for content in contents(saver) if keys[0] in content]
        report = _with_serde(saver, key_ring(new, old)).rekey()
        assert report.foreign == 0
        stored_now = contents(saver)
        assert not any(keys[0] in content for content in stored_now)
        assert sum(keys[1] in content for content in stored_now) == len(encrypted) > 3
        reader = _with_serde(saver, new)
        assert repr(reader.get_tuple(stored)) == before
        assert value_of(reader.get_tuple(config("fork"))) == {"long": LONG, "n": 1}
        assert problems(reader) == []


def _with_serde(saver: ForkpointSaver, serde: EncryptedSerializer) -> ForkpointSaver:
    """Return a saver for the same store with another serializer."""
    made = copy.copy(saver)
    made.serde = serde
    made._context = saver._context.with_serde(serde)
    return made


def encrypting() -> EncryptedSerializer:
    """Return the default serializer, encrypting."""
    return EncryptedSerializer(Inverting(), SafeSerializer())


def contents(saver: ForkpointSaver) -> list[bytes]:
    """Return what is stored of a thread: its rows and chunks."""
    with parts_of(saver).context.storage.reading() as session:
        thread = session.threads.find("thread")
        assert thread is not None
        rows = list(session.checkpoints.all(thread))
        places = [(row.checkpoint_ns, row.checkpoint_id) for row in rows]
        writes = session.checkpoints.writes(thread, places)
        digests = session.collections.digests(thread.family).items
        chunks = session.chunks.get(thread.family, list(digests)).values()
        of_rows = [row.content for row in rows] + [row.content for row in writes]
        return of_rows + [content for _, content in chunks]
