"""Whatever is in a field of a thread's record: a typed error, a named problem, or no harm."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson.objectid import ObjectId

from checking import config, put
from forkpoint import ForkpointError, SqliteSaver, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from stores import MongoStore, SqliteStore, Store

MISSING = object()
VALUES = {
    "null": None,
    "a number": 7,
    "text": "text",
    "bytes": b"\xff",
    "a list": [1, None],
    "a document": {"a": None},
    "an id": ObjectId("0" * 24),
    "missing": MISSING,
}
IN_EVERY_RUN = {
    "null": ["family", "owner", "metadata"],
    "a document": ["family", "thread_id"],
    "an id": ["label"],
    "text": ["created_at"],
    "missing": ["thread_id", "edge", "deleted_at"],
}


@pytest.mark.on_each_backend
def test_a_record_with_a_damaged_field_is_named(store: Store) -> None:
    check_fields(store, IN_EVERY_RUN)


@pytest.mark.slow
@pytest.mark.on_each_backend
@pytest.mark.parametrize("kind", VALUES)
def test_each_field_may_be_of_any_type(store: Store, kind: str) -> None:
    check_fields(store, {kind: None})


def check_fields(store: Store, kinds: dict[str, list[str] | None]) -> None:
    with store.saver() as saver:
        put(saver, {"n": 1}, thread_id="other")
        head = put(saver, {"n": 1}, thread_id="damaged")
        saver.put_writes(head, [("c", 1)], "task")
        saver.fork("damaged", new_thread_id="fork")
        ThreadCatalog(saver).search()
        key = store.thread("damaged").key
        record = store.stored("threads")[key]
        failures = []
        for kind, fields in kinds.items():
            for field in fields or record:
                if not damage(store, key, record, field, VALUES[kind]):
                    continue
                with store.saver() as reader:
                    failures += [(kind, field, *failure) for failure in read_all(reader)]
                    is_known = kind == "an id"  # another family: as if there was no such thread
                    if field == "family" and not isinstance(store, SqliteStore) and not is_known:
                        problems = reader.check().problems
                        assert "record" in {problem.kind for problem in problems}, kind
                store.put_back("threads", key, record)
        assert failures == []
        assert saver.check().is_clean


def read_all(saver: ForkpointSaver) -> list[tuple[str, str]]:
    """Read in all ways, and return what was raised that is of no type of ours."""
    catalog = ThreadCatalog(saver)
    calls: dict[str, Callable[[], Any]] = {
        "get_tuple": lambda: saver.get_tuple(config("damaged")),
        "list": lambda: list(saver.list(config("damaged"))),
        "list all": lambda: list(saver.list(None)),
        "history": lambda: list(saver.history("damaged")),
        "lineage": lambda: saver.lineage("fork"),
        "family": lambda: saver.family("fork"),
        "get": lambda: catalog.get("damaged"),
        "search": lambda: catalog.search(),
        "count": lambda: catalog.count(),
        "stats": lambda: catalog.stats("damaged"),
        "is_busy": lambda: catalog.is_busy("damaged"),
    }
    failures = []
    for name, call in calls.items():
        try:
            call()
        except ForkpointError:
            pass
        except Exception as error:  # noqa: BLE001 - it is shown by the test
            failures.append((name, repr(error)))
    saver.check()  # says what is damaged, and never fails
    saver.repair(dry_run=True)
    assert saver.get_tuple(config("other")) is not None
    return failures


def damage(store: Store, key: Any, record: dict[str, Any], field: str, value: Any) -> bool:
    """Change a field, and return whether the database lets it be of this type."""
    if isinstance(store, SqliteStore):
        try:
            store.change("threads", key, **{field: value})
        except sqlite3.Error:
            return False
    else:
        fields = {name: record[name] for name in record if name != field}
        try:
            store.put_back("threads", key, fields if value is MISSING else {**fields, field: value})
        except pymongo.errors.WriteError:  # two lists that one index has
            return False
    return True


def damaged_calls(store: Store) -> list[str]:
    """Return what is raised by a look, a lease and a removal in a store with a damaged field."""
    errors = []
    with store.saver() as saver:
        catalog = ThreadCatalog(saver)
        for call in (catalog.is_busy, lambda id_: catalog.run(id_).__enter__(), saver.purge):
            try:
                call("damaged")
            except ForkpointError as error:
                errors.append(type(error).__name__)
    return errors


SQLITE_FIELDS = [
    "UPDATE forkpoint_settings SET value = 'x' WHERE name = 'schema_version'",
    "UPDATE forkpoint_threads SET lease_until = 'x'",
    "UPDATE forkpoint_threads SET lease_until = 4611686018427387904, lease_since = 1",
    "UPDATE forkpoint_threads SET lease_queue = 'x'",
    "UPDATE forkpoint_threads SET value_terms = 'x', listed_at = 1",
    "UPDATE forkpoint_writes SET content = 7",
]


@pytest.mark.parametrize("statement", SQLITE_FIELDS)
def test_what_belongs_to_no_description_may_be_of_any_type_on_sqlite(
    tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "a.db"
    with SqliteSaver(path, preview=["n"]) as saver:
        put(saver, {"n": 1}, thread_id="damaged")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(statement).rowcount
    assert set(damaged_calls(SqliteStore(path))) <= {"CorruptChunk"}


MONGODB_FIELDS = [
    ({"_id": "settings"}, {"schema_version": "x"}),
    ({"_id": "store_key"}, {"value": None}),
    ({"_id": "store_key"}, {"family": "x"}),
    ({"_id": "settings"}, {"family": "x"}),
]


@pytest.mark.parametrize(("which", "change"), MONGODB_FIELDS)
def test_a_damaged_setting_is_named_on_mongodb(
    mongo_store: MongoStore, which: dict[str, Any], change: dict[str, Any]
) -> None:
    with mongo_store.saver() as saver:
        put(saver, {"n": 1}, thread_id="damaged")
    with pymongo.MongoClient[Any](mongo_store.uri) as client:
        collection = client[mongo_store.name]["forkpoint_store"]
        assert collection.update_one(which, {"$set": change}).matched_count
        assert damaged_calls(mongo_store) == ["CorruptChunk"] * 3
