"""Names and filters that look like an operator, a path, an expression or a statement."""

from __future__ import annotations

import re
from typing import Any

from bson.objectid import ObjectId
from bson.regex import Regex

from stores import SqliteStore, Store

OPERATORS: list[Any] = [
    {"$ne": ""},
    {"$gt": ""},
    {"$in": ["thread"]},
    {"$regex": ".*"},
    {"$where": "sleep(1000)"},
    {"$expr": {"$eq": [1, 1]}},
    [{"$ne": ""}],
    Regex(".*"),
    re.compile(".*"),
    ObjectId(),
    0,
    b"thread",
]
"""What a MongoDB filter, or a query parameter of SQLite, would take for more than a name."""


WORDS = [
    "$$ROOT",
    "$$NOW",
    "$$home",
    "$thread_id",
    "$family",
    "$literal",
    "$ne",
    "$",
    "a.b",
    ".",
    "settings",
    "name:thread",
    "secret:0001",
    '{"$ne": ""}',
    "x') OR '1'='1",
    "x') UNION SELECT 1,2,3,4,5,6,7 --",
    "'; DROP TABLE forkpoint_checkpoints; --",
    "$.metadata",
    "trailing newline\n",
]
"""Names that look like more than a name, to one backend or the other."""


def words_of(store: Store) -> list[str]:
    """Return the words that look like more than a name to the backend of a store."""
    is_sql = isinstance(store, SqliteStore)
    return [word for word in WORDS if ("'" in word or "\n" in word) == is_sql or "." in word]


METADATA: list[dict[str, Any]] = [
    {"k": "v"},
    {"k": {"$ne": ""}},
    {"$where": "sleep(1000)"},
    {"$or": [{}]},
    {"metadata.$ne": 1},
    {"a.b": 1, "a": {"b": 2}},
    {"": ""},
    {"\ud800": "\udfff"},
    {"family": "f", "_id": "i", "kind": "checkpoint", "visible": True},
    {"terms": [1, 2, 3]},
    {"k": "$$ROOT"},
    {"k": "%"},
]


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({"k": {"$ne": ""}}, [1]),
    ({"k": {"$ne": "another"}}, []),
    ({"k": {"$gt": ""}}, []),
    ({"k": {"$regex": ".*"}}, []),
    ({"k": {"$exists": True}}, []),
    ({"k": {"$in": ["v"]}}, []),
    ({"k": {"$not": {"$eq": "x"}}}, []),
    ({"k": {"$where": "sleep(1000)"}}, []),
    ({"k": [{"$ne": ""}]}, []),
    ({"$where": "sleep(1000)"}, [2]),
    ({"$where": "true"}, []),
    ({"$expr": {"$eq": [1, 1]}}, []),
    ({"$or": [{}]}, [3]),
    ({"$or": []}, [3]),
    ({"$or": [{"k": "v"}]}, []),
    ({"$nor": [{"k": "x"}]}, []),
    ({"$comment": "x"}, []),
    ({"metadata.$ne": 1}, [4]),
    ({"metadata": {"$ne": 1}}, []),
    ({"metadata.k": "v"}, []),
    ({"a.b": 1}, [5]),
    ({"a.b": 2}, []),
    ({"a": {"b": 2}}, [5]),
    ({"": ""}, [6]),
    ({"\ud800": "\udfff"}, [7]),
    ({"\ud800": "\ud800"}, []),
    ({"family": "f"}, [8]),
    ({"family": {"$exists": True}}, []),
    ({"kind": "checkpoint", "visible": True}, [8]),
    ({"thread": {"$exists": True}}, []),
    ({"terms": [1]}, [9]),
    ({"terms": {"$all": [1]}}, []),
    ({"k": "$$ROOT"}, [10]),
    ({"k": "$k"}, []),
    ({"k": "v%"}, []),
    ({"k": "%"}, [11]),
    ({"k": "v' OR '1'='1"}, []),
    ({"k') OR 1=1 --": 1}, []),
    ({"$.k": "v"}, []),
    ({"$": {}}, []),
]
"""What to ask for, and which of the metadata above it matches."""
