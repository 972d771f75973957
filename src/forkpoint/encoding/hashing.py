"""The hashes of one store, by which it is noticed that what is stored was changed or moved. Pure.

They are MACs by the store's secret. Where the serializer encrypts, the secret is encrypted, and
nobody without the key makes one that fits. Else the secret can be read in the store: then they
notice damage, but no forgery. As each store has a secret, it can be encrypted later, and the other
way round, without another digest.

Each thread has a *salt*: random bytes, the first half of which it shares with its family. What is
hashed with the salt fits no other thread, or no other family.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import ormsgpack  # a dependency of langgraph-checkpoint

from forkpoint.errors import damaged_record, other_encryption

SALT_BYTES = 32
_FAMILY_BYTES = 16
_PART_BYTES = 16
_BLOCK_BYTES = 64  # of SHA-256; no secret is longer
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
IDENTITY_BYTES = _PART_BYTES
"""How much of a record's checksums is that of its identity: the first bytes."""
_LINEAGE = slice(IDENTITY_BYTES, IDENTITY_BYTES + _PART_BYTES)
_DESCRIPTION = slice(_LINEAGE.stop, _LINEAGE.stop + _PART_BYTES)
FLAG_BITS = 2
"""How many bits of a binding are flags of a row, above which is what binds it to its thread."""
UNBOUND = -1
"""A binding that fits no row."""


def new_salt(family: bytes = b"") -> bytes:
    """Return the salt of a new thread, of the family of another one if its salt is given."""
    return (family[:_FAMILY_BYTES] or os.urandom(_FAMILY_BYTES)) + os.urandom(
        SALT_BYTES - _FAMILY_BYTES
    )


def family_salt(salt: Any) -> bytes:
    """Return the part of a thread's salt that its family shares; empty if that is damaged."""
    return salt[:_FAMILY_BYTES] if isinstance(salt, bytes) else b""


