"""MongoDB: documents as they are read, by which it is noticed that a field is missing."""

from __future__ import annotations

from typing import Any

from bson.codec_options import CodecOptions

from forkpoint.errors import CorruptChunk


class Stored(dict[str, Any]):
    """A document that was read. A field that it must have, and has not, was removed by others."""

    def __missing__(self, field: str) -> Any:
        raise CorruptChunk(
            f"a stored document is not what was written: the {self.get('kind', 'one')} "
            f"{self.get('_id')!r} has no field {field!r}"
        )


STORED: CodecOptions[Any] = CodecOptions(document_class=Stored)
"""How documents are decoded."""
