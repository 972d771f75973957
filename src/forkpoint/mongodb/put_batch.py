"""MongoDB: puts that are waiting at the same time, sent as one bulk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import bson
from bson.objectid import ObjectId
from pymongo.common import MAX_BSON_SIZE

from forkpoint.errors import ForkpointError, InvalidInput
from forkpoint.mongodb.commands import MongoCommands, Outcome
from forkpoint.mongodb.documents import (
    Document,
    checkpoint_document,
    record_of,
    write_document,
)
from forkpoint.mongodb.put_statements import (
    Beginning,
    Preparation,
    Role,
    Step,
    entries_of,
    steps_with_log,
    steps_without_log,
)
from forkpoint.mongodb.session import MongoSession
from forkpoint.mongodb.tail import LOG_SECONDS, Tail
from forkpoint.runtime.group_commit import Relay, Submission
from forkpoint.storage.interface import HistoryChanged, Stale
from forkpoint.storage.rows import CheckpointRow, PutRequest, ThreadRef
from forkpoint.storage.tombstones import is_deleted_since

LARGE = 1_000_000
"""Characters or bytes; less cannot exceed a document."""

LARGE_CHUNKS = 8_000_000
"""Bytes of chunks; less, with rows that are not large, cannot exceed a command."""


class Before(NamedTuple):
    """What there will be after the puts that go before, in the same bulk."""

    made: dict[str, ThreadRef]
    tails: dict[ObjectId, Tail]


class Attempt(Submission):
    """One attempt to store a put. Its statements are made when it is sent.

    Then all puts to the thread that the saver sent before are done, or go before in the same bulk.

    Args:
        relay: What it is to be stored by.
        session: What is known of threads and their logs.
        prepared: What is to be put.
        size: About how many bytes its rows take.

    Attributes:
        prepared: What is put, with the thread that an earlier put of the bulk has made, if so.
        entries: What of it goes into the thread's log, if it does.
        own_tail: The end of one's own log that it was to go after.
        collision: Which of its statements collided with a document that exists, or may have.
        is_repeated: Whether a command before may have stored some of it.
        was_interrupted: Whether it may have been sent before, by somebody who was interrupted.
    """

    def __init__(
        self, relay: Relay[Attempt], session: MongoSession, prepared: Preparation, size: int
    ) -> None:
        super().__init__(relay, may_wait=prepared.request.row is None)
        self.prepared = prepared
        self.size = size
        self.chunk_bytes = sum(len(content) for _, content in prepared.request.chunks.values())
        self.steps: Sequence[Step] = ()
        self.entries: Sequence[Document] = ()
        self.own_tail: Tail | None = None
        self.collision: Role | None = None
        self.is_repeated = False
        self.was_interrupted = False
        self._original = prepared
        self._session = session
        self._tail: Tail | None = None

    @property
    def is_insert(self) -> bool:
        """Whether it is enough to insert its entries."""
        return all(step.role == "entry" for step in self.steps)

    @property
    def is_settled(self) -> bool:
        return super().is_settled and self.collision is None and not self.is_repeated

    def prepare(self, before: Before) -> None:
        """Make the statements, and note what there will be after them."""
        self.collision = self.error = None  # of somebody who was interrupted as he noted it
        prepared = self._with_thread_of(before)
        if prepared is None:
            return
        self.prepared = prepared
        request, thread, *_ = prepared
        logs = self._session.logs
        known = before.tails.get(thread.key) or logs.tail(thread)
        tail = prepared.log_tail(known) if logs.keeps_logs else None
        self.own_tail = known if known is not None and known.began is not None else None
        self.entries, self._tail = (), None
        if tail is not None:
            self._go_on(tail)
        elif logs.keeps_logs and request.row is not None:
            self.collide("entry")  # what counts goes into a log: one has to look at the thread
        else:
            self.steps = steps_without_log(prepared)
            self._tail = prepared.tail_without_log(known) if logs.keeps_logs else None
        if self._tail is not None:
            before.tails[thread.key] = self._tail

    def _go_on(self, tail: Tail) -> None:
        """Make the statements that go on with a log, or begin one."""
        request, thread, *_, is_counted = self.prepared
        beginning: Beginning | None = None
        if not tail.is_younger_than(LOG_SECONDS):
            old, tail = tail, tail.begin()
            assert tail.log is not None
            beginning = Beginning(old, tail.log)
        rows = entries_of(request, thread)
        self.entries, self._tail = tail.follow(request, rows, is_counted=is_counted)
        self.steps = steps_with_log(self.prepared, self.entries, beginning)

    def _with_thread_of(self, before: Before) -> Preparation | None:
        """Return what is to be put, for the thread that others have made of its id meanwhile.

        None if it cannot be put to that thread.
        """
        prepared = self._original
        request, thread, creation, *_ = prepared
        if creation is None:
            return prepared
        known = self._session.known
        made = before.made.setdefault(request.thread_id, known.get(request.thread_id) or thread)
        if made == thread:
            known.made_after.put(made.key, creation.deletions)
        elif made.owner == request.owner and self._is_of(made, request):
            if made.salt != thread.salt:  # its rows are bound to another thread
                self.fail(Stale())
                return None
            return prepared._replace(thread=made, creation=None)
        return prepared

    def _is_of(self, made: ThreadRef, request: PutRequest) -> bool:
        """Return whether a put belongs to a thread that was made meanwhile, as far as is known."""
        if request.began is None:
            return True
        deletions = self._session.known.made_after.get(made.key)
        return deletions is not None and not is_deleted_since(request.began.deletion, deletions)

    def succeed(self, made: Sequence[bool]) -> None:
        """Note that it is stored, and which of its statements made a document."""
        tail = self._tail
        for step, is_new in zip(self.steps, made, strict=True):
            if step.role == "entry" and not is_new:
                self.collide("row")
                return
        if self.entries and tail is not None and not tail.is_younger_than(2 * LOG_SECONDS):
            self.collide("entry")
            return
        self._session.known.remember(self.prepared.request.thread_id, self.prepared.thread)
        self._session.logs.remember_tail(self.prepared.thread, tail)
        self.done = True

    def collide(self, role: Role) -> None:
        """Note which of its statements collided with a document that exists, or may have."""
        self.collision = role
        self.fail(None)

    def interrupt(self) -> None:
        """Note that it may have been sent, or not, before somebody was interrupted."""
        self._forget_tail()
        self.was_interrupted = True

    def fail(self, error: Exception | None) -> None:
        """Note that it is not stored, and why, if that is an error."""
        self._forget_tail()
        self.error = error
        self.done = True

    def _forget_tail(self) -> None:
        """Forget where the thread's log ends: it may have gone on."""
        self._session.logs.remember_tail(self.prepared.thread, None)


