"""What an encrypting serializer does to the bytes that are stored. No I/O."""

from __future__ import annotations

import os

from langgraph.checkpoint.serde.base import CipherProtocol, SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint.encoding.entries import DIGEST_BYTES
from forkpoint.errors import CorruptChunk, EncryptionMismatch

_SECRET_LABEL = b"forkpoint digest key:"


class Encryption:
    """Encrypts what is stored, and decrypts what is read.

    Args:
        cipher: That of the serializer; None if it does not encrypt.
    """

    def __init__(self, cipher: CipherProtocol | None) -> None:
        self._cipher = cipher

    def encrypt(self, content: bytes) -> bytes:
        """Return `content` as it is stored: encrypted if the serializer encrypts, and labelled."""
        if self._cipher is None:
            return b"\0" + content
        name, encrypted = self._cipher.encrypt(content)
        label = name.encode()
        return bytes([len(label)]) + label + encrypted

    def decrypt(self, stored_bytes: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            EncryptionMismatch: It is unencrypted and must not be, or the reverse.
            CorruptChunk: It cannot be decrypted.
        """
        if not stored_bytes or not isinstance(stored_bytes, bytes):
            raise CorruptChunk("a stored value is empty, or no bytes")
        label_bytes = stored_bytes[0]
        if self._cipher is None:
            if label_bytes:
                raise EncryptionMismatch(
                    "a stored value is encrypted; pass the EncryptedSerializer that wrote it "
                    "as serde="
                )
            return stored_bytes[1:]
        if not label_bytes:
            raise EncryptionMismatch(
                "a stored value is not encrypted, and serde= is an EncryptedSerializer"
            )
        content = stored_bytes[1 + label_bytes :]
        try:
            return self._cipher.decrypt(stored_bytes[1 : 1 + label_bytes].decode(), content)
        except Exception as error:
            raise CorruptChunk(
                "a stored value cannot be decrypted: it was changed, or written with another key"
            ) from error


def cipher_of(serde: SerializerProtocol) -> CipherProtocol | None:
    """Return the cipher of an `EncryptedSerializer`, and None for any other serializer."""
    if isinstance(serde, EncryptedSerializer) and is_unchanged(serde, EncryptedSerializer):
        return serde.cipher
    return None


def is_unchanged(serde: object, known: type) -> bool:
    """Return whether a serializer reads and writes as `known` does, with nothing overridden."""
    return isinstance(serde, known) and all(
        getattr(type(serde), name) is getattr(known, name)
        for name in ("dumps_typed", "loads_typed")
    )


def new_secret(cipher: CipherProtocol) -> bytes:
    """Return a new random key for digests, encrypted so that it can be stored."""
    return Encryption(cipher).encrypt(_SECRET_LABEL + os.urandom(DIGEST_BYTES))


def open_secret(cipher: CipherProtocol, stored_bytes: bytes) -> bytes | None:
    """Return the key that `new_secret` made, or None if another cipher encrypted it."""
    try:
        secret = Encryption(cipher).decrypt(stored_bytes)
    except CorruptChunk:
        return None
    return secret[len(_SECRET_LABEL) :] if secret.startswith(_SECRET_LABEL) else None
