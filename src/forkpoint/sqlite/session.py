"""SQLite: the roles of a connection, composed."""

from __future__ import annotations

import sqlite3

from forkpoint.clocks import StoreClock
from forkpoint.sqlite.checkpoints import SqliteCheckpoints
from forkpoint.sqlite.chunks import SqliteChunkReads, SqliteCollections
from forkpoint.sqlite.contents import SqliteContents
from forkpoint.sqlite.copies import SqliteCopies
from forkpoint.sqlite.leases import SqliteLeases
from forkpoint.sqlite.puts import Puts
from forkpoint.sqlite.records import SqliteRecords
from forkpoint.sqlite.removals import SqliteRemovals
from forkpoint.sqlite.search import SqliteSearch
from forkpoint.sqlite.search_index import SearchIndex
from forkpoint.sqlite.secrets import SqliteSecrets
from forkpoint.sqlite.statements import Statements
from forkpoint.sqlite.thread_table import ThreadTable
from forkpoint.sqlite.threads import SqliteThreads
from forkpoint.sqlite.tombstones import Tombstones
from forkpoint.storage.interface import Session


class SqliteSession(Session):
    """What can be done in the transactions of a connection, which has one at a time.

    Args:
        connection: The connection.
        patience: For how many seconds to wait for a lock; see `Statements`.
        clock: The store's time.
        tombstone_ttl: For how many microseconds it is known that a thread was deleted.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        patience: float,
        clock: StoreClock,
        tombstone_ttl: int,
    ) -> None:
        self.statements = sql = Statements(connection, patience, clock)
        table, index = ThreadTable(sql), SearchIndex(sql)
        secrets = SqliteSecrets(sql)
        tombstones = Tombstones(sql, secrets, tombstone_ttl)
        records = SqliteRecords(sql, table, tombstones, index)
        self.threads = SqliteThreads(sql, table, tombstones, index)
        self.checkpoints = SqliteCheckpoints(sql, table)
        self.records = records
        self.search = SqliteSearch(sql, index, records)
        self.leases = SqliteLeases(sql, table)
        self.copies = SqliteCopies(sql, table, tombstones)
        self.removals = SqliteRemovals(sql, table, index)
        self.chunks = SqliteChunkReads(sql)
        self.collections = SqliteCollections(sql, table)
        self.secrets = secrets
        self.contents = SqliteContents(sql)
        self.puts = Puts(sql, table, tombstones)

    def now(self) -> int:
        return self.statements.now()

    def is_spent(self) -> bool:
        return self.statements.is_spent()
