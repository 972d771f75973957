"""Each command goes to the shard of one family, and to a majority, whatever the client prefers.

That this holds for whatever else the tests do is checked by `MongoStore`, at its end.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import pymongo
import pytest
from bson.objectid import ObjectId
from pymongo.monitoring import CommandStartedEvent

from checking import Api, checkpoint, config, encrypted_serde, put, value_of
from commands import (
    EVERYWHERE,
    SEARCHES,
    Commands,
    Started,
    filters_of,
    untargeted,
    use_everything,
    use_the_catalog,
)
from forkpoint import SafeSerializer, ThreadCatalog
from forkpoint.langgraph_rules import INTERRUPT
from forkpoint.mongodb.saver import MongoDBSaver
from forkpoint.saver import parts_of
from stores import MongoStore

FAMILY = ObjectId()
TEXT = "a text that is long enough for a chunk " * 100
SERIALIZERS = {
    "plain": SafeSerializer(),
    "encrypting": encrypted_serde(),
}


@pytest.fixture
def store(mongo_store: MongoStore) -> MongoStore:
    return mongo_store


@pytest.mark.parametrize(
    "serializer", [pytest.param("plain", marks=pytest.mark.slow), "encrypting"]
)
@pytest.mark.in_turns
@pytest.mark.parametrize("world", ["sync", "async"])
async def test_every_command_names_the_families_that_it_is_about(
    serializer: str, world: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pymongo.MongoClient, "is_mongos", True)  # no router comes with the server
    commands = Commands()
    with store.saver(event_listeners=[commands], serde=SERIALIZERS[serializer]) as saver:
        await use_everything(Api(saver, world))
        await use_the_catalog(Api(ThreadCatalog(saver), world))

    assert [fault for sent in commands.sent for fault in untargeted(sent, is_sharded=True)] == []
    assert {"insert", "update", "delete", "find", "aggregate"} <= set(commands.names)
    pipelines = [sent.command["pipeline"] for sent in commands.sent if "pipeline" in sent.command]
    for reason, is_allowed in EVERYWHERE.items():
        assert any(is_allowed(pipeline[0]["$match"]) for pipeline in pipelines), reason
    filters = [filter_ for sent in commands.sent for filter_ in filters_of(sent)]
    for reason, searches in SEARCHES.items():
        assert any(searches(filter_) for filter_ in filters), reason


def test_no_index_forbids_sharding_by_family(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unique index would have to begin with the key by which the collection is sharded."""
    monkeypatch.setattr(pymongo.MongoClient, "is_mongos", True)
    with store.saver() as saver:
        saver.setup()
    assert not any("unique" in index for index in store.collection.index_information().values())


