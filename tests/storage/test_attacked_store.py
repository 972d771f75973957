"""An encrypted store, and somebody who can write to its database and has no key.

He may use the application, too: what he puts into his own threads, it reads to him.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from checking import checkpoint, config, encrypted_serde, id_of, put, value_of
from forkpoint import CorruptChunk, EncryptionMismatch, ThreadCatalog
from forkpoint.encoding.hashing import Hashing
from forkpoint.saver.saver import ForkpointSaver
from stores import Known, Store, checksums

pytestmark = pytest.mark.in_turns
SECRET = {"note": "the-secret-text", "text": "the-secret-text " * 100}


def encrypting(store: Store) -> ForkpointSaver:
    serde = encrypted_serde()
    return store.saver(serde=serde)


@pytest.fixture
def saver(store: Store) -> Iterator[ForkpointSaver]:
    """A saver of all owners."""
    with encrypting(store) as opened:
        yield opened


@pytest.fixture
def theirs(saver: ForkpointSaver) -> ForkpointSaver:
    """The victim's, who has a thread of the same state as its copy, but for an approval."""
    confined = saver.for_owner("victim")
    stored = put(confined, SECRET, thread_id="theirs")
    confined.put_writes(stored, [("note", "approved")], "task")
    return confined


@pytest.fixture
def mine(saver: ForkpointSaver) -> ForkpointSaver:
    """The attacker's."""
    confined = saver.for_owner("attacker")
    stored = put(confined, {"note": "mine", "text": "mine " * 300}, thread_id="mine")
    confined.put_writes(stored, [("note", "mine")], "task")
    return confined


def rows_of(store: Store, kind: str, thread_id: str) -> dict[Any, dict[str, Any]]:
    key = store.thread(thread_id).key
    return {at: row for at, row in store.stored(kind).items() if row.get("thread") == key}


def take_their_checkpoints(store: Store) -> None:
    """Let the attacker's thread have the victim's checkpoints, and not its own."""
    place = store.thread("mine")
    for at in rows_of(store, "checkpoints", "mine"):
        store.take("checkpoints", at)
    for at, row in rows_of(store, "checkpoints", "theirs").items():
        store.change("checkpoints", at, thread=place.key, **_family(row, place.family))


def _family(row: dict[str, Any], family: Any) -> dict[str, Any]:
    return {"family": family} if "family" in row else {}


def reads_nothing_else(store: Store, saver: ForkpointSaver, thread_id: str) -> None:
    """Check that a thread's rows are refused, by a saver that has not read them before, too."""
    with encrypting(store) as other:
        for reader in (saver, other):
            for read in (
                lambda reader=reader: reader.get_tuple(config(thread_id)),
                lambda reader=reader: list(reader.list(config(thread_id))),
                lambda reader=reader: reader.fork(thread_id, new_thread_id="fork"),
            ):
                with pytest.raises(CorruptChunk, match=thread_id):
                    read()


def test_a_row_of_another_owner_is_not_read_in_ones_own_thread(
    store: Store, theirs: ForkpointSaver, mine: ForkpointSaver
) -> None:
    take_their_checkpoints(store)
    place = store.thread("mine")
    for at, row in rows_of(store, "writes", "theirs").items():
        store.change("writes", at, thread=place.key, **_family(row, place.family))
        store.take("writes", at)

    reads_nothing_else(store, mine, "mine")


def test_a_copy_does_not_make_a_moved_row_ones_own(
    store: Store, theirs: ForkpointSaver, mine: ForkpointSaver
) -> None:
    take_their_checkpoints(store)
    mine.copy_thread("mine", "copy")

    with encrypting(store) as other, pytest.raises(CorruptChunk, match="copy"):
        other.get_tuple(config("copy"))


def test_an_approval_in_a_copy_is_none_in_the_original(store: Store, saver: ForkpointSaver) -> None:
    stored = put(saver, SECRET, thread_id="original")
    saver.copy_thread("original", "copy")
    saver.put_writes(config("copy", id_of(stored)), [("note", "approved")], "task")
    for at in rows_of(store, "writes", "copy"):
        if store.stored("writes")[at]["task_id"] == "task":
            store.change("writes", at, thread=store.thread("original").key)

    with encrypting(store) as other, pytest.raises(CorruptChunk, match="original"):
        other.get_tuple(config("original"))


@pytest.mark.parametrize("field", ["task_id", "checkpoint_id", "idx", "channel"])
def test_a_write_is_not_moved_within_a_thread(
    store: Store, saver: ForkpointSaver, field: str
) -> None:
    first = put(saver, {"note": 1})
    second = put(saver, {"note": 2}, parent=first)
    saver.put_writes(first, [("note", "approved")], "task")
    moved = {
        "task_id": "other task",
        "checkpoint_id": id_of(second),
        "idx": 3,
        "channel": "other",
    }
    (at,) = (row.key for row in store.rows("writes"))
    store.change("writes", at, **{field: moved[field]})

    at_place = second if field == "checkpoint_id" else first
    with encrypting(store) as other, pytest.raises(CorruptChunk, match="thread 'thread'"):
        other.get_tuple(at_place)


