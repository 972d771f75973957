"""MongoDB: what tells whether a store is the one that it was, or another, or went back.

What a process remembers of a store is valid for as long as the store goes on. It may not:

- The collection, or its database, was dropped, and made again from a backup, or by somebody else.
  The server gives each collection another UUID, and refuses a command that names the one before.
- The server was started again on other data: an older copy of its own, or none. Then it is another
  process, which the driver learns before it sends anything. It is another one too where a member of
  a replica set took over, or where nothing happened to the data. Nobody can tell, so what was
  remembered is forgotten.

What is not noticed:

- Documents that are removed from a collection that stays, until a command names one of them. Each
  run begins by a look for its thread; without a run, each put with chunks names it.
- Another process behind a router of shards or a load balancer: there only the UUID is compared.
- Another UUID, with a server before 6.0, with a client that uses the strict Stable API, and with a
  user who may not list collections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson.objectid import ObjectId
from pymongo.collection import Collection
from pymongo.errors import OperationFailure
from pymongo.topology_description import TopologyDescription

UUID_DIFFERS = 361
"""The code of the server's error where a collection has not the UUID that a command names."""

_REFUSED = {
    13,  # Unauthorized: the user may not list collections
    323,  # APIStrictError
    40415,  # an unknown field: a server before 6.0
    59,  # CommandNotFound, of what is not MongoDB
    8000,  # Atlas's own, for what it does not allow
}


class Identity:
    """Tells whether a collection is the same as when `look` was called.

    Args:
        collection: The collection.
    """

    def __init__(self, collection: Collection[Any]) -> None:
        self._collection = collection
        self._client = collection.database.client
        self._seen: tuple[object, ObjectId | None] = (None, None)
        """What the driver knew of the servers last, and the primary's process by that."""
        self._is_lost = False
        self._process: ObjectId | None = None
        self.uuid_option: Mapping[str, Any] = {}
        """What a command says to be refused if it is another one, where the server compares it."""

    def look(self) -> None:
        """Remember which store it is. Nothing may be remembered of it before that.

        Raises:
            PyMongoError: The server cannot be asked.
        """
        self._process = self._present_process()
        database = self._collection.database
        name = self._collection.name
        try:
            (listed,) = database.list_collections(filter={"name": name})
            uuid = listed["info"]["uuid"]
            self._ask(uuid)
        except OperationFailure as error:
            if error.code not in _REFUSED:
                raise
        except (ValueError, KeyError):  # it was dropped again, or is no collection of its own
            self._is_lost = True
        else:
            self.uuid_option = {"collectionUUID": uuid}

    def ask(self) -> None:
        """Ask the server whether it is the same collection, where it can tell.

        Raises:
            PyMongoError: The server cannot be asked.
        """
        if self.uuid_option:
            try:
                self._ask(self.uuid_option["collectionUUID"])
            except OperationFailure as error:
                if error.code != UUID_DIFFERS:
                    raise
                self._is_lost = True

    def _ask(self, uuid: Any) -> None:
        settings = {"$match": {"_id": "settings", "family": "settings"}}
        # By a pipeline: what takes it there takes it in the other commands, too.
        command = {"aggregate": self._collection.name, "pipeline": [settings], "cursor": {}}
        local = {"readConcern": {"level": "local"}}
        self._collection.database.command({**command, **local, "collectionUUID": uuid})

    def lose(self) -> None:
        """Note that the store turned out to be another one."""
        self._is_lost = True

    @property
    def may_be_same(self) -> bool:
        """Whether the store is the same as far as is known, without asking the server."""
        if self._is_lost:
            return False
        process = self._present_process()
        return process is None or process == self._process

    @property
    def is_same_store(self) -> bool:
        """Whether the last command was answered by the same store."""
        return not self._is_lost and self._present_process() == self._process

    def _present_process(self) -> ObjectId | None:
        """Return the id of the primary's process; None if it is not known."""
        topology = self._client.topology_description
        known, process = self._seen
        if topology is not known:  # as seldom as the driver learns something: each put asks twice
            process = self._process_in(topology)
            self._seen = topology, process
        return process

    def _process_in(self, topology: TopologyDescription) -> ObjectId | None:
        if topology.topology_type_name in ("Sharded", "LoadBalanced"):
            return None
        for server in topology.server_descriptions().values():
            if server.is_writable and server.topology_version is not None:
                process: ObjectId = server.topology_version["processId"]
                return process
        return None
