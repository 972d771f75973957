"""Documents that somebody has changed, and what a process that was killed leaves in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from bson.codec_options import CodecOptions
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from checking import collected, config, encrypted_serde, id_of, put, value_of
from forkpoint import CorruptChunk, ForkpointError, SafeSerializer, ThreadCatalog, key_ring
from forkpoint.mongodb import search as mongodb_search
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.saver import parts_of
from stores import MongoStore

TEXT = "a text that is long enough for a chunk " * 100

Call = Callable[[MongoDBSaver], object]


def fill(saver: MongoDBSaver) -> None:
    stored = put(saver, {"text": TEXT})
    saver.put_writes(stored, [("c", 1)], "task")


def family_of(saver: Any) -> Any:
    with parts_of(saver).context.storage.reading() as session:
        thread = session.threads.find("thread")
        assert thread is not None
        return thread.family


@pytest.mark.parametrize(
    ("which", "change", "call", "message"),
    [
        (
            {"kind": "thread"},
            {"$unset": {"epoch": ""}},
            lambda saver: saver.get_tuple(config()),
            "has no field 'epoch'",
        ),
        (
            {"kind": "thread"},
            {"$unset": {"label": ""}},
            lambda saver: ThreadCatalog(saver).get("thread"),
            "'thread'",
        ),
        (
            {"kind": "thread"},
            {"$set": {"status_for": 5}},
            lambda saver: put(saver, {"n": 2}),
            "not what was written",
        ),
        (
            {"kind": "write", "idx": 0},
            {"$set": {"channel": 1}},
            lambda saver: saver.get_tuple(config()),
            "write",
        ),
        (
            {"kind": "checkpoint"},
            {"$set": {"thread": "thread"}},
            lambda saver: saver.get_tuple(config()),
            "missing",
        ),
        (
            {"kind": "thread"},
            {"$set": {"log": "x"}},
            lambda saver: ThreadCatalog(saver).run("thread").__enter__(),
            "'thread'",
        ),
        (
            {"kind": "thread"},
            {"$set": {"owner": []}},
            lambda saver: ThreadCatalog(saver).run("thread").__enter__(),
            "'thread'",
        ),
        (
            {"home": {"$exists": True}},
            {"$set": {"key": 5}},
            lambda saver: put(saver, {"n": 2}),
            "'thread'",
        ),
        (
            {"home": {"$exists": True}},
            {"$set": {"home": ObjectId()}},
            lambda saver: ThreadCatalog(saver).create("thread"),
            "'thread'",
        ),
    ],
)
def test_a_document_that_was_changed_is_noticed(
    which: dict[str, Any],
    change: dict[str, Any],
    call: Call,
    message: str,
    mongo_store: MongoStore,
) -> None:
    with mongo_store.saver() as saver:
        fill(saver)  # type: ignore[arg-type]
    before = mongo_store.collection.find_one(which)
    assert before is not None
    mongo_store.collection.update_one({"_id": before["_id"]}, change)
    chunks = mongo_store.count("chunks")
    with mongo_store.saver() as saver, pytest.raises(CorruptChunk, match=message):
        call(saver)  # type: ignore[arg-type]
    assert mongo_store.count("chunks") == chunks > 0
    mongo_store.collection.replace_one({"_id": before["_id"]}, before)
    with mongo_store.saver() as saver:
        assert value_of(saver.get_tuple(config())) == {"text": TEXT}
        assert mongo_store.problems(saver) == []


@pytest.mark.parametrize("field", ["family", "parent", "kind"])
def test_a_record_without_a_field_blocks_no_other(field: str, mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        put(saver, {"n": 1})
        put(saver, {"n": 1}, thread_id="other")
    mongo_store.collection.update_one({"thread_id": "thread"}, {"$unset": {field: ""}})
    with mongo_store.saver() as saver:
        catalog = ThreadCatalog(saver)
        assert "other" in [thread.thread_id for thread in catalog.search()]
        assert catalog.sweep().deleted == ()
        with suppress(ForkpointError):
            saver.copy_thread("thread", "copy")
        saver.purge("other")
        assert saver.get_tuple(config("other")) is None


DAMAGE: dict[str, dict[str, Any]] = {
    "none": {"$unset": {"record": ""}},
    "text": {"$set": {"record": "text"}},
    "status": {"$set": {"record.status": []}},
    "status_for": {"$set": {"record.status_for": {"a": 1}}},
    "value_terms": {"$set": {"record.value_terms": 5}},
    "checkpoint_count": {"$set": {"record.checkpoint_count": "many"}},
    "more": {"$set": {"record.listed_at": [1], "record._id": 5}},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_a_log_says_of_a_thread_blocks_no_other_if_it_is_damaged(
    damage: str, mongo_store: MongoStore
) -> None:
    with mongo_store.saver(preview=["n"]) as saver:
        put(saver, {"n": 1}, thread_id="other")
        put(saver, {"n": 1})
    newest = {"slot": 2, "thread": mongo_store.thread("thread").key}
    assert mongo_store.collection.update_one(newest, DAMAGE[damage]).matched_count == 1
    with mongo_store.saver(preview=["n"]) as saver:
        assert value_of(saver.get_tuple(config())) == {"n": 1}
        catalog = ThreadCatalog(saver)
        assert "other" in [thread.thread_id for thread in catalog.search()]
        assert catalog.count() in (1, 2)  # it may be left out itself
        assert catalog.sweep().deleted == ()
        put(saver, {"n": 2}, thread_id="other")
        with suppress(CorruptChunk):
            put(saver, {"n": 2})
        assert value_of(saver.get_tuple(config("other"))) == {"n": 2}


def test_a_chunk_that_names_those_of_another_family_is_damaged(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        put(saver, {"texts": [f"{number} {TEXT}" for number in range(80)]})
    (chunk,) = list(mongo_store.collection.find({"refs": {"$type": "array"}}).limit(1))
    refs = [ObjectId().binary + ref[12:] for ref in chunk["refs"]]
    mongo_store.collection.update_one({"_id": chunk["_id"]}, {"$set": {"refs": refs}})
    with mongo_store.saver() as saver, pytest.raises(CorruptChunk):
        saver.get_tuple(config())


@pytest.mark.parametrize("field", ["next", "before", "replaced"])
def test_what_a_write_was_or_is_about_to_be_keeps_its_chunks(
    field: str, mongo_store: MongoStore
) -> None:
    """Until the put that was killed is repeated, or the run rolled back."""
    with mongo_store.saver() as saver:
        stored = put(saver, {"n": 1})
        saver.put_writes(stored, [("__error__", TEXT)], "task")
        write = mongo_store.collection.find_one({"kind": "write", "idx": -1})
        assert write is not None
        assert write["refs"]
        kept = [write["refs"]] if field == "replaced" else {"refs": write["refs"]}
        change = {"$set": {"refs": b"", field: kept}}
        mongo_store.collection.update_one({"_id": write["_id"]}, change)
        collected(saver, write["family"])
        assert mongo_store.count("chunks") == 1
        mongo_store.collection.update_one({"_id": write["_id"]}, {"$unset": {field: ""}})
        collected(saver, write["family"])
        assert mongo_store.count("chunks") == 0


@pytest.mark.parametrize(
    "change", [{"$set": {"thread": bad}} for bad in (None, 7, [], {})], ids=str
)
def test_a_row_that_says_no_thread_keeps_its_chunks(
    change: dict[str, Any], mongo_store: MongoStore
) -> None:
    with mongo_store.saver() as saver:
        stored = put(saver, {"text": TEXT})
        mongo_store.collection.update_one({"kind": "checkpoint"}, change)
        for n in range(2):
            stored = put(saver, {"text": f"{n} {TEXT}"}, parent=stored)
        saver.trim("thread", 1)
        assert collected(saver, family_of(saver)).missing is None
        assert mongo_store.count("chunks") == 2


@pytest.mark.parametrize(
    "change", [{"$set": {"visible": False}}, {"$unset": {"visible": ""}}], ids=str
)
def test_a_checkpoint_that_is_neither_seen_nor_hidden_is_named(
    change: dict[str, Any], mongo_store: MongoStore
) -> None:
    with mongo_store.saver() as saver:
        first = put(saver, {"n": 1})
        put(saver, {"n": 2}, parent=first)
        which = {"kind": "checkpoint", "checkpoint_id": id_of(first)}
        assert mongo_store.collection.update_one(which, change).modified_count == 1
        with pytest.raises(CorruptChunk, match=id_of(first)):
            list(saver.list(config()))
        assert [problem.checkpoint_id for problem in saver.check().problems] == [id_of(first)]


def test_a_copy_does_not_keep_what_its_source_has_replaced(mongo_store: MongoStore) -> None:
    """The put that replaces it has not come to its end, but that of the copy has."""
    with mongo_store.saver() as saver:
        put(saver, {"text": TEXT})
        row = mongo_store.collection.find_one({"kind": "checkpoint"})
        assert row is not None
        replaced = {"$set": {"replaced": [row["refs"]]}}
        mongo_store.collection.update_one({"_id": row["_id"]}, replaced)
        saver.copy_thread("thread", "copy")
        assert mongo_store.collection.count_documents({"replaced": {"$exists": True}}) == 1
        mongo_store.collection.update_one({"_id": row["_id"]}, {"$unset": {"replaced": ""}})
        assert mongo_store.problems(saver) == []


class Ended(BaseException):
    """The end of a process, as far as the store is concerned."""


def test_what_a_deletion_that_was_killed_has_left_goes_with_the_next(
    mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: Any) -> None:
        raise Ended

    with mongo_store.saver() as saver:
        fill(saver.for_owner("alice"))  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(ThreadRows, "count_rows", end)
            patch.setattr(ThreadRows, "delete_rows", end)
            with pytest.raises(Ended):
                saver.delete_thread("thread")
        assert saver.get_tuple(config()) is None
        assert mongo_store.count("checkpoints") == 1
        saver.for_owner("alice").delete_thread("thread")
        assert [mongo_store.count(kind) for kind in ("checkpoints", "writes", "chunks")] == [0] * 3
        assert mongo_store.problems(saver) == []


@pytest.mark.parametrize("use", ["create", "put", "fork"])
@pytest.mark.parametrize("made_by", ["create", "fork", "copy_thread"])
def test_the_id_of_a_thread_that_was_not_shown_can_be_used(
    made_by: str, use: str, mongo_store: MongoStore
) -> None:
    """The server ended between the last two statements of a bulk, and its client did, too."""
    with mongo_store.saver() as saver:
        put(saver, {"n": 1}, thread_id="source")
        make = {
            "create": lambda: ThreadCatalog(saver).create("thread"),
            "fork": lambda: saver.fork("source", new_thread_id="thread"),
            "copy_thread": lambda: saver.copy_thread("source", "thread"),
            "put": lambda: put(saver, {"n": 2}),
        }
        make[made_by]()
        unfinished = {"$set": {"building": ObjectId(), "removed_at": 1}}
        mongo_store.collection.update_one({"kind": "thread", "thread_id": "thread"}, unfinished)
    with mongo_store.saver() as saver:
        assert ThreadCatalog(saver).get("thread") is None
        make[use]()
        assert ThreadCatalog(saver).get("thread") is not None
        assert mongo_store.problems(saver) == []


def test_a_text_that_is_none_is_damage_of_one_thread(mongo_store: MongoStore) -> None:
    """A server takes what is no Unicode, and so what is of a changed byte, too."""
    raw: Any = CodecOptions(document_class=RawBSONDocument, unicode_decode_error_handler="replace")
    documents = mongo_store.collection.with_options(codec_options=raw)
    with mongo_store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for thread_id in ("thread", "other"):
            put(saver, {"n": 1}, thread_id=thread_id, metadata={"said": f"of {thread_id}"})
            catalog.update(thread_id, label=f"label of {thread_id}")
        for kind in ("thread", "checkpoint"):
            for document in documents.find({"kind": kind}):
                changed = document.raw.replace(b"of thread", b"of \xffhread")
                if changed != document.raw:
                    documents.delete_one({"_id": document["_id"]})
                    documents.insert_one(RawBSONDocument(changed, raw))
        page = catalog.search()
        assert [thread.thread_id for thread in page] == ["other"]
        assert [type(error) for error in page.damaged] == [CorruptChunk]
        for read in (saver.get_tuple, lambda _: catalog.get("thread")):
            with pytest.raises(CorruptChunk, match="'thread'"):
                read(config())
        assert {problem.thread_id for problem in saver.check().problems} == {"thread"}
        saver.delete_thread("thread")
        assert mongo_store.problems(saver) == []


def test_a_time_that_no_calendar_has_keeps_nobody_from_the_rest(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        for thread_id in ("thread", "other"):
            put(saver, {"n": 1}, thread_id=thread_id)
        late = {"expires": {"$toDate": Int64(2**53)}}
        mongo_store.collection.update_one({"thread_id": "thread"}, [{"$set": late}])
        assert len(ThreadCatalog(saver).search()) == 2
        saver.delete_thread("thread")
        assert [item.thread_id for item in ThreadCatalog(saver).search()] == ["other"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("thread_id", value) for value in (None, 7, b"bytes")),
        *(("created_at", value) for value in (None, math.nan, "text", [1])),
    ],
)
def test_a_search_goes_on_behind_a_thread_whose_place_is_damaged(
    field: str, value: object, mongo_store: MongoStore
) -> None:
    """Values of each type have an order of their own, and a field that is missing is in none."""
    change = {"$unset": {field: ""}} if value is None else {"$set": {field: value}}
    with mongo_store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for thread_id in ("a", "damaged", "z"):
            put(saver, {"n": 1}, thread_id=thread_id)
        mongo_store.collection.update_one({"thread_id": "damaged"}, change)
        for order in (field, "status"):
            for descending in (True, False):
                seen, cursor, is_last = set(), None, False
                while not is_last:
                    page = catalog.search(
                        sort_by=order, descending=descending, limit=1, cursor=cursor
                    )
                    seen |= {thread.thread_id for thread in page}
                    cursor = page.next_cursor
                    is_last = cursor is None
                assert seen >= {"a", "z"}


@pytest.mark.parametrize("value", [[1], Decimal128("1")])
def test_a_sweep_leaves_a_thread_alone_whose_time_is_damaged(
    value: object, mongo_store: MongoStore
) -> None:
    with mongo_store.saver(ttl=timedelta(seconds=1)) as saver:
        for thread_id in ("damaged", "other"):
            put(saver, {"n": 1}, thread_id=thread_id)
        ThreadCatalog(saver).search()
        mongo_store.be_old("updated_at")
        damaged = {"$set": {"updated_at": value}}
        mongo_store.collection.update_one({"thread_id": "damaged"}, damaged)
        assert ThreadCatalog(saver).sweep().deleted == ("other",)


NEWEST: dict[str, Call] = {
    "get_tuple": lambda saver: saver.get_tuple(config()),
    "copy_thread": lambda saver: saver.copy_thread("thread", "copy"),
    "fork": lambda saver: saver.fork("thread", new_thread_id="fork"),
}


def test_a_chunk_whose_epochs_are_damaged_is_used_again(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        head = put(saver, {"text": TEXT})
    chunks = {"epochs": {"$exists": True}}
    mongo_store.collection.update_many(chunks, {"$set": {"epochs": "damaged"}})
    with mongo_store.saver() as saver:
        put(saver, {"text": TEXT, "n": 1}, parent=head)
        assert mongo_store.problems(saver) == []


def test_a_thread_whose_newest_checkpoint_has_a_damaged_write_is_left_unlocked(
    mongo_store: MongoStore,
) -> None:
    with mongo_store.saver() as saver:
        head = put(saver, {"n": 1})
        saver.put_writes(head, [("c", 1)], "task")
        put(saver, {"n": 2}, parent=head)
        mongo_store.collection.update_one({"idx": 0}, {"$set": {"channel": 1}})
        saver.rollback("thread")
        assert (
            mongo_store.collection.count_documents({"lock": {"$ne": None}, "kind": "thread"}) == 0
        )
        put(saver, {"n": 3}, parent=head)
        assert mongo_store.problems() == []


def test_a_page_of_ids_that_are_too_long_for_an_answer_is_followed_by_another(
    mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongodb_search, "_CUT_CHARACTERS", 10)
    with mongo_store.saver() as saver:
        for name in ("first thread", "second thread"):
            put(saver, {"n": 1}, thread_id=name)
        catalog = ThreadCatalog(saver)
        page = catalog.search(sort_by="thread_id", descending=False)
        assert [thread.thread_id for thread in page.items] == ["first thread", "second thread"]
        assert page.next_cursor is None


@pytest.mark.parametrize("method", NEWEST)
def test_a_checkpoint_whose_id_is_no_text_is_named(method: str, mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        fill(saver)
    damaged = {"$set": {"checkpoint_id": ObjectId()}}
    mongo_store.collection.update_one({"kind": "checkpoint"}, damaged)
    with mongo_store.saver() as saver, pytest.raises(CorruptChunk, match="checkpoint"):
        NEWEST[method](saver)


def test_a_row_without_its_family_keeps_no_other_thread_from_what_ends_runs(
    mongo_store: MongoStore,
) -> None:
    with mongo_store.saver() as saver:
        for thread_id in ("thread", "other"):
            put(saver, {"n": 1}, thread_id=thread_id, metadata={"run_id": "run"})
        key = mongo_store.thread("thread").key
        damaged = {"$set": {"family": [1]}}
        mongo_store.collection.update_one({"kind": "checkpoint", "thread": key}, damaged)
        saver.delete_for_runs(["run"])
        assert saver.get_tuple(config("other")) is None


def test_a_thread_with_a_damaged_row_is_given_away(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        put(saver.for_owner("acme"), {"n": 1})
        receipt = {"kind": "write", "checkpoint_ns": ""}
        mongo_store.collection.update_one(receipt, {"$set": {"checkpoint_id": 5}})
        assert ThreadCatalog(saver).update("thread", owner="other").owner == "other"


def test_who_waits_for_a_lease_may_be_damaged(mongo_store: MongoStore) -> None:
    with mongo_store.saver() as saver:
        put(saver, {"n": 1})
        for queue in (5, "text", {"by": "somebody"}, [7, {"by": "somebody"}]):
            mongo_store.collection.update_one({"kind": "thread"}, {"$set": {"lease_queue": queue}})
            with ThreadCatalog(saver).run("thread", if_busy="wait"):
                assert ThreadCatalog(saver).is_busy("thread")
            assert not ThreadCatalog(saver).is_busy("thread")


def test_two_threads_of_the_same_checkpoints_show_their_own(mongo_store: MongoStore) -> None:
    with mongo_store.saver(preview=["n"]) as saver:
        first = put(saver, {"n": 1})
        put(saver, {"n": 2}, parent=first)
        saver.fork(first, new_thread_id="fork", history="path")
        page = ThreadCatalog(saver).search()
        shown = {thread.thread_id: thread.values for thread in page}
        assert shown == {"thread": {"n": 2}, "fork": {"n": 1}}


def test_what_is_shown_of_a_state_is_in_no_document_once_the_store_is_encrypted(
    mongo_store: MongoStore,
) -> None:
    """Chunks in a log say it, too, and stay for as long as a thread of the family needs them."""
    said = {"record.value_terms.0": {"$exists": True}, "kind": None}
    run = SimpleNamespace(control=object())
    with mongo_store.saver(preview=["n"]) as saver:
        for thread_id in ("thread", "fork"):
            head: Any = config(thread_id)
            for n in range(3):
                head["configurable"]["__pregel_runtime"] = run
                saver.get_tuple(head)
                head = put(saver, {"n": n, "text": f"{thread_id} {n} {TEXT}"}, parent=head)
            if thread_id == "thread":
                saver.fork("thread", new_thread_id="fork")
    assert mongo_store.collection.count_documents(said) > 1
    with mongo_store.saver(serde=key_ring(encrypted_serde(), SafeSerializer())) as saver:
        saver.rekey()
        assert mongo_store.collection.count_documents(said) == 0
        assert mongo_store.problems(saver) == []


def test_a_thread_whose_first_put_is_stopped_after_its_id_was_deleted_in_vain_stays_for_good(
    mongo_store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would have deleted the document of its name, as of one that means none."""
    saver = mongo_store.saver()
    saver.delete_thread("thread")
    bulk_write = Collection.bulk_write

    def stop(collection: Any, *args: Any, **options: Any) -> None:
        bulk_write(collection, *args, **options)  # which makes the record
        raise KeyboardInterrupt

    monkeypatch.setattr(Collection, "bulk_write", stop)
    with pytest.raises(KeyboardInterrupt):
        put(saver, {"n": 1})
    monkeypatch.undo()
    assert mongo_store.problems(saver) == []
    put(saver, {"n": 2})
    assert mongo_store.problems(saver) == []
    assert value_of(saver.get_tuple(config())) == {"n": 2}
    saver.close()


def test_a_thread_that_another_owner_deletes_in_vain_stays_for_good(
    mongo_store: MongoStore,
) -> None:
    """The server deletes by itself what an id meant whose thread is gone, but not this."""
    mine = {"$or": [{"_id": {"$regex": "^name:"}}, {"kind": "thread"}]}
    with mongo_store.saver() as saver:
        acme = saver.for_owner("acme")
        put(acme, {"n": 1})
        saver.for_owner("other").delete_thread("thread")
        assert mongo_store.problems(saver) == []
        mongo_store.collection.delete_many({**mine, "expires": {"$exists": True}})  # as it does
        with mongo_store.saver() as later:
            assert value_of(later.for_owner("acme").get_tuple(config())) == {"n": 1}
        acme.delete_thread("thread")
        assert mongo_store.collection.count_documents({**mine, "expires": {"$exists": True}}) == 2
        assert mongo_store.problems(saver) == []
