"""SQLite: reading in parts, each of which goes through an index from where the last one ended."""

from __future__ import annotations

import json
from typing import Any

from forkpoint.sqlite.rows import PLACES, THREAD_OF
from forkpoint.sqlite.statements import Statements, placeholders
from forkpoint.storage.queries import Batch, CheckpointQuery


def rows_after(
    sql: Statements, table: str, columns: str, thread: int, after: tuple[Any, ...] | None
) -> Batch[tuple[Any, ...]]:
    """Read rows of a thread, in the order of their places.

    Args:
        sql: The statements.
        table: The table.
        columns: What to read of it.
        thread: The key of the thread.
        after: The place of the last row of the part before; None for the first part.
    """
    order, first = PLACES[table]
    place = first if after is None else after
    width = len(place)
    rows = sql.rows(
        f"SELECT {columns}, {order} FROM forkpoint_{table} WHERE thread = ?"
        f" AND ({order}) > ({placeholders(place)}) ORDER BY {order} LIMIT ?",
        (thread, *place, sql.turn_rows),
    )
    sql.count_read(len(rows))
    following = rows[-1][-width:] if len(rows) == sql.turn_rows else None
    return Batch([row[:-width] for row in rows], following)


def page_statement(
    query: CheckpointQuery, columns: str, thread: int | None
) -> tuple[str, list[Any]]:
    """Return the statement that reads a page of checkpoints, and the values to bind.

    Each `SELECT` goes through one index in the order of the page, from where the page before ended,
    and stops at the limit. So a page costs the same wherever in a listing it is.

    Args:
        query: Which checkpoints.
        columns: Those of the checkpoint, joined by commas.
        thread: The key of the thread, if the query names one.
    """
    fields = [THREAD_OF] + [f"c.{name}" for name in columns.split(", ")]
    # In this order: else SQLite might go through the threads, and sort their checkpoints.
    tables = "forkpoint_checkpoints AS c CROSS JOIN forkpoint_threads AS t"
    direction = "ASC" if query.oldest_first else "DESC"
    order = [f"c.{name} {direction}" for name in query.order]
    conditions, values = _conditions(query, thread)
    parts = [
        f"SELECT {', '.join(fields)} FROM {tables} WHERE {' AND '.join([*conditions, *part])}"
        f" ORDER BY {', '.join(order)} LIMIT ?"
        for part in _parts(query)
    ]
    if len(parts) == 1:
        return f"{parts[0]} OFFSET ?", [*values, query.limit, query.offset]
    union = " UNION ALL ".join(f"SELECT * FROM ({part})" for part in parts)
    order = [f"{name} {direction}" for name in query.order]
    merged = f"SELECT * FROM ({union}) ORDER BY {', '.join(order)} LIMIT ? OFFSET ?"
    # The page may be all of one part.
    of_parts = [*values, query.limit + query.offset] * len(parts)
    return merged, [*of_parts, query.limit, query.offset]


def _parts(query: CheckpointQuery) -> list[list[str]]:
    """Return what tells the parts of a listing apart that an index has in the right order.

    A thread's checkpoints in all namespaces are in two indexes: those of the graph itself in that
    of the places, and those of subgraphs in one of their own.
    """
    if not query.is_of_all_namespaces:
        return [[]]
    return [["c.checkpoint_ns = ''"], ["c.checkpoint_ns > ''"]]


def _conditions(query: CheckpointQuery, thread: int | None) -> tuple[list[str], list[Any]]:
    conditions = ["t.key = c.thread"]
    values: list[Any] = []

    def add(condition: str, *bound: Any) -> None:
        conditions.append(condition)
        values.extend(bound)

    if thread is None:
        add("t.deleted_at IS NULL")
    if not query.with_hidden:
        add("NOT c.hidden")
    if thread is not None:
        add("c.thread = ?", thread)
    if query.checkpoint_ns is not None:
        add("c.checkpoint_ns = ?", query.checkpoint_ns)
    if query.checkpoint_id is not None:
        add("c.checkpoint_id = ?", query.checkpoint_id)
    if query.before is not None and (query.after is None or query.oldest_first):
        add("c.checkpoint_id < ?", query.before)  # else `after` is before it already
    if passed := query.passed:
        columns = ", ".join(f"c.{name}" for name in passed)
        after = ">" if query.oldest_first else "<"
        add(f"({columns}) {after} ({placeholders(passed)})", *passed.values())
    if query.owner is not None:
        add("t.owner = ?", query.owner)
    if query.filter:
        add("forkpoint_contains(c.metadata, ?)", json.dumps(query.filter))
    return conditions, values
