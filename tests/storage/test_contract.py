"""What every backend must do, on SQLite and MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from forkpoint.saver.saver import ForkpointSaver
from forkpoint.testing import (
    DamageContract,
    EncryptionContract,
    SaverContract,
    SharedStoreContract,
    encrypting,
)
from stores import Store


class TestContract(SaverContract):
    @pytest.fixture
    def saver(self, saver: ForkpointSaver) -> ForkpointSaver:
        return saver


@pytest.mark.in_turns
class TestSharedStore(SharedStoreContract, DamageContract):
    @pytest.fixture
    def saver(self, saver: ForkpointSaver) -> ForkpointSaver:
        return saver

    @pytest.fixture
    def peer(self, store: Store) -> Iterator[ForkpointSaver]:
        with store.saver() as peer:
            yield peer

    @pytest.fixture
    def rewrite(self, store: Store) -> Callable[[str, Callable[[bytes], bytes]], None]:
        def rewrite(kind: str, change: Callable[[bytes], bytes]) -> None:
            for row in store.rows(kind):
                if row.content:
                    store.change(kind, row.key, content=change(row.content))

        return rewrite


@pytest.mark.in_turns
class TestEncryption(EncryptionContract):
    @pytest.fixture
    def saver(self, store: Store) -> Iterator[ForkpointSaver]:
        with store.saver(serde=encrypting()) as saver:
            yield saver

    @pytest.fixture
    def peer(self, store: Store) -> Iterator[ForkpointSaver]:
        with store.saver() as peer:
            yield peer
