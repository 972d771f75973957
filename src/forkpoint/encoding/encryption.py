"""What an encrypting serializer does to the bytes that are stored. No I/O."""

from __future__ import annotations

import os
from contextlib import suppress

from langgraph.checkpoint.serde.base import CipherProtocol, SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from forkpoint.encoding.entries import DIGEST_BYTES
from forkpoint.errors import (
    PASS_SERDE,
    SERDE_ENCRYPTS,
    CorruptChunk,
    EncryptionMismatch,
    InvalidInput,
)

_SECRET_LABEL = b"forkpoint digest key:"


class Encryption:
    """Encrypts what is stored, and decrypts what is read.

    Args:
        cipher: That of the serializer; None if it does not encrypt.
    """

    def __init__(self, cipher: CipherProtocol | None) -> None:
        self._cipher = cipher
        self._reads_plain = isinstance(cipher, (NoCipher, KeyRing)) and cipher.reads_plain

    def encrypt(self, content: bytes) -> bytes:
        """Return `content` as it is stored: encrypted if the serializer encrypts, and labelled."""
        if self._cipher is None:
            return b"\0" + content
        return _labelled(*self._cipher.encrypt(content))

    def decrypt(self, stored_bytes: bytes) -> bytes:
        """Return what `encrypt` was given.

        Raises:
            EncryptionMismatch: It is unencrypted and must not be, or the reverse.
            CorruptChunk: It cannot be decrypted, or is nothing that is stored.
        """
        if not stored_bytes or not isinstance(stored_bytes, bytes):
            raise CorruptChunk("a stored value is empty, or no bytes")
        label_bytes = stored_bytes[0]
        if self._cipher is None:
            if not label_bytes:
                return stored_bytes[1:]
            if not _names_a_cipher(stored_bytes):
                raise CorruptChunk("a stored value is not what was written")
            raise EncryptionMismatch(f"a stored value is encrypted{PASS_SERDE}")
        if not label_bytes and not self._reads_plain:
            raise EncryptionMismatch(f"a stored value is not encrypted{SERDE_ENCRYPTS}")
        content = stored_bytes[1 + label_bytes :]
        try:
            return self._cipher.decrypt(stored_bytes[1 : 1 + label_bytes].decode(), content)
        except Exception as error:
            raise CorruptChunk(
                "a stored value cannot be decrypted: it was changed, or written with another key"
            ) from error


class NoCipher(CipherProtocol):
    """Stands in a key ring for a serializer that does not encrypt."""

    reads_plain = True

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "", plaintext

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        if ciphername:
            raise ValueError("it is encrypted")
        return ciphertext


