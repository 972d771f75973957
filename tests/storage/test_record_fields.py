"""Whatever is in a field of a thread's record: a typed error, a named problem, or no harm."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pymongo
import pytest
from bson.objectid import ObjectId

from checking import config, put
from forkpoint import ForkpointError, ThreadCatalog
from forkpoint.saver.saver import ForkpointSaver
from stores import SqliteStore, Store

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
IN_EVERY_RUN = {"null": ["family", "owner", "metadata"], "a document": ["family", "thread_id"]}


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
