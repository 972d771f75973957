"""MongoDB: a put, from the request to the row that is stored.

A put is prepared for what is known of its thread, and sent with others in one bulk. Where the
thread turns out to be another, or to have changed, it is looked at, and the put is prepared again.
"""

from __future__ import annotations

from bson.objectid import ObjectId

from forkpoint.encoding.hashing import IDENTITY_BYTES
from forkpoint.errors import StaleLease, StorageBusy, stale_lease
from forkpoint.mongodb.documents import Document, chunks_of, record_of, row_id, rows_of
from forkpoint.mongodb.new_threads import is_unfinished
from forkpoint.mongodb.put_batch import Attempt, Relays
from forkpoint.mongodb.put_size import checked_size
from forkpoint.mongodb.put_statements import Creation, Preparation, creation_of_record, row_ids
from forkpoint.mongodb.session import MongoSession
from forkpoint.mongodb.tail import Tail, is_newest
from forkpoint.mongodb.thread_documents import checked_name
from forkpoint.mongodb.tombstones import deletions_of, raise_watermark, watermark_of
from forkpoint.runtime.steps import Steps
from forkpoint.storage.interface import HistoryChanged, Stale
from forkpoint.storage.retry import attempts
from forkpoint.storage.rows import PutRequest, ThreadRef
from forkpoint.storage.shared import Admission, admission

_ATTEMPTS = 100  # others put to the thread, too