def test_chunks_are_not_exchanged(store: Store, saver: ForkpointSaver) -> None:
    put(saver, {"a": "one text " * 200, "b": "another text " * 200})
    one, another, *_ = store.rows("chunks")
    store.change("chunks", one.key, content=another.content)
    store.change("chunks", another.key, content=one.content)

    with encrypting(store) as other, pytest.raises(CorruptChunk):
        other.get_tuple(config())


def test_equal_values_of_two_owners_have_nothing_in_common(
    store: Store, saver: ForkpointSaver
) -> None:
    guess = checkpoint(SECRET)
    for owner in ("victim", "attacker"):
        confined = saver.for_owner(owner)
        stored = confined.put(config(owner), guess, {}, guess["channel_versions"])
        confined.put_writes(stored, [("note", "the-secret-text"), ("text", "x" * 5000)], "task")

    for kind in ("checkpoints", "writes"):
        rows = [
            row
            for row in store.stored(kind).values()
            if row["checksum"]  # receipts have none
        ]
        checksums = [bytes(row["checksum"]) for row in rows]
        assert len(set(checksums)) == len(checksums) > 1
        assert len({row["binding"] for row in rows}) == len(rows)
    digests = [row.digest for row in store.rows("chunks")]
    assert len(set(digests)) == len(digests) > 1


def test_a_thread_that_was_not_known_when_its_values_were_taken_shares_its_chunks(
    store: Store, saver: ForkpointSaver
) -> None:
    value = {"list": [f"element {n} " * 20 for n in range(400)], "map": {"a": ["x" * 300] * 40}}
    first = put(saver, value)
    number = store.count("chunks")
    with encrypting(store) as other:
        put(other, value, parent=first)
        other.put_writes(first, [("list", value["list"])], "task")
        assert store.count("chunks") == number
        assert value_of(other.get_tuple(config())) == value
    found = saver.get_tuple(first)
    assert found is not None
    assert found.pending_writes == [("task", "list", value["list"])]


# The record of a thread


def test_a_thread_is_not_given_to_another_owner(
    store: Store, theirs: ForkpointSaver, mine: ForkpointSaver
) -> None:
    store.change("threads", store.thread("theirs").key, owner="attacker")

    with encrypting(store) as other:
        confined = other.for_owner("attacker")
        for read in (
            lambda: confined.get_tuple(config("theirs")),
            lambda: confined.copy_thread("theirs", "copy"),
            lambda: ThreadCatalog(confined).get("theirs"),
        ):
            with pytest.raises(CorruptChunk, match="theirs"):
                read()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_what_tells_threads_apart_is_not_taken_from_another_thread(
    store: Store, theirs: ForkpointSaver, mine: ForkpointSaver, number: int
) -> None:
    fields = ("salt", "checksums", "owner")[:number]
    place, other_place = store.thread("mine"), store.thread("theirs")
    victim = store.stored("threads")[other_place.key]
    store.change("threads", place.key, **{field: victim[field] for field in fields})
    take_their_checkpoints(store)

    with encrypting(store) as other, pytest.raises(CorruptChunk, match="mine"):
        other.get_tuple(config("mine"))


def test_a_thread_that_gets_the_key_of_another_does_not_get_its_rows(
    store: Store, theirs: ForkpointSaver, mine: ForkpointSaver
) -> None:
    place, other_place = store.thread("mine"), store.thread("theirs")
    record = store.take("threads", place.key)
    store.take("threads", other_place.key)
    store.give_back("threads", _with_key(store, record, other_place))
    store.let_mean("mine", other_place)

    with encrypting(store) as other, pytest.raises(CorruptChunk, match="mine"):
        other.get_tuple(config("mine"))


def _with_key(store: Store, record: Any, place: Any) -> Any:
    if isinstance(record, dict):
        return {**record, "_id": place.key, "family": place.family}
    _, thread_id, _, *others = record
    return (place.key, thread_id, place.family, *others)


def test_a_record_without_a_key_is_refused(
    store: Store, saver: ForkpointSaver, theirs: ForkpointSaver
) -> None:
    known = Known("theirs", None, [], {}, "idle", 0, 0)
    salt, forged = checksums(known, Hashing())
    store.change("threads", store.thread("theirs").key, owner=None, salt=salt, checksums=forged)

    with encrypting(store) as other, pytest.raises(CorruptChunk, match="theirs"):
        other.get_tuple(config("theirs"))


# Without the key


def test_without_the_key_threads_are_found_and_removed_but_not_copied_or_described(
    store: Store, saver: ForkpointSaver
) -> None:
    ThreadCatalog(saver).create("thread", label="a label", tags=["tag"], metadata={"a": 1})
    first = put(saver, SECRET)
    put(saver, SECRET, parent=first)
    with store.saver() as plain:
        catalog = ThreadCatalog(plain)
        found = catalog.get("thread")
        assert found is not None
        assert (found.label, found.checkpoint_count) == ("a label", 2)
        assert [one.thread_id for one in catalog.search()] == ["thread"]
        for refused in (
            lambda: catalog.update("thread", label="another"),
            lambda: plain.copy_thread("thread", "copy"),
            lambda: catalog.clone("thread", "clone"),
            lambda: put(plain, {"note": 1}),
        ):
            with pytest.raises(EncryptionMismatch, match="EncryptedSerializer"):
                refused()
        plain.trim("thread", 1)
    with encrypting(store) as other:
        assert value_of(other.get_tuple(config())) == SECRET
        assert store.problems(other) == []
        assert store.count("threads") == 1