def send(commands: MongoCommands, batch: Sequence[Attempt]) -> None:
    """Send what is waiting as one bulk. Where one put fails, the next ones begin anew."""
    try:
        was_lost = any(attempt.was_interrupted for attempt in batch)
        while batch := _prepared(commands, batch):
            outcome = _executed(commands, batch)
            if outcome is None:
                return
            was_lost = was_lost or outcome.is_lost
            for attempt in batch:
                attempt.is_repeated = was_lost or outcome.is_repeated
            batch = _after(commands, batch, outcome)
    except BaseException:  # an interrupt: nobody knows what was stored
        for attempt in batch:
            if not attempt.done:
                attempt.interrupt()
        raise


def _prepared(commands: MongoCommands, batch: Sequence[Attempt]) -> Sequence[Attempt]:
    """Return those of a batch that are to be sent, with their statements."""
    before = Before({}, {})
    for attempt in batch:
        if attempt.prepared.request.history == commands.history:
            attempt.prepare(before)
        else:
            attempt.fail(HistoryChanged())
    return [attempt for attempt in batch if not attempt.done]


def _executed(commands: MongoCommands, batch: Sequence[Attempt]) -> Outcome | None:
    """Return what became of a bulk, or None if all of it is done with."""
    entries = [document for attempt in batch for document in attempt.entries]
    is_small = sum(attempt.size for attempt in batch) < LARGE
    is_insert = is_small and all(attempt.is_insert for attempt in batch)
    is_small = is_small and sum(attempt.chunk_bytes for attempt in batch) < LARGE_CHUNKS
    try:
        if is_insert:
            outcome = commands.insert_once(entries)
        else:
            statements = [step.statement for attempt in batch for step in attempt.steps]
            outcome = commands.bulk(statements, once=bool(entries), is_small=is_small)
        if commands.is_kept(was_told=is_small):
            return outcome
        _take_back(commands, batch)
    except InvalidInput as error:  # nothing was stored; see `checked_size`
        _send_alone(commands, batch, error)
    except ForkpointError as error:
        for attempt in batch:
            attempt.fail(error)
    return None


