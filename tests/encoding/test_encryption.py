"""With an encrypting serializer, what is stored is unreadable, shared, and verified."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from checking import checkpoint, config, encrypted_serde, put
from forkpoint import CorruptChunk, EncryptionMismatch, SafeSerializer, ThreadCatalog
from forkpoint.encoding.hashing import Hashing
from stores import Store

SECRET = "the-secret-text"


def values(count: int = 200) -> dict[str, Any]:
    return {
        "messages": [HumanMessage(f"{SECRET} {n} " * 30, id=str(n)) for n in range(count)],
        "small": SECRET,
    }


def test_no_value_is_readable_in_the_store(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        stored = put(saver, values())
        saver.put_writes(stored, [("c", SECRET), ("d", SECRET * 1000)], "task")

    stored_bytes = store.content()
    assert b"forkpoint digest key" not in stored_bytes
    assert SECRET.encode() not in stored_bytes
    assert len(stored_bytes) > 1000


def test_values_come_back_in_another_process_with_the_key(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        put(saver, values())
    with store.saver(serde=encrypted_serde()) as saver:
        found = saver.get_tuple(config())
        assert found is not None
        assert found.checkpoint["channel_values"] == values()
        assert store.problems(saver) == []


def test_chunks_are_shared_between_checkpoints_and_processes(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        put(saver, values(200))
        before = store.count("chunks")
    with store.saver(serde=encrypted_serde()) as saver:
        put(saver, values(201))
    assert store.count("chunks") - before <= 4


SERDES = {
    "a key": encrypted_serde,
    "another key": lambda: encrypted_serde(b"another-key-0123"),
    "no key": SafeSerializer,
}


@pytest.mark.parametrize(
    ("writer", "reader"),
    [("a key", "another key"), ("a key", "no key"), ("no key", "another key")],
)
async def test_the_wrong_key_reads_nothing_and_changes_nothing(
    store: Store, writer: str, reader: str
) -> None:
    with store.saver(serde=SERDES[writer]()) as saver:
        stored = put(saver, values(3), thread_id="one")
        saver.put_writes(stored, [("c", 1)], "task")
        ThreadCatalog(saver).search()  # lists what changed
    before = everything_in(store)
    with store.saver(serde=SERDES[reader]()) as other:
        for read in (
            lambda: other.get_tuple(config("one")),
            lambda: list(other.list(config("one"))),
            lambda: list(other.list(None)),
            lambda: list(other.history("one")),
            lambda: other.at("one", 0),
            lambda: other.diff(stored, stored),
            lambda: other.get_delta_channel_history(config=stored, channels=["messages"]),
            other.check,
            other.repair,
        ):
            with pytest.raises(EncryptionMismatch, match="encrypted"):
                read()
        with pytest.raises(EncryptionMismatch):
            await other.aget_tuple(config("one"))
        for write in (
            lambda: put(other, values(1), thread_id="two"),
            lambda: put(other, values(1), thread_id="one"),
            lambda: other.put_writes(stored, [("c", 2)], "task"),
            lambda: other.fork("one", new_thread_id="two"),
            lambda: ThreadCatalog(other).create("two"),
        ):
            with pytest.raises(EncryptionMismatch, match="encrypted"):
                write()
        with pytest.raises(EncryptionMismatch):
            await other.aput(config("two"), checkpoint({}), {}, {})
    assert everything_in(store) == before
    with store.saver(serde=SERDES[writer]()) as saver:
        assert saver.get_tuple(stored) is not None
        assert saver.check().is_clean


def everything_in(store: Store) -> Any:
    kinds = ("threads", "checkpoints", "writes", "chunks")
    return [store.secrets(), *(store.stored(kind) for kind in kinds)]


@pytest.mark.parametrize("serde", ["a key", "no key"])
@pytest.mark.on_each_backend
def test_a_store_whose_secret_is_lost_is_given_no_other_one(serde: str, store: Store) -> None:
    with store.saver(serde=SERDES[serde]()) as saver:
        stored = put(saver, values(), thread_id="one")
    before = everything_in(store)
    taken = store.take_secret()
    left = everything_in(store)
    with store.saver(serde=SERDES[serde]()) as saver:
        for use in (
            lambda: saver.get_tuple(stored),
            lambda: put(saver, values(), parent=stored),
            lambda: put(saver, values(), thread_id="two"),
            lambda: ThreadCatalog(saver).create("two"),
            saver.check,
        ):
            with pytest.raises(CorruptChunk, match="the secret of the store is missing"):
                use()
        assert everything_in(store) == left
        store.give_back("settings", taken)
        assert everything_in(store) == before
        assert saver.get_tuple(stored) is not None
        saver.delete_thread("one")
    store.take_secret()
    with store.saver(
        serde=SERDES[serde]()
    ) as saver:  # nothing is there that another could not read
        put(saver, values(), thread_id="two")
        assert saver.check().is_clean


def test_an_unencrypted_row_is_refused(store: Store) -> None:
    with store.saver() as plain:
        stored = put(plain, values(), thread_id="plain")
        plain.put_writes(stored, [("c", 1)], "task")
    with store.saver(serde=encrypted_serde()) as saver:
        with pytest.raises(EncryptionMismatch, match="not encrypted"):
            saver.get_tuple(config("plain"))
        with pytest.raises(EncryptionMismatch):
            list(saver.list(None))


@pytest.mark.parametrize("kind", ["checkpoints", "writes", "chunks"])
def test_a_row_that_was_replaced_by_an_unencrypted_one_is_refused(store: Store, kind: str) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        stored = put(saver, values())
        saver.put_writes(stored, [("c", 1)], "task")
        for row in store.rows(kind):
            store.change(kind, row.key, content=b"\0" + row.content)
        with pytest.raises(EncryptionMismatch):
            saver.get_tuple(config())


def test_an_encrypted_row_needs_the_serializer(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        put(saver, values())
    with (
        store.saver() as plain,
        pytest.raises(EncryptionMismatch, match="EncryptedSerializer"),
    ):
        plain.get_tuple(config())


@pytest.mark.parametrize("content", [b"d", b"damaged", b"\x01\x93\x01", b"\x02\xff\xff\0"])
def test_a_damaged_row_is_not_taken_for_an_encrypted_one(content: bytes, store: Store) -> None:
    with store.saver() as saver:
        put(saver, {"n": 1})
        (row,) = store.rows("checkpoints")
        store.change("checkpoints", row.key, content=content)
        with pytest.raises(CorruptChunk) as raised:
            saver.get_tuple(config())
        assert type(raised.value) is CorruptChunk


def test_a_row_copied_from_another_checkpoint_is_refused(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        first = put(saver, {"approved": False})
        (target,) = store.rows("checkpoints")
        put(saver, {"approved": True}, parent=first)
        (source,) = [row for row in store.rows("checkpoints") if row.key != target.key]
        store.change("checkpoints", target.key, content=source.content, checksum=source.checksum)
        with pytest.raises(CorruptChunk):
            saver.get_tuple(first)


def test_metadata_can_be_searched(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        put(saver, values(), metadata={"user.id": "u1"})
        assert len(list(saver.list(None, filter={"user.id": "u1"}))) == 1
        assert list(saver.list(None, filter={"user.id": "u2"})) == []


def test_a_store_can_be_cleaned_without_the_key(store: Store) -> None:
    with store.saver(serde=encrypted_serde()) as saver:
        put(saver, values(), thread_id="one")
        saver.copy_thread("one", "two")
        put(saver, values(100), thread_id="one")
    with store.saver() as plain:
        plain.delete_thread("one")
    with store.saver(serde=encrypted_serde()) as saver:
        assert saver.get_tuple(config("two")) is not None
        assert store.problems(saver) == []


def test_a_hash_is_the_hmac_of_the_standard_library() -> None:
    for secret in (b"", b"key", bytes(range(32))):
        for content in (b"", b"content", b"x" * 3000):
            expected = hmac.digest(secret, content, "sha256")
            assert Hashing(secret).hash(content) == expected
