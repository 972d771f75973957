"""SQLite: what the newest checkpoints of threads wait for, and what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence

from forkpoint.sqlite.copies import SqliteCopying
from forkpoint.sqlite.rows import HEAD_OF, READ_WRITE, write_row
from forkpoint.sqlite.statements import batches, marks
from forkpoint.storage.plan import HEAD_ROWS
from forkpoint.storage.receipts import WRITES
from forkpoint.storage.rows import ThreadRow, WriteRow

_COLUMNS = ", ".join(f"w.{column}" for column in READ_WRITE.split(", "))
_HEADS = (
    f"SELECT w.thread, {_COLUMNS} FROM forkpoint_threads AS t JOIN forkpoint_writes AS w"
    " ON w.thread = t.key AND w.checkpoint_ns = ''"
    f" AND w.checkpoint_id = {HEAD_OF.format(thread='t.key')}"
    f" WHERE (w.idx IN {HEAD_ROWS} OR w.idx <= {WRITES}) AND t.key IN "
)


class SqliteHeads(SqliteCopying):
    """The primitive of `forkpoint.storage.interface.Session` that looks at the heads of threads."""

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        heads: dict[int, list[WriteRow]] = {}
        for batch in batches([row.thread.key for row in rows if row is not None]):
            for key, *values in self.all(f"{_HEADS} ({marks(batch)})", *batch):
                heads.setdefault(key, []).append(write_row(values))
        return [row and row._replace(head=heads.get(row.thread.key, ())) for row in rows]
