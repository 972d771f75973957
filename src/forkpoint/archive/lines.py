"""The lines of an archive, which `docs/moving.md` describes. Pure.

Each is an object of JSON, in ASCII: what the part is, the part, the mark of its thread, and the
first 16 bytes of the SHA-256 of part and mark as they are written there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple

from forkpoint.archive.parts import (
    Ancestor,
    CheckpointPart,
    ChunkPart,
    EndPart,
    Part,
    ThreadPart,
    ValuePart,
    WritePart,
)
from forkpoint.clocks import EPOCH, time_of
from forkpoint.errors import CorruptChunk, EncryptionMismatch
from forkpoint.storage.rows import Description, RecordTimes

FORMAT = 1
"""The version of the format. It is in the first line of each thread."""

BEGIN = b'{"thread": '
"""With what the first line of a thread begins, and so an archive."""

MARK_DIGITS = 16
"""How many hexadecimal digits the mark of a thread has."""

_MARK = b', "of": "'
_QUOTE = b'"'
_SUFFIX = b', "sha256": "'
_DIGITS = 32
_END = b'"}'
_AFTER_MARK = len(_QUOTE) + len(_SUFFIX) + _DIGITS + len(_END)

_MALFORMED = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError),
    *(RecursionError, OverflowError),
)
"""What is raised where a part is not of the shape that is written."""

Encrypt = Callable[[bytes], bytes]
"""Encrypts what somebody stored, or decrypts it; see `Codec.encrypt`."""


class Verified(NamedTuple):
    """A line that is what was written."""

    kind: bytes
    """With what it begins."""
    mark: bytes
    """What the lines of its thread have in common, and those of no other."""
    written: bytes
    """The part, as it is written."""


def line_of(part: Part, mark: bytes, encrypt: Encrypt) -> bytes:
    """Return the line of a part.

    Args:
        part: The part.
        mark: The mark of its thread.
        encrypt: Encrypts what somebody stored in it.
    """
    kind, fields = _WRITERS[type(part)](part, encrypt)
    written = _json(fields).encode() + _MARK + mark + _QUOTE
    digest = sha256(written).hexdigest()[:_DIGITS].encode()
    return b'{"' + kind + b'": ' + written + _SUFFIX + digest + _END + b"\n"


def part_of(line: Verified, decrypt: Encrypt) -> Part:
    """Return the part that a line is of.

    Raises:
        EncryptionMismatch: It was encrypted with another key, or was not.
        CorruptChunk: It is not of the shape that is written.
    """
    reader = _READERS.get(line.kind)
    if reader is None:
        raise CorruptChunk("it is of an unknown kind; a newer forkpoint may know it")

    def decrypted(content: bytes) -> bytes:
        try:
            return decrypt(content)
        except CorruptChunk as error:  # it is what was written
            raise EncryptionMismatch(f"its values cannot be decrypted: {error}") from error

    try:
        return reader(json.loads(line.written), decrypted)
    except _MALFORMED as error:
        if isinstance(error, CorruptChunk):
            raise
        raise CorruptChunk(f"it is not of the shape that is written: {error}") from error


def verified(line: bytes) -> Verified:
    """Return a line, compared with its hash.

    Raises:
        CorruptChunk: It is not what was written.
    """
    line = line.rstrip(b"\n")
    end = len(line) - len(_SUFFIX) - _DIGITS - len(_END)
    kind, separator, written = line[:end].partition(b'": ')
    suffix, digest = line[end : end + len(_SUFFIX)], line[end + len(_SUFFIX) : -len(_END)]
    if end <= 0 or not separator or suffix != _SUFFIX:
        raise CorruptChunk("it is cut off, or no line of an archive")
    if sha256(written).hexdigest()[:_DIGITS].encode() != digest:
        raise CorruptChunk("it is not what was written")
    end = len(written) - len(_MARK) - MARK_DIGITS - len(_QUOTE)
    mark = mark_in(line)
    if written[end : end + len(_MARK)] != _MARK or not mark.isalnum():
        raise CorruptChunk("it has no mark of a thread")
    return Verified(kind, mark, written[:end])


def mark_in(line: bytes) -> bytes:
    """Return the mark in a line, which may be damaged."""
    end = len(line.rstrip(b"\n")) - _AFTER_MARK
    return line[max(0, end - MARK_DIGITS) : max(0, end)]


def second_begin(line: bytes) -> int:
    """Return where in a line another thread begins; 0 if none does.

    It does where the end of the line before is missing, as if archives were joined of which one
    was not whole. In a line there is no other space behind a colon, and quotes in it are escaped.
    """
    return max(0, line.rfind(BEGIN))


def is_whole(line: bytes) -> bool:
    """Return whether a line is what was written."""
    try:
        verified(line)
    except CorruptChunk:
        return False
    return True


def _json(value: Any) -> str:
    """Return JSON as metadata are stored: so they are byte for byte what they were."""
    return json.dumps(value, separators=(",", ":"))


# Threads


def _thread_fields(part: ThreadPart, _: Encrypt) -> tuple[bytes, dict[str, Any]]:
    described = part.described
    return b"thread", {
        "format": FORMAT,
        "thread_id": part.thread_id,
        "owner": part.owner,
        "label": described.label,
        "tags": list(described.tags),
        "metadata": json.loads(described.metadata),
        "fixed_keys": list(described.fixed_keys),
        "ttl_seconds": None if described.ttl is None else described.ttl / 1_000_000,
        "on_expiry": described.on_expiry,
        "is_swept": part.is_swept,
        "status": part.status,
        **{name: _text(time) for name, time in part.times._asdict().items()},
        "lineage": [
            {**ancestor._asdict(), "created_at": _text(ancestor.created_at)}
            for ancestor in part.lineage
        ],
    }


def _thread_part(fields: Mapping[str, Any], _: Encrypt) -> ThreadPart:
    if fields["format"] != FORMAT:
        raise CorruptChunk(f"its format is {fields['format']}, and this forkpoint knows {FORMAT}")
    ttl = fields["ttl_seconds"]
    described = Description(
        fields["label"],
        tuple(fields["tags"]),
        _json(fields["metadata"]),
        None if ttl is None else round(ttl * 1_000_000),
        tuple(fields["fixed_keys"]),
        fields["on_expiry"],
    )
    return ThreadPart(
        fields["thread_id"],
        fields["owner"],
        described,
        fields["status"],
        RecordTimes(*(_microseconds(fields[name]) for name in RecordTimes._fields)),
        [
            Ancestor(**{**ancestor, "created_at": _microseconds(ancestor["created_at"])})
            for ancestor in fields["lineage"]
        ],
        fields["is_swept"],
    )


def _text(microseconds: int) -> str | None:
    return time_of(microseconds).isoformat() if microseconds else None


def _microseconds(text: str | None) -> int:
    if text is None:
        return 0
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


# Chunks and values


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _chunk_fields(part: ChunkPart, encrypt: Encrypt) -> tuple[bytes, dict[str, Any]]:
    chunks = [
        [_base64(encrypt(content) if content else b""), *numbers]
        for numbers, content in part.chunks
    ]
    return b"chunks", {"first": part.first, "oldest": part.oldest, "chunks": chunks}


def _chunk_part(fields: Mapping[str, Any], decrypt: Encrypt) -> ChunkPart:
    chunks = []
    for content, *numbers in fields["chunks"]:
        stored = _bytes(content)
        chunks.append((numbers, decrypt(stored) if stored else b""))
    return ChunkPart(fields["first"], fields["oldest"], chunks)


def _value_fields(value: ValuePart, encrypt: Encrypt) -> list[Any]:
    if value.chunks:
        return [value.kind, value.type, value.height, *value.chunks]
    return [value.kind, value.type, _base64(encrypt(value.content))]


def _value_part(fields: Sequence[Any], decrypt: Encrypt) -> ValuePart:
    kind, type_, third, *numbers = fields
    if isinstance(third, str):
        return ValuePart(kind, type_, decrypt(_bytes(third)), (), 0)
    return ValuePart(kind, type_, b"", tuple(numbers), third)


# Checkpoints


def _checkpoint_fields(part: CheckpointPart, encrypt: Encrypt) -> tuple[bytes, dict[str, Any]]:
    kind, body = part.body
    preview = part.preview
    return b"checkpoint", {
        "ns": part.checkpoint_ns,
        "id": part.checkpoint_id,
        "parent": part.parent_checkpoint_id,
        "run_id": part.run_id,
        "metadata": json.loads(part.metadata),
        "body": [kind, _base64(encrypt(body))],
        "channels": {name: _value_fields(value, encrypt) for name, value in part.channels.items()},
        "writes": [[*write[:-1], *_value_fields(write.value, encrypt)] for write in part.writes],
        "hidden": part.hidden,
        "restarts": part.restarts,
        "preview": None if preview is None else _base64(encrypt(preview.encode())),
    }


def _checkpoint_part(fields: Mapping[str, Any], decrypt: Encrypt) -> CheckpointPart:
    kind, body = fields["body"]
    preview = fields["preview"]
    return CheckpointPart(
        fields["ns"],
        fields["id"],
        fields["parent"],
        fields["run_id"],
        _json(fields["metadata"]),
        (kind, decrypt(_bytes(body))),
        {name: _value_part(value, decrypt) for name, value in fields["channels"].items()},
        [
            WritePart(task_id, idx, path, channel, _value_part(value, decrypt))
            for task_id, idx, path, channel, *value in fields["writes"]
        ],
        fields["hidden"],
        fields["restarts"],
        None if preview is None else decrypt(_bytes(preview)).decode(),
    )


def _end_fields(part: EndPart, _: Encrypt) -> tuple[bytes, dict[str, Any]]:
    return b"end", part._asdict()


def _end_part(fields: Mapping[str, Any], _: Encrypt) -> EndPart:
    return EndPart(int(fields["checkpoints"]), int(fields["writes"]))


_WRITERS: Mapping[type, Callable[[Any, Encrypt], tuple[bytes, dict[str, Any]]]] = {
    ThreadPart: _thread_fields,
    ChunkPart: _chunk_fields,
    CheckpointPart: _checkpoint_fields,
    EndPart: _end_fields,
}
_READERS: Mapping[bytes, Callable[[Any, Encrypt], Part]] = {  # by how their lines begin
    b'{"thread': _thread_part,
    b'{"chunks': _chunk_part,
    b'{"checkpoint': _checkpoint_part,
    b'{"end': _end_part,
}