class Hashing:
    """The hashes of a store.

    Args:
        secret: Its secret; None if the serializer has not the key of what is stored.
        is_encrypted: Whether the serializer encrypts.
    """

    def __init__(self, secret: bytes | None = b"", is_encrypted: bool = False) -> None:
        self.secret = secret
        self.is_encrypted = is_encrypted
        # HMAC (RFC 2104), whose two hashes begin with the key: `hmac.digest` begins anew each time,
        # which takes five times as long as to hash a small content.
        padded = (secret or b"").ljust(_BLOCK_BYTES, b"\0")
        self._inner = sha256(padded.translate(_INNER_PAD))
        self._outer = sha256(padded.translate(_OUTER_PAD))

    def hash(self, content: bytes) -> bytes:
        """Return the hash of some bytes, 32 bytes long.

        Raises:
            EncryptionMismatch: The secret is not known.
        """
        if self.secret is None:
            raise other_encryption("the store", self.is_encrypted)
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(content)
        outer.update(inner.digest())
        return outer.digest()

    def of_family(self, salt: bytes) -> bytes:
        """Return the secret by which the family of a thread hashes its chunks and rows."""
        return self.hash(b"\4" + salt[:_FAMILY_BYTES])

    # Rows

    def binding(self, salt: bytes, checksum: bytes) -> int:
        """Return what binds a row of this checksum to the thread of this salt."""
        digest = self.hash(b"\3" + salt + checksum)
        return int.from_bytes(digest[:8], "big") >> FLAG_BITS + 1

    def rebind(self, source: bytes, target: bytes, checksum: Any, binding: Any) -> int:
        """Return the binding, as it is stored, of a copy of a row for another thread.

        What does not fit the thread with the salt `source` does not fit that of `target` either.
        """
        if type(checksum) is not bytes or not isinstance(binding, int):
            return UNBOUND
        flags = binding & (1 << FLAG_BITS) - 1
        if binding >> FLAG_BITS != self.binding(source, checksum):
            return UNBOUND
        return self.binding(target, checksum) << FLAG_BITS | flags

    # Records of threads

    def checksums(
        self,
        identity: Sequence[Any],
        description: Sequence[Any],
        lineage: Sequence[Any] = (None, None, None),
        source: str | None = None,
    ) -> bytes:
        """Return what shows later whether a thread's record is as it was written.

        Args:
            identity: The thread's id, its owner and its salt.
            description: What is said of it, a `forkpoint.storage.interface.Description`.
            lineage: The edge that it was made by, its parent's key, and the checkpoint's id.
            source: The id that its parent had, if that is stored.
        """
        salt = identity[-1]
        parts = self._lineage(salt, lineage), self._description(salt, source, description)
        return self._identity(*identity) + b"".join(parts)

    def with_description(
        self, checksums: bytes, salt: bytes, source: str | None, description: Sequence[Any]
    ) -> bytes:
        """Return the checksums of a record of which something else is said."""
        return checksums[: _DESCRIPTION.start] + self._description(salt, source, description)

    def without_lineage(
        self, checksums: bytes, salt: bytes, description: Sequence[Any] | None
    ) -> bytes:
        """Return the checksums of a record that says no longer what its thread was made of.

        Args:
            checksums: Those before.
            salt: The thread's.
            description: What is said of it; None if it is deleted.
        """
        lineage = self._lineage(salt, (None, None, None))
        described = checksums[_DESCRIPTION]
        if description is not None:
            described = self._description(salt, None, description)
        return checksums[: _LINEAGE.start] + lineage + described

    def check_identity(self, thread_id: Any, owner: Any, salt: Any, checksums: Any) -> None:
        """Check whose record it is.

        Raises:
            EncryptionMismatch: It was written with another key, or with one while the serializer
                has none, or the reverse.
            CorruptChunk: It is not what was written.
        """
        if self.secret is None:
            raise other_encryption(f"thread {thread_id!r}", self.is_encrypted)
        if type(checksums) is not bytes or type(salt) is not bytes:
            raise damaged_record(thread_id)
        if checksums[:IDENTITY_BYTES] != self._identity(thread_id, owner, salt):
            raise damaged_record(thread_id)

    def check_lineage(self, thread_id: Any, salt: Any, checksums: bytes, *lineage: Any) -> None:
        """Check what a thread was made of, unless it cannot be known without the secret.

        Raises:
            CorruptChunk: It is not what was written.
        """
        if not self.can_check:
            return
        if type(checksums) is not bytes or checksums[_LINEAGE] != self._lineage(salt, lineage):
            raise damaged_record(thread_id)

    def check_description(
        self, thread_id: Any, salt: Any, checksums: bytes, source: Any, description: Sequence[Any]
    ) -> None:
        """Check what the record of a thread says of it, as `check_lineage` does."""
        if not self.can_check:
            return
        known = checksums[_DESCRIPTION] if type(checksums) is bytes else b""
        if known != self._description(salt, source, description):
            raise damaged_record(thread_id)

    @property
    def can_check(self) -> bool:
        """Whether this can tell if a record is as it was written: it has the secret."""
        return self.secret is not None

    def _identity(self, thread_id: Any, owner: Any, salt: Any) -> bytes:
        return self._part(b"\5", [thread_id, owner, salt])

    def _lineage(self, salt: Any, lineage: Sequence[Any]) -> bytes:
        return self._part(b"\6", [salt, *lineage])

    def _description(self, salt: Any, source: Any, description: Sequence[Any]) -> bytes:
        fields = (list(part) if isinstance(part, tuple) else part for part in description)
        return self._part(b"\7", [salt, source, *fields])

    def _part(self, kind: bytes, fields: Sequence[Any]) -> bytes:
        try:
            packed = ormsgpack.packb(fields)
        except (TypeError, ValueError):  # of a type that no record is written with
            packed = json.dumps(fields, default=repr).encode()
        return self.hash(kind + packed)[:_PART_BYTES]
