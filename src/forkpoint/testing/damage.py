"""Damage: what was changed behind a saver's back is noticed, and never returned.

This part is for backends whose rows a test can get at.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forkpoint.errors import CorruptChunk
from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing.base import Contract
from forkpoint.testing.calls import Api, config, put, value_of

LONG = [{"id": str(n), "text": f"element {n} " * 40} for n in range(300)]

Rewrite = Callable[[str, Callable[[bytes], bytes]], None]


def flipped(content: bytes) -> bytes:
    """Return bytes of which one bit is another; the same again for those that it returns."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class DamageContract(Contract):
    """A value is what was put, or reading it fails.

    A subclass has a fixture `rewrite`. It returns a function that takes a kind, `checkpoints`,
    `writes` or `chunks`, and another function: what this returns for the content of a row of that
    kind is to be its content from then on, unless it is empty.
    """

    @pytest.fixture
    def rewrite(self, saver: ForkpointSaver) -> Rewrite:
        raise NotImplementedError("a subclass says how rows are rewritten")

    @pytest.mark.parametrize("kind", ["checkpoints", "writes", "chunks"])
    def test_a_changed_bit_is_noticed(self, kind: str, api: Api, rewrite: Rewrite) -> None:
        stored = put(api.saver, {"long": LONG, "n": 1})
        api.put_writes(stored, [("c", LONG)], "task")
        rewrite(kind, flipped)
        for read in (api.get_tuple, api.list):
            with pytest.raises(CorruptChunk, match="thread 'thread'"):
                read(config())
        assert api.catalog().get("thread").checkpoint_count == 1
        rewrite(kind, flipped)
        assert value_of(api.get_tuple(config())) == {"long": LONG, "n": 1}
        assert api.get_tuple(config()).pending_writes == [("task", "c", LONG)]