class KeyRing(CipherProtocol):
    """Encrypts with one cipher, and decrypts what it and older ones encrypted.

    Args:
        current: The cipher that encrypts.
        older: The others. Each must refuse what another one encrypted, as AES in its default mode
            EAX and `NoCipher` do: nothing else shows which of them it was.

    Raises:
        InvalidInput: A cipher decrypts what another one encrypted: they have the same key, or do
            not check what they decrypt.
    """

    def __init__(self, current: CipherProtocol, *older: CipherProtocol) -> None:
        self.current = current
        self._ciphers = (current, *older)
        self.reads_plain = any(isinstance(cipher, NoCipher) for cipher in self._ciphers)
        """Whether what is not encrypted is read, too."""
        for cipher in self._ciphers:
            encrypted = Encryption(cipher).encrypt(_SECRET_LABEL)
            for other in self._ciphers:
                if other is not cipher and _opens(other, encrypted):
                    raise InvalidInput(
                        "a cipher decrypts what another one encrypted: either they have the same "
                        "key, or they do not check what they decrypt, and one of them needs "
                        "another name"
                    )

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return self.current.encrypt(plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        *others, last = self._ciphers
        stored = _labelled(ciphername, ciphertext)
        for cipher in others:
            with suppress(CorruptChunk):
                return Encryption(cipher).decrypt(stored)
        return last.decrypt(ciphername, ciphertext)

    def opens_now(self, stored: bytes) -> bool:
        """Return whether something that is stored is encrypted with the current cipher."""
        return _opens(self.current, stored)


def key_ring(serde: SerializerProtocol, *older: SerializerProtocol) -> EncryptedSerializer:
    """Return a serializer that writes with one key, and also reads what others wrote.

    A saver that has it reads a store while `ForkpointSaver.rekey` encrypts it with another key, or
    encrypts it for the first time, or stores it without encryption again.

    Args:
        serde: The serializer that writes. It may be one that does not encrypt.
        older: Those with the other keys. Only their keys count. One of them may be a serializer
            that does not encrypt: then what is not encrypted is read, too.

    Raises:
        InvalidInput: None of them encrypts, or two have the same key. Also if their ciphers have
            one name, and decrypt anything without checking it.
    """
    ciphers = [_cipher_in_ring(each) for each in (serde, *older)]
    if all(isinstance(cipher, NoCipher) for cipher in ciphers):
        raise InvalidInput("a serializer of a key ring must be an EncryptedSerializer")
    inner = serde.serde if isinstance(serde, EncryptedSerializer) else serde
    return EncryptedSerializer(KeyRing(*ciphers), inner)


def _cipher_in_ring(serde: SerializerProtocol) -> CipherProtocol:
    cipher = cipher_of(serde)
    if isinstance(cipher, KeyRing):
        raise InvalidInput("a key ring cannot be in another one: pass all its serializers")
    if cipher is None and isinstance(serde, EncryptedSerializer):
        raise InvalidInput("a key ring cannot have an EncryptedSerializer that was overridden")
    if not isinstance(serde, SerializerProtocol):
        raise InvalidInput("each argument of a key ring must be a serializer")
    return cipher or NoCipher()


def _labelled(name: str, encrypted: bytes) -> bytes:
    label = name.encode()
    return bytes([len(label)]) + label + encrypted


def _names_a_cipher(labelled: bytes) -> bool:
    """Return whether something begins with what may be a label."""
    label = labelled[1 : 1 + labelled[0]]
    try:
        return len(label) == labelled[0] and label.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _opens(cipher: CipherProtocol, stored: bytes) -> bool:
    try:
        Encryption(cipher).decrypt(stored)
    except CorruptChunk:
        return False
    return True


def cipher_of(serde: SerializerProtocol) -> CipherProtocol | None:
    """Return the cipher of an `EncryptedSerializer`, and None for any other serializer."""
    if isinstance(serde, EncryptedSerializer) and is_unchanged(serde, EncryptedSerializer):
        return serde.cipher
    return None


def encrypts_by_itself(serde: SerializerProtocol) -> bool:
    """Return whether a serializer encrypts values, and nothing but them, as it overrides how."""
    return isinstance(serde, EncryptedSerializer) and cipher_of(serde) is None


def is_unchanged(serde: object, known: type) -> bool:
    """Return whether a serializer reads and writes as `known` does, with nothing overridden."""
    return isinstance(serde, known) and all(
        getattr(type(serde), name) is getattr(known, name)
        for name in ("dumps_typed", "loads_typed")
    )


def new_secret(cipher: CipherProtocol | None) -> bytes:
    """Return a new random key for digests, as it is stored: encrypted if there is a cipher."""
    return stored_secret(cipher, os.urandom(DIGEST_BYTES))


def stored_secret(cipher: CipherProtocol | None, secret: bytes) -> bytes:
    """Return a key for digests as it is stored: encrypted if there is a cipher."""
    return Encryption(cipher).encrypt(_SECRET_LABEL + secret)


def open_secret(cipher: CipherProtocol | None, stored_bytes: bytes) -> bytes | None:
    """Return the key that `new_secret` made, or None if it was made with another cipher."""
    try:
        secret = Encryption(cipher).decrypt(stored_bytes)
    except CorruptChunk:
        return None
    return secret[len(_SECRET_LABEL) :] if secret.startswith(_SECRET_LABEL) else None