def _after(
    commands: MongoCommands, batch: Sequence[Attempt], outcome: Outcome
) -> Sequence[Attempt]:
    """Note what became of a batch, and return what of it is to be sent again."""
    if outcome.is_lost:
        for attempt in batch:
            if attempt.entries:
                attempt.collide("entry")
        return [attempt for attempt in batch if not attempt.entries]
    total = sum(len(attempt.steps) for attempt in batch)
    reached = total if outcome.failed is None else outcome.failed
    if outcome.hits != reached:  # a row was removed before it could be seen
        _send_alone(commands, batch, Stale())
        return ()
    begin = 0
    for number, attempt in enumerate(batch):
        end = begin + len(attempt.steps)
        if reached < end:
            _note_failure(attempt, attempt.steps[reached - begin].role, outcome)
            return batch[number + 1 :]
        attempt.succeed(made=[index in outcome.made for index in range(begin, end)])
        begin = end
    return ()


def _note_failure(attempt: Attempt, role: Role, outcome: Outcome) -> None:
    """Note that a statement of a put failed."""
    if outcome.error is not None:
        attempt.fail(outcome.error)
    elif outcome.is_taken:
        attempt.collide("entry")
    else:
        attempt.collide("row" if role == "entry" else role)


def _take_back(commands: MongoCommands, batch: Sequence[Attempt]) -> None:
    """Let all of a batch be put again: it was sent to a store that may be another one.

    What it stored there and does not belong there is removed. The rest is stored again.
    """
    for attempt in batch:
        thread = attempt.prepared.thread
        if attempt.entries and _is_astray(commands, thread, attempt.entries[0]):
            ids, log = [entry["_id"] for entry in attempt.entries], attempt.entries[0]["log"]
            commands.delete({"_id": {"$in": ids}, "family": thread.family, "log": log})
        attempt.fail(HistoryChanged())
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


def _send_alone(commands: MongoCommands, batch: Sequence[Attempt], error: Exception) -> None:
    """Send puts one by one, to see which of them it is that fails."""
    if len(batch) == 1:
        batch[0].fail(error)
    else:
        for attempt in batch:
            send(commands, [attempt])


def checked_size(request: PutRequest) -> int:
    """Return about how large the rows of a put are, and refuse one that no document can hold.

    Raises:
        InvalidInput: There is one.
    """
    total = 0
    for row in (request.row, *request.writes):
        if row is None:
            continue
        rough = sum(len(field) for field in row if isinstance(field, _SIZED))
        total += rough
        if rough < LARGE:
            continue
        thread = request.expected or ThreadRef(ObjectId(), ObjectId(), ObjectId())
        document = checkpoint_document if isinstance(row, CheckpointRow) else write_document
        place, content = document(thread, row)  # type: ignore[arg-type]
        size = len(bson.encode({**place, "next": content}))
        if size > MAX_BSON_SIZE - _ENVELOPE:
            raise InvalidInput(
                f"MongoDB cannot hold this as one document of {size} bytes; values may be of any "
                "size, but metadata, names and the number of channels may not"
            )
    return total


_SIZED = (str, bytes)
_ENVELOPE = 10_000  # bytes of a document apart from what it says
