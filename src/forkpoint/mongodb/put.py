"""MongoDB: a put on its way into the collection, in a bulk that it may share with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import bson
from bson.objectid import ObjectId
from pymongo.common import MAX_BSON_SIZE

from forkpoint.errors import ForkpointError, InvalidInput
from forkpoint.mongodb.commands import MongoCommands
from forkpoint.mongodb.documents import (
    Document,
    checkpoint_document,
    record_of,
    write_document,
)
from forkpoint.mongodb.log import LOG_SECONDS, Tail
from forkpoint.mongodb.put_statements import (
    Beginning,
    Intent,
    Role,
    Step,
    entries_of,
    steps_of,
    steps_of_entries,
)
from forkpoint.mongodb.session import MongoSession
from forkpoint.runtime.group_commit import Relay, Submission
from forkpoint.storage.interface import HistoryChanged, Stale
from forkpoint.storage.rows import CheckpointRow, PutRequest, ThreadRef
from forkpoint.storage.tombstones import is_deleted_since

LARGE = 1_000_000
"""Characters or bytes; less cannot exceed a document."""

LARGE_CHUNKS = 8_000_000
"""Bytes of chunks; less, with rows that are not large, cannot exceed a command."""


class Ahead(NamedTuple):
    """What there will be after the puts that go before, in the same bulk."""

    made: dict[str, ThreadRef]
    tails: dict[ObjectId, Tail]


class Bulk(Submission):
    """A put on its way into the collection. What it looks like is decided when it is sent.

    Then all puts to the thread that the saver sent before are done, or go before in the same bulk.

    Args:
        relay: What it is to be stored by.
        session: What is known of threads and their logs.
        intent: What is to be put.
        size: About how many bytes its rows take.
    """

    def __init__(
        self, relay: Relay[Bulk], session: MongoSession, intent: Intent, size: int
    ) -> None:
        super().__init__(relay, is_patient=intent.put.row is None, key=intent.put.thread_id)
        self.sent = intent
        self.size = size
        self.chunk_bytes = sum(len(content) for _, content in intent.put.chunks.values())
        self.steps: Sequence[Step] = ()
        self.entries: Sequence[Document] = ()
        """What of it goes into the thread's log, if it does."""
        self.collided: Role | None = None
        self.is_repeated = False
        self.is_interrupted = False
        """Whether it may have been sent before, by somebody who was interrupted then."""
        self._intent = intent
        self._session = session
        self._tail: Tail | None = None
        self.own_tail: Tail | None = None
        """The end of one's own log that it was to go after."""

    def prepare(self, ahead: Ahead) -> None:
        """Make the statements, and note what there will be after them."""
        self.collided = self.error = None  # of somebody who was interrupted as he noted it
        intent = self._intent
        if intent.creation is not None:
            thread_id = intent.put.thread_id
            made = ahead.made.setdefault(
                thread_id, self._session.known.get(thread_id) or intent.thread
            )
            if made == intent.thread:
                self._session.known.made_after.put(made.key, intent.creation.deletions)
            elif made.owner == intent.put.owner and self._is_of(made, intent.put):
                if made.salt != intent.thread.salt:  # its rows are bound to another thread
                    self.fail(Stale())
                    return
                intent = intent._replace(thread=made, creation=None)
        self.sent = intent
        put, thread, *_ = intent
        before = ahead.tails.get(thread.key) or self._session.logs.tail(thread)
        tail = intent.usable(before) if self._session.logs.keeps_logs else None
        self.own_tail = before if before is not None and before.began is not None else None
        self.entries = ()
        self._tail = None
        if tail is not None:
            beginning: Beginning | None = None
            if not tail.is_younger_than(LOG_SECONDS):
                end, tail = tail, tail.begin()
                assert tail.log is not None
                beginning = Beginning(end, tail.log)
            rows, is_counted = entries_of(put, thread), intent.is_counted
            self.entries, self._tail = tail.follow(put, rows, is_counted=is_counted)
            self.steps = steps_of_entries(intent, self.entries, beginning)
        elif self._session.logs.keeps_logs and put.row is not None:
            self.collide("entry")  # what counts goes into a log: one has to look at the thread
        else:
            self.steps = steps_of(intent)
            self._tail = intent.left(before) if self._session.logs.keeps_logs else None
        if self._tail is not None:
            ahead.tails[thread.key] = self._tail

    def _is_of(self, made: ThreadRef, put: PutRequest) -> bool:
        """Return whether a put belongs to a thread that was made meanwhile, as far as is known."""
        if put.began is None:
            return True
        deletions = self._session.known.made_after.get(made.key)
        return deletions is not None and not is_deleted_since(put.began.deletion, deletions)

    @property
    def is_insert(self) -> bool:
        """Whether it is enough to insert its entries."""
        return all(step.role == "entry" for step in self.steps)

    def succeed(self, made: Sequence[bool]) -> None:
        """Note that it is stored, and which of its statements made a document."""
        tail = self._tail
        for step, is_new in zip(self.steps, made, strict=True):
            if step.role in ("once", "entry") and not is_new:
                self.collide("once")
                return
        if self.entries and tail is not None and not tail.is_younger_than(2 * LOG_SECONDS):
            self.collide("entry")
            return
        self._session.known.remember(self.sent.put.thread_id, self.sent.thread)
        self._session.logs.remember_tail(self.sent.thread, tail)
        self.done = True

    def collide(self, role: Role) -> None:
        """Note which of its statements collided with a document that exists, or may have."""
        self.collided = role
        self.fail(None)

    def forget_tail(self) -> None:
        """Forget where the thread's log ends: it may have gone on."""
        self._session.logs.remember_tail(self.sent.thread, None)

    def interrupt(self) -> None:
        """Note that it may have been sent, or not, before somebody was interrupted."""
        self.forget_tail()
        self.is_interrupted = True

    def fail(self, error: Exception | None) -> None:
        self.forget_tail()
        self.error = error
        self.done = True

    @property
    def is_settled(self) -> bool:
        return super().is_settled and self.collided is None and not self.is_repeated