class Put:
    """One checkpoint, or the writes of one task, on the way into the collection.

    Args:
        session: What can be done in the store, and what is known of it.
        relays: What sends puts that are waiting at the same time as one bulk.
        request: What is to be stored.

    Raises:
        InvalidInput: No document can hold a row of it.
    """

    def __init__(self, session: MongoSession, relays: Relays, request: PutRequest) -> None:
        self._commands = commands = session.commands
        self._session = session
        self._relays = relays
        self._request = request
        self._size = checked_size(request)
        self._is_unsure = False
        """Whether its checkpoint may have been counted before it was stored."""
        thread, watermark, creation = request.expected, None, None
        if thread is None:
            key = ObjectId()
            thread = _new_thread(request, key, key)
            creation = Creation(commands.name_of(request.thread_id), None, None)
        else:
            tail = session.logs.tail(thread)
            known = session.known.watermark(thread.key)
            watermark = known if tail is None else tail.watermark
        self._preparation = Preparation(request, thread, creation, watermark, commands.is_sharded)

    def steps(self) -> Steps[ThreadRef | None]:
        """Store it, and return its thread; None if it belongs to a deleted thread.

        Raises:
            Stale: The thread is not the expected one.
            HistoryChanged: It was prepared for another history.
            StaleLease: The run does not hold the lease any more.
            StorageBusy: Others changed the thread again and again.
        """
        for _ in attempts(_ATTEMPTS):
            if self._comes_late():
                self._remove_traces()
                return None
            attempt = yield from self._attempt()
            attempt.check()
            self._preparation = attempt.preparation
            self._note_doubts(attempt)
            if attempt.collision is None:
                self._remember()
                return self._preparation.thread
            if attempt.collision == "row":
                self._prepare_repetition(attempt)
            elif self._preparation.creation is None:
                self._prepare_for_record(self._look_again(attempt.own_tail))
            elif not self._prepare_successor(self._preparation.creation):
                return None
        raise StorageBusy(f"thread {self._request.thread_id!r} changed {_ATTEMPTS} times in a row")

    def _attempt(self) -> Steps[Attempt]:
        """Attempt to store it once."""
        relays, thread_id = self._relays, self._request.thread_id
        if not relays.is_large(thread_id, self._size):
            attempt = Attempt(relays.small, self._session, self._preparation, self._size)
            yield attempt
            return attempt
        with relays.under_way(thread_id):
            attempt = Attempt(relays.large, self._session, self._preparation, self._size)
            yield attempt
        return attempt

    def _note_doubts(self, attempt: Attempt) -> None:
        """Note whether the checkpoint may have been counted twice, which cannot be in a log."""
        is_doubtful = attempt.preparation.is_repeated or attempt.is_repeated
        if is_doubtful and not self._session.logs.keeps_logs:
            self._is_unsure = True

    def _remember(self) -> None:
        """Remember what is known of the thread now that this is stored."""
        request, thread, creation, *_ = self._preparation
        session = self._session
        if creation is not None and creation.watermark is not None:
            session.known.remember_watermark(thread.key, creation.watermark)
        if request.row is not None:
            if self._is_unsure:
                session.locks.count_again(thread)
            place = request.checkpoint_ns, request.checkpoint_id
            session.lookup.remember_newest(thread, *place, request.row.refs)
        session.chunks.remember(thread.family, request.chunks)

    # Preparing it again

    def _prepare_repetition(self, attempt: Attempt) -> None:
        """Prepare to replace a checkpoint, or to add to writes of the same task."""
        thread = self._preparation.thread
        is_counted = self._request.row is not None and self._is_visible(thread)
        self._preparation = self._preparation._replace(is_counted=is_counted, next_epoch=ObjectId())
        if attempt.entries:
            self._session.logs.end_log(thread)

    def _prepare_for_record(self, record: Document) -> None:
        """Prepare for the thread as its record now is."""
        request = self._request
        if record["status_for"] == request.checkpoint_id and not self._session.logs.keeps_logs:
            self._is_unsure = True
        self._preparation = self._preparation._replace(
            watermark=record["watermark"], is_newest=is_newest(request, record)
        )

    def _look_again(self, own_tail: Tail | None) -> Document:
        """Wait until nobody locks the thread and it has no other log, and return its record.

        Args:
            own_tail: Where one's own log was to be gone on with, if it was.

        Raises:
            HistoryChanged: The thread is not there any more, or its log did not end as logs do.
            Stale: The thread is not what it was.
            StaleLease: The run does not hold the lease any more.
        """
        request, thread, logs = self._request, self._preparation.thread, self._session.logs
        while True:
            try:
                record = self._session.locks.await_unlocked(thread)
            except Stale:
                raise self._rewound() if request.expected == thread else Stale from None
            if own_tail is not None and own_tail.log != record["log"]:
                if not logs.has_gone_on(thread, own_tail):
                    raise self._rewound()
                own_tail = None
            self._check_unchanged(record)
            if record["watermark"] is not None:
                self._session.known.remember_watermark(thread.key, record["watermark"])
            if record["log"] is None:
                logs.look_at_tail(thread, record, ())
                return record
            if logs.owns_log(thread, record["log"]):
                return record
            logs.end_log(thread)

    def _check_unchanged(self, record: Document) -> None:
        """Raise an error if the record is not that of the thread for which this was prepared."""
        request, thread = self._request, self._preparation.thread
        if record["deleted_at"] is not None:
            # A row may have arrived after the others were removed.
            ids = {"$in": row_ids(request, thread)}
            self._commands.delete({"_id": ids, "family": thread.family})
        if record["deleted_at"] is not None or record["epoch"] != thread.epoch:
            self._session.known.forget(request.thread_id)
            raise Stale
        if request.fence not in (None, record["fence"]):
            raise StaleLease(stale_lease(request.thread_id))

    def _rewound(self) -> HistoryChanged:
        """Return the error for a store that turns out to be an older state of itself."""
        self._commands.identity.lose()
        return HistoryChanged()

    def _prepare_successor(self, creation: Creation) -> bool:
        """Prepare to make a thread of an id that was used before; return False if this is late.

        Raises:
            Stale: There is another thread of this id.
        """
        request, thread, commands = self._request, self._preparation.thread, self._commands
        names = commands.latest(commands.name_of(request.thread_id))
        if not names:
            return True  # nothing was done by an attempt whose answer was lost
        name = checked_name(names[0], request.thread_id)
        old = _new_thread(request, name["key"], name["home"])
        records = commands.latest(record_of(old))
        if records and is_unfinished(records[0]):
            self._session.new_threads.discard(records[0])
            return True
        if records and records[0]["deleted_at"] is None:
            if old.key != thread.key:
                raise Stale
            # It was made by an attempt whose answer was lost.
            self._preparation = self._preparation._replace(creation=None)
            return True
        if not self._is_admitted(name):
            return False
        marks = commands.marks(request.thread_id)
        watermark = watermark_of(name, marks, None)
        deletions = deletions_of(name, marks, request.owner)
        creation = Creation(creation.name, old.key, watermark, name.get("deletion"), deletions)
        if records:
            key = ObjectId()
            thread = _new_thread(request, key, key)
        else:
            thread = old  # who was to make it ended in between, or there never was one
            # Who else makes it gives it another salt: the rows of one of the two would not fit.
            record = creation_of_record(request, thread, watermark)
            # The name first: else a thread might be there whose name expires.
            commands.change([creation.naming(thread), record])
            if not commands.exists({**record_of(thread), "epoch": thread.epoch}):
                raise Stale
        self._preparation = self._preparation._replace(thread=thread, creation=creation)
        return True

    # Late puts: those of runs that began before their thread was deleted

    def _is_admitted(self, name: Document) -> bool:
        """Return whether this may make a thread of an id whose thread was deleted.

        Args:
            named: The document that says what the id meant.
        """
        request, commands = self._request, self._commands
        marks = commands.marks(request.thread_id)
        verdict = admission(
            request,
            exists=False,
            deletions=lambda: deletions_of(name, marks, request.owner),
            watermark=watermark_of(name, marks, None),
            own_watermark=lambda: watermark_of(name, marks, request.owner),
            is_stored=lambda _: False,
        )
        if verdict is Admission.REFUSE_AND_CLEAN:
            change = raise_watermark(marks, request.owner, request.checkpoint_id)
            commands.update(commands.name_of(request.thread_id), change)
        return verdict is Admission.STORE

    def _comes_late(self) -> bool:
        """Return whether this belongs to a run of an earlier, deleted thread of the id."""
        request, thread = self._request, self._preparation.thread

        def own_watermark() -> str | None:
            names = self._commands.latest(self._commands.name_of(request.thread_id))
            marks = self._commands.marks(request.thread_id)
            return watermark_of(names[0], marks, request.owner) if names else None

        verdict = admission(
            request,
            exists=True,
            deletions=frozenset,
            watermark=self._preparation.watermark,
            own_watermark=own_watermark,
            is_stored=lambda place: self._is_stored(thread, *place),
        )
        return verdict is Admission.REFUSE_AND_CLEAN

    def _remove_traces(self) -> None:
        """Remove writes that came before this late checkpoint, and refuse those that follow."""
        request, thread, commands = self._request, self._preparation.thread, self._commands
        watermark = {"$max": ["$watermark", {"$literal": request.checkpoint_id}]}
        change = [{"$set": {"watermark": watermark}}]
        self._session.logs.without_log(
            thread, record_of(thread), lambda match: commands.update(match, change)
        )
        place = {"checkpoint_ns": request.checkpoint_ns, "checkpoint_id": request.checkpoint_id}
        if self._is_stored(thread, *place.values()):
            return
        commands.delete({**rows_of(thread, "write"), **place})
        is_provisional = commands.exists({**record_of(thread), "provisional": True})
        if is_provisional and self._session.threads.delete_late(thread):
            commands.delete(chunks_of(thread.family))

    # Looking for rows

    def _is_stored(self, thread: ThreadRef, checkpoint_ns: str, checkpoint_id: str) -> bool:
        id_ = row_id(thread, checkpoint_ns, checkpoint_id)
        match = {"_id": id_, "family": thread.family, "content": {"$exists": True}}
        return self._commands.exists(match)

    def _is_visible(self, thread: ThreadRef) -> bool:
        """Return whether there is a visible checkpoint in the place of this one."""
        id_ = row_id(thread, self._request.checkpoint_ns, self._request.checkpoint_id)
        return self._commands.exists({"_id": id_, "family": thread.family, "visible": True})


def _new_thread(request: PutRequest, key: ObjectId, family: ObjectId) -> ThreadRef:
    """Return the thread that a put makes."""
    identity = request.owner, request.thread_id, request.salt, request.checksums[:IDENTITY_BYTES]
    return ThreadRef(key, family, ObjectId(), *identity)