@pytest.mark.parametrize("is_mongos", [True, False])
def test_without_their_index_and_behind_a_router_there_are_no_logs(
    is_mongos: bool, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there were some, before the collection was sharded or restored."""
    with store.saver() as saver:
        head = put(saver, {"n": 0})
        head = put(saver, {"n": 1}, parent=head)
    assert store.collection.count_documents({"slot": {"$gt": 0}, "kind": "checkpoint"}) == 2
    store.collection.drop_index("forkpoint_log")
    monkeypatch.setattr(pymongo.MongoClient, "is_mongos", is_mongos)
    with store.saver() as saver:
        assert saver.get_tuple(config()) is not None
        for n in range(2, 5):
            head = put(saver, {"n": n}, parent=head)
        assert ThreadCatalog(saver).search().items[0].checkpoint_count == 5
    assert store.collection.count_documents({"log": {"$exists": True}, "kind": "checkpoint"}) == 2
    assert store.problems() == []


def test_what_a_replaced_write_led_to_is_not_relied_on_behind_a_router(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there are logs: what a peer knows of it may be collected at this moment."""
    monkeypatch.setattr(pymongo.MongoClient, "is_mongos", True)
    question = [{"id": str(n), "text": f"element {n} " * 40} for n in range(100)]
    with store.saver() as saver, store.saver() as peer:
        head = put(saver, {"n": 1})
        saver.put_writes(head, [(INTERRUPT, question)], "task")
        dead = [row.digest for row in store.rows("chunks")]
        with parts_of(saver).context.storage.writing() as session:
            collection = session.collections.begin(store.thread("thread").family)
        assert peer.get_tuple(head) is not None  # now it knows what the write leads to
        saver.put_writes(head, [(INTERRUPT, "another")], "task")
        put(peer, {"question": question}, parent=head)
        with parts_of(saver).context.storage.writing() as session:
            session.collections.delete_chunks(store.thread("thread").family, dead, collection)
        stored = saver.get_tuple(config())
        assert stored is not None
        assert value_of(stored) == {"question": question}


def test_a_chunk_that_another_stores_at_the_same_moment_is_met_behind_a_router(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may not find it, and then not insert it, as it is named by two fields there."""

    def appear(event: CommandStartedEvent) -> None:
        if event.command_name == "find":
            store.collection.update_many({"family": "none yet"}, {"$set": {"family": family}})

    monkeypatch.setattr(pymongo.MongoClient, "is_mongos", True)
    with store.saver() as other:
        head = put(other, {"text": TEXT})
        family = store.thread("thread").family
        with store.saver(event_listeners=[Started(appear)]) as saver:
            saver.setup()
            chunks = {"content": {"$exists": True}, "kind": None}
            store.collection.update_many(chunks, {"$set": {"family": "none yet"}})
            put(saver, {"text": TEXT, "n": 1}, parent=head)
        assert store.problems(other) == []


def test_a_question_that_waited_for_a_lock_is_in_the_status_behind_a_router(
    store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlock(event: CommandStartedEvent) -> None:
        if awaited in str(event.command):
            store.collection.update_one(locked, {"$set": {"lock": None}})

    awaited, locked = "awaited", {"kind": "thread", "lock": {"$ne": None}}
    monkeypatch.setattr(pymongo.MongoClient, "is_mongos", True)
    with store.saver(event_listeners=[Started(unlock)]) as saver:
        head = put(saver, {"n": 1})
        until = datetime.now(timezone.utc) + timedelta(minutes=1)
        lock = {"by": ObjectId(), "until": until}
        store.collection.update_one({"kind": "thread"}, {"$set": {"lock": lock}})
        saver.put_writes(head, [(INTERRUPT, "why?")], "task")
        assert store.thread("thread").status == "interrupted"
        assert store.problems(saver) == []


class Sent(NamedTuple):
    """A command as its listener sees it."""

    command_name: str
    command: Any


def update(multi: bool = False, **match: Any) -> Sent:
    return Sent("update", {"updates": [{"q": match, "u": {}, "multi": multi}]})


def aggregate(*stages: Any) -> Sent:
    return Sent("aggregate", {"pipeline": stages})


SAME = {"$match": {"$expr": {"$eq": ["$family", "$$home"]}}}
BOTH = {"$match": {"$expr": {"$and": [{"$eq": ["$n", 1]}, {"$eq": ["$family", "$$home"]}]}}}
MATCH = {"$match": {"family": FAMILY}}
ALL = {"$match": {"kind": "checkpoint", "visible": True}}


@pytest.mark.parametrize(
    ("sent", "faults"),
    [
        (Sent("insert", {"documents": [{"family": FAMILY}, {"family": "name:x"}]}), 0),
        (Sent("insert", {"documents": [{"family": FAMILY}, {"_id": 1}]}), 1),
        (update(family=FAMILY), 0),
        (update(multi=True, family={"$in": [FAMILY]}), 0),
        (update(family={"$in": [FAMILY]}), 1),
        (update(multi=True, family={"$ne": FAMILY}), 1),
        (update(_id=1), 1),
        (Sent("delete", {"deletes": [{"q": {"family": FAMILY}}, {"q": {"thread": 1}}]}), 1),
        (Sent("find", {"filter": {"family": FAMILY}}), 0),
        (Sent("find", {"filter": {"family": {"$in": [FAMILY]}}}), 0),
        (Sent("find", {"filter": {"kind": "checkpoint"}}), 1),
        (Sent("find", {}), 1),
        (aggregate(MATCH, {"$lookup": {"pipeline": [SAME]}}), 0),
        (aggregate(MATCH, {"$lookup": {"pipeline": [BOTH]}}), 0),
        (aggregate(MATCH, {"$lookup": {"pipeline": [ALL]}}), 1),
        (aggregate(MATCH, {"$lookup": {"pipeline": [SAME, {"$lookup": {"pipeline": [{}]}}]}}), 1),
        (aggregate(MATCH, {"$graphLookup": {"restrictSearchWithMatch": {"family": FAMILY}}}), 0),
        (aggregate(MATCH, {"$graphLookup": {}}), 1),
        (aggregate(MATCH, {"$unionWith": {"pipeline": [MATCH]}}), 0),
        (aggregate(MATCH, {"$unionWith": {"pipeline": [ALL]}}), 1),
        (aggregate({"$sort": {"_id": 1}}), 1),
        (aggregate(ALL), 0),
        (aggregate(ALL, {"$lookup": {"pipeline": [ALL]}}), 1),
        (aggregate({"$match": {"run_id": {"$in": ["run"]}}}), 0),
        (Sent("getMore", {}), 0),
        (Sent("createIndexes", {}), 0),
    ],
)
def test_a_command_that_does_not_name_the_family_is_noticed(sent: Any, faults: int) -> None:
    assert len(list(untargeted(sent, is_sharded=True))) == faults


STORED = {"$setOnInsert": {"family": FAMILY, "content": b""}}


@pytest.mark.parametrize(
    ("statement", "faults"),
    [
        ({"q": {"_id": b"1"}, "u": {"family": FAMILY, "content": b""}, "upsert": True}, 0),
        ({"q": {"_id": b"1"}, "u": STORED, "upsert": True}, 0),
        ({"q": {"_id": b"1"}, "u": STORED}, 1),
        ({"q": {"_id": b"1"}, "u": {"$set": {"family": FAMILY}}, "upsert": True}, 0),
        ({"q": {"_id": b"1"}, "u": {"$set": {"next": {}}}, "upsert": True}, 1),
        ({"q": {"_id": b"1"}, "u": {"content": b""}, "upsert": True}, 1),
        ({"q": {"_id": b"1", "next": 1}, "u": STORED, "upsert": True}, 1),
    ],
)
def test_without_shards_a_document_that_says_its_family_may_be_stored_by_its_id(
    statement: dict[str, Any], faults: int
) -> None:
    sent: Any = Sent("update", {"updates": [statement]})
    assert len(list(untargeted(sent))) == faults
    assert len(list(untargeted(sent, is_sharded=True))) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"w": 0, "readPreference": "secondaryPreferred", "readConcernLevel": "available"},
        {
            "w": 1,
            "journal": False,
            "readConcernLevel": "linearizable",
            "retryWrites": False,
            "retryReads": False,
        },
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {},
                {"w": 0},
                {"w": 1, "journal": False},
                {"readPreference": "secondaryPreferred"},
                {"readConcernLevel": "available"},
                {"readConcernLevel": "linearizable"},
                {"retryWrites": False, "retryReads": False},
            )
        ),
    ],
    ids=repr,
)
async def test_nothing_is_left_to_what_the_client_prefers(
    options: dict[str, Any], store: MongoStore
) -> None:
    commands = Commands()
    with pymongo.MongoClient[Any](store.uri, event_listeners=[commands], **options) as client:
        await use_everything(Api(MongoDBSaver(client, db_name=store.name), "sync"))

    for sent in commands.sent:
        if sent.command_name in ("insert", "update", "delete"):
            concern = sent.command["writeConcern"]
            assert (concern["w"], concern["j"]) == ("majority", True)
            assert concern["wtimeout"] > 0  # and not forever, if there is no majority
        elif sent.command_name in ("find", "aggregate"):
            assert sent.command["readConcern"]["level"] in ("snapshot", "majority", "local")
            assert sent.command.get("$readPreference", {"mode": "primary"}) == {"mode": "primary"}
    assert store.count("checkpoints") == 2
    assert store.problems() == []


def test_how_long_the_client_waits_for_a_majority_is_kept(store: MongoStore) -> None:
    commands = Commands()
    with pymongo.MongoClient[Any](
        store.uri, event_listeners=[commands], wtimeoutMS=12_345
    ) as client:
        MongoDBSaver(client, db_name=store.name).put(config(), checkpoint({}), {}, {})
    *_, put = [sent.command for sent in commands.sent if sent.command_name == "update"]
    assert put["writeConcern"]["wtimeout"] == 12_345