def store(commands: MongoCommands, batch: Sequence[Bulk]) -> None:
    """Execute what is waiting as one bulk. Where one put fails, the next ones begin anew."""
    try:
        _execute(commands, batch)
    except BaseException:  # an interrupt: nobody knows what was stored
        for bulk in batch:
            if not bulk.done:
                bulk.interrupt()
        raise


def _execute(commands: MongoCommands, batch: Sequence[Bulk]) -> None:
    was_lost = any(bulk.is_interrupted for bulk in batch)
    while batch:
        ahead = Ahead({}, {})
        for bulk in batch:
            if bulk.sent.put.history == commands.history:
                bulk.prepare(ahead)
            else:
                bulk.fail(HistoryChanged())
        batch = [bulk for bulk in batch if not bulk.done]
        if not batch:
            return
        statements = [step.statement for bulk in batch for step in bulk.steps]
        entries = [document for bulk in batch for document in bulk.entries]
        is_small = sum(bulk.size for bulk in batch) < LARGE
        is_insert = is_small and all(bulk.is_insert for bulk in batch)
        is_small = is_small and sum(bulk.chunk_bytes for bulk in batch) < LARGE_CHUNKS
        try:
            if is_insert:
                outcome = commands.insert_once(entries)
            else:
                outcome = commands.bulk(statements, once=bool(entries), is_small=is_small)
            if not commands.is_kept(was_told=is_small):
                _take_back(commands, batch)
                return
        except InvalidInput as error:  # nothing was stored; see `checked_size`
            _execute_alone(commands, batch, error)
            return
        except ForkpointError as error:
            for bulk in batch:
                bulk.fail(error)
            return
        was_lost = was_lost or outcome.is_lost
        for bulk in batch:
            bulk.is_repeated = was_lost or outcome.is_repeated
        if outcome.is_lost:
            for bulk in batch:
                if bulk.entries:
                    bulk.collide("entry")
            batch = [bulk for bulk in batch if not bulk.entries]
            continue
        reached = len(statements) if outcome.failed is None else outcome.failed
        if outcome.hits != reached:  # a row was removed before it could be seen
            _execute_alone(commands, batch, Stale())
            return
        begin = 0
        while batch and reached >= begin + len(batch[0].steps):
            bulk, *batch = batch
            end = begin + len(bulk.steps)
            bulk.succeed(made=[index in outcome.made for index in range(begin, end)])
            begin = end
        if batch:
            bulk, *batch = batch
            role = bulk.steps[reached - begin].role
            if outcome.error is not None:
                bulk.fail(outcome.error)
            elif outcome.is_taken:
                bulk.collide("entry")
            else:
                bulk.collide("row" if role == "entry" else role)


def _take_back(commands: MongoCommands, batch: Sequence[Bulk]) -> None:
    """Let all of a batch be put again: it was sent to a store that may be another one.

    What it stored there and does not belong there is removed. The rest is stored again.
    """
    for bulk in batch:
        if bulk.entries and _is_astray(commands, bulk.sent.thread, bulk.entries[0]):
            ids, log = [entry["_id"] for entry in bulk.entries], bulk.entries[0]["log"]
            family = bulk.sent.thread.family
            commands.delete({"_id": {"$in": ids}, "family": family, "log": log})
        bulk.fail(HistoryChanged())
    commands.identity.lose()


def _is_astray(commands: MongoCommands, thread: ThreadRef, entry: Document) -> bool:
    """Return whether an entry is not in its log, because the log, or the thread, went back."""
    if not commands.exists(record_of(thread)):
        return True
    log = {"family": thread.family, "log": entry["log"]}
    ends = commands.latest({**log, "slot": {"$gt": 0}, "kind": "end"}, {"slot": 1})
    if ends:
        return bool(entry["slot"] > ends[0]["slot"])
    return entry["slot"] > 1 and not commands.exists({**log, "slot": entry["slot"] - 1})


def _execute_alone(commands: MongoCommands, batch: Sequence[Bulk], error: Exception) -> None:
    """Execute bulks one by one, to see which of them it is that fails."""
    if len(batch) == 1:
        batch[0].fail(error)
    else:
        for bulk in batch:
            _execute(commands, [bulk])


def checked_size(put: PutRequest) -> int:
    """Return about how large the rows of a put are, and refuse one that no document can hold.

    Raises:
        InvalidInput: There is one.
    """
    total = 0
    for row in (put.row, *put.writes):
        if row is None:
            continue
        rough = sum(len(field) for field in row if isinstance(field, _SIZED))
        total += rough
        if rough < LARGE:
            continue
        thread = put.expected or ThreadRef(ObjectId(), ObjectId(), ObjectId())
        document = checkpoint_document if isinstance(row, CheckpointRow) else write_document
        place, said = document(thread, row)  # type: ignore[arg-type]
        size = len(bson.encode({**place, "next": said}))
        if size > MAX_BSON_SIZE - _ENVELOPE:
            raise InvalidInput(
                f"MongoDB cannot hold this as one document of {size} bytes; values may be of any "
                "size, but metadata, names and the number of channels may not"
            )
    return total


_SIZED = (str, bytes)
_ENVELOPE = 10_000  # bytes of a document apart from what it says
