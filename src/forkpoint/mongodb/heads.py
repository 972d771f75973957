"""MongoDB: what the newest checkpoints of threads wait for, and what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence

from forkpoint.mongodb.commands import in_batches
from forkpoint.mongodb.copies import MongoCopying
from forkpoint.mongodb.documents import write_row
from forkpoint.storage.plan import HEAD_ROWS
from forkpoint.storage.receipts import WRITES
from forkpoint.storage.rows import ThreadRow, WriteRow

_THREADS = 1000  # of which rows are read at once


class MongoHeads(MongoCopying):
    """The primitive of `forkpoint.storage.interface.Session` that looks at the heads of threads."""

    def with_heads(self, rows: Sequence[ThreadRow | None]) -> list[ThreadRow | None]:
        # Where the record says that there is nothing to be seen, nothing is read.
        looked_at = [row for row in rows if row is not None and row.shown_at]
        at = {(row.thread.key, row.shown_at) for row in looked_at}
        heads: dict[object, list[WriteRow]] = {}
        for batch in in_batches(looked_at, _THREADS):
            found = self._records.find(
                {
                    "family": {"$in": list({row.thread.family for row in batch})},
                    "thread": {"$in": [row.thread.key for row in batch]},
                    "checkpoint_ns": "",
                    "kind": "write",
                    "checkpoint_id": {"$in": list({row.shown_at for row in batch})},
                    "$or": [{"idx": {"$in": list(HEAD_ROWS)}}, {"idx": {"$lte": WRITES}}],
                    "visible": True,
                }
            )
            for write in found:
                if (write["thread"], write["checkpoint_id"]) in at:
                    heads.setdefault(write["thread"], []).append(write_row(write))
        return [row and row._replace(head=heads.get(row.thread.key, ())) for row in rows]
