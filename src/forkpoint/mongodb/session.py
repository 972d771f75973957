"""MongoDB: what can be done in a store, by role."""

from __future__ import annotations

from collections.abc import Sequence

from forkpoint.errors import lost_secret
from forkpoint.mongodb.checkpoints import MongoCheckpoints
from forkpoint.mongodb.chunks import MongoChunks
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.contents import MongoContents
from forkpoint.mongodb.copies import MongoCopies
from forkpoint.mongodb.documents import Document
from forkpoint.mongodb.gc import MongoCollections
from forkpoint.mongodb.known_threads import KnownThreads
from forkpoint.mongodb.leases import MongoLeases
from forkpoint.mongodb.locks import Locks
from forkpoint.mongodb.log import Logs
from forkpoint.mongodb.lookup import Lookup
from forkpoint.mongodb.new_threads import NewThreads
from forkpoint.mongodb.records import MongoRecords
from forkpoint.mongodb.removals import MongoRemovals
from forkpoint.mongodb.search import MongoSearch
from forkpoint.mongodb.thread_documents import VISIBLE
from forkpoint.mongodb.thread_rows import ThreadRows
from forkpoint.mongodb.threads import MongoThreads
from forkpoint.mongodb.turns import Turns
from forkpoint.storage import interface


class MongoSession(interface.Session):
    """The roles of a store, and what they share. Each call is atomic by itself.

    Args:
        commands: Those of the collection.

    Attributes:
        commands: Those of the collection.
        known: Which threads ids meant.
        logs: The logs of threads.
        lookup: Looks for single checkpoints.
        new_threads: How threads are made.
        locks: The locks of threads.
        turns: What a turn has done.
    """

    threads: MongoThreads
    checkpoints: MongoCheckpoints
    chunks: MongoChunks

    def __init__(self, commands: MongoCommands) -> None:
        self.commands = commands
        self.known = known = KnownThreads(commands.budget)
        self.logs = logs = Logs(commands)
        self.turns = turns = Turns()
        self.chunks = MongoChunks(commands)
        self.lookup = Lookup(commands, logs, known, self.chunks)
        self.checkpoints = MongoCheckpoints(commands, self.lookup, turns)
        rows = ThreadRows(commands)
        self.new_threads = new_threads = NewThreads(commands)
        self.locks = locks = Locks(commands, logs, rows)
        self.threads = MongoThreads(commands, logs, known, locks, rows)
        self.records = MongoRecords(commands, logs, self.threads, new_threads)
        self.search = MongoSearch(commands, logs)
        self.leases = MongoLeases(commands, logs)
        self.copies = MongoCopies(commands, locks, new_threads, turns)
        self.removals = MongoRemovals(commands, logs, self.checkpoints, rows, locks, turns)
        self.collections = MongoCollections(commands, logs, rows, turns)
        self.secrets = MongoSecrets(commands)
        self.contents = MongoContents(commands, turns)

    def now(self) -> int:
        return self.commands.now()

    def is_spent(self) -> bool:
        return self.turns.is_spent()


class MongoSecrets(interface.Secrets):
    """Keeps the keys of digests and MACs.

    Args:
        commands: Those of the collection.
    """

    def __init__(self, commands: MongoCommands) -> None:
        self._commands = commands

    def store_key(self) -> bytes | None:
        return self._commands.store_key

    def add_store_key(self, key: bytes) -> None:
        pass  # it was made when the store was set up

    def all(self) -> list[bytes]:
        return [secret["value"] for secret in self._documents()]

    def add(self, stored: bytes, seen: Sequence[bytes]) -> None:
        # First: another one may store the first secret meanwhile, and a thread after it.
        has_threads = not seen and self._commands.exists(VISIBLE)
        documents = self._documents()
        if [secret["value"] for secret in documents] != seen:
            return
        if has_threads:
            raise lost_secret()
        # Whoever has seen the same takes the same number.
        numbers = [int(secret["_id"].removeprefix(_SECRET)) for secret in documents]
        id_ = f"{_SECRET}{max(numbers, default=0) + 1:04}"
        self._commands.insert({"_id": id_, "family": "settings", "value": stored})

    def remove(self, stored: bytes) -> None:
        self._commands.delete({**_SECRETS, "value": stored})

    def _documents(self) -> list[Document]:
        return self._commands.latest(_SECRETS, sort=[("_id", 1)])


_SECRET = "secret:"
_SECRETS = {"_id": {"$gte": _SECRET, "$lt": "secret;"}, "family": "settings"}
