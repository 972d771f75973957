"""SQLite: the checkpoints of threads and their writes, as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from forkpoint.encoding.hashing import UNBOUND
from forkpoint.errors import lost_checkpoint
from forkpoint.langgraph_rules import NULL_TASK_ID
from forkpoint.sqlite.metadata import unpacked
from forkpoint.sqlite.rows import (
    AT_PLACE,
    DESCRIPTION,
    READ_CHECKPOINT,
    READ_WRITE,
    THREAD_COLUMNS,
    THREAD_OF,
    checkpoint_row,
    description,
    read_checkpoint,
    rows_after,
    write_row,
)
from forkpoint.sqlite.statements import BATCH, Statements, placeholders
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.storage.interface import Checkpoints
from forkpoint.storage.plan import Place
from forkpoint.storage.queries import Batch, CheckpointQuery, Span, in_order, span_of
from forkpoint.storage.receipts import RECEIPT
from forkpoint.storage.rows import (
    CheckpointRow,
    Moment,
    StoredCheckpoint,
    ThreadRef,
    Usage,
    WriteRow,
)
from forkpoint.storage.shared import ancestors_of, batches

_CHECKPOINTS = f"SELECT {READ_CHECKPOINT} FROM forkpoint_checkpoints"
_WRITES = f"SELECT {READ_WRITE} FROM forkpoint_writes"
_OF_LIVING_THREAD = "t.thread_id = ? AND t.deleted_at IS NULL AND t.owner IS coalesce(?, t.owner)"
_NEWEST_WITH_THREAD, _ONE_WITH_THREAD = (
    f"SELECT {THREAD_OF}, t.metadata, {read_checkpoint('c')}"
    " FROM forkpoint_threads AS t JOIN forkpoint_checkpoints AS c ON c.thread = t.key"
    f" WHERE {_OF_LIVING_THREAD} AND c.checkpoint_ns = ? AND NOT c.hidden" + end
    for end in (" ORDER BY c.checkpoint_id DESC LIMIT 1", " AND c.checkpoint_id = ?")
)
_WRITES_AT = f"{_WRITES} {AT_PLACE}"
_WRITES_FROM = f"{_WRITES} WHERE thread = ? AND checkpoint_ns = ? AND checkpoint_id >= ?"
_ANY_RECEIPT, _ONE_RECEIPT = (
    "SELECT w.checkpoint_id FROM forkpoint_threads AS t JOIN forkpoint_writes AS w"
    f" ON w.thread = t.key WHERE {_OF_LIVING_THREAD} AND w.checkpoint_ns = ?{at}"
    f" AND w.task_id = '{NULL_TASK_ID}' AND w.idx = {RECEIPT} LIMIT 1"
    for at in ("", " AND w.checkpoint_id = ?")
)
_CALLS_SINCE = (
    "forkpoint_checkpoints INDEXED BY forkpoint_checkpoints_nested"
    " WHERE thread = :thread AND checkpoint_ns > '' AND checkpoint_id > states.head"
    " AND checkpoint_ns > states.ns || '|' AND checkpoint_ns < states.ns || '}'"
)
"""What the subgraphs in one of the `states` have stored since its newest checkpoint."""
# It goes from one namespace to the next through the index, however much there is in each. Those
# with the ids of tasks in them, which have a colon, are as many as there were calls: it goes past
# all that begin alike, and what of them is newer than the checkpoint is in another index. There is
# also what is newer than a subgraph around them that keeps its state, if a step of that was begun
# and did not end: it has writes, or calls from before the graph itself went on.
_SUBGRAPH_HEADS = (
    "WITH RECURSIVE namespaces (ns) AS ("
    " SELECT min(checkpoint_ns) FROM forkpoint_checkpoints"
    " WHERE thread = :thread AND checkpoint_ns > ''"
    " UNION ALL SELECT (SELECT min(checkpoint_ns) FROM forkpoint_checkpoints"
    " WHERE thread = :thread AND checkpoint_ns >"
    " CASE instr(ns, ':') WHEN 0 THEN ns"
    " ELSE substr(ns, 1, instr(ns, ':')) || char(0x10ffff) END)"
    " FROM namespaces WHERE ns IS NOT NULL"
    "), states (ns, head) AS ("
    " SELECT ns, (SELECT max(checkpoint_id) FROM forkpoint_checkpoints"
    " WHERE thread = :thread AND checkpoint_ns = ns AND NOT hidden)"
    " FROM namespaces WHERE instr(ns, ':') = 0"
    "), heads (ns, head) AS ("
    " SELECT ns, head FROM states"
    " UNION SELECT ns, (SELECT max(checkpoint_id) FROM forkpoint_checkpoints"
    " WHERE thread = :thread AND checkpoint_ns = ns AND checkpoint_id < :before"
    " AND NOT hidden) FROM namespaces WHERE instr(ns, ':') = 0"
    " UNION SELECT checkpoint_ns, max(checkpoint_id) FROM forkpoint_checkpoints"
    " INDEXED BY forkpoint_checkpoints_nested"
    " WHERE :is_head AND thread = :thread AND checkpoint_ns > '' AND checkpoint_id > :head"
    " AND NOT hidden GROUP BY checkpoint_ns"
    f" UNION SELECT checkpoint_ns, max(checkpoint_id) FROM states CROSS JOIN {_CALLS_SINCE}"
    " AND checkpoint_id < :head AND NOT hidden AND :is_head"
    f" AND (EXISTS (SELECT 1 FROM forkpoint_writes WHERE thread = :thread AND idx > {RECEIPT}"
    " AND checkpoint_ns = states.ns AND checkpoint_id = states.head)"
    f" OR EXISTS (SELECT 1 FROM {_CALLS_SINCE} AND checkpoint_id <"
    " (SELECT min(checkpoint_id) FROM forkpoint_checkpoints"
    " WHERE thread = :thread AND checkpoint_ns = '' AND checkpoint_id > states.head)))"
    " GROUP BY checkpoint_ns"
    f") SELECT {READ_CHECKPOINT} FROM heads JOIN forkpoint_checkpoints"
    " ON thread = :thread AND checkpoint_ns = ns AND checkpoint_id = head"
)
# A checkpoint without its refs and its content.
_OUTLINE = (
    "checkpoint_ns, checkpoint_id, parent_checkpoint_id, run_id,"
    f" {unpacked()}, x'', x'', x'', hidden"
)
_USAGE = {
    "checkpoints": (
        "NOT hidden, run_id, length(metadata) + length(refs) + length(content) + length(checksum)"
    ),
    "writes": f"idx > {RECEIPT}, NULL, length(refs) + length(content) + length(checksum)",
}
"""Whether a row counts, the run that made it, and its size."""


class SqliteCheckpoints(Checkpoints):
    """The role `Checkpoints`."""

    def __init__(self, sql: Statements, table: ThreadTable) -> None:
        self._sql = sql
        self._table = table

    def get(
        self,
        thread_id: str,
        checkpoint_ns: str,
        checkpoint_id: str | None,
        owner: str | None = None,
        *,
        with_chunks: bool = False,
    ) -> StoredCheckpoint | None:
        at: tuple[str | None, ...] = (thread_id, owner, checkpoint_ns)
        select, receipt = _NEWEST_WITH_THREAD, _ANY_RECEIPT
        if checkpoint_id is not None:
            at, select, receipt = (*at, checkpoint_id), _ONE_WITH_THREAD, _ONE_RECEIPT
        row = self._sql.row(select, at)
        if row is None:
            lost = self._sql.row(receipt, at)
            if lost is not None:
                raise lost_checkpoint(thread_id, checkpoint_ns, lost[0])
            return None
        *fields, metadata = row[: THREAD_COLUMNS + 1]
        thread, checkpoint = ThreadRef(*fields), checkpoint_row(row[THREAD_COLUMNS + 1 :])
        id_ = checkpoint.checkpoint_id
        statement = _WRITES_FROM if checkpoint_id is None else _WRITES_AT
        rows = self._sql.rows(statement, (thread.key, checkpoint_ns, id_))
        writes = [write_row(write) for write in rows]
        later = [write for write in writes if write.checkpoint_id != id_]
        if later:
            for write in later:
                if write.idx == RECEIPT:
                    raise lost_checkpoint(thread_id, checkpoint_ns, write.checkpoint_id)
            writes = [write for write in writes if write.checkpoint_id == id_]
        return StoredCheckpoint(thread_id, thread, checkpoint, writes, metadata)

    def page(self, query: CheckpointQuery) -> list[StoredCheckpoint]:
        thread: ThreadRef | None = None
        if query.thread_id is not None:
            thread = self._table.find(query.thread_id)
            if thread is None:
                return []
        sql, values = _page_statement(query, thread.key if thread else None)
        page = [
            StoredCheckpoint(
                row[4], ThreadRef(*row[:THREAD_COLUMNS]), checkpoint_row(row[THREAD_COLUMNS:]), []
            )
            for row in self._sql.rows(sql, values)
        ]
        span = span_of(query, page)
        if span is None:
            self._add_writes(page)
            return page
        writes = self._writes_in(span, page[0])
        by_id = {stored.row.checkpoint_id: stored for stored in page}
        for write in writes:
            if write.checkpoint_id in by_id:
                by_id[write.checkpoint_id].writes.append(write)
        return in_order(query, page + span.lost(page, writes))

    def _writes_in(self, span: Span, first: StoredCheckpoint) -> list[WriteRow]:
        """Return the writes of all checkpoints of a span, in the namespace of the first one."""
        at = (first.thread.key, first.row.checkpoint_ns, span.low)
        if span.high:
            rows = self._sql.rows(f"{_WRITES_FROM} AND checkpoint_id <= ?", (*at, span.high))
        else:
            rows = self._sql.rows(_WRITES_FROM, at)
        return [write_row(row) for row in rows]

    def _add_writes(self, page: list[StoredCheckpoint]) -> None:
        by_place = {
            (stored.thread.key, stored.row.checkpoint_ns, stored.row.checkpoint_id): stored
            for stored in page
        }
        if not by_place:
            return
        columns = ", ".join(f"w.{column}" for column in READ_WRITE.split(", "))
        rows = self._sql.rows(
            f"WITH places (thread, checkpoint_ns, checkpoint_id) AS"
            f" (VALUES {', '.join(['(?, ?, ?)'] * len(by_place))})"
            f" SELECT w.thread, {columns} FROM places JOIN forkpoint_writes AS w"
            " USING (thread, checkpoint_ns, checkpoint_id)",
            [value for place in by_place for value in place],
        )
        for key, *row in rows:
            write = write_row(row)
            by_place[key, write.checkpoint_ns, write.checkpoint_id].writes.append(write)

    def all(self, thread: ThreadRef) -> Iterator[CheckpointRow]:
        for row in self._sql.run(f"{_CHECKPOINTS} WHERE thread = ?", (thread.key,)):
            yield checkpoint_row(row)

    def ancestors(
        self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str
    ) -> Iterator[CheckpointRow]:
        def stored(id_: str) -> CheckpointRow | None:
            row = self._sql.row(f"{_CHECKPOINTS} {AT_PLACE}", (thread.key, checkpoint_ns, id_))
            return None if row is None else checkpoint_row(row)

        return ancestors_of(stored, checkpoint_id)

    def channel_writes(
        self,
        thread: ThreadRef,
        checkpoint_ns: str,
        checkpoint_ids: Sequence[str],
        channels: Sequence[str],
    ) -> list[WriteRow]:
        rows: list[tuple[Any, ...]] = []
        for batch in batches(checkpoint_ids, BATCH):
            rows += self._sql.rows(
                f"{_WRITES} WHERE thread = ? AND checkpoint_ns = ?"
                f" AND checkpoint_id IN ({placeholders(batch)})"
                f" AND channel IN ({placeholders(channels)})",
                (thread.key, checkpoint_ns, *batch, *channels),
            )
        return [write_row(row) for row in rows]

    def moment(self, thread: ThreadRef, checkpoint_id: str, before: str) -> Moment:
        newer = self._sql.row(
            "SELECT 1 FROM forkpoint_checkpoints WHERE thread = ? AND checkpoint_ns = ''"
            " AND checkpoint_id > ? AND NOT hidden",
            (thread.key, checkpoint_id),
        )
        heads = self._sql.rows(
            _SUBGRAPH_HEADS,
            {
                "thread": thread.key,
                "before": before,
                "head": checkpoint_id,
                "is_head": newer is None,
            },
        )
        record = self._sql.row(
            f"SELECT checksums, {DESCRIPTION} FROM forkpoint_threads WHERE key = ?", (thread.key,)
        )
        assert record is not None
        checksums, *described = record
        rows = [checkpoint_row(row) for row in heads]
        return Moment(newer is None, rows, description(described), checksums, None)

    def writes(self, thread: ThreadRef, places: Sequence[Place]) -> list[WriteRow]:
        writes: list[WriteRow] = []
        for place in places:
            writes += [write_row(row) for row in self._sql.rows(_WRITES_AT, (thread.key, *place))]
        return writes

    def batch(
        self, thread: ThreadRef, after: Any = None, *, with_content: bool
    ) -> Batch[CheckpointRow]:
        columns = READ_CHECKPOINT if with_content else _OUTLINE
        part = rows_after(self._sql, "checkpoints", columns, thread.key, after)
        make_row = checkpoint_row if with_content else _outline_row
        return Batch([make_row(row) for row in part.items], part.after)

    def since(self, thread: ThreadRef, checkpoint_id: str) -> list[CheckpointRow]:
        rows: list[tuple[Any, ...]] = []
        for namespaces in ("checkpoint_ns = ''", "checkpoint_ns > ''"):
            rows += self._sql.rows(
                f"SELECT {_OUTLINE} FROM forkpoint_checkpoints WHERE thread = ? AND {namespaces}"
                " AND checkpoint_id >= ? AND NOT hidden",
                (thread.key, checkpoint_id),
            )
        return [_outline_row(row) for row in rows]

    def older(self, thread: ThreadRef, checkpoint_id: str, limit: int) -> list[str]:
        rows = self._sql.rows(
            "SELECT checkpoint_id FROM forkpoint_checkpoints"
            " WHERE thread = ? AND checkpoint_ns = '' AND checkpoint_id < ? AND NOT hidden"
            " ORDER BY checkpoint_id DESC LIMIT ?",
            (thread.key, checkpoint_id, limit),
        )
        return [id_ for (id_,) in rows]

    def stored_under(self, thread: ThreadRef, fences: range) -> list[Place]:
        return self._sql.rows(
            "SELECT checkpoint_ns, checkpoint_id FROM forkpoint_checkpoints"
            " WHERE thread = ? AND fence >= ? AND fence < ?",
            (thread.key, fences.start, fences.stop),
        )

    def usage(self, thread: ThreadRef, after: Any = None) -> Batch[Usage]:
        table, place = after or ("checkpoints", None)
        part = rows_after(self._sql, table, _USAGE[table], thread.key, place)
        rows = list(part.items)
        following: Any = None if part.after is None else (table, part.after)
        number, size = sum(row[0] for row in rows), sum(row[2] for row in rows)
        if table == "writes":
            return Batch([Usage(0, number, frozenset(), size)], following)
        runs = frozenset(row[1] for row in rows if row[1] is not None)
        return Batch([Usage(number, 0, runs, size)], following or ("writes", None))


def _outline_row(values: Sequence[Any]) -> CheckpointRow:
    """Return as much of a checkpoint as a choice may depend on."""
    return checkpoint_row([*values, 0, UNBOUND])


def _page_statement(query: CheckpointQuery, thread: int | None) -> tuple[str, list[Any]]:
    """Return the statement that reads a page of checkpoints, and the values to bind.

    Each `SELECT` goes through one index in the order of the page, from where the page before ended,
    and stops at the limit. So a page costs the same wherever in a listing it is.

    Args:
        query: Which checkpoints.
        thread: The key of the thread, if the query names one.
    """
    columns = f"{THREAD_OF}, {read_checkpoint('c')}"
    direction = "ASC" if query.oldest_first else "DESC"
    order = [f"c.{name} {direction}" for name in query.order]
    conditions, values = _conditions(query, thread)
    parts = [
        # In this order: else SQLite might go through the threads, and sort their checkpoints.
        f"SELECT {columns} FROM forkpoint_checkpoints AS c{index} CROSS JOIN forkpoint_threads AS t"
        f" WHERE {' AND '.join([*conditions, *part])} ORDER BY {', '.join(order)} LIMIT ?"
        for index, *part in _parts(query)
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
    of the places, and those of subgraphs in one of their own. SQLite would take the first for both,
    and sort.

    Returns:
        For each part, which index to take, if that has to be said, and the conditions.
    """
    if not query.is_of_all_namespaces:
        return [[""]]
    nested = " INDEXED BY forkpoint_checkpoints_nested"
    return [["", "c.checkpoint_ns = ''"], [nested, "c.checkpoint_ns > ''"]]


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
        add(f"forkpoint_contains({unpacked('c')}, ?)", json.dumps(query.filter))
    return conditions, values
